"""Initialise a new model's adapters and token embeddings from a model trained earlier on other data.

Everything that both models have is copied: adapters by task name, rows by special token. A single-task model may
start from a model of another single task. Everything new keeps its fresh initialisation.
"""

from pathlib import Path

import torch
from versatile.adapters import checkpoint, manifest
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.methods.registry import BARE, get_method
from versatile.adapters.tensors import copy_tensors, read_safetensors
from versatile.adapters.trained import table_weights
from versatile.utils.errors import UserError


def warm_start(model, tokenizer, directory, flag):
    """Initialise an attached, untrained model from a trained one.

    Args:
        model, tokenizer: attached; the model is changed in place.
        directory: a trained model, or one of its checkpoints.
        flag: the flag that named it, for errors.

    Returns:
        {task of the model: the task it starts from, or None for a fresh start}; {} for a fully fine-tuned model.

    Raises:
        UserError: no trained model, or another backbone, method or shape. The model is then unchanged.
    """
    path, source = Path(directory), check_source(directory, flag)
    whole = source.mode == "full"
    if whole != (model.info.mode == "full"):
        kinds = {True: "a whole model", False: "adapters on a frozen backbone"}
        raise UserError(f"it holds {kinds[whole]}", location=flag, expected=f"{kinds[not whole]}, as this run trains",
                        remedy="choose the method it was trained with")  # fmt: skip
    return _start_whole(model, tokenizer, source, path, flag) if whole else _start_adapters(model, path, flag)


def check_source(directory, flag):
    """The `Manifest` of a trained language model of this toolkit, of which no weights are read; a `UserError` if the
    directory holds none."""
    path, remedy = Path(directory), "train one with train.py, or leave the flag out"
    backbones.need_directory(path, flag, "a trained model", remedy)
    source = manifest.need_language_model(path, flag, remedy)
    if source and isinstance(source.format, str):
        maker, command = "the original code", f"adapters.imports.{source.format}"
        if source.format == "peft":
            maker, command = "peft", "versatile.peft import"
        raise UserError(f"this is a directory of {maker}", location=flag, expected="a model of this toolkit",
                        remedy=f"convert it: python -m {command} {path} OUTPUT …")  # fmt: skip
    if source is None:
        backbones.read_config(path, flag)
        raise UserError("this is a bare backbone: nothing was trained for a task", location=flag,
                        expected="a trained model", remedy="name it with --model_checkpoint instead")  # fmt: skip
    return source


def _start_whole(model, tokenizer, source, path, flag):
    """Copy all weights of a fully fine-tuned model; rows of added tokens are matched by token."""
    _same("self-copy", bool(source.config.get("self_copy")), model.info.self_copy, flag)
    _same("the size of the backbone's vocabulary", source.config["first"], model.info.first, flag)
    state, wanted = read_safetensors(path / manifest.MODEL_WEIGHTS), checkpoint.full_state(model)
    weights = table_weights(model)
    tables = {name for name, tensor in wanted.items() if any(tensor.data_ptr() == t.data_ptr() for t in weights)}
    for name, tensor in wanted.items():
        start = 1 if name in tables else 0
        if name not in state or state[name].shape[start:] != tensor.shape[start:]:
            raise _other_shape(name, state.get(name), tensor, flag)
    words, first = backbones.read_tokenizer(path).get_vocab(), model.info.first
    ids = [(own, words[token]) for token, own in tokenizer.get_vocab().items() if own >= first and token in words]
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name not in tables:
                tensor.copy_(state[name])
                continue
            tensor[:first] = state[name][:first]
            for own, theirs in ids:
                tensor[own] = state[name][theirs]
    return {}


def _start_adapters(model, path, flag):
    """Copy adapters by task and rows by token."""
    config = checkpoint.read_adapter_config(path)
    state = read_safetensors(path / manifest.ADAPTER_WEIGHTS)
    methods = checkpoint.complete_methods(config, path / checkpoint.CONFIG)
    _check_backbone(model, config, flag)
    _same("self-copy", bool(config.get("self_copy")), model.info.self_copy, flag)
    origins = _match_tasks(model, methods, flag)
    parameters, owners = checkpoint.adapter_parameters(model), checkpoint.owners_of_keys(model)
    starts = {key: origin for key in parameters if (origin := _origin_of(key, owners[key], origins))}
    for key, origin in starts.items():
        if origin not in state or state[origin].shape != parameters[key].shape:
            raise _other_shape(origin, state.get(origin), parameters[key], flag)
    if config["base_model_name_or_path"] == checkpoint.BACKBONE:
        backbone = path / checkpoint.BACKBONE / manifest.MODEL_WEIGHTS
        wanted = checkpoint.without_tied(model, checkpoint.backbone_state(model))
        copy_tensors(read_safetensors(backbone), wanted, backbone)
    with torch.no_grad():
        for key, origin in starts.items():
            parameters[key].copy_(state[origin])
        _copy_rows(model, config, state)
    return origins


