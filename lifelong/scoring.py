"""Answers and scores of the models that a sequence of tasks left."""

import csv
import io
import json
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from versatile.data import question_samples as samples
from versatile.data import question_tasks as tasks
from versatile.data.own_tasks import register_own_tasks
from versatile.lifelong import learning, scores, sequence
from versatile.lifelong.answers import Predictor, answer, check_fit, log_probabilities
from versatile.lifelong.batches import BackOff
from versatile.lifelong.matrix import Matrix, heat_map, markdown, summary
from versatile.lifelong.strategies import get_strategy
from versatile.training import evaluation
from versatile.utils import metrics
from versatile.utils.errors import UserError
from versatile.utils.files import atomic_write, write_json
from versatile.utils.screen import resume_command

BEFORE = "before"
GOLD = {"dialogue": samples.load_turns, "sql": samples.load_queries}


@dataclass
class SequenceRun:
    """A sequence's directory.

    Attributes:
        folder: its path.
        flags: that it was trained with.
    """

    folder: Path
    flags: Namespace

    @property
    def title(self):
        """For a picture: how it was trained."""
        known = vars(self.flags).get
        own = {None: "adapter", sequence.FRESH: "own adapters", sequence.PREVIOUS: "own adapters (copied on)"}
        parts = [self.flags.seq_train_type, Path(self.flags.model_checkpoint).name]
        if name := sequence.method_name(self.flags):
            size = name.removeprefix("adapter_")
            parts += [own[known("own_adapters")] + (f" of {size}" if size.isdigit() else f": {name}")]
        named = {"distil": "Word-KD", "seq_distil": "Seq-KD"}
        parts += [words for flag, words in named.items() if known(flag)]
        parts += get_strategy(self.flags).describe_variant(self.flags)
        parts += [f"unbound, {known('unbound')} parts"] if known("unbound") else []
        return ", ".join(parts)

    @property
    def only_end(self):
        """Why there is only the last row of its matrix, or None."""
        if vars(self.flags).get("unbound"):
            return f"its {self.flags.unbound} parts (--unbound) are not tasks"
        together = get_strategy(self.flags).joint
        return f"{self.flags.seq_train_type} trains all tasks at once" if together else None


@dataclass
class EvalConfig:
    """How to answer.

    Attributes:
        sampling: as in `answers.answer`.
        batch_size: questions at once.
        max_len: tokens of the longest sequence, or None: as in training.
        dtype, device: of the matrix products.
        shown: how many answers of each task are printed.
    """

    sampling: dict | None
    batch_size: int
    max_len: int | None
    dtype: torch.dtype
    device: torch.device
    shown: int = 0


@dataclass
class Questions:
    """A task's questions.

    Attributes:
        task: a `LifelongTask`.
        qas: a list of `QA`.
        gold: what `scores.score` takes beside them, or None.
    """

    task: object
    qas: list
    gold: list | None


def open_sequence_run(folder):
    """`SequenceRun` of a directory, all of whose stages must be done."""
    path, location = Path(folder) / "run.json", f"--model_dirs {folder}"
    expected = "the directory of a sequence that train_lifelong.py trained"
    if not path.is_file():
        raise UserError("no run.json here", location=location, expected=expected, remedy="check the path and the flags")
    sequence.refuse_stage(folder, "--model_dirs", f"name its sequence: --model_dirs {Path(folder).parent}")
    try:
        found = sequence.stored_flags(path)
    except UserError as error:
        raise UserError(error.found, location=f"--model_dirs {error.location}", expected=error.expected,
                        remedy=error.remedy) from error  # fmt: skip
    register_own_tasks(vars(found).get("task_definitions") or ())
    stages = sequence.stages(found)
    finished = sequence.Progress(folder, None).finished
    sequence.check_models(folder, found, finished)
    for stage in stages:
        if stage not in finished and not sequence.is_model(sequence.stage_directory(folder, stage)):
            raise UserError(f"{stage} has not been trained yet", location=location,
                            remedy=f"resume: {resume_command('train_lifelong.py', folder)}")  # fmt: skip
    return SequenceRun(Path(folder), found)


def read(names, data_dir, split, limit=None, first=False):
    """{task name: `Questions`}.

    Args:
        names: of the tasks.
        data_dir: directory of their files.
        split: "test" or "train".
        limit: only the first so many questions.
        first: only the first of several true answers counts.
    """
    found = {}
    for task in tasks.sequence(names):
        if task.gold and split == "train":
            raise UserError(f"{task.name} is scored by {task.gold}, which is of its test split",
                            location="--test_training_set", remedy="leave the flag out, or the task")  # fmt: skip
        qas = samples.load_task(task, data_dir, split)
        if blank := sum(not any(map(str.strip, qa.answers)) for qa in qas):
            print(f"{task.name}: {blank} of {len(qas)} questions have a blank true answer; no answer is right there")
        gold = GOLD[task.kind](tasks.find_gold(data_dir, task)) if task.gold else None
        if gold and limit and len(gold) == len(qas):
            # They come in the order of the ids.
            gold = [true for location, true in zip(samples.order_by_id(qas), gold) if location < limit]
        qas = qas[:limit]
        found[task.name] = Questions(task, [replace(qa, answers=qa.answers[:1]) for qa in qas] if first else qas, gold)
    return found


