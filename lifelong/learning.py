"""Training on a sequence of tasks: the steps before, during and after each stage.

Strategies against forgetting live in `lifelong.strategies`.

All randomness is a function of the seed and the position in the sequence, so no generator state needs saving.
"""

import contextlib
import gc
import hashlib
import sys
import time
from argparse import Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import torch
from versatile.adapters import attach as adapting
from versatile.adapters import checkpoint, inference
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import max_length_of
from versatile.data import question_samples as samples
from versatile.data import question_tasks as tasks
from versatile.data.encoders.question_answer import gen_token, special_tokens
from versatile.data.row_store import RowChain
from versatile.lifelong import answers, routing, sequence
from versatile.lifelong import batches as batching
from versatile.lifelong.batches import SplitBatches
from versatile.lifelong.losses import Objective, WeightedLoss
from versatile.lifelong.run_records import measure_stored_bytes
from versatile.lifelong.schedule import Annealing
from versatile.lifelong.strategies import get_strategy
from versatile.lifelong.teachers import content_key, contents, load_teacher
from versatile.training.callbacks import MaskAbsentTasks
from versatile.training.experiment import prepare_for_training, print_once, resume_command
from versatile.training.optimizers import build_adamw
from versatile.training.run_locks import lock_directory, release_directory
from versatile.training.runs import ModelFiles, record
from versatile.training.schedules import choose_schedule
from versatile.training.settings import Settings, StepPlan
from versatile.training.trainer import Trainer
from versatile.utils import flags, plots
from versatile.utils.errors import UserError
from versatile.utils.files import remove_nested_leftovers, write_json
from versatile.utils.interrupts import stop_on_signals
from versatile.utils.screen import counted, shell_command
from versatile.utils.settings import ALL_SPELLINGS

# (peak learning rate, Adam's eps): LAMOL's, which are for whole models, and those that adapters need.
RATES = {"full": (6.25e-5, 1e-4), "adapter": (1e-3, 1e-6)}


@dataclass
class LifelongModel:
    """A model to be trained on a sequence.

    Attributes:
        model, tokenizer: the attached model and its tokenizer.
        encoder: `QuestionEncoder` for the samples.
        positions: maximum sequence length in a batch.
        fingerprint: of the backbone.
    """

    model: object
    tokenizer: object
    encoder: object
    positions: int
    fingerprint: str


def load_model(args):
    """The backbone with the tokens of all tasks of the sequence: `LifelongModel`, not yet on its device."""
    model, tokenizer = backbones.load_backbone(args.model_checkpoint, quantization=flags.quantization(args))
    names = special_tokens(sequence.trained_names(args), args.add_task_tokens, args.use_sep)
    names += [answers.EOS] if tokenizer.eos_token_id is None else []
    tasks, method, strategy = sequence.trained_names(args), sequence.choose_method(args), get_strategy(args)
    method = method and strategy.attached_method(method, len(tasks))
    markers, methods, mask_other_tasks = routing.layout(names, tasks, method, args.own_adapters)
    max_positions = max_length_of(model)
    positions = min(args.max_len, max_positions)
    torch.manual_seed(args.seed)
    adapting.attach(model, tokenizer, markers, methods, mask_other_tasks)
    if strategy.chained:
        adapting.chain_tasks(model)
    model.info.encoder = "question_answer"
    routing.freeze_empty_tables(model)
    before = answers.ids_before_gen(model, tokenizer, args.lead_bos)
    encoder = answers.make_encoder(tokenizer, positions, args.use_sep, max_positions, before)
    return LifelongModel(model, tokenizer, encoder, positions, model.backbone_fingerprint)


def read_tasks(args, texts=None):
    """{task name: its `QA`s to train on}; all files are read before anything is trained.

    Args:
        texts: {task name: file of a teacher's texts}, used instead of the files in the data directory.
    """
    split = "distil" if args.seq_distil else "train"
    data = {}
    for task in tasks.sequence(args.tasks):
        path = (texts or {}).get(task.name)
        data[task.name] = samples.store_task(task, args.data_dir, split, path)[: args.limit]
    return cut_into_parts(data, args) if args.unbound else data


