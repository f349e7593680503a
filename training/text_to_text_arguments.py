"""Arguments of train_t5.py and pretrain_t5.py, completed and checked.

`parse` reads the command line and its config file, or the run.json of a resumed run.
"""

import json
import math
from argparse import Namespace
from pathlib import Path

from versatile.adapters.manifest import peek
from versatile.adapters.methods.registry import ALIASES, FULL
from versatile.data.own_tasks import prepare_own_tasks
from versatile.training.method_flags import check_settings
from versatile.training.runs import Run, absolute_paths, check_flags, refuse_elsewhere, run_flags, run_of
from versatile.training.text_to_text_flags import PORT_SETTINGS, build_parser
from versatile.utils import flags, schema, settings, stored_flags
from versatile.utils.errors import UserError, first_line
from versatile.utils.screen import shell_words

# These change where a run's files are or how they are kept, never the result.
FREE_WHEN_RESUMING = {
    "resume", "resume_from_checkpoint", "output_dir", "overwrite_output_dir", "save_steps", "keep_checkpoints",
    "cache_dir", "valid_batch_size", "eval_output_dir", "do_test", "report_to", "task_definitions", "local_rank",
    "push_to_hub",
    # Locations of data, whose content is checked separately.
    "data_dir", "train_files", "validation_files",
}  # fmt: skip


# ---- what was asked for


class Arguments(Namespace):
    """All flags, and where they were given.

    Attributes:
        locations: {setting: the flag, or the config file and key}.
    """

    def flags(self):
        """{name: value} for run.json, with data paths that are valid from any directory."""
        values = {name: value for name, value in vars(self).items() if name != "locations"}
        values |= {"resume": None, "resume_from_checkpoint": None, "overwrite_output_dir": False}
        return {**values, **absolute_data_paths(values)}

    def location(self, name):
        """Where a setting was given, for errors."""
        return self.locations.get(name, f"--{name}")


PATHS = ("data_dir", "task_embedding_dir", "train_files", "validation_files")


def absolute_data_paths(values):
    """{name: value} of the data paths among the flags, made absolute."""
    return {name: absolute_paths(values[name]) for name in PATHS if values.get(name)}


def parse(make_parser, argv=None, script="train_t5.py"):
    """`Arguments` of a command line and its config file, or of the run being resumed.

    Args:
        make_parser: called without arguments, returns the script's parser.

    Raises:
        UserError: an unusable config file, no run to resume, or inconsistent values.
    """
    p = make_parser()
    arguments = Arguments(**vars(p.parse_args(argv)), locations=p.locations)
    if directory := directory_to_resume(arguments):
        typed = flags.typed_flags(make_parser, argv)
        vars(arguments).update(flags_of_resumed_run(directory, typed, p, script))
    else:
        reset_dependent_settings(arguments, p)
    settings.apply_fp16_level(p, arguments)
    fill_defaults(arguments)
    return arguments


# {setting: its leader}: the setting in a config file is ignored if its leader is typed.
RESET_WITH = {
    "tokenizer_name": "model_name_or_path",
    "eval_tasks": "tasks",
    "greater_is_better": "metric_for_best_model",
    "warmup_steps": "warmup_ratio",
    "max_steps": "n_epochs",
    "task_embedding_dim": "task_embedding_dir",
}


def reset_dependent_settings(arguments, parser):
    """Reset the settings that depend on a typed one: a typed model comes with its own tokenizer, typed tasks are also
    the evaluated ones, a typed metric has its own direction, typed embeddings their own size, and typed shares and
    epochs are not overruled by a file's steps."""
    for name, leader in RESET_WITH.items():
        typed = {n: arguments.locations.get(n, "").startswith("--") for n in (name, leader)}
        if typed[leader] and not typed[name] and getattr(arguments, leader) and hasattr(arguments, name):
            setattr(arguments, name, parser.get_default(name))


def directory_to_resume(arguments):
    """The run directory to resume: --resume, or transformers' --resume_from_checkpoint; None for a new run."""
    checkpoint = str(arguments.resume_from_checkpoint or "")
    if arguments.resume or checkpoint.lower() in ("", "false"):
        return arguments.resume
    if checkpoint.lower() == "true":
        return arguments.output_dir
    path = Path(checkpoint)
    if path.name.startswith("checkpoint-"):
        raise UserError("a run is resumed from its newest whole checkpoint",
                        location=f"--resume_from_checkpoint {checkpoint}",
                        remedy=shell_words("--resume", path.parent))  # fmt: skip
    return checkpoint


def flags_of_resumed_run(directory, typed, parser, script):
    """The flags a run was started with, updated by those typed now that may change.

    Raises:
        UserError: no run there, another script's run, or a different value of a flag that must not change.
    """
    from versatile.training.experiment import refuse_foreign

    _, record = Run.open(directory, script=script)
    refuse_foreign(record, script, directory)
    known = restored(record["flags"], Path(directory) / "run.json", parser)
    typed = {**typed, **absolute_data_paths(typed)}
    check_flags(typed, known, FREE_WHEN_RESUMING, f"--resume {directory}")
    refuse_elsewhere(typed, directory)
    free = {k: v for k, v in typed.items() if k in FREE_WHEN_RESUMING}
    current = dict(output_dir=str(directory), resume=str(directory), overwrite_output_dir=False)
    return {**known, **free, **current, "resume_from_checkpoint": None}


