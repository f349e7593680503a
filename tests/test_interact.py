"""interact.py in a pipe and in a real terminal, on a tiny model of all tasks.

python -m pytest tests/test_interact.py
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest
import torch
from conftest import ROOT
from scripts import SAMPLES, fork, run, without_java
from versatile.adapters import checkpoint
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.data.task import get_task
from versatile.training.evaluation import one_line
from versatile.utils.screen import escape_controls

TASKS = {"mt": 12, "nlg": 8, "qa": 8, "dialogue": 8, "summarization": 8}
GREEDY = ["--no_sample", "--fp32", "--max_length", "12"]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """A model of five tasks whose random weights are large enough for inputs to matter."""
    folder = tmp_path_factory.mktemp("vlm")
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    torch.manual_seed(3)
    # With GPT-2's own initialisation of 0.02 every input gets the same answer.
    attach(model, tokenizer, {t: get_task(t).markers for t in TASKS}, TASKS, save_backbone=True)
    for p in model.parameters():
        if p.ndim > 1:
            p.data.add_(0.2 * torch.randn_like(p))
    model.info.histories["qa"] = 1
    checkpoint.save_checkpoint(model, tokenizer, folder)
    return str(folder)


def on_files(argv, stdin, stdout, stderr):
    """Runs in its own process: interact.py with these files."""
    for number, name in enumerate((stdin, stdout, stderr)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0)), number)
    _go(argv)


def _go(argv):
    # A forked process has closed its stdin.
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.argv = ["interact.py", *argv]
    torch.set_num_threads(1)
    code = __import__("interact").main(argv)
    sys.stdout.flush()
    sys.exit(code)


def on_terminal(argv, slave):
    """Runs in its own process: interact.py on a terminal, which sends it Ctrl-C as a signal."""
    os.setsid()
    terminal = os.open(slave, os.O_RDWR)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(terminal, number)
    os.close(terminal)
    _go(argv)


def piped(folder, argv, *lines, binary=None):
    """Lines through interact.py: (lines of stdout, stderr, exit code)."""
    names = [str(folder / name) for name in ("in", "out", "err")]
    (folder / "in").write_bytes(binary or "".join(line + "\n" for line in lines).encode())
    process = fork(on_files, list(map(str, argv)), *names)
    process.join(100)
    assert process.exitcode is not None
    return lines_of(folder / "out"), (folder / "err").read_text(), process.exitcode


def lines_of(path):
    """Lines that end only at line breaks: a random model writes any character."""
    return path.read_bytes().decode().split("\n")[:-1]


class Terminal:
    """interact.py in a terminal of 300 columns."""

    def __init__(self, argv):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 300, 0, 0))
        self.process = fork(on_terminal, list(map(str, argv)), os.ttyname(slave))
        self.slave, self.screen = slave, ""

    def until(self, pattern, timeout=60):
        """The output up to a pattern; later calls continue after it."""
        end = time.time() + timeout
        while not (found := re.search(pattern, self.screen)):
            if not select.select([self.master], [], [], max(0, end - time.time()))[0]:
                raise AssertionError(f"no {pattern!r} in {self.screen!r}")
            self.screen += os.read(self.master, 65536).decode().replace("\r\n", "\n").replace("\x1b[?2004h", "")
            self.screen = self.screen.replace("\x1b[?2004l\r", "").replace("\x1b[?2004l", "")
        text, self.screen = self.screen[: found.end()], self.screen[found.end() :]
        return text

    def type(self, text):
        os.write(self.master, text.encode())

    def interrupt(self, prompt):
        """Ctrl-C, typed again until there is a response: input before readline waits for the next key is lost."""
        for attempt in range(30):
            time.sleep(0.3)
            self.type("\x03")
            try:
                return self.until(prompt, timeout=4)
            except AssertionError:
                if attempt == 29:
                    raise

    def ask(self, line, prompt=r"\n\w+> "):
        """Send a line; returns the output up to the next prompt, without the echo."""
        self.type(line + "\n")
        return self.until(re.escape(line) + r"[\s\S]*?" + prompt).partition(f"{line}\n")[2].rpartition("\n")[0].strip()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.is_alive():
            self.process.kill()
        self.process.join(20)
        os.close(self.master), os.close(self.slave)


# --- pipes


def evaluated(vlm, task, folder, *more):
    """The answers of evaluate.py: [(source, output)]."""
    argv = ["--task", task, "--dataset_path", SAMPLES / f"{task}.json", "--model_checkpoint", vlm, *GREEDY,
            "--batch_size", 1, "--limit", 4, "--output_dir", folder, *more]  # fmt: skip
    result = run("evaluate", argv, folder, env=without_java())
    assert result.code == 0, result.err
    rows = [json.loads(line) for line in lines_of(folder / f"{task}_outputs.jsonl")]
    return [(row["source"], one_line(row["hypothesis"])) for row in rows]


@pytest.mark.parametrize("task", ["mt", "nlg", "summarization"])
def test_answers_are_those_of_evaluate(vlm, task, tmp_path):
    expected = evaluated(vlm, task, tmp_path / "results")
    assert len({output for _, output in expected}) > 1
    out, err, code = piped(tmp_path, ["--model_checkpoint", vlm, "--task", task, *GREEDY], *(s for s, _ in expected))
    assert code == 0, err
    assert out == [output for _, output in expected]


@pytest.mark.parametrize("task, first", [("dialogue", "persona"), ("qa", "document")])
def test_a_conversations_first_answer_is_that_of_evaluate(vlm, task, first, tmp_path):
    source, output = evaluated(vlm, task, tmp_path / "results")[0]
    front, turn = source.split(" | ")
    out, err, code = piped(tmp_path, ["--model_checkpoint", vlm, "--task", task, *GREEDY], f"{first}: {front}", turn)
    assert (out, code) == ([output], 0), err


def test_stdout_has_answers_alone_one_a_line_beside_its_input(vlm, tmp_path):
    lines = ["A man.", "", "/task nlg", "no slots here", "name[The Eagle]", "/show", "/nonsense", "/task mt", "A man."]
    out, err, code = piped(tmp_path, ["--model_checkpoint", vlm, *GREEDY], *lines)
    assert code == 0 and len(out) == 5
    assert out[0] == out[4] != "" and out[1] == out[2] == "" and out[3]
    assert "line 2: type an input, such as: A man is reading" in err
    assert "line 4: no slot in 'no slots here'; expected: name[" in err
    assert "there is no command /nonsense; /help lists them" in err
    assert "<name> The Eagle" in err and "> " not in "".join(out[:1])
    assert "tasks: mt, nlg, qa, dialogue, summarization" in err and "/backbone; trained: adapters" in err


def test_bytes_that_are_not_text_cost_their_own_line_only(vlm, tmp_path):
    argv = ["--model_checkpoint", vlm, "--task", "mt", *GREEDY]
    plain = piped(tmp_path, argv, "A man.")[0]
    out, err, code = piped(tmp_path, argv, binary=b"\xef\xbb\xbfA man.\r\n\xff\xfe\nA man.")
    assert (out, code) == ([plain[0], "", plain[0]], 0)
    assert "line 2: not UTF-8" in err


def test_nothing_typed_is_nothing_answered(vlm, tmp_path):
    (tmp_path / "none").mkdir()
    assert piped(tmp_path, ["--model_checkpoint", vlm, "--task", "mt", *GREEDY], binary=b" \n")[0] == [""]
    assert piped(tmp_path / "none", ["--model_checkpoint", vlm, "--task", "mt", *GREEDY])[0] == []


def test_sampling_is_seeded_once(vlm, tmp_path):
    argv = ["--model_checkpoint", vlm, "--task", "mt", "--fp32", "--max_length", "12", "--temperature", "2"]
    out = piped(tmp_path, argv, *["A man."] * 3, "/set seed 42", "A man.")[0]
    assert len(set(out[:3])) > 1 and out[3] == out[0]
    assert piped(tmp_path, argv, *["A man."] * 3)[0] == out[:3]


def test_wrong_starts_are_one_clear_error(vlm, tmp_path):
    for argv, message in [
        (["--model_checkpoint", vlm, "--task", "webnlg"], "the checkpoint holds the task(s) mt, nlg"),
        (["--model_checkpoint", "tiny-gpt2"], "this holds no trained tasks"),
        (["--model_checkpoint", tmp_path], "this holds no trained tasks"),
        (["--model_checkpoint", tmp_path / "none"], f"none: no such directory ({tmp_path} holds: "),
        ([], "--model_checkpoint is needed"),
    ]:
        out, err, code = piped(tmp_path, argv, "A man.")
        assert (out, code) == ([], 2) and message in err and "Traceback" not in err


# --- conversations


def test_answers_join_the_history_and_a_long_one_is_cut_once_said(vlm, tmp_path):
    lines = ["who is it?", "document: The river is long.", "how long?", "/show", "and then?", "/show"]
    lines += ["where?", "/show", "why?", "/new", "when?"]
    out, err, _ = piped(tmp_path, ["--model_checkpoint", vlm, "--task", "qa", *GREEDY], *lines)
    assert len(out) == 6 and out[0] == out[5] == "" and all(out[1:5])
    assert err.count("no document yet; expected: document: …") == 2
    shown = [part.split("\nnote")[0] for part in err.split("of the answer:\n")[1:]]
    assert [part.count("<question>") for part in shown] == [1, 2, 2]
    assert "<document> The river is long." in shown[0] and "<bos_qa>   [type <document>]" in shown[0]
    # The kept exchange is the last one, with the answer as given.
    assert "<question> how long?" in shown[1] and f"<answer> {escape_controls(out[1])}" in shown[1]
    assert "how long?" not in shown[2] and "<question> and then?" in shown[2]
    assert f"<answer> {escape_controls(out[2])}" in shown[2]
    assert err.count("only the last 3 turns of the conversation are given, as in training (/show") == 1


def test_each_task_keeps_its_own_conversation(vlm, tmp_path):
    lines = ["persona: i have a cat.", "persona: i bake.", "hello", "/task qa", "hello", "/task dialogue", "and you?",
             "/show"]  # fmt: skip
    out, err, _ = piped(tmp_path, ["--model_checkpoint", vlm, "--task", "dialogue", *GREEDY], *lines)
    assert len(out) == 3 and out[1] == ""
    assert "<persona> i have a cat. i bake.\n" in err and " hello" in err.split("of the answer:")[1]
    assert "of the conversation" not in err


def test_what_is_cut_is_said_once(vlm, tmp_path):
    long = "word " * 300
    argv = ["--model_checkpoint", vlm, "--task", "summarization", *GREEDY]
    out, err, code = piped(tmp_path, argv, long, long, "/show")
    assert code == 0 and len(out) == 2
    assert err.count("the input is cut, as in training: over the positions (/show") == 1
    assert err.rstrip().endswith("note: the input is cut, as in training: over the positions")


# --- terminals


def test_a_person_asks_changes_settings_and_leaves(vlm, tmp_path):
    argv = ["--model_checkpoint", vlm, "--task", "mt", *GREEDY]
    # A terminal gets control characters escaped.
    expected = escape_controls(piped(tmp_path, argv, "A man is reading.")[0][0])
    with Terminal(argv) as t:
        start = t.until("mt> ")
        assert "mt: sentence -> its translation" in start and "for example: A man is reading a book" in start
        assert t.ask("A man is reading.") == expected
        # Up: the previous line.
        t.type("\x1b[A\n")
        assert expected in t.until(r"\nmt> ")
        assert "type an input, such as: A man is reading a book" in t.ask("")
        assert t.ask("/set max_length 3") == "max_length 3"
        assert expected.startswith(t.ask("A man is reading.")[:5])
        assert "max_length 3" in t.ask("/set") and "batch_size" not in t.ask("/set")
        assert "expected a whole number above 0" in t.ask("/set max_length none")
        assert "--min_length 9 is more than --max_length 3" in t.ask("/set min_length 9")
        assert "no setting 'nonsense'; expected: one of no_sample" in t.ask("/set nonsense 1")
        assert "temperature 0.5; without effect until /set no_sample off" in t.ask("/set temperature 0.5")
        assert t.ask("/set no_sample off") == "no_sample False"
        assert "cut to 128" in t.ask("/set max_length 1000")
        assert "* mt " in t.ask("/tasks") and "/quit" in t.ask("/help")
        assert "the model holds no task 'poem'; expected: one of mt, nlg" in t.ask("/task poem")
        assert "name[The Vaults]" in t.ask("/task nlg")
        assert "no slot in 'A man'" in t.ask("A man", r"\nnlg> ")
        t.type("\x04")
        t.process.join(30)
        assert t.process.exitcode == 0


def test_ctrl_c_stops_the_answer_and_the_conversation_stays_as_it_was(vlm):
    slow = ["--model_checkpoint", vlm, "--task", "dialogue", "--no_sample", "--fp32", "--max_length", "120",
            "--min_length", "120", "--num_beams", "300"]  # fmt: skip
    with Terminal(slow) as t:
        t.until("dialogue> ")
        t.ask("persona: i bake.")
        t.type("half a line")
        t.until("half a line")
        t.interrupt(r"\ndialogue> ")
        t.type("what do you do?\n")
        t.until(r"\n")
        time.sleep(0.2)
        t.type("\x03")
        assert "stopped" in t.until(r"\ndialogue> ", timeout=10)
        assert t.ask("/set num_beams 1") == "num_beams 1"
        t.ask("/set min_length 1")
        assert t.ask("hello")
        assert "what do you do?" not in t.ask("/show")
        t.type("/quit\n")
        t.process.join(30)
        assert t.process.exitcode == 0


@pytest.mark.slow
def test_in_a_shells_pipe_it_answers_and_ends_quietly_when_its_reader_leaves(vlm):
    command = [sys.executable, "interact.py", "--model_checkpoint", vlm, "--task", "mt", "--no_sample"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe) as p:
        p.stdin.write(b"A man is reading.\n")
        p.stdin.flush()
        # The answer comes at once, not when the input ends.
        assert p.stdout.readline() and p.poll() is None
        p.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            p.stdin.write(b"A man.\n" * 3)
            p.stdin.close()
        err = p.stderr.read()
        assert p.wait(60) == 0 and b"Traceback" not in err and b"mt> " not in err
