"""Tokenised text-to-text examples, and the batches that a sampler draws from them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from versatile.data.padding import IGNORE, pad, tensors, token_mask


class Rows(torch.utils.data.Dataset):
    """Tokenised examples of one task.

    Args:
        task_id: the model's id of the task.
        sources, targets: `FlatLists` of token ids, of equal length.
        texts: the sequence of target texts, for scoring.
    """

    def __init__(self, task_id, sources, targets, texts):
        self.task_id, self.sources, self.targets, self.texts = task_id, sources, targets, texts

    def __len__(self):
        return len(self.sources)

    def __getitem__(self, i):
        return dict(input_ids=self.sources[i], labels=self.targets[i], task_id=self.task_id)

    def fingerprint(self):
        """A hash of all token ids."""
        digest = hashlib.sha256()
        for column in (self.sources, self.targets):
            column.update_digest(digest)
        return digest.hexdigest()[:16]


@dataclass
class Collator:
    """Rows -> a batch: input_ids, attention_mask, decoder_input_ids, labels, task_ids.

    Attributes:
        pad, start: ids of padding and of the decoder's first token.
        ignore_pad: whether padding in the labels is excluded from the loss.
        lengths: (source, target) lengths to pad to; None: the longest in the batch. On XLA every new shape causes a
            compilation.
        tasks: whether the model takes task ids.
    """

    pad: int
    start: int
    ignore_pad: bool = True
    lengths: tuple | None = None
    tasks: bool = True

    def __call__(self, rows):
        sources, targets = ([row[name] for row in rows] for name in ("input_ids", "labels"))
        source_width, width = (self.width(i, map(len, lists)) for i, lists in enumerate((sources, targets)))
        padded = pad(targets, width, self.pad)
        labels = pad(targets, width, IGNORE) if self.ignore_pad else padded
        batch = dict(input_ids=pad(sources, source_width, self.pad), attention_mask=token_mask(sources, source_width),
                     decoder_input_ids=np.insert(padded[:, :-1], 0, self.start, axis=1), labels=labels)  # fmt: skip
        return tensors(batch | (dict(task_ids=np.array([row["task_id"] for row in rows])) if self.tasks else {}))

    def width(self, which, lengths):
        """The width that sources (0) or targets (1) of these lengths are padded to."""
        return self.lengths[which] if self.lengths else max(lengths)


class SampledBatches:
    """Batches drawn by a sampler, as `training.trainer.Trainer` takes them.

    Args:
        rows: a sequence, indexed by the numbers that the sampler draws, of what `collate` takes.
        sampler: `draws(epoch)` yields for each batch the numbers of its rows, one list per process; its length is the
            number of batches per epoch.
        collate: `Collator`.
        target_lengths: int array, the number of labels of every row, the same in each epoch.
        accumulation: batches per optimizer step; a label has the same weight whichever of them it is in.
        rank: this process's rank.
        splits: tasks; if there are several, some parameters may get no gradient.
    """

    def __init__(self, rows, sampler, collate, target_lengths, accumulation=1, rank=0, splits=()):
        self.rows, self.sampler, self.collate, self.lengths = rows, sampler, collate, target_lengths
        self.accumulation, self.rank, self.splits, self.skip = accumulation, rank, splits, set()
        # Draws are made in order: (epoch, number of the next draw, iterator), and the draws of the current step.
        self._draws, self._window = (None, 0, None), (None, [])

    def plan(self, epoch=0):
        """The numbers of an epoch's batches."""
        return range(len(self.sampler))

    def batch(self, epoch, number):
        """One process's share of a batch.

        Returns:
            (dict of tensors; the number of labels in all processes and batches of its optimizer step, divided by the
            number of these batches)
        """
        first = number - number % self.accumulation
        if self._window[0] != (epoch, first):
            last = min(first + self.accumulation, len(self.sampler))
            self._window = (epoch, first), [self._draw(epoch, n) for n in range(first, last)]
        draws = self._window[1]
        labels = sum(self.labels(rows) for shares in draws for rows in shares) / len(draws)
        return self.collate([self.rows[i] for i in draws[number - first][self.rank]]), labels

    def labels(self, rows):
        """The number of labels in a batch, given the numbers of its rows."""
        lengths = [int(self.lengths[i % len(self.lengths)]) for i in rows]
        return sum(lengths) if self.collate.ignore_pad else len(lengths) * self.collate.width(1, lengths)

    def _draw(self, epoch, number):
        known, following, draws = self._draws
        if known != epoch or following > number:
            following, draws = 0, iter(self.sampler.draws(epoch))
        for _ in range(following, number + 1):
            shares = next(draws)
        self._draws = epoch, number + 1, draws
        return shares
