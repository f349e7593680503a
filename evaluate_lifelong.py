#!/usr/bin/env python
"""Score every task after every task of a sequence: the matrix, its averages, transfer and forgetting.

  one CPU or one GPU (a GPU is used where there is one):
    python evaluate_lifelong.py --data_dir … --model_dirs MODEL_ROOT_DIR/gpt2/lll/ag_e2enlg_0.05_42
    python evaluate_lifelong.py --tasks ag e2enlg --gen_lm_sample_percentage 0.05 --seed 42        (the same directory)
  several seeds, mean ± standard deviation:
    python evaluate_lifelong.py --model_dirs …/ag_e2enlg_0.2_1 …/ag_e2enlg_0.2_2 --output_dir results/ag_e2enlg

The final model of every task answers the test questions of all tasks; with --test_all those of every epoch do, too.
Where each task has its own adapter (--own_adapters) a question goes through that of its task: of one not learnt yet
the adapter it would start from, untrained, or with --own_adapters previous as the last learnt task has made its own;
forward transfer is then what the shared rows, or rows and adapter, bring along.
Answers are greedy; --top_k_qa, --top_p_qa or --temperature_qa let them be drawn, from --qa_seed. Written beside each
model: metrics.json (epoch: task: scores) and qa_<task>_<epoch>.csv (y: true answer, pred: answer, logs: the log of the
answer's probability); the last epoch is called final. Written into the sequence's directory, and of several into
--output_dir: matrix.json, matrix.md and matrix.png.
"""

import argparse
import sys
from pathlib import Path

from lifelong import sequence
from utils import flags
from utils.devices import add_precision_flags
from utils.errors import UserError, exit_on_user_error

# Flags of train_lifelong.py, which a run knows itself: both scripts may be called with the same, as the originals'.
SWITCHES = ("--add_task_tokens", "--use_sep", "--dynamic_epochs", "--train_teachers")
TRAINING = (*SWITCHES, "--lm_lambda", "--max_n_epochs", "--min_batch_size", "--min_n_steps", "--n_train_epochs",
            "--n_gpus", "--n_gpu", "--reg_lambda", "--top_k_lm", "--top_p_lm", "--temperature_lm", "--train_batch_size",
            "--learning_rate", "--lr", "--n_warmup_ratio", "--decay_style", "--logging_steps", "--tokens_weight",
            "--qp_margin", "--gradient_accumulation_steps", "--adam_epsilon", "--weight_decay", "--max_grad_norm",
            "--teacher_dir")  # fmt: skip


def parser():
    p = flags.parser(__doc__)
    sequence.name_flags(p)
    g = p.add_argument_group("what to evaluate")
    g.add_argument("--model_dirs", nargs="+", metavar="DIR",
                   help="sequences' directories, e.g. one a seed (default: the one that the flags name)")  # fmt: skip
    g.add_argument("--test_all", action="store_true", help="also the models after each epoch")
    g.add_argument("--before", action="store_true",
                   help="also the model before it learnt anything, which forward transfer is told from")  # fmt: skip
    g.add_argument("--test_training_set", action="store_true", help="the questions learnt from, not the test's")
    g.add_argument("--ref1", action="store_true", help="of several true answers only the first counts")
    g.add_argument("--limit", type=flags.positive, help="only the first so many questions of each task")
    g = p.add_argument_group("answers (default: greedy)")
    g.add_argument("--top_k_qa", type=flags.positive, help="draw from the k likeliest tokens")
    g.add_argument("--top_p_qa", type=flags.share, help="draw from the likeliest of this joint probability")
    g.add_argument("--temperature_qa", type=flags.rate, help="of sampling")
    g.add_argument("--qa_seed", type=flags.not_negative, default=42, help="of sampling")
    g.add_argument("--test_batch_size", type=flags.positive, default=32, help="questions at once")
    g.add_argument("--max_len", type=flags.positive, help="tokens of question and answer (default: as in training)")
    add_precision_flags(p)
    g = p.add_argument_group("output")
    g.add_argument("--output_dir", help="where the matrix goes (default: the sequence's directory)")
    g.add_argument("--samples", type=flags.not_negative, default=1, help="how many answers of each task to print")
    for flag in TRAINING:
        switch = dict(action="store_true") if flag in SWITCHES else {}
        p.add_argument(flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **switch)
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if args.model_dirs:
        args.model_dir_root = args.model_dir_root or "."
    else:
        sequence.check_names(p, args)
        args.model_dirs = [sequence.directory(args)]
    if len(args.model_dirs) > 1 and not args.output_dir:
        p.error("--output_dir is needed for the matrix of several directories")
    flags.one_process()
    evaluate(args)


def evaluate(args):
    import ignite.distributed as idist

    from lifelong import matrix, scoring
    from utils import devices
    from utils.files import writable_directory

    devices.quiet_libraries()
    dtype = devices.precision(args, idist.device())
    runs = [scoring.opened(folder) for folder in args.model_dirs]
    same_sequence(runs)
    data_dir = args.data_dir or runs[0].flags.data_dir
    parts = scoring.read(runs[0].flags.tasks, data_dir, "train" if args.test_training_set else "test", args.limit,
                         args.ref1)  # fmt: skip
    output = writable_directory(args.output_dir or args.model_dirs[0], "--output_dir")
    how = scoring.How(sampling(args), args.test_batch_size, args.max_len, dtype, idist.device(), args.samples)
    matrices = []
    for run in runs:
        print(f"\n{run.folder}: {', '.join(run.flags.tasks)}", flush=True)
        matrices.append(scoring.matrix_of(run, parts, how, args.test_all, args.before))
        scoring.write(run.folder, matrices[-1:], [run.flags.seed], run.title)
    if Path(output) != Path(runs[0].folder) or len(runs) > 1:
        scoring.write(output, matrices, [run.flags.seed for run in runs], runs[0].title)
    print(f"\n{matrix.markdown(matrices)}\nmatrix.json, matrix.md and matrix.png in {output}")


def sampling(args):
    """None: greedy; otherwise how answers are drawn."""
    if not (args.top_k_qa or args.top_p_qa or args.temperature_qa):
        return None
    return dict(top_k=args.top_k_qa or 0, top_p=args.top_p_qa or 1.0, temperature=args.temperature_qa or 1.0,
                seed=args.qa_seed)  # fmt: skip


def same_sequence(runs):
    """Only runs of the same tasks in the same order have one matrix."""
    for run in runs[1:]:
        if run.flags.tasks != runs[0].flags.tasks:
            raise UserError(f"learnt {', '.join(run.flags.tasks)}", place=f"--model_dirs {run.folder}",
                            expected=f"{', '.join(runs[0].flags.tasks)}, as {runs[0].folder}",
                            remedy="evaluate each order of the tasks by itself")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
