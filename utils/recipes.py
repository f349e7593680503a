"""The recipes of run.sh, as it prints them; they are defined only in recipes.sh."""

import shlex
import subprocess
from pathlib import Path

RUN_SH = Path(__file__).resolve().parent.parent / "run.sh"


def read_recipe(name):
    """The words of the command that a recipe runs, starting with its script, or None if there is no such recipe.

    An installed package has no run.sh, and no recipes.
    """
    return _list(name).get(name)


def read_recipe_names(starts):
    """Names of the recipes that start with one of some texts, including those of lifelong learning in all orders."""
    printed = _print()
    names = [line.partition(" python ")[0].strip() for line in printed if " python " in line]
    # Lifelong recipes are printed in one order; the others are listed below, an order and its tasks per line.
    orders = [line.split()[0] for line in printed if line.startswith("    ")]
    methods = [name.removeprefix("lifelong-wcs-") for name in names if name.startswith("lifelong-wcs-")]
    names += [f"lifelong-{order}-{method}" for order in orders for method in methods]
    return [name for name in dict.fromkeys(names) if name.startswith(starts)]


def _list(*names):
    lines = (line.partition(" python ") for line in _print(*names))
    return {name.strip(): shlex.split(command) for name, separator, command in lines if separator}


def _print(*names):
    if not RUN_SH.is_file():
        return []
    return subprocess.run(["bash", str(RUN_SH), "list", *names], capture_output=True, text=True,
                          check=False).stdout.splitlines()  # fmt: skip
