"""Files that are either whole or absent.

Everything is written beside its final name and moved into place, so a process killed at any moment leaves
the old file or the new one, never half of one.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from versatile.utils.errors import UserError

_DISK_ERRORS = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another place"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another place"),
    errno.EACCES: ("no permission to write here", "choose a directory you may write to"),
    errno.EPERM: ("no permission to write here", "choose a directory you may write to"),
    errno.EROFS: ("the file system is read-only", "choose a directory you may write to"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "choose another directory"),
    errno.EEXIST: ("a file of that name stands where a directory is needed", "choose another directory"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
}


@contextlib.contextmanager
def disk_errors(path):
    """Turn the disk's own errors (full, read-only, no permission) into a `UserError` that names `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _errno(error)
        if number not in _DISK_ERRORS:
            raise
        found, remedy = _DISK_ERRORS[number]
        # The name the file would have had; that of its half-written form is of no use to anyone.
        place = re.sub(r"(^|/)\.([^/]+)\.[^./]+\.part(?=/|$)", r"\1\2", os.fspath(path))
        raise UserError(f"cannot write: {found}", place=place, remedy=remedy) from error


def _errno(error):
    """The system's error number behind an exception: some libraries wrap the OSError, some only quote it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if quoted := re.search(r"\(os error (\d+)\)", str(error)):
            return int(quoted[1])
        error = error.__context__
    return None


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Open a file to write; it appears under `path` only when the block ends without an error.

    Text files are UTF-8 with ``\\n`` line ends. Parent directories are made.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with open(handle, mode, **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, 0o666 & ~_umask())
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise


def write_json(path, value, indent=2):
    """Write `value` as JSON, atomically, ending in a newline."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=indent, ensure_ascii=False)
        file.write("\n")


@contextlib.contextmanager
def atomic_directory(path, replace=True):
    """Yield a fresh directory that takes the name `path` only when the block ends without an error.

    An existing directory at `path` is replaced (there is an instant at which neither stands; callers that
    must survive a kill at that instant use a new name each time), or with `replace=False` it stays and the
    fresh one is dropped: right for what is named by its content, which another process may be reading.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            yield beside
            os.chmod(beside, 0o777 & ~_umask())
            move_into_place(beside, path, replace)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def move_into_place(beside, path, replace=True):
    """Give the file or directory `beside` the name `path`; of a directory that stands there see `atomic_directory`."""
    while True:
        try:
            return os.rename(beside, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # A directory stands there, maybe since a moment ago: others may be doing the same.
        if not replace:
            return shutil.rmtree(beside, ignore_errors=True)
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, old / path.name)
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(directory):
    """Remove what a killed process left half-written in `directory` (names ending in .part or .old)."""
    for entry in Path(directory).glob(".*"):
        if entry.suffix in (".part", ".old"):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def writable_directory(path, flag):
    """Make the directory `path` and prove that a file can be written there, before any long work starts."""
    path = Path(path)
    try:
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path) as probe:
                probe.write(b"\0" * 4096)
                probe.flush()
    except UserError as error:
        raise UserError(error.found, place=f"{flag} {path}", remedy=error.remedy) from error
    except OSError as error:
        found, remedy = f"cannot write: {error.strerror}", "choose another directory"
        raise UserError(found, place=f"{flag} {path}", remedy=remedy) from error
    return path


def could_be_made(path, flag):
    """A `UserError` where a directory cannot be made at `path`: its nearest parent is looked at, nothing is made."""
    path = Path(path).absolute()
    above = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
    try:
        # Below a file nothing can be made: trying says why.
        writable_directory(above if above.is_dir() else path, flag)
    except UserError as error:
        raise UserError(error.found, place=f"{flag} {path}", remedy=error.remedy) from error


def writable_cache(path, flag=None):
    """`writable_directory` of a place for what is kept; the error says how to choose another.

    Args:
        flag: the one that named the place, or None: it is below `cache_root()`.
    """
    try:
        return writable_directory(path, flag or "the cache")
    except UserError as error:
        how = f"{flag} DIR" if flag else "in the variable VERSATILE_CACHE"
        raise UserError(error.found, place=error.place, remedy=f"name another directory, {how}") from error


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_root():
    """Where downloaded, converted and tokenised things are kept: $VERSATILE_CACHE, else ~/.cache/versatile."""
    return Path(os.environ.get("VERSATILE_CACHE") or Path.home() / ".cache" / "versatile")
