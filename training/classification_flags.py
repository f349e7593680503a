"""Flags of train_camtl.py: the original's (run.py on transformers 2.11), under their old names, and ours."""

import math
from pathlib import Path

from versatile.adapters.methods.registry import FULL
from versatile.adapters.schemas import FORMS
from versatile.data.glue import SHARED_HEADS, get_task, glue_name
from versatile.data.task import resolve
from versatile.data.task_names import task_flag, unknown_task
from versatile.training import method_flags
from versatile.utils import flags, settings

TASKS = ("cola", "mnli", "rte", "wnli", "qqp", "sts-b", "sst-2", "qnli", "mrpc")

# Flags of the original that are not accepted, and why.
REFUSED = {
    "tpu_num_cores": "TPU processes are started by torch_xla's launcher, which says how many there are",
    "tpu_metrics_debug": "torch_xla prints its metrics by itself when PT_XLA_DEBUG=1 is set",
    "tpu_name": "TPU processes are started by torch_xla's launcher",
    "do_lower_case": "the tokenizer knows by itself whether it is uncased",
    "dataloader_num_workers": "batches are made of rows in memory, there are no workers to count",
    "dataloader_drop_last": "no row is dropped",
}
# In addition to those of training.experiment, these may differ when a run is resumed.
FREE = {"resume", "push_to_hub", "do_predict", "data_dir", "overwrite_cache", "logging_dir", "local_rank",
        "overwrite_output_dir"}  # fmt: skip


def parser(doc):
    """The parser; `doc` is the script's docstring."""
    p = flags.build_parser(doc)
    _data_and_model(p)
    _actions(p)
    _training(p)
    _sampling(p)
    settings.add(p, "profile")
    settings.add_precision(p)
    settings.add(p, "local_rank", "fp16_opt_level")
    g = p.group("logging")
    settings.add(p, "logging_steps", default=None, help="steps between two points of the curve (default: 10); with "
                 "--evaluate_during_training also between two evaluations (default: 500)")  # fmt: skip
    settings.add(p, "logging_first_step", help="also log the first step, and evaluate after it with "
                                               "--evaluate_during_training")  # fmt: skip
    settings.add(p, "report_to")
    g.add_argument("--logging_dir", help="where TensorBoard's events go (default: the run directory)")
    settings.add(p, "output_dir", help="run directory, or where results go (default: runs/<date>_<host>_<model>_…)")
    settings.add(p, "overwrite_output_dir", "resume")
    settings.add(p, "save_steps", default=500, help="steps between checkpoints, in addition to one per epoch")
    settings.add(p, "keep_checkpoints",
                 help="number of newest checkpoints to keep (the original keeps all)")  # fmt: skip
    settings.add(p, "push_to_hub")
    settings.refuse(p, REFUSED)
    return p


def _data_and_model(p):
    g = p.group("task and data")
    settings.add(p, "data_dir", help="folder with CoLA/, MNLI/, …, as made by the official script")
    task_flag(g, "--tasks", "sentence_pair", nargs="+", metavar="TASK",
              help=f"tasks, in the order of their ids: {' '.join(TASKS)}, and NAME=DATA for tasks of your own, see "
                   "data/own_tasks.py (default: all of GLUE in this order, or a trained model's tasks)")  # fmt: skip
    settings.add(p, "limit", help="use only the first N rows of each file")
    settings.add(p, "overwrite_cache", "token_cache_dir")
    g.add_argument("--download", action="store_true",
                   help="print what is missing in --data_dir and where to get it, then stop")  # fmt: skip
    settings.add(p, "model_checkpoint",
                 help="CA-MTL-base (bert-base-cased), CA-MTL-large (bert-large-cased); any BERT by hub name or "
                      "directory, minilm, tiny-bert; or a trained model's directory")  # fmt: skip
    settings.add(p, "cache_dir", notices=settings.TOKENS_MOVED)
    g = p.group("model")
    g.add_argument("--method", choices=method_flags.method_names(),
                   help="adaptation method: full and conditional train the whole BERT, the others train adapters and "
                        f"heads on a frozen one; {method_flags.ONLY_GENERATORS} "
                        "(default: determined by --form)")  # fmt: skip
    settings.add(p, "adapter_bottleneck", group=g.title, default=None,
                 help="adapter width of --method bottleneck")  # fmt: skip
    method_flags.add_setting_flags(g)
    g.add_argument("--form", choices=FORMS,
                   help="this BERT in the conditional form of CA-MTL-base or CA-MTL-large, or as a plain multi-task "
                        "BERT (default: as its name says; plain for any other BERT)")  # fmt: skip
    settings.add(p, "max_len", dest="max_seq_length",
                 help="maximum tokens per row, including special ones; a longer row loses tokens of its longer text. "
                      "In the conditional forms, a divisor of the hidden size (default: 128)")  # fmt: skip
    g.add_argument("--freeze_encoder_layers", metavar="0-N",
                   help="freeze these layers and the embeddings, but nothing conditional; published: N = 5 for base, "
                        "11 for large")  # fmt: skip


def _actions(p):
    g = p.group("what to do")
    g.add_argument("--do_train", action="store_true", help="train")
    g.add_argument("--do_eval", action="store_true",
                   help="score the dev files; during training after each epoch, keeping the best model")  # fmt: skip
    g.add_argument("--do_predict", "--do_test", action="store_true", help="write predictions for the test files")
    g.add_argument("--evaluate_during_training", action="store_true",
                   help="also score the dev files every --logging_steps steps")  # fmt: skip
    settings.add(p, "select", group=g.title,
                 help="keep the model with the best average over the tasks, or the last one")  # fmt: skip


