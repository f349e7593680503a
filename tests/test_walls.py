"""Imports between the rooms point one way.

    python -m pytest tests/test_walls.py

utils <- data, adapters <- training <- lifelong <- scripts; adapters and data do not know each other.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "utils": set(),
    "data": {"utils"},
    "adapters": {"utils"},
    "training": {"utils", "data", "adapters"},
    "lifelong": {"utils", "data", "adapters", "training"},
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


def imported_modules(source):
    """Every module that a file's text imports, anywhere in it, absolute names only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they lead to"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def broken_walls(room, source):
    """The imports of a file in `room` that lead where the room may not look."""
    broken = []
    for module in imported_modules(source):
        top, *rest = module.split(".")
        if top in ALLOWED or top in SCRIPTS:
            broken.append(f"{module} (rooms are imported as versatile.<room>, scripts never)")
        elif top == "versatile" and rest and rest[0] in ALLOWED and rest[0] not in ALLOWED[room] | {room}:
            broken.append(module)
    return broken


def private_imports(source):
    """The private names that a file imports from other modules of the toolkit."""
    names = (module.rpartition(".")[2] for module in imported_modules(source) if module.startswith("versatile."))
    return [name for name in names if name.startswith("_") and not name.startswith("__")]


def test_private_names_stay_in_their_module():
    files = [*ROOT.glob("*.py"), *(f for room in (*ALLOWED, "bench", "versatile") for f in (ROOT / room).rglob("*.py"))]
    broken = {str(f.relative_to(ROOT)): found for f in files if (found := private_imports(f.read_text("utf-8")))}
    assert not broken
    assert private_imports("def f():\n    from versatile.adapters.attach import _chain, join") == ["_chain"]


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_rooms_below_it(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    broken = {str(f.relative_to(ROOT)): found for f in files if (found := broken_walls(room, f.read_text("utf-8")))}
    assert not broken


def test_every_folder_with_modules_is_a_room():
    others = {"tests", "bench", "docs", "versatile"}
    folders = {f.relative_to(ROOT).parts[0] for f in ROOT.glob("[a-z]*/*.py")}
    assert folders - others == set(ALLOWED)


@pytest.mark.parametrize(
    "room, line",
    [
        ("utils", "from versatile.data.task import get_task"),
        ("data", "def f():\n    from versatile.adapters import attach"),
        ("adapters", "import versatile.training.trainer"),
        ("training", "from versatile import lifelong"),
        ("lifelong", "import train"),
        ("lifelong", "from utils.errors import UserError"),
    ],
)
def test_a_broken_wall_is_noticed(room, line):
    assert broken_walls(room, line)