def restored(stored, location, parser=None):
    """{name: value} of the flags in a run.json, each checked as on the command line.

    Args:
        stored: {name: value}, with the names of any version.
        location: the file.
        parser: the script's parser (default: train_t5.py's).
    """
    parser = parser or build_parser(None)
    known = stored_flags.rename_settings(stored, parser)
    # Versions based on transformers' training arguments wrote "none", and definitions as text.
    if known.get("report_to") in ("none", []):
        known["report_to"] = ["tensorboard"]
    if isinstance(known.get("report_to"), str):
        known["report_to"] = [known["report_to"]]
    if "task_definitions" in known:
        known["task_definitions"] = definitions(known["task_definitions"], f"{location}: flags.task_definitions")
    return stored_flags.restore_flags(parser, known, location)


def definitions(value, location):
    """The definitions of the user's own tasks in a run.json, or None."""
    try:
        tasks = json.loads(value or "null") if isinstance(value, str | None) else value
    except (ValueError, RecursionError) as error:
        raise UserError(f"not json: {first_line(error)}", location=location, expected="a value that train_t5.py wrote",
                        remedy=stored_flags.REMEDY) from error  # fmt: skip
    schema.validate(tasks, stored_flags.DERIVED["task_definitions"], location, stored_flags.REMEDY)
    return tasks or None


# ---- what goes together


def fill_defaults(arguments):
    """Check the flags' consistency, and fill in settings that follow from others."""
    if hasattr(arguments, "eval_tasks"):
        trained = fill_from_trained_run(arguments)
        check_tasks(arguments, ("tasks", "eval_tasks"))
        prepare_own_tasks(arguments, "--tasks", trained=trained)
        check_task_names(arguments)
        if arguments.eval_strategy != "no" or arguments.evaluate_during_training:
            arguments.do_eval = True
        if not (arguments.do_train or arguments.do_eval or arguments.do_test):
            raise UserError("nothing to do", location="flags", expected="--do_train, --do_eval or --do_test")
        if arguments.push_to_hub and not arguments.do_train:
            raise UserError("uploads the trained model", location="--push_to_hub", expected="--do_train",
                            remedy="leave it out")  # fmt: skip
        check_method(arguments)
    elif not (arguments.train_files or arguments.tasks):
        raise UserError("no text", location="flags", expected="--train_files, or --tasks with --data_dir")
    else:
        prepare_own_tasks(arguments, "--tasks")
        check_task_names(arguments, ("tasks",))
    check_common(arguments)


# How a trained model's inputs are made, and the rows that it may be scored on.
FLAGS_OF_RUN = ("tasks", "eval_tasks", "data_dir", "train_adapters", "max_source_length", "max_target_length",
          "val_max_target_length", "test_max_target_length", "split_validation_test", "data_seed",
          "eval_beams")  # fmt: skip


def fill_from_trained_run(arguments):
    """Where nothing is trained, take what was not given of `FLAGS_OF_RUN` from the run that trained the model.

    Returns:
        the definitions of the run's own tasks.
    """
    name = arguments.model_name_or_path
    if arguments.do_train or arguments.resume or not name or not (run_of(name) / "run.json").is_file():
        return ()
    manifest = peek(name)
    if manifest is None or manifest.encoder != "text_to_text":
        return ()
    known = restored(*run_flags(name))
    typed_tasks = "tasks" in arguments.locations or "eval_tasks" in arguments.locations
    for flag in FLAGS_OF_RUN:
        if flag in known and flag not in arguments.locations and not (typed_tasks and flag in ("tasks", "eval_tasks")):
            setattr(arguments, flag, known[flag])
    definitions = known.get("task_definitions") or ()
    if not arguments.own_tasks:
        arguments.task_definitions = definitions or None
    return definitions


def check_before_loading(arguments):
    """Check the machine and its libraries before anything is loaded.

    Raises:
        UserError: float16 without a GPU, or an unavailable optimizer, schedule or library for --report_to.
    """
    from versatile.training.experiment import check_machine
    from versatile.training.optimizers import check_optimizer

    check_machine(arguments)
    check_optimizer(arguments)


# Endings of metrics of which the lowest is the best.
LOWER_IS_BETTER = ("loss", "perplexity")


