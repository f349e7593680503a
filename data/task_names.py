"""Task names as typed on the command line: errors for unknown ones, and NAME=SOURCE for user-defined tasks."""

import argparse
import difflib

from versatile.data.task_orders import expand_orders
from versatile.utils.errors import UserError

# Attributes of torch's ModuleDict and ParameterDict, and smart_apply, which transformers adds. A module of a task
# cannot have such a name; `adapters.schemas` asks torch itself, but only once the backbone is loaded.
_ATTRIBUTES = """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile copy cpu cuda double
    dump_patches eval extra_repr float forward fromkeys get get_buffer get_extra_state get_parameter get_submodule
    half ipu items keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters
    parameters pop popitem register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule setdefault share_memory smart_apply
    state_dict to to_empty train training type update values xpu zero_grad
"""
MODULE_ATTRIBUTES = frozenset(_ATTRIBUTES.split())


def check_task_name(name, location):
    """Raise a `UserError` if a name is reserved; in older versions a model might have such a task."""
    if name.lower() == "all":
        raise UserError(f"{name!r} cannot be a task's name: the word stands for all tasks", location=location,
                        expected="a name of your own", remedy="choose another name")  # fmt: skip
    if name in MODULE_ATTRIBUTES:
        raise UserError(f"{name!r} cannot be a task's name", location=location,
                        expected="a name that is not an attribute of a torch module",
                        remedy=f"call it {name}_task, for example")  # fmt: skip


def unknown_task(name, known, location="--tasks", more=None):
    """The `UserError` for an unknown task name: it lists similar names and says how to add a user-defined task.

    Args:
        name: the name typed.
        known: names of the known tasks.
        location: the flag.
        more: additional advice, or None.
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
    """The typed name if it could be a task's, otherwise "mine"."""
    text = str(name)
    return text if text.replace("-", "").replace("_", "").isalnum() else "mine"


def separate_sources(words):
    """(names, {name: source}) of words of the form NAME or NAME=SOURCE.

    Raises:
        ValueError: no name before the "=", no source after it, or two sources for one name.
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


def name_among(typed, names, kind):
    """The one of `names` that a typed name of the same task means; the typed name if it means none of them.

    Args:
        names: the names in use.
        kind: the system whose names they are; see `TaskNames`.
    """
    from versatile.data.task import canonical_name

    name = typed if typed in names else canonical_name(typed, kind)
    return name if name in names else typed


def by_task(values, tasks, what, flag="--data", kind="markers"):
    """{task: value} of a flag that takes TASK=VALUE, with each task under its name in use.

    Args:
        values: {task as typed: value}.
        tasks: the names in use.
        what: a word for these tasks, for messages: "trained".
        flag: the flag that the values were given to.
        kind: the system whose names they are; see `TaskNames`.

    Raises:
        UserError: a task is not among them, or is named twice.
    """
    named = {}
    for typed, value in sorted(values.items()):
        name = name_among(typed, tasks, kind)
        if name not in tasks:
            raise UserError(f"task {typed!r} is not {what}", location=flag, expected="one of " + ", ".join(tasks))
        if name in named:
            raise UserError(f"task {name!r} is named twice", location=flag, remedy="name it once")
        named[name] = value
    return named


class TaskNames(argparse.Action):
    """Takes one or several NAME or NAME=SOURCE: names are stored under the flag, sources in `own_tasks`.

    Args:
        const: a key of `data.task.FORMS`: known tasks are stored under this system's names; None: as typed.
            For several "question_answer" names, the name of an order (`data.task_orders`) expands to its tasks.
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
    """Add --task or --tasks, which takes NAME or NAME=SOURCE, to a parser's group. `kind`: `const` of `TaskNames`."""
    group.add_argument(flag, action=TaskNames, const=kind, **options)
    # Written to run.json, so that a resumed run and an evaluation know the user-defined tasks.
    group.set_defaults(own_tasks=None, task_definitions=None)
