"""squad-ag, -dbpedia, -yelp, -amazon, -yahoo, -sst, -multinli: text classification."""

import os

from versatile.data.converters.base import given_splits, parsed, skip_bad_flag, split_flags, split_records, usable
from versatile.data.converters.squad_style import sample, squad_format
from versatile.data.files import bare_csv_rows, csv_rows, text_lines
from versatile.utils.errors import UserError, brief

_STARS = ("very negative", "negative", "neutral", "positive", "very positive")
_POLES = ("negative", "positive")
# The answers and their order if there is no classes.txt; ag's four are those in LAMOL's released file.
_CLASSES = {
    "ag": ("World", "Sports", "Business", "Sci/Tech"),
    "dbpedia": ("Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation",
                "Building", "NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork"),
    "yahoo": ("Society & Culture", "Science & Mathematics", "Health", "Education & Reference",
              "Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music",
              "Family & Relationships", "Politics & Government"),
    "yelp": _STARS,
    "amazon": _STARS,
}  # fmt: skip
_COLUMNS = {"ag": 3, "dbpedia": 3, "yelp": 2, "amazon": 3, "yahoo": 4}


# --- the text classification sets of Zhang et al. (2015) -------------------------------------------------


def _flags(name):
    def add(parser):
        split_flags(parser, 1, f"csv file of {_COLUMNS[name]} columns, the first a class from 1, without a header")
        parser.add_argument("--classes", metavar="FILE", help="the classes' names, one per line (default: classes.txt "
                            "next to the first csv file, if there is one, else the published names)")  # fmt: skip
        if name in ("yelp", "amazon"):
            parser.add_argument("--polarity", action="store_true", help="the files belong to the polarity set, with "
                                "two classes (default: five, as in LAMOL)")  # fmt: skip
        skip_bad_flag(parser, "rows")

    return add


def _register(name, what):
    def read(args, report):
        files = given_splits(args)
        classes = _class_names(name, args, next(iter(files.values())))
        five = name in ("yelp", "amazon") and not args.polarity and not args.classes and len(classes) == 5

        def rows(path):
            classify = lambda row, location, drops: _classified(row, location, name, classes)  # noqa: E731
            items = parsed(bare_csv_rows(path), classify, args.skip_bad)
            return _not_two(items, path, classes) if five else items

        return split_records(files, {}, rows, report)

    read.__doc__ = f"""{what}, task {name}: csv files without a header (Zhang et al. 2015).

    The text is the columns after the class, joined by a space; two spaces in a row become one, twice over, as in
    LAMOL's ag file. {"Backslashes stay, as there." if name == "ag" else _ESCAPES} The answer is the class's name.
    LAMOL has 115000 training and 7600 test samples of each of these tasks, drawn by chance: --train_sample,
    --test_sample (some files are in the order of their classes).
    """
    return squad_format(name, _flags(name), name)(read)


_ESCAPES = 'The escapes \\n and \\" become a line break and a quote.'
for _name, _what in (("ag", "AG News"), ("dbpedia", "DBpedia ontology"), ("yelp", "Yelp reviews, five stars"),
                     ("amazon", "Amazon reviews, five stars"), ("yahoo", "Yahoo Answers topics")):  # fmt: skip
    _register(_name, _what)


def choice_question(classes):
    """ "Is this sentence A, B, or C?", as in LAMOL's ag file; "A or B" for two."""
    *first, last = classes
    return f"Is this sentence {', '.join(first)}{',' if len(first) > 1 else ''} or {last}?"


def _class_names(name, args, path):
    default = _POLES if getattr(args, "polarity", False) else _CLASSES[name]
    own_file = os.path.join(os.path.dirname(path), "classes.txt")
    file = args.classes or (own_file if os.path.isfile(own_file) else None)
    if not file:
        return default
    classes = [text.strip() for _, text in text_lines(file) if text.strip()]
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise UserError(f"names {len(classes)} classes: {brief(classes)}", location=file,
                        expected="the name of each class on a line of its own, at least two",
                        remedy="correct it, or name another with --classes FILE")  # fmt: skip
    return tuple(classes)


