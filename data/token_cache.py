"""The token cache: a split's encoded examples in a few memory-mapped flat files, keyed by their content.

The key of an entry is a hash of the data, the tokenizer and everything else that determines the ids. Examples are
streamed through the encoder and the files are mapped, so memory does not grow with the data. An entry is written to a
directory next to its own and moved into place, so two processes may build the same one at once, and a process killed
halfway leaves nothing that could be mistaken for a complete entry.

An entry's meta.json holds the size and the sha256 of every other file in it. Both are checked when it is opened, as a
cache cleaner, a full disk or a power cut may have left files truncated, empty or zeroed. Damaged entries are rebuilt.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import fields
from functools import cached_property
from itertools import islice
from pathlib import Path

from versatile.data.columns import ColumnWriter, open_column
from versatile.data.encoders.base import CHUNK, EncodedExample
from versatile.utils.errors import UserError, first_line
from versatile.utils.files import atomic_directory, cache_root, disk_errors, writable_cache, write_json
from versatile.utils.progress import Progress

FORMAT, META = 5, "meta.json"


class EncodedSplit:
    """A split's encoded examples, mapped from disk; `split[i]` is an `EncodedExample` with arrays.

    Attributes:
        task: the task's name.
        split: the split's name.
        columns: {name: column}: the ids and the encoder's other columns.
        prompt_lengths, labels: two of these columns, or None.
        report: {kept: number of examples kept, dropped: {reason: count}, cut: {what: count}}. With a limit, `kept` also
            counts the examples beyond it.
        key: identifies the content; a resumed run checks it.
    """

    def __init__(self, folder, meta, task, split):
        self.task, self.split, self.report = task, split, meta["report"]
        self.columns = {name: open_column(folder, name, *kind) for name, kind in meta["columns"].items()}
        self.prompt_lengths, self.labels = self.columns.get("prompt_length"), self.columns.get("label")
        self.key = meta["key"] if len(self) == self.report["kept"] else f"{meta['key']}:{len(self)}"

    def __len__(self):
        return len(self.columns["ids"])

    def __getitem__(self, index):
        ids, types, prompt_length, label = (
            self.columns[field.name][index] if field.name in self.columns else None for field in fields(EncodedExample)
        )
        return EncodedExample(ids, types, len(ids) if prompt_length is None else int(prompt_length), label)

    @cached_property
    def lengths(self):
        """[n] tokens of each example."""
        return self.columns["ids"].lengths().astype("i4")


def load_encoded(encoder, task, split, examples, content, *, settings=(), drop=None, limit=None, cache_dir=None,
                 overwrite=False):  # fmt: skip
    """The `EncodedSplit` of a split, from the cache or encoded now.

    Args:
        encoder: a `data.encoders.base.ExampleEncoder`; its `counts` are increased by what was cut.
        task: as in `encoder.encode`.
        split: the split's name.
        examples: yields the examples; not consumed if the cache has the entry.
        content: a text that changes with the examples.
        settings: anything else that determines the resulting examples, serialisable as json.
        drop: (example, its `EncodedExample`) -> the reason to leave it out, or None.
        limit: encode only the first `limit` examples.
        cache_dir: directory of the entries (default: `cache_root()/tokens`).
        overwrite: encode even if the cache has the entry.
    """
    name = getattr(task, "name", task)
    decisive = json.dumps([FORMAT, encoder.name, encoder.settings(task), settings])
    key = "\n".join([content, tokenizer_fingerprint(encoder.backend), decisive])
    key = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = Path(cache_dir or cache_root() / "tokens") / (key if limit is None else f"{key}_{limit}")

    def build(folder):
        with Progress(None, f"tokenising {name} {split}") as progress:
            return dict(key=key) | _write_entry(folder, encoder, task, examples, drop, limit, progress)

    encoded = _open_entry(folder, lambda meta: EncodedSplit(folder, meta, name, split), build, cache_dir, overwrite)
    encoder.counts += Counter(encoded.report["cut"])
    return encoded


def tokenizer_fingerprint(backend):
    """A hash of everything that determines which ids a text gets.

    Args:
        backend: a fast tokenizer's `backend_tokenizer`. Its truncation and padding, which some have, are switched off.
    """
    backend.no_truncation()
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def _write_entry(folder, encoder, task, examples, drop, limit, progress):
    """Write an entry's columns; returns the contents of its meta.json except the key and the files."""
    before, dropped, examples, kept = Counter(encoder.counts), Counter(), iter(examples), 0
    columns = dict(ids=("list", None)) | encoder.columns
    columns = {name: (kind, dtype or encoder.id_type) for name, (kind, dtype) in columns.items()}
    with contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(ColumnWriter(folder, name, *kind)) for name, kind in columns.items()}
        for number, (example, encoded) in enumerate(encoder.encode_all(task, islice(examples, limit)), 1):
            if number % CHUNK == 0:
                progress(number)
            if reason := drop and drop(example, encoded):
                dropped[reason] += 1
                continue
            for name, writer in writers.items():
                writer.write(getattr(encoded if hasattr(encoded, name) else example, name))
            kept += 1
    # Examples beyond the limit are read as well, so that mistakes further down in the data are found.
    kept += sum(1 for _ in examples)
    cut, encoder.counts = encoder.counts - before, before
    return dict(columns=columns, report=dict(kept=kept, dropped=dict(dropped), cut=dict(cut)))


