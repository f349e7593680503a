"""The assignment of rows of GLUE's tasks to batches. A batch may mix tasks.

All orders are pure functions of (seed, epoch, step): a run resumed at step s continues with batch s. Every process
of a distributed run plans the same global batches and takes its own rows of each. A row's weight in the loss is its
weight in the *global* batch, whose loss is the mean over its tasks of the mean over each task's rows.
"""

import numpy as np
from versatile.data.batching import JoinedSplits, Plan, bounds_by_count, draw_cyclic
from versatile.data.padding import pad, padded_width, tensors, token_mask

# Number of batches whose tasks are remembered: more than any optimizer step consists of.
MOST_KEPT = 1024


def pair_inputs(rows, pad_id, longest):
    """`EncodedExample`s -> arrays [rows, length], padded on the right to a multiple of 8, at most to `longest`."""
    ids = [row.ids for row in rows]
    width = padded_width(ids, longest)
    return dict(input_ids=pad(ids, width, pad_id), token_type_ids=pad([row.types for row in rows], width, 0),
                attention_mask=token_mask(ids, width))  # fmt: skip


def equal_share_steps(counts, batch_size, percent):
    """Batches of an epoch in which all tasks have the same share: int(most batches of a task · tasks · percent), at
    least 1.

    Args:
        counts: rows of each task.
        batch_size: rows of a batch, of all processes together.
        percent: a share, clipped to 0 to 1.
    """
    most = -(-int(max(counts)) // batch_size)
    return max(1, int(most * len(counts) * min(max(percent, 0.0), 1.0)))


class PairBatches(JoinedSplits):
    """Batches of several tasks, as `training.trainer.Trainer` takes them.

    Without `uniform`, an epoch is every row of every task once, in random order, so tasks are drawn in proportion to
    their size. With it, every task is drawn equally often, all of a task's rows once before any again, and an epoch has
    int(most batches of a task · tasks · uniform) batches.

    Args:
        splits: {task: `data.token_cache.EncodedSplit`}.
        task_ids: {task: the integer the model knows it by}.
        pad_id: the padding id.
        longest: maximum number of tokens in a row.
        batch_size: rows per batch and process.
        uniform: share of the largest task's rows that each task contributes to an epoch, or None.
        seed: random seed of the order.
        rank, world: this process's rank and the number of processes.
        rows_at_once: split a batch into parts of at most this many rows of similar length, whose losses add up to the
            batch's; None: do not split. On a CPU an extra part costs less than padding short rows to the longest of a
            mixed batch.

    Attributes:
        tracker: `CoverageTracker` of what has been drawn so far.
    """

    def __init__(self, splits, task_ids, pad_id, longest, batch_size, *, uniform=None, seed=0, rank=0, world=1,
                 rows_at_once=None):  # fmt: skip
        super().__init__(splits)
        self.task_ids = np.array([task_ids[task] for task in splits])
        self.pad_id, self.longest, self.size, self.uniform = pad_id, longest, batch_size * world, uniform
        self.seed, self.rank, self.world, self.rows_at_once = seed, rank, world, rows_at_once
        self.labels = self.joined("labels")
        self.tracker, self.skip = CoverageTracker(dict(zip(self.tasks, self.counts.tolist()))), set()
        self._planned, self._present = None, {}

    def plan(self, epoch=0):
        """This epoch's `Plan`; the same in every process."""
        if self._planned is None or self._planned[0] != epoch:
            order = self.shuffled(epoch)
            self._planned = epoch, Plan(order, bounds_by_count(len(order), self.size))
        return self._planned[1]

    def shuffled(self, epoch):
        """Rows of an epoch, by their index among all tasks' rows."""
        rows = np.arange(len(self)) if self.uniform is None else self.equal_shares(epoch)
        return rows[np.random.default_rng([self.seed, epoch]).permutation(len(rows))]

    def equal_shares(self, epoch):
        """Equally many rows of every task, give or take one, continuing where the last epoch ended."""
        total, tasks = equal_share_steps(self.counts, self.size, self.uniform) * self.size, len(self.tasks)
        # Which tasks get the rows that cannot be divided evenly changes from epoch to epoch.
        share = [(total * (epoch + 1) + i) // tasks - (total * epoch + i) // tasks for i in range(tasks)]
        before = [(total * epoch + i) // tasks - i // tasks for i in range(tasks)]
        drawn = [self.endless(i, before[i], share[i]) for i in range(tasks)]
        return np.concatenate(drawn)

    def endless(self, number, first, count):
        """`count` rows of a task, from the `first`-th on, of an endless sequence of shuffled passes over its rows."""
        return self.starts[number] + draw_cyclic(int(self.counts[number]), first, count, [self.seed, 1 + number])

    def chosen(self, epoch, step):
        """Rows of a global batch, by their index among all tasks' rows."""
        return self.plan(epoch)[step]

    def present(self, epoch, step):
        """Names of the tasks in a recently drawn global batch."""
        return self._present[epoch, step]

    def batch(self, epoch, step):
        """One process's share of a global batch; the batch's rows are recorded as seen.

        Returns:
            (dict of tensors, or a list of them with `rows_at_once`; 1). Tensors: input_ids, token_type_ids,
            attention_mask [rows, length]; task_ids, labels, weights [rows]. The weights of all processes' rows add up
            to 1. A process that has no row left gets one with weight 0.
        """
        chosen = self.chosen(epoch, step)
        self.note(chosen)
        owners = self.owners(chosen)
        self._present[epoch, step] = {self.tasks[number] for number in np.unique(owners)}
        if len(self._present) > MOST_KEPT:
            del self._present[next(iter(self._present))]
        _, task, count = np.unique(owners, return_inverse=True, return_counts=True)
        weights = (self.rank < len(chosen)) / (len(count) * count[task])
        mine = slice(self.rank, None, self.world) if self.rank < len(chosen) else slice(0, 1)
        rows, weights, size = chosen[mine], weights[mine], self.rows_at_once
        if not size or len(rows) <= size:
            return self.labelled(rows, weights), 1
        order = np.argsort(self.lengths[rows], kind="stable")
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        return [self.labelled(rows[part], weights[part]) for part in parts], 1

    def labelled(self, rows, weights):
        """Rows by index -> tensors."""
        return tensors(self.inputs(rows) | dict(labels=self.labels[rows], weights=weights))

    def inputs(self, rows):
        """Rows by index -> arrays, without labels."""
        inputs = pair_inputs(self.examples(rows), self.pad_id, self.longest)
        return inputs | dict(task_ids=self.task_ids[self.owners(rows)])

    def note(self, rows):
        owners = self.owners(rows)
        for number in np.unique(owners):
            self.tracker.add(self.tasks[number], rows[owners == number] - self.starts[number])


class CandidateBatches(PairBatches):
    """Batches selected from candidates, one batch of each task (MT-Uncertainty, Pilault et al. 2021, 3.3).

    A task whose rows have all been candidates starts again, in another order; its last batch may be short. An
    epoch has int(most batches of a task · tasks · percent) steps.

    Args:
        *args, **options: as in `PairBatches`.
        select: (these batches, row indices of the candidates, how many to keep) -> positions of the ones to keep.
        percent: see above, clipped to 0–1.
    """

    def __init__(self, *args, select, percent=1.0, **options):
        super().__init__(*args, **options)
        self.select, self.percent = select, percent
        self._orders = {}

    def plan(self, epoch=0):
        return range(equal_share_steps(self.counts, self.size, self.percent))

    def candidates(self, epoch, step):
        """Rows of one batch of every task, task by task."""
        candidates = []
        for number, size in enumerate(self.counts.tolist()):
            turn, batch = divmod(step, -(-size // self.size))
            order = self._order(number, epoch, turn)
            candidates.append(self.starts[number] + order[batch * self.size :][: self.size])
        return np.concatenate(candidates)

    def _order(self, number, epoch, turn):
        key = epoch, turn
        if self._orders.get(number, (None,))[0] != key:
            rng = np.random.default_rng([self.seed, epoch, 1 + number, turn])
            self._orders[number] = key, rng.permutation(int(self.counts[number]))
        return self._orders[number][1]

    def chosen(self, epoch, step):
        candidates = self.candidates(epoch, step)
        keep = self.select(self, candidates, min(self.size, len(candidates)))
        return candidates[keep]


class CoverageTracker:
    """Tracks which rows of each task have been in a batch, and how many rows were drawn.

    Args:
        sizes: {task: number of rows}.

    Attributes:
        counts: {task: rows drawn so far, counting repetitions}.
        rows: {task: bool [rows], whether each row has been in a batch}.
    """

    def __init__(self, sizes):
        self.counts = dict.fromkeys(sizes, 0)
        self.rows = {task: np.zeros(size, bool) for task, size in sizes.items()}

    def add(self, task, rows):
        """Record the rows of a task that are in a batch."""
        self.counts[task] += len(rows)
        self.rows[task][rows] = True

    def shares(self):
        """{task: share of its rows that have been in a batch, 0–1}."""
        return {task: float(rows.mean()) for task, rows in self.rows.items()}

    def state_dict(self):
        import torch

        packed = {task: torch.from_numpy(np.packbits(rows)) for task, rows in self.rows.items()}
        return dict(counts=dict(self.counts), rows=packed)

    def load_state_dict(self, state):
        self.counts = dict(state["counts"])
        sizes = {task: len(rows) for task, rows in self.rows.items()}
        self.rows = {t: np.unpackbits(p.numpy(), count=sizes[t]).astype(bool) for t, p in state["rows"].items()}
