"""Where a batch's labels stand, and the scores that predict them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

IGNORE = -100
# Rows of the head's matrix product are rounded up to this many, so that the labelled positions of a batch,
# which differ in number every time, do not make a new shape (and a new kernel) every time.
LABEL_ROUND = 64


@dataclass
class LabelScores:
    """What a model's forward returns with labels: no loss, that is an objective's (training/objectives.py).

    Attributes:
        scores: [n, vocabulary]; n is the number of labels, rounded up to a multiple of 64.
        targets: [n] the labels, -100 where an entry is only there to round up.
        rows: [n] the row of each, or None.
        nll: [n] the targets' negative log-likelihoods, 0 where there is none, of a model whose distribution is no
            softmax of `scores`, which are None then.
    """

    scores: torch.Tensor | None
    targets: torch.Tensor
    rows: torch.Tensor | None = None
    nll: torch.Tensor | None = None


def label_positions(labels):
    """Where the labels stand, and what is to be predicted there.

    Args:
        labels: [rows, length], unshifted, -100 where there is no loss.

    Returns:
        (row [n], position whose output predicts the label [n], label [n]); n is the number of labels rounded up
        to a multiple of 64, the surplus has label -100.
    """
    shifted = labels[:, 1:].reshape(-1)
    positions = (shifted != IGNORE).nonzero().squeeze(-1)
    surplus = -len(positions) % LABEL_ROUND
    targets = F.pad(shifted[positions], (0, surplus), value=IGNORE)
    positions = F.pad(positions, (0, surplus))
    length = labels.shape[1] - 1
    return positions // length, positions % length, targets
