"""Checkpoints of attached models.

A checkpoint is a directory with one manifest (adapters/manifest.py) and

    adapter_model.safetensors   only what was trained, under the keys defined by the methods:
                                blocks.<layer>.<task>.<...>: a task's modules (the encoder's blocks before the
                                decoder's); rows.<task>: its embeddings;
                                output_rows.<task> if the backbone's head is untied; spare_rows if <pad> has its
                                own row; p_gen_linear.{weight,bias} of a model with self-copy
    tokenizer files
    backbone/                   the backbone itself, an ordinary transformers directory, if it cannot be found by
                                name: it was trained too, or came with a released checkpoint

A fully fine-tuned model is an ordinary transformers directory whose config.json contains the manifest.
Released checkpoints of the original code can be loaded too (adapters/imports/vlm.py). Nothing is ever unpickled.
"""

import copy
from pathlib import Path

import torch
from versatile.adapters import manifest as manifests
from versatile.adapters import schemas
from versatile.adapters.attach import (
    TaskModelInfo,
    attach,
    chain_tasks,
    check_methods,
    join,
    keep_tasks,
    make_task_conditioned,
    trainable,
)  # fmt: skip
from versatile.adapters.backbones import bundled
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.quantized import plain_state
from versatile.adapters.manifest import ADAPTER_WEIGHTS, BACKBONE, CONFIG, MODEL_WEIGHTS, peek
from versatile.adapters.methods import pointer as self_copy
from versatile.adapters.methods.base import added_parameters, check_idle, is_added, keyed_added_parameters
from versatile.adapters.methods.registry import BARE, get_method, method_of
from versatile.adapters.methods.task_embeddings import ExtendedTable
from versatile.adapters.tensors import (
    check_checksum,
    check_fit,
    copy_tensors,
    read_safetensors,
    require_same_keys,
    write_tensors,
)  # fmt: skip
from versatile.utils.errors import UserError
from versatile.utils.files import atomic_write


def save_checkpoint(model, tokenizer, directory, state=None):
    """Write an attached model to a directory; each file is whole or absent.

    Args:
        state: for an adapter model, the state to write instead of its `adapter_state`.
    """
    directory, info = Path(directory), model.info
    # A list, not an object: transformers sorts an object's keys, and the order determines task ids.
    tasks = [dict(name=name, markers=markers) for name, markers in info.markers.items()]
    for task in tasks:
        for key, values in (("max_history", info.histories), ("definition", info.definitions)):
            if task["name"] in values:
                task[key] = values[task["name"]]
    common = dict(encoder=info.encoder, mode=info.mode, tasks=tasks, first=info.first, self_copy=info.self_copy,
                  mask_other_tasks=info.mask_other_tasks, model_type=model.config.model_type,
                  chained=info.chained or None)  # fmt: skip
    if info.mode == "full":
        save_whole(model, tokenizer, directory, full_state(model), model.config, dict(methods=None, **common))
        return
    backbone = _save_backbone(model, directory) if info.save_backbone else backbone_name(model)
    write_model(directory, tokenizer, ADAPTER_WEIGHTS, state or adapter_state(model), methods=info.methods,
                freeze=info.freeze, **backbone, **_embeddings(model, tokenizer), **common)  # fmt: skip


def write_model(directory, tokenizer, file, state, **manifest):
    """Write a model whose manifest is adapter_config.json. The manifest is written last: it identifies one backbone and
    one weights file, so that a mixture of two saves is detected.

    Args:
        file: name of the weights file.
        state: {key: tensor} to write to it.
        manifest: arguments of `manifest.make_manifest`, except the checksum.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    checksum = write_tensors(directory / file, state)
    tokenizer.save_pretrained(directory)
    manifests.write_manifest(directory, manifests.make_manifest(checksum=checksum, **manifest))


def save_whole(model, tokenizer, directory, state, config, manifest=None):
    """Write a model as an ordinary transformers directory.

    Args:
        state: {name: tensor}, each tensor once.
        config: its config.
        manifest: for a fully fine-tuned model, arguments of `manifest.make_manifest`; the manifest becomes part of
            config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    checksum = write_tensors(directory / MODEL_WEIGHTS, state)
    if manifest:
        config.versatile = manifests.make_manifest(checksum=checksum, **backbone_name(model), **manifest)
    config.architectures = [type(model).__name__]
    for name, part in (("generation_config.json", model.generation_config), ("config.json", config)):
        with atomic_write(directory / name) as file:
            file.write(part.to_json_string())
    tokenizer.save_pretrained(directory)


