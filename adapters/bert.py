"""One BERT for many tasks: CA-MTL's conditional forms, and plain multi-task BERT.

`build_classifier` takes any BERT that transformers can load and inserts the modules of adapters/methods/conditional.py;
`save_classifier` and `load_classifier` write and read the result. A batch may mix tasks: `task_ids` gives each row's
task as its index in `model.tasks`.

A saved directory holds

    adapter_config.json   the manifest (adapters/manifest.py): form, tasks and their numbers of labels, max_seq_length,
                          the backbone's config
    model.safetensors     the whole model, under the published names: bert.*, decoders.<task>.model.*; or, for adapters
                          on a frozen BERT,
    adapter_model.safetensors   the adapters, under keys defined by their methods, and the heads
    tokenizer files

There is deliberately no config.json: given one, transformers would silently build a plain BERT from the weights it
recognises, as the original code did with its own checkpoints.
"""

import copy
import re
from pathlib import Path

import torch
from versatile.adapters import manifest as manifests
from versatile.adapters import schemas
from versatile.adapters.backbones import bundled
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.checkpoint import backbone_name, check_fingerprint, write_model
from versatile.adapters.classifier import TaskClassifier, check_shape, keyed_parameters
from versatile.adapters.imports import camtl
from versatile.adapters.manifest import ADAPTER_WEIGHTS, CONFIG, MODEL_WEIGHTS
from versatile.adapters.methods.base import check_idle, keyed_added_parameters
from versatile.adapters.methods.registry import method_of
from versatile.adapters.schemas import FORMS  # noqa: F401
from versatile.adapters.tensors import check_checksum, check_fit, copy_tensors, read_safetensors
from versatile.utils.errors import UserError, first_line

# The published names: which backbone, in which form.
PUBLISHED = {"CA-MTL-base": ("bert-base-cased", "base"), "CA-MTL-large": ("bert-large-cased", "large")}


