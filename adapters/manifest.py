"""The manifest that describes a checkpoint directory, read as json without loading torch or transformers.

Every checkpoint has one manifest, in format 2 regardless of the script that trained it:

    library_name, format        "versatile", 2
    encoder                     how its tasks' examples become ids: one of `schemas.ENCODERS`
    mode                        "adapter", or "full": the whole model was trained
    base_model_name_or_path, base_model_fingerprint, random_init_seed, model_type
                                the backbone; "backbone" if stored inside, as it cannot be found by name
    checksum                    sha256 of the weights file
    tasks                       [{name, …}], in the order of their ids
    methods                     {task: {"method": its name, setting: value, …}}
    (more, depending on the encoder: see schemas.py)

The manifest is adapter_config.json. A fully fine-tuned model is an ordinary transformers directory and has its manifest
in config.json, under "versatile": next to a whole model, transformers takes any adapter_config.json for one of peft's
and fails to load the directory.

Older and foreign formats are converted on reading: adapters/imports/ has one file for each.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from versatile.adapters import schemas
from versatile.adapters.imports import first_format, foreign_format
from versatile.adapters.methods.registry import FULL
from versatile.utils.errors import UserError, brief
from versatile.utils.files import write_json
from versatile.utils.schema import read_json_object, validate
from versatile.utils.screen import shell_command

CONFIG, BACKBONE = "adapter_config.json", "backbone"
ADAPTER_WEIGHTS, MODEL_WEIGHTS = "adapter_model.safetensors", "model.safetensors"
LIBRARY, FORMAT = "versatile", 2


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's description of itself.

    Attributes:
        path: the file it was read from; for a foreign format, the directory.
        format: 2, 1, or the name of a foreign format ("vlm", "peft"), whose other attributes are mostly unknown.
        encoder: how its tasks' examples become ids (`schemas.ENCODERS`), or None.
        mode: "adapter" or "full", or None.
        tasks: names, in the order of their ids.
        methods: {task: {"method": its name, setting: value, …}}.
        backbone, fingerprint: the backbone's name ("backbone" if stored inside) and the hash of its weights.
        definitions: {task: its definition}, for user-defined tasks.
        histories: {task: number of conversation exchanges it was trained with}, where known.
        config: the whole manifest, in format 2.
    """

    path: Path
    format: int | str
    encoder: str | None = None
    mode: str | None = None
    tasks: tuple = ()
    methods: dict = field(default_factory=dict)
    backbone: str | None = None
    fingerprint: str | None = None
    definitions: dict = field(default_factory=dict)
    histories: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)

    @property
    def released(self):
        """Whether it was written by the original code of one of the systems."""
        return isinstance(self.format, str) and self.format != "peft"


def peek(directory):
    """The `Manifest` of a directory, or None if it holds no trained model.

    Raises:
        UserError: a damaged file.
    """
    path = os.path.join(directory, CONFIG)
    if os.path.isfile(path):
        config = read_json_object(path)
        kind = config.get("peft_type")
        if isinstance(kind, str) and not kind.startswith("VERSATILE_") and "library_name" not in config:
            return Manifest(Path(directory), "peft")
        return _manifest(config, kind, Path(path))
    if foreign := foreign_format(directory):
        return Manifest(Path(directory), foreign, encoder="markers")
    path = os.path.join(directory, "config.json")
    if os.path.isfile(path):
        config = read_json_object(path)
        for key in ("versatile", "versatile_t5"):
            if config.get(key) is not None:
                return _manifest(config[key], key, Path(path))
    return None


def _manifest(config, kind, path):
    """The `Manifest` of a json object; `kind` distinguishes those of format 1."""
    config, number = upgrade(config, kind, path)
    tasks, methods = config["tasks"], config["methods"]
    return Manifest(
        path, number, config["encoder"], config["mode"], tuple(task["name"] for task in tasks),
        {task["name"]: methods[task["name"]] for task in tasks},
        config.get("base_model_name_or_path"), config.get("base_model_fingerprint"),
        {task["name"]: task["definition"] for task in tasks if "definition" in task},
        {task["name"]: task["max_history"] for task in tasks if task.get("max_history") is not None}, config,
    )  # fmt: skip


def upgrade(config, kind, location):
    """(a manifest's json, checked and converted to format 2; its original format).

    Args:
        config: the content of the file.
        kind: for format 1, `peft_type` or the key in config.json.
        location: the file, for errors.
    """
    remedy = "copy it again, unless it is from another version of this toolkit"
    if isinstance(config, dict) and "library_name" in config:
        encoder = config.get("encoder")
        encoder = encoder if encoder in schemas.ENCODERS else "markers"
        config, number = validate(config, schemas.MANIFESTS[encoder], location, remedy), FORMAT
    else:
        if not isinstance(kind, str) or kind not in schemas.FORMAT_1:
            raise UserError(f"no 'library_name', and peft_type {brief(kind)}", location=location,
                            expected=repr(LIBRARY), remedy=remedy)  # fmt: skip
        config = first_format.upgrade(kind, validate(config, schemas.FORMAT_1[kind], location, remedy))
        number = 1
    if config["mode"] == "adapter" and not config.get("base_model_name_or_path"):
        raise UserError("no 'base_model_name_or_path'", location=location, expected="the backbone's name or directory")
    if missing := [task["name"] for task in config["tasks"] if task["name"] not in config["methods"]]:
        raise UserError(f"'methods' has none for the task {missing[0]!r}", location=location, expected="one for each")
    return config, number


