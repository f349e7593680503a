#!/usr/bin/env python
r"""Train one task: a residual adapter and task embeddings in a frozen backbone, or the whole model.

  one CPU or one GPU (the GPU is used if there is one):
    python train.py --task nlg --dataset_path data/samples/nlg.json --model_checkpoint smollm2 \
      --adapter_bottleneck 64 --lr 1e-3
  full fine-tuning:
    python train.py --task nlg --dataset_path data/samples/nlg.json --model_checkpoint smollm2 --lr 1e-4
  several GPUs, or several processes on a CPU:
    torchrun --nproc_per_node 2 train.py --task nlg --dataset_path data/samples/nlg.json --model_checkpoint smollm2 \
      --adapter_bottleneck 64 --lr 1e-3
  distillation from a teacher (a run of train.py, a VLM or a released checkpoint): its distributions, texts, or both:
    python train.py --task mt --model_checkpoint smollm2 --adapter_bottleneck 300 --teacher runs/<run> --kd word
    python train.py --task mt --model_checkpoint smollm2 --adapter_bottleneck 300 --distillation
  resume after an interruption:
    python train.py --resume runs/<run>

Flags not given default to the task's published settings. The run directory holds the best model, the last checkpoints,
TensorBoard events, run.json, metrics.json and learning_curve.png; evaluate.py reads it.
"""

import argparse
import sys

from versatile.adapters.methods.registry import BARE, FULL
from versatile.data.listing import list_tasks
from versatile.data.task_names import task_flag
from versatile.training import method_flags
from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error

PUBLISHED = ("lr", "n_epochs", "train_batch_size", "gradient_accumulation_steps")


def parser():
    p = flags.build_parser(__doc__)
    g = p.group("task and data")
    task_flag(g, "--task", "markers",
              help="the task to train: one of --list_tasks, or NAME=DATA for one of your own; see data/own_tasks.py")
    settings.add(p, "dataset_path", "max_history", "limit")
    list_tasks(g)
    settings.add(p, "model_checkpoint", default="gpt2",
                 help="backbone: a hub name, a directory, or smollm2, tiny-gpt2, tiny-llama, tiny-t5")  # fmt: skip
    settings.add(p, "adapter_bottleneck", default=-1,
                 help="freeze the backbone and train an adapter of this width and the task's embeddings; "
                      "0: only the embeddings; -1: train the whole model (default -1)")  # fmt: skip
    g = p.group("model")
    g.add_argument("--method", choices=method_flags.method_names(),
                   help=f"adaptation method, with its published or default settings; {method_flags.ONLY_CLASSIFIERS} "
                        "(default: determined by --adapter_bottleneck)")  # fmt: skip
    method_flags.add_setting_flags(g)
    settings.add(p, "row_init")
    g.add_argument("--emb_only", action="store_true", help="train only the task's embeddings, without an adapter")
    g.add_argument("--outputlayer_only", action="store_true", help="train only the vocabulary table, all of it")
    settings.add(p, "random_init")
    g.add_argument("--self_copy", action="store_true", help="mix the output distribution with a pointer to the input")
    g = p.group("distillation")
    g.add_argument("--distillation", action="store_true",
                   help="train on a teacher's texts: distillated_tgt or distillated_candidates in the data, or in "
                        "<data>_distilled.json next to them, as written by sentence_distiller.py")  # fmt: skip
    g.add_argument("--teacher", metavar="RUN", help="a trained model of the task, for --kd word and --kd both")
    g.add_argument("--kd", choices=["word", "sentence", "both"],
                   help="train on the teacher's distributions (word), on its texts (sentence, like --distillation), or "
                        "on its distributions for its texts (both) (default with --teacher: word)")  # fmt: skip
    settings.add(p, "kd_temperature", spellings=("temperature",), notices={
        "temperature": "--temperature is decoding's; the temperature of --kd word is now called --kd_temperature"},
        help="temperature of teacher and student in --kd word")  # fmt: skip
    settings.add(p, "kd_alpha")
    # Not for users: kept in run.json, so that a resumed run notices a changed teacher.
    g.add_argument("--teacher_fingerprint", help=argparse.SUPPRESS)
    settings.add_training(p)
    settings.refuse(p, settings.WITHOUT_EFFECT)
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if not args.task and not args.resume:
        p.error("--task is needed (or --resume RUN)")
    from versatile.utils.devices import parallel

    with parallel():
        train(args, flags.typed_flags(parser, argv))


