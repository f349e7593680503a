"""From the arguments of train_t5.py to a trained run."""

import contextlib
import math
import shutil
import time
from argparse import Namespace
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from versatile.adapters import t5
from versatile.adapters import t5_loading as t5_models
from versatile.adapters.manifest import peek
from versatile.adapters.methods.registry import method_of
from versatile.data import text_to_text
from versatile.data.task_sampler import MultiTaskBatchSampler
from versatile.data.text_to_text_batches import Collator, SampledBatches, data_keys
from versatile.training import hub, t5_evaluation
from versatile.training.experiment import resume_command, say
from versatile.training.objectives import SmoothedCrossEntropy
from versatile.training.optimizers import build_optimizer
from versatile.training.runs import ModelFiles, Run, lock_directory, record, stored
from versatile.training.schedules import build_schedule
from versatile.training.settings import Settings
from versatile.training.t5_arguments import PORT_SETTINGS
from versatile.training.trainer import Trainer
from versatile.training.validation import TOGETHER, Evaluator, Report
from versatile.utils import plots
from versatile.utils.devices import precision, prepare_for_device
from versatile.utils.errors import UserError
from versatile.utils.files import could_be_made, write_json
from versatile.utils.screen import shell_command, shell_words

SHAPE = "shape"


def check_directory(arguments, script="train_t5.py"):
    """What is wrong with the run directory is said before anything is loaded.

    Args:
        script: whose runs --overwrite_output_dir may remove; see `make_room`.
    """
    args = arguments.training
    # `say` asks ignite, which finds out about processes when it is first asked: all of them must be there.
    idist.get_rank()
    if args.resume:
        return
    if args.process_index:
        return
    location, folder = f"--output_dir {args.output_dir}", Path(args.output_dir)
    if (folder / "run.json").exists():
        if not args.overwrite_output_dir:
            raise UserError("this directory already holds a run", location=location,
                            remedy=f"go on with it ({shell_words('--resume', folder)}), name another directory, or "
                                   "start anew in its place with --overwrite_output_dir")  # fmt: skip
        check_removable(arguments, folder, script)
    could_be_made(args.output_dir, "--output_dir")


# A flag that only the runs of one script have.
OWN_FLAG = {"train_t5.py": "adapter_config_name", "pretrain_t5.py": "noise_density"}


def check_removable(arguments, folder, script):
    """A `UserError` where --overwrite_output_dir would remove what is no run of this script, or what this run needs."""
    location, flags = f"--output_dir {folder}", stored(folder).get("flags", {})
    if OWN_FLAG[script] not in flags:
        raise UserError(
            f"this directory holds something else than a run of {script}, which --overwrite_output_dir would remove",
            location=location,
            remedy="name another directory, or remove it by hand",
        )
    for name in ("model_name_or_path", "tokenizer_name", "config_name"):
        used = getattr(arguments.model, name)
        if used and Path(used).exists() and Path(used).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{used} lies in the run that --overwrite_output_dir would remove",
                            location=arguments.location(name), remedy="name another --output_dir")  # fmt: skip


def make_room(arguments):
    """Remove an old run, if asked for: what train_t5.py writes, and nothing else that may lie beside it."""
    folder = Path(arguments.training.output_dir)
    if not arguments.training.overwrite_output_dir or not (folder / "run.json").exists():
        return
    (folder / "run.json").unlink()
    for pattern in ("checkpoints", "checkpoint-*", "events*", "*.safetensors", "*_results.json", "metrics.json",
                    "learning_curve.png", "*config.json",
                    "tokenizer*", "backbone", "eval_outputs", "test_outputs", SHAPE):  # fmt: skip
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def settings(arguments):
    """`adapters.t5.T5Settings` of the arguments."""
    model, data, adapter, training = arguments.model, arguments.data, arguments.adapter, arguments.training
    names = set(t5.T5Settings.__dataclass_fields__)
    values = {k: v for part in (adapter, model) for k, v in vars(part).items() if k in names}
    values |= dict(method=method(arguments), adapters=data.adapters, task_embeddings=data.task_embeddings)
    given = {name: getattr(adapter, name) for name in PORT_SETTINGS if getattr(adapter, name) is not None}
    if values["method"] in t5.PORT_METHODS:
        # Its range, before anything is loaded; what is complete is kept with the model.
        method_of(dict(method=values["method"], **given), arguments.location("method"))
        values["method_settings"] = given
    if training.train_adapters and values["method"] == "finetune":
        # Published for tuning the layer norms alone.
        values["freeze_model"] = True
    if values["task_embedding_dim"] is None:
        values["task_embedding_dim"] = given_size(adapter.task_embedding_dir) or t5.T5Settings.task_embedding_dim
    return t5.T5Settings(**values)


