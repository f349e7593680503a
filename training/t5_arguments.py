"""Arguments of train_t5.py: the original's (Karimi Mahabadi et al. 2021, on transformers 3.5.1) and transformers' own.

`parse` reads a json config and the flags that override it, or the run.json of a run that is resumed.
"""
# ruff: noqa: RUF009 - `arg` makes a dataclass field.

import dataclasses
import json
import os
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

from transformers import Seq2SeqTrainingArguments as HfTrainingArguments
from versatile.adapters.schemas import PORT_METHODS, PUBLISHED_T5
from versatile.data.own_tasks import prepare_own_tasks
from versatile.data.task import canonical_name
from versatile.data.task_names import separate_sources
from versatile.training import method_flags
from versatile.utils import config_flags, schema, stored_flags
from versatile.utils.config_flags import arg
from versatile.utils.errors import UserError, first_line
from versatile.utils.screen import shell_words

# The original's names of the schedulers -> transformers'.
SCHEDULERS = {
    "linear": "linear", "cosine": "cosine", "cosine_w_restarts": "cosine_with_restarts", "polynomial": "polynomial",
    "constant": "constant", "constant_w_warmup": "constant_with_warmup",
}  # fmt: skip


@dataclass
class ModelArguments:
    """Which model, and what of it is trained."""

    _argument_group_name = "model"

    model_name_or_path: str | None = arg(None, "T5, v1.1, Flan-T5 or mT5: a hub name, a directory, or tiny-t5")
    from_scratch: bool = arg(False, "random weights in the shape of --config_name, or of --model_name_or_path")
    not_load_t5_checkpoint: bool = arg(False, "the original's name of --from_scratch")
    config_name: str | None = arg(None, "shape: a size (t5-mini, t5-small, …), a directory, a config.json, a hub name")
    config_overrides: str | None = arg(None, "changes of the shape, with --from_scratch: d_model=256,num_layers=4")
    tokenizer_name: str | None = arg(None, "tokenizer: a directory, a spiece.model, a tokenizer.json, a hub name")
    cache_dir: str | None = arg(None, "where models from a hub are kept")
    dropout: float | None = arg(None, "dropout rate (default: the model's)")
    freeze_model: bool = arg(False, "freeze the whole model")
    freeze_model_but_lm_head: bool = arg(False, "freeze the whole model but its output layer")
    freeze_embeds: bool = arg(False, "freeze the token embeddings")
    freeze_encoder: bool = arg(False, "freeze the encoder")
    freeze_model_but_task_embeddings: bool = arg(False, "freeze the whole model but the task embeddings")
    unfreeze_lm_head: bool = arg(False, "train the output layer after all")
    unfreeze_layer_norms: bool = arg(False, "train every layer norm after all")
    unfreeze_model: bool = arg(False, "train the whole model after all")


@dataclass
class DataTrainingArguments:
    """Which tasks, and how much of them."""

    _argument_group_name = "tasks and data"

    tasks: list[str] = field(default_factory=lambda: ["mrpc"], metadata=dict(
        help="tasks to train on; NAME=DATA is one of your own, see data/own_tasks.py"))  # fmt: skip
    eval_tasks: list[str] | None = arg(None, "tasks to evaluate (default: --tasks)")
    task_definitions: str | None = arg(None, "kept in run.json: what defines the tasks of your own (--tasks NAME=DATA)")
    data_dir: str | None = arg(None, "GLUE's official folders, or a folder of local files (default: the hub)")
    adapters: list[str] | None = arg(None, "an adapter's name for each of --tasks; equal names share one")
    task_embeddings: list[str] | None = arg(None, "an embedding's name for each of --tasks; equal names share one")
    max_source_length: int = arg(128, "tokens of an input at the most")
    max_target_length: int = arg(128, "tokens of a training target at the most")
    val_max_target_length: int = arg(128, "tokens of a validation target at the most, for its loss; outputs are as "
                                          "long as the task's longest answer")  # fmt: skip
    test_max_target_length: int = arg(128, "the same of test targets")
    n_train: int = arg(-1, "training examples of each task; -1: all")
    n_val: int = arg(-1, "validation examples of each task; -1: all")
    n_test: int = arg(-1, "test examples of each task; -1: all")
    eval_beams: int | None = arg(None, "width of the beam in evaluation (default: the task's own)")
    ignore_pad_token_for_loss: bool = arg(True, "padding of the targets does not count in the loss")


