"""Each training script, killed and then told to stop: resumed, it ends like an undisturbed run.

The loop's promises for every moment, file and number of processes are tested in test_train_resume.py, on train.py.
"""

import functools
import json
import re
import signal

import lifelong_data
import pytest
import quick
import test_pretrain_t5
import test_train_camtl
import test_train_t5
import test_train_vlm
import torch
from safetensors.torch import load_file
from scripts import run, signal_at_save, small, start
from training_runs import short_run, trained

# The parts of metrics.json that must not depend on interruptions.
NUMBERS = ("steps", "best_step", "best_metric", "valid_nll", "tokens", "history", "scores", "coverage")
EACH_STEP = ("--save_steps", 1, "--keep_checkpoints", 2)


def train(folder, out):
    return short_run(small(folder / "nlg.json", train=24, valid=6, test=4), out, *EACH_STEP)


def train_vlm(folder, out):
    files = {task: small(folder / f"{task}.json", task, train=10, valid=2, test=1) for task in test_train_vlm.TASKS}
    more = (*EACH_STEP, "--sampling", "uniform", "--early_stopping", 2)
    return test_train_vlm.command(files, out, *more, epochs=3)


def train_t5(folder, out):
    return [test_train_t5.config(folder, max_steps=8, eval_steps=2, save_steps=2), "--output_dir", out]


def pretrain_t5(folder, out):
    return [test_pretrain_t5.config(folder, max_steps=8, eval_steps=2, save_steps=2), "--output_dir", out]


def train_camtl(folder, out):
    """With the sampler that depends on the model at every step."""
    bert = test_train_camtl.small_bert(folder / "bert")
    more = ("--use_mt_uncertainty", "--do_predict", "--freeze_encoder_layers", "0-0", "--weight_decay", 0.5)
    return test_train_camtl.command(bert, out, *more, "--save_steps", 1, tasks=("mnli", *test_train_camtl.TASKS))


def train_lifelong(folder, out):
    return lifelong_data.command(lifelong_data.write(folder), out, "finetune", "--save_steps", 1)


# Script -> (its command, the saves at which it is killed and then stopped, files that must be the same).
SCRIPTS = {
    train: (3, 4, ()),
    train_vlm: (3, 4, ()),
    train_t5: (2, 2, ("val_results.json", "test_results.json")),
    pretrain_t5: (2, 2, ()),
    train_camtl: (3, 4, ("eval_results.json", "data_seen.json", "parameters.json", "*.tsv")),
    # It is stopped in its second task.
    train_lifelong: (3, 6, ("sequence.json",)),
}
# The number of the last save, of the first task's in a sequence.
LAST = {train: 12, train_lifelong: 6}


@pytest.mark.parametrize("command", quick.only([train_t5, train_camtl], SCRIPTS), ids=lambda command: command.__name__)
def test_a_script_killed_stopped_and_resumed_equals_one_never_disturbed(command, tmp_path):
    script, (killed_at, stopped_at, files) = command.__name__, SCRIPTS[command]
    folder, whole, out, log = (tmp_path / name for name in ("data", "whole", "run", "log"))
    folder.mkdir()
    trained(command(folder, whole), log, script)

    def run_until(argv, number, count):
        return start(script, argv, log, prepare=functools.partial(signal_at_save, number, count)).wait()

    assert run_until(command(folder, out), signal.SIGKILL, killed_at).code == -signal.SIGKILL
    result = run_until(["--resume", out], signal.SIGTERM, stopped_at)
    assert result.code == 128 + signal.SIGTERM, (result.out, result.err)
    assert "SIGTERM: saved after step" in result.out and f"python {script}.py --resume {out}" in result.out
    assert not (out / "metrics.json").exists()
    result = run(script, ["--resume", out], log)
    assert result.code == 0, result.err
    assert_same_results(whole, out, files)


@pytest.mark.parametrize("command", [train, train_lifelong], ids=lambda command: command.__name__)
def test_a_signal_while_the_last_checkpoint_is_saved_stops_before_anything_else(command, tmp_path):
    """In a sequence, before the next task."""
    script, (folder, out, log) = command.__name__, (tmp_path / name for name in ("data", "run", "log"))
    folder.mkdir()
    argv = command(folder, out)
    result = start(script, argv, log, prepare=functools.partial(signal_at_save, signal.SIGTERM, LAST[command])).wait()
    assert result.code == 128 + signal.SIGTERM, (result.out, result.err)
    said = re.search(r"SIGTERM: saved after step (\d+) of (\d+). To resume:", result.out)
    assert said[1] == said[2]
    assert not list(out.rglob("*metrics.json")) and not (out / "sst" / "checkpoints").exists()
    result = run(script, ["--resume", out], log)
    assert result.code == 0 and (script == "train_lifelong" or (out / "metrics.json").exists()), result.err


def assert_same_results(one, other, files):
    """All weights, logged numbers and the named files of two runs are the same, to the last bit."""
    weights = [path.relative_to(one) for path in one.rglob("*.safetensors")]
    # The checkpoint of the step at which it was stopped takes the place of an older one.
    replaced = [name for name in weights if not (other / name).exists()]
    assert weights and len(replaced) <= 1 and all("checkpoints" in name.parts for name in replaced)
    for name in set(weights) - set(replaced):
        tensors, again = load_file(one / name), load_file(other / name)
        assert tensors.keys() == again.keys() and all(torch.equal(tensors[key], again[key]) for key in tensors), name
    reports = [path.relative_to(one) for path in one.rglob("*metrics.json")]
    assert reports
    for report in reports:
        first, second = (json.loads((run / report).read_text(encoding="utf-8")) for run in (one, other))
        for name in NUMBERS:
            assert first.get(name) == second.get(name), (report, name)
    for pattern in files:
        names = sorted(path.name for path in one.glob(pattern))
        assert names and names == sorted(path.name for path in other.glob(pattern))
        for name in names:
            first, second = ((run / name).read_text(encoding="utf-8").replace(str(run), "") for run in (one, other))
            assert first == second, name
