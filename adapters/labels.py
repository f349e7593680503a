"""Positions of a batch's labels, and the scores that predict them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from versatile.utils.lengths import IGNORE

# Rows of the head's matrix product are rounded up to a multiple of this, so that the varying number of labelled
# positions does not produce a new shape (and a new kernel) for every batch.
LABEL_ROUND = 64


@dataclass
class LabelScores:
    """The output of a model's forward with labels. It has no loss: objectives compute it (training/objectives.py).

    Attributes:
        scores: [n, vocabulary]; n is the number of labels, rounded up to a multiple of 64.
        targets: [n] the labels, -100 in entries that only round up.
        rows: [n] row of each label, or None.
        nll: [n] the targets' negative log-likelihoods, 0 without a target, for models whose distribution is not a
            softmax of `scores`; `scores` is then None.
    """

    scores: torch.Tensor | None
    targets: torch.Tensor
    rows: torch.Tensor | None = None
    nll: torch.Tensor | None = None


def label_positions(labels):
    """Positions of the labels, and the labels to predict there.

    Args:
        labels: [rows, length], unshifted, -100 where there is no loss.

    Returns:
        (row [n], position whose output predicts the label [n], label [n]); n is the number of labels rounded up
        to a multiple of 64, and the surplus has label -100.
    """
    shifted = labels[:, 1:].reshape(-1)
    positions = (shifted != IGNORE).nonzero().squeeze(-1)
    surplus = -len(positions) % LABEL_ROUND
    targets = F.pad(shifted[positions], (0, surplus), value=IGNORE)
    positions = F.pad(positions, (0, surplus))
    length = labels.shape[1] - 1
    return positions // length, positions % length, targets