PORT_SETTINGS = method_flags.settings_of(PORT_METHODS)
MethodArguments = dataclasses.make_dataclass(
    "MethodArguments",
    [
        (
            name,
            type(default) | None,
            arg(None, f"--method {method}: {text} (default {method_flags.setting_text(default)})"),
        )
        for name, (method, _, default, text) in PORT_SETTINGS.items()
    ],
)


@dataclass
class AdapterArguments(MethodArguments):
    """What is added to the model; see `adapters.t5.T5Settings`."""

    _argument_group_name = "adapters"

    method: str | None = arg(None, "how the T5 is adapted (default: as the flags below say)",
                             choices=["full", *PUBLISHED_T5[1:], *PORT_METHODS])  # fmt: skip
    adapter_config_name: str = arg("meta-adapter", "adapter: one a task; meta-adapter: generated by a hypernetwork",
                                   choices=["adapter", "meta-adapter"])  # fmt: skip
    reduction_factor: int = arg(16, "an adapter is d_model // reduction_factor wide")
    non_linearity: str = arg("swish", "activation of the adapters", choices=["swish", "gelu_new", "relu"])
    add_layer_norm_before_adapter: bool = arg(False, "layer norm before the adapter")
    add_layer_norm_after_adapter: bool = arg(True, "layer norm after the adapter")
    conditional_layer_norm: bool = arg(False, "the adapters' layer norms are generated, too; with HyperFormer and "
                                            "HyperFormer++ they always are, true or false")  # fmt: skip
    unique_hyper_net: bool = arg(False, "HyperFormer: a hypernetwork a stack, a generator for each place")
    efficient_unique_hyper_net: bool = arg(False, "HyperFormer++: one hypernetwork and one generator a stack")
    unique_hyper_net_layer_norm: bool = arg(True, "layer norm on the hypernetwork's embedding")
    task_embedding_dim: int | None = arg(None, "size of a task embedding (default: that of given ones, else 64)")
    task_embedding_dir: str | None = arg(None, "given task embeddings, <task>.npy; see compute_task_embeddings.py")
    parametric_task_embedding: bool = arg(False, "given task embeddings are trained, too")
    train_task_embeddings: bool = arg(False, "the task embeddings are projected first")
    projected_task_embedding_dim: int = arg(64, "size of a projected embedding")
    task_hidden_dim: int = arg(128, "hidden size of the projections")
    train_adapters_blocks: bool = arg(True, "with false no adapters: only what is unfrozen is trained")


