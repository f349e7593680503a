"""Names of tasks as they are typed: what to say of an unknown one, and NAME=SOURCE for a task of the user's own."""

import argparse
import difflib

from versatile.data.task_orders import expand_orders
from versatile.utils.errors import UserError


def unknown_task(name, known, location="--tasks", more=None):
    """The `UserError` of a name that is not a task's: names like it, and how to bring one's own.

    Args:
        name: what was typed.
        known: names of the tasks.
        location: the flag.
        more: more advice, or None.
    """
    known = list(known)
    close = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
    question = f"did you mean {' or '.join(close)}? " if close else ""
    if "," in str(name):
        question, apart = "", " ".join(str(name).replace(",", " ").split())
        more = f"separate the names with spaces: {location} {apart}" + (f"; {more}" if more else "")
    own = f"for a task of your own name its data: {location} {example_name(name)}=FOLDER_OR_FILE"
    return UserError(f"unknown task {name!r}", location=location, expected="one of " + ", ".join(known),
                     remedy=question + "; ".join([*([more] if more else []), own]))  # fmt: skip


def example_name(name):
    """The typed name where it could be a task's, otherwise "mine"."""
    text = str(name)
    return text if text.replace("-", "").replace("_", "").isalnum() else "mine"


def separate_sources(words):
    """(names, {name: source}) of words that are NAME or NAME=SOURCE.

    Raises:
        ValueError: no name before the "=", no source behind it, or two sources of one name.
    """
    names, sources = [], {}
    for word in words:
        name, equals, source = str(word).partition("=")
        if equals and not (name and source):
            raise ValueError(f"{word!r}: expected NAME=FOLDER_OR_FILE")
        if equals and name in sources:
            raise ValueError(f"task {name!r} is named twice")
        names.append(name)
        if equals:
            sources[name] = source
    return names, sources


def by_task(values, tasks, what, flag="--data", kind="markers"):
    """{task: value} of a flag that takes TASK=VALUE, each task under the one of its names that is in use.

    Args:
        values: {task as typed: value}.
        tasks: the names in use.
        what: what these are: "trained".
        flag: where the values were typed.
        kind: the system whose names they are; see `TaskNames`.

    Raises:
        UserError: a task that is none of them, or twice.
    """
    from versatile.data.task import canonical_name

    found = {}
    for typed, value in sorted(values.items()):
        name = typed if typed in tasks else canonical_name(typed, kind)
        if name not in tasks:
            raise UserError(f"task {typed!r} is not {what}", location=flag, expected="one of " + ", ".join(tasks))
        if name in found:
            raise UserError(f"task {name!r} is named twice", location=flag, remedy="name it once")
        found[name] = value
    return found


class TaskNames(argparse.Action):
    """Takes NAME or NAME=SOURCE, one or several: names stay under the flag, sources go to `own_tasks`.

    Args:
        const: a key of `data.task.FORMS` or "markers": the system whose name of a known task is kept; None: the typed.
            Among several questions with answers the name of an order (`data.task_orders`) stands for its tasks.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        several = isinstance(values, list)
        try:
            names, sources = separate_sources(values if several else [values])
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        if self.const:
            from versatile.data.task import canonical_name

            if self.const == "question_answer" and several:
                names = expand_orders(names)
            names = [name if name in sources else canonical_name(name, self.const) for name in names]
        setattr(namespace, self.dest, names if several else names[0])
        if sources:
            namespace.own_tasks = (getattr(namespace, "own_tasks", None) or {}) | sources


def task_flag(group, flag, kind=None, **options):
    """Add --task or --tasks to a parser's group; it takes NAME or NAME=SOURCE. `kind`: see `TaskNames`."""
    group.add_argument(flag, action=TaskNames, const=kind, **options)
    # Written into run.json, so that a resumed run and an evaluation know the user's own tasks.
    group.set_defaults(own_tasks=None, task_definitions=None)