def full_state(model):
    """{file key: tensor} of a fully fine-tuned model; additions have the keys defined by their methods."""
    added = {key: p.detach() for key, p in keyed_added_parameters(model).items()}
    return without_tied(model, backbone_state(model)) | added


def backbone_name(model):
    """Manifest entries for a backbone that is found by name or rebuilt from its seed."""
    name = model.config._name_or_path or None
    return dict(base_model_name_or_path=name, **bundled.hub_entry(name),
                base_model_fingerprint=getattr(model, "backbone_fingerprint", None),
                random_init_seed=getattr(model, "random_init_seed", None),
                quantization=getattr(model, "quantization", None))  # fmt: skip


def _save_backbone(model, directory):
    """Write an adapter model's backbone into its directory; returns its manifest entries."""
    state = backbone_state(model)
    if halved := [name for name, p in state.items() if p.dtype in (torch.float16, torch.bfloat16)]:
        raise ValueError(f"the backbone was put in half precision ({halved[0]}): it can no longer be saved unchanged")
    model.backbone_fingerprint = backbones.fingerprint(state)
    config = copy.deepcopy(model.config)
    config.vocab_size = len(model.get_input_embeddings().weight)
    save_whole(model, model.bare_tokenizer, directory / BACKBONE, without_tied(model, state), config)
    return dict(base_model_name_or_path=BACKBONE, base_model_fingerprint=model.backbone_fingerprint)


def backbone_state(model):
    """{name: tensor} of an adapter model's backbone, under its names before anything was attached; of a quantised
    backbone, only the tensors that are not quantised."""
    state = plain_state(model)
    names = _backbone_names(model, state)
    return {names[name]: tensor.detach() for name, tensor in state.items() if name in names}


def _backbone_names(model, names):
    """{name in an attached model: name in its backbone} of the backbone's tensors."""
    wrapped = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, ExtendedTable)]
    names_in_backbone = {}
    for name in names:
        owner = next((w for w in wrapped if name.startswith(f"{w}.")), None)
        if owner and name.startswith(f"{owner}.base."):
            names_in_backbone[name] = name.replace(f"{owner}.base.", f"{owner}.")
        elif not owner and not is_added(name):
            names_in_backbone[name] = name
    return names_in_backbone


def _tied(model):
    """Duplicate names of shared parameters: a tied head, or the table in an encoder and its decoder."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def without_tied(model, state):
    """A backbone's state without duplicate names, as files hold each tensor once."""
    tied = set(_backbone_names(model, _tied(model)).values())
    return {name: tensor for name, tensor in state.items() if name not in tied}


def _embeddings(model, tokenizer):
    """Manifest entries for task embeddings that do not simply follow the order of task ids, as in a released
    checkpoint: `task_embeddings`, the tasks in the order of their tokens, and whether <pad> has a row."""
    table = model.get_input_embeddings().rows
    spare = dict(spare_scores=True) if table.spare_scores else {}
    if list(table.tasks) == model.info.tasks:
        return spare
    order, at = [], model.info.first + len(table.spare)
    for name, rows in table.tasks.items():
        order.append(dict(name=name, markers=tokenizer.convert_ids_to_tokens(range(at, at + len(rows)))))
        at += len(rows)
    return dict(task_embeddings=order, **spare)


def adapter_state(model):
    """{file key: tensor} of everything an adapter model adds to its backbone."""
    return {key: p.detach().cpu().contiguous() for key, p in adapter_parameters(model).items()}


def owners_of_keys(model):
    """{key of `adapter_state`: the task it belongs to, or None if it belongs to all}."""
    owners = {method.key(name): method.owner(name) for method, name, _ in added_parameters(model)}
    return {key: owners.get(key) for key in adapter_parameters(model)}


def load_weights(model, directory):
    """Load weights that `save_checkpoint` wrote for the same model into an attached model."""
    directory = Path(directory)
    if model.info.mode == "full":
        state = read_safetensors(directory / MODEL_WEIGHTS)
        added = keyed_added_parameters(model)
        missing, unexpected = model.load_state_dict({k: t for k, t in state.items() if k not in added}, strict=False)
        missing = {name for name in missing if not is_added(name)} | (set(added) - set(state))
        require_same_keys(missing - _tied(model), set(unexpected), directory)
        copy_tensors({key: state[key] for key in added}, added, directory)
        return
    adapters = read_safetensors(directory / ADAPTER_WEIGHTS)
    if model.info.save_backbone:
        path = directory / BACKBONE / MODEL_WEIGHTS
        copy_tensors(read_safetensors(path), without_tied(model, backbone_state(model)), path)
        model.backbone_fingerprint = backbones.fingerprint(backbone_state(model))
        check_fingerprint(model.backbone_fingerprint, peek(directory).config, BACKBONE, directory / CONFIG)
    set_adapter_state(model, adapters, directory / ADAPTER_WEIGHTS)


