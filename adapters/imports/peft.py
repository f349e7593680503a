"""Import LoRA and (IA)3 adapters of the library peft as tasks; see versatile/peft.py for the command.

A task's special tokens are new tokens, exported as peft's trainable tokens; with (IA)3, for which peft has none, the
whole tables are saved. Their rows also serve as token types. GPT-2 adds these itself, for the same `token_type_ids`; on
other backbones a task with token types is not exported, as peft could not reproduce its logits.

An adapter made without such tokens gets randomly initialised ones for its task's markers: it is meant to be trained
further (--init_from), or combined with others and trained on mixed batches.
"""

import importlib.util
import json
import re
from pathlib import Path

import torch
from versatile.adapters import checkpoint
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.imports.peft_export import (
    KINDS,
    TaskAdapter,
    check_logits_match,
    is_tied,
    largest_difference,
    projection_names,
    table_names,
)
from versatile.adapters.manifest import ADAPTER_WEIGHTS, CONFIG
from versatile.adapters.methods.ia3 import INPUTS
from versatile.adapters.methods.lora import sizes
from versatile.adapters.schemas import MARKER, TASK_NAME
from versatile.adapters.tensors import read_safetensors
from versatile.utils import flags
from versatile.utils.errors import UserError, brief
from versatile.utils.files import atomic_directory, refuse_taken
from versatile.utils.schema import Choice, Flag, MapOf, Number, Record, Text, Whole, read_json_object, validate

PREFIX = "base_model.model."

PEFT_CONFIG = Record(
    dict(
        peft_type=Choice(tuple(KINDS.values()), required=True),
        base_model_name_or_path=Text(says="the name or directory of the backbone", null=True),
        r=Whole(1, 100_000),
        lora_alpha=Number(-1e6, 1e6),
        use_rslora=Flag(null=True),
        rank_pattern=MapOf(Whole(1, 100_000)),
        alpha_pattern=MapOf(Number(-1e6, 1e6)),
    )
)
# Options that change more than the product B A, or the backbone: {key: harmless value other than null and false}.
REFUSED = dict(use_dora=None, bias="none", lora_bias=None, layer_replication=None, target_parameters=None,
               alora_invocation_tokens=None, use_qalora=None, use_bdlora=None, velora_config=None, arrow_config=None,
               kasa_config=None, monteclora_config=None)  # fmt: skip
# {peft_type: the parts of an adapter in its file}.
PARTS = dict(LORA=("lora_A", "lora_B"), IA3=("ia3_l",))
# Initialisations that modify the backbone's own weights.
CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def import_adapter(directory, output, task, markers=None, backbone=None, definition=None, history=None):
    """Convert a peft LoRA or (IA)3 to a directory in our format with one task.

    Args:
        directory: the peft directory.
        output: the directory to create; it must not exist or be empty.
        task: the task's name.
        markers: its special tokens; None: those trained in the directory.
        backbone: the backbone's name or directory; None: the one named in the directory.
        definition, history: as `definitions` and `histories` of `TaskModelInfo`.

    Returns:
        the model.

    Raises:
        UserError: no peft adapter, one that cannot be expressed here, or another backbone.
    """
    path = Path(directory)
    refuse_taken(output)
    if not TASK_NAME.fits(task):
        raise UserError(f"{brief(task)} cannot be a task's name", location="--task", expected=TASK_NAME.expected())
    config = read_config(path)
    if (path / "adapter_model.bin").is_file() and not (path / ADAPTER_WEIGHTS).is_file():
        raise UserError("adapter_model.bin is peft's older format, which could run code when read", location=path,
                        expected=ADAPTER_WEIGHTS, remedy="load it with peft and save it again: "
                        "model.save_pretrained(DIR, safe_serialization=True)")  # fmt: skip
    state = read_safetensors(path / ADAPTER_WEIGHTS)
    model, tokenizer, flag = _load_base(path, config, backbone)
    parts, tables = _sort_keys(state, path, PARTS[config["peft_type"]])
    _refuse_incomplete(model, config, parts, path)
    rows = _trained_rows(path, config, model, tokenizer, tables)
    markers = _choose_markers(markers, rows, task, tokenizer, path)
    method = {kind: name for name, kind in KINDS.items()}[config["peft_type"]]
    read = _read_lora if method == "lora" else _read_ia3
    settings, blocks = read(model, parts, config, path / ADAPTER_WEIGHTS, flag)
    torch.manual_seed(0)
    attach(model, tokenizer, {task: markers}, {task: dict(method=method, **settings)})
    held = [block[task] for block in model.added[method].blocks]
    with torch.no_grad():
        for (number, role), tensors in blocks.items():
            for name, tensor in tensors.items():
                target = getattr(held[number][role], name) if name else held[number][role]
                target.copy_(tensor)
        for position, marker in enumerate(markers):
            for table, own in zip((model.get_input_embeddings(), model.get_output_embeddings()), rows.get(marker, ())):
                table.rows.tasks[task][position] = own
    if definition:
        model.info.definitions[task] = definition
    if history is not None:
        model.info.histories[task] = history
    with atomic_directory(output) as temporary:
        checkpoint.save_checkpoint(model, tokenizer, temporary)
        checkpoint.load_checkpoint(temporary)
        if importlib.util.find_spec("peft") and not (rows.keys() - set(markers)):
            _verify_import(model.eval(), tokenizer, task, path, [m for m in markers if m in rows])
    return model


