#!/usr/bin/env python
r"""Train one task: a residual adapter and task embeddings beside a frozen backbone, or the whole model.

  one CPU or one GPU (a GPU is used where there is one):
    python train.py --task nlg --dataset_path data/samples/nlg.json --model_checkpoint smollm2 \
      --adapter_bottleneck 64 --lr 1e-3
  fully fine-tuned:
    python train.py --task nlg --dataset_path data/samples/nlg.json --model_checkpoint smollm2 --lr 1e-4
  several GPUs, or several processes on a CPU:
    torchrun --nproc_per_node 2 train.py --task nlg --dataset_path data/samples/nlg.json --model_checkpoint smollm2 \
      --adapter_bottleneck 64 --lr 1e-3
  go on after an interruption:
    python train.py --resume runs/<run>

Flags that are not given take the task's published settings. The run directory holds the best model, the last
checkpoints, TensorBoard events, run.json, metrics.json and learning_curve.png; evaluate.py reads it.
"""

import sys
from argparse import Namespace
from pathlib import Path

from utils import flags
from utils.devices import add_precision_flags
from utils.errors import UserError, exit_on_user_error

# These change where a run's files lie or how they are kept, never what comes out.
FREE_WHEN_RESUMING = {"resume", "output_dir", "cache_dir", "keep_checkpoints", "save_steps", "valid_batch_size"}
PUBLISHED = ("lr", "n_epochs", "train_batch_size", "gradient_accumulation_steps")


def parser():
    p = flags.parser(__doc__)
    g = p.add_argument_group("task and data")
    g.add_argument("--task", help="what to learn; see --list_tasks")
    g.add_argument("--dataset_path", help="the task's json file (default: the task's own place under data/)")
    g.add_argument("--distillation", action="store_true", help="learn the teacher's targets, distillated_tgt")
    g.add_argument("--max_history", type=flags.positive, default=2, help="turns of history, in dialogue-like tasks")
    g.add_argument("--limit", type=flags.positive, help="use only the first so many examples of each split")
    g.add_argument("--no_validation", action="store_true", help="train without a validation split; keep the last model")
    g.add_argument("--cache_dir", help="where tokenised data lie (default: $VERSATILE_CACHE or ~/.cache/versatile)")
    g.add_argument("--list_tasks", action="store_true", help="print the known tasks and stop")
    g = p.add_argument_group("model")
    g.add_argument("--model_checkpoint", default="gpt2",
                   help="backbone: a hub name, a directory, or smollm2, tiny-gpt2, tiny-llama")  # fmt: skip
    g.add_argument("--adapter_bottleneck", type=flags.bottleneck, default=-1, metavar="N",
                   help="train an adapter of this width and the task's rows beside the frozen backbone; "
                        "0: the rows alone; -1: train the whole model (default -1)")  # fmt: skip
    g.add_argument("--row_init", choices=["normal", "words"], default="normal",
                   help="task rows start from N(0, 0.02) as published, or from their markers' words")  # fmt: skip
    g.add_argument("--random_init", action="store_true", help="the backbone's shape with fresh weights")
    g = p.add_argument_group("training (defaults: the task's published settings)")
    g.add_argument("--lr", type=flags.rate, help="highest learning rate; falls linearly to 0 (default: published)")
    g.add_argument("--n_epochs", type=flags.positive, help="passes over the data (default: published)")
    g.add_argument("--max_steps", type=flags.positive, help="stop after so many optimizer steps")
    g.add_argument("--train_batch_size", type=flags.positive, help="examples a batch and process (default: published)")
    g.add_argument("--max_tokens", type=flags.positive, help="size batches by tokens, padding counted, not by examples")
    g.add_argument("--valid_batch_size", type=flags.positive, default=32, help="examples a validation batch")
    g.add_argument("--gradient_accumulation_steps", type=flags.positive,
                   help="batches an optimizer step (default: published)")  # fmt: skip
    g.add_argument("--max_norm", type=flags.rate, default=1.0, help="gradients are clipped to this norm, once a step")
    g.add_argument("--warmup_steps", type=flags.not_negative, default=0, help="steps in which the rate rises")
    g.add_argument("--weight_decay", type=flags.not_negative_rate, default=0.0, help="AdamW's, not on norms and biases")
    g.add_argument("--early_stopping", type=flags.positive, metavar="N", help="stop after N epochs without a new best")
    g.add_argument("--eval_before_start", action="store_true", help="validate before the first step")
    g.add_argument("--seed", type=flags.not_negative, default=42, help="of weights, order and dropout")
    g = p.add_argument_group("speed and memory")
    g.add_argument("--compile", action="store_true", help="torch.compile every block (needs a C++ compiler on a CPU)")
    g.add_argument("--gradient_checkpointing", action="store_true", help="recompute activations to save memory")
    add_precision_flags(p)
    g = p.add_argument_group("output and resuming")
    g.add_argument("--output_dir", help="run directory (default: runs/<date>_<host>_<model>_<task>_<mode>)")
    g.add_argument("--resume", metavar="RUN", help="go on with this run, exactly; no other flag is needed")
    g.add_argument("--save_steps", type=flags.positive, help="a checkpoint every so many steps, not only each epoch")
    g.add_argument("--keep_checkpoints", type=flags.positive, default=3, help="how many of the newest are kept")
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if args.list_tasks:
        flags.list_tasks()
    if not args.task and not args.resume:
        p.error("--task is needed (or --resume RUN)")
    from utils.devices import parallel

    with parallel():
        train(args, flags.given(parser, argv))


