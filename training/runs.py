"""Run directories: what was run, with what, and every checkpoint that allows going on exactly.

    runs/<name>/
        README.md               the model card: what was trained, how to load it
        run.json                flags, seed, library versions, git commit, content keys of the data
        metrics.json            what came out
        (model files)           the best model so far; evaluate.py reads them here
        checkpoints/step_N/     the last few: model files and training_state.pt
        learning_curve.png, events.*  (TensorBoard)
"""

import contextlib
import errno
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from versatile.adapters.backbones import bundled
from versatile.training.cards import write_model_card
from versatile.utils import schema
from versatile.utils.errors import UserError, first_line
from versatile.utils.files import (
    atomic_directory,
    disk_errors,
    move_into_place,
    remove_leftovers,
    remove_nested_leftovers,
    writable_directory,
    write_json,
)
from versatile.utils.screen import shell_words
from versatile.utils.stored_flags import TEXT

STATE = "training_state.pt"


def default_directory(*parts):
    """runs/<date>_<host>_<part>_<part>…, with nothing in it that a path cannot hold."""
    words = [time.strftime("%Y-%m-%d_%H-%M-%S"), socket.gethostname(), *map(str, parts)]
    return Path("runs") / "_".join(w.strip("/").replace("/", "-") for w in words)


class ModelFiles:
    """How a model is written into a directory and read from one.

    Args:
        save: called with a directory, writes the model files there.
        load: called with a directory, loads what `save` wrote.
    """

    def __init__(self, save, load):
        self.save, self.load = save, load

    def save_best(self, folder, names):
        """Write the best model so far.

        Args:
            names: the tasks that have a new best score.
        """
        self.save(folder)


