"""Adapters of the library peft, both ways.

  a LoRA or (IA)3 task of a run as a directory that `peft.PeftModel.from_pretrained` loads to the same logits (needs
  peft, which writes it and proves it):
    python -m adapters.imports.peft export RUN OUTPUT [--task nlg]
  a LoRA or (IA)3 that peft made as a task of ours, which evaluates, combines and starts a new run like any other:
    python -m adapters.imports.peft import PEFT_DIR OUTPUT --task mine=DATA
    python -m adapters.imports.peft import PEFT_DIR OUTPUT --task nlg --like RUN
    python -m adapters.imports.peft import PEFT_DIR OUTPUT --task nlg --markers '<bos_nlg>' '<eos_nlg>' …

A task's special tokens are new tokens, in peft trainable ones; beside (IA)3, where peft has none, the whole tables are
saved. Their rows are added as token types, too. GPT-2 does so by itself, for the same `token_type_ids`; on another
backbone a task with token types is not exported, as peft could not give its logits.

An adapter that was made without such tokens starts with fresh ones for the markers of its task: it is meant to be
trained further (--init_from), or, several of them combined, in batches that mix their tasks.
"""

import importlib.util
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from versatile.adapters import checkpoint, t5
from versatile.adapters.attach import attach
from versatile.adapters.backbones import bundled
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.methods.ia3 import INPUTS
from versatile.adapters.tensors import read_safetensors
from versatile.utils import devices, flags
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.files import atomic_directory, atomic_write
from versatile.utils.schema import Choice, Flag, MapOf, Number, Record, Text, Whole, read_json_object, validate

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KINDS = {"lora": "LORA", "ia3": "IA3"}
PREFIX = "base_model.model."
# Two libraries multiply the same matrices; in fp32 the last digits may differ.
LARGEST_SHARE = 1e-5

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
# What changes more than the product B A, or the backbone itself: {key: value that is harmless beside null and false}.
REFUSED = dict(use_dora=None, bias="none", lora_bias=None, layer_replication=None, target_parameters=None,
               alora_invocation_tokens=None, use_qalora=None, use_bdlora=None, velora_config=None)  # fmt: skip
# Initialisations after which the backbone is another one than that of its name.
CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass
class TaskAdapter:
    """What is exported: one task of a trained model.

    Attributes:
        model, tokenizer: ours.
        task, method, settings: its name, that of its method, and the method's settings.
        blocks: its modules, one for each block of the backbone.
        tokens: its special tokens.
    """

    model: object
    tokenizer: object
    task: str
    method: str
    settings: dict
    blocks: list
    tokens: list

    @property
    def backbone_name(self):
        return self.model.config._name_or_path


# ---- ours -> peft


def export_task(run, output, task=None):
    """Write a task of a trained model as a directory of peft, proved to give the same logits.

    Args:
        run: a run, a combined model, or a run of train_t5.py.
        output: the directory to make; it must not exist, or be empty.
        task: which one; None: the only one.

    Returns:
        (`TaskAdapter`, the largest difference of logits as a share of the largest)

    Raises:
        UserError: peft is missing, the task cannot be expressed in peft, something in the way of the output.
    """
    _need_peft()
    _refuse_taken(output)
    adapter = read_task(run, task)
    with atomic_directory(output) as beside:
        _write(adapter, beside)
        share = largest_difference(adapter, beside)
        if not share <= LARGEST_SHARE:
            raise UserError(f"peft gives other logits, by up to {share:.2g} of the largest", location=run,
                            expected="equal ones", remedy="nothing was written; report this")  # fmt: skip
    return adapter, share


