"""Where the rows of a text-to-text task come from: files, GLUE's official folders, or the Hugging Face hub.

`find_records` returns a sequence of records (dicts by column) and a function from a row's number to its location.
"""

import os
import re
from pathlib import Path

from versatile.data import glue
from versatile.data.files import fingerprint
from versatile.data.hub import task_records
from versatile.data.row_files import SPLIT_NAMES, read_rows, split_file, split_files
from versatile.data.row_files import content_key as file_key
from versatile.data.row_store import RowStore
from versatile.utils.errors import UserError, brief

_ALL_NAMES = [name for names in SPLIT_NAMES.values() for name in names]


def _file_names(names):
    """The names that a file of one of these splits may have, in order of preference."""
    others = {"validation": SPLIT_NAMES["valid"]}
    return [candidate for name in names for candidate in (name, *others.get(name, ()))]


def find_records(task, names, data_dir=None, files=None):
    """The rows of a split.

    Args:
        task: a `data.text_task.TextTask`.
        names: names of the split, in order of preference: a file may have any of them, GLUE and the hub use the last.
        data_dir, files: see `data.text_to_text.load_rows`.

    Returns:
        (records, location): a sequence of records; ``location(i)`` is the location of record i.
    """
    if task.pairs:
        return task.records(names[-1], data_dir)
    if files is not None:
        return _local(files, names, task)
    if data_dir is not None:
        folder = Path(data_dir)
        if not folder.is_dir():
            raise UserError("no such folder", location=folder, expected="the data's folder",
                            remedy="check --data_dir, or leave it out to load from the hub")  # fmt: skip
        own = folder / task.name
        if split_files(own, _ALL_NAMES):
            # Also where this split is missing: the rows of one task do not come from two places.
            return _local(own, _file_names(names), task)
        if _has_official(task, folder):
            return _official(task, names, folder)
    return task_records(task, names[-1], data_dir)


def origin(task, names, data_dir=None):
    """Where `find_records` reads the rows of a split from: a file, or the name of a split in GLUE or on the hub."""
    if task.pairs:
        pairs = task.pairs.located(data_dir)
        return pairs.split_path(names[-1]), "" if Path(pairs.source).is_dir() else pairs.split_of(names[-1])
    if data_dir is not None:
        own = Path(data_dir) / task.name
        if files := split_files(own, _file_names(names)):
            return files[0].resolve()
        if _has_official(task, Path(data_dir)) and not split_files(own, _ALL_NAMES):
            return _official_split(task, names)
    return task.hub, names[-1]


def holds(task, names, data_dir=None):
    """Whether `find_records` finds rows of a split."""
    source = origin(task, names, data_dir)
    if isinstance(source, Path):
        return True
    if source[0] != task.hub:
        return glue.path_of(data_dir, *source).is_file()
    return data_dir is None and task.hub is not None


def content_key(task, names, data_dir=None):
    """A key that changes with the rows that `find_records` returns; files are not parsed for it."""
    if task.pairs:
        return task.pairs.located(data_dir).content_key(names[-1])
    source = origin(task, names, data_dir)
    if isinstance(source, Path):
        return file_key(split_file(Path(data_dir) / task.name, _file_names(names), task.name))
    if source[0] != task.hub and (path := glue.path_of(data_dir, *source)).is_file():
        return fingerprint(path)
    records, _ = find_records(task, names, data_dir)
    return f"{source} {records._fingerprint}"


def value(record, fields, location):
    """The value of the first of `fields` that a record has; ``"endings[0]"`` indexes into a column.

    A flat file may use the last part as a column's name: the column ``ro`` stands for ``translation[ro]``.
    """
    for field in fields:
        first, *keys = re.findall(r"[^\[\]]+", field)
        if first in record:
            return _writable(_inside(record[first], keys, field, location))
        if keys and not keys[-1].isdigit() and keys[-1] in record:
            return _writable(record[keys[-1]])
    raise UserError(f"has no {' or '.join(map(repr, fields))}; it has {', '.join(map(repr, record))[:200]}",
                    location=location, expected="the columns of the hub's data set", remedy="rename the columns")


def _inside(item, keys, field, location):
    for key in keys:
        try:
            item = item[int(key) if key.isdigit() else key]
        except (KeyError, IndexError, TypeError):
            problem = f"has no {field!r}, but {brief(item)}"
            raise UserError(problem, location=location, remedy="correct the record") from None
    return item


def _writable(item):
    """The item; a ``\\ud800``-style escape without its second half is not a character and becomes ``?``."""
    return item.encode("utf-8", "replace").decode("utf-8") if isinstance(item, str) else item


# --- files -----------------------------------------------------------------------------------------------


def _local(files, names, task):
    if isinstance(files, (str, os.PathLike)):
        path = split_file(files, names, task.name)
    else:
        path = next((files[name] for name in names if name in files), None)
        if path is None:
            raise UserError(f"{task.name}: no file is given for {names[0]}; there is one for {', '.join(files)}",
                            remedy="give the file")  # fmt: skip
    rows = RowStore(read_rows(path))
    if not len(rows):
        raise UserError("holds no rows", location=path, expected="at least one", remedy="check how it was made")
    return rows, rows.location


# --- GLUE's own folders ----------------------------------------------------------------------------------


def _has_official(task, folder):
    return bool(task.glue) and (folder / glue.get_task(task.glue["train"][0]).folder).is_dir()


def _official_split(task, names):
    """(name in `data.glue.TASKS`, split) of the last of `names` that GLUE has."""
    return next(task.glue[name] for name in reversed(names) if name in task.glue)


def _official(task, names, folder):
    """GLUE's tsv files as records: text columns under the template's names, labels as names, scores as numbers."""
    name, split = _official_split(task, names)
    fields = task.fields()
    rows = RowStore(
        (example.location, dict(zip((*fields, task.label[0]), (example.text_a, example.text_b, example.label))))
        if len(fields) == 2
        else (example.location, {fields[0]: example.text_a, task.label[0]: example.label})
        for example in glue.iter_examples(folder, name, split)
    )
    return rows, rows.location
