#!/usr/bin/env python
"""Train on a sequence of tasks, one after another, without forgetting: LAMOL, L2KD and other strategies.

  one CPU or one GPU (the GPU is used if there is one):
    export DATA_DIR=… MODEL_ROOT_DIR=…
    python train_lifelong.py --tasks e2enlg rnnlg.rest rnnlg.hotel --gen_lm_sample_percentage 0.2 --add_task_tokens
    python train_lifelong.py --tasks e2enlg rnnlg.rest rnnlg.hotel --gen_lm_sample_percentage 0.2 --add_task_tokens \\
        --distil --seq_distil --train_teachers
    python train_lifelong.py --data_dir data/samples/lifelong --model_dir_root runs/lifelong --tasks ag e2enlg \\
        --model_name smollm2 --seq_train_type ewc --adapter_bottleneck 64 --own_adapters
  several processes or GPUs:
    torchrun --nproc_per_node 2 train_lifelong.py --tasks …

--seq_train_type selects the strategy against forgetting; each is described below, with its flags. Models are written to
MODEL_ROOT_DIR/<model>/<type>/<t1_t2_…>_<pct>_<seed>/<task>/ (_seed_<seed> except for lll; no <task> if all are trained
at once). --distil, --seq_distil, --real_sample, --lead_bos, --own_adapters, --normalize_importance and --unbound are
appended to the name of the sequence's directory.

If training is killed at any moment, the same command (or --resume DIR) resumes it and ends at the same weights;
finished work is not repeated.

By default the whole model is trained; with --adapter_bottleneck N, one adapter shared by all tasks and the special
tokens' embeddings; with --own_adapters, one adapter per task and the embeddings, which are still shared. A task's
samples then never change another task's adapter, but they do change the embeddings, so there is still something to
forget: replayed samples and gem's memory go through their own tasks' adapters, and ewc and mas protect the embeddings.
(Tasks that do not share embeddings either forget nothing and need no replay: use train.py and combine_all.py for them.)

evaluate_lifelong.py takes that directory, or the flags that name it, and scores every task after every task.
"""

import argparse
import os
import sys
from pathlib import Path

from versatile.lifelong import sequence, strategies
from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.screen import shell_words

# Flags of the originals that are not accepted, and why.
REFUSED = {
    "debug": "for a quick try, use --limit N",
    "n_workers": "batches are made of rows in memory, there are no workers to count",
    "round_robin": "batches mix the tasks at random; for tasks of unequal size, use --upsample_data",
    "multitask_specific": "for a start token per task, use --add_task_tokens",
    "extra_e2e": "it added a private file to e2enlg; put its samples into e2enlg_to_squad-train-v2.0.json",
    "lr_schedule": "the learning rate follows --n_warmup_ratio and --decay_style",
    "loss_scale": "float16 scales its loss automatically; use --fp16",
}
# Flags of evaluate_lifelong.py: as in the originals, both scripts can be called with the same flags.
ANSWERING = ("--top_k_qa", "--top_p_qa", "--temperature_qa", "--test_batch_size")
ANSWERING_SWITCHES = ("--test_all", "--ref1", "--test_training_set")


def parser():
    p = flags.build_parser(__doc__)
    sequence.add_name_flags(p)
    g = sequence.add_sample_flags(p)
    settings.add(p, "limit", group=g.title, help="use only the first N samples of each file")
    g = p.group("losses")
    g.add_argument("--lm_lambda", type=flags.not_negative_rate, default=0.25, help="weight of generating the sample")
    g.add_argument("--tokens_weight", type=flags.rate, default=5.0, help="weight of __ans__ and __sep__ as labels")
    g.add_argument("--teacher_dir", help="--distil: the teachers' directory, with one subdirectory per task (default: "
                                         "the single-task lll models in MODEL_ROOT_DIR/<model>/lll)")  # fmt: skip
    g.add_argument("--train_teachers", action="store_true",
                   help="--distil: first train each task's teacher, only once for the same data and flags; "
                        "--seq_distil: the teacher generates the texts if there are none")  # fmt: skip
    settings.add(p, "kd_temperature", group=g.title, spellings=("temperature",), notices={
        "temperature": "--temperature is decoding's; the temperature of --distil is called --kd_temperature"},
        help="--distil: temperature of both distributions")  # fmt: skip
    strategies.add_flags(p)
    add_training_flags(p)
    settings.add(p, "logging_steps", "report_to")
    settings.add(p, "output_dir", help="the sequence's directory (default: see above)")
    settings.add(p, "resume", metavar="DIR", help="resume this sequence exactly; no other flag is needed")
    g = p.group("output and resuming")
    g.add_argument("--skip_tasks", nargs="+", metavar="TASK",
                   help="tasks that must have been trained already; finished tasks are always skipped")  # fmt: skip
    settings.add(p, "save_steps")
    settings.add(p, "keep_checkpoints", default=2)
    g.add_argument("--only_final", action="store_true", help="do not keep the model of each epoch")
    settings.add(p, "push_to_hub")
    refuse(p)
    return p


