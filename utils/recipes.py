"""The recipes of run.sh, as it prints them: the one place where they are written down is recipes.sh."""

import shlex
import subprocess
from pathlib import Path

RUN_SH = Path(__file__).resolve().parent.parent / "run.sh"


def read_recipe(name):
    """The words of the command that a recipe runs, its script first, or None: there is no such recipe.

    An installed package has no run.sh, and no recipes.
    """
    lines = _list(name)
    return lines.get(name)


def read_recipes():
    """{name: words of its command} of all recipes that `./run.sh list` prints."""
    return _list()


def _list(*names):
    if not RUN_SH.is_file():
        return {}
    printed = subprocess.run(["bash", str(RUN_SH), "list", *names], capture_output=True, text=True, check=False).stdout
    lines = (line.partition(" python ") for line in printed.splitlines())
    return {name.strip(): shlex.split(command) for name, separator, command in lines if separator}
