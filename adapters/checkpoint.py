"""Checkpoints of attached models.

An adapter checkpoint is a directory with

    adapter_config.json         backbone, tasks, markers, bottlenecks
    adapter_model.safetensors   what was trained and nothing else:
                                blocks.<layer>.<task>.{norm,down,up}.{weight,bias}, rows.<task>,
                                and output_rows.<task> where the backbone's head is untied
    tokenizer files

A fully fine-tuned model is an ordinary transformers directory whose config.json also names the tasks.
Released checkpoints of the original code load too (adapters/released.py). Nothing is ever unpickled.
"""

import json
from pathlib import Path

import torch

from adapters import backbones
from adapters.attach import TaskModelInfo, _condition, attach, trainable
from utils.errors import UserError, brief
from utils.files import atomic_write, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMAT = 1


def save(model, tokenizer, directory):
    """Write an attached model to a directory; each file is whole or absent."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    info = model.info
    # A list, not an object: transformers sorts an object's keys, and the order gives the tasks their ids.
    tasks = [dict(name=name, markers=markers) for name, markers in info.markers.items()]
    tasks = dict(tasks=tasks, first=info.first, own_columns=info.own_columns)
    if info.mode == "full":
        model.config.versatile = tasks
        # One file whatever its size: a resumed run reads it back by name.
        model.save_pretrained(directory, max_shard_size="10TB")
    else:
        from safetensors.torch import save as to_bytes

        with atomic_write(directory / WEIGHTS, "wb") as file:
            file.write(to_bytes(adapter_state(model), {"format": "pt"}))
        config = dict(
            peft_type="VERSATILE_BOTTLENECK",
            task_type="CAUSAL_LM",
            base_model_name_or_path=model.config._name_or_path,
            base_model_fingerprint=model.backbone_fingerprint,
            model_type=model.config.model_type,
            bottlenecks=info.bottlenecks,
            format=FORMAT,
            **tasks,
        )
        write_json(directory / CONFIG, config)
    tokenizer.save_pretrained(directory)


def adapter_state(model):
    """{file key: tensor} of what an adapter model trains."""
    return {_file_key(name): p.detach().cpu().contiguous() for name, p in _adapter_parameters(model).items()}


def load_weights(model, directory):
    """Load into an attached model what `save` wrote for the same model."""
    directory = Path(directory)
    if model.info.mode == "full":
        state = read_safetensors(directory / "model.safetensors")
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        _same_keys(set(missing) - tied, set(unexpected), directory)
        return
    set_adapter_state(model, read_safetensors(directory / WEIGHTS), directory / WEIGHTS)


def set_adapter_state(model, state, place):
    """Copy {file key: tensor} into an attached model; keys and shapes must be exactly the model's."""
    wanted = {_file_key(name): p for name, p in _adapter_parameters(model).items()}
    _same_keys(set(wanted) - set(state), set(state) - set(wanted), place)
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise UserError(
                f"{key} has shape {list(tensor.shape)}", place=place, expected=str(list(wanted[key].shape)),
                remedy="load it onto the backbone it was trained on",
            )  # fmt: skip
    with torch.no_grad():
        for key, tensor in state.items():
            wanted[key].copy_(tensor)


def load(directory, task=None):
    """A trained model and its tokenizer, ready to evaluate.

    Args:
        directory: an adapter directory, a fully fine-tuned one, or a released checkpoint of the original code.
        task: the task asked for. A released single-task checkpoint does not say which task it is for.

    Returns:
        (model in eval mode, tokenizer)

    Raises:
        UserError: nothing usable there, a file that is damaged, another backbone than the one trained on, a
            task the checkpoint does not hold, an adapter that changes nothing.
    """
    from adapters import released

    path = Path(directory)
    if (path / CONFIG).is_file():
        model, tokenizer = _load_adapter(path)
    elif path.is_dir() and released.is_released(path):
        model, tokenizer = released.load(path, task)
    else:
        model, tokenizer = _load_full(directory)
    if task is not None and task not in model.info.markers:
        raise UserError(
            f"the checkpoint holds the task(s) {', '.join(model.info.markers)}, not {task!r}",
            place=f"--model_checkpoint {directory}",
            expected=f"--task {next(iter(model.info.markers))}",
            remedy="name a task the checkpoint was trained for, or another checkpoint",
        )
    return model.eval(), tokenizer