def train(args, typed_flags):
    import ignite.distributed as idist
    from versatile.adapters import attach as adapting
    from versatile.adapters.backbones.family import max_length_of
    from versatile.data.own_tasks import prepare_own_tasks
    from versatile.data.task import get_task
    from versatile.training import evaluation, experiment
    from versatile.training.distillation import check_teacher

    args, run = experiment.open_run(parser(), args, typed_flags)
    check_flags(args, typed_flags)
    prepare_own_tasks(args, "--task")
    task = get_task(args.task)
    path = fill_defaults(args, task)
    dtype = experiment.check_before_loading(args, run)
    if args.teacher:
        check_teacher(args.teacher, task.name)
    # One process per machine builds the caches, the others read them.
    with idist.one_rank_first(local=True):
        model, tokenizer = build_model(args, task)
        experiment.warm_start(args, run, model, tokenizer)
        positions = max_length_of(model)
        limits = {task.name: args.limit}
        splits = experiment.load_splits(args, {task.name: task}, {task.name: path}, tokenizer, positions, limits)
        longest = int(splits["train"][task.name].lengths[: args.limit].max())
        objective = load_teacher(args, task, (model, tokenizer), dtype, longest)
    experiment.print_once(adapting.parameter_summary(model))
    experiment.prepare_for_training(model, args, dtype)
    if run is None:
        run = experiment.new_run(args, (task.name, run_name_part(args)), method_label(args))
    experiment.fit(args, run, model, tokenizer, splits, dtype, limits=limits, objective=objective)
    split = evaluation.split_words({task: args.dataset_path})
    following = ["evaluate.py", "--task", task.name, "--no_sample", "--model_checkpoint", run.directory,
                 "--dataset_path", args.dataset_path, *(split or ()),
                 "--output_dir", f"results/{run.directory.name}"]  # fmt: skip
    experiment.end_run(args, run, *([] if split is None else following))


def check_flags(args, typed_flags):
    """Reject contradicting flags; `typed_flags` are those given by the user."""
    if args.method not in (None, BARE) and args.emb_only:
        raise UserError(f"trains no adapter, but --method {args.method} asks for one", location="--emb_only",
                        remedy="leave one of the two out")  # fmt: skip
    if args.emb_only and args.adapter_bottleneck > 0:
        raise UserError(f"trains no adapter, but --adapter_bottleneck {args.adapter_bottleneck} asks for one",
                        location="--emb_only", remedy="leave one of the two out")  # fmt: skip
    if args.outputlayer_only and (args.emb_only or args.adapter_bottleneck >= 0 or args.method not in (None, FULL)):
        raise UserError("trains nothing but the vocabulary table of the model itself", location="--outputlayer_only",
                        remedy="leave --adapter_bottleneck, --method and --emb_only out")  # fmt: skip
    if args.emb_only:
        args.adapter_bottleneck = 0
    chosen = choose_method(args)
    method_flags.check_settings(args, [chosen["method"] if chosen else FULL])
    if args.teacher and not args.kd:
        args.kd = "word"
    if args.kd in ("word", "both") and not args.teacher:
        raise UserError("no teacher was given", location=f"--kd {args.kd}", remedy="name one: --teacher runs/<run>")
    if args.kd == "sentence" and args.teacher:
        raise UserError("the teacher's texts are read from the data, not made here", location="--kd sentence",
                        remedy="generate them with sentence_distiller.py, omit --teacher; or --kd both")  # fmt: skip
    if args.self_copy and args.teacher:
        raise UserError("cannot be trained on a teacher's distributions: its output is not a softmax",
                        location="--self_copy", remedy="train on its texts: --distillation")  # fmt: skip
    for flag in ("kd_temperature", "kd_alpha"):
        if flag in typed_flags and not args.teacher:
            raise UserError("has no effect without a teacher", location=f"--{flag}", remedy="name one with --teacher")
    args.distillation = args.distillation or args.kd in ("sentence", "both")


