"""A sequence of tasks on disk: the flags that name it, where its parts are stored, and which of them are finished.

    <model_dir_root>/<model>/<type>/<t1_t2_…>_<pct>_<seed>/      lll; otherwise <t1_t2_…>_seed_<seed>/
        run.json, sequence.json             the flags; which tasks have been trained
        <task>/                             the model after training on this task (multitask, multilm: no such folder,
                                            the model is in the directory itself)
            epoch_<n>/                      the model after each epoch
            generated_<earlier task>.jsonl  replayed samples; next to it, how many were rejected, and why
            checkpoints/                    only during training on the task
            training_metrics.json           the course of training
            metrics.json, qa_<task>_<n>.csv written by evaluate_lifelong.py
    <model_dir_root>/<model>/teachers/<task>_<key>/<task>/      teachers of --train_teachers

<key> is a hash of a teacher's data, backbone and flags. _adapter_<N> is appended to <model> if an adapter is trained,
and _own to <seed> if each task has its own (_own_previous: it starts from the previous task's).
"""

import os
import re
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm
from versatile.adapters.manifest import ADAPTER_WEIGHTS, MODEL_WEIGHTS
from versatile.adapters.methods.registry import BARE, FULL, get_method, method_of
from versatile.data.task_names import task_flag
from versatile.data.task_orders import ORDERS, order_name
from versatile.lifelong import strategies
from versatile.training import method_flags
from versatile.training.runs import Run, read_record, stored_record
from versatile.utils import flags, schema, settings
from versatile.utils.errors import UserError
from versatile.utils.files import atomic_directory, write_json
from versatile.utils.screen import resume_command
from versatile.utils.stored_flags import REMEDY, rename_settings, restore_flags

# What a new task's own adapter starts from: random weights, or the previous task's trained adapter.
FRESH, PREVIOUS = "fresh", "previous"
STATE, FINAL = "sequence.json", "final"
# Flags that define a different run of the same tasks are appended to the published name.
VARIANTS = ("distil", "seq_distil", *strategies.naming_flags())
# Flags that may differ when a sequence is resumed, in addition to those of training.experiment.
FREE = {"resume", "n_gpus", "output_dir", "model_dir_root", "skip_tasks", "keep_checkpoints", "save_steps",
        "only_final", "push_to_hub", "init_fingerprint", "cache_dir", "report_to"}  # fmt: skip
METHOD_FLAGS = ("method", *method_flags.setting_names())
# If none of these was given, the one that the device supports is recorded.
PRECISION = {"bf16", "fp16", "fp32"}


def add_name_flags(parser):
    """Add the flags that both scripts share, which name a sequence and its data."""
    g = parser.group("the sequence")
    g.add_argument("--seq_train_type", choices=list(strategies.STRATEGIES), default=strategies.DEFAULT,
                   help="the strategy against forgetting; each is described below")  # fmt: skip
    task_flag(g, "--tasks", "question_answer", nargs="+", metavar="TASK",
              help="the tasks, in training order; NAME=DATA for a task of your own, see data/own_tasks.py; or a "
                   f"benchmark's task order: {', '.join(ORDERS)}")  # fmt: skip
    settings.add(parser, "model_checkpoint", group=g.title, default="gpt2",
                 help="backbone: a hub name, a directory, or smollm2, tiny-gpt2, tiny-llama, tiny-t5")  # fmt: skip
    g.add_argument("--gen_lm_sample_percentage", type=flags.share, default=0.05,
                   help="samples replayed (lll) or kept (gem), as a fraction of the next task's data")  # fmt: skip
    settings.add(parser, "adapter_bottleneck", group=g.title, type=flags.not_negative,
                 help="freeze the backbone and train one adapter of this width, shared by all tasks, and the special "
                      "tokens' embeddings; 0: only the embeddings (default: train the whole model)")  # fmt: skip
    g.add_argument("--method", choices=method_flags.method_names(),
                   help=f"adaptation method; {method_flags.ONLY_CLASSIFIERS} "
                        "(default: determined by --adapter_bottleneck)")  # fmt: skip
    method_flags.add_setting_flags(g)
    g.add_argument("--own_adapters", nargs="?", const=FRESH, choices=(FRESH, PREVIOUS),
                   help="with --method or --adapter_bottleneck N: train a separate adapter for each task, while the "
                        "special tokens' embeddings stay shared; it starts fresh, or as a copy of the "
                        f"{PREVIOUS} task's (default: all tasks share one)")  # fmt: skip
    g.add_argument("--distil", action="store_true", help="Word-KD: train on a teacher's distributions")
    g.add_argument("--seq_distil", action="store_true",
                   help="Seq-KD: train on a teacher's texts, from <task>_…-distil-…")  # fmt: skip
    for flag, options in strategies.collect_flags("naming_flags").items():
        g.add_argument(flag, **options)
    g.add_argument("--unbound", type=flags.positive, metavar="N",
                   help="concatenate the tasks' data, cut them into N parts of equal size and train on each part as "
                        "on a task: the task boundaries are unknown to the model")  # fmt: skip
    settings.add(parser, "seed", group=g.title, help="random seed")
    settings.add(parser, "data_dir", group="files", default=os.environ.get("DATA_DIR"),
                 help="the tasks' json files (default: $DATA_DIR)")  # fmt: skip
    parser.group("files").add_argument("--model_dir_root", default=os.environ.get("MODEL_ROOT_DIR"),
                                       help="where models go (default: $MODEL_ROOT_DIR)")  # fmt: skip


