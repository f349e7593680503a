"""A sequence of tasks as files: the flags that name it, where its parts lie, and what of it is done.

    <model_dir_root>/<model>/<type>/<t1_t2_…>_<pct>_<seed>/      lll; otherwise <t1_t2_…>_seed_<seed>/
        run.json, sequence.json             the flags; which tasks have been trained
        <task>/                             the model when this task had been trained (multitask, multilm: none, the
                                            model lies in the directory itself)
            epoch_<n>/                      the model after each epoch
            generated_<earlier task>.jsonl  samples replayed; beside it what was rejected, and why
            checkpoints/                    only while the task is trained
            training_metrics.json           the course of training
            metrics.json, qa_<task>_<n>.csv what evaluate_lifelong.py found
    <model_dir_root>/<model>/teachers/<task>_<key>/<task>/      teachers of --train_teachers

<key> names a teacher's data, backbone and flags; <model> is followed by _adapter_<N> where an adapter is trained,
<seed> by _own where each task has its own (_own_previous: it starts from the one before).
"""

import os
import re
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm
from versatile.adapters.methods.registry import BARE, FULL, get_method, method_of
from versatile.data.task_names import task_flag
from versatile.data.task_orders import ORDERS, order_name
from versatile.lifelong import strategies
from versatile.training import method_flags
from versatile.training.runs import Run, read_record, stored
from versatile.utils import flags, schema, settings
from versatile.utils.errors import UserError
from versatile.utils.files import atomic_directory, write_json
from versatile.utils.screen import resume_command
from versatile.utils.stored_flags import REMEDY, rename_settings, restore_flags

# What a new task's own adapter starts from: chance, or what the task before has made of its own.
FRESH, PREVIOUS = "fresh", "previous"
STATE, FINAL = "sequence.json", "final"
# What makes another run of the same tasks gets a name of its own behind the published one.
VARIANTS = ("distil", "seq_distil", *strategies.naming_names())
# Beside those of utils.experiment: flags that may differ when a sequence is resumed.
FREE = {"resume", "n_gpus", "output_dir", "model_dir_root", "skip_tasks", "keep_checkpoints", "save_steps",
        "only_final", "push_to_hub", "init_fingerprint", "cache_dir", "report_to"}  # fmt: skip
METHOD_FLAGS = ("method", *method_flags.setting_names())
# What was not given is written down as what the device has.
PRECISION = {"bf16", "fp16", "fp32"}


def name_flags(parser):
    """The flags that both scripts have: they name a sequence and its data."""
    g = parser.group("the sequence")
    g.add_argument("--seq_train_type", choices=list(strategies.STRATEGIES), default=strategies.DEFAULT,
                   help="the strategy against forgetting; each is described below")  # fmt: skip
    task_flag(g, "--tasks", "question_answer", nargs="+", metavar="TASK",
              help="the tasks, in the order they are trained; NAME=DATA is one of your own, see data/own_tasks.py; "
                   f"orders of benchmarks have names: {', '.join(ORDERS)}")  # fmt: skip
    settings.add(parser, "model_checkpoint", group=g.title, default="gpt2",
                 help="backbone: a hub name, a directory, or smollm2, tiny-gpt2, tiny-llama")  # fmt: skip
    g.add_argument("--gen_lm_sample_percentage", type=flags.share, default=0.05,
                   help="lll: samples replayed; gem: samples kept; a share of a task's data")  # fmt: skip
    settings.add(parser, "adapter_bottleneck", group=g.title, type=flags.not_negative,
                 help="train one adapter of this width, shared by all tasks, and the special tokens' embeddings beside "
                      "a frozen backbone; 0: the embeddings alone (default: the whole model is trained)")  # fmt: skip
    g.add_argument("--method", choices=method_flags.method_names(),
                   help="how the backbone is adapted (default: as --adapter_bottleneck says)")  # fmt: skip
    method_flags.add_setting_flags(g)
    g.add_argument("--own_adapters", nargs="?", const=FRESH, choices=(FRESH, PREVIOUS),
                   help="with --method or --adapter_bottleneck N each task has an adapter of its own, the special "
                        "tokens' embeddings are still shared; it starts fresh, or as a copy of the "
                        f"{PREVIOUS} task's (default: all share one)")  # fmt: skip
    g.add_argument("--distil", action="store_true", help="Word-KD: train on a teacher's distributions")
    g.add_argument("--seq_distil", action="store_true",
                   help="Seq-KD: train on a teacher's texts, from <task>_…-distil-…")  # fmt: skip
    for flag, options in strategies.collect_flags("naming_flags").items():
        g.add_argument(flag, **options)
    g.add_argument("--unbound", type=flags.positive, metavar="N",
                   help="cut the tasks' data, one behind another, into N parts of one size and train on each as on a "
                        "task: where a task ends is not told")  # fmt: skip
    settings.add(parser, "seed", group=g.title, help="of everything random")
    settings.add(parser, "data_dir", group="files", default=os.environ.get("DATA_DIR"),
                 help="the tasks' json files (default: $DATA_DIR)")  # fmt: skip
    parser.group("files").add_argument("--model_dir_root", default=os.environ.get("MODEL_ROOT_DIR"),
                                       help="where models go (default: $MODEL_ROOT_DIR)")  # fmt: skip


