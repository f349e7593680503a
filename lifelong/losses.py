"""The losses of LAMOL and L2KD (Chuang, Su & Chen 2020), expressed as weights of the labels of one forward pass.

    LAMOL   qa + λ·lm, each the mean cross-entropy over its labels, with weight 5 for __ans__ and __sep__
    L2KD    for samples of the current task, instead of that, T²·KL(teacher / T || student / T), the mean over their
            labels, without token weights; the replayed samples' mean cross-entropy is added with weight 1

Both are sums over the labels of a weight times the label's cross-entropy plus a weight times its divergence. The
weights are computed when a batch is made, so the rows of both objectives go through the model at once, and a batch may
be split into parts or over several processes without changing the sum.

Two faults of the original are corrected. There, a teacher's last probability is repeated for every token beyond its
vocabulary, so that they sum to more than 1 (here such a token has probability 0); and a batch of replayed samples alone
gives NaN (here it gives their cross-entropy).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from versatile.adapters.labels import IGNORE, LABEL_ROUND, label_positions
from versatile.training.objectives import label_scores

QA, LM = 0, 1


@dataclass
class Objective:
    """What the model is trained on for each sample.

    Attributes:
        lm_lambda: weight of generating the sample; None: train only on its answer (modes other than lll).
        token_weights: {token id: weight of its cross-entropy as a label}; other tokens have weight 1.
        distil: samples that are not replayed are distilled from a teacher.
        replay_weight: weight of the mean cross-entropy of the replayed samples' labels, as a separate term; None: one
            mean over the labels of all samples (without a teacher).
        before_gen: ids in front of the start token, see `question_answer.QuestionEncoder`.
    """

    lm_lambda: float | None = 0.25
    token_weights: dict = field(default_factory=dict)
    distil: bool = False
    replay_weight: float | None = None
    before_gen: tuple = ()

    def sequences(self, row):
        """[(objective, ids followed by the last label, position of the first label)] of a `question_answer.Row`."""
        qa = QA, [*row.cqa, row.last], row.prompt_length
        if self.lm_lambda is None:
            return [qa]
        return [qa, (LM, [*self.before_gen, row.gen, *row.cqa, row.last], 1 + len(self.before_gen))]

    def weights(self, labels, parts, replayed, stored=False):
        """The weights of the labels of a whole batch.

        Args:
            labels: int array [rows, length], unshifted, -100 where there is none.
            parts: [rows] `QA` or `LM`.
            replayed: [rows] whether the row's sample belongs to an earlier task.
            stored: [rows] whether the row is trained on its stored logits instead of its labels.

        Returns:
            (hard, soft): float arrays [rows, length], the weights of each label's cross-entropy and divergence.
        """
        parts, replayed = np.asarray(parts), np.asarray(replayed, bool)
        counted = (labels != IGNORE).astype(np.float64)
        weighted = counted.copy()
        for token, weight in self.token_weights.items():
            weighted[labels == token] = weight
        soft_rows = np.broadcast_to(stored, len(parts)) | (~replayed if self.distil else False)
        hard, soft = np.zeros(labels.shape), np.zeros(labels.shape)
        terms = [(~soft_rows, weighted, hard, 1.0), (soft_rows, counted, soft, 1.0)]
        if self.replay_weight is not None:
            terms[:1] = [(~soft_rows & ~replayed, weighted, hard, 1.0),
                         (~soft_rows & replayed, weighted, hard, self.replay_weight)]  # fmt: skip
        for part, scale in ((QA, 1.0), (LM, self.lm_lambda)):
            for chosen, values, out, weight in terms:
                rows = chosen & (parts == part)
                if values[rows].any():
                    out[rows] = scale * weight * values[rows] / values[rows].sum()
        return hard.astype(np.float32), soft.astype(np.float32)


class Targets:
    """The label weights that a batch carries as `targets`, in addition to its labels.

    Attributes:
        hard: [n] weight of each label's cross-entropy, or None if all are 0; n as in `label_positions`.
        at: [m] indices of the labels that are distilled from a teacher, with m padded to a multiple of 64, or None.
        soft: [m] weights of their divergences; 0 for padding.
        stored: (ids, logits) [m, k] of an earlier model at these labels, used instead of a teacher; or None.
    """

    def __init__(self, hard, at=None, soft=None, stored=None):
        self.hard, self.at, self.soft, self.stored = hard, at, soft, stored

    @classmethod
    def of(cls, labels, hard, soft, stored=()):
        """From `labels` [rows, length] (a tensor) and the arrays that `Objective.weights` returned for them.

        Args:
            stored: [(ids, logits)] of the rows that are trained on stored logits, in order.
        """
        rows, at, targets = label_positions(labels)
        real = targets != IGNORE
        # A label at i is predicted at i - 1, the position that label_positions returns.
        hard, soft = (torch.from_numpy(w)[rows, at + 1] * real for w in (hard, soft))
        positions = soft.nonzero().squeeze(-1)
        if not len(positions):
            return cls(hard)
        surplus = -len(positions) % LABEL_ROUND
        if stored:
            stored = [F.pad(torch.from_numpy(np.concatenate(part)), (0, 0, 0, surplus)) for part in zip(*stored)]
            stored = stored[0].long(), stored[1]
        return cls(hard if hard.any() else None, F.pad(positions, (0, surplus)), F.pad(soft[positions], (0, surplus)),
                   stored or None)  # fmt: skip

    def share(self):
        """This part's share of its batch; if no samples are generated, the shares of all parts add up to 1."""
        return sum(weights.sum() for weights in (self.hard, self.soft) if weights is not None)

    def to(self, device, **options):
        """The same on a device."""
        parts = (self.hard, self.at, self.soft)
        stored = self.stored and tuple(part.to(device, **options) for part in self.stored)
        return Targets(*(None if part is None else part.to(device, **options) for part in parts), stored)


