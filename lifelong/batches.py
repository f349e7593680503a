"""Batches of a task sequence: as many samples as the device's memory should hold, with both objectives in one batch.

A batch of n samples, the longest of l tokens, fits a budget b if n·l^1.163 ≤ b (LAMOL). The budget depends on the
device and on how the model is trained. If memory runs out all the same, the size is halved: see `HalvingOnOutOfMemory`.
"""

import numpy as np
import torch
from versatile.data.batching import plan_by_size
from versatile.data.padding import IGNORE, causal_arrays, padded_width, tensors
from versatile.data.row_store import RowChain
from versatile.lifelong.losses import Targets
from versatile.training.callbacks import Callback
from versatile.utils import machine
from versatile.utils.devices import out_of_memory
from versatile.utils.errors import UserError, first_line

LENGTH_POWER = 1.163
HALF_PRECISION, WITH_TEACHER = 1.4, 0.7


def memory_mib(device):
    """The memory of a GPU in MiB; on a CPU that of the machine, or the limit of its container."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    return machine.memory() / 2**20


def budget(share, mib, half=False, teacher=False):
    """The largest allowed value of n·longest^1.163.

    Args:
        share: share of the memory that the strategy uses (`strategies.base.Strategy.memory_share`).
        mib: `memory_mib` of the device.
        half: matrix products run in half precision.
        teacher: a teacher is in memory in addition to the model being trained.
    """
    return mib * share * (HALF_PRECISION if half else 1) * (WITH_TEACHER if teacher else 1)


def most_samples(size, min_n_steps=1500, min_batch_size=4):
    """The most samples a batch may have, so that an epoch of `size` samples has at least `min_n_steps` batches."""
    return max(size // min_n_steps, min_batch_size)


def fill(lengths, budget, cap):
    """Fill batches in order.

    A sample that exceeds the budget alone becomes a batch of its own. (The original turns an over-long first sample
    into an empty batch, which crashes, and miscounts by one the batch after one that was closed by its cap.)

    Args:
        lengths: [n] tokens of the samples, in order.
        budget, cap: limits of one batch.

    Returns:
        [batches + 1] positions at which batches start and end.
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

    Batches are made as in `data.batching.plan`: samples of similar length are grouped, and batches come in random
    order, the same number in every epoch. (In the originals batches have mixed lengths and more padding.)

    Args:
        lengths: [n] tokens of the samples.
        budget, cap: limits of one batch over all processes together.
        seed, epoch: determine the order.
        shuffle: False: one pass from short to long, for data that are not trained on.
    """
    return plan_by_size(np.asarray(lengths), lambda sizes: fill(sizes.tolist(), budget, cap), seed=seed, epoch=epoch,
                        shuffle=shuffle)  # fmt: skip


class LifelongBatches:
    """Batches of rows, as `Trainer` takes them.

    Args:
        rows: a sequence of `question_answer.Row`, of one task or several.
        objective: `losses.Objective`.
        pad_id: the padding id.
        positions: the model's maximum sequence length.
        budget: see above, for one process.
        cap: the most samples of a batch over all processes together.
        task_ids: {task: the id of its rows in the model} for all tasks, or None if they share all parameters.
        weighted: add `Targets` for `WeightedLoss`; False: only the labels of the answers, for a validation loss.
        rank, world: this process and the number of processes.
        seed, shuffle: as in `plan`.
        companions: (epoch, step, samples of the batch) -> a list of rows to add to the batch.

    Attributes:
        pieces: number of parts a batch is split into. A resumed run starts with one again.
    """

    def __init__(self, rows, objective, pad_id, positions, budget, cap, *, task_ids=None, weighted=True, rank=0,
                 world=1, seed=0, shuffle=True, companions=None):  # fmt: skip
        self.rows, self.objective, self.pad_id, self.positions = rows, objective, pad_id, positions
        self.budget, self.cap, self.task_ids, self.weighted = budget, cap, task_ids, weighted
        self.rank, self.world, self.planning = rank, world, dict(seed=seed, shuffle=shuffle)
        self.companions = companions or (lambda epoch, step, count: [])
        self.lengths = RowChain([rows]).lengths()
        # With task ids every task has its own parameters, even one without rows here.
        self.splits = list(dict.fromkeys(row.task for row in rows) if task_ids is None else task_ids)
        self.skip, self.pieces = set(), 1
        self._planned = None
        if len(rows) and (longest := self.lengths.max() + 2 + len(objective.before_gen)) > positions:
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
            (dict of tensors, divisor of the loss). With `weighted` the divisor is 1, as the weights are normalised over
            all processes. Otherwise it is the number of labels in the global batch. With `pieces` above 1, a list of
            dicts takes the place of the dict.
        """
        if self.pieces > 1:
            return self.split_batch(epoch, step, self.pieces)
        return self.collate(self.batch_rows(epoch, step), slice(self.rank, None, self.world))

    def batch_rows(self, epoch, step):
        """The rows of a global batch, companions last."""
        chosen = self.plan(epoch)[step]
        return [self.rows[i] for i in chosen] + self.companions(epoch, step, len(chosen))

    def split_batch(self, epoch, step, count):
        """`batch` in `count` parts (at most one per sample) whose losses and gradients add up to those of the whole."""
        rows = self.batch_rows(epoch, step)
        count = max(1, min(count, len(rows[self.rank :: self.world])))
        starts = range(self.rank, self.rank + count * self.world, self.world)
        parts = [self.collate(rows, slice(start, None, count * self.world)) for start in starts]
        return [batch for batch, _ in parts], parts[0][1]

    def seen(self, micro_batches):
        """Number of samples seen, over all epochs, before the micro-batches [(epoch, number)] of a step."""
        epoch, step = micro_batches[0]
        return epoch * len(self) + int(self.plan(epoch).bounds[step])

    def present(self, epoch, step):
        """Names of the tasks in a global batch."""
        return {row.task for row in self.batch_rows(epoch, step)}

    def collate(self, rows, share=slice(None)):
        """Rows of samples -> (dict of tensors, divisor), padded on the right.

        Every sample gets one tensor row per objective. Only the samples in `share` are in the tensors, but the weights
        of their labels are computed over all of `rows`.
        """
        sequences = [(i, *parts) for i, row in enumerate(rows) for parts in self._sequences(row)]
        owners, parts, ids, starts = zip(*sequences)
        owner = np.array(owners)
        arrays = causal_arrays(ids, starts, padded_width(ids, self.positions), self.pad_id)
        labels = arrays["labels"]
        mine = np.isin(owner, np.arange(len(rows))[share])
        alone = not mine.any()
        if alone:
            # A process without rows of its own contributes one row without labels.
            mine[0] = True
        if self.task_ids is not None:
            arrays["task_ids"] = np.array([self.task_ids[rows[i].task] for i in owner])
        batch = tensors({name: array[mine] for name, array in arrays.items()})
        if alone:
            batch["labels"].fill_(IGNORE)
        if not self.weighted:
            return batch, int((labels != IGNORE).sum())
        # A `stored_logits.RowWithLogits` may be trained on its stored logits.
        on_logits = [getattr(rows[i], "use_logits", False) for i in owner]
        weights = self.objective.weights(labels, list(parts), [rows[i].replayed for i in owner], on_logits)
        stored = [] if alone else [(rows[i].top_ids, rows[i].top_logits) for i in owner[mine & np.array(on_logits)]]
        batch["targets"] = Targets.of(batch["labels"], *(w[mine] for w in weights), stored)
        return batch, 1

    def _sequences(self, row):
        return self.objective.sequences(row)[: None if self.weighted else 1]


