"""Training T5 on several tasks, text to text (Karimi Mahabadi et al. 2021), on `training.hf_training`."""

from dataclasses import dataclass

import numpy as np
import torch
from versatile.training.hf_training import ResumableTrainer

IGNORE = -100


# ---- the loss


def smoothed_loss(logits, labels, smoothing, ignore=IGNORE):
    """Cross-entropy with smoothed labels, summed over the labels (Szegedy et al. 2016).

    The target distribution gives 1 - smoothing to the label and smoothing to all V tokens alike:
    (1 - ε)·(-log p_label) + ε/V·Σ_v(-log p_v).

    Args:
        logits: [..., V].
        labels: [...] token ids; positions of `ignore` do not count.
        smoothing: ε, from 0 to below 1.

    Returns:
        (smoothed loss, negative log-likelihood), both sums, in nats, fp32.
    """
    # Masks instead of picking rows: on XLA shapes must not depend on values.
    counted = labels != ignore
    logits = logits.float()
    normaliser = logits.logsumexp(-1)
    nll = normaliser - logits.gather(-1, labels.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    nll = nll.masked_fill(~counted, 0).sum()
    if not smoothing:
        return nll, nll
    uniform = (normaliser - logits.mean(-1)).masked_fill(~counted, 0).sum()
    return (1 - smoothing) * nll + smoothing * uniform, nll


# ---- rows and batches


class Rows(torch.utils.data.Dataset):
    """Tokenised examples of one task.

    Args:
        task_id: the model's number of the task.
        sources, targets: `FlatLists` of token ids, of equal length.
        texts: the target texts, a sequence, for scoring.
    """

    def __init__(self, task_id, sources, targets, texts):
        self.task_id, self.sources, self.targets, self.texts = task_id, sources, targets, texts

    def __len__(self):
        return len(self.sources)

    def __getitem__(self, i):
        return dict(input_ids=self.sources[i], labels=self.targets[i], task_id=self.task_id)

    def fingerprint(self):
        """A hash of all token ids."""
        import hashlib

        digest = hashlib.sha256()
        for column in (self.sources, self.targets):
            column.update_digest(digest)
        return digest.hexdigest()[:16]


@dataclass
class Collator:
    """Rows -> a batch: input_ids, attention_mask, decoder_input_ids, labels, task_ids.

    Attributes:
        pad, start: ids of padding and of the decoder's first token.
        ignore_pad: padding of the labels is left out of the loss.
        lengths: (source, target) to pad to; None: to the longest of the batch. On XLA a shape that was not met
            before means compiling.
        tasks: whether the model takes task ids.
    """

    pad: int
    start: int
    ignore_pad: bool = True
    lengths: tuple | None = None
    tasks: bool = True

    def __call__(self, rows):
        sources = self.padded([r["input_ids"] for r in rows], 0, self.pad)
        labels = self.padded([r["labels"] for r in rows], 1, self.pad)
        real = torch.arange(labels.shape[1]) < torch.tensor([len(r["labels"]) for r in rows])[:, None]
        lengths = torch.tensor([len(r["input_ids"]) for r in rows])[:, None]
        decoder = torch.full_like(labels, self.start)
        decoder[:, 1:] = labels[:, :-1]
        batch = dict(
            input_ids=sources, attention_mask=(torch.arange(sources.shape[1]) < lengths).long(),
            decoder_input_ids=decoder, labels=labels.masked_fill(~real, IGNORE) if self.ignore_pad else labels,
        )  # fmt: skip
        return batch | dict(task_ids=torch.tensor([r["task_id"] for r in rows])) if self.tasks else batch

    def padded(self, lists, which, fill):
        """[rows, longest] int64."""
        width = self.lengths[which] if self.lengths else max(map(len, lists))
        out = torch.full((len(lists), width), fill)
        for row, ids in zip(out, lists):
            row[: len(ids)] = torch.as_tensor(np.asarray(ids, dtype=np.int64))
        return out


# ---- the trainer


class T5Trainer(ResumableTrainer):
    """Trains a T5 with (smoothed) cross-entropy, reduced as `args.loss_reduction` says.

    "sum": a batch's loss is the sum over its target tokens; processes and accumulated batches are averaged, as in the
    original. "mean": the loss is the mean over all target tokens of all processes and accumulated batches.
    """

    def __init__(self, **others):
        super().__init__(**others)
        # What `compute_loss` returns of "mean" is already divided by the labels of all accumulated batches.
        self.loss_is_scaled_for_ga = self.args.loss_reduction == "mean"

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of one micro-batch, of which transformers takes the gradient."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs, use_cache=False)
        loss, _ = smoothed_loss(outputs.logits, labels, self.args.label_smoothing)
        if self.args.loss_reduction == "mean":
            count = num_items_in_batch if num_items_in_batch is not None else (labels != IGNORE).sum()
            # Gradients are averaged over processes; each holds its share of one global mean.
            loss = loss * self.args.world_size / count
        return (loss, outputs) if return_outputs else loss

    def get_decay_parameter_names(self, model):
        """Matrices decay; biases and norms, T5's own among them (the original overlooked these), do not."""
        matrices = {name for name, p in model.named_parameters() if p.ndim > 1}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]


class ScoredTrainer(T5Trainer):
    """Evaluates with what it is given, and keeps what came out.

    Args:
        scorer: called with (model, metric_key_prefix), returns {name: value}, of several tasks for example (see
            `training.t5_evaluation.Evaluation`); its `parts` are the data.
        others: as `T5Trainer`.
    """

    def __init__(self, *, scorer=None, **others):
        self.scorer = scorer
        # transformers only looks whether there is one.
        super().__init__(eval_dataset=scorer.parts if scorer else None, **others)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """What the scorer finds; the trainer's state logs it, too."""
        scores = self.scorer(self.model, metric_key_prefix)
        self.keep(scores)
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def _determine_best_metric(self, metrics, trial):
        # transformers looks for eval_<name> only, a single task's metric is called rte_eval_acc.
        named = {f"eval_{name}": value for name, value in metrics.items()}
        return super()._determine_best_metric({**named, **metrics}, trial)

    def keep(self, scores):
        """Into the history, TensorBoard and onto the screen."""
        step = self.state.global_step
        self.history["valid"].append(dict(step=step, **scores))
        if self.board:
            self.board.add(step, "valid", scores)
        wanted = self.args.metric_for_best_model or "average_metrics"
        key = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
        if key in scores:
            self.say(f"step {step}: {key.removeprefix('eval_')} {scores[key]:.4g}")


def data_keys(parts):
    """The content of a run's data: {split: {task: part with rows}} -> {"train": "rte:1f…-mrpc:…", "valid": "…"}."""
    wanted = {"train": "train", "valid": "validation"}
    return {name: "-".join(f"{task}:{part.rows.fingerprint()}" for task, part in parts[split].items())
            for name, split in wanted.items() if parts.get(split)}  # fmt: skip
