"""Batches of prompts for `generate`, and the tokens that their rows may produce."""

import torch
from transformers import LogitsProcessor

# Tokens that `argmax` compares at once.
BLOCK = 128


def left_padded(prompts, pad_id):
    """[(ids, types)] -> dict of tensors [rows, longest], padded on the left; positions count from each row's start.

    Without types (None), the dict has no `token_type_ids`.
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


def argmax(scores):
    """Each row's token of the highest score, the first of equals: [rows, vocabulary] -> [rows]."""
    if scores.device.type != "cpu":
        return scores.argmax(-1)
    # torch's argmax takes ten times as long as amax, so it only looks for the best block, and then within it.
    length, whole = scores.shape[1], scores.shape[1] // BLOCK * BLOCK
    best = scores[:, :whole].unflatten(1, (-1, BLOCK)).amax(-1)
    if whole < length:
        best = torch.cat([best, scores[:, whole:].amax(-1, keepdim=True)], dim=1)
    first = best.argmax(-1, keepdim=True) * BLOCK
    # Beyond the end, the last token again: it is never the first of equals.
    columns = (first + torch.arange(BLOCK)).clamp(max=length - 1)
    return columns.gather(1, scores.gather(1, columns).argmax(-1, keepdim=True))[:, 0]


class OnlyOwnEnd(LogitsProcessor):
    """Forbids all special tokens except the end token of the row's own task. The scores are changed in place.

    Args:
        special: ids that are forbidden unless they are the row's end token.
        ends: each row's end token.
        beams: number of times `generate` repeats each row.
    """

    def __init__(self, special, ends, beams, device):
        self.special = torch.tensor(special, dtype=torch.long, device=device)
        ends = torch.tensor(ends, device=device).repeat_interleave(beams)
        self.forbidden = self.special != ends[:, None]

    def __call__(self, input_ids, scores):
        if not len(self.special):
            return scores
        kept = scores[:, self.special].masked_fill(self.forbidden, float("-inf"))
        return scores.index_copy_(1, self.special, kept)
