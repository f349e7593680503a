"""Batches of a task sequence: as many samples as the device's memory is expected to take, both objectives in one.

A batch of n samples, the longest of l tokens, fits a budget b where n·l^1.163 ≤ b (LAMOL). What the budget of a device
is depends on how it is trained. Whoever runs out of memory nevertheless halves it, see `BackOff`.
"""

import os
from pathlib import Path

import numpy as np
import torch
from versatile.data.batching import plan_by_size
from versatile.data.padding import IGNORE, causal_arrays, padded_width, tensors
from versatile.data.row_store import RowChain
from versatile.lifelong.losses import Targets
from versatile.training.callbacks import Callback
from versatile.utils.errors import UserError, first_line

LENGTH_POWER = 1.163
HALF_PRECISION, WITH_TEACHER = 1.4, 0.7


def memory_mib(device):
    """The memory of a GPU in MiB; on a CPU that of the machine, or what its container may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            memory = min(memory, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return memory / 2**20


def budget(share, mib, half=False, teacher=False):
    """What n·longest^1.163 may be.

    Args:
        share: of the memory, the strategy's (`strategies.base.Strategy.memory_share`).
        mib: `memory_mib` of the device.
        half: matrix products run in half precision.
        teacher: a second model stands beside the one that learns.
    """
    return mib * share * (HALF_PRECISION if half else 1) * (WITH_TEACHER if teacher else 1)


def most_samples(size, min_n_steps=1500, min_batch_size=4):
    """The most samples a batch may have: an epoch of `size` samples is to have `min_n_steps` of them."""
    return max(size // min_n_steps, min_batch_size)


def fill(lengths, budget, cap):
    """Fill batches in order.

    A sample that is beyond the budget by itself is a batch of its own. The original makes an empty batch, which
    crashes, of an over-long first sample, and counts a batch behind one closed by its cap wrong by one.

    Args:
        lengths: [n] tokens of the samples, in order.
        budget, cap: of one batch.

    Returns:
        [batches + 1] where each batch starts and ends.
    """
    bounds, longest = [0], 0
    for i, length in enumerate(lengths):
        longest, count = max(longest, length), i + 1 - bounds[-1]
        if count > 1 and (count > cap or count * longest**LENGTH_POWER > budget):
            bounds.append(i)
            longest = length
    return np.array([*bounds, len(lengths)] if len(lengths) else [0])


def plan(lengths, budget, cap, *, seed=0, epoch=0, shuffle=True):
    """Lay out an epoch: a `data.batching.Plan`.

    Batches are drawn as in `data.batching.plan`: samples of like length together, the batches in random order, as
    many in every epoch. (In the originals each has lengths as they come, and is filled up with padding.)

    Args:
        lengths: [n] tokens of the samples.
        budget, cap: of one batch in all processes together.
        seed, epoch: what the order depends on.
        shuffle: False: one pass from short to long, for what is not trained on.
    """
    return plan_by_size(np.asarray(lengths), lambda sizes: fill(sizes.tolist(), budget, cap), seed=seed, epoch=epoch,
                        shuffle=shuffle)  # fmt: skip


class LifelongBatches:
    """Batches of rows, as `Trainer` takes them.

    Args:
        rows: a sequence of `question_answer.Row`, of one task or several.
        objective: `losses.Objective`.
        pad_id: id that fills rows up.
        positions: the model's longest sequence.
        budget: see above, of one process.
        cap: the most samples of a batch, in all processes together.
        task_ids: {task: the id its rows have in the model} of all tasks of the model, or None where those share all.
        weighted: with `Targets` for `WeightedLoss`; False: the labels of the answers alone, for a validation loss.
        rank, world: this process and how many there are.
        seed, shuffle: as in `plan`.
        companions: (epoch, step, samples of the batch) -> a list of rows that are trained on in the same batch.

    Attributes:
        pieces: how many parts a batch is taken in. A resumed run begins with one again.
    """

    def __init__(self, rows, objective, pad_id, positions, budget, cap, *, task_ids=None, weighted=True, rank=0,
                 world=1, seed=0, shuffle=True, companions=None):  # fmt: skip
        self.rows, self.objective, self.pad_id, self.positions = rows, objective, pad_id, positions
        self.budget, self.cap, self.task_ids, self.weighted = budget, cap, task_ids, weighted
        self.rank, self.world, self.planning = rank, world, dict(seed=seed, shuffle=shuffle)
        self.companions = companions or (lambda epoch, step, count: [])
        self.lengths = RowChain([rows]).lengths()
        # With task ids a task has parameters of its own, also one without a row here.
        self.splits = list(dict.fromkeys(row.task for row in rows) if task_ids is None else task_ids)
        self.skip, self.pieces = set(), 1
        self._planned = None
        if len(rows) and (longest := self.lengths.max() + 2) > positions:
            raise UserError(f"a sample has {longest} tokens", location="--model_checkpoint",
                            expected=f"at most {positions}, the model's positions",
                            remedy="encode it with a smaller max_len")  # fmt: skip

    def __len__(self):
        """Number of samples."""
        return len(self.rows)

    def plan(self, epoch=0):
        """This epoch's `Plan`; the same in every process."""
        key = epoch, self.budget, self.cap
        if self._planned is None or self._planned[0] != key:
            self._planned = key, plan(self.lengths, self.budget * self.world, self.cap, epoch=epoch, **self.planning)
        return self._planned[1]

    def batch(self, epoch, step):
        """One process's share of a global batch.

        Returns:
            (dict of tensors, divisor of the loss). With `weighted` the divisor is 1: the weights say it all, summed
            over the processes. Otherwise it is the number of labels in the global batch. With `pieces` over 1 there
            is a list of dicts.
        """
        if self.pieces > 1:
            return self.split_batch(epoch, step, self.pieces)
        return self.collate(self.batch_rows(epoch, step), slice(self.rank, None, self.world))

    def batch_rows(self, epoch, step):
        """The rows of a global batch, companions last."""
        chosen = self.plan(epoch)[step]
        return [self.rows[i] for i in chosen] + self.companions(epoch, step, len(chosen))

    def split_batch(self, epoch, step, count):
        """`batch` in `count` parts (or as many as it has samples) whose losses, and gradients, add up to its own."""
        rows = self.batch_rows(epoch, step)
        count = max(1, min(count, len(rows[self.rank :: self.world])))
        starts = range(self.rank, self.rank + count * self.world, self.world)
        parts = [self.collate(rows, slice(start, None, count * self.world)) for start in starts]
        return [batch for batch, _ in parts], parts[0][1]

    def seen(self, micro_batches):
        """How many samples have been seen, in all epochs, before the micro-batches [(epoch, number)] of a step."""
        epoch, step = micro_batches[0]
        return epoch * len(self) + int(self.plan(epoch).bounds[step])

    def present(self, epoch, step):
        """Names of the tasks in a global batch."""
        return {row.task for row in self.batch_rows(epoch, step)}

    def collate(self, rows, share=slice(None)):
        """Rows of samples -> (dict of tensors, divisor), padded on the right.

        Every sample has a row for each objective. Only the samples of `share` are in the tensors; the weights of
        their labels are those that they have among all of `rows`.
        """
        sequences = [(i, *parts) for i, row in enumerate(rows) for parts in self._sequences(row)]
        owners, parts, ids, starts = zip(*sequences)
        owner = np.array(owners)
        arrays = causal_arrays(ids, starts, padded_width(ids, self.positions), self.pad_id)
        labels = arrays["labels"]
        mine = np.isin(owner, np.arange(len(rows))[share])
        alone = not mine.any()
        if alone:
            # A process without a row of its own takes part with one that has no labels.
            mine[0] = True
        if self.task_ids is not None:
            arrays["task_ids"] = np.array([self.task_ids[rows[i].task] for i in owner])
        batch = tensors({name: array[mine] for name, array in arrays.items()})
        if alone:
            batch["labels"].fill_(IGNORE)
        if not self.weighted:
            return batch, int((labels != IGNORE).sum())
        # A row of `stored_scores.ScoredRow` may be there for its scores.
        scored = [getattr(rows[i], "scored", False) for i in owner]
        weights = self.objective.weights(labels, list(parts), [rows[i].replayed for i in owner], scored)
        stored = [] if alone else [(rows[i].top_ids, rows[i].top_scores) for i in owner[mine & np.array(scored)]]
        batch["targets"] = Targets.of(batch["labels"], *(w[mine] for w in weights), stored)
        return batch, 1

    def _sequences(self, row):
        return self.objective.sequences(row)[: None if self.weighted else 1]


