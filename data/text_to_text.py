"""Text-to-text tasks for encoder-decoders: loading their rows.

An example has ``source`` ("sentence1: … sentence2: …"), ``target`` (a digit string, a score, or a translation) and
``task``. The wording, answers and splits are those of Karimi Mahabadi et al. (2021). Rows come from the user's own
files, GLUE's official folders (`data.glue`), or the Hugging Face hub.

Deliberate differences from the published code:

* with `split_validation_test`, the 1000 training rows used for validation are removed from the training set;
* `n_obs` −1 means all rows (there it dropped the last one);
* rows without a gold label (−1 or "-" in SNLI) are left out (there they were learned as the answer "-1").
"""

import logging
from typing import NamedTuple

import numpy as np
from versatile.data import task as registry
from versatile.data import text_to_text_rows as rows_of
from versatile.data.text_task import OWN_SPLITS, TextTask, spelling
from versatile.utils.errors import UserError, brief

SPLITS = ("train", "validation", "test")
HELD_OUT_ROWS = 1000
"""Training rows that become the validation set of a task whose rule is ``"held out"``."""
TASKS = registry.Forms("text_to_text")


def get_task(name, flag="--tasks"):
    """The `TextTask` of a name; an unknown one raises `UserError`."""
    return registry.form(name, "text_to_text", flag)


# --- loading ---------------------------------------------------------------------------------------------


def load_rows(task, split, data_dir=None, files=None, seed=42, split_validation_test=False, n_obs=None, prefix=False):
    """A split of a task as text to text.

    Its rows come from `files`, if given; else from ``data_dir/<task>`` with files of the same names, or GLUE's
    official folder in `data_dir`; else from the hub.

    With `split_validation_test` (published for tasks without labelled test data), a ``"halved"`` task uses the first
    half of ``randperm(seed)`` of its validation set for validation and the rest for testing; a ``"held out"`` one uses
    the first 1000 of ``randperm(seed)`` of its training set for validation, the others for training, and the
    original validation set for testing. Of 1000 rows or fewer, half are held out.

    Args:
        task: a key of `TASKS`, or a `TextTask`.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        data_dir: a folder of the user's own folders or of GLUE's official ones.
        files: a folder with ``{train,validation,test}.{json,jsonl,csv,tsv}``, or {split: file}; the columns are
            named as on the hub.
        seed: random seed of the permutations above and of `n_obs`.
        n_obs: use only this many rows, drawn by ``randperm(seed)``; None or a negative number: all.
        prefix: put the task's prefix before every source (published: without adapters).

    Returns:
        `datasets.Dataset` with the string columns source, target and task; unless rows are drawn, they stay in the
        file's order.

    Raises:
        UserError: an unknown task or split; missing files or columns, or unknown labels, with their location; the hub
            is unreachable; no rows.
    """
    from datasets import Dataset, Features, Value

    task = task if isinstance(task, TextTask) else get_task(task)
    examples = SplitRows(task, split, data_dir, files, seed, split_validation_test, n_obs, prefix)
    sources, targets, _ = zip(*examples)
    columns = {"source": sources, "target": targets, "task": [task.name] * len(sources)}
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Value("string"))))


class TextExample(NamedTuple):
    """A source, its target (None: to be predicted), and in some tasks further correct targets."""

    source: str
    target: str | None
    further: list | None = None