def check_common(arguments):
    """Check what both scripts require, and complete the optimizer, the loss and the strategies."""
    if not arguments.output_dir:
        raise UserError("no run directory", location="flags", expected="--output_dir")
    if not arguments.model_name_or_path and not (arguments.from_scratch and arguments.config_name):
        raise UserError("no model", location="flags", expected="--model_name_or_path, or --from_scratch with "
                        "--config_name and --tokenizer_name")  # fmt: skip
    if arguments.adafactor:
        # transformers builds it as the original did: with the given rate, not scaled by the parameters.
        arguments.optim = "adafactor"
    if arguments.loss_reduction is None:
        arguments.loss_reduction = "sum" if arguments.label_smoothing else "mean"
    if arguments.evaluate_during_training is not None:
        arguments.eval_strategy = "steps" if arguments.evaluate_during_training else "no"
    if arguments.eval_strategy == "steps":
        arguments.eval_steps = arguments.eval_steps or arguments.logging_steps
    for name in ("eval", "save", "logging"):
        if getattr(arguments, f"{name}_strategy") == "steps" and not getattr(arguments, f"{name}_steps"):
            raise UserError("is 0", location=arguments.location(f"{name}_steps"), expected="a number above 0")
    if arguments.load_best_model_at_end:
        arguments.metric_for_best_model = arguments.metric_for_best_model or "loss"
        check_best(arguments)
    if arguments.greater_is_better is None and arguments.metric_for_best_model:
        arguments.greater_is_better = not arguments.metric_for_best_model.endswith(LOWER_IS_BETTER)


def check_best(arguments):
    """Raise a `UserError` unless the model is evaluated whenever it is saved, as keeping the best one requires."""
    evaluated, saved = arguments.eval_strategy, arguments.save_strategy
    location = arguments.location("load_best_model_at_end")
    if evaluated != saved:
        raise UserError(f"the model is evaluated by {evaluated}, and saved by {saved}", location=location,
                        expected="--eval_strategy and --save_strategy the same")  # fmt: skip
    if evaluated == "steps":
        save_every, evaluate_every = arguments.save_steps, arguments.eval_steps
        ratio = save_every / evaluate_every
        if (save_every < 1) != (evaluate_every < 1) or not math.isclose(ratio, round(ratio), rel_tol=1e-9) or ratio < 1:
            raise UserError(f"--save_steps is {save_every}, --eval_steps {evaluate_every}", location=location,
                            expected="--save_steps a multiple of --eval_steps")  # fmt: skip


def check_tasks(arguments, names):
    """Raise a `UserError` if a task is named twice."""
    for name in names:
        listed = getattr(arguments, name) or []
        if len(set(listed)) < len(listed):
            raise UserError("a task is named twice", location=arguments.location(name))


def check_task_names(arguments, names=("tasks", "eval_tasks")):
    """Raise a `UserError` for names that are not text-to-text tasks."""
    from versatile.data import text_to_text

    for flag in names:
        for name in getattr(arguments, flag) or []:
            try:
                text_to_text.get_task(name)
            except UserError as error:
                raise UserError(error.found, location=arguments.location(flag), expected=error.expected,
                                remedy=error.remedy) from None  # fmt: skip


def check_method(arguments):
    """Raise a `UserError` for settings that do not fit the method or the tasks."""
    if arguments.method:
        arguments.train_adapters = arguments.method != FULL
        if arguments.train_adapters and not arguments.train_adapters_blocks:
            raise UserError(f"--method {arguments.method} trains what this leaves out",
                            location=arguments.location("train_adapters_blocks"),
                            remedy="leave out one of the two")  # fmt: skip
    check_settings(arguments, [arguments.method or t5_method(arguments)], PORT_SETTINGS, arguments.location)
    if arguments.unique_hyper_net and arguments.efficient_unique_hyper_net:
        raise UserError("excludes efficient_unique_hyper_net", location=arguments.location("unique_hyper_net"),
                        remedy="the one is HyperFormer, the other HyperFormer++")  # fmt: skip
    for name in ("adapters", "task_embeddings"):
        listed = getattr(arguments, name)
        if listed is not None and len(listed) != len(arguments.tasks):
            raise UserError(f"{len(listed)} names for {len(arguments.tasks)} tasks", location=arguments.location(name),
                            expected="one for each task")  # fmt: skip
    missing = [task for task in arguments.eval_tasks or [] if task not in arguments.tasks]
    if missing and arguments.train_adapters:
        raise UserError(f"{', '.join(missing)} is not trained, so it has no adapter",
                        expected=", ".join(arguments.tasks), location=arguments.location("eval_tasks"))  # fmt: skip


def t5_method(arguments):
    """One of `adapters.t5.METHODS`."""
    if arguments.method:
        published = {FULL: "finetune", **{name: alias for alias, name in ALIASES.items()}}
        return published.get(arguments.method, arguments.method)
    if not (arguments.train_adapters and arguments.train_adapters_blocks):
        return "finetune"
    if arguments.adapter_config_name == "adapter":
        return "adapters"
    if arguments.efficient_unique_hyper_net:
        return "hyperformer++"
    if arguments.unique_hyper_net:
        return "hyperformer"
    return "meta"


def warmup_steps(arguments, total_steps):
    """Number of warm-up steps, from --warmup_steps (a share of all steps if below 1) or --warmup_ratio."""
    if arguments.warmup_ratio is not None and not arguments.warmup_steps:
        return math.ceil(total_steps * arguments.warmup_ratio)
    steps = arguments.warmup_steps
    return int(steps) if steps >= 1 else math.ceil(total_steps * steps)