def matrix_of(run, parts, how, output, every_epoch=False, before=False):
    """Answer and score everything: `Matrix`. Each stage's files are written into `output` when it is done."""
    names, metric = list(parts), [part.task.metric for part in parts.values()]
    first = None
    if before:
        flags = Namespace(**vars(run.flags))
        model = learning.load(flags)
        predictor = Predictor.of(model.model, model.tokenizer, how.device, how.dtype, length(run, how))
        found = stage_scores(Path(output) / BEFORE, {sequence.FINAL: lambda: predictor}, parts, replace(how, shown=0))
        first = [found[name][part.task.metric].value for name, part in parts.items()]
    rows, stages = [], list(sequence.stages(run.flags))
    for stage in stages:
        folder = sequence.stage_directory(run.folder, stage)
        models = {sequence.FINAL: folder}
        if every_epoch:
            # The last one is the final model.
            models = dict([*((str(number), path) for number, path in sequence.epochs(folder).items())][:-1]) | models
        load = {epoch: loader(path, run, how) for epoch, path in models.items()}
        asked = how if stage == stages[-1] else replace(how, shown=0)
        found = stage_scores(sequence.stage_directory(output, stage), load, parts, asked)
        rows.append([found[name][part.task.metric].value for name, part in parts.items()])
    # What was trained at once, or in other parts than tasks, has only its end.
    rows = rows if stages == names else rows[-1:]
    rows = [[None] * len(names)] * (len(names) - len(rows)) + rows
    return Matrix(names, rows, first, metric)


def length(run, how):
    """Tokens of the longest sequence."""
    return how.max_len or run.flags.max_len


def loader(path, run, how):
    """Loads a model when it is its turn."""
    return lambda: Predictor.load(path, how.device, how.dtype, length(run, how))


def stage_scores(folder, models, parts, how):
    """Scores of one stage's models; returns {task: scores} of the last.

    Args:
        folder: where metrics.json and the csv files go.
        models: {epoch: called without arguments, returns its `Predictor`}.
        parts: {task: `Questions`}.
        how: `EvalConfig`.
    """
    written = {}
    for epoch, load in models.items():
        predictor = load()
        for part in parts.values():
            check_fit(predictor.encoder, part.qas)
        found = {}
        for name, part in parts.items():
            found[name] = answered(predictor, part, how, folder / f"qa_{name}_{epoch}.csv")
            numbers = ", ".join(f"{which} {score.value:.2f}" for which, score in found[name].items())
            print(f"{folder.name}, {epoch}: {name}: {numbers}", flush=True)
        written[epoch] = {name: metrics.to_json(own) for name, own in found.items()}
        write_json(folder / "metrics.json", written)
    return found


def answered(predictor, part, how, path):
    """The scores of one model on one task; its answers go to a csv file."""

    def work(size):
        with evaluation.Progress(len(part.qas), f"answering {part.task.name}") as done:
            texts, pairs = answer(predictor, part.qas, how.sampling, size, done, part.task.name)
        return texts, log_probabilities(predictor, pairs, size, part.task.name)

    texts, logs = BackOff(how.batch_size, "--test_batch_size").run(work)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("y", "pred", "logs"))
    # Several true answers stand in one cell, as a list.
    true = [qa.answers[0] if len(qa.answers) == 1 else json.dumps(qa.answers, ensure_ascii=False) for qa in part.qas]
    rows.writerows((right, text, f"{log:.4f}") for right, text, log in zip(true, texts, logs))
    with atomic_write(path) as file:
        file.write(table.getvalue())
    shown = how.shown if path.stem.endswith(sequence.FINAL) else 0
    for qa, text in list(zip(part.qas, texts))[:shown]:
        print(f"question  {qa.context} {qa.question}\nanswer    {text}\ntrue      {qa.answers[0]}\n")
    return scores.score(part.task, texts, part.qas, part.gold)


def write(folder, matrices, seeds, title, asked):
    """matrix.json, matrix.md and matrix.png of one or several runs.

    Args:
        asked: dict(split, limit, ref1, decoding): what was asked, and how it was answered.
    """
    folder = Path(folder)
    write_json(folder / "matrix.json", summary(matrices, seeds) | asked)
    with atomic_write(folder / "matrix.md") as file:
        file.write(markdown(matrices) + FORMULAS)
    heat_map(folder / "matrix.png", matrices, title)


FORMULAS = """
R[i][j] is the score of task j after learning tasks 1 … i, b[j] that before anything was trained, T the number of tasks.

- average accuracy: 1/T · Σ_j R[T][j]
- backward transfer: 1/(T−1) · Σ_{j<T} (R[T][j] − R[j][j])
- forward transfer: 1/(T−1) · Σ_{j>1} (R[j−1][j] − b[j])
- forgetting: 1/(T−1) · Σ_{j<T} (max_{i<T} R[i][j] − R[T][j])
"""