class Run:
    """One run's directory.

    Args:
        directory: its path.
        keep: how many of the newest checkpoints are kept.

    Attributes:
        files, data_key, resume_command, board_folder: see `bind`.
    """

    def __init__(self, directory, keep=3):
        self.directory, self.keep = Path(directory), keep
        self.checkpoints = self.directory / "checkpoints"
        self.files, self.data_key, self.resume_command, self.board_folder = None, "", "", self.directory

    def bind(self, files, data_key="", resume_command="", board_folder=None):
        """Say what is trained in it; returns the run.

        Args:
            files: `ModelFiles`.
            data_key: names the content of the data, a string or {split: string}; a checkpoint of other data is refused.
            resume_command: printed when the run is stopped early.
            board_folder: where TensorBoard's events go (default: the run's directory).
        """
        self.files, self.data_key, self.resume_command = files, data_key, resume_command
        self.board_folder = Path(board_folder or self.directory)
        return self

    @classmethod
    def create(cls, directory, record, keep=3):
        """Start a new run directory and write run.json.

        Raises:
            UserError: the directory cannot be written, or already holds a run.
        """
        run = cls(directory, keep)
        cls.refuse_taken(directory)
        writable_directory(run.directory, "--output_dir")
        lock_directory(run.directory, "--output_dir")
        # Another process may have started one here a moment ago.
        cls.refuse_taken(directory)
        remove_leftovers(run.directory)
        write_json(run.directory / "run.json", record)
        write_model_card(run.directory, record)
        return run

    @staticmethod
    def refuse_taken(directory, can_overwrite=False):
        """A `UserError` where the directory already holds a run.

        Args:
            can_overwrite: the script has --overwrite_output_dir.
        """
        if (Path(directory) / "run.json").exists():
            raise UserError(
                "this directory already holds a run",
                location=f"--output_dir {directory}",
                remedy=f"resume it ({shell_words('--resume', directory)}), name another directory, or "
                + ("start anew in its place with --overwrite_output_dir" if can_overwrite else "remove it"),
            )

    @classmethod
    def open(cls, directory, keep=3, script="train.py"):
        """An existing run directory and its run.json: (run, record).

        Args:
            script: which one's run it has to be, for messages.
        """
        path = Path(directory) / "run.json"
        if not os.path.isfile(path):
            raise UserError("no run.json here", location=f"--resume {directory}",
                            expected=f"a run directory of {script}")  # fmt: skip
        record = read_record(path, script)
        run = cls(directory, keep)
        writable_directory(run.directory, "--resume")
        if int(os.environ.get("RANK", "0")) == 0:
            lock_directory(run.directory, "--resume")
        return run, record

    def saved_steps(self):
        """Steps of the whole checkpoints on disk, oldest first; a copy that somebody keeps beside them is none."""
        folders = self.checkpoints.iterdir() if self.checkpoints.is_dir() else []
        steps = [re.fullmatch(r"step_([0-9]{8,18})", folder.name) for folder in folders if folder.is_dir()]
        return sorted(int(match[1]) for match in steps if match and self.checkpoint(int(match[1])).name == match[0])

    def checkpoint(self, step):
        """Where the checkpoint of a step lies."""
        return self.checkpoints / f"step_{step:08d}"

    def save_checkpoint(self, step, state, save_model):
        """Write one whole checkpoint, then drop the oldest beyond `keep`.

        Args:
            step: optimizer steps taken.
            state: nested dict of tensors, numbers and strings.
            save_model: called with a directory, writes the model files there.
        """
        import torch

        # One of this step may stand there already, if it could not be read and the run fell back behind it.
        with atomic_directory(self.checkpoint(step)) as beside:
            save_model(beside)
            # Given a path, torch writes by itself and does not say why it could not.
            with open(beside / STATE, "wb") as file:
                torch.save(state, file)
        for old in self.saved_steps()[: -self.keep]:
            # Renamed first: a half-removed directory must not look like a checkpoint.
            doomed = self.checkpoints / f".step_{old:08d}.old"
            self.checkpoint(old).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def load_checkpoint(self, load_model, check_state=None):
        """Load the newest checkpoint that can be read.

        Args:
            load_model: called with a directory, loads the model files in it.
            check_state: called with (state, step, file), raises where the state cannot be used.

        Returns:
            (step, state), or (0, None) where there is no checkpoint yet.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        import torch

        remove_nested_leftovers(self.directory)
        steps = self.saved_steps()
        for step in reversed(steps):
            folder = self.checkpoint(step)
            try:
                state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
                if check_state:
                    check_state(state, step, folder / STATE)
                load_model(folder)
                return step, state
            except Exception as error:
                # Whatever is wrong with these files, an older checkpoint may be whole.
                why = first_line(error)
                print(f"{folder} cannot be read: going back to the checkpoint before\n  ({why})", flush=True)
        if steps:
            raise UserError("none of the checkpoints can be read", location=self.checkpoints,
                            remedy="remove them to start this run from its beginning")  # fmt: skip
        return 0, None

    def save_best(self, save_model):
        """Replace the model files in the run directory, each moved into place whole."""
        with disk_errors(self.directory):
            with atomic_directory(self.directory / ".best") as beside:
                save_model(beside)
            for file in sorted((self.directory / ".best").iterdir()):
                move_into_place(file, self.directory / file.name)
            (self.directory / ".best").rmdir()

    def write_metrics(self, metrics):
        """Write metrics.json, and the scores into README.md."""
        write_json(self.directory / "metrics.json", metrics)
        write_model_card(self.directory, stored(self.directory), metrics)


_LOCKED = {}


def lock_directory(directory, flag):
    """Keep every other process out of a run's directory until this one ends, however it ends.

    The directory itself is locked (flock): there is no file to clear away, and the system forgets the lock of a process
    that is gone. File systems that have no locks are used without one.

    Args:
        flag: the one that named the directory, for the error.

    Raises:
        UserError: another process works in it.
    """
    import fcntl

    real = os.path.realpath(directory)
    if real in _LOCKED:
        return
    try:
        handle = os.open(real, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _lock_holder(handle)
        os.close(handle)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return
        raise UserError(f"another process{holder} is working in this run", location=f"{flag} {directory}",
                        expected="one process in a run's directory at a time",
                        remedy="wait until it has ended, or stop it (SIGTERM: it saves)") from error  # fmt: skip
    _LOCKED[real] = handle


def refuse_unfinished(directory, flag):
    """A `UserError` where a run is still training, or ended before it was done.

    Args:
        directory: a run, a stage of a sequence, or one of their checkpoints, which may be used before the end.
        flag: the one that named it, for the error.
    """
    path = Path(directory).resolve()
    is_checkpoint = path.parent.name == "checkpoints"
    run = path.parents[1] if is_checkpoint else path
    for folder in (run, run.parent):
        if (folder / "run.json").is_file():
            _refuse_locked(folder, flag)
    finished = any((run / name).is_file() for name in ("metrics.json", "training_metrics.json"))
    if not is_checkpoint and not finished and (steps := Run(run).saved_steps()):
        raise UserError("this run has not finished", location=flag, expected="a finished run, or a checkpoint of it",
                        remedy=f"resume it to its end, or name {Run(run).checkpoint(steps[-1])}")  # fmt: skip


def _refuse_locked(directory, flag):
    """A `UserError` where another process works in a run's directory."""
    import fcntl

    if os.path.realpath(directory) in _LOCKED:
        return
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(f"this run is still training: another process{_lock_holder(handle)} works in it",
                            location=flag, expected="a finished run", remedy="wait until it has ended") from error
    finally:
        os.close(handle)


def _lock_holder(handle):
    """The words " (pid N)" of the process that holds a lock, where the system tells; else nothing."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = str(os.fstat(handle).st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].split(":")[-1] == inode:
                return f" (pid {words[4]})"
    return ""


# Flags whose values are files or directories that a run reads: written down so that it resumes from anywhere, and free
# to be named anew, as what they hold is checked, not where it lies.
READ_PATHS = ("dataset_path", "data", "data_dir", "teacher", "init_from", "model_checkpoint", "model_name_or_path")


def absolute_paths(value):
    """A flag's value with every path in it that leads somewhere made absolute; names of other things stay."""
    if isinstance(value, dict):
        return {name: absolute_paths(path) for name, path in value.items()}
    if not isinstance(value, (str, Path)) or not str(value) or str(value) in bundled.NAMES:
        return value
    return os.path.abspath(value) if os.path.exists(value) else value


