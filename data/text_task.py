"""A task as text to text: the wording of its sources and targets, its answers and scores.

The wording, answers and splits of the published tasks are those of Karimi Mahabadi et al. (2021).
"""

import math
from dataclasses import dataclass
from string import Formatter

from versatile.utils import glue_metrics, metrics
from versatile.utils.errors import UserError, brief

TRANSLATION_LENGTH, TRANSLATION_BEAMS = 300, 4

OWN_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
# The hub's test labels are withheld, so the published results are those of the validation set.
NO_TEST = {**OWN_SPLITS, "test": "validation"}
NO_VALIDATION = {**OWN_SPLITS, "validation": "test"}


@dataclass(frozen=True)
class TextTask:
    """One task.

    Attributes:
        name: as on the command line; also its prefix, unless `prefix` is given.
        template: the source; ``{sentence1}`` is a column, ``{endings[0]}`` an item of a column.
        label: the label's column, or for translations the target text's; if there are several, the first that exists.
        spellings: for every answer, the label's spellings in the data, in lower case; None if the target is a score or
            free text.
        answers: the target strings; None for free text.
        metrics: keys of `METRICS`.
        rule: what `split_validation_test` does: ``"halved"``, ``"held out"`` or None; see
            `data.text_to_text.load_rows`.
        splits: this task's names for train, validation and test.
        hub: name and configuration (or None) on the hub; None if it is not there.
        glue: {split: (name in `data.glue.TASKS`, split)} for the official folders.
        no_label: spellings that mean the label is missing; such rows are left out.
        numbers: the type that metrics get answers in: None (text), int or float.
        prefix: text put before the source when training without adapters.
        ambiguous_one: the original files number the two classes from 1, the hub from 0, so "1" alone is ambiguous.
        num_beams, max_length: for decoding; None: the script's beams, the longest answer (`max_target_length`).
    """

    name: str
    template: str
    label: tuple = ("label",)
    spellings: tuple | None = None
    answers: tuple | None = None
    metrics: tuple = ("acc",)
    rule: str | None = None
    splits: dict | None = None
    hub: tuple | None = None
    glue: dict | None = None
    no_label: tuple = ()
    numbers: type | None = None
    prefix: str | None = None
    ambiguous_one: bool = False
    num_beams: int | None = None
    max_length: int | None = None

    # The prompts and answers that the form was built from (`data.views`), if any.
    pairs = None

    def fields(self):
        """The columns and items of columns that the source is made of, in order."""
        return [field for _, field, _, _ in Formatter().parse(self.template) if field]

    def fill(self, texts):
        """The source: the template with a text for each of `fields`."""
        texts, pieces = iter(texts), Formatter().parse(self.template)
        return "".join(before + (next(texts) if field else "") for before, field, _, _ in pieces)

    def target(self, label, location):
        """The target string for a label from the data; an unknown label raises `UserError`."""
        if self.numbers is float:
            return str(round_score(_score(label, location, float(self.answers[-1]))))
        if self.answers is None:
            if not isinstance(label, str):
                raise UserError(f"the target is {brief(label)}", location=location, expected="a text")
            return label
        text = spelling(label)
        for answer, spellings in zip(self.answers, self.spellings):
            if text in spellings:
                return answer
        expected = ", ".join("/".join(spellings) for spellings in self.spellings)
        raise UserError(f"the label is {brief(label)}", location=location, expected=f"one of {expected}",
                        remedy="correct the row, or remove it")  # fmt: skip

    def valid(self, text):
        """Whether a generated text is an answer of the task; any text is if there is no answer set."""
        if self.numbers is float:
            # Not only numbers with one decimal: the metrics take any number.
            return 0 <= self.postprocess(text) <= float(self.answers[-1])
        return self.answers is None or text.strip() in self.answers

    def postprocess(self, text):
        """A generated or gold text as the metrics need it: a number (−1 if it is not one), or the stripped text."""
        text = text.strip()
        if self.numbers is None:
            return text
        try:
            number = self.numbers(text)
        except ValueError:
            number = self.numbers(glue_metrics.INVALID)
        # A long string of digits is not a class and fits no array.
        return number if self.numbers is float or abs(number) < 2**31 else glue_metrics.INVALID

    def score(self, predictions, targets):
        """Scores of N generated texts, ×100.

        Returns:
            {published metric name: value}; correlations start at −100. Texts that are not answers count as wrong.
        """
        predictions, targets = [self.postprocess(x) for x in predictions], [self.postprocess(x) for x in targets]
        scores = {}
        for name in self.metrics:
            scores.update(METRICS[name](predictions, targets))
        return scores

    def invalid(self, predictions):
        """How many of the generated texts are not answers of the task."""
        return sum(not self.valid(text) for text in predictions)

    def max_target_length(self, tokenizer):
        """Tokens of the longest answer, including its end token; 300 for translations."""
        return self.max_length or max(len(tokenizer(answer).input_ids) for answer in self.answers)

    def max_new_tokens(self, tokenizer):
        """Tokens that decoding may generate: as published, the start token counts towards `max_target_length`."""
        return max(1, self.max_target_length(tokenizer) - 1)


