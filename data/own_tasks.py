"""User-defined tasks: where their rows come from and which columns are used.

A source is one of

* a folder with train, valid and test as ``.jsonl``, ``.json``, ``.csv`` or ``.tsv``, plain or ``.gz``; valid may also
  be called ``validation``, ``val`` or ``dev``;
* one json file in the toolkit's own format: ``{"train": [...], "valid": [...], "test": [...]}``;
* a data set on the Hugging Face hub: ``owner/name``, or ``owner/name:configuration``.

A row has the columns ``prompt`` and ``answer`` (or ``src`` and ``tgt``). Other column names are set in a ``task.json``
in the folder or next to the file (there also ``<file>.task.json``); or the source itself is one that names the data::

    {"data": "owner/name", "prompt": "text", "answer": "label", "labels": ["negative", "positive"],
     "metrics": ["accuracy", "f1"], "question": "What is the sentiment?", "max_length": 64}

All keys are optional. ``prompt`` may be a list of columns. ``max_length`` bounds the answers of train_t5.py; where a
script has ``--max_length``, that flag does.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

from versatile.data import row_files
from versatile.data.files import distilled_beside
from versatile.data.hub import HUB_NAME, hub_fingerprint, hub_records, hub_splits
from versatile.data.json_files import iter_records, split_names
from versatile.data.task_names import check_task_name
from versatile.utils import answer_metrics
from versatile.utils.errors import UserError, brief
from versatile.utils.files import is_same_path
from versatile.utils.schema import Choice, ListOf, Record, Text, Whole, read_json_object, validate

SPLITS = row_files.SPLIT_NAMES
# What systems call the split "valid".
VALID = ("valid", "validation", "dev")
_COLUMNS = {"prompt": ("prompt", "src"), "answer": ("answer", "tgt")}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
MOST_LABELS = 1000
LONGEST_ANSWER = 128
"""Maximum number of tokens in a generated answer if the task does not set one."""

_TEXT = Text(says="a text", required=False)
SCHEMA = Record(
    dict(
        data=_TEXT,
        prompt=ListOf(Text(says="a column's name"), 1, 100),
        answer=Text(says="a column's name"),
        labels=ListOf(Text(says="a label"), 2, MOST_LABELS, unique=str),
        metrics=ListOf(Choice(answer_metrics.NAMES), 1, 10, unique=str),
        question=Text(says="a text", empty=True),
        max_length=Whole(1, 100_000),
    ),
    closed=True,
)
DEFINITION = Record(SCHEMA.fields | dict(name=Text(says="a name"), source=_TEXT))


@dataclass(frozen=True)
class OwnTask:
    """A user-defined task.

    Attributes:
        name: the task's name.
        source: folder, file or hub name, see above.
        prompt: columns that the prompt is made of; () means "prompt" or "src".
        answer: the answer's column; "" means "answer" or "tgt".
        labels: the possible answers, in order, or None if answers are free text.
        metrics: names of `utils.answer_metrics`, the headline metric first.
        question: what LAMOL's question-answer form asks about the prompt.
        max_length: maximum number of tokens in an answer of train_t5.py; the other scripts have --max_length.
        defined_in: the task.json or the words for the checkpoint that set these, for errors; "": none did.
    """

    name: str
    source: str
    prompt: tuple = ()
    answer: str = ""
    labels: tuple | None = None
    metrics: tuple = ()
    question: str = ""
    max_length: int = LONGEST_ANSWER
    defined_in: str = field(default="", compare=False)

    # The remaining attributes of `data.known_pairs.KnownPairs`, constant here.
    own, tested, rule = True, "test", None
    sample = "a prompt, as in your data"

    @property
    def summary(self):
        return f"your own: {self.source}"

    @property
    def definition(self):
        return self.to_json()

    @property
    def label_names(self):
        return self.labels

    def located(self, data_dir):
        """The task itself: the data directory does not matter, as its source says where its data are."""
        return self

    def distilled_path(self, path):
        """The path of a teacher's texts for a source."""
        return distilled_beside(path)

    def to_json(self):
        """The definition that a checkpoint stores; `from_json` reads it."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()
                if v not in ((), "", None) and key != "defined_in"}  # fmt: skip

    # ---- rows

    def split_of(self, split):
        """The split ("train", "valid" or "test") that a system's name for it refers to."""
        return "valid" if split in VALID else split

    def rows(self, split, source=None):
        """Yield (location, prompts, answers) of every row of a split.

        Args:
            split: "train", "valid" or "test", or another system's name for it ("validation", "dev").
            source: read this source instead of the task's own.

        Returns:
            prompts is a list of texts, one for each column; answers is a list of the correct texts, of which the
            first is the training target.

        Raises:
            UserError: while iterating, with file and line: no such split, no such column, an unusable row, no rows.
        """
        for location, record in self.records(split, source):
            yield location, self.prompts(record, location), self.answers(record, location)

    def records(self, split, source=None):
        """Yield (location, record) of a split, as in the file.

        Raises:
            UserError: while iterating: no such split, an unreadable row, no rows.
        """
        source, split = source or self.source, self.split_of(split)
        path, location, empty = Path(source), f"{source}:{split}", True
        if path.is_dir():
            location = self.split_path(split, source)
            records = row_files.read_rows(location)
        else:
            records = iter_records(path, self.key(split, path)) if path.is_file() else hub_records(source, split)
        for pair in records:
            empty = False
            yield pair
        if empty:
            raise UserError("holds no rows", location=location, expected="at least one",
                            remedy="fill the split, or leave it out")  # fmt: skip

    def split_path(self, split, source=None):
        """The file that holds a split's rows; the source itself if that is not a folder."""
        source, split = source or self.source, self.split_of(split)
        path = Path(source)
        return row_files.split_file(path, SPLITS[split], f"the task {self.name}") if path.is_dir() else path

    def key(self, split, path):
        """The key of a split in a json file."""
        names = split_names(path)
        return next((name for name in SPLITS[split] if name in names), split)

    def has(self, split, source=None):
        """Whether the source has rows of a split."""
        source = source or self.source
        split, path = self.split_of(split), Path(source)
        if split not in SPLITS:
            return False
        if path.is_dir():
            return bool(row_files.split_files(path, SPLITS[split]))
        return any(name in SPLITS[split] for name in (split_names(path) if path.is_file() else hub_splits(source)))

    def content_key(self, split, source=None):
        """A hash of everything that determines a split's rows."""
        path = self.split_path(split, source)
        content = row_files.content_key(path) if path.is_file() else hub_fingerprint(str(path), self.split_of(split))
        settings = [content, self.prompt, self.answer, self.labels, self.question]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def prompts(self, record, location):
        """The prompt's texts, one for each column."""
        self.check_columns(record, location, self.prompt)
        return [text_of(record, (column,), location) for column in self.prompt] or [
            text_of(record, _COLUMNS["prompt"], location)]  # fmt: skip

    def check_columns(self, record, location, columns):
        """Raise a `UserError` that says who asked for a column if a record lacks one of these."""
        if not (missing := [column for column in columns if column not in record]):
            return
        wanted = " and ".join(f'"{column}"' for column in (*self.prompt, *self.answer_columns[:1]))
        remedy = "rename them, or put a task.json that names yours beside the data"
        if self.defined_in.endswith(".json"):
            remedy = "rename them, or correct that file"
        raise UserError(f"has no column {missing[0]!r}; it has {_listed(record)}", location=location,
                        expected=f"the columns {wanted}" + (f", set in {self.defined_in}" if self.defined_in else ""),
                        remedy=remedy)  # fmt: skip

    def prompt_text(self, prompts):
        """The prompt as one text; if it has several columns, each is preceded by its name, as in T5's own tasks."""
        if len(prompts) == 1:
            return prompts[0]
        return " ".join(f"{column}: {text.strip()}" for column, text in zip(self.prompt, prompts))

    def example(self, record, location):
        """(prompt, correct answers) of a record."""
        return self.prompt_text(self.prompts(record, location)), self.answers(record, location)

    @property
    def answer_columns(self):
        """Names that the answer's column may have."""
        return (self.answer,) if self.answer else _COLUMNS["answer"]

    def sentences(self, split):
        """Yield (location, the prompt's texts, label); the label is None in a test split without answers."""
        for location, record in self.records(split):
            answer = next((record[column] for column in self.answer_columns if column in record), None)
            answered = split != "test" or (answer is not None and str(answer).strip() != "")
            yield (location, self.prompts(record, location),
                   self.answers(record, location)[0].strip() if answered else None)  # fmt: skip

    def answers(self, record, location):
        """The texts of the correct answers."""
        self.check_columns(record, location, (self.answer,) if self.answer else ())
        return answers_of(record, self.answer_columns, location, self.label if self.labels else answer_text)

    def label(self, value, column, location):
        """An answer as a label's name; a number that is not itself a label is an index into them, from 0."""
        text = answer_text(value, column, location).strip()
        if text in self.labels:
            return text
        # Beside labels that are numbers themselves an index could not be told from a wrong label.
        if numbers := _numeric(self.labels):
            if len(equal := [label for label, number in numbers.items() if number == finite_number(text)]) == 1:
                return equal[0]
        elif text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(self.labels):
            return self.labels[int(text)]
        shown = ", ".join(self.labels[:20]) + (", …" if len(self.labels) > 20 else "")
        raise UserError(f"{column!r} is {brief(value)}", location=location, expected=f"one of {shown}",
                        remedy="correct the row, or the labels of task.json")  # fmt: skip

    # ---- scores

    def score(self, hypotheses, references):
        """{name: `Score`} of the task's metrics."""
        return answer_metrics.score(self.metrics, hypotheses, references, self.labels)

    def with_labels(self):
        """The same task with labels; if it defines none, they are the sorted answers of its training rows."""
        if self.labels:
            return self
        occurring = set()
        for location, _, answers in self.rows("train"):
            if not answers[0].strip():
                raise UserError("has no answer", location=location, expected="a class",
                                remedy="fill it in, or remove the row")  # fmt: skip
            occurring.add(answers[0].strip())
            if len(occurring) > MOST_LABELS:
                raise UserError(f"has more than {MOST_LABELS} different answers", location=location,
                                expected="a classification task, or its labels in task.json")  # fmt: skip
        if len(occurring) < 2:
            raise UserError(f"has only one answer: {brief(*occurring)}", location=self.source,
                            expected="two labels or more")  # fmt: skip
        numbers = all(text.isascii() and text.isdigit() for text in occurring)
        labels = tuple(sorted(occurring, key=_by_value if numbers else str))
        metrics = default_metrics(labels) if self.metrics == default_metrics(None) else self.metrics
        return replace(self, labels=labels, metrics=metrics)


