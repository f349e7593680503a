"""train.py run as a user runs it: resuming, signals, several processes, flags, bad input."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import scripts
from scripts import ROOT, TORCHRUN, losses, metrics, run, run_as_user, small, start, tensors, until, write_task
from training_runs import (
    after,
    close_runs,
    different,
    in_two_processes,
    killed_and_resumed,
    on_seeing,
    refused,
    same_run,
    trained,
)  # fmt: skip
from versatile.training import experiment
from versatile.utils.errors import UserError

import train

NLG = {"src": {"name": "Aromi", "food": "Thai"}, "tgt": "Aromi is a Thai place."}


def command(data, out, *more, model="tiny-gpt2", bottleneck=4, task="nlg", batch=4, accumulation=1, epochs=2):
    """Flags of a short run in fp32; bottleneck -1 trains everything."""
    return ["--task", task, "--dataset_path", data, "--model_checkpoint", model, "--adapter_bottleneck", bottleneck,
            "--train_batch_size", batch, "--gradient_accumulation_steps", accumulation, "--n_epochs", epochs,
            "--lr", "5e-3", "--fp32", "--output_dir", out, *more]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small(tmp_path_factory.mktemp("data") / "nlg.json", train=24, valid=6, test=4)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of 12 steps that nothing disturbed; read it, do not write in it."""
    folder = tmp_path_factory.mktemp("finished")
    result = run("train", command(data, folder / "run"), folder)
    assert result.code == 0, result.err
    return folder / "run"


# --- exact resume ------------------------------------------------------------------------------------------


def test_a_run_killed_at_random_moments_and_resumed_equals_one_never_stopped(data, tmp_path):
    more = ["--save_steps", "1", "--keep_checkpoints", "2", "--eval_before_start"]
    whole = trained(command(data, tmp_path / "whole", *more, epochs=5), tmp_path / "log")
    out = tmp_path / "killed"
    moments = random.Random(7)
    kills = [after(moments.uniform(0.1, 1.2)) for _ in range(6)]
    struck = killed_and_resumed(command(data, out, *more, epochs=5), out, tmp_path / "log", kills)
    assert struck >= 3
    same_run(whole, out)


def test_a_run_killed_while_files_are_being_written_resumes_exactly(data, tmp_path):
    more = ["--save_steps", "2", "--keep_checkpoints", "1"]
    whole = trained(command(data, tmp_path / "whole", *more, epochs=4), tmp_path / "log")
    out = tmp_path / "killed"
    patterns = ["run.json", "checkpoints/.*.part", "checkpoints/.*.part/training_state.pt", "checkpoints/*.old",
                "..best*.part", ".best", "checkpoints/.*.part/adapter_model.safetensors", "checkpoints/step_*",
                "learning_curve.png", "metrics.json"]  # fmt: skip
    struck = killed_and_resumed(
        command(data, out, *more, epochs=4), out, tmp_path / "log", list(map(on_seeing, patterns))
    )
    assert struck >= 5
    same_run(whole, out)
    assert not list(out.glob("**/*.part")) and not list(out.glob("**/*.old"))


def test_full_fine_tuning_killed_and_resumed_is_exact(data, tmp_path):
    more = ["--save_steps", "1", "--weight_decay", "0.1", "--warmup_steps", "3"]
    whole = trained(command(data, tmp_path / "whole", *more, bottleneck=-1), tmp_path / "log")
    out = tmp_path / "killed"
    kills = [on_seeing("run.json"), on_seeing("checkpoints/step_*03"), on_seeing("checkpoints/.step_*07*.part")]
    struck = killed_and_resumed(command(data, out, *more, bottleneck=-1), out, tmp_path / "log", kills)
    assert struck == 3
    same_run(whole, out)


def test_with_gradient_accumulation_killed_and_resumed_is_exact(data, tmp_path):
    # 6 batches an epoch in steps of 4 and 2 batches.
    options = dict(accumulation=4, epochs=4)
    whole = trained(command(data, tmp_path / "whole", "--save_steps", "1", **options), tmp_path / "log")
    out = tmp_path / "killed"
    kills = [on_seeing("checkpoints/step_*01"), on_seeing("checkpoints/step_*03"), on_seeing("checkpoints/step_*06")]
    struck = killed_and_resumed(command(data, out, "--save_steps", "1", **options), out, tmp_path / "log", kills)
    assert struck == 3
    assert metrics(out)["steps"] == 8
    same_run(whole, out)


@pytest.mark.parametrize("bottleneck", [4, -1])
def test_in_bf16_with_recomputed_activations_killed_and_resumed_is_exact(bottleneck, data, tmp_path):
    def argv(out):
        plain = command(data, out, "--save_steps", "1", "--bf16", "--gradient_checkpointing", bottleneck=bottleneck)
        return [a for a in plain if a != "--fp32"]

    whole, out = trained(argv(tmp_path / "whole"), tmp_path / "log"), tmp_path / "killed"
    struck = killed_and_resumed(argv(out), out, tmp_path / "log", [on_seeing("checkpoints/step_*03")])
    assert struck == 1
    same_run(whole, out)