def read_config(path):
    """peft's adapter_config.json, checked to contain only what can be expressed here."""
    backbones.need_directory(path, path, "a directory that peft saved")
    file = path / CONFIG
    if not file.is_file():
        raise UserError(f"no {CONFIG}", location=path, expected="a directory that peft saved")
    config = read_json_object(file)
    if config.get("peft_type") not in KINDS.values():
        raise UserError(f"peft_type is {config.get('peft_type')!r}", location=file,
                        expected=" or ".join(KINDS.values()))  # fmt: skip
    config = validate({k: v for k, v in config.items() if v is not None}, PEFT_CONFIG, file)
    for key, harmless in REFUSED.items():
        if config.get(key) and config[key] != harmless:
            raise UserError(f"{key} is {json.dumps(config[key])[:60]}", location=file,
                            expected="a plain low-rank update, or plain (IA)3")  # fmt: skip
    _refuse_patterns(config, file)
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(CHANGING_INITS):
        raise UserError(f"init_lora_weights is {init}: it changed the backbone's own weights", location=file,
                        expected="an adapter on the unchanged backbone",
                        remedy="convert it with peft: save_pretrained(…, path_initial_model_for_weight_conversion=…)"
                        )  # fmt: skip
    return config


def _refuse_patterns(config, file):
    """Raise a `UserError` if names of modules that are regular expressions cannot be read as such."""
    expressions = [config[key] for key in ("target_modules", "exclude_modules") if isinstance(config.get(key), str)]
    expressions += [name for key in ("rank_pattern", "alpha_pattern") for name in config.get(key, ())]
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise UserError(f"{brief(expression)} is no regular expression: {error}", location=file,
                            expected="names of modules as peft writes them") from None  # fmt: skip


def _load_base(path, config, backbone):
    """(backbone, tokenizer, where the backbone was named)."""
    name = backbone or config.get("base_model_name_or_path")
    if not name:
        raise UserError("it does not name its backbone", location=path / CONFIG,
                        remedy="name it: --model_checkpoint NAME")  # fmt: skip
    if backbone:
        flag = f"--model_checkpoint {backbone}"
    else:
        name, flag = backbones.locate(name, path / CONFIG)
    model, tokenizer = backbones.load_backbone(name, location=flag)
    return model, tokenizer, flag


def _sort_keys(state, path, expected):
    """({(module, part): tensor} of the adapters, {(module, kind): tensor} of the tables), from peft's file.

    Args:
        expected: the parts that adapters of its kind have.
    """
    pattern = re.compile(re.escape(PREFIX) + r"(.+?)\.(?:(lora_A|lora_B)\.weight|(ia3_l)|"
                         r"token_adapter\.(trainable_tokens_delta)|(?:modules_to_save\.)?(weight))")  # fmt: skip
    parts, tables = {}, {}
    for key, tensor in state.items():
        match = pattern.fullmatch(key)
        kind = match and next(part for part in match.groups()[1:] if part)
        is_part = kind in ("lora_A", "lora_B", "ia3_l")
        if kind is None or tensor.dim() != 2 or (is_part and kind not in expected):
            raise UserError(f"unknown key {key}, of shape {list(tensor.shape)}", location=path / ADAPTER_WEIGHTS,
                            expected=f"{' and '.join(expected)}, as {CONFIG} says, and trained tokens")  # fmt: skip
        (parts if is_part else tables)[match[1], kind] = tensor.float()
    if not parts:
        raise UserError("it holds no adapter", location=path / ADAPTER_WEIGHTS,
                        expected=f"{' and '.join(expected)}, as {CONFIG} says")  # fmt: skip
    return parts, tables


