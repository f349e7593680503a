"""Evaluate a text model on splits of its tasks: outputs, scores, negative log-likelihood, on the screen and in files.

All models are evaluated here, whatever encoder they use: `evaluate_tasks` calls the model's `TextModel.predict` on the
splits, and each split's `EvalSplit.score` on the predictions.
"""

import contextlib
import contextvars
import json
import re
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path

from versatile.adapters.manifest import peek
from versatile.data import instances
from versatile.data.own_tasks import get_own_task, relocate
from versatile.data.task_names import by_task, name_among
from versatile.training import runs
from versatile.utils import devices, metrics
from versatile.utils.context import value_in_context
from versatile.utils.errors import UserError
from versatile.utils.files import atomic_write, is_same_path, writable_directory, write_json
from versatile.utils.lines import one_line
from versatile.utils.screen import clipped, counted
from versatile.utils.stored_flags import TEXT

# Characters of a text among the examples that are printed.
LONGEST_SHOWN = 500


@dataclass
class Predictions:
    """A model's predictions for one split.

    Attributes:
        texts: the outputs, in row order; None if only the loss was requested.
        nll, labels: negative log-likelihood of the references, and the number of labels it is summed over.
        values: for each row, a classifier's outputs as numbers, or log-probabilities of answers.
    """

    texts: list | None
    nll: float
    labels: int
    values: object = None


class EvalSplit:
    """One task's split in the form its kind of model uses.

    Attributes:
        task: has a `name`.
        split: name of the split.
        headline: the score that represents the task in a summary; None: the first.
        sources: the input texts; empty: they are not written to files.
        references: a list of texts for each row, the first of which is written to files.
    """

    headline = None

    @property
    def name(self):
        return self.task.name

    def check(self):
        """Raise a `UserError` if nothing can be scored; called before decoding, which takes long."""

    def score(self, predictions):
        """Score `Predictions`: ({metric: `utils.metrics.Score`}, [notes for the reader])."""
        raise NotImplementedError

    def details(self, predictions):
        """Entries of the summary in addition to the scores."""
        return {}

    def files(self, texts):
        """Task-specific output files, added to the usual ones or replacing them: {name ending: text or json}."""
        return {}


@dataclass
class MarkerSplit(EvalSplit):
    """Instances of a task with markers.

    Attributes:
        task: a `data.task.Task`.
        path, split: its data.
        options: the `data.task.ReadOptions` that the model was trained with.
        examples: the instances, read by `read_split`.
        limit: number of examples that the loss covers.
    """

    task: object
    path: str
    split: str
    options: object
    examples: list
    limit: int | None = None

    @property
    def headline(self):
        return self.task.headline

    @property
    def sources(self):
        return [example.source for example in self.examples]

    @property
    def references(self):
        return [example.references for example in self.examples]

    def check(self):
        instances.scored(self.examples, f"{self.path}:{self.split}")

    def score(self, predictions):
        scores, notes = score_texts(self.task, predictions.texts, self.examples, f"{self.path}:{self.split}")
        if empty := sum(not text for text in predictions.texts):
            notes.append(f"{empty} of {len(predictions.texts)} outputs are empty")
        return scores | {"PPL": metrics.perplexity(predictions.nll, predictions.labels)}, notes

    def details(self, predictions):
        return dict(nll=predictions.nll / predictions.labels, labels=predictions.labels, dataset_path=str(self.path))

    def files(self, texts):
        return self.task.files(texts, [example.details for example in self.examples])


def read_split(task, path, split, max_history, limit):
    """Read a task's instances as a `MarkerSplit`."""
    decoding = task.read_options(max_history, decoding=True)
    examples = instances.read_instances(path, split, task, decoding, limit)
    return MarkerSplit(task, path, split, task.read_options(max_history), examples, limit)


