"""e2e: restaurant descriptions from meaning representations."""

from versatile.data.converters.base import (
    Report,
    data_format,
    given_splits,
    held_out_flag,
    held_out_sizes,
    skip_bad_flag,
    split_flags,
)
from versatile.data.files import csv_rows
from versatile.data.tasks.nlg import SLOTS
from versatile.utils.errors import UserError
from versatile.utils.files import is_same_path


def _flags(parser):
    split_flags(parser, 1, "csv file with the columns mr and ref")
    skip_bad_flag(parser, "rows")
    held_out_flag(parser, "valid", "the last N distinct MRs of the training file, with all their rows,")


@data_format("e2e", _flags)
def e2e(args, report):
    """E2E NLG challenge: csv files with the columns mr and ref.

    For the cleaned set (Dušek et al. 2019; columns mr, ref, fixed and orig_mr) the corrected mr is read; if it has
    a slot several times, the values are joined by commas.

    Train has one record per row. Valid and test have one record per distinct meaning representation, with all
    its references. If the challenge's test file is not available, --test may name the devset again (the
    report says so); without --test the output has no test split.
    """
    files = given_splits(args)
    sizes = held_out_sizes(args, files)
    if args.test and is_same_path(args.valid, args.test):
        report.notes.append("note: test is the same file as valid, so its scores are not held out")
    if not sizes:
        read = {"train": _train, "valid": _grouped, "test": _grouped}
        return {
            split: read[split](_rows(path, split, args.skip_bad, report), split, report)
            for split, path in files.items()
        }
    held_out = _held_out(args.train, args.valid_from_train, args.skip_bad)
    rows = _rows(args.train, "train", args.skip_bad, report)
    again = _rows(args.train, "valid", True, Report())
    splits = {
        "train": _train((row for row in rows if row[0] not in held_out), "train", report),
        "valid": _grouped((row for row in again if row[0] in held_out), "valid", report),
    }
    if args.test:
        splits["test"] = _grouped(_rows(args.test, "test", args.skip_bad, report), "test", report)
    return splits


def _held_out(path, number, skip_bad):
    """The last `number` distinct MRs of a file, in order of first appearance."""
    mrs = list(dict.fromkeys(mr for mr, _, _ in _rows(path, "train", skip_bad, Report())))
    if number >= len(mrs):
        raise UserError(
            f"the training file has {len(mrs)} distinct MRs",
            location=f"--valid_from_train {number}",
            expected=f"fewer than {len(mrs)}",
        )
    return set(mrs[-number:])


def _train(rows, split, report):
    seen = set()
    for count, (mr, src, ref) in enumerate(rows, start=1):
        seen.add(mr)
        report.facts[split].update(_facts(len(seen), count))
        yield {"src": src, "tgt": ref}


def _grouped(rows, split, report):
    records, references = {}, 0
    for mr, src, ref in rows:
        records.setdefault(mr, {"src": src, "tgt": ref, "refs": []})["refs"].append(ref)
    for count, record in enumerate(records.values(), start=1):
        references += len(record["refs"])
        report.facts[split].update(_facts(count, references))
        yield record


def _facts(distinct, references):
    return {"distinct MRs": distinct, "references": references, "references per MR": f"{references / distinct:.2f}"}


def _rows(path, split, skip_bad, report):
    """Yield (mr, {slot: value}, reference) for the usable rows of a file."""
    parsed = {}
    for location, row in csv_rows(
        path,
        ("mr", "ref"),
        "the challenge's files trainset.csv, devset.csv and "
        "testset_w_refs.csv have them (testset.csv has no references)",
    ):
        try:
            if isinstance(row, UserError):
                raise row
            mr, ref = row["mr"].strip(), row["ref"].strip()
            if "\0" in mr + ref:
                raise UserError("holds a null byte", location=location, expected="text")
            if mr not in parsed:
                # Only the cleaned set has this column.
                parsed[mr] = _parse_mr(mr, location, repeats="orig_mr" in row)
        except UserError as error:
            if not skip_bad:
                raise UserError(
                    error.found,
                    location=location,
                    expected=error.expected,
                    remedy="correct the row, or drop such rows with --skip_bad",
                ) from error
            report.dropped[split]["malformed"] += 1
            continue
        if not ref:
            report.dropped[split]["empty reference"] += 1
            continue
        yield mr, parsed[mr], ref


def _parse_mr(mr, location, repeats=False):
    """``"name[The Vaults], food[Thai]"`` as a dict in the same order; values may contain balanced brackets.

    Args:
        repeats: allow a slot to occur several times; its different values are joined by commas.
    """
    slots, at = {}, 0
    expected = "slot[value], slot[value], …"
    while True:
        opening = mr.find("[", at)
        closing = _closing_bracket(mr, opening) if opening >= 0 else -1
        if closing < 0:
            raise UserError(f"malformed MR: no [value] in {mr[at : at + 60]!r}", location=location, expected=expected)
        slot, value = mr[at:opening].strip(), mr[opening + 1 : closing].strip()
        if slot not in SLOTS:
            raise UserError(f"unknown slot {slot[:60]!r}", location=location, expected=f"one of {', '.join(SLOTS)}")
        if slot in slots and not repeats:
            raise UserError(f"malformed MR: two values for {slot!r}", location=location, expected="each slot once")
        if not value:
            raise UserError(f"malformed MR: {slot!r} is empty", location=location, expected=expected)
        if value not in (known := slots.get(slot, "").split(", ")):
            slots[slot] = ", ".join(filter(None, [*known, value]))
        rest = mr[closing + 1 :].lstrip()
        if not rest:
            return slots
        if not rest.startswith(","):
            raise UserError(f"malformed MR: no comma before {rest[:60]!r}", location=location, expected=expected)
        at = len(mr) - len(rest) + 1


def _closing_bracket(text, opening):
    depth = 0
    for at in range(opening, len(text)):
        depth += (text[at] == "[") - (text[at] == "]")
        if not depth:
            return at
    return -1
