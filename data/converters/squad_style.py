"""Shared by the squad-… formats, which write the data directory of lifelong learning, one json file per split.

The files are LAMOL's (Sun et al. 2020), converted from those of decaNLP (McCann et al. 2018). Where released files are
available (E2E, RNNLG, AG News), they are reproduced to the character. For the other tasks the texts are those of
decaNLP's published code, or those of its most similar task if it does not have the task.
"""

import contextlib
import json
import os
import random
from dataclasses import dataclass
from functools import partial

from versatile.data.converters.base import SPLITS, check_output_directory, data_format, limited
from versatile.data.question_tasks import TASKS
from versatile.utils.flags import positive, seed

_NAMES = {"train": "train", "valid": "dev", "test": "test"}


def squad_format(name, flags, task=None):
    """Register the decorated function, which yields `sample`s or whole articles, as ``convert squad-<name>``.

    Args:
        flags: as in `data_format`.
        task: key of the task in `data.question_tasks`; may contain flags in braces: "rnnlg.{domain}". None: the
            function returns {task: {split: samples}} for several tasks.
    """

    def all_flags(parser):
        flags(parser)
        for split in SPLITS:
            what = f"keep N {split} records drawn by chance, in their order (default: all)"
            parser.add_argument(f"--{split}_sample", type=positive, metavar="N", help=what)
        parser.add_argument("--seed", type=seed, default=0, help="random seed of the drawing (default: 0)")

    return data_format(f"squad-{name}", all_flags, partial(_write, task))


def sample(context, question, answers, id=None, gold=None):
    """One question as an article of its own, as in all of LAMOL's files except SQuAD's.

    Args:
        id: text or number; without one the article has only the keys of LAMOL's text classification files.
        gold: its entry in the file of true answers (`data.question_task.LifelongTask.gold`).
    """
    if id is None:
        question_entry = {"question": question, "answers": [{"text": text} for text in answers]}
        article = {"paragraphs": [{"context": context, "qas": [question_entry]}]}
    else:
        answer_spans = [{"answer_start": None, "text": text} for text in answers]
        question_entry = {"id": id, "answers": answer_spans, "question": question, "is_impossible": False}
        article = {"title": "dummy", "paragraphs": [{"context": context, "qas": [question_entry]}]}
    return {"article": article, "gold": gold}


def _write(task, args, splits, report):
    """Write {split: articles} of a task, or {task: {split: articles}}, all files or none. Without splits, only check
    --output."""
    check_output_directory(args.output, "the directory of the tasks' json files, e.g. data/lifelong",
                           "name a directory; the files in it are named by task and split")  # fmt: skip
    if splits is None:
        return
    by_task = {task.format(**vars(args)): splits} if task else splits
    with contextlib.ExitStack() as files:

        def opened(name):
            return files.enter_context(report.open_output(os.path.join(args.output, name)))

        for name, own_splits in by_task.items():
            _write_splits(TASKS[name], own_splits, opened, args, report)


def _write_splits(task, splits, opened, args, report):
    """Write a task's {split: articles}; `opened` opens an output file by name."""
    for split, samples in splits.items():
        with_gold = split == "test" and task.gold
        file = _Listed(opened(task.filename(_NAMES[split])), '{"data": [', "]}")
        gold = _Listed(opened(task.gold), "[", "]") if with_gold else None
        for item in limited(split, _drawn(split, samples, args, report), args, report):
            file.add(item["article"])
            if gold:
                gold.add(item["gold"])
        for listed in (file, gold) if gold else (file,):
            listed.end()


def _drawn(split, samples, args, report):
    """The samples that --<split>_sample draws, in their original order; only these are kept in memory."""
    size = getattr(args, f"{split}_sample")
    if size is None:
        yield from samples
        return
    # The draw depends on the seed, the split and the number of samples, not on their contents.
    chance, kept, total = random.Random(f"{args.seed} {split}"), [], 0
    for total, item in enumerate(samples, start=1):
        if total <= size:
            kept.append((total, item))
        elif (location := chance.randrange(total)) < size:
            kept[location] = (total, item)
    drawn = report.facts[split].setdefault("drawn by chance", _Drawn())
    drawn.kept, drawn.total = drawn.kept + len(kept), drawn.total + total
    yield from (item for _, item in sorted(kept, key=lambda pair: pair[0]))


@dataclass
class _Drawn:
    """How many samples of all tasks were drawn, as the report shows it."""

    kept: int = 0
    total: int = 0

    def __str__(self):
        return f"{self.kept} of {self.total}"


class _Listed:
    """A json list, written with one item per line."""

    def __init__(self, file, head, tail):
        self.file, self.tail, self.between = file, tail, "\n"
        file.write(head)

    def add(self, item):
        self.file.write(self.between + json.dumps(item, ensure_ascii=False))
        self.between = ",\n"

    def end(self):
        self.file.write(f"\n{self.tail}\n")