def record(args, **more):
    """What run.json holds: the command, resolved flags, versions, commit."""
    flags = {k: absolute_paths(v) if k in READ_PATHS else v for k, v in sorted(vars(args).items())}
    return dict(
        command=shell_words(Path(sys.argv[0]).name, *sys.argv[1:]),
        flags={k: str(v) if isinstance(v, Path) else v for k, v in flags.items()},
        versions=versions(),
        commit=_commit(),
        started=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **more,
    )


# What a run.json holds; its flags are checked by the parser of the script that reads them (`utils.stored_flags`).
RECORD = schema.Record(fields={
    "command": schema.Text(empty=True, longest=1_000_000), "flags": schema.MapOf(required=True),
    "method": schema.Text(null=True), "sources": schema.MapOf(schema.MapOf()), "versions": schema.MapOf(),
})  # fmt: skip


def read_record(path, script):
    """What a run.json holds, a `UserError` where it is none.

    Args:
        script: which one's run it has to be, for messages.
    """
    remedy = "copy it again, or start a new run"
    try:
        return schema.validate(schema.read_json_object(path), RECORD, path)
    except UserError as error:
        raise UserError(f"not a run.json of {script}: {error.found}", location=path, expected=error.expected,
                        remedy=remedy) from None  # fmt: skip


def run_of(directory):
    """The run directory of a run or of one of its checkpoints."""
    path = Path(directory).resolve()
    if path.name.startswith("step_"):
        return path.parents[1]
    return path.parent if path.name.startswith("checkpoint-") else path


def run_flags(directory):
    """(flags of the run.json of a run, or of the run that a checkpoint lies in, the file).

    Raises:
        UserError: there is none, or it is damaged: what the model was trained with would have to be guessed.
    """
    path = run_of(directory) / "run.json"
    try:
        flags = schema.read_json_object(path).get("flags")
    except UserError:
        flags = None
    if not isinstance(flags, dict):
        raise UserError("run.json is damaged" if path.is_file() else "run.json is missing", location=path,
                        expected="what the training script wrote: it says which split, lengths and prompts belong to "
                                 "the model",
                        remedy="copy it again from where the model was trained")  # fmt: skip
    return flags, path


def stored(directory):
    """run.json of a trained model, or {}: nothing there, or nothing that can be read.

    Args:
        directory: a run, one of its checkpoints/step_N, a combined VLM, or anything else.
    """
    try:
        return read_record(run_of(directory) / "run.json", "the toolkit")
    except UserError:
        return {}


def stored_metrics(directory):
    """metrics.json of a trained model, or {}; see `stored`."""
    try:
        return schema.read_json_object(run_of(directory) / "metrics.json")
    except UserError:
        return {}


def trained_steps(directory):
    """How many optimizer steps a saved model has been trained for, 0 where nothing says so."""
    step = re.fullmatch(r"step_(\d+)", Path(directory).name)
    return int(step[1]) if step else int(stored_metrics(directory).get("best_step") or 0)


def origin(directory):
    """What is known of a trained model: dict(method, backbone), without what is not known; see `stored`."""
    known = stored(directory)
    origin = dict(method=known.get("method"), backbone=known.get("flags", {}).get("model_checkpoint"))
    return {k: v for k, v in origin.items() if v and TEXT.fits(v)}


def trained_on(directory, task):
    """The data file that the run.json of a trained model names for a task, or None; see `stored`."""
    known = stored(directory)
    source, used = known.get("sources", {}).get(task, {}), known.get("flags", {})
    data = used.get("data")
    named = (source.get("dataset_path"), data.get(task) if isinstance(data, dict) else None, used.get("dataset_path"))
    return next((path for path in named if path and TEXT.fits(path)), None)


def versions():
    """{library: version} of what decides the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "pytorch-ignite", "numpy", "sacrebleu", "safetensors"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def check_flags(given, stored, free, location):
    """Refuse to resume with other flags than the run was started with.

    Args:
        given: {flag: value} the user typed now.
        stored: {flag: value} of run.json.
        free: flags that change nothing in the result and may differ.
        location: for the error.
    """
    for flag, value in given.items():
        if flag in free or flag not in stored:
            continue
        if value != stored[flag]:
            raise UserError(
                f"--{flag} {value} was given, the run was started with --{flag} {stored[flag]}",
                location=location,
                expected="the same flags, or none: a resumed run continues the run it was",
                remedy=f"leave --{flag} out, or start a new run with another --output_dir",
            )


def _commit():
    """The toolkit's git commit, with "+" where files differ from it; None outside a checkout."""
    home = Path(__file__).resolve().parent.parent
    if not (home / ".git").exists():
        # Installed, it may lie in somebody else's repository.
        return None
    options = dict(cwd=home, capture_output=True, text=True, timeout=10)
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "") if commit.returncode == 0 else None
