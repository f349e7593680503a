"""One BERT for many tasks: CA-MTL's conditional forms, and plain multi-task BERT.

`build` takes any BERT that transformers loads and puts the modules of adapters/methods/conditional.py into it; `save`
and `load` keep what came of it. A batch may mix tasks: `task_ids` gives one task a row, a task's place in
`model.tasks`.

A saved directory holds

    adapter_config.json   the manifest (adapters/manifest.py): form, tasks and their numbers of labels, max_seq_length,
                          the backbone's config
    model.safetensors     the whole model, under the published names: bert.*, decoders.<task>.model.*; or, of adapters
                          beside a frozen BERT,
    adapter_model.safetensors   these under their methods' keys, and the heads
    tokenizer files

There is no config.json on purpose: from one, transformers would silently build a plain BERT out of the weights it
knows, as the original code did with its own checkpoints.
"""

import copy
import re
from pathlib import Path

import torch
from versatile.adapters import manifest as manifests
from versatile.adapters import schemas
from versatile.adapters.backbones import bundled as embedded
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.checkpoint import WEIGHTS as ADAPTERS
from versatile.adapters.checkpoint import WHOLE as WEIGHTS
from versatile.adapters.checkpoint import backbone_name, check_fingerprint, write_model
from versatile.adapters.classifier import TaskClassifier, check_shape, keyed_added, keyed_parameters
from versatile.adapters.imports import camtl
from versatile.adapters.manifest import CONFIG
from versatile.adapters.methods.registry import method_of
from versatile.adapters.schemas import FORMS  # noqa: F401
from versatile.adapters.tensors import check_checksum, check_fit, copy_tensors, read_safetensors
from versatile.utils.errors import UserError, first_line

# The published names: which backbone, in which form.
PUBLISHED = {"CA-MTL-base": ("bert-base-cased", "base"), "CA-MTL-large": ("bert-large-cased", "large")}


def build(name_or_dir, tasks, form=None, max_seq_length=128, seed=42, method=None):
    """A BERT made ready for tasks.

    Args:
        name_or_dir: an embedded name (`minilm`, `tiny-bert`), a BERT's directory or hub name, a published name
            (`CA-MTL-base`, `CA-MTL-large`), or a directory that `save` or the original code wrote, which gives that
            model again.
        tasks: {task: number of labels, 1 for a regression}; the order gives the ids.
        form: "base" (half the layers conditional, a fresh top layer; an even number of layers), "large" (a bottleneck a
            layer beside it) or "plain" (BERT and heads). None: the saved model's or the published name's, else "base".
        max_seq_length: L; in the conditional forms a divisor of the hidden size.
        seed: of the new weights, N(0, 0.02).
        method: adapters of every task beside the frozen BERT, as `method_of` takes them; None: all is trained.

    Returns:
        (`TaskClassifier` in fp32 and eval mode, its tokenizer)

    Raises:
        UserError: nothing usable by that name, no BERT, a length or number of layers that does not fit the form,
            a saved model of other tasks, another form, length or method; a method that does not go with a BERT.
    """
    methods = None if method is None else dict.fromkeys(tasks, method_of(method))
    form = "plain" if methods else form
    location = f"--model_name_or_path {name_or_dir}"
    name, published = PUBLISHED.get(name_or_dir, (name_or_dir, None))
    if published:
        location += f" ({name})"
    if (saved := manifests.peek(name)) and saved.encoder == "sentence_pair":
        model, tokenizer = load(name)
        _check_same(model, tasks, form, max_seq_length, location)
        check_method(model, method, location)
        return model, tokenizer
    bert, tokenizer, original = _pretrained(name, location, seed)
    if original is not None:
        if methods:
            raise UserError("it holds a trained model of the original code", location=location,
                            expected="a BERT beside which adapters are trained")  # fmt: skip
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

    folder = embedded.folder(name) if name in embedded.NAMES else name
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
    tokenizer = backbones.read_tokenizer(folder, location, config=config)
    try:
        with torch.random.fork_rng(devices=[]):
            # A checkpoint of a masked language model has no pooler: a fresh one is drawn.
            torch.manual_seed(seed)
            bert, info = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True,
                                                   weights_only=True, trust_remote_code=False)  # fmt: skip
    except Exception as error:
        # transformers raises whatever its parsers meet; a file that does not load is bad input all the same.
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
    """Whether a saved model is the one asked for."""
    if list(model.tasks.items()) != list(dict(tasks).items()):
        raise UserError(f"its tasks are {_listed(model.tasks)}", location=location, expected=_listed(tasks),
                        remedy="name its tasks in their order, or start from a BERT")  # fmt: skip
    if form is not None and form != model.form:
        raise UserError(f"it was saved in the form {model.form!r}", location=location, expected=f"{form!r}",
                        remedy="ask for its own form, or start from a BERT")  # fmt: skip
    if model.form != "plain" and max_seq_length != model.max_seq_length:
        raise UserError(f"the model takes {model.max_seq_length} tokens", location=f"--max_seq_length {max_seq_length}",
                        expected=f"{model.max_seq_length}, as when it was trained")  # fmt: skip


