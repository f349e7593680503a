#!/usr/bin/env python
"""Score every task after every task of a sequence: the score matrix, averages, transfer and forgetting.

  one CPU or one GPU (the GPU is used if there is one):
    python evaluate_lifelong.py --model_dirs MODEL_ROOT_DIR/gpt2/lll/ag_e2enlg_0.05_42
    python evaluate_lifelong.py --tasks ag e2enlg --gen_lm_sample_percentage 0.05 --seed 42        (the same directory)
  several seeds, mean ± standard deviation:
    python evaluate_lifelong.py --model_dirs …/ag_e2enlg_0.2_1 …/ag_e2enlg_0.2_2 --output_dir results/ag_e2enlg

The final model of each task answers the test questions of all tasks (--trained_only: of the tasks trained so far); with
--test_all, so do the models of all epochs. Tasks trained at once (multitask, multilm), or in parts that are not tasks
(--unbound), have only the last row. Answers are greedy; with --top_k, --top_p or --temperature they are sampled, with
the seed --qa_seed.

If each task has its own adapter (--own_adapters), a question goes through the adapter of its task. For a task not
trained yet, this is the adapter it would start from: untrained, or with --own_adapters previous a copy of the last
trained one. Forward transfer then measures the effect of the shared embeddings, or of embeddings and adapter.
--infer_task adds scores with the task of every question inferred instead of known, which matters if tasks have their
own adapters or prompts.

Files written next to each model: metrics.json (epoch: task: scores) and qa_<task>_<epoch>.csv (y: true answer, pred:
answer, logs: log-probability of the answer); the last epoch is called final. Files written to the sequence's directory:
matrix.json, matrix.md and matrix.png. With --output_dir everything is written there instead, metrics.json and the csv
files in a subdirectory for each sequence, and the sequences' own directories stay unchanged.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from versatile.lifelong import sequence, strategies
from versatile.lifelong.run_records import decisive_flags, make_record
from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.screen import module_command

# Flags of train_lifelong.py, ignored here: as in the originals, both scripts can be called with the same flags.
SWITCHES = ("--add_task_tokens", "--use_sep", "--dynamic_epochs", "--train_teachers", "--only_final")
TRAINING = ("--lm_lambda", "--max_n_epochs", "--min_batch_size", "--min_n_steps", "--memory_mib", "--n_gpus", "--n_gpu",
            "--n_warmup_ratio", "--decay_style", "--tokens_weight", "--teacher_dir")  # fmt: skip
TRAINING_SETTINGS = ("n_epochs", "train_batch_size", "lr", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
                     "logging_steps", "report_to", "gradient_accumulation_steps", "adam_eps", "weight_decay",
                     "max_norm", "save_steps", "keep_checkpoints", "kd_temperature", "compile",
                     "gradient_checkpointing", "init_from", "init_fingerprint", "load_in_4bit", "load_in_8bit",
                     "profile", "push_to_hub")  # fmt: skip
# Those that take any number of values.
LISTS = ("--skip_tasks", *strategies.collect_flags("flags"))
# Flags that name a sequence. Given with --model_dirs, they must match what was trained there; seeds may differ.
NAMING = ("tasks", "seq_train_type", "model_checkpoint", "gen_lm_sample_percentage", "adapter_bottleneck",
          "own_adapters", "distil", "seq_distil", *strategies.naming_flags(), "unbound",
          *sequence.METHOD_FLAGS)  # fmt: skip


def parser():
    p = flags.build_parser(__doc__)
    sequence.add_name_flags(p)
    g = p.group("what to evaluate")
    g.add_argument("--model_dirs", nargs="+", metavar="DIR",
                   help="directories of sequences, e.g. one per seed (default: as named by the flags)")  # fmt: skip
    g.add_argument("--test_all", action="store_true", help="also evaluate the models after each epoch")
    g.add_argument("--trained_only", action="store_true",
                   help="evaluate each model only on the tasks trained so far: takes about half the time, but gives "
                        "no forward transfer")  # fmt: skip
    g.add_argument("--before", action="store_true",
                   help="also evaluate the model before any training, as needed for forward transfer")  # fmt: skip
    g.add_argument("--single_task", nargs="+", metavar="DIR", default=[],
                   help="results of models that learned only one of the tasks (directories with a matrix.json), as "
                        "needed for SAPT's forward transfer")  # fmt: skip
    g.add_argument("--infer_task", choices=("perplexity", "embedding"),
                   help="also evaluate with the task of every question inferred among those trained so far: the one "
                        "under whose parameters the question is most likely, or whose training questions are nearest; "
                        "both scores are reported side by side")  # fmt: skip
    g.add_argument("--test_training_set", action="store_true", help="evaluate on the training questions instead")
    g.add_argument("--ref1", action="store_true", help="use only the first of several true answers")
    settings.add(p, "limit", group=g.title, help="use only the first N questions of each task")
    title = "answers (default: greedy)"
    settings.add(p, "top_k", group=title, type=flags.positive, default=None, help="sample from the top k tokens")
    settings.add(p, "top_p", group=title, default=None, help="sample from the top tokens of this total probability")
    settings.add(p, "temperature", group=title, default=None)
    p.group(title).add_argument("--qa_seed", type=flags.not_negative, default=42, help="random seed of sampling")
    settings.add(p, "batch_size", group=title, help="questions answered together")
    settings.add(p, "max_len", group=title, help="maximum tokens of question and answer (default: as in training)")
    settings.add_precision(p)
    settings.add(p, "cache_dir", group="files")
    settings.add(p, "output_dir", group="output", help="directory for all output (default: the sequence's directory)")
    settings.add(p, "samples", group="output", default=1,
                 help="number of the last model's answers to print for each task")  # fmt: skip
    settings.accept(p, TRAINING_SETTINGS)
    for flag in (*TRAINING, *SWITCHES):
        switch = dict(action="store_true") if flag in SWITCHES else {}
        p.add_argument(flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **switch)
    for flag in LISTS:
        p.add_argument(flag, nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if args.model_dirs:
        args.model_dir_root = args.model_dir_root or "."
    else:
        sequence.check_names(p, args, data=False)
        args.model_dirs = [sequence.directory(args)]
    if len(args.model_dirs) > 1 and not args.output_dir:
        p.error("--output_dir is needed for the matrix of several directories")
    flags.require_one_process()
    evaluate(args, flags.typed_flags(parser, argv))


def evaluate(args, typed_flags):
    import ignite.distributed as idist
    from versatile.data.own_tasks import relocate
    from versatile.lifelong import matrix, scoring
    from versatile.training.runs import absolute_paths
    from versatile.utils import devices
    from versatile.utils.files import writable_directory

    devices.quiet_libraries(args.cache_dir)
    dtype = devices.precision(args, idist.device())
    runs = [scoring.open_sequence_run(folder) for folder in args.model_dirs]
    for name, source in (args.own_tasks or {}).items():
        relocate(name, source, "--tasks")
    named = {flag: value for flag, value in typed_flags.items() if flag in NAMING}
    if "model_checkpoint" in named:
        named["model_checkpoint"] = absolute_paths(named["model_checkpoint"])
    if set(named.get("tasks", ())) <= {*(args.own_tasks or ())} & {*runs[0].flags.tasks}:
        # Only the data of these tasks have moved.
        named.pop("tasks", None)
    require_same_runs(runs, named)
    data_dir = args.data_dir or runs[0].flags.data_dir
    splits = scoring.read_splits(runs[0].flags.tasks, data_dir, "train" if args.test_training_set else "test",
                                 args.limit, args.ref1)  # fmt: skip
    flag = "--output_dir" if args.output_dir else "--model_dirs"
    output = writable_directory(args.output_dir or runs[0].folder, flag)
    locations = output_directories(runs, output)
    config = scoring.EvalConfig(sampling(args), args.batch_size, args.max_len, dtype, idist.device(), args.samples,
                             inference_name=args.infer_task, trained_only=args.trained_only)  # fmt: skip
    evaluation = dict(split="train" if args.test_training_set else "test", limit=args.limit, ref1=args.ref1,
                      decoding=config.sampling or "greedy")  # fmt: skip
    metrics = [split.task.metric for split in splits.values()]
    alone = matrix.read_single_tasks(args.single_task, list(splits), metrics, evaluation)
    matrices, records = [], []
    for run, location in zip(runs, locations):
        print(f"\n{run.folder}: {', '.join(run.flags.tasks)}", flush=True)
        if run.only_end:
            print(f"only the end is scored: {run.only_end}", flush=True)
        run_config = replace(config, inference=scoring.make_inference(args.infer_task, run, data_dir))
        scores = scoring.compute_matrix(run, splits, run_config, location, args.test_all, args.before)
        matrices.append(replace(scores, alone=alone))
        records.append(make_record(run.folder, run.flags))
        if len(runs) > 1:
            scoring.write_matrix(location, matrices[-1:], records[-1:], run.title, evaluation)
    scoring.write_matrix(output, matrices, records, runs[0].title, evaluation)
    tables = "\n".join(filter(None, [matrix.markdown(matrices), matrix.side_by_side(matrices)]))
    print(f"\n{tables}\nmatrix.json, matrix.md and matrix.png in {output}")


def output_directories(runs, output):
    """Directories for each run's answers and scores: the run's own, or one below --output_dir for each run."""
    folders, output = [run.folder.resolve() for run in runs], Path(output)
    if len(runs) == 1 and output.resolve() == folders[0]:
        return [output]
    if output.resolve() in folders:
        raise UserError("this is one of the sequences themselves", location=f"--output_dir {output}",
                        expected="a directory for the common results", remedy="choose another")  # fmt: skip
    above = os.path.commonpath([folder.parent for folder in folders])
    return [output / folder.relative_to(above) for folder in folders]


def sampling(args):
    """None for greedy decoding; otherwise the sampling settings."""
    if not (args.top_k or args.top_p or args.temperature):
        return None
    return dict(top_k=args.top_k or 0, top_p=args.top_p or 1.0, temperature=args.temperature or 1.0,
                seed=args.qa_seed)  # fmt: skip


def require_same_runs(runs, typed_flags):
    """Raise a `UserError` unless the runs differ only in their seeds, as a common matrix requires.

    Args:
        runs: a list of `scoring.SequenceRun`.
        typed_flags: {flag that names a sequence: its value}, those given in addition to --model_dirs.
    """
    for number, run in enumerate(runs):
        location = f"--model_dirs {run.folder}"
        for flag, value in typed_flags.items():
            if (theirs := getattr(run.flags, flag, None)) != value:
                raise UserError(
                    f"it was trained with {typed(flag, theirs)}, not {typed(flag, value)}",
                    location=location,
                    remedy=f"leave --{flag} out, or name another directory",
                )
        if run.folder.resolve() in [other.folder.resolve() for other in runs[:number]]:
            raise UserError("is named twice", location=location, expected="each sequence once", remedy="name it once")
        first, other = (decisive_flags(sequence_run.flags) for sequence_run in (runs[0], run))
        if differ := sorted(flag for flag in first.keys() | other.keys() if first.get(flag) != other.get(flag)):
            flag = "tasks" if "tasks" in differ else differ[0]
            raise UserError(f"it was trained with {typed(flag, other.get(flag))}", location=location,
                            expected=f"{typed(flag, first.get(flag))}, as {runs[0].folder}: runs of one sequence that "
                                     "differ in --seed alone",
                            remedy="evaluate each by itself, and put them side by side: "
                            + module_command("lifelong.compare", "--help"))  # fmt: skip


def typed(flag, value):
    """A flag as it would be typed."""
    words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"no --{flag}" if value in (None, False) else f"--{flag}" if value is True else f"--{flag} {words}"


if __name__ == "__main__":
    sys.exit(main())
