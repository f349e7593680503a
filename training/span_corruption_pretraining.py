"""Pretraining of a T5 from the arguments of pretrain_t5.py."""

import hashlib
from pathlib import Path

import ignite.distributed as idist
import numpy as np
from versatile.adapters.manifest import MODEL_WEIGHTS
from versatile.data import span_corruption
from versatile.data.columns import FlatLists
from versatile.data.files import text_lines
from versatile.data.text_to_text_batches import Collator, Rows, SampledBatches
from versatile.training import experiment
from versatile.training.runs import ModelFiles
from versatile.training.text_to_text_evaluation import check_best_metric
from versatile.training.text_to_text_training import (
    build_trainer,
    check_directory,
    load_t5_backbone,
    open_run,
    training_text_model,
)
from versatile.training.validation import capped_perplexity
from versatile.utils.errors import UserError
from versatile.utils.screen import shell_command

# ---- text


def read_texts(arguments):
    """(training texts, validation texts), shuffled by the data seed."""
    seed = arguments.data_seed
    lines = [line for path in arguments.train_files or [] for line in read_lines(path, "--train_files")]
    for name in arguments.tasks or []:
        from versatile.data import text_to_text

        rows = text_to_text.load_rows(name, "train", data_dir=arguments.data_dir, seed=seed,
                                      n_obs=None if arguments.n_train < 0 else arguments.n_train)  # fmt: skip
        lines += list(rows["source"])
    lines = [lines[i] for i in np.random.default_rng(seed).permutation(len(lines))]
    if arguments.validation_files:
        return lines, [line for path in arguments.validation_files for line in read_lines(path, "--validation_files")]
    count = max(round(len(lines) * arguments.validation_share), 1)
    if count >= len(lines):
        raise UserError(f"{len(lines)} text(s): nothing is left for training after holding some out for validation",
                        location="--train_files", expected="texts on several lines",
                        remedy="divide the text into lines, or name --validation_files")  # fmt: skip
    return lines[count:], lines[:count]


def read_lines(path, flag):
    """The non-empty lines of a text file that `flag` named."""
    if not Path(path).is_file():
        raise UserError("no such file", location=f"{flag} {path}", expected="a text file, one text per line")
    lines = [text.strip() for _, text in text_lines(path)]
    if not any(lines):
        raise UserError("holds no text", location=path, expected="one text per line")
    return [line for line in lines if line]


def load_data(arguments, tokenizer):
    """(training `Corrupted`, validation `Rows`, whose corruption is fixed)."""
    seed = arguments.data_seed
    sentinels = span_corruption.sentinels_of(tokenizer)
    density, mean_span = arguments.noise_density, arguments.mean_noise_span_length
    length, _ = span_corruption.lengths(arguments.max_source_length, density, mean_span)
    corruption = dict(density=density, mean_span=mean_span, seed=seed)
    train, valid = read_texts(arguments)
    splits = []
    for name, lines in (("train", train), ("validation", valid)):
        try:
            rows = span_corruption.chunks(lines, tokenizer, length)
        except UserError as error:
            if name == "train" or arguments.validation_files:
                raise
            # It is not the text that is too short, but its held-out share.
            location = arguments.location("validation_share")
            raise UserError(error.found, location=f"{location} {arguments.validation_share:g}",
                            expected=f"at least {length} tokens to validate on, here from {len(lines):,} texts",
                            remedy="raise --validation_share, or name --validation_files") from None  # fmt: skip
        splits.append(span_corruption.Corrupted(rows, sentinels, tokenizer.eos_token_id, **corruption))
        experiment.print_once(f"{name}: {len(lines):,} texts, {rows.size:,} tokens in {len(rows):,} sequences of "
                              f"{length}")  # fmt: skip
    items = [splits[1][i] for i in range(len(splits[1]))]
    columns = (FlatLists.from_lists([item[name] for item in items]) for name in ("input_ids", "labels"))
    return splits[0], Rows(0, *columns, [""] * len(items))


