"""The benchmarks run and print their ratio. The speeds are not tested: a busy machine would fail.

    python -m pytest tests/test_bench.py
"""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import quick
import scripts
from conftest import ROOT

sys.path.insert(0, str(ROOT / "bench"))
import run as bench

SCRIPTS = sorted(p.stem for p in (ROOT / "bench").glob("*.py") if p.stem not in ("common", "run"))
# The libraries that it compares with would have to be downloaded.
ALONE = {"peers": ["--sides", "ours"]}
# A script and any further flags.
RUNS = [*SCRIPTS, "decode --t5"]
QUICK = ("hypernet", "memory", "mixed_batch")


class Forked:
    """`subprocess.Popen` of a script of the toolkit, without its imports."""

    def __init__(self, command, cwd, stdout, stderr, env):
        log = Path(env["VERSATILE_CACHE"]).parent / "log"
        self.job = scripts.start(Path(command[1]).stem, command[2:], log, env)
        self.pid = self.job.pid

    def wait(self):
        return self.job.wait().code


def quick_run(script, flags, saved, folder, monkeypatch, capsys):
    """The output of a benchmark."""
    argv = ["--quick", "--json", str(saved), *ALONE.get(script, []), *flags]
    if script == "memory":
        memory = importlib.import_module(script)
        monkeypatch.setattr(memory.subprocess, "Popen", Forked)
        memory.main(argv)
        return capsys.readouterr().out
    result = scripts.run(f"bench.{script}", ["--device", "cpu", *argv], folder, timeout=300)
    assert result.code == 0, result.err
    return result.out


@pytest.mark.parametrize("run", quick.only(QUICK, RUNS))
def test_quick_run_prints_hardware_table_and_ratio(run, tmp_path, monkeypatch, capsys):
    saved, (script, *flags) = tmp_path / "numbers.json", run.split()
    printed = quick_run(script, flags, saved, tmp_path, monkeypatch, capsys)
    lines = printed.splitlines()
    assert lines[0].startswith("hardware: ")
    assert any(set(line) == {"-"} for line in lines)
    assert any(line.startswith("ratio: ") for line in lines), printed
    numbers = json.loads(saved.read_text())
    assert numbers["flags"]["quick"] is True
    assert numbers["ratios"] and all(r["low"] <= r["median"] <= r["high"] for r in numbers["ratios"].values())
    if script == "processes":
        # These do not depend on the machine's load: only gradients of added parameters, half a model each.
        sent, held = (next(r["median"] for what, r in numbers["ratios"].items() if what.startswith(start))
                      for start in ("sent over", "model and state"))  # fmt: skip
        assert 1 <= sent < 1.05 and 0.4 < held < 0.6


@pytest.mark.parametrize("script", SCRIPTS)
def test_docstring_gives_the_command_for_both_machines(script):
    doc = ast.get_docstring(ast.parse((ROOT / "bench" / f"{script}.py").read_text()))
    assert "one CPU" in doc and "one GPU" in doc and f"python bench/{script}.py" in doc


def ratio(median, low, high, lower=False):
    return dict(median=median, low=low, high=high, lower=lower)


def test_an_earlier_file_names_what_became_slower(tmp_path):
    old = {"decode": {"a": ratio(2.0, 1.9, 2.1), "b": ratio(2.0, 1.5, 2.5), "c": ratio(1.0, 0.9, 1.1, lower=True)}}
    new = {"decode": {"a": ratio(1.8, 1.7, 1.9), "b": ratio(1.8, 1.7, 1.9), "c": ratio(1.05, 1.0, 1.2, lower=True)}}
    (line,) = bench.regressions(old, new)
    assert "decode: a 1.80x, was 2.00x" in line
    # Within the tolerance, or the spread of the earlier turns, nothing is reported; better is no regression.
    assert bench.regressions(new, old) == [] and bench.regressions({}, new) == []
    new["decode"]["c"] = ratio(1.2, 1.1, 1.3, lower=True)
    assert len(bench.regressions(old, new)) == 2


def test_all_ratios_are_saved_and_compared(tmp_path, monkeypatch, capsys):
    def forked(command):
        result = scripts.run(f"bench.{Path(command[1]).stem}", command[2:], tmp_path)
        return subprocess.CompletedProcess(command, result.code)

    monkeypatch.setattr(bench.subprocess, "run", forked)
    command = ["--device", "cpu", "--quick", "--only", "attention", "--json"]
    assert bench.main([*command, str(tmp_path / "old.json")]) == 0
    old = json.loads((tmp_path / "old.json").read_text())
    for name in old["ratios"]["attention"]:
        old["ratios"]["attention"][name] = ratio(1e6, 1e6, 1e6)
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert bench.main([*command, str(tmp_path / "new.json"), "--compare", str(tmp_path / "old.json")]) == 1
    assert "regression: attention: its choice over the other one" in capsys.readouterr().out
