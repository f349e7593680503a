"""From flags to a trained run: code shared by the training scripts."""

import contextlib
import os
from argparse import Namespace
from pathlib import Path

import ignite.distributed as idist
import torch
from versatile.adapters import attach as adapting
from versatile.adapters import checkpoint
from versatile.adapters import warm_start as warm_starting
from versatile.adapters.backbones.family import max_length_of
from versatile.adapters.backbones.loading import load_backbone
from versatile.adapters.manifest import ADAPTER_WEIGHTS
from versatile.data.batching import Batches
from versatile.data.encoders.markers import load_split
from versatile.data.own_tasks import define
from versatile.data.task import distilled_beside
from versatile.data.task_names import name_among
from versatile.training import hub, sharding
from versatile.training.callbacks import MaskAbsentTasks
from versatile.training.coverage import undrawn_tasks, warn_of_undrawn
from versatile.training.objectives import CrossEntropy
from versatile.training.optimizers import build_adamw
from versatile.training.output_directory import check_output_directory, clear_run
from versatile.training.reporters import check_reporters
from versatile.training.runs import (
    READ_PATHS,
    ModelFiles,
    Run,
    absolute_paths,
    check_flags,
    default_directory,
    record,
    refuse_elsewhere,
    refuse_unfinished,
)
from versatile.training.schedules import check_schedule, choose_schedule
from versatile.training.sentence_distillation import checkpoint_fingerprint
from versatile.training.settings import Settings, StepPlan
from versatile.training.trainer import Trainer
from versatile.training.validation import Validation
from versatile.utils import devices, plots, screen
from versatile.utils.errors import MissingSplitError, UserError
from versatile.utils.files import is_same_path
from versatile.utils.flags import quantization
from versatile.utils.stored_flags import rename_settings, restore_flags

TRAINING_SCRIPTS = ("train.py", "train_vlm.py", "train_lifelong.py", "train_t5.py", "pretrain_t5.py", "train_camtl.py")
# These change where files are or how they are kept, never the result: the content of files that are read is checked.
FREE_WHEN_RESUMING = {"resume", "output_dir", "cache_dir", "token_cache_dir", "report_to", "keep_checkpoints",
                      "save_steps", "valid_batch_size", "push_to_hub", *READ_PATHS}  # fmt: skip


def print_once(*words, **options):
    """Print in the first process only."""
    if idist.get_rank() == 0:
        print(*words, **options)


def open_run(parser, args, typed_flags, script="train.py", free=()):
    """(flags, None), or with --resume (the flags the run was started with, the run).

    Args:
        parser: the script's, which must accept the flags in run.json.
        args, typed_flags: all flags, and {flag: value} of those given on the command line.
        script: the resuming script; a run of another script is refused.
        free: the script's own flags that may differ, in addition to `FREE_WHEN_RESUMING`.
    """
    if not args.resume:
        refuse_validation_flags(args, typed_flags)
        return args, None
    run, stored = Run.open(args.resume, args.keep_checkpoints, script)
    refuse_foreign(stored, script, args.resume)
    known = {k: v for k, v in rename_settings(stored["flags"], parser).items() if k in vars(args)}
    known = restore_flags(parser, known, run.directory / "run.json")
    typed_flags = relocate_own_tasks(known, typed_flags)
    # TASK=PATH may name the task by any of its names.
    of_tasks = [f for f in READ_PATHS if isinstance(typed_flags.get(f), dict) and isinstance(known.get(f), dict)]
    typed_flags = typed_flags | {flag: {name_among(task, known[flag], "markers"): path
                                        for task, path in typed_flags[flag].items()} for flag in of_tasks}  # fmt: skip
    free = FREE_WHEN_RESUMING | set(free)
    check_flags(typed_flags, known, free, f"--resume {args.resume}")
    refuse_elsewhere(typed_flags, args.resume)
    new = {k: absolute_paths(v) if k in READ_PATHS else v for k, v in typed_flags.items() if k in free}
    # Of a flag of TASK=PATH only the tasks that are named now have other data.
    new |= {flag: known[flag] | new[flag] for flag in of_tasks}
    need_stored_paths(known, typed_flags, run.directory / "run.json")
    return Namespace(**{**vars(args), **known, **new, "output_dir": args.resume}), run