def given_size(directory):
    """Size of the task embeddings in a directory, or None."""
    import numpy as np

    for path in sorted(Path(directory).glob("*.npy")) if directory else []:
        with contextlib.suppress(ValueError, OSError):
            return int(np.load(path, allow_pickle=False).size)
    return None


def method(arguments):
    """One of `adapters.t5.METHODS`."""
    adapter = arguments.adapter
    if adapter.method:
        return "finetune" if adapter.method == "full" else adapter.method
    if not (arguments.training.train_adapters and adapter.train_adapters_blocks):
        return "finetune"
    if adapter.adapter_config_name == "adapter":
        return "adapters"
    if adapter.efficient_unique_hyper_net:
        return "hyperformer++"
    if adapter.unique_hyper_net:
        return "hyperformer"
    return "meta"


def build(arguments):
    """(the model with what is added to it, its tokenizer)."""
    from transformers import set_seed

    model_args, data, args = arguments.model, arguments.data, arguments.training
    name = model_args.model_name_or_path
    trained = name and peek(name)
    if not args.do_train and trained and trained.encoder == "text_to_text":
        model, tokenizer = t5.load(name)
        missing = [task for task in data.tasks if task not in model.tasks]
        if missing:
            raise UserError(f"the model was not trained for {', '.join(missing)}", location=arguments.location("tasks"),
                            expected=f"some of {', '.join(model.tasks)}")  # fmt: skip
        return model, tokenizer
    if args.do_train and trained and trained.mode == "adapter":
        raise UserError("this is a trained model, not a bare T5", location=f"--model_name_or_path {name}",
                        remedy=f"to go on with it: {shell_words('--resume', name)}; to start anew: "
                               "name its backbone")  # fmt: skip
    model, tokenizer = t5_models.load(model_args, args.seed)
    set_seed(args.seed)
    t5.attach(model, data.tasks, settings(arguments))
    if args.do_train and not any(p.requires_grad for p in model.parameters()):
        flags = [name for name in vars(model_args) if name.startswith("freeze") and getattr(model_args, name)]
        flags += ["train_adapters_blocks"] * (not arguments.adapter.train_adapters_blocks)
        raise UserError("nothing is left to train", location=", ".join(map(arguments.location, flags)) or None,
                        remedy="leave it out, or unfreeze something: --unfreeze_layer_norms")  # fmt: skip
    return model, tokenizer


def read(arguments, tokenizer, model):
    """{"train" | "validation" | "test": {task: `t5_evaluation.Part`}}, of those that are asked for."""
    data, args = arguments.data, arguments.training
    common = dict(seed=args.data_seed, held_out=args.split_validation_test, prefix=not args.train_adapters, say=say)
    ids = {name: model.task_id(name) if name in model.tasks else 0 for name in [*data.tasks, *(data.eval_tasks or [])]}
    parts, tested = {}, data.eval_tasks or data.tasks
    check_test_rows(arguments, tested)
    for split, wanted, names, target, limit in (
        ("train", args.do_train, data.tasks, data.max_target_length, data.n_train),
        ("validation", args.do_eval, tested, data.val_max_target_length, data.n_val),
        ("test", args.do_test, tested, data.test_max_target_length, data.n_test),
    ):
        if wanted:
            common["lengths"] = (data.max_source_length, target)
            parts[split] = t5_evaluation.read(names, split, data, tokenizer, ids, limit=limit, **common)
    return parts