@dataclass
class Seq2SeqTrainingArguments(HfTrainingArguments):
    """transformers' training arguments, and the original's own."""

    _argument_group_name = "training (transformers' own arguments and a few more)"

    output_dir: str | None = arg(None, "run directory")
    resume: str | None = arg(None, "go on with this run, exactly; no other flag is needed")
    overwrite_output_dir: bool = arg(False, "start anew where a run stands already: it is removed")
    fp32: bool = arg(False, "everything in float32 (default: bfloat16 where the hardware has it)")
    loss_reduction: str | None = arg(None, "sum: over a batch's target tokens, as published; mean (default: sum with "
                                           "--label_smoothing, mean without, as the original)",
                                     choices=["sum", "mean"])  # fmt: skip
    label_smoothing: float = arg(0.0, "probability that smoothed targets give to all tokens alike")
    adafactor: bool = arg(False, "Adafactor instead of AdamW")
    lr_scheduler: str | None = arg(None, "learning rate schedule (default: linear)", choices=list(SCHEDULERS))
    predict_with_generate: bool = arg(True, "decode in evaluation; without it only the loss is computed")
    # A loss that is not a number ends a run here; transformers would log the mean of those before it.
    logging_nan_inf_filter: bool = arg(False, "transformers' own: log over losses that are not a number")
    report_to: str | None = arg("none", "tensorboard or none: TensorBoard events are written anyway")
    # Batches hold what the model takes, and nothing else.
    remove_unused_columns: bool = arg(False, "transformers' own")

    def __post_init__(self):
        if self.lr_scheduler:
            self.lr_scheduler_type = SCHEDULERS[self.lr_scheduler]
        if self.adafactor:
            # transformers builds it as the original did: the rate given, without scaling by the parameters.
            self.optim = "adafactor"
        if self.loss_reduction is None:
            self.loss_reduction = "sum" if self.label_smoothing else "mean"
        reports = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
        if others := set(reports) - {"none", "tensorboard"}:
            raise ValueError(f"--report_to {' '.join(sorted(others))}: TensorBoard events are written, nothing else")
        self.choose_precision()
        super().__post_init__()
        # One process drives one device; torchrun starts one for each GPU.
        self._n_gpu = min(self._n_gpu, 1)

    def choose_precision(self):
        """bf16 where the hardware has it, as in the other scripts, unless something else was asked for."""
        import torch
        from transformers.utils import is_torch_xla_available
        from versatile.utils.devices import has_bf16

        if self.use_cpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if sum([self.fp16, self.bf16, self.fp32]) > 1:
            raise ValueError("only one of --fp16, --bf16 and --fp32 can be had")
        kind = "xla" if is_torch_xla_available() else "cuda" if torch.cuda.is_available() else "cpu"
        # transformers takes the CPU for a mistake unless it is told.
        self.use_cpu = self.use_cpu or kind == "cpu"
        device = torch.device("cpu" if self.use_cpu else kind)
        if self.fp16 and device.type != "cuda":
            raise ValueError("--fp16 needs a GPU; use --bf16 or --fp32")
        if not (self.fp16 or self.fp32):
            self.bf16 = self.bf16 or has_bf16(device)
        # Written down, so that a run resumed on other hardware goes on as it was.
        self.fp32 = not (self.fp16 or self.bf16)


@dataclass
class MultiTaskTrainingArguments(Seq2SeqTrainingArguments):
    """What only the training of several tasks has."""

    _argument_group_name = Seq2SeqTrainingArguments._argument_group_name

    train_adapters: bool = arg(False, "train adapters beside the model, not the model")
    temperature: float = arg(1.0, "a task is drawn in proportion to size^(1/temperature)")
    data_seed: int = arg(42, "seed of the splits and of the drawn batches")
    do_test: bool = arg(False, "evaluate the best model on the test splits")
    eval_output_dir: str | None = arg(None, "where val_results.json and test_results.json go (default: --output_dir)")
    split_validation_test: bool = arg(False, "make a validation split of its own where the test split is hidden")
    print_num_parameters: bool = arg(False, "always done")
    compute_memory: bool = arg(False, "always done")
    compute_time: bool = arg(False, "always done")
    push_to_hub: str | None = arg(None, "upload the finished run, its README.md included, as this model of the hub")


