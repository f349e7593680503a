"""Checkpoints of T5 models with tasks. See adapters/t5.py.

A directory holds

    adapter_config.json         the manifest (adapters/manifest.py), with all settings
    adapter_model.safetensors   adapters, hypernetworks, task embeddings and anything else trained (layer norms, …),
                                under the published code's names
    tokenizer files
    backbone/                   an ordinary transformers directory, if the backbone cannot be found by name because
                                all of it was trained too, or it was created from scratch

A fully fine-tuned T5 is an ordinary transformers directory whose config.json contains the manifest.
"""

import dataclasses
from pathlib import Path

import torch
from versatile.adapters import manifest as manifests
from versatile.adapters import schemas
from versatile.adapters.backbones import bundled
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.checkpoint import backbone_name, check_fingerprint, save_whole, write_model
from versatile.adapters.imports.hyperformer import original_names, original_parameters
from versatile.adapters.manifest import ADAPTER_WEIGHTS, BACKBONE, CONFIG, MODEL_WEIGHTS, check_holds
from versatile.adapters.methods.base import check_idle, is_added
from versatile.adapters.methods.registry import get_method, method_of
from versatile.adapters.schemas import COMBINED_T5, PORT_METHODS
from versatile.adapters.t5_loading import check_end_token
from versatile.adapters.t5_model import T5Settings, attach, check_kind
from versatile.adapters.tensors import check_checksum, check_fit, copy_tensors, read_safetensors
from versatile.utils.errors import UserError, brief

# ---- the backbone


def load_t5_of_name(name, random_init=None, location=None):
    """A T5 and its tokenizer: `backbones.load`, with a `UserError` if the model is not a T5."""
    location = location or f"--model_checkpoint {name}"
    folder = bundled.resolve(name)
    check_kind(backbones.read_config(folder, location), location)
    return backbones.load_backbone(name, random_init, location)


def backbone_state(model):
    """{name: tensor} of the T5 itself, each tensor once, under its names before anything was attached."""
    return {name: p.detach() for name, p in model.named_parameters() if not is_added(name)}


def _fingerprint(model):
    """The fingerprint that the T5 would have if loaded without additions."""
    return backbones.fingerprint({name: t for name, t in model.state_dict().items() if not is_added(name)})


# ---- saving


def adapter_state(model):
    """{published name: tensor} of everything added to the backbone, and of the backbone's trained tensors."""
    saves_backbone, names = model.saves_backbone, original_names(model)
    return {
        names[name]: p.detach()
        for name, p in model.named_parameters()
        if is_added(name) or (p.requires_grad and not saves_backbone)
    }


def save_t5(model, tokenizer, directory, state=None):
    """Write an attached model to a directory; each file is whole or absent.

    Args:
        state: for a model with adapters, the state to write instead of its `adapter_state`.
    """
    directory = Path(directory)
    full = model.settings.method == "finetune"
    common = dict(encoder="text_to_text", mode="full" if full else "adapter", tasks=[dict(name=n) for n in model.tasks],
                  methods=model.methods or None, model_type=model.config.model_type,
                  settings=dataclasses.asdict(model.settings))  # fmt: skip
    if full:
        save_whole(model, tokenizer, directory, backbone_state(model), model.config, common)
        return
    backbone = backbone_name(model)
    if model.saves_backbone:
        save_whole(model, tokenizer, directory / BACKBONE, backbone_state(model), model.config)
        backbone = dict(base_model_name_or_path=BACKBONE, base_model_fingerprint=_fingerprint(model))
    state = adapter_state(model) if state is None else state
    trained = sorted(n for n, _ in model.named_parameters() if n in state and not is_added(n))
    write_model(directory, tokenizer, ADAPTER_WEIGHTS, state, d_model=model.config.d_model,
                layers=[len(model.encoder.block), len(model.decoder.block)], trained_backbone=trained, **backbone,
                **common)  # fmt: skip


# ---- loading


def read_manifest(directory):
    """The `Manifest` of a T5 with tasks; no weights are read."""
    backbones.need_directory(directory, f"--model_name_or_path {directory}", "a checkpoint of train_t5.py")
    manifest = manifests.peek(directory)
    if manifest is None:
        raise UserError("this is not a T5 that was trained for tasks", location=directory,
                        expected=f"{CONFIG}, or a config.json that names tasks",
                        remedy="name the output directory of train_t5.py")  # fmt: skip
    if manifest.encoder != "text_to_text":
        raise UserError(f"its tasks have the encoder {manifest.encoder!r}", location=manifest.path,
                        expected="'text_to_text'",
                        remedy="this is another kind of model: load it with the script that trained it")  # fmt: skip
    return manifest


def read_settings(directory):
    """(tasks, `T5Settings`) of a checkpoint; no weights are read."""
    manifest = read_manifest(directory)
    settings = T5Settings(**manifest.config["settings"])
    names = [*manifest.tasks, *(settings.adapters or []), *(settings.task_embeddings or [])]
    schemas.check_module_names(names, manifest.path)
    if settings.method in PORT_METHODS:
        method_of({"method": settings.method} | settings.method_settings, manifest.path)
    elif settings.method_settings:
        raise UserError(f"'settings.method_settings' is {brief(settings.method_settings)}", location=manifest.path,
                        expected=f"none, as of every model of the method {settings.method}")  # fmt: skip
    return list(manifest.tasks), settings


