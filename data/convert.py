"""Turn public data sets, in their original files, into the toolkit's task json.

    python -m data.convert e2e --train e2e/trainset.csv --valid e2e/devset.csv \\
        --test e2e/testset_w_refs.csv --output data/NLG/data.json
    python -m data.convert e2e --train e2e/trainset.csv --valid_from_train 300 --test e2e/devset.csv \\
        --output data/NLG/data.json
    python -m data.convert multi30k --folder multi30k --output data/NMT/data_en_ge.json
    python -m data.convert iwslt --folder iwslt2017 --pair en-de --output data/NMT/data_en_ge.json
    python -m data.convert parallel --source_lang en --target_lang de --train train.en.gz train.de.gz \\
        --valid val.en.gz val.de.gz --test test.en.gz test.de.gz --output data/NMT/data_en_ge.json
    python -m data.convert e2e --help

Text files are UTF-8, plain or ``.gz``. White space at the ends of a text is taken off; nothing else in it
changes. The output holds one record a line and appears only when it is whole; the same files and flags
give the same bytes. What was kept and dropped, and why, is printed.

A new format is one function here: it takes (args, report) and returns ``{split: iterator of records}``.
"""

import argparse
import collections
import contextlib
import dataclasses
import html
import itertools
import json
import os
import re
import sys
from pathlib import Path
from xml.parsers import expat

from data.files import csv_rows, open_bytes, text_lines
from data.tasks.nlg import SLOTS as E2E_SLOTS
from utils.errors import UserError, exit_on_user_error
from utils.files import atomic_write

IWSLT_TESTS = ("tst2010", "tst2011", "tst2012", "tst2013", "tst2014", "tst2015")
SPLITS = ("train", "valid", "test")


@dataclasses.dataclass
class Format:
    """How one public format is read: its flags and its function."""

    flags: object
    read: object


FORMATS = {}


def data_format(name, flags):
    """Register the decorated function as ``python -m data.convert <name>``.

    Args:
        flags: called with the format's argparse parser, to add the format's own flags.
    """

    def register(read):
        if name in FORMATS:
            raise ValueError(f"two formats are called {name!r}: {FORMATS[name].read} and {read}")
        FORMATS[name] = Format(flags, read)
        return read

    return register


class Report:
    """What a conversion kept and dropped, by split."""

    def __init__(self):
        self.kept = collections.Counter()
        self.dropped = collections.defaultdict(collections.Counter)
        self.facts = collections.defaultdict(dict)
        self.notes = []

    def lines(self):
        """The report as lines of text."""
        for split in SPLITS:
            if split not in self.kept:
                yield f"{split}: none, so the output has no {split} split"
                continue
            reasons = self.dropped[split]
            why = f" ({', '.join(f'{count} {reason}' for reason, count in reasons.items())})" if reasons else ""
            yield f"{split}: kept {self.kept[split]}, dropped {sum(reasons.values())}{why}"
            for name, value in self.facts[split].items():
                yield f"  {name}: {value}"
        yield from self.notes


# --- e2e: restaurant descriptions from meaning representations -------------------------------------------


def _e2e_flags(parser):
    _split_flags(parser, 1, "csv file with the columns mr and ref")
    parser.add_argument("--skip_bad", action="store_true",
                        help="drop and count rows that cannot be parsed (default: stop at the first)")
    parser.add_argument("--valid_from_train", type=_at_least_one, metavar="N",
                        help="instead of --valid: hold the last N distinct MRs of the training file out, with all "
                             "their rows (default: none)")


