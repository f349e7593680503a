"""Devices, precision, processes."""

import contextlib
import logging
import os
import re
import resource
import shutil
import sys
import warnings

from versatile.utils.errors import UserError


@contextlib.contextmanager
def parallel(start=True):
    """Context in which a script's work runs: several processes under torchrun, one otherwise.

    gloo on CPUs, nccl on GPUs, XLA where torch_xla is installed. The process group is destroyed on exit, however the
    work ends.

    Args:
        start: start the process group; if False, a library does (transformers).
    """
    try:
        with _group() if start else contextlib.nullcontext():
            try:
                yield
            finally:
                _release_reducers()
    finally:
        _end_group()


def _group():
    import ignite.distributed as idist

    backend = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch

        backend = "nccl" if torch.cuda.is_available() else "gloo"
    elif idist.has_xla_support:
        backend = "xla-tpu"

    for name in ("launcher.Parallel", "auto.auto_model"):
        logging.getLogger(f"ignite.distributed.{name}").setLevel(logging.WARNING)
    return idist.Parallel(backend=backend)


def _release_reducers():
    """Release every DDP module's reducer while the process group still exists.

    A reducer that holds the last reference to its group destroys it while holding Python's lock, and waits for the
    group's thread, which waits for the lock. This happens now and then if it is left to garbage collection at the
    interpreter's exit: models are part of reference cycles, and of the frames of an error.
    """
    import gc

    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return
    from torch.nn.parallel import DistributedDataParallel

    # `type`, not isinstance: some libraries' lazy objects do work when asked for their `__class__`.
    for module in [item for item in gc.get_objects() if issubclass(type(item), DistributedDataParallel)]:
        for name in ("logger", "reducer"):
            module.__dict__.pop(name, None)


def _end_group():
    """Destroy the process group, if there is one."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return
    _release_reducers()
    distributed.destroy_process_group()


def has_bf16(device):
    """Whether matrix products in bf16 are fast on this device."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "xla"


# Environment variable with the directory of --profile.
PROFILE = "VERSATILE_PROFILE"


def precision(args, device):
    """The dtype of matrix products, from the flags and the device.

    Raises:
        UserError: --fp16 on a CPU.
    """
    import torch

    if args.fp16 and device.type != "cuda":
        raise UserError("float16 needs a GPU", location="--fp16", remedy="use --bf16 or --fp32")
    if args.fp16:
        return torch.float16
    if args.bf16 or (not args.fp32 and has_bf16(device)):
        return torch.bfloat16
    return torch.float32


def autocast(device, dtype):
    """Autocast to `dtype`; nothing in fp32."""
    import torch

    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def peak_memory_mb(device=None):
    """Peak memory in MB: the process's largest resident set so far, or the GPU's largest allocation if one is used."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def out_of_memory(error):
    """Whether an exception means that the GPU's or the machine's memory is exhausted."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_gpu or isinstance(error, MemoryError) or bool(re.search("(can't|Cannot) allocate memory", str(error)))


def need_compiler(device):
    """Check for the C++ compiler that torch.compile needs on a CPU, where it would fail minutes later, less clearly.

    Raises:
        UserError: there is no compiler.
    """
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and not shutil.which(name):
        raise UserError(f"there is no {name} on PATH", location="--compile", expected="a C++ compiler",
                        remedy="install one, name one in the variable CXX, or leave --compile out")  # fmt: skip


def quiet_libraries(cache_dir=None):
    """Silence transformers' progress bars, the libraries' advice and the hub's retries; errors still come through.

    Args:
        cache_dir: --cache_dir, where models from the hub are kept.

    Raises:
        UserError: Python runs without docstrings, from which transformers builds its models' documentation.
    """
    if sys.flags.optimize > 1:
        raise UserError(
            "transformers cannot load a model without docstrings",
            location="python -OO or PYTHONOPTIMIZE=2",
            expected="python, or python -O",
            remedy="unset PYTHONOPTIMIZE, leave -OO out",
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging as transformers_logging

    # An alias is called, as older versions of transformers, which are supported, have no other name.
    warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()
    # transformers' trainer and peft import these, which report their missing optional parts at every start
    for name in ("bitsandbytes", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if cache_dir:
        constants.HF_HUB_CACHE = str(cache_dir)


def prepare_for_device(model, device, dtype):
    """Move a model to a device, in the form that is fastest there in this precision; results stay the same up to
    rounding.

    On a CPU in bf16 PyTorch's fused attention takes 1.5 to 4.5 times as long as the plain products at up to 1024
    tokens; in fp32 the two are within a tenth of each other in whole models (bench/attention.py). GPUs keep the
    fused one. A CPU's dropout is that of utils/dropout.py. GPT-2's activation, four operations in transformers, is one
    kernel in PyTorch.
    """
    import torch
    from transformers.activations import NewGELUActivation

    model.to(device)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
    if device.type == "cpu":
        from versatile.utils import attention, dropout

        dropout.use_fast_dropout(model)
        _keep_memory()
        model.set_attn_implementation(attention.PRODUCTS if dtype == torch.bfloat16 else "sdpa")


def _keep_memory():
    """Make glibc keep large blocks instead of returning each to the kernel: a training step allocates the same
    sizes again at once, and faulting the pages back in costs up to a tenth of the step."""
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