# --- metrics: published name -> {published name: value ×100} ---------------------------------------------


def _percent(name, function):
    return lambda predictions, targets: {name: 100 * function(predictions, targets)}


def _bleu(predictions, targets):
    return {"bleu": metrics.bleu(predictions, [[text] for text in targets]).value}


def _rouge(predictions, targets):
    scores = metrics.rouge(predictions, [[text] for text in targets])
    return {name: 100 * score.value for name, score in scores.items()}


METRICS = {
    "acc": _percent("acc", glue_metrics.accuracy),
    "f1": _percent("f1", glue_metrics.f1_with_invalid),
    "mcc": _percent("mcc", glue_metrics.matthews),
    "pearson_corrcoef": _percent("pearson_corrcoef", glue_metrics.pearson_with_invalid),
    "spearman_corrcoef": _percent("spearman_corrcoef", glue_metrics.spearman_with_invalid),
    "bleu": _bleu,
    "rouge": _rouge,
}


def average(scores):
    """The mean of all metric values of all tasks in {task: {metric: value}} (published: average_metrics)."""
    values = [value for task in scores.values() for value in task.values()]
    return sum(values) / len(values)


def round_score(score):
    """An STS-B score as it is written: rounded to one decimal, halves to even (T5's own recipe rounds to 0.2).

    Rounded in single precision, so that 0.85 gives the same answer from a tsv file and from the hub, whose scores are
    float32.
    """
    # Imported here, as converters import this module and need no arrays.
    import numpy as np

    return float(str(np.round(np.float32(score), 1)))


def spelling(label):
    """A label as in `TextTask.spellings`: text in lower case; 1 and 1.0 are "1", True is "true"."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip().lower()


def _score(label, location, highest):
    try:
        value = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value <= highest:
        raise UserError(f"the score is {brief(label)}", location=location, expected=f"a number from 0 to {highest:g}",
                        remedy="correct the row, or remove it")  # fmt: skip
    return value


# --- kinds of tasks --------------------------------------------------------------------------------------


def classification(name, template, labels, hub, **more):
    """A classification task. `labels`: names of the classes in the hub's order; "a/b" is one with two spellings."""
    spellings = tuple((str(i), *label.lower().split("/")) for i, label in enumerate(labels))
    return TextTask(name, template, spellings=spellings, answers=tuple(map(str, range(len(labels)))), hub=hub, **more)


def glue_classification(name, template, labels, official, rule, **more):
    """One of GLUE's tasks; `official` is its name in `data.glue.TASKS`."""
    glue = {"train": (official, "train"), "validation": (official, "dev")}
    more = {"splits": NO_TEST, "glue": glue, "rule": rule, **more}
    return classification(name, template, labels, ("nyu-mll/glue", name), **more)


def multiple_choice(name, template, spellings, hub, answers=None, **more):
    """A multiple-choice task, whose labels have a single spelling."""
    answers = answers or tuple(map(str, range(len(spellings))))
    spellings = tuple((text,) for text in spellings)
    return TextTask(name, template, spellings=spellings, answers=answers, hub=hub, splits=NO_TEST, **more)


def translation(name, source, target, hub):
    """Translation between two languages, given by their codes."""
    names = {"ro": "Romanian", "nl": "Dutch", "en": "English", "cs": "Czech", "fi": "Finnish", "hi": "Hindi"}
    prefix = f"Translate {names[source]} to {names[target]}"
    return TextTask(name, f"{{translation[{source}]}}", (f"translation[{target}]",), metrics=("bleu",), hub=hub,
                    prefix=prefix, num_beams=TRANSLATION_BEAMS, max_length=TRANSLATION_LENGTH)  # fmt: skip


NO_YES, FOLLOWS = ("no", "yes"), ("entailment", "not_entailment")
NLI = ("entailment", "neutral", "contradiction")
PAIR = "sentence1: {sentence1} sentence2: {sentence2}"
PREMISE = "premise: {premise} hypothesis: {hypothesis}"
TENTHS = tuple(str(i / 10) for i in range(51))
