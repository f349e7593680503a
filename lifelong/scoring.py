"""Answers and scores of the models trained on a sequence of tasks."""

import csv
import io
import json
from argparse import Namespace
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from versatile.data import question_samples as samples
from versatile.data import question_scores
from versatile.data import question_tasks as tasks
from versatile.data.own_tasks import register_own_tasks
from versatile.lifelong import learning, routing, sequence
from versatile.lifelong.answers import Predictor, check_fit
from versatile.lifelong.batches import HalvingOnOutOfMemory
from versatile.lifelong.matrix import InferredTasks, Matrix, heat_map, markdown, side_by_side, summary
from versatile.lifelong.strategies import get_strategy
from versatile.lifelong.task_inference import EXAMPLES, WORDS, EmbeddingInference, PerplexityInference
from versatile.training.evaluation import EvalSplit, evaluate_tasks
from versatile.training.experiment import warm_start
from versatile.utils import metrics
from versatile.utils.errors import UserError
from versatile.utils.files import atomic_write, write_json
from versatile.utils.screen import resume_command

# Not the name of a task: these begin with a letter or a digit.
BEFORE = "_before"
GOLD = {"dialogue": samples.load_turns, "sql": samples.load_queries}


@dataclass
class SequenceRun:
    """A sequence's directory.

    Attributes:
        folder: the directory's path.
        flags: the flags it was trained with.
    """

    folder: Path
    flags: Namespace

    @property
    def title(self):
        """The title of a plot: how the sequence was trained."""
        known = vars(self.flags).get
        own = {None: "adapter", sequence.FRESH: "own adapters", sequence.PREVIOUS: "own adapters (copied forward)"}
        labels = [self.flags.seq_train_type, Path(self.flags.model_checkpoint).name]
        if name := sequence.method_name(self.flags):
            size = name.removeprefix("adapter_")
            labels += [own[known("own_adapters")] + (f" of {size}" if size.isdigit() else f": {name}")]
        named = {"distil": "Word-KD", "seq_distil": "Seq-KD"}
        labels += [words for flag, words in named.items() if known(flag)]
        labels += get_strategy(self.flags).describe_variant(self.flags)
        labels += [f"unbound, {known('unbound')} parts"] if known("unbound") else []
        return ", ".join(labels)

    @property
    def only_end(self):
        """Why its matrix has only the last row, or None."""
        if vars(self.flags).get("unbound"):
            return f"its {self.flags.unbound} parts (--unbound) are not tasks"
        together = get_strategy(self.flags).joint
        return f"{self.flags.seq_train_type} trains all tasks at once" if together else None


@dataclass
class EvalConfig:
    """How questions are answered.

    Attributes:
        sampling: as in `answers.answer`.
        batch_size: questions answered together.
        max_len: maximum sequence length in tokens; None: as in training.
        dtype, device: of the matrix products.
        shown: how many answers of each task are printed.
        inference: infers the task of each question for a second scoring (`task_inference`), or None.
        inference_name: value of --infer_task.
        trained_only: each model answers only the tasks trained so far.
    """

    sampling: dict | None
    batch_size: int
    max_len: int | None
    dtype: torch.dtype
    device: torch.device
    shown: int = 0
    inference: object = None
    inference_name: str | None = None
    trained_only: bool = False


@dataclass
class QuestionSplit(EvalSplit):
    """A task's questions.

    Attributes:
        task: a `LifelongTask`.
        qas: a list of `QA`.
        gold: further targets that `question_scores.score` takes, or None.
    """

    task: object
    qas: list
    gold: list | None

    def score(self, predictions):
        return question_scores.score(self.task, predictions.texts, self.qas, self.gold), []


