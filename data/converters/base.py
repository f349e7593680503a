"""Shared by all formats: the registry of formats, the report, flags, splits, and texts."""

import collections
import contextlib
import dataclasses
import itertools
import os

from versatile.data.json_files import iter_records
from versatile.utils import flags
from versatile.utils.errors import UserError, brief
from versatile.utils.files import atomic_write

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass
class Format:
    """A public format: its flags, the function that reads it, and the one that writes it unless as one task json."""

    flags: object
    read: object
    write: object = None


FORMATS = {}


def data_format(name, flags, write=None):
    """Register the decorated function as ``python -m data.convert <name>``.

    Args:
        flags: called with the format's argparse parser to add the format's own flags.
        write: called with (args, the decorated function's result, report) to write the result, and with (args, None,
            None) before anything is read, to check --output. None: write one task json.
    """

    def register(read):
        if name in FORMATS:
            raise ValueError(f"two formats are called {name!r}: {FORMATS[name].read} and {read}")
        FORMATS[name] = Format(flags, read, write)
        return read

    return register


class Report:
    """What a conversion kept and dropped, by split. `unit`: what is counted, if not examples: "article"."""

    def __init__(self):
        self.unit = ""
        self.kept = collections.Counter()
        self.dropped = collections.defaultdict(collections.Counter)
        self.facts = collections.defaultdict(dict)
        self.notes, self.written = [], []

    def open_output(self, path):
        """`atomic_write` for an output file; the report will say that the file was written or replaced."""
        replaced = ", in place of the file that was there" if os.path.exists(path) else ""
        self.written.append(f"wrote {path}{replaced}")
        return atomic_write(path)

    def lines(self):
        """The report as lines of text."""
        for split in SPLITS:
            if split not in self.kept:
                yield f"{split}: none, so the output has no {split} split"
                continue
            reasons = self.dropped[split]
            why = f" ({', '.join(f'{count} {reason}' for reason, count in reasons.items())})" if reasons else ""
            unit = f" {self.unit}{'s' * (self.kept[split] != 1)}" if self.unit else ""
            yield f"{split}: kept {self.kept[split]}{unit}, dropped {sum(reasons.values())}{why}"
            for name, value in self.facts[split].items():
                yield f"  {name}: {value}"
        yield from self.notes
        yield from self.written


# --- flags -----------------------------------------------------------------------------------------------


def split_flags(parser, number, what, metavar="FILE", splits=SPLITS):
    """Add --train, --valid and --test. `number` of file names: 1 gives a string, 2 and "+" give a list."""
    parser.set_defaults(**{split: None for split in SPLITS if split not in splits})
    for split in splits:
        parser.add_argument(
            f"--{split}",
            nargs=None if number == 1 else number,
            metavar=("SOURCE", "TARGET") if number == 2 else metavar,
            help=f"{what} (default: none, and no {split} split)",
        )


def skip_bad_flag(parser, what):
    """Add --skip_bad, for `parsed`."""
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help=f"drop and count {what} that cannot be used (default: stop at the first)",
    )


def held_out_flag(parser, split, what):
    """Add --valid_from_train or --test_from_train, for `held_out_sizes`."""
    parser.add_argument(
        f"--{split}_from_train",
        type=flags.positive,
        metavar="N",
        help=f"instead of a {split} file: hold {what} out (default: none)",
    )


def given_splits(args, suffix=""):
    """{split: value of --train, --valid or --test (with `suffix` added to the name)}, at least one."""
    files = {split: value for split in SPLITS if (value := getattr(args, f"{split}{suffix}"))}
    if not files:
        raise UserError(
            "no files were given",
            location="/".join(f"--{split}{suffix}" for split in SPLITS),
            expected="at least one of them",
            remedy=f"name the files, e.g. --train{suffix} FILE --valid{suffix} FILE",
        )
    return files


def held_out_sizes(args, split_sources, suffix=""):
    """{split: N} of the --valid_from_train and --test_from_train flags that are set."""
    sizes = {split: number for split in SPLITS if (number := getattr(args, f"{split}_from_train", None))}
    for split in sizes:
        if split in split_sources or "train" not in split_sources:
            raise UserError(
                f"requires --train{suffix} and cannot be combined with --{split}{suffix}",
                location=f"--{split}_from_train",
                expected="one source for the split",
                remedy="give one or the other",
            )
    return sizes


def find_file(folders, name, *others):
    """The file called `name` or `name`.gz in one of the folders, or else one of the `others`."""
    for folder in folders:
        for candidate in (stem + packed for stem in (name, *others) for packed in ("", ".gz")):
            if os.path.isfile(os.path.join(folder, candidate)):
                return os.path.join(folder, candidate)
    entries = []
    with contextlib.suppress(OSError, ValueError):
        entries = sorted(os.listdir(folders[0]))
    shown = ", ".join(entries[:30]) + (", …" if len(entries) > 30 else "")
    raise UserError(
        f"no {name} or {name}.gz; it holds: {shown or 'nothing'}",
        location=f"--folder {folders[0]}",
        expected="the data set's files under their published names",
        remedy="check the folder and the set or language named in the flags",
    )


# --- from raw records to the records of a split ----------------------------------------------------------


