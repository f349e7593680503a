"""Output: a screen that fails never ends the work, and nothing from a file controls a terminal.

    python -m pytest tests/test_screen.py
"""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripts import ROOT, SAMPLES, TORCHRUN, done, run, run_as_user, small
from versatile.utils import devices, plots, screen
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.interrupts import Signals

TINY = ["--task", "mt", "--dataset_path", SAMPLES / "mt.json", "--model_checkpoint", "tiny-gpt2", "--limit", "8",
        "--adapter_bottleneck", "4", "--max_steps", "1", "--train_batch_size", "4", "--fp32"]  # fmt: skip


def test_control_characters_are_written_out_and_text_is_not_changed():
    assert screen.escape_controls("a\x1b[2Jb\x9b\x07") == r"a\x1b[2Jb\x9b\x07"
    assert screen.escape_controls("a\u202eb\ud800") == r"a\u202eb\ud800"
    plain = "tab\tline\nÄ 漢字 🙂 e\u0301 \u00a0"
    assert screen.escape_controls(plain) == plain


class Full(io.TextIOWrapper):
    """A file that cannot be written."""

    def __init__(self, error):
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error

    def close(self):
        pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe")])
def test_a_screen_that_cannot_be_written_does_not_end_the_work(error, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full(error))
    monkeypatch.setattr(sys, "stderr", Full(error))

    @exit_on_user_error
    def main():
        print("lost", flush=True)
        print("lost", file=sys.stderr)
        return sys.stdout.has_reader

    assert main() == (not isinstance(error, BrokenPipeError))


def test_without_a_screen_and_with_a_closed_one_work_goes_on(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)

        @exit_on_user_error
        def main():
            print("lost", flush=True)
            assert not sys.stdout.isatty()
            sys.stdout.flush()
            raise UserError("no", location="here")

        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2


def test_a_character_that_the_screen_lacks_is_shown_by_its_number(monkeypatch):
    kept = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(kept, encoding="ascii"))

    @exit_on_user_error
    def main():
        print("ü 漢 \x1b[31mred\x1b[0m")
        print("\rprogress", end="")

    main()
    assert kept.getvalue() == b"\\xfc \\u6f22 \\x1b[31mred\\x1b[0m\n\rprogress"


def test_lines_that_a_program_reads_are_written_as_they_are_but_not_to_a_terminal(monkeypatch):
    kept = io.StringIO()
    screen.SafeStream(kept).write_data("a\x1b[2J")
    assert kept.getvalue() == "a\x1b[2J\n"
    monkeypatch.setattr(kept, "isatty", lambda: True, raising=False)
    screen.SafeStream(kept).write_data("b\x1b[2J")
    assert kept.getvalue().endswith("\nb\\x1b[2J\n")


def test_lines_that_a_program_reads_are_not_lost_on_a_full_disk(monkeypatch):
    with open("/dev/full", "w") as full:
        with pytest.raises(UserError, match="cannot write: No space left on device"):
            screen.SafeStream(full).write_data("an answer")
        monkeypatch.setattr(full, "close", lambda: None, raising=False)
        screen.SafeStream(full).release()
    closed = io.StringIO()
    closed.close()
    screen.SafeStream(closed).write_data("an answer")
    screen.SafeStream(None).write_data("an answer")
    gone = io.StringIO()
    monkeypatch.setattr(gone, "write", lambda text: (_ for _ in ()).throw(BrokenPipeError()))
    stream = screen.SafeStream(gone)
    stream.write_data("an answer")
    assert not stream.has_reader


def test_an_error_message_shows_a_hostile_name_written_out(capsys):
    @exit_on_user_error
    def main():
        raise UserError("cannot be read", location="a\x1b]0;title\x07.json")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: a\\x1b]0;title\\x07.json: cannot be read\n"


