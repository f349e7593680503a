"""Assignment of a batch's rows to tasks, and matrix products that differ by task.

All adaptation methods share these: the model's forward groups a batch's rows by task once, and each method reads the
groups at its sites in the backbone.
"""

import contextlib
import itertools

import torch
import torch.nn.functional as F

NO_TASK = -1
# Up to this many tokens per forward pass, one product over the units of all tasks is faster than one product per task,
# even though most of its result is masked out.
FUSED_TOKENS = 256
# The same limit for adapters that are generated for each batch, in positions per row.
FUSED_LENGTH = 2


class TaskRouter:
    """Assigns the rows of the current batch to tasks; shared by all methods of a model.

    The model's forward sets it from `task_ids` before the blocks run. It is kept until the next forward pass, so
    blocks that are recomputed in the backward pass see the same rows.

    Attributes:
        tasks: names; a task's id is its index.
        runs: [(task name or None, number of rows)] of the current batch.
        which: [rows] index of each row's run; None if there is only one run.
        order: (order that groups the rows by task, its inverse) if a task's rows are not contiguous, else None.
        kept: values that methods compute once per forward pass, under keys they choose.
        prepare: callables without arguments that methods run once per forward pass, before the blocks.
        chained: a task's rows also see the prompts of the tasks before it.
        inputs: number of inputs an encoder has read; values kept while an output is decoded expire with the next input.
    """

    def __init__(self):
        self.tasks = []
        self.runs = []
        self.which = self.order = None
        self.kept, self._masks = {}, {}
        self.prepare = []
        self.chained, self.inputs = False, 0
        self._routed = None

    def route(self, task_ids, rows):
        """Group a batch's rows by task.

        Args:
            task_ids: integer tensor [rows], one task id per row (-1: no adapter), or None: the model's only task,
                or no adapter if it has none.
            rows: number of rows in the batch.

        Returns:
            the rows' task ids, a list.

        Raises:
            ValueError: an unknown id, a number of ids that differs from the number of rows, or no ids although
                there are several tasks.
        """
        # All decoding steps pass the same tensor, so it is read once.
        version = None if task_ids is None or task_ids.is_inference() else task_ids._version
        key = (rows, version, list(self.tasks))
        if version is None or self._routed is None or self._routed[0] is not task_ids or self._routed[1] != key:
            self._routed = task_ids, key, self._group(task_ids, rows)
        self.kept = {}
        for prepare in self.prepare:
            prepare()
        return self._routed[2]

    def _group(self, task_ids, rows):
        """The rows' task ids; arguments and errors as in `route`."""
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
        self.which, self.order, self._masks = None, None, {}
        if len(present) > 1:
            device = task_ids.device
            self.which = torch.tensor([present.index(i) for i in ids], device=device)
            if len(list(itertools.groupby(ids))) > len(present):
                order = torch.argsort(self.which, stable=True)
                self.order = order, torch.argsort(order)
        return ids

    def checkpoint_contexts(self):
        """`context_fn` for torch.utils.checkpoint: a block recomputed in the backward pass sees the groups of its
        original forward pass, whatever has been routed since."""
        names = ("runs", "which", "order", "kept", "_masks")
        own = {name: getattr(self, name) for name in names}

        @contextlib.contextmanager
        def restored():
            latest = {name: getattr(self, name) for name in names}
            self.__dict__.update(own)
            try:
                yield
            finally:
                self.__dict__.update(latest)

        return contextlib.nullcontext(), restored()

    def __getstate__(self):
        # A copy starts without a batch: tensors in the middle of a graph cannot be copied.
        return self.__dict__ | dict(kept={}, _routed=None)

    @property
    def present(self):
        """Names of the tasks in the batch, None for rows without a task, in order of their first row."""
        return tuple(name for name, _ in self.runs)

    def chain(self, task):
        """The tasks whose prompts a task's rows see, the task itself first; [] for rows without a task."""
        if task is None or not self.chained:
            return [] if task is None else [task]
        return self.tasks[self.tasks.index(task) :: -1]

    def of_rows(self, vectors):
        """One vector per run, a list of [width] or [runs, width] -> each row's vector, [rows or 1, 1, width]."""
        if self.which is None:
            return vectors[0][None, None]
        stacked = vectors if torch.is_tensor(vectors) else torch.stack(list(vectors))
        return stacked.index_select(0, self.which_on(stacked.device)).unsqueeze(1)

    def which_on(self, device):
        """`which` on a device; copied there once per batch."""
        if device not in self._masks:
            self._masks[device] = self.which.to(device)
        return self._masks[device]

    def layer_norm(self, hidden, gains, biases, eps):
        """Layer norm of hidden states [rows, length, width], each row with its task's gain and bias. These are given
        per run in the form `of_rows` expects."""
        normed = F.layer_norm(hidden, hidden.shape[-1:], eps=eps)
        return torch.addcmul(self.of_rows(biases), normed, self.of_rows(gains))

    def mask(self, units, like):
        """[rows, 1, sum of units], one where a unit belongs to the row's task, else zero.

        Args:
            units: number of units of each run, in order.
            like: a tensor with the desired device and dtype.
        """
        key = units, like.device, like.dtype
        if key not in self._masks:
            owners = torch.repeat_interleave(torch.arange(len(units)), torch.tensor(units))
            mask = (self.which.cpu()[:, None] == owners).to(like.device, like.dtype)
            self._masks[key] = mask.unsqueeze(1)
        return self._masks[key]


