"""Checkpoints of attached models.

An adapter checkpoint is a directory with

    adapter_config.json         backbone, tasks, markers, and each task's method: its width in `bottlenecks` where
                                it has a bottleneck adapter or none, else name and settings in `methods`
    adapter_model.safetensors   what was trained and nothing else, under the methods' own keys:
                                blocks.<layer>.<task>.<...> of what belongs to a task (an encoder's blocks before its
                                decoder's), rows.<task>,
                                and output_rows.<task> where the backbone's head is untied; spare_rows where <pad>
                                has a row of its own; p_gen_linear.{weight,bias} of a model with self-copy
    tokenizer files
    backbone/                   the backbone itself, an ordinary transformers directory, where no name leads to it:
                                it was trained too, or it came with a released checkpoint. base_model_name_or_path
                                is then "backbone"

A fully fine-tuned model is an ordinary transformers directory whose config.json also names the tasks.
Released checkpoints of the original code load too (adapters/imports/vlm.py). Nothing is ever unpickled.
"""

import copy
from pathlib import Path

import torch
from versatile.adapters import schemas, t5_directory
from versatile.adapters.attach import (
    TaskModelInfo,
    _condition,
    attach,
    chain_tasks,
    check_methods,
    join,
    keep_tasks,
    trainable,
)
from versatile.adapters.backbones import bundled as embedded
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.methods import pointer as self_copy
from versatile.adapters.methods.base import added_parameters
from versatile.adapters.methods.registry import BARE, get_method, method_of
from versatile.adapters.methods.task_embeddings import TaskEmbedding, TaskHead
from versatile.utils.errors import UserError, brief
from versatile.utils.files import atomic_write, write_json
from versatile.utils.schema import read_json_object, validate

CONFIG, WEIGHTS, BACKBONE = "adapter_config.json", "adapter_model.safetensors", "backbone"
FORMAT = 1
# Where what stands beside the backbone lies in a model.
_ADDED = "added."


def save(model, tokenizer, directory, state=None):
    """Write an attached model to a directory; each file is whole or absent.

    Args:
        state: of an adapter model, what to write in place of its `adapter_state`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    info = model.info
    # A list, not an object: transformers sorts an object's keys, and the order gives the tasks their ids.
    tasks = [dict(name=name, markers=markers) for name, markers in info.markers.items()]
    for task in tasks:
        if task["name"] in info.histories:
            task["max_history"] = info.histories[task["name"]]
        if task["name"] in info.definitions:
            task["definition"] = info.definitions[task["name"]]
    tasks = dict(tasks=tasks, first=info.first, own_columns=info.mask_other_tasks, self_copy=info.self_copy)
    tasks |= dict(chained=True) if info.chained else {}
    if info.mode == "full":
        model.config.versatile = tasks
        # One file whatever its size: a resumed run reads it back by name.
        model.save_pretrained(directory, state_dict=_full_state(model), max_shard_size="10TB")
    else:
        # The config goes last: its fingerprint names one backbone, so that a mixture of two savings is noticed.
        backbone = _save_backbone(model, directory / BACKBONE) if info.save_backbone else _backbone_name(model)
        _write_tensors(directory / WEIGHTS, state or adapter_state(model))
        config = dict(
            peft_type="VERSATILE_BOTTLENECK",
            task_type="SEQ_2_SEQ_LM" if backbone_of(model.config).encoder_decoder else "CAUSAL_LM",
            **backbone,
            model_type=model.config.model_type,
            **_methods(info),
            freeze=info.freeze,
            **_rows(model, tokenizer),
            format=FORMAT,
            **tasks,
            encoder=info.encoder,
        )
        write_json(directory / CONFIG, config)
    tokenizer.save_pretrained(directory)


def _methods(info):
    """What adapter_config.json says of the tasks' methods."""
    plain = {"bottleneck", BARE}
    bottlenecks = {task: info.bottlenecks[task] for task, m in info.methods.items() if m["method"] in plain}
    others = {task: method for task, method in info.methods.items() if method["method"] not in plain}
    return dict(bottlenecks=bottlenecks, **(dict(methods=others) if others else {}))


