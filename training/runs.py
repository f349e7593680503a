"""Run directories: what was run and with what, and the checkpoints from which a run resumes exactly.

    runs/<name>/
        README.md               the model card: what was trained, how to load it
        run.json                flags, seed, library versions, git commit, content keys of the data
        metrics.json            results
        (model files)           the best model so far; evaluate.py reads them here
        checkpoints/step_N/     the last few: model files and training_state.pt
        learning_curve.png, events.*  (TensorBoard)
"""

import contextlib
import functools
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from versatile.adapters.backbones import bundled
from versatile.adapters.manifest import ADAPTER_WEIGHTS, CONFIG, MODEL_WEIGHTS, peek
from versatile.training.cards import write_model_card
from versatile.training.run_locks import lock_directory, refuse_locked
from versatile.utils import schema
from versatile.utils.errors import UserError, first_line
from versatile.utils.files import (
    atomic_directory,
    disk_errors,
    is_same_path,
    move_into_place,
    remove_leftovers,
    remove_nested_leftovers,
    writable_directory,
    write_json,
)
from versatile.utils.interrupts import is_alone, stop_on_signals
from versatile.utils.screen import shell_words
from versatile.utils.stored_flags import DERIVED, TEXT

STATE = "training_state.pt"


# A file's name has at most 255 bytes; some are left for endings.
LONGEST_NAME = 200


def default_directory(*parts):
    """runs/<date>_<host>_<part>_<part>…, without characters that are not allowed in a path, cut if it is too long."""
    words = [time.strftime("%Y-%m-%d_%H-%M-%S"), socket.gethostname(), *map(str, parts)]
    name = "_".join(w.strip("/").replace("/", "-") for w in words)
    return Path("runs") / os.fsencode(name)[:LONGEST_NAME].decode(errors="ignore")