def _by_value(digits):
    """A key that sorts whole numbers of any length by their values."""
    return len(digits.lstrip("0")), digits.lstrip("0"), digits


@functools.lru_cache
def _numeric(labels):
    """{label: its number} of the labels that are numbers; looked up for every row."""
    return {label: number for label in labels if (number := finite_number(label)) is not None}


def finite_number(text):
    """The number that a text spells, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def default_metrics(labels):
    """The metrics of a task that does not name any."""
    return ("accuracy",) if labels else ("exact_match", "f1")


# --- columns ---------------------------------------------------------------------------------------------


def column_value(record, columns, location):
    """(value, column) of the first of `columns` that a record has."""
    for column in columns:
        if column in record:
            return record[column], column
    raise UserError(f"has no column {' or '.join(map(repr, columns))}; it has {_listed(record)}", location=location,
                    expected='the columns "prompt" and "answer"',
                    remedy='rename them, or name yours in task.json: {"prompt": "text", "answer": "label"}')


def _listed(record):
    """A record's columns, for messages."""
    return ", ".join(map(repr, islice(record, 20))) or "none"


def text_of(record, columns, location):
    """The text in the first of `columns` that a record has."""
    value, column = column_value(record, columns, location)
    if not isinstance(value, str):
        raise UserError(f"{column!r} is {brief(value)}", location=location, expected="a text", remedy="correct the row")
    return value.encode("utf-8", "replace").decode("utf-8")


