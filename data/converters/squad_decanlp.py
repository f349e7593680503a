"""squad-zre, -schema: relations as questions and Winograd schemas, in decaNLP's files (McCann et al. 2018)."""

import itertools
import re

from versatile.data.converters.base import given_splits, kept, parsed, skip_bad_flag, split_flags, split_records, usable
from versatile.data.converters.squad_style import sample, squad_format
from versatile.data.files import text_lines
from versatile.utils.errors import UserError, brief

# --- zre: relations as questions -------------------------------------------------------------------------

UNANSWERABLE = "unanswerable"


def _zre_flags(parser):
    split_flags(parser, 1, "tab-separated file of questions, e.g. relation_splits/train.0")
    skip_bad_flag(parser, "lines")


@squad_format("zre", _zre_flags, "zre")
def zre(args, report):
    """QA-ZRE (Levy et al. 2017), task zre: files of relation_splits, e.g. train.0, dev.0, test.0.

    A line has a relation, a question in which XXX stands for its subject, the subject, the sentence, and then any
    answers. The answer is all of them joined by ", ", or "unanswerable".
    """

    def read(path):
        rows = ((f"{path}:{number}", line) for number, line in text_lines(path) if line.strip())
        for count, (record, drops) in enumerate(parsed(rows, _relation, args.skip_bad)):
            yield record and sample(*record, count), drops

    return split_records(given_splits(args), {}, read, report)


def _relation(line, location, drops):
    columns = [column.strip() for column in line.split("\t")]
    if len(columns) < 4:
        raise UserError(f"{len(columns)} columns", location=location,
                        expected="a relation, a question, its subject and a sentence, separated by tabs",
                        remedy="name a file of relation_splits, such as train.0")  # fmt: skip
    _, question, subject, context, *answers = columns
    question = usable(question, "the question", location).replace("XXX", usable(subject, "the subject", location))
    return usable(context, "the sentence", location), question, [", ".join(filter(None, answers)) or UNANSWERABLE]


# --- schema: who the pronoun refers to -------------------------------------------------------------------

TRAIN, TEST = 80, 100
_CHOICE = re.compile(r"\[([^\]/]*)/([^\]]*)\]")


def _schema_flags(parser):
    parser.add_argument("--schemas", metavar="FILE", required=True, help="text file of schemas, decaNLP's schema.txt")
    parser.set_defaults(train=None, valid=None, test=None)


@squad_format("schema", _schema_flags, "schema")
def schema(args, report):
    """Winograd schemas (Levesque et al. 2012) in decaNLP's form, task schema: one file, schema.txt.

    A schema is three lines and an empty one: a sentence and a question, in which [a/b] is read as a and as b, and the
    two answers, a/b. Each gives two questions, which end in the two answers, "… councilmen or demonstrators?". The
    first 80 questions are for training, the last 100 for testing and the rest for validation, as in decaNLP. (Its code
    takes everything between the first [ and the last ] of a line as one choice; here each pair of brackets is one.)
    """
    questions = [question for schema in _schemas(args.schemas) for question in _both(*schema)]
    if len(questions) <= TRAIN + TEST:
        raise UserError(f"{len(questions) // 2} schemas", location=args.schemas, remedy="name the whole schema.txt",
                        expected=f"more than {(TRAIN + TEST) // 2}: the first {TRAIN // 2} are for training, the last "
                                 f"{TEST // 2} for the test")  # fmt: skip
    samples = [(sample(*question, number), {}) for number, question in enumerate(questions)]
    parts = dict(train=samples[:TRAIN], valid=samples[TRAIN:-TEST], test=samples[-TEST:])
    return {split: kept(part, split, report) for split, part in parts.items()}


def _schemas(path):
    """Yield (location, [sentence, question, answers]) for every schema; empty lines separate them."""
    lines = ((number, line.strip()) for number, line in text_lines(path))
    for filled, group in itertools.groupby(lines, key=lambda pair: bool(pair[1])):
        if filled:
            numbers, texts = zip(*group)
            location = f"{path}:{numbers[0]}"
            if len(texts) != 3:
                raise UserError(f"a schema of {len(texts)} lines", location=location,
                                expected="a sentence, a question and two answers, then an empty line",
                                remedy="correct the file")  # fmt: skip
            yield location, texts


def _both(location, lines):
    """[(context, question, [answer])] of a schema, its first form and its second."""
    sentence, question, answers = lines
    if not _CHOICE.search(sentence):
        raise UserError(f"no choice in {brief(sentence)}", location=location, expected="a sentence with [one/other]",
                        remedy="correct the file")  # fmt: skip
    both = [answer.strip() for answer in answers.split("/")]
    if len(both) != 2 or not all(both):
        raise UserError(f"the answers are {brief(answers)}", location=location, expected="one/other",
                        remedy="correct the file")  # fmt: skip
    return [(_CHOICE.sub(form, sentence), f"{_CHOICE.sub(form, question)} {both[0]} or {both[1]}?", [answer])
            for form, answer in zip((r"\1", r"\2"), both)]  # fmt: skip
