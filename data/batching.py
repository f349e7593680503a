"""The assignment of examples to batches, and the batches themselves.

The order is a pure function of (seed, epoch): a run resumed at step s continues with the s-th batch of the same
plan. Batches hold examples of similar length, padded to a multiple of 8; their number is the same in every epoch. The
batches of one optimizer step are of similar length as well, so they can be merged into larger parts. Every process of a
distributed run plans the same global batches and takes its own rows of each, so the number of processes changes
nothing.
"""

from dataclasses import dataclass

import numpy as np
from versatile.data.padding import causal_arrays, pad, padded_width, tensors
from versatile.utils.lengths import round_up


@dataclass
class Plan:
    """One epoch's batches.

    Attributes:
        order: [n] example indices.
        bounds: [batches + 1] start and end of each global batch in `order`.
    """

    order: np.ndarray
    bounds: np.ndarray

    def __len__(self):
        return len(self.bounds) - 1

    def __getitem__(self, step):
        """Example indices of one global batch."""
        return self.order[self.bounds[step] : self.bounds[step + 1]]


def plan(lengths, batch_size, *, world=1, max_tokens=None, seed=0, epoch=0, shuffle=True, accumulation=1):
    """Plan the batches of an epoch.

    Args:
        lengths: [n] tokens of each example.
        batch_size: examples per process and batch; ignored if `max_tokens` is given.
        world: number of processes; a global batch is this many times larger.
        max_tokens: instead of a fixed count, at most this many tokens (including padding) per process and batch.
        seed, epoch: determine the order.
        shuffle: False: one pass from short to long, for evaluation.
        accumulation: batches per optimizer step.
    """

    def bounds(sizes):
        if max_tokens is None:
            return bounds_by_count(len(sizes), batch_size * world)
        return _by_tokens(sizes, max_tokens, world)

    return plan_by_size(round_up(np.asarray(lengths)), bounds, seed=seed, epoch=epoch, shuffle=shuffle,
                        accumulation=accumulation)  # fmt: skip


