"""A GPU's rules without a GPU: a model on the meta device, and a mode that refuses what CUDA would refuse or wait for.

The meta device only computes shapes, and by itself accepts CPU tensors. `DeviceRules` sees every operation,
including those of the backward pass, and refuses

    one that mixes tensors of the device and of the CPU, except for scalars (0 dimensions) and copies to the device
    one whose result the host has to wait for: `.item()`, `.tolist()`, `bool(tensor)`, `.cpu()`, `nonzero`, a mask as
    an index, `unique`, …; unless such reads are allowed, and then they are counted
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
DEVICE = torch.device("meta")
COPIES = (aten._to_copy.default, aten.copy_.default)
# Only the device knows the size of the result.
SHAPED_BY_VALUES = {"nonzero", "nonzero_numpy", "masked_select", "_unique", "_unique2", "unique_dim", "bincount",
                    "unique_consecutive", "repeat_interleave", "equal", "is_nonzero", "_assert_async"}  # fmt: skip
INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}


class DeviceFault(AssertionError):
    """What a GPU would refuse or wait for."""


class DeviceRules(TorchDispatchMode):
    """See above.

    Attributes:
        reads: how many times the host waited for the device where that was allowed.
    """

    def __init__(self):
        super().__init__()
        self.reads, self._allowed = 0, False

    @staticmethod
    def active():
        """The rules in force."""
        return _get_current_dispatch_mode()

    @contextlib.contextmanager
    def allow_reads(self):
        """The host may wait for the device here; the values it reads are 0, or false."""
        before, self._allowed = self._allowed, True
        try:
            yield
        finally:
            self._allowed = before

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        on_device = [t for t in tensors if t.device == DEVICE]
        if on_device:
            if operation is aten._local_scalar_dense.default:
                self._read(operation)
                return on_device[0].dtype.is_floating_point and 0.0
            if to_host := _copy_to_host(operation, args, kwargs):
                self._read(operation)
                return to_host()
            self._refuse_waiting(operation, args)
            self._refuse_mixed(operation, tensors)
        return operation(*args, **kwargs)

    def _read(self, operation):
        if not self._allowed:
            raise DeviceFault(f"{operation}: the host waits for the device")
        self.reads += 1

    def _refuse_waiting(self, operation, args):
        name = operation.overloadpacket.__name__
        indices = [t for t in tree_leaves(args[1:2]) if isinstance(t, torch.Tensor)]
        masks = [t for t in indices if t.dtype in (torch.bool, torch.uint8)]
        if name in SHAPED_BY_VALUES or (name in INDEXING and masks):
            raise DeviceFault(f"{operation}: the host waits for the device to know the result's shape")

    def _refuse_mixed(self, operation, tensors):
        mixed = [t for t in tensors if t.device != DEVICE and t.dim()]
        if mixed and operation not in COPIES:
            sites = ", ".join(f"{list(t.shape)} on the {_name(t.device)}" for t in tensors)
            raise DeviceFault(f"{operation} mixes devices: {sites}")


def _copy_to_host(operation, args, kwargs):
    """The cause of the copy if an operation copies from the device to the CPU, else None."""
    source = args[1] if operation is aten.copy_.default else args[0]
    if operation not in COPIES or source.device != DEVICE:
        return None
    if operation is aten.copy_.default:
        return None if args[0].device == DEVICE else (lambda: args[0].zero_())
    device = kwargs.get("device")
    if device is None or torch.device(device) == DEVICE:
        return None
    return lambda: torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=device)


def _name(device):
    return "device" if device == DEVICE else device