def _refuse_incomplete(model, config, parts, path):
    """Raise a `UserError` if a module that peft's config selects has no matrices in the file."""
    held = {module for module, _ in parts}
    for name in projection_names(model).values():
        if name not in held and _is_selected(name, config):
            raise UserError(f"it has no matrices for {name}", location=path / ADAPTER_WEIGHTS,
                            expected=f"those of every module that target_modules of {CONFIG} selects",
                            remedy="copy it again, or save it again with peft")  # fmt: skip


def _is_selected(name, config):
    """Whether a config of peft's selects the linear map of this name."""
    names = ("target_modules", "exclude_modules", "layers_to_transform")
    targets, excluded, layers = (config.get(name) for name in names)
    if not targets or (excluded and _is_named(name, excluded)):
        return False
    if layers is None or isinstance(targets, str):
        return targets == "all-linear" or _is_named(name, targets)
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    found = (re.match(rf".*\.{pattern}\.(\d+)\.", name) for pattern in _listed(patterns))
    number = next((int(match[1]) for match in found if match), None)
    return number in _listed(layers) and _is_named(name, targets)


def _is_named(name, names):
    """Whether peft takes a module for one of those named: by a regular expression, or by the ends of their names."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(f".{name}".endswith(f".{end}") for end in names)


def _listed(value):
    return value if isinstance(value, (list, tuple)) else [value]


def _trained_rows(path, config, model, tokenizer, tables):
    """{token: [its row, its output row]} of the tokens trained in a peft directory; the same row twice if tied."""
    if not tables:
        return {}
    names, first, rows = table_names(model), len(tokenizer), {}
    words = backbones.read_tokenizer(path) if (path / "tokenizer_config.json").is_file() else tokenizer
    for name in dict.fromkeys(names):
        table = model.get_submodule(name).weight
        matches = [(module, kind) for module, kind in tables if module == name or name.endswith(f".{module}")]
        for module, kind in matches:
            tensor, ids = tables.pop((module, kind)), None
            if kind == "weight":
                if not torch.equal(tensor[:first], table[:first]):
                    raise UserError(f"{module} was trained as a whole", location=path / ADAPTER_WEIGHTS,
                                    expected="trained rows of new tokens only")  # fmt: skip
                ids, tensor = range(first, min(len(words), len(tensor))), tensor[first:]
            else:
                ids = config.get("trainable_token_indices", {})
                ids = next((v for k, v in ids.items() if module.endswith(k)), None) if isinstance(ids, dict) else ids
            if not isinstance(ids, (list, range)) or {*map(type, ids)} - {int} or len(ids) != len(tensor):
                raise UserError(f"{module} has {len(tensor)} trained rows", location=path / ADAPTER_WEIGHTS,
                                expected=f"as many as trainable_token_indices of {CONFIG}")  # fmt: skip
            if old := [i for i in ids if i < first or i >= len(words)]:
                raise UserError(f"the row of the backbone's own token {old[0]} was trained", location=path,
                                expected="rows of new tokens, and the tokenizer that has them")  # fmt: skip
            for number, row in zip(ids, tensor):
                rows.setdefault(words.convert_ids_to_tokens(number), []).append(row)
    if tables:
        raise UserError(f"{next(iter(tables))[0]} was trained as a whole", location=path / ADAPTER_WEIGHTS,
                        expected="adapters on a frozen backbone")  # fmt: skip
    if not is_tied(model) and (half := next((token for token, own in rows.items() if len(own) == 1), None)):
        raise UserError(f"only one row of the token {half!r} was trained, and this backbone's head has its own",
                        location=path / ADAPTER_WEIGHTS,
                        expected=f"trained tokens of {' and '.join(names)}")  # fmt: skip
    return {token: own * (1 if len(own) == 2 else 2) for token, own in rows.items()}


def _choose_markers(markers, rows, task, tokenizer, path):
    """A task's special tokens: those given, otherwise those that were trained."""
    if markers is None and not rows:
        raise UserError(f"it does not say which special tokens the task {task!r} has", location=path,
                        expected="an adapter with trained tokens, or the task's tokens",
                        remedy=f"name a run that holds the task: --like RUN; its tokens: --markers …; or data of your "
                               f"own: --task {task}=DATA")  # fmt: skip
    markers = list(rows) if markers is None else list(markers)
    for number, marker in enumerate(markers):
        if not MARKER.fits(marker) or marker in markers[:number] or marker in tokenizer.get_vocab():
            raise UserError(f"{marker!r} cannot be one of the task's special tokens", location="--markers",
                            expected="different tokens that the backbone does not have")  # fmt: skip
    if left := [token for token in rows if token not in markers]:
        raise UserError(f"it trained the token {left[0]!r}, which is not one of the task's", location=path,
                        expected="one of " + ", ".join(markers))  # fmt: skip
    return markers


