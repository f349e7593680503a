"""From the arguments of train_t5.py to a trained run."""

import contextlib
import shutil
from argparse import Namespace
from pathlib import Path

import ignite.distributed as idist
import torch
from versatile.adapters import t5
from versatile.adapters import t5_loading as t5_models
from versatile.adapters.methods.registry import method_of
from versatile.data import text_to_text
from versatile.data.task_sampler import MultiTaskBatchSampler
from versatile.training import t5_evaluation
from versatile.training.experiment import say
from versatile.training.hf_training import resume_command, summary
from versatile.training.runs import Run, record, stored
from versatile.training.t5_arguments import PORT_SETTINGS
from versatile.training.t5_training import Collator, ScoredTrainer, data_keys
from versatile.utils import plots
from versatile.utils.devices import precision, settle
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
    place, folder = f"--output_dir {args.output_dir}", Path(args.output_dir)
    if (folder / "run.json").exists():
        if not args.overwrite_output_dir:
            raise UserError("this directory already holds a run", place=place,
                            remedy=f"go on with it ({shell_words('--resume', folder)}), name another directory, or "
                                   "start anew in its place with --overwrite_output_dir")  # fmt: skip
        check_removable(arguments, folder, script)
    could_be_made(args.output_dir, "--output_dir")


# A flag that only the runs of one script have.
OWN_FLAG = {"train_t5.py": "adapter_config_name", "pretrain_t5.py": "noise_density"}


def check_removable(arguments, folder, script):
    """A `UserError` where --overwrite_output_dir would remove what is no run of this script, or what this run needs."""
    place, flags = f"--output_dir {folder}", stored(folder).get("flags", {})
    if OWN_FLAG[script] not in flags:
        raise UserError(f"this directory holds something else than a run of {script}, which --overwrite_output_dir "
                        "would remove", place=place, remedy="name another directory, or remove it by hand")  # fmt: skip
    for name in ("model_name_or_path", "tokenizer_name", "config_name"):
        used = getattr(arguments.model, name)
        if used and Path(used).exists() and Path(used).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{used} lies in the run that --overwrite_output_dir would remove",
                            place=arguments.place(name), remedy="name another --output_dir")  # fmt: skip


