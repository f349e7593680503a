"""Tasks as text to text for encoder-decoders: one record each, and where their rows come from.

An example is ``source`` ("sentence1: … sentence2: …"), ``target`` (a digit string, a score, or a translation) and
``task``. The wording, answers and splits are those of Karimi Mahabadi et al. (2021). Rows come from files of the
user's own, GLUE's official folders (`data.glue`), or the Hugging Face hub.

Deliberate differences to the published code:

* with `split_validation_test` the 1000 training rows that serve as validation leave the training set;
* `n_obs` −1 means all rows, where it dropped the last one;
* rows without a gold label (−1 or "-" in SNLI) are left out, where they were learned as the answer "-1".
"""

import logging
import math
from dataclasses import dataclass
from string import Formatter

import numpy as np
from versatile.data import text_to_text_rows as rows_of
from versatile.data.own_tasks import get_own_task
from versatile.data.task_names import unknown_task
from versatile.utils import glue_metrics, metrics
from versatile.utils.errors import UserError, brief

SPLITS = ("train", "validation", "test")
HELD_OUT_ROWS = 1000
"""Training rows that become the validation set of a task whose rule is ``"held out"``."""
TRANSLATION_LENGTH, TRANSLATION_BEAMS = 300, 4

_OWN = {"train": "train", "validation": "validation", "test": "test"}
# The hub's test labels are withheld, so the published results are those of the validation set.
_NO_TEST = {**_OWN, "test": "validation"}
_NO_VALIDATION = {**_OWN, "validation": "test"}


@dataclass(frozen=True)
class TextTask:
    """One task.

    Attributes:
        name: as on the command line; also its prefix, unless `prefix` is given.
        template: the source; ``{sentence1}`` is a column, ``{endings[0]}`` an item of a column.
        label: the column of the label; for translations that of the target text. Several: the first that exists.
        spellings: for every answer the label's spellings in the data, in small letters; None where the target is
            a score or a text.
        answers: the target strings; None for a text.
        metrics: keys of `METRICS`.
        rule: what `split_validation_test` does: ``"halved"``, ``"held out"`` or None; see `load`.
        splits: this task's name for train, validation and test.
        hub: name and configuration (or None) on the hub; None where it is not there.
        glue: {split: (name in `data.glue.TASKS`, split)} for the official folders.
        no_label: spellings of a label that is missing; such rows are left out.
        numbers: what answers are to the metrics: None (as they stand), int or float.
        prefix: what stands before the source without adapters.
        ambiguous_one: the original files number the two classes from 1, the hub from 0: "1" says nothing alone.
        num_beams, max_length: of decoding; None: the script's beams, the longest answer (`max_target_length`).
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

    # The user's own definition, of a task that the toolkit does not know.
    own = None

    def fields(self):
        """The columns and items of columns that the source is made of, in their order."""
        return [field for _, field, _, _ in Formatter().parse(self.template) if field]

    def target(self, label, place):
        """The target string of a label as the data has it; a `UserError` for an unknown one."""
        if self.numbers is float:
            return str(round_score(_score(label, place)))
        if self.answers is None:
            if not isinstance(label, str):
                raise UserError(f"the target is {brief(label)}", place=place, expected="a text")
            return label
        text = spelling(label)
        for answer, spellings in zip(self.answers, self.spellings):
            if text in spellings:
                return answer
        expected = ", ".join("/".join(spellings) for spellings in self.spellings)
        raise UserError(f"the label is {brief(label)}", place=place, expected=f"one of {expected}",
                        remedy="correct the row, or take it out")  # fmt: skip

    def valid(self, text):
        """Whether a generated text is an answer of the task; any text is one where there is no answer set."""
        if self.numbers is float:
            # Not only those to one digit: the metrics take any number.
            return 0 <= self.postprocess(text) <= float(self.answers[-1])
        return self.answers is None or text.strip() in self.answers

    def postprocess(self, text):
        """A generated or gold text as the metrics want it: a number (−1 where it is none), or the stripped text."""
        text = text.strip()
        if self.numbers is None:
            return text
        try:
            number = self.numbers(text)
        except ValueError:
            number = self.numbers(glue_metrics.INVALID)
        # A long row of digits is no class, and no array holds it.
        return number if self.numbers is float or abs(number) < 2**31 else glue_metrics.INVALID

    def score(self, predictions, targets):
        """Scores of N generated texts, ×100.

        Returns:
            {published metric name: value}; correlations go from −100. Texts that are no answer count as wrong.
        """
        predictions, targets = [self.postprocess(x) for x in predictions], [self.postprocess(x) for x in targets]
        scores = {}
        for name in self.metrics:
            scores.update(METRICS[name](predictions, targets))
        return scores

    def invalid(self, predictions):
        """How many of the generated texts are no answer of the task."""
        return sum(not self.valid(text) for text in predictions)

    def max_target_length(self, tokenizer):
        """Tokens of the longest answer, its end token counted; 300 for translations."""
        return self.max_length or max(len(tokenizer(answer).input_ids) for answer in self.answers)

    def max_new_tokens(self, tokenizer):
        """Tokens that decoding may add: as published, the start token is one of `max_target_length`."""
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
    """The mean over all metric values of all tasks, of {task: {metric: value}} (published: average_metrics)."""
    values = [value for task in scores.values() for value in task.values()]
    return sum(values) / len(values)


def round_score(score):
    """An STS-B score as it is written: to one digit, halves to even (T5's own recipe rounds to 0.2).

    In single precision, so that 0.85 is the same answer from a tsv file and from the hub, whose scores are float32.
    """
    return float(str(np.round(np.float32(score), 1)))


def spelling(label):
    """A label as `TextTask.spellings` has it: text in small letters; 1 and 1.0 are "1", True is "true"."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip().lower()


def _score(label, place):
    try:
        value = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"the score is {brief(label)}", place=place, expected="a number", remedy="correct the row")
    return value


