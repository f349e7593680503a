"""Files that are either whole or absent.

Everything is written next to its final name and moved into place, so a process killed at any moment leaves
the old file or the new one, never half of one.
"""

import contextlib
import ctypes
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
    errno.EISDIR: ("a directory has the name of a file that is needed", "rename it, or choose another directory"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "choose another directory"),
    errno.EEXIST: ("a file has the name of a directory that is needed", "choose another directory"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.ELOOP: ("a symbolic link leads back to itself", "remove it, or choose another name"),
    errno.EFBIG: ("a file would be larger than is allowed", "raise the limit (ulimit -f), or choose another place"),
    errno.EBUSY: ("something is mounted at this name", "name a directory inside it"),
    errno.EIO: ("the device reports an error", "check the disk, or choose another place"),
    errno.ESTALE: ("the network file system has lost this directory", "mount it again, or choose another place"),
}


def find_shipped(path):
    """A path of the checkout (configs/…, data/samples/…) wherever the toolkit is installed; other paths are unchanged.

    A file or folder of that name under the current directory takes precedence.
    """
    shipped = Path(__file__).resolve().parent.parent / path
    known = Path(path).parts[:1] == ("configs",) or Path(path).parts[:2] == ("data", "samples")
    return str(shipped) if known and not Path(path).exists() and shipped.exists() else path


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
        # The file's final name; its temporary name is of no use to anyone.
        location = re.sub(r"(^|/)\.([^/]+)\.[^./]+\.part(?=/|$)", r"\1\2", os.fspath(path))
        raise UserError(f"cannot write: {found}", location=location, remedy=remedy) from error


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
def _parents_of(path):
    """Make the directories above a path; if the block fails, remove those that were made for it and are empty."""
    missing = [folder for folder in path.parents if not folder.is_dir()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Open a file to write; it appears under `path` only when the block ends without an error.

    Text files are UTF-8 with ``\\n`` line ends. Parent directories are made. The file is synced to disk: after a power
    cut `path` holds the old file or the new one.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with disk_errors(path), _parents_of(path):
        handle, temporary = tempfile.mkstemp(prefix=f".{_stem(path)}.", suffix=".part", dir=path.parent)
        try:
            with open(handle, mode, **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(path.parent)


def write_json(path, value, indent=2):
    """Write `value` as JSON, atomically, ending in a newline."""
    with atomic_write(path) as file:
        # A path that is not UTF-8 has lone surrogates; written as \udcff they are read back unchanged.
        file.reconfigure(errors="backslashreplace")
        json.dump(value, file, indent=indent, ensure_ascii=False)
        file.write("\n")


@contextlib.contextmanager
def atomic_directory(path, replace=True):
    """Yield a fresh directory that takes the name `path` only when the block ends without an error.

    Its files are on disk before it gets its name, with the modes given by the umask. An existing directory at `path` is
    replaced in one step if the file system can exchange two names (see `move_into_place`). With `replace=False` it
    stays and the fresh one is dropped, which is right for directories named by their content that another process may
    be reading.
    """
    path = Path(path)
    with disk_errors(path), _parents_of(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{_stem(path)}.", suffix=".part", dir=path.parent))
        try:
            yield temporary
            move_into_place(temporary, path, replace)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def move_into_place(temporary, path, replace=True):
    """Rename the file or directory `temporary` to `path`, once it is on disk with the modes given by the umask.

    An existing directory at `path` is never lost before the new one has its name: the two exchange names in one step
    (Linux's RENAME_EXCHANGE), or, where the file system cannot, the old one is renamed aside, the new one renamed in,
    and the old one renamed back if that fails. Only then is the old one deleted. `remove_leftovers` restores a
    directory left aside by a process that was killed between the two renames.

    Args:
        replace: if False, an existing directory at `path` stays and `temporary` is deleted.
    """
    temporary, path = Path(temporary), Path(path)
    _apply_modes_and_sync(temporary)
    while True:
        try:
            os.rename(temporary, path)
            return _sync(path.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # A directory exists there, perhaps only just created: another process may be doing the same.
        if not replace:
            return shutil.rmtree(temporary, ignore_errors=True)
        try:
            if _exchange(temporary, path):
                _sync(path.parent)
                return shutil.rmtree(temporary, ignore_errors=True)
        except FileNotFoundError:
            continue
        aside = Path(tempfile.mkdtemp(prefix=f".{_stem(path)}.", suffix=_ASIDE, dir=path.parent))
        try:
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, aside / path.name)
            os.rename(temporary, path)
        except BaseException:
            _put_back(aside, path)
            raise
        _sync(path.parent)
        return shutil.rmtree(aside, ignore_errors=True)


_ASIDE = ".aside"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _exchange(one, other):
    """Exchange the names of two paths in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    if not renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), os.fspath(one), None, os.fspath(other))


def _put_back(aside, path):
    """Undo the first half of a replacement: give the directory renamed aside its name back, if the name is free."""
    if (aside / path.name).exists() and not path.exists():
        os.rename(aside / path.name, path)
    with contextlib.suppress(OSError):
        aside.rmdir()


def _apply_modes_and_sync(path):
    """Set the umask's modes on a file, or on everything in a directory, and sync it to disk.

    Libraries make some files readable only by their owner, whatever the umask.
    """
    mask = _umask()
    for folder, _, files in os.walk(path, topdown=False):
        for file in (os.path.join(folder, name) for name in files):
            if not os.path.islink(file):
                os.chmod(file, 0o666 & ~mask)
                _sync(file)
        os.chmod(folder, 0o777 & ~mask)
        _sync(folder)
    if path.is_file():
        os.chmod(path, 0o666 & ~mask)
        _sync(path)


def _sync(path):
    """Sync a file, or a directory's entries, to disk; does nothing where the file system cannot."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _stem(path):
    """The start of a file's name, for its temporary name: names are limited to 255 bytes."""
    return path.name if len(os.fsencode(path.name)) <= 200 else os.fsdecode(os.fsencode(path.name)[:200])


def remove_leftovers(directory):
    """Remove what a killed process left half-written in `directory`, and restore what it had renamed aside."""
    for entry in Path(directory).glob(".*"):
        if entry.suffix == _ASIDE and entry.is_dir():
            for aside in list(entry.iterdir()):
                _put_back(entry, entry.parent / aside.name)
        if entry.suffix in (".part", ".old", _ASIDE):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def remove_nested_leftovers(directory):
    """Apply `remove_leftovers` to a run directory and all below it, except other runs, which may be in progress."""
    for folder, names, files in os.walk(directory):
        if Path(folder) != Path(directory) and "run.json" in files:
            names.clear()
            continue
        remove_leftovers(folder)
        # Links are not followed; hidden entries were removed or restored just now, or are not ours.
        names[:] = [name for name in names if not name.startswith(".") or name == ".best"]


def try_lock(handle, shared=False):
    """Lock an open file or directory (flock) without waiting.

    Args:
        handle: the file, or its descriptor; closing it, or the end of the process, releases the lock.
        shared: other shared locks do not conflict.

    Returns:
        False if another process holds it. File systems without locks are used without one: True.
    """
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def refuse_taken(path):
    """Raise a `UserError` if there is a file, or a directory with anything in it, at an output's path, or if no
    directory can be made there."""
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError("this path already exists", location=path,
                        remedy="name another directory, or remove it")  # fmt: skip
    check_replaceable(path, path)


def is_same_path(path, other):
    """Whether two paths, of which the first may be None, lead to the same file or folder, which need not exist."""
    return path is not None and os.path.realpath(path) == os.path.realpath(other)


def check_name(path, location, remedy):
    """Raise a `UserError` if a path is not UTF-8 text: neither safetensors nor tokenizers can use it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UserError("the name is not UTF-8 text", location=location, remedy=remedy) from error


def writable_directory(path, flag):
    """Make the directory `path` and check that a file can be written there, before any long work starts."""
    path = Path(path)
    check_name(path, f"{flag} {path}", "choose another directory")
    try:
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path) as probe:
                probe.write(b"\0" * 4096)
                probe.flush()
    except UserError as error:
        raise UserError(error.found, location=f"{flag} {path}", remedy=error.remedy) from error
    except OSError as error:
        found, remedy = f"cannot write: {error.strerror}", "choose another directory"
        raise UserError(found, location=f"{flag} {path}", remedy=remedy) from error
    return path


def check_creatable(path, flag):
    """Raise a `UserError` if no directory can be created at `path`; checks the nearest existing parent and creates
    nothing."""
    if not os.fspath(path):
        raise UserError("the name is empty", location=flag, expected="a directory")
    path = Path(path).absolute()
    above = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
    try:
        # Nothing can be made below a file: trying gives the reason.
        writable_directory(above if above.is_dir() else path, flag)
    except UserError as error:
        raise UserError(error.found, location=f"{flag} {path}", remedy=error.remedy) from error


def check_replaceable(path, location):
    """Raise a `UserError` if no new directory can take the name `path`, before any long work starts."""
    with disk_errors(location), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        # A link that leads back to itself leads nowhere.
        os.stat(path)
    path = Path(os.path.realpath(path))
    if path.is_mount():
        found, remedy = _DISK_ERRORS[errno.EBUSY]
        raise UserError(found, location=location, expected="a name that a new directory can take", remedy=remedy)
    if path.exists() and not path.is_dir():
        raise UserError("this path already exists and is no directory", location=location,
                        remedy="remove it, or name another directory")  # fmt: skip


def writable_cache(path, flag=None):
    """`writable_directory` for a cache; the error says how to choose another place.

    Args:
        flag: the flag that named the place; None: it is below `cache_root()`.
    """
    try:
        return writable_directory(path, flag or "the cache")
    except UserError as error:
        choice = f"{flag} DIR" if flag else "in the variable VERSATILE_CACHE"
        raise UserError(error.found, location=error.location, remedy=f"name another directory, {choice}") from error


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_root():
    """Where downloaded, converted and tokenised data are kept: $VERSATILE_CACHE, else ~/.cache/versatile."""
    return Path(os.environ.get("VERSATILE_CACHE") or Path.home() / ".cache" / "versatile")
