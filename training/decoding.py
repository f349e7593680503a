"""Decoding through `transformers.generate`: batched, cached, sorted by prompt length, left-padded, tasks mixed."""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from versatile.data.prompt import Prompt  # noqa: F401  (part of this interface)
from versatile.utils.devices import autocast


@dataclass
class Decoding:
    """How to decode. Flags of the same names set these; see `evaluate.py --help`."""

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
    def from_flags(cls, args, positions):
        """What the flags ask for; outputs that would leave no room for an input are cut, said so."""
        wanted = cls(**{f: getattr(args, f) for f in cls.__dataclass_fields__})
        fitted = wanted.fitted(positions)
        if fitted.max_length < wanted.max_length:
            print(f"--max_length: cut to {fitted.max_length}, half of the model's {positions} positions")
        return fitted

    def fitted(self, positions):
        """The same with outputs of at most half the model's positions: an input must fit, too."""
        longest = min(self.max_length, positions // 2)
        return type(self)(**{**vars(self), "max_length": longest, "min_length": min(self.min_length, longest)})


@torch.no_grad()
def decode(model, tokenizer, prompts, decoding, *, dtype=torch.float32, progress=None):
    """Continue every prompt until its end token. A batch may mix tasks.

    Args:
        model: an attached model in eval mode.
        tokenizer: its tokenizer.
        prompts: a list of `Prompt`.
        decoding: `Decoding`.
        dtype: precision of the matrix products.
        progress: called with the number of prompts done so far.

    Returns:
        a list of token id lists, in the order of the prompts, without the end token.
    """
    device = next(model.parameters()).device
    special = sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
    ends = sorted({p.eos_id for p in prompts})
    config = _config(decoding, ends, tokenizer.pad_token_id)
    outputs = [None] * len(prompts)
    # Longest first: the largest batch, and with it any lack of memory, comes at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
    torch.manual_seed(decoding.seed)
    for start in range(0, len(order), decoding.batch_size):
        # Rows of a task stand together: its adapter then takes them as they lie.
        chosen = sorted(order[start : start + decoding.batch_size], key=lambda i: prompts[i].task_id)
        rows = [prompts[i] for i in chosen]
        batch = left_padded([(p.ids, p.types) for p in rows], tokenizer.pad_token_id)
        inputs, length = model.decoding_inputs({k: v.to(device) for k, v in batch.items()})
        only = OnlyOwnEnd(special, [p.eos_id for p in rows], decoding.num_beams, device)
        with autocast(device, dtype):
            out = model.generate(
                **inputs,
                task_ids=torch.tensor([p.task_id for p in rows]),
                generation_config=config,
                logits_processor=LogitsProcessorList([only]),
            )
        for i, p, ids in zip(chosen, rows, out[:, length:].tolist()):
            outputs[i] = ids[: ids.index(p.eos_id)] if p.eos_id in ids else ids
        if progress:
            progress(min(start + decoding.batch_size, len(order)))
    return outputs


def left_padded(prompts, pad_id):
    """[(ids, types)] -> dict of tensors [rows, longest], padded on the left; positions count from each row's start.

    Where the types are None there is no `token_type_ids` in it.
    """
    longest = max(len(ids) for ids, _ in prompts)
    ids = torch.full((len(prompts), longest), pad_id)
    types, mask = ids.clone(), torch.zeros_like(ids)
    typed = {} if prompts[0][1] is None else dict(token_type_ids=types)
    for row, (row_ids, row_types) in enumerate(prompts):
        n = len(row_ids)
        ids[row, longest - n :] = torch.tensor(row_ids)
        if typed:
            types[row, longest - n :] = torch.tensor(row_types)
        mask[row, longest - n :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return dict(input_ids=ids, attention_mask=mask, position_ids=positions, **typed)


class OnlyOwnEnd(LogitsProcessor):
    """Of all special tokens a row may produce its own task's end alone.

    Args:
        special: ids of all special and added tokens.
        ends: each row's end token.
        beams: generate repeats each row this often.
    """

    def __init__(self, special, ends, beams, device):
        self.special = torch.tensor(special, device=device)
        ends = torch.tensor(ends, device=device).repeat_interleave(beams)
        self.forbidden = self.special != ends[:, None]

    def __call__(self, input_ids, scores):
        kept = scores[:, self.special].masked_fill(self.forbidden, float("-inf"))
        return scores.index_copy(1, self.special, kept)


def _config(decoding, ends, pad_id):
    sampling = {}
    if not decoding.no_sample:
        sampling = dict(temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p)
    return GenerationConfig(
        do_sample=not decoding.no_sample,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_length,
        min_new_tokens=decoding.min_length,
        eos_token_id=ends,
        pad_token_id=pad_id,
        length_penalty=decoding.length_penalty,
        **sampling,
    )