def build_classifier(name_or_dir, tasks, form=None, max_seq_length=128, seed=42, method=None):
    """A multi-task classifier built on a BERT.

    Args:
        name_or_dir: a bundled name (`minilm`, `tiny-bert`), a BERT's directory or hub name, a published name
            (`CA-MTL-base`, `CA-MTL-large`), or a directory written by `save_classifier` or the original code, whose
            model is then loaded.
        tasks: {task: number of labels, 1 for a regression}; the order gives the ids.
        form: "base" (half the layers conditional, a fresh top layer; needs an even number of layers), "large" (a
            bottleneck next to each layer) or "plain" (BERT and heads). None: that of the saved model or published name,
            else "base".
        max_seq_length: L; in the conditional forms a divisor of the hidden size.
        seed: random seed of the new weights, N(0, 0.02).
        method: adaptation method of all tasks on the frozen BERT, in any form `method_of` accepts; None to train
            everything.

    Returns:
        (`TaskClassifier` in fp32 and eval mode, its tokenizer)

    Raises:
        UserError: no usable model of that name, not a BERT, a length or number of layers that does not fit the form,
            a saved model with other tasks, form, length or method, or a method that does not fit a BERT.
    """
    methods = None if method is None else dict.fromkeys(tasks, method_of(method))
    form = "plain" if methods else form
    location = f"--model_name_or_path {name_or_dir}"
    name, published = PUBLISHED.get(name_or_dir, (name_or_dir, None))
    if published:
        location += f" ({name})"
    if (saved := manifests.peek(name)) and saved.encoder == "sentence_pair":
        model, tokenizer = load_classifier(name)
        _check_same(model, tasks, form, max_seq_length, location)
        check_method(model, method, location)
        return model, tokenizer
    bert, tokenizer, original = _pretrained(name, location, seed)
    if original is not None:
        if methods:
            raise UserError("it holds a trained model of the original code", location=location,
                            expected="a BERT to train adapters on")  # fmt: skip
        model = camtl.load_original(original, bert.config, list(tasks), location)
        _check_same(model, tasks, form, max_seq_length, location)
        return model, tokenizer
    form = form or published or "base"
    check_shape(bert.config, form, max_seq_length, location)
    fingerprint = backbones.fingerprint(bert.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TaskClassifier(bert, tasks, form, max_seq_length, methods)
    model.backbone_fingerprint, model.random_init_seed = fingerprint, bert.pooler_seed
    return model.eval(), tokenizer


_MINILM = "--model_name_or_path minilm --form base"


def _pretrained(name, location, seed):
    """(BertModel with a pooler, its tokenizer, state dict of an original CA-MTL or None)."""
    from transformers import AutoModel

    folder = bundled.resolve(name)
    try:
        config = backbones.read_config(folder, location)
    except UserError as error:
        if Path(name).exists():
            raise
        raise UserError(error.found, location=location, expected="a BERT's directory or hub name, or minilm",
                        remedy=f"without a network: {_MINILM}, installed by ./run.sh setup") from error  # fmt: skip
    if config.model_type != "bert" or getattr(config, "is_decoder", False):
        raise UserError(f"model_type {config.model_type!r}", location=location, expected="'bert', an encoder",
                        remedy="name a BERT: bert-base-cased, minilm, …")  # fmt: skip
    tokenizer = _read_tokenizer(folder, location, config=config)
    try:
        with torch.random.fork_rng(devices=[]):
            # The checkpoint of a masked language model has no pooler, so a random one is drawn.
            torch.manual_seed(seed)
            bert, info = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True,
                                                   weights_only=True, trust_remote_code=False)  # fmt: skip
    except Exception as error:
        # transformers raises whatever its parsers raise; a file that does not load is bad input in any case.
        raise UserError(f"it cannot be read: {first_line(error)}", location=location, remedy="fetch the files again",
                        expected="a whole BERT with its tokenizer") from error  # fmt: skip
    if camtl.is_published(info["unexpected_keys"]):
        return bert, tokenizer, camtl.read_state(Path(folder), location)
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    backbones.check_weights(bert.state_dict(), missing, location)
    backbones.check_table(bert, tokenizer, location)
    backbones.keep_name(bert, name)
    bert.pooler_seed = seed if info["missing_keys"] else None
    return bert, tokenizer, None


def _check_same(model, tasks, form, max_seq_length, location):
    """Check that a saved model is the requested one."""
    if list(model.tasks.items()) != list(dict(tasks).items()):
        raise UserError(f"its tasks are {_listed(model.tasks)}", location=location, expected=_listed(tasks),
                        remedy="name its tasks in that order, or start from a BERT")  # fmt: skip
    if form is not None and form != model.form:
        raise UserError(f"it was saved in the form {model.form!r}", location=location, expected=f"{form!r}",
                        remedy="ask for that form, or start from a BERT")  # fmt: skip
    if model.form != "plain" and max_seq_length != model.max_seq_length:
        raise UserError(f"the model takes {model.max_seq_length} tokens", location=f"--max_seq_length {max_seq_length}",
                        expected=f"{model.max_seq_length}, as when it was trained")  # fmt: skip


def check_method(model, method, location):
    """Raise a `UserError` if a trained model's tasks use another method than the requested one; None accepts any."""
    if method is None:
        return
    method = method_of(method)
    for task in model.tasks:
        if (trained := (model.methods or {}).get(task, dict(method=model.method_name))) != method:
            raise UserError(f"{task} was trained with {trained['method']}", location=location,
                            expected=f"{method['method']} with the same settings",
                            remedy="leave --method out, or start from a BERT")  # fmt: skip


def _listed(tasks):
    return ", ".join(f"{name} ({labels})" for name, labels in tasks.items())