class WeightedLoss:
    """An objective (`training.objectives`) that is fully determined by the weights in a batch's `Targets`.

    Args:
        teacher: `teachers.DistributionTeacher`, or None.
        terms: a strategy's additional loss terms: each is called with (`LabelScores`, `Targets`, the batch) and returns
            a loss. Like the weights, they add up over the parts of a batch and over processes.
    """

    def __init__(self, teacher=None, terms=()):
        self.teacher, self.terms = teacher, terms

    def __call__(self, model, batch, normalizer=1):
        """The loss of a batch; see `training.objectives`."""
        soft_targets = self.teacher.scores(batch) if self.teacher else None
        inputs = {k: v for k, v in batch.items() if k != "targets"}
        output = label_scores(model, inputs)
        targets = batch["targets"].to(output.scores.device)
        total = self.total(output, targets, soft_targets)
        return sum((term(output, targets, inputs) for term in self.terms), total) / normalizer

    def total(self, output, weights, soft_targets=None):
        """Σ hard·CE + Σ soft·T²·KL(teacher / T || student / T).

        Args:
            output: `adapters.labels.LabelScores`.
            weights: `Targets`.
            soft_targets: [m, columns] the teacher's logits, or None.
        """
        scores, total = output.scores, output.scores.new_zeros((), dtype=torch.float32)
        if weights.hard is not None:
            label_losses = F.cross_entropy(scores.float(), output.targets.clamp(min=0), reduction="none")
            total = (label_losses * weights.hard).sum()
        if soft_targets is None:
            return total
        temperature, columns = self.teacher.temperature, self.teacher.columns
        ours = F.log_softmax(scores[weights.at].float() / temperature, dim=-1)
        if len(columns) < ours.shape[1]:
            ours = ours[:, columns.to(ours.device)]
        theirs = F.log_softmax(soft_targets.float() / temperature, dim=-1)
        # A token that the teacher rules out (-inf) contributes nothing, whatever the student's score.
        ruled_out = theirs == float("-inf")
        terms = theirs.exp() * (theirs - ours).masked_fill(ruled_out, 0.0)
        return total + temperature**2 * (terms.sum(-1) * weights.soft).sum()
