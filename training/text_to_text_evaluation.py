"""Decode and score text-to-text tasks with a T5: during training, at its end, and for evaluate.py."""

import contextlib
import math
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import ignite.distributed as idist
import torch
from versatile.data import text_task, text_to_text
from versatile.data.encoders import text_to_text as encoder
from versatile.data.own_tasks import register_own_tasks
from versatile.data.task import canonical_name
from versatile.data.text_to_text_batches import Collator, Rows
from versatile.training.objectives import cross_entropy, move
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError
from versatile.utils.files import write_json
from versatile.utils.metrics import Score, perplexity, table, to_json
from versatile.utils.screen import counted

# The names in which splits are asked for -> theirs in `data.text_to_text`.
PREFIXES = {"train": "train", "validation": "eval", "test": "test"}
SPLITS = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass
class EvalSplit:
    """One task's split.

    Attributes:
        task: `data.text_task.TextTask`.
        rows: `data.text_to_text_batches.Rows`.
        sources: the input texts, a sequence.
        length: tokens of an output at the most; see `TextTask.max_new_tokens`.
        beams: width of the beam.
        references: what outputs are scored against, see `data.encoders.text_to_text.TextSplit`; None: the target texts.
    """

    task: text_task.TextTask
    rows: Rows
    sources: list
    length: int
    beams: int

    @property
    def key(self):
        """Names the content."""
        return f"{self.task.name}:{self.rows.fingerprint()}"
    references: object = None

    def __post_init__(self):
        if self.references is None:
            self.references = self.rows.texts


def read(names, split, args, tokenizer, ids, *, lengths, limit, seed, held_out, prefix, say=print):
    """Tokenised splits of tasks, with what was read and cut on the screen.

    Args:
        names: tasks.
        split: "train", "validation" or "test".
        args: has data_dir and eval_beams.
        tokenizer: the model's.
        ids: {task: the model's number of it}.
        lengths: (source, target) in tokens.
        limit: examples of each task, drawn by `seed`; -1: all.
        seed, held_out, prefix: see `data.text_to_text.load` (`held_out` is its split_validation_test).

    Returns:
        {task: `EvalSplit`}

    Raises:
        UserError: a task without data, a label that is not the task's.
    """
    parts = {}
    for name in names:
        task = text_to_text.get_task(name)
        data = encoder.load(task, split, tokenizer, lengths, data_dir=args.data_dir, seed=seed,
                            split_validation_test=held_out, n_obs=None if limit < 0 else limit,
                            prefix=prefix)  # fmt: skip
        rows = Rows(ids[name], data.sources, data.targets, data.target_texts)
        beams = args.eval_beams or task.num_beams or 1
        parts[name] = EvalSplit(task, rows, data.source_texts, task.max_new_tokens(tokenizer), beams, data.references)
        cuts = [f", {counted(n, what)} cut to {length} tokens" for (what, n), length in zip(data.cut.items(), lengths)
                if n]  # fmt: skip
        say(f"{split} {name}: {counted(len(rows), 'example')}{''.join(cuts)}")
    return parts


def tested_on_validation(names, data_dir, held_out):
    """Those of the tasks whose test rows are their validation rows.

    Args:
        names: tasks.
        data_dir, held_out: as in `read`.
    """
    return [name for name in names if text_to_text.test_is_validation(text_to_text.get_task(name), data_dir, held_out)]


