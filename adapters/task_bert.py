"""One BERT for many tasks, in a batch that may mix them: the model itself, of all three forms.

Made by adapters/bert.py.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters import masks  # noqa: F401  (masks are not read on a GPU)
from versatile.adapters.methods.conditional import (
    TaskConditions,
    condition_bert,
    initialise,
    run_encoder,
    task_parameters,
)
from versatile.adapters.schemas import FORMS
from versatile.utils.errors import UserError
from versatile.utils.uncertainty import normalized_entropy

# Sequences are cut to the longest one of a batch, rounded up to this many: few shapes, few kernels.
LENGTH_ROUND = 8
# A CPU takes rows of like lengths together, about so many tokens at once, where that saves at least this share of the
# padded tokens. On a GPU a pass more costs more than padding does.
CPU_TOKENS, WORTH = 512, 0.1


@dataclass
class TaskOutput:
    """What a batch gave. What is sorted by task is made when it is asked for: a training step needs the loss alone.

    Attributes:
        loss: mean of the per-task means, or None without labels.
        scores: [rows, most labels], -inf behind the row's own task's labels.
        task_ids: [rows].
        labels: number of labels of every task of the model.
        pooled_output: [rows, width].
        hidden, parts: hidden states of each part of the batch (at the first position; at all with `all_positions`), and
            which rows it has.
        row_losses: [rows] each row's own loss, or None.
    """

    loss: torch.Tensor | None
    scores: torch.Tensor
    task_ids: torch.Tensor
    labels: list
    pooled_output: torch.Tensor
    hidden: list
    parts: list
    row_losses: torch.Tensor | None = None

    @cached_property
    def sequence_output(self):
        """[rows, length, width] last hidden states of a forward with `all_positions`; length is the batch's longest,
        rounded up to 8. Of a row in a shorter part what lies behind is 0."""
        longest = self.parts[0][1]
        padded = [F.pad(hidden, (0, 0, 0, longest - hidden.shape[1])) for hidden in self.hidden]
        return in_order(padded, self.parts)

    @cached_property
    def rows(self):
        """{task id: [n] the numbers of its rows}, of the tasks in the batch, in the order of their ids."""
        ids = self.task_ids.tolist()
        return {task: torch.tensor([i for i, t in enumerate(ids) if t == task], device=self.task_ids.device)
                for task in sorted(set(ids))}  # fmt: skip

    @cached_property
    def logits(self):
        """{task id: [n, the task's labels]}, rows as in `rows`. The original returns those of the last task alone."""
        return {task: self.scores[rows, : self.labels[task]] for task, rows in self.rows.items()}

    @cached_property
    def losses(self):
        """{task id: mean loss of its rows}, or None without labels."""
        if self.row_losses is None:
            return None
        return {task: self.row_losses[rows].mean() for task, rows in self.rows.items()}

    @cached_property
    def predictions(self):
        """[rows] floats: the likeliest label's id, or a regression's score."""
        scores = self.scores.float()
        best = scores.argmax(-1).to(scores.dtype)
        return torch.where(self._count[self.task_ids] == 1, scores[:, 0], best)

    @cached_property
    def entropies(self):
        """[rows] entropy over ln of the number of labels, in 0..1; 0 for a regression."""
        positions = torch.arange(self.scores.shape[1], device=self.scores.device)
        return normalized_entropy(self.scores.float(), positions < self._count[self.task_ids].unsqueeze(1))

    @cached_property
    def _count(self):
        return torch.tensor(self.labels, device=self.scores.device)


def in_order(found, parts):
    """What each part of a batch gave, [its rows, ...], as one, rows in the batch's order."""
    if len(found) == 1:
        return found[0]
    return torch.cat(found)[torch.cat([rows for rows, _ in parts]).argsort()]


def check_shape(config, form, max_seq_length, location):
    """A `UserError` where a BERT's config, the form and the length do not fit together."""
    if form not in FORMS:
        raise UserError(f"{form!r}", location="form", expected="one of " + ", ".join(FORMS))
    width, positions = config.hidden_size, config.max_position_embeddings
    if not 2 < max_seq_length <= positions:
        raise UserError(f"{max_seq_length} tokens", location=f"--max_seq_length {max_seq_length}",
                        expected=f"3 to {positions}, the positions of the backbone")  # fmt: skip
    if form == "plain":
        return
    if width % max_seq_length:
        fit = [n for n in range(3, min(width, positions) + 1) if width % n == 0]
        near = [*[n for n in fit if n < max_seq_length][-2:], *[n for n in fit if n > max_seq_length][:2]]
        raise UserError(
            f"the hidden size {width} is not divisible by {max_seq_length}",
            location=f"--max_seq_length {max_seq_length}",
            expected="a divisor of the hidden size: the attention matrix of a task is cut into equal blocks",
            remedy=f"use {' or '.join(map(str, near))}, the nearest that fit",
        )
    layers = config.num_hidden_layers
    if form == "base" and layers % 2:
        raise UserError(f"the backbone has {layers} layers", location=location,
                        expected="an even number of layers in the base form", remedy="use the large form")  # fmt: skip


_MINILM = "--model_name_or_path minilm --form base"


class TaskBert(nn.Module):
    """A BERT with one head a task, conditional or plain.

    Args:
        bert: a transformers BertModel with its pooler; changed in place.
        tasks: {task: number of labels, 1 for a regression}; the order gives the ids.
        form: "base", "large" or "plain".
        max_seq_length: L, the longest sequence.

    Attributes:
        tasks: as given.
        aliases: {name: task}: further names of a task's head, as mnli-mm of mnli's; saved with the model.
    """

    def __init__(self, bert, tasks, form, max_seq_length):
        super().__init__()
        self.bert, self.form, self.max_seq_length = bert, form, max_seq_length
        self.tasks, self.aliases = dict(tasks), {}
        self.config = bert.config
        self.conditions = TaskConditions()
        if form != "plain":
            condition_bert(bert, len(tasks), max_seq_length, form, self.conditions)
        self.dropout = nn.Dropout(bert.config.hidden_dropout_prob)
        width, std = bert.config.hidden_size, bert.config.initializer_range
        self.decoders = nn.ModuleList(nn.ModuleDict(dict(model=nn.Linear(width, n))) for n in tasks.values())
        initialise(self.decoders, std)
        counts = list(self.tasks.values())
        starts = [sum(counts[:i]) for i in range(len(counts))]
        # Which columns of all heads' product are a task's; the surplus points to its first one.
        columns = [[s + (j if j < n else 0) for j in range(max(counts))] for s, n in zip(starts, counts)]
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        surplus = torch.arange(max(counts)) >= torch.tensor(counts).unsqueeze(1)
        self.register_buffer("surplus", surplus, persistent=False)
        self.register_buffer("regression", torch.tensor([n == 1 for n in counts]), persistent=False)

    def task_id(self, name):
        """The id of a task by its name or an alias; an unknown one is a KeyError that lists those held."""
        name = self.aliases.get(name, name)
        if name not in self.tasks:
            raise KeyError(f"task {name!r} is not in this model; it holds {list(self.tasks)}")
        return list(self.tasks).index(name)

    def set_attn_implementation(self, name):
        """transformers' "sdpa" or "eager", or another that takes what is added to the scores."""
        self.bert.set_attn_implementation(name)

    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, task_ids=None, labels=None, all_positions=False
    ):
        """Every row through the shared BERT and its own task's head.

        Args:
            input_ids, attention_mask, token_type_ids: [rows, length], length at most L. Shorter ones count as padded
                to L, and padding that all rows share is not computed.
            task_ids: [rows] integers; may be left out where there is one task.
            labels: [rows] class ids (as floats or integers) and regressions' scores; a fraction stays one. (In the
                original the first row's type made 3.8 a 3.)
            all_positions: the output has a `sequence_output`. Heads read the first position alone, so that without it
                the conditional forms' top layer computes only that.

        Returns:
            `TaskOutput`

        Raises:
            ValueError: a sequence longer than L, no `task_ids`, an id without a task.

        A batch is best passed as it lies on the CPU, where its lengths are read without waiting for a GPU.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        task_ids = self._checked(task_ids, input_ids)
        parts = self._parts(attention_mask)
        input_ids, attention_mask, token_type_ids, labels = (
            x if x is None else x.to(self.columns.device, non_blocking=True)
            for x in (input_ids, attention_mask, token_type_ids, labels)
        )
        parameters = None if self.form == "plain" else task_parameters(self.bert, parts[0][1])
        found = []
        for rows, longest in parts:
            given = (input_ids, attention_mask, token_type_ids)
            given = [x if x is None else (x if rows is None else x[rows])[:, :longest] for x in given]
            own = task_ids if rows is None else task_ids[rows]
            found.append(self._encode(parameters, own, *given, not all_positions))
        # The pooler reads the first position alone.
        pooled = self.bert.pooler(in_order([hidden[:, :1] for hidden in found], parts))
        scores = self.head_scores(pooled, task_ids)
        loss = row_losses = None
        if labels is not None:
            row_losses = self._row_losses(scores, labels, task_ids)
            loss = self._mean_of_tasks(row_losses, task_ids)
        return TaskOutput(loss, scores, task_ids, list(self.tasks.values()), pooled, found, parts, row_losses)

    def _checked(self, task_ids, input_ids):
        rows, length = input_ids.shape
        if length > self.max_seq_length:
            raise ValueError(f"{length} tokens; this model takes at most {self.max_seq_length}")
        if task_ids is None:
            if len(self.tasks) > 1:
                raise ValueError(f"task_ids is needed: this model holds the tasks {list(self.tasks)}")
            task_ids = [0] * rows
        task_ids = torch.as_tensor(task_ids)
        # On a GPU looking would mean waiting.
        look = task_ids.device.type == "cpu" and rows
        if look and not 0 <= int(task_ids.min()) <= int(task_ids.max()) < len(self.tasks):
            known = ", ".join(f"{i} {name}" for i, name in enumerate(self.tasks))
            raise ValueError(f"task_ids {task_ids.tolist()}: expected {known}")
        if task_ids.shape != (rows,):
            raise ValueError(f"task_ids has the shape {list(task_ids.shape)}, the batch {rows} rows")
        return task_ids.to(self.columns.device, torch.long, non_blocking=True)

    def _encode(self, parameters, task_ids, *given):
        """[rows, length] ids, mask and types, and whether the first position is enough -> [rows, length or 1, width]
        hidden states."""
        if self.form != "plain":
            return run_encoder(self.bert, self.conditions, parameters, task_ids, *given)
        names = ("input_ids", "attention_mask", "token_type_ids")
        return self.bert(**dict(zip(names, given))).last_hidden_state

    def _parts(self, attention_mask):
        """How to go through a batch: [(row numbers, or None: all, tokens of the longest)], the longest part first.

        Masked keys get no weight and masked queries are read by nobody, so leaving them out changes no real position.
        """
        width = attention_mask.shape[1]
        positions = torch.arange(1, width + 1, device=attention_mask.device)
        lengths = (attention_mask.bool() * positions).amax(1).clamp(min=1)
        lengths = (lengths + -lengths % LENGTH_ROUND).clamp(max=width)
        # Layers that run again in the backward pass meet the conditions of the last rows.
        again = self.training and getattr(self.bert.encoder.layer[0], "gradient_checkpointing", False)
        if self.columns.device.type == "cpu" and not again:
            lengths, order = lengths.sort(descending=True, stable=True)
            lengths, parts, start = lengths.tolist(), [], 0
            while start < len(lengths):
                end = start + max(1, CPU_TOKENS // lengths[start])
                parts.append((order[start:end], lengths[start]))
                start = end
            if sum(len(rows) * longest for rows, longest in parts) < (1 - WORTH) * len(lengths) * lengths[0]:
                return parts
            return [(None, lengths[0])]
        return [(None, int(lengths.max()))]

    def head_scores(self, pooled, task_ids):
        """All heads in one product, then each row's own columns: [rows, width] -> [rows, most labels], fp32."""
        weight = torch.cat([head["model"].weight for head in self.decoders])
        bias = torch.cat([head["model"].bias for head in self.decoders])
        with torch.autocast(pooled.device.type, enabled=False):
            every = F.linear(self.dropout(pooled).to(weight.dtype), weight, bias)
        own = every.gather(1, self.columns.index_select(0, task_ids))
        return own.masked_fill(self.surplus.index_select(0, task_ids), -torch.inf)

    def _row_losses(self, scores, labels, task_ids):
        """[rows] squared error of a regression, else cross-entropy."""
        regression = self.regression.index_select(0, task_ids)
        squared = (scores[:, 0] - labels.to(scores.dtype)) ** 2
        classes = torch.where(regression, 0, labels.long())
        return torch.where(regression, squared, F.cross_entropy(scores, classes, reduction="none"))

    def _mean_of_tasks(self, row_losses, task_ids):
        """The mean over the tasks in the batch of the mean over their rows."""
        zeros = row_losses.new_zeros(len(self.tasks))
        totals = zeros.index_add(0, task_ids, row_losses)
        counts = zeros.index_add(0, task_ids, torch.ones_like(row_losses))
        return (totals / counts.clamp(min=1)).sum() / (counts > 0).sum()
