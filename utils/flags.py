"""Flags that several scripts share, and argparse types that say what they wanted."""

import argparse
import sys


def positive(text):
    """argparse type: a whole number above 0."""
    return _number(text, int, lambda v: v > 0, "a whole number above 0")


def not_negative(text):
    """argparse type: a whole number from 0."""
    return _number(text, int, lambda v: v >= 0, "a whole number, 0 or more")


def bottleneck(text):
    """argparse type: a whole number from -1, which stands for no adapter."""
    return _number(text, int, lambda v: v >= -1, "a whole number, 0 or more, or -1 for no adapter")


def rate(text):
    """argparse type: a finite number above 0."""
    return _number(text, float, lambda v: 0 < v < float("inf"), "a number above 0")


def not_negative_rate(text):
    """argparse type: a finite number from 0."""
    return _number(text, float, lambda v: 0 <= v < float("inf"), "a number, 0 or more")


def share(text):
    """argparse type: a number above 0 and up to 1."""
    return _number(text, float, lambda v: 0 < v <= 1, "a number above 0 and up to 1")


def _number(text, kind, fits, expected):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return value


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as written, and every flag's default behind its help."""

    def _get_help_string(self, action):
        if action.default in (None, False) or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Errors in the form all errors of the toolkit have, without fifty lines of usage above them."""

    def error(self, message):
        message = message.removeprefix("argument ")
        self.exit(2, f"error: {message}\n  remedy:   see {self.prog} --help\n")


def parser(doc):
    """A parser whose description is a script's docstring; prefixes of flags are not taken for flags."""
    return Parser(usage="%(prog)s [flags]", description=doc, formatter_class=HelpFormatter, allow_abbrev=False)


def given(make_parser, argv=None):
    """{flag: value} of what was really typed, defaults left out."""
    bare = make_parser()
    for action in bare._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    return vars(bare.parse_args(argv))


def list_tasks():
    """Print every registered task with its summary."""
    from data.task import all_tasks

    for name, task in sorted(all_tasks().items()):
        print(f"{name:15} {task.summary}")
        print(f"{'':15} default data: {task.dataset_path}; scored split: {task.scored_split}")
    sys.exit(0)
