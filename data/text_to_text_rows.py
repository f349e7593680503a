"""Where the rows of a text-to-text task come from: files, GLUE's official folders, or the Hugging Face hub.

`find` returns a sequence of records (dicts by column) and a function from a row's number to its location.
"""

import contextlib
import os
import re
from pathlib import Path

from versatile.data import glue
from versatile.data.files import fingerprint
from versatile.data.row_files import EXTENSIONS, SPLIT_NAMES, read_rows, split_file, split_files
from versatile.data.row_files import content_key as file_key
from versatile.data.row_store import RowStore
from versatile.utils.errors import UserError, brief, first_line

# Repositories on the hub that hold a script instead of data; `datasets` no longer runs scripts since version 4.
_SCRIPTS = ("IWSLT/iwslt2017", "allenai/social_i_qa", "allenai/cosmos_qa", "CogComp/trec")
# The same data in another repository.
_COPIES = {"allenai/social_i_qa": "lighteval/siqa"}
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
    return _hub(task, names[-1], data_dir)


def origin(task, names, data_dir=None):
    """Where `find` reads the rows of a split from: a file, or the name of a split in GLUE or on the hub."""
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
    """Whether `find` finds the rows of a split."""
    source = origin(task, names, data_dir)
    if isinstance(source, Path):
        return True
    if source[0] != task.hub:
        return glue.path_of(data_dir, *source).is_file()
    return data_dir is None and task.hub is not None


def content_key(task, names, data_dir=None):
    """A key that changes with the rows that `find` finds; files are not parsed for it."""
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


# --- the hub ---------------------------------------------------------------------------------------------


def _hub(task, split, data_dir):
    looked = f"; {data_dir} holds no data of {task.name}" if data_dir is not None else ""
    remedy = "name the folder of its files: GLUE's folders, or a folder " + task.name
    remedy += f" of {{train,validation,test}}.{{{','.join(EXTENSIONS)}}}"
    if task.hub is None:
        raise UserError(f"{task.name} is not on the hub with the columns needed{looked}",
                        expected="files of its own", remedy=remedy)  # fmt: skip
    name, config = task.hub
    location = f"{name}/{config or 'default'}"
    with asking_the_hub(name, task.name, location, looked, remedy):
        data = _load(name, config, split)
    return data, lambda i: f"{location}:{split}[{i}]"


@contextlib.contextmanager
def asking_the_hub(name, task="it", location=None, looked="", remedy="check the name, or name a folder or a file"):
    """Turn any error in loading a data set from the hub into a `UserError`.

    Args:
        name: the data set's name.
        task, location, looked, remedy: parts of the message.
    """
    try:
        _reach(name)
        yield
    except UserError:
        raise
    except Exception as error:
        # Whatever the library, its parsers or the network raise, there is no data, and this is the reason.
        raise UserError(f"{task} cannot be loaded from the hub: {first_line(error)}{looked}", location=location or name,
                        expected="a reachable hub, or a copy fetched before", remedy=remedy) from error  # fmt: skip


def load_from_hub(name, config, split):
    """A split of a data set on the hub, as `datasets.Dataset`."""
    with asking_the_hub(name):
        return _load(name, config, split)


def split_names_on_hub(name, config):
    """Names of the splits of a data set on the hub."""
    from datasets import get_dataset_split_names

    with asking_the_hub(name):
        return _without_script(name, lambda: get_dataset_split_names(name, config),
                               lambda: get_dataset_split_names(name, **_conversion(config)))  # fmt: skip


def _load(name, config, split):
    from datasets import load_dataset

    return _without_script(name, lambda: load_dataset(name, config, split=split),
                           lambda: _converted(name, config, split))  # fmt: skip


def _without_script(name, ask, ask_conversion):
    """The result of `ask`, or of `ask_conversion` if the data set needs a script, which `datasets` no longer runs."""
    if name in _SCRIPTS:
        return ask_conversion()
    try:
        return ask()
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return ask_conversion()


def _conversion(config):
    """The branch and folder that hold the hub's own conversion of a configuration."""
    return dict(revision="refs/convert/parquet", data_dir=config or "default")


def _converted(name, config, split):
    """The hub's own conversion of a data set that needs a script; no third-party code is run for it.

    On that branch a configuration is a folder, not a name; asking by name would find another one's copy in the cache.
    """
    from datasets import load_dataset

    try:
        return load_dataset(name, split=split, **_conversion(config))
    except Exception:
        if name not in _COPIES:
            raise
        return load_dataset(_COPIES[name], split=split)


def _reach(name):
    """Raise an OSError if the hub cannot be reached and the data set was not fetched before.

    Loading itself would retry for half a minute. Slow or negative answers are left to it.
    """
    import datasets
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, "README.md", repo_type="dataset"))
    except Exception as error:
        # Compared by name: the classes belong to whichever HTTP library the hub's client happens to use.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"ConnectError", "ConnectTimeout", "ConnectionError", "OfflineModeIsEnabled"}:
            raise OSError(f"the hub cannot be reached: {first_line(error)}") from error
