"""Training objectives, computed from a model's scores.

An objective is called as `objective(model, batch, normalizer)` and returns a batch's loss, ready for `backward`:

    model       the model, or its wrapper in multi-process training
    batch       a dict of tensors from the training batches, still on the CPU
    normalizer  the loss is a sum over the batch's labels divided by this, e.g. by their number in all processes; an
                objective with `by_row` also accepts a tensor [rows] that divides the losses of each row's labels

A model returns the scores that predict its labels, not a loss (`adapters.labels.LabelScores`); it stores nothing of
the objective.
"""

import torch
import torch.nn.functional as F
from versatile.adapters.labels import IGNORE, LabelScores
from versatile.utils.devices import autocast


def move_to_device(batch, device):
    """Move a batch to the device. Task ids stay on the CPU, where reading them does not wait for the GPU."""
    return {k: v if v is None or k == "task_ids" else v.to(device, non_blocking=True) for k, v in batch.items()}


def label_scores(model, batch):
    """The scores that predict a batch's labels.

    Args:
        model: an attached model, whose forward returns the scores and moves inputs to its device; or a transformers
            encoder-decoder.
        batch: for the latter, with `decoder_input_ids`, whose outputs are aligned with the `labels` [rows, length].

    Returns:
        `LabelScores`
    """
    if "decoder_input_ids" not in batch:
        return model(**batch)
    batch = move_to_device(batch, next(model.parameters()).device)
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits
    return LabelScores(logits.flatten(0, 1), labels.flatten())


def normalized(losses, output, normalizer):
    """The sum of the losses of `LabelScores` entries [n] (0 where there is no label), divided by the normalizer."""
    if not isinstance(normalizer, torch.Tensor) or not normalizer.dim():
        return losses.sum() / normalizer
    return (losses / normalizer.to(losses.device, non_blocking=True)[output.rows]).sum()


class CrossEntropy:
    """-log p(label), summed over the labels and divided by the normalizer; None: their mean."""

    by_row = True
    smoothing = 0.0

    def __call__(self, model, batch, normalizer=None):
        """See above."""
        output = label_scores(model, batch)
        number = (output.targets != IGNORE).sum() if normalizer is None else normalizer
        return normalized(self.losses(output), output, number)

    def losses(self, output):
        """The loss of each entry of `LabelScores` [n], 0 where there is no label, in fp32."""
        if output.nll is not None and not self.smoothing:
            return output.nll
        return F.cross_entropy(output.scores.float(), output.targets, ignore_index=IGNORE, reduction="none",
                               label_smoothing=self.smoothing)  # fmt: skip


cross_entropy = CrossEntropy()


class SmoothedCrossEntropy(CrossEntropy):
    """Cross-entropy with smoothed labels (Szegedy et al. 2016), summed over the labels.

    The target distribution gives 1 - ε to the label and spreads ε uniformly over all V tokens:
    (1 - ε)·(-log p_label) + ε/V·Σ_v(-log p_v).

    Args:
        smoothing: ε in [0, 1).
        reduction: "mean": divided by the normalizer; "sum": the normalizer is ignored, and only processes and
            micro-batches are averaged, as in the original HyperFormer.
        processes: number of processes; the training loop adds up their shares of one mean.
    """

    def __init__(self, smoothing=0.0, reduction="mean", processes=1):
        self.smoothing, self.reduction, self.processes = smoothing, reduction, processes

    def __call__(self, model, batch, normalizer):
        """See above."""
        return super().__call__(model, batch, normalizer if self.reduction == "mean" else self.processes)


class Distilled:
    """Word-level knowledge distillation (Hinton et al. 2015; Kim & Rush 2016, section 3.1).

        (1 - α) · base + α · T² · KL(teacher / T || student / T)

    summed over the labels. The teacher runs without gradients.

    Args:
        teacher: `training.distillation.WordTeacher`; unused if α is 0.
        base: the objective on the labels themselves.
        temperature: T.
        alpha: α, the teacher's weight, from 0 to 1.
    """

    by_row = True

    def __init__(self, teacher, base=None, temperature=2.0, alpha=0.5):
        self.teacher, self.base = teacher, base or CrossEntropy()
        self.temperature, self.alpha = temperature, alpha

    def __call__(self, model, batch, normalizer):
        """See above."""
        soft_targets = self.teacher.scores(batch) if self.alpha else None
        output = label_scores(model, batch)
        return normalized(self.losses(output, soft_targets), output, normalizer)

    def losses(self, output, soft_targets):
        """The loss of each entry of `LabelScores` [n], 0 where there is no label.

        Args:
            output: the student's.
            soft_targets: [n, columns] the teacher's scores of the tokens that both models share.
        """
        hard = self.base.losses(output)
        if not self.alpha:
            return hard
        columns = self.teacher.columns.to(output.scores.device)
        ours = F.log_softmax(output.scores[:, columns].float() / self.temperature, dim=-1)
        theirs = F.log_softmax(soft_targets.float() / self.temperature, dim=-1)
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
        soft = divergence.masked_fill(output.targets == IGNORE, 0.0)
        return (1 - self.alpha) * hard + self.alpha * self.temperature**2 * soft


class WeightedRows:
    """Per-row losses weighted by the batch's `weights` [rows], which sum to 1 over the rows of all processes.

    The model's output has `row_losses` [rows], cross-entropy or squared error (`adapters.classifier.TaskClassifier`).
    """

    def __call__(self, model, batch, normalizer):
        """See above."""
        row_losses = model(**{name: value for name, value in batch.items() if name != "weights"}).row_losses
        return (row_losses * batch["weights"].to(row_losses.device, non_blocking=True)).sum() / normalizer


@torch.no_grad()
def negative_log_likelihood(model, batches, dtype):
    """Token-weighted negative log-likelihood of a data set.

    Args:
        model: see `label_scores`.
        batches: see `Trainer`; this process reads its share.
        dtype: precision of the matrix products.

    Returns:
        (sum over this process's labels, number of labels in all processes)
    """
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for step in range(len(batches.plan(0))):
        batch, labels = batches.batch(0, step)
        with autocast(device, dtype):
            total += float(cross_entropy(model, batch, 1))
        count += labels
    return total, count
