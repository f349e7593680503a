"""training.runs: the guarantees of a run directory."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from versatile.training import runs
from versatile.training.runs import STATE, Run, check_flags, default_directory, record, versions
from versatile.utils.errors import UserError


def save_text(text):
    return lambda folder: (folder / "weights").write_text(text)


def loads(seen):
    """A load_model that notes what it read."""
    return lambda folder: seen.append((folder / "weights").read_text())


@pytest.fixture
def a_run(tmp_path):
    return Run.create(tmp_path / "run", {"flags": {"lr": 0.1}}, keep=2)


def test_a_run_is_made_once_and_opened_again(a_run):
    opened, stored = Run.open(a_run.directory)
    assert stored == {"flags": {"lr": 0.1}} and opened.directory == a_run.directory
    with pytest.raises(UserError, match="already holds a run"):
        Run.create(a_run.directory, {})


def test_a_directory_that_is_gone_is_not_made_again(a_run, tmp_path):
    a_run.bind(None)
    a_run.save_checkpoint(1, dict(step=1), save_text("1"))
    a_run.directory.rename(tmp_path / "elsewhere")
    save = save_text("2")
    for write in (lambda: a_run.save_checkpoint(2, {}, save), lambda: a_run.save_best(save),
                  lambda: a_run.write_metrics({})):  # fmt: skip
        with pytest.raises(UserError, match="removed, renamed or emptied"):
            write()
        assert not a_run.directory.exists()
    assert Run(tmp_path / "elsewhere").saved_steps() == [1]


def test_a_full_disk_says_how_the_run_goes_on(a_run):
    def save(folder):
        raise OSError(errno.ENOSPC, "full")

    a_run.bind(None, resume_command="python train.py --resume a")
    for write in (lambda: a_run.save_checkpoint(1, {}, save), lambda: a_run.save_best(save)):
        with pytest.raises(UserError, match=r"the disk is full\n.*then go on: python train\.py --resume a$"):
            write()


def test_a_signal_after_training_says_how_to_get_the_scores(a_run, capsys):
    with a_run.scoring():
        pass
    a_run.bind(None, resume_command="python train.py --resume a")
    with pytest.raises(SystemExit) as stopped, a_run.scoring():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 128 + signal.SIGTERM
    said = "SIGTERM: the model is trained, but not all scores are written. To resume:\n  python train.py --resume a\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("name", ["step_1_try", "step_00000001", "checkpoint-9"])
def test_a_run_may_be_called_like_a_checkpoint(name, tmp_path):
    folder = tmp_path / name
    Run.create(folder, {"flags": {"lr": 0.1}})
    assert runs.run_of(folder) == folder and runs.stored_record(folder)["flags"] == {"lr": 0.1}
    Run(folder).save_checkpoint(3, dict(step=3), save_text("3"))
    assert runs.run_of(Run(folder).checkpoint(3)) == folder


def test_a_run_is_resumed_where_it_is(tmp_path):
    runs.refuse_elsewhere({"output_dir": str(tmp_path / "a" / ".." / "b")}, tmp_path / "b")
    with pytest.raises(UserError, match="resumed where it is"):
        runs.refuse_elsewhere({"output_dir": str(tmp_path / "a")}, tmp_path / "b")


def test_what_a_run_killed_in_its_first_moment_left_does_not_stop_a_new_one(tmp_path):
    (tmp_path / ".run.json.abc.part").write_text("{")
    Run.create(tmp_path, {"flags": {}})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "run.json"]


def test_the_newest_checkpoints_are_kept_whole_and_older_ones_go(a_run):
    for step in (5, 10, 200):
        a_run.save_checkpoint(step, dict(step=step, x=torch.ones(2)), save_text(str(step)))
    assert a_run.saved_steps() == [10, 200]
    assert sorted(p.name for p in a_run.checkpoints.iterdir()) == ["step_00000010", "step_00000200"]
    seen = []
    step, state = a_run.load_checkpoint(loads(seen))
    assert (step, seen) == (200, ["200"]) and torch.equal(state["x"], torch.ones(2))


def test_without_a_checkpoint_training_starts_at_the_beginning(a_run):
    assert a_run.load_checkpoint(loads([])) == (0, None)


@pytest.mark.parametrize("name", [STATE, "weights"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "garbage"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_is_written_anew(name, damage, a_run, capsys):
    def load_model(folder):
        if not (text := (folder / "weights").read_text()).startswith("whole"):
            raise UserError(f"not whole: {text}")

    for step in (1, 2):
        a_run.save_checkpoint(step, dict(step=step), save_text(f"whole {step}"))
    file = a_run.checkpoint(2) / name
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes({"cut": content[: len(content) // 3], "empty": b"", "garbage": b"\x00" * 99}[damage])
    step, state = a_run.load_checkpoint(load_model)
    assert (step, state["step"]) == (1, 1)
    assert f"{a_run.checkpoint(2)} cannot be read" in capsys.readouterr().out
    a_run.save_checkpoint(2, dict(step=2), save_text("whole again"))
    assert a_run.load_checkpoint(load_model)[0] == 2


def test_checkpoints_none_of_which_can_be_read_are_an_error(a_run):
    a_run.save_checkpoint(1, {}, save_text("x"))
    (a_run.checkpoint(1) / STATE).write_bytes(b"")
    with pytest.raises(UserError, match="none of the checkpoints can be read"):
        a_run.load_checkpoint(loads([]))


def test_a_checkpoint_is_never_unpickled(a_run, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    a_run.save_checkpoint(1, {}, save_text("x"))
    torch.save(Harm(), a_run.checkpoint(1) / STATE)
    with pytest.raises(UserError):
        a_run.load_checkpoint(loads([]))
    assert not (tmp_path / "harm").exists()


def test_half_written_checkpoints_are_cleared_away(a_run):
    a_run.save_checkpoint(1, {}, save_text("x"))
    for folder in (a_run.checkpoints / ".step_00000002.x.part", a_run.directory / "..best.y.part"):
        folder.mkdir()
    assert a_run.saved_steps() == [1]
    a_run.load_checkpoint(loads([]))
    assert not list(a_run.directory.rglob("*.part"))


def test_a_failing_save_leaves_the_checkpoints_as_they_were(a_run):
    a_run.save_checkpoint(1, {}, save_text("x"))

    def fail(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("no")

    for save in (lambda: a_run.save_checkpoint(2, {}, fail), lambda: a_run.save_best(fail)):
        with pytest.raises(RuntimeError):
            save()
    assert [p.name for p in a_run.checkpoints.iterdir()] == ["step_00000001"]
    assert sorted(p.name for p in a_run.directory.iterdir()) == ["README.md", "checkpoints", "run.json"]


def test_the_best_model_replaces_the_one_before_and_nothing_else(a_run):
    for text in ("one", "two"):
        a_run.save_best(save_text(text))
    assert (a_run.directory / "weights").read_text() == "two"
    assert sorted(p.name for p in a_run.directory.iterdir()) == ["README.md", "run.json", "weights"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"flags": []}'])
def test_what_is_no_run_cannot_be_resumed(content, tmp_path):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json"):
        Run.open(tmp_path)


def test_changed_flags_are_refused_by_name_with_both_values():
    stored = dict(lr=0.1, seed=1, output_dir="a", compile=False)
    check_flags(dict(lr=0.1, output_dir="b", unknown_then=3), stored, {"output_dir"}, "--resume r")
    with pytest.raises(UserError) as caught:
        check_flags(dict(lr=0.2), stored, {"output_dir"}, "--resume r")
    assert "--lr 0.2 was given" in str(caught.value) and "--lr 0.1" in str(caught.value)


def test_a_directorys_name_says_when_where_and_what_and_is_one_path_part(monkeypatch):
    folder = default_directory("some/model/", "nlg", "adapter4")
    assert folder.parts[0] == "runs" and len(folder.parts) == 2
    assert folder.name.endswith("_some-model_nlg_adapter4")
    assert len(os.fsencode(default_directory("模" * 90, "nlg").name)) <= 200


def test_many_tasks_are_counted_in_a_directorys_name():
    assert runs.join_names(["nlg", "mt"]) == "nlg_mt"
    assert runs.join_names([f"a-task-of-my-own-{i}" for i in range(15)]) == "15-tasks"


def test_run_json_says_what_was_run_with_what():
    from argparse import Namespace
    from pathlib import Path

    made = record(Namespace(b=Path("x"), a=1), data="key")
    json.dumps(made)
    assert made["flags"] == {"a": 1, "b": "x"} and made["data"] == "key"
    assert made["versions"] == versions() and made["versions"]["torch"] == torch.__version__
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert made["commit"].rstrip("+") == head.stdout.strip()


@pytest.mark.parametrize("name", ["step_backup", "step_00000002 (copy)", "step_00000002.bak", "step_2", "step_٠٠٠٠٠٠٠٢",
                                  "step_-0000002"])  # fmt: skip
def test_a_copy_that_somebody_keeps_is_no_checkpoint(name, a_run):
    a_run.save_checkpoint(2, dict(step=2), save_text("2"))
    shutil.copytree(a_run.checkpoint(2), a_run.checkpoints / name)
    (a_run.checkpoints / "step_00000009").write_text("a file")
    assert a_run.saved_steps() == [2]
    assert a_run.load_checkpoint(loads([]))[0] == 2
    for step in (3, 4, 5):
        a_run.save_checkpoint(step, dict(step=step), save_text(str(step)))
    assert (a_run.checkpoints / name).is_dir()


LOCKING = """
import sys, time
sys.path.insert(0, sys.argv[2])
from versatile.training.run_locks import lock_directory
lock_directory(sys.argv[1], "--resume")
print("locked", flush=True)
time.sleep(600)
"""


def test_a_run_in_which_another_process_works_is_refused_and_names_it(tmp_path):
    from tests.conftest import ROOT

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"flags": {}}')
    other = subprocess.Popen([sys.executable, "-c", LOCKING, tmp_path / "run", ROOT], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"another process \(pid {other.pid}\) is working in this run"):
            Run.open(tmp_path / "run")
    finally:
        other.kill()
        other.wait()
    # A killed process leaves nothing that keeps the run from being resumed.
    Run.open(tmp_path / "run")
    Run.open(tmp_path / "run")


def test_paths_that_a_run_reads_are_written_down_absolute_and_names_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.json").write_text("{}")
    (tmp_path / "smollm2").mkdir()
    flags = dict(dataset_path="d.json", data={"mt": "d.json", "nlg": "gone.json"}, model_checkpoint="smollm2", lr=0.1)
    absolute = str(tmp_path / "d.json")
    stored = record(Namespace(**flags))["flags"]
    assert stored == flags | dict(dataset_path=absolute, data={"mt": absolute, "nlg": "gone.json"})
