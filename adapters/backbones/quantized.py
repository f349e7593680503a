"""Frozen backbones in 8 or 4 bits (Dettmers et al. 2022, "LLM.int8()"; 2023, "QLoRA").

The linear maps of the blocks are stored in few bits and multiplied in the precision of the run; tables, norms and all
trained additions are unchanged. 4-bit quantisation is bitsandbytes' NF4 on every device; 8-bit is bitsandbytes' on a
GPU and torchao's on a CPU. SmolLM2-135M on a CPU: size, divergence of its distributions from fp32 in nats, and seconds
on one core for a step of 256 tokens and for one token:

    fp32                        513 MiB               1.85   0.059
    8 bits, torchao             210 MiB   0.004 nats  1.90   0.045
    8 bits, bitsandbytes        209 MiB   0.031 nats  1.93   0.086
    4 bits, bitsandbytes        165 MiB   0.33 nats   1.93   0.086
    4 bits, torchao             225 MiB   0.47 nats   2.09   0.126

GPT-2's maps are not torch Linears, which torchao would skip; in 8 bits they use bitsandbytes on a CPU too.
"""

import importlib.util

import torch
from versatile.utils.errors import UserError

BITS = ("4bit", "8bit")


def library_of(bits, model_type):
    """The package that quantises a model on this machine; see above."""
    on_cpu = bits == "8bit" and not torch.cuda.is_available() and model_type not in ("gpt2", "openai-gpt")
    return "torchao" if on_cpu else "bitsandbytes"


# Arguments of BitsAndBytesConfig.
_OPTIONS = {
    "8bit": dict(load_in_8bit=True),
    "4bit": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32"),
}


def quantization_config(bits, model_type, location):
    """The quantisation config that transformers loads a model with.

    Args:
        bits: one of `BITS`.
        model_type: of the model's config.
        location: where the model was named, for errors.

    Raises:
        UserError: the library is not installed.
    """
    import transformers

    library = library_of(bits, model_type)
    if importlib.util.find_spec(library) is None:
        raise UserError(f"the package {library} is not installed", location=f"--load_in_{bits}",
                        expected=f"the package, to load {location.split()[-1]} in {bits.removesuffix('bit')} bits",
                        remedy=f"pip install --no-deps {library}")  # fmt: skip
    if library == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    return transformers.BitsAndBytesConfig(**_OPTIONS[bits])


def config_code(bits, model_type):
    """(import lines, expression) of `quantization_config` as Python code, for a model card."""
    if library_of(bits, model_type) == "torchao":
        imports = "from torchao.quantization import Int8WeightOnlyConfig\nfrom transformers import TorchAoConfig\n"
        return imports, "TorchAoConfig(Int8WeightOnlyConfig())"
    options = ", ".join(f"{name}={value!r}" for name, value in _OPTIONS[bits].items())
    return "from transformers import BitsAndBytesConfig\n", f"BitsAndBytesConfig({options})"


def keep_gradients(model):
    """Prevent bitsandbytes from repacking 4-bit weights on a CPU: it does so in the first evaluation and does not undo
    it for training, and packed weights give no input gradient, or a wrong one."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantized(module):
    """Whether a module's weight is quantised."""
    return type(module._parameters.get("weight")).__module__.startswith(("bitsandbytes", "torchao"))


def plain_state(model):
    """A model's state dict without its quantised maps."""
    quantized = tuple(f"{name}." for name, module in model.named_modules() if is_quantized(module))
    return {name: p for name, p in model.state_dict().items() if not name.startswith(quantized)} if quantized else (
        model.state_dict())  # fmt: skip


def set_compute_dtype(model, dtype):
    """Set the precision in which quantised maps are multiplied."""
    for module in model.modules():
        if is_quantized(module) and hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype


def number_of_values(parameter):
    """Number of values a parameter represents: 4-bit values are packed in pairs."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def refuse_training(model, what):
    """Raise a `UserError` if the weights of a quantised backbone would be trained."""
    if bits := getattr(model, "quantization", None):
        raise UserError(f"{what} trains the backbone itself, whose weights are quantised", location=f"--load_in_{bits}",
                        expected="an adapter on the frozen backbone",
                        remedy="--adapter_bottleneck N or --method lora; or leave the flag out")  # fmt: skip