@data_format("e2e", _e2e_flags)
def e2e(args, report):
    """E2E NLG challenge: csv files with the columns mr and ref.

    Train holds one record a row. Valid and test hold one record a distinct meaning representation, with all
    its references. Where the challenge's test file is not at hand, --test may name the devset again (the
    report says so); without --test the output has no test split.
    """
    given = _given(args)
    if args.valid and args.test and os.path.realpath(args.valid) == os.path.realpath(args.test):
        report.notes.append("note: test is the same file as valid, so its scores are not held out")
    if not args.valid_from_train:
        read = {"train": _e2e_train, "valid": _e2e_grouped, "test": _e2e_grouped}
        return {split: read[split](_e2e_rows(path, split, args.skip_bad, report), split, report)
                for split, path in given.items()}
    if args.valid or not args.train:
        raise UserError("goes with --train and without --valid", place="--valid_from_train",
                        remedy="give one or the other")
    held = _e2e_held_out(args.train, args.valid_from_train, args.skip_bad)
    rows = _e2e_rows(args.train, "train", args.skip_bad, report)
    again = _e2e_rows(args.train, "valid", True, Report())
    splits = {"train": _e2e_train((row for row in rows if row[0] not in held), "train", report),
              "valid": _e2e_grouped((row for row in again if row[0] in held), "valid", report)}
    if args.test:
        splits["test"] = _e2e_grouped(_e2e_rows(args.test, "test", args.skip_bad, report), "test", report)
    return splits


def _e2e_held_out(path, number, skip_bad):
    """The last `number` distinct MRs of a file, in order of first appearance."""
    mrs = list(dict.fromkeys(mr for mr, _, _ in _e2e_rows(path, "train", skip_bad, Report())))
    if number >= len(mrs):
        raise UserError(f"the training file has {len(mrs)} distinct MRs", place=f"--valid_from_train {number}",
                        expected=f"fewer than {len(mrs)}")
    return set(mrs[-number:])


def _e2e_train(rows, split, report):
    seen = set()
    for count, (mr, src, ref) in enumerate(rows, start=1):
        seen.add(mr)
        report.facts[split].update(_e2e_facts(len(seen), count))
        yield {"src": src, "tgt": ref}


def _e2e_grouped(rows, split, report):
    records, references = {}, 0
    for mr, src, ref in rows:
        records.setdefault(mr, {"src": src, "tgt": ref, "refs": []})["refs"].append(ref)
    for count, record in enumerate(records.values(), start=1):
        references += len(record["refs"])
        report.facts[split].update(_e2e_facts(count, references))
        yield record


def _e2e_facts(distinct, references):
    return {"distinct MRs": distinct, "references": references,
            "references per MR": f"{references / distinct:.2f}"}


def _e2e_rows(path, split, skip_bad, report):
    """Yield (mr, {slot: value}, reference) for the usable rows of a file."""
    parsed = {}
    for place, row in csv_rows(path, ("mr", "ref"), "the challenge's files trainset.csv, devset.csv and "
                                "testset_w_refs.csv have them (testset.csv has no references)"):
        try:
            if isinstance(row, UserError):
                raise row
            mr, ref = row["mr"].strip(), row["ref"].strip()
            if mr not in parsed:
                parsed[mr] = _parse_mr(mr, place)
        except UserError as error:
            if not skip_bad:
                raise UserError(error.found, place=place, expected=error.expected,
                                remedy="correct the row, or drop such rows with --skip_bad") from error
            report.dropped[split]["malformed"] += 1
            continue
        if not ref:
            report.dropped[split]["empty reference"] += 1
            continue
        yield mr, parsed[mr], ref


def _parse_mr(mr, place):
    """``"name[The Vaults], food[Thai]"`` as a dict in the same order; values may hold balanced brackets."""
    slots, at = {}, 0
    expected = "slot[value], slot[value], …"
    while True:
        opening = mr.find("[", at)
        closing = _closing_bracket(mr, opening) if opening >= 0 else -1
        if closing < 0:
            raise UserError(f"malformed MR: no [value] in {mr[at:at + 60]!r}", place=place, expected=expected)
        slot, value = mr[at:opening].strip(), mr[opening + 1:closing].strip()
        if slot not in E2E_SLOTS:
            raise UserError(f"unknown slot {slot[:60]!r}", place=place,
                            expected=f"one of {', '.join(E2E_SLOTS)}")
        if slot in slots:
            raise UserError(f"malformed MR: two values for {slot!r}", place=place, expected="each slot once")
        if not value:
            raise UserError(f"malformed MR: {slot!r} is empty", place=place, expected=expected)
        slots[slot] = value
        rest = mr[closing + 1:].lstrip()
        if not rest:
            return slots
        if not rest.startswith(","):
            raise UserError(f"malformed MR: no comma before {rest[:60]!r}", place=place, expected=expected)
        at = len(mr) - len(rest) + 1


