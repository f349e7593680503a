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

    "src" is "subject | predicate | object && …", the modified triples as they are written. Train holds one
    record a text; valid and test hold one an entry, with all its texts under "refs". A text without the attribute
    lang is English.
    """
    given = {
        split: [file for path in paths for file in _xml_files(path)] for split, paths in given_splits(args).items()
    }
    cut = report.notes if args.allow_cut else None
    splits = {}
    for split, paths in given.items():
        parse = partial(_records, language=args.language.lower(), grouped=split != "train")
        items = parsed(_entries(paths, cut), parse, args.skip_bad)
        splits |= split_records({split: items}, {}, iter, report)
    return tallied(splits, report, "texts", lambda record: len(record.get("refs", [1])))


def _xml_files(path):
    if not os.path.isdir(path):
        return [path]
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    found = sorted(file for file in found if file.endswith((".xml", ".xml.gz")))
    if not found:
        raise UserError(
            "holds no .xml file", place=path, expected="a folder of the data set", remedy="check the path"
        )  # fmt: skip
    return found


def _entries(paths, cut):
    """Yield (place, {"sets": number of triple sets, "triples": [..], "texts": [(language, text)]}) an entry."""
    for path in paths:
        entry, seen, pieces, stack = None, False, [], []
        for event, value, attributes, line in xml_events(path, "entry", cut):
            if event == "start":
                stack.append(value)
                if value == "entry":
                    seen, entry = True, {"place": f"{path}:{line}", "sets": 0, "triples": [], "texts": []}
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
                    yield entry["place"], entry
                    entry = None
        if not seen:
            raise UserError(
                "holds no <entry>", place=path, expected="a WebNLG file", remedy="check that this is the right file"
            )


def _records(entry, place, drops, language, grouped):
    if entry["sets"] != 1 or not entry["triples"]:
        raise UserError(
            f"an entry with {entry['sets']} modifiedtripleset and {len(entry['triples'])} mtriple",
            place=place,
            expected="one set of at least one triple",
        )
    src = " && ".join(_triple(text, place) for text in entry["triples"])
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


def _triple(text, place):
    parts = [part.strip() for part in text.split("|")]
    if len(parts) != 3 or not all(parts):
        raise UserError(f"the triple {text[:100]!r}", place=place, expected="subject | predicate | object")
    return " | ".join(parts)