def train(args, given):
    import ignite.distributed as idist
    import torch

    from adapters import attach as adapting
    from adapters import backbones, checkpoint
    from data.batching import Batches
    from data.task import get
    from utils import devices, plots
    from utils.runs import Run, record
    from utils.training import Settings, Trainer

    devices.quiet_libraries()
    args, run = open_run(args, given)
    task, rank0 = get(args.task), idist.get_rank() == 0
    published(args, task)
    if args.output_dir and run is None:
        # Before anything is loaded; it is made only when everything else is known to be right.
        Run.refuse_taken(args.output_dir)
    say = print if rank0 else lambda *a, **k: None
    dtype = devices.precision(args, idist.device())
    # Written down, so that a run resumed on other hardware goes on as it was.
    args.bf16, args.fp16, args.fp32 = (dtype == d for d in (torch.bfloat16, torch.float16, torch.float32))
    if args.compile:
        devices.need_compiler(idist.device())

    # One process a machine makes the caches, the others find them.
    with idist.one_rank_first(local=True):
        refuse_unfit(args, checkpoint)
        torch.manual_seed(args.seed)
        model, tokenizer = backbones.load(args.model_checkpoint, random_init=args.random_init)
        torch.manual_seed(args.seed)
        markers = {task.name: task.markers}
        bottlenecks = {task.name: args.adapter_bottleneck} if args.adapter_bottleneck >= 0 else None
        adapting.attach(model, tokenizer, markers, bottlenecks)
        if args.row_init == "words":
            adapting.start_rows_from_words(model, tokenizer, task.name)
        splits = load_data(args, task, model, tokenizer, say)
    say(adapting.describe(model))
    if dtype != torch.float32:
        adapting.halve_frozen(model, dtype)
    devices.settle(model, idist.device(), dtype)
    if args.gradient_checkpointing:
        model.gradient_checkpointing()
    if args.compile:
        adapting.compile_blocks(model)

    positions = backbones.family_of(model.config).positions(model.config)
    common = dict(task_ids={task.name: 0}, pad_id=tokenizer.pad_token_id, positions=positions, limit=args.limit,
                  rank=idist.get_rank(), world=idist.get_world_size())  # fmt: skip
    batches = {
        name: Batches({task.name: split}, **common, shuffle=name == "train", seed=args.seed,
                      batch_size=args.train_batch_size if name == "train" else args.valid_batch_size,
                      max_tokens=args.max_tokens if name == "train" else None)
        for name, split in splits.items()
    }  # fmt: skip
    if run is None:
        mode = "finetune" if args.adapter_bottleneck < 0 else f"adapter{args.adapter_bottleneck}"
        run = new_run(args, mode, rank0, Run, record)
    settings = Settings(dtype=dtype, **{f: getattr(args, f) for f in Settings.__dataclass_fields__ if hasattr(args, f)})
    trainer = Trainer(
        model, batches["train"], batches.get("valid"), settings, run,
        save_model=lambda folder: checkpoint.save(model, tokenizer, folder),
        load_model=lambda folder: checkpoint.load_weights(model, folder),
        data_key=splits["train"].key, resume_command=f"python train.py --resume {run.directory}",
    )  # fmt: skip
    say(f"run: {run.directory}  ({trainer.total_steps} steps, {settings.dtype}, {trainer.device})", flush=True)
    result = trainer.fit()
    if rank0:
        run.write_metrics(dict(task=task.name, **adapting.ledger(model), **result))
        title = f"{task.name}: {run.directory.name}"
        plots.learning_curve(run.directory / "learning_curve.png", result["history"], title)
        say(f"done: {result['steps']} steps, {result['tokens_per_second']:.0f} tokens/s, {result['seconds']:.0f} s, "
            f"peak memory {result['peak_memory_mb']} MB; model and learning_curve.png in {run.directory}")  # fmt: skip
        say(f"next: python evaluate.py --task {task.name} --no_sample --model_checkpoint {run.directory}"
            f" --dataset_path {args.dataset_path} --output_dir results/{run.directory.name}")  # fmt: skip