def relocate_own_tasks(known, typed_flags):
    """Let a resumed run read its own tasks' data where TASK=SOURCE now says; the rows themselves are checked later.

    Args:
        known: {flag: value} of the run; its task definitions are changed.
        typed_flags: {flag: value} typed now.

    Returns:
        `typed_flags` without what was taken over.
    """
    named, definitions = typed_flags.get("own_tasks") or {}, known.get("task_definitions") or []
    if not named or set(named) - {task["name"] for task in definitions}:
        return typed_flags
    flag = "--task" if "task" in known else "--tasks"
    for task in definitions:
        if task["name"] in named:
            before, task["source"] = task["source"], define(task["name"], named[task["name"]], flag).source
            # train.py records an own task's source as its data file, too.
            if is_same_path(known.get("dataset_path"), before):
                known["dataset_path"] = task["source"]
    # Of several tasks only those that have moved need be named.
    replaced = {"own_tasks", "tasks"} if set(typed_flags.get("tasks") or ()) <= set(named) else {"own_tasks"}
    return {flag: value for flag, value in typed_flags.items() if flag not in replaced}


def refuse_validation_flags(args, typed_flags):
    """Raise a `UserError` for a flag that acts on validation, typed beside --no_validation."""
    if not getattr(args, "no_validation", False):
        return
    for flag in ("early_stopping", "eval_before_start", "select"):
        if flag in typed_flags and typed_flags[flag] not in (None, False, "last"):
            raise UserError("has no effect with --no_validation", location=f"--{flag}", remedy="leave one of them out")


def need_stored_paths(stored, typed_flags, file):
    """Raise a `UserError` if a path that a run was started with no longer exists and no other is given.

    Args:
        stored, typed_flags: {flag: value} of the run, and those typed now; of TASK=PATH a dict.
        file: where the run's are recorded.
    """
    for flag in READ_PATHS:
        value = stored.get(flag)
        for task, path in value.items() if isinstance(value, dict) else [(None, value)]:
            if flag in typed_flags and (task is None or task in (typed_flags[flag] or ())):
                continue
            if isinstance(path, str) and os.path.isabs(path) and not os.path.exists(path):
                task = f"{task}=" if task else ""
                raise UserError(f"it was started with --{flag} {task}{path}, which no longer exists", location=file,
                                remedy=f"restore it, or name its new location: --{flag} {task}PATH")  # fmt: skip


def refuse_foreign(stored, script, directory):
    """Raise a `UserError` if, according to run.json, another script of the toolkit made the directory."""
    words = str(stored.get("command", "")).split()
    maker, location = words[0] if words else "", f"--resume {directory}"
    if maker == "combine_all.py":
        raise UserError("nothing to resume: it was combined", location=location, expected=f"a run of {script}",
                        remedy="evaluate it: evaluate.py; or add to it: combine_all.py --into")  # fmt: skip
    # Any other name is not a script of the toolkit: a test or a notebook called `main`.
    if maker in TRAINING_SCRIPTS and maker != script:
        raise UserError(f"this is a run of {maker}", location=location, expected=f"a run of {script}",
                        remedy=screen.resume_command(maker, directory))  # fmt: skip


def check_machine(args):
    """Check reporters, schedule and precision before anything is loaded.

    Returns:
        the precision's dtype, which is also set in the flags: a run resumed on other hardware keeps its precision.
    """
    devices.quiet_libraries(args.cache_dir)
    check_reporters(args.report_to)
    check_schedule(args)
    dtype = devices.precision(args, idist.device())
    args.bf16, args.fp16, args.fp32 = (dtype == d for d in (torch.bfloat16, torch.float16, torch.float32))
    return dtype


def check_before_loading(args, run):
    """Check flags and machine before anything is loaded; returns the precision's dtype."""
    if args.output_dir and run is None:
        # It is created only once everything else has been checked.
        check_output_directory(args.output_dir, "train.py")
    if getattr(args, "fsdp", False):
        check_sharding(args)
    dtype = check_machine(args)
    if args.compile:
        devices.need_compiler(idist.device())
    if checkpoint.peek(args.model_checkpoint):
        raise UserError(
            "this is a trained model, not a bare backbone", location=f"--model_checkpoint {args.model_checkpoint}",
            remedy=f"to resume it: {screen.shell_words('--resume', args.model_checkpoint)}; with other data: name "
                   f"its backbone, and add {screen.shell_words('--init_from', args.model_checkpoint)}",
        )  # fmt: skip
    if args.init_from and run is None:
        refuse_unfinished(args.init_from, f"--init_from {args.init_from}")
        warm_starting.check_source(args.init_from, f"--init_from {args.init_from}")
    prepare_push(args)
    return dtype