def read_task(run, task=None):
    """The `TaskAdapter` of a run's task; arguments and errors as of `export_task`."""
    backbones.need_directory(run, run, "a run directory")
    manifest = checkpoint.peek(run)
    if manifest and manifest.encoder == "text_to_text":
        model, tokenizer = t5.load(run, task)
        tasks, method, trained = model.tasks, model.settings.method, _trained_backbone(model)
        methods = {name: dict(method=method, **model.settings.method_settings) for name in tasks}
    else:
        model, tokenizer = checkpoint.load(run, task, flag=f"--task {task}" if task else run)
        tasks, methods, info = model.info.tasks, model.info.methods, model.info
        trained = info.mode == "full" or not info.freeze or info.self_copy
    if task is None and len(tasks) > 1:
        raise UserError(f"holds the tasks {', '.join(tasks)}", location=run, expected="one of them, named",
                        remedy="name it: --task TASK")  # fmt: skip
    task = task or tasks[0]
    method = methods.get(task, {}).get("method")
    if trained or method not in KINDS:
        found = "the backbone was trained too" if trained else f"task {task!r} was trained with the method {method}"
        raise UserError(found, location=run, expected="a task of the method lora or ia3 beside a frozen backbone",
                        remedy="train one: --method lora")  # fmt: skip
    if model.random_init_seed is not None:
        raise UserError("the backbone was drawn from a seed: peft could not load it", location=run,
                        expected="a task beside a pretrained backbone")  # fmt: skip
    _refuse_token_types(model, task, run)
    blocks = [held[task] for held in model.added[method].blocks]
    return TaskAdapter(model, tokenizer, task, method, methods[task], blocks, _tokens(model, tokenizer, task))


def _trained_backbone(model):
    """Whether anything of a T5 itself was trained."""
    return model.backbone_carried or any(p.requires_grad for n, p in model.named_parameters() if "added." not in n)


def _refuse_token_types(model, task, run):
    """A `UserError` where a task's rows are added as token types and the backbone alone would not add them."""
    backbone, info = backbone_of(model.config), getattr(model, "info", None)
    if info is None or info.encoder != "markers" or not any(info.markers.values()) or backbone.token_types:
        return
    raise UserError(f"the task {task!r} adds token-type embeddings to its inputs, which {backbone.name} does not know "
                    "by itself: loaded by peft it would give other logits", location=run,
                    expected="a task on GPT-2, or one without token types, as those of train_lifelong.py")  # fmt: skip


def _tokens(model, tokenizer, task):
    """The special tokens that a task's scores go over."""
    info = getattr(model, "info", None)
    if info is None:
        return []
    if info.mask_other_tasks:
        return list(info.markers[task])
    rows = model.get_input_embeddings().rows
    first = info.first + len(rows.spare)
    return tokenizer.convert_ids_to_tokens(range(first, info.first + len(rows)))


def bare_backbone(name, tokens, quantization=None):
    """(a bare backbone, its tokenizer with `tokens`), as README.md of an exported directory has them made."""
    from tokenizers import AddedToken

    model, tokenizer = backbones.load(name, quantization=quantization)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens], special_tokens=True)
    model.resize_token_embeddings(max(len(tokenizer), len(model.get_input_embeddings().weight)), mean_resizing=False)
    return model, tokenizer


def _write(adapter, directory):
    """Let peft write a task."""
    import peft

    base, tokenizer = bare_backbone(adapter.backbone_name, adapter.tokens, adapter.model.quantization)
    places = projection_names(base)
    names = {places[number, role]: part for number, block in enumerate(adapter.blocks) for role, part in block.items()}
    with warnings.catch_warnings():
        # That a copied table is not tied: head and input have the same rows in it.
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, _config(adapter, base, tokenizer, places, set(names)))
    with torch.no_grad():
        for name, part in names.items():
            module = model.base_model.model.get_submodule(name)
            if adapter.method == "lora":
                module.lora_A["default"].weight.copy_(part.A)
                module.lora_B["default"].weight.copy_(part.B)
            else:
                module.ia3_l["default"].copy_(part.view_as(module.ia3_l["default"]))
        _set_rows(adapter, base, tokenizer)
    folder = bundled.folder(adapter.backbone_name) if adapter.backbone_name in bundled.NAMES else None
    model.peft_config["default"].base_model_name_or_path = str(folder or adapter.backbone_name)
    model.save_pretrained(directory, save_embedding_layers=False)
    tokenizer.save_pretrained(directory)
    with atomic_write(Path(directory) / "README.md") as file:
        file.write(_readme(adapter, folder or adapter.backbone_name))


