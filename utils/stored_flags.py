"""Flags read back from a run.json: each value is turned into the words that would have given it and parsed again.

So files are checked against the same types, ranges and choices as command lines.
"""

import argparse
import os

from versatile.utils import schema
from versatile.utils.errors import UserError, brief
from versatile.utils.settings import ALL_SPELLINGS

REMEDY = "put back the value that the run was started with, copy the file again, or start a new run"
# A valid text or path in a run.json.
TEXT = schema.Text(says="a text that UTF-8 can hold", empty=True, longest=1_000_000)
# Values that come from a flag by `parser.set_defaults` instead of being one: the user's own tasks.
DERIVED = {
    "own_tasks": schema.MapOf(TEXT, null=True),
    "task_definitions": schema.ListOf(schema.Record(fields={"name": schema.Text(required=True)}), null=True),
}


def rename_settings(stored, parser):
    """The flags of a run.json under their current names, whatever the version that wrote it called them.

    Args:
        stored: {name: value}.
        parser: the script's.
    """
    options, renamed = parser._option_string_actions, {}
    for name, value in stored.items():
        action = options.get(f"--{name}")
        today = action.dest if action else ALL_SPELLINGS.get(name, name)
        if name == "cache_dir" and "--token_cache_dir" in options and "token_cache_dir" not in stored:
            # It used to be the directory of tokenised data.
            today = "token_cache_dir"
        if today != argparse.SUPPRESS and (today == name or today not in stored):
            renamed[today] = value
    return renamed


def restore_flags(parser, stored, location):
    """The values of a parser's flags, from the content of a file.

    Args:
        parser: an `argparse.ArgumentParser`.
        stored: {flag: value} of a run.json; keys that are not flags of this parser are left out.
        location: the file, for errors.

    Returns:
        {flag: value}

    Raises:
        UserError: a value that no command line could have given; it names the key and what was expected.
    """
    # If one flag has several options, the first takes the value: `HfArgumentParser` adds --no_<name>.
    actions = {action.dest: action for action in reversed(parser._actions) if action.option_strings}
    restored = {name: restore_flag(actions[name], value, f"{location}: flags.{name}")
             for name, value in stored.items() if name in actions}  # fmt: skip
    for name in stored.keys() & DERIVED.keys() - actions.keys():
        restored[name] = schema.validate(stored[name], DERIVED[name], f"{location}: flags.{name}", REMEDY)
    for group in parser._mutually_exclusive_groups:
        # At most one of several mutually exclusive flags may be on.
        on = [action.dest for action in group._group_actions if restored.get(action.dest)]
        if len(on) > 1:
            raise UserError(
                f"flags.{on[0]} and flags.{on[1]} are both given",
                location=location,
                expected="one of them",
                remedy=REMEDY,
            )
    return restored


def restore_flag(action, value, location):
    """The value of one flag; see `restore_flags`."""
    if _is_same(value, action.default) or (value is None and action.default is argparse.SUPPRESS):
        return value
    if action.nargs == 0:
        if isinstance(value, bool):
            return value
        raise _unfit(value, "true or false", location)
    if action.nargs == "?" and (_is_same(value, action.const) or type(value) is type(action.const) is bool):
        return value
    if isinstance(action.default, dict):
        if not isinstance(value, dict):
            raise _unfit(value, _kind(action), location)
        return dict(_parsed(action, item, location) for item in value.items())
    if action.nargs in ("+", "*"):
        if not isinstance(value, list) or not value:
            raise _unfit(value, "a list of one or more", location)
        return [_parsed(action, item, f"{location}[{i}]") for i, item in enumerate(value)]
    return _parsed(action, value, location)


def _parsed(action, value, location):
    """One value, parsed and checked by the flag's own type and choices."""
    write = getattr(action.type, "written", str)
    expected = "one of " + ", ".join(map(str, action.choices)) if action.choices else None
    try:
        if write is str and (value is None or isinstance(value, (dict, list))):
            raise ValueError
        text = str(value).lower() if isinstance(value, bool) else write(value)
        # Bytes of a path that are not UTF-8 appear as lone surrogates.
        shown = os.fsencode(text).decode(errors="replace") if os.path.isabs(text) else text
        schema.validate(shown, TEXT, location)
        parsed = action.type(text) if action.type else text
    except argparse.ArgumentTypeError as error:
        raise _unfit(value, str(error).rpartition("expected ")[2], location) from None
    except (UserError, ValueError, TypeError, OverflowError, RecursionError):
        raise _unfit(value, expected or _kind(action), location) from None
    same = parsed == value and isinstance(parsed, bool) == isinstance(value, bool)
    if not same or (action.choices is not None and parsed not in action.choices):
        raise _unfit(value, expected or _kind(action), location)
    return parsed


def _is_same(value, known):
    """Whether a value equals the known one and has its type (true is not 1)."""
    return type(value) is type(known) and value == known


def _kind(action):
    """A description of a flag's valid values."""
    if isinstance(action.const, bool) and action.nargs == "?" and not hasattr(action.type, "expected"):
        return "true or false"
    known = {int: "a whole number", float: "a number", None: TEXT.says}
    if action.type in known or hasattr(action.type, "expected"):
        return known.get(action.type) or action.type.expected
    try:
        # Not a value of any type but text: the error says what is expected.
        action.type("?")
    except (argparse.ArgumentTypeError, ValueError) as error:
        return str(error).rpartition("expected ")[2]
    return TEXT.says


def _unfit(value, expected, location):
    return UserError(f"it is {brief(value)}", location=location, expected=expected, remedy=REMEDY)
