"""Parsers of train_t5.py and pretrain_t5.py, with flags of the original (Karimi Mahabadi et al. 2021, on transformers
3.5.1), those of transformers' training arguments, and ours."""

import math
from argparse import ArgumentTypeError

from versatile.adapters.methods.registry import ALIASES, FULL
from versatile.adapters.schemas import PORT_METHODS, PUBLISHED_T5
from versatile.data.task_names import task_flag
from versatile.training import method_flags
from versatile.utils import flags, settings

METHODS = (FULL, *PUBLISHED_T5[1:], *ALIASES.values(), *PORT_METHODS)
# Settings of the methods that T5 shares with other backbones.
PORT_SETTINGS = method_flags.settings_of_methods(PORT_METHODS)

_PRECISION = "--fp16 and --bf16 are PyTorch's own mixed precision"
_ONE_DEVICE = "the models trained here fit on one device; use torchrun for several"
_DRAWN = "batches are drawn by the multi-task sampler"
_HUB = "--push_to_hub owner/name uploads the finished run, with the hub's own login (hf auth login)"
_NOT_AGAIN = "a run is resumed whole; to start from a trained model, name it as --model_name_or_path"
# {flag: why}: flags of the original and of transformers for features that are absent or work differently.
REFUSED = {
    "tpu_num_cores": "start one process per core with torch_xla's launcher, or torchrun",
    "tpu_metrics_debug": "torch_xla prints its metrics by itself when PT_XLA_DEBUG=1 is set",
    "debug": "torch and torch_xla are debugged by their own environment variables",
    **dict.fromkeys(["model_parallel", "deepspeed", "fsdp", "fsdp_config", "sharded_ddp"], _ONE_DEVICE),
    **dict.fromkeys(["fp16_backend", "half_precision_backend"], _PRECISION),
    **dict.fromkeys(["sortish_sampler", "group_by_length", "length_column_name", "train_sampling_strategy"], _DRAWN),
    **dict.fromkeys(["encoder_layerdrop", "decoder_layerdrop"], "T5 drops no layers"),
    **dict.fromkeys(["optimize_from_scratch", "optimize_from_scratch_with_loading_model"], _NOT_AGAIN),
    **dict.fromkeys(["hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "hub_always_push",
                     "hub_revision"], _HUB),
    **dict.fromkeys(["jit_mode_eval", "use_ipex"], "transformers has dropped it"),
    "past_index": "it has no meaning for T5",
    "logging_dir": "TensorBoard events are written into the run directory",
    "run_name": "a run is named by its --output_dir",
    "disable_tqdm": "the progress bar is shown in a terminal only",
    "dataloader_num_workers": "batches are made of rows in memory, there are no workers to count",
    "dataloader_drop_last": "every batch is full",
    "remove_unused_columns": "batches hold only the model's inputs",
    "label_names": "the labels are the tasks' own",
    "eval_accumulation_steps": "predictions are not gathered on the device",
    "auto_find_batch_size": "it would change the drawn batches; lower --per_device_train_batch_size by hand",
    "ignore_data_skip": "a resumed run is the run that was never stopped",
    "save_only_model": "the run could not be resumed",
    "save_safetensors": "models are always saved this way",
    "attention_dropout": "T5 has one dropout rate: --dropout",
    "generate_classifier_weights": "the original never read it",
    "hidden_dim": "the original never read it; see --task_hidden_dim",
    "generation_max_length": "an output is as long as its task's longest label; see --val_max_target_length",
    "generation_config": "decoding is greedy, or a beam search of --eval_beams",
    "prediction_loss_only": "use --predict_with_generate false",
}


# ---- types


count_or_all = flags.limited(flags.count_or_none, lambda value: value == -1 or value > 0,
                             "a whole number above 0, or -1 for all")  # fmt: skip