def join_names(tasks):
    """Tasks' names as a part of `default_directory`: "nlg_mt", or "15-tasks" if that would be too long."""
    joined = "_".join(tasks)
    return joined if len(joined) <= LONGEST_NAME // 2 else f"{len(tasks)}-tasks"


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
        files, data_key, resume_command, events_folder, backbone: see `bind`.
        is_recorded: whether the directory had a run.json when training was set up.
    """

    def __init__(self, directory, keep=3):
        self.directory, self.keep = Path(directory), keep
        self.checkpoints = self.directory / "checkpoints"
        self.files, self.data_key, self.resume_command, self.events_folder = None, "", "", self.directory
        self.backbone, self.is_recorded = None, False

    def bind(self, files, data_key="", resume_command="", events_folder=None, backbone=None):
        """Set what is trained in it; returns the run.

        Args:
            files: `ModelFiles`.
            data_key: identifies the content of the data, a string or {split: string}; a checkpoint trained on other
                data is refused.
            resume_command: printed when the run is stopped early.
            events_folder: where TensorBoard's events go (default: the run's directory).
            backbone: fingerprint of the pretrained weights that training starts from, or None; a checkpoint trained
                from others is refused.
        """
        self.files, self.data_key, self.resume_command, self.backbone = files, data_key, resume_command, backbone
        self.events_folder = Path(events_folder or self.directory)
        self.is_recorded = (self.directory / "run.json").is_file()
        return self

    def refuse_gone(self):
        """Raise a `UserError` if the directory was removed, renamed or emptied since training was set up."""
        if self.is_recorded and not (self.directory / "run.json").is_file():
            raise UserError("this run's directory was removed, renamed or emptied while it was training",
                            location=self.directory, expected="the run.json that training began with",
                            remedy="resume the run where it is now; if it is nowhere, start it again")  # fmt: skip

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
        """Raise a `UserError` if the directory already holds a run, or a model that no run of this toolkit wrote.

        Args:
            can_overwrite: whether the script has --overwrite_output_dir.
        """
        if not (Path(directory) / "run.json").exists() and (held := model_file(directory)):
            raise UserError(f"this directory holds a model ({held}), which training would overwrite",
                            location=f"--output_dir {directory}", remedy="name another directory")  # fmt: skip
        if (Path(directory) / "run.json").exists():
            raise UserError(
                "this directory already holds a run",
                location=f"--output_dir {directory}",
                remedy=f"resume it ({shell_words('--resume', directory)}), name another directory, or "
                + ("overwrite it with --overwrite_output_dir" if can_overwrite else "remove it"),
            )

    @classmethod
    def open(cls, directory, keep=3, script="train.py"):
        """An existing run directory and its run.json: (run, record).

        Args:
            script: the script whose run it must be, for messages.
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
        """Steps of the complete checkpoints on disk, oldest first; copies under other names do not count."""
        folders = self.checkpoints.iterdir() if self.checkpoints.is_dir() else []
        steps = [re.fullmatch(r"step_([0-9]{8,18})", folder.name) for folder in folders if folder.is_dir()]
        return sorted(int(match[1]) for match in steps if match and self.checkpoint(int(match[1])).name == match[0])

    def checkpoint(self, step):
        """Path of the checkpoint of a step."""
        return self.checkpoints / f"step_{step:08d}"

    def save_checkpoint(self, step, state, save_model):
        """Write one complete checkpoint, then remove the oldest ones beyond `keep`.

        Args:
            step: optimizer steps taken.
            state: nested dict of tensors, numbers and strings.
            save_model: called with a directory, writes the model files there.
        """
        import torch

        self.refuse_gone()
        # There may already be one of this step, if it could not be read and the run resumed from an earlier one.
        with self._resumable(), atomic_directory(self.checkpoint(step)) as temporary:
            save_model(temporary)
            # Given a path, torch opens the file itself and does not report why writing failed.
            with open(temporary / STATE, "wb") as file:
                torch.save(state, file)
        for old in self.saved_steps()[: -self.keep]:
            # Renamed first: a half-removed directory must not look like a checkpoint.
            expired = self.checkpoints / f".step_{old:08d}.old"
            self.checkpoint(old).rename(expired)
            shutil.rmtree(expired, ignore_errors=True)

    def load_checkpoint(self, load_model, check_state=None):
        """Load the newest checkpoint that can be read.

        Args:
            load_model: called with a directory, loads the model files in it.
            check_state: called with (state, step, file), raises if the state cannot be used.

        Returns:
            (step, state), or (0, None) if there is no checkpoint yet.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        import torch

        remove_nested_leftovers(self.directory)
        steps = self.saved_steps()
        for step in reversed(steps):
            folder = self.checkpoint(step)
            try:
                check_intact(folder)
                state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
                if check_state:
                    check_state(state, step, folder / STATE)
                load_model(folder)
                return step, state
            except Exception as error:
                # Whatever is wrong with these files, an older checkpoint may be intact.
                why = first_line(error)
                print(f"{folder} cannot be read: falling back to the previous checkpoint\n  ({why})", flush=True)
        if steps:
            raise UserError("none of the checkpoints can be read", location=self.checkpoints,
                            remedy="remove them to start this run from its beginning")  # fmt: skip
        return 0, None

    def save_best(self, save_model):
        """Replace the model files in the run directory, moving each complete file into place."""
        self.refuse_gone()
        with self._resumable(), disk_errors(self.directory):
            with atomic_directory(self.directory / ".best") as temporary:
                save_model(temporary)
            for file in sorted((self.directory / ".best").iterdir()):
                move_into_place(file, self.directory / file.name)
            (self.directory / ".best").rmdir()

    @contextlib.contextmanager
    def _resumable(self):
        """An error of the disk also says how the run goes on once there is room."""
        try:
            yield
        except UserError as error:
            if not (self.resume_command and error.remedy):
                raise
            raise UserError(error.found, location=error.location, expected=error.expected,
                            remedy=f"{error.remedy}; then go on: {self.resume_command}") from error  # fmt: skip

    def scoring(self):
        """Context for what follows training: a signal says how to get the scores that are missing. It does nothing for
        a run that was not trained by this process."""
        if not (self.resume_command and is_alone()):
            return contextlib.nullcontext()
        return stop_on_signals(lambda: "the model is trained, but not all scores are written", self.resume_command)

    def write_metrics(self, metrics):
        """Write metrics.json, and add the scores to README.md."""
        self.refuse_gone()
        write_json(self.directory / "metrics.json", metrics)
        write_model_card(self.directory, stored_record(self.directory), metrics)


def check_intact(checkpoint):
    """Raise an error if a file of a checkpoint was damaged since, or does not belong to the others."""
    from versatile.adapters.tensors import check_checksum

    manifest = peek(checkpoint)
    for path in (checkpoint / ADAPTER_WEIGHTS, checkpoint / MODEL_WEIGHTS):
        if manifest and path.is_file():
            check_checksum(path, manifest.config.get("checksum"))
    if (checkpoint / ADAPTER_WEIGHTS).is_file() and not (checkpoint / CONFIG).is_file():
        raise UserError("is missing", location=checkpoint / CONFIG, expected=f"the manifest of {ADAPTER_WEIGHTS}")
    # torch.load does not compare the checksums of its file.
    with zipfile.ZipFile(checkpoint / STATE) as file:
        if damaged := file.testzip():
            raise UserError(f"{damaged} is damaged", location=checkpoint / STATE, expected="the file as it was saved")


def model_file(directory):
    """The name of a file in a directory that makes it a model, its config or its weights, or None."""
    names = ("config.json", CONFIG, MODEL_WEIGHTS, ADAPTER_WEIGHTS, "pytorch_model.bin")
    return next((name for name in names if (Path(directory) / name).exists()), None)


def refuse_unfinished(directory, flag):
    """Raise a `UserError` if a run is still training, or stopped before it had finished.

    Args:
        directory: a run, a stage of a sequence, or one of their checkpoints, which may be used before the run finishes.
        flag: the flag that named it, for the error.
    """
    path = Path(directory).resolve()
    is_checkpoint = path.parent.name == "checkpoints"
    run = path.parents[1] if is_checkpoint else path
    for folder in (run, run.parent):
        if (folder / "run.json").is_file():
            refuse_locked(folder, flag)
    finished = any((run / name).is_file() for name in ("metrics.json", "training_metrics.json"))
    if not is_checkpoint and not finished and (steps := Run(run).saved_steps()):
        raise UserError("this run has not finished", location=flag, expected="a finished run, or a checkpoint of it",
                        remedy=f"resume it to its end, or name {Run(run).checkpoint(steps[-1])}")  # fmt: skip


# Flags whose values are files or directories that a run reads. They are recorded as absolute paths, so that a run
# resumes from anywhere, and may be changed when resuming, because their content is checked and not their location.
READ_PATHS = ("dataset_path", "data", "data_dir", "teacher", "teacher_dir", "init_from", "model_checkpoint",
              "model_name_or_path")  # fmt: skip


def absolute_paths(value):
    """A flag's value with all existing paths in it made absolute; other names are kept."""
    if isinstance(value, dict):
        return {name: absolute_paths(path) for name, path in value.items()}
    if isinstance(value, list):
        return [absolute_paths(path) for path in value]
    if not isinstance(value, (str, Path)) or not str(value) or str(value) in bundled.NAMES:
        return value
    return os.path.abspath(value) if os.path.exists(value) else value


