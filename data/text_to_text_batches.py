"""Tokenised text-to-text examples, and the batches that a sampler draws of them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from versatile.data.padding import IGNORE, pad, tensors, token_mask


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
        sources, targets = ([row[name] for row in rows] for name in ("input_ids", "labels"))
        source_width, width = (self.width(i, map(len, lists)) for i, lists in enumerate((sources, targets)))
        padded = pad(targets, width, self.pad)
        labels = pad(targets, width, IGNORE) if self.ignore_pad else padded
        batch = dict(input_ids=pad(sources, source_width, self.pad), attention_mask=token_mask(sources, source_width),
                     decoder_input_ids=np.insert(padded[:, :-1], 0, self.start, axis=1), labels=labels)  # fmt: skip
        return tensors(batch | (dict(task_ids=np.array([row["task_id"] for row in rows])) if self.tasks else {}))

    def width(self, which, lengths):
        """Tokens that sources (0) or targets (1) of these lengths are padded to."""
        return self.lengths[which] if self.lengths else max(lengths)


class SampledBatches:
    """Batches that a sampler draws, as `training.trainer.Trainer` takes them.

    Args:
        rows: indexed by what the sampler draws, gives what `collate` takes.
        sampler: `draws(epoch)` yields for each batch the numbers of its rows, one list per process; its length is the
            number of batches of an epoch.
        collate: `Collator`.
        target_lengths: int array, the labels of every row by number, the same again in each epoch.
        accumulation: batches of an optimizer step: a label weighs alike in whichever of them it stands.
        rank: this process.
        splits: tasks; with several of them parameters may be without a gradient.
    """

    def __init__(self, rows, sampler, collate, target_lengths, accumulation=1, rank=0, splits=()):
        self.rows, self.sampler, self.collate, self.lengths = rows, sampler, collate, target_lengths
        self.accumulation, self.rank, self.splits, self.skip = accumulation, rank, splits, set()
        # Draws come one after another: (epoch, number of the next, iterator), and the step's that is being taken.
        self._draws, self._window = (None, 0, None), (None, [])

    def plan(self, epoch=0):
        """The numbers of an epoch's batches."""
        return range(len(self.sampler))

    def batch(self, epoch, number):
        """One process's share of a batch.

        Returns:
            (dict of tensors; the labels of all processes and batches of its optimizer step, over the number of these
            batches)
        """
        first = number - number % self.accumulation
        if self._window[0] != (epoch, first):
            last = min(first + self.accumulation, len(self.sampler))
            self._window = (epoch, first), [self._draw(epoch, n) for n in range(first, last)]
        draws = self._window[1]
        labels = sum(self.labels(rows) for shares in draws for rows in shares) / len(draws)
        return self.collate([self.rows[i] for i in draws[number - first][self.rank]]), labels

    def labels(self, rows):
        """How many labels a batch of rows by number has."""
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
