"""Frozen matrices in the memory layout that is fastest on a CPU, for use during decoding.

oneDNN, which PyTorch includes, reorders a matrix in plain layout for every product, or uses a slower kernel. Decoding
multiplies few rows by the same frozen matrices again and again, so they are reordered once. While a model decodes, they
are in memory twice.
"""

import contextlib
import functools

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from versatile.adapters.methods.task_embeddings import TaskHead

# Number of forward passes from which faster products make up for the cost of reordering, and of rows from which they
# are faster in fp32; in bf16 one row is enough.
MIN_FORWARDS, MIN_ROWS = 24, 3


@contextlib.contextmanager
def pack_products(model, rows, forwards, dtype):
    """Context in which a model's frozen linear maps and head use reordered copies of their matrices; hooks still run.

    Args:
        model: a model in eval mode.
        rows: total number of rows multiplied at once.
        forwards: number of forward passes to expect at most; if it is small, nothing is reordered.
        dtype: precision of the products; matrices with another dtype are skipped.
    """
    device = next(model.parameters()).device
    is_slower = forwards < MIN_FORWARDS or (dtype == torch.float32 and rows < MIN_ROWS)
    if device.type != "cpu" or is_slower or not can_reorder(dtype):
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


def can_reorder(dtype):
    """Whether oneDNN reorders matrices of this dtype on this CPU: in bf16 it needs AVX-512 or a newer AVX2."""
    has_onednn = torch.backends.mkldnn.is_available()
    return has_onednn and (dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed_product(module, rows, dtype):
    """(attribute, replacement function) for a module with a frozen matrix of this dtype, or None."""
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