def add_sample_flags(parser):
    """Add the flags that determine the format of samples; returns their group."""
    g = parser.group("samples")
    g.add_argument("--add_task_tokens", action="store_true", help="use a separate start token for each task's samples")
    g.add_argument("--use_sep", action="store_true", help="put __sep__ between context and question")
    settings.add(parser, "max_len", group=g.title, default=1024, help="maximum tokens of a sample; longer ones are cut")
    return g


def read_flags(path):
    """`Namespace` of the flags in a run.json of train_lifelong.py; naming and sample flags are checked.

    Raises:
        UserError: it is not such a file, or a flag has a value that train_lifelong.py would not accept.
    """
    p = flags.build_parser(None)
    add_name_flags(p)
    add_sample_flags(p)
    stored = rename_settings(read_record(path, "train_lifelong.py")["flags"], p)
    if missing := [name for name in ("seq_train_type", "tasks", "model_checkpoint") if not stored.get(name)]:
        raise UserError(f"no flags.{missing[0]} in it", location=path, expected="a run.json of train_lifelong.py",
                        remedy=REMEDY)  # fmt: skip
    # Runs from before a flag existed have its default: one adapter shared by all tasks.
    return Namespace(**{**vars(p.parse_args([])), **stored, **restore_flags(p, stored, path)})


def check_names(parser, args, data=True):
    """Check that required flags are given (the data only if no run states them) and that flags are compatible."""
    if not args.tasks:
        parser.error("--tasks is needed")
    strategies.get_strategy(args).complete(args)
    for flag, variable in (("data_dir", "DATA_DIR"), ("model_dir_root", "MODEL_ROOT_DIR")):
        if flag == "data_dir" and (not data or set(args.tasks) <= set(args.own_tasks or ())):
            continue
        if not getattr(args, flag):
            parser.error(f"--{flag} is needed, or the variable {variable}")
    chosen = choose_method(args)
    method_flags.check_settings(args, [chosen["method"] if chosen else FULL])
    if not args.own_adapters:
        return
    if chosen is None or chosen["method"] == BARE:
        parser.error("--own_adapters requires --adapter_bottleneck N, the width of each (1 or more), or --method")
    if reason := get_method(chosen["method"]).load_class().shared:
        parser.error(f"--own_adapters: not with {chosen['method']}: {reason}; choose another --method")
    if args.unbound:
        parser.error("--own_adapters: the parts of --unbound are not tasks, so no adapter belongs to a question")
    if args.own_adapters == PREVIOUS and strategies.get_strategy(args).joint:
        parser.error(f"--own_adapters {PREVIOUS}: {args.seq_train_type} trains all tasks at once, so none comes first")


def choose_method(args):
    """The complete adaptation method, or None if the whole model is trained; also takes the flags of older runs."""
    known = vars(args).get
    chosen = method_flags.choose_method(args, known("method"), known("adapter_bottleneck"))
    return chosen and method_of(chosen)


def method_name(args):
    """The adaptation method in one word, "" if the whole model is trained; a width is written as in older runs."""
    chosen = choose_method(args)
    if chosen is None:
        return ""
    if chosen["method"] in ("bottleneck", BARE):
        return f"adapter_{chosen.get('adapter_bottleneck', 0)}"
    return method_flags.name_of(chosen)


def model_directory(args):
    """<model_dir_root>/<model>, where a model with an adapter is a model of its own."""
    adapter = method_name(args) and f"_{method_name(args)}"
    return Path(args.model_dir_root) / (Path(args.model_checkpoint).name + adapter)


