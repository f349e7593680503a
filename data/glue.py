"""The GLUE tasks in the folders of the official download script: one tsv file per split (Wang et al. 2019).

The files are read as they are. Only ``\\n`` ends a line and nothing is quoted: MRPC and STS-B are full of single
``"``, and sentences contain U+2028 and the like. Columns are found by their names in the header, so they may differ
between the splits of a task; CoLA's train and dev files, which have no header, have fixed ones. Texts are kept as in
the file, including SST-2's trailing space; a ``\\r`` at the end of a line is removed.
"""

import logging
import math
from itertools import islice
from pathlib import Path

from versatile.data import task as registry
from versatile.data.files import text_lines
from versatile.data.glue_task import GlueExample
from versatile.utils import glue_metrics
from versatile.utils.errors import UserError, brief

# The order of the first nine is CA-MTL's and defines the task ids of its published models. mnli-mm and ax are not
# trained on; both are predicted with MNLI's head.
ORDER = ("cola", "mnli", "rte", "wnli", "qqp", "sts-b", "sst-2", "qnli", "mrpc", "mnli-mm", "ax")
TASKS = registry.Forms("sentence_pair", ORDER)
_HIGHEST_SCORE = 5.0
_DOWNLOAD = "python download_glue_data.py --data_dir DIR --tasks all writes them"
# Tasks evaluated and predicted with another task's head.
SHARED_HEADS = {"mnli-mm": "mnli", "ax": "mnli"}
# A regression task has no entropy; another task's entropy is used instead (see utils/uncertainty.py).
ENTROPY_PROXY = {"sts-b": "mrpc"}
SUBMISSION_ROWS = {"cola": 1063, "sst-2": 1821, "mrpc": 1725, "sts-b": 1379, "qqp": 390965, "mnli": 9796,
                   "mnli-mm": 9847, "qnli": 5463, "rte": 3000, "wnli": 146, "ax": 1104}  # fmt: skip
"""Rows of each official test file; the GLUE site refuses a submission with any other number of rows."""


def get_task(name, flag="--tasks"):
    """The `GlueTask` of a name (case-insensitive); an unknown one raises `UserError`."""
    return registry.form(name, "sentence_pair", flag)


def tasks_sharing_heads(hosts):
    """{task: the one of `hosts` with whose head it is evaluated and predicted}."""
    return {task: host for task, host in SHARED_HEADS.items() if host in hosts}


def glue_name(typed):
    """GLUE's name of a task typed in any spelling ("stsb", "sts_b", "STS-B"), or None if it is not one of GLUE's."""
    plain = {name.replace("-", ""): name for name in (*TASKS, *SHARED_HEADS)}
    return plain.get(typed.lower().replace("-", "").replace("_", ""))


def path_of(data_dir, name, split):
    """The file of a task's split under `data_dir`: the first of its possible names that exists, else the first one.

    Raises:
        UserError: the task has no such split.
    """
    task = get_task(name)
    if split not in task.files:
        raise UserError(f"{task.name} has no {split!r} split", expected=f"one of {' '.join(task.files)}",
                        remedy="leave the task out for this split")  # fmt: skip
    if task.pairs:
        return task.path(split, data_dir)
    paths = [Path(data_dir) / file for file in task.files[split]]
    return next((path for path in paths if path.is_file()), paths[0])


def read_examples(data_dir, task_name, split, limit=None):
    """The examples of a split, in the file's order.

    Args:
        data_dir: the folder that holds ``CoLA/``, ``MNLI/`` and so on.
        task_name: a key of `TASKS`.
        split: ``"train"``, ``"dev"`` or ``"test"``; labels are None if the test file has none.
        limit: read only the first `limit` rows.

    Returns:
        list of `GlueExample`.

    Raises:
        UserError: with file and line: no such file, a missing column, a row of the wrong length, an unknown label,
            a score that is not a number from 0 to 5, no rows at all.
    """
    return list(iter_examples(data_dir, task_name, split, limit))


def iter_examples(data_dir, task_name, split, limit=None):
    """Yield what `read_examples` returns, with one row in memory at a time."""
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}", expected="1 or more", remedy="leave it out to read all rows")
    task, path = get_task(task_name), path_of(data_dir, task_name, split)
    if not task.pairs and not path.is_file():
        raise UserError("no such file", location=path, expected=f"GLUE's {task.folder} folder with its tsv files",
                        remedy=f"check --data_dir; {_DOWNLOAD}")  # fmt: skip
    examples = (
        task.read(split, data_dir)
        if task.pairs
        else (
            _example(task, location, number, row)
            for number, (location, row) in enumerate(_rows(task, path, split))
        )
    )
    empty = True
    for example in islice(examples, limit):
        empty = False
        yield example
    if empty:
        remedy = "fill the split" if task.pairs else _DOWNLOAD
        raise UserError("holds no examples", location=path, expected="at least one row", remedy=remedy)


