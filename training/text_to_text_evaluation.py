"""Splits of text-to-text tasks, and their scores under their published names."""

import contextlib
import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from versatile.adapters.backbones.loading import unsaved_model
from versatile.data import text_task, text_to_text
from versatile.data.encoders.text_to_text import load_split, references
from versatile.data.text_to_text_batches import Rows
from versatile.training import runs
from versatile.training.decoding import Decoding
from versatile.training.evaluation import EvalSplit, evaluate_tasks, requested_tasks, task_data
from versatile.utils import schema
from versatile.utils.errors import UserError
from versatile.utils.files import write_json
from versatile.utils.metrics import Score, perplexity
from versatile.utils.screen import counted, shell_command

# Names of splits: on evaluate.py's command line, in published names, in names of result files.
SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}
PREFIXES = {"train": "train", "validation": "eval", "test": "test"}
FILES = {"train": "train_results.json", "validation": "val_results.json", "test": "test_results.json"}


@dataclass
class TextSplit(EvalSplit):
    """One task's split.

    Attributes:
        task: `data.text_task.TextTask`.
        split: "train", "validation" or "test".
        rows: `data.text_to_text_batches.Rows`.
        sources: the input texts, a sequence.
        length: maximum tokens of an output; see `TextTask.max_new_tokens`.
        beams: beam size.
        targets: what outputs are scored against, see `data.encoders.text_to_text.references`.
        data_dir: where it was read from; None: the hub.
    """

    task: text_task.TextTask
    split: str
    rows: Rows
    sources: list
    length: int
    beams: int
    targets: object
    data_dir: str | None = None

    @property
    def key(self):
        """Identifies the content."""
        return f"{self.name}:{self.rows.fingerprint()}"

    @property
    def references(self):
        return [[target] if isinstance(target, str) else target for target in self.targets]

    def score(self, predictions):
        """The published metrics, ×100, and the perplexity."""
        texts, count = predictions.texts, len(self.rows)
        signature = f"n:{count}|beams:{self.beams}|tokens:{self.length}"
        values = {} if texts is None else self.task.score(texts, self.targets)
        scores = {metric: Score(float(value), signature) for metric, value in values.items()}
        scores["PPL"] = perplexity(predictions.nll, predictions.labels)
        invalid = self.details(predictions)["invalid"]
        return scores, [f"{invalid} of {count} outputs are not answers of the task"] if invalid else []

    def details(self, predictions):
        return dict(invalid=self.task.invalid(predictions.texts or ()), dataset_path=self.data_dir)


def read_splits(names, split, args, tokenizer, ids, *, lengths, limit, seed, held_out, prefix, print_line=print):
    """Read and tokenise splits of tasks, and print what was read and cut.

    Args:
        names: tasks.
        split: "train", "validation" or "test".
        args: has data_dir and eval_beams.
        tokenizer: the model's.
        ids: {task: its id in the model}.
        lengths: maximum (source, target) lengths in tokens.
        limit: number of examples of each task, drawn with `seed`; -1: all.
        seed, held_out, prefix: see `data.text_to_text.load_rows` (`held_out` is its split_validation_test).

    Returns:
        {task: `TextSplit`}

    Raises:
        UserError: a task has no data, or a label is not the task's.
    """
    parts = {}
    for name in names:
        task = text_to_text.get_task(name)
        encoded = load_split(task, split, tokenizer, lengths, data_dir=args.data_dir, seed=seed,
                             split_validation_test=held_out, n_obs=None if limit < 0 else limit,
                             prefix=prefix)  # fmt: skip
        columns, cut = encoded.columns, encoded.report["cut"]
        rows = Rows(ids[name], columns["ids"], columns["label"], columns["target"])
        beams = args.eval_beams or task.num_beams or 1
        parts[name] = TextSplit(task, split, rows, columns["source"], task.max_new_tokens(tokenizer), beams,
                                references(encoded), args.data_dir)  # fmt: skip
        cuts = [f", {counted(cut[what], what)} cut to {length} tokens"
                for what, length in zip(("source", "target"), lengths) if what in cut]  # fmt: skip
        print_line(f"{split} {name}: {counted(len(rows), 'example')}{''.join(cuts)}")
    return parts


def tested_on_validation(names, data_dir, held_out):
    """The tasks whose test rows are their validation rows.

    Args:
        names: tasks.
        data_dir, held_out: as in `read_splits`.
    """
    return [name for name in names if text_to_text.test_is_validation(text_to_text.get_task(name), data_dir, held_out)]


def published_scores(results, prefix):
    """{name: value} of {task: `training.evaluation.TaskResult`}.

    Names are `<task>_<prefix>_<metric>` with the published metric names, ×100; `<task>_<prefix>_loss`, the negative
    log-likelihood per target token; `<task>_<prefix>_invalid`, the number of outputs that are not answers of the task;
    `<prefix>_average_metrics`, the mean over metric values only (the original also averaged in output lengths); and
    `<prefix>_loss`, the mean over tasks. Without outputs there are only the losses.
    """
    values, decoded = {}, any(result.predictions.texts is not None for result in results.values())
    for name, result in results.items():
        if decoded:
            values |= {f"{name}_{prefix}_{metric}": value for metric, value in metric_values(result).items()}
            values[f"{name}_{prefix}_invalid"] = result.split.details(result.predictions)["invalid"]
        values[f"{name}_{prefix}_loss"] = result.loss
    if decoded:
        values[f"{prefix}_average_metrics"] = text_task.average({k: metric_values(r) for k, r in results.items()})
    values[f"{prefix}_loss"] = sum(result.loss for result in results.values()) / len(results)
    return {key: float(value) for key, value in values.items()}