@dataclass
class Evaluation:
    """Scores a model on its tasks; called with (model, prefix) it returns {name: value}.

    Names are `<task>_<prefix>_<metric>` with the published metric names, ×100; `<task>_<prefix>_loss`, the negative
    log-likelihood per target token; `<task>_<prefix>_invalid`, how many outputs are not answers of the task; and
    `<prefix>_average_metrics`, the mean over metric values alone (the original averaged output lengths in, too), and
    `<prefix>_loss`, the mean over tasks.

    Attributes:
        parts: {task: `EvalSplit`}.
        tokenizer: the model's.
        batch_size: rows decoded together.
        dtype: precision of the matrix products.
        decode: whether outputs are decoded and scored; otherwise only losses are computed.
        share: (this process, processes): each takes its share of every task's rows.
        gather: stacks a tensor of all processes along its first dimension.
        fixed_lengths, tasks: see `Collator`.
        outputs: {task: output texts} of the last call.
        scores: {task: {metric: value}} of the last call.
        labels: {task: target tokens}.
    """

    parts: dict
    tokenizer: object
    batch_size: int
    dtype: torch.dtype = torch.float32
    decode: bool = True
    share: tuple = (0, 1)
    gather: object = staticmethod(idist.all_gather)
    fixed_lengths: tuple | None = None
    tasks: bool = True
    outputs: dict = field(default_factory=dict)
    scores: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, model, prefix="eval"):
        training = model.training
        model.eval()
        values, losses = {}, []
        self.outputs, self.scores = {}, {}
        for name, part in self.parts.items():
            loss, self.labels[name] = self.loss(model, part)
            losses.append(loss)
            if self.decode:
                outputs = self.outputs[name] = self.texts(model, part)
                self.scores[name] = part.task.score(outputs, part.references)
                values |= {f"{name}_{prefix}_{metric}": value for metric, value in self.scores[name].items()}
                values[f"{name}_{prefix}_invalid"] = part.task.invalid(outputs)
            values[f"{name}_{prefix}_loss"] = loss
        if self.decode:
            values[f"{prefix}_average_metrics"] = text_task.average(self.scores)
        values[f"{prefix}_loss"] = sum(losses) / len(losses)
        model.train(training)
        return {key: float(value) for key, value in values.items()}

    def keys(self, prefix="eval"):
        """The names that a call will find."""
        names = [f"{prefix}_average_metrics"] * self.decode + [f"{prefix}_loss"]
        for name, part in self.parts.items():
            names += [f"{name}_{prefix}_loss"] + [f"{name}_{prefix}_{m}" for m in part.task.metrics] * self.decode
        return names

    def batches(self, part, device):
        """(row numbers, batch) of this process's rows, those of like length together."""
        lengths = part.rows.sources.lengths()
        order = sorted(range(len(lengths)), key=lambda i: (int(lengths[i]), i))
        rank, world = self.share
        mine = order[rank::world]
        pad = self.tokenizer.pad_token_id
        collate = Collator(pad, self.start, lengths=self.fixed_lengths, tasks=self.tasks)
        for first in range(0, len(mine), self.batch_size):
            numbers = mine[first : first + self.batch_size]
            batch = collate([part.rows[i] for i in numbers])
            yield numbers, move(batch, device)

    @property
    def start(self):
        # T5's decoder starts with the padding token.
        return self.tokenizer.pad_token_id

    @torch.no_grad()
    def loss(self, model, part):
        """(negative log-likelihood per target token in nats, number of target tokens)"""
        device = next(model.parameters()).device
        total = torch.zeros(1, 2, dtype=torch.float64)
        for _, batch in self.batches(part, device):
            with autocast(device, self.dtype):
                nll = cross_entropy(model, batch, 1)
            total += torch.tensor([float(nll), float((batch["labels"] != -100).sum())], dtype=torch.float64)
        nll, count = self.gather(total.float().to(device)).double().sum(0).tolist()
        return nll / count, round(count)

    def texts(self, model, part):
        """The outputs of a task's rows, in their order."""
        device, world = next(model.parameters()).device, self.share[1]
        share = -(-len(part.rows) // world)
        pad = self.tokenizer.pad_token_id
        # One shape in all processes: [rows, row number and tokens].
        tokens = torch.full((share, 1 + part.length), pad, device=device)
        tokens[:, 0] = -1
        done = 0
        for numbers, batch in self.batches(part, device):
            # Given at each call: what one task decodes with leaves the next as it is.
            wanted = {k: batch[k] for k in ("input_ids", "attention_mask", "task_ids")}
            with autocast(device, self.dtype):
                ids = model.generate(**wanted, max_new_tokens=part.length, num_beams=part.beams, do_sample=False,
                                     early_stopping=False, use_cache=True)  # fmt: skip
            ids = ids[:, 1 : 1 + part.length]
            tokens[done : done + len(numbers), 0] = torch.tensor(numbers, device=device)
            tokens[done : done + len(numbers), 1 : 1 + ids.shape[1]] = ids
            done += len(numbers)
        rows = sorted(row for row in self.gather(tokens).tolist() if row[0] >= 0)
        texts = self.tokenizer.batch_decode([row[1:] for row in rows], skip_special_tokens=True)
        return [text.strip() for text in texts]


# ---- files


def write_results(path, scores, **more):
    """val_results.json and its like: {name: value} and what else is known."""
    numbers = {k: v if math.isfinite(v) else None for k, v in scores.items()}
    write_json(path, numbers | more)


def summaries(evaluation, scores, prefix, **more):
    """{task: what <task>_metrics.json holds}, in the form that `utils.table` reads.

    Args:
        evaluation: after a call, which returned `scores` under `prefix`.
        more: what every summary shall hold beside.
    """
    by_task = {}
    for name, part in evaluation.parts.items():
        signature = f"n:{len(part.rows)}|beams:{part.beams}|tokens:{part.length}"
        own = {metric: Score(float(value), signature) for metric, value in evaluation.scores.get(name, {}).items()}
        own["PPL"] = _perplexity(evaluation, scores, name, prefix)
        by_task[name] = dict(task=name, scores=to_json(own), headline=next(iter(own)), instances=len(part.rows),
                           invalid=int(scores.get(f"{name}_{prefix}_invalid", 0)), **more)  # fmt: skip
    return by_task


def show(evaluation, scores, prefix, samples=3):
    """Print every task's scores and its first outputs."""
    for name, part in evaluation.parts.items():
        own = {k: Score(v, "") for k, v in evaluation.scores.get(name, {}).items()}
        own["PPL"] = _perplexity(evaluation, scores, name, prefix)
        print(f"\n{name}: {len(part.rows)} instances\n{table(own)}\n")
        if invalid := int(scores.get(f"{name}_{prefix}_invalid", 0)):
            print(f"{invalid} of {len(part.rows)} outputs are not answers of the task\n")
        outputs = evaluation.outputs.get(name, [])
        for source, target, output in islice(zip(part.sources, part.rows.texts, outputs), samples):
            print(f"input      {source}\noutput     {output}\nreference  {target}\n")
    if f"{prefix}_average_metrics" in scores:
        print(f"average of all metrics: {scores[f'{prefix}_average_metrics']:.2f}")


def _perplexity(evaluation, scores, name, prefix):
    count = evaluation.labels[name]
    return perplexity(scores[f"{name}_{prefix}_loss"] * count, count)


def write_outputs(folder, evaluation):
    """The texts of every task, as `evaluation.write_texts` writes them."""
    from versatile.training.evaluation import write_texts

    for name, outputs in evaluation.outputs.items():
        part = evaluation.parts[name]
        write_texts(folder, name, outputs, [[text] for text in part.rows.texts], list(part.sources))


# ---- for evaluate.py


# Flags of evaluate.py that mean nothing to a T5 of tasks: what stands behind says why.
WITHOUT_MEANING = {
    "adapter_bottleneck": "the checkpoint knows its own", "max_history": "a task has no history",
    "emb_only": "no such ablation", "outputlayer_only": "no such ablation", "random_init": "no such ablation",
    "self_copy": "no such ablation", "temperature": "nothing is sampled", "top_k": "nothing is sampled",
    "top_p": "nothing is sampled", "min_length": "outputs are as long as the task's labels",
    "max_length": "outputs are as long as the task's longest label",
    "data": "all tasks lie in one folder: --dataset_path DIR", "length_penalty": "labels have no length to weigh",
}  # fmt: skip


def prefixed(model, flags):
    """Whether a task's prefix stands before its sources, as the run's flags say (published: without adapters)."""
    return not flags.get("train_adapters", model.settings.method != "finetune")


def evaluate_run(args, given):
    """evaluate.py's work for a model of train_t5.py: everything but the task is known from the run.

    Args:
        args: the flags of evaluate.py; `task` may be "all", `dataset_path` is a data directory.
        given: those that were typed.

    Raises:
        UserError: a task that the model was not trained for, or without data.
    """
    from argparse import Namespace

    from versatile.adapters import t5
    from versatile.training import runs, text_to_text_arguments
    from versatile.training import t5_directory as directory
    from versatile.utils import devices
    from versatile.utils.files import writable_directory

    for flag in given:
        if flag in WITHOUT_MEANING:
            raise UserError(f"has no effect on a model of train_t5.py: {WITHOUT_MEANING[flag]}", location=f"--{flag}",
                            remedy="leave it out")  # fmt: skip
    devices.quiet_libraries(args.cache_dir)
    device = idist.device()
    dtype = devices.precision(args, device)
    known = text_to_text_arguments.restored(*directory.run_flags(args.model_checkpoint))
    register_own_tasks(known.get("task_definitions") or [])
    args.task = canonical_name(args.task, "text_to_text")
    data = Namespace(data_dir=data_of(args, known),
                     eval_beams=args.num_beams if "num_beams" in given else known.get("eval_beams"))  # fmt: skip
    split = SPLITS[args.split or "test"]
    model, tokenizer = t5.load(args.model_checkpoint, None if args.task == "all" else args.task)
    names = model.tasks if args.task == "all" else [args.task]
    target = "test_max_target_length" if split == "test" else "val_max_target_length"
    with naming_the_flag():
        parts = read(
            names, split, data, tokenizer, {n: model.task_id(n) for n in names},
            lengths=(known.get("max_source_length", 128), known.get(target, 128)), limit=args.limit or -1,
            seed=known.get("data_seed", 42), held_out=known.get("split_validation_test", False),
            prefix=prefixed(model, known),
        )  # fmt: skip
    if split == "test" and known.get("load_best_model_at_end"):
        for name in tested_on_validation(names, data.data_dir, known.get("split_validation_test", False)):
            print(f"warning: {name}: the test rows are the validation rows, which chose this model in training")
    args.output_dir = args.output_dir or f"results/{run_of(args.model_checkpoint).name}"
    writable_directory(args.output_dir, "--output_dir")
    devices.prepare_for_device(model, device, dtype)
    evaluation = Evaluation(parts, tokenizer, args.batch_size, dtype)
    prefix = PREFIXES[split]
    scores = evaluation(model, prefix)
    write_outputs(args.output_dir, evaluation)
    more = describe_model(model, known) | dict(
        split=split, checkpoint=str(args.model_checkpoint), dataset_path=data.data_dir,
        precision=str(dtype).removeprefix("torch."), versions=runs.versions(),
    )  # fmt: skip
    for name, summary in summaries(evaluation, scores, prefix, **more).items():
        write_json(Path(args.output_dir) / f"{name}_metrics.json", summary)
    name = "val" if split == "validation" else split
    write_results(Path(args.output_dir) / f"{name}_results.json", scores)
    show(evaluation, scores, prefix, args.samples)
    print(f"results in {args.output_dir}")


def describe_model(model, known):
    """What every summary says of the model: its method, backbone and parameters.

    Args:
        known: the run's flags.
    """
    from versatile.adapters import t5

    counts = t5.count_parameters(model)
    backbone = counts["backbone"] + counts["layer_norms"]
    added = counts["adapters"] + counts["hypernetworks"]
    return dict(method=model.settings.method, ledger=counts,
                backbone=known.get("model_name_or_path") or known.get("config_name"),
                parameters=dict(adapters=added, task_rows=counts["task_embeddings"], backbone=backbone,
                                total=counts["total"]))  # fmt: skip


def data_of(args, known):
    """The data directory: the one that is named, or the run's own, which must be there still; None: the hub.

    Args:
        args: has dataset_path.
        known: the run's flags.
    """
    folder = args.dataset_path or known.get("data_dir")
    if folder and not Path(folder).is_dir():
        location = (
            f"--dataset_path {folder}" if args.dataset_path else f"the data that the model was trained on, {folder}"
        )
        raise UserError(
            "no such folder",
            location=location,
            expected="GLUE's official folders, or a folder of local files",
            remedy="say where they lie: --dataset_path DIR",
        )
    return folder


@contextlib.contextmanager
def naming_the_flag():
    """What reads the data knows the flag of train_t5.py."""
    try:
        yield
    except UserError as error:
        words = (error.found, error.location, error.expected, error.remedy)
        found, location, expected, remedy = (w and str(w).replace("--data_dir", "--dataset_path") for w in words)
        raise UserError(found, location=location, expected=expected, remedy=remedy) from error


def run_of(directory):
    """The run directory of a run or of one of its checkpoints."""
    path = Path(directory).resolve()
    if path.name.startswith("step_"):
        return path.parents[1]
    return path.parent if path.name.startswith("checkpoint-") else path


def check_best_metric(args, evaluation):
    """A `UserError` where --metric_for_best_model names nothing that evaluation computes."""
    name = args.metric_for_best_model
    if name is None:
        return
    known = evaluation.keys()
    if name not in known and f"eval_{name}" not in known:
        raise UserError("evaluation computes nothing of that name", location=f"--metric_for_best_model {name}",
                        expected=", ".join(k.removeprefix("eval_") for k in known))  # fmt: skip
