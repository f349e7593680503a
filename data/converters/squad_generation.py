"""squad-e2e, squad-rnnlg, squad-cnn_dailymail, squad-iwslt: text generation."""

import hashlib
import unicodedata

from versatile.data.converters import parallel, summaries  # noqa: F401 (they register the formats that are reused here)
from versatile.data.converters.base import (
    FORMATS,
    given_splits,
    parsed,
    skip_bad_flag,
    split_flags,
    split_records,
    usable,
)
from versatile.data.converters.parallel import iwslt_folder_flag
from versatile.data.converters.squad_style import sample, squad_format
from versatile.data.converters.xml import allow_cut_flag
from versatile.data.files import csv_rows, text_lines
from versatile.data.json_text import loads
from versatile.utils.errors import UserError, brief

_FORM = "what is the natural language form ?"


def _identified(context, answers):
    """A sample with the same id as in L2KD's files: the md5 of its texts. Duplicates share an id."""
    name = hashlib.md5("".join([context, *answers]).encode()).hexdigest()
    return sample(context, _FORM, answers, name)


# --- e2e, rnnlg ------------------------------------------------------------------------------------------


def _e2e_flags(parser):
    split_flags(parser, 1, "csv file with the columns mr and ref")
    parser.add_argument("--single_reference", action="store_true",
                        help="one question per row also in valid and test, as in L2KD's data (default: all references "
                        "of a meaning representation are answers to one question)")  # fmt: skip
    skip_bad_flag(parser, "rows")


@squad_format("e2e", _e2e_flags, "e2enlg")
def e2e(args, report):
    """E2E NLG challenge, task e2enlg: csv files with the columns mr and ref.

    Texts are not changed. Train has one question per row, valid and test one per distinct meaning representation, with
    all its references as answers. L2KD's data contain 6000 training and 2000 test questions, with one text each:
    --train_sample 6000 --test_sample 2000 --single_reference.
    """

    def read(path):
        remedy = "the challenge's trainset.csv, devset.csv and testset_w_refs.csv have them"
        return parsed(csv_rows(path, ("mr", "ref"), remedy), _pair, args.skip_bad)

    splits = split_records(given_splits(args), {}, read, report)
    return {split: _grouped(pairs, split != "train" and not args.single_reference) for split, pairs in splits.items()}


def _pair(row, location, drops):
    for name in ("mr", "ref"):
        usable(row[name], repr(name), location)
    return row["mr"], row["ref"]


def _grouped(pairs, group):
    if not group:
        yield from (_identified(mr, [ref]) for mr, ref in pairs)
        return
    references = {}
    for mr, ref in pairs:
        references.setdefault(mr, []).append(ref)
    yield from (_identified(mr, refs) for mr, refs in references.items())


def _rnnlg_flags(parser):
    parser.add_argument("--domain", choices=("rest", "hotel", "tv", "laptop"), required=True,
                        help="the domain of the files, whose task is rnnlg.<domain> (required)")  # fmt: skip
    split_flags(parser, 1, "json file of one domain, with its lines of comments")
    skip_bad_flag(parser, "items")


@squad_format("rnnlg", _rnnlg_flags, "rnnlg.{domain}")
def rnnlg(args, report):
    """RNNLG (Wen et al. 2016), tasks rnnlg.*: json files of [dialogue act, sentence, sentence].

    As in L2KD's files, train has a question for each of the two sentences (the second is from a handcrafted system),
    valid and test one per act with both as answers. L2KD's training file for laptop has 7944 of the 15888 questions,
    drawn at random: --train_sample 7944.
    """

    def read(split):
        def parse(item, location, drops):
            return _act(item, location, split == "train")

        return parsed(_acts(getattr(args, split)), parse, args.skip_bad)

    return split_records({split: split for split in given_splits(args)}, {}, read, report)


def _acts(path):
    """Yield (location, item) of a json list that follows lines beginning with "#"."""
    lines = [(number, text) for number, text in text_lines(path)]
    start = next((at for at, (_, text) in enumerate(lines) if not text.startswith("#")), len(lines))
    expected = 'lines that begin with #, then a list: [["inform(name=…)", "sentence", "sentence"], …]'
    try:
        items = loads("".join(text for _, text in lines[start:]), path)
    except UserError as error:
        line = start + getattr(error.__cause__, "lineno", 1)
        problem = error.found.replace("is not JSON", "is not valid JSON")
        raise UserError(problem, location=f"{path}:{line}", expected=expected,
                        remedy="copy the file again, or correct it there") from error  # fmt: skip
    if not isinstance(items, list):
        raise UserError(
            f"is {brief(items)}", location=path, expected=expected, remedy="check that this is the right file"
        )
    for number, item in enumerate(items):
        yield f"{path}[{number}]", item


def _act(item, location, apart):
    if not isinstance(item, list) or len(item) != 3:
        raise UserError(brief(item), location=location, expected="a list of three: dialogue act, sentence, sentence")
    for text, what in zip(item, ("the dialogue act", "the first sentence", "the second sentence")):
        usable(text, what, location)
    act, *sentences = item
    return [_identified(act, group) for group in ([[text] for text in sentences] if apart else [sentences])]


# --- cnn_dailymail, iwslt: read as in the formats of those names -----------------------------------------


@squad_format("cnn_dailymail", lambda parser: FORMATS["cnn_dailymail"].flags(parser), "cnn_dailymail")
def cnn_dailymail(args, report):
    """CNN/DailyMail, task cnn_dailymail: csv files (id, article, highlights), or .story files with lists.

    The answer is the highlights on one line, each ending in a full stop; texts are NFKC-normalised. The
    rest is as for the format cnn_dailymail.
    """

    def question_of(record):
        lines = (line if line.endswith(_ENDS) else f"{line}." for line in record["tgt"].split("\n"))
        texts = (unicodedata.normalize("NFKC", text) for text in (record["src"], " ".join(lines)))
        context, answer = texts
        return sample(context, "What is the summary?", [answer])

    splits = FORMATS["cnn_dailymail"].read(args, report)
    return {split: map(question_of, records) for split, records in splits.items()}


_ENDS = (".", "!", "?", "'", "`", '"', "\u2019", "\u201d", ")")


def _iwslt_flags(parser):
    iwslt_folder_flag(parser)
    for split, default in (("valid", "tst2013"), ("test", "tst2014")):
        parser.add_argument(f"--{split}", nargs="+", default=[default], metavar="SET",
                            help=f"sets for the {split} split (default: {default}, as in decaNLP)")  # fmt: skip
    allow_cut_flag(parser, "segments")
    parser.set_defaults(pair="en-de")


@squad_format("iwslt", _iwslt_flags, "iwslt.en.de")
def iwslt(args, report):
    """IWSLT TED talks, English to German, task iwslt.en.de: train.tags.* lines and the sets' xml files.

    decaNLP uses the 2016 edition; sets of the same name have the same talks in that of 2017. Pairs with an empty side
    are dropped.
    """

    def questions_of(split, records):
        for record in records:
            if record["src"] and record["tgt"]:
                yield sample(record["src"], "Translate from English to German", [record["tgt"]])
            else:
                report.dropped[split]["one side empty"] += 1

    return {split: questions_of(split, records) for split, records in FORMATS["iwslt"].read(args, report).items()}
