"""All tasks at once: multitask, and multilm, which is also trained to generate samples."""

import argparse

from versatile.lifelong.strategies.base import Strategy
from versatile.utils import flags
from versatile.utils.errors import UserError


def repeats(text):
    """argparse type of --upsample_data: how often each task's samples are repeated."""
    try:
        counts = [int(part) for part in text.split("_")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > flags.LARGEST:
        raise argparse.ArgumentTypeError(f"{flags.shown(text)}: expected a number above 0 for each task, such as 1_3_2")
    return counts


# For `stored_flags`: how a value is written, and what is expected.
repeats.written = lambda numbers: "_".join(map(str, numbers))
repeats.expected = "true, false, or a number for each task"


class Multitask(Strategy):
    """One stage for all tasks."""

    name, order = "multitask", 30
    summary = "All tasks at once, in one stage (the upper bound)."
    joint = True
    flags = {
        "--upsample_data": dict(
            nargs="?", const=True, default=False, type=repeats, metavar="R1_R2_…",
            help="multitask, multilm: how often to repeat each task's samples, in the order of --tasks; without a "
                 "value, smaller tasks are repeated up to the size of the largest"),
    }  # fmt: skip

    @classmethod
    def check(cls, settings):
        """As `Strategy.check`; --upsample_data must have a number for each task."""
        super().check(settings)
        counts = settings.upsample_data
        if isinstance(counts, list) and len(counts) != len(settings.tasks):
            raise UserError(f"{len(counts)} numbers for {len(settings.tasks)} tasks", location="--upsample_data",
                            remedy="give one for each")  # fmt: skip

    def training_rows(self, rows):
        """With --upsample_data, each task's rows repeated as often as it says, or up to the size of the largest."""
        repeat = self.settings.upsample_data
        if not repeat:
            return super().training_rows(rows)
        largest = max(map(len, rows.values()))
        counts = [largest] * len(rows) if repeat is True else [n * len(own) for n, own in zip(repeat, rows.values())]
        import numpy as np
        from versatile.data.row_store import RowChain, RowView

        parts = zip(rows.values(), counts)
        return RowChain(RowView(own, np.arange(count) % len(own)) for own, count in parts)


class MultitaskLM(Multitask):
    """As `Multitask`, also trained to generate samples."""

    name, order = "multilm", 40
    summary = "As multitask, and trained to generate the samples, with the loss of lll."
    generates_samples = True
    memory_share = 0.35
