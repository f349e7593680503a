"""Subspaces of one low-rank update, one per task of a sequence (O-LoRA; Wang et al. 2023).

For a sequence of T tasks the update has rank T·r: task t trains its own rows of A and columns of B, and those of the
other tasks stay fixed. As B starts at zero, the update is the sum over the tasks trained so far,

    W x + alpha / r · Σ_{i ≤ t} B_i A_i x

and the model is stored and loaded as one with an ordinary LoRA.
"""

import torch
from versatile.adapters.methods.lora import LowRankUpdate


class Subspaces:
    """A stage's part of every low-rank update in a model.

    Args:
        model: an attached model with a LoRA of rank T·r.
        rank: r.
        number: t, from 0.
    """

    def __init__(self, model, rank, number):
        self.updates = [m for m in model.added["lora"].modules() if isinstance(m, LowRankUpdate)]
        self.before, self.own = slice(0, number * rank), slice(number * rank, (number + 1) * rank)
        self.handles, self.others = [], []

    def overlap(self):
        """L_orth = Σ_{i < t} ‖A_i A_tᵀ‖² over all updates (equation 8; A_i [r, in] holds a basis of the subspace)."""
        return sum((u.A[self.before].detach() @ u.A[self.own].T).square().sum() for u in self.updates)

    def freeze_other_subspaces(self, optimizer):
        """Keep gradients and weight decay from changing the other tasks' parts, until `release`."""
        for update in self.updates:
            for p, dim in ((update.A, 0), (update.B, 1)):
                mask = torch.zeros_like(p)
                mask.movedim(dim, 0)[self.own] = 1
                self.handles.append(p.register_hook(lambda gradient, mask=mask: gradient * mask))
                self.others.append((p, mask.bool(), p.detach().clone()))
        self.handles.append(optimizer.register_step_post_hook(lambda *step: self.restore()))

    @torch.no_grad()
    def restore(self):
        """Undo the effect of weight decay on the other tasks' parts."""
        for p, own, start in self.others:
            p.copy_(torch.where(own, p, start))

    def release(self):
        """Undo `freeze_other_subspaces`."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.others = [], []


class OrthogonalityLoss:
    """λ · L_orth, a term of `losses.WeightedLoss`; each part of a batch contributes its share.

    Args:
        subspaces: `Subspaces`.
        weight: λ.
    """

    def __init__(self, subspaces, weight):
        self.subspaces, self.weight = subspaces, weight

    def __call__(self, output, targets, batch):
        return self.weight * self.subspaces.overlap() * targets.share()