def _config(adapter, base, tokenizer, places, names):
    """peft's configuration of a task."""
    import peft
    from transformers.pytorch_utils import Conv1D

    every = [name for name, _ in base.named_modules()]
    tables = list(dict.fromkeys(_table_names(base)))
    seq2seq = backbone_of(base.config).encoder_decoder
    common = dict(target_modules=shortest_endings(names, every), task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
                  fan_in_fan_out=any(isinstance(base.get_submodule(name), Conv1D) for name in names),
                  inference_mode=True)  # fmt: skip
    if adapter.method == "ia3":
        inputs = {places[n, role] for n, block in enumerate(adapter.blocks) for role in block if role in INPUTS}
        return peft.IA3Config(**common, feedforward_modules=shortest_endings(inputs, every),
                              modules_to_save=tables if adapter.tokens else None)  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids(adapter.tokens)
    tokens = dict.fromkeys(_untied(base, tables), ids) if ids else None
    alpha = adapter.settings["lora_alpha"]
    return peft.LoraConfig(**common, r=adapter.settings["lora_rank"], lora_dropout=0.0,
                           lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
                           trainable_token_indices=tokens)  # fmt: skip


def _table_names(model):
    """Names of the input table and the head."""
    tables = model.get_input_embeddings(), model.get_output_embeddings()
    return [next(name for name, module in model.named_modules() if module is table) for table in tables]


def _untied(model, tables):
    """The tables that hold rows of their own: peft ties a tied head's by itself."""
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    return tables[:1] if tied else tables


def _set_rows(adapter, base, tokenizer):
    """Give a model of peft a task's rows; `base` is what peft was put into."""
    if not adapter.tokens:
        return
    ours = adapter.tokenizer.convert_tokens_to_ids(adapter.tokens)
    theirs = tokenizer.convert_tokens_to_ids(adapter.tokens)
    tied = base.get_input_embeddings().weight is base.get_output_embeddings().weight
    heads = (adapter.model.get_input_embeddings(), adapter.model.get_output_embeddings())
    for head, table in zip(heads, (base.get_input_embeddings(), base.get_output_embeddings())):
        rows = head.rows.table()[torch.tensor(ours) - adapter.model.info.first]
        if adapter.method == "ia3":
            table.modules_to_save["default"].weight[theirs] = rows
        elif table is base.get_input_embeddings() or not tied:
            table.token_adapter.trainable_tokens_delta["default"].copy_(rows)


def shortest_endings(names, every):
    """The fewest components of modules' names, from their end, that no other module's name ends with.

    Args:
        names: a set of names.
        every: the names of all modules.
    """
    endings = set()
    for name in names:
        parts = name.split(".")
        candidates = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        endings.add(next(e for e in candidates if all(n in names for n in every if f".{n}".endswith(f".{e}"))))
    return sorted(endings)


def projection_names(model):
    """{(block, role): name of the linear map} of a bare backbone."""
    names = {module: name for name, module in model.named_modules()}
    backbone = backbone_of(model.config)
    return {(number, role): names[linear] for number, block in enumerate(backbone.blocks(model))
            for role, linear in backbone.projections(block).items()}  # fmt: skip


def _readme(adapter, base):
    """The model card: how the directory is loaded."""
    auto = backbone_of(adapter.model.config).auto_class
    kind = {"lora": "LoRA", "ia3": "(IA)3"}[adapter.method]
    tokens, types = "", ""
    if adapter.tokens:
        tokens = "base.resize_token_embeddings(max(len(tokenizer), base.get_input_embeddings().num_embeddings))\n"
        if adapter.model.info.encoder == "markers":
            types = ("\nEvery token's `token_type_ids` is the id of the special token that opened its span; the prompt "
                     "ends with the\ntarget's.\n")  # fmt: skip
    return (f"---\nlibrary_name: peft\nbase_model: {base}\ntags: [{adapter.method}]\n---\n"
            f"{kind} of the task {adapter.task!r}.\n\n```python\n"
            f"from peft import PeftModel\nfrom transformers import {auto}, AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained(directory)\n"
            f"base = {auto}.from_pretrained({str(base)!r})\n{tokens}"
            f"model = PeftModel.from_pretrained(base, directory)\n```\n{types}")  # fmt: skip