def _origin_of(key, owner, origins):
    """The key of the saved tensor that a parameter starts from, or None if it keeps its fresh initialisation."""
    parts = key.split(".")
    if parts[0] in ("rows", "output_rows"):
        return None
    if owner is None:
        # Parameters shared by tasks (both models then have the same tasks), a pointer's gate, or the row of <pad>.
        return key
    at = parts.index(owner, 2)
    return origins[owner] and ".".join([*parts[:at], origins[owner], *parts[at + 1 :]])


def _match_tasks(model, methods, flag):
    """{task of the model: the directory's task that it starts from, or None}."""
    info = model.info
    single = next(iter(methods)) if len(methods) == len(info.tasks) == 1 else None
    origins = {task: task if task in methods else single for task in info.tasks}
    if not any(origins.values()):
        raise UserError(f"it holds the task(s) {', '.join(methods)}", location=flag,
                        expected="one of this run's: " + ", ".join(info.tasks))  # fmt: skip
    for task, origin in origins.items():
        if origin is None:
            continue
        trained_with, expected = methods[origin], info.methods[task]
        if trained_with != expected:
            raise UserError(f"{origin!r} was trained with {_words(trained_with)}", location=flag,
                            expected=f"{_words(expected)}, as this run trains {task!r}",
                            remedy="start this run with the same method and settings")  # fmt: skip
        shared = trained_with["method"] != BARE and get_method(trained_with["method"]).load_class().shared
        if shared and list(methods) != info.tasks:
            raise UserError(f"{origin!r} was trained with {trained_with['method']}: {shared}", location=flag,
                            expected=f"the same tasks in the same order: {', '.join(methods)}")  # fmt: skip
    return origins


def _words(method):
    settings = ", ".join(f"{name} {value}" for name, value in method.items() if name != "method")
    return method["method"] + (f" ({settings})" if settings else "")


def _check_backbone(model, config, flag):
    """Check that a directory's adapters were trained on the model's backbone."""
    if config["base_model_name_or_path"] == checkpoint.BACKBONE:
        if model.info.freeze:
            raise UserError("its backbone was trained too", location=flag, expected="adapters on a frozen backbone",
                            remedy="train the backbone here too: --unfreeze_backbone")  # fmt: skip
        return
    bits, own = config.get("quantization"), getattr(model, "quantization", None)
    if bits != own:
        remedy = f"start the run with --load_in_{bits}" if bits else f"leave out --load_in_{own}"
        raise UserError(f"its backbone's quantisation is {bits or 'none'}", location=flag,
                        expected=f"{own or 'none'}, as in this run", remedy=remedy)  # fmt: skip
    expected = config.get("base_model_fingerprint")
    if config["first"] != model.info.first or (expected and expected != model.backbone_fingerprint):
        raise UserError(f"it was trained on {config['base_model_name_or_path']} (fingerprint {expected})",
                        location=flag, expected=f"{model.config._name_or_path} (fingerprint "
                        f"{model.backbone_fingerprint}), the backbone of this run",
                        remedy="start this run with the same backbone: --model_checkpoint")  # fmt: skip


def _copy_rows(model, config, state):
    """Copy the rows of the tokens that both models have."""
    for kind, module in (("rows", model.get_input_embeddings()), ("output_rows", model.get_output_embeddings())):
        theirs = {marker: state[f"{kind}.{task['name']}"][i] for task in config.get("task_embeddings", config["tasks"])
                  for i, marker in enumerate(task["markers"]) if f"{kind}.{task['name']}" in state}  # fmt: skip
        for task, markers in model.info.markers.items():
            for i, marker in enumerate(markers):
                if marker in theirs:
                    module.rows.tasks[task][i] = theirs[marker]


def _same(what, found, expected, flag):
    if found != expected:
        raise UserError(f"{what} is {found} in that model", location=flag, expected=f"{expected}, as in this run")


def _other_shape(name, tensor, wanted, flag):
    problem = "is missing" if tensor is None else f"has the shape {list(tensor.shape)}"
    return UserError(f"{name} {problem}", location=flag, expected=f"the shape {list(wanted.shape)}",
                     remedy="start from a run of the same backbone and method")  # fmt: skip
