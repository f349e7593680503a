"""Validation of json files when they are read: the expected content is declared as data and compared in one walk.

A schema is a tree of kinds: `Text`, `Whole`, `Number`, `Flag`, `Choice`, `ListOf`, `MapOf`, `Record`. The first value
that does not fit raises a `UserError` that names the file and the key (``tasks[1].labels``).
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from versatile.utils.errors import UserError, brief


class _Mismatch(Exception):
    """A value that does not fit: (key path, what was found, what was expected)."""


@dataclass(frozen=True)
class Kind:
    """One value.

    Attributes:
        required: whether the key must be present.
        null: whether null means "not given".
    """

    required: bool = field(default=False, kw_only=True)
    null: bool = field(default=False, kw_only=True)

    def check(self, value, key):
        """Raise `_Mismatch` where `value` is not of this kind."""
        if value is None and self.null:
            return
        if not self.fits(value):
            raise _Mismatch(key, brief(value), self.expected() + (" or null" if self.null else ""))
        self.descend(value, key)

    def fits(self, value):
        """Whether the value itself is valid; `descend` checks what it contains."""
        return True

    def descend(self, value, key):
        """Check what the value contains."""

    def expected(self):
        """What a valid value is."""
        return "a value"


@dataclass(frozen=True)
class Text(Kind):
    """A string that can be written as UTF-8 and is no longer than `longest`."""

    allows: Callable = lambda value: True
    says: str = "a text"
    empty: bool = False
    longest: int = 4096

    def fits(self, value):
        return (isinstance(value, str) and (self.empty or bool(value)) and len(value) <= self.longest
                and "\0" not in value and _is_encodable(value) and self.allows(value))  # fmt: skip

    def expected(self):
        return self.says


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from `low` to `high`; true and 2.0 do not count."""

    low: int = 0
    high: int = 2**63 - 1

    def fits(self, value):
        return type(value) is int and self.low <= value <= self.high

    def expected(self):
        return f"a whole number from {self.low:,} to {self.high:,}"


@dataclass(frozen=True)
class Number(Kind):
    """A finite number from `low` to `high`."""

    low: float = -1e30
    high: float = 1e30

    def fits(self, value):
        return type(value) in (int, float) and self.low <= value <= self.high and math.isfinite(value)

    def expected(self):
        return f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Flag(Kind):
    """true or false."""

    def fits(self, value):
        return isinstance(value, bool)

    def expected(self):
        return "true or false"


@dataclass(frozen=True)
class Choice(Kind):
    """One of some values, of the same type (1 is not true)."""

    values: tuple = ()

    def fits(self, value):
        return any(type(value) is type(one) and value == one for one in self.values)

    def expected(self):
        return "one of " + ", ".join(map(str, self.values))


@dataclass(frozen=True)
class ListOf(Kind):
    """A list whose items are all of one kind.

    Attributes:
        shortest, longest: how many items.
        unique: function of an item whose results must all differ, or None.
    """

    item: Kind = Kind()
    shortest: int = 0
    longest: int = 1_000_000
    unique: Callable | None = None

    def fits(self, value):
        return isinstance(value, list) and self.shortest <= len(value) <= self.longest

    def descend(self, value, key):
        for i, item in enumerate(value):
            self.item.check(item, f"{key}[{i}]")
        names = [self.unique(item) for item in value] if self.unique else []
        if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
            raise _Mismatch("", f"{brief(repeated[0])} appears twice in {key}", "each once")

    def expected(self):
        if self.shortest == self.longest:
            return f"a list of {self.shortest}"
        return "a list" + (f" of {self.shortest} or more" if self.shortest else "")


@dataclass(frozen=True)
class MapOf(Kind):
    """An object with arbitrary keys whose values are all of one kind."""

    item: Kind = Kind()
    name: Text = Text()

    def fits(self, value):
        return isinstance(value, dict)

    def descend(self, value, key):
        for name, item in value.items():
            self.name.check(name, f"a key of {key}")
            self.item.check(item, f"{key}.{name}")

    def expected(self):
        return "a json object"


@dataclass(frozen=True)
class Record(Kind):
    """An object with known keys; unknown ones are ignored unless `closed`."""

    fields: dict = field(default_factory=dict)
    closed: bool = False

    def fits(self, value):
        return isinstance(value, dict)

    def descend(self, value, key):
        prefix = f"{key}." if key else ""
        for name, kind in self.fields.items():
            if name in value:
                kind.check(value[name], prefix + name)
            elif kind.required:
                raise _Mismatch("", f"no {name!r}" + (f" in {key}" if key else ""), kind.expected())
        if self.closed and (unknown := sorted(set(value) - set(self.fields))):
            names = f"unknown key{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}"
            raise _Mismatch("", names + (f" in {key}" if key else ""), ", ".join(sorted(self.fields)))

    def expected(self):
        return "a json object"


def _is_encodable(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def validate(value, schema, location, remedy="copy the file again from where it was written"):
    """Raise a `UserError` with the key and what was expected where a value does not fit a schema.

    Returns:
        the value.
    """
    try:
        schema.check(value, "")
    except _Mismatch as mismatch:
        key, found, expected = mismatch.args
        raise UserError(
            f"{key} is {found}" if key else found, location=location, expected=expected, remedy=remedy
        ) from None
    return value


def read_json_object(path, remedy="copy it again", location=None):
    """The object in a json file; a file that cannot be read or parsed, or holds anything else, is a `UserError`."""
    location = location or path
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=unique_keys)
    except RecursionError:
        raise UserError("nested too deeply", location=location, expected="a json object", remedy=remedy) from None
    except FileNotFoundError as error:
        raise UserError("no such file", location=location, expected="a json object",
                        remedy="check the spelling of the path") from error  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", location=location, expected="a json file",
                        remedy="check the spelling of the path") from error  # fmt: skip
    except ValueError as error:
        raise UserError(f"not valid json: {error}", location=location, remedy=remedy) from error
    if not isinstance(value, dict):
        raise UserError(f"{brief(value)}", location=location, expected="a json object", remedy=remedy)
    return value


class RepeatedKeyError(ValueError):
    """A json object gives the key `key` more than once."""

    def __init__(self, key):
        self.key = key
        super().__init__(f"the key {brief(key)} appears twice")


def unique_keys(pairs):
    """A json object; a repeated key is an error, as it would be unclear which value counts."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return result
