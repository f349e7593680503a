"""Decoding through `transformers.generate`: batched, cached, sorted by prompt length, left-padded."""

from dataclasses import dataclass

import torch

from utils.devices import autocast


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


@torch.no_grad()
def decode(model, tokenizer, prompts, task_id, eos_id, decoding, *, dtype=torch.float32, progress=None, special_ids=()):
    """Continue every prompt until its end token.

    Args:
        model: an attached model in eval mode.
        tokenizer: its tokenizer.
        prompts: a list of (ids, types).
        task_id: the integer the model knows the task by.
        eos_id: the task's end token, the only special token that may be produced.
        decoding: `Decoding`.
        dtype: precision of the matrix products.
        progress: called with the number of prompts done so far.
        special_ids: ids never to be produced, beside the tokenizer's special tokens.

    Returns:
        a list of token id lists, in the order of the prompts, without the end token.
    """
    device = next(model.parameters()).device
    forbidden = sorted({*tokenizer.all_special_ids, *special_ids, *_added_ids(tokenizer)} - {eos_id})
    outputs = [None] * len(prompts)
    # Longest first: the largest batch, and with it any lack of memory, comes at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i][0]))
    torch.manual_seed(decoding.seed)
    for start in range(0, len(order), decoding.batch_size):
        chosen = order[start : start + decoding.batch_size]
        batch = left_padded([prompts[i] for i in chosen], tokenizer.pad_token_id)
        length = batch["input_ids"].shape[1]
        with autocast(device, dtype):
            out = model.generate(
                **{k: v.to(device) for k, v in batch.items()},
                task_ids=torch.full((len(chosen),), task_id),
                **_settings(decoding, forbidden, eos_id, tokenizer.pad_token_id),
            )
        for i, row in zip(chosen, out[:, length:].tolist()):
            outputs[i] = row[: row.index(eos_id)] if eos_id in row else row
        if progress:
            progress(min(start + decoding.batch_size, len(order)))
    return outputs


def left_padded(prompts, pad_id):
    """Prompts -> dict of tensors [rows, longest], padded on the left, positions counted from each row's start."""
    longest = max(len(ids) for ids, _ in prompts)
    ids = torch.full((len(prompts), longest), pad_id)
    types, mask = ids.clone(), torch.zeros_like(ids)
    for row, (row_ids, row_types) in enumerate(prompts):
        n = len(row_ids)
        ids[row, longest - n :] = torch.tensor(row_ids)
        types[row, longest - n :] = torch.tensor(row_types)
        mask[row, longest - n :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return dict(input_ids=ids, token_type_ids=types, attention_mask=mask, position_ids=positions)


def _settings(decoding, forbidden, eos_id, pad_id):
    from transformers import GenerationConfig

    sampling = {}
    if not decoding.no_sample:
        sampling = dict(temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p)
    config = GenerationConfig(
        do_sample=not decoding.no_sample,
        num_beams=decoding.num_beams,
        max_new_tokens=decoding.max_length,
        min_new_tokens=decoding.min_length,
        suppress_tokens=forbidden,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        length_penalty=decoding.length_penalty,
        **sampling,
    )
    return dict(generation_config=config)


def _added_ids(tokenizer):
    return tokenizer.added_tokens_decoder.keys()
