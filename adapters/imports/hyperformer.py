"""State dicts of the published HyperFormer code, a T5 with adapters or hypernetworks, under the published names.

    model = t5.attach(T5ForConditionalGeneration.from_pretrained(…), tasks, t5.T5Settings(…))
    load_original(model, state)

`efficient_unique_hyper_net` is the method "hyperformer++", `unique_hyper_net` is "hyperformer", and a meta-adapter
with neither is "meta" ("hyperformer-per-layer"). The published code writes no manifest, so the caller must supply the
tasks and settings used in training.
"""

import re

import torch
from versatile.adapters.tensors import copy_tensors
from versatile.utils.errors import UserError

# Once part of transformers' T5, always zero in use: "position biases" of cross-attention.
OBSOLETE = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
TABLES = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


# Names of parameters added to a T5: pattern -> published name; {layer} is a module of a block in a stack.
_NAMES = (
    (r"added\.[^.]+\.embeddings\.(.+)", r"task_embedding_controller.\1"),
    (r"added\.[^.]+\.hypernets\.(?P<stack>\d+)\.controllers\.(?P<site>\d+)\.(.+)", r"{layer}.\3"),
    (r"added\.[^.]+\.hypernets\.(?P<stack>\d+)\.(.+)", r"{stack}.adapter_layers_hyper_net.\2"),
    (r"added\.adapters\.blocks\.(?P<block>\d+)\.([^.]+)\.(?P<port>[^.]+)\.(down|up)\.(\w+)",
     r"{layer}.adapters.\2.\4_sampler.\5"),
    (r"added\.adapters\.norms\.(?P<block>\d+)\.(?P<port>[^.]+)\.(.+)", r"{layer}.\3"),
)  # fmt: skip


def original_name(name, encoder_blocks):
    """A parameter's name in the published code; a parameter not in that code keeps its name.

    Args:
        name: in a T5 with tasks.
        encoder_blocks: number of encoder blocks.
    """
    for pattern, published in _NAMES:
        if not (match := re.fullmatch(pattern, name)):
            continue
        parts = match.groupdict()
        if "block" in parts:
            block, is_attention = int(parts["block"]), parts["port"] == "attention"
            in_encoder = block < encoder_blocks
            block -= 0 if in_encoder else encoder_blocks
        else:
            block, site = divmod(int(parts.get("site", 0)), 2)
            in_encoder, is_attention = parts.get("stack") == "0", site == 0
        stack, module = ("encoder", 1) if in_encoder else ("decoder", 2)
        layer = f"{stack}.block.{block}.layer.{0 if is_attention else module}.adapter_controller"
        return match.expand(published).format(stack=stack, layer=layer)
    return name


def original_names(model):
    """{parameter's name in the model: its name in the published code}."""
    return {name: original_name(name, model.config.num_layers) for name, _ in model.named_parameters()}


def original_parameters(model):
    """{published name: parameter} of all of a model's parameters."""
    names = original_names(model)
    return {names[name]: p for name, p in model.named_parameters()}


def original_state(model):
    """{published name: tensor} of all of a model's parameters."""
    return {name: p.detach() for name, p in original_parameters(model).items()}


def load_original(model, state, location="the state dict"):
    """Copy a state dict of the published code into an attached model.

    Args:
        model: attached with the tasks and settings the state dict was trained with.
        state: {published name: tensor}, including the T5 itself. Fixed task embeddings, which the published code
            does not save, may be missing.
        location: name of the state dict in errors.

    Raises:
        UserError: names or shapes that differ from the model's, tied tables that differ, or a nonzero relative bias
            of cross-attention (obsolete: no current T5 has it).
    """
    state, names = dict(state), original_parameters(model)
    if OBSOLETE in state and state.pop(OBSOLETE).any():
        raise UserError(
            f"{OBSOLETE} is not zero",
            location=location,
            expected="zeros, as nothing reads it any more",
            remedy="set it to zero; outputs then differ from those of the code that trained it",
        )
    shared = state.get("shared.weight", torch.empty(0))
    for name in [n for n in TABLES if n in state and n not in names]:
        if not torch.equal(state.pop(name), shared):
            raise UserError(
                f"{name} is not shared.weight",
                location=location,
                expected="one table, as in this model",
                remedy="load it into a T5 with an untied head",
            )
    vectors = model.task_embedding_controller
    if vectors is not None and vectors.fixed:
        kept = {n for n in names if n.startswith("task_embedding_controller.task_to_embeddings.") and n not in state}
        names = {n: p for n, p in names.items() if n not in kept}
    copy_tensors(state, names, location)