def add_training_flags(p):
    """Add the flags for epochs, batches, optimizer and precision."""
    g = p.group("training")
    settings.add(p, "n_epochs", default=9, help="epochs per task")
    g.add_argument("--dynamic_epochs", action="store_true",
                   help="train smaller tasks for more epochs, on as many samples as the largest task, up to "
                        "--max_n_epochs")  # fmt: skip
    g.add_argument("--max_n_epochs", type=flags.positive, default=9, help="maximum epochs with --dynamic_epochs")
    settings.add(p, "train_batch_size", type=flags.not_negative, default=0,
                 help="samples per batch in each process; 0: as the device's memory allows")  # fmt: skip
    g.add_argument("--min_batch_size", type=flags.positive, default=4,
                   help="batch size that is allowed whatever --min_n_steps says")  # fmt: skip
    g.add_argument("--min_n_steps", type=flags.positive, default=1500,
                   help="limit batches so that an epoch has at least N steps")  # fmt: skip
    g.add_argument("--memory_mib", type=flags.positive, metavar="N",
                   help="--train_batch_size 0: the memory, in MiB, that batches are made for (default: the device's; a "
                        "resumed sequence keeps it)")  # fmt: skip
    settings.add(p, "gradient_accumulation_steps")
    settings.add(p, "lr", help="peak learning rate (default: 6.25e-5, with an adapter 1e-3)")
    settings.add(p, "adam_eps", help="Adam's epsilon (default: 1e-4, with an adapter 1e-6)")
    settings.add(p, "weight_decay", default=0.01)
    settings.add(p, "max_norm")
    g.add_argument("--n_warmup_ratio", type=flags.not_negative_rate, default=0.005,
                   help="learning rate warm-up, as a share of an epoch")  # fmt: skip
    g.add_argument("--decay_style", choices=["linear", "cos", "None"], default="linear",
                   help="learning rate decay, counted in samples")  # fmt: skip
    settings.add(p, "lr_scheduler_type", default=None, help="a schedule of transformers, counted in steps, instead of "
                 "--n_warmup_ratio and --decay_style: " + ", ".join(settings.SCHEDULE_NAMES))  # fmt: skip
    settings.add(p, "lr_scheduler_kwargs")
    settings.add(p, "warmup_steps", default=None, help="with --lr_scheduler_type: number of warm-up steps")
    g.add_argument("--n_gpus", "--n_gpu", dest="n_gpus", type=flags.positive, metavar="N",
                   help="require torchrun --nproc_per_node N (default: any number of processes)")  # fmt: skip
    settings.add(p, "init_from", "init_fingerprint", "compile", "gradient_checkpointing", "profile")
    settings.add_quantization(p)
    settings.add_precision(p)
    settings.add(p, "cache_dir", group="files")


