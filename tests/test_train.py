"""train.py run as a user runs it: what is equal, the effect of the flags, and the files of a run."""

import json
import subprocess
import sys

import pytest
import quick
import scripts
from scripts import ROOT, losses, metrics, run, small, tensors, write_task
from training_runs import (
    NLG,
    different,
    refused,
    short_run,
    trained,
)  # fmt: skip

import train


def equal_losses(one, other, tolerance=1e-5):
    for rows_one, rows_other in zip(losses(one), losses(other)):
        assert len(rows_one) == len(rows_other) > 0
        for a, b in zip(rows_one, rows_other):
            assert a == pytest.approx(b, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("model, bottleneck", quick.only(
    [("tiny-llama", 4)], [("tiny-gpt2", 4), ("tiny-llama", 4), ("tiny-gpt2", -1)]))
def test_gradient_checkpointing_changes_no_loss(model, bottleneck, nlg_data, tmp_path):
    options = dict(model=model, bottleneck=bottleneck)
    plain = trained(short_run(nlg_data, tmp_path / "plain", **options), tmp_path / "log")
    saving = trained(short_run(nlg_data, tmp_path / "saving", "--gradient_checkpointing", **options), tmp_path / "log")
    equal_losses(plain, saving)


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", [4, -1])
def test_compiling_changes_no_loss(bottleneck, nlg_data, tmp_path):
    options = dict(model="tiny-llama", bottleneck=bottleneck)
    plain = trained(short_run(nlg_data, tmp_path / "plain", **options), tmp_path / "log")
    compiled = run(
        "train", short_run(nlg_data, tmp_path / "compiled", "--compile", **options), tmp_path / "log", timeout=500
    )
    assert compiled.code == 0, compiled.err
    equal_losses(plain, tmp_path / "compiled")


def test_accumulated_batches_of_equal_length_equal_the_larger_batch(tmp_path):
    data = write_task(tmp_path / "data.json", train=[NLG] * 16, valid=[NLG] * 2)
    options = dict(model="tiny-llama", epochs=3)
    large = trained(short_run(data, tmp_path / "large", batch=8, **options), tmp_path / "log")
    small_ones = trained(short_run(data, tmp_path / "small", batch=2, accumulation=4, **options), tmp_path / "log")
    assert metrics(large)["steps"] == metrics(small_ones)["steps"] == 6
    equal_losses(large, small_ones)


def test_max_steps_stops_in_the_middle_of_an_epoch_and_still_saves_a_model(nlg_data, tmp_path):
    out = trained(short_run(nlg_data, tmp_path / "run", "--max_steps", "4"), tmp_path)
    assert metrics(out)["steps"] == metrics(out)["total_steps"] == 4
    assert [row["step"] for row in metrics(out)["history"]["valid"]] == [4]
    assert (out / "checkpoints" / "step_00000004").is_dir() and (out / "adapter_model.safetensors").is_file()


def test_limit_uses_the_first_examples_of_each_split(nlg_data, tmp_path):
    few = small(tmp_path / "few.json", train=8, valid=4, test=2)
    limited = short_run(nlg_data, tmp_path / "limited", "--limit", "8")
    result = run("train", limited, tmp_path / "log")
    assert "24 examples, the first 8 used" in result.out
    whole = trained(short_run(few, tmp_path / "few", "--limit", "8"), tmp_path / "log")
    assert metrics(whole)["steps"] == metrics(tmp_path / "limited")["steps"] == 4
    assert losses(whole)[0] == losses(tmp_path / "limited")[0]


def test_max_tokens_sizes_batches_by_tokens(nlg_data, tmp_path):
    out = trained(short_run(nlg_data, tmp_path / "run", "--max_tokens", "128", epochs=1), tmp_path)
    # 24 examples of 30 to 60 tokens: more batches than the 6 of four examples each, and fewer than 24.
    assert 6 < metrics(out)["steps"] <= 24


def test_eval_before_start_validates_the_untrained_model(nlg_data, tmp_path):
    out = trained(short_run(nlg_data, tmp_path / "run", "--eval_before_start", epochs=1), tmp_path)
    assert [row["step"] for row in metrics(out)["history"]["valid"]] == [0, 6]


def test_without_validation_the_last_model_is_kept(tmp_path):
    data = small(tmp_path / "data.json", train=8)
    out = trained(short_run(data, tmp_path / "run", "--no_validation"), tmp_path)
    assert metrics(out)["valid_nll"] is None and metrics(out)["history"]["valid"] == []
    assert tensors(out) == tensors(out / "checkpoints" / "step_00000004")


def test_the_run_directory_holds_the_best_model_not_the_last(nlg_data, tmp_path):
    more = ["--lr", "0.5", "--max_norm", "1e9", "--early_stopping", "1", "--keep_checkpoints", "9"]
    argv = short_run(nlg_data, tmp_path / "run", *more, epochs=9)
    out = trained(argv, tmp_path)
    best = metrics(out)["best_step"]
    assert best < metrics(out)["steps"]
    assert tensors(out) == tensors(out / "checkpoints" / f"step_{best:08d}")
    assert metrics(out)["valid_nll"] == min(row["nll"] for row in metrics(out)["history"]["valid"])


@pytest.mark.parametrize("more", [[], ["--random_init", "--adapter_bottleneck", "-1"]])
def test_a_seed_repeats_a_run_and_another_changes_it(more, nlg_data, tmp_path):
    one, again, other = (
        trained(short_run(nlg_data, tmp_path / name, "--seed", seed, "--max_steps", "2", *more), tmp_path / "log")
        for name, seed in (("one", "5"), ("again", "5"), ("other", "6"))
    )
    assert tensors(one) == tensors(again)
    assert tensors(one) != tensors(other)


@pytest.mark.parametrize("flag, bottleneck", quick.only([("--emb_only", -1), ("--self_copy", 4)], [
    ("--emb_only", -1), ("--outputlayer_only", -1), ("--random_init", -1), ("--random_init", 4), ("--self_copy", -1),
    ("--self_copy", 4),
]))  # fmt: skip
def test_an_ablation_is_trained_evaluated_and_told_from_others(flag, bottleneck, nlg_data, tmp_path):
    out = trained(
        short_run(nlg_data, tmp_path / "run", flag, "--max_steps", "3", bottleneck=bottleneck), tmp_path / "log"
    )
    name = flag.removeprefix("--")
    argv = ["--task", "nlg", "--dataset_path", nlg_data, "--split", "valid", "--model_checkpoint", out, "--no_sample",
            "--fp32", "--max_length", "4"]  # fmt: skip
    found = []
    for number, more in enumerate([[], [flag]]):
        results = tmp_path / f"results{number}"
        result = run("evaluate", [*argv, *more, "--output_dir", results], tmp_path / "log", env=scripts.without_java())
        assert result.code == 0, result.err
        found.append(metrics(results)["nll"])
    # Evaluation sees what validation saw in training, with or without the flag.
    assert found[0] == found[1] == pytest.approx(metrics(out)["valid_nll"], rel=1e-5)
    others = {"--emb_only", "--outputlayer_only", "--random_init", "--self_copy"} - {flag}
    for other in sorted(others):
        refused(run("evaluate", [*argv, other], tmp_path / "log"), other, "trained without it")
    held = tensors(out)
    if name == "emb_only":
        assert set(held) == {"rows.nlg"}
    if name == "outputlayer_only":
        argv = short_run(nlg_data, tmp_path / "earlier", flag, "--max_steps", "1", bottleneck=-1)
        earlier = trained(argv, tmp_path / "log")
        assert different(held, tensors(earlier)) == ["transformer.wte.weight"]
    if name == "self_copy":
        assert {"p_gen_linear.weight", "p_gen_linear.bias"} <= set(held)


def test_random_init_keeps_nothing_of_the_pretrained_weights(nlg_data, tmp_path, cache):
    from safetensors.torch import load_file

    argv = short_run(nlg_data, tmp_path / "run", "--random_init", "--max_steps", "1", "--lr", "1e-9", bottleneck=-1)
    fresh = load_file(trained(argv, tmp_path / "log") / "model.safetensors")
    held = load_file(cache / "models" / "tiny-gpt2" / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    assert fresh[name].shape == held[name].shape
    assert abs(fresh[name] - held[name]).mean() > 0.01


def test_an_adapter_beside_random_weights_is_evaluated_beside_the_same_ones(nlg_data, tmp_path):
    out = trained(
        short_run(nlg_data, tmp_path / "run", "--random_init", "--max_steps", "2", "--seed", "5"), tmp_path / "log"
    )
    argv = ["--task", "nlg", "--dataset_path", nlg_data, "--split", "valid", "--model_checkpoint", out, "--no_sample",
            "--fp32", "--max_length", "4", "--output_dir", tmp_path / "results"]  # fmt: skip
    result = run("evaluate", argv, tmp_path / "log", env=scripts.without_java())
    assert result.code == 0, result.err
    assert scripts.metrics(tmp_path / "results")["nll"] == pytest.approx(scripts.metrics(out)["valid_nll"], rel=1e-5)


def test_distillation_learns_the_teachers_targets_and_refuses_a_file_without(tmp_path, nlg_data):
    result = run("train", short_run(nlg_data, tmp_path / "run", "--distillation"), tmp_path)
    refused(result, f"{nlg_data}:train[0]", "distillated_tgt", out=tmp_path / "run")
    record = dict(NLG, distillated_tgt="words of the teacher")
    file = write_task(tmp_path / "data.json", train=[record] * 4, valid=[record])
    gold = trained(short_run(file, tmp_path / "gold"), tmp_path)
    taught = trained(short_run(file, tmp_path / "taught", "--distillation"), tmp_path)
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

    for module in (train, evaluate):
        assert [a.dest for a in module.parser()._actions if not a.help] == []


def test_flags_not_given_take_the_published_settings(nlg_data, tmp_path):
    argv = ["--task", "nlg", "--dataset_path", nlg_data, "--model_checkpoint", "tiny-gpt2", "--max_steps", "1"]
    for bottleneck, lr, epochs in ((10, 5e-3, 10), (-1, 5e-5, 10)):
        out = tmp_path / str(bottleneck)
        trained([*argv, "--adapter_bottleneck", bottleneck, "--output_dir", out], tmp_path / "log")
        flags = json.loads((out / "run.json").read_text())["flags"]
        held = [flags[name] for name in ("lr", "n_epochs", "train_batch_size", "gradient_accumulation_steps")]
        assert held == [lr, epochs, 8, 4]


def test_the_precision_that_was_chosen_is_written_down_for_resuming(nlg_data, tmp_path):
    argv = [a for a in short_run(nlg_data, tmp_path / "run", "--max_steps", "1") if a != "--fp32"]
    flags = json.loads((trained(argv, tmp_path / "log") / "run.json").read_text())["flags"]
    assert [flags["bf16"], flags["fp16"], flags["fp32"]].count(True) == 1
    (chosen,) = [name for name in ("bf16", "fp32") if flags[name]]
    assert metrics(tmp_path / "run")["precision"] == dict(bf16="bfloat16", fp32="float32")[chosen]


def test_without_output_dir_the_run_lies_under_runs(nlg_data, tmp_path):
    argv = short_run(nlg_data, tmp_path, "--max_steps", "1")
    argv = argv[: argv.index("--output_dir")] + argv[argv.index("--output_dir") + 2 :]
    result = run("train", argv, tmp_path / "log", cwd=tmp_path, pictures=True)
    assert result.code == 0, result.err
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.endswith("tiny-gpt2_nlg_adapter4")
    assert f"python train.py --resume {out.relative_to(tmp_path)}" in result.out or str(out.name) in result.out
    picture = (out / "learning_curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 1000


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


def test_tensorboard_holds_losses_rate_and_speed(nlg_data, tmp_path):
    out = trained(short_run(nlg_data, tmp_path / "run"), tmp_path)
    logged = scalars(out)
    assert {"train/loss", "train/ppl", "train/lr", "train/tokens_per_second", "valid/nll", "valid/ppl"} <= set(logged)
    train, valid = losses(out)
    assert logged["train/loss"] == {row["step"]: pytest.approx(row["loss"]) for row in train}
    assert logged["valid/ppl"] == {row["step"]: pytest.approx(row["ppl"]) for row in valid}
    assert list(logged["train/loss"]) == [10, 12]


def test_the_log_says_what_is_trained_and_what_comes_next(nlg_data, tmp_path):
    result = run("train", short_run(nlg_data, tmp_path / "run"), tmp_path)
    assert "frozen" in result.out and "valid NLL" in result.out
    assert f"python evaluate.py --task nlg --no_sample --model_checkpoint {tmp_path / 'run'}" in result.out
    assert result.err == ""
    assert "\x1b" not in result.out and "\r" not in result.out


def test_in_a_terminal_a_bar_is_drawn_and_every_line_stays_whole(nlg_data, tmp_path):
    result = run("train", short_run(nlg_data, tmp_path / "run"), tmp_path / "log", terminal=True)
    assert result.code == 0
    assert "Epoch [1/2]" in result.err and "loss=" in result.err
    lines = [line.split("\r")[-1].strip() for line in result.err.splitlines()]
    assert any(line.startswith("step 6: valid NLL") for line in lines)
    assert any(line.startswith("next: python evaluate.py") for line in lines)


def test_every_registered_task_trains_and_evaluates(tmp_path):
    from versatile.data.task import all_tasks

    for name in all_tasks():
        data, out = scripts.SAMPLES / f"{name}.json", tmp_path / name
        assert data.is_file(), f"a task needs sample data: {data}"
        argv = short_run(data, out, "--limit", "8", "--max_steps", "2", task=name)
        assert trained(argv, tmp_path / "log") == out
        argv = ["--task", name, "--dataset_path", data, "--model_checkpoint", out, "--no_sample", "--limit", "3",
                "--max_length", "8", "--output_dir", tmp_path / "results" / name]  # fmt: skip
        result = run("evaluate", argv, tmp_path / "log", env=scripts.without_java())
        assert result.code == 0, result.err
        assert len((tmp_path / "results" / name / f"{name}_outputs.jsonl").read_text().splitlines()) == 3
        assert all_tasks()[name].headline in metrics(tmp_path / "results" / name)["scores"]
