"""Real samples kept of the tasks before: what GEM, A-GEM, ER and DER++ look back at.

A memory holds positions in the tasks' data, not the samples: it is a function of the seed, the order of the tasks and
their sizes, and is written as a few numbers.
"""

import math

import numpy as np
from versatile.utils import schema

RESERVOIR, PER_TASK = "reservoir", "per_task"


def draw(size, count, seed, number):
    """Which samples of a task are kept, none twice (the original GEM draws some twice).

    Args:
        size: samples of the task.
        count: how many of them.
        seed, number: what the choice depends on; the number is the task's position in the sequence.

    Returns:
        sorted indices.
    """
    return np.sort(np.random.default_rng([seed, number]).choice(size, count, replace=False))


class Memory:
    """The samples kept of the tasks before.

    Args:
        seed: what the choice depends on.

    Attributes:
        kept: {task: indices of its kept samples}, in the order of tasks. A resumed run takes them from its checkpoint
            or draws the same.
    """

    def __init__(self, seed):
        self.seed, self.kept = seed, {}

    def __len__(self):
        """Number of samples."""
        return sum(map(len, self.kept.values()))

    def state_dict(self):
        """For a checkpoint."""
        return dict(kept={task: [int(i) for i in indices] for task, indices in self.kept.items()})

    def load_state_dict(self, state):
        """From one."""
        self.kept = {task: np.array(indices, np.int64) for task, indices in state["kept"].items()}


class NextTaskMemory(Memory):
    """GEM's: of each task as many samples as a share of the next task, rounded down; at least one.

    Args:
        percentage: the share.
    """

    def __init__(self, percentage, seed):
        super().__init__(seed)
        self.percentage = percentage

    def add(self, task, size, next_size):
        """Choose what is kept of a task that has been trained.

        Args:
            task, size: its name and its number of samples.
            next_size: that of the task to be trained next, which decides how many are kept, as in the original.
        """
        count = min(max(int(next_size * self.percentage), 1), size)
        self.kept[task] = draw(size, count, self.seed, len(self.kept))


class PerTaskMemory(Memory):
    """The same number, or share, of every task's samples.

    Args:
        size: a number of samples, or a share below 1 of a task's, rounded up.
    """

    def __init__(self, size, seed):
        super().__init__(seed)
        self.size = size

    def add(self, task, size):
        """Choose what is kept of a task that has been trained."""
        self.kept[task] = draw(size, min(count_of(self.size, size), size), self.seed, len(self.kept))


class Reservoir(Memory):
    """As many samples as it holds of all that passed, each with the same chance (algorithm R; Vitter 1985).

    The n-th sample to pass, counted from 1, takes the slot of a random one of M with the chance M/n.

    Args:
        size: M.
    """

    def __init__(self, size, seed):
        super().__init__(seed)
        self.size, self.passed = size, 0

    def add(self, task, size):
        """Let a task's samples pass."""
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
    """How many of so many samples a share of them is, rounded up."""
    # 0.07 · 100 is a little more than 7 in floating point.
    return math.ceil(round(share * samples, 6))


def count_of(size, samples):
    """How many of so many samples a size is: a number, or a share below 1, rounded up."""
    return share_of(size, samples) if size < 1 else int(size)


def make_memory(policy, size, sizes, seed):
    """A `Reservoir` or a `PerTaskMemory`.

    Args:
        policy: "reservoir" or "per_task".
        size: a number of samples, of each task or of all together, or a share below 1 of them.
        sizes: {task: how many samples it has} of the sequence.
    """
    return PerTaskMemory(size, seed) if policy == PER_TASK else Reservoir(count_of(size, sum(sizes.values())), seed)


def read_memory(path, sizes):
    """The state of a `Memory` in a file, which has to fit the tasks' data.

    Args:
        sizes: {task: how many samples it has}.

    Raises:
        UserError: there is none, it cannot be read, or it names other samples.
    """
    remedy = f"copy it again from where the sequence was trained, or remove {path.parent.parent} and train it anew"
    kept = {task: schema.ListOf(schema.Whole(0, size - 1)) for task, size in sizes.items()}
    fields = {"kept": schema.Record(fields=kept, closed=True, required=True), "passed": schema.Whole(0)}
    return schema.validate(schema.read_json_object(path, remedy), schema.Record(fields=fields), path, remedy)
