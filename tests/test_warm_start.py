"""--init_from: a new run starts where a trained one ended; the old one stays as it was; clear errors.

    python -m pytest tests/test_warm_start.py
"""

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lifelong_data
import pytest
import quick
import torch
from scripts import contents, metrics, small
from training_runs import refused_here
from versatile.adapters import checkpoint
from versatile.training import runs

import train
import train_lifelong
import train_vlm

SAVED = Path(__file__).parent / "saved"
SHORT = ["--fp32", "--train_batch_size", "4", "--gradient_accumulation_steps", "1", "--n_epochs", "1"]
METHODS = {
    "bottleneck": ["--adapter_bottleneck", "4"], "lora": ["--method", "lora"], "full": [],
    "adapters": ["--method", "adapters", "--model_checkpoint", "tiny-t5"],
    "hyperformer-per-layer": ["--method", "hyperformer-per-layer"],
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {task: str(small(folder / f"{task}.json", task, train=8, valid=2, test=2)) for task in ("nlg", "mt")}


def run_train(files, out, *more, task="nlg", model="tiny-gpt2"):
    train.main(["--task", task, "--dataset_path", files[task], "--model_checkpoint", model, "--output_dir", str(out),
                "--eval_before_start", *SHORT, *map(str, more)])  # fmt: skip
    return out


@pytest.fixture(scope="module", params=quick.every(3, METHODS))
def trained(request, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / request.param
    return run_train(files, out, *METHODS[request.param], "--lr", "1e-2"), METHODS[request.param]


@pytest.fixture(scope="module")
def lora(files, tmp_path_factory):
    return run_train(files, tmp_path_factory.mktemp("lora") / "run", "--method", "lora", "--lr", "1e-2")


def tensors(folder):
    return checkpoint.read_safetensors(folder / "adapter_model.safetensors")


def first_loss(run):
    return metrics(run)["history"]["valid"][0]["nll"]


def test_a_run_starts_where_the_other_ended_and_leaves_it_untouched(trained, files, tmp_path):
    old, method = trained
    before = contents(old)
    new = run_train(files, tmp_path / "new", *method, "--init_from", old, "--lr", "1e-4", "--seed", "7")
    assert first_loss(new) == pytest.approx(metrics(old)["valid_nll"], abs=1e-5)
    assert first_loss(new) != pytest.approx(first_loss(old), abs=1e-3)
    assert contents(old) == before
    flags = json.loads((new / "run.json").read_text())["flags"]
    assert flags["init_from"] == str(old) and flags["init_fingerprint"]


def test_tasks_start_from_those_of_their_name_and_the_others_fresh(lora, files, tmp_path, capsys):
    argv = ["--tasks", "mt", "nlg", "--data", *(f"{task}={path}" for task, path in files.items()), "--method", "lora",
            "--model_checkpoint", "tiny-gpt2", "--eval_before_start", "--lr", "1e-4", *SHORT]  # fmt: skip
    train_vlm.main([*argv, "--output_dir", str(tmp_path / "vlm"), "--init_from", str(lora)])
    assert "mt fresh" in capsys.readouterr().out
    tasks = metrics(tmp_path / "vlm")["history"]["valid"][0]["tasks"]
    assert tasks["nlg"]["nll"] == pytest.approx(metrics(lora)["valid_nll"], abs=1e-5)
    # From the model of both, with one of them left out.
    more = ["--method", "lora", "--lr", "1e-9", "--init_from", tmp_path / "vlm"]
    ours, theirs = tensors(run_train(files, tmp_path / "mt", *more, task="mt")), tensors(tmp_path / "vlm")
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=0)


def test_one_task_may_start_from_another(lora, files, tmp_path, capsys):
    new = run_train(files, tmp_path / "mt", "--method", "lora", "--init_from", lora, "--lr", "1e-9", task="mt")
    assert "mt from nlg" in capsys.readouterr().out
    ours, theirs = tensors(new), tensors(lora)
    adapters = [key for key in ours if key.startswith("blocks.")]
    assert adapters and all((ours[k] - theirs[k.replace(".mt.", ".nlg.")]).abs().max() < 1e-6 for k in adapters)


def test_a_sequence_starts_from_a_task_of_another(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    lifelong_data.write(data)
    for name in ("old", "new"):
        more = ["--init_from", str(tmp_path / "old" / "sst")] if name == "new" else []
        argv = lifelong_data.command(data, tmp_path / name, "finetune", "--method", "lora", *more)
        train_lifelong.main(argv)
        # The same command resumes it.
        train_lifelong.main(argv)
    found = json.loads((tmp_path / "new" / "run.json").read_text())["flags"]
    assert found["init_fingerprint"] and found["init_from"] == str(tmp_path / "old" / "sst")
    # LoRA starts from a matrix of zeros: what was trained before stands in its place.
    assert not torch.equal(tensors(tmp_path / "new" / "ag")["blocks.0.lifelong.qkv.A"],
                           tensors(tmp_path / "old" / "ag")["blocks.0.lifelong.qkv.A"])  # fmt: skip


def test_a_directory_of_an_older_version_is_a_start(files, tmp_path):
    config = json.loads((SAVED / "adapter_gpt2_mt" / "adapter_config.json").read_text())
    width = config["bottlenecks"]["mt"]
    new = run_train(files, tmp_path / "new", "--adapter_bottleneck", width, "--init_from", SAVED / "adapter_gpt2_mt",
                    "--lr", "1e-9", task="mt", model=config["base_model_name_or_path"])  # fmt: skip
    ours, theirs = tensors(new), tensors(SAVED / "adapter_gpt2_mt")
    assert all((ours[key] - theirs[key]).abs().max() < 1e-6 for key in theirs)


def test_what_does_not_fit_is_one_message(lora, files, tmp_path, capsys):
    out = tmp_path / "out"
    for more, options, *words in (
        (["--method", "lora"], dict(model="tiny-llama"), "trained on tiny-gpt2", "the backbone of this run"),
        (["--method", "lora", "--lora_rank", "3"], {}, "lora_rank 8", "lora_rank 3"),
        (["--adapter_bottleneck", "4"], {}, "was trained with lora", "bottleneck"),
        ([], {}, "it holds adapters on a frozen backbone"),
    ):
        start = functools.partial(run_train, files, out, *more, "--init_from", lora, **options)
        refused_here(capsys, start, *words, out=out)
    start = [files, out, "--method", "lora", "--init_from"]
    refused_here(capsys, lambda: run_train(*start, tmp_path / "none"), "no such directory", out=out)
    bare = Path(os.environ["VERSATILE_CACHE"]) / "models" / "tiny-gpt2"
    refused_here(capsys, lambda: run_train(*start, bare), "this is a bare backbone", out=out)
    whole = run_train(files, tmp_path / "whole", "--lr", "1e-3", "--max_steps", 1)
    refused_here(capsys, lambda: run_train(*start, whole), "it holds a whole model", out=out)


def test_a_run_that_is_still_training_is_no_start(lora, files, tmp_path, capsys):
    out, copy = tmp_path / "out", tmp_path / "copy"
    shutil.copytree(lora, copy)
    start = [files, out, "--method", "lora", "--lr", "1e-4", "--init_from"]
    code = f"import fcntl, os, time; fcntl.flock(os.open({str(copy)!r}, os.O_RDONLY), fcntl.LOCK_EX)"
    code += "; print(1, flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        words = f"still training: another process (pid {holder.pid})"
        refused_here(capsys, lambda: run_train(*start, copy), words, out=out)
    finally:
        holder.kill()
        holder.wait()
    (copy / "metrics.json").unlink()
    last = sorted((copy / "checkpoints").iterdir())[-1]
    refused_here(capsys, lambda: run_train(*start, copy), "this run has not finished", str(last), out=out)
    assert checkpoint.load_checkpoint(run_train(*start, last))


def test_looking_leaves_no_lock_behind(lora, tmp_path):
    # This process holds the lock of the run that it trained, not of its copy.
    shutil.copytree(lora, tmp_path / "copy")
    runs.refuse_unfinished(tmp_path / "copy", "--init_from")
    handle = os.open(tmp_path / "copy", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)


def test_a_resumed_run_notices_that_its_start_has_changed(lora, files, tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(lora, old)
    run_train(files, new, "--method", "lora", "--lr", "1e-4", "--init_from", old)
    train.main(["--resume", str(new)])
    assert "already finished" in capsys.readouterr().out
    config = json.loads((old / "adapter_config.json").read_text())
    (old / "adapter_config.json").write_text(json.dumps(config | dict(more=1)))
    refused_here(capsys, lambda: train.main(["--resume", str(new)]), "it has changed since this run was started")
    fresh = run_train(files, tmp_path / "fresh", "--method", "lora", "--lr", "1e-4")
    again = ["--resume", str(fresh), "--init_from", str(lora)]
    refused_here(capsys, lambda: train.main(again), "this run was started fresh")