def answers_of(record, columns, location, read):
    """The texts in the first of `columns` that a record has: one value, or a list; `read` converts each to text."""
    value, column = column_value(record, columns, location)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise UserError(f"{column!r} is an empty list", location=location, expected="an answer")
    return [read(value, column, location) for value in values]


def answer_text(value, column, location):
    """An answer as text; whole floats lose their ".0", as a number may be the index of a label."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value).encode("utf-8", "replace").decode("utf-8")
    raise UserError(f"{column!r} is {brief(value)}", location=location, expected="a text, a number, or a list of these",
                    remedy="correct the row, or remove it")  # fmt: skip


# --- definitions -----------------------------------------------------------------------------------------


def define(name, source, flag="--tasks", trained=None):
    """The `OwnTask` of a typed NAME=SOURCE.

    Args:
        trained: the task as a model was trained on it; its settings apply where no task.json gives others.

    Raises:
        UserError: the name is not a valid task name, there is nothing at the source, or task.json is not valid.
    """
    # A flag that takes no names has the data of the one task.
    location = f"{flag} {source}" if flag in ("--dataset_path", "--data_dir") else f"{flag} {name}={source}"
    if not _NAME.fullmatch(name) or len(name) > 60:
        raise UserError(f"{brief(name)} cannot be a task's name", location=location,
                        expected="letters, digits, - and _, at most 60")  # fmt: skip
    if not trained:
        check_task_name(name, location)
    path, settings = Path(source), {}
    settings_file = None
    if path.is_file() and not split_names_of_json(path):
        settings_file, settings = path, _settings(path)
        if "data" not in settings:
            raise UserError("holds no train, valid or test", location=path,
                            expected='{"train": [...], "valid": [...], "test": [...]}, or a task.json with "data"',
                            remedy="name a folder if each split is a file of its own")  # fmt: skip
        source = settings.pop("data")
        path = _named_data(settings_file, source)
    else:
        settings_file = next((p for p in _beside(path) if p.is_file()), None)
        settings = _settings(settings_file) if settings_file else {}
        if (named := settings.pop("data", None)) and not is_same_path(_named_data(settings_file, named), path):
            if path.is_file() or any(row_files.split_files(path, names) for names in SPLITS.values()):
                raise UserError(f"names other data ({brief(named)}) than the rows beside it", location=settings_file,
                                remedy=f'take "data" out of it, or name the file alone: {settings_file}')  # fmt: skip
            path, source = _named_data(settings_file, named), named
    if not path.exists() and not HUB_NAME.fullmatch(source):
        raise UserError("no such file or folder", location=location, remedy="check the spelling of the path",
                        expected="a folder with train, valid and test, a json file, or owner/name on the hub")
    settings["source"] = str(path.resolve()) if path.exists() else source
    if trained and settings_file is None:
        return replace(trained, source=settings["source"])
    task = from_json(dict(settings, name=name), settings_file or location)
    return replace(task, defined_in=str(settings_file or ""))


def _named_data(settings_file, data):
    """The path of the data that a task.json names: from its own folder, or as it stands there."""
    beside = settings_file.parent / data
    return beside if beside.exists() else Path(data)


def split_names_of_json(path):
    """Names of a json file's splits; other files are refused, as a single file must hold all splits."""
    if Path(path.name.removesuffix(".gz")).suffix.lower() != ".json":
        raise UserError("one file holds one split only", location=path, remedy="name the folder instead",
                        expected="a folder with train, valid and test, or one json file with all of them")  # fmt: skip
    return [name for name in split_names(path) if any(name in names for names in SPLITS.values())]