def is_checkpoint(directory):
    """Whether a directory holds a trained model of ours or a released one, rather than a bare backbone."""
    from adapters import released

    path = Path(directory)
    if (path / CONFIG).is_file():
        return True
    if not (path / "config.json").is_file():
        return False
    return released.is_released(path) or "versatile" in _read_json(path / "config.json")


def _load_adapter(path):
    config = _read_json(path / CONFIG)
    missing = [k for k in ("base_model_name_or_path", "tasks", "bottlenecks", "first") if k not in config]
    if missing:
        raise UserError(f"no {missing[0]!r}", place=path / CONFIG, expected="a file that train.py wrote")
    state = read_safetensors(path / WEIGHTS)
    model, tokenizer = backbones.load(config["base_model_name_or_path"])
    found, expected = model.backbone_fingerprint, config.get("base_model_fingerprint")
    if expected and found != expected:
        raise UserError(
            f"the backbone {config['base_model_name_or_path']} has the fingerprint {found}",
            place=path / CONFIG,
            expected=f"{expected}, the weights the adapter was trained on",
            remedy="put the original backbone back, or train the adapter again",
        )
    attach(model, tokenizer, _markers(config), config["bottlenecks"], config.get("own_columns", True))
    if model.info.first != config["first"]:
        raise UserError(
            f"the backbone's tokenizer has {model.info.first} tokens", place=path / CONFIG,
            expected=f"{config['first']}, as when the adapter was trained",
        )  # fmt: skip
    set_adapter_state(model, state, path / WEIGHTS)
    _refuse_idle(model, path / WEIGHTS)
    return model, tokenizer


def _load_full(directory):
    place = f"--model_checkpoint {directory}"
    config = backbones.read_config(directory, place)
    tasks = getattr(config, "versatile", None)
    if not tasks:
        raise UserError(
            "this is a bare backbone: it was not trained for any task", place=place,
            expected="a run directory of train.py, or a released VLM checkpoint",
        )  # fmt: skip
    model, tokenizer = backbones.load(directory)
    _condition(model, TaskModelInfo("full", _markers(tasks), {}, tasks["first"], tasks["own_columns"]))
    return model, tokenizer


def _markers(config):
    return {task["name"]: task["markers"] for task in config["tasks"]}


def _refuse_idle(model, place):
    """An adapter that adds nothing to any block, with rows of zeros: loaded, it would change no output."""
    for task, bottleneck in model.info.bottlenecks.items():
        ups = [p for n, p in trainable(model).items() if f".adapters.{task}.up." in n]
        if bottleneck and not any(p.any() for p in ups):
            raise UserError(f"the adapter for {task!r} changes nothing: its output layers are all zero",
                            place=place, remedy="train it, or load the right file")  # fmt: skip


def read_safetensors(path):
    """{key: tensor} of a safetensors file; anything wrong with it is a `UserError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", place=path, expected="the weights beside their config",
                        remedy="the run may not have saved a model yet: see its checkpoints/")  # fmt: skip
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"not a readable safetensors file: {brief(str(error), 120)}",
            place=path,
            expected="a whole file",
            remedy="copy it again, or use an older checkpoint of the run",
        ) from error


def _read_json(path):
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"not valid json: {error}", place=path, remedy="copy it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{brief(value)}", place=path, expected="a json object")
    return value


def _same_keys(missing, unexpected, place):
    if missing or unexpected:
        parts = [f"{len(missing)} missing (first {min(missing)})"] if missing else []
        parts += [f"{len(unexpected)} not expected (first {min(unexpected)})"] if unexpected else []
        raise UserError("its keys do not fit the model: " + ", ".join(parts), place=place,
                        expected="exactly the model's trained tensors")  # fmt: skip


def _adapter_parameters(model):
    return {n: p for n, p in model.named_parameters() if "adapter_bank." in n or ".rows.tasks." in n}


def _file_key(name):
    """Name of a parameter in the model -> its key in the file, which is the same for every family."""
    parts = name.split(".")
    if "adapter_bank" in parts:
        at = parts.index("adapter_bank")
        return ".".join(["blocks", parts[at - 1], *parts[at + 2 :]])
    kind = "output_rows" if "lm_head" in parts else "rows"
    return f"{kind}.{parts[-1]}"