def _read_tokenizer(folder, location=None, **more):
    """`backbones.read_tokenizer`, which must have the special tokens of a BERT."""
    tokenizer = backbones.read_tokenizer(folder, location, **more)
    for name in ("pad_token", "cls_token", "sep_token"):
        if getattr(tokenizer, name) is None:
            raise UserError(f"the tokenizer has no {name}", location=location or folder,
                            expected="that of a BERT: [PAD], [CLS] and [SEP], named in tokenizer_config.json",
                            remedy="copy the tokenizer's files again")  # fmt: skip
    return tokenizer


def save_classifier(model, tokenizer, directory):
    """Write a model to a directory; each file is whole or absent, and the config is written last."""
    # A list, as the order determines task ids.
    tasks = [dict(name=name, labels=labels) for name, labels in model.tasks.items()]
    methods = model.methods or {task: dict(method=model.method_name) for task in model.tasks}
    backbone = backbone_name(model)
    if model.mode == "full":
        del backbone["random_init_seed"]
    config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    write_model(
        directory, tokenizer, weights_file(model), saved_parameters(model), encoder="sentence_pair", mode=model.mode,
        tasks=tasks, methods=methods, model_type=model.config.model_type, **backbone, form=model.form,
        max_seq_length=model.max_seq_length, aliases=model.aliases, backbone=config,
    )  # fmt: skip


def weights_file(model):
    """Name of the weights file in a model's directory."""
    return ADAPTER_WEIGHTS if model.mode == "adapter" else MODEL_WEIGHTS


def saved_parameters(model):
    """{key: parameter} of everything in a model's weights file."""
    return keyed_added_parameters(model) if model.mode == "adapter" else keyed_parameters(model)


def load_classifier(directory, task=None, allow_idle=False):
    """(`TaskClassifier` in eval mode, its tokenizer) as `save_classifier` wrote them.

    Args:
        task: the requested task, or None.
        allow_idle: as in `checkpoint.load_checkpoint`.

    Raises:
        UserError: no such model, a damaged file, or an adapter of `task`, or of all tasks, that changes nothing.
    """
    from transformers import BertConfig, BertModel

    path = Path(directory)
    backbones.need_directory(path, str(directory), "a directory that train_camtl.py wrote")
    manifest = manifests.peek(path)
    if manifest is None or manifest.encoder != "sentence_pair":
        raise UserError(f"there is no {CONFIG} of a CA-MTL model", location=directory,
                        expected="a directory that train_camtl.py wrote")  # fmt: skip
    config = manifest.config
    tasks = {task["name"]: task["labels"] for task in config["tasks"]}
    form, length, aliases = config["form"], config["max_seq_length"], config.get("aliases", {})
    if unknown := [name for name in aliases.values() if name not in tasks]:
        raise UserError(f"an alias of {unknown[0]!r}, which is not one of its tasks", location=path / CONFIG,
                        expected="one of " + ", ".join(tasks))  # fmt: skip
    if manifest.mode == "adapter":
        model, tokenizer = _load_adapters(path, manifest, tasks, None if allow_idle else (task,))
        model.aliases = dict(aliases)
        return model.eval(), tokenizer
    state = read_safetensors(path / MODEL_WEIGHTS)
    try:
        backbone = BertConfig.from_dict(config["backbone"])
        check_shape(backbone, form, length, str(path / CONFIG))
        # Check shapes first, so that wrong sizes in a damaged config allocate nothing.
        with torch.device("meta"):
            shapes = keyed_parameters(TaskClassifier(BertModel(copy.deepcopy(backbone)), tasks, form, length))
    except UserError:
        raise
    except Exception as error:
        # transformers' configs and constructors raise many kinds of errors; what they reject is bad input in any case.
        raise UserError(f"it cannot be used: {first_line(error, 120)}", location=path / CONFIG,
                        expected="a file that train_camtl.py wrote", remedy="copy it again") from error  # fmt: skip
    check_fit(state, shapes, path / MODEL_WEIGHTS)
    bert = BertModel(backbone)
    bert.config._name_or_path = config.get("base_model_name_or_path") or str(path)
    model = TaskClassifier(bert, tasks, form, length)
    model.aliases = dict(aliases)
    copy_tensors(state, keyed_parameters(model), path / MODEL_WEIGHTS)
    check_checksum(path / MODEL_WEIGHTS, config.get("checksum"))
    model.backbone_fingerprint = manifest.fingerprint
    return model.eval(), _read_tokenizer(path, expected="the tokenizer's files next to the model")