def sample_flags(parser):
    """The flags that decide a sample's form; returns their group."""
    g = parser.group("samples")
    g.add_argument("--add_task_tokens", action="store_true", help="each task's samples start from a token of its own")
    g.add_argument("--use_sep", action="store_true", help="__sep__ between context and question")
    settings.add(parser, "max_len", group=g.title, default=1024, help="tokens of a sample; what is longer is cut")
    return g


def stored_flags(path):
    """`Namespace` of the flags in a run.json of train_lifelong.py, those that name it or shape its samples checked.

    Raises:
        UserError: it is none, or a flag has a value that train_lifelong.py would not take.
    """
    p = flags.build_parser(None)
    name_flags(p)
    sample_flags(p)
    stored = rename_settings(read_record(path, "train_lifelong.py")["flags"], p)
    if missing := [name for name in ("seq_train_type", "tasks", "model_checkpoint") if not stored.get(name)]:
        raise UserError(f"no flags.{missing[0]} in it", location=path, expected="a run.json of train_lifelong.py",
                        remedy=REMEDY)  # fmt: skip
    # Runs from before a flag was there have its default: one adapter that all tasks share.
    return Namespace(**{**vars(p.parse_args([])), **stored, **restore_flags(p, stored, path)})


def check_names(parser, args, data=True):
    """What must be given, the data only where no run knows them, and what does not go together."""
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
        parser.error("--own_adapters goes with --adapter_bottleneck N, the width of each, N from 1, or with --method")
    if reason := get_method(chosen["method"]).load_class().shared:
        parser.error(f"--own_adapters: not with {chosen['method']}: {reason}; choose another --method")
    if args.unbound:
        parser.error("--own_adapters: the parts of --unbound are not tasks: no adapter belongs to a question")
    if args.own_adapters == PREVIOUS and strategies.get_strategy(args).joint:
        parser.error(f"--own_adapters {PREVIOUS}: {args.seq_train_type} trains all tasks at once, none comes first")


def choose_method(args):
    """How the backbone is adapted, complete, or None: the whole model is trained; of older runs' flags, too."""
    known = vars(args).get
    chosen = method_flags.choose_method(args, known("method"), known("adapter_bottleneck"))
    return chosen and method_of(chosen)


def method_name(args):
    """The same in one word, "" where the whole model is trained; a width is written as it always was."""
    chosen = choose_method(args)
    if chosen is None:
        return ""
    if chosen["method"] in ("bottleneck", BARE):
        return f"adapter_{chosen.get('adapter_bottleneck', 0)}"
    return method_flags.name_of(chosen)


def model_directory(args):
    """<model_dir_root>/<model>; a model with an adapter is another one."""
    adapter = method_name(args) and f"_{method_name(args)}"
    return Path(args.model_dir_root) / (Path(args.model_checkpoint).name + adapter)


def directory(args):
    """Where a sequence lies."""
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
    """Names of what is trained: the tasks, or the parts of --unbound."""
    return [f"task_{number}" for number in range(args.unbound)] if args.unbound else list(args.tasks)


def stage_directory(folder, stage):
    """Where a stage's model lies."""
    return Path(folder) if stage == "all" else Path(folder) / stage


# What sequence.json holds.
PROGRESS = schema.Record(fields={
    "finished": schema.ListOf(schema.Text(), unique=str, required=True), "processes": schema.Whole(1, required=True),
})  # fmt: skip