below_one = flags.limited(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")
one_or_more = flags.limited(float, lambda value: 1 <= value < math.inf, "a number, 1 or more")


def between(low, high):
    """Type: a number between two others."""
    return flags.limited(float, lambda value: low < value < high, f"a number between {low} and {high}")


def steps_or_share(text):
    """Type: a whole number of steps, or a number below 1 for a share of all steps."""
    value = flags.not_negative_rate(text)
    if value >= 1 and (value != int(value) or value > flags.LARGEST):
        raise ArgumentTypeError(f"{flags.shown(text)}: expected a whole number of steps, or a share below 1")
    return int(value) if value == int(value) else value


# ---- the parser


def build_parser(doc):
    """The parser of train_t5.py; `doc` is the script's docstring."""
    p = flags.build_parser(doc)
    _add_data(p)
    add_model(p)
    for name in ("freeze_model", "freeze_model_but_lm_head", "freeze_embeds", "freeze_encoder",
                 "freeze_model_but_task_embeddings"):  # fmt: skip
        what = name.removeprefix("freeze_").replace("_but_", ", but not the ").replace("_", " ")
        p.group("model").add_argument(f"--{name}", action="store_true", help=f"freeze the {what}")
    for name in ("unfreeze_lm_head", "unfreeze_layer_norms", "unfreeze_model"):
        what = name.removeprefix("unfreeze_").replace("_", " ")
        p.group("model").add_argument(f"--{name}", action="store_true", help=f"train the {what} after all")
    _add_adapters(p)
    _add_actions(p)
    add_training(p)
    settings.add(p, "sampling_temperature", type=flags.not_negative_rate, default=1.0, spellings=("temperature",),
                 help="a task is drawn in proportion to size^(1/temperature)")  # fmt: skip
    g = p.group("output and resuming")
    g.add_argument("--eval_output_dir", help="where val_results.json and test_results.json go (default: --output_dir)")
    settings.add(p, "push_to_hub")
    for name in ("print_num_parameters", "compute_memory", "compute_time"):
        g.add_argument(f"--{name}", action="store_true", help="no effect: always done")
    settings.refuse(p, REFUSED)
    return p


def _add_data(p):
    g = p.group("task and data")
    task_flag(g, "--tasks", "text_to_text", nargs="+", default=["mrpc"],
              help="tasks to train on; NAME=DATA is a task of your own, see data/own_tasks.py")
    task_flag(g, "--eval_tasks", "text_to_text", nargs="+", help="tasks to evaluate (default: --tasks)")
    settings.add(p, "data_dir", help="GLUE's official folders, or a folder of local files (default: the hub)")
    g.add_argument("--adapters", nargs="+", help="an adapter name for each of --tasks; equal names share one adapter")
    g.add_argument("--task_embeddings", nargs="+",
                   help="an embedding name for each of --tasks; equal names share one embedding")  # fmt: skip
    settings.add(p, "max_source_length", default=128)
    for name, text in (
        ("max_target_length", "maximum tokens of a training target"),
        ("val_max_target_length", "maximum tokens of a validation target, for its loss; outputs are as long as "
                                  "the task's longest answer"),
        ("test_max_target_length", "the same for test targets"),
    ):  # fmt: skip
        g.add_argument(f"--{name}", type=flags.positive, default=128, help=text)
    for name, split in (("n_train", "training"), ("n_val", "validation"), ("n_test", "test")):
        g.add_argument(f"--{name}", type=count_or_all, default=-1, help=f"{split} examples of each task; -1: all")
    g.add_argument("--split_validation_test", action="store_true",
                   help="make a separate validation split where the test split is hidden")  # fmt: skip
    g.add_argument("--ignore_pad_token_for_loss", action="store_true", default=True,
                   help="exclude padding of the targets from the loss")  # fmt: skip
    add_data_seed(p, "random seed of the splits and of the drawn batches")


def add_data_seed(p, text):
    """--data_seed, published as --seed_data."""
    p.group("task and data").add_argument("--data_seed", "--seed_data", type=flags.seed, default=42, help=text)


def add_model(p):
    """Add the flags for the model that train_t5.py and pretrain_t5.py start from."""
    settings.add(p, "model_checkpoint", dest="model_name_or_path",
                 help="T5, v1.1, Flan-T5 or mT5: a hub name, a directory, or tiny-t5")  # fmt: skip
    g = p.group("model")
    g.add_argument("--from_scratch", "--not_load_t5_checkpoint", action="store_true",
                   help="random weights in the shape of --config_name, or of --model_name_or_path")  # fmt: skip
    g.add_argument("--config_name",
                   help="shape: a size (t5-mini, t5-small, …), a directory, a config.json, a hub name")  # fmt: skip
    g.add_argument("--config_overrides",
                   help="changes to the shape, with --from_scratch: d_model=256,num_layers=4")  # fmt: skip
    settings.add(p, "tokenizer_name", help="a directory, a spiece.model, a tokenizer.json, a hub name")
    settings.add(p, "cache_dir")
    g.add_argument("--dropout", type=below_one, help="dropout rate (default: the model's)")


def _add_adapters(p):
    g = p.group("adapters")
    g.add_argument("--method", choices=METHODS, help="adaptation method; meta is the published name of "
                   "hyperformer-per-layer (default: determined by the flags below)")  # fmt: skip
    method_flags.add_setting_flags(g, PORT_SETTINGS)
    g.add_argument("--train_adapters", action="store_true", help="train adapters instead of the model")
    g.add_argument("--adapter_config_name", default="meta-adapter", choices=["adapter", "meta-adapter"],
                   help="adapter: one per task; meta-adapter: generated by a hypernetwork")  # fmt: skip
    g.add_argument("--non_linearity", default="swish", choices=["swish", "gelu_new", "relu"],
                   help="activation of the adapters")  # fmt: skip
    for name, default, text in (
        ("reduction_factor", 16, "an adapter is d_model // reduction_factor wide"),
        ("task_embedding_dim", None, "size of a task embedding (default: that of given ones, else 512)"),
        ("projected_task_embedding_dim", 64, "size of a projected embedding"),
        ("task_hidden_dim", 128, "hidden size of the projections"),
    ):
        g.add_argument(f"--{name}", type=flags.positive, default=default, help=text)
    for name, default, text in (
        ("add_layer_norm_before_adapter", False, "layer norm before the adapter"),
        ("add_layer_norm_after_adapter", True, "layer norm after the adapter"),
        ("conditional_layer_norm", False, "the adapters' layer norms are generated, too; with HyperFormer and "
                                          "HyperFormer++ they always are, true or false"),
        ("unique_hyper_net", False, "HyperFormer: one hypernetwork per stack, a generator for each site"),
        ("efficient_unique_hyper_net", False, "HyperFormer++: one hypernetwork and one generator per stack"),
        ("unique_hyper_net_layer_norm", True, "layer norm on the hypernetwork's embedding"),
        ("parametric_task_embedding", False, "given task embeddings are trained, too"),
        ("train_task_embeddings", False, "the task embeddings are projected first"),
        ("train_adapters_blocks", True, "false: no adapters, only unfrozen parameters are trained"),
    ):  # fmt: skip
        g.add_argument(f"--{name}", action="store_true", default=default, help=text)
    g.add_argument("--task_embedding_dir",
                   help="given task embeddings, <task>.npy; see compute_task_embeddings.py")  # fmt: skip


def _add_actions(p):
    g = p.group("what to do")
    g.add_argument("--do_train", action="store_true", help="train")
    g.add_argument("--do_eval", action="store_true", help="evaluate on the validation splits: at the end, "
                                                          "and during training as --eval_strategy says")  # fmt: skip
    g.add_argument("--do_test", "--do_predict", action="store_true", help="evaluate the best model on the test splits")
    g.add_argument("--predict_with_generate", action="store_true", default=True,
                   help="decode outputs in evaluation; otherwise only the loss is computed")  # fmt: skip
    settings.add(p, "num_beams", dest="eval_beams", group=g.title, default=None, spellings=("generation_num_beams",),
                 help="beam size in evaluation (default: the task's own)")  # fmt: skip


def add_training(p):
    """Add the flags of both scripts that come from transformers' training arguments and from the original."""
    g = p.group("training")
    settings.add(p, "lr", default=5e-5)
    settings.add(p, "n_epochs", type=flags.epochs, default=3.0, help="number of epochs; may be a fraction")
    settings.add(p, "max_steps", type=count_or_all, default=-1, help="number of steps, overriding the epochs; -1: none")
    settings.add(p, "train_batch_size", "valid_batch_size", default=8)
    settings.add(p, "gradient_accumulation_steps", "lr_scheduler_type", "lr_scheduler_kwargs")
    settings.add(p, "warmup_steps", type=steps_or_share, help="number of warm-up steps; below 1: a share of all")
    settings.add(p, "warmup_ratio")
    settings.add(p, "weight_decay")
    settings.add(p, "adam_eps", default=1e-8)
    for name, default in (("adam_beta1", 0.9), ("adam_beta2", 0.999)):
        g.add_argument(f"--{name}", type=below_one, default=default, help="coefficient of Adam's moving average")
    settings.add(p, "max_norm", type=flags.not_negative_rate, help="maximum gradient norm for clipping; 0: no clipping")
    g.add_argument("--adafactor", action="store_true", help="Adafactor instead of AdamW")
    g.add_argument("--optim", default="adamw_torch_fused", help="name of an optimizer of transformers")
    g.add_argument("--optim_args", help="its arguments: name=value,name=value")
    g.add_argument("--label_smoothing", "--label_smoothing_factor", type=below_one, default=0.0,
                   help="probability that smoothed targets spread uniformly over all tokens")  # fmt: skip
    g.add_argument("--loss_reduction", choices=["sum", "mean"],
                   help="sum, as published, or mean over a batch's target tokens (default: sum with "
                        "--label_smoothing, mean without, as in the original)")  # fmt: skip
    settings.add(p, "seed")
    g.add_argument("--ddp_find_unused_parameters", action="store_true", default=None,
                   help="torch's, for several processes (default: if tasks have their own parameters)")  # fmt: skip
    settings.add(p, "gradient_checkpointing", "profile")
    settings.add_precision(p)
    settings.add(p, "local_rank", "fp16_opt_level")
    _add_evaluation(p)
    settings.add(p, "logging_steps", type=steps_or_share, default=500)
    p.group("logging").add_argument("--logging_strategy", choices=["no", "epoch", "steps"], default="steps",
                                    help="when a point of the curve is logged")  # fmt: skip
    settings.add(p, "logging_first_step", "report_to")
    settings.add(p, "output_dir", help="run directory")
    settings.add(p, "overwrite_output_dir", "resume")
    g = p.group("output and resuming")
    g.add_argument("--resume_from_checkpoint", metavar="RUN", help="transformers' name for --resume")
    g.add_argument("--save_strategy", choices=["no", "epoch", "steps"], default="steps",
                   help="when a checkpoint is written; one is always written at the end of an epoch")  # fmt: skip
    settings.add(p, "save_steps", type=steps_or_share, default=500, help="steps between two checkpoints")
    settings.add(p, "keep_checkpoints", default=None, help="number of newest checkpoints to keep (default: all)")


def _add_evaluation(p):
    g = p.group("choosing the best model")
    g.add_argument("--eval_strategy", "--evaluation_strategy", choices=["no", "epoch", "steps"], default="no",
                   help="when the model is evaluated during training")  # fmt: skip
    g.add_argument("--evaluate_during_training", action="store_true", default=None,
                   help="the original's name for --eval_strategy steps")  # fmt: skip
    g.add_argument("--eval_steps", type=steps_or_share, help="steps between two evaluations (default: --logging_steps)")
    settings.add(p, "eval_before_start", group=g.title)
    g.add_argument("--load_best_model_at_end", action="store_true",
                   help="keep the best model by --metric_for_best_model instead of the last")  # fmt: skip
    g.add_argument("--metric_for_best_model", help="metric that selects the best model (default: loss)")
    g.add_argument("--greater_is_better", action="store_true", default=None,
                   help="whether higher values of it are better (default: unless it is a loss)")  # fmt: skip


# ---- pretrain_t5.py


def build_pretraining_parser(doc):
    """The parser of pretrain_t5.py; `doc` is the script's docstring."""
    p = flags.build_parser(doc)
    g = p.group("task and data")
    g.add_argument("--train_files", nargs="+", help="plain text files with one text per line, also .gz")
    g.add_argument("--validation_files", nargs="+",
                   help="the same for validation (default: a share of the training texts)")  # fmt: skip
    g.add_argument("--validation_share", type=between(0, 0.5), default=0.01,
                   help="share of the training texts to validate on, without --validation_files")  # fmt: skip
    task_flag(g, "--tasks", "text_to_text", nargs="+", help="tasks whose training inputs are read as text; see "
              "train_t5.py")  # fmt: skip
    settings.add(p, "data_dir", help="data of --tasks: GLUE's official folders, or a folder of local files")
    g.add_argument("--n_train", type=count_or_all, default=-1, help="texts of each task; -1: all")
    settings.add(p, "max_source_length", default=512,
                 help="tokens of an input, including sentinels and end token")  # fmt: skip
    g.add_argument("--noise_density", type=between(0, 0.95), default=0.15,
                   help="share of tokens that are noise")  # fmt: skip
    g.add_argument("--mean_noise_span_length", type=one_or_more, default=3.0, help="mean length of a noise span")
    add_data_seed(p, "random seed of the order, the corruption and the validation share")
    add_model(p)
    add_training(p)
    settings.refuse(p, {name: reason for name, reason in REFUSED.items() if name != "prediction_loss_only"})
    settings.refuse(p, dict.fromkeys(
        ["freeze_model", "freeze_model_but_lm_head", "freeze_embeds", "freeze_encoder", "unfreeze_model",
         "freeze_model_but_task_embeddings", "unfreeze_lm_head", "unfreeze_layer_norms"],
        "it belongs to train_t5.py: here the whole model is trained"))  # fmt: skip
    settings.refuse(p, {"push_to_hub": "the run directory is a plain folder: upload it with the hub's own tool"})
    return p