def plan_by_size(sizes, bounds_of, *, seed=0, epoch=0, shuffle=True, accumulation=1):
    """A `Plan` whose batches, and whose successive groups of `accumulation` batches, hold examples of similar size.

    Args:
        sizes: [n] sizes of the examples.
        bounds_of: [n] sizes in ascending order -> [batches + 1] start and end of each batch.
        seed, epoch, shuffle, accumulation: as in `plan`.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(sizes)) if shuffle else np.arange(len(sizes))
    # The sort is stable: examples of one size stay in random order, so batches differ from epoch to epoch, while
    # their bounds, and hence their number, do not.
    order = order[np.argsort(sizes[order], kind="stable")]
    bounds = bounds_of(sizes[order])
    if shuffle and len(order):
        batches = np.split(order, bounds[1:-1])
        batches = [batches[i] for i in _shuffled(len(batches), accumulation, rng)]
        order, bounds = np.concatenate(batches), np.concatenate([[0], np.cumsum([len(b) for b in batches])])
    return Plan(order, bounds)


def _shuffled(count, accumulation, rng):
    """The numbers below `count` in random order, except that those of one optimizer step stay together."""
    whole, rest = divmod(count, accumulation)
    # The last step of an epoch may be short. Any batches can make it up, not only the longest ones.
    cut = accumulation * int(rng.integers(whole + 1)) if rest else count
    numbers = np.arange(count)
    steps = np.concatenate([numbers[:cut], numbers[cut + rest :]]).reshape(whole, accumulation)
    return np.concatenate([steps[rng.permutation(whole)].ravel(), numbers[cut : cut + rest]])


def bounds_by_count(n, size):
    """[batches + 1] start of each batch of `size`, and the end of the last one, for `n` examples."""
    return np.minimum(np.arange(-(-n // size) + 1) * size, n)


def _by_tokens(sizes, max_tokens, world):
    # Sizes come sorted, so the latest is the largest of its batch.
    bounds = [0]
    for i, size in enumerate(sizes.tolist()):
        rows = -(-(i + 1 - bounds[-1]) // world)
        if i > bounds[-1] and rows * size > max_tokens:
            bounds.append(i)
    return np.array([*bounds, len(sizes)] if len(sizes) else [0])


def _shares(counts, temperature):
    """How many examples of each task make up an epoch: at least one of each, `sum(counts)` in total."""
    # Relative to the largest, as a power of a size itself may be more than a number can hold.
    weights = (np.array(counts) / max(counts)) ** (1 / temperature)
    exact = sum(counts) * weights / weights.sum()
    shares = np.maximum(np.floor(exact).astype(int), 1)
    # What rounding down left over goes to the tasks that lost most by it.
    for i in np.argsort(shares - exact, kind="stable")[: max(0, sum(counts) - shares.sum())]:
        shares[i] += 1
    return shares


def draw_cyclic(size, first, count, seeds):
    """`count` numbers, from the `first`-th on, of an endless sequence of shuffled passes over range(`size`).

    Args:
        seeds: a list; with the number of the pass it determines the order of that pass.
    """
    passes = range(first // size, (first + count - 1) // size + 1)
    if not passes:
        return np.zeros(0, np.int64)
    orders = [np.random.default_rng([*seeds, number]).permutation(size) for number in passes]
    return np.concatenate(orders)[first - passes[0] * size :][:count]


class JoinedSplits:
    """The examples of several tasks' splits, concatenated.

    Args:
        splits: {task: `data.token_cache.EncodedSplit`}.
        counts: how many examples of each split to use (default: all).

    Attributes:
        tasks: the tasks' names.
        starts: [tasks + 1] index of each task's first example, then the total.
        lengths: [n] tokens of each example.
    """

    def __init__(self, splits, counts=None):
        self.tasks, self.splits = list(splits), list(splits.values())
        self.counts = np.array([len(split) for split in self.splits] if counts is None else counts)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.lengths = self.joined("lengths")

    def __len__(self):
        """Number of examples."""
        return int(self.starts[-1])

    def joined(self, column):
        """A column of all splits."""
        return np.concatenate([getattr(s, column)[:count] for s, count in zip(self.splits, self.counts)])

    def owners(self, indices):
        """The index of the split that each example belongs to."""
        return np.searchsorted(self.starts, indices, "right") - 1

    def examples(self, indices):
        """Indices -> a list of `EncodedExample`."""
        owners = self.owners(indices)
        return [self.splits[owner][i] for owner, i in zip(owners, indices - self.starts[owners])]


class Batches(JoinedSplits):
    """Batches of one or several encoded splits.

    Args:
        splits: {task: EncodedSplit}; a batch may mix tasks.
        task_ids: {task: the integer the model knows it by}.
        pad_id: the padding id.
        positions: the model's longest sequence; padding never exceeds it.
        limits: {task: N to use only the first N examples of its split, or None}.
        temperature: a task is drawn in proportion to its size to the power of 1/temperature (1: every example once per
            epoch; infinity: all tasks equally often). The number of examples in an epoch does not depend on it.
        rank, world: this process's rank and the number of processes.
        **planning: `batch_size`, `max_tokens`, `seed`, `shuffle`, `accumulation` of `plan`.
    """

    def __init__(self, splits, task_ids, pad_id, positions, *, limits=None, temperature=1.0, rank=0, world=1,
                 **planning):  # fmt: skip
        limits = limits or {}
        counts = [min(len(split), limits.get(task) or len(split)) for task, split in splits.items()]
        super().__init__(splits, counts)
        self.pad_id, self.positions, self.rank, self.world, self.planning = pad_id, positions, rank, world, planning
        # Labels per example: the target's text and eos; the first token of a sequence is never a label.
        self.labels = self.lengths - np.maximum(self.joined("prompt_lengths"), 1)
        self.task_ids = np.array([task_ids[task] for task in splits])
        # Names of tasks whose rows are left out of the batches.
        self.skip = set()
        self.shares = _shares(counts, temperature) if temperature != 1 else None
        self._epoch, self._plan, self._largest = None, None, None

    def plan(self, epoch=0):
        """This epoch's `Plan`; the same in every process."""
        if self._epoch != epoch:
            chosen = self.draw(epoch)
            self._plan = plan(self.lengths[chosen], world=self.world, epoch=epoch, **self.planning)
            self._plan.order = chosen[self._plan.order]
            self._epoch, self._largest = epoch, None
        return self._plan

    def draw(self, epoch):
        """Indices of the examples of an epoch. All of a task's examples are drawn once before any is drawn again."""
        if self.shares is None:
            return np.arange(len(self.lengths))
        drawn = []
        for number, (start, stop, share) in enumerate(zip(self.starts, self.starts[1:], self.shares)):
            seeds = [self.planning.get("seed", 0), number]
            drawn.append(start + draw_cyclic(stop - start, epoch * share, share, seeds))
        return np.concatenate(drawn)

    def batch(self, epoch, step):
        """One process's share of a global batch.

        Returns:
            (dict of tensors, number of labels in the *global* batch). Tensors: input_ids, token_type_ids,
            attention_mask, position_ids, labels [rows, length]; task_ids [rows]. A process that has no row
            left gets one row without labels; if no process has any, (None, 0).
        """
        chosen = self.chosen(epoch, step)
        if not len(chosen):
            return None, 0
        mine = chosen[self.rank :: self.world]
        batch = self.collate(mine if len(mine) else chosen[:1], masked=not len(mine))
        return batch, int(self.labels[chosen].sum())

    def merged(self, batches):
        """One process's share of several global batches of an epoch, in as few parts as fit into the memory of one.

        A pass over few rows takes nearly as long as one over more. A part holds rows of similar length, and no more
        tokens (including padding) or labels than the epoch's largest batch.

        Args:
            batches: [(epoch, step)] as `batch` takes them, the batches of an optimizer step.

        Returns:
            [(dict of tensors as from `batch`, divisor)]. A part's loss is the sum of its labels' losses divided by the
            divisor, one number or one per row [rows] float32; the mean over the parts is the mean of the batches' mean
            losses.
        """
        chosen = [rows for rows in (self.chosen(*batch) for batch in batches) if self.labels[rows].sum()]
        mine = [rows[self.rank :: self.world] for rows in chosen]
        rows = np.concatenate(mine) if mine else np.zeros(0, np.int64)
        parts = self._parts(rows, len(chosen), *self.largest(batches[0][0]))
        if not parts:
            return [micro_batch for micro_batch in (self.batch(*batch) for batch in batches) if micro_batch[1]]
        labels = [int(self.labels[batch].sum()) for batch in chosen]
        divisors = np.repeat(labels, list(map(len, mine))) * (len(chosen) / len(parts))
        return [(self.collate(rows[part]), tensors(dict(rows=divisors[part]))["rows"]) for part in parts]

    def _parts(self, rows, count, tokens, labels):
        """Positions in `rows` of each part, in `collate`'s order; None unless fewer than `count` parts suffice."""
        order = np.argsort(self.lengths[rows], kind="stable")
        for number in range(1, min(count, len(rows) + 1)):
            parts = np.array_split(order, number)
            if all(self._padded(rows[p]) <= tokens and self.labels[rows[p]].sum() <= labels for p in parts):
                return [part[np.argsort(self.owners(rows[part]), kind="stable")] for part in parts]
        return None

    def largest(self, epoch):
        """(most tokens, including padding; most labels) in this process's share of any of an epoch's batches."""
        epoch_plan = self.plan(epoch)
        if self._largest is None:
            batches = [epoch_plan[step][self.rank :: self.world] for step in range(len(epoch_plan))]
            self._largest = tuple(max(size(rows) for rows in batches if len(rows)) for size in
                                  (self._padded, lambda rows: self.labels[rows].sum()))  # fmt: skip
        return self._largest

    def _padded(self, rows):
        return len(rows) * min(round_up(int(self.lengths[rows].max())), self.positions)

    def chosen(self, epoch, step):
        """Example indices of a global batch, excluding skipped tasks."""
        chosen = self.plan(epoch)[step]
        if self.skip:
            skipped = [task in self.skip for task in self.tasks]
            chosen = chosen[~np.array(skipped)[self.owners(chosen)]]
        return chosen

    def present(self, epoch, step):
        """Names of the tasks in a global batch."""
        return {self.tasks[i] for i in np.unique(self.owners(self.chosen(epoch, step)))}

    def collate(self, indices, masked=False):
        """Examples by index -> dict of tensors, padded on the right; rows of one task are adjacent."""
        indices = indices[np.argsort(self.owners(indices), kind="stable")]
        rows = self.examples(indices)
        ids = [row.ids for row in rows]
        width = padded_width(ids, self.positions)
        starts = [width if masked else row.prompt_length for row in rows]
        arrays = causal_arrays(ids, starts, width, self.pad_id)
        arrays["token_type_ids"] = pad([row.types for row in rows], width, self.pad_id)
        return tensors(arrays | dict(task_ids=self.task_ids[self.owners(indices)]))