def split_words(paths):
    """Words that let an evaluation script score tasks on a split that their data have: [], or ["--split", "valid"] if
    any has no test split; None if no one split serves all.

    Args:
        paths: {`data.task.Task`: its data file}.
    """
    try:
        if all(task.has_split(path, task.scored_split) for task, path in paths.items()):
            return []
        return ["--split", "valid"] if all(task.has_split(path, "valid") for task, path in paths.items()) else None
    except UserError:
        # A run that has finished must not fail because its data cannot be read any more.
        return []


def trained_data(task, checkpoint):
    """The data that a model was trained on, for a task without data at its own location; None if they are gone, too.

    The choice is printed.
    """
    path = runs.trained_on(checkpoint, task.name)
    if not path or not task.can_read(path):
        return None
    print(f"{task.name}: there is no {task.dataset_path}; using the data it was trained on, {path}")
    return path


def score_texts(task, texts, examples, location):
    """Score the outputs whose examples have references; returns scores and notes, see `data.instances.scored`."""
    numbers, references, blank = instances.scored(examples, location)
    details = [examples[i].details for i in numbers]
    scores, notes = task.score([texts[i] for i in numbers], references, details)
    return scores, [*notes, *blank]


@dataclass
class TaskResult:
    """A model's result on one task.

    Attributes:
        split: `EvalSplit`.
        predictions: `Predictions`.
        scores: {metric: `utils.metrics.Score`}.
        notes: for the reader.
    """

    split: EvalSplit
    predictions: Predictions
    scores: dict
    notes: list = field(default_factory=list)

    @property
    def loss(self):
        """The negative log-likelihood per label."""
        return self.predictions.nll / self.predictions.labels

    def summary(self, **more):
        """The content of <task>_metrics.json, in the form that `utils.table` reads."""
        return dict(
            task=self.split.name, split=self.split.split, scores=metrics.to_json(self.scores),
            headline=self.split.headline or next(iter(self.scores)), instances=len(self.split.references),
            **self.split.details(self.predictions), **more,
        )  # fmt: skip

    def show(self, samples=0):
        """Print the scores, the notes and the first outputs with their inputs and references."""
        show_scores(f"{self.split.name}, {self.split.split}", self.split.references, self.scores, self.notes)
        rows = zip(self.split.sources, self.predictions.texts or (), self.split.references)
        for source, text, references in islice(rows, samples):
            # Whole articles are in <task>_outputs.jsonl.
            for name, shown in (("input", source), ("output", text), ("reference", references[0])):
                print(f"{name:<9}  {clipped(str(shown), LONGEST_SHOWN)}")
            print()

    def write(self, folder):
        """Write the outputs and the task-specific files."""
        texts = self.predictions.texts
        if texts is not None:
            files = self.split.files(texts)
            write_outputs(folder, self.split.name, texts, self.split.references, self.split.sources, files)


def evaluate_tasks(text_model, splits, decoding):
    """Decode and score splits of a model's tasks.

    Args:
        text_model: `training.text_model.TextModel`.
        splits: a list of `EvalSplit` of this kind of model.
        decoding: `training.decoding.Decoding`; None: only the losses are computed.

    Returns:
        ({task: `TaskResult`}, the entries about decoding for every summary)
    """
    for split in splits:
        split.check()
    predictions, speed = text_model.predict(splits, decoding)
    results = {}
    for split in splits:
        scores, notes = split.score(predictions[split.name])
        results[split.name] = TaskResult(split, predictions[split.name], scores, notes)
    return results, speed


