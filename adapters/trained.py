"""The trained part of a model: choosing it, counting it, and keeping the rest in half precision."""

import torch
from versatile.adapters.backbones.quantized import is_quantized, number_of_values, set_compute_dtype
from versatile.adapters.methods.base import is_added
from versatile.adapters.methods.task_embeddings import TaskHead
from versatile.utils.screen import format_count


def trainable(model):
    """{name: parameter} of everything that is trained."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def only_tables(model):
    """Train only the vocabulary tables: the table that a tied head shares with the input, or both tables of an untied
    backbone (`--outputlayer_only` of the original VLM code). A pointer's gate is still trained.

    Raises:
        ValueError: the model has adapters, so its tables belong to the frozen backbone.
    """
    if model.info.mode != "full":
        raise ValueError("only_tables is for a model without adapters, whose tables have grown by the tasks' tokens")
    model.requires_grad_(False)
    for table in table_weights(model):
        table.requires_grad_(True)
    if model.info.self_copy:
        model.added["pointer"].requires_grad_(True)


def table_weights(model):
    """The weights of the input table, and of the output table if it is a different one."""
    both = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return both[:1] if both[0] is both[1] else both


def halve_frozen(model, dtype):
    """Store frozen matrices and their biases in the half precision that autocast computes with.

    Autocast casts a frozen weight again in every forward pass; casting it once gives the same products, bit for
    bit, without the memory traffic. Norms, look-up tables and everything trained stay in fp32. A model that is
    trained and saved with its backbone keeps it in fp32, as a checkpoint must not lose precision.
    """
    from transformers.pytorch_utils import Conv1D

    if trainable(model) and model.saves_backbone:
        return
    head = model.get_output_embeddings()
    set_compute_dtype(model, dtype)
    whole = {module for method in model.added.values() if method.full_precision for module in method.modules()}
    for module in model.modules():
        if isinstance(module, TaskHead):
            module.half = module.base.weight.detach().to(dtype)
        frozen = isinstance(module, (torch.nn.Linear, Conv1D)) and not module.weight.requires_grad
        if frozen and module not in whole and not is_quantized(module) and module is not getattr(head, "base", None):
            # New parameters instead of new data in the old ones, as a head may share its matrix with a look-up table.
            module.weight = torch.nn.Parameter(module.weight.detach().to(dtype), requires_grad=False)
            if module.bias is not None and not module.bias.requires_grad:
                module.bias = torch.nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)


def count_parameters(model):
    """The trained share of a model.

    Returns:
        dict(adapters, task_rows, backbone: trained parameters of each kind; total: of the bare backbone), and
        self_copy, the parameters of a pointer's gate, if there is one.
    """
    counts = dict(adapters=0, task_rows=0, backbone=0, total=0)
    for name, p in model.named_parameters():
        kind = _kind(name)
        if p.requires_grad:
            counts[kind] = counts.get(kind, 0) + p.numel()
        if kind == "backbone":
            counts["total"] += number_of_values(p)
    return counts


def _kind(name):
    """The kind in `count_parameters` that a parameter belongs to."""
    if not is_added(name):
        return "backbone"
    kinds = {"task_embeddings": "task_rows", "heads": "task_rows", "pointer": "self_copy"}
    return kinds.get(name.split(".")[1], "adapters")


def parameter_summary(model):
    """One line for the log: the trained parameters and their share of the backbone."""
    c = count_parameters(model)
    gate = f" + self-copy gate {c['self_copy']:,}" if "self_copy" in c else ""
    trained = sum(c.values()) - c["total"]
    share = f" = {100 * trained / c['total']:.2f} % of {format_count(c['total'])}"
    rows = "heads" if getattr(model, "head", "lm") == "classifier" else "task embeddings"
    added = f"adapters {c['adapters']:,} + {rows} {c['task_rows']:,}"
    if not c["backbone"]:
        return f"trained: {added}{gate}{share} (frozen)"
    if c["backbone"] < c["total"]:
        tables = "the embedding table" if len(table_weights(model)) == 1 else "the input and output tables"
        return f"trained: {tables}, {c['backbone']:,} parameters{gate}{share} (the rest is frozen)"
    everything = f"all {c['backbone']:,} parameters of the backbone{gate}"
    return f"trained: {everything}" if model.info.mode == "full" else f"trained: {added} + {everything}"
