"""Attention by plain products on a CPU, for dropout and for decoded tokens.

PyTorch's fused attention does not support dropout there: it falls back to products whose masks cost more than the
products do. Here the masks are those of utils/dropout.py. Elsewhere transformers' own functions run.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask
from versatile.utils import dropout as fast

# As transformers' "eager", for every model that chooses its attention by name.
PRODUCTS = "plain_products"


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, position_bias=None, **kwargs):
    """Plain products, with the signature of transformers' attention functions.

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
    shape, groups = query.shape, query.shape[1] // key.shape[1]
    if groups > 1 and shape[2] == 1:
        # Treat heads that share keys as positions of one head: no copy of the cache for every decoded token.
        query = query.reshape(shape[0], key.shape[1], groups, shape[3])
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.matmul(query, key.transpose(-1, -2))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = scores if scaling == 1 else scores * scaling
    for bias in (position_bias, attention_mask):
        scores = scores if bias is None else scores + bias
    weights = scores.softmax(-1, torch.float32).to(value.dtype)
    output = torch.matmul(fast.dropout(weights, dropout, module.training), value).reshape(shape)
    return output.transpose(1, 2).contiguous(), weights.reshape(*shape[:3], -1)


def fused(module, query, key, value, attention_mask, dropout=0.0, is_causal=None, **kwargs):
    """transformers' call of PyTorch's fused attention; on a CPU plain products with the same mask if there is dropout,
    or for a single query (a decoded token), for which they take half the time."""
    is_faster = not dropout and query.shape[2] > 1
    if is_faster or query.device.type != "cpu" or torch.compiler.is_compiling():
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, is_causal=is_causal,
                                      **kwargs)  # fmt: skip
    lowest = torch.finfo(query.dtype).min
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and is_causal and query.shape[2] > 1:
        attention_mask = query.new_full((query.shape[2], key.shape[2]), lowest).triu(1)
    elif attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = (~attention_mask).to(query.dtype).mul_(lowest)
    return attend(module, query, key, value, attention_mask, dropout=dropout, **kwargs)[0], None


AttentionInterface.register(PRODUCTS, attend)
AttentionMaskInterface.register(PRODUCTS, eager_mask)
AttentionInterface.register("sdpa", fused)
