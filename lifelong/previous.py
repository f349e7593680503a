"""The model as the task before left it, as a teacher of the next task's rows (LwF)."""

import copy

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from versatile.training.objectives import label_scores


def copy_model(model):
    """A model that stays as `model` is now; what is frozen in that is shared, not copied."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    frozen |= {id(b): b for b in model.buffers()}
    previous = copy.deepcopy(model, frozen)
    for p in previous.parameters():
        # A shared parameter needs no gradient already.
        p.requires_grad_(False)
    return previous.to(idist.device()).eval()


class PreviousModelLoss:
    """λ · Σ_labels weight · (-Σ_i y'_i log ŷ'_i), a term of `losses.WeightedLoss`.

    Args:
        model: of `copy_model`.
        weight: λ.
        temperature: T, of both distributions; as published the sum is not multiplied with T².
    """

    def __init__(self, model, weight, temperature):
        self.model, self.weight, self.temperature = model, weight, temperature

    def __call__(self, output, targets, batch):
        with torch.no_grad():
            previous = label_scores(self.model, batch).scores
        return self.weight * (soft_cross_entropy(output.scores, previous, self.temperature) * targets.hard).sum()


def soft_cross_entropy(scores, teacher, temperature):
    """[n] cross-entropy between a teacher's distributions and those of `scores`, both [n, vocabulary], at temperature
    T; a token that the teacher rules out (-inf) adds nothing, whatever the student makes of it."""
    ours = F.log_softmax(scores.float() / temperature, dim=-1)
    theirs = F.softmax(teacher.float() / temperature, dim=-1)
    return -(theirs * ours.masked_fill(theirs == 0, 0.0)).sum(-1)