@torch.no_grad()
def largest_difference(adapter, directory, length=16):
    """How far a task's logits and those of peft's directory are apart, as a share of the largest.

    On random tokens of the base vocabulary and the task's own, with token types where the backbone knows them.
    """
    import peft

    model, tokenizer = bare_backbone(adapter.backbone_name, adapter.tokens, adapter.model.quantization)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(model, directory).eval()
    columns = _columns(adapter, tokenizer)
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(len(columns[0]), (2, 2, length), generator=generator)
    logits = []
    for module, ids in zip((adapter.model, theirs), columns):
        inputs = dict(input_ids=ids[picked[0]])
        if backbone_of(adapter.model.config).encoder_decoder:
            inputs["decoder_input_ids"] = ids[picked[1]]
        elif backbone_of(adapter.model.config).token_types:
            inputs["token_type_ids"] = ids[picked[1]]
        if module is adapter.model:
            inputs["task_ids"] = torch.full((2,), module.task_id(adapter.task))
        logits.append(module(**inputs).logits[..., ids].float())
    return ((logits[0] - logits[1]).abs().max() / logits[1].abs().max()).item()


def _columns(adapter, tokenizer):
    """(our ids, peft's ids) of the base vocabulary and the task's tokens, in one order."""
    first = len(tokenizer) - len(adapter.tokens)
    return [torch.tensor([*range(first), *words.convert_tokens_to_ids(adapter.tokens)])
            for words in (adapter.tokenizer, tokenizer)]  # fmt: skip


def _need_peft():
    if importlib.util.find_spec("peft") is None:
        raise UserError("the package peft is not installed", location="export", expected="peft, which writes it",
                        remedy="pip install --no-deps peft")  # fmt: skip


def _refuse_taken(output):
    path = Path(output)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError("something stands there already", location=output,
                        remedy="name another directory, or remove it")  # fmt: skip


# ---- peft -> ours


def import_adapter(directory, output, task, markers=None, backbone=None, definition=None, history=None):
    """Write a LoRA or (IA)3 of peft's as a directory of ours with one task.

    Args:
        directory: of peft.
        output: the directory to make; it must not exist, or be empty.
        task: the task's name.
        markers: its special tokens; None: those that the directory trained.
        backbone: the backbone's name or directory; None: that of the directory.
        definition, history: see `TaskModelInfo`.

    Returns:
        the model.

    Raises:
        UserError: no adapter of peft's there, one that cannot be expressed here, another backbone.
    """
    path = Path(directory)
    _refuse_taken(output)
    config = read_config(path)
    state = read_safetensors(path / WEIGHTS)
    model, tokenizer, flag = _load_base(path, config, backbone)
    parts, tables = _sort_keys(state, path)
    rows = _trained_rows(path, config, model, tokenizer, tables)
    markers = _choose_markers(markers, rows, task, path)
    method = {kind: name for name, kind in KINDS.items()}[config["peft_type"]]
    read = _read_lora if method == "lora" else _read_ia3
    settings, blocks = read(model, parts, config, path / WEIGHTS, flag)
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
    with atomic_directory(output) as beside:
        checkpoint.save(model, tokenizer, beside)
        checkpoint.load(beside)
        if importlib.util.find_spec("peft") and not (rows.keys() - set(markers)):
            _prove_import(model.eval(), tokenizer, task, path, [m for m in markers if m in rows])
    return model


