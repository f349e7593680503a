"""Where the rows of a text-to-text task come from: files, GLUE's official folders, or the Hugging Face hub.

`find` gives a sequence of records (dicts by column) and a function from a row's number to its place.
"""

import os
import re
from pathlib import Path

from versatile.data import glue
from versatile.data.files import bare_csv_rows, fingerprint, list_items, open_bytes, text_lines
from versatile.data.json_text import loads
from versatile.data.row_store import RowStore
from versatile.utils.errors import UserError, brief, first_line

EXTENSIONS = ("json", "jsonl", "csv", "tsv")
# Repositories of the hub that hold a script and no data; `datasets` runs none since version 4.
_SCRIPTS = ("IWSLT/iwslt2017", "allenai/social_i_qa", "allenai/cosmos_qa", "CogComp/trec")
# The same data in another repository.
_COPIES = {"allenai/social_i_qa": "lighteval/siqa"}


def find(task, names, data_dir=None, files=None):
    """The rows of a split.

    Args:
        task: a `data.text_to_text.TextTask`.
        names: names of the split, the best first: a file may be called by any, GLUE and the hub by the last.
        data_dir, files: see `data.text_to_text.load`.

    Returns:
        (records, place): records by number, with a length; ``place(i)`` says where record i stands.
    """
    if files is not None:
        return _local(files, names, task)
    if data_dir is not None:
        folder = Path(data_dir)
        if not folder.is_dir():
            raise UserError("no such folder", place=folder, expected="the data's folder",
                            remedy="check --data_dir, or leave it out to load from the hub")  # fmt: skip
        own = folder / task.name
        if any(_candidates(own, names)):
            return _local(own, names, task)
        if _has_official(task, folder):
            return _official(task, names, folder)
    return _hub(task, names[-1], data_dir)


def origin(task, names, data_dir=None):
    """What `find` reads the rows of a split from: a file, or the name of a split of GLUE's or of the hub's."""
    if data_dir is not None:
        if files := _candidates(Path(data_dir) / task.name, names):
            return files[0].resolve()
        if _has_official(task, Path(data_dir)):
            return _official_split(task, names)
    return task.hub, names[-1]


def content_key(task, names, data_dir=None):
    """Changes with the rows that `find` finds; a file is not parsed for it."""
    source = origin(task, names, data_dir)
    if isinstance(source, Path):
        return fingerprint(_split_file(Path(data_dir) / task.name, names, task))
    if source[0] != task.hub and (path := glue.path_of(data_dir, *source)).is_file():
        return fingerprint(path)
    records, _ = find(task, names, data_dir)
    return f"{source} {records._fingerprint}"


def value(record, fields, place):
    """What a record has under the first of `fields` that it has; ``"endings[0]"`` goes into a column.

    A flat file may name the last part alone: the column ``ro`` stands for ``translation[ro]``.
    """
    for field in fields:
        first, *keys = re.findall(r"[^\[\]]+", field)
        if first in record:
            return _writable(_inside(record[first], keys, field, place))
        if keys and not keys[-1].isdigit() and keys[-1] in record:
            return _writable(record[keys[-1]])
    raise UserError(f"has no {' or '.join(map(repr, fields))}; it has {', '.join(map(repr, record))[:200]}",
                    place=place, expected="the columns of the hub's data set", remedy="rename the columns")  # fmt: skip


def _inside(item, keys, field, place):
    for key in keys:
        try:
            item = item[int(key) if key.isdigit() else key]
        except (KeyError, IndexError, TypeError):
            found = f"has no {field!r}, but {brief(item)}"
            raise UserError(found, place=place, remedy="correct the record") from None
    return item


def _writable(item):
    """A ``\\ud800``-style escape without its second half has no character: it becomes ``?``."""
    return item.encode("utf-8", "replace").decode("utf-8") if isinstance(item, str) else item


# --- files -----------------------------------------------------------------------------------------------


def _candidates(folder, names):
    """Existing files of a folder that are named after one of the splits, the best first."""
    paths = (Path(folder) / f"{name}.{ending}" for name in names for ending in EXTENSIONS)
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def _split_file(folder, names, task):
    """The one file of a folder that is named after the best of the splits."""
    if not Path(folder).is_dir():
        raise UserError("no such folder", place=folder, expected=f"a folder with the files of {task.name}",
                        remedy="check the path for a typing error")  # fmt: skip
    paths = _candidates(folder, names)
    same = [path for path in paths if path.stem == paths[0].stem]
    if len(same) > 1:
        raise UserError(f"has both {same[0].name} and {same[1].name}", place=folder, expected="one file a split",
                        remedy="take one of them out")  # fmt: skip
    expected = " or ".join(f"{name}.{{{','.join(EXTENSIONS)}}}" for name in dict.fromkeys(names))
    if not paths:
        raise UserError(f"has no file of {task.name} for {names[0]}", place=folder, expected=expected,
                        remedy="add the file")  # fmt: skip
    return paths[0]


def _local(files, names, task):
    if isinstance(files, (str, os.PathLike)):
        path = _split_file(files, names, task)
    else:
        path = next((files[name] for name in names if name in files), None)
        if path is None:
            raise UserError(f"{task.name}: no file is given for {names[0]}; there is one for {', '.join(files)}",
                            remedy="give the file")  # fmt: skip
    rows = RowStore(_read(Path(path)))
    if not len(rows):
        raise UserError("holds no rows", place=path, expected="at least one", remedy="check how it was made")
    return rows, rows.place