class SplitBatches(Callback):
    """Where memory runs out batches are taken in twice as many parts from then on.

    Args:
        batches: `LifelongBatches`.
    """

    def __init__(self, batches):
        self.batches = batches

    def on_out_of_memory(self, error):
        """See `Callback`: whether that was it, and there is something left to divide."""
        batches = self.batches
        if not out_of_memory(error) or batches.pieces >= np.diff(batches.plan().bounds).max():
            return False
        batches.pieces *= 2
        print(f"out of memory: every batch is taken in {batches.pieces} parts from now on", flush=True)
        return True


class BackOff:
    """Halves a size when memory runs out, and says so.

    Args:
        size: where it starts: samples, a budget, whatever is proportional to memory.
        name: what to call it.
        least: below this it gives up.
        say: prints a line.

    Attributes:
        size: the present one; goes into a checkpoint, so that a resumed run does not run out of memory again.
    """

    def __init__(self, size, name, least=1, say=print):
        self.size, self.name, self.least, self.say = size, name, least, say

    def run(self, work):
        """`work(size)`, from its beginning again with half the size whenever memory runs out.

        Raises:
            UserError: it ran out with the least size, too.
        """
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                why = first_line(error)
            # Outside of `except`: the error holds the frames, and so the tensors, of what failed.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.halve(why)

    def halve(self, why):
        """Take half the size, or give up."""
        half = type(self.size)(self.size / 2)
        if half < self.least:
            raise UserError(f"out of memory with {self.name} {self.size:g}: {why}", location=self.name,
                            remedy="use a smaller model, shorter samples, or a device with more memory")  # fmt: skip
        self.say(f"out of memory with {self.name} {self.size:g}: going on with {half:g}")
        self.size = half

    def state_dict(self):
        """For a checkpoint."""
        return dict(size=self.size)

    def load_state_dict(self, state):
        """From one."""
        self.size = state["size"]


def out_of_memory(error):
    """Whether an exception says that a GPU's memory, or the machine's, is used up."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