def _methods_of(config, names, location):
    """{task: method, complete} of the tasks in an adapter_config.json."""
    others = config.get("methods", {})
    return {name: method_of(others.get(name) or config["bottlenecks"].get(name, 0), location) for name in names}


def _full_state(model):
    """{file key: tensor} of a fully fine-tuned model; what stands beside it has the keys of its methods."""
    state = {name: p for name, p in model.state_dict().items() if not name.startswith(_ADDED)}
    return state | {key: p.detach() for key, p in _added(model).items()}


def _backbone_name(model):
    """What adapter_config.json says of a backbone that is found by its name, or built from its seed."""
    seed = {} if model.random_init_seed is None else dict(random_init_seed=model.random_init_seed)
    fingerprint = model.backbone_fingerprint
    name = model.config._name_or_path
    return dict(base_model_name_or_path=name, **embedded.hub_entry(name), base_model_fingerprint=fingerprint, **seed)


def _save_backbone(model, directory):
    """Write an adapter model's backbone as an ordinary transformers directory; returns what the config says of it."""
    state = backbone_state(model)
    if halved := [name for name, p in state.items() if p.dtype in (torch.float16, torch.bfloat16)]:
        raise ValueError(f"the backbone was put in half precision ({halved[0]}): it can no longer be saved as it was")
    model.backbone_fingerprint = backbones.fingerprint(state)
    _write_tensors(directory / "model.safetensors", _without_tied(model, state))
    config = copy.deepcopy(model.config)
    config.vocab_size = len(model.get_input_embeddings().weight)
    config.architectures = [type(model).__name__]
    with atomic_write(directory / "config.json") as file:
        file.write(config.to_json_string())
    model.bare_tokenizer.save_pretrained(directory)
    return dict(base_model_name_or_path=BACKBONE, base_model_fingerprint=model.backbone_fingerprint)


def backbone_state(model):
    """{name: tensor} of an adapter model's backbone, named as it was before anything was attached."""
    names = _backbone_names(model, model.state_dict())
    return {names[name]: tensor.detach() for name, tensor in model.state_dict().items() if name in names}


def _backbone_names(model, names):
    """{name in an attached model: name in its backbone} of those that are the backbone's."""
    wrapped = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, (TaskEmbedding, TaskHead))]
    found = {}
    for name in names:
        owner = next((w for w in wrapped if name.startswith(f"{w}.")), None)
        if owner and name.startswith(f"{owner}.base."):
            found[name] = name.replace(f"{owner}.base.", f"{owner}.")
        elif not owner and not name.startswith(_ADDED):
            found[name] = name
    return found


