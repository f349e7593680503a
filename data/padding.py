"""Lists of token ids of varying length -> arrays and tensors of one shape, padded on the right."""

import numpy as np
from versatile.utils.lengths import IGNORE, round_up


def padded_width(lists, longest):
    """The width to pad lists to: the length of the longest, rounded up, at most `longest`."""
    return min(round_up(max(map(len, lists))), longest)


def pad(lists, width, fill):
    """Lists of ids, padded with `fill`: [rows, width] int64."""
    padded = np.full((len(lists), width), fill, np.int64)
    for row, ids in zip(padded, lists):
        row[: len(ids)] = ids
    return padded


def token_mask(lists, width):
    """[rows, width] int64: 1 for tokens, 0 for padding."""
    return (np.arange(width) < np.fromiter(map(len, lists), np.int64, len(lists))[:, None]).astype(np.int64)


def causal_arrays(lists, starts, width, pad_id):
    """Inputs of a causal model: arrays input_ids, attention_mask, position_ids, labels, int64 [rows, width].

    Args:
        lists: the rows' token ids.
        starts: where each row's labels begin; labels are the ids from there on, `IGNORE` before and in the padding.
        width: see `pad`.
        pad_id: the padding id.
    """
    mask, columns = token_mask(lists, width), np.arange(width)
    ids = pad(lists, width, pad_id)
    labels = np.where(mask.astype(bool) & (columns >= np.asarray(starts)[:, None]), ids, IGNORE)
    return dict(input_ids=ids, attention_mask=mask, position_ids=np.broadcast_to(columns, ids.shape), labels=labels)


def tensors(arrays):
    """numpy arrays -> tensors: floats as float32, others as int64."""
    import torch

    types = {k: np.float32 if np.issubdtype(a.dtype, np.floating) else np.int64 for k, a in arrays.items()}
    return {k: torch.from_numpy(np.ascontiguousarray(a).astype(types[k])) for k, a in arrays.items()}
