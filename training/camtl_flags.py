"""Flags of train_camtl.py: those of the original (run.py on transformers 2.11), by their old names, and ours.

A json file {"flag": value} may stand in their place, or before those that override it.
"""

import argparse
import json
import math
from pathlib import Path

from versatile.data.glue import get as get_task
from versatile.data.task import resolve
from versatile.data.task_names import task_flag, unknown_task
from versatile.utils import flags
from versatile.utils.devices import add_precision_flags
from versatile.utils.errors import UserError

TASKS = ("cola", "mnli", "rte", "wnli", "qqp", "sts-b", "sst-2", "qnli", "mrpc")
# Evaluated and predicted with another task's head.
GUESTS = {"mnli-mm": "mnli", "ax": "mnli"}
FORMS = ("base", "large", "plain")

# Flags of the original that are not taken, and why.
REFUSED = {
    "--tpu_num_cores": "TPU processes are started by torch_xla's launcher, which says how many there are",
    "--tpu_metrics_debug": "torch_xla prints its metrics by itself when PT_XLA_DEBUG=1 is set",
    "--tpu_name": "TPU processes are started by torch_xla's launcher",
    "--do_lower_case": "the tokenizer knows by itself whether it is uncased",
    "--dataloader_num_workers": "batches are made of rows in memory, there are no workers to count",
    "--dataloader_drop_last": "no row is dropped",
}
FP16_LEVELS = {
    "O0": "everything in float32",
    "O1": "mixed precision: what --fp16 is",
    "O2": "Apex is not used, and its O2 keeps the weights in float16; give O1, which is what --fp16 is",
    "O3": "Apex is not used, and its O3 trains in pure float16; give O1, which is what --fp16 is",
}
# Beside those of utils.experiment: they may differ when a run is gone on with.
FREE = {"resume", "push_to_hub", "do_predict", "data_dir", "overwrite_cache", "logging_dir", "local_rank", "no_cuda",
        "overwrite_output_dir"}  # fmt: skip


def parser(doc):
    """The parser; `doc` is the script's docstring."""
    p = flags.parser(doc)
    _model_and_data(p)
    _actions(p)
    _training(p)
    _sampling(p)
    _machine(p)
    g = p.add_argument_group("output and resuming")
    g.add_argument("--output_dir", help="run directory, or where results go (default: runs/<date>_<host>_<model>_…)")
    g.add_argument("--overwrite_output_dir", action="store_true",
                   help="start anew where a run of train_camtl.py is: its files go")  # fmt: skip
    g.add_argument("--resume", metavar="RUN", help="go on with this run, exactly; no other flag is needed")
    flags.add_push_flag(g)
    g.add_argument("--logging_dir", help="where TensorBoard's events go (default: the run directory)")
    g.add_argument("--logging_steps", type=flags.positive,
                   help="steps between two points of the curve (default: 10); with --evaluate_during_training also "
                        "between two evaluations (default: 500)")  # fmt: skip
    g.add_argument("--logging_first_step", action="store_true",
                   help="log the first step, too, and evaluate after it with --evaluate_during_training")  # fmt: skip
    g.add_argument("--save_steps", type=flags.positive, default=500,
                   help="a checkpoint every so many steps, beside one each epoch")  # fmt: skip
    g.add_argument("--save_total_limit", "--keep_checkpoints", dest="keep_checkpoints", type=flags.positive, default=3,
                   help="how many of the newest checkpoints are kept (the original keeps all)")  # fmt: skip
    _refuse(p)
    return p