# --- the tasks -------------------------------------------------------------------------------------------


def _classes(name, template, labels, hub, **more):
    """A classification task. labels: names of the classes in the hub's order; "a/b" has two spellings."""
    spellings = tuple((str(i), *label.lower().split("/")) for i, label in enumerate(labels))
    return TextTask(name, template, spellings=spellings, answers=tuple(map(str, range(len(labels)))), hub=hub, **more)


def _glue(name, template, labels, folder, rule, **more):
    glue = {"train": (folder, "train"), "validation": (folder, "dev")}
    more = {"splits": _NO_TEST, "glue": glue, "rule": rule, **more}
    return _classes(name, template, labels, ("nyu-mll/glue", name), **more)


def _choices(name, template, spellings, hub, answers=None, **more):
    """A multiple choice task, whose labels are spelt in one way only."""
    answers = answers or tuple(map(str, range(len(spellings))))
    spellings = tuple((text,) for text in spellings)
    return TextTask(name, template, spellings=spellings, answers=answers, hub=hub, splits=_NO_TEST, **more)


def _translation(name, source, target, hub):
    names = {"ro": "Romanian", "nl": "Dutch", "en": "English", "cs": "Czech", "fi": "Finnish", "hi": "Hindi"}
    prefix = f"Translate {names[source]} to {names[target]}"
    return TextTask(name, f"{{translation[{source}]}}", (f"translation[{target}]",), metrics=("bleu",), hub=hub,
                    prefix=prefix, num_beams=TRANSLATION_BEAMS, max_length=TRANSLATION_LENGTH)  # fmt: skip


_NO_YES, _FOLLOWS = ("no", "yes"), ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_PAIR = "sentence1: {sentence1} sentence2: {sentence2}"
_PREMISE = "premise: {premise} hypothesis: {hypothesis}"
_SUPERGLUE = "aps/super_glue"
_TENTHS = tuple(str(np.round(i / 10, 1)) for i in range(51))
_MNLI = {"splits": {"train": "train", "validation": "validation_mismatched", "test": "validation_matched"},
         "glue": {"train": ("mnli", "train"), "validation_mismatched": ("mnli-mm", "dev"),
                  "validation_matched": ("mnli", "dev")}}  # fmt: skip

