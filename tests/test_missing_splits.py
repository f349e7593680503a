"""Data without a validation or a test split: what training says, and the command that it prints at its end.

    python -m pytest tests/test_missing_splits.py
"""

import shlex

import pytest
from scripts import done, run, write_task
from test_own_tasks import TINY, write
from training_runs import NLG, refused, short_run


def test_a_missing_split_is_met_before_the_other_is_tokenised(tmp_path):
    for split, remedy in (("train", "without a validation split: --no_validation"), ("valid", "rename the key")):
        data = write_task(tmp_path / f"{split}.json", **{split: [NLG] * 4})
        result = run("train", short_run(data, tmp_path / "run"), tmp_path)
        refused(result, "has no", remedy, out=tmp_path / "run")
        assert "choose one of its splits" not in result.err and "examples" not in result.out


@pytest.mark.parametrize("names", [("train",), ("train", "valid")])
def test_the_next_command_scores_a_split_that_the_data_have(names, tmp_path):
    data, out = write(tmp_path / "data", names=names), tmp_path / "run"
    argv = ["--task", f"mine={data}", *TINY, "--adapter_bottleneck", "0", "--max_steps", "1", "--output_dir", out]
    if "valid" not in names:
        refused(run("train", argv, tmp_path / "log"), "has no file of the task mine for valid", "--no_validation")
        assert not out.exists()
        argv.append("--no_validation")
    result = done(run("train", argv, tmp_path / "log"))
    assert ("next: " in result.out) == ("valid" in names) == (f"--dataset_path {data} --split valid" in result.out)


def test_the_next_command_of_several_tasks_scores_a_split_that_all_have(tmp_path):
    tasks = [f"one={write(tmp_path / 'one')}", f"two={write(tmp_path / 'two', names=('train', 'valid'))}"]
    argv = ["--tasks", *tasks, *TINY, "--adapter_bottleneck", "0", "--max_steps", "1", "--output_dir", tmp_path / "run"]
    result = done(run("train_vlm", argv, tmp_path / "log"))
    (line,) = [line for line in result.out.splitlines() if line.startswith("next: ")]
    done(run("evaluate_vlm", [*shlex.split(line)[3:], "--max_length", "2"], tmp_path / "log", cwd=tmp_path))
