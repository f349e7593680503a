"""Which examples make up which batch, and the batch itself.

The order is a pure function of (seed, epoch): a run resumed at step s continues with the s-th batch of the same
plan. Batches hold examples of like length, padded to a multiple of 8, and are as many in every epoch. Every
process of a distributed run plans the same global batches and takes its own rows of each, so the number of
processes changes nothing.
"""

from dataclasses import dataclass

import numpy as np

ROUND = 8


@dataclass
class Plan:
    """One epoch's batches.

    Attributes:
        order: [n] example indices.
        bounds: [batches + 1] where each global batch starts and ends in `order`.
    """

    order: np.ndarray
    bounds: np.ndarray

    def __len__(self):
        return len(self.bounds) - 1

    def __getitem__(self, step):
        """Example indices of one global batch."""
        return self.order[self.bounds[step] : self.bounds[step + 1]]


def plan(lengths, batch_size, *, world=1, max_tokens=None, seed=0, epoch=0, shuffle=True):
    """Lay out an epoch.

    Args:
        lengths: [n] tokens of each example.
        batch_size: examples a process and batch; without effect if `max_tokens` is given.
        world: number of processes; a global batch is this many times larger.
        max_tokens: instead of a count, at most this many tokens (padding counted) a process and batch.
        seed, epoch: what the order depends on.
        shuffle: False: one pass from short to long, for evaluation.
    """
    sizes = rounded(np.asarray(lengths))
    n = len(sizes)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(n) if shuffle else np.arange(n)
    # The sort is stable: examples of one rounded length stay in random order, so batches differ from epoch to
    # epoch while their bounds, and so their number, do not.
    order = order[np.argsort(sizes[order], kind="stable")]
    bounds = _by_count(n, batch_size * world) if max_tokens is None else _by_tokens(sizes[order], max_tokens, world)
    if shuffle and n:
        pieces = np.split(order, bounds[1:-1])
        pieces = [pieces[i] for i in rng.permutation(len(pieces))]
        order, bounds = np.concatenate(pieces), np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
    return Plan(order, bounds)