def evaluate_into(output_dir, text_model, splits, decoding, samples=3, **more):
    """Run `evaluate_tasks`, print the results and write them into a directory.

    Args:
        samples: number of outputs of each task to print.
        **more: further entries of every summary.

    Returns:
        {task: the content of its <task>_metrics.json}
    """
    results, speed = evaluate_tasks(text_model, splits, decoding)
    more = dict(precision=str(text_model.dtype).removeprefix("torch."), versions=runs.versions(), **speed) | more
    summaries = {}
    for name, result in results.items():
        result.write(output_dir)
        summaries[name] = result.summary(**more)
        write_json(Path(output_dir) / f"{name}_metrics.json", summaries[name])
        result.show(samples)
    text_model.finish_evaluation(results, output_dir)
    decoded = "decoded {decode_tokens:,} tokens in {decode_seconds} s ({decode_tokens_per_second:.0f} tokens/s)"
    notes = [decoded.format(**speed)] if speed else []
    notes += [] if _TEMPORARY.get() else [f"results in {output_dir}"]
    if notes:
        print("; ".join(notes))
    return summaries


_TEMPORARY = contextvars.ContextVar("temporary", default=False)


def temporary_results():
    """Context in which the directory of the results is not printed, as it is deleted afterwards."""
    return value_in_context(_TEMPORARY, True)


def default_results(name, checkpoint, tasks):
    """A directory for a model's results: results/<name>, or one named for its run too where that holds another model's.

    Args:
        name: name of the directory.
        checkpoint: the model's directory, as in the results.
        tasks: names of the tasks that are evaluated; results of other tasks may be another model's.
    """
    run = runs.run_of(checkpoint).name
    longer = name if run in ("", name) else f"{name}-{run}"
    names = chain(dict.fromkeys([name, longer]), (f"{longer}-{number}" for number in count(2)))
    folder = next(folder for folder in map(Path("results").joinpath, names)
                  if not any(_is_of_another(folder / f"{t}_metrics.json", checkpoint) for t in tasks))  # fmt: skip
    if folder.name != name:
        print(f"results/{name} holds another model's results; these go into {folder}")
    return str(folder)


