"""Export of a LoRA or (IA)3 task to a directory of the library peft, and the comparison of both; see peft.py."""

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from versatile.adapters import checkpoint, t5
from versatile.adapters.backbones import bundled
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.backbones.quantized import config_code
from versatile.adapters.methods.base import is_added
from versatile.adapters.methods.ia3 import INPUTS
from versatile.adapters.trained import table_weights
from versatile.utils.errors import UserError, first_line
from versatile.utils.files import atomic_directory, atomic_write, refuse_taken

KINDS = {"lora": "LORA", "ia3": "IA3"}
# Two libraries multiply the same matrices, so in fp32 the last digits may differ.
LOGIT_TOLERANCE = 1e-5


@dataclass
class TaskAdapter:
    """The task of a trained model that is exported.

    Attributes:
        model, tokenizer: ours.
        task, method, settings: the task's name, its method's name, and the method's settings.
        blocks: its modules, one per block of the backbone.
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


def export_task(run, output, task=None):
    """Export a task of a trained model to peft's format, verifying that the logits are the same.

    Args:
        run: a run, a combined model, or a run of train_t5.py.
        output: the directory to create; it must not exist or be empty.
        task: the task to export; None: the only one.

    Returns:
        (`TaskAdapter`, the largest difference of logits relative to the largest logit)

    Raises:
        UserError: peft is missing, the task cannot be expressed in peft, or the output path is taken.
    """
    _need_peft()
    refuse_taken(output)
    adapter = read_task(run, task)
    with atomic_directory(output) as temporary:
        _write(adapter, temporary)
        share = largest_difference(adapter, temporary)
        check_logits_match(share, run)
    return adapter, share


def read_task(run, task=None):
    """The `TaskAdapter` of a run's task; arguments and errors as in `export_task`."""
    backbones.need_directory(run, run, "a run directory")
    manifest = checkpoint.peek(run)
    if manifest and manifest.encoder == "text_to_text":
        model, tokenizer = t5.load_t5(run, task)
        tasks, methods, trained = model.tasks, model.methods, _trained_backbone(model)
    else:
        model, tokenizer = checkpoint.load_checkpoint(run, task, flag=f"--task {task}" if task else run)
        tasks, methods, info = model.info.tasks, model.info.methods, model.info
        trained = info.mode == "full" or not info.freeze or info.self_copy
    if task is None and len(tasks) > 1:
        raise UserError(f"holds the tasks {', '.join(tasks)}", location=run, expected="one of them",
                        remedy="name it: --task TASK")  # fmt: skip
    task = task or tasks[0]
    method = methods.get(task, {}).get("method")
    if trained or method not in KINDS:
        problem = "the backbone was trained too" if trained else f"task {task!r} was trained with the method {method}"
        raise UserError(problem, location=run, expected="a task trained with lora or ia3 on a frozen backbone",
                        remedy="train one: --method lora")  # fmt: skip
    if model.random_init_seed is not None:
        raise UserError("the backbone has random weights, which peft could not load", location=run,
                        expected="a task on a pretrained backbone")  # fmt: skip
    _refuse_token_types(model, task, run)
    blocks, tokens = [held[task] for held in model.added[method].blocks], _tokens(model, tokenizer, task)
    if method == "ia3" and tokens and backbone_of(model.config).encoder_decoder:
        raise UserError(f"with (IA)3, peft keeps the task embeddings of {task!r} in a copy of the table, which a T5's "
                        "encoder and decoder would not use", location=run,
                        expected="a task trained with lora, or one without task embeddings")  # fmt: skip
    return TaskAdapter(model, tokenizer, task, method, methods[task], blocks, tokens)


def _trained_backbone(model):
    """Whether any parameter of the T5 itself was trained."""
    return model.has_stored_backbone or any(p.requires_grad for n, p in model.named_parameters() if not is_added(n))


def _refuse_token_types(model, task, run):
    """Raise a `UserError` if a task uses token types, which the backbone alone would not add."""
    backbone, info = backbone_of(model.config), getattr(model, "info", None)
    if info is None or info.encoder != "markers" or not any(info.markers.values()) or backbone.token_types:
        return
    raise UserError(f"the task {task!r} adds token-type embeddings to its inputs, which {backbone.name} does not know "
                    "by itself: loaded by peft, it would give other logits", location=run,
                    expected="a task on GPT-2, or one without token types, such as those of train_lifelong.py"
                    )  # fmt: skip


def _tokens(model, tokenizer, task):
    """The special tokens covered by a task's scores."""
    info = getattr(model, "info", None)
    if info is None:
        return []
    if info.mask_other_tasks:
        return list(info.markers[task])
    rows = model.get_input_embeddings().rows
    first = info.first + len(rows.spare)
    return tokenizer.convert_ids_to_tokens(range(first, info.first + len(rows)))


def bare_backbone(name, tokens, quantization=None):
    """(a bare backbone, its tokenizer with `tokens`), built as the README.md of an exported directory describes."""
    from tokenizers import AddedToken

    model, tokenizer = backbones.load_backbone(name, quantization=quantization)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens], special_tokens=True)
    model.resize_token_embeddings(max(len(tokenizer), len(model.get_input_embeddings().weight)), mean_resizing=False)
    return model, tokenizer


