"""train.py and bad input: one message, exit code 2, nothing half-written; disks that are full or read-only."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import quick
from scripts import run
from training_runs import (
    NLG,
    refused,
    short_run,
)  # fmt: skip

import train


@pytest.mark.parametrize("more, location", [
    (["--emb_only"], "--emb_only"), (["--outputlayer_only"], "--outputlayer_only"),
    (["--kd", "word"], "--kd word"), (["--kd", "sentence", "--teacher", "x"], "--kd sentence"),
    (["--teacher", "x", "--self_copy"], "--self_copy"), (["--perturbation_layers", "2"], "--perturbation_layers"),
    (["--personality_permutations"], "--personality_permutations"),
])  # fmt: skip
def test_flags_that_contradict_each_other_are_refused(more, location, nlg_data, tmp_path):
    result = run("train", short_run(nlg_data, tmp_path / "run", *more), tmp_path / "log")
    refused(result, location)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [["--lr", "1e30", "--max_norm", "1e30"], ["--lr", "1e30", "--save_steps", "1"]])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_earlier_checkpoints(more, nlg_data, tmp_path):
    out = tmp_path / "run"
    result = run("train", short_run(nlg_data, out, "--eval_before_start", *more, bottleneck=-1), tmp_path)
    assert result.code == 2 and "Traceback" not in result.err
    assert result.err.count("error: ") == 1
    assert str(out) in result.err and "--lr" in result.err and "1e+30" in result.err
    # The best model so far is the one validated before the first step.
    assert (out / "model.safetensors").is_file()
    assert not list(out.rglob("*.part"))


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
    result = run("train", short_run(file, tmp_path / "run", "--token_cache_dir", tokens), tmp_path / "log")
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
def test_a_bad_flag_is_one_clear_error(name, nlg_data, tmp_path):
    more, fragments = BAD_FLAGS[name]
    refused(run("train", short_run(nlg_data, tmp_path / "run", *more), tmp_path / "log"), *fragments)
    assert not (tmp_path / "run").exists()


def test_compiling_without_a_compiler_is_one_clear_error(nlg_data, tmp_path):
    result = run(
        "train", short_run(nlg_data, tmp_path / "run", "--compile"), tmp_path / "log", env=dict(PATH=str(tmp_path))
    )
    refused(result, "--compile", "C++ compiler")
    assert not (tmp_path / "run").exists()


def test_half_precision_on_a_cpu_is_refused(nlg_data, tmp_path):
    argv = [a if a != "--fp32" else "--fp16" for a in short_run(nlg_data, tmp_path / "run")]
    refused(run("train", argv, tmp_path / "log"), "--fp16", "GPU", out=tmp_path / "run")


def test_a_task_or_a_run_must_be_named(tmp_path):
    refused(run("train", [], tmp_path), "--task", "--resume")


def test_a_trained_model_is_no_backbone(finished_run, nlg_data, tmp_path):
    argv = short_run(nlg_data, tmp_path / "run", model=finished_run)
    refused(run("train", argv, tmp_path), f"--model_checkpoint {finished_run}", "--resume", out=tmp_path / "run")


def backbone(folder, cache, **changes):
    """A copy of tiny-gpt2 with changes in its config.json."""
    shutil.copytree(cache / "models" / "tiny-gpt2", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_backbone_that_cannot_be_used_is_one_clear_error(finished_run, nlg_data, cache, tmp_path):
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
        result = run("train", short_run(nlg_data, tmp_path / "run", model=folder), tmp_path / "log")
        refused(result, folder, *fragments)
        assert not (tmp_path / "run").exists(), name
    file = tmp_path / "file"
    file.write_text("x")
    refused(run("train", short_run(nlg_data, tmp_path / "run", model=file), tmp_path / "log"), file, "this is a file")


def test_a_place_that_cannot_be_written_is_one_clear_error(nlg_data, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for out in (file, file / "run", "/proc/run"):
        # Before anything is loaded: the model is not even looked for.
        argv = short_run(nlg_data, out, model=tmp_path / "nothing")
        refused(run("train", argv, tmp_path / "log"), f"--output_dir {out}", "cannot write")
    for cache in (file, "/proc/x"):
        argv = short_run(nlg_data, tmp_path / "run", "--token_cache_dir", cache)
        refused(run("train", argv, tmp_path / "log"), f"--token_cache_dir {cache}", "cannot write", "another directory")
    result = run("train", short_run(nlg_data, tmp_path / "run"), tmp_path / "log", env={"VERSATILE_CACHE": "/proc/x"})
    refused(result, "/proc/x/models: cannot write", "VERSATILE_CACHE")
    assert not (tmp_path / "run").exists()
    refused(run("train", short_run(tmp_path, tmp_path / "run"), tmp_path / "log"), tmp_path, "is a directory")


@pytest.fixture
def mounted(tmp_path):
    """Mount a small file system; skipped if that is not allowed."""
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


def test_a_read_only_place_is_one_clear_error(nlg_data, mounted, tmp_path):
    location = mounted("ro", "size=200k")
    refused(
        run("train", short_run(nlg_data, location / "run"), tmp_path / "log"),
        f"--output_dir {location}/run",
        "read-only",
    )


@pytest.mark.parametrize(
    "bottleneck, kilobytes", [(4, 4), (4, 40), (4, 100), (4, 200), (-1, 40), (-1, 800), (-1, 2000)]
)
def test_a_full_disk_is_one_clear_error_and_leaves_no_part_of_a_file(
    bottleneck, kilobytes, nlg_data, mounted, tmp_path
):
    location = mounted(f"size={kilobytes}k")
    result = run(
        "train", short_run(nlg_data, location / "run", "--save_steps", "1", bottleneck=bottleneck), tmp_path / "log"
    )
    refused(result, location, "the disk is full", "free some space")
    assert not list(location.rglob("*.part"))
    for state in location.rglob("training_state.pt"):
        import torch

        torch.load(state, weights_only=True)


def test_a_full_disk_under_the_cache_is_one_clear_error(nlg_data, mounted, tmp_path):
    location = mounted("size=4k")
    argv = short_run(nlg_data, tmp_path / "run", "--token_cache_dir", location)
    refused(run("train", argv, tmp_path / "log"), location, "the disk is full")
    assert not (tmp_path / "run").exists() and not list(location.iterdir())


def test_a_disk_that_fills_up_while_saving_says_so(nlg_data, tmp_path, monkeypatch, capsys):
    """The same without a mount: the library's own writers meet ENOSPC."""
    import torch

    import train

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SystemExit) as stop:
        train.main(list(map(str, short_run(nlg_data, tmp_path / "run"))))
    assert stop.value.code == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.part"))


NAMES = ["new\nline", "q'uo\"te", "-dash", "--task", os.fsdecode(b"\xff\xe9"), "\x1b[31m", "a%s{b}$HOME`x`", "\u2028"]


@pytest.mark.parametrize("name", quick.every(3, NAMES), ids=ascii)
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


def test_a_run_directory_that_is_not_utf8_is_refused_at_the_door(nlg_data, tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"\xff\xe9")
    with pytest.raises(SystemExit, match="2"):
        train.main(list(map(str, short_run(nlg_data, out))))
    said = capsys.readouterr().err
    assert "the name is not UTF-8 text" in said and "--output_dir" in said and said.encode()
    assert not out.exists()
