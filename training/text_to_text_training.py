"""Training setup of train_t5.py and pretrain_t5.py: steps as shares, a summed loss, best model by a named metric."""

import math
import time
from argparse import Namespace

import ignite.distributed as idist
from versatile.adapters import t5_loading
from versatile.training import experiment
from versatile.training.objectives import SmoothedCrossEntropy
from versatile.training.optimizers import build_optimizer
from versatile.training.output_directory import check_output_directory
from versatile.training.runs import Run
from versatile.training.schedules import build_schedule, warn_of_long_warmup
from versatile.training.settings import Settings
from versatile.training.text_to_text_arguments import LOWER_IS_BETTER, warmup_steps
from versatile.training.text_to_text_model import TextToTextModel
from versatile.training.trainer import Trainer
from versatile.training.validation import TOGETHER, Evaluator, Report
from versatile.utils.devices import precision, prepare_for_device


def check_directory(arguments, script):
    """Check --output_dir before anything is loaded."""
    # The first call to ignite must be made by all processes.
    if idist.get_rank() or arguments.resume:
        return
    used = ("model_name_or_path", "tokenizer_name", "config_name")
    check_output_directory(arguments.output_dir, script, arguments.overwrite_output_dir,
                           [(arguments.location(name), getattr(arguments, name)) for name in used])  # fmt: skip


def open_run(arguments, method):
    """The run directory as a `Run`, created only once everything else has been checked."""
    if arguments.resume:
        # It was locked when its flags were read.
        return Run(arguments.output_dir, arguments.keep_checkpoints or 0)
    return experiment.new_run(arguments, (), method, Namespace(**arguments.flags()))


def load_t5_backbone(args):
    """(the T5 named by the flags, its tokenizer)"""
    return t5_loading.load_bare_t5(args.model_name_or_path, args.seed, args.tokenizer_name, args.dropout,
                                   args.from_scratch, args.config_name, args.config_overrides)  # fmt: skip


def trainer_settings(args, epoch_batches):
    """`Settings` from the flags."""
    epoch_steps = math.ceil(epoch_batches / args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.n_epochs * epoch_steps)

    def steps(value):
        # A value below 1 is a share of all steps.
        return math.ceil(value * total) if value and value < 1 else int(value or 0) or None

    evaluated, saved = args.eval_strategy, args.save_strategy
    logged = {"no": None, "epoch": epoch_steps}.get(args.logging_strategy, steps(args.logging_steps))
    return Settings(
        n_epochs=math.ceil(total / epoch_steps), max_steps=total, seed=args.seed,
        gradient_accumulation_steps=args.gradient_accumulation_steps, max_norm=args.max_norm or math.inf,
        save_steps=steps(args.save_steps) if saved == "steps" else None,
        select="best" if args.load_best_model_at_end else "last", eval_before_start=args.eval_before_start,
        log_every=logged or total, log_first=args.logging_first_step, mean_loss=True,
        eval_epochs=evaluated == "epoch", eval_steps=steps(args.eval_steps) if evaluated == "steps" else None,
        dtype=precision(args, idist.device()), report_to=args.report_to,
    )  # fmt: skip


def build_trainer(args, run, model, train, evaluate):
    """The `Trainer` configured by the flags.

    Args:
        args: the flags.
        run: a bound `Run`.
        model: moved to the device here.
        train: `SampledBatches`.
        evaluate: called with "eval", returns {name: value}; None: the last model is kept.
    """
    prepare_for_device(model, idist.device(), precision(args, idist.device()))
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    settings = trainer_settings(args, len(train.plan()))
    warmup = warmup_steps(args, settings.max_steps)
    warn_of_long_warmup(warmup, settings.max_steps)
    schedule = build_schedule(args.lr_scheduler_type, args.lr, warmup, settings.max_steps, args.lr_scheduler_kwargs)
    objective = SmoothedCrossEntropy(args.label_smoothing, args.loss_reduction, idist.get_world_size())
    return Trainer(model, train, objective, build_optimizer(model, args), schedule, run,
                   evaluate and BestMetric(args, evaluate), settings=settings)  # fmt: skip


def training_text_model(args, model, tokenizer, fixed_lengths=None, has_tasks=True):
    """A model in training as a `TextToTextModel` that splits rows among the processes."""
    return TextToTextModel(model, tokenizer, precision(args, idist.device()), args.valid_batch_size,
                           share=(idist.get_rank(), idist.get_world_size()), fixed_lengths=fixed_lengths,
                           has_tasks=has_tasks)  # fmt: skip


class BestMetric(Evaluator):
    """`Trainer`'s evaluation, scored by --metric_for_best_model.

    Args:
        args: the flags.
        evaluate: see `build_trainer`.
    """

    def __init__(self, args, evaluate):
        self.evaluate, self.metric = evaluate, args.metric_for_best_model
        self.name = (args.metric_for_best_model or "loss").removeprefix("eval_")
        greater = args.greater_is_better
        self.sign = -1 if (greater if greater is not None else not self.name.endswith(LOWER_IS_BETTER)) else 1

    def __call__(self):
        """`Report`"""
        started, scores = time.monotonic(), self.evaluate("eval")
        value = scores[f"eval_{self.name}" if f"eval_{self.name}" in scores else self.name]
        line = f"{self.name} {value:.4g}%s, {time.monotonic() - started:.0f} s"
        return Report({TOGETHER: self.sign * value}, scores, line, {"valid": scores}, scores["eval_loss"])

    def summary(self, trainer):
        """See `Evaluator`."""
        best = self.sign * trainer.best[TOGETHER] if trainer.best else None
        return dict(best_metric=best, metric_for_best_model=self.metric)
