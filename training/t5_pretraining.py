"""From the arguments of pretrain_t5.py to a pretrained T5."""
# ruff: noqa: RUF009 - `arg` makes a dataclass field.

import dataclasses
import hashlib
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import numpy as np
from versatile.adapters import t5_loading as t5_models
from versatile.data import span_corruption
from versatile.data.files import text_lines
from versatile.data.flat_lists import FlatLists
from versatile.data.text_to_text_batches import Collator, Rows, SampledBatches
from versatile.training import t5_arguments, t5_evaluation, t5_setup
from versatile.training.experiment import resume_command, say
from versatile.training.runs import ModelFiles, Run, record
from versatile.utils import config_flags, plots
from versatile.utils.config_flags import arg
from versatile.utils.devices import precision
from versatile.utils.errors import UserError
from versatile.utils.screen import shell_command


@dataclass
class TextArguments:
    """What is read."""

    _argument_group_name = "text"

    train_files: list[str] | None = arg(None, "plain text, one text a line, .gz too")
    validation_files: list[str] | None = arg(None, "the same for validation (default: a share of the training texts)")
    validation_share: float = arg(0.01, "of the training texts, where no --validation_files are given")
    tasks: list[str] | None = arg(None, "tasks whose training inputs are read as text; see train_t5.py")
    data_dir: str | None = arg(None, "of --tasks: GLUE's official folders, or a folder of local files")
    n_train: int = arg(-1, "texts of each task; -1: all")
    max_source_length: int = arg(512, "tokens of an input, its sentinels and end token counted")
    noise_density: float = arg(0.15, "share of tokens that are noise")
    mean_noise_span_length: float = arg(3.0, "mean length of a span of noise")


@dataclass
class PretrainingArguments(t5_arguments.Seq2SeqTrainingArguments):
    """transformers' training arguments; what is generated nowhere is left out."""

    data_seed: int = arg(42, "seed of the order, the corruption and the share for validation")


_TASKS = "it belongs to train_t5.py"
NAMES = config_flags.Names(
    classes=(t5_arguments.ModelArguments, TextArguments, PretrainingArguments),
    script="pretrain_t5.py",
    renamed=config_flags.RENAMED | {"label_smoothing_factor": "label_smoothing"},
    refused={k: v for k, v in t5_arguments.NAMES.refused.items() if k != "prediction_loss_only"}
    | {"push_to_hub": "the run directory is a plain folder: upload it with the hub's own tool"}
    | dict.fromkeys(
        ["freeze_model", "freeze_model_but_lm_head", "freeze_embeds", "freeze_encoder", "unfreeze_model",
         "freeze_model_but_task_embeddings", "unfreeze_lm_head", "unfreeze_layer_norms"], _TASKS),
)  # fmt: skip


@dataclass
class Arguments:
    """What was asked for: model, text, training; see `t5_arguments.Arguments`."""

    model: t5_arguments.ModelArguments
    text: TextArguments
    training: PretrainingArguments
    given: dict
    config: str | None = None
    typed: frozenset = frozenset()

    location = t5_arguments.Arguments.location

    def flags(self):
        """{name: value} for run.json."""
        parts = (self.model, self.text, self.training)
        own = {f.name: getattr(p, f.name) for p in parts for f in dataclasses.fields(p)
               if f.name not in t5_arguments.HF_NAMES}  # fmt: skip
        fixed = {k: getattr(self.training, k) for k in ("output_dir", "data_seed", "seed", "bf16", "fp16")}
        return t5_arguments.written({**self.given, **own, **fixed, "config": self.config})


def parse(argv=None, doc=None):
    """`Arguments` of flags, of a config with flags over it, or of the run that is resumed."""
    names = dataclasses.replace(NAMES, doc=doc)
    given, config, typed = config_flags.given(names, argv)
    if directory := t5_arguments.resumed(given):
        given = t5_arguments.stored(directory, given, names, "pretrain_t5.py")
        config = given.pop("config", None) or config
    else:
        t5_arguments.follow(given, typed)
    arguments = Arguments(*config_flags.build(names, given, config), given, config, typed)
    check(arguments)
    return arguments