class SplitRows:
    """Iterates over the `TextExample`s of a split without keeping rows in memory; takes `load_rows`' arguments."""

    def __init__(self, task, split, data_dir=None, files=None, seed=42, split_validation_test=False, n_obs=None,
                 prefix=False):  # fmt: skip
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}", expected=f"one of {' '.join(SPLITS)}")
        if n_obs == 0:
            raise UserError("0 rows are asked for", expected="1 or more, or -1 for all",
                            remedy="raise the number of rows")  # fmt: skip
        self.task, self.split, self.data_dir, self.files = task, split, data_dir, files
        self.seed, self.n_obs, self.held_out, self.prefix = seed, n_obs, split_validation_test, prefix
        self.names = _split_names(task, split, split_validation_test)

    def __iter__(self):
        task = self.task
        head = f"{task.prefix or task.name} " if self.prefix else ""
        for _, texts, target, record in self.rows():
            further = record["answers"][1:] if task.pairs else None
            yield TextExample(head + task.fill(texts), target, further)

    def rows(self):
        """Yield (location, the texts of the template's fields, target, record)."""
        task = self.task
        records, location = rows_of.find_records(task, self.names, self.data_dir, self.files)
        if task.ambiguous_one and not hasattr(records, "select"):
            _check_numbering(task, records, location)
        order = _labelled(task, records, location)
        order = order[_chosen(task, self.split, self.held_out, len(order), self.seed, self.n_obs)]
        if not len(order):
            raise UserError(f"{task.name}: no rows are left for {self.split}", expected="at least one",
                            remedy="give it more rows, or leave out --split_validation_test")  # fmt: skip
        chosen = records.select(order) if hasattr(records, "select") else map(records.__getitem__, order)
        blank = 0
        for index, record in zip(order.tolist(), chosen):
            row_location = location(index)
            target = task.target(rows_of.value(record, task.label, row_location), row_location)
            if target.strip():
                yield row_location, [_text(record, field, row_location) for field in task.fields()], target, record
            else:
                blank += 1
        self._report_blank(blank, len(order), location(int(order[0])))

    def _report_blank(self, blank, size, where):
        # A blank target is a withheld one: it can be used neither for training nor for scoring.
        if blank == size:
            raise UserError(
                f"{self.task.name}: the targets of all rows for {self.split} ({size}) are blank",
                location=where,
                expected="target texts",
                remedy="name the file with the true targets; they may be withheld in this one",
            )
        if blank:
            logging.getLogger(__name__).warning("%s: %d of %d rows for %s have a blank target and are left out",
                                                self.task.name, blank, size, self.split)  # fmt: skip


def test_is_validation(task, data_dir=None, split_validation_test=False):
    """Whether a task's validation and test rows are the same: read from the same place and not divided."""
    if split_validation_test and task.rule:
        return False
    names = [_split_names(task, split, split_validation_test) for split in ("validation", "test")]
    one, other = (rows_of.origin(task, candidates, data_dir) for candidates in names)
    return one == other


def _split_names(task, split, split_validation_test):
    """Names that the rows of a split may be stored under, in order of preference."""
    splits = task.splits or OWN_SPLITS
    if split_validation_test and task.rule == "halved" and split != "train":
        return ["validation", splits["validation"]]
    if split_validation_test and task.rule == "held out":
        return ["train"] if split != "test" else ["validation", splits["validation"]]
    return [split, splits[split]]


def _chosen(task, split, split_validation_test, size, seed, n_obs):
    """[rows] which of `size` rows belong to a split, in order."""
    rule = task.rule if split_validation_test else None
    rest = {"halved": "test", "held out": "train"}.get(rule)
    count = None if n_obs is None or n_obs < 0 else n_obs
    if rule is None or split not in ("validation", rest):
        return np.arange(size) if count is None else _permutation(size, seed)[:count]
    order, first = _permutation(size, seed), size // 2
    if rule == "held out" and size > HELD_OUT_ROWS:
        first = HELD_OUT_ROWS
    return (order[:first] if split == "validation" else order[first:])[:count]


def _permutation(size, seed):
    import torch

    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).numpy()


def _labelled(task, records, location):
    """[rows] indices of the rows that have a label."""
    if not task.no_label:
        return np.arange(len(records))
    column = task.label[0]
    labels = records[column] if hasattr(records, "select") else (
        rows_of.value(record, task.label, location(i)) for i, record in enumerate(records))  # fmt: skip
    return np.flatnonzero(np.fromiter((spelling(label) not in task.no_label for label in labels), bool))


def _check_numbering(task, records, location):
    """Raise a `UserError` if the user's own rows number the classes from 1, or if the numbering is ambiguous.

    All rows are checked: a small sample might contain only "1", which is a class in both numberings.
    """
    labels = set()
    for i, record in enumerate(records):
        label = rows_of.value(record, task.label, location(i))
        if spelling(label) == "2":
            raise UserError(
                "the label is 2: the classes are numbered from 1, as in the original files",
                location=location(i),
                expected="0 for neg and 1 for pos, as on the hub, or the names",
                remedy="write neg for 1 and pos for 2",
            )
        # A number comes from a json file, which is not one of the original files.
        labels.add(label.strip() if isinstance(label, str) else None)
    if labels == {"1"}:
        raise UserError("every label is 1, which is neg in the original files and pos on the hub", location=location(0),
                        expected="labels that say what they mean", remedy="write neg or pos")  # fmt: skip


def _text(record, field, location):
    text = rows_of.value(record, (field,), location)
    if not isinstance(text, str):
        raise UserError(f"{field!r} is {brief(text)}", location=location, expected="a text", remedy="correct the row")
    return text