def _classified(row, location, name, classes):
    if len(row) != _COLUMNS[name]:
        raise UserError(
            f"{len(row)} columns", location=location, expected=f"{_COLUMNS[name]}: the class, then the text"
        )
    number = row[0].strip()
    if not (number.isascii() and number.isdigit() and len(number) < 10 and 1 <= int(number) <= len(classes)):
        raise UserError(f"the class is {brief(row[0])}", location=location,
                        expected=f"a number from 1 to {len(classes)} ({', '.join(classes)[:200]})")  # fmt: skip
    text = " ".join(row[1:])
    if name != "ag":
        text = text.replace("\\n", "\n").replace('\\"', '"')
    usable(text, "the text", location)
    text = text.replace("  ", " ").replace("  ", " ")
    return sample(text, choice_question(classes), [classes[int(number) - 1]])


def _not_two(items, path, classes):
    """The same items; raises `UserError` after the last if only the first two of five classes occur."""
    seen = set()
    for record, drops in items:
        if record:
            seen.add(record["article"]["paragraphs"][0]["qas"][0]["answers"][0]["text"])
        yield record, drops
    if seen and seen <= set(classes[:2]):
        remedy = "add --polarity if it is the polarity set, else name the five with --classes FILE"
        raise UserError("holds no classes but 1 and 2", location=path, expected="five stars", remedy=remedy)


# --- sst, multinli ---------------------------------------------------------------------------------------


def _sst_flags(parser):
    split_flags(parser, 1, "csv file with the columns label (0 or 1) and sentence")
    skip_bad_flag(parser, "rows")


@squad_format("sst", _sst_flags, "sst")
def sst(args, report):
    """Stanford Sentiment Treebank, two classes, task sst: csv files with the columns label and sentence."""

    def parse(row, location, drops):
        label, text = row["label"].strip(), usable(row["sentence"], "the sentence", location)
        if label not in ("0", "1"):
            raise UserError(f"the label is {brief(label)}", location=location, expected="0 (negative) or 1 (positive)")
        return sample(text, "Is this review negative or positive?", [_POLES[int(label)]])

    def read(path):
        remedy = "the files are called train_binary_sent.csv, dev_binary_sent.csv and test_binary_sent.csv"
        return parsed(csv_rows(path, ("label", "sentence"), remedy), parse, args.skip_bad)

    return split_records(given_splits(args), {}, read, report)


_RELATIONS = ("entailment", "neutral", "contradiction")


def _multinli_flags(parser):
    what = "tab-separated files with sentence1, sentence2 and gold_label, one after another (GLUE's, or the txt files)"
    split_flags(parser, "+", what, splits=("train", "valid"))
    skip_bad_flag(parser, "lines")


@squad_format("multinli", _multinli_flags, "multinli.in.out")
def multinli(args, report):
    """MultiNLI, task multinli.in.out: tab-separated files; --valid takes matched and mismatched together.

    The valid split is also the test split. Pairs without a label that the annotators agree on are dropped.
    """

    def parse(row, location, drops):
        if row["gold_label"] == "-":
            drops["without an agreed label"] += 1
            return None
        if row["gold_label"] not in _RELATIONS:
            raise UserError(f"gold_label is {brief(row['gold_label'])}", location=location,
                            expected=f"one of {', '.join(_RELATIONS)}, -")  # fmt: skip
        premise, hypothesis = (usable(row[name], name, location) for name in ("sentence1", "sentence2"))
        question = f'Hypothesis: "{hypothesis}" -- entailment, neutral, or contradiction?'
        return sample(f'Premise: "{premise}"', question, [row["gold_label"]])

    def read(paths):
        return parsed((item for path in paths for item in _tabbed(path)), parse, args.skip_bad)

    return split_records(given_splits(args), {}, read, report)


def _tabbed(path):
    """Yield ("file:line", {column: text}) of a tab-separated file with a header; quotes have no special meaning."""
    header, wanted = None, {"sentence1", "sentence2", "gold_label"}
    for line, text in text_lines(path):
        columns, location = text.rstrip("\r\n").split("\t"), f"{path}:{line}"
        if header is None:
            header = [name.strip() for name in columns]
            if not wanted <= set(header):
                raise UserError(f"its columns are {', '.join(header)[:200]!r}", location=location,
                                expected="a header with sentence1, sentence2 and gold_label",
                                remedy="take the train and dev files; the test files have no labels")  # fmt: skip
        elif len(columns) != len(header):
            yield (
                location,
                UserError(f"{len(columns)} columns", location=location, expected=f"{len(header)}, as the header has"),
            )
        else:
            yield location, dict(zip(header, columns))
    if header is None:
        raise UserError("is empty", location=path, expected="a header with sentence1, sentence2 and gold_label",
                        remedy="check that this is the right file")  # fmt: skip