def _tied(model):
    """Other names of parameters that have one already: a tied head's, the table's in an encoder and its decoder."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def _without_tied(model, state):
    """A backbone's state without a tensor's other names: files hold it once."""
    tied = set(_backbone_names(model, _tied(model)).values())
    return {name: tensor for name, tensor in state.items() if name not in tied}


def _rows(model, tokenizer):
    """What adapter_config.json says of rows that are not simply the tasks' in the order of their ids, as those of a
    released checkpoint: `rows`, the tasks in the order of their tokens, and whether <pad> has a row."""
    held = model.get_input_embeddings().rows
    said = dict(spare_scores=True) if held.spare_scores else {}
    if list(held.tasks) == model.info.tasks:
        return said
    order, at = [], model.info.first + len(held.spare)
    for name, rows in held.tasks.items():
        order.append(dict(name=name, markers=tokenizer.convert_ids_to_tokens(range(at, at + len(rows)))))
        at += len(rows)
    return dict(rows=order, **said)


def _write_tensors(path, state):
    from safetensors.torch import save as to_bytes

    state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    with atomic_write(path, "wb") as file:
        file.write(to_bytes(state, {"format": "pt"}))


def adapter_state(model):
    """{file key: tensor} of what an adapter model holds beside its backbone."""
    return {key: p.detach().cpu().contiguous() for key, p in _adapter_parameters(model).items()}


def owners_of_keys(model):
    """{key of `adapter_state`: the task it belongs to, or None: to all of them}."""
    owners = {method.key(name): method.owner(name) for method, name, _ in added_parameters(model)}
    return {key: owners.get(key) for key in _adapter_parameters(model)}


def load_weights(model, directory):
    """Load into an attached model what `save` wrote for the same model."""
    directory = Path(directory)
    if model.info.mode == "full":
        state = read_safetensors(directory / "model.safetensors")
        added = _added(model)
        missing, unexpected = model.load_state_dict({k: t for k, t in state.items() if k not in added}, strict=False)
        missing = {name for name in missing if not name.startswith(_ADDED)} | (set(added) - set(state))
        _same_keys(missing - _tied(model), set(unexpected), directory)
        _copy({key: state[key] for key in added}, added, directory)
        return
    adapters = read_safetensors(directory / WEIGHTS)
    if model.info.save_backbone:
        path = directory / BACKBONE / "model.safetensors"
        _copy(read_safetensors(path), _without_tied(model, backbone_state(model)), path)
        model.backbone_fingerprint = backbones.fingerprint(backbone_state(model))
    set_adapter_state(model, adapters, directory / WEIGHTS)


def set_adapter_state(model, state, location):
    """Copy {file key: tensor} into an attached model; keys and shapes must be exactly the model's."""
    _copy(state, _adapter_parameters(model), location)


def _copy(state, wanted, location):
    """Copy a file's tensors into those wanted; names and shapes must be the same."""
    _check_fit(state, wanted, location)
    with torch.no_grad():
        for key, tensor in state.items():
            wanted[key].copy_(tensor)


def _check_fit(state, wanted, location):
    """Whether a file's tensors have the names and shapes of those wanted."""
    _same_keys(set(wanted) - set(state), set(state) - set(wanted), location)
    for key, tensor in state.items():
        if tensor.shape != wanted[key].shape:
            raise UserError(
                f"{key} has shape {list(tensor.shape)}", location=location, expected=str(list(wanted[key].shape)),
                remedy="load it onto the backbone it was trained on",
            )  # fmt: skip


def load(directory, task=None, pointer=False, flag=None, allow_idle=False):
    """A trained model and its tokenizer, ready to evaluate.

    Args:
        directory: an adapter directory, a fully fine-tuned one, or a released checkpoint of the original code.
        task: the task asked for. A released single-task checkpoint does not say which task it is for.
        pointer: the model is one with self-copy. Only a released checkpoint has to be told, others know it.
        flag: what was typed to name the checkpoint, where that was not --model_checkpoint with a --task beside it.
        allow_idle: tasks may not have been trained yet: their adapters change nothing.

    Returns:
        (model in eval mode, tokenizer)

    Raises:
        UserError: nothing usable there, a file that is damaged, another backbone than the one trained on, a
            task the checkpoint does not hold, an adapter that changes nothing, no self-copy though asked for.
    """
    from versatile.adapters.imports import vlm as released

    path = Path(directory)
    t5_directory.refuse(directory, flag)
    if (path / CONFIG).is_file():
        model, tokenizer = _load_adapter(path, allow_idle)
    elif path.is_dir() and released.is_released(path):
        model, tokenizer = released.load(path, task, pointer)
    else:
        model, tokenizer = _load_full(directory)
    if task is not None and task not in model.info.markers:
        held = list(model.info.markers)
        known = f"--task {held[0]}" if len(held) == 1 else f"--task with one of {', '.join(held)}"
        raise UserError(
            f"the checkpoint holds the task(s) {', '.join(held)}, not {task!r}",
            location=flag or f"--model_checkpoint {directory}",
            expected=f"a checkpoint that was trained for {task!r}" if flag else known,
            remedy="name another" if flag else "name a task the checkpoint was trained for, or another checkpoint",
        )
    if pointer and not model.info.self_copy:
        raise UserError(f"{directory} was trained without it", location="--self_copy", remedy="leave the flag out")
    return model.eval(), tokenizer


