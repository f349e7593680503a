"""The loop's settings, how long and how often, and the optimizer steps that follow from them."""

import math
from dataclasses import dataclass

import torch


@dataclass
class Settings:
    """How to train. Flags of the same names set these; see `train.py --help`."""

    n_epochs: int
    gradient_accumulation_steps: int = 1
    max_norm: float = 1.0
    max_steps: int | None = None
    seed: int = 42
    save_steps: int | None = None
    early_stopping: int | None = None
    select: str = "best"
    eval_before_start: bool = False
    log_every: int = 10
    # A point of the curve is the mean loss of the steps since the one before, not the step's own.
    mean_loss: bool = False
    log_first: bool = False
    # The model is evaluated after each epoch and at the end, and after so many steps.
    eval_epochs: bool = True
    eval_steps: int | None = None
    dtype: torch.dtype = torch.float32
    report_to: tuple = ("tensorboard",)
    # What the flags are called, for messages.
    rate_flag: str = "--lr"
    batch_flag: str = "--train_batch_size"

    @classmethod
    def of(cls, args, **more):
        """Those of the flags that have a field's name; `more` beside or instead of them."""
        flags = {name: getattr(args, name) for name in cls.__dataclass_fields__ if hasattr(args, name)}
        return cls(**flags | more)


class StepPlan:
    """The optimizer steps of a training: which micro-batches each is made of. None crosses an epoch's end.

    Args:
        batches: as `Trainer` takes them.
        settings: `Settings`.

    Attributes:
        epoch_steps, total_steps: optimizer steps of an epoch and in all.
        epochs: how many are begun.
    """

    def __init__(self, batches, settings):
        self.accumulation, self.batches = settings.gradient_accumulation_steps, len(batches.plan(0))
        self.epoch_steps = math.ceil(self.batches / self.accumulation)
        self.total_steps = self.epoch_steps * settings.n_epochs
        if settings.max_steps:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.epochs = math.ceil(self.total_steps / self.epoch_steps)

    def micro_batches(self, step):
        """[(epoch, number in the epoch)] of optimizer step `step` (from 0)."""
        epoch, start = divmod(step, self.epoch_steps)
        first = start * self.accumulation
        return [(epoch, i) for i in range(first, min(first + self.accumulation, self.batches))]
