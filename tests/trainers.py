"""What tests of the loop share: a `Trainer` with the usual optimizer and schedule."""

from versatile.training.objectives import CrossEntropy
from versatile.training.optimizers import build_adamw
from versatile.training.runs import ModelFiles, Run
from versatile.training.schedules import linear_decay
from versatile.training.settings import Settings, StepPlan
from versatile.training.trainer import Trainer


def build_trainer(model, batches, folder, *, lr=1e-2, eps=1e-6, weight_decay=0.0, warmup_steps=0, objective=None,
                  schedule=None, evaluate=None, callbacks=(), save=lambda at: None, load=None, **settings):  # fmt: skip
    """A `Trainer` of `build_adamw` and `linear_decay`, or another schedule, that trains into a new folder.

    Args:
        schedule: called with the `StepPlan`, returns step -> rate.
        save, load: of `ModelFiles`.
        settings: of `Settings`.
    """
    folder.mkdir(exist_ok=True)
    settings = Settings(**settings)
    plan = StepPlan(batches, settings)
    schedule = schedule(plan) if schedule else linear_decay(lr, plan.total_steps, warmup_steps)
    run = Run(folder, keep=100).bind(ModelFiles(save, load))
    return Trainer(model, batches, objective or CrossEntropy(), build_adamw(model, lr, eps, weight_decay), schedule,
                   run, evaluate, callbacks, settings=settings)  # fmt: skip
