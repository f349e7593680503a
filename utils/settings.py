"""The table of settings that scripts share: names, spellings, types, defaults and help.

A setting's name is its attribute in the parsed flags and its first spelling; the other spellings are those of the four
published systems and of transformers. Each means the same in every script that has the setting.
"""

import json
import os
from argparse import SUPPRESS, Action, ArgumentTypeError
from dataclasses import dataclass, field

from versatile.utils import flags
from versatile.utils.devices import PROFILE
from versatile.utils.files import find_shipped
from versatile.utils.parser import Refuse, Switch

# Names of schedules in the originals and in older versions of transformers -> names in transformers.
SCHEDULES = {"cosine_w_restarts": "cosine_with_restarts", "constant_w_warmup": "constant_with_warmup"}
SCHEDULE_NAMES = ("linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant",
                  "constant_with_warmup", "inverse_sqrt", "warmup_stable_decay")  # fmt: skip
REPORTERS = ("tensorboard", "wandb", "trackio", "none")


class _UseDevice(Action):
    """--device cpu. Takes effect while parsing, before any library looks for a GPU. Not a setting of the run, which may
    be resumed on another device."""

    immediate = True

    def __call__(self, parser, namespace, values, option_string=None):
        if values == "cpu":
            hide_accelerators()


class _UseCPU(Switch):
    """--no_cuda, the older spelling of --device cpu."""

    def __call__(self, parser, namespace, values, option_string=None):
        hide_accelerators()


class _Profile(Action):
    """--profile DIR, for the training loop; not a setting of the run either."""

    immediate = True

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            os.environ[PROFILE] = os.path.abspath(values)
        except ValueError:
            parser.error(f"argument --profile: {flags.shown(values)} cannot be a directory's name")


# Variables that flags set while they are parsed.
SET_BY_FLAGS = ("CUDA_VISIBLE_DEVICES", "PJRT_DEVICE", PROFILE)


def hide_accelerators():
    """Hide GPUs and TPUs from all libraries."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", PJRT_DEVICE="CPU")


def schedule_name(text):
    """argparse type: the name of a schedule, in transformers' spelling or the originals'."""
    name = SCHEDULES.get(text, text)
    if name not in SCHEDULE_NAMES:
        raise ArgumentTypeError(f"{flags.shown(text)}: expected one of {', '.join(SCHEDULE_NAMES)}")
    return name


def json_object(text):
    """argparse type: a json object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{flags.shown(text)}: expected a json object such as '{{\"num_cycles\": 2}}'")
    return value


json_object.written, json_object.expected = json.dumps, "a json object"


@dataclass(frozen=True)
class Setting:
    """One row of the table; `options` are passed to `add_argument`."""

    name: str
    group: str
    help: str
    type: object = None
    default: object = None
    spellings: tuple = ()
    options: dict = field(default_factory=dict)


DATA, MODEL, DISTILLATION, TRAINING = "task and data", "model", "distillation", "training"
SPEED, DECODING, LOGGING, OUTPUT = "speed and memory", "decoding", "logging", "output and resuming"
PRECISION = "precision (default: --bf16 where the hardware has it, else --fp32)"
_SWITCH = dict(action=Switch)

