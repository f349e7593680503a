"""The tasks of LAMOL (Sun et al. 2020) and L2KD (Chuang et al. 2020): their files, and how they are scored."""

import difflib
import os
from dataclasses import dataclass

from versatile.data.own_tasks import get_own_task
from versatile.data.task_names import unknown_task
from versatile.utils.errors import UserError

SPLITS = ("train", "dev", "test", "distil")


@dataclass(frozen=True)
class LifelongTask:
    """One task: the names of its files in the data directory, and its scores.

    Attributes:
        name: the key, e.g. "woz.en".
        kind: what is scored beside em, nf1 and nem: "text" (nothing more), "rouge", "dialogue", "sql", "bleu" or
            "corpus_f1"; see `lifelong.scores`.
        metric: the score of that kind that stands for the task in a matrix of tasks.
        has_dev: the released data have a dev file of it.
        same_test: the dev file is the test file: the true test set is not public.
        gold: the file of the true answers of the test file, where their texts are not enough, or None.
    """

    name: str
    kind: str = "text"
    metric: str = "em"
    has_dev: bool = True
    same_test: bool = False
    gold: str | None = None

    # The user's own definition, of a task that the toolkit does not know.
    own = None

    def filename(self, split):
        """The name of a split's file: "train", "dev", "test", or "distil": the training file a teacher rewrote."""
        if split not in SPLITS:
            raise ValueError(f"{split!r} is none of {SPLITS}")
        split = "dev" if split == "test" and self.same_test else split
        if self.name in _SQUAD:
            return f"squad-{split}-{_SQUAD[self.name]}.json"
        return f"{self.name}_to_squad-{split}-v2.0.json"


_SQUAD = {"squad1": "v1.1", "squad2": "v2.0"}
# decaNLP (McCann et al. 2018) names the score that stands for each of its tasks; its dsEM of a dialogue is the mean of
# joint goals and turn requests.
_ALL = (
    LifelongTask("squad1", metric="nf1", same_test=True),
    LifelongTask("squad2", metric="nf1", same_test=True),
    LifelongTask("iwslt.en.de", "bleu", "bleu"),
    LifelongTask("cnn_dailymail", "rouge", "avg_rouge"),
    LifelongTask("multinli.in.out", "bleu", same_test=True),
    LifelongTask("sst"),
    LifelongTask("srl", metric="nf1"),
    LifelongTask("zre", "corpus_f1", "corpus_f1"),
    LifelongTask("woz.en", "dialogue", "avg_dialogue", gold="woz.en_answers.json"),
    LifelongTask("wikisql", "sql", "lfem", gold="wikisql_answers.json"),
    LifelongTask("schema"),
    *(LifelongTask(name, has_dev=False) for name in ("ag", "dbpedia", "yahoo", "amazon", "yelp")),
    *(
        LifelongTask(name, "rouge", "avg_rouge", has_dev=False)
        for name in ("e2enlg", "e2enlg2", "rnnlg.rest", "rnnlg.hotel", "rnnlg.tv", "rnnlg.laptop")
    ),
)
TASKS = {task.name: task for task in _ALL}


def get(name, place="--tasks"):
    """The `LifelongTask` called `name`; an unknown name is a `UserError` at `place`."""
    if own := get_own_task(name):
        from versatile.data.own_views import as_question_task

        return as_question_task(own)
    if name not in TASKS:
        raise unknown_task(name, TASKS, place)
    return TASKS[name]


def sequence(names, place="--tasks"):
    """The list of `LifelongTask` of a sequence of names: at least one, none twice."""
    tasks = [get(name, place) for name in names]
    twice = sorted({task.name for task in tasks if tasks.count(task) > 1})
    if twice or not tasks:
        raise UserError(f"{' and '.join(twice)} more than once" if twice else "no tasks", place=place,
                        expected="the names of the tasks, each once, in the order they are learned",
                        remedy="correct the list")  # fmt: skip
    return tasks


def find(data_dir, task, split):
    """The path of a task's file of a split, plain or ``.gz``.

    Args:
        data_dir: the directory with the files of all tasks.
        task: a `LifelongTask`.
        split: one of `SPLITS`.

    Returns:
        The path; None for the dev split of a task that has none in the released data, unless a file is there.

    Raises:
        UserError: no such directory or file; it says which file was looked for and what is there.
    """
    if task.own:
        return _find_own(task, split)
    path = _existing(data_dir, task.filename(split))
    if path or (split == "dev" and not task.has_dev):
        return path
    if split == "distil":
        train = task.filename("train")
        remedy = f"let a teacher write it from {train}: --train_teachers, or --teacher_dir DIR with trained ones"
    else:
        remedy = "check the data directory, or make the file from the original data: python -m data.convert --help"
    raise _missing(data_dir, task.filename(split), f"the {split} split of {task.name}", remedy)


def _find_own(task, split):
    """The source of a split of a task of the user's own, or None."""
    if task.own.has(split):
        return task.own.split_path(split)
    if split == "dev":
        return None
    remedy = "let a teacher write it: --train_teachers, or --teacher_dir DIR" if split == "distil" else "add the split"
    raise UserError(f"has no {split} split", place=f"{task.name}={task.own.source}", expected=f"rows of {split}",
                    remedy=remedy)  # fmt: skip


def find_gold(data_dir, task):
    """The path of the file of true answers that `LifelongTask.gold` names, or None where the task has none."""
    if task.gold is None:
        return None
    path = _existing(data_dir, task.gold)
    if not path:
        dataset = task.name.split(".")[0]
        remedy = f"it comes with the test file; python -m data.convert squad-{dataset} writes both"
        raise _missing(data_dir, task.gold, f"the true answers of {task.name}'s test split", remedy)
    return path


def _existing(data_dir, name):
    if not os.path.isdir(data_dir):
        found = "is a file, not a directory" if os.path.exists(data_dir) else "no such directory"
        raise UserError(found, place=f"--data_dir {data_dir}", expected="the directory of the tasks' json files",
                        remedy="check the path for a typing error")  # fmt: skip
    paths = (os.path.join(data_dir, candidate) for candidate in (name, f"{name}.gz"))
    return next((path for path in paths if os.path.isfile(path)), None)


def _missing(data_dir, name, what, remedy):
    there = sorted(entry for entry in os.listdir(data_dir) if entry.endswith((".json", ".json.gz")))
    # What is called alike comes first: a wrong version or split is easier to see.
    close = difflib.get_close_matches(name, there, n=5, cutoff=0.7)
    there = close + [entry for entry in there if entry not in close]
    shown = ", ".join(there[:12]) + (f" and {len(there) - 12} more" if len(there) > 12 else "")
    return UserError(f"no {name}; its json files are: {shown or 'none'}", place=f"--data_dir {data_dir}",
                     expected=f"{name} or {name}.gz: {what}", remedy=remedy)  # fmt: skip
