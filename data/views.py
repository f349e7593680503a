"""Prompts and answers in the form that each of the four encoders takes: with markers, as text to text, as a question
and its answer, or as one or two sentences with a class.

They come from a user-defined task (`data.own_tasks.OwnTask`), or from a task that the toolkit has in another form
(`data.known_pairs.KnownPairs`).
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from versatile.data.glue_task import GlueExample, GlueTask
from versatile.data.hub import is_on_hub
from versatile.data.own_tasks import default_metrics, split_names_of_json
from versatile.data.question_samples import QA
from versatile.data.question_task import LifelongTask
from versatile.data.row_store import RowStore
from versatile.data.task import ReadOptions, add_task
from versatile.data.text_pair import TextPair
from versatile.data.text_task import TextTask
from versatile.utils.errors import UserError

# Nothing is published for these tasks: settings published for adapters of the same kind.
PUBLISHED = {
    "finetune": dict(lr=5e-5, n_epochs=3, train_batch_size=8, gradient_accumulation_steps=2),
    "adapter": dict(lr=1e-3, n_epochs=5, train_batch_size=8, gradient_accumulation_steps=2, adapter_bottleneck=64),
}


class MarkerTask(TextPair):
    """With markers, for a decoder or an encoder-decoder."""

    min_tokens = 1
    published = PUBLISHED

    def __init__(self, pairs):
        self.pairs, self.name, self.summary = pairs, pairs.name, pairs.summary
        self.markers = tuple(f"<{part}_{pairs.name}>" for part in ("bos", "eos", "prompt", "answer"))
        self.bos, self.eos = self.markers[:2]
        self.dataset_path, self.sample = pairs.source, pairs.sample
        self.headline, self.scored_split = headline_of(pairs), pairs.tested

    @property
    def definition(self):
        return self.pairs.definition

    def data_path(self, path, distilled=False):
        if distilled and (rewritten := self.distilled_path(path or self.dataset_path)).is_file():
            return str(rewritten)
        if path and path != self.dataset_path and not Path(path).exists():
            raise UserError("no such file or folder", location=path, remedy="check the spelling of the path")
        if path and self.pairs.own and Path(path).is_file():
            split_names_of_json(Path(path))
        return path or self.dataset_path

    def distilled_path(self, path):
        return self.pairs.distilled_path(path)

    def typed_name(self):
        return f"{self.name}={self.pairs.source}" if self.pairs.own else self.name

    def has_data(self):
        return Path(self.dataset_path).exists() or (self.pairs.own and is_on_hub(self.dataset_path))

    def can_read(self, path):
        return Path(path).exists() or (path == self.dataset_path and self.has_data())

    def records(self, path, split):
        return self.pairs.records(split, path)

    def has_split(self, path, split):
        return self.pairs.has(split, path)

    def contents(self, path):
        for split in ("train", "valid", "test"):
            if self.pairs.has(split, path):
                yield split, iter(self.pairs.records(split, path))

    def content_key(self, path, split):
        return self.pairs.content_key(split, path)

    def examples(self, record, location, options=ReadOptions()):
        prompt, answers = self.pairs.example(record, location)
        yield self.assemble(prompt, answers[0], answers, location)

    def score(self, hypotheses, references, details=None):
        return self.pairs.score(hypotheses, references), []


def headline_of(pairs):
    """The score that represents a task."""
    return {"rouge": "rougeLsum"}.get(pairs.metrics[0], pairs.metrics[0])


@dataclass(frozen=True)
class PairsTextTask(TextTask):
    """As text to text, for a T5; answers are the words themselves."""

    pairs: object = None

    def score(self, predictions, targets):
        """As `TextTask.score`; a target may be a list of correct texts."""
        groups = [[target] if isinstance(target, str) else target for target in targets]
        return {name: score.value for name, score in self.pairs.score(predictions, groups).items()}

    def records(self, split, data_dir=None):
        """(records with the columns prompt, answer and answers, function from a row's number to its location)."""
        pairs = self.pairs.located(data_dir)
        rows = RowStore(
            (location, {"prompt": pairs.prompt_text(prompts), "answer": answers[0], "answers": answers})
            for location, prompts, answers in pairs.rows(split)
        )
        return rows, rows.location


def as_text_task(pairs):
    """Prompts and answers as a `PairsTextTask`."""
    spellings = tuple((label.strip().lower(),) for label in pairs.labels) if pairs.labels else None
    if spellings and len(set(spellings)) < len(spellings):
        raise UserError("labels differ only in capital letters", location=pairs.source, remedy="rename one of them")
    return PairsTextTask(pairs.name, "{prompt}", ("answer",), spellings, pairs.labels, pairs.metrics, pairs=pairs,
                         rule=pairs.rule, max_length=None if pairs.labels else pairs.max_length)  # fmt: skip


@dataclass(frozen=True)
class PairsQuestionTask(LifelongTask):
    """As a question and its answer, for LAMOL and L2KD."""

    pairs: object = None

    def filename(self, split):
        return f"{self.name}:{split}"

    def samples(self, split, data_dir=None):
        """Yield the `QA`s of a split."""
        pairs = self.pairs.located(data_dir)
        for location, prompts, answers in pairs.rows(split):
            answers = tuple(answers if split == "test" else answers[:1])
            yield QA(pairs.prompt_text(prompts), pairs.question, answers, location=location)


def as_question_task(pairs):
    """Prompts and answers as a `PairsQuestionTask`."""
    return PairsQuestionTask(pairs.name, "own", headline_of(pairs), pairs=pairs)


@dataclass(frozen=True)
class PairsGlueTask(GlueTask):
    """As one or two sentences with a class, for a BERT."""

    pairs: object = None

    def path(self, split, data_dir=None):
        """The path of a split's file, which need not exist."""
        pairs = self.pairs.located(data_dir)
        return pairs.split_path(split) if pairs.has(split) else Path(pairs.source) / f"{split}.jsonl"

    def has(self, split, data_dir=None):
        """Whether there are rows of a split."""
        return self.pairs.located(data_dir).has(split)

    def content_key(self, split, data_dir=None):
        """A key that changes with the rows of a split."""
        return self.pairs.located(data_dir).content_key(split)

    def read(self, split, data_dir=None):
        """Yield `GlueExample`s; the label is None in a test split without answers."""
        for number, (location, texts, label) in enumerate(self.pairs.located(data_dir).sentences(split)):
            yield GlueExample(number, texts[0], texts[1] if len(texts) > 1 else None, label, location)


def as_glue_task(pairs):
    """Prompts and answers with labels as a `PairsGlueTask`."""
    if not pairs.label_names:
        raise UserError("has no list of classes", location=pairs.source, expected="a classification task")
    if len(pairs.prompt) > 2:
        raise UserError(f"has {len(pairs.prompt)} columns in its prompt", location=pairs.source,
                        expected="one or two sentences",
                        remedy="name two columns in task.json" if pairs.own else None)  # fmt: skip
    metrics = [_CLASS_METRICS[name] for name in pairs.metrics if name in _CLASS_METRICS]
    if not metrics:
        raise UserError(f"is scored by {', '.join(pairs.metrics)}", location=pairs.source,
                        expected="accuracy, exact_match or f1",
                        remedy='name one in task.json: "metrics": ["accuracy"]')  # fmt: skip
    return PairsGlueTask(pairs.name, pairs.name, pairs.prompt or ("prompt",), pairs.answer or "answer",
                         pairs.label_names, tuple(dict.fromkeys(metrics)),
                         dict.fromkeys(("train", "dev", "test"), ()),
                         f"{re.sub('[^A-Za-z0-9]', '-', pairs.name)}.tsv", pairs=pairs)  # fmt: skip


_CLASS_METRICS = {"accuracy": "accuracy", "exact_match": "accuracy", "acc": "accuracy", "f1": "macro_f1"}
FORMS = {"markers": MarkerTask, "text_to_text": as_text_task, "question_answer": as_question_task,
         "sentence_pair": as_glue_task}  # fmt: skip


class PairsTask(MarkerTask):
    """A data set of prompts and answers that the toolkit includes, in all forms; see `add_pairs`."""

    definition = None

    def __init__(self, pairs, summary, aliases):
        super().__init__(pairs)
        self.summary, self.aliases = summary, tuple(aliases)
        self.text_to_text, self.question_answer = as_text_task(pairs), as_question_task(pairs)
        # Without labels there is nothing to classify.
        self.sentence_pair = as_glue_task(pairs) if pairs.labels else None

    def typed_name(self):
        return self.name

    def has_data(self):
        return Path(self.dataset_path).exists()


def add_pairs(pairs, summary, aliases=()):
    """Register a data set of prompts and answers as a task of all systems; a file in data/tasks/ needs nothing else.

    Args:
        pairs: an `OwnTask`; its source is a folder, a file or a name on the hub.
        summary: one line for `--list_tasks`.
        aliases: other names, in lower case.
    """
    pairs = replace(pairs, metrics=pairs.metrics or default_metrics(pairs.labels))
    add_task(PairsTask(pairs, summary, aliases))
