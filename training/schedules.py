"""Learning-rate schedules for `training.trainer.Trainer`: functions of the number of an optimizer step, from 0."""

import torch
from versatile.utils.errors import UserError


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
    if args.lr_scheduler_type == "linear" and not args.lr_scheduler_kwargs:
        return linear_decay(lr, total_steps, warmup_steps)
    return build_schedule(args.lr_scheduler_type, lr, warmup_steps, total_steps, args.lr_scheduler_kwargs)


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

    # transformers binds a schedule to an optimizer; only its rates are needed.
    unused = torch.optim.SGD([torch.zeros(1)], lr=lr)
    try:
        scheduler = get_scheduler(name, unused, warmup_steps, total_steps, scheduler_specific_kwargs=options or {})
        (factor,) = scheduler.lr_lambdas
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{getattr(name, 'value', name)!r} cannot be used: {error}", location="--lr_scheduler_type",
                        expected="a schedule that is known before the run, with the --lr_scheduler_kwargs it takes",
                        remedy="choose linear, cosine, polynomial, constant, …") from error  # fmt: skip
    return lambda step: lr * factor(step)
