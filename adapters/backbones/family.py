"""Backbones: the description of a family of pretrained models, and the registry of families.

A family is recognised by `config.model_type`, never by the spelling of a path. To add one, add a file to this folder
that defines a module-level `BACKBONE`, like gpt2.py and llama.py; all files here are imported on first use.
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
    """The ports of a family: the modules that adaptation methods act on.

    A port that is None is not offered; methods that need it raise an error.

    Attributes:
        name: the family's name, as printed in errors.
        model_types: the `config.model_type` values it covers.
        blocks: model -> its transformer blocks in order, the encoder's before the decoder's.
        attention: block -> its self-attention module, whose output precedes the residual addition and is
            (hidden states, ..., attention weights).
        feed_forward: block -> its feed-forward module, whose output precedes the residual addition.
        projections: block -> {role: linear map}; roles are q, k, v and o (qkv if the three are one matrix), and gate,
            up and down of the feed-forward module; cross-attention roles have the prefix cross_. A linear map is a
            torch Linear or transformers' Conv1D.
        norms: block -> [(module, attribute)] of its layer norms.
        hidden_size, norm_eps, max_length: config -> width of the hidden states, epsilon of the layer norms (adapters
            use the same), maximum sequence length of the model.
        auto_class: transformers' class that loads the model.
        attention_interface: whether attention uses the function registered in transformers' `AttentionInterface`
            under the model's implementation.
        head: "lm", or "classifier" if each task has its own head.
        token_types: whether the model itself adds embeddings for `token_type_ids`, taken from its token table.
        encoder_decoder: whether an encoder reads the input (adapters/encoder_decoder.py).
        row_std: model, before anything is attached -> standard deviation of new token embeddings.
        head_scale: config -> factor applied to an encoder-decoder's last hidden states before the head.
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
    """Register a family. A model type can belong to only one family."""
    for model_type in backbone.model_types:
        if _BACKBONES.get(model_type, backbone) is not backbone:
            raise ValueError(f"model_type {model_type!r}: in both {_BACKBONES[model_type].name} and {backbone.name}")
        _BACKBONES[model_type] = backbone
    return backbone


@functools.cache
def _read_files():
    from versatile.adapters import backbones

    for module in pkgutil.iter_modules(backbones.__path__):
        family = importlib.import_module(f"versatile.adapters.backbones.{module.name}")
        if hasattr(family, "BACKBONE"):
            register(family.BACKBONE)


def all_backbones():
    """{model_type: `Backbone`} of all families in this folder."""
    _read_files()
    return _BACKBONES


def backbone_of(config, location="--model_checkpoint", head="lm"):
    """The `Backbone` of a transformers config.

    Args:
        config: only its `model_type` is read.
        location: where the model was named, for errors.
        head: the required kind of head.

    Raises:
        UserError: an unsupported family, or one with another kind of head; the error lists the supported ones.
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


def max_length_of(model):
    """The maximum sequence length of a model, in tokens."""
    return backbone_of(model.config).max_length(model.config)
