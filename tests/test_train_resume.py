"""train.py stopped, killed, resumed, and in several processes: the same weights, bit for bit."""

import json
import os
import random
import shutil
import signal

import pytest
import quick
from scripts import TORCHRUN, contents, losses, metrics, run, run_as_user, small, start, tensors, until
from training_runs import (
    after_saves,
    close_runs,
    in_two_processes,
    killed_and_resumed,
    on_seeing,
    refused,
    same_run,
    short_run,
    start_two,
    trained,
)  # fmt: skip
from versatile.training import experiment
from versatile.utils.errors import UserError


def test_a_run_killed_at_random_moments_and_resumed_equals_one_never_stopped(nlg_data, tmp_path):
    more = ["--save_steps", "1", "--keep_checkpoints", "2", "--eval_before_start"]
    whole = trained(short_run(nlg_data, tmp_path / "whole", *more, epochs=5), tmp_path / "log")
    out = tmp_path / "killed"
    # Its stderr is emptied when it starts.
    seconds = (whole / "metrics.json").stat().st_mtime - (tmp_path / "log/err").stat().st_mtime
    moments = random.Random(7)
    # Of thirty steps; the first kill is sure to fall into the start.
    kills = [after_saves(number, seconds * moments.uniform(0, 0.1)) for number in (0, 2, 3, 1, 4, 2)]
    struck = killed_and_resumed(short_run(nlg_data, out, *more, epochs=5), out, tmp_path / "log", kills)
    assert struck >= 3
    same_run(whole, out)


@pytest.mark.slow
def test_a_run_killed_while_files_are_being_written_resumes_exactly(nlg_data, tmp_path):
    more = ["--save_steps", "2", "--keep_checkpoints", "1"]
    whole = trained(short_run(nlg_data, tmp_path / "whole", *more, epochs=4), tmp_path / "log")
    out = tmp_path / "killed"
    patterns = ["run.json", "checkpoints/.*.part", "checkpoints/.*.part/training_state.pt", "checkpoints/*.old",
                "..best*.part", ".best", "checkpoints/.*.part/adapter_model.safetensors", "checkpoints/step_*",
                "learning_curve.png", "metrics.json"]  # fmt: skip
    struck = killed_and_resumed(
        short_run(nlg_data, out, *more, epochs=4), out, tmp_path / "log", list(map(on_seeing, patterns))
    )
    assert struck >= 5
    same_run(whole, out)
    assert not list(out.glob("**/*.part")) and not list(out.glob("**/*.old"))


@pytest.mark.slow
def test_full_fine_tuning_killed_and_resumed_is_exact(nlg_data, tmp_path):
    more = ["--save_steps", "1", "--weight_decay", "0.1", "--warmup_steps", "3"]
    whole = trained(short_run(nlg_data, tmp_path / "whole", *more, bottleneck=-1), tmp_path / "log")
    out = tmp_path / "killed"
    kills = [on_seeing("run.json"), on_seeing("checkpoints/step_*03"), on_seeing("checkpoints/.step_*07*.part")]
    struck = killed_and_resumed(short_run(nlg_data, out, *more, bottleneck=-1), out, tmp_path / "log", kills)
    assert struck == 3
    same_run(whole, out)


@pytest.mark.slow
def test_with_gradient_accumulation_killed_and_resumed_is_exact(nlg_data, tmp_path):
    # 6 batches an epoch in steps of 4 and 2 batches.
    options = dict(accumulation=4, epochs=4)
    whole = trained(short_run(nlg_data, tmp_path / "whole", "--save_steps", "1", **options), tmp_path / "log")
    out = tmp_path / "killed"
    kills = [on_seeing("checkpoints/step_*01"), on_seeing("checkpoints/step_*03"), on_seeing("checkpoints/step_*06")]
    struck = killed_and_resumed(short_run(nlg_data, out, "--save_steps", "1", **options), out, tmp_path / "log", kills)
    assert struck == 3
    assert metrics(out)["steps"] == 8
    same_run(whole, out)


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [4, -1])
def test_in_bf16_with_recomputed_activations_killed_and_resumed_is_exact(bottleneck, nlg_data, tmp_path):
    def argv(out):
        plain = short_run(
            nlg_data, out, "--save_steps", "1", "--bf16", "--gradient_checkpointing", bottleneck=bottleneck
        )
        return [a for a in plain if a != "--fp32"]

    whole, out = trained(argv(tmp_path / "whole"), tmp_path / "log"), tmp_path / "killed"
    struck = killed_and_resumed(argv(out), out, tmp_path / "log", [on_seeing("checkpoints/step_*03")])
    assert struck == 1
    same_run(whole, out)