def test_a_fresh_process_from_the_command_line_resumes_exactly(data, finished, tmp_path):
    out = tmp_path / "run"
    killed_and_resumed_once = start("train", command(data, out, "--save_steps", "1"), tmp_path / "log")
    on_seeing("checkpoints/step_*07")(killed_and_resumed_once, out)
    assert killed_and_resumed_once.wait().code == -signal.SIGKILL
    result = run_as_user("train", ["--resume", out])
    assert result.code == 0, result.err
    assert "resuming after step" in result.out
    assert tensors(out) == tensors(finished)
    assert losses(out) == losses(finished)


def test_a_finished_run_resumed_is_left_as_it_is(finished, data, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    result = run("train", ["--resume", out], tmp_path / "log")
    assert result.code == 0, result.err
    same_run(finished, out)


def test_a_run_stopped_early_and_resumed_stays_stopped(data, tmp_path):
    # So high a rate that the validation loss rises at once.
    argv = command(data, tmp_path / "run", "--early_stopping", "2", "--lr", "0.5", "--max_norm", "1e9", epochs=9)
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


@pytest.mark.parametrize("name", ["training_state.pt", "adapter_model.safetensors"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_ends_equal(name, data, finished, tmp_path):
    out = tmp_path / "run"
    job = start("train", command(data, out, "--save_steps", "1"), tmp_path / "log")
    on_seeing("checkpoints/step_*07")(job, out)
    job.wait()
    newest = sorted((out / "checkpoints").glob("step_*"))[-1]
    size = (newest / name).stat().st_size
    os.truncate(newest / name, size // 2)
    result = run("train", ["--resume", out], tmp_path / "log")
    assert result.code == 0, result.err
    assert f"{newest} cannot be read" in result.out
    same_run(finished, out)
    # The damaged one was written anew: the run can be resumed from its newest checkpoint again.
    assert "cannot be read" not in run("train", ["--resume", out], tmp_path / "log").out


def test_checkpoints_that_are_all_damaged_are_an_error_not_a_silent_restart(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    for state in out.glob("checkpoints/*/training_state.pt"):
        state.write_bytes(b"")
    refused(run("train", ["--resume", out], tmp_path / "log"), out / "checkpoints", "remove them")


# --- signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_prints_how_to_go_on_and_loses_nothing(name, data, finished, tmp_path):
    out, number = tmp_path / "run", getattr(signal, name)
    job = start("train", command(data, out), tmp_path / "log")
    assert until(lambda: (out / "checkpoints").exists(), job)
    job.kill(number)
    result = job.wait()
    assert result.code == 128 + number
    assert result.err == ""
    assert f"{name}: saved after step" in result.out
    assert f"python train.py --resume {out}" in result.out
    assert list(out.glob("checkpoints/step_*"))
    result = run("train", ["--resume", out], tmp_path / "log")
    assert result.code == 0, result.err
    same_run(finished, out)


def test_ctrl_c_before_training_begins_leaves_no_traceback(data, tmp_path):
    job = start("train", command(data, tmp_path / "run"), tmp_path / "log")
    # The line on the data is printed before the run directory is made.
    until(lambda: "train:" in (tmp_path / "log" / "out").read_text(), job)
    job.kill(signal.SIGINT)
    result = job.wait()
    assert result.code == 130
    assert "Traceback" not in result.err


# --- several processes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """21 training and 7 validation rows: the last global batch of 8 has 5, that of 16 has 7."""
    return small(tmp_path_factory.mktemp("odd") / "nlg.json", train=21, valid=7, test=4)


@pytest.mark.parametrize("bottleneck", [4, -1])
def test_two_processes_with_half_the_batch_train_as_one_does(bottleneck, odd, tmp_path):
    # tiny-llama has no dropout, which would differ from process to process.
    options = dict(model="tiny-llama", bottleneck=bottleneck, accumulation=2)
    one = trained(command(odd, tmp_path / "one", batch=8, **options), tmp_path / "log")
    results = in_two_processes(command(odd, tmp_path / "two", batch=4, **options), tmp_path / "log")
    assert results[1].out == ""
    assert metrics(tmp_path / "two")["processes"] == 2
    close_runs(one, tmp_path / "two")
    assert metrics(one)["tokens"] == metrics(tmp_path / "two")["tokens"]


def test_one_row_left_for_two_processes_changes_nothing(tmp_path):
    data = small(tmp_path / "data.json", train=17, valid=1, test=1)
    one = trained(command(data, tmp_path / "one", batch=8, model="tiny-llama"), tmp_path / "log")
    in_two_processes(command(data, tmp_path / "two", batch=4, model="tiny-llama"), tmp_path / "log")
    close_runs(one, tmp_path / "two")


def test_torchrun_equals_one_process(odd, tmp_path):
    one = trained(command(odd, tmp_path / "one", batch=8, model="tiny-llama", epochs=1), tmp_path / "log")
    argv = command(odd, tmp_path / "two", batch=4, model="tiny-llama", epochs=1)
    result = run_as_user("train", argv, launcher=TORCHRUN)
    assert result.code == 0, result.err
    assert result.out.count("done:") == 1
    close_runs(one, tmp_path / "two")


def test_two_processes_killed_and_resumed_are_exact(odd, tmp_path):
    argv = lambda out: command(odd, out, "--save_steps", "1", batch=2)  # noqa: E731
    in_two_processes(argv(tmp_path / "whole"), tmp_path / "log")
    out = tmp_path / "stopped"
    in_two_processes([*argv(out), "--keep_checkpoints", "20"], tmp_path / "log")
    for late in sorted((out / "checkpoints").iterdir())[5:]:
        shutil.rmtree(late)
    refused(run("train", ["--resume", out], tmp_path / "log"), "2 processes", "torchrun --nproc_per_node 2")
    in_two_processes(["--resume", out], tmp_path / "log")
    same_run(tmp_path / "whole", out)


def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(odd, finished, tmp_path):
    out = tmp_path / "run"
    port = str(random.randint(20000, 60000))
    shared = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    argv = command(odd, out, epochs=200)
    jobs = [start("train", argv, tmp_path / str(r), dict(shared, RANK=str(r), LOCAL_RANK=str(r))) for r in range(2)]
    assert until(lambda: (out / "checkpoints").exists(), jobs[0])
    jobs[1].kill(signal.SIGTERM)
    results = [job.wait() for job in jobs]
    assert [r.code for r in results] == [143, 143]
    assert "SIGTERM: saved after step" in results[0].out
    assert "torchrun --nproc_per_node 2 train.py --resume" in results[0].out


# --- what may not change when resuming ---------------------------------------------------------------------


@pytest.mark.parametrize("flag, given, stored", [("lr", "0.1", "0.005"), ("n_epochs", "9", "2"), ("seed", "1", "42"),
                                                 ("train_batch_size", "2", "4"), ("task", "mt", "nlg"),
                                                 ("max_steps", "3", "None"), ("compile", None, "False")])  # fmt: skip
def test_resuming_with_another_flag_names_it_and_both_values(flag, given, stored, finished, tmp_path):
    argv = ["--resume", finished, f"--{flag}", *([given] if given else [])]
    refused(run("train", argv, tmp_path), f"--resume {finished}", f"--{flag} {given or 'True'}", f"--{flag} {stored}")


def test_resuming_with_the_same_flags_or_free_ones_is_fine(finished, data, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    argv = ["--resume", out, "--lr", "0.005", "--n_epochs", "2", "--save_steps", "5", "--keep_checkpoints", "1"]
    result = run("train", argv, tmp_path)
    assert result.code == 0, result.err


def test_resuming_with_changed_data_is_refused(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((out / "run.json").read_text())
    record["flags"]["dataset_path"] = str(small(tmp_path / "other.json", train=25, valid=6, test=4))
    (out / "run.json").write_text(json.dumps(record))
    refused(run("train", ["--resume", out], tmp_path), "the data have changed", out / "checkpoints")


def test_resuming_what_is_no_run_is_refused(finished, tmp_path):
    refused(run("train", ["--resume", tmp_path / "nothing"], tmp_path), tmp_path / "nothing", "no run.json")
    assert not (tmp_path / "nothing").exists()
    for content in ("", "[]", '{"flags": 3}'):
        (tmp_path / "run.json").write_text(content)
        refused(run("train", ["--resume", tmp_path], tmp_path / "log"), tmp_path / "run.json", "start a new run")


@pytest.mark.parametrize("typed, found, remedy", [
    ("train_vlm.py --tasks nlg", "this is a run of train_vlm.py", "python train_vlm.py --resume"),
    ("train_lifelong.py", "this is a run of train_lifelong.py", "python train_lifelong.py --resume"),
    ("combine_all.py --output x", "nothing to resume: it was combined", "evaluate_vlm.py"),
])  # fmt: skip
def test_the_run_of_another_script_is_not_resumed_here(typed, found, remedy, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(dict(command=typed, flags=dict(tasks=["nlg"]))))
    refused(run("train", ["--resume", tmp_path], tmp_path / "log"), f"--resume {tmp_path}: {found}", remedy)
    with pytest.raises(UserError, match=r"nothing to resume|this is a run of train\.py"):
        made = typed if "combine_all" in typed else "train.py --task nlg"
        experiment.refuse_foreign(dict(command=made), "train_vlm.py", tmp_path)
    # What called `main` in its own process is no other script of the toolkit.
    experiment.refuse_foreign(dict(command="pytest -q"), "train.py", tmp_path)


def test_under_torchrun_the_command_to_go_on_starts_as_many_processes(monkeypatch):
    assert experiment.resume_command("train.py", "runs/x") == "python train.py --resume runs/x"
    monkeypatch.setattr(experiment.idist, "get_world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert experiment.resume_command("train.py", "runs/x") == "torchrun --nproc_per_node 2 train.py --resume runs/x"


def test_an_output_directory_that_holds_a_run_is_not_written_over(finished, data, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    refused(run("train", command(data, finished), tmp_path), f"--output_dir {finished}", f"--resume {finished}")
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


# --- the same numbers by another way -----------------------------------------------------------------------


def equal_losses(one, other, tolerance=1e-5):
    for rows_one, rows_other in zip(losses(one), losses(other)):
        assert len(rows_one) == len(rows_other) > 0
        for a, b in zip(rows_one, rows_other):
            assert a == pytest.approx(b, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("model, bottleneck", [("tiny-gpt2", 4), ("tiny-llama", 4), ("tiny-gpt2", -1)])
def test_gradient_checkpointing_changes_no_loss(model, bottleneck, data, tmp_path):
    options = dict(model=model, bottleneck=bottleneck)
    plain = trained(command(data, tmp_path / "plain", **options), tmp_path / "log")
    saving = trained(command(data, tmp_path / "saving", "--gradient_checkpointing", **options), tmp_path / "log")
    equal_losses(plain, saving)


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [4, -1])
def test_compiling_changes_no_loss(bottleneck, data, tmp_path):
    options = dict(model="tiny-llama", bottleneck=bottleneck)
    plain = trained(command(data, tmp_path / "plain", **options), tmp_path / "log")
    compiled = run("train", command(data, tmp_path / "compiled", "--compile", **options), tmp_path / "log", timeout=500)
    assert compiled.code == 0, compiled.err
    equal_losses(plain, tmp_path / "compiled")


def test_accumulated_batches_of_equal_length_equal_the_larger_batch(tmp_path):
    data = write_task(tmp_path / "data.json", train=[NLG] * 16, valid=[NLG] * 2)
    options = dict(model="tiny-llama", epochs=3)
    large = trained(command(data, tmp_path / "large", batch=8, **options), tmp_path / "log")
    small_ones = trained(command(data, tmp_path / "small", batch=2, accumulation=4, **options), tmp_path / "log")
    assert metrics(large)["steps"] == metrics(small_ones)["steps"] == 6
    equal_losses(large, small_ones)


# --- flags -------------------------------------------------------------------------------------------------


def test_max_steps_stops_in_the_middle_of_an_epoch_and_still_saves_a_model(data, tmp_path):
    out = trained(command(data, tmp_path / "run", "--max_steps", "4"), tmp_path)
    assert metrics(out)["steps"] == metrics(out)["total_steps"] == 4
    assert [row["step"] for row in metrics(out)["history"]["valid"]] == [4]
    assert (out / "checkpoints" / "step_00000004").is_dir() and (out / "adapter_model.safetensors").is_file()


def test_limit_uses_the_first_examples_of_each_split(data, tmp_path):
    few = small(tmp_path / "few.json", train=8, valid=4, test=2)
    limited = command(data, tmp_path / "limited", "--limit", "8")
    result = run("train", limited, tmp_path / "log")
    assert "24 examples, the first 8 used" in result.out
    whole = trained(command(few, tmp_path / "few", "--limit", "8"), tmp_path / "log")
    assert metrics(whole)["steps"] == metrics(tmp_path / "limited")["steps"] == 4
    assert losses(whole)[0] == losses(tmp_path / "limited")[0]


def test_max_tokens_sizes_batches_by_tokens(data, tmp_path):
    out = trained(command(data, tmp_path / "run", "--max_tokens", "128", epochs=1), tmp_path)
    # 24 examples of 30 to 60 tokens: more batches than the 6 of four examples each, and fewer than 24.
    assert 6 < metrics(out)["steps"] <= 24


def test_eval_before_start_validates_the_untrained_model(data, tmp_path):
    out = trained(command(data, tmp_path / "run", "--eval_before_start", epochs=1), tmp_path)
    assert [row["step"] for row in metrics(out)["history"]["valid"]] == [0, 6]


def test_without_validation_the_last_model_is_kept(tmp_path):
    data = small(tmp_path / "data.json", train=8)
    out = trained(command(data, tmp_path / "run", "--no_validation"), tmp_path)
    assert metrics(out)["valid_nll"] is None and metrics(out)["history"]["valid"] == []
    assert tensors(out) == tensors(out / "checkpoints" / "step_00000004")


def test_the_run_directory_holds_the_best_model_not_the_last(data, tmp_path):
    more = ["--lr", "0.5", "--max_norm", "1e9", "--early_stopping", "1", "--keep_checkpoints", "9"]
    argv = command(data, tmp_path / "run", *more, epochs=9)
    out = trained(argv, tmp_path)
    best = metrics(out)["best_step"]
    assert best < metrics(out)["steps"]
    assert tensors(out) == tensors(out / "checkpoints" / f"step_{best:08d}")
    assert metrics(out)["valid_nll"] == min(row["nll"] for row in metrics(out)["history"]["valid"])


@pytest.mark.parametrize("more", [[], ["--random_init", "--adapter_bottleneck", "-1"]])
def test_a_seed_repeats_a_run_and_another_changes_it(more, data, tmp_path):
    one, again, other = (
        trained(command(data, tmp_path / name, "--seed", seed, "--max_steps", "2", *more), tmp_path / "log")
        for name, seed in (("one", "5"), ("again", "5"), ("other", "6"))
    )
    assert tensors(one) == tensors(again)
    assert tensors(one) != tensors(other)


@pytest.mark.parametrize("flag, bottleneck", [
    ("--emb_only", -1), ("--outputlayer_only", -1), ("--random_init", -1), ("--random_init", 4), ("--self_copy", -1),
    ("--self_copy", 4),
])  # fmt: skip
def test_an_ablation_is_trained_evaluated_and_told_from_others(flag, bottleneck, data, tmp_path):
    out = trained(command(data, tmp_path / "run", flag, "--max_steps", "3", bottleneck=bottleneck), tmp_path / "log")
    name = flag.removeprefix("--")
    argv = ["--task", "nlg", "--dataset_path", data, "--split", "valid", "--model_checkpoint", out, "--no_sample",
            "--fp32", "--max_length", "4"]  # fmt: skip
    found = []
    for number, more in enumerate([[], [flag]]):
        results = tmp_path / f"results{number}"
        result = run("evaluate", [*argv, *more, "--output_dir", results], tmp_path / "log", env=scripts.without_java())
        assert result.code == 0, result.err
        found.append(metrics(results)["nll"])
    # What validation saw in training is what evaluation sees, with or without the flag.
    assert found[0] == found[1] == pytest.approx(metrics(out)["valid_nll"], rel=1e-5)
    others = {"--emb_only", "--outputlayer_only", "--random_init", "--self_copy"} - {flag}
    for other in sorted(others):
        refused(run("evaluate", [*argv, other], tmp_path / "log"), other, "trained without it")
    held = tensors(out)
    if name == "emb_only":
        assert set(held) == {"rows.nlg"}
    if name == "outputlayer_only":
        argv = command(data, tmp_path / "earlier", flag, "--max_steps", "1", bottleneck=-1)
        earlier = trained(argv, tmp_path / "log")
        assert different(held, tensors(earlier)) == ["transformer.wte.weight"]
    if name == "self_copy":
        assert {"p_gen_linear.weight", "p_gen_linear.bias"} <= set(held)


@pytest.mark.parametrize("more, location", [
    (["--emb_only"], "--emb_only"), (["--outputlayer_only"], "--outputlayer_only"),
    (["--kd", "word"], "--kd word"), (["--kd", "sentence", "--teacher", "x"], "--kd sentence"),
    (["--teacher", "x", "--self_copy"], "--self_copy"), (["--perturbation_layers", "2"], "--perturbation_layers"),
    (["--personality_permutations"], "--personality_permutations"),
])  # fmt: skip
def test_flags_that_contradict_each_other_are_refused(more, location, data, tmp_path):
    result = run("train", command(data, tmp_path / "run", *more), tmp_path / "log")
    refused(result, location)
    assert not (tmp_path / "run").exists()


def test_random_init_keeps_nothing_of_the_pretrained_weights(data, tmp_path, cache):
    from safetensors.torch import load_file

    argv = command(data, tmp_path / "run", "--random_init", "--max_steps", "1", "--lr", "1e-9", bottleneck=-1)
    fresh = load_file(trained(argv, tmp_path / "log") / "model.safetensors")
    held = load_file(cache / "models" / "tiny-gpt2" / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    assert fresh[name].shape == held[name].shape
    assert abs(fresh[name] - held[name]).mean() > 0.01


def test_an_adapter_beside_random_weights_is_evaluated_beside_the_same_ones(data, tmp_path):
    out = trained(command(data, tmp_path / "run", "--random_init", "--max_steps", "2", "--seed", "5"), tmp_path / "log")
    argv = ["--task", "nlg", "--dataset_path", data, "--split", "valid", "--model_checkpoint", out, "--no_sample",
            "--fp32", "--max_length", "4", "--output_dir", tmp_path / "results"]  # fmt: skip
    result = run("evaluate", argv, tmp_path / "log", env=scripts.without_java())
    assert result.code == 0, result.err
    assert scripts.metrics(tmp_path / "results")["nll"] == pytest.approx(scripts.metrics(out)["valid_nll"], rel=1e-5)


def test_distillation_learns_the_teachers_targets_and_refuses_a_file_without(tmp_path, data):
    result = run("train", command(data, tmp_path / "run", "--distillation"), tmp_path)
    refused(result, f"{data}:train[0]", "distillated_tgt", out=tmp_path / "run")
    record = dict(NLG, distillated_tgt="words of the teacher")
    file = write_task(tmp_path / "data.json", train=[record] * 4, valid=[record])
    gold = trained(command(file, tmp_path / "gold"), tmp_path)
    taught = trained(command(file, tmp_path / "taught", "--distillation"), tmp_path)
    assert losses(gold)[0] != losses(taught)[0]


def test_list_tasks_prints_every_task(tmp_path):
    from versatile.data.task import all_tasks

    for script in ("train", "evaluate"):
        result = run(script, ["--list_tasks"], tmp_path)
        assert result.code == 0
        for name, task in all_tasks().items():
            assert name in result.out and task.summary in result.out


@pytest.mark.parametrize("script", ["train", "evaluate"])
@pytest.mark.parametrize("flag", ["--help", "--task"])
def test_help_and_typing_errors_import_nothing_heavy(script, flag):
    code = (
        "import sys, runpy, atexit\n"
        "heavy = {'torch', 'transformers', 'numpy', 'ignite', 'tokenizers', 'matplotlib', 'sacrebleu'}\n"
        "atexit.register(lambda: print('loaded:', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['{script}.py', '{flag}']\n"
        f"runpy.run_path('{script}.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == (0 if flag == "--help" else 2)
    assert "loaded: []" in done.stdout


def test_every_flag_has_a_help_text():
    import evaluate
    import train

    for module in (train, evaluate):
        assert [a.dest for a in module.parser()._actions if not a.help] == []


def test_flags_not_given_take_the_published_settings(data, tmp_path):
    argv = ["--task", "nlg", "--dataset_path", data, "--model_checkpoint", "tiny-gpt2", "--max_steps", "1"]
    for bottleneck, lr, epochs in ((10, 5e-3, 10), (-1, 5e-5, 10)):
        out = tmp_path / str(bottleneck)
        trained([*argv, "--adapter_bottleneck", bottleneck, "--output_dir", out], tmp_path / "log")
        flags = json.loads((out / "run.json").read_text())["flags"]
        held = [flags[name] for name in ("lr", "n_epochs", "train_batch_size", "gradient_accumulation_steps")]
        assert held == [lr, epochs, 8, 4]


def test_the_precision_that_was_chosen_is_written_down_for_resuming(data, tmp_path):
    argv = [a for a in command(data, tmp_path / "run", "--max_steps", "1") if a != "--fp32"]
    flags = json.loads((trained(argv, tmp_path / "log") / "run.json").read_text())["flags"]
    assert [flags["bf16"], flags["fp16"], flags["fp32"]].count(True) == 1
    (chosen,) = [name for name in ("bf16", "fp32") if flags[name]]
    assert metrics(tmp_path / "run")["precision"] == dict(bf16="bfloat16", fp32="float32")[chosen]


def test_without_output_dir_the_run_lies_under_runs(data, tmp_path):
    argv = command(data, tmp_path, "--max_steps", "1")
    argv = argv[: argv.index("--output_dir")] + argv[argv.index("--output_dir") + 2 :]
    result = run("train", argv, tmp_path / "log", cwd=tmp_path)
    assert result.code == 0, result.err
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.endswith("tiny-gpt2_nlg_adapter4")
    assert f"python train.py --resume {out.relative_to(tmp_path)}" in result.out or str(out.name) in result.out
    assert (out / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


# --- what is logged ----------------------------------------------------------------------------------------


def scalars(folder):
    """{tag: {step: value}} of a run's TensorBoard events; a step logged again after resuming counts once."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c  # noqa: F401  (the package really is tensorboardX)

    found = {}
    for file in sorted(folder.glob("events.*")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_holds_losses_rate_and_speed(data, tmp_path):
    out = trained(command(data, tmp_path / "run"), tmp_path)
    logged = scalars(out)
    assert {"train/loss", "train/ppl", "train/lr", "train/tokens_per_second", "valid/nll", "valid/ppl"} <= set(logged)
    train, valid = losses(out)
    assert logged["train/loss"] == {row["step"]: pytest.approx(row["loss"]) for row in train}
    assert logged["valid/ppl"] == {row["step"]: pytest.approx(row["ppl"]) for row in valid}
    assert list(logged["train/loss"]) == [10, 12]


def test_the_log_says_what_is_trained_and_what_comes_next(data, tmp_path):
    result = run("train", command(data, tmp_path / "run"), tmp_path)
    assert "frozen" in result.out and "valid NLL" in result.out
    assert f"python evaluate.py --task nlg --no_sample --model_checkpoint {tmp_path / 'run'}" in result.out
    assert result.err == ""
    assert "\x1b" not in result.out and "\r" not in result.out


def test_in_a_terminal_a_bar_is_drawn_and_every_line_stays_whole(data, tmp_path):
    result = run("train", command(data, tmp_path / "run"), tmp_path / "log", terminal=True)
    assert result.code == 0
    assert "Epoch [1/2]" in result.err and "loss=" in result.err
    lines = [line.split("\r")[-1].strip() for line in result.err.splitlines()]
    assert any(line.startswith("step 6: valid NLL") for line in lines)
    assert any(line.startswith("next: python evaluate.py") for line in lines)


# --- divergence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [["--lr", "1e30", "--max_norm", "1e30"], ["--lr", "1e30", "--save_steps", "1"]])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_earlier_checkpoints(more, data, tmp_path):
    out = tmp_path / "run"
    result = run("train", command(data, out, "--eval_before_start", *more, bottleneck=-1), tmp_path)
    assert result.code == 2 and "Traceback" not in result.err
    assert result.err.count("error: ") == 1
    assert str(out) in result.err and "--lr" in result.err and "1e+30" in result.err
    # The best model so far is the one validated before the first step.
    assert (out / "model.safetensors").is_file()
    assert not list(out.rglob("*.part"))


# --- bad input ---------------------------------------------------------------------------------------------

BAD_FILES = {
    "missing": (None, ["no such file"]),
    "empty": ("", ["is empty"]),
    "truncated": ('{"train": [{"src": {"name": "A"}, "tgt": "A is', ["ends in the middle"]),
    "not json": ("hello", ["is not valid JSON", "line 1"]),
    "a list": ("[]", ["list at the top level"]),
    "no train": ({"valid": [NLG]}, ["has no 'train' split", "valid"]),
    "no valid": ({"train": [NLG]}, ["'valid'"]),
    "empty split": ({"train": [], "valid": [NLG]}, [":train", "is empty"]),
    "record a number": ({"train": [NLG, 7], "valid": [NLG]}, ["train[1]", "7"]),
    "tgt a number": ({"train": [NLG, dict(NLG, tgt=12)], "valid": [NLG]}, ["train[1]", "'tgt'", "12", "a string"]),
    "src a text": ({"train": [dict(NLG, src="x")], "valid": [NLG]}, ["train[0]", "'src'"]),
    "slot a list": ({"train": [dict(NLG, src={"name": ["x"]})], "valid": [NLG]}, ["train[0]", "src.name"]),
    "no tgt": ({"train": [NLG], "valid": [{"src": {"name": "x"}}]}, ["valid[0]", "'tgt'"]),
    "unknown slot": ({"train": [dict(NLG, src={"nmae": "x"})], "valid": [NLG]}, ["train[0]", "'nmae'", "'name'"]),
    "only blanks": ({"train": [dict(NLG, tgt=" \t")], "valid": [NLG]}, ["train", "empty target"]),
    "long target": ({"train": [dict(NLG, tgt="x" * 300)], "valid": [NLG]}, ["train[0]", "256", "positions"]),
    "long in valid": ({"train": [NLG], "valid": [NLG, dict(NLG, tgt="x" * 300)]}, ["valid[1]", "256"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_data_file_is_one_clear_error(name, tmp_path):
    content, fragments = BAD_FILES[name]
    file = tmp_path / "data.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    tokens = tmp_path / "tokens"
    result = run("train", command(file, tmp_path / "run", "--token_cache_dir", tokens), tmp_path / "log")
    refused(result, file, *fragments, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not tokens.exists() or not [p for p in tokens.iterdir() if p.name.startswith(".")]


BAD_FLAGS = {
    "unknown flag": (["--lerning_rate", "1"], ["--lerning_rate", "did you mean --learning_rate?"]),
    "unknown task": (["--task", "nlgg"], ["--task", "'nlgg'", "nlg"]),
    "negative lr": (["--lr", "-1"], ["--lr", "'-1'", "above 0"]),
    "lr a word": (["--lr", "fast"], ["--lr", "'fast'"]),
    "lr nan": (["--lr", "nan"], ["--lr", "'nan'"]),
    "no epochs": (["--n_epochs", "0"], ["--n_epochs", "'0'"]),
    "half a batch": (["--train_batch_size", "2.5"], ["--train_batch_size", "'2.5'"]),
    "negative seed": (["--seed", "-3"], ["--seed", "'-3'"]),
    "bottleneck": (["--adapter_bottleneck", "-7"], ["--adapter_bottleneck", "'-7'", "-1"]),
    "two precisions": (["--bf16"], ["--bf16", "--fp32"]),
    "no value": (["--limit"], ["--limit"]),
    "no such backbone": (["--model_checkpoint", "no/such"], ["--model_checkpoint no/such", "no such directory"]),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_a_bad_flag_is_one_clear_error(name, data, tmp_path):
    more, fragments = BAD_FLAGS[name]
    refused(run("train", command(data, tmp_path / "run", *more), tmp_path / "log"), *fragments)
    assert not (tmp_path / "run").exists()


def test_compiling_without_a_compiler_is_one_clear_error(data, tmp_path):
    result = run("train", command(data, tmp_path / "run", "--compile"), tmp_path / "log", env=dict(PATH=str(tmp_path)))
    refused(result, "--compile", "C++ compiler")
    assert not (tmp_path / "run").exists()


def test_half_precision_on_a_cpu_is_refused(data, tmp_path):
    argv = [a if a != "--fp32" else "--fp16" for a in command(data, tmp_path / "run")]
    refused(run("train", argv, tmp_path / "log"), "--fp16", "GPU", out=tmp_path / "run")


def test_a_task_or_a_run_must_be_named(tmp_path):
    refused(run("train", [], tmp_path), "--task", "--resume")


def test_a_trained_model_is_no_backbone(finished, data, tmp_path):
    argv = command(data, tmp_path / "run", model=finished)
    refused(run("train", argv, tmp_path), f"--model_checkpoint {finished}", "--resume", out=tmp_path / "run")


def backbone(folder, cache, **changes):
    """A copy of tiny-gpt2 with changes in its config.json."""
    shutil.copytree(cache / "models" / "tiny-gpt2", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_backbone_that_cannot_be_used_is_one_clear_error(finished, data, cache, tmp_path):
    cases = {
        "bert": (dict(model_type="bert"), lambda f: None, ["'bert'", "gpt2, gpt_neox, llama"]),
        "unknown": (dict(model_type="gpt99"), lambda f: None, ["config.json"]),
        "cut": ({}, lambda f: os.truncate(f / "model.safetensors", 999), ["weights cannot be read"]),
        "bare": ({}, lambda f: (f / "model.safetensors").unlink(), ["weights cannot be read"]),
        "mute": ({}, lambda f: (f / "tokenizer.json").unlink(), ["tokenizer"]),
        "garbled": ({}, lambda f: (f / "config.json").write_text("{"), ["config.json"]),
        "headless": ({}, lambda f: (f / "config.json").unlink(), ["no config.json"]),
    }
    for name, (changes, damage, fragments) in cases.items():
        folder = backbone(tmp_path / name, cache, **changes)
        damage(folder)
        result = run("train", command(data, tmp_path / "run", model=folder), tmp_path / "log")
        refused(result, folder, *fragments)
        assert not (tmp_path / "run").exists(), name
    file = tmp_path / "file"
    file.write_text("x")
    refused(run("train", command(data, tmp_path / "run", model=file), tmp_path / "log"), file, "this is a file")


def test_a_place_that_cannot_be_written_is_one_clear_error(data, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for out in (file, file / "run", "/proc/run"):
        # Before anything is loaded: the model is not even looked for.
        argv = command(data, out, model=tmp_path / "nothing")
        refused(run("train", argv, tmp_path / "log"), f"--output_dir {out}", "cannot write")
    for cache in (file, "/proc/x"):
        argv = command(data, tmp_path / "run", "--token_cache_dir", cache)
        refused(run("train", argv, tmp_path / "log"), f"--token_cache_dir {cache}", "cannot write", "another directory")
    result = run("train", command(data, tmp_path / "run"), tmp_path / "log", env={"VERSATILE_CACHE": "/proc/x"})
    refused(result, "/proc/x/models: cannot write", "VERSATILE_CACHE")
    assert not (tmp_path / "run").exists()
    refused(run("train", command(tmp_path, tmp_path / "run"), tmp_path / "log"), tmp_path, "is a directory")


@pytest.fixture
def mounted(tmp_path):
    """Mount a small file system; skipped where that is not allowed."""
    locations = []

    def mount(*options):
        location = tmp_path / f"disk{len(locations)}"
        location.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", location], capture_output=True)
        if done.returncode:
            pytest.skip("a file system of its own needs the right to mount one")
        locations.append(location)
        return location

    yield mount
    for location in locations:
        subprocess.run(["umount", location], check=False)


def test_a_read_only_place_is_one_clear_error(data, mounted, tmp_path):
    location = mounted("ro", "size=200k")
    refused(
        run("train", command(data, location / "run"), tmp_path / "log"), f"--output_dir {location}/run", "read-only"
    )


@pytest.mark.parametrize(
    "bottleneck, kilobytes", [(4, 4), (4, 40), (4, 100), (4, 200), (-1, 40), (-1, 800), (-1, 2000)]
)
def test_a_full_disk_is_one_clear_error_and_leaves_no_part_of_a_file(bottleneck, kilobytes, data, mounted, tmp_path):
    location = mounted(f"size={kilobytes}k")
    result = run("train", command(data, location / "run", "--save_steps", "1", bottleneck=bottleneck), tmp_path / "log")
    refused(result, location, "the disk is full", "free some space")
    assert not list(location.rglob("*.part"))
    for state in location.rglob("training_state.pt"):
        import torch

        torch.load(state, weights_only=True)


def test_a_full_disk_under_the_cache_is_one_clear_error(data, mounted, tmp_path):
    location = mounted("size=4k")
    argv = command(data, tmp_path / "run", "--token_cache_dir", location)
    refused(run("train", argv, tmp_path / "log"), location, "the disk is full")
    assert not (tmp_path / "run").exists() and not list(location.iterdir())


def test_a_disk_that_fills_up_while_saving_says_so(data, tmp_path, monkeypatch, capsys):
    """The same without a mount: the library's own writers meet ENOSPC."""
    import torch

    import train

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SystemExit) as stop:
        train.main(list(map(str, command(data, tmp_path / "run"))))
    assert stop.value.code == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.part"))


# --- every task --------------------------------------------------------------------------------------------


def test_every_registered_task_trains_and_evaluates(tmp_path):
    from versatile.data.task import all_tasks

    for name in all_tasks():
        data, out = scripts.SAMPLES / f"{name}.json", tmp_path / name
        assert data.is_file(), f"a task needs sample data: {data}"
        argv = command(data, out, "--limit", "8", "--max_steps", "2", task=name)
        assert trained(argv, tmp_path / "log") == out
        argv = ["--task", name, "--dataset_path", data, "--model_checkpoint", out, "--no_sample", "--limit", "3",
                "--max_length", "8", "--output_dir", tmp_path / "results" / name]  # fmt: skip
        result = run("evaluate", argv, tmp_path / "log", env=scripts.without_java())
        assert result.code == 0, result.err
        assert len((tmp_path / "results" / name / f"{name}_outputs.jsonl").read_text().splitlines()) == 3
        assert all_tasks()[name].headline in metrics(tmp_path / "results" / name)["scores"]


NAMES = ["new\nline", "q'uo\"te", "-dash", "--task", os.fsdecode(b"\xff\xe9"), "\x1b[31m", "a%s{b}$HOME`x`", "\u2028"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_data_files_of_any_name_are_converted_trained_on_and_taken_up_again(name, tmp_path, monkeypatch, capsys):
    from versatile.data.convert import convert

    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path(f"{name}.csv").write_text("mr,ref\n" + "".join(f'"name[A{i}]",It is A{i}.\n' for i in range(8)))
    convert(["e2e", f"--train={name}.csv", "--valid_from_train=2", f"--output={name}.json"])
    argv = [f"--dataset_path={name}.json", "--task=nlg", "--model_checkpoint=tiny-gpt2", "--adapter_bottleneck=4"]
    train.main([*argv, "--max_steps=1", f"--output_dir={tmp_path / 'out'}"])
    stored = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert stored["flags"]["dataset_path"] == str(folder / f"{name}.json")
    train.main(["--resume", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert "already finished" in said.out and "\x1b" not in said.out + said.err
    with pytest.raises(SystemExit, match="2"):
        train.main([f"--dataset_path={name}.no", *argv[1:], f"--output_dir={tmp_path / 'other'}"])
    said = capsys.readouterr().err
    assert "no such file" in said and "Traceback" not in said and "\x1b" not in said and said.encode()
    assert not (tmp_path / "other").exists()


def test_a_run_directory_that_is_not_utf8_is_refused_at_the_door(data, tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"\xff\xe9")
    with pytest.raises(SystemExit, match="2"):
        train.main(list(map(str, command(data, out))))
    said = capsys.readouterr().err
    assert "the name is not UTF-8 text" in said and "--output_dir" in said and said.encode()
    assert not out.exists()