def _sites(model, parts, file, flag):
    """{(block, role): {part: tensor}} from the keys of peft's file.

    Raises:
        UserError: a module that the backbone does not have, or that no method here adapts.
    """
    roles, sites = {name: at for at, name in projection_names(model).items()}, {}
    for (module, part), tensor in parts.items():
        if module not in roles:
            raise UserError(f"it adapts {module}, which is not a linear map of a block of this backbone", location=file,
                            expected=f"one of those of {flag}, such as {min(roles)}",
                            remedy="name the backbone it was trained on: --model_checkpoint NAME")  # fmt: skip
        sites.setdefault(roles[module], {})[part] = tensor
    return sites


def _read_lora(model, parts, config, file, flag):
    """(settings, {(block, role): {"A": …, "B": …}}) of a peft LoRA.

    Modules of smaller rank are padded with zeros, and differing scales are folded into B, so the products are the same.
    """
    sites = _sites(model, parts, file, flag)
    names, backbone = projection_names(model), backbone_of(model.config)
    blocks = list(backbone.blocks(model))
    rank = max(tensors["lora_A"].shape[0] for tensors in sites.values() if "lora_A" in tensors)
    scales, matrices = {}, {}
    for at, tensors in sites.items():
        if set(tensors) != {"lora_A", "lora_B"}:
            raise UserError(f"{names[at]} has only {' and '.join(tensors)}", location=file, expected="both matrices")
        a, b = tensors["lora_A"], tensors["lora_B"]
        own = _of_pattern(config.get("rank_pattern"), names[at], config.get("r", 8))
        if a.shape[0] != own or b.shape[1] != own:
            raise UserError(f"the matrices of {names[at]} have the ranks {a.shape[0]} and {b.shape[1]}", location=file,
                            expected=f"{own}, as {CONFIG} says", remedy="copy both files again")  # fmt: skip
        linear = backbone.projections(blocks[at[0]])[at[1]]
        _check_shape((a.shape[1], b.shape[0]), sizes(linear), names[at], file, flag)
        alpha = _of_pattern(config.get("alpha_pattern"), names[at], config.get("lora_alpha", 8))
        scales[at] = alpha / (own**0.5 if config.get("use_rslora") else own)
        pad = rank - own
        matrices[at] = torch.nn.functional.pad(a, (0, 0, 0, pad)), torch.nn.functional.pad(b, (0, pad))
    common = next((scale for scale in scales.values() if scale > 0), 1.0)
    targets = {role.removeprefix("cross_") for _, role in sites}
    targets = targets - {"qkv"} | ({"q", "v"} if "qkv" in targets else set())
    settings = dict(lora_rank=rank, lora_alpha=float(common * rank), lora_targets=flags.projections(",".join(targets)))
    return settings, {at: dict(A=a, B=b * (scales[at] / common)) for at, (a, b) in matrices.items()}


def _read_ia3(model, parts, config, file, flag):
    """(settings, {(block, role): {"": vector}}) of a peft (IA)3."""
    sites, backbone = _sites(model, parts, file, flag), backbone_of(model.config)
    names, blocks, vectors = projection_names(model), list(backbone.blocks(model)), {}
    for at, tensors in sites.items():
        role, vector = at[1].removeprefix("cross_"), tensors["ia3_l"]
        inputs = role in INPUTS
        if role not in ("k", "v", "qkv", *INPUTS) or (vector.shape[0] == 1) != inputs:
            raise UserError(f"it rescales {'the input' if vector.shape[0] == 1 else 'the output'} of {names[at]}",
                            location=file,
                            expected="outputs of keys and values, the input of the feed-forward module's second map"
                            )  # fmt: skip
        n_in, n_out = sizes(backbone.projections(blocks[at[0]])[at[1]])
        _check_shape(vector.numel(), n_in if inputs else n_out, names[at], file, flag)
        vectors[at] = {"": vector.flatten()}
    return {}, vectors


def _check_shape(found, expected, name, file, flag):
    if found != expected:
        raise UserError(f"it is for a {name} of shape {found}", location=file,
                        expected=f"{expected}, that of {flag}",
                        remedy="name the backbone it was trained on: --model_checkpoint NAME")  # fmt: skip


def _of_pattern(patterns, name, default):
    """A module's value in peft's rank_pattern or alpha_pattern, or the default."""
    return next((v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", name)), default)


def _verify_import(model, tokenizer, task, path, tokens):
    """Raise a `UserError` if peft computes other logits from its directory than our model does."""
    adapter = TaskAdapter(model, tokenizer, task, "", {}, [], tokens)
    check_logits_match(largest_difference(adapter, path), path)