_ALL = (
    _glue("rte", _PAIR, _FOLLOWS, "rte", "halved"),
    _glue("sst2", "sentence: {sentence}", ("negative", "positive"), "sst-2", "held out"),
    _glue("mrpc", _PAIR, ("not_equivalent", "equivalent"), "mrpc", "halved", metrics=("f1", "acc"), numbers=int),
    TextTask("stsb", _PAIR, answers=_TENTHS, metrics=("pearson_corrcoef", "spearman_corrcoef"), numbers=float,
             rule="halved", splits=_NO_TEST, hub=("nyu-mll/glue", "stsb"),
             glue={"train": ("sts-b", "train"), "validation": ("sts-b", "dev")}),
    _glue("qqp", "question1: {question1} question2: {question2}", ("not_duplicate", "duplicate"), "qqp", "held out",
          metrics=("f1", "acc"), numbers=int),
    # No colon after "hypothesis": published so.
    _glue("mnli", "premise: {premise} hypothesis {hypothesis}", _NLI, "mnli", None, **_MNLI),
    _glue("qnli", "question: {question} sentence: {sentence}", _FOLLOWS, "qnli", "held out"),
    _glue("cola", "sentence: {sentence}", ("unacceptable", "acceptable"), "cola", "halved", metrics=("mcc",),
          numbers=int),
    _glue("wnli", _PAIR, ("not_entailment", "entailment"), "wnli", "halved"),
    _classes("imdb", "{text}", ("neg", "pos"), ("stanfordnlp/imdb", None), rule="halved", splits=_NO_VALIDATION),
    _classes("yelp_polarity", "sentence: {text}", ("neg", "pos"), ("fancyzhx/yelp_polarity", None), rule="held out",
             splits=_NO_VALIDATION, ambiguous_one=True),
    _classes("trec", "sentence: {text}", ("abbr", "enty", "desc", "hum", "loc", "num"), ("CogComp/trec", None),
             label=("coarse_label", "label-coarse"), rule="halved", splits=_NO_VALIDATION),
    _classes("paws", _PAIR, _NO_YES, ("google-research-datasets/paws", "labeled_final")),
    _classes("scitail", _PAIR, ("entailment", "neutral"), ("allenai/scitail", "snli_format"), label=("gold_label",)),
    # Not on the hub in these columns: to be had as files only.
    _classes("sick", _PREMISE, _NLI, None, rule="halved"),
    _classes("snli", _PREMISE, _NLI, ("stanfordnlp/snli", None), no_label=("-1", "-")),
    _classes("superglue-cb", _PREMISE, ("entailment", "contradiction", "neutral"), (_SUPERGLUE, "cb"), rule="halved",
             splits=_NO_TEST),
    _classes("superglue-rte", _PREMISE, _FOLLOWS, (_SUPERGLUE, "rte"), splits=_NO_TEST),
    _classes("superglue-boolq", "question: {question} passage: {passage}", ("false", "true"), (_SUPERGLUE, "boolq"),
             rule="halved", splits=_NO_TEST),
    _choices("social_i_qa", "question: {question} context: {context} answerA: {answerA} answerB: {answerB} "
             "answerC: {answerC}", "123", ("allenai/social_i_qa", None), rule="held out"),
    _choices("cosmos_qa", "question: {question} context: {context} answer0: {answer0} answer1: {answer1} "
             "answer2: {answer2} answer3: {answer3}", "0123", ("allenai/cosmos_qa", None), rule="held out"),
    _choices("winogrande", "sentence: {sentence} option1: {option1} option2: {option2}", "12",
             ("allenai/winogrande", "winogrande_l"), ("1", "2"), label=("answer",), rule="held out"),
    _choices("hellaswag", "ctx: {ctx} ending0: {endings[0]} ending1: {endings[1]} ending2: {endings[2]} "
             "ending3: {endings[3]}", "0123", ("Rowan/hellaswag", None), rule="held out"),
    _choices("commonsense_qa", "question: {question} A: {choices[text][0]} B: {choices[text][1]} "
             "C: {choices[text][2]} D: {choices[text][3]} E: {choices[text][4]}", "abcde",
             ("tau/commonsense_qa", None), label=("answerKey",), rule="halved"),
    _translation("iwslt2017-ro-nl", "ro", "nl", ("IWSLT/iwslt2017", "iwslt2017-ro-nl")),
    _translation("iwslt2017-en-nl", "en", "nl", ("IWSLT/iwslt2017", "iwslt2017-en-nl")),
    _translation("wmt16-en-ro", "en", "ro", ("wmt/wmt16", "ro-en")),
    _translation("wmt16-ro-en", "ro", "en", ("wmt/wmt16", "ro-en")),
    _translation("wmt16-en-cs", "en", "cs", ("wmt/wmt16", "cs-en")),
    _translation("wmt16-en-fi", "en", "fi", ("wmt/wmt16", "fi-en")),
    # From English, whatever its name says.
    _translation("wmt14-hi-en", "en", "hi", ("wmt/wmt14", "hi-en")),
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}