def record(args, **more):
    """The content of run.json: the command, resolved flags, versions, commit."""
    flags = {k: absolute_paths(v) if k in READ_PATHS else v for k, v in sorted(vars(args).items())}
    return dict(
        command=shell_words(Path(sys.argv[0]).name, *sys.argv[1:]),
        flags={k: str(v) if isinstance(v, Path) else v for k, v in flags.items()},
        versions=versions(),
        commit=_commit(),
        started=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        **more,
    )


# Schema of run.json; its flags are checked by the parser of the script that reads them (`utils.stored_flags`).
RECORD = schema.Record(fields={
    "command": schema.Text(empty=True, longest=1_000_000), "flags": schema.MapOf(required=True),
    "method": schema.Text(null=True), "sources": schema.MapOf(schema.MapOf()), "versions": schema.MapOf(),
})  # fmt: skip


def read_record(path, script):
    """The content of a run.json; a `UserError` if the file is not one.

    Args:
        script: the script whose run it must be, for messages.
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
    if (path / "run.json").is_file():
        return path
    if path.parent.name == "checkpoints" and re.fullmatch(r"step_\d+", path.name):
        return path.parents[1]
    return path.parent if re.fullmatch(r"checkpoint-\d+", path.name) else path


def run_flags(directory):
    """(flags in the run.json of a run or of a checkpoint's run, path of that file).

    Raises:
        UserError: it is missing or damaged, so that the model's training settings would have to be guessed.
    """
    path = run_of(directory) / "run.json"
    try:
        flags = schema.read_json_object(path).get("flags")
    except UserError:
        flags = None
    if not isinstance(flags, dict):
        raise UserError("run.json is damaged" if path.is_file() else "run.json is missing", location=path,
                        expected="the file that the training script wrote: it records the model's split, lengths and "
                                 "prompts",
                        remedy="copy it again from where the model was trained")  # fmt: skip
    return flags, path


def stored_record(directory):
    """run.json of a trained model, or {} if it is missing or cannot be read.

    Args:
        directory: a run, one of its checkpoints/step_N, a combined VLM, or anything else.
    """
    try:
        return read_record(run_of(directory) / "run.json", "the toolkit")
    except UserError:
        return {}


def stored_definitions(directory):
    """Definitions of the user's own tasks in the run.json of a trained model; a `UserError` if they are none."""
    known = stored_record(directory).get("flags", {}).get("task_definitions")
    schema.validate(known, DERIVED["task_definitions"], f"{run_of(directory) / 'run.json'}:flags.task_definitions")
    return known or []


def stored_metrics(directory):
    """metrics.json of a trained model, or {}; see `stored_record`."""
    try:
        return schema.read_json_object(run_of(directory) / "metrics.json")
    except UserError:
        return {}


def trained_steps(directory):
    """Number of optimizer steps that a saved model was trained for, 0 if unknown."""
    step = re.fullmatch(r"step_(\d+)", Path(directory).name)
    best = stored_metrics(directory).get("best_step")
    return int(step[1]) if step else best if isinstance(best, int) else 0


def origin(directory):
    """dict(method, backbone) of a trained model, without unknown entries; see `stored_record`."""
    known = stored_record(directory)
    origin = dict(method=known.get("method"), backbone=known.get("flags", {}).get("model_checkpoint"))
    return {k: v for k, v in origin.items() if v and TEXT.fits(v)}


def trained_on(directory, task):
    """The data file that the run.json of a trained model names for a task, or None; see `stored_record`."""
    known = stored_record(directory)
    source, used = known.get("sources", {}).get(task, {}), known.get("flags", {})
    data = used.get("data")
    named = (source.get("dataset_path"), data.get(task) if isinstance(data, dict) else None, used.get("dataset_path"))
    return next((path for path in named if path and TEXT.fits(path)), None)


def versions():
    """{library: version} of Python and the libraries that affect the results; None: not installed."""
    libraries = ("torch", "transformers", "tokenizers", "pytorch-ignite", "numpy", "sacrebleu", "safetensors")
    return dict(python=platform.python_version(), **{name: installed_version(name) for name in libraries})


@functools.cache
def installed_version(name):
    """The version of an installed distribution; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def refuse_elsewhere(typed_flags, directory):
    """Raise a `UserError` if a run is to be resumed with an --output_dir other than its own directory."""
    named = typed_flags.get("output_dir")
    if named and not is_same_path(named, directory):
        raise UserError(f"the run in {directory} is resumed where it is", location=f"--output_dir {named}",
                        remedy="leave the flag out; to keep the run as it is, copy its directory and resume the copy"
                        )  # fmt: skip


def check_flags(typed_flags, stored, free, location):
    """Refuse to resume with flags other than those the run was started with.

    Args:
        typed_flags: {flag: value} typed by the user now.
        stored: {flag: value} in run.json.
        free: flags that do not affect the result and may differ.
        location: for the error.
    """
    for flag, value in typed_flags.items():
        if flag in free or flag not in stored:
            continue
        if value != stored[flag]:
            raise UserError(
                f"--{flag} {value} was given, the run was started with --{flag} {stored[flag]}",
                location=location,
                expected="the same flags, or none: a resumed run keeps its settings",
                remedy=f"leave --{flag} out, or start a new run with another --output_dir",
            )


def _commit():
    """The toolkit's git commit, followed by "+" if files differ from it; None outside a checkout."""
    home = Path(__file__).resolve().parent.parent
    if not (home / ".git").exists():
        # An installed package may be inside somebody else's repository.
        return None
    options = dict(cwd=home, capture_output=True, text=True, timeout=10)
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **options)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "") if commit.returncode == 0 else None
