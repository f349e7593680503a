"""Locks on run directories, so that one process at a time works in a run."""

import contextlib
import os
from pathlib import Path

from versatile.utils.errors import UserError
from versatile.utils.files import try_lock

# {real path of a directory: open handle} of those that this process has locked.
_LOCKED = {}


def lock_directory(directory, flag):
    """Keep all other processes out of a run's directory until this one ends, however it ends.

    The directory itself is locked (flock): there is no lock file to remove, and the system releases the lock when the
    process ends. File systems without locks are used without one.

    Args:
        flag: the flag that named the directory, for the error.

    Raises:
        UserError: another process is working in it.
    """
    real = os.path.realpath(directory)
    if real in _LOCKED:
        return
    try:
        handle = os.open(real, os.O_RDONLY)
    except OSError:
        return
    if not try_lock(handle):
        holder = _lock_holder(handle)
        os.close(handle)
        raise UserError(f"another process{holder} is working in this run", location=f"{flag} {directory}",
                        expected="one process in a run's directory at a time",
                        remedy="wait until it has ended, or stop it (SIGTERM: it saves)")  # fmt: skip
    _LOCKED[real] = handle


def release_directory(directory):
    """Let other processes into a directory that `lock_directory` locked."""
    if (handle := _LOCKED.pop(os.path.realpath(directory), None)) is not None:
        os.close(handle)


def refuse_locked(directory, flag):
    """Raise a `UserError` if another process is working in a run's directory."""
    if os.path.realpath(directory) in _LOCKED:
        return
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        if not try_lock(handle, shared=True):
            raise UserError(f"this run is still training: another process{_lock_holder(handle)} works in it",
                            location=flag, expected="a finished run", remedy="wait until it has ended")  # fmt: skip
    finally:
        os.close(handle)


def _lock_holder(handle):
    """The text " (pid N)" for the process that holds a lock, or "" if the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = str(os.fstat(handle).st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].split(":")[-1] == inode:
                return f" (pid {words[4]})"
    return ""
