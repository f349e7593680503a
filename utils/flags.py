"""Flags that several scripts share, and argparse types that say what they wanted."""

import argparse
import contextlib
import contextvars
import math

from versatile.utils.devices import add_precision_flags
from versatile.utils.errors import UserError
from versatile.utils.screen import escape_controls

# The largest count that every library below takes, and the largest seed: numpy's global generator has 32 bits.
LARGEST, LARGEST_SEED = 2**31 - 1, 2**32 - 1


def positive(text):
    """argparse type: a whole number above 0."""
    return _count(text, 1, "a whole number above 0")


def not_negative(text):
    """argparse type: a whole number from 0."""
    return _count(text, 0, "a whole number, 0 or more")


def bottleneck(text):
    """argparse type: a whole number from -1, which stands for no adapter."""
    return _count(text, -1, "a whole number, 0 or more, or -1 for no adapter")


def count_or_none(text):
    """argparse type: a whole number; those below 0 stand for none."""
    return _count(text, -LARGEST, "a whole number, or -1 for none")


def seed(text):
    """argparse type: a seed that every generator takes."""
    return _number(text, int, lambda v: 0 <= v <= LARGEST_SEED, f"a whole number from 0 to {LARGEST_SEED}")


def number(text):
    """argparse type: a finite number."""
    return _number(text, float, math.isfinite, "a finite number")


def rate(text):
    """argparse type: a finite number above 0."""
    return _number(text, float, lambda v: 0 < v < float("inf"), "a number above 0")


def not_negative_rate(text):
    """argparse type: a finite number from 0."""
    return _number(text, float, lambda v: 0 <= v < float("inf"), "a number, 0 or more")


def share(text):
    """argparse type: a number above 0 and up to 1."""
    return _number(text, float, lambda v: 0 < v <= 1, "a number above 0 and up to 1")


def share_or_more(text):
    """argparse type: a finite number above 0, of which what is above 1 counts as 1."""
    return _number(text, float, lambda v: 0 < v < float("inf"), "a number above 0 and up to 1")


def fraction(text):
    """argparse type: a number from 0 to 1."""
    return _number(text, float, lambda v: 0 <= v <= 1, "a number from 0 to 1")


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def projections(text):
    """argparse type: names of a block's linear maps, with commas; in their own order, each once."""
    names = text.split(",")
    if set(names) - set(PROJECTIONS):
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected some of {','.join(PROJECTIONS)}")
    return ",".join(name for name in PROJECTIONS if name in names)


def _count(text, least, expected):
    return _number(text, int, lambda v: least <= v <= LARGEST, f"{expected}, at most {LARGEST}", expected)


def _number(text, kind, fits, expected, briefly=None):
    try:
        value = kind(text)
    except (ValueError, OverflowError):
        value = None
    if value is None or not fits(value):
        # The largest number is named to who is beyond it.
        expected = expected if briefly is None or (value is not None and value > LARGEST) else briefly
        raise argparse.ArgumentTypeError(f"{shown(text)}: expected {expected}")
    return value


def shown(text, limit=40):
    """A flag's text as a message shows it: quoted, and cut to `limit` characters."""
    text = str(text)
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text)} characters)"


_RAISING = contextvars.ContextVar("raising", default=False)


@contextlib.contextmanager
def raising_errors():
    """Within it a wrong flag is a `UserError`, for a caller from Python, instead of the end of the process."""
    token = _RAISING.set(True)
    try:
        yield
    finally:
        _RAISING.reset(token)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as written, and every flag's default behind its help."""

    def _get_help_string(self, action):
        # 0 is a default worth telling; nothing, off and an empty list are not.
        nothing = action.default is None or action.default is False or action.default in ([], {})
        if nothing or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Errors in the form all errors of the toolkit have, without fifty lines of usage above them."""

    def error(self, message):
        message = message.removeprefix("argument ")
        if _RAISING.get():
            raise UserError(message, remedy=f"see {self.prog} --help")
        self.exit(2, f"error: {escape_controls(message)}\n  remedy:   see {self.prog} --help\n")


def parser(doc):
    """A parser whose description is a script's docstring; prefixes of flags are not taken for flags."""
    return Parser(usage="%(prog)s [flags]", description=doc, formatter_class=HelpFormatter, allow_abbrev=False)


def given(make_parser, argv=None):
    """{flag: value} of what was really typed, defaults left out."""
    bare = make_parser()
    # What set_defaults put there would come back as if it had been typed.
    bare._defaults.clear()
    for action in bare._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    return vars(bare.parse_args(argv))


def of_tasks(kind, expected):
    """argparse type of TASK=VALUE; for flags that take several of them (nargs="+", action=OfTasks)."""

    def parse(text):
        task, equals, value = text.partition("=")
        if not (task and equals and value):
            raise argparse.ArgumentTypeError(f"{text!r}: expected TASK={expected}")
        return task, kind(value)

    parse.__name__ = f"TASK={expected}"
    # For `stored_flags`: the words of a value, and what it is.
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


def quantization_flags(group):
    """--load_in_4bit | --load_in_8bit."""
    one = group.add_mutually_exclusive_group()
    for bits in (4, 8):
        one.add_argument(f"--load_in_{bits}bit", action="store_true",
                         help=f"keep the linear maps of a frozen backbone in {bits} bits")  # fmt: skip


def quantization(args):
    """What `backbones.loading.load` takes, of these flags."""
    return next((bits for bits in ("4bit", "8bit") if getattr(args, f"load_in_{bits}", False)), None)


