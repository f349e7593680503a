"""Evaluation during training, and the negative log-likelihood of validation sets."""

import math
import time
from dataclasses import dataclass

import ignite.distributed as idist
from versatile.training.objectives import negative_log_likelihood
from versatile.utils.screen import format_number

# The key of scores that cover all tasks together.
TOGETHER = "all"


@dataclass
class Report:
    """The result of an evaluation.

    Attributes:
        scores: {task: a number, the lower the better}; under `TOGETHER` if all tasks keep one model.
        row: its entry in the history.
        line: the line to print; "%s" is where it says that this is the best so far.
        scalars: {group: {name: number}} for TensorBoard.
        loss: the loss, which must be a finite number.
    """

    scores: dict
    row: dict
    line: str
    scalars: dict
    loss: float = 0.0


class Evaluator:
    """Base class of `Trainer`'s `evaluate`: called without arguments, returns a `Report`."""

    def __call__(self):
        raise NotImplementedError

    def summary(self, trainer):
        """The entries of metrics.json about the model that was kept."""
        return {}


class Validation(Evaluator):
    """The negative log-likelihoods per token of validation sets.

    Args:
        model: the model being trained.
        batches: {task: batches of its validation set}.
        dtype: precision of the matrix products.
        separate: tasks share no trained parameters, so each keeps its own best epoch and stops by itself.
    """

    def __init__(self, model, batches, dtype, separate=False):
        self.model, self.batches, self.dtype, self.separate = model, batches, dtype, separate

    def __call__(self):
        started, nlls = time.monotonic(), {}
        for task, batches in self.batches.items():
            total, count = negative_log_likelihood(self.model, batches, self.dtype)
            nlls[task] = sum_over_processes(total) / count
        mean = _with_perplexity(sum(nlls.values()) / len(nlls))
        tasks = {task: _with_perplexity(nll) for task, nll in nlls.items()} if len(nlls) > 1 else {}
        parts = ", ".join(f"{task} {s['nll']:.4f}" for task, s in tasks.items())
        line = (f"valid NLL {mean['nll']:.4f}{' = mean of ' if parts else ''}{parts}, PPL "
                f"{format_number(mean['ppl'], 3)}%s, {time.monotonic() - started:.0f} s")  # fmt: skip
        scalars = {"valid": mean, **{f"valid/{task}": own for task, own in tasks.items()}}
        return Report(nlls if self.separate else {TOGETHER: mean["nll"]}, mean | (dict(tasks=tasks) if tasks else {}),
                      line, scalars, mean["nll"])  # fmt: skip

    def summary(self, trainer):
        """See `Evaluator`: the best negative log-likelihood, per task where tasks are evaluated separately."""
        if not trainer.best:
            return dict(valid_nll=None, valid_ppl=None)
        mean = _with_perplexity(sum(trainer.best.values()) / len(trainer.best))
        best = {name: _with_perplexity(nll) for name, nll in trainer.best.items()}
        tasks = {name: dict(valid_nll=s["nll"], valid_ppl=s["ppl"], best_step=trainer.best_step[name])
                 for name, s in best.items()}  # fmt: skip
        return dict(valid_nll=mean["nll"], valid_ppl=mean["ppl"], **(dict(tasks=tasks) if len(tasks) > 1 else {}))


def sum_over_processes(value, kind=float):
    """The sum of a number over all processes."""
    return kind(idist.all_reduce(value)) if idist.get_world_size() > 1 else kind(value)


def capped_perplexity(nll):
    """exp of a mean negative log-likelihood per token, at most exp(50): beyond that, numbers say nothing."""
    return math.exp(min(nll, 50))


def _with_perplexity(nll):
    return dict(nll=nll, ppl=capped_perplexity(nll) if math.isfinite(nll) else nll)
