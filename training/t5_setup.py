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
from versatile.training.t5_arguments import warmup_steps
from versatile.training.t5_flags import PORT_SETTINGS
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
    # `say` asks ignite, which finds out about processes when it is first asked: all of them must be there.
    idist.get_rank()
    if arguments.resume:
        return
    if idist.get_rank():
        return
    location, folder = f"--output_dir {arguments.output_dir}", Path(arguments.output_dir)
    if (folder / "run.json").exists():
        if not arguments.overwrite_output_dir:
            raise UserError("this directory already holds a run", location=location,
                            remedy=f"go on with it ({shell_words('--resume', folder)}), name another directory, or "
                                   "start anew in its place with --overwrite_output_dir")  # fmt: skip
        check_removable(arguments, folder, script)
    could_be_made(arguments.output_dir, "--output_dir")


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
        used = getattr(arguments, name)
        if used and Path(used).exists() and Path(used).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{used} lies in the run that --overwrite_output_dir would remove",
                            location=arguments.location(name), remedy="name another --output_dir")  # fmt: skip


def make_room(arguments):
    """Remove an old run, if asked for: what train_t5.py writes, and nothing else that may lie beside it."""
    folder = Path(arguments.output_dir)
    if not arguments.overwrite_output_dir or not (folder / "run.json").exists():
        return
    (folder / "run.json").unlink()
    for pattern in ("checkpoints", "checkpoint-*", "events*", "*.safetensors", "*_results.json", "metrics.json",
                    "learning_curve.png", "*config.json",
                    "tokenizer*", "backbone", "eval_outputs", "test_outputs", SHAPE):  # fmt: skip
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def settings(arguments):
    """`adapters.t5.T5Settings` of the arguments."""
    names = set(t5.T5Settings.__dataclass_fields__)
    values = {name: value for name, value in vars(arguments).items() if name in names}
    values |= dict(method=method(arguments), adapters=arguments.adapters, task_embeddings=arguments.task_embeddings)
    given = {name: getattr(arguments, name) for name in PORT_SETTINGS if getattr(arguments, name) is not None}
    if values["method"] in t5.PORT_METHODS:
        # Its range, before anything is loaded; what is complete is kept with the model.
        method_of(dict(method=values["method"], **given), arguments.location("method"))
        values["method_settings"] = given
    if arguments.train_adapters and values["method"] == "finetune":
        # Published for tuning the layer norms alone.
        values["freeze_model"] = True
    if values["task_embedding_dim"] is None:
        values["task_embedding_dim"] = given_size(arguments.task_embedding_dir) or t5.T5Settings.task_embedding_dim
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
    if arguments.method:
        return "finetune" if arguments.method == "full" else arguments.method
    if not (arguments.train_adapters and arguments.train_adapters_blocks):
        return "finetune"
    if arguments.adapter_config_name == "adapter":
        return "adapters"
    if arguments.efficient_unique_hyper_net:
        return "hyperformer++"
    if arguments.unique_hyper_net:
        return "hyperformer"
    return "meta"


def build(arguments):
    """(the model with what is added to it, its tokenizer)."""
    from transformers import set_seed

    name = arguments.model_name_or_path
    trained = name and peek(name)
    if not arguments.do_train and trained and trained.encoder == "text_to_text":
        model, tokenizer = t5.load(name)
        missing = [task for task in arguments.tasks if task not in model.tasks]
        if missing:
            raise UserError(f"the model was not trained for {', '.join(missing)}", location=arguments.location("tasks"),
                            expected=f"some of {', '.join(model.tasks)}")  # fmt: skip
        return model, tokenizer
    if arguments.do_train and trained and trained.mode == "adapter":
        raise UserError("this is a trained model, not a bare T5", location=f"--model_name_or_path {name}",
                        remedy=f"to go on with it: {shell_words('--resume', name)}; to start anew: "
                               "name its backbone")  # fmt: skip
    model, tokenizer = t5_models.load(arguments, arguments.seed)
    set_seed(arguments.seed)
    t5.attach(model, arguments.tasks, settings(arguments))
    if arguments.do_train and not any(p.requires_grad for p in model.parameters()):
        flags = [name for name in vars(arguments) if name.startswith("freeze") and getattr(arguments, name)]
        flags += ["train_adapters_blocks"] * (not arguments.train_adapters_blocks)
        raise UserError("nothing is left to train", location=", ".join(map(arguments.location, flags)) or None,
                        remedy="leave it out, or unfreeze something: --unfreeze_layer_norms")  # fmt: skip
    return model, tokenizer


def read(arguments, tokenizer, model):
    """{"train" | "validation" | "test": {task: `t5_evaluation.Part`}}, of those that are asked for."""
    common = dict(seed=arguments.data_seed, held_out=arguments.split_validation_test,
                  prefix=not arguments.train_adapters, say=say)  # fmt: skip
    parts, tested = {}, arguments.eval_tasks or arguments.tasks
    ids = {name: model.task_id(name) if name in model.tasks else 0 for name in [*arguments.tasks, *tested]}
    check_test_rows(arguments, tested)
    for split, wanted, names, target, limit in (
        ("train", arguments.do_train, arguments.tasks, arguments.max_target_length, arguments.n_train),
        ("validation", arguments.do_eval, tested, arguments.val_max_target_length, arguments.n_val),
        ("test", arguments.do_test, tested, arguments.test_max_target_length, arguments.n_test),
    ):
        if wanted:
            common["lengths"] = (arguments.max_source_length, target)
            parts[split] = t5_evaluation.read(names, split, arguments, tokenizer, ids, limit=limit, **common)
    return parts