TABLE = (
    Setting("dataset_path", DATA, "the task's json file (default: the task's own location under data/)", find_shipped),
    Setting("data_dir", DATA, "folder of the tasks' files", find_shipped),
    Setting("max_history", DATA, "number of exchanges of a conversation to keep (default: published)", flags.positive),
    Setting("limit", DATA, "use only the first N examples of each split", flags.positive),
    Setting("split", DATA, "which split (default: the task's scored split)",
            options=dict(choices=["train", "valid", "test"])),
    Setting("token_cache_dir", DATA,
            "where tokenised data are cached (default: $VERSATILE_CACHE or ~/.cache/versatile)"),
    Setting("overwrite_cache", DATA, "tokenise the data again", options=_SWITCH),
    Setting("model_checkpoint", MODEL, "a hub name, a directory, or smollm2, tiny-gpt2, tiny-llama, tiny-t5",
            spellings=("model_name", "model_name_or_path"), options=dict(metavar="MODEL")),
    Setting("tokenizer_name", MODEL, "tokenizer, if not the model's own"),
    Setting("cache_dir", MODEL, "where models from the hub are cached (default: the hub's own cache)"),
    Setting("adapter_bottleneck", MODEL, "bottleneck size of an adapter", flags.bottleneck, options=dict(metavar="N")),
    Setting("row_init", MODEL, "initialise task embeddings from N(0, 0.02) as published, or from their markers' words",
            default="normal", options=dict(choices=["normal", "words"])),
    Setting("random_init", MODEL, "use the backbone's architecture with random weights", options=_SWITCH),
    Setting("max_len", MODEL, "maximum tokens of an example; longer ones are truncated", flags.positive,
            spellings=("max_seq_length",)),
    Setting("max_source_length", DATA, "maximum tokens of an input", flags.positive),
    Setting("kd_temperature", DISTILLATION, "temperature of the teacher's and student's distributions",
            flags.temperature, 2.0, spellings=("temperature_kd",)),
    Setting("kd_alpha", DISTILLATION, "weight of the teacher against the labels", flags.fraction, 0.5),
    Setting("sampling_temperature", TRAINING, "draw each task in proportion to size^(1/T)", flags.rate,
            options=dict(metavar="T")),
    Setting("lr", TRAINING, "peak learning rate", flags.rate, spellings=("learning_rate",)),
    Setting("n_epochs", TRAINING, "training epochs", flags.positive,
            spellings=("n_train_epochs", "num_train_epochs")),
    Setting("max_steps", TRAINING, "stop after this many optimizer steps", flags.positive),
    Setting("train_batch_size", TRAINING, "examples per batch in each process", flags.positive,
            spellings=("per_device_train_batch_size", "per_gpu_train_batch_size")),
    Setting("valid_batch_size", TRAINING, "examples per validation batch", flags.positive, 32,
            spellings=("per_device_eval_batch_size", "per_gpu_eval_batch_size")),
    Setting("gradient_accumulation_steps", TRAINING, "batches per optimizer step", flags.positive, 1),
    Setting("max_tokens", TRAINING, "size batches by tokens, padding included, not by examples", flags.positive),
    Setting("max_norm", TRAINING, "clip gradients to this norm, once per step", flags.rate, 1.0,
            spellings=("max_grad_norm",)),
    Setting("lr_scheduler_type", TRAINING, "learning rate schedule after the warm-up: " + ", ".join(SCHEDULE_NAMES),
            schedule_name, "linear", spellings=("lr_scheduler",), options=dict(metavar="NAME")),
    Setting("lr_scheduler_kwargs", TRAINING, "arguments of the schedule, e.g. '{\"num_cycles\": 2}' of "
            "cosine_with_restarts; needed by cosine_with_min_lr ('{\"min_lr\": 1e-5}') and warmup_stable_decay "
            "('{\"num_decay_steps\": 100}')", json_object, options=dict(metavar="JSON")),
    Setting("warmup_steps", TRAINING, "steps of learning rate warm-up", flags.not_negative, 0),
    Setting("warmup_ratio", TRAINING, "warm-up as a share of all steps", flags.fraction,
            spellings=("warmup_proportion",)),
    Setting("weight_decay", TRAINING, "AdamW's weight decay, not on norms and biases", flags.not_negative_rate, 0.0),
    Setting("adam_eps", TRAINING, "Adam's epsilon", flags.rate, spellings=("adam_epsilon",)),
    Setting("early_stopping", TRAINING, "stop after N epochs without a new best", flags.positive,
            options=dict(metavar="N")),
    Setting("select", TRAINING, "keep the model of the best validation loss, or the last one as the original does",
            default="best", options=dict(choices=["best", "last"])),
    Setting("no_validation", TRAINING, "train without a validation split; keep the last model", options=_SWITCH),
    Setting("eval_before_start", TRAINING, "validate before the first step", spellings=("eval_on_start",),
            options=_SWITCH),
    Setting("seed", TRAINING, "random seed of weights, data order and dropout", flags.seed, 42),
    Setting("init_from", TRAINING, "initialise from a trained model's adapters and embeddings, or all its weights",
            options=dict(metavar="RUN")),
    # Not for the command line: kept in run.json so that a resumed run notices a different starting point.
    Setting("init_fingerprint", TRAINING, SUPPRESS),
    Setting("compile", SPEED, "torch.compile every block (needs a C++ compiler on a CPU)", options=_SWITCH),
    Setting("gradient_checkpointing", SPEED, "recompute activations to save memory",
            spellings=("activation_checkpointing",), options=_SWITCH),
    Setting("fsdp", SPEED, "shard all tensors across the processes (FSDP2), for backbones that fit on no single device",
            options=_SWITCH),
    Setting("profile", SPEED, "write a trace of a few optimizer steps to this directory, for viewing in a browser: "
            "https://ui.perfetto.dev (default: none)", default=SUPPRESS, options=dict(action=_Profile, metavar="DIR")),
    Setting("load_in_4bit", SPEED, "keep the linear layers of a frozen backbone in 4 bits", options=_SWITCH),
    Setting("load_in_8bit", SPEED, "keep the linear layers of a frozen backbone in 8 bits", options=_SWITCH),
    Setting("bf16", PRECISION, "matrix products in bfloat16 (autocast)", options=_SWITCH),
    Setting("fp16", PRECISION, "matrix products in float16 with loss scaling (GPU only)", options=_SWITCH),
    Setting("fp32", PRECISION, "everything in float32", options=_SWITCH),
    Setting("device", PRECISION, "cpu: use no GPU even if there is one (default: the GPU if there is one)",
            default=SUPPRESS, options=dict(action=_UseDevice, choices=("auto", "cpu"))),
    Setting("no_cuda", PRECISION, "the same as --device cpu", default=SUPPRESS, spellings=("use_cpu",),
            options=dict(action=_UseCPU)),
    Setting("local_rank", PRECISION, "passed by old launchers; not needed with torchrun", flags.count_or_none, -1),
    Setting("fp16_opt_level", PRECISION, "Apex level: O1 means --fp16, O0 --fp32",
            options=dict(choices=["O0", "O1", "O2", "O3"])),
    Setting("no_sample", DECODING, "greedy (or beam) search instead of sampling", options=_SWITCH),
    Setting("num_beams", DECODING, "number of beams", flags.positive, 1, spellings=("eval_beams",)),
    Setting("length_penalty", DECODING, "for beam search; above 0 favours longer outputs", flags.length_penalty, 1.0),
    Setting("temperature", DECODING, "sampling temperature", flags.temperature, 0.7, spellings=("temperature_qa",)),
    Setting("top_k", DECODING, "sample from the top k tokens; 0: all", flags.not_negative, 0, spellings=("top_k_qa",)),
    Setting("top_p", DECODING, "sample from the top tokens of this total probability", flags.share, 0.9,
            spellings=("top_p_qa",)),
    Setting("max_length", DECODING, "maximum tokens of an output", flags.positive, 150),
    Setting("min_length", DECODING, "minimum tokens of an output", flags.not_negative, 1),
    Setting("batch_size", DECODING, "examples decoded together", flags.positive, 32, spellings=("test_batch_size",)),
    Setting("logging_steps", LOGGING, "optimizer steps between two points of the curve", flags.positive, 10),
    Setting("logging_first_step", LOGGING, "also log the first step", options=_SWITCH),
    Setting("report_to", LOGGING, "where to log curves in addition to the run directory: " + ", ".join(REPORTERS),
            default=["tensorboard"], options=dict(nargs="+", choices=REPORTERS, metavar="NAME")),
    Setting("output_dir", OUTPUT, "run directory (default: runs/<date>_<host>_<model>_<what>)"),
    Setting("overwrite_output_dir", OUTPUT, "start over where this script has a run: that run's files are removed",
            options=_SWITCH),
    Setting("resume", OUTPUT, "resume this run exactly; no other flag is needed", options=dict(metavar="RUN")),
    Setting("save_steps", OUTPUT, "also save a checkpoint every N steps, not only each epoch", flags.positive),
    Setting("keep_checkpoints", OUTPUT, "how many of the newest checkpoints to keep", flags.positive, 3,
            spellings=("save_total_limit",)),
    Setting("push_to_hub", OUTPUT,
            "upload the finished directory, with its README.md, to the Hugging Face hub as this model (owner/name)",
            options=dict(metavar="NAME")),
    Setting("samples", OUTPUT, "how many outputs to print", flags.not_negative, 3),
)  # fmt: skip
SETTINGS = {setting.name: setting for setting in TABLE}
# {spelling: setting}
ALL_SPELLINGS = {word: setting.name for setting in TABLE for word in (setting.name, *setting.spellings)}