def _training(p):
    settings.add(p, "lr", default=5e-5)
    settings.add(p, "n_epochs", type=flags.epochs, default=3.0, help="number of epochs; may be a fraction")
    settings.add(p, "max_steps", type=flags.count_or_none, default=-1,
                 help="above 0: number of optimizer steps, overriding the epochs")  # fmt: skip
    settings.add(p, "train_batch_size", "valid_batch_size", default=8)
    settings.add(p, "gradient_accumulation_steps", "lr_scheduler_type", "lr_scheduler_kwargs")
    settings.add(p, "warmup_ratio", default=0.1, help="share of the steps over which the learning rate rises")
    settings.add(p, "warmup_steps", default=None, help="number of warm-up steps, instead of a share")
    settings.add(p, "weight_decay")
    settings.add(p, "adam_eps", default=1e-8)
    settings.add(p, "max_norm", "seed")


def _sampling(p):
    g = p.group("sampling (default: all rows of all tasks in random order)")
    g.add_argument("--uniform_mt_sampling", action="store_true",
                   help="draw every task equally often (in the original it only changes the epoch length of "
                        "--use_mt_uncertainty, on which it has no effect here)")  # fmt: skip
    g.add_argument("--use_mt_uncertainty", action="store_true",
                   help="from one batch of each task, train on the rows that the model is least certain about")
    g.add_argument("--percent_of_max_data_size", type=flags.share_or_more, default=1.0, metavar="SHARE",
                   help="with either of these, an epoch has int(largest number of batches of a task × tasks × SHARE) "
                        "steps; a SHARE above 1 counts as 1")  # fmt: skip


# --- what goes together ----------------------------------------------------------------------------------


def check_flags(p, args):
    """Complete the flags; a parser error if they are inconsistent."""
    if not args.model_checkpoint:
        p.error("--model_name_or_path is needed")
    take_definitions(args)
    if not args.data_dir and not set(args.tasks or TASKS) <= own_names(args):
        p.error("--data_dir is needed; --download says where to get GLUE")
    if not (args.do_train or args.do_eval or args.do_predict):
        p.error("nothing to do: give --do_train, --do_eval or --do_predict")
    if not args.do_train:
        _only_training(p, args)
        if not args.output_dir:
            p.error("--output_dir is needed: it says where the results go")
        if args.push_to_hub:
            p.error("--push_to_hub uploads the trained model: it requires --do_train")
    args.max_steps = max(args.max_steps, -1)
    if not 0 < args.percent_of_max_data_size < math.inf:
        p.error("--percent_of_max_data_size: expected a number above 0 (from 1 on: all of the data)")
    _check_tasks(p, args)
    _check_method(p, args)
    settings.apply_fp16_level(p, args)
    _check_rank(p, args)


def own_names(args):
    """Names of the user's own tasks, as typed or as known to the trained model."""
    return {*(args.own_tasks or ()), *(task["name"] for task in args.task_definitions or ())}


def take_definitions(args):
    """Take over a trained model's task definitions; without --tasks, also all tasks that it was trained on."""
    from versatile.training.runs import stored_definitions, stored_record

    if args.own_tasks or not Path(args.model_checkpoint).is_dir():
        return
    args.task_definitions = stored_definitions(args.model_checkpoint)
    if args.task_definitions and not args.tasks:
        args.tasks = stored_record(args.model_checkpoint)["flags"].get("tasks")


def _only_training(p, args):
    for flag in ("evaluate_during_training", "freeze_encoder_layers", "use_mt_uncertainty", "uniform_mt_sampling"):
        if getattr(args, flag):
            p.error(f"--{flag} requires --do_train")


def _check_tasks(p, args):
    if not args.tasks:
        return
    own = own_names(args)
    names = [name for word in args.tasks for name in ([word] if word in own else word.lower().split(",")) if name]
    # Also accept "stsb" and "sts_b".
    args.tasks = [name if name in own else glue_name(name) or name for name in names]
    for name in args.tasks:
        if name in SHARED_HEADS:
            p.error(f"--tasks {name}: nothing is trained on it; it is evaluated with {SHARED_HEADS[name]}")
        if name not in TASKS and name not in own:
            if resolve(name) is None:
                raise unknown_task(name, TASKS)
            # Another data set of sentences with a class; any other task is refused with the reason.
            get_task(name)
    if twice := next((name for name in args.tasks if args.tasks.count(name) > 1), None):
        p.error(f"--tasks: {twice} is named twice")


def _check_method(p, args):
    """Check that --method and --form agree; adapters allow neither frozen layers nor a conditional form."""
    chosen = choose_method(args)
    name = chosen["method"] if chosen else args.method or FULL
    method_flags.check_settings(args, [name])
    if chosen is None and args.method is None:
        return
    forms = ("base", "large") if name == "conditional" else ("plain",)
    if args.form is None and name != "conditional":
        args.form = "plain"
    if args.form is not None and args.form not in forms:
        p.error(f"--method {name} requires --form {' or '.join(forms)}")
    if chosen and args.freeze_encoder_layers:
        p.error(f"--freeze_encoder_layers has no effect with --method {name}: the whole BERT is frozen")


def choose_method(args):
    """The adapter method of the flags, see `method_flags.choose_method`; None: the whole BERT is trained."""
    if args.method in (None, FULL, "conditional") and args.adapter_bottleneck is None:
        return None
    return method_flags.choose_method(args, args.method, args.adapter_bottleneck)


def _check_rank(p, args):
    import os

    if args.local_rank >= 0 and "LOCAL_RANK" not in os.environ:
        p.error("--local_rank: processes are started by torchrun --nproc_per_node N")