def directory(args):
    """The directory of a sequence."""
    args = Namespace(**vars(args))
    strategies.get_strategy(args).complete(args)
    ending = strategies.get_strategy(args).directory_ending(args)
    variants = "".join(f"_{flag}" for flag in VARIANTS if getattr(args, flag))
    variants += f"_unbound_{args.unbound}" if args.unbound else ""
    if args.own_adapters:
        variants += "_own" if args.own_adapters == FRESH else f"_own_{args.own_adapters}"
    tasks = order_name(args.tasks) or "_".join(args.tasks)
    return model_directory(args) / args.seq_train_type / f"{tasks}_{ending}{variants}"


def stages(args):
    """{name of a stage: the tasks trained in it}, in order."""
    joint = strategies.get_strategy(args).joint
    return {"all": list(args.tasks)} if joint else {name: [name] for name in trained_names(args)}


def trained_names(args):
    """Names of the units of training: the tasks, or the parts of --unbound."""
    return [f"task_{number}" for number in range(args.unbound)] if args.unbound else list(args.tasks)


def stage_directory(folder, stage):
    """The directory of a stage's model."""
    return Path(folder) if stage == "all" else Path(folder) / stage


# The schema of sequence.json.
PROGRESS = schema.Record(fields={
    "finished": schema.ListOf(schema.Text(), unique=str, required=True), "processes": schema.Whole(1, required=True),
})  # fmt: skip


class SequenceProgress:
    """Which stages of a sequence are finished.

    Args:
        folder: the sequence's directory.
        processes: number of training processes, on which the sum of their gradients depends; None: read only.

    Attributes:
        finished: names of the finished stages, in order.
    """

    def __init__(self, folder, processes=1):
        self.path, self.processes, self.finished = Path(folder) / STATE, processes, []
        if not self.path.is_file():
            return
        remedy = "remove it to train the sequence from its first task"
        state = schema.validate(schema.read_json_object(self.path, remedy), PROGRESS, self.path, remedy)
        self.finished, began = list(state["finished"]), state["processes"]
        if processes and began != processes:
            raise UserError(
                f"the sequence had {began} processes when it was started, now {processes}",
                location=self.path,
                remedy=f"resume with torchrun --nproc_per_node {began}",
            )

    def write(self):
        """Write the file."""
        write_json(self.path, dict(processes=self.processes, finished=self.finished))


