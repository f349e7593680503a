"""Run the toolkit's scripts in separate processes: as a user does, or forked from one that has imported everything.

A script spends five seconds and more on imports. `start` forks a process that has already done them (preloaded.py); it
is still a real process, with its own memory, signals and exit code.
"""

import contextlib
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "data" / "samples"

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])


def done(result):
    """A `Result` without an error."""
    assert result.code == 0, result.err
    return result


@dataclass
class Result:
    """How a script ended: exit code (negative: killed by that signal), stdout, stderr."""

    code: int
    out: str
    err: str


class Job:
    """A script that runs in its own process."""

    def __init__(self, process, folder):
        self.process, self.pid, self.folder = process, process.pid, Path(folder)

    def running(self):
        return self.process.is_alive()

    def kill(self, number):
        if self.running():
            os.kill(self.pid, number)

    def wait(self, timeout=120):
        self.process.join(timeout)
        if self.running():
            self.process.kill()
            raise TimeoutError(f"still running after {timeout} s: {(self.folder / 'err').read_text()}")
        return Result(self.process.exitcode, (self.folder / "out").read_text(), (self.folder / "err").read_text())


def start(script, argv, folder, env=None, terminal=False, cwd=ROOT, prepare=None, pictures=False):
    """Start `script` ("train", "bench.decode") with `argv`; its output goes into `folder`: "out", "err".

    Args:
        prepare: called in the process before the script.
        pictures: whether the script's pictures are drawn, which takes as long as training a tiny model; else they are
            blank, and only the names of what they are drawn from are checked.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in ("out", "err"):
        (Path(folder) / name).write_text("")
    environment = {**dict(os.environ), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    arguments = (script, list(map(str, argv)), str(folder), environment, terminal, cwd, prepare, pictures)
    return Job(fork(_run, *arguments), folder)


def fork(function, *arguments):
    """Start a process that calls `function`; returns it."""
    # The fork server is started by the first of these and imports with the environment at that time.
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    old, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), paths
    process = CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    os.environ.pop("PYTHONPATH") if old is None else os.environ.update(PYTHONPATH=old)
    return process


def run(script, argv, folder, env=None, timeout=120, terminal=False, cwd=ROOT, pictures=False):
    """`start` and wait."""
    return start(script, argv, folder, env, terminal, cwd, pictures=pictures).wait(timeout)


def _run(script, argv, folder, environment, terminal, cwd, prepare, pictures):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if terminal:
        _open_terminal()
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if not pictures:
        _leave_pictures_blank()
    if prepare:
        prepare()
    room, _, name = script.rpartition(".")
    # As for a script that is started: the files next to it are found.
    sys.path.insert(0, str(ROOT / room))
    sys.argv = [f"{room and room + '/'}{name}.py", *argv]
    sys.exit(importlib.import_module(name).main(argv))


def _leave_pictures_blank():
    from matplotlib.figure import Figure
    from PIL import Image
    from versatile.utils import plots

    def blank(draw):
        def save(*arguments, **named):
            Image.new("L", (1, 1)).save(inspect.signature(draw).bind(*arguments, **named).arguments["path"])

        return save

    for name in ("learning_curve", "score_curve", "task_scores_curve", "data_seen"):
        setattr(plots, name, blank(getattr(plots, name)))
    Figure.savefig = lambda figure, target, **_: Image.new("L", (1, 1)).save(target, "png")


def signal_at_save(number, count):
    """Make this process send itself a signal when a run begins to save its checkpoint number `count`."""
    from versatile.training.runs import Run

    save, saves = Run.save_checkpoint, itertools.count(1)

    def save_checkpoint(run, *arguments):
        if next(saves) == count:
            os.kill(os.getpid(), number)
        save(run, *arguments)

    Run.save_checkpoint = save_checkpoint


def _open_terminal():
    """Continue in a child whose stdout and stderr are a terminal of 100 columns; its screen is the former stderr."""
    import fcntl
    import pty
    import struct
    import termios

    screen = os.dup(2)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    script = os.fork()
    if not script:
        os.dup2(slave, 1), os.dup2(slave, 2)
        os.close(slave), os.close(master)
        return
    os.close(slave)
    # Reading ends with an error when the last process that holds the terminal has exited.
    with contextlib.suppress(OSError):
        while block := os.read(master, 65536):
            os.write(screen, block)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(script, 0)[1]))


def run_as_user(script, argv, *, launcher=(), env=None, cwd=ROOT, timeout=240):
    """`python script.py argv…` from scratch, with a launcher's words in front if there are any."""
    command = [sys.executable, *launcher, str(ROOT / f"{script}.py"), *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)
    return Result(done.returncode, done.stdout, done.stderr)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def until(condition, job, timeout=60):
    """Wait for a condition while the job runs; returns whether it came true."""
    end = time.time() + timeout
    while time.time() < end and job.running():
        if condition():
            return True
        time.sleep(0.001)
    return condition()


def tensors(folder):
    """{name: (dtype, shape, bytes)} of a run's model file."""
    from safetensors.torch import load_file

    folder = Path(folder)
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").exists() else "model.safetensors"
    state = load_file(folder / name)
    return {k: (str(v.dtype), tuple(v.shape), v.numpy().tobytes()) for k, v in state.items()}


def contents(folder):
    """{path relative to it: bytes} of all files of a directory."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def metrics(folder):
    """The content of a run's metrics.json, or of the <task>_metrics.json of one task's results."""
    (path,) = Path(folder).glob("*metrics.json")
    return json.loads(path.read_text())


def losses(folder):
    """What equal runs have in common: every logged training step and every validation."""
    history = metrics(folder)["history"]
    return history["train"], history["valid"]


def write_task(path, **splits):
    """A task file with these splits."""
    Path(path).write_text(json.dumps(splits, ensure_ascii=False), encoding="utf-8")
    return path


def small(path, task="nlg", **sizes):
    """The first records of a sample file in a new file, e.g. small(path, train=8, valid=4, test=4)."""
    data = json.loads((SAMPLES / f"{task}.json").read_text())
    return write_task(path, **{split: data[split][:n] for split, n in sizes.items()})


def without_java():
    """An environment in which METEOR does not start a Java machine, which would take seconds."""
    folder = Path(os.environ["VERSATILE_CACHE"]) / "bin"
    folder.mkdir(exist_ok=True)
    for tool in ("git", "python"):
        if (found := shutil.which(tool)) and not (folder / tool).exists():
            (folder / tool).symlink_to(found)
    return {"PATH": str(folder)}
