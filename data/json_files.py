"""Reading of task json files, one record at a time.

A task file is ``{"train": [...], "valid": [...], "test": [...]}`` (``"val"`` is read as ``"valid"``), where each
split is a list of objects; a file whose name ends in ``.gz`` is decompressed on the fly. Memory holds one record,
whatever the size of the file, and everything that can be wrong with a file raises a `UserError` that says
where.

Numbers are returned as int or float. A ``\\ud800``-style escape without its other half is not a character and is
read as ``?``.
"""

import decimal
import math
import os

import ijson
from versatile.data.files import listed, open_bytes
from versatile.data.json_text import LONGEST, WholeCharacters, repeated
from versatile.utils.errors import MissingSplitError, UserError, brief
from versatile.utils.screen import module_command

_BLOCK = 1 << 16
_DEEPEST = 100
_ALIASES = {"valid": ("valid", "val")}
_OPENS = frozenset(("start_map", "start_array"))
_CLOSES = frozenset(("end_map", "end_array"))
# The C parser raises JSONError, and SystemError for a number of too many digits; the pure Python one also lets decoding
# errors through.
_REFUSALS = (ijson.JSONError, ValueError, SystemError, decimal.DecimalException)
# A record of more values than this is a mistake, and would fill memory.
_MOST_VALUES = 10_000_000
_TASK_FILE = 'a task file: {"train": [...], "valid": [...], "test": [...]}'


def iter_records(path, split):
    """Yield ``(location, record)`` for every record of a split, e.g. ``("data.json:train[17]", {...})``.

    The whole file is read even when the split ends early, so that a file cut off after it is detected.

    Args:
        path: the task file, plain or ``.gz``.
        split: ``"train"``, ``"valid"`` (key ``valid`` or ``val``), ``"test"`` or any other key of the file.

    Raises:
        UserError: while iterating. The file is missing, empty, truncated, not UTF-8, not JSON or not an object;
            the split is missing, given twice, not a list or empty; a record is not an object.
    """
    names = _ALIASES.get(split, (split,))
    events = _events(path)
    seen = []
    for key in _keys(path, events):
        seen.append(key)
        if key not in names:
            _skip(events)
            continue
        twice = [name for name in seen if name in names]
        if len(twice) > 1:
            raise UserError(
                f"holds the {split} split more than once (keys {' and '.join(map(repr, twice))})",
                location=path,
                expected="each split once",
                remedy="keep one of them",
            )
        yield from _records(f"{os.fspath(path)}:{key}", events)
    if not any(name in seen for name in names):
        raise MissingSplitError(
            f"has no {' or '.join(map(repr, names))} split; its keys are: {listed(seen)}",
            location=path,
            expected=_TASK_FILE,
            remedy=f'rename the key, or make the file with: {module_command("data.convert", "--help")}',
            choice="choose one of its splits",
        )


def top_level(path):
    """Yield ``(key, value)`` for everything in a task file, in order.

    A list is replaced by an iterator of ``(location, item)``, which must be exhausted before the next key.
    """
    events = _events(path)
    for key in _keys(path, events):
        location = f"{os.fspath(path)}:{key}"
        event, value = next(events)
        yield key, _items(location, events) if event == "start_array" else _build(event, value, events, location)


def list_items(path):
    """Yield ``(location, item)`` for everything in a file whose top level is a list, e.g. ``("turns.json[17]", …)``.

    Raises:
        UserError: while iterating. The file cannot be read, is not JSON, or is not a list.
    """
    events = _events(path)
    try:
        event, value = next(events)
        if event != "start_array":
            problem = "is an object" if event == "start_map" else f"is {brief(value)}"
            raise UserError(
                f"{problem} at the top level",
                location=path,
                expected="a list",
                remedy="check that this is the right file",
            )
        yield from _items(os.fspath(path), events)
        for _ in events:  # Only here does the parser see what follows the closing bracket.
            pass
    except UserError as error:
        if error.expected != _TASK_FILE:
            raise
        raise UserError(
            error.found, location=error.location, expected="a list, in JSON", remedy=error.remedy
        ) from error