def open_run(args, given):
    """(flags, None), or with --resume (the flags the run was started with, the run)."""
    from utils.runs import Run, check_flags

    if not args.resume:
        return args, None
    run, stored = Run.open(args.resume, args.keep_checkpoints)
    known = {k: v for k, v in stored.get("flags", {}).items() if k in vars(args)}
    check_flags(given, known, FREE_WHEN_RESUMING, f"--resume {args.resume}")
    free = {k: v for k, v in given.items() if k in FREE_WHEN_RESUMING}
    return Namespace(**{**vars(args), **known, **free, "output_dir": args.resume}), run


def published(args, task):
    """Fill flags that were not given with the task's published settings."""
    settings = task.published.get("finetune" if args.adapter_bottleneck < 0 else "adapter", {})
    for name in PUBLISHED:
        if getattr(args, name) is None and name not in settings:
            raise UserError(f"no published setting of --{name} for task {task.name}", remedy=f"give --{name}")
        if getattr(args, name) is None:
            setattr(args, name, settings[name])
    args.dataset_path = task.data_path(args.dataset_path)


def refuse_unfit(args, checkpoint):
    """Backbones that this run could not be evaluated with, or that are no backbones."""
    if args.random_init and args.adapter_bottleneck >= 0:
        raise UserError(
            "an adapter beside frozen random weights, which no checkpoint would hold", place="--random_init",
            remedy="train the whole model (leave --adapter_bottleneck out), or leave --random_init out",
        )  # fmt: skip
    if checkpoint.is_checkpoint(args.model_checkpoint):
        raise UserError(
            "this is a trained model, not a bare backbone", place=f"--model_checkpoint {args.model_checkpoint}",
            remedy=f"to go on with it: --resume {args.model_checkpoint}; to start anew: name its backbone",
        )  # fmt: skip


def load_data(args, task, model, tokenizer, say):
    """{"train": EncodedSplit, "valid": EncodedSplit}, with what was kept, dropped and cut on the screen."""
    from adapters.backbones import family_of
    from data import cache

    splits = {}
    for name in ["train"] if args.no_validation else ["train", "valid"]:
        splits[name] = cache.load(
            args.dataset_path, name, task, tokenizer, family_of(model.config).positions(model.config),
            training=name == "train", distilled=args.distillation and name == "train", cache_dir=args.cache_dir,
        )  # fmt: skip
        report = splits[name].report
        parts = [f"{report['kept']:,} examples"]
        parts += [f"the first {args.limit:,} used"] if args.limit and args.limit < report["kept"] else []
        parts += [f"{n:,} dropped ({why})" for why, n in report["dropped"].items()]
        parts += [f"{n:,} cut ({why})" for why, n in report["cut"].items()]
        say(f"{name}: " + ", ".join(parts))
    return splits


def new_run(args, mode, rank0, Run, record):
    """Make the run directory in the first process; all processes know its name."""
    import ignite.distributed as idist

    from utils.runs import default_directory

    if not args.output_dir:
        name = str(default_directory(Path(args.model_checkpoint).name, args.task, mode))
        args.output_dir = idist.broadcast(name, safe_mode=True) if idist.get_world_size() > 1 else name
    if rank0:
        return Run.create(args.output_dir, record(args), args.keep_checkpoints)
    return Run(args.output_dir, args.keep_checkpoints)


if __name__ == "__main__":
    sys.exit(main())