def is_checkpoint(directory):
    """Whether a directory holds a trained model of ours or a released one, rather than a bare backbone."""
    from versatile.adapters.imports import vlm as released

    path = Path(directory)
    if (path / CONFIG).is_file():
        return True
    config = path / "config.json"
    return config.is_file() and (released.is_released(path) or "versatile" in read_json_object(config))


def load_onto(model, tokenizer, directory):
    """Add an adapter directory's tasks to an attached model that is already in memory.

    The backbone's files are not read. What the model answers for its other tasks stays as it was, bit for bit. A
    model made ready for inference stays frozen; in another the new tasks are trained like the old ones.

    Args:
        model: an adapter model on the backbone that the directory was trained on.
        tokenizer: its tokenizer; gets the new tasks' markers.
        directory: an adapter directory; its tasks come behind those the model holds, in their order.

    Returns:
        the names of the tasks added.

    Raises:
        UserError: as `load`, and: a task the model holds already, a marker that is a token already, a directory or a
            model of another kind (fully fine-tuned, with self-copy, straight from a released checkpoint). Nothing has
            been changed then.
    """
    path = Path(directory)
    config = _read_config(path)
    _check_joins(model, tokenizer, config, path / CONFIG)
    state = read_safetensors(path / WEIGHTS)
    counts = {task["name"]: len(task["markers"]) for task in config["tasks"]}
    methods = _methods_of(config, counts, path / CONFIG)
    _refuse_shared(methods, path / CONFIG)
    check_methods(backbone_of(model.config), methods)
    # Shapes alone: the file's tensors become the parameters.
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
    _check_fit(state, wanted, path / WEIGHTS)
    trained = bool(trainable(model))
    for task, blocks in modules.items():
        for i, module in enumerate(blocks):
            own = {name: state[f"blocks.{i}.{task}.{name}"] for name in module.state_dict()}
            module.load_state_dict(own, assign=True)
            module.requires_grad_(trained).train(model.training)
            holders[task].blocks[i][task] = module
        _refuse_idle(holders[task], task, path / WEIGHTS)
    for kind, rows in tables.items():
        for task in counts:
            rows.tasks[task] = torch.nn.Parameter(state[f"{kind}.{task}"].to(rows.spare.device), trained)
    join(model, tokenizer, _markers(config["tasks"]), methods, modules)
    model.info.histories |= _histories(config)
    model.info.definitions |= _definitions(config)
    return list(counts)


def _refuse_shared(methods, location):
    """A `UserError` where what a task was trained with is shared with other tasks."""
    for task, method in methods.items():
        if reason := get_method(method["method"]).load_class().shared:
            raise UserError(f"the task {task!r} was trained with {method['method']}: {reason}", location=location,
                            expected="a method whose parameters belong to one task each",
                            remedy="load the checkpoint by itself")  # fmt: skip


def _check_joins(model, tokenizer, config, location):
    """Whether a directory's tasks can join a model, from its config alone."""
    info, vocabulary = model.info, tokenizer.get_vocab()
    if info.mode == "full":
        raise UserError("the model is fully fine-tuned: it takes no adapters", location="load_onto")
    if info.self_copy or config.get("self_copy") or not (info.mask_other_tasks and config.get("own_columns", True)):
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
            raise UserError(f"the model holds a task {task['name']!r} already", location=location,
                            expected="tasks that are new to it: it has " + ", ".join(info.tasks))  # fmt: skip
        if taken := [m for m in task["markers"] if m in vocabulary]:
            raise UserError(f"the marker {taken[0]!r} of {task['name']!r} is a token already", location=location,
                            expected="markers of the task's own")  # fmt: skip