def add(parser, *names, group=None, notices=None, spellings=(), **changes):
    """Add settings of the table to a parser.

    Args:
        names: keys of `SETTINGS`.
        group: title in --help (default: the table's), or a group of mutually exclusive flags.
        notices: {spelling: text printed when it is used}, for spellings that once had another meaning.
        spellings: additional ones that only this script takes.
        changes: what differs in this script: default, help, type and other options of `add_argument`.
    """
    for name in names:
        setting = SETTINGS[name]
        options = dict(help=setting.help, default=setting.default, **setting.options)
        if setting.type:
            options["type"] = setting.type
        options |= changes
        options = {key: value for key, value in options.items() if value is not None or key == "default"}
        if options.get("action") in (Switch, _UseCPU) and options["default"] is None:
            options["default"] = False
        words = [f"--{word}" for word in (name, *setting.spellings, *spellings)]
        options.setdefault("dest", name)
        target = parser.group(group or setting.group) if isinstance(group, str | None) else group
        action = target.add_argument(*words, **options)
        action.notices = {f"--{word}": text for word, text in (notices or {}).items()}


def add_precision(parser, device=True):
    """--bf16, --fp16 and --fp32, which exclude each other; with `device` also --device and --no_cuda."""
    one = parser.group(PRECISION).add_mutually_exclusive_group()
    add(parser, "bf16", "fp16", "fp32", group=one)
    if device:
        add_device(parser)