def open_sequence_run(folder):
    """The `SequenceRun` of a directory, all of whose stages must be finished."""
    path, location = Path(folder) / "run.json", f"--model_dirs {folder}"
    expected = "the directory of a sequence that train_lifelong.py trained"
    if not path.is_file():
        raise UserError("no run.json here", location=location, expected=expected, remedy="check the path and the flags")
    sequence.refuse_stage(folder, "--model_dirs", f"name its sequence: --model_dirs {Path(folder).parent}")
    try:
        flags = sequence.read_flags(path)
    except UserError as error:
        raise UserError(error.found, location=f"--model_dirs {error.location}", expected=error.expected,
                        remedy=error.remedy) from error  # fmt: skip
    register_own_tasks(vars(flags).get("task_definitions") or ())
    stages = sequence.stages(flags)
    finished = sequence.SequenceProgress(folder, None).finished
    sequence.check_models(folder, flags, finished)
    for stage in stages:
        if stage not in finished and not sequence.is_model(sequence.stage_directory(folder, stage)):
            raise UserError(f"{stage} has not been trained yet", location=location,
                            remedy=f"resume: {resume_command('train_lifelong.py', folder)}")  # fmt: skip
    return SequenceRun(Path(folder), flags)


def read_splits(names, data_dir, split, limit=None, first=False):
    """{task name: `QuestionSplit`}.

    Args:
        names: names of the tasks.
        data_dir: directory of their files.
        split: "test" or "train".
        limit: use only the first `limit` questions.
        first: only the first of several true answers counts.
    """
    splits = {}
    for task in tasks.sequence(names):
        if task.gold and split == "train":
            raise UserError(f"{task.name} is scored by {task.gold}, which belongs to its test split",
                            location="--test_training_set", remedy="leave the flag out, or the task")  # fmt: skip
        qas = samples.load_task(task, data_dir, split)
        if blank := sum(not any(map(str.strip, qa.answers)) for qa in qas):
            print(f"{task.name}: {blank} of {len(qas)} questions have a blank true answer; only an empty answer to "
                  "them is right")
        gold = GOLD[task.kind](tasks.find_gold(data_dir, task)) if task.gold else None
        if gold and limit and len(gold) == len(qas):
            # The gold targets are in the order of the ids.
            gold = [true for location, true in zip(samples.order_by_id(qas), gold) if location < limit]
        qas = qas[:limit]
        qas = [replace(qa, answers=qa.answers[:1]) for qa in qas] if first else qas
        splits[task.name] = QuestionSplit(task, qas, gold)
    return splits


def make_inference(name, run, data_dir):
    """`EvalConfig.inference` for a value of --infer_task.

    Args:
        run: `SequenceRun`.
        data_dir: directory of the tasks' files, from which the task embeddings are computed.
    """
    if name is None:
        return None
    if name == "perplexity":
        # The tokens of --unbound are those of the parts, which are not tasks.
        has_tokens = run.flags.add_task_tokens and not run.flags.unbound
        return PerplexityInference(get_strategy(run.flags).generates_samples, has_tokens, run.flags.lead_bos)
    train = {task.name: samples.load_task(task, data_dir, "train") for task in tasks.sequence(run.flags.tasks)}
    return EmbeddingInference({name: qas[:EXAMPLES] for name, qas in train.items()})