def _closing_bracket(text, opening):
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "[") - (text[at] == "]")
        if not depth:
            return at
    return -1


# --- translation: two files side by side -----------------------------------------------------------------


def _parallel_flags(parser):
    _language_flags(parser, "language of the first file of each pair", "language of the second file")
    _split_flags(parser, 2, "source file and target file, a sentence a line")


@data_format("parallel", _parallel_flags)
def parallel(args, report):
    """Parallel text: a source file and a target file, one sentence a line.

    A training pair with an empty side is dropped. A valid or test pair is dropped only when both sides are
    empty.
    """
    given = _given(args)
    for split, (source, target) in given.items():
        endings = tuple(Path(str(path).removesuffix(".gz")).suffix for path in (source, target))
        if endings == (f".{args.target_lang}", f".{args.source_lang}"):
            raise UserError(f"{source} {target} seem to be in the wrong order", place=f"--{split}",
                            expected=f"the {args.source_lang} file, then the {args.target_lang} file",
                            remedy="swap the files, or --source_lang and --target_lang")
    return {split: _parallel_records(*map(_plain_lines, pair), pair, split, report)
            for split, pair in given.items()}


def _multi30k_flags(parser):
    parser.add_argument("--folder", required=True, help="folder with train.en, train.de, val.en, … (or .gz)")
    parser.add_argument("--test_set", default="test_2017_flickr",
                        help="files for the test split, e.g. test_2016_flickr (default: test_2017_flickr)")
    _language_flags(parser, "language to translate from", "language to translate to")


@data_format("multi30k", _multi30k_flags)
def multi30k(args, report):
    """Multi30k task 1: the folder with the raw files, plain or .gz."""
    splits, languages = {}, (args.source_lang, args.target_lang)
    for split, name in (("train", "train"), ("valid", "val"), ("test", args.test_set)):
        pair = [_find((args.folder,), f"{name}.{language}") for language in languages]
        splits[split] = _parallel_records(*map(_plain_lines, pair), pair, split, report)
    return splits


def _iwslt_flags(parser):
    parser.add_argument("--folder", required=True, help="the unpacked archive: train.tags.* and IWSLT17.*.xml")
    parser.add_argument("--pair", default="en-de", help="source-target, as in the file names (default: en-de)")
    parser.add_argument("--valid", nargs="+", default=["dev2010"], metavar="SET",
                        help="sets for the valid split (default: dev2010)")
    parser.add_argument("--test", nargs="+", default=list(IWSLT_TESTS), metavar="SET",
                        help=f"sets for the test split, one after another (default: {' '.join(IWSLT_TESTS)})")
    parser.add_argument("--allow_cut", action="store_true",
                        help="use the whole segments of an xml file that ends too early (default: stop)")


@data_format("iwslt", _iwslt_flags)
def iwslt(args, report):
    """IWSLT 2017 TED talks: train.tags.* lines and IWSLT17.TED.<set>.* xml files.

    The lines about a talk (its title, speaker, keywords, …) are left out and counted.
    """
    languages = args.pair.split("-")
    if len(languages) != 2 or not all(languages) or os.sep in args.pair:
        raise UserError(f"{args.pair!r} is not a language pair", place="--pair", expected="e.g. en-de",
                        remedy="write it as in the file names")
    folders = (args.folder, os.path.join(args.folder, args.pair))
    pair = [_find(folders, f"train.tags.{args.pair}.{language}") for language in languages]
    metadata = report.dropped["train"]
    cut = report.notes if args.allow_cut else None
    splits = {"train": _parallel_records(_tagged_lines(pair[0], metadata), _tagged_lines(pair[1]), pair,
                                         "train", report)}
    for split, sets in (("valid", args.valid), ("test", args.test)):
        pairs = [[_find(folders, f"IWSLT17.TED.{name}.{args.pair}.{language}.xml") for language in languages]
                 for name in sets]
        splits[split] = itertools.chain.from_iterable(
            _parallel_records(*(_segments(path, cut) for path in pair), pair, split, report)
            for pair in pairs)
    return splits