def check_test_rows(arguments, tasks):
    """A `UserError` where the rows that choose the best checkpoint would be reported as the test rows of `tasks`."""
    if not (arguments.do_train and arguments.do_eval and arguments.do_test and arguments.load_best_model_at_end):
        return
    if same := t5_evaluation.tested_on_validation(tasks, arguments.data_dir, arguments.split_validation_test):
        remedies = ["leave out the test (--do_test false)", "keep the last model (--load_best_model_at_end false)"]
        if not arguments.split_validation_test and all(text_to_text.get(name).rule for name in same):
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

    lengths = (arguments.max_source_length, arguments.val_max_target_length) if is_torch_xla_available() else None
    return t5_evaluation.Evaluation(
        parts, tokenizer, arguments.valid_batch_size, dtype=precision(arguments, idist.device()),
        decode=arguments.predict_with_generate, share=(idist.get_rank(), idist.get_world_size()), fixed_lengths=lengths,
    )  # fmt: skip


def open_run(arguments, model, tokenizer):
    """The run directory, made when everything else is known to be right."""
    # Where the backbone is trained too it is part of what is saved.
    drawn = arguments.from_scratch and model.settings.method != "finetune" and not model.settings.unfreeze_model
    if arguments.resume or idist.get_rank():
        run = Run(arguments.output_dir, arguments.keep_checkpoints or 0)
        if idist.get_rank() == 0:
            lock_directory(run.directory, "--resume")
    else:
        flags = Namespace(**arguments.flags())
        make_room(arguments)
        run = Run.create(arguments.output_dir, record(flags, method=model.settings.method),
                         arguments.keep_checkpoints or 0)  # fmt: skip
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

    rows = {name: part.rows for name, part in parts["train"].items()}
    sizes = {name: len(own) for name, own in rows.items()}
    sampler = MultiTaskBatchSampler(
        list(sizes.values()), arguments.train_batch_size, arguments.sampling_temperature,
        replicas=idist.get_world_size(), rank=idist.get_rank(), seed=arguments.data_seed,
    )  # fmt: skip
    shares = zip(sizes, sampler.probabilities().tolist())
    say("tasks are drawn: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in shares))
    fixed = (arguments.max_source_length, arguments.max_target_length) if is_torch_xla_available() else None
    collate = Collator(tokenizer.pad_token_id, model.config.decoder_start_token_id,
                       ignore_pad=arguments.ignore_pad_token_for_loss, lengths=fixed)  # fmt: skip
    lengths = np.concatenate([own.targets.lengths() for own in rows.values()])
    unused = arguments.ddp_find_unused_parameters
    if unused is None:
        # A batch of one task leaves the other tasks' parameters without a gradient.
        unused = model.settings.method != "finetune"
    return SampledBatches(torch.utils.data.ConcatDataset(rows.values()), sampler, collate, lengths,
                          arguments.gradient_accumulation_steps, idist.get_rank(),
                          splits=model.tasks if unused else ())  # fmt: skip


def settings_of(args, epoch_batches):
    """`Settings` of transformers' training arguments."""
    epoch_steps = math.ceil(epoch_batches / args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.n_epochs * epoch_steps)

    def steps(value):
        # Below 1 it is a share of all steps.
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
    """The `Trainer` of transformers' training arguments.

    Args:
        args: `t5_arguments.Seq2SeqTrainingArguments`.
        run: `Run`, bound.
        model: moved to the device here.
        train: `SampledBatches`.
        evaluate: called with (model, "eval"), returns {name: value}; None: the last model is kept.
    """
    prepare_for_device(model, idist.device(), precision(args, idist.device()))
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    settings = settings_of(args, len(train.plan()))
    schedule = build_schedule(args.lr_scheduler_type, args.lr, warmup_steps(args, settings.max_steps),
                              settings.max_steps, args.lr_scheduler_kwargs)  # fmt: skip
    objective = SmoothedCrossEntropy(args.label_smoothing, args.loss_reduction, idist.get_world_size())
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
    files = ModelFiles(lambda at: t5.save(model, tokenizer, at), lambda at: t5.load_weights(model, at))
    run.bind(files, data_keys(parts), resume_command("train_t5.py", run.directory))
    trainer = build_trainer(arguments, run, model, drawn, scorer)
    result = fit(trainer)
    return summary(arguments, trainer, result) | dict(
        coverage=coverage(arguments, drawn.sampler, result["steps"], list(parts["train"])))  # fmt: skip


def finish(arguments, run, model, tokenizer, parts, trained):
    """Evaluate the best model and write everything that a finished run holds.

    Args:
        trained: what `train` returned; {} where nothing was trained.
    """
    first = idist.get_rank() == 0
    folder, step = Path(arguments.eval_output_dir or arguments.output_dir), trained.get("best_step")
    results, tasks = {}, {}
    prepare_for_device(model, idist.device(), precision(arguments, idist.device()))
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
            tasks = arguments.tasks
            named = ", ".join(tasks) if len(tasks) < 4 else f"{len(tasks)} tasks"
            plots.score_curve(run.directory / "learning_curve.png", trained["history"],
                              f"{run.directory.name}: {model.settings.method} on {named}")  # fmt: skip
    if idist.get_world_size() > 1:
        idist.barrier()
    if trained:
        say(f"trained {trained['steps']:,} steps in {trained['seconds']:,} s, {trained['steps_per_second']:g} steps/s")
    say(f"done; model and results in {run.directory}")
    if trained:
        following = shell_command("evaluate.py", "--task", "all", "--no_sample", "--model_checkpoint", run.directory)
        say(f"next: {following}")
    if first:
        hub.push(run.directory, arguments.push_to_hub)