def make_room(arguments):
    """Remove an old run, if asked for: what train_t5.py writes, and nothing else that may lie beside it."""
    folder = Path(arguments.training.output_dir)
    if not arguments.training.overwrite_output_dir or not (folder / "run.json").exists():
        return
    (folder / "run.json").unlink()
    for pattern in ("checkpoint-*", "events*", "*.safetensors", "*_results.json", "metrics.json", "learning_curve.png",
                    "*config.json", "tokenizer*", "backbone", "eval_outputs", "test_outputs", SHAPE):  # fmt: skip
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
        method_of(dict(method=values["method"], **given), arguments.place("method"))
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
    if not args.do_train and name and t5.is_checkpoint(name):
        model, tokenizer = t5.load(name)
        missing = [task for task in data.tasks if task not in model.tasks]
        if missing:
            raise UserError(f"the model was not trained for {', '.join(missing)}", place=arguments.place("tasks"),
                            expected=f"some of {', '.join(model.tasks)}")  # fmt: skip
        return model, tokenizer
    if name and args.do_train and t5.is_checkpoint(name) and not (Path(name) / "config.json").is_file():
        raise UserError("this is a trained model, not a bare T5", place=f"--model_name_or_path {name}",
                        remedy=f"to go on with it: {shell_words('--resume', name)}; to start anew: "
                               "name its backbone")  # fmt: skip
    model, tokenizer = t5_models.load(model_args, args.seed)
    set_seed(args.seed)
    t5.attach(model, data.tasks, settings(arguments))
    if args.do_train and not any(p.requires_grad for p in model.parameters()):
        flags = [name for name in vars(model_args) if name.startswith("freeze") and getattr(model_args, name)]
        flags += ["train_adapters_blocks"] * (not arguments.adapter.train_adapters_blocks)
        raise UserError("nothing is left to train", place=", ".join(map(arguments.place, flags)) or None,
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
        raise UserError(f"the test rows of {', '.join(same)} are the validation rows, which choose the best checkpoint",
                        place=arguments.place("do_test"), expected="test rows that have no part in choosing the model",
                        remedy=", or ".join(remedies))  # fmt: skip


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
        run = Run(args.output_dir)
    else:
        flags = Namespace(**arguments.flags())
        make_room(arguments)
        run = Run.create(args.output_dir, record(flags, method=model.settings.method))
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


def sampler(arguments, parts):
    """The sampler of the training tasks, with what it draws on the screen; None without training."""
    if "train" not in parts:
        return None
    args, sizes = arguments.training, {name: len(part.rows) for name, part in parts["train"].items()}
    made = MultiTaskBatchSampler(
        list(sizes.values()), args.per_device_train_batch_size, args.temperature,
        replicas=args.world_size, rank=args.process_index, seed=args.data_seed,
    )  # fmt: skip
    shares = zip(sizes, made.probabilities().tolist())
    say("tasks are drawn: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in shares))
    return made


def trainer(arguments, run, model, tokenizer, parts, scorer, batches):
    """The `ScoredTrainer`; `batches` is the `sampler`."""
    from transformers.utils import is_torch_xla_available

    args, data = arguments.training, arguments.data
    settle(model, args.device, precision(args, args.device))
    if args.ddp_find_unused_parameters is None:
        # A batch of one task leaves the other tasks' parameters without a gradient.
        args.ddp_find_unused_parameters = len(model.tasks) > 1 and model.settings.method != "finetune"
    rows = {name: part.rows for name, part in parts.get("train", {}).items()}
    fixed = (data.max_source_length, data.max_target_length) if is_torch_xla_available() else None
    collate = Collator(tokenizer.pad_token_id, model.config.decoder_start_token_id,
                       ignore_pad=data.ignore_pad_token_for_loss, lengths=fixed)  # fmt: skip
    made = ScoredTrainer(
        model=model, args=args, scorer=scorer, data_collator=collate,
        train_dataset=torch.utils.data.ConcatDataset(rows.values()) if rows else None,
        run=run, data_key=data_keys(parts),
        save_to=lambda folder: t5.save(model, tokenizer, folder),
        load_from=lambda folder: t5.load_weights(model, folder),
        resume_command=resume_command("train_t5.py", run.directory, args.world_size),
    )  # fmt: skip
    if scorer:
        scorer.gather = made.accelerator.gather
    made.sampler = batches
    if batches:
        made.plan()
    return made


def schedule(made):
    """Steps and precision, for the screen."""
    return f"{made.total_steps} steps, {made.args.mixed_precision.replace('no', 'fp32')}, {made.args.device}"


def load_best(made):
    """The best model for what follows; without --load_best_model_at_end the last one, which is then the run's model."""
    if made.args.load_best_model_at_end and made.best_saved:
        made.barrier()
        made.load_from(made.args.output_dir)
    else:
        made.save_model()


def report_coverage(made, steps, names):
    """How much of every task was seen."""
    per_epoch = len(made.sampler)
    each = -(-per_epoch // made.args.gradient_accumulation_steps)
    epochs, rest = divmod(steps, each)
    batches = epochs * per_epoch + min(rest * made.args.gradient_accumulation_steps, per_epoch)
    made.coverage = made.sampler.coverage(batches, names)
    for row in made.coverage:
        say(f"seen of {row['task']}: {row['distinct']:,} of {row['size']:,} examples, {row['drawn']:,} drawn, "
            f"in {100 * row['batch_share']:.0f} % of the batches")  # fmt: skip


def finish(arguments, run, made, tokenizer, parts, steps):
    """Evaluate the best model and write everything that a finished run holds."""
    args = arguments.training
    folder = Path(args.eval_output_dir or args.output_dir)
    results, tasks = {}, {}
    for split, prefix, file in (("validation", "eval", "val_results.json"), ("test", "test", "test_results.json")):
        scorer = evaluation(arguments, tokenizer, parts.get(split))
        if scorer is None:
            continue
        scorer.gather = made.accelerator.gather
        made.model.to(args.device)
        results[prefix] = scorer(made.model, prefix)
        if made.rank0:
            print(f"\n---- {split} ----")
            t5_evaluation.write_results(folder / file, results[prefix], step=made.state.best_global_step or steps)
            t5_evaluation.show(scorer, results[prefix], prefix, samples=1 if split == "test" else 0)
            t5_evaluation.write_outputs(folder / f"{prefix}_outputs", scorer)
            tasks[split] = {name: dict(scorer.scores.get(name, {})) for name in scorer.parts}
    if made.rank0:
        run.write_metrics(describe(made, results, tasks, steps))
        write_json(folder / "arguments_results.json", arguments.flags())
        if made.history["train"] or made.history["valid"]:
            tasks = arguments.data.tasks
            named = ", ".join(tasks) if len(tasks) < 4 else f"{len(tasks)} tasks"
            plots.score_curve(run.directory / "learning_curve.png", made.history,
                              f"{run.directory.name}: {made.model.settings.method} on {named}")  # fmt: skip
    made.barrier()
    if steps:
        took = summary(made, steps)
        say(f"trained {steps:,} steps in {took['seconds']:,} s, {took['steps_per_second']:g} steps/s")
    say(f"done; model and results in {run.directory}")
    if steps is not None:
        following = shell_command("evaluate.py", "--task", "all", "--no_sample", "--model_checkpoint", run.directory)
        say(f"next: {following}")


def describe(made, results, tasks, steps):
    """What metrics.json holds."""
    counts = t5.ledger(made.model)
    return dict(
        method=made.model.settings.method, tasks_of_model=made.model.tasks, ledger=counts,
        **(summary(made, steps) if steps is not None else {}),
        coverage=getattr(made, "coverage", None), scores=tasks, **results,
    )  # fmt: skip
