"""Base class of ER, A-GEM and DER++: a memory of real samples, a few of which are used in every step."""

import argparse

from versatile.lifelong.strategies.kept_samples import KeptSamples
from versatile.utils import flags
from versatile.utils.screen import counted

DEFAULT_SIZE = 0.05


def memory_size(text):
    """argparse type of --memory_size: a whole number above 0, or a share up to 1.0."""
    try:
        return flags.positive(text) if "." not in text and "e" not in text.lower() else flags.share(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{flags.shown(text)}: expected a number of samples, or a share such as {DEFAULT_SIZE}"
        ) from None


class ReplayMemory(KeptSamples):
    """Keeps a memory of the samples trained on; see `lifelong.memory`.

    Class attributes:
        policy: default of --memory_policy.
    """

    flags = {
        "--memory_size": dict(
            type=memory_size, metavar="N",
            help="er, agem, derpp: samples kept per task (per_task) or in total (reservoir), as a number or as a "
                 f"share, 1.0: all (default: {DEFAULT_SIZE})"),
        "--memory_policy": dict(
            choices=("reservoir", "per_task"),
            help="er, agem, derpp: keep every sample seen so far with the same probability, or a fixed number or "
                 "share of each task (default: er and derpp reservoir, agem per_task)"),
        "--memory_batch_size": dict(
            type=flags.positive, metavar="N",
            help="er, agem, derpp: batch size of the replayed samples (default: that of the task's batch)"),
    }  # fmt: skip
    policy = "reservoir"

    def __init__(self, sequence):
        super().__init__(sequence)
        self.rows, self.number = [], 0

    def make_memory(self):
        """See `KeptSamples`."""
        from versatile.lifelong.memory import make_memory
        from versatile.training.experiment import print_once

        settings = self.settings
        share = getattr(settings, "gen_lm_sample_percentage", DEFAULT_SIZE)
        if share != DEFAULT_SIZE and not settings.memory_size:
            print_once(f"warning: --gen_lm_sample_percentage {share:g} has no effect with {self.name}; what is kept "
                       f"is set by --memory_size (now {DEFAULT_SIZE})")  # fmt: skip
        return make_memory(settings.memory_policy or self.policy, settings.memory_size or DEFAULT_SIZE,
                           self.sequence.sizes, settings.seed)  # fmt: skip

    def before_task(self, seen, new):
        """Encode the memory; it is not mixed into the task's samples."""
        self.number, self.rows = len(seen), self.memory_rows()
        return super().before_task(seen, new)

    def memory_rows(self):
        """Rows of all kept samples."""
        return [row for task, indices in self.memory.kept.items() for row in self.encode_kept(task, indices)]

    def encode_kept(self, task, indices):
        """Rows of some of a task's samples."""
        return self.sequence.encode(task, indices, True) if len(indices) else []

    def draw(self, count, *position):
        """Rows of the memory for one step, drawn without replacement.

        Args:
            count: samples of the task's batch, as many as are drawn by default.
            position: integers that the choice depends on, in addition to the seed and the stage.
        """
        import numpy as np

        if not self.rows:
            return []
        count = self.settings.memory_batch_size or count
        generator = np.random.default_rng([self.settings.seed, self.number, *position])
        return [self.rows[i] for i in generator.choice(len(self.rows), min(count, len(self.rows)), replace=False)]

    def after_task(self, task, batches):
        """Choose the samples to keep of the task and of earlier ones."""
        from versatile.training.experiment import print_once

        size = self.sequence.sizes[task]
        self.memory.add(task, size)
        kept = ", ".join(f"{len(indices):,} of {name}" for name, indices in self.memory.kept.items())
        print_once(f"{task}: {counted(len(self.memory), 'sample')} kept: {kept}")

    def metrics(self):
        """How many samples of each earlier task were in the stage's memory."""
        counts = {}
        for row in self.rows:
            counts[row.task] = counts.get(row.task, 0) + 1
        return dict(memory=counts)
