"""LAMOL's learning rate schedule: a short warm-up, then decay over all epochs of a task, counted in samples."""

import math
from dataclasses import dataclass

from versatile.utils.errors import UserError

STYLES = ("linear", "cos", "None")


@dataclass(frozen=True)
class Annealing:
    """The learning rate as a function of the samples seen.

    Attributes:
        lr: the peak rate.
        warmup: samples over which the rate rises linearly from 0 to the peak.
        total: samples over which it then decays.
        style: --decay_style: "linear", "cos" or "None" (constant).
    """

    lr: float
    warmup: int
    total: int
    style: str = "linear"

    def __post_init__(self):
        if self.style not in STYLES:
            raise UserError(f"{self.style!r} is not a decay style", location="--decay_style",
                            expected=", ".join(STYLES), remedy="choose one of them")  # fmt: skip

    @classmethod
    def of(cls, lr, samples, epochs, warmup_ratio=0.005, style="linear"):
        """Warm-up over a fraction of one epoch of `samples`, in whole samples, then decay over the samples of all
        epochs: as in the originals, training ends just before the rate reaches 0."""
        return cls(lr, int(warmup_ratio * samples), samples * epochs, style)

    def __call__(self, seen):
        """The rate of a step before which `seen` samples have been seen.

        With a warm-up, the rate of the first step is 0, as in the originals.

        After the end it is 0. (In the originals, linear decay turns negative there, and the cosine rises again.)
        """
        if self.warmup and seen <= self.warmup:
            return self.lr * seen / self.warmup
        done = min((seen - self.warmup) / self.total, 1.0)
        if self.style == "linear":
            return self.lr * (1 - done)
        return self.lr * (math.cos(math.pi * done) + 1) / 2 if self.style == "cos" else self.lr