def _write(adapter, directory):
    """Write a task with peft."""
    import peft

    base, tokenizer = bare_backbone(adapter.backbone_name, adapter.tokens, adapter.model.quantization)
    places = projection_names(base)
    names = {places[number, role]: part for number, block in enumerate(adapter.blocks) for role, part in block.items()}
    with warnings.catch_warnings():
        # peft warns that a copied table is not tied; head and input have the same rows in it.
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
    """peft's configuration for a task."""
    import peft
    from transformers.pytorch_utils import Conv1D

    every = [name for name, _ in base.named_modules()]
    tables = list(dict.fromkeys(table_names(base)))
    seq2seq = backbone_of(base.config).encoder_decoder
    common = dict(target_modules=shortest_endings(names, every), task_type="SEQ_2_SEQ_LM" if seq2seq else "CAUSAL_LM",
                  fan_in_fan_out=any(isinstance(base.get_submodule(name), Conv1D) for name in names),
                  inference_mode=True)  # fmt: skip
    if adapter.method == "ia3":
        inputs = {places[n, role] for n, block in enumerate(adapter.blocks) for role in block if role in INPUTS}
        return peft.IA3Config(**common, feedforward_modules=shortest_endings(inputs, every),
                              modules_to_save=tables if adapter.tokens else None)  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids(adapter.tokens)
    # peft ties the rows of a tied head itself.
    tokens = dict.fromkeys(tables[:1] if is_tied(base) else tables, ids) if ids else None
    alpha = adapter.settings["lora_alpha"]
    return peft.LoraConfig(**common, r=adapter.settings["lora_rank"], lora_dropout=0.0,
                           lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
                           trainable_token_indices=tokens)  # fmt: skip


def table_names(model):
    """Names of the input table and the head."""
    tables = model.get_input_embeddings(), model.get_output_embeddings()
    return [next(name for name, module in model.named_modules() if module is table) for table in tables]


def is_tied(model):
    """Whether the head shares its table with the input."""
    return len(table_weights(model)) == 1


def _set_rows(adapter, base, tokenizer):
    """Copy a task's rows into a peft model; `base` is the model that peft wraps."""
    if not adapter.tokens:
        return
    ours = adapter.tokenizer.convert_tokens_to_ids(adapter.tokens)
    theirs = tokenizer.convert_tokens_to_ids(adapter.tokens)
    tied = is_tied(base)
    heads = (adapter.model.get_input_embeddings(), adapter.model.get_output_embeddings())
    for head, table in zip(heads, (base.get_input_embeddings(), base.get_output_embeddings())):
        rows = head.rows.table()[torch.tensor(ours) - adapter.model.info.first]
        if adapter.method == "ia3":
            table.modules_to_save["default"].weight[theirs] = rows
        elif table is base.get_input_embeddings() or not tied:
            table.token_adapter.trainable_tokens_delta["default"].copy_(rows)


def shortest_endings(names, every):
    """The shortest suffixes, in whole components, that match these modules' names and no others.

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
    """The model card, which explains how to load the directory."""
    auto = backbone_of(adapter.model.config).auto_class
    kind = {"lora": "LoRA", "ia3": "(IA)3"}[adapter.method]
    tokens, types, imports, rounded = "", "", "", ""
    if bits := adapter.model.quantization:
        imports, config = config_code(bits, adapter.model.config.model_type)
        rounded = f", quantization_config={config}"
    if adapter.tokens:
        tokens = "base.resize_token_embeddings(max(len(tokenizer), base.get_input_embeddings().num_embeddings))\n"
        if adapter.model.info.encoder == "markers":
            types = ("\nEvery token's `token_type_ids` is the id of the special token that opened its span; the prompt "
                     "ends with the\ntarget's.\n")  # fmt: skip
    return (f"---\nlibrary_name: peft\nbase_model: {base}\ntags: [{adapter.method}]\n---\n"
            f"{kind} of the task {adapter.task!r}.\n\n```python\n"
            f"from peft import PeftModel\nfrom transformers import {auto}, AutoTokenizer\n{imports}\n"
            f"tokenizer = AutoTokenizer.from_pretrained(directory)\n"
            f"base = {auto}.from_pretrained({str(base)!r}{rounded})\n{tokens}"
            f"model = PeftModel.from_pretrained(base, directory)\n```\n{types}")  # fmt: skip


@torch.no_grad()
def largest_difference(adapter, directory, length=16):
    """Largest difference between a task's logits and those of a peft directory, relative to the largest logit.

    Computed on random tokens from the base vocabulary and the task's own, with token types if the backbone has them.
    """
    import peft

    model, tokenizer = bare_backbone(adapter.backbone_name, adapter.tokens, adapter.model.quantization)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = peft.PeftModel.from_pretrained(model, directory).eval()
        except Exception as error:
            # A config may hold anything, and peft checks little of it.
            raise UserError(f"peft cannot load it: {first_line(error)}", location=directory,
                            expected=f"a directory that peft {peft.__version__} can load",
                            remedy="save it again with this peft") from error  # fmt: skip
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
    """(our ids, peft's ids) of the base vocabulary and the task's tokens, in the same order."""
    first = len(tokenizer) - len(adapter.tokens)
    return [torch.tensor([*range(first), *words.convert_tokens_to_ids(adapter.tokens)])
            for words in (adapter.tokenizer, tokenizer)]  # fmt: skip


def _need_peft():
    if importlib.util.find_spec("peft") is None:
        raise UserError("the package peft is not installed", location="export", expected="peft, to write the adapter",
                        remedy="pip install --no-deps peft")  # fmt: skip


def check_logits_match(share, location):
    """Raise a `UserError` if peft's logits differ too much from ours, by this share of the largest."""
    if not share <= LOGIT_TOLERANCE:
        raise UserError(f"peft's logits differ by up to {share:.2g} of the largest", location=location,
                        expected="equal logits", remedy="nothing was written; report this")  # fmt: skip