def prepare_push(args):
    """--push_to_hub: report obstacles before anything is trained."""
    if idist.get_rank() == 0:
        hub.check_repository(args.push_to_hub)


def end_run(args, run, *following):
    """After a finished run, print the next command and upload it (--push_to_hub).

    Args:
        following: words of the command; none: nothing is printed.
    """
    if following:
        print_once(f"next: {screen.shell_command(*following)}")
    if idist.get_rank() == 0:
        hub.push(run.directory, args.push_to_hub)


def warm_start(args, run, model, tokenizer):
    """--init_from: initialise an attached model from a trained one.

    Args:
        run: the run being resumed, or None.

    Raises:
        UserError: the trained model cannot be used, or is not the one the run was started from.
    """
    if not args.init_from:
        return
    flag = f"--init_from {args.init_from}"
    if run is None:
        refuse_unfinished(args.init_from, flag)
    fingerprint = checkpoint_fingerprint(args.init_from)
    if run is not None and args.init_fingerprint != fingerprint:
        found = "it has changed since this run was started" if args.init_fingerprint else "this run was started fresh"
        raise UserError(found, location=flag, expected="the same flags and files",
                        remedy="leave the flag out, restore the files, or start a new run")  # fmt: skip
    origins = warm_starting.warm_start(model, tokenizer, args.init_from, flag)
    args.init_fingerprint = fingerprint
    fresh = [task for task, origin in origins.items() if origin is None]
    others = [f"{task} from {origin}" for task, origin in origins.items() if origin not in (None, task)]
    details = "".join([f"; {', '.join(others)}" if others else "", f"; {', '.join(fresh)} fresh" if fresh else ""])
    print_once(f"starting from {args.init_from}{details}")


def check_sharding(args):
    """Raise a `UserError` if --fsdp cannot be used."""
    for flag in ("compile", "self_copy", "load_in_4bit", "load_in_8bit", "fp16"):
        if getattr(args, flag, False):
            raise UserError(f"cannot be combined with --{flag}", location="--fsdp", remedy="leave one of the two out")
    if idist.get_world_size() == 1:
        raise UserError("there is one process", location="--fsdp", expected="several, to shard the model over",
                        remedy="torchrun --nproc_per_node N …")  # fmt: skip


def load_model(args, tasks, methods, freeze=True):
    """(the backbone named by the flags with its tasks' methods attached, its tokenizer).

    Args:
        tasks: {name: `data.task.Task`}.
        methods: {name: its adaptation method}, or None: the whole model is trained.
        freeze: whether the backbone is frozen.
    """
    model, tokenizer = load_backbone(args.model_checkpoint, args.seed if args.random_init else False,
                                     quantization=quantization(args))  # fmt: skip
    torch.manual_seed(args.seed)
    adapting.attach(model, tokenizer, {name: task.markers for name, task in tasks.items()}, methods, freeze=freeze)
    for name, task in tasks.items():
        if task.max_history:
            model.info.histories[name] = args.max_history or task.max_history
        if task.definition:
            model.info.definitions[name] = task.definition
        if args.row_init == "words":
            adapting.start_rows_from_words(model, tokenizer, name)
    return model, tokenizer


def load_splits(args, tasks, paths, tokenizer, positions, limits):
    """Tokenise the data, and print what was kept, dropped and cut.

    Args:
        tasks: {name: `data.task.Task`}.
        paths: {name: data file}.
        tokenizer: the model's, with the tasks' markers.
        positions: the model's maximum sequence length.
        limits: {task: number of examples of each split to be used, or None}; only reported here.

    Returns:
        {"train": {task: EncodedSplit}, "valid": the same}, without "valid" with --no_validation.
    """
    splits, held_back = {"train": {}} if args.no_validation else {"train": {}, "valid": {}}, []
    # Validation first: that it is missing is known before the larger split is tokenised.
    for split in reversed(splits):
        for name, task in tasks.items():
            # Only training uses the teacher's texts; validation stays gold. --distillation: all tasks, or those named.
            distilled = args.distillation is True or (args.distillation and name in args.distillation)
            options = task.read_options(args.max_history, distilled=bool(distilled) and split == "train")
            with missing_split(split), missing_texts(paths[name], options):
                loaded = load_split(paths[name], split, task, tokenizer, positions, training=split == "train",
                                    options=options, cache_dir=args.token_cache_dir)  # fmt: skip
            splits[split][name] = loaded
            report = loaded.report
            parts = [screen.counted(report["kept"], "example")]
            limit = limits.get(name)
            parts += [f"the first {limit:,} used"] if limit and limit < report["kept"] else []
            parts += [f"{n:,} dropped ({why})" for why, n in report["dropped"].items()]
            parts += [f"{n:,} cut ({why})" for why, n in report["cut"].items()]
            parts += [f"the teacher's texts from {paths[name]}"] if options.distilled else []
            line = f"{split}{f' {name}' if len(tasks) > 1 else ''}: " + ", ".join(parts)
            print_once(line) if split == "train" else held_back.append(line)
    for line in held_back:
        print_once(line)
    return splits


