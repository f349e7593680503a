"""What ER, A-GEM and DER++ share: a memory of real samples, of which every step sees a few."""

import argparse

from versatile.lifelong.strategies.kept_samples import KeptSamples
from versatile.utils import flags
from versatile.utils.screen import counted

DEFAULT_SIZE = 0.05


def memory_size(text):
    """argparse type of --memory_size: a whole number above 0, or a share below 1."""
    try:
        return flags.positive(text) if "." not in text and "e" not in text.lower() else flags.share(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{flags.shown(text)}: expected a number of samples, or a share such as {DEFAULT_SIZE}"
        ) from None


class ReplayMemory(KeptSamples):
    """Keeps a memory of the samples trained on; see `lifelong.memory`.

    Attributes of a class:
        policy: --memory_policy where it is not given.
    """

    flags = {
        "--memory_size": dict(
            type=memory_size, metavar="N",
            help="er, agem, derpp: samples kept of each task (per_task) or of all together (reservoir), as a number or "
                 f"as a share below 1 of them (default: {DEFAULT_SIZE})"),
        "--memory_policy": dict(
            choices=("reservoir", "per_task"),
            help="er, agem, derpp: keep every sample that has passed with the same chance, or so many of each task "
                 "(default: er and derpp reservoir, agem per_task)"),
        "--memory_batch_size": dict(
            type=flags.positive, metavar="N",
            help="er, agem, derpp: samples of the memory that a step looks at (default: as many as the batch has)"),
    }  # fmt: skip
    policy = "reservoir"

    def __init__(self, sequence):
        super().__init__(sequence)
        self.rows, self.number = [], 0

    def make_memory(self):
        """See `KeptSamples`."""
        from versatile.lifelong.memory import make_memory

        settings = self.settings
        return make_memory(settings.memory_policy or self.policy, settings.memory_size or DEFAULT_SIZE,
                           self.sequence.sizes, settings.seed)  # fmt: skip

    def before_task(self, seen, new):
        """Encode the memory; nothing of it is mixed into the task's samples."""
        self.number, self.rows = len(seen), self.memory_rows()
        return super().before_task(seen, new)

    def memory_rows(self):
        """The rows of all samples kept."""
        return [row for task, indices in self.memory.kept.items() for row in self.encode_kept(task, indices)]

    def encode_kept(self, task, indices):
        """Rows of some of a task's samples."""
        return self.sequence.encode(task, indices, True) if len(indices) else []

    def draw(self, count, *position):
        """Rows of the memory, each once, as many as a step looks at.

        Args:
            count: samples of the batch beside them.
            position: whole numbers that the choice depends on, beside the seed and the stage.
        """
        import numpy as np

        if not self.rows:
            return []
        count = self.settings.memory_batch_size or count
        generator = np.random.default_rng([self.settings.seed, self.number, *position])
        return [self.rows[i] for i in generator.choice(len(self.rows), min(count, len(self.rows)), replace=False)]

    def after_task(self, task, batches):
        """Choose what is kept of it, and of the tasks before."""
        from versatile.training.experiment import say

        size = self.sequence.sizes[task]
        self.memory.add(task, size)
        kept = ", ".join(f"{len(indices):,} of {name}" for name, indices in self.memory.kept.items())
        say(f"{task}: {counted(len(self.memory), 'sample')} kept: {kept}")

    def metrics(self):
        """How many samples of each task the stage looked back at."""
        counts = {}
        for row in self.rows:
            counts[row.task] = counts.get(row.task, 0) + 1
        return dict(memory=counts)