def _load_adapters(path, manifest, tasks, requested):
    """(`TaskClassifier`, tokenizer) of adapters on the BERT named in the manifest; `requested`: see `check_idle`, or
    None to accept adapters that change nothing."""
    config, length = manifest.config, manifest.config["max_seq_length"]
    methods = {task: method_of(manifest.methods[task], path / CONFIG) for task in tasks}
    state = read_safetensors(path / ADAPTER_WEIGHTS)
    schemas.check_sizes(methods, state, path / CONFIG)
    name, location = backbones.locate(config["base_model_name_or_path"], path / CONFIG)
    bert, tokenizer, _ = _pretrained(name, location, config.get("random_init_seed") or 0)
    check_shape(bert.config, "plain", length, str(path / CONFIG))
    fingerprint = backbones.fingerprint(bert.state_dict())
    if not manifest.fingerprint:
        # All versions have written one.
        raise UserError("does not give the fingerprint of its backbone", location=path / CONFIG, expected=fingerprint,
                        remedy="copy it again")  # fmt: skip
    check_fingerprint(fingerprint, config, name, path / CONFIG)
    model = TaskClassifier(bert, tasks, "plain", length, methods)
    model.backbone_fingerprint, model.random_init_seed = fingerprint, config.get("random_init_seed")
    copy_tensors(state, keyed_added_parameters(model), path / ADAPTER_WEIGHTS)
    if requested is not None:
        held = {task: model.added[method["method"]] for task, method in methods.items()}
        check_idle(held, path / ADAPTER_WEIGHTS, requested)
    check_checksum(path / ADAPTER_WEIGHTS, config.get("checksum"))
    return model, tokenizer


def load_weights(model, directory):
    """Load weights that `save_classifier` wrote for the same model."""
    path = Path(directory) / weights_file(model)
    copy_tensors(read_safetensors(path), saved_parameters(model), path)


def freeze(model, layers, location="--freeze_encoder_layers"):
    """Freeze some encoder layers and the embeddings, but no conditional module. (The original freezes CBDA's FiLM
    through a misspelt pattern.)

    Args:
        model: `TaskClassifier`; everything not frozen by this call is trained.
        layers: first and last layer to freeze, such as "0-5".
        location: the flag, for errors.

    Returns:
        (names of the frozen parameters, names of the trained ones)

    Raises:
        UserError: layers that do not exist, or the base form's top layer, which is not pretrained.
    """
    span = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", str(layers))
    count = model.config.num_hidden_layers
    most = count - 2 if model.form == "base" else count - 1
    if not span or not int(span[1]) <= int(span[2]) <= most:
        top = "; the top layer is new" if model.form == "base" else ""
        one = re.fullmatch(r"\s*(\d+)\s*", str(layers))
        alone = f"give 0-{int(one[1])}" if one and int(one[1]) <= most else None
        raise UserError(f'"{layers}"', location=location, remedy=alone,
                        expected=f"layers as 0-N, N at most {most}: the model has {count}{top}")  # fmt: skip
    modules = [model.bert.embeddings, *model.bert.encoder.layer[int(span[1]) : int(span[2]) + 1]]
    frozen = {id(p) for module in modules for p in module.parameters()}
    names = {True: [], False: []}
    for name, p in keyed_parameters(model).items():
        p.requires_grad_(id(p) not in frozen)
        names[id(p) in frozen].append(name)
    return names[True], names[False]