class GroupedProduct:
    """up(f(down(x))) for every row with its task's matrices: the product that low-rank methods share.

    A batch of one task uses that task's product directly. In a mixed batch the products run task by task; with few
    tokens and no gradients, as in decoding, they are fused into one product over the units of all tasks, masked to each
    row's task. Use one object per site, as it caches the matrices of the fused product.

    Args:
        activation: the function f; None: the identity.
    """

    def __init__(self, activation=None):
        self.activation = activation
        self._fused = None, None

    def __call__(self, hidden, adapters, router):
        """hidden [rows, length, in] -> [rows, length, out].

        Args:
            adapters: one per run of the router, or None for a run whose rows get zeros; not all None. Each has
                `delta(x)`, the product, `matrices()`, (down [units, in], its bias or None, up [out, units], its bias or
                None), and `parameters()`, which the matrices are computed from.
            router: `TaskRouter`.
        """
        if len(adapters) == 1:
            return adapters[0].delta(hidden)
        if self.is_fused(hidden):
            down, bias, up, units = self.fuse(adapters)
            inner = F.linear(hidden, down, bias)
            inner = inner if self.activation is None else self.activation(inner)
            return F.linear(inner * router.mask(units, inner), up)
        return self.by_task(hidden, adapters, router)

    @staticmethod
    def is_fused(hidden):
        """Whether hidden states of several tasks go through one fused product."""
        return not torch.is_grad_enabled() and hidden.shape[0] * hidden.shape[1] <= FUSED_TOKENS

    def stacked(self, hidden, adapters, router):
        """As `__call__`, for adapters whose matrices are generated rather than parameters, stacked in one tensor each.

        In a mixed batch, one batched product uses each row's own matrices.

        Args:
            adapters: has down [runs, units, in], down_bias [runs, units], up [runs, out, units], up_bias [runs, out],
                without the first axis if the batch has one run; and `units()`, (down, its bias, up) of all merged.
        """
        activation = self.activation or (lambda inner: inner)
        if router.which is None:
            inner = activation(F.linear(hidden, adapters.down, adapters.down_bias))
            return F.linear(inner, adapters.up, adapters.up_bias)
        if not torch.is_grad_enabled() and hidden.shape[1] <= FUSED_LENGTH:
            down, bias, up = adapters.units()
            inner = activation(F.linear(hidden, down, bias))
            inner = inner * router.mask((adapters.down.shape[1],) * len(adapters.down), inner)
            return F.linear(inner, up) + router.of_rows(adapters.up_bias)

        def of_rows(inputs, weight, bias):
            weight = weight.index_select(0, router.which_on(weight.device))
            return torch.baddbmm(router.of_rows(bias), inputs, weight.transpose(1, 2))

        inner = activation(of_rows(hidden, adapters.down, adapters.down_bias))
        return of_rows(inner, adapters.up, adapters.up_bias)

    def by_task(self, hidden, adapters, router):
        """As `__call__`, with one product per task."""
        if torch.is_autocast_enabled(hidden.device.type):
            # Cast once for all tasks instead of in each product.
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        order = router.order and [rows.to(hidden.device) for rows in router.order]
        if order:
            hidden = hidden.index_select(0, order[0])
        parts = hidden.split([count for _, count in router.runs])
        deltas = [adapter and adapter.delta(part) for adapter, part in zip(adapters, parts)]
        width = next(delta.shape[-1] for delta in deltas if delta is not None)
        deltas = [p.new_zeros(*p.shape[:-1], width) if delta is None else delta for p, delta in zip(parts, deltas)]
        deltas = torch.cat(deltas)
        return deltas.index_select(0, order[1]) if order else deltas

    def fuse(self, adapters):
        """Several adapters merged into one: (down [units, in], its bias, up [out, units], units of each run).

        If an adapter's up has a bias, a last constant unit is added whose column of up yields that bias. A run without
        an adapter has no units.
        """
        held = [a for a in adapters if a is not None]
        key = tuple((id(a), *((p.data_ptr(), p._version) for p in a.parameters())) for a in adapters if a is not None)
        key += tuple(a is None for a in adapters)
        if self._fused[0] != key:
            # Value of the constant unit after the activation.
            one = 1.0 if self.activation is None else float(self.activation(torch.ones(())))
            downs, biases, ups, units = [], [], [], []
            for adapter in adapters:
                before = sum(map(len, downs))
                if adapter is not None:
                    down, bias, up, shift = adapter.matrices()
                    downs.append(down)
                    biases.append(down.new_zeros(len(down)) if bias is None else bias)
                    ups.append(up)
                    if shift is not None:
                        downs.append(down.new_zeros(1, down.shape[1]))
                        biases.append(down.new_ones(1))
                        ups.append(shift[:, None] / one)
                units.append(sum(map(len, downs)) - before)
            kind = next(held[0].parameters()).dtype
            tensors = [torch.cat(parts, dim).to(kind) for parts, dim in ((downs, 0), (biases, 0), (ups, 1))]
            self._fused = key, (*tensors, tuple(units))
        return self._fused[1]

    def __deepcopy__(self, memo):
        # The cache is rebuilt from the copy's parameters.
        return GroupedProduct(self.activation)
