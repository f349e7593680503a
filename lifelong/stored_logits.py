"""The model's logits for samples kept in a memory, stored as targets for later training (DER++)."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from versatile.data.encoders.question_answer import Row
from versatile.lifelong.losses import Objective
from versatile.training.objectives import label_scores
from versatile.utils.devices import autocast


@dataclass(frozen=True)
class RowWithLogits(Row):
    """A row with the k highest logits of every label.

    Attributes:
        top_ids, top_logits: [labels, k] the tokens and their logits.
        use_logits: train on the logits, not on the labels.
    """

    top_ids: np.ndarray = None
    top_logits: np.ndarray = None
    use_logits: bool = False

    @classmethod
    def of(cls, row, top_ids, top_logits):
        """From a row and its logits."""
        return cls(**{f.name: getattr(row, f.name) for f in fields(Row)}, top_ids=top_ids, top_logits=top_logits)


class StoredLogitsLoss:
    """α · Σ_labels weight · mean_k (z'_k - h_k)², a term of `losses.WeightedLoss`.

    Args:
        alpha: α.
    """

    def __init__(self, alpha):
        self.alpha = alpha

    def __call__(self, output, targets, batch):
        if targets.stored is None:
            return output.scores.new_zeros((), dtype=torch.float32)
        ids, stored = targets.stored
        difference = output.scores[targets.at].float().gather(1, ids) - stored
        return self.alpha * (difference.square().mean(1) * targets.soft).sum()


@torch.no_grad()
def top_logits(sequence, task, indices, k):
    """The model's k highest logits for every label of some of a task's samples.

    Args:
        sequence: `learning.Sequence`.
        task: the task's name.
        indices: indices of the samples.

    Returns:
        [(ids [labels, k], logits [labels, k])] for the samples, highest first.
    """
    if not len(indices):
        return []
    model, rows = sequence.model, sequence.encode(task, indices)
    batches, result = sequence.make_batches(rows, Objective(None), weighted=False, share=False), [None] * len(rows)
    was_training = model.training
    model.eval()
    for step, chosen in enumerate(batches.plan()):
        batch, labels = batches.batch(0, step)
        with autocast(model.device, sequence.dtype):
            output = label_scores(model, batch)
        best = output.scores[:labels].float().topk(min(k, output.scores.shape[1]))
        ids, logits, owners = (t.cpu().numpy() for t in (best.indices, best.values, output.rows[:labels]))
        for number, row in enumerate(chosen):
            result[row] = ids[owners == number].astype(np.int32), logits[owners == number]
    model.train(was_training)
    return result


def pack_logits(logits):
    """{task: {index: (ids, logits)}} as tensors: {task: {"indices", "counts" [n], "ids", "scores" [labels, k]}}."""
    packed = {}
    for task, own in logits.items():
        parts = zip(*own.values()) if own else ([np.zeros((0, 0), np.int32)], [np.zeros((0, 0), np.float32)])
        ids, values = (torch.from_numpy(np.concatenate(part)) for part in parts)
        counts = torch.tensor([len(ids) for ids, _ in own.values()])
        packed[task] = dict(indices=torch.tensor([*own], dtype=torch.long), counts=counts, ids=ids, scores=values)
    return packed


def unpack_logits(packed):
    """The inverse of `pack_logits`."""
    logits = {}
    for task, own in packed.items():
        counts = own["counts"].tolist()
        parts = zip(*(own[name].split(counts) if counts else () for name in ("ids", "scores")))
        logits[task] = {i: (ids.numpy(), values.numpy()) for i, (ids, values) in zip(own["indices"].tolist(), parts)}
    return logits


def read_memory_with_logits(path, sizes):
    """The state of a memory with stored logits in a file.

    Args:
        sizes: {task: its number of samples}.

    Raises:
        ValueError: the file holds samples that these tasks do not have, or its logits are not those of its samples.
    """
    state = torch.load(path, "cpu", weights_only=True)
    for task, kept in state["kept"].items():
        own = state["scores"][task]
        labels = int(own["counts"].sum())
        fits = own["indices"].tolist() == kept and len(own["counts"]) == len(kept)
        if not fits or not {*kept} <= {*range(sizes[task])} or not len(own["ids"]) == len(own["scores"]) == labels:
            raise ValueError(f"its logits are not those of the samples kept of {task}")
    return state