@contextlib.contextmanager
def missing_split(split):
    """If a split is missing, let the error name the remedies that a training script has."""
    try:
        yield
    except MissingSplitError as error:
        remedy = error.data_remedy
        if split == "valid":
            remedy = f"train without a validation split: --no_validation; or {remedy}"
        raise UserError(error.found, location=error.location, expected=error.expected, remedy=remedy) from error


@contextlib.contextmanager
def missing_texts(path, options):
    """If a teacher's texts are missing, say where a file with them was looked for."""
    try:
        yield
    except UserError as error:
        distilled_file = distilled_beside(path)
        if not options.distilled or "distillated_" not in error.found or distilled_file == Path(path):
            raise
        raise UserError(error.found, location=error.location, remedy=error.remedy,
                        expected=f"{error.expected}; or {distilled_file}, which is not there") from error  # fmt: skip


def data_key(**splits):
    """Keys that identify the content of a run's data: {"train": key, "valid": key}.

    Args:
        splits: train={task: split with a `key`}, valid=the same or None.
    """
    return {name: "-".join(part.key for part in parts.values()) for name, parts in splits.items() if parts}


def make_batches(args, splits, model, tokenizer, limits, temperature=1.0):
    """(training `Batches` of all tasks mixed, {task: validation `Batches`} or None)."""
    positions = max_length_of(model)
    task_ids = {task: model.task_id(task) for task in splits["train"]}
    common = dict(task_ids=task_ids, pad_id=tokenizer.pad_token_id, positions=positions, limits=limits,
                  rank=idist.get_rank(), world=idist.get_world_size(), seed=args.seed)  # fmt: skip
    train = Batches(splits["train"], **common, shuffle=True, temperature=temperature,
                    batch_size=args.train_batch_size, max_tokens=args.max_tokens,
                    accumulation=args.gradient_accumulation_steps)  # fmt: skip
    if "valid" not in splits:
        return train, None
    valid = {task: Batches({task: split}, **common, shuffle=False, batch_size=args.valid_batch_size)
             for task, split in splits["valid"].items()}  # fmt: skip
    return train, valid


def prepare_for_training(model, args, dtype):
    """Move the model to its device, in the form that runs fastest there."""
    if dtype != torch.float32:
        adapting.halve_frozen(model, dtype)
    devices.prepare_for_device(model, idist.device(), dtype)
    if args.gradient_checkpointing:
        model.gradient_checkpointing()
    if getattr(args, "fsdp", False):
        shard(model)
    if args.compile:
        adapting.compile_blocks(model)


def shard(model):
    """--fsdp: shard the model over the processes."""
    sharding.shard_model(model)
    held, every = sharding.count_held(model)
    parts = idist.all_gather(torch.tensor([held])).tolist()
    print_once(f"sharded over {idist.get_world_size()} processes: they hold {', '.join(f'{n:,}' for n in parts)} of "
               f"the backbone's {every:,} parameters")  # fmt: skip


def new_run(args, what, method, flags=None):
    """Create the run directory in the first process and share its name with all processes.

    Args:
        what: parts that follow the model's name in the default name: task and training method.
        method: how the model is trained, for tables of results.
        flags: the flags to record in run.json (default: all).
    """
    if not args.output_dir:
        name = str(default_directory(Path(args.model_checkpoint).name, *what))
        args.output_dir = idist.broadcast(name, safe_mode=True) if idist.get_world_size() > 1 else name
    if idist.get_rank() == 0:
        if getattr(args, "overwrite_output_dir", False):
            clear_run(args.output_dir)
        return Run.create(args.output_dir, record(flags or args, method=method), args.keep_checkpoints or 0)
    return Run(args.output_dir, args.keep_checkpoints or 0)


