"""--fsdp: two processes that each hold half of the model train like one; checkpoints, resuming, errors.

    python -m pytest tests/test_sharding.py
"""

import re

import pytest
import quick
import torch
from scripts import run, small
from training_runs import close_runs, in_two_processes, refused, same_run, short_run

METHODS = {
    "bottleneck": ("tiny-llama", 4, []),
    # A matrix of one row: one process holds nothing of it.
    "lora": ("tiny-llama", -1, ["--method", "lora", "--lora_rank", "1"]),
    "full": ("tiny-llama", -1, []),
    "recomputed": ("tiny-llama", 4, ["--gradient_checkpointing", "--gradient_accumulation_steps", "2"]),
}
# Dropout differs from process to process in these.
WITH_DROPOUT = {
    "gpt2": ("tiny-gpt2", 4, []),
    "gpt2-full": ("tiny-gpt2", -1, []),
    "t5": ("tiny-t5", 4, []),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    # 23 rows in batches of 8: in the last one a process has fewer.
    return small(tmp_path_factory.mktemp("data") / "nlg.json", train=23, valid=5, test=4)


def flags_of(kind, data, out, processes, *more):
    model, bottleneck, method = (METHODS | WITH_DROPOUT)[kind]
    return [*short_run(data, out, model=model, bottleneck=bottleneck, batch=8 // processes), *method, *more]


@pytest.mark.parametrize("kind", quick.only(["lora"], METHODS))
def test_two_processes_that_hold_half_each_equal_one(kind, data, tmp_path):
    assert run("train", flags_of(kind, data, tmp_path / "one", 1), tmp_path / "log1").code == 0
    results = in_two_processes(flags_of(kind, data, tmp_path / "two", 2, "--fsdp"), tmp_path / "log")
    close_runs(tmp_path / "one", tmp_path / "two")
    found = re.search(r"they hold ([\d,]+), ([\d,]+) of the backbone's ([\d,]+)", results[0].out)
    first, second, total = (int(number.replace(",", "")) for number in found.groups())
    assert first + second == total and abs(first - second) < 0.02 * total


@pytest.mark.slow
@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_two_processes_that_hold_half_each_equal_two_that_hold_all(kind, data, tmp_path):
    in_two_processes(flags_of(kind, data, tmp_path / "whole", 2), tmp_path / "log")
    in_two_processes(flags_of(kind, data, tmp_path / "half", 2, "--fsdp"), tmp_path / "log")
    close_runs(tmp_path / "whole", tmp_path / "half")


@pytest.mark.slow
def test_tasks_that_only_one_process_has_rows_of_are_trained_alike(tmp_path):
    files = {task: small(tmp_path / f"{task}.json", task, train=n, valid=2, test=2) for task, n in
             (("nlg", 11), ("mt", 2))}  # fmt: skip

    def argv(out, processes, *more):
        return ["--tasks", *files, "--data", *(f"{task}={path}" for task, path in files.items()), "--model_checkpoint",
                "tiny-llama", "--method", "nlg=lora", "mt=bottleneck", "--adapter_bottleneck", "mt=4", "--fp32", "--lr",
                "5e-3", "--n_epochs", "2", "--train_batch_size", 4 // processes, "--gradient_accumulation_steps", "2",
                "--output_dir", out, *more]  # fmt: skip

    assert run("train_vlm", argv(tmp_path / "one", 1), tmp_path / "log1").code == 0
    in_two_processes(argv(tmp_path / "two", 2, "--fsdp"), tmp_path / "log", "train_vlm")
    close_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("lora", "full"))
def test_a_resumed_run_equals_one_that_was_not_stopped(kind, data, tmp_path):
    in_two_processes(flags_of(kind, data, tmp_path / "whole", 2, "--fsdp"), tmp_path / "log")
    out = tmp_path / "parts"
    in_two_processes(flags_of(kind, data, out, 2, "--fsdp", "--keep_checkpoints", "9"), tmp_path / "log")
    steps = sorted((out / "checkpoints").iterdir())
    assert len(steps) > 1
    # The optimizer's state is whole, as in every other run.
    state = torch.load(steps[-1] / "training_state.pt", weights_only=True)["optimizer"]["state"]
    assert all(type(value) is torch.Tensor for own in state.values() for value in own.values())
    for step in steps[1:]:
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    in_two_processes(["--resume", out], tmp_path / "log")
    same_run(tmp_path / "whole", out)


@pytest.mark.slow
def test_in_half_precision_the_loss_falls(data, tmp_path):
    argv = [word for word in flags_of("bottleneck", data, tmp_path / "run", 2, "--fsdp", "--bf16") if word != "--fp32"]
    results = in_two_processes(argv, tmp_path / "log")
    found = [float(x) for x in re.findall(r"valid NLL ([\d.]+)", results[0].out)]
    assert found[-1] < found[0] + 0.5 and len(found) == 2


@pytest.mark.parametrize("more, words", [
    ([], "--fsdp: there is one process"),
    (["--compile"], "--fsdp: cannot be combined with --compile"),
    (["--load_in_4bit"], "--fsdp: cannot be combined with --load_in_4bit"),
])  # fmt: skip
def test_what_cannot_be_sharded_is_one_message(more, words, data, tmp_path):
    result = run("train", flags_of("lora", data, tmp_path / "run", 1, "--fsdp", *more), tmp_path / "log")
    refused(result, words, out=tmp_path / "run")
