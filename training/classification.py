"""Classification and regression with one head per task: predictions, scores, and the files they are written to."""

import logging
import time
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from versatile.data import glue
from versatile.data.padding import tensors
from versatile.data.pair_batches import pair_inputs
from versatile.training.validation import TOGETHER, Evaluator, Report
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError
from versatile.utils.files import atomic_write, write_json
from versatile.utils.screen import align_columns

AVERAGE = "average"
# GLUE counts both dev sets of MNLI as one task.
_SAME_TASK = {"mnli-mm": "mnli"}


@torch.no_grad()
def predict(model, split, batch_size, pad_id, dtype):
    """A model's predictions for a split.

    Args:
        model: `adapters.classifier.TaskClassifier`; its training mode is restored afterwards.
        split: `data.token_cache.EncodedSplit` of one of its tasks, or of an alias of one.
        batch_size: rows per batch and process.
        pad_id: the padding token's id.
        dtype: precision of the matrix products.

    Returns:
        (predictions [n]: class ids or scores, losses [n], NaN where there is no label), in file order, in every
        process; float64.
    """
    device, task = next(model.parameters()).device, model.task_id(split.task)
    rank, world = idist.get_rank(), idist.get_world_size()
    mine = np.arange(len(split))[rank::world]
    mine = mine[np.argsort(split.lengths[mine], kind="stable")]
    results = torch.full((2, -(-len(split) // world)), torch.nan, dtype=torch.float64)
    training = model.training
    model.eval()
    for start in range(0, len(mine), batch_size):
        rows = mine[start : start + batch_size]
        arrays = pair_inputs([split[i] for i in rows], pad_id, model.max_seq_length)
        labels = split.labels[rows]
        labelled = not np.isnan(labels).any()
        more = dict(task_ids=np.full(len(rows), task)) | (dict(labels=labels) if labelled else {})
        with autocast(device, dtype):
            output = model(**tensors(arrays | more))
        locations = torch.from_numpy(rows // world)
        results[0, locations] = output.predictions.double().cpu()
        if labelled:
            results[1, locations] = output.row_losses.double().cpu()
    model.train(training)
    return tuple(gather_rows(column)[: len(split)].numpy() for column in results)


def gather_rows(mine):
    """Gather values of which each process holds every world-th: [n / world] -> [n], on the CPU."""
    world = idist.get_world_size()
    if world == 1:
        return mine
    every = idist.all_gather(mine.to(idist.device()).unsqueeze(0))
    return every.T.reshape(-1).cpu()


def evaluate(model, splits, batch_size, pad_id, dtype):
    """Score labelled splits: {task: dict(loss, rows, scores={metric: value})}; see `predict` and `glue_metrics`.

    The loss is the mean over rows of the cross-entropy, or of the squared error for a regression.
    """
    report = {}
    for name, split in splits.items():
        predictions, losses = predict(model, split, batch_size, pad_id, dtype)
        report[name] = dict(loss=float(losses.mean()), rows=len(split), scores=score(name, split, predictions))
    return report


def score(name, split, predictions):
    """{metric: value} for the output of `predict`."""
    labels = split.labels.tolist()
    if not glue.get_task(name).regression:
        predictions, labels = predictions.astype(int), [int(label) for label in labels]
    return glue.score(name, predictions.tolist(), labels)


def signature(name, metric, split):
    """How a score was computed."""
    return f"{f'GLUE {name}' if name in glue.TASKS else name} {split}, {metric}, 0–1"


def task_score(scores):
    """A task's score: the mean of its metrics, as in GLUE."""
    return sum(scores.values()) / len(scores)


def average(report):
    """The mean of the tasks' scores; MNLI's is the mean of its two dev sets. The original has no such average."""
    tasks = {}
    for name, result in report.items():
        tasks.setdefault(_SAME_TASK.get(name, name), []).append(task_score(result["scores"]))
    return sum(sum(scores) / len(scores) for scores in tasks.values()) / len(tasks)


class DevScores(Evaluator):
    """Scores of all tasks on their dev files; the best model is the one with the best average.

    Args:
        model: `TaskClassifier`.
        splits: {task: `EncodedSplit`}.
        options: batch size, padding id and precision for `evaluate`.
        select: which model is kept, "best" or "last".
    """

    def __init__(self, model, splits, options, select):
        self.model, self.splits, self.options, self.select = model, splits, options, select

    def __call__(self):
        started = time.monotonic()
        report = evaluate(self.model, self.splits, *self.options)
        loss, mean = sum(result["loss"] for result in report.values()) / len(report), average(report)
        tasks = ", ".join(f"{name} {100 * task_score(r['scores']):.1f}" for name, r in report.items())
        line = f"average {100 * mean:.1f} of {tasks}; loss {loss:.4f}%s, {time.monotonic() - started:.0f} s"
        scalars = {"dev": {"loss": loss, AVERAGE: mean},
                   **{f"dev/{name}": {"loss": r["loss"]} | r["scores"] for name, r in report.items()}}  # fmt: skip
        return Report({TOGETHER: -mean}, {"nll": loss, AVERAGE: mean, "tasks": report}, line, scalars, loss)

    def summary(self, trainer):
        """See `Evaluator`; only the kept model's loss, without a perplexity, as it mixes kinds of loss."""
        kept = self.kept(trainer)
        return dict(best_step=kept.get("step", 0), valid_nll=kept.get("nll"))

    def kept(self, trainer):
        """The kept model's row of the history; {} if none was evaluated."""
        valid = trainer.history["valid"]
        last = valid and self.select == "last"
        step = valid[-1]["step"] if last else trainer.best_step.get(TOGETHER, 0)
        return next((row for row in reversed(valid) if row["step"] == step), {})


# --- files -----------------------------------------------------------------------------------------------


def format_report(report, step=None):
    """A report as text, in percent."""
    rows = [("task", "rows", "loss", "scores")]
    for name, result in report.items():
        shown = ", ".join(f"{metric} {100 * value:.1f}" for metric, value in result["scores"].items())
        rows.append((name, f"{result['rows']:,}", f"{result['loss']:.4f}", shown))
    rows.append((AVERAGE, "", "", f"{100 * average(report):.1f}"))
    return ("" if step is None else f"after step {step}\n") + align_columns(rows, right=(1, 2))


def as_tasks(report, **more):
    """A report in the form that `utils.table` reads: {task: dict(task, scores, headline, …)}, including the average."""
    tasks = {}
    for name, result in report.items():
        scores = {metric: dict(score=value, signature=signature(name, metric, "dev"))
                  for metric, value in result["scores"].items()}  # fmt: skip
        tasks[name] = dict(task=name, split="dev", scores=scores, headline=next(iter(scores)),
                           instances=result["rows"], loss=result["loss"], **more)  # fmt: skip
    names = ", ".join(report)
    score = dict(score=average(report), signature=f"mean over {names} of the mean of each task's metrics, 0–1")
    tasks[AVERAGE] = dict(task=AVERAGE, split="dev", scores={AVERAGE: score}, headline=AVERAGE, **more)
    return tasks


def write_results(folder, report, step, **more):
    """Write eval_results.json and eval_results.txt: every task's scores at one checkpoint.

    (The original reports each task's best over time, from different checkpoints, and only in its log.)
    """
    folder = Path(folder)
    write_json(folder / "eval_results.json", dict(step=step, average=average(report), tasks=report, **more))
    with atomic_write(folder / "eval_results.txt") as file:
        file.write(format_report(report, step) + "\n")


def write_predictions(folder, name, split, predictions, step):
    """Write ``<task>_test_iter_<step>.tsv``, and a copy in submission/ under the name that the GLUE site requires.

    Args:
        folder: output directory.
        name: the task.
        split: `EncodedSplit`.
        predictions: [n] class ids or scores; scores are clipped to STS-B's range, 0 to 5.
        step: number of optimizer steps of the model.
    """
    task = glue.get_task(name)
    text = "index\tprediction\n"
    for index, value in zip(split.columns["index"].tolist(), predictions.tolist()):
        text += f"{index}\t{f'{min(max(value, 0), 5):3.3f}' if task.regression else task.labels[int(value)]}\n"
    wanted = glue.SUBMISSION_ROWS.get(name, len(predictions))
    if len(predictions) != wanted:
        logging.getLogger(__name__).warning(
            "submission/%s has %d predictions; GLUE's test file has %d rows, and its site refuses any other number",
            task.submission, len(predictions), wanted,
        )  # fmt: skip
    for path in (f"{name}_test_iter_{step}.tsv", f"submission/{task.submission}"):
        with atomic_write(Path(folder) / path) as file:
            file.write(text)


def check_heads(model, names, location):
    """Raise a `UserError` if a model lacks a task, or if its head does not fit the task's labels."""
    for name in names:
        expected = len(glue.get_task(name).labels or "1")
        labels = model.tasks.get(model.aliases.get(name, name))
        if labels is None:
            raise UserError(f"the model does not know {name}", location=location,
                            expected=f"tasks of {', '.join(model.tasks)}, which it was trained on",
                            remedy="name those with --tasks, or start from a BERT")  # fmt: skip
        if labels != expected:
            raise UserError(f"the model has {labels} labels for {name}", location=location, expected=str(expected),
                            remedy="this model was trained on other data")  # fmt: skip