_DRAWN = "batches are drawn by the multi-task sampler"
_NOT_HERE = "the toolkit's own loop trains, which has no such thing"
# Arguments of transformers' Trainer that would have no effect.
_OF_ITS_TRAINER = (
    "accelerator_config", "average_tokens_across_devices", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval",
    "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_static_graph", "enable_jit_checkpoint", "eval_delay",
    "include_for_metrics", "label_names", "liger_kernel_config", "neftune_noise_alpha", "parallelism_config",
    "restore_callback_states_from_checkpoint", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    "torch_empty_cache_steps", "use_liger_kernel",
)  # fmt: skip
_OF_THE_HUB = ("hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision")
_NOT_AGAIN = "a run is resumed whole; to start from a trained model, name it as --model_name_or_path"
NAMES = config_flags.Names(
    classes=(ModelArguments, DataTrainingArguments, AdapterArguments, MultiTaskTrainingArguments),
    script="train_t5.py",
    renamed=config_flags.RENAMED | {
        "label_smoothing_factor": "label_smoothing", "generation_num_beams": "eval_beams", "do_predict": "do_test",
        "seed_data": "data_seed",
    },
    refused=config_flags.REFUSED | dict.fromkeys(_OF_ITS_TRAINER, _NOT_HERE) | {
        "sortish_sampler": _DRAWN,
        "group_by_length": _DRAWN,
        "length_column_name": _DRAWN,
        "train_sampling_strategy": _DRAWN,
        "encoder_layerdrop": "T5 drops no layers",
        "decoder_layerdrop": "T5 drops no layers",
        "attention_dropout": "T5 has one dropout rate: --dropout",
        "generate_classifier_weights": "the original never read it",
        "hidden_dim": "the original never read it; see --task_hidden_dim",
        "optimize_from_scratch": _NOT_AGAIN,
        "optimize_from_scratch_with_loading_model": _NOT_AGAIN,
        "generation_max_length": "an output is as long as its task's longest label; see --val_max_target_length",
        **dict.fromkeys(_OF_THE_HUB, "the model's name says it all: --push_to_hub owner/name"),
        "generation_config": "decoding is greedy, or a beam search of --eval_beams",
        "prediction_loss_only": "say --predict_with_generate false",
    },
)  # fmt: skip
HF_NAMES = {f.name for f in dataclasses.fields(HfTrainingArguments)}

# These change where a run's files lie or how they are kept, never what comes out.
FREE_WHEN_RESUMING = {
    "resume", "resume_from_checkpoint", "output_dir", "overwrite_output_dir", "save_steps", "save_total_limit",
    "cache_dir", "per_device_eval_batch_size", "eval_output_dir", "do_test", "disable_tqdm", "dataloader_num_workers",
    "report_to", "config", "task_definitions", "push_to_hub",
    # Where the data lie; that they are the same is known by their content.
    "data_dir", "train_files", "validation_files",
}  # fmt: skip


@dataclass
class Arguments:
    """Everything that was asked for.

    Attributes:
        model, data, adapter, training: the four dataclasses.
        given: {name: value} of config and flags together, under today's names.
        config: the json file, or None.
        typed: names that were given as flags.
    """

    model: ModelArguments
    data: DataTrainingArguments
    adapter: AdapterArguments
    training: MultiTaskTrainingArguments
    given: dict
    config: str | None = None
    typed: frozenset = frozenset()

    def flags(self):
        """{name: value} for run.json: all arguments that are not transformers', and what was given of those."""
        parts = (self.model, self.data, self.adapter, self.training)
        own = {f.name: getattr(p, f.name) for p in parts for f in dataclasses.fields(p) if f.name not in HF_NAMES}
        kept = ("output_dir", "data_seed", "seed", "bf16", "fp16", "report_to", "predict_with_generate")
        fixed = {name: getattr(self.training, name) for name in kept}
        return written({**self.given, **own, **fixed, "config": self.config})

    def location(self, name):
        """Where an argument was given, for errors."""
        in_config = self.config and name in self.given and name not in self.typed
        return f"{self.config}: {name}" if in_config else f"--{name}"


def parse(argv=None, doc=None):
    """`Arguments` of config and flags; the run.json of a run that is resumed takes the config's place.

    Raises:
        UserError: an unknown, refused or unfit name or value.
    """
    names = dataclasses.replace(NAMES, doc=doc)
    given, config, typed = config_flags.given(names, argv)
    sources = take_sources(given)
    if directory := resumed(given):
        given = stored(directory, given, names, "train_t5.py")
        config = given.pop("config", None) or config
    else:
        follow(given, typed)
    arguments = Arguments(*config_flags.build(names, given, config), given, config, typed)
    define_own_tasks(arguments, sources)
    check(arguments)
    return arguments


def take_sources(given):
    """{name: source} of NAME=SOURCE among the tasks in `given`, whose names stay there."""
    sources = {}
    for flag in ("tasks", "eval_tasks"):
        try:
            names, own = separate_sources(given.get(flag) or [])
        except ValueError as error:
            raise UserError(str(error), location=f"--{flag}",
                            expected="NAME, or NAME=DATA for a task of your own") from error  # fmt: skip
        if names:
            given[flag] = [name if name in own else canonical_name(name, "text_to_text") for name in names]
        sources |= own
    return sources


