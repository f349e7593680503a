"""Base class of all adaptation methods; each file in this folder defines one.

A method's parameters live in `model.added[<method>]`, for all tasks of the model that use it, and act on the backbone
through forward hooks at its ports (adapters/backbones/family.py). Each method defines two properties of a parameter:
its `key` in a checkpoint file and its `owner`, the one task that uses it, or None if tasks share it. The owner
determines what combining takes from a checkpoint, which task's best epoch a parameter is taken from, and which
parameters are skipped in a step without rows of their task.

A file declares these literals, which scripts read without importing torch (adapters/methods/registry.py):

    METHODS = {"lora": "LoRA"}                                              name of a method -> its class
    SETTINGS = {"lora_rank": ("positive", 8, "rank r of the update")}       flag -> (type in utils.flags, default, help)
"""

import functools
import logging

import torch
from torch import nn
from versatile.adapters.backbones.family import backbone_of
from versatile.utils.errors import UserError


class Method(nn.Module):
    """One adaptation method in one model.

    Args:
        model: a conditioned model (adapters/attach.py).
        name: the method's name.

    Attributes:
        shared: why a task cannot be taken out of a model with this method, or None if it can.
        sizes: {setting: (suffix of the keys, axis)} of tensors whose size along the axis equals the setting.
        chains: tasks' modules can be chained one after another (`adapters.attach.chain_tasks`).
        attention: the attention implementation that the method requires, or None for any.
        full_precision: the method's own layers compute in float32, outside autocast.
    """

    shared = attention = None
    chains = full_precision = False
    sizes = {}

    def __init__(self, model, name):
        super().__init__()
        self.name, self.router = name, model.router
        self.backbone = backbone_of(model.config, head=getattr(model, "head", "lm"))

    @classmethod
    def check(cls, name, backbone, settings, location):
        """Raise a `UserError` if the method does not fit the backbone or the settings.

        Args:
            backbone: `Backbone`.
            settings: {setting: value}.
            location: what requested the method, for the error.
        """

    @classmethod
    def check_model(cls, model, backbone, settings):
        """Raise a `UserError` if the settings do not fit the model itself; arguments as of `check`, which knows only
        the family."""

    @classmethod
    def check_chain(cls, model, backbone, chain):
        """Raise a `UserError` if tasks with the settings `chain` cannot be chained one after another."""

    def build(self, model, tasks):
        """Create the parameters for {task: settings}, in the order of tasks."""
        raise NotImplementedError

    def hook(self, model):
        """Register the hooks on the backbone; called once."""
        raise NotImplementedError

    def key(self, name):
        """A parameter's name in this module -> its key in a checkpoint file."""
        return name

    def owner(self, name):
        """The only task that uses a parameter, given its name in this module, or None if tasks share it."""
        raise NotImplementedError

    def extend_source_mask(self, mask):
        """The mask of an encoder's states, given the mask [rows, length] of the input it has just read."""
        return mask

    def task_state(self, task):
        """{name: parameter} of everything the method needs for a task, {} if the task does not use it; names depend
        neither on the task nor on the model's other tasks."""
        raise NotImplementedError

    def is_idle(self, task):
        """Whether the method leaves a task's outputs unchanged for every input."""
        return False

    def refuse_idle(self, task, location):
        """Raise a `UserError` if `is_idle`: a loaded adapter would change no output."""
        if self.is_idle(task):
            raise UserError(f"the adapter for {task!r} changes nothing: what it adds is zero in every layer",
                            location=location, remedy="train it for longer, as its rows may never have been drawn, or "
                            "load the right file; if a run's best model is that of its first step, at rate 0, use one "
                            "of its later checkpoints")  # fmt: skip


