"""Batches of one task at a time, with tasks drawn by size and temperature (Karimi Mahabadi et al. 2021, section 3).

Every process draws the same task at every step, so the averaged gradients belong to the same adapters.
"""

import numpy as np
import torch
from versatile.utils.errors import UserError


class MultiTaskBatchSampler:
    """Lists of row numbers over the concatenation of the tasks' data sets.

    A task is drawn with probability p ∝ size^(1/T). A batch's rows are drawn with replacement from each process's
    share of the task. The lists equal those of the published sampler for the same seed, epoch and processes: one
    permutation per data set, then the tasks of the whole epoch, then one draw of rows per batch, all from
    ``Generator(seed + epoch)``.

    Unlike in the published sampler, the seed given is the seed used (there it was ignored), and temperature 0 means
    proportional to size, as intended (there it divided by zero).

    Args:
        sizes: rows of every task's data set, in the order of their concatenation.
        batch_size: rows per batch, in each process.
        temperature: T; 1 (and 0) is proportional to size, higher is more uniform, ``inf`` is uniform.
        replicas: number of processes.
        seed: random seed, the same in every process.
        shuffle: permute each data set before it is divided among the processes.

    Raises:
        UserError: no tasks, a data set with fewer rows than processes, less than one batch per process, a number out
            of range.
    """

    def __init__(self, sizes, batch_size, temperature, replicas=1, seed=42, shuffle=True):
        self.sizes, self.batch_size, self.temperature = [int(size) for size in sizes], batch_size, temperature
        self.replicas, self.seed, self.shuffle = replicas, seed, shuffle
        self._check()
        self.offsets = [sum(self.sizes[:i]) for i in range(len(self.sizes))]

    def _check(self):
        if not self.sizes:
            raise UserError("there are no tasks to draw from", expected="at least one", remedy="give --tasks")
        if self.batch_size < 1:
            raise UserError(f"the batch size is {self.batch_size}", expected="1 or more", remedy="raise it")
        if not self.temperature >= 0:
            raise UserError(f"is {self.temperature}", location="--temperature", expected="0 or more",
                            remedy="1 draws tasks by their size, 10 (published) nearly evenly")  # fmt: skip
        for task, size in enumerate(self.sizes):
            if size < self.replicas:
                raise UserError(f"the data set of task {task} has {size} rows for {self.replicas} processes",
                                expected="a row or more for each", remedy="leave the task out")  # fmt: skip
        if not len(self):
            raise UserError(
                f"{sum(self.sizes)} rows make less than one batch of {self.batch_size} for each of "
                f"{self.replicas} processes",
                remedy="make the batches smaller",
            )

    def __len__(self):
        """Batches per epoch in each process: ((Σ sizes + batch − 1) // batch) // processes."""
        return (sum(self.sizes) + self.batch_size - 1) // self.batch_size // self.replicas

    def probabilities(self):
        """p of every task, double [tasks]."""
        weights = np.array([size / sum(self.sizes) for size in self.sizes]) ** (1.0 / (self.temperature or 1.0))
        if not weights.any():
            # So low a temperature leaves the largest alone, and numbers below what a float holds.
            weights = (np.array(self.sizes) == max(self.sizes)).astype(float)
        return torch.as_tensor(weights / weights.sum(), dtype=torch.double)

    def draws(self, epoch):
        """For every batch of an epoch, the numbers of its rows, one list per process."""
        for task, rows in self._draws(epoch):
            yield (rows.T + self.offsets[task]).tolist()

    def _draws(self, epoch):
        """Yield (task, its rows [batch, processes]) for every batch of the epoch."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        orders = [
            torch.randperm(size, generator=generator) if self.shuffle else torch.arange(size) for size in self.sizes
        ]
        tasks = torch.multinomial(self.probabilities(), len(self), replacement=True, generator=generator)
        ranks = torch.arange(self.replicas)
        for task in tasks.tolist():
            # Process r has the rows r, r + processes, … of the order; the remainder belongs to no process.
            high = self.sizes[task] // self.replicas
            positions = torch.randint(high, (self.batch_size,), generator=generator)
            yield task, orders[task][positions[:, None] * self.replicas + ranks]

    def coverage(self, batches, names=None):
        """How much of every task training sees in its first `batches` batches (from epoch 0 on, in all processes).

        It is computed from the draws themselves, so it is also exact for a resumed run.

        Args:
            batches: batches drawn in each process, over all epochs so far.
            names: the tasks' names; by default their numbers.

        Returns:
            list of dicts, one per task: task, size, probability, batches (in each process), batch_share (of all
            batches), drawn (rows, counting repetitions), distinct (different rows), data_share (distinct / size).
        """
        seen = [torch.zeros(size, dtype=torch.bool) for size in self.sizes]
        counts, left, epoch = [0] * len(self.sizes), batches, 0
        while left > 0:
            for _, (task, rows) in zip(range(left), self._draws(epoch)):
                counts[task] += 1
                seen[task][rows.flatten()] = True
            left, epoch = left - len(self), epoch + 1
        per_batch, probabilities = self.batch_size * self.replicas, self.probabilities().tolist()
        names = names or [str(task) for task in range(len(self.sizes))]
        report = []
        for name, size, p, count, rows in zip(names, self.sizes, probabilities, counts, seen):
            distinct = int(rows.sum())
            report.append(dict(task=name, size=size, probability=p, batches=count,
                               batch_share=count / max(batches, 1), drawn=count * per_batch, distinct=distinct,
                               data_share=distinct / size))  # fmt: skip
        return report
