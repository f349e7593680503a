"""One classifier per task on an encoder's pooled state, for backbones whose `head` is "classifier".

The heads of all tasks are computed in one product; each belongs to its task.
"""

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters.methods.base import Method, initialise


class Heads(Method):
    """The classifiers of a model's tasks, in the order of their ids."""

    def build(self, model, tasks):
        """Create the heads of {task: number of labels, 1 for a regression}."""
        self.tasks, config, counts = list(tasks), model.config, list(tasks.values())
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.decoders = nn.ModuleList(nn.Linear(self.backbone.hidden_size(config), n) for n in counts)
        initialise(self.decoders, config.initializer_range)
        starts = [sum(counts[:i]) for i in range(len(counts))]
        # Each task's columns in the product of all heads; surplus entries point to its first column.
        columns = [[s + (j if j < n else 0) for j in range(max(counts))] for s, n in zip(starts, counts)]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        surplus = torch.arange(max(counts)) >= torch.tensor(counts).unsqueeze(1)
        self.register_buffer("surplus", surplus, persistent=False)
        self.register_buffer("regression", torch.tensor([n == 1 for n in counts]), persistent=False)

    def hook(self, model):
        """Nothing: the model calls the heads on its encoder's output."""

    def key(self, name):
        # The published key.
        _, number, ending = name.split(".")
        return f"decoders.{number}.model.{ending}"

    def owner(self, name):
        return self.tasks[int(name.split(".")[1])]

    def task_state(self, task):
        return dict(self.decoders[self.tasks.index(task)].named_parameters())

    def forward(self, pooled, task_ids):
        """All heads in one product, then each row's own columns.

        Args:
            pooled: [rows, width].
            task_ids: [rows].

        Returns:
            [rows, most labels], fp32; -inf beyond the labels of the row's task.
        """
        weight = torch.cat([head.weight for head in self.decoders])
        bias = torch.cat([head.bias for head in self.decoders])
        with torch.autocast(pooled.device.type, enabled=False):
            every = F.linear(self.dropout(pooled).to(weight.dtype), weight, bias)
        own = every.gather(1, self.columns.index_select(0, task_ids))
        return own.masked_fill(self.surplus.index_select(0, task_ids), -torch.inf)

    def row_losses(self, scores, labels, task_ids):
        """[rows] squared error of a regression, else cross-entropy."""
        regression = self.regression.index_select(0, task_ids)
        squared = (scores[:, 0] - labels.to(scores.dtype)) ** 2
        classes = torch.where(regression, 0, labels.long())
        return torch.where(regression, squared, F.cross_entropy(scores, classes, reduction="none"))

    def mean_of_tasks(self, row_losses, task_ids):
        """The mean over the tasks in the batch of the mean over their rows."""
        zeros = row_losses.new_zeros(len(self.tasks))
        totals = zeros.index_add(0, task_ids, row_losses)
        counts = zeros.index_add(0, task_ids, torch.ones_like(row_losses))
        return (totals / counts.clamp(min=1)).sum() / (counts > 0).sum()
