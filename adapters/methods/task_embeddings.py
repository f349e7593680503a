"""Task embeddings in addition to a frozen vocabulary.

A task's markers (`<bos_nlg>`, `<name>`, …) are new tokens. Only their rows are trained: the base table remains the
backbone's frozen tensor, used in place without a copy. A marker's row serves as input embedding, as token-type
embedding and, if the backbone's head is tied, as output row; an untied backbone gets a separate output row for each
marker.
"""

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters.methods.base import Method
from versatile.utils.errors import UserError

METHODS = {"task_embeddings": "TaskEmbeddings"}


class TaskEmbeddingTable(nn.Module):
    """The new tokens' rows, in the order of their ids: padding first, then each task's markers.

    Args:
        markers: {task: its markers in order}.
        width: the backbone's hidden size.
        std: standard deviation of the normal distribution that rows are initialised from.
        spare: number of tokens before the tasks' (1 for `<pad>`). Their rows are never trained, and zero unless a
            released checkpoint provides them.
    """

    def __init__(self, markers, width, std=0.02, spare=1):
        super().__init__()
        self.register_buffer("spare", torch.zeros(spare, width))
        # A zero row would score 0, above every real token of a GPT-2: an untrained spare token scores -inf.
        self.spare_scores = False
        self.tasks = nn.ParameterDict()
        for task, names in markers.items():
            self.add(task, len(names), std)

    def add(self, task, count, std=0.02):
        """Append `count` new rows for `task`, drawn from N(0, std)."""
        self.tasks[task] = nn.Parameter(torch.randn(count, self.spare.shape[1], device=self.spare.device) * std)

    def table(self):
        """All rows, [spare + markers of all tasks, width]."""
        return torch.cat([self.spare, *self.tasks.values()])

    def __len__(self):
        return len(self.spare) + sum(len(rows) for rows in self.tasks.values())


class ExtendedTable(nn.Module):
    """A frozen table of the backbone, followed by the task embeddings.

    Args:
        base: the table: the input embedding or the head.
        rows: the `TaskEmbeddingTable`.
        first: id of the first row after the base table.
    """

    def __init__(self, base, rows, first):
        super().__init__()
        # In a tuple, so that it is registered only as a module of the method.
        self.base, self.first, self._rows = base, first, (rows,)

    @property
    def rows(self):
        """The `TaskEmbeddingTable`."""
        return self._rows[0]

    @property
    def weight(self):
        """The base table; transformers reads it to find a model's dtype or device."""
        return self.base.weight


class TaskEmbedding(ExtendedTable):
    """Input embeddings: ids below `first` come from the frozen base table, others from the task embeddings."""

    def forward(self, ids):
        """ids: integers of any shape [*] -> [*, width]."""
        new = ids >= self.first
        hidden = self.base(ids.masked_fill(new, 0))
        rows = F.embedding((ids - self.first).clamp(min=0), self.rows.table())
        return torch.where(new.unsqueeze(-1), rows.to(hidden.dtype), hidden)


class TaskHead(ExtendedTable):
    """Output scores over the base vocabulary and the task embeddings.

    `half` holds the frozen base matrix in the precision of the matrix products: autocast would cast it again on
    every call, for every decoded token, with the same result.
    """

    def __init__(self, base, rows, first):
        super().__init__(base, rows, first)
        self.half = None

    def forward(self, hidden, foreign=None):
        """Scores of hidden states.

        Args:
            hidden: [*, width].
            foreign: [*, added tokens], true where a score must be -inf, or None.

        Returns:
            [*, base vocabulary + added tokens]; a spare token without a row of its own scores -inf.
        """
        scores = self.product(hidden)
        # One product per task, so that adding a task leaves the others' scores unchanged, bit for bit.
        extra = [F.linear(hidden, rows) for rows in self.rows.tasks.values()]
        spare = self.rows.spare
        if self.rows.spare_scores:
            extra.insert(0, F.linear(hidden, spare))
        elif len(spare):
            extra.insert(0, scores.new_full((*scores.shape[:-1], len(spare)), float("-inf")))
        extra = torch.cat([part.to(scores.dtype) for part in extra], dim=-1)
        if foreign is not None:
            extra = extra.masked_fill(foreign, float("-inf"))
        return torch.cat([scores, extra], dim=-1)

    def product(self, hidden):
        """Scores of the base vocabulary alone."""
        return F.linear(hidden, *self.base_matrix())

    def base_matrix(self):
        """(rows of the base vocabulary, their bias or None)"""
        weight, bias = self.base.weight if self.half is None else self.half, self.base.bias
        return weight[: self.first], None if bias is None else bias[: self.first]


class TaskEmbeddings(Method):
    """The task embeddings of a model; present in every model with a frozen backbone, whatever its tasks' methods.

    Attributes:
        rows: `TaskEmbeddingTable` of the input table.
        output_rows: `TaskEmbeddingTable` of the head if it is not tied, else None.
    """

    @classmethod
    def check(cls, name, backbone, settings, location):
        if backbone.head == "classifier":
            raise UserError("an encoder's tasks have heads, not special tokens in their texts", location=location,
                            remedy="choose another method")  # fmt: skip

    def __init__(self, model, name):
        super().__init__(model, name)
        self.rows = self.output_rows = None

    def build(self, model, tasks):
        """Create rows for `model.info.markers`, and `model.spare_rows` (one, if the tokenizer had no `<pad>`)."""
        embedding, head, info = model.get_input_embeddings(), model.get_output_embeddings(), model.info
        width = embedding.weight.shape[1]
        self.rows = TaskEmbeddingTable(info.markers, width, model.row_std, model.spare_rows).to(embedding.weight.device)
        if head.weight is not embedding.weight:
            rows = TaskEmbeddingTable(info.markers, width, model.row_std, model.spare_rows)
            self.output_rows = rows.to(head.weight.device)

    def hook(self, model):
        embedding, head, first = model.get_input_embeddings(), model.get_output_embeddings(), model.info.first
        model.set_input_embeddings(TaskEmbedding(embedding, self.rows, first))
        model.set_output_embeddings(TaskHead(head, self.output_rows or self.rows, first))
        # Beam search reads the vocabulary size from here.
        model.config.vocab_size = first + len(self.rows)

    def key(self, name):
        return name.replace(".tasks.", ".")

    def owner(self, name):
        return name.split(".")[-1]