def get(name):
    """The `TextTask` of a name; a `UserError` for an unknown one."""
    if own := get_own_task(name):
        from versatile.data.own_views import as_text_task

        return as_text_task(own)
    if name not in TASKS:
        raise unknown_task(name, TASKS)
    return TASKS[name]


# --- loading ---------------------------------------------------------------------------------------------


def load(task, split, data_dir=None, files=None, seed=42, split_validation_test=False, n_obs=None, prefix=False):
    """A split of a task as text to text.

    Where its rows come from: `files`, if given; else ``data_dir/<task>`` with files of those names, or GLUE's
    official folder in `data_dir`; else the hub.

    With `split_validation_test` (published for tasks without labelled test data) a ``"halved"`` task has the first
    half of ``randperm(seed)`` of its validation set as validation and the rest as test; a ``"held out"`` one has
    the first 1000 of ``randperm(seed)`` of its training set as validation, the others as training set, and the
    original validation set as test. Of 1000 rows and fewer, half is held out.

    Args:
        task: a key of `TASKS`, or a `TextTask`.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        data_dir: folder of the user's own or of GLUE's official folders.
        files: a folder with ``{train,validation,test}.{json,jsonl,csv,tsv}``, or {split: file}; the columns are
            named as on the hub.
        seed: of the permutations above and of `n_obs`.
        n_obs: take so many rows, drawn by ``randperm(seed)``; None or a negative number: all.
        prefix: put the task's prefix before every source (published: without adapters).

    Returns:
        `datasets.Dataset` with the string columns source, target and task; the rows stay in the file's order
        where nothing is drawn.

    Raises:
        UserError: an unknown task or split; files or columns missing, labels unknown, with their place; the hub
            out of reach; no rows.
    """
    from datasets import Dataset, Features, Value

    task = task if isinstance(task, TextTask) else get(task)
    pairs = list(SplitRows(task, split, data_dir, files, seed, split_validation_test, n_obs, prefix))
    sources, targets = zip(*pairs)
    columns = {"source": sources, "target": targets, "task": [task.name] * len(pairs)}
    return Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Value("string"))))


class SplitRows:
    """Iterates over (source, target) of a split, with the arguments of `load`; no row stays in memory."""

    def __init__(self, task, split, data_dir=None, files=None, seed=42, split_validation_test=False, n_obs=None,
                 prefix=False):  # fmt: skip
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}", expected=f"one of {' '.join(SPLITS)}")
        if n_obs == 0:
            raise UserError("0 rows are asked for", expected="1 or more, or -1 for all",
                            remedy="raise the number of rows")  # fmt: skip
        self.task, self.split, self.data_dir, self.files = task, split, data_dir, files
        self.seed, self.n_obs, self.held_out, self.prefix = seed, n_obs, split_validation_test, prefix
        self.names = _split_names(task, split, split_validation_test)

    def __iter__(self):
        task = self.task
        records, place = rows_of.find(task, self.names, self.data_dir, self.files)
        if task.ambiguous_one and not hasattr(records, "select"):
            _check_numbering(task, records, place)
        order = _labelled(task, records, place)
        order = order[_chosen(task, self.split, self.held_out, len(order), self.seed, self.n_obs)]
        if not len(order):
            raise UserError(f"{task.name}: no rows are left for {self.split}", expected="at least one",
                            remedy="give it more rows, or leave out --split_validation_test")  # fmt: skip
        head = f"{task.prefix or task.name} " if self.prefix else ""
        chosen = records.select(order) if hasattr(records, "select") else map(records.__getitem__, order)
        blank = 0
        for index, record in zip(order.tolist(), chosen):
            here = place(index)
            target = task.target(rows_of.value(record, task.label, here), here)
            if target.strip():
                yield head + _source(task, record, here), target
            else:
                blank += 1
        self._report_blank(blank, len(order), place(int(order[0])))

    def _report_blank(self, blank, size, where):
        # A blank target is a withheld one: nothing can be trained on it or scored against it.
        if blank == size:
            raise UserError(f"{self.task.name}: the targets of all {size} rows for {self.split} are blank", place=where,
                            expected="target texts", remedy="name the file with the true targets; they may be "
                            "withheld in this one")  # fmt: skip
        if blank:
            logging.getLogger(__name__).warning("%s: %d of %d rows for %s have a blank target and are left out",
                                                self.task.name, blank, size, self.split)  # fmt: skip


