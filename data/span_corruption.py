"""Span corruption, the objective of T5 (Raffel et al. 2020, section 3.1.4).

15 % of a sequence's tokens are noise, in spans of 3 on average. In the input a sentinel replaces each span; the target
consists of the sentinels, each followed by the tokens it replaced:

    Thank you <extra_id_0> me to your party <extra_id_1> week .
    <extra_id_0> for inviting <extra_id_1> last

Every row's corruption depends only on (seed, epoch, row).
"""

import bisect

import numpy as np
import torch
from versatile.data.plain_text import text_ids
from versatile.utils.errors import UserError


def counts(length, density, mean_span):
    """(noise tokens, spans) for a sequence of `length` tokens: at least one of each, and one non-noise token."""
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_span), 1)
    # Every span is preceded by at least one token that is not noise.
    return noise, min(spans, noise, length - noise)


def noise_mask(length, density, mean_span, generator):
    """Which tokens are noise, bool [length]; the first token is not.

    Args:
        length: number of tokens, 2 or more.
        density: share of noise tokens.
        mean_span: mean length of a span.
        generator: `numpy.random.Generator`.
    """
    noise, spans = counts(length, density, mean_span)
    lengths = np.stack([_parts(length - noise, spans, generator), _parts(noise, spans, generator)], 1)
    return np.repeat(np.tile([False, True], spans), lengths.ravel())


def _parts(total, parts, generator):
    """`total` divided at random into `parts` parts of 1 or more."""
    cuts = np.sort(generator.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt(ids, mask, sentinels, eos):
    """(input, target) token ids, int32 arrays that end with `eos`.

    Args:
        ids: int [length].
        mask: bool [length], True for noise.
        sentinels: ids of the sentinels, in order; at least one for each span.
        eos: id of the end token.
    """
    first = mask & ~np.concatenate([[False], mask[:-1]])
    number = np.cumsum(first) - 1
    spans = int(first.sum())
    if spans > len(sentinels):
        raise ValueError(f"{spans} spans for {len(sentinels)} sentinels")
    marks = np.asarray(sentinels, dtype=np.int32)
    kept = np.where(mask, marks[np.maximum(number, 0)], ids)[~mask | first]
    target = []
    for span in range(spans):
        target += [marks[span : span + 1], ids[mask & (number == span)]]
    end = np.array([eos], dtype=np.int32)
    return np.concatenate([kept, end]).astype(np.int32), np.concatenate([*target, end]).astype(np.int32)


def lengths(limit, density, mean_span):
    """(longest sequence, length of its target) whose input has at most `limit` tokens, including the end token."""
    def input_length(length):
        noise, spans = counts(length, density, mean_span)
        return length - noise + spans + 1

    if input_length(2) > limit:
        raise UserError(f"{limit} tokens hold no corrupted sequence", location="--max_source_length",
                        expected=f"{input_length(2)} or more")  # fmt: skip
    longest = 2
    while input_length(2 * longest) <= limit:
        longest *= 2
    # The input grows with the sequence.
    longest += bisect.bisect_right(range(longest + 1, 2 * longest), limit, key=input_length)
    noise, spans = counts(longest, density, mean_span)
    return longest, noise + spans + 1


def sentinels_of(tokenizer):
    """Ids of <extra_id_0>, <extra_id_1>, …; raises `UserError` for a tokenizer without them."""
    sentinels, vocabulary = [], tokenizer.get_vocab()
    while f"<extra_id_{len(sentinels)}>" in vocabulary:
        sentinels.append(vocabulary[f"<extra_id_{len(sentinels)}>"])
    if not sentinels:
        raise UserError(
            "it has no sentinels (<extra_id_0> …)", location="--tokenizer_name", expected="a T5's tokenizer"
        )
    return sentinels


def chunks(texts, tokenizer, length):
    """All texts, concatenated and cut into sequences of `length` tokens: int32 [sequences, length].

    The remainder is dropped.

    Raises:
        UserError: the texts are shorter than one sequence.
    """
    pieces = []
    for start in range(0, len(texts), 1000):
        for ids in text_ids(tokenizer.backend_tokenizer, texts[start : start + 1000]):
            pieces.append(np.asarray(ids, dtype=np.int32))
    flat = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)
    rows = len(flat) // length
    if not rows:
        raise UserError(f"{len(flat)} tokens of text are less than one sequence of {length}", location="the texts",
                        remedy="give more text, or lower --max_source_length")  # fmt: skip
    return flat[: rows * length].reshape(rows, length)


class Corrupted(torch.utils.data.Dataset):
    """Sequences, corrupted differently in every epoch. Item n is row n % rows in epoch n // rows.

    Args:
        rows: int32 [sequences, length].
        sentinels, eos: token ids.
        density, mean_span: see `noise_mask`.
        seed: random seed of the corruption.
    """

    def __init__(self, rows, sentinels, eos, density=0.15, mean_span=3.0, seed=42):
        self.rows, self.sentinels, self.eos = rows, sentinels, eos
        self.density, self.mean_span, self.seed = density, mean_span, seed
        spans = counts(rows.shape[1], density, mean_span)[1]
        if spans > len(sentinels):
            found = f"{spans} spans per sequence for {len(sentinels)} sentinels"
            raise UserError(found, location="--mean_noise_span_length", remedy="longer spans, or shorter sequences")

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, n):
        epoch, row = divmod(int(n), len(self.rows))
        generator = np.random.default_rng([self.seed, epoch, row])
        mask = noise_mask(self.rows.shape[1], self.density, self.mean_span, generator)
        source, target = corrupt(self.rows[row], mask, self.sentinels, self.eos)
        return dict(input_ids=source, labels=target)


class EpochBatches:
    """Each row at most once per epoch, in full batches only; rows left over are not carried into the next epoch.

    Rows are numbered as in `Corrupted`, epoch · size + row. Two processes with batches of n see, step by step,
    what one process with batches of 2n sees.

    Args:
        size: number of rows.
        batch_size: rows per batch and process.
        seed: random seed of the order.
        replicas: number of processes.
    """

    def __init__(self, size, batch_size, seed=42, replicas=1):
        self.size, self.batch_size, self.seed, self.replicas = size, batch_size, seed, replicas
        if not len(self):
            problem = f"{size} sequences make less than one batch of {batch_size} for each of {replicas} processes"
            raise UserError(problem, remedy="make the batches smaller, or give more text")

    def __len__(self):
        return self.size // (self.batch_size * self.replicas)

    def draws(self, epoch):
        """For every batch of an epoch, the numbers of its rows, one list per process."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(self.size, generator=generator) + epoch * self.size
        step = self.batch_size * self.replicas
        for first in range(0, len(self) * step, step):
            yield [order[first + rank : first + step : self.replicas].tolist() for rank in range(self.replicas)]
