"""What tests of training scripts share: running, killing, resuming, comparing runs."""

import re
import signal
import socket
import time

import pytest
from scripts import done, losses, metrics, run, start, tensors, until, without_java

NLG = {"src": {"name": "Aromi", "food": "Thai"}, "tgt": "Aromi is a Thai place."}


def short_run(data, out, *more, model="tiny-gpt2", bottleneck=4, task="nlg", batch=4, accumulation=1, epochs=2):
    """Flags of a short run of train.py in fp32; bottleneck -1 trains everything."""
    return ["--task", task, "--dataset_path", data, "--model_checkpoint", model, "--adapter_bottleneck", bottleneck,
            "--train_batch_size", batch, "--gradient_accumulation_steps", accumulation, "--n_epochs", epochs,
            "--lr", "5e-3", "--fp32", "--output_dir", out, *more]  # fmt: skip


def trained(argv, folder, script="train", pictures=False):
    """Run a training script to its end; returns the run directory."""
    result = run(script, argv, folder, pictures=pictures)
    assert result.code == 0, result.err
    return argv[argv.index("--output_dir") + 1]


def evaluate(argv, folder):
    """Run evaluate.py to its end; returns the `Result`."""
    return done(run("evaluate", argv, folder, env=without_java()))


def refused(result, *fragments, out=None):
    """One clear error, exit code 2, nothing half-written."""
    assert result.code == 2, (result.code, result.out, result.err)
    assert "Traceback" not in result.err + result.out, result.err
    assert result.err.startswith("error: "), result.err
    assert len(re.findall("^error: ", result.err, re.MULTILINE)) == 1, result.err
    for fragment in fragments:
        assert str(fragment) in result.err, (fragment, result.err)
    if out is not None and out.exists() and out.is_dir():
        left = [str(p.relative_to(out)) for p in out.rglob("*")]
        assert not [p for p in left if ".part" in p or "model.safetensors" in p or p.endswith(".old")], left


def error_of(capsys, start):
    """The one error that `start`, which calls a script's `main` in this process, ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        start()
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and message.startswith("error: ") and message.count("error: ") == 1, message
    return message


def refused_here(capsys, start, *fragments, out=None):
    """`error_of` names each fragment, and nothing is written."""
    message = error_of(capsys, start)
    for fragment in fragments:
        assert fragment in message, (fragment, message)
    assert out is None or not out.exists()


def different(one, other):
    """Names of tensors that are not equal, or not in both."""
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))


def same_run(one, other):
    """Weights, optimizer and every logged number of two runs are equal to the last bit."""
    import torch

    for name in ("steps", "best_step", "valid_nll", "tokens", "stopped_early"):
        assert metrics(one)[name] == metrics(other)[name], name
    assert losses(one) == losses(other)
    assert different(tensors(one), tensors(other)) == []
    last = [sorted((run / "checkpoints").iterdir())[-1] for run in (one, other)]
    assert last[0].name == last[1].name
    assert different(tensors(last[0]), tensors(last[1])) == []
    first, second = (torch.load(f / "training_state.pt", weights_only=True)["optimizer"]["state"] for f in last)
    assert first.keys() == second.keys()
    for key in first:
        assert all(torch.equal(first[key][k], second[key][k]) for k in first[key])


def after(seconds):
    """Kill after so long."""

    def kill(job, out):
        end = time.time() + seconds
        until(lambda: time.time() > end, job)
        job.kill(signal.SIGKILL)

    return kill


def after_saves(number, seconds):
    """Kill so long after so many new checkpoints: the run has come as far on a busy machine as on an idle one."""

    def kill(job, out):
        known, new = set(out.glob("checkpoints/step_*")), set()

        def saved():
            new.update(set(out.glob("checkpoints/step_*")) - known)
            return len(new) >= number

        until(saved, job)
        after(seconds)(job, out)

    return kill


def on_seeing(pattern):
    """Kill as soon as a name that was not there before appears in the run directory."""

    def kill(job, out):
        known = set(out.glob(pattern))
        until(lambda: set(out.glob(pattern)) - known, job)
        job.kill(signal.SIGKILL)

    return kill


def killed_and_resumed(argv, out, folder, kills, script="train"):
    """Start, kill, resume, kill, …, finish; returns how many of the kills struck a living run."""
    struck = 0
    for kill in [*kills, lambda job, out: None]:
        # A run killed before it wrote run.json has not begun: it is started, not resumed.
        begun = (out / "run.json").exists()
        job = start(script, ["--resume", out] if begun else argv, folder)
        kill(job, out)
        result = job.wait()
        assert result.code in (0, -signal.SIGKILL), (result.code, result.err)
        struck += result.code != 0
    assert result.code == 0
    return struck


def free_port():
    """A port that nobody listens at, as a text."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start_two(argv, folder, script="train"):
    """What torchrun does, without its five seconds: two jobs that find each other by the environment."""
    shared = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    return [start(script, argv, folder / str(r), dict(shared, RANK=str(r), LOCAL_RANK=str(r))) for r in range(2)]


def in_two_processes(argv, folder, script="train"):
    """The results of `start_two`'s jobs, which must end well."""
    results = [job.wait() for job in start_two(argv, folder, script)]
    assert [r.code for r in results] == [0, 0], results
    return results


def numbers(row):
    """{name: number} of a logged row; a task's own numbers stand under "task.name"."""
    tasks = {f"{t}.{name}": v for t, own in row.get("tasks", {}).items() for name, v in own.items()}
    return {k: v for k, v in row.items() if k != "tasks"} | tasks


def close_runs(one, other):
    """Equal up to the order of additions in fp32."""
    import torch
    from safetensors.torch import load_file

    name = "adapter_model.safetensors" if (one / "adapter_model.safetensors").exists() else "model.safetensors"
    first, second = load_file(one / name), load_file(other / name)
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-5, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    for rows_one, rows_other in zip(losses(one), losses(other)):
        assert len(rows_one) == len(rows_other)
        for a, b in zip(rows_one, rows_other):
            assert numbers(a) == pytest.approx(numbers(b), rel=1e-5, abs=1e-5)


def parse_t5(argv):
    """The `Arguments` of a command line of train_t5.py."""
    from versatile.training import text_to_text_arguments

    import train_t5

    return text_to_text_arguments.parse(train_t5.parser, argv)
