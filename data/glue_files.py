"""Which of GLUE's files are present, and where to get the others."""

from pathlib import Path

from versatile.data.glue import TASKS, get_task, glue_name, path_of, tasks_sharing_heads
from versatile.utils.errors import UserError


def missing(data_dir, names, splits):
    """[path] of the missing files of some tasks and splits."""
    wanted = [(get_task(name), split) for name in names for split in splits]
    return [
        path
        for task, split in wanted
        if not (task.pairs and task.has(split, data_dir))
        and not (path := path_of(data_dir, task.name, split)).is_file()
    ]


def head_sharing_tasks_with_files(hosts, data_dir, split):
    """The tasks that are evaluated with the heads of `hosts` (`glue.tasks_sharing_heads`) and have a file of this
    split."""
    tasks = [task for task in tasks_sharing_heads(hosts) if split in get_task(task).files]
    return [task for task in tasks if not missing(data_dir, [task], [split])]


def need(data_dir, names, splits, otherwise=""):
    """Raise a `UserError` if files are missing; it names them, and the tasks whose files are complete.

    Args:
        otherwise: additional advice, put before the rest.
    """
    for task in map(get_task, names):
        # A task of its own kind has its own place and files.
        if absent := [split for split in splits if task.pairs and not task.has(split, data_dir)]:
            raise UserError(f"has no {' and no '.join(absent)} split", location=task.pairs.located(data_dir).source,
                            expected=f"rows of {task.name}",
                            remedy=f"{otherwise}add it, or leave out the flag that asks for it: --do_train, --do_eval, "
                            "--do_predict")  # fmt: skip
    gone = missing(data_dir, names, splits)
    if not gone:
        return
    whole = [name for name in names if not missing(data_dir, [name], splits)]
    if not Path(data_dir).is_dir():
        raise UserError(
            "no such directory",
            location=f"--data_dir {data_dir}",
            expected="the folder of CoLA/, MNLI/, …",
            remedy="train_camtl.py --download says where to get GLUE's files",
        )
    listed = ", ".join(str(path.relative_to(data_dir)) for path in gone[:6]) + (", …" if len(gone) > 6 else "")
    leave = f"--tasks {' '.join(whole)} leaves them out; " if whole else ""
    raise UserError(f"no {listed}", location=f"--data_dir {data_dir}", expected="GLUE in the official script's folders",
                    remedy=f"{otherwise}{leave}--download says where to get them")  # fmt: skip


_SOURCE = "https://dl.fbaipublicfiles.com/glue/data/"
_SCRIPT = "https://github.com/nyu-mll/jiant/blob/master/scripts/download_glue_data.py"
_ARCHIVES = {"qqp": "QQP-clean.zip", "qnli": "QNLIv2.zip", "ax": "AX.tsv"}


def where_to_get(data_dir, names=None):
    """A text that says which of GLUE's files are in a directory, and where to get the missing ones.

    Args:
        data_dir: the directory; None counts as empty.
        names: tasks (default: all).
    """
    lines, gone = [], []
    for typed in [name for word in names or TASKS for name in word.split(",")]:
        name = glue_name(typed)
        if name not in TASKS:
            lines.append(f"{typed:8} is not one of GLUE's; see docs/data.md for its files")
            continue
        task = TASKS[name]
        paths = {split: path_of(data_dir or "", name, split) for split in task.files}
        absent = [path for path in paths.values() if not (data_dir and path.is_file())]
        gone += [name] if absent else []
        shown = "all there" if not absent else "missing: " + ", ".join(f"{p.parent.name}/{p.name}" for p in absent)
        lines.append(f"{name:8} {shown}")
    if not gone:
        return "\n".join([*lines, f"{data_dir} holds everything"])
    lines += ["", "The official script fetches all of them into a folder and writes exactly these files:",
              f"  {_SCRIPT}", "  python download_glue_data.py --data_dir DIR --tasks all",
              "or single tasks, to be unpacked in that folder:"]  # fmt: skip
    folders = {}
    for name in gone:
        folders.setdefault(TASKS[name].folder, name)
    for folder, name in folders.items():
        if name == "mrpc":
            lines.append("  MRPC         only from the official script, which makes it from the original files")
        else:
            lines.append(f"  {folder:12} {_SOURCE}{_ARCHIVES.get(name, f'{folder}.zip')}")
    return "\n".join(lines)
