"""JSON as written by common tools, which a strict parser would refuse because of a single irrelevant character."""

import json
import re

from versatile.utils.errors import UserError
from versatile.utils.schema import RepeatedKeyError, unique_keys

LONGEST = 1 << 26
"""Maximum bytes of a line, string or number, and maximum characters of a record; no text for a model is longer."""

MOST_DIGITS = 4300
"""Python's own limit for integers."""

JSON_EXPECTED = "JSON"
"""What the error for a text that is not JSON expects; a reader that knows more says more."""

_DIGITS, _MANY_DIGITS = b"0123456789", re.compile(b"[0-9]{%d}" % (MOST_DIGITS + 1))
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
# An escaped backslash is matched first, so "\\ud800" is text; then whole pairs, and only then lone halves.
_PATTERN = rf"\\\\|{_HIGH}{_LOW}|{_HIGH}|{_LOW}"
_ESCAPES, _BYTES = re.compile(_PATTERN), re.compile(_PATTERN.encode())
_HALF, _HALF_BYTES = 6, re.compile(_HIGH.encode())


def repeated(key, location):
    """The error for an object that gives a key twice: it would be unclear which value counts."""
    return UserError(f"gives the key {key[:60]!r} twice", location=location, expected="each key once",
                     remedy="remove one of them")  # fmt: skip


# Made once, as making one takes longer than most lines.
_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def _refuse(name, location):
    raise UserError(f"{name} is not JSON", location=location, expected="a number, a text or null",
                    remedy="write null where a value is missing")  # fmt: skip


def loads(text, location):
    """The value of a JSON text; half of a surrogate pair, which is not a character, becomes ``?``.

    Raises:
        UserError: it is not JSON, gives a key of an object twice, or exceeds Python's limits (nesting, digits).
    """
    if "\\u" in text:
        text = _ESCAPES.sub(_whole, text)
    try:
        if "NaN" in text or "Infinity" in text:
            return json.loads(text, parse_constant=lambda name: _refuse(name, location), object_pairs_hook=unique_keys)
        return _DECODER.decode(text)
    except RepeatedKeyError as error:
        raise repeated(error.key, location) from error
    except RecursionError as error:
        raise UserError("is nested too deep", location=location, expected="an object of text fields",
                        remedy="check how it was written") from error  # fmt: skip
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg}", location=location,
                        expected=JSON_EXPECTED, remedy="correct it there") from error  # fmt: skip
    except ValueError as error:
        raise UserError(f"holds a number with too many digits ({str(error).split(';')[0]})", location=location,
                        expected="numbers of at most 4300 digits",
                        remedy="write it as a string, or leave it out") from error  # fmt: skip


def _whole(match):
    text = match[0]
    # As long as what it replaces, so that offsets into the file stay valid.
    return text if text.startswith("\\\\") or len(text) > _HALF else "\\u003f"


def _whole_bytes(match):
    text = match[0]
    return text if text.startswith(b"\\\\") or len(text) > _HALF else b"\\u003f"


class WholeCharacters:
    """A file of JSON bytes, read with lone halves of surrogate pairs replaced by ``?``; byte counts are preserved.

    Args:
        file: a binary file.
        path: its name, for errors.
    """

    def __init__(self, file, path):
        self.file, self.path, self.rest, self.quiet, self.digits = file, path, b"", 0, 0

    def read(self, size=-1):
        """At least one byte, unless the file has ended."""
        while True:
            block = self.file.read(size)
            self._bound(block)
            data = self.rest + block
            if not block:
                self.rest = b""
                return _BYTES.sub(_whole_bytes, data)
            cut = _safe_end(data)
            self.rest = data[cut:]
            data = data[:cut]
            if data:
                return _BYTES.sub(_whole_bytes, data) if b"\\u" in data else data

    def _bound(self, block):
        # The parser would leave Python's own error about such a number pending, to be raised somewhere else.
        before = self.digits + len(block) - len(block.lstrip(_DIGITS))
        behind = len(block) - len(block.rstrip(_DIGITS))
        self.digits = before if behind == len(block) else behind
        if before > MOST_DIGITS or _MANY_DIGITS.search(block):
            raise UserError("a number with too many digits", location=self.path, expected=f"at most {MOST_DIGITS}",
                            remedy="correct it, or leave it out")  # fmt: skip
        last = block.rfind(b'"')
        self.quiet = self.quiet + len(block) if last < 0 else len(block) - last
        if self.quiet > LONGEST:
            raise UserError(f"{LONGEST >> 20} MiB without a quotation mark", location=self.path,
                            expected="records of text, in JSON",
                            remedy="check that this is the right file, and whole")  # fmt: skip


def _safe_end(data):
    """Where `data` can be cut without splitting an escape or a pair of escapes."""
    at = data.find(b"\\", max(len(data) - 2 * _HALF + 1, 0))
    if at < 0:
        return len(data)
    if _HALF_BYTES.fullmatch(data[max(at - _HALF, 0) : at]):
        at -= _HALF
    start = at
    while start and data[start - 1] == 0x5C:
        start -= 1
    # In a run of backslashes, every second one begins an escape.
    return start + (at - start) // 2 * 2