def check_test_rows(arguments, tasks):
    """A `UserError` where the rows that choose the best checkpoint would be reported as the test rows of `tasks`."""
    args = arguments.training
    if not (args.do_train and args.do_eval and args.do_test and args.load_best_model_at_end):
        return
    if same := t5_evaluation.tested_on_validation(tasks, arguments.data.data_dir, args.split_validation_test):
        remedies = ["leave out the test (--do_test false)", "keep the last model (--load_best_model_at_end false)"]
        if not args.split_validation_test and all(text_to_text.get(name).rule for name in same):
            remedies.insert(0, "divide them (--split_validation_test true)")
        raise UserError(
            f"the test rows of {', '.join(same)} are the validation rows, which choose the best checkpoint",
            location=arguments.location("do_test"),
            expected="test rows that have no part in choosing the model",
            remedy=", or ".join(remedies),
        )


def evaluation(arguments, tokenizer, parts):
    """`t5_evaluation.Evaluation` of a split's parts, shared out among the processes; None without any."""
    if not parts:
        return None
    from transformers.utils import is_torch_xla_available

    args, data = arguments.training, arguments.data
    lengths = (data.max_source_length, data.val_max_target_length) if is_torch_xla_available() else None
    return t5_evaluation.Evaluation(
        parts, tokenizer, args.per_device_eval_batch_size, dtype=precision(args, args.device),
        decode=args.predict_with_generate, share=(args.process_index, args.world_size), fixed_lengths=lengths,
    )  # fmt: skip


def open_run(arguments, model, tokenizer):
    """The run directory, made when everything else is known to be right."""
    args = arguments.training
    # Where the backbone is trained too it is part of what is saved.
    drawn = arguments.model.from_scratch and model.settings.method != "finetune" and not model.settings.unfreeze_model
    if args.resume or args.process_index:
        run = Run(args.output_dir, args.save_total_limit or 0)
        if args.process_index == 0:
            lock_directory(run.directory, "--resume")
    else:
        flags = Namespace(**arguments.flags())
        make_room(arguments)
        run = Run.create(args.output_dir, record(flags, method=model.settings.method),
                         args.save_total_limit or 0)  # fmt: skip
        if drawn:
            keep_shape(model, tokenizer, run.directory / SHAPE)
    if drawn:
        # Adapters name their backbone: here the shape, whose weights the seed draws again.
        model.config._name_or_path = str((run.directory / SHAPE).resolve())
    return run


def keep_shape(model, tokenizer, folder):
    """A directory that `t5.load_backbone` draws the same random weights from."""
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)