class SplitBatches(Callback):
    """When memory runs out, splits all further batches into twice as many parts.

    Args:
        batches: `LifelongBatches`.
    """

    def __init__(self, batches):
        self.batches = batches

    def on_out_of_memory(self, error):
        """See `Callback`: whether memory ran out and batches can be split further."""
        batches = self.batches
        if not out_of_memory(error) or batches.pieces >= np.diff(batches.plan().bounds).max():
            return False
        batches.pieces *= 2
        print(f"out of memory: every batch is split into {batches.pieces} parts from now on", flush=True)
        return True


class HalvingOnOutOfMemory:
    """Halves a size when memory runs out, and prints a message.

    Args:
        size: the initial size: samples, a budget, or anything proportional to memory.
        name: name of the size in messages.
        least: give up below this size.
        print_line: prints a line.

    Attributes:
        size: the current size; saved in checkpoints, so that a resumed run does not run out of memory again.
    """

    def __init__(self, size, name, least=1, print_line=print):
        self.size, self.name, self.least, self.print_line = size, name, least, print_line

    def run(self, work):
        """Return `work(size)`, restarted with half the size whenever memory runs out.

        Raises:
            UserError: memory ran out even with the smallest size.
        """
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                reason = first_line(error)
            # Outside of `except`, where the exception would keep the failed call's frames, and so its tensors, alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.halve(reason)

    def halve(self, reason):
        """Take half the size, or give up."""
        half = type(self.size)(self.size / 2)
        if half < self.least:
            raise UserError(f"out of memory with {self.name} {self.size:g}: {reason}", location=self.name,
                            remedy="use a smaller model, shorter samples, or a device with more memory")  # fmt: skip
        self.print_line(f"out of memory with {self.name} {self.size:g}: retrying with {half:g}")
        self.size = half

    def state_dict(self):
        """The state for a checkpoint."""
        return dict(size=self.size)

    def load_state_dict(self, state):
        """Restore what `state_dict` returned."""
        self.size = state["size"]
