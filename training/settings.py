"""Settings of the training loop, and the optimizer steps that follow from them."""

import math
from dataclasses import dataclass

import torch


@dataclass
class Settings:
    """Training settings. Flags of the same names set them; see `train.py --help`."""

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
    # A point of the curve is the mean loss of the steps since the previous point, not the loss of its step.
    mean_loss: bool = False
    log_first: bool = False
    # eval_epochs: evaluate after each epoch and at the end; eval_steps: also every this many steps; eval_first: then
    # also after the first step.
    eval_epochs: bool = True
    eval_steps: int | None = None
    eval_first: bool = False
    dtype: torch.dtype = torch.float32
    report_to: tuple = ("tensorboard",)
    # Names of the flags, for messages.
    rate_flag: str = "--lr"
    batch_flag: str = "--train_batch_size"

    @classmethod
    def from_flags(cls, args, **more):
        """Settings from the flags named like a field; `more` adds to or overrides them."""
        flags = {name: getattr(args, name) for name in cls.__dataclass_fields__ if hasattr(args, name)}
        return cls(**flags | more)


class StepPlan:
    """The micro-batches of each optimizer step of a training run. No step crosses the end of an epoch.

    Args:
        batches: see `Trainer`.
        settings: `Settings`.

    Attributes:
        epoch_steps, total_steps: optimizer steps per epoch and in total.
        epochs: number of epochs that are started.
    """

    def __init__(self, batches, settings):
        self.accumulation, self.batches = settings.gradient_accumulation_steps, len(batches.plan(0))
        self.epoch_steps = math.ceil(self.batches / self.accumulation)
        self.total_steps = self.epoch_steps * settings.n_epochs
        if settings.max_steps:
            self.total_steps = min(self.total_steps, settings.max_steps)
        self.epochs = math.ceil(self.total_steps / self.epoch_steps)

    def micro_batches(self, step):
        """[(epoch, number within the epoch)] of the micro-batches of optimizer step `step` (from 0)."""
        epoch, start = divmod(step, self.epoch_steps)
        first = start * self.accumulation
        return [(epoch, i) for i in range(first, min(first + self.accumulation, self.batches))]
