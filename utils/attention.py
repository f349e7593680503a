"""Attention with dropout on a CPU, as plain products.

PyTorch's fused attention knows no dropout there: it falls back to products whose masks cost more than they do. Here
they are those of utils/dropout.py. Where nothing is dropped, transformers' own functions run.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask
from versatile.utils import dropout as fast

# As transformers' "eager", for every model that chooses its attention by name.
PRODUCTS = "plain_products"


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, position_bias=None, **kwargs):
    """Plain products; called as transformers' attention functions are.

    Args:
        module: the layer.
        query, key, value: [rows, heads, length, width of a head]; keys and values may have fewer heads.
        attention_mask: added to the scores, or None.
        scaling: factor of the scores; None: 1/√width of a head.
        dropout: rate, of the weights.
        position_bias: T5's, added to the scores.

    Returns:
        ([rows, length, heads, width of a head], weights [rows, heads, length, length of the keys])
    """
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.matmul(query, key.transpose(-1, -2))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = scores if scaling == 1 else scores * scaling
    for bias in (position_bias, attention_mask):
        scores = scores if bias is None else scores + bias
    weights = scores.softmax(-1, torch.float32).to(value.dtype)
    output = torch.matmul(fast.dropout(weights, dropout, module.training), value)
    return output.transpose(1, 2).contiguous(), weights


def fused(module, query, key, value, attention_mask, dropout=0.0, is_causal=None, **kwargs):
    """transformers' call of PyTorch's fused attention; on a CPU with dropout the plain products, with the same mask."""
    if not dropout or query.device.type != "cpu" or torch.compiler.is_compiling():
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, is_causal=is_causal,
                                      **kwargs)  # fmt: skip
    lowest = torch.finfo(query.dtype).min
    if attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        attention_mask = query.new_full((query.shape[2], key.shape[2]), lowest).triu(1)
    elif attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = (~attention_mask).to(query.dtype).mul_(lowest)
    return attend(module, query, key, value, attention_mask, dropout=dropout, **kwargs)[0], None


AttentionInterface.register(PRODUCTS, attend)
AttentionMaskInterface.register(PRODUCTS, eager_mask)
AttentionInterface.register("sdpa", fused)
