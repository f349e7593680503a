"""webnlg: sentences about triples of a knowledge graph."""

import os
from functools import partial

from versatile.data.converters.base import (
    data_format,
    given_splits,
    parsed,
    skip_bad_flag,
    split_flags,
    split_records,
    tallied,
)
from versatile.data.converters.xml import allow_cut_flag, xml_events
from versatile.utils.errors import UserError


def _flags(parser):
    split_flags(parser, "+", "xml files, or folders that are searched for .xml at any depth", "FOLDER_OR_FILE")
    parser.add_argument("--language", default="en", help="keep the texts in this language (default: en)")
    allow_cut_flag(parser, "entries")
    skip_bad_flag(parser, "entries")


@data_format("webnlg", _flags)
def webnlg(args, report):
    """WebNLG (2017 challenge, 3.0): the xml files.

    "src" is "subject | predicate | object && …", the modified triples as they are written. Train has one
    record per text; valid and test have one per entry, with all its texts under "refs". A text without the attribute
    lang is English. A test folder contains other files besides the right one (unseen categories, inputs without texts,
    semantic parsing), so --test must name a file: testdata_with_lex.xml (2017), or
    rdf-to-text-generation-test-data-with-refs-en.xml (3.0).
    """
    files = {
        split: [file for path in paths for file in _xml_files(path)] for split, paths in given_splits(args).items()
    }
    cut = report.notes if args.allow_cut else None
    splits = {}
    for split, paths in files.items():
        parse = partial(_records, language=args.language.lower(), grouped=split != "train")
        _check_tasks(paths)
        items = parsed(_once(_entries(paths, cut), split), parse, args.skip_bad)
        splits |= split_records({split: items}, {}, iter, report)
    return tallied(splits, report, "texts", lambda record: len(record.get("refs", [1])))


def _xml_files(path):
    if not os.path.isdir(path):
        return [path]
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    paths = sorted(file for file in paths if file.endswith((".xml", ".xml.gz")))
    if not paths:
        raise UserError(
            "holds no .xml file", location=path, expected="a folder of the data set", remedy="check the path"
        )  # fmt: skip
    return paths


_PARSING = "semantic-parsing"
_TEST_FILES = (
    "name the one file that is meant: testdata_with_lex.xml (2017), "
    "rdf-to-text-generation-test-data-with-refs-en.xml (3.0)"
)


def _check_tasks(paths):
    """Raise a `UserError` if files of 3.0's other task, text to triples, are among those of this one."""
    parsing = [path for path in paths if _PARSING in os.path.basename(path)]
    if parsing and len(parsing) < len(paths):
        raise UserError("belongs to semantic parsing, but others given with it do not", location=parsing[0],
                        expected="files of one task", remedy=_TEST_FILES)  # fmt: skip


def _once(entries, split):
    """The same entries; raises `UserError` if two files of a split contain the same one, which would count twice."""
    files = {}
    for location, entry in entries:
        key = (entry["category"], *sorted(entry["triples"]))
        file = location.rpartition(":")[0]
        first = files.setdefault(key, file)
        if first != file:
            raise UserError(f"an entry that {first} also holds", location=location, remedy=_TEST_FILES,
                            expected=f"files for --{split} that share no entry")  # fmt: skip
        yield location, entry


def _entries(paths, cut):
    """Yield (location, {"category", "sets": number of triple sets, "triples": [..], "texts": [(language, text)]})."""
    for path in paths:
        entry, seen, pieces, stack = None, False, [], []
        for event, value, attributes, line in xml_events(path, "entry", cut):
            if event == "start":
                stack.append(value)
                if value == "entry":
                    location, category = f"{path}:{line}", attributes.get("category")
                    seen, entry = True, dict(location=location, category=category, sets=0, triples=[], texts=[])
                elif value == "modifiedtripleset" and entry:
                    entry["sets"] += 1
                elif value in ("mtriple", "lex"):
                    pieces, language = [], (attributes.get("lang") or "en").lower()
            elif event == "text":
                if stack and stack[-1] in ("mtriple", "lex"):
                    pieces.append(value)
                continue
            else:
                stack.pop()
                if value == "mtriple" and entry:
                    entry["triples"].append("".join(pieces))
                elif value == "lex" and entry:
                    entry["texts"].append((language, "".join(pieces).strip()))
                elif value == "entry" and entry:
                    yield entry["location"], entry
                    entry = None
        if not seen:
            raise UserError(
                "holds no <entry>", location=path, expected="a WebNLG file", remedy="check that this is the right file"
            )


def _records(entry, location, drops, language, grouped):
    if entry["sets"] != 1 or not entry["triples"]:
        raise UserError(
            f"an entry with {entry['sets']} modifiedtripleset and {len(entry['triples'])} mtriple",
            location=location,
            expected="one set of at least one triple",
        )
    src = " && ".join(_triple(text, location) for text in entry["triples"])
    refs = []
    for spoken, text in entry["texts"]:
        if spoken != language:
            drops["texts in other languages"] += 1
        elif not text:
            drops["empty texts"] += 1
        else:
            refs.append(text)
    if not refs:
        drops["entries left without a text"] += 1
        return None
    if grouped:
        return {"src": src, "tgt": refs[0], "refs": refs}
    return [{"src": src, "tgt": ref} for ref in refs]


def _triple(text, location):
    parts = [part.strip() for part in text.split("|")]
    if len(parts) != 3 or not all(parts):
        raise UserError(f"the triple {text[:100]!r}", location=location, expected="subject | predicate | object")
    return " | ".join(parts)