def top_level_value(path, name):
    """The value of one top-level key of a json file, or None; other values are passed over and not kept."""
    events = _events(path)
    for key in _keys(path, events):
        if key == name:
            return _build(*next(events), events, f"{os.fspath(path)}:{key}")
        _skip(events)
    return None


def split_names(path):
    """The top-level keys of a task file whose values are lists, in the file's order."""
    events = _events(path)
    return [key for key in _keys(path, events) if _skip(events) == "start_array"]


def has_split(path, split):
    """Whether a task file has a split."""
    return any(name in _ALIASES.get(split, (split,)) for name in split_names(path))


def _events(path):
    """Yield the parser's (event, value) pairs."""
    with open_bytes(path) as file:
        try:
            # With use_float the parser would refuse integers of 20 digits.
            yield from ijson.basic_parse(WholeCharacters(file, path), use_float=False)
        except _REFUSALS as error:
            raise _not_json(path, error) from error


def _keys(path, events):
    """Yield the top-level keys; after each, the caller must consume that key's value from `events`."""
    event, value = next(events)
    if event != "start_map":
        problem = "is a list" if event == "start_array" else f"is {brief(value)}"
        raise UserError(
            f"{problem} at the top level",
            location=path,
            expected=_TASK_FILE,
            remedy="put the records under a split's name, or make the file with: "
            + module_command("data.convert", "--help"),
        )
    for event, key in events:
        if event == "end_map":
            break
        yield key
    for _ in events:  # Only here does the parser see what follows the closing brace.
        pass


def _skip(events):
    """Consume one value from `events`; returns the event that it began with."""
    first, _ = next(events)
    if first in _OPENS:
        depth = 1
        for event, _ in events:
            if event in _OPENS:
                depth += 1
            elif event in _CLOSES:
                depth -= 1
                if not depth:
                    break
    return first


def _records(location, events):
    """Yield (location, record) for the list that comes next in `events`."""
    event, value = next(events)
    if event != "start_array":
        problem = "is an object" if event == "start_map" else f"is {brief(value)}"
        raise UserError(
            problem, location=location, expected="a list of records", remedy="put the split's records into a list"
        )
    count = 0
    for event, value in events:
        if event == "end_array":
            break
        record_location = f"{location}[{count}]"
        record = _build(event, value, events, record_location)
        if not isinstance(record, dict):
            raise UserError(
                f"is {brief(record)}",
                location=record_location,
                expected="an object, one per record",
                remedy="write each record as {...}, or remove it",
            )
        yield record_location, record
        count += 1
    if not count:
        raise UserError(
            "is empty",
            location=location,
            expected="at least one record",
            remedy="fill the split, or remove its key from the file",
        )


def _items(location, events):
    """Yield (location, item) for the list whose opening event was already consumed from `events`."""
    for count, (event, value) in enumerate(events):
        if event == "end_array":
            break
        yield f"{location}[{count}]", _build(event, value, events, f"{location}[{count}]")


def _build(event, value, events, location):
    """The value that begins with (event, value).

    ijson's `items` would build it too, but it keeps the path to every value as text, which takes memory quadratic in
    the nesting depth, and it cannot distinguish the list ``train`` from an object ``{"item": …}``.
    """
    if event not in _OPENS:
        return _number(value, location) if event == "number" else value
    size = count = 0
    root = {} if event == "start_map" else []
    stack, top, key = [], root, None
    for event, value in events:
        if event == "map_key":
            key = value
            continue
        if event in _CLOSES:
            if not stack:
                break
            top = stack.pop()
            continue
        if event in _OPENS:
            value = {} if event == "start_map" else []
        elif event == "number":
            value = _number(value, location)
        elif event == "string":
            size += len(value)
        count += 1
        if size > LONGEST or count > _MOST_VALUES:
            what = f"{LONGEST >> 20} MiB" if size > LONGEST else f"{_MOST_VALUES:,} values"
            raise UserError(
                f"is a record of more than {what}",
                location=location,
                expected="a record of text fields",
                remedy="check how the file was made",
            )
        if type(top) is dict:
            if key in top:
                raise repeated(key, location)
            top[key] = value
        else:
            top.append(value)
        if event in _OPENS:
            stack.append(top)
            top = value
            if len(stack) > _DEEPEST:
                raise UserError(
                    f"is nested more than {_DEEPEST} deep",
                    location=location,
                    expected="a record of text fields",
                    remedy="check how the file was made",
                )
    return root