def cut_into_parts(data, args):
    """{part: its `QA`s} for --unbound: the tasks' samples, concatenated and cut into parts of equal size."""
    every, names = RowChain(data.values()), sequence.trained_names(args)
    if len(every) < len(names):
        raise UserError(f"there are {len(every)} samples", location=f"--unbound {args.unbound}",
                        expected="at least one per part", remedy="use fewer parts")  # fmt: skip
    bounds = [len(every) * i // len(names) for i in range(len(names) + 1)]
    return {name: every[first:last] for name, first, last in zip(names, bounds, bounds[1:])}


def check_answers(encoder, data):
    """Reject answers that do not fit even without a context, as they could only be trained on in part.

    Args:
        encoder: `QuestionEncoder`.
        data: {task: a list of `QA`}.
    """
    for qas in data.values():
        answers.check_fit(encoder, qas)


def warn_of_long_tests(encoder, args):
    """Warn, before anything is trained, of test files that evaluate_lifelong.py could not use as they are.

    Args:
        encoder: `QuestionEncoder`.
    """
    for task in tasks.sequence(args.tasks):
        try:
            tasks.find_file(args.data_dir, task, "test")
        except UserError:
            # Training does not need the test file.
            continue
        try:
            answers.check_fit(encoder, samples.load_task(task, args.data_dir, "test"))
        except answers.TooLong as error:
            longer = f"train with a higher --max_len, or evaluate it with evaluate_lifelong.py --max_len {error.needed}"
            print_once(f"warning: {error.location} cannot be evaluated as it is: {error.found}, {error.expected};\n"
                       f"  {longer if error.needed <= encoder.max_positions else error.remedy}")  # fmt: skip


def count_epochs(args, sizes):
    """{task: epochs}; with --dynamic_epochs smaller tasks get more, up to --max_n_epochs."""
    if not args.dynamic_epochs:
        return dict.fromkeys(sizes, args.n_epochs)
    most = max(sizes.values()) * args.n_epochs
    return {task: max(1, min(args.max_n_epochs, most // size)) for task, size in sizes.items()}


class Sequence:
    """Trains on the unfinished part of a sequence.

    Args:
        args: flags of train_lifelong.py.
        lifelong_model: `LifelongModel`.
        data: as returned by `read_tasks`.
        folder: the sequence's directory.
        dtype: precision of the matrix products.
        teacher_of: function from a task to its teacher's directory, or None.
        command: the command that resumes it after a stop (default: --resume with its directory).
    """

    def __init__(self, args, lifelong_model, data, folder, dtype, teacher_of=None, command=None):
        self.command = command or resume_command("train_lifelong.py", folder)
        self.args, self.data, self.folder, self.dtype = args, data, Path(folder), dtype
        self.lifelong_model = lifelong_model
        self.model, self.tokenizer = lifelong_model.model, lifelong_model.tokenizer
        self.encoder, self.positions = lifelong_model.encoder, lifelong_model.positions
        self.mode, self.teacher_of = args.seq_train_type, teacher_of
        self.rank, self.world = idist.get_rank(), idist.get_world_size()
        self.sizes = {task: len(qas) for task, qas in data.items()}
        self.epochs = count_epochs(args, self.sizes)
        self.progress = sequence.SequenceProgress(folder, self.world)
        self.strategy = get_strategy(args)(self)

    # ---- the sequence

    def train(self):
        """Train every unfinished stage; the model is left as the last stage made it.

        Raises:
            SystemExit: 128 + the signal's number, on SIGINT, SIGTERM or SIGHUP; in training after a checkpoint was
                saved, else at once.
        """

        def kept():
            finished = " and ".join(self.progress.finished) or "nothing"
            return f"{finished} is trained; what was begun between trainings is done again" if self.rank == 0 else None

        with stop_on_signals(kept, self.command):
            self.train_stages(sequence.stages(self.args))

    def train_stages(self, stages):
        """Train every unfinished one of {stage: names of its tasks}."""
        self.resume(list(stages))
        for number, (stage, names) in enumerate(stages.items()):
            if stage in self.progress.finished:
                print_once(f"{stage}: already trained")
                continue
            self.train_stage(number, stage, names)

    def resume(self, order):
        """Restore the model and the strategy's state from the last finished stage."""
        finished = self.progress.finished
        if self.rank == 0:
            for folder in (self.folder, *map(self.stage_folder, finished)):
                remove_nested_leftovers(folder)
            self.drop_finished()
        if finished != order[: len(finished)]:
            raise UserError(f"stages {finished} are finished", location=self.progress.path,
                            expected=f"the first tasks of {order}", remedy="remove the file to start over")  # fmt: skip
        if not finished:
            return
        sequence.check_models(self.folder, self.args, finished)
        folder = sequence.stage_directory(self.folder, finished[-1])
        checkpoint.load_weights(self.model, folder)
        if self.strategy.state_file and (len(finished) < len(order) or not self.strategy.transient_state):
            self.strategy.load_state(folder, sequence.repair_remedy(self.folder, self.args, finished))

    def train_stage(self, number, stage, names):
        """Train one stage."""
        folder = sequence.stage_directory(self.folder, stage)
        print_once(f"\n{stage}: task {number + 1} of {len(sequence.stages(self.args))}, "
                   f"{counted(sum(self.sizes[name] for name in names), 'sample')}", flush=True)  # fmt: skip
        run = self.open_run(folder)
        rows = self.strategy.training_rows({name: self.encode_task(name) for name in names})
        if replayed := self.strategy.before_task(list(self.data)[:number], list(names)):
            rows = RowChain([rows, replayed])
        teacher = self.load_stage_teacher(names[0]) if self.args.distil else None
        trainer = self.make_trainer(run, rows, names, teacher)
        print_once(f"run: {run.directory}  ({counted(trainer.total_steps, 'step')}, {counted(len(rows), 'sample')}, "
                   f"{counted(trainer.plan.epochs, 'epoch')}, {self.dtype}, {trainer.device})", flush=True)  # fmt: skip
        result = trainer.fit()
        self.finish_stage(run, stage, names, rows, trainer, result)
        # With several processes each stage's wrapper keeps its hooks on the model until it is garbage-collected.
        del trainer
        gc.collect()

    def open_run(self, folder):
        """The stage's `StageRun`, existing or new."""
        keep, path = self.args.keep_checkpoints, folder / "run.json"
        if not path.exists() and self.rank == 0:
            sequence.StageRun.create(folder, record(self.args, method=self.mode), keep)
        return sequence.StageRun(folder, keep)

    def finish_stage(self, run, stage, names, rows, trainer, result):
        """Save the model and everything that later stages need of this one."""
        print_once(f"done: {counted(result['steps'], 'step')}, {result['tokens_per_second']:.0f} tokens/s, "
                   f"{result['seconds']:.0f} s, peak memory {result['peak_memory_mb']} MB")  # fmt: skip
        last = stage == list(sequence.stages(self.args))[-1]
        self.copy_adapter_forward(names)
        trainer.on_rank0(lambda: run.finish(run.files.save))
        strategy = self.strategy
        start = time.perf_counter()
        if not last:
            strategy.after_task(names[0], lambda: self.make_batches(rows, Objective(None), weighted=False, share=False))
        after = round(time.perf_counter() - start, 3)
        if strategy.state_file and not (last and strategy.transient_state):
            trainer.on_rank0(lambda: strategy.save_state(run.directory))
        more = dict(task=stage, tasks=names, mode=self.mode, samples=sum(self.sizes[name] for name in names),
                    replayed=dict(Counter(row.task for row in rows if row.replayed)), epochs=trainer.plan.epochs,
                    cut=self.encoder.counts, teachers=self.name_teachers(names), after_task_seconds=after,
                    **adapting.count_parameters(self.model))  # fmt: skip
        trainer.on_rank0(lambda: write_report(run, more | strategy.metrics() | result | dict(
            stored_bytes=measure_stored_bytes(run.directory, strategy))))  # fmt: skip
        self.progress.finished.append(stage)
        trainer.on_rank0(self.progress.write)
        trainer.on_rank0(self.drop_finished)

    def drop_finished(self):
        """Remove files that finished stages no longer need, also those left by a kill after progress was written."""
        finished, strategy = self.progress.finished, self.strategy
        for stage in finished:
            sequence.StageRun(self.stage_folder(stage), self.args.keep_checkpoints).drop_checkpoints()
        if strategy.transient_state:
            for stage in finished[:-1]:
                (self.stage_folder(stage) / strategy.state_file).unlink(missing_ok=True)

    def stage_folder(self, stage):
        """The directory of a stage's model."""
        return sequence.stage_directory(self.folder, stage)

    def save(self, folder, names):
        """Write the model of the stage that trains the tasks `names`, at any of its steps."""
        self.copy_adapter_forward(names)
        checkpoint.save_checkpoint(self.model, self.tokenizer, folder)

    def copy_adapter_forward(self, names):
        """--own_adapters previous: copy this stage's adapter to the tasks not trained yet, as their starting point.

        No row of this stage goes through later tasks' adapters, so this may be done at any time. As it is done at
        every save, each saved model scores a later task with the adapter that the task would start from.
        """
        if self.args.own_adapters == sequence.PREVIOUS:
            order = list(self.data)
            routing.copy_adapter_forward(self.model, names[0], order[order.index(names[0]) + 1 :])

    # ---- training data and objective

    def encode(self, name, chosen=None, replayed=False):
        """Rows of a task's samples: all of them, or those at the positions `chosen`."""
        encoder, gen = self.encoder, gen_token(name, self.args.add_task_tokens)
        if chosen is None:
            return encoder.load_rows(self.data[name], gen, name)
        return encoder.encode_rows((self.data[name][i] for i in chosen), gen, name, replayed)

    def encode_task(self, name):
        """Rows of a task's samples; prints how many had to be truncated."""
        before = Counter(self.encoder.counts)
        rows = self.encode(name)
        if cut := self.encoder.counts - before:
            parts = ", ".join(f"the {what.split()[0]} of {count:,}" for what, count in cut.items())
            print_once(f"{name}: cut to fit {self.positions} tokens (--max_len): {parts} of {len(rows):,} samples")
        return rows

    def make_objective(self):
        """The `Objective`: how the loss of a sample is computed."""
        marks = self.encoder.ans, self.encoder.sep
        weights = {token: self.args.tokens_weight for token in marks if token is not None}
        lm = self.args.lm_lambda if self.strategy.generates_samples else None
        return Objective(lm, weights, self.args.distil, self.strategy.replay_weight, self.encoder.before_gen)

    def make_batches(self, rows, objective, weighted=True, share=True, companions=None):
        """`LifelongBatches`, sized by the flags or the device's memory."""
        args, world = self.args, self.world if share else 1
        if args.train_batch_size:
            # Importance depends on the number of samples in a batch, so it must not vary with the number of processes.
            budget, cap = float("inf"), args.train_batch_size * self.world
        else:
            mib, half = args.memory_mib or batching.memory_mib(idist.device()), self.dtype != torch.float32
            budget = batching.budget(self.strategy.memory_share, mib, half, self.args.distil)
            cap = batching.most_samples(len(rows), args.min_n_steps, args.min_batch_size)
        return batching.LifelongBatches(rows, objective, self.tokenizer.pad_token_id, self.positions,
                                        budget, cap, weighted=weighted, rank=self.rank if share else 0, world=world,
                                        task_ids=routing.task_ids(self.model, self.data),
                                        seed=args.seed, companions=companions)  # fmt: skip

    def make_trainer(self, run, rows, names, teacher):
        """The stage's `Trainer`."""
        args, model = self.args, self.model
        batches = self.make_batches(rows, self.make_objective(), companions=self.strategy.companions)
        # With a joint strategy all tasks have the same number.
        epochs = self.epochs[names[0]]
        lr, eps = choose_rates(args)
        settings = Settings(n_epochs=epochs, max_norm=args.max_norm, seed=args.seed, save_steps=args.save_steps,
                            log_every=args.logging_steps, dtype=self.dtype,
                            gradient_accumulation_steps=args.gradient_accumulation_steps,
                            report_to=args.report_to)  # fmt: skip
        plan = StepPlan(batches, settings)
        if args.lr_scheduler_type:
            schedule = choose_schedule(args, lr, plan.total_steps, args.warmup_steps or 0)
        else:
            annealing = Annealing.of(lr, len(batches), epochs, args.n_warmup_ratio, args.decay_style)

            def schedule(step):
                return annealing(batches.seen(plan.micro_batches(step)))

        files = ModelFiles(lambda folder: self.save(folder, names),
                           lambda folder: checkpoint.load_weights(model, folder))  # fmt: skip
        run.bind(files, rows_key(rows), self.command, backbone=self.lifelong_model.fingerprint)
        run.epoch_steps, run.epochs, run.keep_epochs = plan.epoch_steps, epochs, not args.only_final
        return Trainer(
            model, batches, WeightedLoss(teacher, self.strategy.loss_terms()),
            build_adamw(model, lr, eps, args.weight_decay),
            schedule, run,
            callbacks=[SplitBatches(batches), MaskAbsentTasks(routing.parameters_of_tasks(model, self.data)),
                       *self.strategy.callbacks()], settings=settings,
        )  # fmt: skip

    # ---- teachers

    def name_teachers(self, names):
        """Directories of the tasks' teachers, whether they provide distributions or texts."""
        return [str(self.teacher_of(name)) for name in names if self.teacher_of and self.teacher_of(name)]

    def load_stage_teacher(self, name):
        """The `DistributionTeacher` of a task."""
        folder = self.teacher_of(name)
        print_once(f"{name}: distilled from the teacher {folder}")
        teacher = load_teacher(self.lifelong_model, folder, name, self.args, self.dtype)
        inference.prepare_for_inference(teacher.model, idist.device(), self.dtype)
        return teacher


def choose_rates(args):
    """(peak learning rate, Adam's eps)."""
    lr, eps = RATES["adapter" if sequence.choose_method(args) else "full"]
    return args.lr or lr, args.adam_eps or eps


# Flags that determine a trained teacher, in addition to its data and its backbone.
_TEACHING = ("model_checkpoint", "adapter_bottleneck", "seed", "lm_lambda", "tokens_weight", "n_train_epochs",
             "min_batch_size", "min_n_steps", "train_batch_size", "gradient_accumulation_steps", "learning_rate",
             "adam_epsilon", "weight_decay", "max_grad_norm", "n_warmup_ratio", "decay_style", "max_len", "limit",
             "add_task_tokens", "use_sep", "bf16", "fp16", "fp32")  # fmt: skip


def train_teacher(args, task, dtype):
    """Train a task's teacher, a single-task lll model on real data, unless the same one exists already.

    Returns:
        the teacher's directory.
    """
    plain = dict.fromkeys(("distil", "seq_distil", "train_teachers", "real_sample", "dynamic_epochs"), False)
    # With one task, its own adapter is the shared one.
    plain |= dict.fromkeys(("upsample_data", "unbound", "own_adapters"))
    own = Namespace(**{**vars(args), **plain, "tasks": [task], "seq_train_type": "lll"})
    # Other teachers may have been trained before; a new model for each keeps them independent.
    lifelong_model, data = load_model(own), read_tasks(own)
    settings = {flag: getattr(own, ALL_SPELLINGS.get(flag, flag)) for flag in _TEACHING}
    # Part of the name only if given, so that existing teachers keep their names.
    later = (*sequence.METHOD_FLAGS, "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
    settings |= {flag: getattr(own, flag) for flag in later if getattr(own, flag, None) is not None}
    settings |= dict(lead_bos=True) if own.lead_bos else {}
    key = content_key([settings, lifelong_model.fingerprint, idist.get_world_size(), contents(data[task])])
    folder = sequence.model_directory(args) / "teachers" / f"{task}_{key}"
    own.output_dir = str(folder)
    if finished := sequence.SequenceProgress(folder, idist.get_world_size()).finished:
        sequence.check_models(folder, own, finished)
        print_once(f"{task}: the teacher already exists: {folder / task}")
        return folder / task
    print_once(f"\nteacher of {task}: {folder}")
    check_answers(lifelong_model.encoder, data)
    prepare_for_training(lifelong_model.model, args, dtype)
    # The sequence that the teacher is for has no directory yet: the same command trains on where it stopped.
    command = shell_command(Path(sys.argv[0]).name, *sys.argv[1:])
    with teacher_directory(folder, own):
        Sequence(own, lifelong_model, data, folder, dtype, command=command).train()
    return folder / task


@contextlib.contextmanager
def teacher_directory(folder, args):
    """Keep other sequences that need the same teacher out of its directory while it is trained."""
    if idist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        lock_directory(folder, "--train_teachers")
        if not (folder / "run.json").exists():
            # A teacher is a sequence of one task, which can be evaluated by itself.
            write_json(folder / "run.json", record(args, method="lll"))
    try:
        yield
    finally:
        if idist.get_rank() == 0:
            release_directory(folder)


def rows_key(rows):
    """A key that identifies the rows a checkpoint was trained on."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.ids.tobytes() + f"{row.prompt_length},{row.last},{row.gen},{row.replayed};".encode())
    return digest.hexdigest()[:16]


def write_report(run, metrics):
    write_json(run.directory / "training_metrics.json", metrics)
    title = f"{metrics['task']}: {run.directory}"
    plots.learning_curve(run.directory / "learning_curve.png", metrics["history"], title)
