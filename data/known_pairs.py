"""The prompts and answers of the toolkit's tasks, from which the forms that a task does not define are built.

Every class here has the interface of `data.own_tasks.OwnTask`, so that `data.views` can build any of the four forms.
"""

import functools
import hashlib
import json
from copy import copy
from pathlib import Path

from versatile.data import question_samples, question_scores, question_tasks
from versatile.data import text_to_text_rows as rows_of
from versatile.data.files import distilled_beside, fingerprint
from versatile.data.json_files import iter_records, split_names
from versatile.data.own_tasks import LONGEST_ANSWER, VALID, answer_text, answers_of, text_of
from versatile.data.text_to_text import SplitRows
from versatile.utils.errors import UserError
from versatile.utils.metrics import Score
from versatile.utils.screen import module_command


class KnownPairs:
    """Base class.

    Attributes:
        name, labels, metrics, question, max_length: as in `OwnTask`; `metrics` are the task's own.
        source: a folder, a file, or the name of a data set on the hub.
        tested: the split that is scored: "test", or "valid" if the test set's answers are withheld.
        own: False, as the task is not user-defined.
    """

    own, definition = False, None
    labels, label_names, question, max_length, prompt, answer, rule = None, None, "", LONGEST_ANSWER, (), "", None

    def __init__(self, task, source):
        self.task, self.name, self.source, self.summary = task, task.name, source, task.summary

    def located(self, data_dir):
        """The same task, read from a directory of several tasks' data; None: from the default place."""
        located = copy(self)
        located.source = self.find_source(data_dir)
        return located

    def split_of(self, split):
        """The split ("train", "valid" or "test") that a system's name for it refers to."""
        split = "valid" if split in VALID else split
        return self.tested if split == "test" else split

    def records(self, split, source=None):
        """Yield (location, {"prompt", "answer"}); a file that a teacher rewrote holds such records."""
        source = source or self.source
        if self.is_rewritten(source):
            yield from iter_records(source, self.split_of(split))
            return
        for location, prompts, answers in self.rows(split, source):
            yield location, {"prompt": self.prompt_text(prompts), "answer": answers if len(answers) > 1 else answers[0]}

    def is_rewritten(self, source):
        """Whether a source is a file of `records`."""
        return Path(source).is_file()

    def example(self, record, location):
        """(prompt, correct answers) of one of `records`."""
        return text_of(record, ("prompt",), location), answers_of(record, ("answer",), location, answer_text)

    def has(self, split, source=None):
        """Whether there are rows of a split."""
        source = source or self.source
        if self.is_rewritten(source):
            return self.split_of(split) in split_names(source)
        return self.holds(split, source)

    def content_key(self, split, source=None):
        """A key that changes with the rows of a split."""
        source = source or self.source
        return fingerprint(source) if self.is_rewritten(source) else self.rows_key(split, source)

    def prompt_text(self, prompts):
        """The prompt as one text."""
        return prompts[0]

    def distilled_path(self, path):
        """The path of a teacher's texts."""
        if Path(path).is_file():
            return distilled_beside(path)
        # The folder also holds other tasks' data.
        return (Path(path) if Path(path).is_dir() else Path()) / f"{self.name}_distilled.json"

    def split_path(self, split):
        """The path that a split is read from, for messages."""
        return Path(self.source)


class TextPairs(KnownPairs):
    """For a task with a text-to-text form: the template's columns and the target."""

    def __init__(self, task):
        self.form = task.forms("text_to_text")[0]
        super().__init__(task, None)
        self.source = self.find_source(None)
        self.metrics, self.labels = self.form.metrics, self.form.answers
        self.tested = "valid" if self.form.splits and self.form.splits["test"] == "validation" else "test"
        if self.labels:
            self.question = task.summary
        else:
            self.max_length = self.form.max_length or LONGEST_ANSWER

    @property
    def prompt(self):
        """The columns that the prompt is made of."""
        return tuple(self.form.fields())

    @property
    def label_names(self):
        """The names of the classes, in the order of `labels`; None for texts and numbers."""
        return tuple(spellings[-1] for spellings in self.form.spellings) if self.form.spellings else None

    def find_source(self, data_dir):
        if data_dir is not None:
            return str(data_dir)
        name, config = self.form.hub or (self.name, None)
        return f"{name}:{config}" if config else name

    def folder(self, source):
        """A source as a data directory; None: the hub."""
        if source == self.find_source(None):
            return None
        if not Path(source).is_dir():
            raise UserError("no such folder", location=source, remedy="check the spelling of the path",
                            expected=f"GLUE's official folders, or a folder that holds a folder {self.form.name}",
                            )  # fmt: skip
        return source

    def rows(self, split, source=None):
        """Yield (location, the template's texts, [target])."""
        for location, texts, target, _ in self.split_rows(split, source or self.source).rows():
            yield location, texts, [target]

    def split_rows(self, split, source):
        split = self.split_of(split)
        return SplitRows(self.form, "validation" if split == "valid" else split, self.folder(source))

    def sentences(self, split):
        """Yield (location, the template's texts, the name of the class)."""
        names = dict(zip(self.labels, self.label_names))
        for location, texts, target, _ in self.split_rows(split, self.source).rows():
            yield location, texts, names[target]

    def prompt_text(self, prompts):
        return self.form.fill(prompts)

    @property
    def sample(self):
        return self.form.fill(["…"] * len(self.prompt))

    def holds(self, split, source):
        if split not in ("train", *VALID, "test") or (split == "test" and self.tested != "test"):
            return False
        return rows_of.holds(self.form, self.split_rows(split, source).names, self.folder(source))

    def rows_key(self, split, source):
        rows = self.split_rows(split, source)
        return _hash(rows_of.content_key(self.form, rows.names, self.folder(source)), repr(self.form), rows.split)

    def score(self, hypotheses, references):
        """{published name: `Score`}, ×100."""
        values = self.form.score(hypotheses, [group[0] for group in references])
        invalid = self.form.invalid(hypotheses)
        return {name: Score(value, f"n:{len(hypotheses)}|invalid:{invalid}|scale:0-100")
                for name, value in values.items()}  # fmt: skip