def _read_config(path):
    """What an adapter directory's config says, with the keys that all have."""
    config = validate(read_json_object(path / CONFIG), schemas.BOTTLENECK, path / CONFIG)
    schemas.check_tasks(config, path / CONFIG)
    return config


def _load_adapter(path, allow_idle=False):
    config = _read_config(path)
    state = read_safetensors(path / WEIGHTS)
    order = config.get("rows", config["tasks"])
    methods = _methods_of(config, [task["name"] for task in order], path / CONFIG)
    schemas.check_sizes({t["name"]: methods[t["name"]] for t in config["tasks"]}, state, path / CONFIG)
    model, tokenizer = _backbone_of(path, config)
    vocabulary = tokenizer.get_vocab()
    if taken := [m for task in order for m in task["markers"] if m in vocabulary]:
        raise UserError(f"the marker {taken[0]!r} is a token of the backbone already", location=path / CONFIG,
                        expected="markers of the tasks' own")  # fmt: skip
    save_backbone, freeze = config["base_model_name_or_path"] == BACKBONE, config.get("freeze", True)
    attach(model, tokenizer, _markers(order), methods, config.get("own_columns", True), freeze=freeze,
           save_backbone=save_backbone)  # fmt: skip
    keep_tasks(model, [task["name"] for task in config["tasks"]])
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
    model.info.histories, model.info.definitions = _histories(config), _definitions(config)
    model.info.encoder = config.get("encoder", "markers")
    set_adapter_state(model, state, path / WEIGHTS)
    for task, method in {} if allow_idle else methods.items():
        _refuse_idle(model.added[method["method"]], task, path / WEIGHTS)
    return model, tokenizer


def _backbone_of(path, config):
    """The backbone that adapter_config.json names, proved by its fingerprint to be the one the adapter knows."""
    seed = config.get("random_init_seed")
    name, location = backbones.locate(config["base_model_name_or_path"], path / CONFIG)
    model, tokenizer = backbones.load(str(path / BACKBONE) if name == BACKBONE else name, seed, location)
    found, expected = model.backbone_fingerprint, config.get("base_model_fingerprint")
    if not expected or found == expected:
        return model, tokenizer
    what, remedy = f"the backbone {name}", "put the original backbone back, or train the adapter again"
    if name == BACKBONE:
        what = f"the backbone in {BACKBONE}/"
        remedy = "its files are of different savings: use the run's last checkpoint, or copy the directory again"
    elif seed is not None:
        what = f"the random backbone {name} built from seed {seed} with torch {torch.__version__}"
        remedy = "another torch version or kind of processor may draw other numbers: use those of run.json"
    raise UserError(f"{what} has the fingerprint {found}", location=path / CONFIG,
                    expected=f"{expected}, the weights the adapter was trained on", remedy=remedy)  # fmt: skip


def _load_full(directory):
    location = f"--model_checkpoint {directory}"
    # A backbone that comes with the toolkit lies in no directory of its name.
    known = str(directory) in embedded.NAMES
    tasks = None if known else getattr(backbones.read_config(directory, location), "versatile", None)
    if not tasks:
        raise UserError(
            "this is a bare backbone: it was not trained for any task", location=location,
            expected="a run directory of train.py, or a released VLM checkpoint",
        )  # fmt: skip
    model, tokenizer = backbones.load(directory)
    vocabulary = tokenizer.get_vocab()
    markers = [m for task in tasks["tasks"] for m in task["markers"]]
    if unknown := next((m for m in markers if not vocabulary.get(m, -1) >= tasks["first"]), None):
        raise UserError(f"the marker {unknown!r} of config.json is no token that was added to the tokenizer",
                        location=location, expected="the tokenizer that was saved with the model",
                        remedy="copy the whole directory again")  # fmt: skip
    _condition(model, TaskModelInfo("full", _markers(tasks["tasks"]), {}, tasks["first"], tasks["own_columns"]))
    if tasks.get("self_copy"):
        # transformers loads only what it knows of.
        path = Path(directory) / "model.safetensors"
        gate = {key: tensor for key, tensor in read_safetensors(path).items() if key.startswith("p_gen_linear.")}
        self_copy.add(model)
        _copy(gate, _added(model), path)
    model.info.histories, model.info.definitions = _histories(tasks), _definitions(tasks)
    return model, tokenizer