def set_adapter_state(model, state, location):
    """Copy {file key: tensor} into an attached model; keys and shapes must be exactly the model's."""
    copy_tensors(state, adapter_parameters(model), location)


def load_checkpoint(directory, task=None, pointer=False, flag=None, allow_idle=False):
    """A trained model and its tokenizer, ready to evaluate.

    Args:
        directory: an adapter directory, a fully fine-tuned one, or a released checkpoint of the original code.
        task: the requested task. A released single-task checkpoint does not record its task.
        pointer: the model has self-copy. Needed only for a released checkpoint; others record it.
        flag: the flag that named the checkpoint, if not --model_checkpoint together with --task.
        allow_idle: accept tasks that were never trained, whose adapters change nothing, without a warning.

    Returns:
        (model in eval mode, tokenizer)

    Raises:
        UserError: no usable model, a damaged file, a different backbone from the one trained on, a task the checkpoint
            does not hold, an adapter of `task` that changes nothing, or of all tasks, or self-copy requested but
            absent.
    """
    manifest = manifests.need_language_model(directory, flag)
    if manifest is None:
        # Report more specific errors first: a run that has not saved yet, a damaged config.
        location = f"--model_checkpoint {directory}"
        if str(directory) not in bundled.NAMES:
            backbones.read_config(directory, location)
        raise UserError(
            "this is a bare backbone: it was not trained for any task", location=location,
            expected="a run directory of train.py, or a released VLM checkpoint",
        )  # fmt: skip
    if manifest.format == "peft":
        raise UserError("these are adapters of peft", location=manifest.path, expected="a checkpoint of the toolkit",
                        remedy="convert them: python -m versatile.peft import DIR OUTPUT --task NAME=DATA")
    if manifest.released:
        from versatile.adapters.imports import vlm

        model, tokenizer = vlm.load_released(directory, task, pointer)
    elif manifest.mode == "full":
        model, tokenizer = _load_full(manifest, directory)
    else:
        model, tokenizer = _load_adapter(manifest, directory, task, allow_idle)
    if task is not None:
        manifests.check_holds(model.info.markers, task, directory, flag)
    if pointer and not model.info.self_copy:
        raise UserError(f"{directory} was trained without it", location="--self_copy", remedy="leave the flag out")
    return model.eval(), tokenizer


def load_onto(model, tokenizer, directory):
    """Add an adapter directory's tasks to an attached model that is already in memory.

    The backbone's files are not read. The model's outputs for its other tasks are unchanged, bit for bit. A model
    prepared for inference stays frozen; in other models the new tasks are trainable like the old ones.

    Args:
        model: an adapter model on the backbone that the directory was trained on.
        tokenizer: its tokenizer; the new tasks' markers are added to it.
        directory: an adapter directory; its tasks are appended to the model's, in their order.

    Returns:
        the names of the tasks added.

    Raises:
        UserError: as in `load_checkpoint`, or a task the model already holds, a marker that is already a token, or a
            directory or model of another kind (fully fine-tuned, with self-copy, loaded from a released checkpoint).
            The model is then unchanged.
    """
    path = Path(directory)
    config = read_adapter_config(path)
    _check_joins(model, tokenizer, config, path / CONFIG)
    state = read_safetensors(path / ADAPTER_WEIGHTS)
    counts = {task["name"]: len(task["markers"]) for task in config["tasks"]}
    methods = complete_methods(config, path / CONFIG)
    _refuse_shared(methods, path / CONFIG)
    check_methods(model, methods)
    # Shapes only: the file's tensors become the parameters.
    with torch.device("meta"):
        holders = {task: get_method(m["method"]).load_class()(model, m["method"]) for task, m in methods.items()}
        modules = {task: holders[task].create(model, m) for task, m in methods.items() if m["method"] != BARE}
    tables = {"rows": model.get_input_embeddings().rows, "output_rows": model.get_output_embeddings().rows}
    if tables["rows"] is tables["output_rows"]:
        del tables["output_rows"]
    wanted = {f"{kind}.{task}": torch.empty(count, model.config.hidden_size, device="meta")
              for kind in tables for task, count in counts.items()}  # fmt: skip
    for task, blocks in modules.items():
        for i, module in enumerate(blocks):
            wanted |= {f"blocks.{i}.{task}.{name}": p for name, p in module.named_parameters()}
    check_fit(state, wanted, path / ADAPTER_WEIGHTS)
    trained = bool(trainable(model))
    for task, blocks in modules.items():
        for i, module in enumerate(blocks):
            own = {name: state[f"blocks.{i}.{task}.{name}"] for name in module.state_dict()}
            module.load_state_dict(own, assign=True)
            module.requires_grad_(trained).train(model.training)
            holders[task].blocks[i][task] = module
    check_idle(holders, path / ADAPTER_WEIGHTS)
    for kind, rows in tables.items():
        for task in counts:
            rows.tasks[task] = torch.nn.Parameter(state[f"{kind}.{task}"].to(rows.spare.device), trained)
    join(model, tokenizer, _markers(config["tasks"]), methods, modules)
    for values, key in ((model.info.histories, "max_history"), (model.info.definitions, "definition")):
        values |= {task["name"]: task[key] for task in config["tasks"] if task.get(key) is not None}
    return list(counts)