def metric_values(result):
    """{metric: value} of a `TaskResult`, without the perplexity."""
    return {metric: score.value for metric, score in result.scores.items() if metric != "PPL"}


@dataclass
class Evaluation:
    """Scores a model in training on its tasks; called with a prefix, it returns `published_scores`.

    Attributes:
        text_model: `training.text_to_text_model.TextToTextModel`.
        splits: {task: `TextSplit`}.
        decode: whether to decode and score outputs; otherwise only losses are computed.
        results: {task: `training.evaluation.TaskResult`} of the last call.
    """

    text_model: object
    splits: dict
    decode: bool = True
    results: dict | None = None

    def __call__(self, prefix="eval"):
        decoding = Decoding(batch_size=self.text_model.batch_size) if self.decode else None
        self.results, _ = evaluate_tasks(self.text_model, list(self.splits.values()), decoding)
        return published_scores(self.results, prefix)

    def keys(self, prefix="eval"):
        """The names that a call returns."""
        names = [f"{prefix}_average_metrics"] * self.decode + [f"{prefix}_loss"]
        for name, split in self.splits.items():
            names += [f"{name}_{prefix}_loss"] + [f"{name}_{prefix}_{m}" for m in split.task.metrics] * self.decode
        return names


def check_best_metric(args, evaluation):
    """Raise a `UserError` if evaluation does not compute --metric_for_best_model."""
    name = args.metric_for_best_model
    if name is None:
        return
    known = evaluation.keys()
    if name not in known and f"eval_{name}" not in known:
        raise UserError("evaluation computes nothing of that name", location=f"--metric_for_best_model {name}",
                        expected=", ".join(k.removeprefix("eval_") for k in known))  # fmt: skip


def print_average(scores, prefix):
    """Print the mean over all metrics if outputs were scored."""
    if (average := scores.get(f"{prefix}_average_metrics")) is not None:
        print(f"average of all metrics: {average:.2f}")


def write_results(path, scores, **more):
    """Write val_results.json or a similar file: {name: value} and further entries."""
    numbers = {k: v if math.isfinite(v) else None for k, v in scores.items()}
    write_json(path, numbers | more)


# ---- for evaluate.py


def explain_untrained(directory):
    """A `UserError` that explains why a directory is not the train_t5.py model that a text-to-text task needs."""
    path, location = Path(directory), f"--model_checkpoint {directory}"
    expected = "a run directory of train_t5.py, or one of its checkpoints/step_N"
    if not path.is_dir():
        return UserError("no such directory", location=location, expected=expected)
    flags, config = runs.stored_record(path).get("flags", {}), {}
    if "adapter_config_name" in flags:
        return unsaved_model(path, location, "train_t5.py")
    with contextlib.suppress(UserError):
        config = schema.read_json_object(path / "config.json")
    if config.get("model_type") in ("t5", "mt5") and "versatile" not in config:
        train = shell_command("train_t5.py", "configs/adapters.json", "--model_name_or_path", path)
        return UserError("this is a bare T5: it was not trained for tasks", location=location, expected=expected,
                         remedy=f"train it: {train}")  # fmt: skip
    return UserError("this is not a model of train_t5.py, nor of train.py", location=location,
                     expected=expected)  # fmt: skip


def read_run_splits(text_model, args, typed):
    """The splits requested from evaluate.py for a model of train_t5.py: a list of `TextSplit`.

    Args:
        text_model: a loaded `TextToTextModel`.
        args: the flags of evaluate.py; `task` may be "all", `dataset_path` is a data directory.
        typed: the flags that were typed.
    """
    known, model, splits = text_model.flags, text_model.model, []
    if args.task != "all" and args.task not in model.tasks:
        raise UserError(f"the model was not trained for {args.task}", location=f"--task {args.task}",
                        expected=f"one of {', '.join(model.tasks)}")  # fmt: skip
    names = requested_tasks(args, model.tasks, "text_to_text")
    beams = args.num_beams if "num_beams" in typed else known.get("eval_beams")
    split, held_out = SPLITS[args.split or "test"], known.get("split_validation_test", False)
    target = "test_max_target_length" if split == "test" else "val_max_target_length"
    for name in names:
        with task_data(args, typed, text_model.directory, name) as folder:
            splits += read_splits(
                [name], split, Namespace(data_dir=folder, eval_beams=beams), text_model.tokenizer,
                {name: model.task_id(name)}, lengths=(text_model.longest, known.get(target, 128)),
                limit=args.limit or -1, seed=known.get("data_seed", 42), held_out=held_out,
                prefix=text_model.has_prefix,
            ).values()  # fmt: skip
    if split == "test" and known.get("load_best_model_at_end"):
        for part in splits:
            if tested_on_validation([part.name], part.data_dir, held_out):
                print(f"warning: {part.name}: the test rows are the validation rows, which chose this model in "
                      "training")  # fmt: skip
    return splits


def finish_run_evaluation(results, output_dir):
    """Write val_results.json or the split's equivalent, and print the average."""
    split = next(iter(results.values())).split.split
    scores = published_scores(results, PREFIXES[split])
    write_results(Path(output_dir) / FILES[split], scores)
    print_average(scores, PREFIXES[split])
