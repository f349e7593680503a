"""What is to be said of a directory that is not a model of train_t5.py, and the flags of one that is."""

import json
from pathlib import Path

from versatile.utils.errors import UserError
from versatile.utils.screen import resume_command, shell_command


def why_not(directory):
    """A `UserError` that says why a directory is not a model of train_t5.py, for a text-to-text task that needs one."""
    path, location = Path(directory), f"--model_checkpoint {directory}"
    expected = "a run directory of train_t5.py, or one of its checkpoints/step_N"
    if not path.is_dir():
        return UserError("no such directory", location=location, expected=expected)
    if (path / "run.json").is_file():
        saved = sorted([*path.glob("checkpoints/step_*"), *path.glob("checkpoint-*")], key=lambda f: f.stat().st_mtime)
        flags = _read(path / "run.json").get("flags")
        if isinstance(flags, dict) and "adapter_config_name" in flags:
            return UserError("this run has not saved a best model yet", location=location,
                             remedy=f"resume it: {resume_command('train_t5.py', path)}"
                             + (f"; or take its last checkpoint, {saved[-1]}" if saved else ""))  # fmt: skip
    kind = _read(path / "config.json").get("model_type")
    if kind in ("t5", "mt5") and "versatile" not in _read(path / "config.json"):
        train = shell_command("train_t5.py", "configs/adapters.json", "--model_name_or_path", path)
        return UserError("this is a bare T5: it was not trained for tasks", location=location, expected=expected,
                         remedy=f"train it: {train}")  # fmt: skip
    return UserError("this is not a model of train_t5.py, nor of train.py", location=location,
                     expected=expected)  # fmt: skip


def run_flags(directory):
    """(flags of the run.json of a run, or of the run that a checkpoint lies in, the file).

    Raises:
        UserError: there is none, or it is damaged: what the model was trained with would have to be guessed.
    """
    path = Path(directory).resolve()
    run = path.parents[1] if path.name.startswith("step_") else path.parent if "checkpoint-" in path.name else path
    path = run / "run.json"
    flags = _read(path).get("flags")
    if not isinstance(flags, dict):
        raise UserError("run.json is damaged" if path.is_file() else "run.json is missing", location=path,
                        expected="what train_t5.py wrote: it says which split, lengths and prompts belong to the model",
                        remedy="copy it again from where the model was trained")  # fmt: skip
    return flags, path


def _read(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