def check(arguments):
    """A `UserError` for what cannot be."""
    model, text, training = arguments.model, arguments.text, arguments.training
    where = arguments.config or "flags"
    model.from_scratch = model.from_scratch or model.not_load_t5_checkpoint
    t5_arguments.check_tasks(text.tasks, arguments.location("tasks"))
    if not training.output_dir:
        raise UserError("no run directory", location=where, expected="--output_dir")
    if not model.model_name_or_path and not (model.from_scratch and model.config_name):
        raise UserError(
            "no model",
            location=where,
            expected="--from_scratch with --config_name and --tokenizer_name, or "
            "--model_name_or_path to go on with a trained one",
        )
    if not (text.train_files or text.tasks):
        raise UserError("no text", location=where, expected="--train_files, or --tasks with --data_dir")
    t5_arguments.check_numbers(arguments, (text, training, model))
    for name, low, high in (("noise_density", 0, 1), ("validation_share", 0, 0.5)):
        if not low < getattr(text, name) < high:
            raise UserError(
                f"is {getattr(text, name)}", location=arguments.location(name), expected=f"between {low} and {high}"
            )
    if text.mean_noise_span_length < 1:
        raise UserError(f"is {text.mean_noise_span_length}", location=arguments.location("mean_noise_span_length"),
                        expected="1 or more")  # fmt: skip


# ---- text


def texts(arguments):
    """(training texts, validation texts), in an order that the seed draws."""
    text, seed = arguments.text, arguments.training.data_seed
    found = [line for path in text.train_files or [] for line in read_lines(path)]
    for name in text.tasks or []:
        from versatile.data import text_to_text

        rows = text_to_text.load(name, "train", data_dir=text.data_dir, seed=seed,
                                 n_obs=None if text.n_train < 0 else text.n_train)  # fmt: skip
        found += list(rows["source"])
    found = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
    if text.validation_files:
        return found, [line for path in text.validation_files for line in read_lines(path)]
    held = max(round(len(found) * text.validation_share), 1)
    return found[held:], found[:held]


def read_lines(path):
    """The lines of a text file that are not empty."""
    if not Path(path).is_file():
        raise UserError("no such file", location=f"--train_files {path}", expected="a text file, one text a line")
    lines = [text.strip() for _, text in text_lines(path)]
    if not any(lines):
        raise UserError("holds no text", location=path, expected="one text a line")
    return [line for line in lines if line]


def data(arguments, tokenizer):
    """(training `Corrupted`, validation `Rows`, which are corrupted once and for all)."""
    text, seed = arguments.text, arguments.training.data_seed
    sentinels = span_corruption.sentinels_of(tokenizer)
    length, _ = span_corruption.lengths(text.max_source_length, text.noise_density, text.mean_noise_span_length)
    how = dict(density=text.noise_density, mean_span=text.mean_noise_span_length, seed=seed)
    train, valid = texts(arguments)
    made = []
    for name, lines in (("train", train), ("validation", valid)):
        try:
            rows = span_corruption.chunks(lines, tokenizer, length)
        except UserError as error:
            if name == "train" or text.validation_files:
                raise
            # Not the text is too short, but the share of it that is held out.
            raise UserError(error.found, location=f"{arguments.location('validation_share')} {text.validation_share:g}",
                            expected=f"{length} tokens at least to validate on, here of {len(lines):,} texts",
                            remedy="raise --validation_share, or name --validation_files") from None  # fmt: skip
        made.append(span_corruption.Corrupted(rows, sentinels, tokenizer.eos_token_id, **how))
        say(f"{name}: {len(lines):,} texts, {rows.size:,} tokens in {len(rows):,} sequences of {length}")
    items = [made[1][i] for i in range(len(made[1]))]
    columns = (FlatLists.from_lists([item[name] for item in items]) for name in ("input_ids", "labels"))
    return made[0], Rows(0, *columns, [""] * len(items))


