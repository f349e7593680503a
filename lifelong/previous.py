"""The model as it was after the previous task, as a teacher for the next task's rows (LwF)."""

import copy

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from versatile.training.objectives import label_scores


def copy_model(model):
    """A frozen copy of `model` as it is now; parameters already frozen are shared, not copied."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    frozen |= {id(b): b for b in model.buffers()}
    previous = copy.deepcopy(model, frozen)
    for p in previous.parameters():
        # Shared parameters do not require gradients already.
        p.requires_grad_(False)
    return previous.to(idist.device()).eval()


class PreviousModelLoss:
    """λ · Σ_labels weight · (-Σ_i y'_i log ŷ'_i), a term of `losses.WeightedLoss`.

    Args:
        model: as returned by `copy_model`.
        weight: λ.
        temperature: T of both distributions; as published, the sum is not multiplied by T².
    """

    def __init__(self, model, weight, temperature):
        self.model, self.weight, self.temperature = model, weight, temperature

    def __call__(self, output, targets, batch):
        with torch.no_grad():
            previous = label_scores(self.model, batch).scores
        return self.weight * (soft_cross_entropy(output.scores, previous, self.temperature) * targets.hard).sum()


def soft_cross_entropy(scores, teacher, temperature):
    """[n] cross-entropy between a teacher's distributions and those of `scores`, both [n, vocabulary], at temperature
    T; a token that the teacher rules out (-inf) contributes nothing, whatever the student's score."""
    ours = F.log_softmax(scores.float() / temperature, dim=-1)
    theirs = F.softmax(teacher.float() / temperature, dim=-1)
    return -(theirs * ours.masked_fill(theirs == 0, 0.0)).sum(-1)