class Progress:
    """Which stages of a sequence are done.

    Args:
        folder: the sequence's directory.
        processes: how many train; what a sum of their gradients is depends on it. None: it is only looked at.

    Attributes:
        finished: names of the stages, in order.
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
                f"the sequence was begun by {began} processes, now there are {processes}",
                location=self.path,
                remedy=f"resume with torchrun --nproc_per_node {began}",
            )

    def write(self):
        """Write the file."""
        write_json(self.path, dict(processes=self.processes, finished=self.finished))


class StageRun(Run):
    """A stage's run directory: beside `Run`, the model after each epoch; the final one only when training is over.

    Attributes:
        epoch_steps, epochs: optimizer steps of an epoch, and how many there are.
        keep_epochs: False: only the final model stays.
    """

    epoch_steps, epochs, keep_epochs = 1, 1, True

    def epoch(self, number):
        """Where the model after an epoch lies."""
        return self.directory / f"epoch_{number}"

    def save_best(self, save_model):
        """Nothing: without a validation set the best model is the final one, see `finish`."""

    def save_checkpoint(self, step, state, save_model):
        """As `Run`; at an epoch's end its model, which the checkpoint's files are then links to."""
        number, within = divmod(step, self.epoch_steps)
        if not within:
            logged = state["history"]["train"]
            loss = f", loss {logged[-1]['loss']:.4f}" if logged else ""
            tqdm.write(f"{self.directory.name}: epoch {number} of {self.epochs}{loss}", file=sys.stdout)
            sys.stdout.flush()
        if within or not self.keep_epochs:
            return super().save_checkpoint(step, state, save_model)
        with atomic_directory(self.epoch(number)) as beside:
            save_model(beside)
        super().save_checkpoint(step, state, lambda folder: _link(self.epoch(number), folder))

    def finish(self, save_model):
        """Write the final model."""
        super().save_best(save_model)

    def drop_checkpoints(self):
        """A finished stage is not resumed."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def _link(folder, beside):
    for file in folder.iterdir():
        try:
            os.link(file, beside / file.name)
        except OSError:
            # Not every file system has links.
            (shutil.copytree if file.is_dir() else shutil.copy2)(file, beside / file.name)


def find_epochs(folder):
    """{number: directory} of the models after each epoch."""
    numbered = {int(path.name.split("_")[1]): path for path in Path(folder).glob("epoch_*") if path.is_dir()}
    return dict(sorted(numbered.items()))


# --- teachers --------------------------------------------------------------------------------------------


def find_teacher(folder, task, only):
    """The directory of a task's teacher below --teacher_dir.

    Args:
        folder: a directory with a model for each task: <task>/, or as train_lifelong.py writes single-task models,
            <task>_<pct>_<seed>/<task>/, or --train_teachers, <task>_<key>/<task>/; with one task also the model
            itself.
        task: its name.
        only: the sequence has no other task.

    Raises:
        UserError: there is none, or several.
    """
    folder, location = Path(folder), f"--teacher_dir {folder}"
    remedy = "train them: --train_teachers, or name the directory that holds them: --teacher_dir DIR"
    if not folder.is_dir():
        raise UserError("no such directory", location=location, expected="teachers, one directory per task",
                        remedy=remedy)  # fmt: skip
    single = re.compile(rf"{re.escape(task)}_([\d.]+(_\d+)?|[0-9a-f]{{12}})")
    below = sorted(path / task for path in folder.iterdir() if single.fullmatch(path.name))
    candidates = [*([folder] if only else []), folder / task, folder / task / task, *below]
    models = [path for path in candidates if is_model(path)]
    if len(models) != 1:
        several = f"several teachers of {task}: {', '.join(map(str, models))}"
        if models:
            remedy = f"put links to those that are to teach into a directory, each named as its task: {task}/"
        raise UserError(several if models else f"no teacher of {task}", location=location,
                        expected=f"one model: {task}/, {task}_<pct>_<seed>/{task}/ or {task}_<key>/{task}/",
                        remedy=remedy)  # fmt: skip
    return models[0]


def is_model(folder):
    """Whether a trained model lies there."""
    return find_weights(folder) is not None


def find_weights(folder):
    """The file of a trained model's weights, or None."""
    paths = (Path(folder) / name for name in ("adapter_model.safetensors", "model.safetensors"))
    return next((path for path in paths if path.is_file()), None)


# --- what was finished -----------------------------------------------------------------------------------


def refuse_stage(folder, flag, remedy):
    """A `UserError` where a directory is that of one task of a sequence."""
    above = Path(folder).resolve().parent
    if not stored(above):
        return
    try:
        names = list(stages(stored_flags(above / "run.json")))
    except UserError:
        return
    if Path(folder).resolve().name in names:
        raise UserError(f"this is one task of {Path(folder).parent}", location=f"{flag} {folder}",
                        expected="the sequence's directory", remedy=remedy)  # fmt: skip


def check_models(folder, known, finished):
    """A `UserError` where the model of a finished stage is not there, or not whole.

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
    """What to do about a damaged stage.

    Args:
        folder: the sequence's directory.
        known: its flags.
        finished: names of the stages up to the damaged one.
        damaged: names of those to be trained again (default: the last of these).
    """
    damaged = damaged or finished[-1:]
    # A transient state of the stage before is gone by then.
    if len(finished) < 2 or strategies.get_strategy(known).transient_state:
        return f"copy it again; or remove {folder} and train the sequence anew"
    again, later = resume_command("train_lifelong.py", folder), " and ".join(damaged)
    directories = "directory" if len(damaged) == 1 else "directories"
    return (f"copy it again; or remove {later} from {Path(folder) / STATE} and the {directories} of that name, and "
            f"train again: {again}")  # fmt: skip


def is_whole(path):
    """Whether a safetensors file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError, ValueError):
        return False