def batches(arguments, model, tokenizer, parts):
    """The training batches, with what they draw on the screen."""
    from transformers.utils import is_torch_xla_available

    args, data = arguments.training, arguments.data
    rows = {name: part.rows for name, part in parts["train"].items()}
    sizes = {name: len(own) for name, own in rows.items()}
    sampler = MultiTaskBatchSampler(
        list(sizes.values()), args.per_device_train_batch_size, args.temperature,
        replicas=args.world_size, rank=args.process_index, seed=args.data_seed,
    )  # fmt: skip
    shares = zip(sizes, sampler.probabilities().tolist())
    say("tasks are drawn: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in shares))
    fixed = (data.max_source_length, data.max_target_length) if is_torch_xla_available() else None
    collate = Collator(tokenizer.pad_token_id, model.config.decoder_start_token_id,
                       ignore_pad=data.ignore_pad_token_for_loss, lengths=fixed)  # fmt: skip
    lengths = np.concatenate([own.targets.lengths() for own in rows.values()])
    unused = args.ddp_find_unused_parameters
    if unused is None:
        # A batch of one task leaves the other tasks' parameters without a gradient.
        unused = model.settings.method != "finetune"
    return SampledBatches(torch.utils.data.ConcatDataset(rows.values()), sampler, collate, lengths,
                          args.gradient_accumulation_steps, args.process_index,
                          splits=model.tasks if unused else ())  # fmt: skip


def settings_of(args, epoch_batches):
    """`Settings` of transformers' training arguments."""
    epoch_steps = math.ceil(epoch_batches / args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch_steps)

    def steps(value):
        # Below 1 it is a share of all steps.
        return math.ceil(value * total) if value and value < 1 else int(value or 0) or None

    evaluated, saved = str(args.eval_strategy.value), str(args.save_strategy.value)
    logged = {"no": None, "epoch": epoch_steps}.get(args.logging_strategy.value, steps(args.logging_steps))
    return Settings(
        n_epochs=math.ceil(total / epoch_steps), max_steps=total, seed=args.seed,
        gradient_accumulation_steps=args.gradient_accumulation_steps, max_norm=args.max_grad_norm or math.inf,
        save_steps=steps(args.save_steps) if saved == "steps" else None,
        select="best" if args.load_best_model_at_end else "last", eval_before_start=args.eval_on_start,
        log_every=logged or total, log_first=args.logging_first_step, mean_loss=True,
        eval_epochs=evaluated == "epoch", eval_steps=steps(args.eval_steps) if evaluated == "steps" else None,
        dtype=precision(args, args.device), rate_flag="--learning_rate", batch_flag="--per_device_train_batch_size",
    )  # fmt: skip


def build_trainer(args, run, model, train, evaluate):
    """The `Trainer` of transformers' training arguments.

    Args:
        args: `t5_arguments.Seq2SeqTrainingArguments`.
        run: `Run`, bound.
        model: moved to the device here.
        train: `SampledBatches`.
        evaluate: called with (model, "eval"), returns {name: value}; None: the last model is kept.
    """
    prepare_for_device(model, args.device, precision(args, args.device))
    if getattr(args, "gradient_checkpointing", False) or getattr(args, "activation_checkpointing", False):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    settings = settings_of(args, len(train.plan()))
    schedule = build_schedule(args.lr_scheduler_type, args.learning_rate, args.get_warmup_steps(settings.max_steps),
                              settings.max_steps, args.lr_scheduler_kwargs)  # fmt: skip
    objective = SmoothedCrossEntropy(args.label_smoothing, args.loss_reduction, args.world_size)
    return Trainer(model, train, objective, build_optimizer(model, args), schedule, run,
                   evaluate and BestMetric(args, model, evaluate), settings=settings)  # fmt: skip


class BestMetric(Evaluator):
    """Evaluates for `Trainer`, judged by --metric_for_best_model.

    Args:
        args: transformers' training arguments.
        model, evaluate: see `build_trainer`.
    """

    def __init__(self, args, model, evaluate):
        self.model, self.evaluate = model, evaluate
        self.name = (args.metric_for_best_model or "loss").removeprefix("eval_")
        greater = args.greater_is_better
        self.sign = -1 if (greater if greater is not None else not self.name.endswith("loss")) else 1

    def __call__(self):
        """`Report`"""
        started, scores = time.monotonic(), self.evaluate(self.model, "eval")
        value = scores[f"eval_{self.name}" if f"eval_{self.name}" in scores else self.name]
        line = f"{self.name} {value:.4g}%s, {time.monotonic() - started:.0f} s"
        return Report({TOGETHER: self.sign * value}, scores, line, {"valid": scores}, scores["eval_loss"])

    def best(self, trainer):
        """The best value so far, or None."""
        return self.sign * trainer.best[TOGETHER] if trainer.best else None


def fit(trainer):
    """Train to the end; the model ends as the best one, or, without --load_best_model_at_end, as the last."""
    where = f"{trainer.total_steps} steps, {trainer.settings.dtype}, {trainer.device}"
    say(f"run: {trainer.run.directory}  ({where})", flush=True)
    result = trainer.fit()
    # The run directory holds it; a run that was resumed at its end has another in memory.
    trainer.run.files.load(trainer.run.directory)
    return result


def coverage(args, sampler, steps, names):
    """How much of every task was seen, also on the screen."""
    per_epoch = len(sampler)
    each = -(-per_epoch // args.gradient_accumulation_steps)
    epochs, rest = divmod(steps, each)
    drawn = epochs * per_epoch + min(rest * args.gradient_accumulation_steps, per_epoch)
    found = sampler.coverage(drawn, names)
    for row in found:
        say(f"seen of {row['task']}: {row['distinct']:,} of {row['size']:,} examples, {row['drawn']:,} drawn, "
            f"in {100 * row['batch_share']:.0f} % of the batches")  # fmt: skip
    return found


def summary(args, trainer, result):
    """What metrics.json says of a training."""
    name = args.metric_for_best_model
    best = trainer.evaluate.best(trainer) if trainer.evaluate else None
    kept = ("steps", "total_steps", "best_step", "seconds", "tokens", "tokens_per_second", "peak_memory_mb",
            "trained_parameters", "processes", "device", "precision", "history")  # fmt: skip
    return dict({k: result[k] for k in kept}, best_metric=best, metric_for_best_model=name,
                steps_per_second=round(result["steps"] / max(result["seconds"], 1e-9), 3))  # fmt: skip


def train(arguments, run, model, tokenizer, parts, drawn, scorer):
    """Train; the model ends as the one that is kept.

    Args:
        drawn: of `batches`.
        scorer: of `evaluation`.

    Returns:
        what metrics.json says of it.
    """
    args = arguments.training
    files = ModelFiles(lambda at: t5.save(model, tokenizer, at), lambda at: t5.load_weights(model, at))
    run.bind(files, data_keys(parts), resume_command("train_t5.py", run.directory))
    trainer = build_trainer(args, run, model, drawn, scorer)
    result = fit(trainer)
    return summary(args, trainer, result) | dict(
        coverage=coverage(args, drawn.sampler, result["steps"], list(parts["train"])))  # fmt: skip


def finish(arguments, run, model, tokenizer, parts, trained):
    """Evaluate the best model and write everything that a finished run holds.

    Args:
        trained: what `train` returned; {} where nothing was trained.
    """
    args, first = arguments.training, idist.get_rank() == 0
    folder, step = Path(args.eval_output_dir or args.output_dir), trained.get("best_step")
    results, tasks = {}, {}
    prepare_for_device(model, args.device, precision(args, args.device))
    for split, prefix, file in (("validation", "eval", "val_results.json"), ("test", "test", "test_results.json")):
        scorer = evaluation(arguments, tokenizer, parts.get(split))
        if scorer is None:
            continue
        results[prefix] = scorer(model, prefix)
        if first:
            print(f"\n---- {split} ----")
            t5_evaluation.write_results(folder / file, results[prefix], step=step or trained.get("steps"))
            t5_evaluation.show(scorer, results[prefix], prefix, samples=1 if split == "test" else 0)
            t5_evaluation.write_outputs(folder / f"{prefix}_outputs", scorer)
            tasks[split] = {name: dict(scorer.scores.get(name, {})) for name in scorer.parts}
    if first:
        run.write_metrics(dict(method=model.settings.method, tasks_of_model=model.tasks,
                               ledger=t5.count_parameters(model), coverage=None)
                          | trained | dict(scores=tasks) | results)  # fmt: skip
        write_json(folder / "arguments_results.json", arguments.flags())
        if trained:
            tasks = arguments.data.tasks
            named = ", ".join(tasks) if len(tasks) < 4 else f"{len(tasks)} tasks"
            plots.score_curve(run.directory / "learning_curve.png", trained["history"],
                              f"{run.directory.name}: {model.settings.method} on {named}")  # fmt: skip
    if args.world_size > 1:
        idist.barrier()
    if trained:
        say(f"trained {trained['steps']:,} steps in {trained['seconds']:,} s, {trained['steps_per_second']:g} steps/s")
    say(f"done; model and results in {run.directory}")
    if trained:
        following = shell_command("evaluate.py", "--task", "all", "--no_sample", "--model_checkpoint", run.directory)
        say(f"next: {following}")
    if first:
        hub.push(run.directory, args.push_to_hub)
