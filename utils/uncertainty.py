"""Uncertainty sampling over tasks (MT-uncertainty, Pilault, El hattami, Pal 2021, section 2.3).

Out of the candidates, one batch per task, a step keeps the rows that the model is least certain about, weighted by how
uncertain it is about their task. Tasks are ids here; their names are up to the caller.
"""

import torch
import torch.nn.functional as F
from versatile.utils import devices


def normalized_entropy(logits, valid=None):
    """Entropy of a softmax, divided by its maximum for that number of classes.

        -Σ p ln p / (ln C + 1e-5)

    Args:
        logits: [rows, classes], fp32.
        valid: [rows, classes] which classes a row has, if rows have different numbers.

    Returns:
        [rows] in 0..1; 0 if there is one class, a regression.
    """
    if valid is None:
        valid = torch.ones_like(logits, dtype=torch.bool)
    logits = logits.masked_fill(~valid, -torch.inf)
    log_p = F.log_softmax(logits, -1)
    # A class of probability 0 adds nothing; 0 times -inf would be NaN.
    terms = torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0)
    most = valid.sum(-1).to(logits.dtype).log() + 1e-5
    return -terms.sum(-1) / most


def candidate_entropies(model, batch, dtype=None):
    """The entropies of a batch's rows under the current model, all tasks in one pass.

    Without gradients and without dropout (the original leaves dropout on). The model's mode is restored afterwards.

    Args:
        model: called with the batch, which it copies to its device; its output has `entropies`.
        batch: {name: tensor}; labels are ignored.
        dtype: of the matrix products; None: bf16 where the hardware has it, else fp32.

    Returns:
        [rows] fp32, on the model's device.
    """
    p = next(model.parameters())
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if dtype is None:
        dtype = torch.bfloat16 if devices.has_bf16(p.device) else torch.float32
    training = model.training
    model.eval()
    try:
        # Weights are cast once for all parts of the batch. Inside another autocast the copies would stay cached,
        # without gradients.
        cached = not torch.is_autocast_enabled(p.device.type)
        with torch.no_grad(), torch.autocast(p.device.type, dtype, dtype != torch.float32, cache_enabled=cached):
            return model(**inputs).entropies.float()
    finally:
        model.train(training)


def task_means(entropies, task_ids):
    """Mean entropy of each row's task.

    Args:
        entropies: [rows].
        task_ids: [rows].

    Returns:
        ([rows] mean over the rows of the same task, the largest of them)
    """
    _, which = task_ids.unique(return_inverse=True)
    zeros = entropies.new_zeros(int(which.max()) + 1)
    means = zeros.index_add(0, which, entropies) / zeros.index_add(0, which, torch.ones_like(entropies))
    return means[which], means.max()


def scores(entropies, task_ids, regression=()):
    """How useful each candidate is to a step: entropy × its task's mean / the largest mean.

    A regression has no entropy. If it has a lender, its rows take the values of the lender's rows in order, as far as
    both have rows, after the largest mean is taken; the rest keep 0. Without a lender its rows take the mean of the
    other tasks' means. (In the original they are then never chosen.)

    Args:
        entropies: [rows].
        task_ids: [rows].
        regression: {task id of a regression: task id of its lender or None}. GLUE: STS-B borrows from MRPC.

    Returns:
        [rows]
    """
    means, largest = task_means(entropies, task_ids)
    entropies, means = entropies.clone(), means.clone()
    rows_of = {int(task): (task_ids == task).nonzero().squeeze(-1) for task in task_ids.unique()}
    others = [means[rows[0]] for task, rows in rows_of.items() if task not in regression]
    for task, lender in dict(regression).items():
        rows, lent = rows_of.get(task), rows_of.get(lender)
        if rows is None:
            continue
        if lent is not None:
            count = min(len(rows), len(lent))
            entropies[rows[:count]], means[rows[:count]] = entropies[lent[:count]], means[lent[:count]]
        elif others:
            entropies[rows] = means[rows] = torch.stack(others).mean()
    return entropies * means / largest if largest > 0 else torch.zeros_like(entropies)


def choose_rows(entropies, task_ids, keep, regression=()):
    """The candidates that a step keeps.

    Args:
        entropies, task_ids, regression: as in `scores`; on any device.
        keep: how many rows; fewer if there are fewer.

    Returns:
        [keep] row numbers on the CPU, best first; on a tie the earlier row.
    """
    row_scores = scores(entropies.detach().float().cpu(), torch.as_tensor(task_ids).cpu(), dict(regression))
    return row_scores.sort(descending=True, stable=True).indices[:keep]