class Scorer:
    """Negative log-likelihood and perplexity per target token on fixed rows; see `text_to_text_training.build_trainer`.

    Args:
        model, tokenizer: the model being trained and its tokenizer.
        args: training arguments.
        rows: `Rows`.
    """

    def __init__(self, model, tokenizer, args, rows):
        self.text_model, self.rows = training_text_model(args, model, tokenizer, has_tasks=False), rows

    def keys(self):
        """Names of the scores."""
        return ["eval_loss", "eval_perplexity"]

    def __call__(self, prefix="eval"):
        nll, count = self.text_model.negative_log_likelihood(self.rows)
        return {f"{prefix}_loss": nll / count, f"{prefix}_perplexity": capped_perplexity(nll / count)}


def make_batches(args, model, tokenizer, train):
    """Training batches of `Corrupted` rows."""
    sampler = span_corruption.EpochBatches(len(train), args.train_batch_size, args.data_seed,
                                           idist.get_world_size())  # fmt: skip
    collate = Collator(tokenizer.pad_token_id, model.config.decoder_start_token_id, tasks=False)
    # All targets have the same length.
    lengths = np.full(len(train), len(train[0]["labels"]))
    return SampledBatches(train, sampler, collate, lengths, args.gradient_accumulation_steps, idist.get_rank(),
                          splits=range(2) if args.ddp_find_unused_parameters else ())  # fmt: skip


# ---- the run


def save_backbone(model, tokenizer, folder):
    """Write an ordinary transformers directory."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_weights(model, folder):
    """Load what `save_backbone` wrote into the same model."""
    from safetensors.torch import load_model

    missing, unexpected = load_model(model, str(Path(folder) / MODEL_WEIGHTS), strict=False)
    tied = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    if set(missing) - tied or unexpected:
        raise UserError(f"{sorted(set(missing) - tied)} are missing, {sorted(unexpected)} unknown", location=folder,
                        expected="the weights of this model")  # fmt: skip


def pretrain(arguments):
    """Everything that pretrain_t5.py does."""
    from transformers import set_seed

    arguments.do_train = arguments.do_eval = True
    check_directory(arguments, "pretrain_t5.py")
    # One process per machine creates the caches, and the others reuse them.
    with idist.one_rank_first(local=True):
        model, tokenizer = load_t5_backbone(arguments)
        set_seed(arguments.seed)
        train, valid = load_data(arguments, tokenizer)
    experiment.print_once(f"trained: all {sum(p.numel() for p in model.parameters()):,} parameters")
    train_batches = make_batches(arguments, model, tokenizer, train)
    scorer = Scorer(model, tokenizer, arguments, valid)
    check_best_metric(arguments, scorer)
    run = open_run(arguments, "pretraining")
    digest = hashlib.sha256(train.rows.tobytes()).hexdigest()[:16]
    files = ModelFiles(lambda folder: save_backbone(model, tokenizer, folder),
                       lambda folder: load_weights(model, folder))  # fmt: skip
    command = experiment.resume_command("pretrain_t5.py", run.directory)
    run.bind(files, dict(train=digest, valid=valid.fingerprint()), command)
    result = experiment.run_training(build_trainer(arguments, run, model, train_batches, scorer))
    files.load(run.directory)
    scores = scorer("eval")
    history = result["history"]
    history["valid"] = [dict(step=r["step"], nll=r["eval_loss"]) for r in history["valid"]]
    experiment.write_results(run, dict(method="pretraining", **result, **scores), "span corruption")
    if idist.get_world_size() > 1:
        idist.barrier()
    experiment.print_once(f"validation: {scores['eval_loss']:.4f} nats per target token, perplexity "
                          f"{scores['eval_perplexity']:.2f}")  # fmt: skip
    following = shell_command("train_t5.py", "configs/finetune.json", "--model_name_or_path", run.directory)
    experiment.print_once(f"next: {following}")