# Apex levels without a counterpart, as Apex is not used -> why.
APEX_LEVELS = {
    "O2": "Apex is not used, and its O2 keeps the weights in float16; give O1, which is the same as --fp16",
    "O3": "Apex is not used, and its O3 trains in pure float16; give O1, which is the same as --fp16",
}


def apply_fp16_level(parser, args):
    """Translate --fp16_opt_level to --fp16 or --fp32; a contradiction between them is a parser error."""
    level = args.fp16_opt_level
    if level in APEX_LEVELS:
        parser.error(f"--fp16_opt_level {level}: {APEX_LEVELS[level]}")
    if level == "O0":
        if args.fp16 or args.bf16:
            parser.error("--fp16_opt_level O0 is float32; leave --fp16 and --bf16 out")
        args.fp32 = True
    # The originals' default level has no effect without --fp16.
    if level == "O1" and (args.fp16 or "fp16" not in parser.locations):
        if args.fp32 or args.bf16:
            parser.error("--fp16_opt_level O1 is float16; leave --fp32 and --bf16 out")
        args.fp16 = True


def add_quantization(parser):
    """--load_in_4bit and --load_in_8bit, which exclude each other."""
    add(parser, "load_in_4bit", "load_in_8bit", group=parser.group(SPEED).add_mutually_exclusive_group())


def add_device(parser, group=None):
    """--device auto | cpu, and --no_cuda."""
    add(parser, "device", "no_cuda", group=group)


HISTORY = "exchanges of a conversation kept (default: the checkpoint's, else published)"
def accept(parser, names):
    """Accept another script's settings under all their spellings and ignore them; --help does not show them."""
    for name in names:
        switch = dict(action=Switch) if SETTINGS[name].options.get("action") is Switch else dict(nargs="*")
        words = [f"--{word}" for word in (name, *SETTINGS[name].spellings)]
        parser.add_argument(*words, default=SUPPRESS, help=SUPPRESS, **switch)


TOKENS_MOVED = {"cache_dir": "this is where models from the hub are kept; tokenised data go to --token_cache_dir"}


def add_training(parser, published="(default: published)"):
    """The settings that train.py and train_vlm.py share.

    Args:
        published: appended to the help of settings without a single default.
    """
    for name in ("lr", "n_epochs"):
        add(parser, name, help=f"{SETTINGS[name].help} {published}")
    add(parser, "max_steps")
    for name in ("train_batch_size", "gradient_accumulation_steps"):
        add(parser, name, default=None, help=f"{SETTINGS[name].help} {published}")
    add(parser, "max_tokens", "valid_batch_size", "max_norm", "lr_scheduler_type", "lr_scheduler_kwargs",
        "warmup_steps", "weight_decay")  # fmt: skip
    add(parser, "adam_eps", default=1e-6)
    add(parser, "early_stopping", "select", "no_validation", "eval_before_start", "seed", "init_from",
        "init_fingerprint", "compile", "gradient_checkpointing", "fsdp", "profile")  # fmt: skip
    add_quantization(parser)
    add_precision(parser)
    add(parser, "logging_steps", "report_to", "output_dir", "resume", "save_steps", "keep_checkpoints",
        "push_to_hub")  # fmt: skip
    add(parser, "cache_dir", notices=TOKENS_MOVED)
    add(parser, "token_cache_dir")


def add_decoding(parser, notices=None):
    """Flags for decoding, with the names of `training.decoding.Decoding`, and for its precision.

    Args:
        notices: of --cache_dir, as in `add`.
    """
    add(parser, "no_sample", "num_beams", "length_penalty", "temperature", "top_k", "top_p", "max_length",
        "min_length", "batch_size")  # fmt: skip
    add(parser, "seed", group=DECODING, help="random seed of sampling")
    add_precision(parser)
    add(parser, "cache_dir", notices=notices)


WITHOUT_EFFECT = {
    "perturbation_layers": "it had no effect in the original either",
    "lm_coef": "the original never read it: there is one loss",
    "personality_permutations": "the original never read it: the persona's sentences rotate once in each turn",
}


def refuse(parser, reasons):
    """Reject flags of a published system that are not supported: given, they are an error that says why.

    Args:
        reasons: {name: reason}.
    """
    for name, reason in reasons.items():
        parser.add_argument(f"--{name}", action=Refuse, const=reason)
