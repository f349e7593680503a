"""Prefix tuning: learned keys and values before those of every row (Li & Liang 2021, "Prefix-Tuning: Optimizing
Continuous Prompts for Generation").

    attention(Q, [P_k ; K], [P_v ; V])          (section 4.2; every self-attention, the encoder's and the decoder's)

Each task has its own P_k and P_v [key heads, length, head width] in each block. They are prepended to the keys and
values inside the attention function, after the cache, so caches, positions, left padding and beams are unaffected.
Prefix keys have no position (no rotation, no relative bias), and every query sees them.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from versatile.adapters.masks import device_mask
from versatile.adapters.methods.base import TaskModules, refuse_without_port

METHODS = {"prefix": "Prefix"}
SETTINGS = {"prefix_length": ("positive", 16, "learned keys and values before every row, in each attention")}
IMPLEMENTATION = "versatile_prefix"
# Small compared with the keys and values of a pretrained model, as task embeddings are compared with its tokens.
INIT_STD = 0.02


class Prefix(TaskModules):
    """The prefixes of a model's tasks. Tasks may have different lengths."""

    attention, chains, sizes = IMPLEMENTATION, True, {"prefix_length": (".key", 1)}

    @classmethod
    def check(cls, name, backbone, settings, location):
        refuse_without_port(backbone, "attention", name, location)
        refuse_without_port(backbone, "attention_interface", name, location)

    def new(self, config, block, settings):
        heads, width = heads_and_width(config)
        shape = heads, settings["prefix_length"], width
        return nn.ParameterDict({role: nn.Parameter(torch.randn(shape) * INIT_STD) for role in ("key", "value")})

    def hook(self, model):
        for number, block in enumerate(self.backbone.blocks(model)):
            join_attention(self.backbone.attention(block), self, number)

    def record_keys_and_values(self, key, value):
        """Called with the keys and values of a block's attention; ignored here."""

    def joined(self, number, task):
        """{role: [heads, length, width]}, the prefix that a task's rows see in a block, or None."""
        held = self.blocks[number]
        parts = [held[name] for name in self.router.chain(task) if name in held]
        return {role: torch.cat([part[role] for part in parts], dim=1) for role in ("key", "value")} if parts else None

    def prefixes_of_rows(self, number):
        """(keys, values [rows or 1, heads, longest, width], mask [rows or 1, longest] true at real keys), or None."""
        tasks = [self.joined(number, name) for name in self.router.present]
        if all(task is None for task in tasks):
            return None
        longest = max(task["key"].shape[1] for task in tasks if task is not None)
        like = next(task["key"] for task in tasks if task is not None)
        lengths = [0 if task is None else task["key"].shape[1] for task in tasks]
        seen = torch.tensor([[i < n for i in range(longest)] for n in lengths], device=like.device)
        which = [0] if self.router.which is None else self.router.which.to(like.device)
        empty = like.new_zeros(like.shape[0], longest, like.shape[2])
        parts = []
        for role in ("key", "value"):
            padded = [empty if t is None else F.pad(t[role], (0, 0, 0, longest - t[role].shape[1])) for t in tasks]
            parts.append(torch.stack(padded)[which])
        return *parts, seen[which]


def heads_and_width(config):
    """(heads of keys and values, width of a head) of a transformers config."""
    heads = config.num_attention_heads
    width = getattr(config, "d_kv", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, width


def join_attention(module, method, number):
    """Make a block's attention prepend a method's `method.prefixes_of_rows(number)` to its keys and values."""
    # In a tuple, so that the parameters are not registered with the attention module too.
    module.prefixes = (*getattr(module, "prefixes", ()), (method, number))


def attend(module, query, key, value, attention_mask, **kwargs):
    """Attention function for transformers that prepends each row's own prefix to its keys and values.

    Args:
        query: [rows, heads, queries, width]; key, value: [rows, key heads, keys, width], cached ones first.
        attention_mask: [rows, 1, queries, keys] boolean or additive, or None: only later positions are masked, and
            only in a causal module.
    """
    prefixes = [method.prefixes_of_rows(number) for method, number in getattr(module, "prefixes", ())]
    for method, _ in getattr(module, "prefixes", ()):
        method.record_keys_and_values(key, value)
    for prefix in filter(None, prefixes):
        key, value, attention_mask, kwargs = _prepend(module, query, key, value, attention_mask, kwargs, *prefix)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _prepend(module, query, key, value, attention_mask, kwargs, front, values, seen):
    """Keys, values, mask and the other arguments of attention after prepending a prefix."""
    rows, (queries, keys) = len(key), (query.shape[2], key.shape[2])
    length = seen.shape[1]
    if attention_mask is None:
        attention_mask = query.new_ones(1, 1, queries, keys, dtype=torch.bool)
        if module.is_causal and queries > 1:
            attention_mask = attention_mask.tril(keys - queries)
    seen = seen[:, None, None, :].expand(rows, 1, queries, length)
    if attention_mask.dtype != torch.bool:
        seen = torch.where(seen, 0.0, torch.finfo(attention_mask.dtype).min).to(attention_mask.dtype)
    attention_mask = torch.cat([seen, attention_mask.expand(rows, -1, -1, -1)[..., :keys]], dim=-1)
    key = torch.cat([front.to(key.dtype).expand(rows, -1, -1, -1), key], dim=2)
    value = torch.cat([values.to(value.dtype).expand(rows, -1, -1, -1), value], dim=2)
    if (bias := kwargs.get("position_bias")) is not None:
        kwargs["position_bias"] = F.pad(bias, (length, 0))
    kwargs["is_causal"] = False
    return key, value, attention_mask, kwargs


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, device_mask)