class Scorer:
    """Negative log-likelihood and perplexity per target token on fixed rows; see `t5_setup.build_trainer`.

    Args:
        tokenizer: the model's.
        args: training arguments.
        rows: `Rows`.
    """

    def __init__(self, tokenizer, args, rows):
        self.part = Namespace(rows=rows)
        self.evaluation = t5_evaluation.Evaluation(
            {}, tokenizer, args.per_device_eval_batch_size, dtype=precision(args, args.device),
            share=(args.process_index, args.world_size), tasks=False,
        )  # fmt: skip

    def __call__(self, model, prefix="eval"):
        training = model.training
        model.eval()
        loss, _ = self.evaluation.loss(model, self.part)
        model.train(training)
        return {f"{prefix}_loss": loss, f"{prefix}_perplexity": float(np.exp(min(loss, 50)))}


def batches(args, model, tokenizer, train):
    """The training batches of `Corrupted` rows."""
    sampler = span_corruption.EpochBatches(len(train), args.per_device_train_batch_size, args.data_seed,
                                           args.world_size)  # fmt: skip
    collate = Collator(tokenizer.pad_token_id, model.config.decoder_start_token_id, tasks=False)
    # All targets are of one length.
    lengths = np.full(len(train), len(train[0]["labels"]))
    return SampledBatches(train, sampler, collate, lengths, args.gradient_accumulation_steps, args.process_index,
                          splits=range(2) if args.ddp_find_unused_parameters else ())  # fmt: skip


# ---- the run


def save(model, tokenizer, folder):
    """An ordinary transformers directory."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_weights(model, folder):
    """What `save` wrote, into the same model."""
    from safetensors.torch import load_model

    missing, unexpected = load_model(model, str(Path(folder) / "model.safetensors"), strict=False)
    tied = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    if set(missing) - tied or unexpected:
        raise UserError(f"{sorted(set(missing) - tied)} are missing, {sorted(unexpected)} unknown", location=folder,
                        expected="the weights of this model")  # fmt: skip


def pretrain(arguments):
    """Everything that pretrain_t5.py does."""
    from transformers import set_seed

    args = arguments.training
    args.do_train = args.do_eval = True
    t5_setup.check_directory(arguments, "pretrain_t5.py")
    # One process a machine makes the caches, the others find them.
    with args.main_process_first():
        model, tokenizer = t5_models.load(arguments.model, args.seed)
        set_seed(args.seed)
        train, valid = data(arguments, tokenizer)
    say(f"trained: all {sum(p.numel() for p in model.parameters()):,} parameters")
    drawn = batches(args, model, tokenizer, train)
    run = Run(args.output_dir, args.save_total_limit or 0)
    if not args.resume and args.process_index == 0:
        t5_setup.make_room(arguments)
        run = Run.create(args.output_dir, record(Namespace(**arguments.flags()), method="pretraining"),
                         args.save_total_limit or 0)  # fmt: skip
    scorer = Scorer(tokenizer, args, valid)
    digest = hashlib.sha256(train.rows.tobytes()).hexdigest()[:16]
    files = ModelFiles(lambda at: save(model, tokenizer, at), lambda at: load_weights(model, at))
    run.bind(files, f"{digest}:{valid.fingerprint()}", resume_command("pretrain_t5.py", run.directory))
    trainer = t5_setup.build_trainer(args, run, model, drawn, scorer)
    result = t5_setup.summary(args, trainer, t5_setup.fit(trainer))
    scores = scorer(model, "eval")
    if trainer.rank0:
        run.write_metrics(dict(method="pretraining", **result, **scores))
        history = result["history"]
        history |= dict(valid=[dict(step=r["step"], nll=r["eval_loss"]) for r in history["valid"]])
        plots.learning_curve(run.directory / "learning_curve.png", history, f"span corruption: {run.directory.name}")
    if trainer.world > 1:
        idist.barrier()
    say(f"validation: {scores['eval_loss']:.4f} nats per target token, perplexity {scores['eval_perplexity']:.2f}")
    following = shell_command("train_t5.py", "configs/finetune.json", "--model_name_or_path", run.directory)
    say(f"done; next: {following}")