SHELL = f"cd {shlex.quote(str(ROOT))}; exec {shlex.quote(sys.executable)} -m utils.table --help"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("where", [">/dev/full", ">&-", ">&- 2>&- <&-", "2>/dev/full >/dev/full"])
def test_a_process_with_a_full_or_missing_screen_ends_well(where):
    done = subprocess.run(["bash", "-c", f"{SHELL} {where}"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_training_without_a_screen_keeps_its_results(tmp_path):
    words = shlex.join(map(str, [sys.executable, ROOT / "train.py", *TINY, "--output_dir", tmp_path / "run"]))
    done = subprocess.run(["bash", "-c", f"exec {words} >&- 2>&-"], cwd=ROOT, timeout=240)
    assert done.returncode == 0 and (tmp_path / "run" / "metrics.json").is_file()


def test_a_long_text_is_cut_and_a_short_one_is_not():
    assert screen.clipped("four", 4) == "four" and screen.clipped("fives", 4) == "fiv…"


def test_a_huge_number_is_short():
    assert [screen.format_number(n, 3) for n in (2.5, -12345.6789, float("inf"), 5184705528587072045056.0)] == [
        "2.500", "-12345.679", "inf", "5.18e+21"]  # fmt: skip


def test_one_of_each_is_said_in_the_singular_and_no_warning_is_shown(tmp_path):
    data = small(tmp_path / "mt.json", "mt", train=1, valid=1, test=1)
    flags = ["--task", "mt", "--dataset_path", data, "--fp32"]
    train = [*flags, "--model_checkpoint", "tiny-gpt2", "--max_steps", "1", "--gradient_checkpointing"]
    trained = done(run("train", [*train, "--output_dir", tmp_path / "run"], tmp_path / "log"))
    evaluate = [*flags, "--no_sample", "--max_length", "3", "--model_checkpoint", tmp_path / "run"]
    evaluated = done(run("evaluate", [*evaluate, "--output_dir", tmp_path / "out"], tmp_path / "log"))
    for words in ("train: 1 example\n", "(1 step, ", "done: 1 step, ", "1 instance, 1 reference\n"):
        assert words in trained.out + evaluated.out
    assert not trained.err


# ---- commands


def test_printed_commands_survive_a_shell():
    words = ["--output_dir", "my run", "it's", "a$b", "--data", "mt=x y.json", 3]
    assert shlex.split(screen.shell_command("train.py", *words)) == ["python", "train.py", *map(str, words)]
    assert screen.resume_command("train.py", "my run") == "python train.py --resume 'my run'"
    assert screen.resume_command("train.py", "r", 2) == "torchrun --nproc_per_node 2 train.py --resume r"


def test_printed_commands_work_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "docs")
    assert screen.shell_command("train.py", "--resume", "r") == "python ../train.py --resume r"
    monkeypatch.chdir(tmp_path)
    words = shlex.split(screen.shell_command("train.py"))
    assert words[0] == "python" and os.path.samefile(words[1], ROOT / "train.py")
    with screen.started_as("python", "-m", "versatile"):
        assert screen.shell_command("train.py", 1) == "python -m versatile train 1"
        assert screen.resume_command("train.py", "r", 2) == "torchrun --nproc_per_node 2 -m versatile train --resume r"
    with screen.started_as("versatile"):
        assert screen.resume_command("train.py", "r") == "versatile train --resume r"
        monkeypatch.chdir(ROOT)
        assert screen.resume_command("train.py", "r") == "python train.py --resume r"


def test_modules_and_programs_are_named_as_they_can_be_started(monkeypatch):
    assert screen.module_command("data.convert", "--help") == "python -m data.convert --help"
    assert screen.program_name("evaluate.py") == "evaluate.py"
    with screen.started_as("versatile"):
        assert screen.program_name("evaluate.py") == "versatile evaluate"
        assert screen.program_name("python -m utils.table") == "python -m utils.table"
    monkeypatch.setattr(screen, "_HOME", Path("/site-packages/versatile"))
    assert screen.module_command("data.convert", "e2e") == "python -m versatile.data.convert e2e"


@pytest.mark.slow
def test_python_m_versatile_prints_commands_that_begin_so(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(dict(command="train_vlm.py", flags={})))
    start = [sys.executable, "-m", "versatile", "train", "--resume", "."]
    done = subprocess.run(start, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, timeout=240)  # fmt: skip
    assert done.returncode == 2 and "remedy:   python -m versatile train_vlm --resume ." in done.stderr


# ---- homes and users


@pytest.fixture
def no_caches(monkeypatch):
    for name in screen._CACHES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
    yield
    os.environ.pop("LOGNAME", None)


def test_without_a_home_caches_go_to_temporary_files(no_caches, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    monkeypatch.setattr(screen.tempfile, "gettempdir", lambda: str(tmp_path))
    screen._ensure_home()
    assert os.environ["VERSATILE_CACHE"].startswith(str(tmp_path / "versatile-"))
    assert os.environ["MPLCONFIGDIR"].startswith(str(tmp_path / "versatile-"))
    assert "caches go to" in capsys.readouterr().err
    # The second start in this environment prints nothing.
    screen._ensure_home()
    assert capsys.readouterr().err == ""


def test_with_a_home_nothing_moves(no_caches, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    screen._ensure_home()
    assert not any(os.environ.get(name) for name in screen._CACHES)


def test_a_user_without_an_entry_has_a_name(no_caches, monkeypatch):
    import getpass

    monkeypatch.setattr(os, "getuid", lambda: 3999999)
    screen._name_user()
    assert getpass.getuser() == "uid3999999"


# ---- signals


@pytest.fixture
def hangup():
    old = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, old)


def test_a_hangup_is_a_request_to_stop_unless_it_is_ignored(hangup):
    hangup(signal.SIG_DFL)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
    assert signals.caught == signal.SIGHUP and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    hangup(signal.SIG_IGN)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
    assert signals.caught == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_a_destructor_swallows_stops_the_work_all_the_same(number, capsys):
    class Interrupted:
        def __del__(self):
            signal.raise_signal(number)

    @exit_on_user_error
    def main():
        Interrupted()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.01)

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 128 + number
    assert capsys.readouterr().err == ("interrupted\n" if number == signal.SIGINT else "stopped by SIGTERM\n")


def test_a_second_sigterm_lets_the_first_one_save_and_a_second_ctrl_c_ends_at_once():
    with Signals() as signals:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.caught == signal.SIGTERM
    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert signals.caught == signal.SIGINT


# ---- processes


@pytest.mark.parametrize("fails", [False, True])
def test_reducers_and_the_group_of_processes_are_gone_when_the_work_is(tmp_path, fails):
    import torch
    from torch import distributed

    kept = []

    def work():
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        model(torch.ones(1, 2)).sum().backward()
        # A cycle, as in trainers and engines, and a reference from outside it, as from an error's frames.
        model.cycle = [model]
        kept.append(model)
        if fails:
            raise UserError("no")

    with pytest.raises(UserError) if fails else devices.contextlib.nullcontext(), devices.parallel(start=False):
        distributed.init_process_group("gloo", store=distributed.FileStore(str(tmp_path / "store")), rank=0,
                                       world_size=1)  # fmt: skip
        work()
    assert not distributed.is_initialized()
    assert "reducer" not in vars(kept[0]) and "logger" not in vars(kept[0])


def test_a_backbone_is_made_whole_by_any_process(tmp_path, monkeypatch):
    from torch import distributed
    from versatile.adapters.backbones import bundled

    monkeypatch.setenv("VERSATILE_CACHE", str(tmp_path))
    # Left behind by a process other than the first one.
    (tmp_path / "models" / "tiny-gpt2").mkdir(parents=True)
    (tmp_path / "models" / "tiny-gpt2" / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda *group: 1)
    folder = bundled.folder("tiny-gpt2")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train", "train_t5"])
def test_torchrun_ends(script, tmp_path):
    argv = TINY if script == "train" else [ROOT / "configs" / "test.json", "--max_steps", "2", "--overwrite_output_dir"]
    result = run_as_user(script, [*argv, "--output_dir", tmp_path / "run"], launcher=TORCHRUN)
    assert result.code == 0, result.err


# ---- pictures


@pytest.mark.parametrize("name", ["$\\frac{1$", "a$b$c", "漢字", "tab\there", "\x1b[31m"])
def test_any_name_can_stand_in_a_picture(name, tmp_path, recwarn):
    scores = dict(train=[dict(step=1, loss=1.0, lr=0.1)],
                  valid=[dict(step=s, nll=1.0, tasks={name: dict(nll=1.0), "b": dict(nll=1.0)})
                         for s in (1, 2)])  # fmt: skip
    plots.learning_curve(tmp_path / "curve.png", scores, name)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
