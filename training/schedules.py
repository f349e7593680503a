"""Learning-rate schedules for `training.trainer.Trainer`: functions of the number of an optimizer step, from 0."""

import inspect
import json

import ignite.distributed as idist
import torch
from versatile.utils.errors import UserError, first_line
from versatile.utils.settings import SCHEDULE_NAMES

# Arguments that a schedule cannot do without, one of which is needed; an example of the first.
NEEDED = {"cosine_with_min_lr": ("min_lr", "min_lr_rate"), "warmup_stable_decay": ("num_decay_steps",)}
EXAMPLES = {"cosine_with_min_lr": {"min_lr": 1e-5}, "warmup_stable_decay": {"num_decay_steps": 100}}


def linear_decay(lr, total_steps, warmup_steps=0):
    """A linear warm-up, whose first step already has a rate above 0, then a linear decay to 0 at the end.

    Args:
        lr: the peak learning rate.
        total_steps: total number of optimizer steps.
        warmup_steps: number of steps over which the rate rises.

    Returns:
        step -> rate.
    """

    def rate(step):
        if step < warmup_steps:
            return lr * (step + 1) / warmup_steps
        return lr * (total_steps - step) / max(1, total_steps - warmup_steps)

    return rate


def check_schedule(args):
    """Raise a `UserError` if --lr_scheduler_type cannot be used with its --lr_scheduler_kwargs."""
    if args.lr_scheduler_type:
        choose_schedule(args, args.lr or 1.0, 10, 1)


def choose_schedule(args, lr, total_steps, warmup_steps=0):
    """The schedule named by --lr_scheduler_type; linear without options is `linear_decay`.

    Args:
        args: the flags.
        lr, total_steps, warmup_steps: see `linear_decay`.
    """
    warn_of_long_warmup(warmup_steps, total_steps)
    if args.lr_scheduler_type == "linear" and not args.lr_scheduler_kwargs:
        return linear_decay(lr, total_steps, warmup_steps)
    return build_schedule(args.lr_scheduler_type, lr, warmup_steps, total_steps, args.lr_scheduler_kwargs)


def warn_of_long_warmup(warmup_steps, total_steps):
    """Print a warning if a run ends before its warm-up does."""
    if warmup_steps > total_steps and idist.get_rank() == 0:
        print(f"warning: {warmup_steps} warm-up steps are more than the run's {total_steps}, so it never reaches the "
              "learning rate: train for longer, or lower --warmup_steps")  # fmt: skip


def build_schedule(name, lr, warmup_steps, total_steps, options=None):
    """A schedule of transformers by its name (`--lr_scheduler_type`).

    Args:
        name: "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "inverse_sqrt", ….
        lr: the peak learning rate.
        warmup_steps: steps over which the rate rises to the peak; it is 0 in the first.
        total_steps: total number of optimizer steps.
        options: schedule-specific options, as in `--lr_scheduler_kwargs`.

    Returns:
        step -> rate.

    Raises:
        UserError: the schedule is not a function of the step, or its options do not fit.
    """
    from transformers import get_scheduler

    name = getattr(name, "value", name)
    check_options(name, options or {})
    # transformers binds a schedule to an optimizer; only its rates are needed.
    unused = torch.optim.SGD([torch.zeros(1)], lr=lr)
    try:
        scheduler = get_scheduler(name, unused, warmup_steps, total_steps, scheduler_specific_kwargs=options or {})
        (factor,) = scheduler.lr_lambdas
    except (AttributeError, TypeError, ValueError) as error:
        if options:
            raise UserError(f"the schedule {name} cannot use them: {first_line(error)}",
                            location=f"--lr_scheduler_kwargs '{json.dumps(options)}'",
                            expected=f"values for some of {', '.join(option_names(name))}") from error
        raise UserError(f"{name!r} cannot be used: {first_line(error)}", location="--lr_scheduler_type",
                        expected="a schedule that is known before the run",
                        remedy=f"choose one of {', '.join(SCHEDULE_NAMES)}") from error  # fmt: skip
    return lambda step: lr * factor(step)


def option_names(name):
    """Names of the options of a transformers schedule."""
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    common = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs")
    return [key for key in inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[name]).parameters if key not in common]


def check_options(name, options):
    """Raise a `UserError` if a schedule does not have one of these options, or needs another."""
    known = option_names(name)
    if unknown := [key for key in options if key not in known]:
        others = [other for other in SCHEDULE_NAMES if set(options) <= set(option_names(other))]
        remedy = f"or choose a schedule that has it: --lr_scheduler_type {' or '.join(others)}" if others else None
        raise UserError(f"the schedule {name} has no argument {unknown[0]!r}", location="--lr_scheduler_kwargs",
                        expected=", ".join(known) or "none", remedy="; ".join(filter(None, ["leave it out", remedy])))
    needed = NEEDED.get(name, ())
    if needed and not set(needed) & set(options):
        raise UserError(f"the schedule {name} needs {' or '.join(needed)}", location="--lr_scheduler_kwargs",
                        expected=f"some of {', '.join(known)}",
                        remedy=f"for example --lr_scheduler_kwargs '{json.dumps(EXAMPLES[name])}'")  # fmt: skip