def compute_matrix(run, splits, config, output, every_epoch=False, before=False):
    """Answer and score everything; returns the `Matrix`. Each stage's files are written to `output` when it is done."""
    names, metric = list(splits), [split.task.metric for split in splits.values()]
    first = None
    if before:
        flags = Namespace(**vars(run.flags))
        model = learning.load_model(flags)
        warm_start(flags, None, model.model, model.tokenizer)
        predictor = Predictor.of(model.model, model.tokenizer, config.device, config.dtype, choose_length(run, config))
        load = {sequence.FINAL: lambda: predictor}
        task_scores, _ = stage_scores(Path(output) / BEFORE, load, splits, replace(config, shown=0))
        first = [task_scores[name][split.task.metric].value for name, split in splits.items()]
    rows, stages, inferred = [], list(sequence.stages(run.flags)), []
    # Of tasks trained at once, or in parts that are not tasks, only the end is scored.
    for stage in stages if stages == names or every_epoch else stages[-1:]:
        folder = sequence.stage_directory(run.folder, stage)
        models = {sequence.FINAL: folder}
        if every_epoch:
            # The last epoch's model is the final one.
            epochs = [(str(number), path) for number, path in sequence.find_epochs(folder).items()]
            models = dict(epochs[:-1]) | models
        load = {epoch: make_loader(path, run, config) for epoch, path in models.items()}
        stage_config = config if stage == stages[-1] else replace(config, shown=0)
        trained = names[: stages.index(stage) + 1] if stages == names else names
        stage_splits = {name: splits[name] for name in trained} if config.trained_only else splits
        stage_output = sequence.stage_directory(output, stage)
        task_scores, guesses = stage_scores(stage_output, load, stage_splits, stage_config, trained)
        rows.append([task_scores[name][split.task.metric].value if name in task_scores else None
                     for name, split in splits.items()])  # fmt: skip
        inferred.append([guesses.get(name, (None, None)) for name in names])
    rows, inferred = (some if stages == names else some[-1:] for some in (rows, inferred))
    empty = [[None] * len(names)] * (len(names) - len(rows))
    matrix = Matrix(names, empty + rows, first, metric)
    if config.inference:
        scores, accuracy = ([[cell[i] for cell in row] for row in inferred] for i in (0, 1))
        matrix.inferred = InferredTasks(config.inference_name, Matrix(names, empty + scores, None, metric),
                                        Matrix(names, empty + accuracy))  # fmt: skip
    return matrix


def choose_length(run, config):
    """The maximum sequence length in tokens."""
    return config.max_len or run.flags.max_len


def make_loader(path, run, config):
    """A function that loads a model when it is needed."""
    return lambda: Predictor.load(path, config.device, config.dtype, choose_length(run, config))


def stage_scores(folder, models, splits, config, trained=()):
    """Scores of one stage's models.

    Args:
        folder: directory for metrics.json and the csv files.
        models: {epoch: function without arguments that returns its `Predictor`}.
        splits: {task: `QuestionSplit`}.
        config: `EvalConfig`.
        trained: names of the tasks trained so far, the candidates when the task of a question is inferred.

    Returns:
        ({task: scores} of the last model, the first value that `score_inferred` returns for it)
    """
    written, inferred = {}, {}
    for epoch, load in models.items():
        predictor = load()
        for split in splits.values():
            check_fit(predictor.encoder, split.qas)
        task_scores = {}
        for name, split in splits.items():
            task_scores[name] = answer_and_score(predictor, split, config, folder / f"qa_{name}_{epoch}.csv")
            numbers = ", ".join(f"{which} {score.value:.2f}" for which, score in task_scores[name].items())
            print(f"{folder.name}, {epoch}: {name}: {numbers}", flush=True)
        written[epoch] = {name: metrics.to_json(own) for name, own in task_scores.items()}
        if config.inference and trained and epoch == sequence.FINAL:
            inferred, written["task inferred"] = score_inferred(folder, predictor, splits, config, list(trained),
                                                                task_scores)  # fmt: skip
        write_json(folder / "metrics.json", written)
    return task_scores, inferred


def score_inferred(folder, predictor, splits, config, trained, known):
    """Score a model with the tasks of its questions inferred.

    Args:
        folder, splits, config, trained: as in `stage_scores`.
        known: {task: scores} with the tasks known; used as they are if all tasks share the model.

    Returns:
        ({task: (its main score, percentage of its questions whose task is inferred correctly, or None if nothing
        distinguishes the tasks)}, {task: its entry in metrics.json})
    """
    inferred, written = {}, {}
    for name, split in splits.items():
        own, right = known[name], None
        if config.inference.can_distinguish_tasks(predictor.model):
            infer = partial(config.inference.infer, predictor, split.qas, trained)
            tasks = HalvingOnOutOfMemory(config.batch_size, "--test_batch_size").run(infer)
            right = 100 * sum(task == name for task in tasks) / len(tasks)
            if not routing.is_shared(predictor.model):
                own = answer_and_score(predictor, split, config, folder / f"qa_{name}_inferred.csv", tasks)
        inferred[name] = own[split.task.metric].value, right
        written[name] = dict(by=config.inference_name, inferred_rightly=right, **metrics.to_json(own))
        note = "the tasks cannot be distinguished" if right is None else f"{right:.1f} % of the tasks right"
        print(f"{folder.name}, task inferred: {name}: {split.task.metric} {own[split.task.metric].value:.2f}, {note}",
              flush=True)  # fmt: skip
    return inferred, written