def _beside(path):
    if path.is_dir():
        return [path / "task.json"]
    return [path.with_name(f"{row_files.stem(path)}.task.json"), path.with_name("task.json")]


def _settings(path):
    settings = read_json_object(path, "correct it")
    if "prompt" in settings and not isinstance(settings["prompt"], list):
        settings["prompt"] = [settings["prompt"]]
    return validate(settings, SCHEMA, path, "correct the file")


def from_json(content, location):
    """The `OwnTask` that a checkpoint stored or a task.json describes.

    Raises:
        UserError: at `location`: something is missing or of the wrong type.
    """
    validate(content, DEFINITION, location)
    known = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()
             if key in OwnTask.__dataclass_fields__}  # fmt: skip
    known.setdefault("metrics", default_metrics(known.get("labels")))
    if {"name", "source"} - set(known):
        raise UserError("is not the definition of a task", location=location, expected="a name and a source")
    return OwnTask(**known)


# --- registered tasks ------------------------------------------------------------------------------------

_KNOWN: dict[str, OwnTask] = {}


def get_own_task(name):
    """The `OwnTask` registered under a name, or None."""
    return _KNOWN.get(name)


def register_own_tasks(tasks):
    """Register user-defined tasks under their names, so that all look-ups find them.

    Args:
        tasks: `OwnTask`s, or the results of their `to_json`.

    Raises:
        UserError: a task of the toolkit already has the name.
    """
    from versatile.data.task import known_names

    for task in tasks:
        if not isinstance(task, OwnTask):
            task = from_json(task, "a task's definition in the checkpoint")
            task = replace(task, defined_in="the task's definition in the checkpoint")
        if task.name.lower() in known_names():
            raise UserError(f"{task.name!r} is a task of the toolkit", location=f"{task.name}={task.source}",
                            expected="a name of your own",
                            remedy=f"choose another name; to name the data of {task.name}: --dataset_path FILE, "
                            f"--data {task.name}=FILE or --data_dir DIR, depending on the script")  # fmt: skip
        _KNOWN[task.name] = task