# ---- entries


class Damaged(Exception):
    """An entry is not as it was written."""


# What reading a changed entry may raise.
_UNREADABLE = (Damaged, OSError, ValueError, LookupError, TypeError, AttributeError)


def _open_entry(folder, read, build, cache_dir, overwrite):
    """An entry from the cache, built first if it is missing or damaged.

    Args:
        folder: the entry's folder.
        read: called with the contents of meta.json, returns the opened entry.
        build: called with an empty directory, writes the entry's files there and returns meta.json without `files`.
        cache_dir: the value of --token_cache_dir, for error messages.
        overwrite: build it even if it exists.
    """
    damage = None
    if not overwrite and os.path.lexists(folder):
        try:
            return read(_checked_meta(folder))
        except _UNREADABLE as error:
            damage = error
            print(f"{folder}: this cache entry is damaged ({first_line(error)}): tokenising again", flush=True)
    writable_cache(folder.parent, "--token_cache_dir" if cache_dir else None)
    if damage:
        _remove(folder)
    # An entry built by another process in the meantime is equally good.
    with atomic_directory(folder, replace=overwrite) as temporary:
        meta = build(temporary)
        files = {file.name: _signature(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / META, meta | dict(files=files))
    try:
        return read(_checked_meta(folder))
    except _UNREADABLE as error:
        raise UserError(
            f"a cache entry cannot be read right after it was written: {first_line(error)}", location=folder,
            remedy="check the disk, or name another directory: --token_cache_dir DIR, or the variable VERSATILE_CACHE",
        ) from error  # fmt: skip


def _checked_meta(folder):
    """The contents of an entry's meta.json, after checking the entry's files against it.

    Raises:
        Damaged: a file is missing, cannot be read, or is not as it was written.
    """
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        for name, expected in meta["files"].items():
            if (size := (folder / name).stat().st_size) != expected["bytes"]:
                raise Damaged(f"{name} has {size} bytes instead of {expected['bytes']}")
            if _signature(folder / name) != expected:
                raise Damaged(f"{name} holds other bytes than were written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(first_line(error)) from error
    return meta


def _signature(path):
    with open(path, "rb") as file:
        return dict(bytes=os.path.getsize(path), sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _remove(folder):
    with disk_errors(folder):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            with contextlib.suppress(FileNotFoundError):
                folder.unlink()
