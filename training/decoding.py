"""Decoding with a KV cache in left-padded mixed batches, sorted by prompt length.

Greedy search uses continuous batching (training/continuous_batching.py). Sampling, whose draws depend on the batch, and
beam search use `transformers.generate`.
"""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessorList
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.packed import pack_products
from versatile.adapters.preallocated_cache import cache_argument, chooses_cache, keeps_all, new_cache
from versatile.data.prompt import Prompt  # noqa: F401  (part of this interface)
from versatile.training import continuous_batching
from versatile.training.prompt_batches import OnlyOwnEnd, left_padded
from versatile.utils import schema
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError


@dataclass
class Decoding:
    """Decoding settings. Flags of the same names set them; see `evaluate.py --help`."""

    no_sample: bool = True
    num_beams: int = 1
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.9
    max_length: int = 150
    min_length: int = 1
    batch_size: int = 32
    seed: int = 42
    length_penalty: float = 1.0

    @classmethod
    def checked(cls, settings):
        """The settings of a dict; a `UserError` for an unknown name, or a value that its flag would not take."""
        settings = schema.validate(settings, _SETTINGS, "settings", "correct it, or leave it out")
        if settings.get("min_length", cls.min_length) > settings.get("max_length", cls.max_length):
            raise UserError("min_length is above max_length", location="settings")
        return cls(**settings)

    @classmethod
    def from_flags(cls, args, positions):
        """The settings of the flags; an output length that leaves no room for an input is cut, with a message."""
        wanted = cls(**{f: getattr(args, f) for f in cls.__dataclass_fields__})
        fitted = wanted.fitted(positions)
        if fitted.max_length < wanted.max_length:
            print(f"--max_length: cut to {fitted.max_length}, half of the model's {positions} positions")
        return fitted

    def fitted(self, positions):
        """The same with outputs of at most half the model's positions, so that an input fits as well."""
        longest = min(self.max_length, positions // 2)
        return type(self)(**{**vars(self), "max_length": longest, "min_length": min(self.min_length, longest)})


_SETTINGS = schema.Record(fields=dict(
    no_sample=schema.Flag(), num_beams=schema.Whole(1), temperature=schema.Number(1e-6, 1e6), top_k=schema.Whole(),
    top_p=schema.Number(1e-6, 1), max_length=schema.Whole(1), min_length=schema.Whole(), batch_size=schema.Whole(1),
    seed=schema.Whole(), length_penalty=schema.Number(-100, 100),
), closed=True)  # fmt: skip


@torch.no_grad()
def decode(model, tokenizer, prompts, decoding, *, dtype=torch.float32, special=None, progress=None):
    """Continue every prompt up to its end token. A batch may mix tasks.

    Args:
        model: an attached model in eval mode.
        tokenizer: its tokenizer.
        prompts: a list of `Prompt`.
        decoding: `Decoding`.
        dtype: precision of the matrix products.
        special: ids that may be produced only as the prompt's own end token; None: all special and added tokens.
        progress: called with the number of prompts done so far.

    Returns:
        a list of token id lists, in the order of the prompts, without the end token.
    """
    device = next(model.parameters()).device
    if special is None:
        special = sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
    # Longest first: the largest batch, and so any lack of memory, comes at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
    forwards = -(-len(prompts) // decoding.batch_size) * decoding.max_length
    rows = min(decoding.batch_size, len(prompts)) * decoding.num_beams
    is_continuous = continuous_batching.is_supported(model, decoding)
    decode_rows = continuous_batching.decode_greedily if is_continuous else _generate
    with autocast(device, dtype), pack_products(model, rows, forwards, dtype):
        return decode_rows(model, prompts, order, decoding, special, tokenizer.pad_token_id, progress)


def _generate(model, prompts, order, decoding, special, pad_id, progress):
    """Continue prompts with `generate`, batch by batch; arguments and result are those of `decode_greedily`."""
    device = next(model.parameters()).device
    config = _config(decoding, sorted({p.eos_id for p in prompts}), pad_id)
    outputs = [None] * len(prompts)
    torch.manual_seed(decoding.seed)
    for start in range(0, len(order), decoding.batch_size):
        # Rows of a task are adjacent, so that its adapter need not reorder them.
        chosen = sorted(order[start : start + decoding.batch_size], key=lambda i: prompts[i].task_id)
        rows = [prompts[i] for i in chosen]
        batch = left_padded([(p.ids, p.types) for p in rows], pad_id)
        inputs, length = model.decoding_inputs({k: v.to(device) for k, v in batch.items()})
        inputs["task_ids"] = torch.tensor([p.task_id for p in rows])
        only = OnlyOwnEnd(special, [p.eos_id for p in rows], decoding.num_beams, device)
        out = model.generate(
            **inputs,
            **_cache(model, inputs, decoding.num_beams),
            generation_config=config,
            logits_processor=LogitsProcessorList([only]),
        )
        for i, p, ids in zip(chosen, rows, out[:, length:].tolist()):
            outputs[i] = ids[: ids.index(p.eos_id)] if p.eos_id in ids else ids
        if progress:
            progress(min(start + decoding.batch_size, len(order)))
    return outputs


def _cache(model, inputs, beams):
    """`generate`'s `past_key_values` as a dict, empty to let it make its own cache.

    The cache of several beams holds the prompts up to their last token: `generate` would read them once per beam.
    """
    no_gain = beams == 1 or inputs["input_ids"].shape[1] == 1 or backbone_of(model.config).encoder_decoder
    if no_gain or not keeps_all(model) or chooses_cache(model):
        return cache_argument(model)
    cache = new_cache(model)
    read = {name: value if name == "task_ids" else value[:, :-1] for name, value in inputs.items()}
    model(**read, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(beams)
    # A family may keep no cache.
    return {"past_key_values": cache} if cache.get_seq_length() else {}


def _config(decoding, ends, pad_id):
    sampling = {}
    if not decoding.no_sample:
        sampling = dict(temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p)
    return GenerationConfig(
        do_sample=not decoding.no_sample,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_length,
        use_cache=True,
        min_new_tokens=decoding.min_length,
        eos_token_id=ends,
        pad_token_id=pad_id,
        length_penalty=decoding.length_penalty,
        **sampling,
    )