def _is_of_another(path, checkpoint):
    """Whether a metrics file exists and is not of this checkpoint."""
    try:
        other = json.loads(path.read_text(encoding="utf-8"))["checkpoint"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return not isinstance(other, str) or not is_same_path(other, checkpoint)


# Encoders of models whose runs record their data and settings.
RUN_ENCODERS = ("text_to_text", "sentence_pair")


def evaluate_run(args, typed, encoder):
    """evaluate.py for a model of train_t5.py or train_camtl.py, whose run records everything but the task.

    Args:
        args: the flags of evaluate.py or evaluate_vlm.py; `task` may be "all", `dataset_path` is a data folder.
        typed: {setting: the flag as typed}.
        encoder: one of `RUN_ENCODERS`.

    Raises:
        UserError: the model was not trained for a task, or a task has no data.
    """
    import ignite.distributed as idist
    from versatile.data.task import canonical_name
    from versatile.training.decoding import Decoding
    from versatile.training.text_model import text_model_class

    kind = text_model_class(encoder)
    kind.refuse_unused(typed)
    devices.quiet_libraries(args.cache_dir)
    held = peek(args.model_checkpoint).tasks
    # One that the model does not hold is refused below, where all its tasks are listed.
    requested = task if (task := name_among(args.task, held, encoder)) in held else None
    text_model = kind.load(args.model_checkpoint, requested, devices.precision(args, idist.device()))
    args.task = canonical_name(args.task, encoder)
    for name, source in (args.own_tasks or {}).items():
        relocate(name, source, "--task")
    splits = text_model.read_splits(args, typed)
    run, names = runs.run_of(args.model_checkpoint).name, [split.name for split in splits]
    args.output_dir = args.output_dir or default_results(run, args.model_checkpoint, names)
    writable_directory(args.output_dir, "--output_dir")
    decoding = Decoding(batch_size=args.batch_size)
    evaluate_into(args.output_dir, text_model, splits, decoding, args.samples, **text_model.describe())


def requested_tasks(args, model_tasks, kind="markers"):
    """Names of the requested tasks among those that a model holds; a `UserError` for --data of any other task.

    Afterwards `args.data` is keyed by these names; `kind`: see `data.task_names.by_task`.
    """
    names = list(model_tasks) if args.task == "all" else [args.task]
    args.data = by_task(args.data, names, "evaluated", kind=kind)
    return names


@contextlib.contextmanager
def task_data(args, typed, directory, task):
    """Context with the folder of a task's data; errors raised inside name the flag that sets the folder.

    The folder comes from --data (for this task), --dataset_path (for all tasks), or what the model's run recorded for
    the task or for all tasks, in this order; None: none of them names one.

    Args:
        args, typed: see `evaluate_run`.
        directory: the model's.

    Raises:
        UserError: no such folder.
    """
    if get_own_task(task):
        # --dataset_path names the folder of all known tasks, or the data of the one task that is asked for.
        named = args.data.get(task) or (args.dataset_path if args.task != "all" else None)
        if named:
            relocate(task, named, "--data" if task in args.data else typed.get("dataset_path", "--dataset_path"))
        yield None
        return
    known, remembered = runs.stored_record(directory).get("flags", {}), runs.trained_on(directory, task)
    flag = f"{typed.get('dataset_path', '--dataset_path')} DIR"
    if task in args.data or (remembered and not args.dataset_path):
        flag = f"--data {task}=DIR"
    own = next((path for path in (remembered, known.get("data_dir")) if path and TEXT.fits(path)), None)
    folder = find_data_folder(args.data.get(task) or args.dataset_path, own, flag)
    with naming_the_flag(flag):
        yield folder


def find_data_folder(named, own, flag="--dataset_path DIR"):
    """The named data folder, or else the run's own, which must still exist; None: there is neither.

    Args:
        flag: the flag that names a folder DIR, for the error.
    """
    folder = named or own
    if folder and not Path(folder).is_dir():
        what = flag.removesuffix("DIR") if named else "the data that the model was trained on, "
        raise UserError("no such folder", location=f"{what}{folder}",
                        expected="GLUE's official folders, or a folder of local files",
                        remedy=f"name the folder: {flag}")  # fmt: skip
    return folder


@contextlib.contextmanager
def naming_the_flag(flag):
    """Replace the training scripts' --data_dir in errors by `flag`, which names the folder DIR here."""
    try:
        yield
    except UserError as error:
        words = (error.found, error.location, error.expected, error.remedy)
        # The script that downloads GLUE has a flag of that name as well.
        found, location, expected, remedy = (
            word and re.sub(r"(?<!\.py )--data_dir", lambda _: flag.removesuffix(" DIR"), str(word)) for word in words
        )
        raise UserError(found, location=location, expected=expected, remedy=remedy) from error


# ---- the screen and files


def show_scores(title, references, scores, notes):
    """Print a task's scores as a table."""
    count = sum(map(len, references))
    sizes = f"{counted(len(references), 'instance')}, {counted(count, 'reference')}"
    print(f"\n{title}: {sizes}\n{metrics.format_scores(scores)}\n")
    for note in notes:
        print(f"{note}\n")


def write_outputs(folder, name, texts, references, sources=(), files=None):
    """Write <task>_output.txt and <task>_ref.txt, one line per example; with sources also <task>_outputs.jsonl.

    Args:
        references: a list for each output, the first of which is written as text.
        files: {name ending: text or json}: task-specific files, which may replace these.
    """
    contents = {"output.txt": lines(texts), "ref.txt": lines(group[0] for group in references)}
    if len(sources):
        rows = (dict(source=s, references=r, hypothesis=t) for s, r, t in zip(sources, references, texts))
        contents["outputs.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for ending, content in (contents | (files or {})).items():
        path = Path(folder) / f"{name}_{ending}"
        if isinstance(content, str):
            with atomic_write(path) as file:
                file.write(content)
        else:
            write_json(path, content)


def lines(texts):
    """Texts, one per line."""
    return "".join(one_line(t) + "\n" for t in texts)