def test_is_validation(task, data_dir=None, split_validation_test=False):
    """Whether a task's validation and test rows are read from the same place, and are not divided."""
    if split_validation_test and task.rule:
        return False
    names = [_split_names(task, split, split_validation_test) for split in ("validation", "test")]
    one, other = (rows_of.origin(task, found, data_dir) for found in names)
    return one == other


def _split_names(task, split, split_validation_test):
    """Names under which the rows of a split may lie, the best first."""
    splits = task.splits or _OWN
    if split_validation_test and task.rule == "halved" and split != "train":
        return ["validation", splits["validation"]]
    if split_validation_test and task.rule == "held out":
        return ["train"] if split != "test" else ["validation", splits["validation"]]
    return [split, splits[split]]


def _chosen(task, split, split_validation_test, size, seed, n_obs):
    """[rows] which of `size` rows a split has, and in which order."""
    rule = task.rule if split_validation_test else None
    rest = {"halved": "test", "held out": "train"}.get(rule)
    count = None if n_obs is None or n_obs < 0 else n_obs
    if rule is None or split not in ("validation", rest):
        return np.arange(size) if count is None else _permutation(size, seed)[:count]
    order, first = _permutation(size, seed), size // 2
    if rule == "held out" and size > HELD_OUT_ROWS:
        first = HELD_OUT_ROWS
    return (order[:first] if split == "validation" else order[first:])[:count]


def _permutation(size, seed):
    import torch

    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).numpy()


def _labelled(task, records, place):
    """[rows] numbers of the rows that have a label."""
    if not task.no_label:
        return np.arange(len(records))
    column = task.label[0]
    labels = records[column] if hasattr(records, "select") else (
        rows_of.value(record, task.label, place(i)) for i, record in enumerate(records))  # fmt: skip
    return np.flatnonzero(np.fromiter((spelling(label) not in task.no_label for label in labels), bool))


def _check_numbering(task, records, place):
    """A `UserError` where the user's own rows number the classes from 1, or where nobody can tell.

    All rows are looked at: a few drawn ones could all be of the class that has "1" in both numberings.
    """
    labels = set()
    for i, record in enumerate(records):
        label = rows_of.value(record, task.label, place(i))
        if spelling(label) == "2":
            raise UserError("the label is 2: the classes are numbered from 1, as in the original files", place=place(i),
                            expected="0 for neg and 1 for pos, as on the hub, or the names",
                            remedy="write neg for 1 and pos for 2")  # fmt: skip
        # A number comes from a json file, which is no original.
        labels.add(label.strip() if isinstance(label, str) else None)
    if labels == {"1"}:
        raise UserError("every label is 1, which is neg in the original files and pos on the hub", place=place(0),
                        expected="labels that say what they mean", remedy="write neg or pos")  # fmt: skip


def _source(task, record, place):
    texts = {}
    for field in task.fields():
        text = rows_of.value(record, (field,), place)
        if not isinstance(text, str):
            raise UserError(f"{field!r} is {brief(text)}", place=place, expected="a text", remedy="correct the row")
        texts[field] = text
    pieces = Formatter().parse(task.template)
    return "".join(before + (texts[field] if field else "") for before, field, _, _ in pieces)