class TaskModules(Method):
    """A method whose parameters each belong to one task: every block has one module per task.

    A parameter's name is its key in the file: blocks.<block>.<task>.<...>, the encoder's blocks before the decoder's.
    """

    def __init__(self, model, name):
        super().__init__(model, name)
        self.blocks = nn.ModuleList(nn.ModuleDict() for _ in self.backbone.blocks(model))

    def new(self, config, block, settings):
        """A task's module for one block of the backbone."""
        raise NotImplementedError

    def create(self, model, settings):
        """A task's modules, one per block, not yet in the model."""
        return [self.new(model.config, block, settings) for block in self.backbone.blocks(model)]

    def build(self, model, tasks):
        for task, settings in tasks.items():
            self.insert(model, task, self.create(model, settings))

    def insert(self, model, task, modules):
        """Insert a task's modules, as returned by `create`, into the model."""
        for of_tasks, block, module in zip(self.blocks, self.backbone.blocks(model), modules):
            of_tasks[task] = module.to(next(block.parameters()).device)

    def owner(self, name):
        return name.split(".")[2]

    def task_state(self, task):
        return {f"{number}.{name}": p for number, of_tasks in enumerate(self.blocks) if task in of_tasks
                for name, p in of_tasks[task].named_parameters()}  # fmt: skip

    def copy(self, source, target):
        """Copy the parameters of task `source` to task `target`."""
        for of_tasks in self.blocks:
            if source in of_tasks and target in of_tasks:
                of_tasks[target].load_state_dict(of_tasks[source].state_dict())

    def of_runs(self, block):
        """A block's modules for the router's runs, None for a run whose task has none; [] if no task has any."""
        of_tasks = self.blocks[block]
        modules = [of_tasks[name] if name in of_tasks else None for name in self.router.present]  # noqa: SIM401
        return modules if any(m is not None for m in modules) else []


# What a method needs of a family, in words for its users.
_PORTS = {
    "attention": "access to a block's self-attention", "feed_forward": "access to a block's feed-forward part",
    "projections": "access to the linear maps of a block",
    "attention_interface": "transformers' attention interface in a block",
}  # fmt: skip


def refuse_without_port(backbone, port, name, location):
    """Raise a `UserError` if a backbone does not offer a port that a method needs."""
    if not getattr(backbone, port):
        raise UserError(f"the method {name} needs {_PORTS[port]}, which the family "
                        f"{backbone.name} does not offer", location=location,
                        remedy="choose another method or backbone, or add the port to the family's file")  # fmt: skip


def first_output(output, change):
    """Apply `change` to the hidden states in a hook's output: the output itself, or the first of several."""
    if isinstance(output, tuple | list):
        return (change(output[0]), *output[1:])
    return change(output)


def is_added(name):
    """Whether a parameter of this name was added to a model's backbone."""
    return name.startswith("added.")


def added_parameters(model):
    """[(method, name in its module, parameter)] of everything added to a model's backbone."""
    return [(method, name, p) for method in model.added.values() for name, p in method.named_parameters()]


def keyed_added_parameters(model):
    """{key in a checkpoint: parameter} of everything added to a model's backbone."""
    return {method.key(name): p for method, name, p in added_parameters(model)}


def parameters_of_tasks(model):
    """{task: its trained parameters}, without parameters that tasks share."""
    owned = {task: [] for task in model.router.tasks}
    for method, name, p in added_parameters(model):
        if p.requires_grad and (task := method.owner(name)) in owned:
            owned[task].append(p)
    return owned


def are_separate(model):
    """Whether the tasks of a model share no trained parameter."""
    return sum(map(len, parameters_of_tasks(model).values())) == sum(p.requires_grad for p in model.parameters())


def check_idle(methods, location, requested=()):
    """Raise a `UserError` if a requested task's loaded adapter changes nothing, or if all tasks' do; a warning names
    the other tasks of which that is true.

    Args:
        methods: {task: the `Method` that it uses}.
        location: the file they were loaded from.
        requested: names of the tasks that are going to be used.
    """
    idle = [task for task, method in methods.items() if method.is_idle(task)]
    refused = idle if len(idle) == len(methods) else [task for task in idle if task in requested]
    if refused:
        methods[refused[0]].refuse_idle(refused[0], location)
    if idle:
        _warn_of_idle(tuple(idle), location)


@functools.cache
def _warn_of_idle(tasks, location):
    # Cached, because a script may load the same directory more than once.
    logging.getLogger(__name__).warning(
        "warning: %s: the adapter for %s changes nothing: were its rows never drawn in training? If so, train for "
        "longer; the other tasks can be used", location, " and the one for ".join(map(repr, tasks)),
    )  # fmt: skip


def copy_adapter(model, source, targets):
    """Copy the adapter of task `source` to the tasks `targets`, whatever their method."""
    for method in model.added.values():
        if isinstance(method, TaskModules):
            for target in targets:
                method.copy(source, target)


def initialise(module, std=0.02):
    """Initialise the Linears and Embeddings in a module from N(0, std), with zero biases."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
            if getattr(part, "bias", None) is not None:
                nn.init.zeros_(part.bias)


@torch.no_grad()
def all_zero(tensors):
    """Whether all tensors are entirely zero."""
    return not any(bool(t.any()) for t in tensors)