def answer_and_score(predictor, split, config, path, tasks=None):
    """The scores of one model on one task; its answers are written to a csv file.

    Args:
        tasks: the inferred task of each question, written as a column of the file; None: the task is known.
    """

    def work(size):
        decoding = dict(sampling=config.sampling, batch_size=size, task=tasks or split.name)
        return evaluate_tasks(predictor, [split], decoding)[0][split.name]

    result = HalvingOnOutOfMemory(config.batch_size, "--test_batch_size").run(work)
    texts, logs = result.predictions.texts, result.predictions.values
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    columns = [tasks] if tasks else []
    rows.writerow(("y", "pred", "logs", *(["task"] if tasks else [])))
    # Several true answers are written into one cell, as a list.
    true = [qa.answers[0] if len(qa.answers) == 1 else json.dumps(qa.answers, ensure_ascii=False) for qa in split.qas]
    rows.writerows(zip(true, texts, [f"{log:.4f}" for log in logs], *columns))
    with atomic_write(path) as file:
        file.write(table.getvalue())
    shown = config.shown if path.stem.endswith(sequence.FINAL) else 0
    for qa, text in list(zip(split.qas, texts))[:shown]:
        print(f"question  {qa.context} {qa.question}\nanswer    {text}\ntrue      {qa.answers[0]}\n")
    return result.scores


def write_matrix(folder, matrices, records, title, evaluation):
    """matrix.json, matrix.md and matrix.png of one or several runs.

    Args:
        records: what `run_records.make_record` returns for each run.
        evaluation: dict(split, limit, ref1, decoding): which questions were asked, and how they were answered.
    """
    folder = Path(folder)
    seeds = [record["seed"] for record in records]
    write_json(folder / "matrix.json", summary(matrices, seeds) | dict(records=records) | evaluation)
    with atomic_write(folder / "matrix.md") as file:
        file.write(markdown(matrices) + describe_inference(matrices) + FORMULAS)
    heat_map(folder / "matrix.png", matrices, title)


def describe_inference(matrices):
    """The section of matrix.md on inferred tasks, or ""."""
    inferred = [matrix.inferred for matrix in matrices if matrix.inferred]
    if not inferred:
        return ""
    return (f"\nScores at the end with the task of a question known, and inferred ({WORDS[inferred[0].by]}, among the "
            f"tasks trained so far):\n\n{side_by_side(matrices)}\nAfter every task, inferred:\n\n"
            f"{markdown([one.scores for one in inferred])}")  # fmt: skip


FORMULAS = """
R[i][j] is the score of task j after learning tasks 1 … i, b[j] that before anything was trained, T the number of tasks.

- average accuracy: 1/T · Σ_j R[T][j]
- backward transfer: 1/(T−1) · Σ_{j<T} (R[T][j] − R[j][j])
- forward transfer: 1/(T−1) · Σ_{j>1} (R[j−1][j] − b[j])
- forgetting: 1/(T−1) · Σ_{j<T} (max_{j≤i<T} R[i][j] − R[T][j])

Under the names that papers print, s[j] being the score of a model that learned task j alone (--single_task):

- AP (SAPT; average accuracy of O-LoRA and TRACE): the average accuracy above
- F.Ra (SAPT): the forgetting above
- FWT (SAPT): 1/T · Σ_j (R[j][j] − s[j]); GEM's FWT is the forward transfer above
- BWT (SAPT): 1/T · Σ_j (R[T][j] − R[j][j]); GEM's BWT is the backward transfer above, T/(T−1) times this one
"""
