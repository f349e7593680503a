"""Arguments in dataclasses, from a json config and from flags that override it (transformers' `HfArgumentParser`).

What the parser of transformers leaves to chance is said here: an unknown name in the config or on the command line is
an error that names its place and the known names that are near; a value is checked in a json file as on the command
line; names that transformers or the original code have changed are translated, and names that have lost their meaning
are refused in a sentence.
"""

import argparse
import dataclasses
import difflib
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser
from versatile.utils import stored_flags
from versatile.utils.devices import add_device_flag, take_device_flag
from versatile.utils.errors import UserError, brief, first_line
from versatile.utils.files import find_shipped
from versatile.utils.flags import LARGEST, LARGEST_SEED, HelpFormatter, shown

# Names of transformers' training arguments that it has changed -> today's.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "warmup_ratio": "warmup_steps",
}
_PRECISION = "--fp16 and --bf16 are PyTorch's own mixed precision"
_ONE_DEVICE = "what is trained here fits one device; use torchrun for several"
# Names that ask for what is not done, or done otherwise -> why.
REFUSED = {
    "tpu_num_cores": "start one process a core with torch_xla's launcher, or torchrun",
    "tpu_metrics_debug": "say --debug tpu_metrics_debug",
    "model_parallel": _ONE_DEVICE,
    "deepspeed": _ONE_DEVICE,
    "fsdp": _ONE_DEVICE,
    "fsdp_config": _ONE_DEVICE,
    "sharded_ddp": _ONE_DEVICE,
    "fp16_opt_level": _PRECISION,
    "fp16_backend": _PRECISION,
    "half_precision_backend": _PRECISION,
    "past_index": "it has no meaning for T5",
    "logging_dir": "TensorBoard events are written into the run directory",
    "dataloader_drop_last": "every batch is full",
    "auto_find_batch_size": "it would change the drawn batches; lower --per_device_train_batch_size by hand",
    "ignore_data_skip": "a resumed run is the run that was never stopped",
    "save_only_model": "the run could not be resumed",
    "save_safetensors": "models are always saved so",
    "jit_mode_eval": "transformers has dropped it",
    "use_ipex": "transformers has dropped it",
}


def arg(default, text, **more):
    """A dataclass field with a help text."""
    return field(default=default, metadata=dict(help=text, **more))


class _Parser(HfArgumentParser):
    """Raises its complaint instead of leaving, so that it can be told with its place."""

    def error(self, message):
        raise ValueError(message.removeprefix("argument "))


@dataclass
class Names:
    """What a script takes.

    Attributes:
        classes: its dataclasses.
        renamed: {old name: today's name}.
        refused: {name: why it is not taken}.
        script: its file name.
        doc: for --help.
    """

    classes: tuple
    renamed: dict
    refused: dict
    script: str
    doc: str | None = None

    def parser(self):
        p = _Parser(self.classes, prog=self.script, usage="%(prog)s [config.json] [--flag value …]",
                    description=self.doc, formatter_class=HelpFormatter, allow_abbrev=False)  # fmt: skip
        # `HfArgumentParser` adds every name a second time, with hyphens.
        for action in p._actions:
            action.option_strings = [s for s in action.option_strings if "-" not in s.lstrip("-")]
            if action.help == argparse.SUPPRESS or action.dest in self.refused:
                action.help = argparse.SUPPRESS
        return p

    def fields(self):
        """Names of all arguments."""
        return {f.name for c in self.classes for f in dataclasses.fields(c) if f.init}


def given(names, argv=None):
    """({name: value} of config and flags, the config's path or None, names of flags). A flag goes before the config.

    Raises:
        UserError: an unknown or refused name, a value that does not fit, a file that is no json object.
        SystemExit: after --help.
    """
    argv = sys.argv[1:] if argv is None else [str(a) for a in argv]
    argv = take_device_flag(argv)
    p = names.parser()
    if {"-h", "--help"} & set(argv):
        add_device_flag(p)
        p.print_help()
        sys.exit(0)
    config = argv[0] if argv and not argv[0].startswith("-") else None
    typed = _flags(names, p, argv[1:] if config else argv)
    return {**(read_config(names, config, p) if config else {}), **typed}, config, frozenset(typed)


def restored(names, stored, location):
    """{name: value} of what a run.json holds; see `stored_flags.restore_flags`."""
    found = stored_flags.restore_flags(names.parser(), stored, location)
    for name, value in found.items():
        _check_range(name, value, f"{location}: flags.{name}")
    return found


def build(names, values, config=None):
    """The dataclasses, of {name: value}.

    Raises:
        UserError: transformers finds that values do not fit each other.
    """
    try:
        return HfArgumentParser(names.classes).parse_dict(dict(values))
    except (ValueError, TypeError, ImportError, KeyError) as error:
        raise UserError(first_line(error), location=config or "flags", remedy=f"see {names.script} --help") from error