def define_own_tasks(arguments, sources):
    """Register tasks of the user's own, and write down what they are."""
    data = arguments.data
    kept = definitions(data.task_definitions, arguments.location("task_definitions")) or None
    own = Namespace(own_tasks=sources, task_definitions=kept)
    prepare_own_tasks(own, "--tasks")
    data.task_definitions = json.dumps(own.task_definitions) if own.task_definitions else None


# What goes with another argument, and is not taken from a config where that one is typed.
FOLLOWS = {"tokenizer_name": "model_name_or_path", "eval_tasks": "tasks"}


def follow(given, typed):
    """A model that is typed brings its own tokenizer, tasks that are typed are those that are evaluated."""
    for name, leader in FOLLOWS.items():
        if leader in typed and name not in typed and given[leader]:
            given.pop(name, None)


PATHS = ("data_dir", "task_embedding_dir", "train_files", "validation_files")


def written(flags):
    """Flags as run.json holds them: paths of data hold from any directory, whole numbers are written so."""
    found = {**flags, "resume": None, "resume_from_checkpoint": None}
    for name in PATHS:
        if value := found.get(name):
            found[name] = [_absolute(v) for v in value] if isinstance(value, list) else _absolute(value)
    for name, value in found.items():
        if isinstance(value, float) and value.is_integer() and name.endswith("_steps"):
            # transformers takes shares, too, and reads every number as one that may be.
            found[name] = int(value)
    return found


def _absolute(path):
    return str(Path(path).resolve())


def resumed(given):
    """The run directory to go on with: --resume, or transformers' --resume_from_checkpoint; None for a new run."""
    asked = str(given.get("resume_from_checkpoint") or "")
    if given.get("resume") or asked.lower() in ("", "false"):
        return given.get("resume")
    if asked.lower() == "true":
        return given.get("output_dir")
    path = Path(asked)
    if path.name.startswith("checkpoint-"):
        raise UserError("a run goes on after its newest whole checkpoint", location=f"--resume_from_checkpoint {asked}",
                        remedy=shell_words("--resume", path.parent))  # fmt: skip
    return asked


def stored(directory, given, names, script):
    """What a run was started with, and of what was typed now what may change.

    Raises:
        UserError: no run there, another script's run, or another value of something that matters.
    """
    from versatile.training.experiment import refuse_foreign
    from versatile.training.runs import Run, check_flags

    _, record = Run.open(directory, script=script)
    refuse_foreign(record, script, directory)
    kept = restored(record["flags"], Path(directory) / "run.json", names)
    given = {**given, **{k: v for k, v in written(given).items() if k in PATHS}}
    check_flags(given, written(kept), FREE_WHEN_RESUMING, f"--resume {directory}")
    free = {k: v for k, v in given.items() if k in FREE_WHEN_RESUMING}
    here = dict(output_dir=str(directory), resume=str(directory), overwrite_output_dir=False)
    return {**kept, **free, **here, "resume_from_checkpoint": None}


def definitions(text, location):
    """The definitions of the user's own tasks in --task_definitions, [] where there are none."""
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError) as error:
        raise UserError(f"no json: {first_line(error)}", location=location, expected="what train_t5.py wrote",
                        remedy=stored_flags.REMEDY) from error  # fmt: skip
    return schema.validate(found, stored_flags.DERIVED["task_definitions"], location, stored_flags.REMEDY) or []


def restored(flags, location, names=NAMES):
    """{name: value} of the flags of a run.json, each checked as on the command line; `config`, too.

    Args:
        location: the file.
    """
    # As `TrainingArguments` leaves "none".
    known = {k: v for k, v in flags.items() if k in names.fields() and not (k == "report_to" and v == [])}
    found = config_flags.restored(names, known, location)
    if config := flags.get("config"):
        found["config"] = schema.validate(config, stored_flags.TEXT, f"{location}: flags.config", stored_flags.REMEDY)
    return found