def _model_and_data(p):
    g = p.add_argument_group("model")
    g.add_argument("--model_name_or_path", "--model_checkpoint", dest="model_checkpoint", metavar="MODEL",
                   help="CA-MTL-base (bert-base-cased), CA-MTL-large (bert-large-cased); any BERT by hub name or "
                        "directory, minilm, tiny-bert; or a trained model's directory")  # fmt: skip
    g.add_argument("--form", choices=FORMS,
                   help="the conditional form of CA-MTL-base or of CA-MTL-large on this BERT, or plain multi-task "
                        "BERT (default: what the name says; plain for any other BERT)")  # fmt: skip
    g.add_argument("--max_seq_length", type=flags.positive,
                   help="tokens a row, special ones counted; longer ones are cut from the longer text. In the "
                        "conditional forms a divisor of the hidden size (default: 128)")  # fmt: skip
    g.add_argument("--freeze_encoder_layers", metavar="0-N",
                   help="freeze these layers and the embeddings, and nothing conditional; published: N = 5 for base, "
                        "11 for large")  # fmt: skip
    g = p.add_argument_group("data")
    g.add_argument("--data_dir", help="folder of CoLA/, MNLI/, …, as the official script makes it")
    task_flag(g, "--tasks", "sentence_pair", nargs="+", metavar="TASK",
              help=f"tasks, their order gives the ids: {' '.join(TASKS)}, and NAME=DATA for those of your own, see "
                   "data/own_tasks.py (default: all of GLUE in this order, a trained model's own)")  # fmt: skip
    g.add_argument("--limit", type=flags.positive, help="only the first so many rows of each file")
    g.add_argument("--overwrite_cache", action="store_true", help="tokenise anew")
    g.add_argument("--cache_dir", help="where tokenised data lie (default: $VERSATILE_CACHE or ~/.cache/versatile)")
    g.add_argument("--download", action="store_true",
                   help="print what is missing in --data_dir and where it is to be had, and stop")  # fmt: skip


def _actions(p):
    g = p.add_argument_group("what to do")
    g.add_argument("--do_train", action="store_true", help="train")
    g.add_argument("--do_eval", action="store_true",
                   help="score the dev files; in training after each epoch, and the best model is kept")  # fmt: skip
    g.add_argument("--do_predict", action="store_true", help="write predictions of the test files")
    g.add_argument("--evaluate_during_training", action="store_true",
                   help="score the dev files every --logging_steps steps, too")  # fmt: skip
    g.add_argument("--select", choices=["best", "last"], default="best",
                   help="keep the model of the best average over the tasks, or the last one")  # fmt: skip


def _training(p):
    g = p.add_argument_group("training")
    g.add_argument("--learning_rate", "--lr", dest="lr", type=flags.rate, default=5e-5, help="highest rate")
    g.add_argument("--num_train_epochs", type=flags.rate, default=3.0, help="epochs; may be a fraction")
    g.add_argument("--max_steps", type=flags.count_or_none, default=-1,
                   help="above 0: so many optimizer steps, whatever the epochs")  # fmt: skip
    g.add_argument("--per_device_train_batch_size", "--train_batch_size", dest="train_batch_size", type=flags.positive,
                   default=8, help="rows a batch and process")  # fmt: skip
    g.add_argument("--per_device_eval_batch_size", "--valid_batch_size", dest="valid_batch_size", type=flags.positive,
                   default=8, help="rows an evaluation batch and process")  # fmt: skip
    for kind, name in (("train", "train_batch_size"), ("eval", "valid_batch_size")):
        g.add_argument(f"--per_gpu_{kind}_batch_size", dest=f"per_gpu_{name}", type=flags.positive,
                       help=f"the old name of --per_device_{kind}_batch_size")  # fmt: skip
    g.add_argument("--gradient_accumulation_steps", type=flags.positive, default=1, help="batches an optimizer step")
    g.add_argument("--warmup_proportion", type=flags.fraction, default=0.1,
                   help="share of the steps in which the rate rises; then it falls linearly to 0")  # fmt: skip
    g.add_argument("--warmup_steps", type=flags.not_negative, help="steps in which it rises, instead of a share")
    g.add_argument("--weight_decay", type=flags.not_negative_rate, default=0.0, help="AdamW's, not of norms and biases")
    g.add_argument("--adam_epsilon", type=flags.rate, default=1e-8, help="Adam's eps")
    g.add_argument(
        "--max_grad_norm",
        "--max_norm",
        dest="max_grad_norm",
        type=flags.rate,
        default=1.0,
        help="gradients are clipped to this norm",
    )
    g.add_argument("--seed", type=flags.seed, default=42, help="of new weights, order and dropout")