def _rows(task, path, split):
    """Yield (location, {column: text}) for every row of the file."""
    header, left_out = None, []
    if task.headerless and split != "test":
        header = task.headerless
    for line, text in text_lines(path):
        fields = text.removesuffix("\n").removesuffix("\r").split("\t")
        location = f"{path}:{line}"
        if fields == [""]:
            continue
        if header is None:
            header = [name.strip() for name in fields]
            _check_header(task, header, location, split)
        elif len(fields) == len(header):
            yield location, dict(zip(header, fields))
        elif task.broken_rows:
            left_out.append(line)
        else:
            raise UserError(f"{len(fields)} columns", location=location, expected=f"{len(header)}: {', '.join(header)}",
                            remedy="correct the row; columns are separated by tabs, and nothing is quoted")  # fmt: skip
    if left_out:
        logging.getLogger(__name__).warning(
            "%s: %d rows with a wrong number of columns left out (the official file has some); the first is line %d",
            path, len(left_out), left_out[0],
        )  # fmt: skip


def _check_header(task, header, location, split):
    wanted = [*task.columns] if split == "test" else [*task.columns, task.label_column]
    missing = [name for name in wanted if name not in header]
    if missing:
        problem = f"the header has no {', '.join(map(repr, missing))}; it is {', '.join(header)[:200]!r}"
        raise UserError(problem, location=location, expected=f"a header with {', '.join(wanted)}, separated by tabs",
                        remedy=f"check that this is GLUE's own {task.folder} file; {_DOWNLOAD}")  # fmt: skip
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise UserError(
            f"the header has {twice[0]!r} more than once", location=location, remedy="rename one of the columns"
        )


def _example(task, location, number, row):
    texts = [row[name] for name in task.columns]
    index = next((row[name] for name in ("index", "id") if name in row), None)
    label = row.get(task.label_column)
    return GlueExample(
        index=number if index is None else _index(index, location),
        text_a=texts[0],
        text_b=texts[1] if len(texts) > 1 else None,
        label=None if label is None else parse_label(task, label, location),
        location=location,
    )


def _index(text, location):
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise UserError(f"the index is {brief(text)}", location=location, expected="a whole number",
                        remedy="correct the first column")  # fmt: skip
    return int(text)


def parse_label(task, text, location):
    """The label in a field of a file: one of the task's, or a float for STS-B; anything else raises `UserError`."""
    text = text.strip()
    if not task.regression:
        if text not in task.labels:
            raise UserError(
                f"the label is {brief(text)}",
                location=location,
                expected=f"one of {', '.join(task.labels)}",
                remedy=f"correct the column {task.label_column!r}, or remove the row",
            )
        return text
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= _HIGHEST_SCORE:
        raise UserError(f"the score is {brief(text)}", location=location, expected="a number from 0 to 5",
                        remedy=f"correct the column {task.label_column!r}, or remove the row")  # fmt: skip
    return score


def score(glue_task_name, predictions, labels):
    """GLUE's metrics of one task.

    Args:
        glue_task_name: a key of `TASKS`.
        predictions, labels: N label strings or class ids (in the task's order); numbers for STS-B.

    Returns:
        {metric name: value, 0–1}: matthews; accuracy; accuracy and f1; or pearson and spearman.

    Raises:
        UserError: nothing to score, predictions and labels differ in number, or a value is not a label of the task.
    """
    task = get_task(glue_task_name)
    glue_metrics.check_counts(predictions, labels)
    if task.regression:
        predictions, labels = [float(x) for x in predictions], [float(x) for x in labels]
    else:
        predictions, labels = _class_ids(task, predictions), _class_ids(task, labels)
    return {name: getattr(glue_metrics, name)(predictions, labels) for name in task.metrics}


def _class_ids(task, labels):
    number = {label: i for i, label in enumerate(task.labels)}
    ids = []
    for i, label in enumerate(labels):
        label = number.get(label, label) if isinstance(label, str) else int(label)
        if isinstance(label, str) or not 0 <= label < len(number):
            raise UserError(f"{brief(label)} is not a label of {task.name}", location=f"row {i}",
                            expected=f"one of {', '.join(task.labels)}, or their ids from 0")  # fmt: skip
        ids.append(label)
    return ids
