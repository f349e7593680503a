"""One encoder for many tasks: in a mixed batch, each row goes through its own task's classifier.

`added` holds everything added to the encoder, as in any attached model (adapters/attach.py): the heads and the
tasks' adaptation method, if any. Created by adapters/bert.py.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters import masks  # noqa: F401  (masks are not read on a GPU)
from versatile.adapters.attach import attention_of, check_methods, on_device, put_methods
from versatile.adapters.methods.base import keyed_added_parameters
from versatile.adapters.methods.heads import Heads
from versatile.adapters.methods.registry import FULL
from versatile.adapters.routing import TaskRouter
from versatile.adapters.schemas import FORMS, check_module_names
from versatile.utils.errors import UserError
from versatile.utils.lengths import round_up
from versatile.utils.uncertainty import normalized_entropy

# On a CPU, rows of similar length are grouped, about this many tokens at a time, if that saves at least this share of
# the padded tokens. On a GPU an additional pass costs more than padding.
CPU_TOKENS, WORTH = 512, 0.1


@dataclass
class TaskOutput:
    """The output for a batch. Per-task values are computed on demand, as a training step needs only the loss.

    Attributes:
        loss: mean of the per-task means, or None without labels.
        scores: [rows, most labels], -inf beyond the labels of the row's task.
        task_ids: [rows].
        labels: number of labels of every task of the model.
        pooled_output: [rows, width].
        hidden, parts: hidden states of each part of the batch (of all positions with `all_positions`, else possibly
            only of the first), and the rows of each part.
        row_losses: [rows] loss of each row, or None.
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
        """[rows, length, width] last hidden states of a forward pass with `all_positions`; length is the batch's
        longest, rounded up to a multiple of 8. Rows of shorter parts are padded with 0."""
        longest = self.parts[0][1]
        padded = [F.pad(hidden, (0, 0, 0, longest - hidden.shape[1])) for hidden in self.hidden]
        return in_order(padded, self.parts)

    @cached_property
    def rows(self):
        """{task id: [n] indices of its rows} for the tasks in the batch, in order of their ids."""
        ids = self.task_ids.tolist()
        return {task: torch.tensor([i for i, t in enumerate(ids) if t == task], device=self.task_ids.device)
                for task in sorted(set(ids))}  # fmt: skip

    @cached_property
    def logits(self):
        """{task id: [n, the task's labels]}, rows as in `rows`. The original returns only those of the last task."""
        return {task: self.scores[rows, : self.labels[task]] for task, rows in self.rows.items()}

    @cached_property
    def losses(self):
        """{task id: mean loss of its rows}, or None without labels."""
        if self.row_losses is None:
            return None
        return {task: self.row_losses[rows].mean() for task, rows in self.rows.items()}

    @cached_property
    def predictions(self):
        """[rows] floats: id of the most likely label, or a regression's score."""
        scores = self.scores.float()
        best = scores.argmax(-1).to(scores.dtype)
        return torch.where(self._count[self.task_ids] == 1, scores[:, 0], best)

    @cached_property
    def entropies(self):
        """[rows] entropy divided by ln of the number of labels, in 0..1; 0 for a regression."""
        positions = torch.arange(self.scores.shape[1], device=self.scores.device)
        return normalized_entropy(self.scores.float(), positions < self._count[self.task_ids].unsqueeze(1))

    @cached_property
    def _count(self):
        return torch.tensor(self.labels, device=self.scores.device)


def in_order(results, parts):
    """Concatenate the parts of a batch, each [its rows, ...], with rows in the batch's order."""
    if len(results) == 1:
        return results[0]
    return torch.cat(results)[torch.cat([rows for rows, _ in parts]).argsort()]


def check_shape(config, form, max_seq_length, location):
    """Raise a `UserError` if a BERT's config, the form and the length do not fit together."""
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


