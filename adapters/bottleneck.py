"""Residual bottleneck adapters: one bank per block, one adapter per task, one integer per row to choose.

An adapter sits after a block's second residual connection (Lin, Madotto & Fung 2020, section 2.1):

    adapter(h) = h + Up(ReLU(Down(LayerNorm(h))))
"""

import itertools

import torch
from torch import nn

NO_TASK = -1


class BottleneckAdapter(nn.Module):
    """One task's adapter in one block.

    Args:
        width: the backbone's hidden size.
        bottleneck: size of the inner layer; `2·width·bottleneck + 3·width + bottleneck` parameters.
        eps: epsilon of the layer norm; the backbone's own.
    """

    def __init__(self, width, bottleneck, eps=1e-5):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        # Published start: N(0, 0.02) everywhere, so an adapter is not the identity before training.
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden):
        """hidden: [rows, length, width] -> the same shape."""
        return hidden + self.up(torch.relu(self.down(self.norm(hidden))))


class TaskRouter:
    """Which rows of the current batch belong to which task; shared by all banks of a model.

    The model's forward sets it from `task_ids` before the blocks run. It is kept until the next forward, so
    blocks that run again in the backward pass meet the same rows.
    """

    def __init__(self):
        self.tasks = []
        # [(task name or None, how many rows)] and, where the rows of a task do not stand together, (their order,
        # the way back).
        self.runs = []
        self.order = None

    def route(self, task_ids, rows):
        """Group a batch's rows by task.

        Args:
            task_ids: integer tensor [rows], one task id a row (-1: no adapter), or None: the only task there
                is, or no adapter where there are none.
            rows: the batch's number of rows.

        Raises:
            ValueError: an id that names no task, a count that does not fit, no ids though there are several
                tasks.
        """
        if task_ids is None:
            if len(self.tasks) > 1:
                raise ValueError(f"task_ids is needed: this model holds {len(self.tasks)} tasks {self.tasks}")
            ids = [0 if self.tasks else NO_TASK] * rows
        else:
            ids = task_ids.reshape(-1).tolist()
        if len(ids) != rows:
            raise ValueError(f"task_ids has {len(ids)} entries, the batch has {rows} rows")
        wrong = sorted({i for i in ids if not NO_TASK <= i < len(self.tasks)})
        if wrong:
            known = ", ".join(f"{i} {name}" for i, name in enumerate(self.tasks)) or "none"
            raise ValueError(f"task_ids {wrong} name no task of this model; it holds: {known}; -1 is no adapter")
        names = [*self.tasks, None]
        runs = [[names[task], len(list(run))] for task, run in itertools.groupby(ids)]
        present = list(dict.fromkeys(ids))
        self.order = None
        if len(runs) > len(present):
            # The rows of a task do not stand together: bring them together on the way in, and back on the way out.
            device = task_ids.device
            order = torch.tensor(sorted(range(rows), key=lambda row: present.index(ids[row])), device=device)
            self.order = order, torch.argsort(order)
            runs = [[names[task], ids.count(task)] for task in present]
        self.runs = [(name, count) for name, count in runs]
        return ids


class AdapterBank(nn.Module):
    """The adapters of one block, by task name. Each runs once a forward, on its own rows only."""

    def __init__(self, router):
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.router = router

    def forward(self, hidden):
        """hidden: [rows, length, width] -> the same, each row through its task's adapter."""
        runs = self.router.runs
        if len(runs) == 1:
            return self._adapt(runs[0][0], hidden)
        if self.router.order is not None:
            order, back = (rows.to(hidden.device) for rows in self.router.order)
            hidden = hidden.index_select(0, order)
        parts = hidden.split([count for _, count in runs])
        adapted = torch.cat([self._adapt(name, part) for (name, _), part in zip(runs, parts)])
        return adapted if self.router.order is None else adapted.index_select(0, back)

    def _adapt(self, name, hidden):
        # A task without an adapter (task embeddings only, or task id -1) passes through.
        return self.adapters[name](hidden) if name in self.adapters else hidden

    def hook(self, block, args, output):
        """Forward hook of a block: its hidden states, alone or first in a tuple, go through the bank."""
        if isinstance(output, tuple):
            return (self(output[0]), *output[1:])
        return self(output)
