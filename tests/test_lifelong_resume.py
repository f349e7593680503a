"""A sequence resumed on another machine or with other flags, and teachers that several sequences share."""

import argparse
import json
import os
import shutil
import signal

import pytest
from lifelong_data import command, write
from scripts import done, run, start, tensors
from training_runs import different, error_of, trained
from versatile.data.question_scores import texts
from versatile.lifelong import replay, sequence, strategies
from versatile.lifelong.matrix import Matrix, read_single_tasks, summary
from versatile.lifelong.run_records import tasks_learned
from versatile.training.run_locks import lock_directory, release_directory
from versatile.utils import flags, machine
from versatile.utils.errors import UserError

import train_lifelong

QUICK = ("--n_train_epochs", 1, "--only_final", "--limit", 4)
SCRIPT = "train_lifelong"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished sequence whose batches were sized by the machine's memory."""
    folder = tmp_path_factory.mktemp("finished")
    trained(command(data, folder / "run", "finetune", *QUICK, batch=0), folder / "log", SCRIPT)
    return folder / "run"


def opened(argv):
    """(flags, run) with which train_lifelong.py would resume."""
    argv = list(map(str, argv))
    parser = train_lifelong.parser()
    return train_lifelong.open_sequence(parser.parse_args(argv), flags.typed_flags(train_lifelong.parser, argv))


def stopped_while_samples_are_drawn():
    """Make this process send itself SIGTERM when it begins to draw samples to replay."""
    replay.generate_samples = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_between_trainings_says_how_to_go_on(data, tmp_path):
    argv = command(data, tmp_path / "run", "lll", "--add_task_tokens", *QUICK)
    job = start(SCRIPT, argv, tmp_path / "log", prepare=stopped_while_samples_are_drawn)
    result = job.wait()
    assert result.code == 128 + signal.SIGTERM and result.err == "", result.err
    said = "SIGTERM: ag is trained; what was begun between trainings is done again. To resume:"
    assert result.out.endswith(f"{said}\n  python train_lifelong.py --resume {tmp_path / 'run'}\n")
    done(run(SCRIPT, ["--resume", tmp_path / "run"], tmp_path / "log"))
    trained(command(data, tmp_path / "whole", "lll", "--add_task_tokens", *QUICK), tmp_path / "log", SCRIPT)
    assert different(tensors(tmp_path / "run" / "sst"), tensors(tmp_path / "whole" / "sst")) == []


def refusal(capsys, *argv):
    return error_of(capsys, lambda: train_lifelong.main(list(map(str, argv))))


@pytest.mark.parametrize("typed", ["--resume", "the same command"])
def test_batches_are_made_for_the_memory_the_sequence_began_with(typed, finished, data, monkeypatch):
    began = json.loads((finished / "run.json").read_text())["flags"]["memory_mib"]
    assert began == int(machine.memory() / 2**20)
    monkeypatch.setattr(machine, "memory", lambda: 100 * 2**20)
    same = command(data, finished, "finetune", *QUICK, batch=0)
    args, run = opened(["--resume", finished] if typed == "--resume" else same)
    assert args.memory_mib == began and run is not None


def test_what_may_differ_is_taken_from_the_command_that_resumes(finished):
    args, _ = opened(["--resume", finished, "--save_steps", 1, "--keep_checkpoints", 7, "--report_to", "none",
                      "--skip_tasks", "sst"])  # fmt: skip
    assert (args.save_steps, args.keep_checkpoints, args.report_to) == (1, 7, ["none"])
    assert args.skip_tasks == ["sst"] and args.output_dir == str(finished)


def test_a_task_to_skip_that_was_not_trained_is_refused_before_anything_is_written(data, finished, tmp_path, capsys):
    argv = command(data, tmp_path / "run", "finetune", *QUICK)
    assert "ag has not been trained yet" in refusal(capsys, *argv, "--skip_tasks", "ag")
    assert not (tmp_path / "run").exists()
    assert "nonsense has not been trained yet" in refusal(capsys, "--resume", finished, "--skip_tasks", "nonsense")


def test_a_teacher_that_another_sequence_is_training_is_refused(data, tmp_path):
    argv = command(data, tmp_path / "one", "finetune", *QUICK, "--distil", "--train_teachers")
    trained(argv, tmp_path / "log", SCRIPT)
    (teacher,) = (tmp_path / "one" / "tiny-gpt2" / "teachers").glob("ag_*")
    (teacher / "sequence.json").unlink()
    shutil.rmtree(teacher / "ag"), shutil.rmtree(tmp_path / "one" / "ag"), shutil.rmtree(tmp_path / "one" / "sst")
    (tmp_path / "one" / "sequence.json").unlink()
    lock_directory(teacher, "--train_teachers")
    try:
        result = start(SCRIPT, argv, tmp_path / "log").wait()
    finally:
        release_directory(teacher)
    assert result.code == 2 and "another process" in result.err and str(teacher) in result.err
    assert "wait until it has ended" in result.err and not (teacher / "ag").exists()
    trained(argv, tmp_path / "log", SCRIPT)


