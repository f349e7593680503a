"""One vector from an encoder's states: mean, max, or attentive pooling over the tokens that are not padding."""

import torch
from torch import nn


def mean_pool(states, mask):
    """Mean over the tokens of each row.

    Args:
        states: [rows, tokens, width].
        mask: [rows, tokens], 1 for tokens that count.

    Returns:
        [rows, width]; zeros for a row without tokens.
    """
    weights = mask.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def max_pool(states, mask):
    """Maximum of each feature over the tokens of each row; arguments and result as in `mean_pool`."""
    real = mask.bool().unsqueeze(-1)
    highest = states.masked_fill(~real, torch.finfo(states.dtype).min).amax(1)
    return highest * real.any(1)


class AttentivePooling(nn.Module):
    """Σ_t a_t·h_t with a = softmax(v·tanh(W·h_t + b)) over the tokens of a row (Lin et al. 2017, one hop).

    Args:
        width: size of a state.
        hidden: size of the scorer's hidden layer (default: width).
    """

    def __init__(self, width, hidden=None):
        super().__init__()
        self.hidden = nn.Linear(width, hidden or width)
        self.score = nn.Linear(hidden or width, 1, bias=False)

    def weights(self, states, mask):
        """[rows, tokens] attention, 0 at padding, summing to 1 in every row that has tokens."""
        scores = self.score(torch.tanh(self.hidden(states))).squeeze(-1)
        scores = scores.masked_fill(~mask.bool(), torch.finfo(scores.dtype).min)
        return scores.softmax(-1) * mask.to(scores.dtype)

    def forward(self, states, mask):
        """Arguments and result as in `mean_pool`."""
        return (self.weights(states, mask).unsqueeze(-1) * states).sum(1)


POOLINGS = {"mean": mean_pool, "max": max_pool}
"""The poolings without trained parameters."""
