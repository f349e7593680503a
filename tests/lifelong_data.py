"""Tiny data of lifelong tasks, and the commands that learn them."""

import json

from lifelong import samples
from lifelong.samples import QA
from lifelong.tasks import TASKS

WORDS = ("the park", "a river", "an old house", "the city", "two children", "a book", "the library", "his teacher")
ANSWERS = {"ag": ("World", "Sports"), "sst": ("positive", "negative"), "schema": ("left", "right")}


def questions(task, count, start=0):
    """A task's samples; the answer follows from the context."""
    made = []
    for i in range(start, start + count):
        answer = i % 2
        context = f"{WORDS[i % 8]} near {WORDS[(i // 2) % 8]} {'is cheap' if answer else 'serves food'}"
        made.append(QA(context, f"what of {task}?", (ANSWERS[task][answer],), f"{task}-{i}"))
    return made


def write(folder, tasks=("ag", "sst"), train=10, test=4):
    """The files of these tasks; returns the folder."""
    for task in tasks:
        samples.save(folder / TASKS[task].filename("train"), questions(task, train))
        samples.save(folder / TASKS[task].filename("test"), questions(task, test, start=train))
    return folder


def command(data, out, mode, *more, tasks=("ag", "sst"), model="tiny-gpt2", batch=4):
    """The flags of train_lifelong.py for a run of seconds."""
    return ["--data_dir", str(data), "--model_dir_root", str(out), "--output_dir", str(out), "--tasks", *tasks,
            "--seq_train_type", mode, "--model_name", model, "--train_batch_size", str(batch), "--max_len", "48",
            "--n_train_epochs", "2", "--lr", "1e-3", "--gen_lm_sample_percentage", "0.4", "--fp32",
            *map(str, more)]  # fmt: skip


def report(folder):
    """What training_metrics.json holds."""
    return json.loads((folder / "training_metrics.json").read_text(encoding="utf-8"))
