"""Checks of training_state.pt before a run resumes from it."""

from versatile.training.runs import STATE
from versatile.utils.errors import UserError, first_line
from versatile.utils.schema import ListOf, MapOf, Number, Record, Whole, validate

_REMEDY = "remove this checkpoint: the run resumes from the one before"
_LOGGED = ListOf(Record(fields=dict(step=Whole(required=True))), longest=2**53, required=True)
# Names of an optimizer's tensors that have their parameter's shape.
_SHAPED_AS_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_STATE = Record(
    fields=dict(
        step=Whole(0, 2**53, required=True),
        optimizer=Record(fields=dict(state=Record(required=True), param_groups=ListOf(required=True)), required=True),
        scaler=Record(required=True),
        world=Whole(1, 2**31 - 1, required=True),
        best=MapOf(Number(), required=True),
        best_step=MapOf(Whole(), required=True),
        waited=MapOf(Whole(), required=True),
        tokens=Whole(required=True),
        seconds=Number(0, required=True),
        callbacks=ListOf(Record(), required=True),
        history=Record(fields=dict(train=_LOGGED, valid=_LOGGED), required=True),
    )
)


def refuse_other_data(stored, key, location):
    """Raise a `UserError` if a run's data differ from those that a checkpoint was trained on.

    Args:
        stored, key: the data keys of the checkpoint and of the run, each a string or {split: string}.
        location: the checkpoint.
    """
    if stored == key:
        return
    which = ""
    if isinstance(stored, dict) and isinstance(key, dict):
        changed = [split for split in {**stored, **key} if stored.get(split) != key.get(split)]
        which = f" ({' and '.join({'train': 'training', 'valid': 'validation'}.get(s, s) for s in changed)})"
    raise UserError(f"the data have changed since this run was started{which}", location=location,
                    expected="the same data files, tokenizer and limits",
                    remedy="restore them, or start a new run")  # fmt: skip


def refuse_other_backbone(stored, fingerprint, location):
    """Raise a `UserError` if a run starts from other pretrained weights than a checkpoint did.

    Args:
        stored, fingerprint: of the checkpoint and of the run; None in checkpoints older than this check.
        location: the checkpoint.
    """
    if stored not in (None, fingerprint):
        raise UserError("the backbone is not the one this run was started from", location=location,
                        expected=f"weights with the fingerprint {stored}",
                        remedy="restore the original backbone, or start a new run")  # fmt: skip


def check_state(state, step, location):
    """Raise a `UserError` if training_state.pt is not what `Trainer.state` returns at optimizer step `step`.

    Args:
        location: the file, for messages.
    """
    validate(state, Record(), location, _REMEDY)
    if "data_key" not in state:
        raise UserError("no 'data_key'", location=location, remedy=_REMEDY)
    validate(state, _STATE, location, _REMEDY)
    if state["step"] != step:
        raise UserError(f"step is {state['step']}", location=location, expected=str(step), remedy=_REMEDY)


def load_optimizer(state, optimizer, scaler, checkpoint):
    """Restore the states of an optimizer and a gradient scaler.

    Args:
        state: content of training_state.pt.
        checkpoint: its directory, for messages.

    Raises:
        UserError: the states do not fit.
    """
    try:
        _refuse_other_shapes(state, optimizer, checkpoint)
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"the optimizer's state does not fit this run: {first_line(error)}",
            location=checkpoint / STATE,
            remedy=_REMEDY,
        ) from error


def _refuse_other_shapes(state, optimizer, checkpoint):
    """Raise a `UserError` for moments of other shapes than the parameters', or none at all: torch would read beyond
    their ends, or start from zero."""
    stored, groups = state["optimizer"], optimizer.param_groups
    saved = [number for group in stored["param_groups"] for number in group["params"]]
    for number, p in zip(saved, [p for group in groups for p in group["params"]]):
        for name, value in stored["state"].get(number, {}).items():
            if name in _SHAPED_AS_PARAMETER and value is not None and value.shape != p.shape:
                raise UserError(f"optimizer.state[{number}].{name} has the shape {tuple(value.shape)}",
                                location=checkpoint / STATE, expected=str(tuple(p.shape)), remedy=_REMEDY)  # fmt: skip
    # A gradient scaler may have skipped all steps so far.
    if not stored["state"] and state["step"] and not state["scaler"] and any("betas" in group for group in groups):
        raise UserError(f"optimizer.state is empty after {state['step']} steps", location=checkpoint / STATE,
                        expected="the moments of every parameter", remedy=_REMEDY)  # fmt: skip


def load_callbacks(state, callbacks, checkpoint):
    """Restore the states of callbacks; see `load_optimizer`."""
    try:
        for callback, own in zip(callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(own)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(f"its state other than the model's does not fit this run: {first_line(error)}",
                        location=checkpoint / STATE, remedy=_REMEDY) from error  # fmt: skip