def _refuse_shared(methods, location):
    """Raise a `UserError` if a task's method shares parameters with other tasks."""
    for task, method in methods.items():
        if reason := get_method(method["method"]).load_class().shared:
            raise UserError(f"the task {task!r} was trained with {method['method']}: {reason}", location=location,
                            expected="a method whose parameters belong to one task each",
                            remedy="load the checkpoint by itself")  # fmt: skip


def _check_joins(model, tokenizer, config, location):
    """Check from a directory's config alone that its tasks can join a model."""
    info, vocabulary = model.info, tokenizer.get_vocab()
    if info.mode == "full":
        raise UserError("the model is fully fine-tuned: it takes no adapters", location="load_onto")
    masked = info.mask_other_tasks and config.get("mask_other_tasks", True)
    if info.self_copy or config.get("self_copy") or not masked:
        raise UserError("the model or the adapter has self-copy, or scores all tasks' columns as released checkpoints "
                        "do: its tasks cannot join others", location=location, remedy="load it by itself")  # fmt: skip
    expected = config.get("base_model_fingerprint")
    if expected and model.backbone_fingerprint != expected:
        raise UserError(f"the model in memory has the fingerprint {model.backbone_fingerprint}", location=location,
                        expected=f"{expected}, the weights the adapter was trained on",
                        remedy=f"load the backbone {config['base_model_name_or_path']}")  # fmt: skip
    if info.first != config["first"]:
        raise UserError(f"the model's tokenizer has {info.first} tokens", location=location,
                        expected=f"{config['first']}, as when the adapter was trained")  # fmt: skip
    for task in config["tasks"]:
        if task["name"] in info.markers:
            raise UserError(f"the model already holds a task {task['name']!r}", location=location,
                            expected="tasks new to the model, which has " + ", ".join(info.tasks))  # fmt: skip
        if clashing := [m for m in task["markers"] if m in vocabulary]:
            raise UserError(f"the marker {clashing[0]!r} of {task['name']!r} is already a token", location=location,
                            expected="markers of the task's own")  # fmt: skip


def read_adapter_config(path):
    """The checked manifest of an adapter directory."""
    manifest = peek(path)
    if manifest is None or manifest.mode != "adapter" or manifest.encoder not in ("markers", "question_answer"):
        raise UserError("not adapters of a language model", location=path, expected=f"a directory with {CONFIG}")
    schemas.check_tasks(manifest.config, manifest.path)
    return manifest.config


def complete_methods(config, location):
    """{task: method} of a manifest, with all settings filled in."""
    return {task["name"]: method_of(config["methods"][task["name"]], location) for task in config["tasks"]}