def make_manifest(encoder, mode, tasks, methods, **more):
    """A manifest in format 2.

    Args:
        tasks: [{name, …}], in the order of their ids.
        methods: {task: method}, or None if the whole model was trained.
        more: the other keys; None values are omitted.
    """
    methods = {task["name"]: dict(method=FULL) for task in tasks} if methods is None else methods
    head = dict(library_name=LIBRARY, format=FORMAT, encoder=encoder, mode=mode)
    more = {key: value for key, value in more.items() if value is not None}
    return head | more | dict(tasks=tasks, methods=methods)


def write_manifest(directory, manifest):
    """Write a manifest as adapter_config.json: the last file of a checkpoint, so that it vouches for all of them."""
    write_json(Path(directory) / CONFIG, manifest)


def require_manifest(directory, expected, location=None):
    """The `Manifest` of a directory; a `UserError` if it holds no trained tasks.

    Args:
        expected: what was expected instead.
        location: the flag that named the directory (default: --model_checkpoint).
    """
    manifest = peek(directory)
    if manifest is None:
        raise UserError("this holds no trained tasks", location=location or f"--model_checkpoint {directory}",
                        expected=expected)  # fmt: skip
    return manifest


def check_holds(tasks, task, directory, flag=None):
    """Raise a `UserError` if a task is not among a checkpoint's tasks.

    Args:
        tasks: names of the checkpoint's tasks.
        task: the requested one.
        directory: the checkpoint.
        flag: the flag that named the checkpoint, if the task belongs to it; None: --task named the task.
    """
    if task in tasks:
        return
    known = f"--task {next(iter(tasks))}" if len(tasks) == 1 else f"--task with one of {', '.join(tasks)}"
    raise UserError(
        f"the checkpoint holds the task(s) {', '.join(tasks)}, not {task!r}",
        location=flag or f"--model_checkpoint {directory}",
        expected=f"a checkpoint that was trained for {task!r}" if flag else known,
        remedy="name another" if flag else "name a task the checkpoint was trained for, or another checkpoint",
    )


def refuse_sequence(directory, location):
    """Raise a `UserError` if a directory is a sequence of train_lifelong.py, which holds a model for each task."""
    path = Path(directory)
    if (path / "sequence.json").is_file():
        models = sorted(file.parent.name for file in path.glob("*/tokenizer.json"))
        raise UserError("this is a sequence of train_lifelong.py", location=location,
                        expected=f"the model of one of its tasks: {', '.join(models) or 'none is there yet'}",
                        remedy=f"name one, {path}/…; or evaluate all: "
                               + shell_command("evaluate_lifelong.py", "--model_dirs", path))  # fmt: skip


def refuse_question_model(manifest, directory, location=None):
    """Raise a `UserError` if a directory holds a model or a sequence of train_lifelong.py, for scripts that take none.

    Args:
        manifest: of the directory, or None.
        location: the flag that named it (default: --model_checkpoint).
    """
    if directory and manifest is None:
        refuse_sequence(directory, location or f"--model_checkpoint {directory}")
    if manifest and manifest.encoder == "question_answer":
        command = shell_command("evaluate_lifelong.py", "--model_dirs", Path(directory).parent)
        raise UserError("this is a model of train_lifelong.py", location=location or f"--model_checkpoint {directory}",
                        expected="a model of another training script or of combine_all.py, or a released VLM",
                        remedy=f"evaluate it with its sequence: {command}")  # fmt: skip


def need_language_model(directory, location=None, remedy=None):
    """Raise a `UserError` if a directory holds a text-to-text or sentence-pair model, for scripts that read neither.

    Args:
        directory: the named directory.
        location: the flag that named it (default: --model_checkpoint).
        remedy: what to do (default: the command that evaluates the model).

    Returns:
        the `Manifest`, or None.
    """
    manifest = peek(directory)
    commands = {
        "text_to_text": ("train_t5.py", ("evaluate.py", "--task", "all", "--model_checkpoint", directory)),
        "sentence_pair": ("train_camtl.py", ("train_camtl.py", "--do_eval", "--model_name_or_path", directory)),
    }
    if manifest and manifest.encoder in commands:
        script, command = commands[manifest.encoder]
        raise UserError(f"this is a model of {script}", location=location or f"--model_checkpoint {directory}",
                        expected="a model of train.py, train_vlm.py or combine_all.py, or a released one",
                        remedy=remedy or shell_command(*command))  # fmt: skip
    return manifest
