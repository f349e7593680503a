"""Argument types that say what they expect, TASK=VALUE flags, and checks of flags after parsing."""

import argparse
import math
import os

from versatile.utils.errors import UserError
from versatile.utils.parser import Parser, build_parser, raising_errors, typed_flags  # noqa: F401

# The largest count that every library accepts, and the largest seed: numpy's global generator takes 32 bits.
LARGEST, LARGEST_SEED = 2**31 - 1, 2**32 - 1
# Decoding settings that have an effect only when sampling (as the seed), and only with several beams.
SAMPLING, BEAM_SEARCH = ("temperature", "top_k", "top_p"), ("length_penalty",)


def limited(kind, fits, expected, most=math.inf):
    """An argparse type: a number of one kind within limits.

    Args:
        kind: converts a text to a number, or raises: int, float or similar.
        fits: called with the number.
        expected: description of a valid number, for the error.
        most: the largest number, mentioned in the error if it is exceeded.
    """

    def parse_number(text):
        try:
            value = kind(text)
        except (ValueError, OverflowError):
            value = None
        if value is None or not fits(value):
            beyond = f", at most {most}" if value is not None and value > most else ""
            raise argparse.ArgumentTypeError(f"{shown(text)}: expected {expected}{beyond}")
        return value

    return parse_number


def _count(least, expected):
    return limited(int, lambda value: least <= value <= LARGEST, expected, LARGEST)


positive = _count(1, "a whole number above 0")
not_negative = _count(0, "a whole number, 0 or more")
# -1 means no adapter; a negative count means none.
bottleneck = _count(-1, "a whole number, 0 or more, or -1 for no adapter")
count_or_none = _count(-LARGEST, "a whole number, or -1 for none")
seed = limited(int, lambda value: 0 <= value <= LARGEST_SEED, f"a whole number from 0 to {LARGEST_SEED}")
number = limited(float, math.isfinite, "a finite number")
temperature = limited(float, lambda value: 1e-6 <= value <= 1e6, "a number from 1e-6 to 1e6")
length_penalty = limited(float, lambda value: -100 <= value <= 100, "a number from -100 to 100")
epochs = limited(float, lambda value: 0 < value <= LARGEST, "a number above 0", LARGEST)
rate = limited(float, lambda value: 0 < value < math.inf, "a number above 0")
not_negative_rate = limited(float, lambda value: 0 <= value < math.inf, "a number, 0 or more")
share = limited(float, lambda value: 0 < value <= 1, "a number above 0 and up to 1")
# Values above 1 count as 1.
share_or_more = limited(float, lambda value: 0 < value < math.inf, "a number above 0 and up to 1")
fraction = limited(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def projections(text):
    """argparse type: comma-separated names of a block's linear layers, put in a fixed order without repeats."""
    names = text.split(",")
    if set(names) - set(PROJECTIONS):
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected some of {','.join(PROJECTIONS)}")
    return ",".join(name for name in PROJECTIONS if name in names)


def shown(text, limit=40):
    """A flag's text as a message shows it: quoted, and cut to `limit` characters."""
    text = str(text)
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text)} characters)"


def of_tasks(kind, expected):
    """argparse type of TASK=VALUE, for flags that take several of them (nargs="+", action=OfTasks)."""

    def parse(text):
        task, equals, value = text.partition("=")
        if not (task and equals and value):
            raise argparse.ArgumentTypeError(f"{text!r}: expected TASK={expected}")
        return task, kind(value)

    parse.__name__ = f"TASK={expected}"
    # For `stored_flags`: how a value is written, and what is expected.
    parse.written, parse.expected = "=".join if kind is str else "{0[0]}={0[1]}".format, f'{{"TASK": {expected}}}'
    return parse


class OfTasks(argparse.Action):
    """Collects TASK=VALUE pairs into a dict; a task named twice is an error."""

    def __call__(self, parser, namespace, values, option_string=None):
        tasks = [task for task, _ in values]
        for task in tasks:
            if tasks.count(task) > 1:
                raise argparse.ArgumentError(self, f"task {task!r} is named twice")
        setattr(namespace, self.dest, dict(values))


def quantization(args):
    """The quantization for `backbones.loading.load_backbone`, from --load_in_4bit and --load_in_8bit."""
    return next((bits for bits in ("4bit", "8bit") if getattr(args, f"load_in_{bits}", False)), None)


def check_lengths(p, args):
    """--min_length above --max_length is an error."""
    if args.min_length > args.max_length:
        p.error(f"--min_length {args.min_length} is more than --max_length {args.max_length}")


def print_unused_decoding(p, args):
    """Print one line that names the typed decoding flags that the others leave without effect."""
    parts = []
    for unused, settings, reason in (
        (args.no_sample, SAMPLING, "--no_sample"),
        (args.num_beams == 1, BEAM_SEARCH, "one beam"),
    ):
        typed = [p.locations[name] for name in settings if p.locations.get(name, "").startswith("--")]
        parts += [f"{', '.join(typed)}: no effect with {reason}"] if unused and typed else []
    if parts:
        print("; ".join(parts))


def require_one_process():
    """Raise a `UserError` under torchrun, for scripts whose processes would all write the same files."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes would write the same files", location="torchrun",
                        remedy="run it in one process: python …")  # fmt: skip
