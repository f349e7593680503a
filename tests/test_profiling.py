"""--profile DIR: the trace that a browser opens.

    python -m pytest tests/test_profiling.py
"""

import json

import pytest
import test_training
import torch
from scripts import run, small
from versatile.training.profiling import profile_steps
from versatile.utils.devices import PROFILE


def steps_of(path):
    """Names of the profiler's steps in a chrome trace, and whether there is an operation of the model's."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {event.get("name", "") for event in events}
    return {name for name in names if name.startswith("ProfilerStep#")}, "aten::mm" in names or "aten::addmm" in names


@pytest.mark.parametrize(("total", "first", "name", "count"), [
    (10, 0, "run_steps_3-7.json", 5), (10, 6, "run_steps_9-10.json", 2), (1, 0, "run_steps_1-1.json", 1),
])  # fmt: skip
def test_the_steps_behind_the_first_are_recorded(total, first, name, count, tmp_path):
    said = []
    with profile_steps(tmp_path / "traces", "run", first, total, torch.device("cpu"), said.append) as done:
        for _ in range(first, total):
            torch.ones(4, 4) @ torch.ones(4, 4)
            done()
    (path,) = (tmp_path / "traces").iterdir()
    steps, products = steps_of(path)
    assert path.name == name and len(steps) == count and products and str(path) in said[0]


def test_without_the_flag_nothing_is_recorded(tmp_path, monkeypatch):
    monkeypatch.delenv(PROFILE, raising=False)
    with profile_steps(None, "run", 0, 10, torch.device("cpu")) as done:
        done()
    test_training.trainer(tmp_path / "a").fit()
    monkeypatch.setenv(PROFILE, str(tmp_path / "traces"))
    plain, traced = test_training.trainer(tmp_path / "b"), test_training.trainer(tmp_path / "c")
    traced.fit()
    monkeypatch.delenv(PROFILE)
    plain.fit()
    # A trace changes nothing of a run.
    assert torch.equal(plain.model.weight, traced.model.weight)
    assert [path.name for path in (tmp_path / "traces").iterdir()] == ["c_steps_3-7.json"]


def test_a_run_of_train_leaves_a_trace_and_its_flags_know_nothing_of_it(tmp_path):
    data = small(tmp_path / "nlg.json", "nlg", train=8, valid=2, test=2)
    argv = ["--task", "nlg", "--dataset_path", data, "--model_checkpoint", "tiny-gpt2", "--adapter_bottleneck", 4,
            "--train_batch_size", 4, "--max_steps", 4, "--fp32", "--device", "cpu", "--output_dir", tmp_path / "run",
            "--profile", tmp_path / "traces"]  # fmt: skip
    done = run("train", argv, tmp_path / "log")
    assert done.code == 0, done.err
    (path,) = (tmp_path / "traces").iterdir()
    assert str(path) in done.out and steps_of(path)[1]
    assert "profile" not in json.loads((tmp_path / "run" / "run.json").read_text())["flags"]
