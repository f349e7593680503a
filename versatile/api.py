"""Interface of `import versatile`: scripts as functions of a dict of flags, and trained models that answer texts."""

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

from versatile.__main__ import find_script, open_script
from versatile.utils import flags as flag_types
from versatile.utils.config_files import read_config
from versatile.utils.errors import UserError
from versatile.utils.settings import SETTINGS, json_object

PRECISIONS = ("fp32", "bf16", "fp16")
TRAINING_SCRIPTS = ("train", "train_vlm", "train_lifelong", "train_t5", "pretrain_t5", "train_camtl")


def load(directory, task=None, precision=None):
    """A trained model, ready to answer: `training.text_model.TextModel`.

    Args:
        directory: output of train.py, train_vlm.py, combine_all.py, train_t5.py or train_camtl.py, or a released VLM
            checkpoint.
        task: name of the task of a released single-task checkpoint.
        precision: of the matrix products: fp32, bf16 or fp16 (default: bf16 where the hardware has it).

    Raises:
        UserError: there is nothing to load.
    """
    import ignite.distributed as idist

    from versatile.utils import devices

    if precision not in (None, *PRECISIONS):
        raise UserError(f"no precision {precision!r}", location="precision", expected="one of " + ", ".join(PRECISIONS))
    devices.quiet_libraries()
    chosen = SimpleNamespace(**{name: name == precision for name in PRECISIONS})
    dtype = devices.precision(chosen, idist.device())
    from versatile.training.text_model import load_text_model

    return load_text_model(directory, task, dtype)


def train(flags, script="train"):
    """Train as a script does; returns the run's directory, which `load` takes.

    Args:
        flags: {name: value}, as on the command line, without the hyphens: a switch is True, a flag that takes several
            words has a list, one that takes TASK=VALUE has a dict; None omits a flag. `output_dir` may be omitted,
            or be in the file `config`; dict(resume=run) resumes a run.
        script: train, train_vlm, train_lifelong, train_t5, pretrain_t5 or train_camtl.

    Raises:
        UserError: any error that would end the script.
        KeyboardInterrupt: after Ctrl-C; the run was saved and can be resumed.
    """
    name, flags = find_script(str(script), "script"), dict(flags)
    if name not in TRAINING_SCRIPTS:
        raise UserError(f"{script} trains nothing", location="script", expected="one of " + ", ".join(TRAINING_SCRIPTS),
                        remedy="see versatile.evaluate and versatile.combine; run others from the command line")
    folder = flags.get("resume") or _output_directory(flags)
    if not folder and name == "train_lifelong" and (flags.get("model_dir_root") or os.environ.get("MODEL_ROOT_DIR")):
        folder = _sequence_directory(flags)
    elif not folder:
        flags["output_dir"] = folder = _default_directory(name, flags)
    run_script(name, flags)
    return Path(folder)


def _output_directory(flags):
    """The `output_dir` of flags, typed or in their config file, or None."""
    if flags.get("output_dir") or not flags.get("config"):
        return flags.get("output_dir")
    read = ((key.replace("-", "_"), value) for key, value, _ in read_config(flags["config"]))
    return dict(read).get("output_dir")


def _default_directory(name, flags):
    from versatile.training.runs import default_directory

    tasks = flags.get("task") or flags.get("tasks") or ()
    # A task of one's own is typed as NAME=DATA.
    names = [str(task).partition("=")[0] for task in ([tasks] if isinstance(tasks, str) else tasks)]
    return default_directory(name, *names)


def _sequence_directory(flags):
    """Where train_lifelong.py puts a run below --model_dir_root."""
    from versatile.lifelong import sequence
    from versatile.scripts import train_lifelong

    words = command_line(flags)
    with open_script("train_lifelong", words), flag_types.raising_errors():
        parser = train_lifelong.parser()
        args = parser.parse_args(words)
        sequence.check_names(parser, args)
    return sequence.directory(args)


def combine(checkpoints, output=None, **flags):
    """Combine trained tasks into one model as combine_all.py does; returns its directory.

    Args:
        checkpoints: {task: run directory}.
        output: the directory to make; may be omitted with `into`, the directory to add the tasks to.
        flags: further flags of combine_all.py.
    """
    run_script("combine_all", dict(flags, checkpoints=checkpoints, output=output))
    return Path(output or flags["into"])


def evaluate(flags, script="evaluate"):
    """Decode and score as a script does.

    Args:
        flags: as in `train`; without `output_dir` only the scores are kept.
        script: evaluate or evaluate_vlm.

    Returns:
        {task: content of its <task>_metrics.json}

    Raises:
        UserError: a script that writes no such files, or what the script itself refuses.
    """
    if Path(str(script)).stem not in ("evaluate", "evaluate_vlm"):
        raise UserError(f"{script} does not write scores task by task", location="script",
                        expected="evaluate or evaluate_vlm",
                        remedy="run it from the command line; evaluate_lifelong.py writes matrix.json")  # fmt: skip
    from versatile.training.evaluation import temporary_results

    with contextlib.ExitStack() as stack:
        if not (folder := _output_directory(flags)):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(temporary_results())
        earlier = {path: _version(path) for path in Path(folder).glob("*_metrics.json")}
        run_script(find_script(str(script), "script"), dict(flags, output_dir=folder))
        files = sorted(p for p in Path(folder).glob("*_metrics.json") if earlier.get(p) != _version(p))
        return {p.name.removesuffix("_metrics.json"): json.loads(p.read_text(encoding="utf-8")) for p in files}


def _version(path):
    """What changes when a file is rewritten."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def run_script(name, flags):
    """Run a script in this process; an error that it would print is raised as a `UserError`."""
    words = command_line(flags)
    try:
        with open_script(name, words) as main, flag_types.raising_errors():
            main.__wrapped__(words)
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from stop
        raise


def command_line(flags):
    """The command-line words of a script for {name: value}; see `train`."""
    flags = dict(flags)
    config = flags.pop("config", None)
    words = [str(config)] if config else []
    for name, value in flags.items():
        if value is False:
            words.append(f"--{name}=false")
        elif value is None:
            continue
        elif value is True:
            words.append(f"--{name}")
        elif isinstance(value, Mapping) and name in SETTINGS and SETTINGS[name].type is json_object:
            words += [f"--{name}", json.dumps(value)]
        elif isinstance(value, Mapping):
            words += [f"--{name}", *(f"{task}={own}" for task, own in value.items())]
        elif isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words

