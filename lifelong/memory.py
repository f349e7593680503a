"""Real samples kept from earlier tasks: the memory of GEM, A-GEM, ER and DER++.

A memory holds positions in the tasks' data, not the samples themselves: it is a function of the seed, the order of the
tasks and their sizes, and takes up only a few numbers on disk.
"""

import math

import numpy as np
from versatile.utils import schema

RESERVOIR, PER_TASK = "reservoir", "per_task"


def draw_indices(size, count, seed, number):
    """Choose the samples of a task to keep, without replacement (the original GEM draws some twice).

    Args:
        size: number of samples of the task.
        count: how many to keep.
        seed, number: determine the choice; `number` is the task's position in the sequence.

    Returns:
        sorted indices.
    """
    return np.sort(np.random.default_rng([seed, number]).choice(size, count, replace=False))


class Memory:
    """The samples kept from earlier tasks.

    Args:
        seed: random seed of the choice.

    Attributes:
        kept: {task: indices of its kept samples}, in the order of tasks. A resumed run reads them from its checkpoint
            or draws the same.
    """

    def __init__(self, seed):
        self.seed, self.kept = seed, {}

    def __len__(self):
        """Number of samples."""
        return sum(map(len, self.kept.values()))

    def state_dict(self):
        """The state for a checkpoint."""
        return dict(kept={task: [int(i) for i in indices] for task, indices in self.kept.items()})

    def load_state_dict(self, state):
        """Restore what `state_dict` returned."""
        self.kept = {task: np.array(indices, np.int64) for task, indices in state["kept"].items()}


class NextTaskMemory(Memory):
    """GEM's memory: of each task as many samples as a fraction of the next task, rounded down; at least one.

    Args:
        percentage: the fraction.
    """

    def __init__(self, percentage, seed):
        super().__init__(seed)
        self.percentage = percentage

    def add(self, task, size, next_size):
        """Choose the samples to keep of a task that has been trained.

        Args:
            task, size: its name and its number of samples.
            next_size: number of samples of the next task, which determines how many are kept, as in the original.
        """
        count = min(max(int(next_size * self.percentage), 1), size)
        self.kept[task] = draw_indices(size, count, self.seed, len(self.kept))


class PerTaskMemory(Memory):
    """The same number or fraction of every task's samples.

    Args:
        size: a number of samples, or a fraction below 1 of a task's samples, rounded up.
    """

    def __init__(self, size, seed):
        super().__init__(seed)
        self.size = size

    def add(self, task, size):
        """Choose the samples to keep of a task that has been trained."""
        self.kept[task] = draw_indices(size, min(count_of(self.size, size), size), self.seed, len(self.kept))


class Reservoir(Memory):
    """A reservoir of M samples, drawn with equal probability from all samples seen (algorithm R; Vitter 1985).

    The n-th sample, counted from 1, replaces a random one of the M with probability M/n.

    Args:
        size: M.
    """

    def __init__(self, size, seed):
        super().__init__(seed)
        self.size, self.passed = size, 0

    def add(self, task, size):
        """Offer a task's samples to the reservoir."""
        slots = [(name, i) for name, indices in self.kept.items() for i in indices]
        before, number = self.passed, len(self.kept)
        chosen = np.random.default_rng([self.seed, number]).integers(0, np.arange(before, before + size) + 1)
        for i, slot in enumerate(chosen):
            if len(slots) < self.size:
                slots.append((task, i))
            elif slot < self.size:
                slots[slot] = (task, i)
        self.passed += size
        names = [*self.kept, task]
        self.kept = {name: np.sort([i for owner, i in slots if owner == name]).astype(np.int64) for name in names}

    def state_dict(self):
        """See `Memory`."""
        return super().state_dict() | dict(passed=self.passed)

    def load_state_dict(self, state):
        """See `Memory`."""
        super().load_state_dict(state)
        self.passed = state["passed"]


def share_of(share, samples):
    """A fraction of a number of samples, rounded up."""
    # 0.07 · 100 is slightly more than 7 in floating point.
    return math.ceil(round(share * samples, 6))


def count_of(size, samples):
    """The number of samples that `size` stands for: itself, or if a float, that fraction of `samples`, rounded up."""
    return share_of(size, samples) if isinstance(size, float) else size


def make_memory(policy, size, sizes, seed):
    """A `Reservoir` or a `PerTaskMemory`.

    Args:
        policy: "reservoir" or "per_task".
        size: a number of samples (int), per task or in total, or a fraction of them (float, up to 1).
        sizes: {task: its number of samples} for the tasks of the sequence.
    """
    return PerTaskMemory(size, seed) if policy == PER_TASK else Reservoir(count_of(size, sum(sizes.values())), seed)


def read_memory(path, sizes):
    """The state of a `Memory` in a file, which must match the tasks' data.

    Args:
        sizes: {task: its number of samples}.

    Raises:
        UserError: the file is missing, cannot be read, or refers to samples that do not exist.
    """
    remedy = f"copy it again from where the sequence was trained, or remove {path.parent.parent} and train it again"
    kept = {task: schema.ListOf(schema.Whole(0, size - 1)) for task, size in sizes.items()}
    fields = {"kept": schema.Record(fields=kept, closed=True, required=True), "passed": schema.Whole(0)}
    return schema.validate(schema.read_json_object(path, remedy), schema.Record(fields=fields), path, remedy)
