"""Backbones: what the toolkit knows of a family of pretrained models, and which families there are.

A family is recognised by `config.model_type`, never by how a path is spelt. Adding one is one file in this folder that
defines a module-level `BACKBONE`, like gpt2.py and llama.py: every file here is read when a family is first asked for.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from versatile.utils.errors import UserError

# New rows start from N(0, 0.02) in the original VLM code.
PUBLISHED_STD = 0.02


@dataclass(frozen=True)
class Backbone:
    """The ports of a family: where a way of adapting finds what it acts on.

    A port that is None is not offered; the methods that need it say so.

    Attributes:
        name: the family's name, as errors print it.
        model_types: the `config.model_type` values it covers.
        blocks: model -> its transformer blocks in order; an encoder's before its decoder's.
        attention: block -> its self-attention module, whose output is not yet added to the residual stream and is
            (hidden states, ..., attention weights).
        feed_forward: block -> its feed-forward module, whose output is not yet added to the residual stream.
        projections: block -> {role: linear map}; roles are q, k, v and o (or qkv where they are one matrix), up and
            down of the feed-forward module, with cross_ before them in cross-attention. A linear map is a torch Linear
            or transformers' Conv1D.
        norms: block -> [(module, attribute)] of its layer norms.
        hidden_size, norm_eps, max_length: config -> width of the hidden states, epsilon of the layer norms (adapters
            use the same), longest sequence that the model takes.
        auto_class: transformers' class that loads one.
        attention_interface: whether attention is computed by the function that transformers' `AttentionInterface`
            holds under the model's implementation.
        head: "lm", or "classifier" where each task has a head of its own.
        token_types: whether the model itself adds the rows of `token_type_ids`, those of its table of tokens.
        encoder_decoder: whether an encoder reads the input (adapters/encoder_decoder.py).
        row_std: model, before anything is attached -> standard deviation that new token embeddings start from.
        head_scale: config -> what an encoder-decoder's last hidden states are multiplied with before the head.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: Callable
    norm_eps: Callable
    max_length: Callable
    attention: Callable | None = None
    feed_forward: Callable | None = None
    projections: Callable | None = None
    norms: Callable | None = None
    hidden_size: Callable = lambda config: config.hidden_size
    auto_class: str = "AutoModelForCausalLM"
    attention_interface: bool = True
    head: str = "lm"
    token_types: bool = False
    encoder_decoder: bool = False
    row_std: Callable = lambda model: PUBLISHED_STD
    head_scale: Callable = lambda config: 1.0


_BACKBONES: dict[str, Backbone] = {}


def register(backbone):
    """Make a family known. A model type can belong to one family only."""
    for model_type in backbone.model_types:
        if _BACKBONES.get(model_type, backbone) is not backbone:
            raise ValueError(f"model_type {model_type!r}: in both {_BACKBONES[model_type].name} and {backbone.name}")
        _BACKBONES[model_type] = backbone
    return backbone


@functools.cache
def _read_files():
    from versatile.adapters import backbones

    for module in pkgutil.iter_modules(backbones.__path__):
        found = importlib.import_module(f"versatile.adapters.backbones.{module.name}")
        if hasattr(found, "BACKBONE"):
            register(found.BACKBONE)


def all_backbones():
    """{model_type: `Backbone`} of every file in this folder."""
    _read_files()
    return _BACKBONES


def backbone_of(config, location="--model_checkpoint", head="lm"):
    """The `Backbone` of a transformers config.

    Args:
        config: its `model_type` counts.
        location: what named the model, for errors.
        head: the kind of head that is wanted.

    Raises:
        UserError: an unsupported family, or one with another kind of head; it names those supported.
    """
    known = {name: backbone for name, backbone in all_backbones().items() if backbone.head == head}
    model_type = getattr(config, "model_type", None)
    if model_type not in known:
        raise UserError(
            f"model_type {model_type!r} is not supported",
            location=location,
            expected="one of " + ", ".join(sorted(known)),
            remedy="choose another backbone, or add its family: one file like adapters/backbones/llama.py",
        )
    return known[model_type]