def _methods_of(manifest):
    """{task: its method}, with all settings filled in, of a T5 whose tasks were trained separately."""
    known = ("adapters", *PORT_METHODS)
    if unknown := [m["method"] for m in manifest.methods.values() if m["method"] not in known]:
        raise UserError(f"the method {unknown[0]!r}", location=manifest.path, expected=f"one of {', '.join(known)}")
    return {task: method_of(method, manifest.path) for task, method in manifest.methods.items()}


def load_t5(directory, task=None, allow_idle=False):
    """A trained model and its tokenizer.

    Args:
        directory: as written by `save_t5`.
        task: a task that must be in it, or None.
        allow_idle: as in `checkpoint.load_checkpoint`.

    Returns:
        (model in eval mode, tokenizer); `requires_grad` is set as in training.

    Raises:
        UserError: no usable checkpoint, a damaged file, a different backbone from the one trained on, keys or shapes
            that do not fit, a task the checkpoint does not hold, or an adapter of `task`, or of all tasks, that
            changes nothing.
    """
    path = Path(directory)
    manifest, (tasks, settings) = read_manifest(path), read_settings(path)
    if task is not None:
        check_holds(tasks, task, directory)
    if settings.method == "finetune":
        model, tokenizer = load_t5_of_name(directory)
        check_checksum(path / MODEL_WEIGHTS, manifest.config.get("checksum"))
        return attach(model, tasks, settings).eval(), tokenizer
    config, methods = manifest.config, _methods_of(manifest) if settings.method == COMBINED_T5 else None
    state = read_safetensors(path / ADAPTER_WEIGHTS)
    model, tokenizer = load_frozen(path)
    # The file contains given embeddings, as the directory they came from may be gone. Their values are copied below.
    names = settings.task_embeddings or tasks

    def placeholders():
        return {n: torch.zeros(settings.task_embedding_dim) for n in names} if settings.task_embedding_dir else None

    # Check shapes first, so that wrong sizes in a damaged config allocate nothing.
    with torch.device("meta"):
        shapes = attach(type(model)(model.config), tasks, settings, placeholders(), methods)
    shapes.has_stored_backbone, shapes.backbone_fingerprint = model.has_stored_backbone, model.backbone_fingerprint
    check_fit(state, _wanted(shapes), path / ADAPTER_WEIGHTS)
    attach(model, tasks, settings, placeholders(), methods)
    _copy_state(model, state, path / ADAPTER_WEIGHTS)
    if not allow_idle:
        held = {name: model.added[get_method(method["method"]).name] for name, method in model.methods.items()}
        check_idle(held, path / ADAPTER_WEIGHTS, (task,))
    check_checksum(path / ADAPTER_WEIGHTS, config.get("checksum"))
    return model.eval(), tokenizer


def load_weights(model, directory):
    """Load weights that `save_t5` wrote for the same model into an attached model."""
    path = Path(directory)
    if model.settings.method == "finetune":
        copy_tensors(read_safetensors(path / MODEL_WEIGHTS), backbone_state(model), path / MODEL_WEIGHTS)
        return
    if model.saves_backbone:
        location = path / BACKBONE / MODEL_WEIGHTS
        copy_tensors(read_safetensors(location), backbone_state(model), location)
    _copy_state(model, read_safetensors(path / ADAPTER_WEIGHTS), path / ADAPTER_WEIGHTS)


def _copy_state(model, state, location):
    copy_tensors(state, _wanted(model), location)


def _wanted(model):
    """{published name: parameter} that an adapter file must hold."""
    kept = adapter_state(model)
    return {name: p for name, p in original_parameters(model).items() if name in kept}


def load_frozen(directory):
    """(the bare T5 of an adapter checkpoint, the adapters' tokenizer); a `UserError` if its fingerprint differs from
    that of the T5 the adapters were trained on."""
    path, config = Path(directory), read_manifest(directory).config
    name, location = backbones.locate(config["base_model_name_or_path"], path / CONFIG)
    inside = name == BACKBONE
    source = str(path / BACKBONE) if inside else name
    model, tokenizer = load_t5_of_name(source, config.get("random_init_seed"), location)
    shape = [model.config.d_model, len(model.encoder.block), len(model.decoder.block)]
    expected = [config.get("d_model"), *config.get("layers", [])]
    if expected[0] is not None and len(expected) == 3 and shape != expected:
        raise UserError(f"the backbone {name} has width {shape[0]} and {shape[1]} + {shape[2]} layers",
                        location=path / CONFIG, remedy="restore the original backbone, or train again",
                        expected="width {} and {} + {} layers, as in training".format(*expected))  # fmt: skip
    check_fingerprint(model.backbone_fingerprint, config, name, path / CONFIG)
    model.has_stored_backbone = inside
    return model, _tokenizer_of(path, model) or tokenizer


def _tokenizer_of(path, model):
    """The tokenizer saved with the adapters, which may differ from the backbone's; None if there is none."""
    if not (path / "tokenizer_config.json").is_file():
        return None
    tokenizer = backbones.read_tokenizer(path, expected="tokenizer.json")
    check_end_token(tokenizer, path)
    backbones.check_table(model, tokenizer, path, "copy the tokenizer again")
    return tokenizer