def choose_method(args, task=None):
    """The adaptation method, as returned by `method_flags.choose_method`; the width defaults to the task's."""
    width = task and task.published.get("adapter", {}).get("adapter_bottleneck")
    return method_flags.choose_method(args, args.method, args.adapter_bottleneck, width)


def fill_defaults(args, task):
    """Fill in flags not given; returns the file to train on."""
    fill_published(args, task)
    args.max_history = args.max_history or task.max_history
    path = task.data_path(args.dataset_path, args.distillation)
    # run.json records the gold file, which is used for evaluating and for resuming the run.
    args.dataset_path = args.dataset_path or task.dataset_path
    return path


def fill_published(args, task):
    """Set flags not given to the task's published settings."""
    settings = task.published.get("adapter" if choose_method(args) else "finetune", {})
    for name in PUBLISHED:
        if getattr(args, name) is None and name not in settings:
            raise UserError(f"no published setting of --{name} for task {task.name}", remedy=f"give --{name}")
        if getattr(args, name) is None:
            setattr(args, name, settings[name])


def build_model(args, task):
    """(the model that the flags ask for, its tokenizer)"""
    from versatile.training import experiment

    chosen = choose_method(args, task)
    model, tokenizer = experiment.load_model(args, {task.name: task}, chosen and {task.name: chosen})
    apply_ablations(args, model)
    return model, tokenizer


def apply_ablations(args, model):
    """Apply --self_copy and --outputlayer_only to an attached model."""
    from versatile.adapters import attach as adapting
    from versatile.adapters.methods import pointer as self_copy

    if args.self_copy:
        self_copy.add(model)
    if args.outputlayer_only:
        adapting.only_tables(model)


def load_teacher(args, task, student, dtype, longest):
    """The objective `Distilled`, or None without --teacher."""
    if not args.teacher:
        return None
    import ignite.distributed as idist
    from versatile.adapters import checkpoint, inference
    from versatile.training.distillation import WordTeacher
    from versatile.training.objectives import Distilled
    from versatile.training.sentence_distillation import checkpoint_fingerprint

    fingerprint = checkpoint_fingerprint(args.teacher)
    if args.teacher_fingerprint not in (None, fingerprint):
        raise UserError("the teacher has changed since this run was started", location=f"--teacher {args.teacher}",
                        expected="the same files", remedy="restore them, or start a new run")  # fmt: skip
    args.teacher_fingerprint = fingerprint
    try:
        teacher, tokenizer = checkpoint.load_checkpoint(args.teacher, task.name, flag=f"--teacher {args.teacher}")
    except UserError as error:
        location = str(error.location).replace("--model_checkpoint", "--teacher")
        raise UserError(error.found, location=location, expected=error.expected, remedy=error.remedy) from error
    inference.prepare_for_inference(teacher, idist.device(), dtype)
    teacher = WordTeacher((teacher, tokenizer), student, task, dtype, longest)
    return Distilled(teacher, temperature=args.kd_temperature, alpha=args.kd_alpha)


def run_name_part(args):
    """What is trained, in one word, for the run's name."""
    if args.outputlayer_only:
        return "outputlayer"
    chosen = choose_method(args)
    if chosen is None:
        return "finetune"
    if chosen["method"] in ("bottleneck", BARE):
        return f"adapter{chosen.get('adapter_bottleneck', 0 if chosen['method'] == BARE else '')}"
    return method_flags.name_of(chosen)


def method_label(args):
    """How the model is trained, for tables of results: "adapter+distillation"."""
    chosen = choose_method(args)
    name = chosen["method"] if chosen else run_name_part(args)
    names = [{"bottleneck": "adapter", BARE: "rows"}.get(name, name)]
    names += ["self-copy"] * args.self_copy + ["random-init"] * args.random_init
    names += ["word-distillation"] * bool(args.teacher) + ["distillation"] * args.distillation
    return "+".join(names)


if __name__ == "__main__":
    sys.exit(main())