def warm_start_flags(group):
    """--init_from, and what is kept of it."""
    group.add_argument("--init_from", metavar="RUN",
                       help="start from the adapters and embeddings of a trained model, or all its weights")
    # Not for typing: kept in run.json, so that a resumed run notices another start.
    group.add_argument("--init_fingerprint", help=argparse.SUPPRESS)


def add_push_flag(group):
    """--push_to_hub NAME; see `training.hub`."""
    group.add_argument("--push_to_hub", metavar="NAME",
                       help="upload the finished directory, its README.md included, as this model of the Hugging Face "
                            "hub (owner/name)")  # fmt: skip


def training_flags(p, published="(default: published)"):
    """The groups that all training scripts share: model, training, speed and memory, output and resuming.

    Args:
        published: what the help says behind flags whose default is not one number.
    """
    g = p.add_argument_group("training")
    g.add_argument("--lr", type=rate, help=f"highest learning rate; falls linearly to 0 {published}")
    g.add_argument("--n_epochs", type=positive, help=f"passes over the data {published}")
    g.add_argument("--max_steps", type=positive, help="stop after so many optimizer steps")
    g.add_argument("--train_batch_size", type=positive, help=f"examples a batch and process {published}")
    g.add_argument("--max_tokens", type=positive, help="size batches by tokens, padding counted, not by examples")
    g.add_argument("--valid_batch_size", type=positive, default=32, help="examples a validation batch")
    g.add_argument("--gradient_accumulation_steps", type=positive, help=f"batches an optimizer step {published}")
    g.add_argument("--max_norm", type=rate, default=1.0, help="gradients are clipped to this norm, once a step")
    g.add_argument("--warmup_steps", type=not_negative, default=0, help="steps in which the rate rises")
    g.add_argument("--weight_decay", type=not_negative_rate, default=0.0, help="AdamW's, not on norms and biases")
    g.add_argument("--early_stopping", type=positive, metavar="N", help="stop after N epochs without a new best")
    g.add_argument("--select", choices=["best", "last"], default="best",
                   help="keep the model of the best validation loss, or the last as the original does")  # fmt: skip
    g.add_argument("--no_validation", action="store_true", help="train without a validation split; keep the last model")
    g.add_argument("--eval_before_start", action="store_true", help="validate before the first step")
    g.add_argument("--seed", type=seed, default=42, help="of weights, order and dropout")
    warm_start_flags(g)
    g = p.add_argument_group("speed and memory")
    g.add_argument("--compile", action="store_true", help="torch.compile every block (needs a C++ compiler on a CPU)")
    g.add_argument("--gradient_checkpointing", action="store_true", help="recompute activations to save memory")
    quantization_flags(g)
    add_precision_flags(p)
    g = p.add_argument_group("output and resuming")
    g.add_argument("--output_dir", help="run directory (default: runs/<date>_<host>_<model>_<what>)")
    g.add_argument("--resume", metavar="RUN", help="go on with this run, exactly; no other flag is needed")
    g.add_argument("--save_steps", type=positive, help="a checkpoint every so many steps, not only each epoch")
    g.add_argument("--keep_checkpoints", type=positive, default=3, help="how many of the newest are kept")
    g.add_argument("--cache_dir", help="where tokenised data lie (default: $VERSATILE_CACHE or ~/.cache/versatile)")
    add_push_flag(g)


WITHOUT_EFFECT = {
    "--perturbation_layers": "it had no effect in the original either",
    "--lm_coef": "the original never read it: there is one loss",
    "--personality_permutations": "the original never read it: the persona's sentences rotate once a turn",
}


def refuse_without_effect(p):
    """The original's flags that did nothing: given, they are an error that says so."""

    class Refuse(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None):
            parser.error(f"{option_string}: {WITHOUT_EFFECT[option_string]}; leave it out")

    for flag in WITHOUT_EFFECT:
        p.add_argument(flag, nargs="?", action=Refuse, help=argparse.SUPPRESS)


def decoding_flags(p):
    """How to decode, and in which precision; `training.decoding.Decoding` has the names of the first."""
    g = p.add_argument_group("decoding")
    g.add_argument("--no_sample", action="store_true", help="greedy (or beam) search instead of sampling")
    g.add_argument("--num_beams", type=positive, default=1, help="width of the beam")
    g.add_argument("--length_penalty", type=number, default=1.0, help="of beam search; above 0 favours longer outputs")
    g.add_argument("--temperature", type=rate, default=0.7, help="of sampling")
    g.add_argument("--top_k", type=not_negative, default=0, help="sample from the k likeliest; 0: all")
    g.add_argument("--top_p", type=share, default=0.9, help="sample from the likeliest of this joint probability")
    g.add_argument("--max_length", type=positive, default=150, help="tokens an output at the most")
    g.add_argument("--min_length", type=not_negative, default=1, help="tokens an output at the least")
    g.add_argument("--batch_size", type=positive, default=32, help="examples decoded together")
    g.add_argument("--seed", type=seed, default=42, help="of sampling")
    add_precision_flags(p)


def check_lengths(p, args):
    """--min_length above --max_length is an error."""
    if args.min_length > args.max_length:
        p.error(f"--min_length {args.min_length} is more than --max_length {args.max_length}")


def one_process():
    """A `UserError` under torchrun, for scripts whose processes would all write the same files."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes would write the same files", location="torchrun",
                        remedy="run it in one process: python …")  # fmt: skip