def parsed(raws, parse, skip_bad):
    """Yield (record or None, {reason: number dropped}) for each raw record.

    Args:
        raws: yields (location, raw); a `UserError` in place of a raw record is treated like one raised by `parse`.
        parse: takes (raw, location, drops) and returns a record, a list of records, or None; counts what it leaves
            out in `drops`.
        skip_bad: count a raw record that raises `UserError` as malformed instead of stopping.
    """
    for location, raw in raws:
        drops = collections.Counter()
        try:
            if isinstance(raw, UserError):
                raise raw
            records = parse(raw, location, drops)
        except UserError as error:
            if not skip_bad:
                remedy = "correct it, or leave such records out with --skip_bad"
                raise UserError(error.found, location=error.location, expected=error.expected, remedy=remedy) from error
            records, drops = None, {"malformed": 1}
        for record in records if isinstance(records, list) else [records]:
            yield record, drops
            drops = {}
        if records == []:
            yield None, drops


def kept(items, split, report):
    """Yield the records from `parsed`; adds the counts of what was dropped to the report."""
    for record, drops in items:
        report.dropped[split].update(drops)
        if record is not None:
            yield record


def split_records(split_sources, sizes, read, report, key=None):
    """{split: iterator of records}, where the last records of the training files may become other splits.

    A training record that shares its text with a held-out one is dropped. Only the held-out records are kept in memory;
    the training files are then read twice.

    Args:
        split_sources: {split: argument of `read`}.
        sizes: {"valid": N, "test": N} or a part of it. The training files are divided in the order train, valid, test.
        read: yields (record or None, drops) as `parsed` does.
        key: returns the text of a record that no two splits may share; needed with `sizes`.
    """
    splits = {split: kept(read(value), split, report) for split, value in split_sources.items()}
    if not sizes:
        return splits
    number, total = sum(sizes.values()), 0
    tail = collections.deque(maxlen=number)
    for record, drops in read(split_sources["train"]):
        if record is not None:
            tail.append((record, drops))
            total += 1
    if number >= total:
        raise UserError(
            f"{number} records are to be held out, and the training files have {total}",
            location=" ".join(f"--{split}_from_train {size}" for split, size in sizes.items()),
            expected=f"fewer than {total} in all",
            remedy="hold fewer out",
        )
    held_out, tail = set(), list(tail)
    for split in [split for split in reversed(SPLITS) if split in sizes]:
        tail, part = tail[: -sizes[split]], tail[-sizes[split] :]
        splits[split] = kept(_apart(part, len(part), frozenset(held_out), key), split, report)
        held_out |= {key(record) for record, _ in part}
    splits["train"] = kept(_apart(read(split_sources["train"]), total - number, held_out, key), "train", report)
    return {split: splits[split] for split in SPLITS if split in splits}


def _apart(items, number, held, key):
    """The first `number` records of `items`, without those whose key is held out."""
    for record, drops in items:
        if record is None:
            yield None, drops
        elif number:
            number -= 1
            yield (record, drops) if key(record) not in held else (None, {"sharing a text with one held out": 1})


def limited(split, records, args, report):
    """Yield the records of a split to write, at most --<split>_limit of them; raises `UserError` if there are none."""
    for record in itertools.islice(records, getattr(args, f"{split}_limit")):
        report.kept[split] += 1
        yield record
    if not report.kept[split]:
        dropped = ", ".join(f"{count} {reason}" for reason, count in report.dropped[split].items())
        raise UserError(
            f"nothing is left of it (dropped: {dropped or 'nothing'})",
            location=f"{split} split",
            expected="at least one record",
            remedy="check that these are the right files",
        )


def tallied(splits, report, fact, number):
    """The same splits; the report gets the sum of number(record) under the name `fact`."""

    def tally(records, facts):
        facts[fact] = 0
        for record in records:
            facts[fact] += number(record)
            yield record

    return {split: tally(records, report.facts[split]) for split, records in splits.items()}


# --- texts -----------------------------------------------------------------------------------------------


def usable(text, what, location):
    """`text`, stripped; raises `UserError` if it is not a string, is blank, contains a null byte or is not UTF-8."""
    if not isinstance(text, str):
        problem = f"is {brief(text)}"
    elif "\0" in text:
        problem = "holds a null byte"
    elif text != text.encode("utf-8", "replace").decode("utf-8"):
        problem = "is not UTF-8 text"
    elif not text.strip():
        problem = "is blank"
    else:
        return text.strip()
    raise UserError(f"{what} {problem}", location=location, expected="a text that is not blank", remedy="correct it")


def json_records(path, key, expected):
    """Like `iter_records`, for a published file that looks like `expected`."""
    with no_task_file(expected):
        yield from iter_records(path, key)


@contextlib.contextmanager
def no_task_file(expected):
    """Reword errors about an invalid task file as errors about a published file that looks like `expected`."""
    try:
        yield
    except UserError as error:
        if not (error.expected or "").startswith("a task file"):
            raise
        remedy = "check that this is the right file"
        raise UserError(error.found, location=error.location, expected=expected, remedy=remedy) from error


def check_output_directory(output, expected, remedy):
    """Raise a `UserError` if --output is a file, or the name of one, instead of a directory for several files."""
    if (os.path.exists(output) and not os.path.isdir(output)) or output.endswith(".json"):
        raise UserError("is a file" if os.path.isfile(output) else "is the name of a file",
                        location=f"--output {output}", expected=expected, remedy=remedy)  # fmt: skip