class MarkerPairs(KnownPairs):
    """For a task with a marker form: its human-readable source, and its target."""

    def __init__(self, task):
        super().__init__(task, task.dataset_path)
        self.tested, self.metrics = task.scored_split, (task.headline,)
        # The test set is hidden: published tasks without a public test set are halved as well.
        self.rule = "halved" if self.tested == "valid" else None

    def find_source(self, data_dir):
        """`<name>.json` in the directory, or the file in it at the default one's path relative to data/."""
        if data_dir is None:
            return self.task.dataset_path
        below = Path(self.task.dataset_path).relative_to("data")
        paths = [Path(data_dir) / name for name in (f"{self.name}.json", f"{self.name}.json.gz", below)]
        return str(next((path for path in paths if path.is_file()), paths[0]))

    def is_rewritten(self, source):
        return False

    def rows(self, split, source=None):
        """Yield (location, [source], [target, further correct texts]); when scored, equal inputs may be merged."""
        from versatile.data import instances

        source, split = source or self.source, self.split_of(split)
        if not Path(source).is_file():
            raise UserError(f"no data of {self.name} here", location=source, expected="the task's json file",
                            remedy=f"name the folder that holds {self.name}.json (data/samples has one), or make the "
                                   f'file: {module_command("data.convert", "--help")}')  # fmt: skip
        options = self.task.read_options(decoding=split != "train")
        if split != "train":
            for example in instances.read_instances(source, split, self.task, options):
                yield example.location, [example.source], [text for text in example.references if text.strip()] or [""]
            return
        for location, record in self.task.records(source, split):
            for example in self.task.training_examples(record, location, options):
                yield example.location, [example.source], [example.target.text]

    def holds(self, split, source):
        return Path(source).is_file() and self.split_of(split) in split_names(source)

    def rows_key(self, split, source):
        return _hash(self.task.content_key(source, split), self.name, self.split_of(split))

    def score(self, hypotheses, references):
        """The task's own scores."""
        return self.task.score(hypotheses, references)[0]


class QuestionPairs(KnownPairs):
    """For a task with a question-answer form: context and question, and the answers.

    Tasks whose scores need more than texts (woz.en, wikisql) are scored on texts alone.
    """

    tested, question = "test", ""

    def __init__(self, task):
        self.form = task.forms("question_answer")[0]
        super().__init__(task, self.find_source(None))
        self.metrics = (self.form.metric if self.form.needs_texts_alone else "em",)
        self.sample = "context, then a question"

    def find_source(self, data_dir):
        return str(data_dir) if data_dir is not None else "data/lifelong"

    def rows(self, split, source=None):
        """Yield (location, [context, question], answers)."""
        source, split = source or self.source, self.split_of(split)
        if not self.has(split, source) and split == "valid" and Path(source).is_dir():
            raise UserError(f"{self.name} has no validation file", location=source,
                            expected=self.form.filename("dev"),
                            remedy="train without one (--no_validation; train_t5.py: leave out --do_eval), or make "
                            "one from some training samples")  # fmt: skip
        for qa in question_samples.read_samples(self.form, source, "dev" if split == "valid" else split):
            yield qa.location, [qa.context, qa.question], list(qa.answers)

    def prompt_text(self, prompts):
        return " ".join(text for prompt in prompts if (text := prompt.strip()))

    def path(self, split, source=None):
        """The file of a split, or None."""
        split = "dev" if self.split_of(split) == "valid" else split
        folder, name = source or self.source, self.form.filename(split)
        return question_tasks.existing_file(folder, name, location=folder,
                                            remedy=f"name it, or make {name}: "
                                            + module_command("data.convert", "--help"),
                                            )  # fmt: skip

    def split_path(self, split):
        return Path(self.path(split) or self.source)

    def holds(self, split, source):
        return split in ("train", *VALID, "test") and Path(source).is_dir() and bool(self.path(split, source))

    def rows_key(self, split, source):
        if not (path := self.path(split, source)):
            next(iter(self.rows(split, source)))
        return _hash(fingerprint(path), self.name)

    def score(self, hypotheses, references):
        return question_scores.score_texts(self.form, hypotheses, references)


def _hash(*parts):
    return hashlib.sha256(json.dumps(list(map(str, parts))).encode()).hexdigest()


@functools.cache
def pairs_of(task):
    """The `KnownPairs` of a `data.task.Task`, or None if it has no training rows of its own."""
    for kind, pairs in (("text_to_text", TextPairs), ("markers", MarkerPairs), ("question_answer", QuestionPairs)):
        if task.forms(kind):
            return pairs(task)
    return None