def refuse(p):
    """Add the originals' flags that have no use here: those of the evaluation are ignored, others explain an error."""
    for flag in ANSWERING:
        p.add_argument(flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for flag in ANSWERING_SWITCHES:
        p.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    settings.refuse(p, REFUSED)


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    for flag in (*ANSWERING, *ANSWERING_SWITCHES):
        vars(args).pop(flag.strip("-"), None)
    if not args.resume:
        # Trained teachers are written next to the sequence.
        if args.output_dir and not args.model_dir_root:
            args.model_dir_root = str(Path(args.output_dir).parent)
        sequence.check_names(p, args)
        check_flags(p, args)
    from versatile.utils.devices import parallel

    with parallel():
        train(args, flags.typed_flags(parser, argv))


def check_flags(p, args):
    """Reject incompatible flags."""
    if args.unbound and args.distil:
        p.error("--unbound: its parts have no teachers; leave --distil out")
    strategies.get_strategy(args).check(args)
    if args.dynamic_epochs and args.max_n_epochs < args.n_epochs:
        p.error(f"--dynamic_epochs: --max_n_epochs {args.max_n_epochs} is below --n_epochs {args.n_epochs}; raise it")
    for flag in ("decay_style", "n_warmup_ratio"):
        if args.lr_scheduler_type and getattr(args, flag) != p.get_default(flag):
            p.error(f"--{flag} has no effect with --lr_scheduler_type: leave one of them out")
    if args.kd_temperature != p.get_default("kd_temperature") and not args.distil:
        p.error("--kd_temperature has no effect without --distil: leave it out")
    if args.memory_mib and args.train_batch_size:
        p.error("--memory_mib has no effect with --train_batch_size: leave one of them out")
    for flag in ("warmup_steps", "lr_scheduler_kwargs"):
        if getattr(args, flag) is not None and not args.lr_scheduler_type:
            p.error(f"--{flag} requires --lr_scheduler_type NAME")
    if args.n_gpus and args.n_gpus != (started := int(os.environ.get("WORLD_SIZE", 1))):
        p.error(f"--n_gpus {args.n_gpus}: {started} process{'es' * (started > 1)} started; start as many: "
                f"torchrun --nproc_per_node {args.n_gpus} train_lifelong.py …")  # fmt: skip
    if (args.teacher_dir or args.train_teachers) and not (args.distil or args.seq_distil):
        p.error("a teacher requires --distil or --seq_distil")
    if args.teacher_dir and args.train_teachers:
        p.error("--teacher_dir and --train_teachers: name teachers or have them trained, not both")


def train(args, typed_flags):
    import ignite.distributed as idist
    from versatile.adapters import attach as adapting
    from versatile.data import question_tasks as tasks
    from versatile.data.own_tasks import prepare_own_tasks
    from versatile.lifelong import batches as batching
    from versatile.lifelong import learning
    from versatile.lifelong import teachers as teaching
    from versatile.lifelong.answers import check_lead_bos
    from versatile.training import experiment

    args, run = open_sequence(args, typed_flags)
    # Of older versions run.json may hold one.
    args.skip_tasks = typed_flags.get("skip_tasks")
    prepare_own_tasks(args)
    if run is not None:
        # run.json was written by a run that had passed these checks; the number of processes is checked below.
        sequence.check_names(parser(), args)
        check_flags(parser(), argparse.Namespace(**{**vars(args), "n_gpus": None}))
    tasks.sequence(args.tasks)
    args.output_dir = str(args.output_dir or sequence.directory(args))
    check_skipped(args)
    dtype = experiment.check_before_loading(args, run)
    if not args.train_batch_size and not args.memory_mib:
        # Recorded, so that a sequence resumed on a machine with other memory has the same batches.
        args.memory_mib = int(batching.memory_mib(idist.device()))
    if args.dynamic_epochs and args.max_n_epochs == args.n_epochs:
        experiment.print_once("warning: --dynamic_epochs changes nothing: no task may have more than --max_n_epochs "
                              f"{args.max_n_epochs}, as many as --n_epochs; raise the one or lower the "
                              "other")  # fmt: skip
    # Check everything that can be wrong before anything is trained.
    teachers = find_teachers(args)
    named = bool(teachers)
    if not (args.seq_distil and (named or args.train_teachers)):
        for task in tasks.sequence(args.tasks):
            tasks.find_file(args.data_dir, task, "distil" if args.seq_distil else "train")
    with idist.one_rank_first(local=True):
        lifelong_model = learning.load_model(args)
        experiment.warm_start(args, run, lifelong_model.model, lifelong_model.tokenizer)
    if run is None and args.lead_bos:
        check_lead_bos(lifelong_model.model, lifelong_model.tokenizer)
    learning.warn_of_long_tests(lifelong_model.encoder, args)
    if args.distil and named:
        teaching.check_teachers(lifelong_model, teachers, args)
    distilled = distilled_texts(args, teachers, dtype)
    data = learning.read_tasks(args, distilled)
    # A teacher's texts are truncated if they are too long.
    theirs = data if args.unbound and distilled else distilled
    learning.check_answers(lifelong_model.encoder, {name: qas for name, qas in data.items() if name not in theirs})
    if args.distil and not named:
        teachers |= {name: learning.train_teacher(args, name, dtype) for name in args.tasks if name not in teachers}
        teaching.check_teachers(lifelong_model, teachers, args)
    experiment.print_once(adapting.parameter_summary(lifelong_model.model))
    experiment.prepare_for_training(lifelong_model.model, args, dtype)
    if run is None:
        run = experiment.new_run(args, (), args.seq_train_type)
    learning.Sequence(args, lifelong_model, data, run.directory, dtype, teachers.get).train()
    data = ["--data_dir", args.data_dir] if args.data_dir else []
    experiment.end_run(args, run, "evaluate_lifelong.py", *data, "--model_dirs", run.directory)


def open_sequence(args, typed_flags):
    """(flags, None) for a new sequence, or (its original flags, its run) for one that was started before."""
    from versatile.training import experiment
    from versatile.training.runs import refuse_elsewhere

    folder, typed = Path(args.resume or args.output_dir or sequence.directory(args)), bool(args.resume)
    if not typed:
        if not (folder / "run.json").exists():
            return args, None
        # The same command: a flag not given now was not given then.
        # If no precision was given, the one that the device supports was recorded.
        known = {flag: value for flag, value in vars(args).items() if flag not in sequence.PRECISION}
        typed_flags = known | typed_flags
        # Those of the user's own tasks are derived from --tasks only later.
        typed_flags = {flag: value for flag, value in typed_flags.items()
                       if flag not in ("init_from", "init_fingerprint", "task_definitions", "memory_mib") or value}
        args.resume = str(folder)
    else:
        refuse_elsewhere(typed_flags, folder)
        sequence.refuse_stage(folder, "--resume", f"resume its sequence: {shell_words('--resume', folder.parent)}")
    try:
        return experiment.open_run(parser(), args, typed_flags, "train_lifelong.py", sequence.FREE)
    except UserError as error:
        if typed:
            raise
        message = error.found.replace(" was given, the run was started with", " now, and it was trained with")
        raise UserError(f"this directory holds another run: {message}", location=f"--output_dir {folder}",
                        expected="an empty directory, or the same sequence, which is then resumed",
                        remedy="choose another directory with --output_dir") from error  # fmt: skip


def find_teachers(args):
    """{task: directory of its teacher} in --teacher_dir; {} if teachers are to be trained, or not needed."""
    if args.train_teachers or not (args.distil or args.teacher_dir):
        return {}
    folder = args.teacher_dir or sequence.model_directory(args) / "lll"
    return {task: sequence.find_teacher(folder, task, len(args.tasks) == 1) for task in args.tasks}


def distilled_texts(args, teachers, dtype):
    """{task: file of its teacher's texts} for the tasks that have none in the data directory.

    Teachers that had to be trained for this are added to `teachers`.
    """
    from versatile.data import question_tasks as tasks
    from versatile.lifelong import learning
    from versatile.lifelong.teachers import write_teacher_texts

    if not (args.seq_distil and (teachers or args.train_teachers)):
        return {}
    files = {}
    for task in tasks.sequence(args.tasks):
        try:
            tasks.find_file(args.data_dir, task, "distil")
        except UserError:
            if not task.pairs and not Path(args.data_dir).is_dir():
                raise
            if task.name not in teachers:
                teachers[task.name] = learning.train_teacher(args, task.name, dtype)
            files[task.name] = write_teacher_texts(args, task, teachers[task.name], dtype)
    return files


def check_skipped(args):
    """Check that the tasks named by --skip_tasks are finished; the flag is not recorded."""
    from versatile.data.task import canonical_name

    finished = sequence.SequenceProgress(args.output_dir, None).finished
    if missing := [task for task in args.skip_tasks or [] if canonical_name(task, "question_answer") not in finished]:
        raise UserError(f"{missing[0]} has not been trained yet", location="--skip_tasks",
                        expected="tasks of this sequence that are done: " + (", ".join(finished) or "none"),
                        remedy="leave the flag out: finished tasks are skipped automatically")  # fmt: skip
    args.skip_tasks = None


if __name__ == "__main__":
    sys.exit(main())
