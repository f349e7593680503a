"""glue-pairs: labelled sentence pairs, converted to a GLUE folder."""

import contextlib
import re

from versatile.data import glue
from versatile.data.converters.base import (
    check_output_directory,
    data_format,
    given_splits,
    held_out_flag,
    held_out_sizes,
    limited,
    no_task_file,
    parsed,
    skip_bad_flag,
    split_flags,
    split_records,
    usable,
)
from versatile.data.files import text_field
from versatile.data.json_files import top_level
from versatile.utils.errors import UserError, brief

_NAMES = {"train": "train", "valid": "dev", "test": "test"}
# The tasks with two texts that are trained on.
_TASKS = [name for name, task in glue.TASKS.items()
          if not task.pairs and len(task.columns) == 2 and "train" in task.files]  # fmt: skip
_SEPARATORS = re.compile(r"[\t\r\n]+")
_EXPECTED = '{"0": {"text_a": "…", "text_b": "…", "label": "…"}, "1": …}'


def _flags(parser):
    parser.add_argument("--task", required=True, choices=_TASKS, help="the GLUE task that the pairs belong to")
    split_flags(parser, 1, f"json file of numbered pairs: {_EXPECTED}")
    held_out_flag(parser, "valid", "the last N training pairs")
    skip_bad_flag(parser, "pairs")


def _write(args, splits, report):
    """Write the tsv files of all splits, or none. Without splits, only check --output."""
    check_output_directory(args.output, "GLUE's directory, e.g. data/glue",
                           "name a directory; the task's folder and its files are made in it")  # fmt: skip
    if splits is None:
        return
    task = glue.get_task(args.task)
    with contextlib.ExitStack() as files:
        for split, records in splits.items():
            path = glue.path_of(args.output, args.task, _NAMES[split])
            file = files.enter_context(report.open_output(path))
            file.write("\t".join([*task.columns, task.label_column]) + "\n")
            for record in limited(split, records, args, report):
                file.write("\t".join(record) + "\n")


@data_format("glue-pairs", _flags, _write)
def read_pairs(args, report):
    """Labelled sentence pairs as one task's tsv files in GLUE's own layout: its folder is written to --output DIR.

    A file holds numbered objects with text_a, text_b and one of the task's labels (entailment, neutral or
    contradiction for mnli; 0 or 1 for qqp and mrpc; a number for sts-b). A tab or line break in a text becomes a space,
    as tsv files cannot contain them. mnli's --valid becomes dev_matched.tsv. The files are read like the official ones:
    train_camtl.py --data_dir DIR --tasks mnli.
    """
    task = glue.get_task(args.task)

    def rows(path):
        return parsed(_pairs(path), lambda pair, location, drops: _row(task, pair, location), args.skip_bad)

    files = given_splits(args)
    return split_records(files, held_out_sizes(args, files), rows, report, key=lambda row: row[:2])


def _pairs(path):
    """Yield (location, value) for everything in a file of numbered pairs."""
    with no_task_file(f"one json object: {_EXPECTED}"):
        for key, value in top_level(path):
            location = f"{path}:{key}"
            if isinstance(value, dict):
                yield location, value
                continue
            is_list = not isinstance(value, (str, int, float, type(None)))
            for _ in value if is_list else ():
                pass
            problem = "is a list" if is_list else f"is {brief(value)}"
            yield location, UserError(problem, location=location, expected=_EXPECTED)


def _row(task, pair, location):
    """The texts and the label of a pair, as fields of a tsv row."""
    texts = [usable(_SEPARATORS.sub(" ", text_field(pair, name, location)), repr(name), location)
             for name in ("text_a", "text_b")]  # fmt: skip
    label = pair.get("label")
    is_number = isinstance(label, (int, float)) and not isinstance(label, bool)
    # Numbers are written as they are read: 3.8, 1.
    label = str(label) if is_number else text_field(pair, "label", location)
    glue.parse_label(task, label, location)
    return (*texts, label.strip())
