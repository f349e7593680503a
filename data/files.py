"""Text files, plain or ``.gz``: opening, reading lines and csv, hashing; and access to the fields of their records.

Everything that can be wrong with a file raises a `UserError` that says where.
"""

import contextlib
import csv
import gzip
import hashlib
import os
import zlib
from pathlib import Path

from versatile.data.compressed import open_gzip
from versatile.data.json_text import LONGEST
from versatile.utils.errors import UserError, brief

SAMPLES = Path(__file__).resolve().parent / "samples"
"""Small data files for every task and system, included in the toolkit."""

_BOM = b"\xef\xbb\xbf"


def fingerprint(path):
    """The sha256 of a file's bytes, in hexadecimal."""
    with _readable(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def distilled_beside(path):
    """The path of the teacher's targets for a data file: data/NMT/data.json -> data/NMT/data_distilled.json."""
    path = Path(path)
    name = path.name.removesuffix(".gz").removesuffix(".json")
    return path.with_name(f"{name.removesuffix('_distilled')}_distilled.json")


def text_field(record, name, location):
    """The string ``record[name]`` (possibly blank, which the caller must handle)."""
    value = _field(record, name, location, "a string")
    if not isinstance(value, str):
        raise _wrong_type(name, value, location, "a string")
    return value


def texts_field(record, name, location):
    """The list of strings ``record[name]`` (possibly empty)."""
    return _list_field(record, name, location, str, "a list of strings")


def records_field(record, name, location):
    """The list of objects ``record[name]`` (possibly empty)."""
    return _list_field(record, name, location, dict, "a list of objects")


def mapping_field(record, name, location):
    """The object ``record[name]``, whose values are all strings (possibly empty)."""
    expected = "an object whose values are strings"
    value = _field(record, name, location, expected)
    if not isinstance(value, dict):
        raise _wrong_type(name, value, location, expected)
    for key, item in value.items():
        if not isinstance(item, str):
            raise _wrong_type(f"{name}.{key}", item, location, expected)
    return value


@contextlib.contextmanager
def open_bytes(path):
    """Open a plain or ``.gz`` file for reading bytes, skipping a byte order mark if there is one.

    Raises:
        UserError: it is missing, a directory, not readable, a damaged gzip file, or (while reading) one that
            decompresses beyond `data.compressed`'s bounds.
    """
    opener = open_gzip if os.fspath(path).endswith(".gz") else open
    with _readable(path), opener(path, "rb") as file:
        if file.peek(len(_BOM)).startswith(_BOM):
            file.read(len(_BOM))
        yield file


def text_lines(path):
    """Yield (line number, text) for every line of a UTF-8 file, plain or ``.gz``; the text keeps its ``\\n``."""
    # Only \n ends a line: sentences may contain U+2028, U+0085 and other characters that splitlines() would cut at.
    with open_bytes(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
            if len(line) > LONGEST:
                raise UserError(f"a line of more than {LONGEST >> 20} MiB", location=f"{path}:{number}",
                                expected="lines of text",
                                remedy="check that this is the right file, and its line ends")  # fmt: skip
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"byte {line[error.start]:#x} is not UTF-8 text", location=f"{path}:{number}",
                                expected="a text file in UTF-8",
                                remedy="save it as UTF-8, e.g. iconv -f latin1 -t utf-8 old > new",
                                ) from error  # fmt: skip


def csv_rows(path, columns, remedy):
    """Yield ("file:line", {column: text}) for every row of a csv file with a header.

    A row of the wrong length is yielded as a `UserError` in place of the dict, to be raised or counted. Column names
    are lower-cased. `remedy` is the advice given when a column is missing.

    Raises:
        UserError: no header with these columns, or unbalanced quotes.
    """
    wanted, header = f"a header with {' and '.join(columns)}", None
    for location, row in bare_csv_rows(path):
        if header is None:
            header = [name.strip().lower() for name in row]
            if twice := [name for name in columns if header.count(name) > 1]:
                raise UserError(f"two columns have the name {twice[0]!r}", location=location, expected=wanted,
                                remedy="rename one of them")  # fmt: skip
            if not set(columns) <= set(header):
                raise UserError(
                    f"its columns are {', '.join(header)[:200]!r}", location=location, expected=wanted, remedy=remedy
                )
        elif len(row) != len(header):
            yield location, wrong_length(row, header, location)
        else:
            yield location, dict(zip(header, row))
    if header is None:
        raise UserError("is empty", location=path, expected=wanted, remedy=remedy)


def wrong_length(row, header, location, remedy="correct the row"):
    """The `UserError` for a row with a different number of columns than the header."""
    return UserError(f"{len(row)} columns", location=location, expected=f"{len(header)}, as the header has",
                     remedy=remedy)  # fmt: skip


def bare_csv_rows(path):
    """Yield ("file:line", [text]) for every row of a csv file, unchanged; a row may span several lines.

    Raises:
        UserError: unbalanced quotes.
    """
    # An article may be longer than the module's own limit of 128 KiB.
    csv.field_size_limit(LONGEST)
    rows, line = csv.reader((text for _, text in text_lines(path)), strict=True), 1
    while True:
        location = f"{path}:{line}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            if "field limit" in str(error):
                raise UserError(f"a field of more than {LONGEST >> 20} MiB", location=location,
                                expected="fields of text", remedy="look for a quotation mark that nothing closes",
                                ) from error  # fmt: skip
            raise UserError(f"is not valid csv: {error}", location=location, remedy="correct the row",
                            expected='quotes in pairs, inner ones as ""') from error  # fmt: skip
        if row is None:
            return
        line = rows.line_num + 1
        if row:
            yield location, row


@contextlib.contextmanager
def _readable(path):
    """Turn any error in opening or reading `path` into a `UserError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError("no such file", location=path, remedy="check the spelling of the path") from error
    except IsADirectoryError as error:
        raise UserError("is a directory", location=path, expected="a file", remedy="name the file inside it") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"is not a whole gzip file ({error})",
            location=path,
            expected="gzip data, as .gz says",
            remedy="copy it again, or rename it if it is not compressed",
        ) from error
    except EOFError as error:
        raise UserError(
            "ends in the middle of its gzip data",
            location=path,
            expected="a whole file",
            remedy="it was cut off: copy or make it again",
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror or error}", location=path, remedy="check the path and its permissions"
        ) from error
    except ValueError as error:
        if "null" not in str(error) and "surrogates" not in str(error):
            raise
        raise UserError("cannot be a file name", location=repr(path), remedy="check the path") from error


def listed(names):
    """Names for a message, at most ten."""
    shown = ", ".join(repr(name) for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "") if names else "none"


def _field(record, name, location, expected):
    if not isinstance(record, dict):
        raise UserError(brief(record), location=location, expected=f"an object with {name!r}: {expected}")
    if name not in record:
        remedy = "add it, or rename the key"
        if name.startswith("distillated_"):
            remedy = "let a teacher write it: python sentence_distiller.py --help; or learn the gold texts"
        raise UserError(
            f"has no {name!r}; its keys are: {listed(list(record))}",
            location=location,
            expected=f"{name!r}: {expected}",
            remedy=remedy,
        )
    return record[name]


def _list_field(record, name, location, kind, expected):
    value = _field(record, name, location, expected)
    if not isinstance(value, list):
        raise _wrong_type(name, value, location, expected)
    for index, item in enumerate(value):
        if not isinstance(item, kind):
            raise _wrong_type(f"{name}[{index}]", item, location, expected)
    return value


def _wrong_type(name, value, location, expected):
    return UserError(f"{name!r} is {brief(value)}", location=location, expected=expected, remedy="correct the record")