def rounded(length):
    """Length rounded up to a multiple of 8: fewer shapes, so fewer kernels to prepare."""
    return -(-length // ROUND) * ROUND


def _by_count(n, size):
    return np.minimum(np.arange(-(-n // size) + 1) * size, n)


def _by_tokens(sizes, max_tokens, world):
    # Sizes come sorted, so the newest is the longest of its batch.
    bounds = [0]
    for i, size in enumerate(sizes.tolist()):
        rows = -(-(i + 1 - bounds[-1]) // world)
        if i > bounds[-1] and rows * size > max_tokens:
            bounds.append(i)
    return np.array([*bounds, len(sizes)] if len(sizes) else [0])


def _shares(counts, temperature):
    """How many examples of each task make up an epoch: at least one of each, `sum(counts)` in all."""
    weights = np.array(counts) ** (1 / temperature)
    exact = sum(counts) * weights / weights.sum()
    shares = np.maximum(np.floor(exact).astype(int), 1)
    # What rounding down left over goes to those that lost most by it.
    for i in np.argsort(shares - exact, kind="stable")[: max(0, sum(counts) - shares.sum())]:
        shares[i] += 1
    return shares


class Batches:
    """Batches of one or several encoded splits.

    Args:
        splits: {task: EncodedSplit}; a batch may mix tasks.
        task_ids: {task: the integer the model knows it by}.
        pad_id: id that fills rows up.
        positions: the model's longest sequence; padding never exceeds it.
        limits: {task: use only the first so many examples of its split, or None}.
        temperature: how often a task is drawn: in proportion to its size to the power of 1/temperature (1: every
            example once an epoch; infinity: all tasks alike). An epoch has as many examples in any case.
        rank, world: this process and how many there are.
        **planning: `batch_size`, `max_tokens`, `seed`, `shuffle` of `plan`.
    """

    def __init__(self, splits, task_ids, pad_id, positions, *, limits=None, temperature=1.0, rank=0, world=1,
                 **planning):  # fmt: skip
        self.pad_id, self.positions, self.rank, self.world, self.planning = pad_id, positions, rank, world, planning
        self.splits = list(splits.values())
        limits = limits or {}
        counts = [min(len(split), limits.get(task) or len(split)) for task, split in splits.items()]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.lengths = np.concatenate([s.lengths[:c] for s, c in zip(self.splits, counts)])
        prompts = np.concatenate([s.prompt_lengths[:c] for s, c in zip(self.splits, counts)])
        # Positions of labels: the target's text and eos; the first token of a sequence is never a label.
        self.labels = self.lengths - np.maximum(prompts, 1)
        self.tasks, self.task_ids = list(splits), [task_ids[task] for task in splits]
        # Names of tasks whose rows are left out of the batches.
        self.skip = set()
        self.shares = _shares(counts, temperature) if temperature != 1 else None
        self._epoch, self._plan = None, None

    def __len__(self):
        """Number of examples."""
        return len(self.lengths)

    def plan(self, epoch=0):
        """This epoch's `Plan`; the same in every process."""
        if self._epoch != epoch:
            chosen = self.draw(epoch)
            self._plan = plan(self.lengths[chosen], world=self.world, epoch=epoch, **self.planning)
            self._plan.order = chosen[self._plan.order]
            self._epoch = epoch
        return self._plan

    def draw(self, epoch):
        """Indices of the examples of an epoch. A task's examples all come once before any comes again."""
        if self.shares is None:
            return np.arange(len(self.lengths))
        drawn = []
        for number, (start, stop, share) in enumerate(zip(self.starts, self.starts[1:], self.shares)):
            size, first = stop - start, epoch * share
            passes = range(first // size, (first + share - 1) // size + 1)
            seed = self.planning.get("seed", 0)
            orders = [np.random.default_rng([seed, number, p]).permutation(size) for p in passes]
            drawn.append(start + np.concatenate(orders)[first - passes[0] * size :][:share])
        return np.concatenate(drawn)

    def batch(self, epoch, step):
        """One process's share of a global batch.

        Returns:
            (dict of tensors, labels in the *global* batch). Tensors: input_ids, token_type_ids,
            attention_mask, position_ids, labels [rows, length]; task_ids [rows]. A process that has no row
            left gets one row without labels; where no process has one, (None, 0).
        """
        chosen = self.chosen(epoch, step)
        if not len(chosen):
            return None, 0
        mine = chosen[self.rank :: self.world]
        batch = self.collate(mine if len(mine) else chosen[:1], masked=not len(mine))
        return batch, int(self.labels[chosen].sum())

    def chosen(self, epoch, step):
        """Example indices of a global batch, without those of skipped tasks."""
        chosen = self.plan(epoch)[step]
        if self.skip:
            skipped = [task in self.skip for task in self.tasks]
            chosen = chosen[~np.array(skipped)[self.owners(chosen)]]
        return chosen

    def present(self, epoch, step):
        """Names of the tasks in a global batch."""
        return {self.tasks[i] for i in np.unique(self.owners(self.chosen(epoch, step)))}

    def owners(self, indices):
        """The number of the split that each example belongs to."""
        return np.searchsorted(self.starts, indices, "right") - 1

    def collate(self, indices, masked=False):
        """Examples by index -> dict of tensors, padded on the right; rows of a task stand together."""
        import torch

        indices = indices[np.argsort(self.owners(indices), kind="stable")]
        where = self.owners(indices)
        rows = [self.splits[w][i - self.starts[w]] for w, i in zip(where, indices)]
        length = min(rounded(max(len(ids) for ids, _, _ in rows)), self.positions)
        shape = (len(rows), length)
        ids, types = np.full(shape, self.pad_id), np.full(shape, self.pad_id)
        labels, mask = np.full(shape, -100), np.zeros(shape, np.int64)
        for r, (row_ids, row_types, prompt) in enumerate(rows):
            n = len(row_ids)
            ids[r, :n], types[r, :n], mask[r, :n] = row_ids, row_types, 1
            if not masked:
                labels[r, prompt:n] = row_ids[prompt:]
        positions = np.broadcast_to(np.arange(length), shape)
        arrays = dict(input_ids=ids, token_type_ids=types, attention_mask=mask, position_ids=positions, labels=labels,
                      task_ids=np.array([self.task_ids[w] for w in where]))  # fmt: skip
        return {name: torch.from_numpy(np.ascontiguousarray(a).astype(np.int64)) for name, a in arrays.items()}