def check_method(model, method, location):
    """A `UserError` where a trained model's tasks were adapted otherwise than asked for; None: as they were."""
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


def save(model, tokenizer, directory):
    """Write a model to a directory; each file is whole or absent, the config comes last."""
    # A list: the order gives the tasks their ids.
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
    """The name of the file of weights in a model's directory."""
    return ADAPTERS if model.mode == "adapter" else WEIGHTS


def saved_parameters(model):
    """{key: parameter} of what a model's file holds."""
    return keyed_added(model) if model.mode == "adapter" else keyed_parameters(model)


def load(directory):
    """(`TaskClassifier` in eval mode, its tokenizer) as `save` wrote them.

    Raises:
        UserError: nothing of that kind there, a damaged file.
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
        raise UserError(f"an alias of {unknown[0]!r}, which is not a task of it", location=path / CONFIG,
                        expected="one of " + ", ".join(tasks))  # fmt: skip
    if manifest.mode == "adapter":
        model, tokenizer = _load_adapters(path, manifest, tasks)
        model.aliases = dict(aliases)
        return model.eval(), tokenizer
    state = read_safetensors(path / WEIGHTS)
    try:
        backbone = BertConfig.from_dict(config["backbone"])
        check_shape(backbone, form, length, str(path / CONFIG))
        # Shapes alone first: sizes that a damaged config made up are not allocated.
        with torch.device("meta"):
            shapes = keyed_parameters(TaskClassifier(BertModel(copy.deepcopy(backbone)), tasks, form, length))
    except UserError:
        raise
    except Exception as error:
        # transformers raises whatever its config and constructors meet; what they refuse is bad input all the same.
        raise UserError(f"it cannot be used: {first_line(error, 120)}", location=path / CONFIG,
                        expected="a file that train_camtl.py wrote", remedy="copy it again") from error  # fmt: skip
    check_fit(state, shapes, path / WEIGHTS)
    bert = BertModel(backbone)
    bert.config._name_or_path = config.get("base_model_name_or_path") or str(path)
    model = TaskClassifier(bert, tasks, form, length)
    model.aliases = dict(aliases)
    copy_tensors(state, keyed_parameters(model), path / WEIGHTS)
    check_checksum(path / WEIGHTS, config.get("checksum"))
    model.backbone_fingerprint = manifest.fingerprint
    return model.eval(), backbones.read_tokenizer(path, expected="the tokenizer's files beside the model")


def _load_adapters(path, manifest, tasks):
    """(`TaskClassifier`, tokenizer) of adapters beside a BERT that the manifest names."""
    config, length = manifest.config, manifest.config["max_seq_length"]
    methods = {task: method_of(manifest.methods[task], path / CONFIG) for task in tasks}
    state = read_safetensors(path / ADAPTERS)
    schemas.check_sizes(methods, state, path / CONFIG)
    name, location = backbones.locate(config["base_model_name_or_path"], path / CONFIG)
    bert, tokenizer, _ = _pretrained(name, location, config.get("random_init_seed") or 0)
    check_shape(bert.config, "plain", length, str(path / CONFIG))
    fingerprint = backbones.fingerprint(bert.state_dict())
    if not manifest.fingerprint:
        # Every version has written it.
        raise UserError("names no fingerprint of its backbone", location=path / CONFIG, expected=fingerprint,
                        remedy="copy it again")  # fmt: skip
    check_fingerprint(fingerprint, config, name, path / CONFIG)
    model = TaskClassifier(bert, tasks, "plain", length, methods)
    model.backbone_fingerprint, model.random_init_seed = fingerprint, config.get("random_init_seed")
    copy_tensors(state, keyed_added(model), path / ADAPTERS)
    for task, method in methods.items():
        model.added[method["method"]].refuse_idle(task, path / ADAPTERS)
    check_checksum(path / ADAPTERS, config.get("checksum"))
    return model, tokenizer


def load_weights(model, directory):
    """Load into a model what `save` wrote for the same model."""
    path = Path(directory) / weights_file(model)
    copy_tensors(read_safetensors(path), saved_parameters(model), path)


def freeze(model, layers, location="--freeze_encoder_layers"):
    """Freeze some encoder layers and the embeddings, but nothing conditional. (The original freezes CBDA's FiLM by a
    misspelt pattern.)

    Args:
        model: `TaskClassifier`; what is not frozen by this call is trained.
        layers: "0-5": the first and the last of them.
        location: the flag, for errors.

    Returns:
        (names of the frozen parameters, names of the trained ones)

    Raises:
        UserError: no such layers, or the base form's top layer, which is not pretrained.
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
