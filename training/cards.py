"""The model card of a run directory (README.md): what was trained, its scores, and how to load it."""

import re
from pathlib import Path

from versatile.adapters.backbones import bundled
from versatile.utils.errors import UserError
from versatile.utils.files import atomic_write
from versatile.utils.screen import portable_command

CARD = "README.md"
LIBRARY = "versatile"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def write_model_card(directory, record, metrics=None, location=None, hub_name=None):
    """Write a run directory's README.md. An existing one that the toolkit did not write is kept, and a run that
    only evaluates gets none.

    Args:
        directory: the run's directory.
        record: the content of its run.json.
        metrics: the content of its metrics.json, if there is one.
        location: the directory's final path, if it will be moved.
        hub_name: its name on the hub, if it is pushed there.
    """
    from huggingface_hub import ModelCardData

    path = Path(directory) / CARD
    if path.is_file() and not is_model_card(path):
        return
    flags, location = record.get("flags", {}), str(location or directory)
    if not flags.get("do_train", True):
        return
    backbone, tasks = backbone_of_run(flags), tasks_of_run(record)
    # The parts of the method's name: "adapter+distillation", "lll".
    tags = dict.fromkeys([LIBRARY, *re.split(r"\+", record.get("method") or ""), *tasks])
    header = ModelCardData(library_name=LIBRARY, base_model=hub_id(backbone), tags=[t for t in tags if t])
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# {Path(location).name}",
        _summary(record, backbone, tasks),
        _scores(metrics or {}),
        "## How to load it\n\n" + _loading(flags, tasks, location, hub_name),
        _origin(record),
    ]
    with atomic_write(path) as file:
        # A path that is not valid UTF-8 contains lone surrogates.
        file.reconfigure(errors="backslashreplace")
        file.write("\n\n".join(part for part in parts if part) + "\n")


def is_model_card(path):
    """Whether a README.md was written by `write_model_card`."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line for line, _ in zip(file, range(100))]
    return lines[:1] == ["---\n"] and f"library_name: {LIBRARY}\n" in lines


def backbone_of_run(flags):
    """The name of a run's backbone in its flags, or None."""
    named = (flags.get(flag) for flag in ("model_checkpoint", "model_name_or_path", "config_name"))
    return next((name for name in named if isinstance(name, str) and name), None)


def hub_id(backbone):
    """A backbone's name on the hub, or None for a directory or a backbone made here."""
    if backbone in bundled.NAMES:
        return bundled.HUB_IDS.get(backbone)
    on_the_hub = backbone and _HUB_NAME.fullmatch(backbone) and not Path(backbone).exists()
    return backbone if on_the_hub else None


def tasks_of_run(record):
    """Names of the trained tasks according to a run.json."""
    flags = record.get("flags", {})
    if isinstance(record.get("sources"), dict):
        return list(record["sources"])
    named = flags.get("task") or flags.get("tasks") or []
    return [str(name) for name in ([named] if isinstance(named, str) else named)]


def _summary(record, backbone, tasks):
    known = hub_id(backbone)
    backbone_cell = f"`{backbone}`" + (f" ({known})" if known and known != backbone else "")
    script = (str(record.get("command") or "").split() or ["?"])[0]
    rows = [("task" + "s" * (len(tasks) != 1), ", ".join(tasks) or "?"), ("backbone", backbone_cell),
            ("method", record.get("method") or "?"), ("made by", f"`{script}`")]  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _scores(metrics):
    """The scores in metrics.json as a table, or "" if there are none."""
    rows = []
    if metrics.get("trained_parameters"):
        rows.append(("trained parameters", f"{metrics['trained_parameters']:,}"))
    rows += [(f"{split} {task}: {name}", f"{value:.4g}")
             for split, tasks in _dict(metrics.get("scores")).items() for task, own in tasks.items()
             for name, value in own.items()]  # fmt: skip
    for task, own in _dict(metrics.get("tasks")).items():
        scores = {name: score["score"] for name, score in _dict(own.get("scores")).items()}
        scores |= {"NLL": own["valid_nll"], "PPL": own["valid_ppl"]} if "valid_nll" in own else {}
        rows += [(f"{own.get('split', 'valid')} {task}: {name}", f"{value:.4g}") for name, value in scores.items()]
    if metrics.get("valid_nll") is not None and "tasks" not in metrics:
        rows += [("valid NLL", f"{metrics['valid_nll']:.4g}"), ("valid PPL", f"{metrics['valid_ppl']:.4g}")]
    table = "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])
    return f"## Results\n\n{table}" if rows else ""


