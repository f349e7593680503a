"""A task of the user's own as each of the four encoders takes it: with markers, as text to text, as a question and its
answer, as a sentence or pair of sentences with a class."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from versatile.data.glue import GlueExample
from versatile.data.glue_task import GlueTask
from versatile.data.own_tasks import OwnTask, default_metrics
from versatile.data.question_samples import QA
from versatile.data.question_task import LifelongTask
from versatile.data.row_store import RowStore
from versatile.data.task import Example, Reading, Span, add_task, distilled_beside
from versatile.data.text_pair import TextPair
from versatile.data.text_task import TextTask
from versatile.utils.errors import UserError

# Nothing is published for it: what adapters of its kind were published with.
PUBLISHED = {
    "finetune": dict(lr=5e-5, n_epochs=3, train_batch_size=8, gradient_accumulation_steps=2),
    "adapter": dict(lr=1e-3, n_epochs=5, train_batch_size=8, gradient_accumulation_steps=2, adapter_bottleneck=64),
}


class MarkerTask(TextPair):
    """With markers, for a decoder or an encoder-decoder."""

    min_tokens = 1
    published = PUBLISHED

    def __init__(self, own):
        self.own, self.name = own, own.name
        self.summary = f"your own: {own.source}"
        self.markers = tuple(f"<{part}_{own.name}>" for part in ("bos", "eos", "prompt", "answer"))
        self.bos, self.eos = self.markers[:2]
        self.dataset_path = own.source
        self.headline = {"rouge": "rougeLsum"}.get(own.metrics[0], own.metrics[0])
        self.sample = "a prompt, as in your data"

    @property
    def definition(self):
        return self.own.to_json()

    def data_path(self, given, distilled=False):
        path = given or self.dataset_path
        beside = distilled_beside(path)
        if distilled and beside.is_file():
            return str(beside)
        if given and not Path(given).exists():
            raise UserError("no such file or folder", location=given, remedy="check the path for a typing error")
        return path

    def typed_name(self):
        return f"{self.name}={self.own.source}"

    def has_data(self):
        return True

    def records(self, path, split):
        return self.own.records(split, path)

    def contents(self, path):
        for split in ("train", "valid", "test"):
            if self.own.has(split, path):
                yield split, iter(self.own.records(split, path))

    def content_key(self, path, split):
        return self.own.content_key(split, path)

    def examples(self, record, location, how=Reading()):
        answers = self.own.answers(record, location)
        target = record.get("distillated_tgt") if how.distilled else answers[0]
        if not isinstance(target, str):
            raise UserError("has no 'distillated_tgt'", location=location, expected="'distillated_tgt': a string",
                            remedy="let a teacher write it: python sentence_distiller.py --help")  # fmt: skip
        prompt = self.own.prompt_text(self.own.prompts(record, location))
        yield self.assemble(prompt, target, answers, location)

    def assemble(self, source, target="", references=(), location=""):
        return Example(
            [Span(self.markers[2], source)], Span(self.markers[3], target), source, list(references), location
        )

    def score(self, hypotheses, references, details=None):
        return self.own.score(hypotheses, references), []


@dataclass(frozen=True)
class OwnTextTask(TextTask):
    """As text to text, for a T5: answers stay words."""

    own: OwnTask | None = None

    def score(self, predictions, targets):
        return {name: score.value for name, score in self.own.score(predictions, [[t] for t in targets]).items()}

    def records(self, split):
        """(records with the columns prompt and answer, row number -> its location)."""
        rows = RowStore(
            (location, {"prompt": self.own.prompt_text(prompts), "answer": answers[0]})
            for location, prompts, answers in self.own.rows(split)
        )
        return rows, rows.location


def as_text_task(own):
    """`OwnTextTask` of an `OwnTask`."""
    spellings = tuple((label.strip().lower(),) for label in own.labels) if own.labels else None
    if spellings and len(set(spellings)) < len(spellings):
        raise UserError("labels differ in capital letters alone", location=own.source, remedy="rename one of them")
    return OwnTextTask(own.name, "{prompt}", ("answer",), spellings, own.labels, own.metrics, own=own,
                       max_length=None if own.labels else own.max_length)  # fmt: skip


@dataclass(frozen=True)
class OwnQuestionTask(LifelongTask):
    """As a question and its answer, for LAMOL and L2KD."""

    own: OwnTask | None = None

    def filename(self, split):
        return f"{self.name}:{split}"

    def samples(self, split):
        """Yield the `QA`s of a split."""
        for location, prompts, answers in self.own.rows(split):
            answers = tuple(answers if split == "test" else answers[:1])
            yield QA(self.own.prompt_text(prompts), self.own.question, answers, location=location)


def as_question_task(own):
    """`OwnQuestionTask` of an `OwnTask`."""
    headline = {"rouge": "rougeLsum"}.get(own.metrics[0], own.metrics[0])
    return OwnQuestionTask(own.name, "own", headline, own=own)


@dataclass(frozen=True)
class OwnGlueTask(GlueTask):
    """As one or two sentences with a class, for a BERT."""

    own: OwnTask | None = None

    def path(self, split):
        """The file of a split, which need not exist."""
        if not self.own.has(split):
            return Path(self.own.source) / f"{split}.jsonl"
        return self.own.split_path(split)

    def content_key(self, split):
        """See `OwnTask.content_key`."""
        return self.own.content_key(split)

    def read(self, split):
        """Yield `GlueExample`; of a test split without answers the label is None."""
        for number, (location, record) in enumerate(self.own.records(split)):
            texts = self.own.prompts(record, location)
            answered = split != "test" or (self.own.answer or "answer") in record or "tgt" in record
            label = self.own.answers(record, location)[0].strip() if answered else None
            yield GlueExample(number, texts[0], texts[1] if len(texts) > 1 else None, label, location)


def as_glue_task(own):
    """`OwnGlueTask` of an `OwnTask` with labels."""
    if len(own.prompt) > 2:
        raise UserError(
            f"the prompt has {len(own.prompt)} columns",
            location=own.source,
            expected="one or two sentences",
            remedy="name two columns in task.json",
        )
    metrics = [{"f1": "macro_f1"}.get(name, "accuracy") for name in own.metrics if name in _CLASS_METRICS]
    if not metrics:
        raise UserError(f"is scored by {', '.join(own.metrics)}", location=own.source,
                        expected="accuracy, exact_match or f1",
                        remedy='name one in task.json: "metrics": ["accuracy"]')  # fmt: skip
    return OwnGlueTask(own.name, own.name, own.prompt or ("prompt",), own.answer or "answer", own.labels,
                       tuple(dict.fromkeys(metrics)), dict.fromkeys(("train", "dev", "test"), ()),
                       f"{re.sub('[^A-Za-z0-9]', '-', own.name)}.tsv", own=own)  # fmt: skip


_CLASS_METRICS = ("accuracy", "exact_match", "f1")
FORMS = {"text_to_text": as_text_task, "question_answer": as_question_task, "sentence_pair": as_glue_task}


class PairsTask(MarkerTask):
    """A data set of prompts and answers that the toolkit knows, in all forms; see `add_pairs`."""

    definition = None

    def __init__(self, own, summary, aliases):
        super().__init__(own)
        self.summary, self.aliases = summary, tuple(aliases)
        self.text_to_text, self.question_answer = as_text_task(own), as_question_task(own)
        # Without labels there is nothing to classify.
        self.sentence_pair = as_glue_task(own) if own.labels else None

    def typed_name(self):
        return self.name

    def has_data(self):
        return Path(self.dataset_path).exists()


def add_pairs(own, summary, aliases=()):
    """Make a data set of prompts and answers a task of all systems: all that a file in data/tasks/ needs to hold.

    Args:
        own: an `OwnTask`; its source is a folder, a file or a name on the hub.
        summary: one line for `--list_tasks`.
        aliases: other names, in small letters.
    """
    own = replace(own, metrics=own.metrics or default_metrics(own.labels))
    add_task(PairsTask(own, summary, aliases))