def read_config(path):
    """adapter_config.json of peft's, with nothing in it that cannot be expressed here."""
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
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(CHANGING_INITS):
        raise UserError(f"init_lora_weights is {init}: it changed the backbone's own weights", location=file,
                        expected="an adapter beside the backbone as it was",
                        remedy="convert it with peft: save_pretrained(…, path_initial_model_for_weight_conversion=…)"
                        )  # fmt: skip
    return config


def _load_base(path, config, backbone):
    """(backbone, tokenizer, what named it)."""
    name = backbone or config.get("base_model_name_or_path")
    if not name:
        raise UserError("it does not name its backbone", location=path / CONFIG,
                        remedy="name it: --model_checkpoint NAME")  # fmt: skip
    if backbone:
        flag = f"--model_checkpoint {backbone}"
    else:
        name, flag = backbones.locate(name, path / CONFIG)
    model, tokenizer = backbones.load(name, location=flag)
    return model, tokenizer, flag


def _sort_keys(state, path):
    """({(module, part): tensor} of the adapters, {(module, "rows" or "table"): tensor}) of peft's file."""
    pattern = re.compile(re.escape(PREFIX) + r"(.+?)\.(?:(lora_A|lora_B)\.weight|(ia3_l)|"
                         r"token_adapter\.(trainable_tokens_delta)|(?:modules_to_save\.)?(weight))")  # fmt: skip
    parts, tables = {}, {}
    for key, tensor in state.items():
        match = pattern.fullmatch(key)
        kind = match and next(part for part in match.groups()[1:] if part)
        if kind is None or (kind == "weight" and tensor.dim() != 2):
            raise UserError(f"unknown key {key}", location=path / WEIGHTS,
                            expected="a plain low-rank update or (IA)3, and trained tokens")  # fmt: skip
        (parts if kind in ("lora_A", "lora_B", "ia3_l") else tables)[match[1], kind] = tensor.float()
    return parts, tables


def _trained_rows(path, config, model, tokenizer, tables):
    """{token: [its row, its output row]} of the tokens that a directory of peft's trained; one row where tied."""
    if not tables:
        return {}
    names, first, rows = _table_names(model), len(tokenizer), {}
    words = backbones.read_tokenizer(path) if (path / "tokenizer_config.json").is_file() else tokenizer
    for name in dict.fromkeys(names):
        table = model.get_submodule(name).weight
        found = [(module, kind) for module, kind in tables if module == name or name.endswith(f".{module}")]
        for module, kind in found:
            tensor, ids = tables.pop((module, kind)), None
            if kind == "weight":
                if not torch.equal(tensor[:first], table[:first]):
                    raise UserError(f"{module} was trained as a whole", location=path / WEIGHTS,
                                    expected="trained rows of new tokens alone")  # fmt: skip
                ids, tensor = range(first, min(len(words), len(tensor))), tensor[first:]
            else:
                ids = config["trainable_token_indices"]
                ids = next(v for k, v in ids.items() if module.endswith(k)) if isinstance(ids, dict) else ids
            if old := [i for i in ids if i < first or i >= len(words)]:
                raise UserError(f"the row of token {old[0]} was trained, which is the backbone's own", location=path,
                                expected="rows of new tokens, and the tokenizer that has them")  # fmt: skip
            for number, row in zip(ids, tensor):
                rows.setdefault(words.convert_ids_to_tokens(number), []).append(row)
    if tables:
        raise UserError(f"{next(iter(tables))[0]} was trained as a whole", location=path / WEIGHTS,
                        expected="adapters beside a frozen backbone")  # fmt: skip
    return {token: own * (1 if len(own) == 2 else 2) for token, own in rows.items()}


def _choose_markers(markers, rows, task, path):
    """A task's special tokens: those given, else those that were trained."""
    if markers is None and not rows:
        raise UserError(f"it does not say which special tokens the task {task!r} has", location=path,
                        expected="an adapter with trained tokens, or the task's tokens",
                        remedy=f"name a run that holds the task: --like RUN; its tokens: --markers …; or data of your "
                               f"own: --task {task}=DATA")  # fmt: skip
    markers = list(rows) if markers is None else list(markers)
    if left := [token for token in rows if token not in markers]:
        raise UserError(f"it trained the token {left[0]!r}, which is none of the task's", location=path,
                        expected="one of " + ", ".join(markers))  # fmt: skip
    return markers


