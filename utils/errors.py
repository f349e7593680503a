"""Errors a user can act on.

Checks of user input raise `UserError`; a script's `main` runs under `exit_on_user_error`, which prints
the error without a traceback and exits with code 2, or with 130 after Ctrl-C.
"""

import contextlib
import errno
import functools
import os
import re
import signal
import sys

from versatile.utils import interrupts, screen


class UserError(Exception):
    """Something the user gave cannot be used.

    Args:
        found: what was found, e.g. ``"'tgt' is a number (12)"``.
        location: where, e.g. ``"data.json:train[17]"``, a path, or a flag such as ``"--lr"``.
        expected: what would have been right.
        remedy: what to do about it.
    """

    def __init__(self, found, *, location=None, expected=None, remedy=None):
        self.found, self.location, self.expected, self.remedy = found, location, expected, remedy
        lines = [f"{location}: {found}" if location else str(found)]
        if expected:
            lines.append(f"  expected: {expected}")
        if remedy:
            lines.append(f"  remedy:   {remedy}")
        super().__init__(screen.escape_controls("\n".join(lines)))


class MissingSplitError(UserError):
    """Data without the split that was asked for.

    Args:
        found, more: as of `UserError`.
        remedy: what to do about the data.
        choice: what a script that reads one split of its own choice may do instead.
    """

    def __init__(self, found, *, remedy, choice=None, **more):
        super().__init__(found, remedy=f"{choice}, {remedy}" if choice else remedy, **more)
        self.data_remedy = remedy


def brief(value, limit=60):
    """`value` for an error message: its repr cut to `limit` characters, and its type."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Too deeply nested for repr, or a number of thousands of digits.
        text = "…"
    return f"{screen.clipped(text, limit)} ({type(value).__name__})"


def first_line(error, limit=200):
    """The first line of an exception's message, cut to `limit` characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def exit_on_user_error(main):
    """Decorate a script's main: a `UserError` becomes a message on stderr and exit code 2, and output that cannot be
    shown never ends the work (`utils.screen`)."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        with screen.protected():
            return _run(main, args, kwargs)

    return run


def _impossible_name(error):
    """A `UserError` if the system refused a name that no file can have (too long, a NUL in it), else None.

    Any flag may be given such a name, and any look at the file system may be the first to meet it.
    """
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name, found = os.fsdecode(error.filename or ""), "the name is too long for a file"
    elif isinstance(error, ValueError) and "embedded null" in str(error):
        name, found = "", "a file's name holds a NUL character"
    else:
        return None
    words = sys.argv[1:]
    # The flag, or the word, that the name came from.
    part = max(name.split("/"), key=len)
    at = next((i for i, word in enumerate(words) if part and part in word), None)
    location = screen.clipped(name if at is None else words[at], 60)
    if at and words[at - 1].startswith("--"):
        location = f"{words[at - 1]} {location}"
    return UserError(found, location=location or None, expected="a path the file system can hold",
                     remedy="give the path that was meant")  # fmt: skip


# Packages installed only with an extra of the toolkit: {module: extra}.
EXTRAS = {
    "accelerate": "t5", "datasets": "t5", "sentencepiece": "t5", "sacrebleu": "metrics", "rouge_score": "metrics",
    "nltk": "metrics", "scipy": "metrics", "sklearn": "metrics", "peft": "peft", "bitsandbytes": "quantization",
}  # fmt: skip


def _missing_package(error):
    """A `UserError` if the missing package belongs to an extra, else None."""
    name = (error.name or "").split(".")[0]
    if name not in EXTRAS:
        return None
    return UserError(f"the package {name} is not installed", location=" ".join(sys.argv[:1]) or None,
                     remedy=f"in the toolkit's folder: pip install '.[{EXTRAS[name]}]' or ./run.sh setup")  # fmt: skip


def _out_of_memory(error):
    """A `UserError` if memory is exhausted, where nothing closer to the cause has said so, else None."""
    from versatile.utils.devices import out_of_memory

    if not out_of_memory(error):
        return None
    return UserError(f"out of memory: {first_line(error)}",
                     remedy="lower what the size of the work depends on: batch sizes, beams, lengths, the sizes of "
                            "adapters, the model")  # fmt: skip


def _main(main, args, kwargs):
    with interrupts.raising_on_termination() if interrupts.is_alone() else contextlib.nullcontext():
        return main(*args, **kwargs)


def _run(main, args, kwargs):
    try:
        try:
            return _main(main, args, kwargs)
        except ModuleNotFoundError as error:
            raise _missing_package(error) or error
        except (OSError, ValueError) as error:
            raise _impossible_name(error) or _out_of_memory(error) or error
        except (RuntimeError, MemoryError) as error:
            raise _out_of_memory(error) or error
    except UserError as error:
        sys.stdout.flush()
        # Under torchrun every process meets the same error: one message is enough.
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except RuntimeError as error:
        # Another process has exited with its message while this one was waiting for it.
        if os.environ.get("RANK", "0") == "0" or not re.search("[Cc]onnection (closed|reset)", str(error)):
            raise
        sys.exit(2)
    except interrupts.Stopped as stopped:
        (number,) = stopped.args
        sys.stdout.flush()
        print(f"stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
        sys.exit(128 + number)
    except KeyboardInterrupt:
        sys.stdout.flush()
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
