"""parallel, multi30k, iwslt: translation data in two parallel files."""

import html
import itertools
import os
import re
from pathlib import Path

from versatile.data.converters.base import data_format, find_file, given_splits, split_flags
from versatile.data.converters.xml import allow_cut_flag, xml_events
from versatile.data.files import text_lines
from versatile.utils.errors import UserError

IWSLT_TESTS = ("tst2010", "tst2011", "tst2012", "tst2013", "tst2014", "tst2015")
# Languages whose pairs belong to the multilingual task.
_MULTILINGUAL = {"it", "nl", "ro"}


def _parallel_flags(parser):
    _language_flags(parser, "language of the first file of each pair", "language of the second file")
    split_flags(parser, 2, "source file and target file, one sentence per line")


@data_format("parallel", _parallel_flags)
def parallel(args, report):
    """Parallel text: a source file and a target file, one sentence per line.

    A training pair with an empty side is dropped. A valid or test pair is dropped only when both sides are
    empty.
    """
    files = given_splits(args)
    for split, (source, target) in files.items():
        endings = tuple(Path(str(path).removesuffix(".gz")).suffix for path in (source, target))
        if endings == (f".{args.target_lang}", f".{args.source_lang}"):
            raise UserError(
                f"{source} {target} seem to be in the wrong order",
                location=f"--{split}",
                expected=f"the {args.source_lang} file, then the {args.target_lang} file",
                remedy="swap the files, or --source_lang and --target_lang",
            )
    return {split: _parallel_records(*map(_plain_lines, pair), pair, split, report) for split, pair in files.items()}


def _language_flags(parser, source, target):
    parser.add_argument("--source_lang", default="en", help=f"{source} (default: en)")
    parser.add_argument("--target_lang", default="de", help=f"{target} (default: de)")


def _multi30k_flags(parser):
    parser.add_argument("--folder", required=True, help="folder with train.en, train.de, val.en, … (or .gz)")
    parser.add_argument(
        "--test_set",
        default="test_2017_flickr",
        help="files for the test split, e.g. test_2016_flickr (default: test_2017_flickr)",
    )
    _language_flags(parser, "language to translate from", "language to translate to")


@data_format("multi30k", _multi30k_flags)
def multi30k(args, report):
    """Multi30k task 1: the folder with the raw files, plain or .gz."""
    splits, languages = {}, (args.source_lang, args.target_lang)
    for split, name in (("train", "train"), ("valid", "val"), ("test", args.test_set)):
        pair = [find_file((args.folder,), f"{name}.{language}") for language in languages]
        splits[split] = _parallel_records(*map(_plain_lines, pair), pair, split, report)
    return splits


def iwslt_folder_flag(parser):
    parser.add_argument("--folder", required=True,
                        help="the unpacked archive: train.tags.*, and IWSLT17.*.xml or IWSLT16.*.xml")  # fmt: skip


def _iwslt_flags(parser):
    iwslt_folder_flag(parser)
    parser.add_argument("--pair", default="en-de", help="source-target, as in the file names (default: en-de)")
    parser.add_argument(
        "--valid", nargs="+", default=["dev2010"], metavar="SET", help="sets for the valid split (default: dev2010)"
    )
    parser.add_argument(
        "--test",
        nargs="+",
        metavar="SET",
        help=f"sets for the test split, one after another (default: {' '.join(IWSLT_TESTS)}; tst2010 for the pairs of "
        "the multilingual task, with it, nl or ro)",
    )
    allow_cut_flag(parser, "segments")


@data_format("iwslt", _iwslt_flags)
def iwslt(args, report):
    """TED talks of IWSLT 2017 or 2016: train.tags.* lines and IWSLT17.TED.<set>.* (or IWSLT16.…) xml files.

    The pairs of the multilingual task (those with it, nl or ro) only have tst2010. The lines about a talk (its title,
    speaker, keywords, …) are left out and counted.
    """
    languages = args.pair.split("-")
    if len(languages) != 2 or not all(languages) or os.sep in args.pair:
        raise UserError(
            f"{args.pair!r} is not a language pair",
            location="--pair",
            expected="e.g. en-de",
            remedy="write it as in the file names",
        )
    folders = (args.folder, os.path.join(args.folder, args.pair))
    pair = [find_file(folders, f"train.tags.{args.pair}.{language}") for language in languages]
    metadata = report.dropped["train"]
    cut = report.notes if args.allow_cut else None
    splits = {
        "train": _parallel_records(_tagged_lines(pair[0], metadata), _tagged_lines(pair[1]), pair, "train", report)
    }
    published = IWSLT_TESTS[:1] if _MULTILINGUAL.intersection(languages) else IWSLT_TESTS
    for split, sets in (("valid", args.valid), ("test", args.test or published)):
        pairs = [
            [_find_talks(folders, f"{name}.{args.pair}.{language}.xml") for language in languages] for name in sets
        ]
        splits[split] = itertools.chain.from_iterable(
            _parallel_records(*(_segments(path, cut) for path in pair), pair, split, report) for pair in pairs
        )
    return splits


def _find_talks(folders, name):
    """The xml file of a set, of the edition that the folder has."""
    return find_file(folders, *(f"IWSLT{edition}.TED.{name}" for edition in (17, 16)))


def _parallel_records(sources, targets, paths, split, report):
    """Pair two streams of (key, line, text); the keys must agree (a talk, a segment, or None)."""
    for count, (source, target) in enumerate(itertools.zip_longest(sources, targets)):
        if source is None or target is None:
            more = 1 + sum(1 for _ in (targets if source is None else sources))
            numbers = (count, count + more) if source is None else (count + more, count)
            raise UserError(
                f"{numbers[0]} sentences, but {paths[1]} has {numbers[1]}",
                location=paths[0],
                expected="as many in both files",
                remedy="check that the two belong together",
            )
        if source[0] != target[0]:
            raise UserError(
                f"is {source[0]}, but {paths[1]}:{target[1]} is {target[0]}",
                location=f"{paths[0]}:{source[1]}",
                expected="the same talk and segment in both files",
                remedy="check that the two belong together and are whole",
            )
        src, tgt = source[2].strip(), target[2].strip()
        for path, (_, line, text) in zip(paths, (source, target)):
            if "\0" in text:
                raise UserError("holds a null byte", location=f"{path}:{line}", expected="text",
                                remedy="correct the line")  # fmt: skip
        if not src and not tgt:
            report.dropped[split]["both sides empty"] += 1
        elif split == "train" and not (src and tgt):
            report.dropped[split]["one side empty"] += 1
        else:
            if not (src and tgt):
                facts = report.facts[split]
                facts["kept with one side empty"] = facts.get("kept with one side empty", 0) + 1
            yield {"src": src, "tgt": tgt}


# A real sentence that begins with another tag is kept; only these tags describe a talk.
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
            if match := _TALK.match(text):
                talk = f"in talk {match[1]}"
            if dropped is not None:
                dropped["metadata lines"] += 1
        else:
            yield talk, line, _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


def _segments(path, cut=None):
    """The <seg> texts of an xml file, keyed by talk and segment.

    A file without its closing tags is an error, or, if `cut` is a list, is noted there.
    """
    talk, segment = None, None
    for event, value, attributes, line in xml_events(path, "doc", cut):
        if event == "start" and value == "doc":
            talk = attributes.get("docid")
        elif event == "start" and value == "seg":
            segment = (f"segment {attributes.get('id')} of talk {talk}", line, [])
        elif event == "text" and segment:
            segment[2].append(value)
        elif event == "end" and value == "seg" and segment:
            yield segment[0], segment[1], "".join(segment[2])
            segment = None
