"""Data sets on the Hugging Face hub: those of the user's own tasks, and those of text-to-text tasks."""

import contextlib
import re
from pathlib import Path

from versatile.data.row_files import EXTENSIONS, SPLIT_NAMES
from versatile.utils.errors import UserError, first_line

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")
"""A data set's name, with a configuration or not."""
# Repositories on the hub that hold a script instead of data; `datasets` no longer runs scripts since version 4.
_SCRIPTS = ("IWSLT/iwslt2017", "allenai/social_i_qa", "allenai/cosmos_qa", "CogComp/trec")
# The same data in another repository.
_COPIES = {"allenai/social_i_qa": "lighteval/siqa"}


# --- the user's own tasks ---------------------------------------------------------------------------------


def is_on_hub(source):
    """Whether a source is the name of a data set on the hub: neither a path that exists nor one of a machine."""
    return not Path(source).exists() and not Path(source).is_absolute() and bool(HUB_NAME.fullmatch(source))


def _hub_split(source, split):
    """A split of a data set on the hub, as `datasets.Dataset`."""
    name, _, config = source.partition(":")
    names = hub_splits(source)
    own = next((own for own in SPLIT_NAMES[split] if own in names), None)
    if own is None:
        raise UserError(f"has no {split} split, but {', '.join(names)}", location=source,
                        expected=" or ".join(SPLIT_NAMES[split]))  # fmt: skip
    return load_from_hub(name, config or None, own)


def hub_splits(source):
    """Names of the splits of a data set on the hub."""
    if not is_on_hub(source):
        raise UserError("no such file or folder", location=source, expected="the data of a task of your own",
                        remedy="restore them, or name their new location: --dataset_path DIR, --data TASK=DIR, or "
                        "--task TASK=DIR")  # fmt: skip
    name, _, config = source.partition(":")
    return split_names_on_hub(name, config or None)


def hub_records(source, split):
    """Yield (location, record), with class ids replaced by the names of the classes."""
    data = _hub_split(source, split)
    names = {column: f.names for column, f in data.features.items() if getattr(f, "names", None)}
    for number, record in enumerate(data):
        for column, labels in names.items():
            if isinstance(record[column], int) and 0 <= record[column] < len(labels):
                record[column] = labels[record[column]]
        yield f"{source}:{split}[{number}]", record


def hub_fingerprint(source, split):
    """The fingerprint of a split's content on the hub."""
    return str(_hub_split(source, split)._fingerprint)


# --- text-to-text tasks ----------------------------------------------------------------------------------


def task_records(task, split, data_dir):
    """(the records of a split of a `text_task.TextTask`, the location of record i as a function of i).

    Args:
        data_dir: a folder that does not hold its data, or None.
    """
    looked = f"; {data_dir} holds no data of {task.name}" if data_dir is not None else ""
    remedy = "name the folder of its files: GLUE's folders, or a folder " + task.name
    remedy += f" of {{train,validation,test}}.{{{','.join(EXTENSIONS)}}}"
    if task.hub is None:
        raise UserError(f"{task.name} is not on the hub with the columns needed{looked}",
                        expected="files of its own", remedy=remedy)  # fmt: skip
    name, config = task.hub
    location = f"{name}/{config or 'default'}"
    with hub_errors(name, task.name, location, looked, remedy):
        data = _load(name, config, split)
    return data, lambda i: f"{location}:{split}[{i}]"


@contextlib.contextmanager
def hub_errors(name, task="it", location=None, looked="", remedy="check the name, or name a folder or a file"):
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
        # The library, its parsers and the network raise many kinds of errors; each means the data cannot be loaded.
        raise UserError(f"{task} cannot be loaded from the hub: {first_line(error)}{looked}", location=location or name,
                        expected="a reachable hub, or a copy fetched before", remedy=remedy) from error  # fmt: skip


def load_from_hub(name, config, split):
    """A split of a data set on the hub, as `datasets.Dataset`."""
    with hub_errors(name):
        return _load(name, config, split)


def split_names_on_hub(name, config):
    """Names of the splits of a data set on the hub."""
    from datasets import get_dataset_split_names

    with hub_errors(name):
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
