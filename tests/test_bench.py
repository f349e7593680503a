"""The benchmarks run and say their ratio. How fast they find things is not tested: a busy machine would fail.

    python -m pytest tests/test_bench.py
"""

import ast
import json
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = sorted(p.stem for p in (ROOT / "bench").glob("*.py") if p.stem != "common")


def run(script, *flags):
    device = [] if script == "memory" else ["--device", "cpu"]
    command = [sys.executable, f"bench/{script}.py", *device, *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS)
def test_quick_run_prints_hardware_table_and_ratio(script, tmp_path):
    saved = tmp_path / "numbers.json"
    done = run(script, "--quick", "--json", str(saved))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("hardware: ")
    assert any(set(line) == {"-"} for line in lines)
    assert any(line.startswith("ratio: ") for line in lines), done.stdout
    assert json.loads(saved.read_text())["flags"]["quick"] is True


@pytest.mark.parametrize("script", SCRIPTS)
def test_docstring_gives_the_command_for_both_machines(script):
    doc = ast.get_docstring(ast.parse((ROOT / "bench" / f"{script}.py").read_text()))
    assert "one CPU" in doc and "one GPU" in doc and f"python bench/{script}.py" in doc