def _dict(value):
    return value if isinstance(value, dict) else {}


def _loading(flags, tasks, location, hub_name):
    """The Python code and the shell command that load it."""
    first = tasks[0] if tasks else "TASK"
    directory = f"directory = {location!r}"
    if hub_name:
        directory = f"from huggingface_hub import snapshot_download\n\ndirectory = snapshot_download({hub_name!r})"
    code = "import versatile\n\nmodel = versatile.load(directory)\nprint(model.generate_text({!r}, {!r}))"
    if "seq_train_type" in flags:
        code = ("from versatile.adapters import checkpoint\n\n"
                f"model, tokenizer = checkpoint.load_checkpoint({_last_stage(flags, location)})")
        command = portable_command("evaluate_lifelong.py", "--model_dirs", location)
    elif "adapter_config_name" in flags:
        code = code.format(first, _columns(first))
        command = portable_command("evaluate.py", "--task", "all", "--no_sample", "--model_checkpoint", location)
    elif "freeze_encoder_layers" in flags:
        code = code.format(first, _sentences(first))
        command = portable_command("train_camtl.py", "--model_name_or_path", location, "--data_dir", "GLUE",
                                   "--output_dir", "results", "--do_eval")  # fmt: skip
    else:
        code = code.format(first, _sample(first))
        # In a combined model's flags the task is null.
        task = flags.get("task") and first
        command = portable_command("evaluate.py" if task else "evaluate_vlm.py", "--task", task or "all", "--no_sample",
                                   "--model_checkpoint", location)  # fmt: skip
    return f"```python\n{directory}\n\n{code}\n```\n\n```console\n{command}\n```"


def _last_stage(flags, location):
    """The directory of a lifelong run's model, as a Python expression."""
    tasks, joint = flags["tasks"], flags["seq_train_type"] in ("multitask", "multilm")
    stage = Path(location).name in tasks and (Path(location).parent / "run.json").is_file()
    return "directory" if joint or stage else f'f"{{directory}}/{tasks[-1]}"'


def _sample(task):
    """A sample input of a task for `TextModel.generate_text`."""
    from versatile.data.task import find_task

    known = find_task(task)
    sample = known.sample if known and known.sample else "an input"
    return [[sample, "a turn of the conversation"]] if known and known.max_history else sample


def _columns(task):
    """A sample input of a text-to-text task for `TextToTextModel.generate_text`."""
    from versatile.data import text_to_text

    try:
        return {field: "a text" for field in text_to_text.get_task(task).fields() if field.isidentifier()}
    except UserError:
        return "a text"


def _sentences(task):
    """A sample input of a classification task for its model's `generate_text`."""
    from versatile.data import glue
    from versatile.training.classification_text_model import SentenceTask

    try:
        return SentenceTask(glue.get_task(task)).sample
    except UserError:
        return "a sentence"


def _origin(record):
    """The command and library versions that produced it."""
    versions = ", ".join(f"{name} {version}" for name, version in _dict(record.get("versions")).items() if version)
    # Combined and merged models were not trained, so nothing was measured.
    measured = "" if "sources" in record else ", the measurements in `metrics.json`"
    lines = ["## Provenance", f"```console\n{record.get('command')}\n```",
             f"All flags, the seed and the commit are in `run.json`{measured}."]  # fmt: skip
    return "\n\n".join([*lines, versions] if versions else lines)