def _sites(model, parts, file, flag):
    """{(block, role): {part: tensor}} of the keys of peft's file.

    Raises:
        UserError: a module that the backbone has not, or that no method of ours adapts.
    """
    places, found = {name: at for at, name in projection_names(model).items()}, {}
    for (module, part), tensor in parts.items():
        if module not in places:
            raise UserError(f"it adapts {module}, which is no linear map of a block of this backbone", location=file,
                            expected=f"one of those of {flag}, such as {min(places)}",
                            remedy="name the backbone it was trained on: --model_checkpoint NAME")  # fmt: skip
        found.setdefault(places[module], {})[part] = tensor
    return found


def _read_lora(model, parts, config, file, flag):
    """(settings, {(block, role): {"A": …, "B": …}}) of a LoRA of peft's.

    Modules of other ranks than the largest are filled with zeros, and other scales go into B: the products stay.
    """
    found = _sites(model, parts, file, flag)
    names, backbone = projection_names(model), backbone_of(model.config)
    blocks = list(backbone.blocks(model))
    rank = max(tensors["lora_A"].shape[0] for tensors in found.values() if "lora_A" in tensors)
    scales, matrices = {}, {}
    for at, tensors in found.items():
        if set(tensors) != {"lora_A", "lora_B"}:
            raise UserError(f"{names[at]} has {' and '.join(tensors)} alone", location=file, expected="both matrices")
        a, b = tensors["lora_A"], tensors["lora_B"]
        own = _of_pattern(config.get("rank_pattern"), names[at], config.get("r", 8))
        if a.shape[0] != own or b.shape[1] != own:
            raise UserError(f"the matrices of {names[at]} have the ranks {a.shape[0]} and {b.shape[1]}", location=file,
                            expected=f"{own}, as {CONFIG} says", remedy="copy both files again")  # fmt: skip
        linear = backbone.projections(blocks[at[0]])[at[1]]
        _check_shape((a.shape[1], b.shape[0]), _sizes(linear), names[at], file, flag)
        alpha = _of_pattern(config.get("alpha_pattern"), names[at], config.get("lora_alpha", 8))
        scales[at] = alpha / (own**0.5 if config.get("use_rslora") else own)
        pad = rank - own
        matrices[at] = torch.nn.functional.pad(a, (0, 0, 0, pad)), torch.nn.functional.pad(b, (0, pad))
    common = next((scale for scale in scales.values() if scale > 0), 1.0)
    targets = {role.removeprefix("cross_") for _, role in found}
    targets = targets - {"qkv"} | ({"q", "v"} if "qkv" in targets else set())
    settings = dict(lora_rank=rank, lora_alpha=float(common * rank), lora_targets=flags.projections(",".join(targets)))
    return settings, {at: dict(A=a, B=b * (scales[at] / common)) for at, (a, b) in matrices.items()}


def _read_ia3(model, parts, config, file, flag):
    """(settings, {(block, role): {"": vector}}) of an (IA)3 of peft's."""
    found, backbone = _sites(model, parts, file, flag), backbone_of(model.config)
    names, blocks, vectors = projection_names(model), list(backbone.blocks(model)), {}
    for at, tensors in found.items():
        role, vector = at[1].removeprefix("cross_"), tensors["ia3_l"]
        inputs = role in INPUTS
        if role not in ("k", "v", "qkv", *INPUTS) or (vector.shape[0] == 1) != inputs:
            raise UserError(f"it rescales {'the input' if vector.shape[0] == 1 else 'the output'} of {names[at]}",
                            location=file,
                            expected="outputs of keys and values, the input of the feed-forward module's second map"
                            )  # fmt: skip
        n_in, n_out = _sizes(backbone.projections(blocks[at[0]])[at[1]])
        _check_shape(vector.numel(), n_in if inputs else n_out, names[at], file, flag)
        vectors[at] = {"": vector.flatten()}
    return {}, vectors


