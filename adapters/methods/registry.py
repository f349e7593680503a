"""The adaptation methods and their settings, read from the files in this folder without importing torch.

Every file that declares METHODS is discovered automatically; see base.py.
"""

import ast
import functools
import importlib
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

from versatile.utils import flags
from versatile.utils.errors import UserError

# The model itself is trained; nothing is added to it.
FULL = "full"
BARE = "task_embeddings"
# Published names of methods that have another name here.
ALIASES = {"meta": "hyperformer-per-layer"}


@dataclass(frozen=True)
class MethodDescription:
    """How a method is declared.

    Attributes:
        module: name of its file; class_name: its class in that file.
        settings: {flag: (type in utils.flags, default, help)}.
        summary: the first line of its file.
    """

    name: str
    module: str
    class_name: str
    settings: dict
    summary: str

    def load_class(self):
        """The class; imports torch."""
        return getattr(importlib.import_module(f"versatile.adapters.methods.{self.module}"), self.class_name)

    def complete(self, settings):
        """{setting: value}, with defaults for settings not given."""
        return {name: settings.get(name, default) for name, (_, default, _) in self.settings.items()}


@functools.cache
def all_methods():
    """{name: `MethodDescription`} of every method in this folder."""
    methods = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        literals = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in ("METHODS", "SETTINGS"):
                literals[node.targets[0].id] = ast.literal_eval(node.value)
        summary = (ast.get_docstring(tree) or "").split("\n")[0]
        for name, class_name in literals.get("METHODS", {}).items():
            methods[name] = MethodDescription(name, path.stem, class_name, literals.get("SETTINGS", {}), summary)
    return methods


def get_method(name, location="--method"):
    """The `MethodDescription` of a method; an unknown name raises a `UserError` listing the known ones."""
    methods, name = all_methods(), ALIASES.get(name, name)
    if name not in methods:
        raise UserError(f"unknown method {name!r}", location=location, expected="one of " + ", ".join(sorted(methods)))
    return methods[name]


def method_of(value, location=None):
    """A task's method as {"method": name, setting: value, ...}, with all settings filled in.

    Args:
        value: a dict of that form, with or without settings; a method's name; or a number: a bottleneck adapter of
            this width, 0: task embeddings only.
        location: where the value was given, for errors.

    Raises:
        UserError: an unknown method or setting, or an invalid value.
    """
    if isinstance(value, int):
        value = dict(method="bottleneck", adapter_bottleneck=value) if value else dict(method=BARE)
    if isinstance(value, str):
        value = dict(method=value)
    description = get_method(value["method"], location or "--method")
    if unknown := sorted(set(value) - {"method", *description.settings}):
        raise UserError(
            f"{unknown[0]!r} is not a setting of the method {description.name}",
            location=location or unknown[0],
            expected=", ".join(description.settings) or "none",
        )
    for name, (kind, default, _) in description.settings.items():
        setting = value.get(name, default)
        try:
            if isinstance(setting, bool) or getattr(flags, kind)(str(setting)) != setting:
                raise ArgumentTypeError(f"{setting!r}: expected {'a text' if isinstance(default, str) else 'a number'}")
        except ArgumentTypeError as error:
            problem, _, expected = str(error).partition(": expected ")
            raise UserError(f"{name} is {problem}", location=location or name, expected=expected) from None
    return dict(method=description.name, **description.complete(value))
