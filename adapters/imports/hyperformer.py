"""State dicts of the published HyperFormer code, a T5 with its adapters or hypernetworks, under their own names.

    model = t5.attach(T5ForConditionalGeneration.from_pretrained(…), tasks, t5.T5Settings(…))
    load_original(model, state)

`efficient_unique_hyper_net` is the method "hyperformer++", `unique_hyper_net` "hyperformer", a meta-adapter with
neither is "meta". The published code writes no manifest: tasks and settings are those that were typed for it.
"""

import torch
from versatile.adapters.methods.hypernetworks import original_name
from versatile.adapters.tensors import copy_tensors
from versatile.utils.errors import UserError

# Once part of transformers' T5, always zero in use: "position biases" of cross-attention.
OBSOLETE = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
TABLES = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def original_names(model):
    """{parameter's name in the model: its name in the published code}."""
    return {name: original_name(name) for name, _ in model.named_parameters()}


def original_state(model):
    """{published name: tensor} of all of a model's parameters."""
    return {original_name(name): p.detach() for name, p in model.named_parameters()}


def load_original(model, state, location="the state dict"):
    """Copy a state dict of the published code into an attached model.

    Args:
        model: attached with the tasks and settings the state dict was trained with.
        state: {published name: tensor}; the T5 itself is in it. Fixed task embeddings, which the published code
            does not save, may be missing.
        location: what errors call it.

    Raises:
        UserError: names or shapes that are not the model's, tied tables that differ, an obsolete relative bias of
            cross-attention that is not zero (no T5 of today has it).
    """
    state, names = dict(state), {original_name(n): p for n, p in model.named_parameters()}
    if OBSOLETE in state and state.pop(OBSOLETE).any():
        raise UserError(
            f"{OBSOLETE} is not zero",
            location=location,
            expected="zeros, as nothing reads it any more",
            remedy="set it to zero; outputs are then not those of the code that trained it",
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
    vectors = getattr(model, "task_embedding_controller", None)
    if vectors is not None and vectors.fixed:
        kept = {n for n in names if n.startswith("task_embedding_controller.task_to_embeddings.") and n not in state}
        names = {n: p for n, p in names.items() if n not in kept}
    copy_tensors(state, names, location)