def _parallel_records(sources, targets, paths, split, report):
    """Pair two streams of (key, line, text); the keys must agree (a talk, a segment, or None)."""
    for count, (source, target) in enumerate(itertools.zip_longest(sources, targets)):
        if source is None or target is None:
            more = 1 + sum(1 for _ in (targets if source is None else sources))
            numbers = (count, count + more) if source is None else (count + more, count)
            raise UserError(f"{numbers[0]} sentences, but {paths[1]} has {numbers[1]}", place=paths[0],
                            expected="as many in both files", remedy="check that the two belong together")
        if source[0] != target[0]:
            raise UserError(f"is {source[0]}, but {paths[1]}:{target[1]} is {target[0]}",
                            place=f"{paths[0]}:{source[1]}", expected="the same talk and segment in both files",
                            remedy="check that the two belong together and are whole")
        src, tgt = source[2].strip(), target[2].strip()
        if not src and not tgt:
            report.dropped[split]["both sides empty"] += 1
        elif split == "train" and not (src and tgt):
            report.dropped[split]["one side empty"] += 1
        else:
            if not (src and tgt):
                facts = report.facts[split]
                facts["kept with one side empty"] = facts.get("kept with one side empty", 0) + 1
            yield {"src": src, "tgt": tgt}


# A real sentence that begins with some other tag stays; only these describe a talk.
_METADATA = re.compile(r"\s*</?(doc|url|keywords|speaker|talkid|title|description|reviewer|translator)\b[^>]*>")
_TALK = re.compile(r"\s*<talkid>\s*(\d+)")
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")


def _plain_lines(path):
    return ((None, line, text) for line, text in text_lines(path))


def _tagged_lines(path, dropped=None):
    """The sentences of a train.tags file, keyed by talk; metadata lines are counted in `dropped`."""
    talk = "outside any talk"
    for line, text in text_lines(path):
        if _METADATA.match(text):
            if found := _TALK.match(text):
                talk = f"in talk {found[1]}"
            if dropped is not None:
                dropped["metadata lines"] += 1
        else:
            yield talk, line, _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


_CUT = expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS]


def _segments(path, cut=None):
    """The <seg> texts of an xml file, keyed by talk and segment.

    A file without its closing tags is an error, or, with a list `cut`, noted there.
    """
    found, state = [], {"talk": None, "segment": None}

    def start(tag, attributes):
        if tag == "doc":
            state["talk"] = attributes.get("docid")
        if tag == "seg":
            key = f"segment {attributes.get('id')} of talk {state['talk']}"
            state["segment"] = (key, parser.CurrentLineNumber, [])

    def end(tag):
        if tag == "seg" and state["segment"]:
            key, line, texts = state["segment"]
            found.append((key, line, "".join(texts)))
            state["segment"] = None

    def text(piece):
        if state["segment"]:
            state["segment"][2].append(piece)

    def doctype(*_):
        # Entities defined in a document can make it expand without end; these files define none.
        raise UserError("declares a document type", place=f"{path}:{parser.CurrentLineNumber}",
                        expected="the xml as published, without <!DOCTYPE …>", remedy="take that line out")

    parser = expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, doctype
    with open_bytes(path) as file:
        for block in itertools.chain(iter(lambda: file.read(1 << 16), b""), (b"",)):
            try:
                parser.Parse(block, not block)
            except expat.ExpatError as error:
                if not block and error.code == _CUT and state["talk"]:
                    if cut is not None:
                        cut.append(f"note: {path} ends before its closing tags")
                        break
                    raise UserError("ends before its closing tags", place=f"{path}:{error.lineno}",
                                    expected="a whole xml file",
                                    remedy="copy it again, or use what there is with --allow_cut") from error
                reason = f"{expat.ErrorString(error.code)} (column {error.offset + 1})"
                raise UserError(f"is not valid xml: {reason}", place=f"{path}:{error.lineno}",
                                expected="a whole, well-formed xml file",
                                remedy="copy the file again, or correct it there") from error
            yield from found
            found.clear()


