"""Residual bottleneck adapters after the self-attention and the feed-forward module of every block (Houlsby et al.
2019).

An adapter is applied before the residual connection of its module:

    A(x) = LN_post(Up(act(Down(LN_pre(x))))) + x

where each norm is optional. Published T5s have only the norm after the adapter, shared by all tasks, whose gain starts
at 1. Here each task has its own, so that it can be taken out of its model, and its gain starts at 0.01, so that the
adapter starts near the identity: with a gain of 1 the norm's output has unit variance. That is small compared with the
hidden states of a T5, but larger than those of a small BERT, whose frozen layers then receive mostly noise. HyperFormer
generates adapters of this form (hyperformer.py).
"""

import functools

import torch
from torch import nn
from versatile.adapters.methods.base import TaskModules, first_output, refuse_without_port
from versatile.adapters.methods.bottleneck import BottleneckAdapter
from versatile.adapters.routing import GroupedProduct, TaskRouter
from versatile.utils.errors import UserError

METHODS = {"adapters": "SublayerAdapters"}
SETTINGS = {"reduction_factor": ("positive", 32, "the adapters' width is the backbone's divided by this")}

# Published initialisation of the linear maps: N(0, 0.01), biases 0.
INIT_STD = 1e-2
NORM_EPS = 1e-5
SITES = ("attention", "feed_forward")
# Settings of published T5s, with their defaults. names: {task: its adapter}, where tasks share adapters.
PUBLISHED = dict(non_linearity="gelu_new", add_layer_norm_before_adapter=False, add_layer_norm_after_adapter=True,
                 shared_norms=False, names=None)  # fmt: skip


class SublayerAdapter(BottleneckAdapter):
    """One task's adapter at one site; other arguments as in `BottleneckAdapter`.

    Args:
        pre, post: whether the adapter has its own layer norm before and after.
    """

    def __init__(self, width, bottleneck, activation, pre, post):
        super().__init__(width, bottleneck, norm=False, activation=activation, std=INIT_STD)
        self.pre_layer_norm = nn.LayerNorm(width, eps=NORM_EPS) if pre else None
        self.post_layer_norm = nn.LayerNorm(width, eps=NORM_EPS) if post else None
        if post:
            nn.init.constant_(self.post_layer_norm.weight, INIT_STD)

    def matrices(self):
        """The matrices in the form `GroupedProduct` expects."""
        return self.down.weight, self.down.bias, self.up.weight, self.up.bias


class SublayerAdapters(TaskModules):
    """The adapters of a model's tasks, one per block and site: blocks.<block>.<task>.<site>.<...>."""

    def __init__(self, model, name):
        super().__init__(model, name)
        self.names, self.products = {}, {}
        # Norms that tasks share: norms.<block>.<site>.<...>.
        self.norms = nn.ModuleList()

    @classmethod
    def check(cls, name, backbone, settings, location):
        for port in SITES:
            refuse_without_port(backbone, port, name, location)

    def build(self, model, tasks):
        published = PUBLISHED | next(iter(tasks.values()), {})
        names = published["names"] or dict(zip(tasks, tasks))
        self.names |= names
        super().build(model, {name: tasks[task] for task, name in reversed(names.items())})
        if published["shared_norms"]:
            width, device = self.backbone.hidden_size(model.config), model.get_input_embeddings().weight.device
            wanted = {"pre_layer_norm": published["add_layer_norm_before_adapter"],
                      "post_layer_norm": published["add_layer_norm_after_adapter"]}  # fmt: skip
            self.norms.extend(nn.ModuleDict({site: nn.ModuleDict(
                {norm: nn.LayerNorm(width, eps=NORM_EPS) for norm, is_wanted in wanted.items() if is_wanted}
            ) for site in SITES}).to(device) for _ in self.blocks)  # fmt: skip

    def new(self, config, block, settings):
        settings, width = PUBLISHED | settings, self.backbone.hidden_size(config)
        own = not settings["shared_norms"]
        return nn.ModuleDict({site: SublayerAdapter(
            width, adapter_width(width, settings), settings["non_linearity"],
            own and settings["add_layer_norm_before_adapter"], own and settings["add_layer_norm_after_adapter"],
        ) for site in SITES})  # fmt: skip

    def insert(self, model, task, modules):
        super().insert(model, task, modules)
        if task not in self.names.values():
            self.names[task] = task

    def hook(self, model):
        for number, block in enumerate(self.backbone.blocks(model)):
            for site in SITES:
                module = getattr(self.backbone, site)(block)
                module.register_forward_hook(functools.partial(self.after_module, number, site))

    def after_module(self, number, site, module, args, output):
        """Apply each row's adapter to the output of an attention or feed-forward module."""
        modules = self.blocks[number]
        names = [self.names.get(task) for task in self.router.present]
        adapters = [modules[name][site] if name in modules else None for name in names]
        if not any(adapters):
            return output
        return first_output(output, lambda hidden: hidden + self.added(number, site, hidden, adapters, self.router))

    def added(self, number, site, hidden, adapters, router):
        """The adapters' contribution to hidden [rows, length, width]; one adapter, or None, per run of the router."""
        if (number, site) not in self.products:
            self.products[number, site] = GroupedProduct(next(filter(None, adapters)).activation)
        product, shared = self.products[number, site], self.norms[number][site] if len(self.norms) else {}

        def normalise(states, name):
            norms = [adapter and (shared[name] if name in shared else getattr(adapter, name)) for adapter in adapters]
            if not any(norms):
                return states
            if len(norms) == 1:
                return norms[0](states)
            # A row without an adapter gets no shift either.
            zeros = torch.zeros_like(next(filter(None, norms)).bias)
            gains, shifts = ([getattr(norm, part, zeros) for norm in norms] for part in ("weight", "bias"))
            return router.layer_norm(states, gains, shifts, NORM_EPS)

        return normalise(product(normalise(hidden, "pre_layer_norm"), adapters, router), "post_layer_norm")

    def owner(self, name):
        parts = name.split(".")
        if parts[0] == "norms":
            return None
        tasks = [task for task, own in self.names.items() if own == parts[2]]
        return tasks[0] if len(tasks) == 1 else None

    def task_state(self, task):
        # Shared norms get the names that a task's own norms would have.
        return super().task_state(self.names.get(task)) | dict(self.norms.named_parameters())

    @torch.no_grad()
    def is_idle(self, task):
        name, router = self.names.get(task, task), TaskRouter()
        for number, modules in enumerate(self.blocks):
            for site, adapter in modules[name].items():
                hidden = probe(adapter.up.weight)
                if self.added(number, site, hidden, [adapter], router).any():
                    return False
        return True


def adapter_width(width, settings):
    """Bottleneck width of the adapters for a backbone of hidden size `width`; a `UserError` if it would be 0."""
    if width < settings["reduction_factor"]:
        raise UserError(f"the backbone is {width} wide", location=f"--reduction_factor {settings['reduction_factor']}",
                        expected=f"1 to {width}")  # fmt: skip
    return width // settings["reduction_factor"]


def probe(weight):
    """Random hidden states [1, 2, width] to test whether an adapter with the matrix up [width, units] adds anything."""
    return torch.randn(1, 2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