def _flags(names, p, tokens):
    """{name: value} of the command line."""
    found, groups = {}, []
    for token in tokens:
        if token.startswith("--") and len(token) > 2:
            flag, equals, value = token.partition("=")
            groups.append([flag, value] if equals else [flag])
        elif not groups:
            raise UserError(f"{token!r} is neither a config nor a flag", location="flags",
                            expected=f"{names.script} [config.json] [--flag value …]")  # fmt: skip
        else:
            groups[-1].append(token)
    for flag, *words in groups:
        found.update(_one(names, p, flag.removeprefix("--").replace("-", "_"), words, flag))
    return found


def read_config(names, path, p=None):
    """{name: value} of a json config.

    Raises:
        UserError: as `given`.
    """
    p, path = p or names.parser(), find_shipped(path)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", location=path, expected="a json config",
                        remedy="those of the methods lie in configs/") from error  # fmt: skip
    except ValueError as error:
        raise UserError(f"not json: {error}", location=path, remedy="correct the file") from error
    if not isinstance(content, dict):
        raise UserError(f"{brief(content)} is no json object", location=path, expected='{"tasks": ["rte"], …}')
    found = {}
    for key, value in content.items():
        # configs/test.json reads the samples.
        value = find_shipped(value) if key == "data_dir" and isinstance(value, str) else value
        found.update(_one(names, p, key, _words(value, f"{path}: {key}"), f"{path}: {key}"))
    return found


def _words(value, location):
    """A json value as a command line would have it; None where it is null."""
    if value is None:
        return None
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, dict):
        return [json.dumps(value)]
    if isinstance(value, list) and all(isinstance(v, (str, int, float)) for v in value):
        return [str(v) for v in value]
    if isinstance(value, (int, float, str)):
        return [str(value)]
    raise UserError(f"{brief(value)} fits no argument", location=location, remedy="correct the file")


def _one(names, p, name, words, location):
    """{today's name: value} of one flag or key; {} where it says nothing."""
    off = words is None or [w.lower() for w in words] in (["false"], ["0"], ["no"], [])
    if name == "evaluate_during_training":
        name, words = "eval_strategy", ["no" if off and words else "steps"]
    if name in names.refused:
        # Switched off, it asks for what is done anyway.
        if off and words != []:
            return {}
        raise UserError(f"not taken: {names.refused[name]}", location=location, remedy="leave it out")
    name = names.renamed.get(name, name)
    action = next((a for a in p._actions if f"--{name}" in a.option_strings), None)
    if action is None or action.dest == "help":
        known = sorted({s.removeprefix("--") for a in p._actions for s in a.option_strings if a.dest != "help"})
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
        raise UserError("there is no such argument", location=location,
                        remedy=f"did you mean {' or '.join(near)}?" if near else "see --help")  # fmt: skip
    if words is None:
        return {}
    try:
        found = {action.dest: _value(action, words)}
    except (ValueError, argparse.ArgumentTypeError, argparse.ArgumentError) as error:
        text = " ".join(words)
        text = text if len(text) <= 60 else shown(text)
        raise UserError(f"{text or 'nothing'}: {_complaint(action, error)}", location=location,
                        remedy=f"see {names.script} --help") from error  # fmt: skip
    _check_range(action.dest, found[action.dest], location)
    return found


def _check_range(name, value, location):
    """A `UserError` for numbers that no argument can have: not finite, or beyond what libraries count with."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and not math.isfinite(one):
            raise UserError(f"{one} is no finite number", location=location)
        if isinstance(one, bool) or not isinstance(one, int | float):
            continue
        largest = LARGEST_SEED if name in ("seed", "data_seed") else LARGEST
        if isinstance(one, int) and not (-LARGEST <= one <= largest):
            raise UserError(f"{brief(one)} is out of range", location=location, expected=f"at most {largest}")


def _value(action, words):
    """The value of one argument, as argparse would have it."""
    if isinstance(action, argparse._StoreFalseAction | argparse._StoreTrueAction):
        if words:
            raise ValueError("it takes no value")
        return action.const
    if not words and action.nargs == "?":
        return action.const
    several = action.nargs in ("+", "*")
    if not words or (len(words) > 1 and not several):
        raise ValueError("expected one value" if not several else "expected at least one value")
    values = [action.type(word) if action.type else word for word in words]
    for value in values:
        if action.choices is not None and value not in action.choices:
            raise ValueError(f"expected one of {', '.join(map(str, action.choices))}")
    return values if several else values[0]


def _complaint(action, error):
    """What argparse's types say is for programmers: "invalid literal for int() with base 10"."""
    plain = {int: "expected a whole number", float: "expected a number"}
    return plain.get(action.type) if action.type in plain and "expected" not in str(error) else first_line(error)