def _number(value, location):
    """A number from the parser, which returns a Decimal unless it is an integer, as int or float."""
    if isinstance(value, int):
        return value
    number = float(value)
    if math.isinf(number):
        raise UserError(
            f"the number {str(value)[:40]} overflows",
            location=location,
            expected="numbers up to 1.8e308",
            remedy="correct the record",
        )
    return number


def _not_json(path, error):
    """The `UserError` for bytes that the parser refused; reads the file again to find where."""
    offset = _refused_at(path, _refused_at(path, 0, _BLOCK), 1)
    line, column, rest = _position(path, offset)
    where = f"line {line}, column {column}"
    reason = error.args[0] if error.args else ""
    reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
    reason = reason.split("\n")[0].strip(" .")
    if isinstance(error, SystemError | decimal.DecimalException) or "digits" in reason:
        return UserError(
            f"a number with too many digits, near {where}",
            location=path,
            expected="numbers of at most 4300 digits",
            remedy="write it as a string, or leave it out",
        )
    if not rest:
        with open_bytes(path) as file:
            blank = not any(block.strip() for block in iter(lambda: file.read(_BLOCK), b""))
        if blank:
            return UserError("is empty", location=path, expected=_TASK_FILE, remedy="check how it was made")
        return UserError(
            f"ends in the middle of the JSON, at {where}",
            location=path,
            expected="a whole file",
            remedy="it was cut off: copy or make it again",
        )
    for word in (b"NaN", b"Infinity"):
        if rest.startswith(word):
            return UserError(
                f"{word.decode()} at {where} is not JSON",
                location=path,
                expected="a number, a string or null",
                remedy="write null instead (json.dump(..., allow_nan=False) finds the cause)",
            )
    if rest[0] >= 0x80 or isinstance(error, UnicodeDecodeError) or "UTF8" in reason:
        return UserError(
            f"is not UTF-8 text, at {where}",
            location=path,
            expected="JSON in UTF-8",
            remedy="save it as UTF-8, e.g. iconv -f latin1 -t utf-8 old.json > new.json",
        )
    near = rest[:20].decode("utf-8", "replace")
    return UserError(
        f"is not valid JSON at {where}, near {near!r}: {reason}",
        location=path,
        expected=_TASK_FILE,
        remedy="correct it there, or make the file again",
    )


def _refused_at(path, start, step):
    """The offset of the `step` bytes at which the parser refuses the file, or the file's length.

    `start` is the offset, a multiple of the block size, from which to advance in steps of `step`.
    """
    events = ijson.sendable_list()
    parser = ijson.basic_parse_coro(events, use_float=False)
    offset = 0
    with open_bytes(path) as file:
        whole = WholeCharacters(file, path)
        while block := whole.read(_BLOCK if offset < start else step):
            try:
                parser.send(block)
            except _REFUSALS:
                break
            events.clear()
            offset += len(block)
    return offset


def _position(path, offset):
    """(line, column in characters, the next bytes) of a byte offset; lines and columns count from 1."""
    line, column = 1, 1
    with open_bytes(path) as file:
        while offset:
            block = file.read(min(_BLOCK, offset))
            offset -= len(block)
            line += block.count(b"\n")
            if b"\n" in block:
                column, block = 1, block[block.rindex(b"\n") + 1 :]
            # Bytes 80-BF continue a character that an earlier byte began.
            column += len(block.translate(None, bytes(range(0x80, 0xC0))))
        return line, column, file.read(80)
