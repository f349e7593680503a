"""Residual bottleneck adapters: one bank per block, one adapter per task, one integer per row to choose.

An adapter sits after a block's second residual connection (Lin, Madotto & Fung 2020, section 2.1):

    adapter(h) = h + Up(ReLU(Down(LayerNorm(h))))
"""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import nn

NO_TASK = -1


# The names are the published flags'; swish and SiLU are one function.
ACTIVATIONS = {
    "relu": torch.relu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
}


class BottleneckAdapter(nn.Module):
    """One task's adapter in one block.

    Args:
        width: the backbone's hidden size.
        bottleneck: size of the inner layer; `2·width·bottleneck + 3·width + bottleneck` parameters.
        eps: epsilon of the layer norm; the backbone's own.
        norm: with a layer norm of its own before it. False where tasks share the norms (hyperformer.py);
            `2·width·bottleneck + width + bottleneck` parameters.
        activation: one of `ACTIVATIONS`.
        std: standard deviation the weights start from; biases start at 0.
    """

    def __init__(self, width, bottleneck, eps=1e-5, *, norm=True, activation="relu", std=0.02):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps) if norm else None
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.activation = ACTIVATIONS[activation]
        # Published start: N(0, 0.02) everywhere, so an adapter is not the identity before training.
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden):
        """hidden: [rows, length, width] -> the same shape."""
        normed = self.norm(hidden) if self.norm else hidden
        return hidden + self.up(self.activation(self.down(normed)))


class TaskRouter:
    """Which rows of the current batch belong to which task; shared by all banks of a model.

    The model's forward sets it from `task_ids` before the blocks run. It is kept until the next forward, so
    blocks that run again in the backward pass meet the same rows.
    """

    def __init__(self):
        self.tasks = []
        # [(task name or None, how many rows)], the number of its run for each row, and, where the rows of a task do
        # not stand together, (their order, the way back).
        self.runs = []
        self.which = self.order = None
        self._masks = {}

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
        present = list(dict.fromkeys(ids))
        names = [*self.tasks, None]
        self.runs = [(names[task], ids.count(task)) for task in present]
        self.order, self._masks = None, {}
        if len(present) > 1:
            device = task_ids.device
            self.which = torch.tensor([present.index(i) for i in ids], device=device)
            if len(list(itertools.groupby(ids))) > len(present):
                order = torch.argsort(self.which, stable=True)
                self.order = order, torch.argsort(order)
        return ids

    def mask(self, units, like):
        """[rows, 1, sum of units] one where a unit belongs to the row's task, else zero.

        Args:
            units: how many units each run has, in order.
            like: a tensor of the wanted device and type.
        """
        key = units, like.device, like.dtype
        if key not in self._masks:
            owners = torch.repeat_interleave(torch.arange(len(units)), torch.tensor(units))
            mask = (self.which.cpu()[:, None] == owners).to(like.device, like.dtype)
            self._masks[key] = mask.unsqueeze(1)
        return self._masks[key]


# Up to so many tokens a forward, one product over the units of all tasks is faster than one product a task, though
# most of what it computes is masked out.
FUSED_TOKENS = 256


class AdapterBank(nn.Module):
    """The adapters of one block, by task name. Each row goes through its own task's, in one of three ways.

    A batch of one task runs that adapter as it is. In a batch that mixes tasks what they share (normalisation,
    residual) is done once for all rows, their products task by task; where there are few tokens and no gradient, as in
    decoding, the products are one, too.
    """

    def __init__(self, router):
        super().__init__()
        self.adapters = nn.ModuleDict()
        self.router = router
        self._fused = None, None

    def of(self, name):
        """A task's adapter, or None: it has rows alone, or it is no task."""
        return self.adapters[name] if name in self.adapters else None  # noqa: SIM401  (a ModuleDict has no get)

    def forward(self, hidden):
        """hidden: [rows, length, width] -> the same, each row through its task's adapter."""
        runs = self.router.runs
        held = [name for name, _ in runs if name in self.adapters]
        if not held:
            # A task without an adapter (task embeddings only, or task id -1) passes through.
            return hidden
        if len(runs) == 1:
            return self.adapters[held[0]](hidden)
        eps = self.adapters[held[0]].norm.eps
        normed = F.layer_norm(hidden, hidden.shape[-1:], eps=eps)
        if not torch.is_grad_enabled() and hidden.shape[0] * hidden.shape[1] <= FUSED_TOKENS:
            down, bias, up, units = self.fused(tuple(name for name, _ in runs))
            active = torch.relu(F.linear(normed, down, bias))
            return hidden + F.linear(active * self.router.mask(units, active), up)
        return hidden + self._by_task(normed, runs)

    def _by_task(self, normed, runs):
        """What the adapters add to rows [rows, length, width] that are normalised but not yet scaled."""
        order = self.router.order and [rows.to(normed.device) for rows in self.router.order]
        which = self.router.which.to(normed.device)
        if order:
            normed, which = normed.index_select(0, order[0]), which[order[0]]
        norms = [adapter and adapter.norm for adapter in (self.of(name) for name, _ in runs)]
        gain, shift = (
            torch.stack([getattr(norm, part) if norm else normed.new_zeros(normed.shape[-1]) for norm in norms])
            for part in ("weight", "bias")
        )
        scaled = torch.addcmul(shift[which].unsqueeze(1), normed, gain[which].unsqueeze(1))
        if torch.is_autocast_enabled(scaled.device.type):
            # Once for all tasks, instead of in the product of each.
            scaled = scaled.to(torch.get_autocast_dtype(scaled.device.type))
        added = []
        for (name, _), part in zip(runs, scaled.split([count for _, count in runs])):
            adapter = self.of(name)
            added.append(adapter.up(torch.relu(adapter.down(part))) if adapter else torch.zeros_like(part))
        added = torch.cat(added)
        return added.index_select(0, order[1]) if order else added

    def fused(self, names):
        """Several adapters as one: (down [units, width], its bias, up [width, units], units of each task).

        Down holds the scale and shift of the task's layer norm. The last unit of a task is always 1: its column of up
        is the task's own bias. A task without an adapter has no units.
        """
        adapters = [self.of(name) for name in names]
        key = names, tuple((p.data_ptr(), p._version) for a in adapters if a for p in a.parameters())
        if self._fused[0] != key:
            downs, biases, ups = [], [], []
            for a in filter(None, adapters):
                weight, up = a.down.weight.float(), a.up.weight.float()
                downs += [weight * a.norm.weight, weight.new_zeros(1, weight.shape[1])]
                biases += [weight @ a.norm.bias + a.down.bias.float(), weight.new_ones(1)]
                ups += [up, a.up.bias.float()[:, None]]
            kind = next(filter(None, adapters)).down.weight.dtype
            tensors = [torch.cat(parts, dim).to(kind) for parts, dim in ((downs, 0), (biases, 0), (ups, 1))]
            units = tuple(a.down.out_features + 1 if a else 0 for a in adapters)
            self._fused = key, (*tensors, units)
        return self._fused[1]

    def hook(self, block, args, output):
        """Forward hook of a block: its hidden states, alone or first of several outputs, go through the bank."""
        if isinstance(output, tuple | list):
            return (self(output[0]), *output[1:])
        return self(output)
