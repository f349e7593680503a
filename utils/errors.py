"""Errors a user can act on.

Every check at the door raises `UserError`; a script's `main` runs under `exit_on_user_error`, which prints
the error without a traceback and leaves with exit code 2, or with 130 after Ctrl-C.
"""

import functools
import os
import re
import signal
import sys
import unicodedata

from versatile.utils import screen


class UserError(Exception):
    """Something the user gave cannot be used.

    Args:
        found: what was found, e.g. ``"'tgt' is a number (12)"``.
        place: where, e.g. ``"data.json:train[17]"``, a path, or a flag such as ``"--lr"``.
        expected: what would have been right.
        remedy: what to do about it.
    """

    def __init__(self, found, *, place=None, expected=None, remedy=None):
        self.found, self.place, self.expected, self.remedy = found, place, expected, remedy
        lines = [f"{place}: {found}" if place else str(found)]
        if expected:
            lines.append(f"  expected: {expected}")
        if remedy:
            lines.append(f"  remedy:   {remedy}")
        super().__init__(printable("\n".join(lines)))


# Marks that turn the direction of writing round: a name could show as another.
_DIRECTION = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text):
    """`text` with everything escaped that a terminal would obey or a stream could not encode.

    Control characters but the newline and the tab, lone surrogates, other line ends, marks of direction.
    """
    return "".join(_escape(c) for c in text)


def _escape(character):
    if character in "\n\t" or " " <= character <= "~":
        return character
    escaped = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTION
    return character.encode("unicode_escape").decode() if escaped else character


def brief(value, limit=60):
    """`value` as an error message shows it: its Python form cut to `limit` characters, and its type."""
    text = repr(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return f"{text} ({type(value).__name__})"


def first_line(error, limit=200):
    """The first line of an exception's message, cut to `limit` characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def exit_on_user_error(main):
    """Decorate a script's main: a `UserError` becomes a message on stderr and exit code 2, and a screen that cannot
    show what is printed never ends the work (`utils.screen`)."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        with screen.protected():
            return _run(main, args, kwargs)

    return run


def _run(main, args, kwargs):
    try:
        return main(*args, **kwargs)
    except UserError as error:
        sys.stdout.flush()
        # Under torchrun every process meets the same error: one message is enough.
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except RuntimeError as error:
        # Another process has left with its message, and this one was waiting for it.
        if os.environ.get("RANK", "0") == "0" or not re.search("[Cc]onnection (closed|reset)", str(error)):
            raise
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stdout.flush()
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
