"""Every strategy against forgetting with every adaptation method: it trains both tasks, or says why it does not.

    python -m pytest tests/test_lifelong_walk.py            half of the cells, and every strategy stopped and resumed
    python -m pytest tests/test_lifelong_walk.py -m slow    the others
"""

import json

import pytest
import quick
import torch
from lifelong_data import command, report, write
from safetensors.torch import load_file
from scripts import tensors
from training_runs import different, in_two_processes, trained
from versatile.adapters import checkpoint
from versatile.lifelong import sequence
from versatile.lifelong.strategies import STRATEGIES

import train_lifelong

METHODS = {"full": (), "bottleneck": ("--adapter_bottleneck", 2), "lora": ("--method", "lora", "--lora_rank", 2),
           "prefix": ("--method", "prefix", "--prefix_length", 2),
           "prompt": ("--method", "prompt", "--prompt_length", 2)}  # fmt: skip
# Why a strategy does not work with a method, in its own words.
REFUSED = {
    ("isolated", "full"): "cannot be combined with training the whole model: no parameters belong to a single task",
    **dict.fromkeys([("olora", method) for method in METHODS if method != "lora"], "those of LoRA's matrices"),
    **dict.fromkeys([("progprompt", method) for method in ("full", "bottleneck", "lora")], "one prompt per task"),
}
# Flags that make a strategy take effect in a run of a few steps.
FLAGS = {"ewc": ("--reg_lambda", 1000), "mas": ("--reg_lambda", 1e8), "lll": ("--real_sample",),
         "er": ("--memory_size", 4), "agem": ("--memory_size", 4), "derpp": ("--memory_size", 4)}  # fmt: skip
# The method with which a strategy is stopped and resumed.
RESUMED = {"olora": "lora", "progprompt": "prompt"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), train=8)


def flags(data, out, name, method):
    return command(data, out, name, *METHODS[method], *FLAGS.get(name, ()), "--save_steps", 1, "--only_final",
                   "--n_train_epochs", 1)  # fmt: skip


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Called with a strategy and a method: the directory of its uninterrupted run, which is made once."""
    directories, folder = {}, tmp_path_factory.mktemp("runs")

    def of(name, method):
        if (name, method) not in directories:
            out = directories[name, method] = folder / f"{name}_{method}"
            train_lifelong.main(flags(data, out, name, method))
        return directories[name, method]

    return of


def cells():
    for i, name in enumerate(STRATEGIES):
        for j, method in enumerate(METHODS):
            is_quick = (name, method) in REFUSED or (i + j) % 5 == 0
            yield pytest.param(name, method, marks=[] if is_quick else [pytest.mark.slow], id=f"{name}-{method}")


def stages(out, name):
    return [out] if STRATEGIES[name].joint else [out / "ag", out / "sst"]


@pytest.mark.parametrize("name, method", cells())
def test_every_strategy_trains_every_method_or_says_why_not(name, method, run, data, tmp_path, capsys):
    if reason := REFUSED.get((name, method)):
        with pytest.raises(SystemExit) as stopped:
            train_lifelong.main(flags(data, tmp_path / "run", name, method))
        text = capsys.readouterr().err
        assert stopped.value.code == 2 and reason in text and "remedy" in text and not (tmp_path / "run").exists()
        return
    out = run(name, method)
    folders = stages(out, name)
    assert json.loads((out / "sequence.json").read_text())["finished"] == [f.name for f in folders] or folders == [out]
    for folder in folders:
        model, _ = checkpoint.load_checkpoint(folder, allow_idle=True)
        assert report(folder)["steps"] > 0 and report(folder)["mode"] == name
        chosen = {m["method"] for m in model.info.methods.values()} - {"task_embeddings"}
        assert chosen == (set() if method == "full" else {method})
    assert len(folders) == 1 or different(*map(tensors, folders))


@pytest.mark.parametrize("name", quick.only(["lll", "progprompt"], STRATEGIES))
def test_stopped_in_every_task_and_resumed_is_the_uninterrupted_run(name, run, data, tmp_path, monkeypatch):
    """Bit for bit: the weights after each task, every logged loss, and what the strategy keeps."""
    method = RESUMED.get(name, "bottleneck")
    whole, out = run(name, method), tmp_path / "run"
    argv, save = flags(data, out, name, method), sequence.StageRun.save_checkpoint
    stops = [(folder.name, 1) for folder in stages(out, name)]

    def stop(self, step, *rest):
        save(self, step, *rest)
        if (self.directory.name, step) in stops:
            stops.remove((self.directory.name, step))
            raise KeyboardInterrupt

    monkeypatch.setattr(sequence.StageRun, "save_checkpoint", stop)
    while stops:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train_lifelong.main(argv)
    train_lifelong.main(argv)
    for one, other in zip(stages(whole, name), stages(out, name)):
        assert different(tensors(one), tensors(other)) == []
        assert report(one)["history"] == report(other)["history"] and report(one)["tokens"] == report(other)["tokens"]
        state = STRATEGIES[name].state_file
        if state and (one / state).exists():
            assert (one / state).read_bytes() == (other / state).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["er", "agem", "derpp", "lwf", "olora", "isolated", "progprompt"])
def test_two_processes_train_what_one_does(name, data, tmp_path):
    method = METHODS[RESUMED.get(name, "bottleneck")]
    more = (*method, *FLAGS.get(name, ()), "--only_final", "--n_train_epochs", 1)
    trained(command(data, tmp_path / "one", name, *more, model="tiny-llama"), tmp_path / "log", "train_lifelong")
    argv = command(data, tmp_path / "two", name, *more, model="tiny-llama", batch=2)
    in_two_processes(argv, tmp_path / "logs", "train_lifelong")
    for task in ("ag", "sst"):
        one, two = (load_file(tmp_path / run / task / "adapter_model.safetensors") for run in ("one", "two"))
        for key in one:
            torch.testing.assert_close(one[key], two[key], atol=2e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