class StageRun(Run):
    """A stage's run directory: a `Run` that also keeps the model after each epoch; the final one is saved at the end.

    Attributes:
        epoch_steps, epochs: optimizer steps per epoch, and the number of epochs.
        keep_epochs: False: only the final model is kept.
    """

    epoch_steps, epochs, keep_epochs = 1, 1, True

    def epoch(self, number):
        """The directory of the model after an epoch."""
        return self.directory / f"epoch_{number}"

    def save_best(self, save_model):
        """Does nothing: without a validation set the best model is the final one, see `finish`."""

    def save_checkpoint(self, step, state, save_model):
        """As in `Run`; at the end of an epoch, also write its model, to which the checkpoint's files are links."""
        self.refuse_gone()
        number, within = divmod(step, self.epoch_steps)
        if not within:
            logged = state["history"]["train"]
            loss = f", loss {logged[-1]['loss']:.4f}" if logged else ""
            tqdm.write(f"{self.directory.name}: epoch {number} of {self.epochs}{loss}", file=sys.stdout)
            sys.stdout.flush()
        if within or not self.keep_epochs:
            return super().save_checkpoint(step, state, save_model)
        with atomic_directory(self.epoch(number)) as temporary:
            save_model(temporary)
        super().save_checkpoint(step, state, lambda folder: _link(self.epoch(number), folder))

    def finish(self, save_model):
        """Write the final model."""
        super().save_best(save_model)

    def drop_checkpoints(self):
        """Remove the checkpoints, as a finished stage is not resumed."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def _link(folder, target):
    for file in folder.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            # Not every file system supports links.
            (shutil.copytree if file.is_dir() else shutil.copy2)(file, target / file.name)


def find_epochs(folder):
    """{number: directory} of the models after each epoch."""
    named = {path: re.fullmatch(r"epoch_(\d+)", path.name) for path in Path(folder).glob("epoch_*") if path.is_dir()}
    return dict(sorted((int(match[1]), path) for path, match in named.items() if match))


# --- teachers --------------------------------------------------------------------------------------------


def find_teacher(folder, task, only):
    """The directory of a task's teacher below --teacher_dir.

    Args:
        folder: a directory with a model for each task: <task>/, or <task>_<pct>_<seed>/<task>/ as train_lifelong.py
            writes single-task models, or <task>_<key>/<task>/ as --train_teachers does; with one task, also the model
            itself.
        task: the task's name.
        only: the sequence has no other task.

    Raises:
        UserError: there is no teacher, or several.
    """
    folder, location = Path(folder), f"--teacher_dir {folder}"
    remedy = "train them: --train_teachers, or name the directory that holds them: --teacher_dir DIR"
    if not folder.is_dir():
        raise UserError("no such directory", location=location, expected="teachers, one directory per task",
                        remedy=remedy)  # fmt: skip
    single = re.compile(rf"{re.escape(task)}_([\d.]+(e-\d+)?(_\d+)?|[0-9a-f]{{12}})")
    below = sorted(path / task for path in folder.iterdir() if single.fullmatch(path.name))
    candidates = [*([folder] if only else []), folder / task, folder / task / task, *below]
    # A variant's name has an ending: its flags say which task it learned.
    variants = sorted(path / task for path in folder.iterdir() if _is_teacher(path, task))
    models = [path for path in candidates if is_model(path)] or [path for path in variants if is_model(path)]
    if len(models) != 1:
        several = f"several teachers of {task}: {', '.join(map(str, models))}"
        if models:
            remedy = f"link the right ones into a directory, each named after its task: {task}/"
        raise UserError(several if models else f"no teacher of {task}", location=location,
                        expected=f"one model: {task}/, {task}_<pct>_<seed>/{task}/ or {task}_<key>/{task}/",
                        remedy=remedy)  # fmt: skip
    return models[0]


def _is_teacher(folder, task):
    """Whether a directory is that of a sequence that consists of this task alone."""
    known = stored_record(folder).get("flags") if folder.is_dir() else None
    return isinstance(known, dict) and known.get("tasks") == [task]


def is_model(folder):
    """Whether a directory holds a trained model."""
    return find_weights(folder) is not None


def find_weights(folder):
    """The weights file of a trained model, or None."""
    paths = (Path(folder) / name for name in (ADAPTER_WEIGHTS, MODEL_WEIGHTS))
    return next((path for path in paths if path.is_file()), None)


# --- finished stages -------------------------------------------------------------------------------------


def refuse_stage(folder, flag, remedy):
    """Raise a `UserError` if a directory is that of one task of a sequence."""
    above = Path(folder).resolve().parent
    if not stored_record(above):
        return
    try:
        names = list(stages(read_flags(above / "run.json")))
    except UserError:
        return
    if Path(folder).resolve().name in names:
        raise UserError(f"this is one task of {Path(folder).parent}", location=f"{flag} {folder}",
                        expected="the sequence's directory", remedy=remedy)  # fmt: skip


def check_models(folder, known, finished):
    """Raise a `UserError` if the model of a finished stage is missing or incomplete.

    Args:
        folder: the sequence's directory.
        known: its flags.
        finished: names of its finished stages.
    """
    for number, stage in enumerate(finished):
        path = find_weights(stage_directory(folder, stage))
        if path and is_whole(path):
            continue
        message = f"the weights of {stage}, which is finished, are {'not whole' if path else 'missing'}"
        raise UserError(message, location=path or stage_directory(folder, stage),
                        remedy=repair_remedy(folder, known, finished[: number + 1], finished[number:]))  # fmt: skip


def repair_remedy(folder, known, finished, damaged=None):
    """The remedy for a damaged stage, as text.

    Args:
        folder: the sequence's directory.
        known: its flags.
        finished: names of the stages up to the damaged one.
        damaged: names of the stages to be trained again (default: the last one of `finished`).
    """
    damaged = damaged or finished[-1:]
    # A transient state of the previous stage no longer exists by then.
    if len(finished) < 2 or strategies.get_strategy(known).transient_state:
        return f"copy it again; or remove {folder} and train the sequence again"
    again, later = resume_command("train_lifelong.py", folder), " and ".join(damaged)
    directories = "directory" if len(damaged) == 1 else "directories"
    return (f"copy it again; or remove {later} from {Path(folder) / STATE} and the {directories} of that name, and "
            f"train again: {again}")  # fmt: skip


def is_whole(path):
    """Whether a safetensors file is complete: as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError, ValueError):
        return False