# --- finding the files -----------------------------------------------------------------------------------


def _find(folders, name):
    """The file called `name` or `name`.gz in one of the folders."""
    for folder in folders:
        for candidate in (name, f"{name}.gz"):
            if os.path.isfile(os.path.join(folder, candidate)):
                return os.path.join(folder, candidate)
    there = []
    with contextlib.suppress(OSError, ValueError):
        there = sorted(os.listdir(folders[0]))
    shown = ", ".join(there[:30]) + (", …" if len(there) > 30 else "")
    raise UserError(f"no {name} or {name}.gz; it holds: {shown or 'nothing'}", place=f"--folder {folders[0]}",
                    expected="the data set's files under their published names",
                    remedy="check the folder and the set or language named in the flags")


def _given(args):
    """{split: what its flag gives}, at least one."""
    given = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    if not given:
        raise UserError("no files were given", place="--train/--valid/--test", expected="at least one of them",
                        remedy="name the files, e.g. --train FILE --valid FILE")
    return given


# --- the command line ------------------------------------------------------------------------------------


def _split_flags(parser, number, what):
    for split in SPLITS:
        parser.add_argument(f"--{split}", nargs=number if number > 1 else None,
                            metavar=("SOURCE", "TARGET") if number > 1 else "FILE",
                            help=f"{what} (default: none, and no {split} split)")


def _language_flags(parser, source, target):
    parser.add_argument("--source_lang", default="en", help=f"{source} (default: en)")
    parser.add_argument("--target_lang", default="de", help=f"{target} (default: de)")


def _at_least_one(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def build_parser():
    """The argparse parser with one sub-command a format."""
    parser = argparse.ArgumentParser(prog="python -m data.convert", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, chosen in FORMATS.items():
        first_line = chosen.read.__doc__.split("\n")[0]
        sub = formats.add_parser(name, help=first_line, description=chosen.read.__doc__, allow_abbrev=False)
        chosen.flags(sub)
        sub.add_argument("--output", required=True, help="the task json to write (required)")
        for split in SPLITS:
            sub.add_argument(f"--{split}_limit", type=_at_least_one, metavar="N",
                             help=f"keep only the first N {split} records (default: all)")
    return parser


def convert(argv=None):
    """Run one conversion; returns its `Report`. Every fault of the input is a `UserError`."""
    args = build_parser().parse_args(argv)
    output = args.output
    if not output.endswith(".json") or os.path.isdir(output):
        # Also keeps a slip of the flags from overwriting the data set itself.
        found = "is a directory" if os.path.isdir(output) else "is not a .json name"
        raise UserError(found, place=f"--output {output}",
                        expected="the task json to write, e.g. data/NLG/data.json", remedy="name a .json file")
    report = Report()
    splits = FORMATS[args.format].read(args, report)
    try:
        with atomic_write(output) as file:
            _write(file, splits, args, report)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", place=f"--output {output}",
                        remedy="choose a directory you may write to") from error
    report.notes.append(f"wrote {output}")
    return report


def _write(file, splits, args, report):
    """Write {split: records} as json, a record a line."""
    for number, (split, records) in enumerate(splits.items()):
        file.write((",\n" if number else "{\n") + f"{json.dumps(split)}: [")
        for record in itertools.islice(records, getattr(args, f"{split}_limit")):
            file.write((",\n" if report.kept[split] else "\n") + json.dumps(record, ensure_ascii=False))
            report.kept[split] += 1
        if not report.kept[split]:
            dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped[split].items())
            raise UserError(f"nothing is left of it (dropped: {dropped or 'nothing'})", place=f"{split} split",
                            expected="at least one record", remedy="check that these are the right files")
        file.write("\n]")
    file.write("\n}\n")


@exit_on_user_error
def main(argv=None):
    for line in convert(argv).lines():
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