def check(arguments):
    """A `UserError` for values that do not fit each other, or that nothing can be done with."""
    model, data, adapter, training = arguments.model, arguments.data, arguments.adapter, arguments.training
    where = arguments.config or "flags"
    for name in ("tasks", "eval_tasks"):
        check_tasks(getattr(data, name), arguments.location(name))
    if not (training.do_train or training.do_eval or training.do_test):
        raise UserError("nothing to do", location=where, expected="--do_train, --do_eval or --do_test")
    if not training.output_dir:
        raise UserError("no run directory", location=where, expected="--output_dir")
    model.from_scratch = model.from_scratch or model.not_load_t5_checkpoint
    if not model.model_name_or_path and not (model.from_scratch and model.config_name):
        raise UserError(
            "no model",
            location=where,
            expected="--model_name_or_path, or --from_scratch with --config_name and --tokenizer_name",
        )
    check_numbers(arguments, (data, adapter, training, model))
    if adapter.method:
        training.train_adapters = adapter.method != "full"
    for name, (method, *_) in PORT_SETTINGS.items():
        if getattr(adapter, name) is not None and method != adapter.method:
            raise UserError("has no effect without that method", location=arguments.location(name),
                            expected=f"--method {method}", remedy="leave it out, or choose that")  # fmt: skip
    if adapter.unique_hyper_net and adapter.efficient_unique_hyper_net:
        raise UserError("excludes efficient_unique_hyper_net", location=arguments.location("unique_hyper_net"),
                        remedy="the one is HyperFormer, the other HyperFormer++")  # fmt: skip
    for name in ("adapters", "task_embeddings"):
        listed = getattr(data, name)
        if listed is not None and len(listed) != len(data.tasks):
            raise UserError(f"{len(listed)} names for {len(data.tasks)} tasks", location=arguments.location(name),
                            expected="one for each of tasks")  # fmt: skip
    for name in ("tasks", "eval_tasks"):
        if len(set(getattr(data, name) or [])) < len(getattr(data, name) or []):
            raise UserError("a task is named twice", location=arguments.location(name))
    missing = [t for t in data.eval_tasks or [] if t not in data.tasks]
    if missing and training.train_adapters:
        raise UserError(f"{', '.join(missing)} is not trained, so it has no adapter", expected=", ".join(data.tasks),
                        location=arguments.location("eval_tasks"))  # fmt: skip


def check_tasks(tasks, location):
    """A `UserError` for names that are no text-to-text task's."""
    from versatile.data import text_to_text

    for name in tasks or []:
        try:
            text_to_text.get(name)
        except UserError as error:
            raise UserError(error.found, location=location, expected=error.expected, remedy=error.remedy) from None


POSITIVE = ("reduction_factor", "max_source_length", "max_target_length", "val_max_target_length",
            "test_max_target_length", "task_hidden_dim", "projected_task_embedding_dim", "task_embedding_dim",
            "eval_beams", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "learning_rate", "num_train_epochs", "save_total_limit", "adam_epsilon")  # fmt: skip


def check_numbers(arguments, parts):
    """A `UserError` for numbers out of their range."""

    def demand(name, fits, expected):
        for part in parts:
            value = getattr(part, name, None)
            if value is not None and not fits(value):
                raise UserError(f"is {value}", location=arguments.location(name), expected=expected)

    for name in POSITIVE:
        demand(name, lambda v: v > 0, "above 0")
    for name in ("n_train", "n_val", "n_test"):
        demand(name, lambda v: v > 0 or v == -1, "above 0, or -1 for all")
    for name in ("label_smoothing", "dropout"):
        demand(name, lambda v: 0 <= v < 1, "from 0 to below 1")
    for name in ("temperature", "warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers", "eval_steps",
                 "save_steps", "logging_steps", "eval_delay", "seed", "data_seed"):  # fmt: skip
        demand(name, lambda v: v >= 0, "0 or more")
    for name in ("adam_beta1", "adam_beta2"):
        demand(name, lambda v: 0 <= v < 1, "from 0 to below 1")
    demand("max_steps", lambda v: v > 0 or v == -1, "above 0, or -1 for all epochs")
