"""Frozen matrices in the layout that a CPU multiplies fastest with, while a model decodes.

oneDNN, which PyTorch carries, reorders a matrix for every product that has it in the plain layout, or takes a slower
kernel. A model that decodes multiplies few rows with the same frozen matrices again and again: they are reordered once.
Meanwhile they are in memory twice.
"""

import contextlib
import functools

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from versatile.adapters.methods.task_embeddings import TaskHead

# Forwards from which on the products that became faster take back what reordering took.
WORTH = 64


@contextlib.contextmanager
def pack_products(model, rows, forwards, dtype):
    """Frozen linear maps of a model, and its head's, multiply with reordered copies; hooks stay as they are.

    Args:
        model: one in eval mode.
        rows: how many rows are multiplied at once, on the whole.
        forwards: how many forwards there will be at the least; few of them leave the model as it is.
        dtype: precision of the products; matrices in another one are left out.
    """
    device = next(model.parameters()).device
    if device.type != "cpu" or forwards < WORTH or not torch.backends.mkldnn.is_available():
        yield
        return
    packed = []
    try:
        wrapped = getattr(model.get_output_embeddings(), "base", None)
        for module in model.modules():
            if module is not wrapped and (product := _packed_product(module, rows, dtype)):
                name, function = product
                setattr(module, name, function)
                packed.append((module, name))
        yield
    finally:
        for module, name in packed:
            delattr(module, name)


def _packed_product(module, rows, dtype):
    """(attribute, function) of a module whose matrix is frozen and in this precision, or None."""
    if isinstance(module, TaskHead):
        (weight, bias), name = module.base_matrix(), "product"
    elif type(module) is nn.Linear:
        weight, bias, name = module.weight, module.bias, "forward"
    elif type(module) is Conv1D:
        weight, bias, name = module.weight.t(), module.bias, "forward"
    else:
        return None
    if weight.dtype != dtype or weight.requires_grad or (bias is not None and bias.dtype != dtype):
        return None
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
    return name, functools.partial(multiply, reordered, None if bias is None else bias.detach())


def multiply(reordered, bias, hidden):
    """hidden [*, in] times a reordered matrix -> [*, out]."""
    hidden = hidden.to(reordered.dtype)
    return torch.ops.mkldnn._linear_pointwise(hidden, reordered, bias, "none", [], "")
