"""Rows of json, jsonl, csv and tsv files, plain or ``.gz``, as records keyed by column, each with its file and line."""

from pathlib import Path

from versatile.data.files import bare_csv_rows, fingerprint, open_bytes, text_lines, wrong_length
from versatile.data.json_files import list_items
from versatile.data.json_text import JSON_EXPECTED, loads
from versatile.utils.errors import MissingSplitError, UserError, brief

EXTENSIONS = ("json", "jsonl", "csv", "tsv")
FILE_NAMES = f"{{{','.join(EXTENSIONS)}}}"
# The names that the file of a split may have.
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def split_files(folder, names):
    """Existing files in a folder named after one of the splits, in the order of `names`."""
    endings = [f"{ending}{packed}" for ending in EXTENSIONS for packed in ("", ".gz")]
    paths = (Path(folder) / f"{name}.{ending}" for name in names for ending in endings)
    return [path for path in dict.fromkeys(paths) if path.is_file()]


def split_file(folder, names, owner):
    """The file of a split.

    Args:
        folder: the folder to look in.
        names: names that the file may have, in order of preference.
        owner: whose data these are, for error messages.

    Raises:
        UserError: no such folder, no file with any of the names, or two of one split.
    """
    if not Path(folder).is_dir():
        raise UserError("no such folder", location=folder, expected=f"a folder with the files of {owner}",
                        remedy="check the spelling of the path")  # fmt: skip
    paths = split_files(folder, names)
    if not paths:
        raise MissingSplitError(f"has no file of {owner} for {names[0]}", location=folder, remedy="add the file",
                                expected=" or ".join(f"{name}.{FILE_NAMES}" for name in dict.fromkeys(names)))
    first = stem(paths[0])
    alike = next((names for names in SPLIT_NAMES.values() if first in names), (first,))
    same = [path for path in paths if stem(path) in alike]
    if len(same) > 1:
        raise UserError(f"has both {same[0].name} and {same[1].name}", location=folder, expected="one file per split",
                        remedy="remove one of them")  # fmt: skip
    return paths[0]


def stem(path):
    """A file's name without its extensions: "train" for train.jsonl.gz."""
    return Path(path.name.removesuffix(".gz")).stem


def content_key(path):
    """A key that changes with the rows of a file: its content, and whether a table is read as csv or as tsv."""
    return fingerprint(path) + (" csv" if _ending(path) == "csv" else "")


def _ending(path):
    return Path(path.name.removesuffix(".gz")).suffix.lower().lstrip(".")


def read_rows(path):
    """Yield (location, record) for every row of a json, jsonl, csv or tsv file."""
    path = Path(path)
    ending = _ending(path)
    if ending not in EXTENSIONS:
        raise UserError(f"is a {path.suffix!r} file", location=path, expected=f"one of {', '.join(EXTENSIONS)}",
                        remedy="save it as one of them")  # fmt: skip
    if ending == "csv":
        yield from _table(bare_csv_rows(path))
    elif ending == "tsv":
        # As in GLUE: nothing is quoted, and only \n ends a row.
        lines = ((f"{path}:{line}", text.removesuffix("\n").removesuffix("\r")) for line, text in text_lines(path))
        yield from _unquoted(_table(((location, text.split("\t")) for location, text in lines if text)))
    else:
        for location, record in _objects(path):
            if not isinstance(record, dict):
                raise UserError(f"is {brief(record)}", location=location, expected="one object per row",
                                remedy="write each row as {...}")  # fmt: skip
            yield location, record


def _table(rows):
    header = None
    for location, row in rows:
        if header is None:
            header = [name.strip() for name in row]
            if len(set(header)) < len(header):
                raise UserError("two columns have the same name", location=location,
                                expected="a header of different names", remedy="correct the first line")  # fmt: skip
        elif len(row) != len(header):
            raise wrong_length(row, header, location)
        else:
            yield location, dict(zip(header, row))


def _unquoted(rows):
    """The rows, unless a text is quoted as writers of csv do it: its quotes would be learned."""
    for location, record in rows:
        for name, text in record.items():
            if '""' in text[1:-1] and text[0] == text[-1] == '"' and '"' not in text[1:-1].replace('""', ""):
                raise UserError(f"the {name!r} is quoted as in a csv file: {brief(text)}", location=location,
                                expected="tsv, in which quotes are part of the text",
                                remedy="write the file without quoting, or as .csv or .jsonl")  # fmt: skip
        yield location, record


def _objects(path):
    """Yield (location, item) of a JSON list, or of a file with one JSON value per line."""
    with open_bytes(path) as file:
        first = file.read(1 << 12).lstrip()[:1]
    if first == b"[":
        yield from list_items(path)
        return
    for line, text in text_lines(path):
        if not text.strip():
            continue
        location = f"{path}:{line}"
        try:
            value = loads(text, location)
        except UserError as error:
            if error.expected != JSON_EXPECTED:
                raise
            raise UserError(error.found, location=location, remedy=error.remedy,
                            expected="a list of objects, or one object per line") from error  # fmt: skip
        yield location, value