def _sizes(linear):
    from versatile.adapters.methods.lora import sizes

    return sizes(linear)


def _check_shape(found, expected, name, file, flag):
    if found != expected:
        raise UserError(f"it is for a {name} of the sizes {found}", location=file,
                        expected=f"{expected}, that of {flag}",
                        remedy="name the backbone it was trained on: --model_checkpoint NAME")  # fmt: skip


def _of_pattern(patterns, name, default):
    """A module's own value of peft's rank_pattern or alpha_pattern."""
    return next((v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", name)), default)


def _prove_import(model, tokenizer, task, path, tokens):
    """A `UserError` where peft itself finds other logits in its directory than ours has."""
    adapter = TaskAdapter(model, tokenizer, task, "", {}, [], tokens)
    share = largest_difference(adapter, path)
    if not share <= LARGEST_SHARE:
        raise UserError(f"peft gives other logits, by up to {share:.2g} of the largest", location=path,
                        expected="equal ones", remedy="nothing was written; report this")  # fmt: skip


# ---- the command


@exit_on_user_error
def main(argv=None):
    """`python -m adapters.imports.peft`."""
    p = flags.build_parser(__doc__)
    p.prog, p.usage = "python -m adapters.imports.peft", "%(prog)s export | import [flags]"
    commands = p.add_subparsers(dest="command", required=True, metavar="export | import")
    export = commands.add_parser("export", help="a task of ours for peft", prog=f"{p.prog} export")
    export.add_argument("run", help="a trained model of ours")
    export.add_argument("output", help="the directory to make")
    export.add_argument("--task", help="which of its tasks (needed where it holds several)")
    reading = commands.add_parser("import", help="an adapter of peft's as a task", prog=f"{p.prog} import")
    reading.add_argument("source", help="a directory that peft saved")
    reading.add_argument("output", help="the directory to make")
    reading.add_argument("--task", required=True, help="the task's name, or NAME=DATA for one of your own")
    reading.add_argument("--markers", nargs="+", metavar="TOKEN", help="the task's special tokens")
    reading.add_argument("--like", metavar="RUN", help="a trained model of ours that holds the task: its tokens")
    reading.add_argument("--model_checkpoint", metavar="NAME", help="the backbone (default: as the directory says)")
    args = p.parse_args(argv)
    devices.quiet_libraries()
    if args.command == "export":
        adapter, share = export_task(args.run, args.output, args.task)
        tokens = f"{len(adapter.tokens)} trained tokens" if adapter.tokens else "no task embeddings: the task has none"
        print(f"{args.output}: {adapter.method} of {adapter.task}, {tokens}; peft's logits equal ours (to {share:.1g})")
        return
    task, markers, definition, history = _task_of(args)
    model = import_adapter(args.source, args.output, task, markers, args.model_checkpoint, definition, history)
    print(f"{args.output}: {task}, {model.info.methods[task]}, {len(model.info.markers[task])} task embeddings")


def _task_of(args):
    """(name, markers or None, definition, history) of the task that import's flags name."""
    name, _, data = args.task.partition("=")
    if data:
        # As data/own_tasks.py has them.
        definition = dict(name=name, source=str(Path(data).resolve()) if Path(data).exists() else data)
        return name, [f"<{part}_{name}>" for part in ("bos", "eos", "prompt", "answer")], definition, None
    if not args.like:
        return name, args.markers, None, None
    manifest = checkpoint.peek(args.like)
    known = {task["name"]: task for task in manifest.config.get("tasks", [])} if manifest else {}
    if name not in known:
        raise UserError(f"it holds {', '.join(known) or 'no tasks'}", location=f"--like {args.like}",
                        expected=f"a model that holds {name!r}")  # fmt: skip
    return name, known[name].get("markers"), known[name].get("definition"), known[name].get("max_history")


if __name__ == "__main__":
    main()