def test_a_teacher_of_another_task_is_refused(data, finished, tmp_path, capsys):
    assert tasks_learned(finished / "sst") == ["ag", "sst"]
    # A later model of the sequence has also learned the first task; an earlier one has not learned the second.
    for task, folder in (("ag", "sst"), ("sst", "ag")):
        shutil.copytree(finished / folder, tmp_path / "teachers" / task)
    argv = command(data, tmp_path / "run", "finetune", *QUICK, "--distil", "--teacher_dir", tmp_path / "teachers")
    text = refusal(capsys, *argv)
    assert f"the teacher {tmp_path / 'teachers' / 'sst'}: it was trained on ag" in text and "a teacher of sst" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["ag_1e-05_42", "ag_0.05_42_lead_bos"])
def test_teachers_are_found_under_every_name_of_a_single_task_model(name, finished, tmp_path):
    shutil.copytree(finished / "ag", tmp_path / name / "ag")
    record = json.loads((finished / "run.json").read_text())
    record["flags"]["tasks"] = ["ag"]
    (tmp_path / name / "run.json").write_text(json.dumps(record))
    assert sequence.find_teacher(tmp_path, "ag", only=False) == tmp_path / name / "ag"


def test_samples_drawn_in_smaller_batches_are_read_again(tmp_path):
    settings = dict(task="a", batch_size=32, seed=1)
    report = dict(asked=1, kept=1, unfinished=0, rejected={}, settings=settings | dict(batch_size=16))
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert replay._report(tmp_path / "report.json", settings) == report
    assert replay._report(tmp_path / "report.json", settings | dict(seed=2)) is None


def test_a_task_named_like_a_special_token_is_refused(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    rows = "".join(json.dumps(dict(text=f"text {i}", label="yes")) + "\n" for i in range(4))
    for split in ("train", "test"):
        (tmp_path / "mine" / f"{split}.jsonl").write_text(rows)
    argv = ["--tasks", f"ans={tmp_path / 'mine'}", "--model_name", "tiny-gpt2", "--add_task_tokens", "--model_dir_root",
            tmp_path, "--output_dir", tmp_path / "run"]  # fmt: skip
    text = refusal(capsys, *argv)
    assert "'ans' cannot be a task's name" in text and "my_ans=DATA" in text and not (tmp_path / "run").exists()


def test_white_space_around_a_true_answer_does_not_make_it_wrong():
    assert texts(["yes", "no", ""], [[" yes "], ["no\n"], ["  "]])["em"].value == 100
    assert texts(["yes"], [["y es"]])["em"].value == 0


def test_scores_of_single_tasks_must_come_from_the_same_evaluation(tmp_path):
    evaluation = dict(split="test", limit=None, ref1=False, decoding="greedy")
    result = summary([Matrix(["ag"], [[50.0]], metrics=["em"])], [1])
    (tmp_path / "matrix.json").write_text(json.dumps(result | dict(records=[{}]) | evaluation))
    assert read_single_tasks([tmp_path], ["ag"], ["em"], evaluation) == [50]
    with pytest.raises(UserError, match="it was evaluated with limit None") as error:
        read_single_tasks([tmp_path], ["ag"], ["em"], evaluation | dict(limit=4))
    assert error.value.expected == "limit 4, as here"


def test_a_share_that_a_memory_does_not_use_is_pointed_out(capsys):
    known = argparse.Namespace(gen_lm_sample_percentage=0.2, memory_size=None, memory_policy=None, seed=1)
    er = strategies.STRATEGIES["er"]
    memory = er.__new__(er)
    memory.settings, memory.sequence = known, argparse.Namespace(sizes={"a": 100})
    assert memory.make_memory().size == 5
    assert "--gen_lm_sample_percentage 0.2 has no effect with er" in capsys.readouterr().out


@pytest.mark.parametrize("more, flag", [
    (("--lr_scheduler_type", "cosine", "--n_warmup_ratio", 0.5), "--n_warmup_ratio"),
    (("--kd_temperature", 3), "--kd_temperature"),
    (("--memory_mib", 1000), "--memory_mib"),
])  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(more, flag, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_lifelong.main(list(map(str, command(data, tmp_path / "run", "finetune", *more))))
    assert stopped.value.code == 2 and f"{flag} has no effect" in capsys.readouterr().err
