"""Models sharded over processes with PyTorch's FSDP2 (`torch.distributed.fsdp.fully_shard`).

Every process keeps its part of each tensor, frozen or trained, and of the optimizer's state. A block's tensors are
gathered while its forward or backward pass runs; those outside the blocks (embedding tables, head, and the methods'
modules) for the whole forward and backward pass. Files are the same as in every other run: the tensors they hold are
gathered before saving.
"""

import contextlib

import torch
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.labels import LabelScores
from versatile.adapters.methods.base import is_added
from versatile.adapters.methods.task_embeddings import TaskHead


def shard_model(model):
    """Shard an attached model over all processes, in place; it must be on its device and untrained."""
    # Importing the library takes most of a second.
    from torch.distributed.fsdp import fully_shard
    from torch.utils import _pytree

    if LabelScores not in _pytree.SUPPORTED_NODES:
        # FSDP looks for tensors in what a forward returns.
        _pytree.register_dataclass(LabelScores)
    name = type(model).__name__
    for block in backbone_of(model.config).blocks(model):
        fully_shard(block)
    for module in model.modules():
        if isinstance(module, TaskHead):
            # A second copy of the head, which each process would hold in full.
            module.half = None
    fully_shard(model)
    # The class name is written into a saved config.
    type(model).__name__ = name
    model.get_output_embeddings().register_forward_pre_hook(_TouchAdded(model))


def is_sharded(model):
    """Whether a model is sharded over processes."""
    return hasattr(model, "unshard")


def is_part(tensor):
    """Whether a tensor is a DTensor, of which each process holds a part."""
    return hasattr(tensor, "full_tensor")


def count_held(model):
    """(number of backbone parameters that this process holds, number in the whole backbone)."""
    backbone = [p for name, p in model.named_parameters() if not is_added(name)]
    return sum(local(p).numel() for p in backbone), sum(p.numel() for p in backbone)


class _TouchAdded:
    """Forward pre-hook of the head that gives every trained parameter outside the backbone a gradient, zero if no row
    of this process's batch used it. All processes then reduce the same gradients, whatever their rows."""

    def __init__(self, model):
        self.parameters = [(module, name) for module in model.added.modules()
                           for name, p in module.named_parameters(recurse=False) if p.requires_grad]  # fmt: skip

    def __call__(self, head, args):
        if not torch.is_grad_enabled() or not self.parameters:
            return args
        parameters = [module._parameters[name] for module, name in self.parameters]
        return _Touch.apply(args[0], *parameters), *args[1:]


class _Touch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, *parameters):
        ctx.parameters = [dict(size=p.shape, dtype=p.dtype, device=p.device) for p in parameters]
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, *(torch.zeros(**p) for p in ctx.parameters)


@contextlib.contextmanager
def gathered(model):
    """Gather the tensors that a checkpoint holds, in every process: the methods' modules and, if the backbone is
    trained, `model.state_dict()`. Yields the latter, or {}. Changes to either are lost: see `load_sharded`."""
    if not is_sharded(model):
        yield {}
        return
    state = _whole_state(model) if model.info.mode == "full" or model.info.save_backbone else {}
    if state:
        model.state_dict = lambda: state
    model.unshard()
    try:
        yield state
    finally:
        model.reshard()
        vars(model).pop("state_dict", None)


def _whole_state(model):
    """A sharded model's state dict of whole tensors; a tensor with two names stays shared, as in the model."""
    parameters, tensors, state = dict(model.named_parameters(remove_duplicate=False)), {}, {}
    for name, tensor in model.state_dict().items():
        owner = id(parameters.get(name, tensor))
        state[name] = tensors[owner] = tensors[owner] if owner in tensors else whole(tensor).cpu()
    return state


def load_sharded(model, load, directory):
    """Read a checkpoint with `load(directory)`, and keep this process's part of the trained tensors."""
    from torch.distributed.tensor import distribute_tensor

    with gathered(model) as state:

        def load_state_dict(values, strict=True):
            for name in state.keys() & values.keys():
                state[name].copy_(values[name])
            return list(state.keys() - values.keys()), list(values.keys() - state.keys())

        model.load_state_dict = load_state_dict
        try:
            load(directory)
        finally:
            del model.load_state_dict
        written = {name: state[name] if name in state and not is_added(name) else p.detach().clone()
                   for name, p in model.named_parameters() if p.requires_grad}  # fmt: skip
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in written:
                value = written[name].to(p.device)
                p.to_local().copy_(distribute_tensor(value, p.device_mesh, p.placements).to_local())


def whole(value):
    """A sharded tensor gathered from its parts, in every process; other values unchanged."""
    return value.full_tensor() if is_part(value) else value


def part_like(value, parameter):
    """This process's part of a tensor that belongs to a parameter, sharded like it."""
    if is_part(parameter) and torch.is_tensor(value) and value.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def local(tensor):
    """The part of a tensor that this process holds."""
    return tensor.to_local() if is_part(tensor) else tensor
