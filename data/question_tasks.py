"""The tasks of LAMOL (Sun et al. 2020) and L2KD (Chuang et al. 2020), and where their files are found."""

import difflib
import os

from versatile.data import task as registry
from versatile.utils.errors import UserError
from versatile.utils.screen import module_command

# The order in which LAMOL and L2KD list them.
ORDER = (
    "squad1", "squad2", "iwslt.en.de", "cnn_dailymail", "multinli.in.out", "sst", "srl", "zre", "woz.en", "wikisql",
    "schema", "ag", "dbpedia", "yahoo", "amazon", "yelp", "e2enlg", "e2enlg2", "rnnlg.rest", "rnnlg.hotel", "rnnlg.tv",
    "rnnlg.laptop",
)  # fmt: skip
TASKS = registry.Forms("question_answer", ORDER)


def get_task(name, location="--tasks"):
    """The `LifelongTask` called `name`; an unknown name raises `UserError` at `location`."""
    return registry.form(name, "question_answer", location)


def sequence(names, location="--tasks"):
    """The list of `LifelongTask` for a sequence of names: at least one, without duplicates."""
    tasks = [get_task(name, location) for name in names]
    twice = sorted({task.name for task in tasks if tasks.count(task) > 1})
    if twice or not tasks:
        raise UserError(f"{' and '.join(twice)} more than once" if twice else "no tasks", location=location,
                        expected="the names of the tasks, each once, in the order they are learned",
                        remedy="correct the list")  # fmt: skip
    return tasks


def find_file(data_dir, task, split):
    """The path of a task's file for a split, plain or ``.gz``.

    Args:
        data_dir: the directory with the files of all tasks.
        task: a `LifelongTask`.
        split: one of `SPLITS`.

    Returns:
        The path; None for the dev split of a task that has none in the released data, unless the file exists.

    Raises:
        UserError: no such directory or file; the message says which file was expected and what is there.
    """
    if task.pairs:
        return _find_pairs(task.pairs.located(data_dir), split)
    path = existing_file(data_dir, task.filename(split))
    if path or (split == "dev" and not task.has_dev):
        return path
    if split == "distil":
        train = task.filename("train")
        remedy = f"let a teacher write it from {train}: --train_teachers, or --teacher_dir DIR with trained ones"
    else:
        convert = module_command("data.convert", "--help")
        remedy = f"check the data directory, or make the file from the original data: {convert}"
    raise _missing(data_dir, task.filename(split), f"the {split} split of {task.name}", remedy)


def _find_pairs(pairs, split):
    """The path that a split of prompts and answers is read from, or None."""
    if pairs.has(split):
        return pairs.split_path(split)
    if split == "dev":
        return None
    remedy = "let a teacher write it: --train_teachers, or --teacher_dir DIR" if split == "distil" else "add the split"
    raise UserError(f"has no {split} split", location=f"{pairs.name}={pairs.source}", expected=f"rows of {split}",
                    remedy=remedy)  # fmt: skip


def find_gold(data_dir, task):
    """The path of the file of true answers that `LifelongTask.gold` names, or None if the task has none."""
    if task.gold is None:
        return None
    path = existing_file(data_dir, task.gold)
    if not path:
        dataset = task.name.split(".")[0]
        remedy = f"it comes with the test file; {module_command('data.convert', f'squad-{dataset}')} writes both"
        raise _missing(data_dir, task.gold, f"the true answers of {task.name}'s test split", remedy)
    return path


def existing_file(data_dir, name, location=None, remedy="check the spelling of the path"):
    """The path of a file in a directory, plain or ``.gz``, or None; a `UserError` if the directory is missing."""
    if not os.path.isdir(data_dir):
        problem = "is a file, not a directory" if os.path.exists(data_dir) else "no such directory"
        raise UserError(problem, location=location or f"--data_dir {data_dir}",
                        expected="the directory of the tasks' json files", remedy=remedy)  # fmt: skip
    paths = (os.path.join(data_dir, candidate) for candidate in (name, f"{name}.gz"))
    return next((path for path in paths if os.path.isfile(path)), None)


def _missing(data_dir, name, what, remedy):
    entries = sorted(entry for entry in os.listdir(data_dir) if entry.endswith((".json", ".json.gz")))
    # Similar names come first, so that a wrong version or split is easier to see.
    close = difflib.get_close_matches(name, entries, n=5, cutoff=0.7)
    entries = close + [entry for entry in entries if entry not in close]
    shown = ", ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "")
    return UserError(f"no {name}; its json files are: {shown or 'none'}", location=f"--data_dir {data_dir}",
                     expected=f"{name} or {name}.gz: {what}", remedy=remedy)  # fmt: skip