class TaskClassifier(nn.Module):
    """A BERT with one head per task and the tasks' adaptation method.

    Args:
        bert: a transformers BertModel with its pooler; changed in place.
        tasks: {task: number of labels, 1 for a regression}; the order gives the ids.
        form: "base" or "large" with CA-MTL's conditional modules, or "plain" without them.
        max_seq_length: L, the maximum sequence length.
        methods: {task: method}, with all settings filled in, to train adapters on the frozen BERT (form "plain"); None
            to train everything.

    Attributes:
        tasks, methods, form: as given.
        mode: "adapter" with a frozen backbone, or "full".
        added: {name: `Method`} of everything added to the BERT.
        aliases: {name: task}: further names for a task's head, such as mnli-mm for mnli's; saved with the model.
    """

    head = "classifier"

    def __init__(self, bert, tasks, form, max_seq_length, methods=None):
        super().__init__()
        self.bert, self.form, self.max_seq_length = bert, form, max_seq_length
        self.tasks, self.aliases, self.methods = dict(tasks), {}, methods
        self.mode, self.config = "full" if methods is None else "adapter", bert.config
        self.router, self.added = TaskRouter(), nn.ModuleDict()
        self.router.tasks = list(self.tasks)
        if methods is not None:
            check_module_names(self.tasks, "--tasks")
            bert.requires_grad_(False)
        named = self.methods_of_tasks
        check_methods(self, named)
        put_methods(self, named)
        self.added["heads"] = heads = Heads(self, "heads")
        heads.build(self, self.tasks)

    @property
    def methods_of_tasks(self):
        """{task: method} of additions other than the heads; {} if there are none."""
        if self.methods is not None:
            return self.methods
        return {} if self.form == "plain" else {task: dict(method=self.method_name) for task in self.tasks}

    @property
    def method_name(self):
        """The method of all tasks in a model that is trained as a whole."""
        return FULL if self.form == "plain" else "conditional"

    @property
    def base_model(self):
        """The BERT, under the name used by attached models."""
        return self.bert

    def get_input_embeddings(self):
        """The token embeddings."""
        return self.bert.get_input_embeddings()

    def task_id(self, name):
        """The id of a task, by name or alias; an unknown name raises a KeyError listing the known ones."""
        name = self.aliases.get(name, name)
        if name not in self.tasks:
            raise KeyError(f"task {name!r} is not in this model; it holds {list(self.tasks)}")
        return list(self.tasks).index(name)

    def set_attn_implementation(self, name):
        """Use transformers' "sdpa" or "eager", or another implementation that supports additive masks; one required by
        a method takes precedence."""
        self.bert.set_attn_implementation(attention_of(self, name))

    def forward(
        self, input_ids, attention_mask=None, token_type_ids=None, task_ids=None, labels=None, all_positions=False
    ):
        """Run every row through the shared encoder and its own task's head.

        Args:
            input_ids, attention_mask, token_type_ids: [rows, length], length at most L. Shorter ones count as padded
                to L; padding common to all rows is not computed.
            task_ids: [rows] integers; optional if there is only one task.
            labels: [rows] class ids (floats or integers) and regression scores; fractions are kept. (In the original,
                the first row's type could turn 3.8 into 3.)
            all_positions: provide `sequence_output`. Heads read only the first position, so without this flag the top
                layer of the conditional forms computes only that.

        Returns:
            `TaskOutput`

        Raises:
            ValueError: a sequence longer than L, missing `task_ids`, or an unknown task id.

        A batch is best passed from the CPU, where its lengths can be read without waiting for a GPU.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        device = self.added["heads"].columns.device
        routes = self._checked(task_ids, input_ids)
        task_ids = routes.to(device, torch.long, non_blocking=True)
        parts = self._parts(attention_mask)
        input_ids, attention_mask, token_type_ids, labels = (
            on_device(x, device) for x in (input_ids, attention_mask, token_type_ids, labels)
        )
        conditional = self.added["conditional"] if self.form != "plain" else None
        biases = None if conditional is None else conditional.prepare(parts[0][1])
        states = []
        for rows, longest in parts:
            inputs = (input_ids, attention_mask, token_type_ids)
            inputs = [x if x is None else (x if rows is None else x[rows])[:, :longest] for x in inputs]
            if conditional is not None:
                own = task_ids if rows is None else task_ids[rows]
                states.append(conditional.encode(self.bert, biases, own, *inputs, not all_positions))
                continue
            if self.mode == "adapter":
                self.router.route(routes if rows is None else routes[rows], len(inputs[0]))
            names = ("input_ids", "attention_mask", "token_type_ids")
            states.append(self.bert(**dict(zip(names, inputs))).last_hidden_state)
        # The pooler reads only the first position.
        pooled = self.bert.pooler(in_order([hidden[:, :1] for hidden in states], parts))
        heads, row_losses, loss = self.added["heads"], None, None
        scores = heads(pooled, task_ids)
        if labels is not None:
            row_losses = heads.row_losses(scores, labels, task_ids)
            loss = heads.mean_of_tasks(row_losses, task_ids)
        return TaskOutput(loss, scores, task_ids, list(self.tasks.values()), pooled, states, parts, row_losses)

    def _checked(self, task_ids, input_ids):
        rows, length = input_ids.shape
        if length > self.max_seq_length:
            raise ValueError(f"{length} tokens; this model takes at most {self.max_seq_length}")
        if task_ids is None:
            if len(self.tasks) > 1:
                raise ValueError(f"task_ids is needed: this model holds the tasks {list(self.tasks)}")
            task_ids = [0] * rows
        task_ids = torch.as_tensor(task_ids)
        # On a GPU, reading the values would block.
        look = task_ids.device.type == "cpu" and rows
        if look and not 0 <= int(task_ids.min()) <= int(task_ids.max()) < len(self.tasks):
            known = ", ".join(f"{i} {name}" for i, name in enumerate(self.tasks))
            raise ValueError(f"task_ids {task_ids.tolist()}: expected {known}")
        if task_ids.shape != (rows,):
            raise ValueError(f"task_ids has the shape {list(task_ids.shape)}, the batch {rows} rows")
        return task_ids

    def _parts(self, attention_mask):
        """Split a batch into parts: [(row indices or None for all, length of the longest)], the longest part first.

        Masked keys get no weight and the output of masked queries is unused, so omitting them changes no real position.
        """
        width = attention_mask.shape[1]
        positions = torch.arange(1, width + 1, device=attention_mask.device)
        lengths = (attention_mask.bool() * positions).amax(1).clamp(min=1)
        lengths = round_up(lengths).clamp(max=width)
        # Layers recomputed in the backward pass would see the conditions of the last part only.
        again = self.training and getattr(self.bert.encoder.layer[0], "gradient_checkpointing", False)
        if self.added["heads"].columns.device.type == "cpu" and not again:
            lengths, order = lengths.sort(descending=True, stable=True)
            lengths, parts, start = lengths.tolist(), [], 0
            # With activations kept for the backward pass, fewer tokens fit the CPU caches.
            tokens = CPU_TOKENS if torch.is_grad_enabled() else 2 * CPU_TOKENS
            while start < len(lengths):
                end = start + max(1, tokens // lengths[start])
                parts.append((order[start:end], lengths[start]))
                start = end
            if sum(len(rows) * longest for rows, longest in parts) < (1 - WORTH) * len(lengths) * lengths[0]:
                return parts
            return [(None, lengths[0])]
        return [(None, int(lengths.max()))]


def keyed_parameters(model):
    """{key in a checkpoint: parameter} of a classifier's BERT, under the published names, and of all additions."""
    return {f"bert.{name}": p for name, p in model.bert.named_parameters()} | keyed_added_parameters(model)
