"""Entries of the token cache: directories of flat files that are believed only if they are what was written.

An entry's meta.json holds the size and the sha256 of every other file in it. Both are checked when it is opened: a
cache cleaner, a full disk or a power cut may have left it cut, empty or zeroed. What does not hold is made anew.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from versatile.utils.errors import UserError, first_line
from versatile.utils.files import atomic_directory, cache_root, disk_errors, writable_cache, write_json

META = "meta.json"


class Damaged(Exception):
    """An entry that is not what was written."""


def entry_key(content, tokenizer_fingerprint, settings):
    """The content key of an entry: everything that decides what lies in it.

    Args:
        content: a text that changes with the data.
        tokenizer_fingerprint: one that changes with the tokenizer.
        settings: whatever else does, as json can tell it.
    """
    return hashlib.sha256("\n".join([content, tokenizer_fingerprint, json.dumps(settings)]).encode()).hexdigest()[:32]


def entry_directory(key, cache_dir=None):
    """Where the entry of a content key lies: below `cache_dir`, or below `cache_root()/tokens`."""
    return Path(cache_dir or cache_root() / "tokens") / key


def open_entry(folder, read, build, cache_dir=None, overwrite=False):
    """An entry, read from the cache, or built first where there is none or a damaged one.

    Args:
        folder: of `entry_directory`.
        read: called with (folder, meta), returns what is kept of the entry.
        build: called with an empty directory, writes the entry's files there, returns what meta.json shall hold.
        cache_dir: what --token_cache_dir named, for errors.
        overwrite: build it in any case.
    """
    damaged = None
    if not overwrite and os.path.lexists(folder):
        try:
            return read(folder, checked_meta(folder))
        except (Damaged, OSError, ValueError, KeyError, TypeError) as error:
            damaged = error
            print(f"{folder}: this cache entry is damaged ({first_line(error)}): tokenising anew", flush=True)
    writable_cache(folder.parent, "--token_cache_dir" if cache_dir else None)
    if damaged:
        _remove(folder)
    # What another process has built meanwhile is as good.
    with atomic_directory(folder, replace=overwrite) as beside:
        meta = build(beside)
        files = {file.name: _signature(file) for file in sorted(beside.iterdir())}
        write_json(beside / META, meta | dict(files=files))
    try:
        return read(folder, checked_meta(folder))
    except (Damaged, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"a cache entry cannot be read right after it was written: {first_line(error)}", location=folder,
            remedy="check the disk, or name another directory: --token_cache_dir DIR, or the variable VERSATILE_CACHE",
        ) from error  # fmt: skip


def checked_meta(folder):
    """What an entry's meta.json holds, after its files were found to be what it says.

    Raises:
        Damaged: a file is gone, cannot be read, or is not what was written.
    """
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        files = meta["files"]
        for name, expected in files.items():
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