def _markers(tasks):
    return {task["name"]: task["markers"] for task in tasks}


def _histories(config):
    return {task["name"]: task["max_history"] for task in config["tasks"] if "max_history" in task}


def _definitions(config):
    return {task["name"]: task["definition"] for task in config["tasks"] if "definition" in task}


def history(directory, task):
    """How many exchanges of a conversation a checkpoint was trained with for `task`, or None; nothing is loaded."""
    return _histories(_read_tasks(directory)).get(task)


def definitions(directory):
    """{task: what defines it} of the user's own tasks that a checkpoint holds; nothing is loaded."""
    return _definitions(_read_tasks(directory))


def tasks_of(directory):
    """{task: what a checkpoint's json says of it: markers, max_history, definition}; nothing is loaded."""
    return {task["name"]: task for task in _read_tasks(directory)["tasks"]}


def _read_tasks(directory):
    """What a checkpoint's json says of its tasks, as {"tasks": [...]}; a directory that is none has no tasks."""
    for name in (CONFIG, "config.json"):
        path = Path(directory) / name
        if path.is_file():
            config = read_json_object(path)
            found = config if name == CONFIG else config.get("versatile")
            if isinstance(found, dict) and isinstance(found.get("tasks"), list):
                return dict(tasks=[task for task in found["tasks"] if isinstance(task, dict) and "name" in task])
            break
    return dict(tasks=[])


def _refuse_idle(method, task, location):
    """A `UserError` where what a method adds for a task would change no output."""
    if method.is_idle(task):
        raise UserError(f"the adapter for {task!r} changes nothing: its output layers are all zero",
                        location=location, remedy="train it, or load the right file")  # fmt: skip


def read_safetensors(path):
    """{key: tensor} of a safetensors file; anything wrong with it is a `UserError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", location=path, expected="the weights beside their config",
                        remedy="the run may not have saved a model yet: see its checkpoints/")  # fmt: skip
    try:
        state = load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(
            f"not a readable safetensors file: {brief(str(error), 120)}",
            location=path,
            expected="a whole file",
            remedy="copy it again, or use an older checkpoint of the run",
        ) from error
    if bad := backbones.not_finite(state):
        raise UserError(f"holds values that are not numbers (first in {bad})", location=path, expected="finite numbers",
                        remedy="copy it again, or use an older checkpoint of the run")  # fmt: skip
    return state


def _same_keys(missing, unexpected, location):
    if missing or unexpected:
        parts = [f"{len(missing)} missing (first {min(missing)})"] if missing else []
        parts += [f"{len(unexpected)} not expected (first {min(unexpected)})"] if unexpected else []
        raise UserError("its keys do not fit the model: " + ", ".join(parts), location=location,
                        expected="exactly the model's trained tensors")  # fmt: skip


def _adapter_parameters(model):
    """{file key: parameter} of what an adapter model holds beside its backbone."""
    rows = model.get_input_embeddings().rows
    return _added(model) | ({"spare_rows": rows.spare} if rows.spare_scores else {})


def _added(model):
    """{file key: parameter} of what a model's methods added."""
    return {method.key(name): p for method, name, p in added_parameters(model)}