def _load_adapter(manifest, directory, task, allow_idle):
    path, config = Path(directory), manifest.config
    schemas.check_tasks(config, path / CONFIG)
    state = read_safetensors(path / ADAPTER_WEIGHTS)
    order = config.get("task_embeddings", config["tasks"])
    methods = complete_methods(config, path / CONFIG)
    methods = {task["name"]: methods.get(task["name"], dict(method=BARE)) for task in order}
    schemas.check_sizes({task: methods[task] for task in manifest.tasks}, state, path / CONFIG)
    model, tokenizer = _backbone_of(path, config)
    vocabulary = tokenizer.get_vocab()
    if clashing := [m for task in order for m in task["markers"] if m in vocabulary]:
        raise UserError(f"the marker {clashing[0]!r} is already a token of the backbone", location=path / CONFIG,
                        expected="markers of the tasks' own")  # fmt: skip
    attach(model, tokenizer, _markers(order), methods, config.get("mask_other_tasks", True),
           freeze=config.get("freeze", True), save_backbone=manifest.backbone == BACKBONE)  # fmt: skip
    keep_tasks(model, list(manifest.tasks))
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.rows.spare_scores = config.get("spare_scores", False)
    if config.get("self_copy"):
        self_copy.add(model)
    if config.get("chained"):
        chain_tasks(model)
    if model.info.first != config["first"]:
        raise UserError(
            f"the backbone's tokenizer has {model.info.first} tokens", location=path / CONFIG,
            expected=f"{config['first']}, as when the adapter was trained",
        )  # fmt: skip
    _copy_task_info(model, manifest)
    set_adapter_state(model, state, path / ADAPTER_WEIGHTS)
    if not allow_idle:
        held = {name: model.added[methods[name]["method"]] for name in manifest.tasks}
        check_idle(held, path / ADAPTER_WEIGHTS, (task,))
    check_checksum(path / ADAPTER_WEIGHTS, config.get("checksum"))
    return model, tokenizer


def _copy_task_info(model, manifest):
    """Copy a manifest's information about the tasks, other than weights, to a model."""
    model.info.encoder = manifest.encoder
    model.info.histories, model.info.definitions = dict(manifest.histories), dict(manifest.definitions)


def _backbone_of(path, config):
    """The backbone named in adapter_config.json, verified by its fingerprint."""
    seed = config.get("random_init_seed")
    name, location = backbones.locate(config["base_model_name_or_path"], path / CONFIG)
    model, tokenizer = backbones.load_backbone(str(path / BACKBONE) if name == BACKBONE else name, seed, location,
                                               config.get("quantization"))  # fmt: skip
    check_fingerprint(model.backbone_fingerprint, config, name, path / CONFIG)
    return model, tokenizer


def check_fingerprint(fingerprint, config, name, location):
    """Raise a `UserError` if a backbone is not the one that adapters were trained on.

    Args:
        fingerprint: that of the loaded backbone.
        config: the adapters' manifest.
        name: the name the backbone was loaded by.
        location: the manifest's location, for the error.
    """
    expected, seed = config.get("base_model_fingerprint"), config.get("random_init_seed")
    if not expected or fingerprint == expected:
        return
    what, remedy = f"the backbone {name}", "restore the original backbone, or train the adapter again"
    if name == BACKBONE:
        what = f"the backbone in {BACKBONE}/"
        remedy = "its files were saved at different times: use the run's last checkpoint, or copy the directory again"
    elif seed is not None:
        what = f"the backbone {name} with the random weights of seed {seed} in torch {torch.__version__}"
        remedy = "random numbers may depend on the torch version and the processor: use those of run.json"
    raise UserError(f"{what} has the fingerprint {fingerprint}", location=location,
                    expected=f"{expected}, the weights the adapter was trained on", remedy=remedy)  # fmt: skip


def _load_full(manifest, directory):
    config, location = manifest.config, f"--model_checkpoint {directory}"
    schemas.check_tasks(config, location)
    model, tokenizer = backbones.load_backbone(directory)
    vocabulary = tokenizer.get_vocab()
    markers = [m for task in config["tasks"] for m in task["markers"]]
    if unknown := next((m for m in markers if not vocabulary.get(m, -1) >= config["first"]), None):
        raise UserError(f"the marker {unknown!r} of config.json is not among the tokens added to the tokenizer",
                        location=location, expected="the tokenizer that was saved with the model",
                        remedy="copy the whole directory again")  # fmt: skip
    path = Path(directory) / MODEL_WEIGHTS
    make_task_conditioned(model, TaskModelInfo("full", _markers(config["tasks"]), {}, config["first"],
                                    config.get("mask_other_tasks", True)))  # fmt: skip
    if config.get("self_copy"):
        # transformers loads only parameters that it knows.
        gate = {key: tensor for key, tensor in read_safetensors(path).items() if key.startswith("p_gen_linear.")}
        self_copy.add(model)
        copy_tensors(gate, keyed_added_parameters(model), path)
    _copy_task_info(model, manifest)
    check_checksum(path, config.get("checksum"))
    return model, tokenizer


def _markers(tasks):
    return {task["name"]: task["markers"] for task in tasks}


def adapter_parameters(model):
    """{file key: parameter} of everything an adapter model adds to its backbone."""
    rows = model.get_input_embeddings().rows
    return keyed_added_parameters(model) | ({"spare_rows": rows.spare} if rows.spare_scores else {})


# The name in README.md files that older versions wrote into run directories.
load = load_checkpoint