def relocate(name, source, flag):
    """Let a registered task read other data from now on; arguments and errors as of `define`."""
    register_own_tasks([define(name, source, flag, get_own_task(name))])


def named_data(name, path, flag):
    """Where the data that a flag names for a task are read; a task.json beside those of a user-defined task applies.

    Args:
        path: the flag's value, or None.
    """
    if not path or not get_own_task(name):
        return path
    relocate(name, path, flag)
    return get_own_task(name).source


def prepare_own_tasks(args, flag="--tasks", labelled=False, trained=()):
    """Register the user-defined tasks of a command line or a resumed run; sets `args.task_definitions`.

    Args:
        args: has own_tasks, {name: source} or None, and task_definitions, those of a resumed run or None.
        flag: the flag that the names were given to.
        labelled: every task is a classification task; labels not given are taken from the training rows.
        trained: definitions of the tasks of a trained model, which typed sources give other data.
    """
    register_own_tasks(trained)
    if args.own_tasks and not args.task_definitions:
        held = {task["name"] for task in trained}
        tasks = [define(name, source, flag, get_own_task(name) if name in held else None)
                 for name, source in args.own_tasks.items()]  # fmt: skip
        register_own_tasks(tasks)
        tasks = [task.with_labels() for task in tasks] if labelled else tasks
        register_own_tasks(tasks)
        args.task_definitions = [task.to_json() for task in tasks]
    else:
        known: Iterable = args.task_definitions or ()
        register_own_tasks(known)