def fit(args, run, model, tokenizer, splits, dtype, *, limits, temperature=1.0, separate=False, objective=None,
        script="train.py"):  # fmt: skip
    """Train, and write metrics.json and learning_curve.png.

    Args:
        args: the flags; those named like a field of `Settings` set it.
        run: `Run`.
        model, tokenizer: attached, and ready for training.
        splits: from `load_splits`.
        dtype: precision of the matrix products.
        limits, temperature: see `Batches`.
        separate: see `Validation`.
        objective: see `Trainer`.
        script: named in the message printed when the run is stopped.

    Returns:
        the content of metrics.json.
    """
    train, valid = make_batches(args, splits, model, tokenizer, limits, temperature)
    settings = Settings.from_flags(args, dtype=dtype, log_every=args.logging_steps)
    total_steps = StepPlan(train, settings).total_steps
    run.bind(BestPerTask(model, tokenizer, run) if separate else adapter_files(model, tokenizer),
             data_key(**splits), resume_command(script, run.directory),
             backbone=model.backbone_fingerprint)  # fmt: skip
    trainer = Trainer(
        model, train, objective or CrossEntropy(),
        build_adamw(model, args.lr, args.adam_eps, args.weight_decay),
        choose_schedule(args, args.lr, total_steps, args.warmup_steps), run,
        evaluate=valid and Validation(model, valid, dtype, separate),
        callbacks=[MaskAbsentTasks(adapting.parameters_of_tasks(model))], settings=settings,
    )  # fmt: skip
    tasks = list(splits["train"])
    result = dict(task="+".join(tasks), **adapting.count_parameters(model), valid_nll=None, valid_ppl=None)
    result |= run_training(trainer)
    warn_of_undrawn(undrawn_tasks(trainer, result["steps"]))
    write_results(run, result, ", ".join(tasks))
    return result


def run_training(trainer):
    """Train, printing a line before (where, how long) and after; returns the training part of metrics.json."""
    directory, settings = trainer.run.directory, trainer.settings
    planned = screen.counted(trainer.total_steps, "step")
    print_once(f"run: {directory}  ({planned}, {settings.dtype}, {trainer.device})", flush=True)
    result = trainer.fit()
    print_once(f"done: {screen.counted(result['steps'], 'step')}, {result['tokens_per_second']:.0f} tokens/s, "
               f"{result['seconds']:.0f} s, peak memory {result['peak_memory_mb']} MB; model and learning_curve.png in "
               f"{directory}")  # fmt: skip
    return result


def write_results(run, metrics, subject, draw=None):
    """Write metrics.json and learning_curve.png in the first process.

    Args:
        metrics: including the `history`.
        subject: what was trained, for the title.
        draw: a function of `utils.plots`; None: `learning_curve`.
    """
    if idist.get_rank() == 0:
        run.write_metrics(metrics)
        draw = draw or plots.learning_curve
        draw(run.directory / "learning_curve.png", metrics["history"], f"{subject}: {run.directory.name}")


def resume_command(script, directory):
    """The command that resumes a run with the same number of processes."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or idist.get_world_size())
    return screen.resume_command(script, directory, processes if idist.get_world_size() > 1 else 1)


def adapter_files(model, tokenizer):
    """`ModelFiles` of an attached model, see `adapters.checkpoint`."""
    return ModelFiles(lambda folder: checkpoint.save_checkpoint(model, tokenizer, folder),
                      lambda folder: checkpoint.load_weights(model, folder))  # fmt: skip


class BestPerTask(ModelFiles):
    """Writes as the best model one in which every task has the weights of its own best epoch.

    Tasks on a frozen backbone share no parameters, so each may stop at its best epoch.

    Args:
        model, tokenizer: attached.
        run: `Run`; a resumed run already holds the best weights so far.
    """

    def __init__(self, model, tokenizer, run):
        files = adapter_files(model, tokenizer)
        super().__init__(files.save, files.load)
        self.model, self.tokenizer, self.state = model, tokenizer, {}
        written = run.directory / ADAPTER_WEIGHTS
        if written.is_file():
            self.state = checkpoint.read_safetensors(written)

    def save_best(self, folder, names):
        """See `ModelFiles`."""
        now, owners = checkpoint.adapter_state(self.model), checkpoint.owners_of_keys(self.model)
        # Copies: on a CPU these are the very tensors that training updates.
        fresh = {k: t.clone() for k, t in now.items() if owners[k] in names or k not in self.state}
        self.state |= fresh
        checkpoint.save_checkpoint(self.model, self.tokenizer, folder, state=self.state)