def _sampling(p):
    g = p.add_argument_group("sampling (default: all rows of all tasks in random order)")
    g.add_argument("--uniform_mt_sampling", action="store_true",
                   help="draw every task equally often (in the original it only changes the length of an epoch of "
                        "--use_mt_uncertainty, where it has no effect here)")  # fmt: skip
    g.add_argument("--use_mt_uncertainty", action="store_true",
                   help="of one batch of each task learn the rows that the model is least certain about")  # fmt: skip
    g.add_argument("--percent_of_max_data_size", type=flags.share_or_more, default=1.0, metavar="SHARE",
                   help="with either of them an epoch has int(most batches of a task × tasks × this) steps; above 1 "
                        "it is 1")  # fmt: skip


def _machine(p):
    g = p.add_argument_group("machine")
    g.add_argument("--no_cuda", action="store_true", help="use no GPU even where there is one")
    g.add_argument("--local_rank", type=flags.count_or_none, default=-1,
                   help="what old launchers pass; torchrun says it by itself")  # fmt: skip
    g.add_argument("--fp16_opt_level", choices=list(FP16_LEVELS), help="O1 means --fp16, O0 --fp32")
    add_precision_flags(p)


def _refuse(p):
    class Refuse(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None):
            parser.error(f"{option_string}: {REFUSED[option_string]}; leave it out")

    for flag in REFUSED:
        p.add_argument(flag, nargs="?", action=Refuse, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


# --- one json file ---------------------------------------------------------------------------------------


_JSON = '{"model_name_or_path": …, "do_train": true}'


def from_json(p, argv):
    """A command line; where its first word is a json file, the flags in that, and then the others, which override.

    Raises:
        UserError: not json, no object, an unknown key, a value that no flag has.
    """
    if not argv or not str(argv[0]).endswith(".json"):
        return list(argv)
    path, *typed = argv
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", location=path, expected="a json file of flags") from error
    except ValueError as error:
        raise UserError(f"no json: {error}", location=path, expected=_JSON) from error
    if not isinstance(content, dict):
        raise UserError(f"holds {_shown(content)}", location=path, expected=_JSON)
    if _PRECISIONS & set(typed):
        # They exclude each other.
        content = {key: value for key, value in content.items() if f"--{key}" not in _PRECISIONS}
    if content.get("fp16") is False and content.get("fp16_opt_level") == "O1":
        # The original's default, which means nothing without its --fp16.
        content = {key: value for key, value in content.items() if key != "fp16_opt_level"}
    known = {option.removeprefix("--"): action for action in p._actions for option in action.option_strings}
    return [*(word for key, value in content.items() for word in _words(p, key, value, known, path)), *typed]


_PRECISIONS = {"--bf16", "--fp16", "--fp32"}


def _shown(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _words(p, key, value, known, path):
    """A key and its value, as they would be typed."""
    location, action = f"{path}: {key}", known.get(key)
    if action is None:
        raise UserError("no such flag", location=location, expected="a flag's name without its dashes",
                        remedy="see --help")  # fmt: skip
    switch = action.nargs == 0
    if value is None or (value is False and (switch or action.default is argparse.SUPPRESS)):
        return []
    if f"--{key}" in REFUSED:
        raise UserError(REFUSED[f"--{key}"], location=location, remedy="leave it out")
    if switch and value is not True:
        raise UserError(f"its value is {_shown(value)}", location=location, expected="true or false")
    if switch:
        return [f"--{key}"]
    if isinstance(value, list) and action.nargs == "+":
        return [f"--{key}", *map(str, value)]
    if isinstance(value, bool | list | dict):
        raise UserError(f"its value is {_shown(value)}", location=location, expected="a number or a text")
    if action.nargs == "+":
        return [f"--{key}", *str(value).split()]
    try:
        p._check_value(action, p._get_value(action, str(value)))
    except argparse.ArgumentError as error:
        raise UserError(error.message, location=location, remedy="see --help") from error
    return [f"--{key}={value}"]


# --- what goes together ----------------------------------------------------------------------------------


def check(p, args):
    """Complete the flags; an error of the parser where they do not go together."""
    if not args.model_checkpoint:
        p.error("--model_name_or_path is needed")
    take_definitions(args)
    if not args.data_dir and not set(args.tasks or TASKS) <= own_names(args):
        p.error("--data_dir is needed; --download says where GLUE is to be had")
    if not (args.do_train or args.do_eval or args.do_predict):
        p.error("nothing to do: give --do_train, --do_eval or --do_predict")
    if not args.do_train:
        _only_training(p, args)
        if not args.output_dir:
            p.error("--output_dir is needed: it says where the results go")
        if args.push_to_hub:
            p.error("--push_to_hub uploads what is trained: it goes with --do_train")
    for name in ("train_batch_size", "valid_batch_size"):
        old = getattr(args, f"per_gpu_{name}")
        if old is not None and getattr(args, name) not in (old, p.get_default(name)):
            p.error(f"--per_gpu_… and --per_device_… say {old} and {getattr(args, name)}: give one of them")
        setattr(args, name, old or getattr(args, name))
    args.max_steps = max(args.max_steps, -1)
    if not 0 < args.percent_of_max_data_size < math.inf:
        p.error("--percent_of_max_data_size: expected a number above 0 and up to 1")
    _check_tasks(p, args)
    _check_level(p, args)
    _check_rank(p, args)


def own_names(args):
    """Names of the tasks of the user's own that are typed, or that the trained model knows."""
    return {*(args.own_tasks or ()), *(task["name"] for task in args.task_definitions or ())}


def take_definitions(args):
    """A trained model brings its own tasks; without --tasks all that it was trained on are meant."""
    from versatile.training.runs import stored

    if args.own_tasks or not Path(args.model_checkpoint).is_dir():
        return
    known = stored(args.model_checkpoint).get("flags") or {}
    args.task_definitions = known.get("task_definitions")
    if args.task_definitions and not args.tasks:
        args.tasks = known.get("tasks")


def _only_training(p, args):
    for flag in ("evaluate_during_training", "freeze_encoder_layers", "use_mt_uncertainty", "uniform_mt_sampling"):
        if getattr(args, flag):
            p.error(f"--{flag} goes with --do_train")


def _check_tasks(p, args):
    if not args.tasks:
        return
    own = own_names(args)
    names = [name for word in args.tasks for name in ([word] if word in own else word.lower().split(",")) if name]
    # "stsb" and "sts_b", too.
    plain = {name.replace("-", ""): name for name in (*TASKS, *GUESTS)}
    args.tasks = [name if name in own else plain.get(name.replace("-", "").replace("_", ""), name) for name in names]
    for name in args.tasks:
        if name in GUESTS:
            p.error(f"--tasks {name}: nothing is trained on it; it is evaluated with {GUESTS[name]}")
        if name not in TASKS and name not in own:
            if resolve(name) is None:
                raise unknown_task(name, TASKS)
            # Another data set whose rows are sentences with a class; what is none is refused with the reason.
            get_task(name)
    if twice := next((name for name in args.tasks if args.tasks.count(name) > 1), None):
        p.error(f"--tasks: {twice} is named twice")


def _check_level(p, args):
    level = args.fp16_opt_level
    if level in ("O2", "O3"):
        p.error(f"--fp16_opt_level {level}: {FP16_LEVELS[level]}")
    if level == "O0":
        if args.fp16 or args.bf16:
            p.error("--fp16_opt_level O0 is float32; leave --fp16 and --bf16 out")
        args.fp32 = True
    if level == "O1":
        if args.fp32 or args.bf16:
            p.error("--fp16_opt_level O1 is float16; leave --fp32 and --bf16 out")
        args.fp16 = True


def _check_rank(p, args):
    import os

    if args.local_rank >= 0 and "LOCAL_RANK" not in os.environ:
        p.error("--local_rank: processes are started by torchrun --nproc_per_node N")