@pytest.mark.slow
def test_a_fresh_process_from_the_command_line_resumes_exactly(nlg_data, finished_run, tmp_path):
    out = tmp_path / "run"
    killed_and_resumed_once = start("train", short_run(nlg_data, out, "--save_steps", "1"), tmp_path / "log")
    on_seeing("checkpoints/step_*07")(killed_and_resumed_once, out)
    assert killed_and_resumed_once.wait().code == -signal.SIGKILL
    result = run_as_user("train", ["--resume", out])
    assert result.code == 0, result.err
    assert "resuming after step" in result.out
    assert tensors(out) == tensors(finished_run)
    assert losses(out) == losses(finished_run)


def test_a_finished_run_resumed_is_left_as_it_is(finished_run, nlg_data, tmp_path):
    out = shutil.copytree(finished_run, tmp_path / "run")
    result = run("train", ["--resume", out], tmp_path / "log")
    assert result.code == 0, result.err
    same_run(finished_run, out)


def test_a_run_stopped_early_and_resumed_stays_stopped(nlg_data, tmp_path):
    # The rate is so high that the validation loss rises at once.
    argv = short_run(nlg_data, tmp_path / "run", "--early_stopping", "2", "--lr", "0.5", "--max_norm", "1e9", epochs=9)
    out = trained(argv, tmp_path / "log")
    before = metrics(out)
    assert before["stopped_early"] and before["steps"] < before["total_steps"]
    valid = before["history"]["valid"]
    assert [row["nll"] > before["valid_nll"] for row in valid[-2:]] == [True, True]
    result = run("train", ["--resume", out], tmp_path / "log")
    assert result.code == 0, result.err
    assert {k: metrics(out)[k] for k in ("steps", "stopped_early", "best_step", "history")} == {
        k: before[k] for k in ("steps", "stopped_early", "best_step", "history")
    }


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    """Change eight bytes in the middle, which leaves a file that can be read."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(byte ^ 1 for byte in content[middle : middle + 8])
    path.write_bytes(content)


@pytest.mark.parametrize("name, damage", [
    ("training_state.pt", truncate), ("adapter_model.safetensors", truncate), *quick.only([], [
        ("training_state.pt", flip), ("adapter_model.safetensors", flip), ("adapter_config.json", os.remove)]),
])  # fmt: skip
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_ends_equal(
    name, damage, nlg_data, finished_run, tmp_path
):
    out = tmp_path / "run"
    job = start("train", short_run(nlg_data, out, "--save_steps", "1"), tmp_path / "log")
    on_seeing("checkpoints/step_*07")(job, out)
    job.wait()
    newest = sorted((out / "checkpoints").glob("step_*"))[-1]
    damage(newest / name)
    result = run("train", ["--resume", out], tmp_path / "log")
    assert result.code == 0, result.err
    assert f"{newest} cannot be read" in result.out
    same_run(finished_run, out)
    # The damaged one was rewritten: the run can be resumed from its newest checkpoint again.
    assert "cannot be read" not in run("train", ["--resume", out], tmp_path / "log").out


def test_checkpoints_that_are_all_damaged_are_an_error_not_a_silent_restart(finished_run, tmp_path):
    out = shutil.copytree(finished_run, tmp_path / "run")
    for state in out.glob("checkpoints/*/training_state.pt"):
        state.write_bytes(b"")
    refused(run("train", ["--resume", out], tmp_path / "log"), out / "checkpoints", "remove them")


def test_ctrl_c_saves_prints_how_to_go_on_and_loses_nothing(nlg_data, finished_run, tmp_path):
    out = tmp_path / "run"
    job = start("train", short_run(nlg_data, out), tmp_path / "log")
    assert until(lambda: (out / "checkpoints").exists(), job)
    job.kill(signal.SIGINT)
    result = job.wait()
    assert result.code == 130
    assert result.err == ""
    assert "SIGINT: saved after step" in result.out
    assert f"python train.py --resume {out}" in result.out
    assert list(out.glob("checkpoints/step_*"))
    result = run("train", ["--resume", out], tmp_path / "log")
    assert result.code == 0, result.err
    same_run(finished_run, out)


def test_ctrl_c_before_training_begins_leaves_no_traceback(nlg_data, tmp_path):
    # The run is so long that it has not ended before the signal even on a busy machine.
    job = start("train", short_run(nlg_data, tmp_path / "run", epochs=500), tmp_path / "log")
    # The line on the data is printed before the run directory is made.
    until(lambda: "train:" in (tmp_path / "log" / "out").read_text(), job)
    job.kill(signal.SIGINT)
    result = job.wait()
    assert result.code == 130
    assert "Traceback" not in result.err


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """21 training and 7 validation rows: the last global batch of 8 has 5, that of 16 has 7."""
    return small(tmp_path_factory.mktemp("odd") / "nlg.json", train=21, valid=7, test=4)


@pytest.mark.parametrize("bottleneck", quick.every(2, [4, -1]))
def test_two_processes_with_half_the_batch_train_as_one_does(bottleneck, odd, tmp_path):
    # tiny-llama has no dropout, which would differ from process to process.
    options = dict(model="tiny-llama", bottleneck=bottleneck, accumulation=2)
    one = trained(short_run(odd, tmp_path / "one", batch=8, **options), tmp_path / "log")
    results = in_two_processes(short_run(odd, tmp_path / "two", batch=4, **options), tmp_path / "log")
    assert results[1].out == ""
    assert metrics(tmp_path / "two")["processes"] == 2
    close_runs(one, tmp_path / "two")
    assert metrics(one)["tokens"] == metrics(tmp_path / "two")["tokens"]


@pytest.mark.slow
def test_one_row_left_for_two_processes_changes_nothing(tmp_path):
    data = small(tmp_path / "data.json", train=17, valid=1, test=1)
    one = trained(short_run(data, tmp_path / "one", batch=8, model="tiny-llama"), tmp_path / "log")
    in_two_processes(short_run(data, tmp_path / "two", batch=4, model="tiny-llama"), tmp_path / "log")
    close_runs(one, tmp_path / "two")


@pytest.mark.slow
def test_torchrun_equals_one_process(odd, tmp_path):
    one = trained(short_run(odd, tmp_path / "one", batch=8, model="tiny-llama", epochs=1), tmp_path / "log")
    argv = short_run(odd, tmp_path / "two", batch=4, model="tiny-llama", epochs=1)
    result = run_as_user("train", argv, launcher=TORCHRUN)
    assert result.code == 0, result.err
    assert result.out.count("done:") == 1
    close_runs(one, tmp_path / "two")


def test_two_processes_killed_and_resumed_are_exact(odd, tmp_path):
    argv = lambda out: short_run(odd, out, "--save_steps", "1", batch=2)  # noqa: E731
    in_two_processes(argv(tmp_path / "whole"), tmp_path / "log")
    out = tmp_path / "stopped"
    in_two_processes([*argv(out), "--keep_checkpoints", "20"], tmp_path / "log")
    for late in sorted((out / "checkpoints").iterdir())[5:]:
        shutil.rmtree(late)
    refused(run("train", ["--resume", out], tmp_path / "log"), "2 processes", "torchrun --nproc_per_node 2")
    in_two_processes(["--resume", out], tmp_path / "log")
    same_run(tmp_path / "whole", out)


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(odd, finished_run, tmp_path):
    out = tmp_path / "run"
    jobs = start_two(short_run(odd, out, epochs=200), tmp_path)
    assert until(lambda: (out / "checkpoints").exists(), jobs[0])
    jobs[1].kill(signal.SIGTERM)
    results = [job.wait() for job in jobs]
    assert [r.code for r in results] == [143, 143]
    assert "SIGTERM: saved after step" in results[0].out
    assert "torchrun --nproc_per_node 2 train.py --resume" in results[0].out


@pytest.mark.parametrize("flag, given, stored", [("lr", "0.1", "0.005"), ("n_epochs", "9", "2"), ("seed", "1", "42"),
                                                 ("train_batch_size", "2", "4"), ("task", "mt", "nlg"),
                                                 ("max_steps", "3", "None"), ("compile", None, "False")])  # fmt: skip
def test_resuming_with_another_flag_names_it_and_both_values(flag, given, stored, finished_run, tmp_path):
    argv = ["--resume", finished_run, f"--{flag}", *([given] if given else [])]
    refused(
        run("train", argv, tmp_path), f"--resume {finished_run}", f"--{flag} {given or 'True'}", f"--{flag} {stored}"
    )


def test_resuming_with_the_same_flags_or_free_ones_is_fine(finished_run, nlg_data, tmp_path):
    out = shutil.copytree(finished_run, tmp_path / "run")
    argv = ["--resume", out, "--lr", "0.005", "--n_epochs", "2", "--save_steps", "5", "--keep_checkpoints", "1"]
    result = run("train", argv, tmp_path)
    assert result.code == 0, result.err


def test_resuming_with_changed_data_is_refused(finished_run, tmp_path):
    out = shutil.copytree(finished_run, tmp_path / "run")
    record = json.loads((out / "run.json").read_text())
    record["flags"]["dataset_path"] = str(small(tmp_path / "other.json", train=25, valid=6, test=4))
    (out / "run.json").write_text(json.dumps(record))
    refused(run("train", ["--resume", out], tmp_path), "the data have changed", out / "checkpoints")


def test_resuming_on_another_backbone_is_refused(nlg_data, tmp_path):
    from versatile.adapters.backbones import loading as backbones

    def save_backbone(seed):
        model, tokenizer = backbones.load_backbone("tiny-gpt2", random_init=seed)
        model.save_pretrained(tmp_path / "backbone")
        tokenizer.save_pretrained(tmp_path / "backbone")

    save_backbone(1)
    out = tmp_path / "run"
    trained(short_run(nlg_data, out, "--save_steps", 2, model=tmp_path / "backbone"), tmp_path)
    save_backbone(2)
    refused(run("train", ["--resume", out], tmp_path), out / "checkpoints", "the backbone is not the one")
    save_backbone(1)
    assert run("train", ["--resume", out], tmp_path).code == 0


def test_a_run_does_not_overwrite_a_model(nlg_data, tmp_path):
    from versatile.adapters.backbones import loading as backbones

    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    model.save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    before = contents(tmp_path / "backbone")
    argv = short_run(nlg_data, tmp_path / "backbone", model=tmp_path / "backbone")
    refused(run("train", argv, tmp_path), f"--output_dir {tmp_path / 'backbone'}", "holds a model (config.json)")
    assert contents(tmp_path / "backbone") == before


def test_resuming_what_is_no_run_is_refused(finished_run, tmp_path):
    refused(run("train", ["--resume", tmp_path / "nothing"], tmp_path), tmp_path / "nothing", "no run.json")
    assert not (tmp_path / "nothing").exists()
    for content in ("", "[]", '{"flags": 3}'):
        (tmp_path / "run.json").write_text(content)
        refused(run("train", ["--resume", tmp_path], tmp_path / "log"), tmp_path / "run.json", "start a new run")


@pytest.mark.parametrize("typed, found, remedy", [
    ("train_vlm.py --tasks nlg", "this is a run of train_vlm.py", "python train_vlm.py --resume"),
    ("train_lifelong.py", "this is a run of train_lifelong.py", "python train_lifelong.py --resume"),
    ("combine_all.py --output x", "nothing to resume: it was combined", "evaluate.py"),
])  # fmt: skip
def test_the_run_of_another_script_is_not_resumed_here(typed, found, remedy, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(dict(command=typed, flags=dict(tasks=["nlg"]))))
    refused(run("train", ["--resume", tmp_path], tmp_path / "log"), f"--resume {tmp_path}: {found}", remedy)
    with pytest.raises(UserError, match=r"nothing to resume|this is a run of train\.py"):
        made = typed if "combine_all" in typed else "train.py --task nlg"
        experiment.refuse_foreign(dict(command=made), "train_vlm.py", tmp_path)
    # The program that called `main` in its own process is not another script of the toolkit.
    experiment.refuse_foreign(dict(command="pytest -q"), "train.py", tmp_path)


def test_under_torchrun_the_command_to_go_on_starts_as_many_processes(monkeypatch):
    assert experiment.resume_command("train.py", "runs/x") == "python train.py --resume runs/x"
    monkeypatch.setattr(experiment.idist, "get_world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert experiment.resume_command("train.py", "runs/x") == "torchrun --nproc_per_node 2 train.py --resume runs/x"


def test_an_output_directory_that_holds_a_run_is_not_written_over(finished_run, nlg_data, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in finished_run.rglob("*")}
    refused(
        run("train", short_run(nlg_data, finished_run), tmp_path),
        f"--output_dir {finished_run}",
        f"--resume {finished_run}",
    )
    assert {p: p.stat().st_mtime_ns for p in finished_run.rglob("*")} == before