def _read(path):
    """Yield (place, record) for every row of a json, jsonl, csv or tsv file."""
    ending = path.suffix.lower().lstrip(".")
    if ending not in EXTENSIONS:
        raise UserError(f"is a {path.suffix!r} file", place=path, expected=f"one of {', '.join(EXTENSIONS)}",
                        remedy="save it as one of them")  # fmt: skip
    if ending == "csv":
        yield from _table(path, bare_csv_rows(path))
    elif ending == "tsv":
        # As in GLUE: nothing is quoted, and only \n ends a row.
        lines = ((f"{path}:{line}", text.removesuffix("\n").removesuffix("\r")) for line, text in text_lines(path))
        yield from _table(path, ((place, text.split("\t")) for place, text in lines if text))
    else:
        for place, record in _objects(path):
            if not isinstance(record, dict):
                raise UserError(f"is {brief(record)}", place=place, expected="an object, one a row",
                                remedy="write each row as {...}")  # fmt: skip
            yield place, record


def _table(path, rows):
    header = None
    for place, row in rows:
        if header is None:
            header = [name.strip() for name in row]
            if len(set(header)) < len(header):
                raise UserError("two columns have the same name", place=place, expected="a header of different names",
                                remedy="correct the first line")  # fmt: skip
        elif len(row) != len(header):
            raise UserError(f"{len(row)} columns", place=place, expected=f"{len(header)}, as the header has",
                            remedy="correct the row")  # fmt: skip
        else:
            yield place, dict(zip(header, row))


def _objects(path):
    """Yield (place, item) of a JSON list, or of a file with one JSON value a line."""
    with open_bytes(path) as file:
        first = file.read(1 << 12).lstrip()[:1]
    if first == b"[":
        yield from list_items(path)
        return
    for line, text in text_lines(path):
        if not text.strip():
            continue
        place = f"{path}:{line}"
        try:
            value = loads(text, place)
        except UserError as error:
            raise UserError(error.found, place=place, remedy=error.remedy,
                            expected="a list of objects, or one object a line") from error  # fmt: skip
        yield place, value


# --- GLUE's own folders ----------------------------------------------------------------------------------


def _has_official(task, folder):
    return bool(task.glue) and (folder / glue.get(task.glue["train"][0]).folder).is_dir()


def _official_split(task, names):
    """(name in `data.glue.TASKS`, split) of the best name that GLUE has."""
    return next(task.glue[name] for name in reversed(names) if name in task.glue)


def _official(task, names, folder):
    """GLUE's tsv files as records: the text columns under the template's names, labels as names, scores as numbers."""
    name, split = _official_split(task, names)
    fields = task.fields()
    rows = RowStore(
        (example.place, dict(zip((*fields, task.label[0]), (example.text_a, example.text_b, example.label))))
        if len(fields) == 2
        else (example.place, {fields[0]: example.text_a, task.label[0]: example.label})
        for example in glue.iter_examples(folder, name, split)
    )
    return rows, rows.place


# --- the hub ---------------------------------------------------------------------------------------------


def _hub(task, split, data_dir):
    looked = f"; {data_dir} holds nothing of {task.name}" if data_dir is not None else ""
    remedy = "give its files: --data_dir with GLUE's folders, or with a folder " + task.name
    remedy += f" of {{train,validation,test}}.{{{','.join(EXTENSIONS)}}}"
    if task.hub is None:
        raise UserError(f"{task.name} is not on the hub in the columns that are needed{looked}",
                        expected="files of its own", remedy=remedy)  # fmt: skip
    name, config = task.hub
    place = f"{name}/{config or 'default'}"
    try:
        _reach(name)
        data = _load(name, config, split)
    except UserError:
        raise
    except Exception as error:
        # Whatever the library, its parsers and the network raise: there is no data, and this is why.
        raise UserError(f"{task.name} cannot be loaded from the hub: {first_line(error)}{looked}", place=place,
                        expected="a reachable hub, or a copy fetched before", remedy=remedy) from error  # fmt: skip
    return data, lambda i: f"{place}:{split}[{i}]"


def _load(name, config, split):
    from datasets import load_dataset

    if name in _SCRIPTS:
        return _converted(name, config, split)
    try:
        return load_dataset(name, config, split=split)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return _converted(name, config, split)


def _converted(name, config, split):
    """The hub's own conversion of a data set that needs a script; nobody's code is run for it.

    On that branch a configuration is a folder, not a name; to ask by name would find another one's copy in the cache.
    """
    from datasets import load_dataset

    try:
        return load_dataset(name, split=split, revision="refs/convert/parquet", data_dir=config or "default")
    except Exception:
        if name not in _COPIES:
            raise
        return load_dataset(_COPIES[name], split=split)


def _reach(name):
    """An OSError where the hub cannot be reached and the data set was not fetched before.

    Loading itself would retry for half a minute. A slow answer, or one that says no, is left to it.
    """
    import datasets
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "README.md", repo_type="dataset"))
    except Exception as error:
        # By name: they are those of the library that the hub's own library happens to use.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"ConnectError", "ConnectTimeout", "ConnectionError", "OfflineModeIsEnabled"}:
            raise OSError(f"the hub cannot be reached: {first_line(error)}") from error
