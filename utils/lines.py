"""Texts in files with one text per line: anything a reader takes for a line break is escaped."""

import re

# Everything that str.splitlines() splits at; other readers split at some of it.
_BREAKS = re.compile("[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\\": "\\\\"}
_ESCAPES = re.compile(r"\\(?:([\\nr])|x(0b|0c|1c|1d|1e|85)|u(2028|2029))")


def one_line(text):
    r"""`text` on one line: a line break becomes ``\n``, ``\r``, ``\x85``, ``\u2028`` and so on, as in Python.

    A backslash is doubled only in a text that `from_one_line` would otherwise read differently.
    """
    if not _BREAKS.search(text) and not _ESCAPES.search(text):
        return text
    return re.sub("[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\\\\]", _escape, text)


def from_one_line(line):
    """The text that `one_line` wrote as `line`; a line without its escapes stays as it is."""
    return _ESCAPES.sub(_unescape, line) if "\\" in line else line


def _escape(match):
    char = match[0]
    return _NAMED.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")


def _unescape(match):
    name, two, four = match.groups()
    return {"n": "\n", "r": "\r", "\\": "\\"}[name] if name else chr(int(two or four, 16))
