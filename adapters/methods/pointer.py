"""Self-copy: a pointer to the input in addition to the vocabulary (`--self_copy` of the original VLM code).

The prediction is a mixture of a token from the vocabulary and a token copied from the text read so far:

    log( sigma(p) · (softmax(scores) + 1e-5) + (1 - sigma(p)) · copy )        p = p_gen_linear(hidden)

copy[v] is the attention that the last block's last head pays to the positions of token v. The 1e-5 is the
original's: the mixture sums to slightly more than one, and the loss is its logarithm, not renormalised.

A forward hook on the last block's attention module captures the attention; no part of a block is overridden. Only
the eager implementation computes attention weights, so such a model always uses it.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from versatile.adapters.attach import TaskConditioned, on_device
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.labels import IGNORE, LabelScores, label_positions
from versatile.adapters.methods.base import Method
from versatile.utils.errors import UserError

FLOOR = 1e-5
TINY = torch.finfo(torch.float32).tiny


def add(model, std=0.02):
    """Add a pointer to an attached model; its gate `p_gen_linear` [width -> 1] is trained and saved with the model.

    Args:
        model: a model returned by `attach`, or a loaded checkpoint.
        std: standard deviation of the gate's initial weight; its bias starts at 0.

    Returns:
        the same model object, its class now also `SelfCopying`.

    Raises:
        UserError: an encoder-decoder, or a family or method without attention weights.
    """
    backbone = backbone_of(model.config)
    if backbone.encoder_decoder:
        raise UserError(f"points into the one sequence of a causal model; {backbone.name} is an encoder-decoder",
                        location="--self_copy", remedy="leave the flag out")  # fmt: skip
    if backbone.attention is None:
        raise UserError(f"the family {backbone.name} exposes no attention weights", location="--self_copy",
                        remedy="leave the flag out, or name the attention module in the family's file")  # fmt: skip
    if other := next((m for m in model.added.values() if m.attention), None):
        raise UserError(f"reads attention weights, which the method {other.name} does not compute",
                        location="--self_copy", remedy="leave the flag out, or choose another method")  # fmt: skip
    base, gate = type(model), Gate(model, "pointer")
    gate.build(model, std)
    gate.hook(model)
    model.added["pointer"] = gate
    model.__class__ = type(base.__name__, (SelfCopying, base), {"__module__": base.__module__})
    model.info.self_copy = True
    model.set_attn_implementation("eager")
    return model


class Gate(Method):
    """The gate `p_gen_linear` [width -> 1] of the mixture; the tasks of a model share it."""

    # Other implementations compute no attention weights.
    attention = "eager"

    def build(self, model, std):
        self.p_gen_linear = nn.Linear(self.backbone.hidden_size(model.config), 1)
        self.to(model.get_input_embeddings().weight.device)
        nn.init.normal_(self.p_gen_linear.weight, std=std)
        nn.init.zeros_(self.p_gen_linear.bias)

    def hook(self, model):
        model.pointer = Pointer()
        last = self.backbone.blocks(model)[-1]
        self.backbone.attention(last).register_forward_hook(model.pointer.hook)

    def owner(self, name):
        return None


class Pointer:
    """Carries the last head's attention from the attention module's hook to the scores of the same forward pass.

    Attributes:
        ids: [rows, prefix] the attended tokens, including cached ones; None outside a forward pass.
        weights: [rows, length, prefix] attention of the last head.
    """

    def __init__(self):
        self.ids = self.weights = None

    def hook(self, module, args, output):
        """Forward hook of an attention module. Blocks recomputed in the backward pass are ignored."""
        if self.ids is not None:
            self.weights = output[1][:, -1]

    def take(self):
        """(attention [rows, length, prefix], ids [rows, prefix]) of this forward pass."""
        # A cache with a sliding window has dropped the oldest tokens.
        seen = self.weights.shape[-1]
        if seen > self.ids.shape[1]:
            raise ValueError(f"attention is paid to {seen} positions, but prefix_ids has {self.ids.shape[1]} tokens")
        return self.weights, on_device(self.ids[:, self.ids.shape[1] - seen :], self.weights.device)


class SelfCopying:
    """Mixed into an attached model's class by `add`."""

    # transformers reads the accepted arguments from the signature.
    @functools.wraps(TaskConditioned.forward)
    def forward(self, input_ids=None, past_key_values=None, *args, prefix_ids=None, **kwargs):
        """As `TaskConditioned.forward`; without labels, the output's `logits` are the logarithm of the mixture.

        Args:
            prefix_ids: [rows, prefix] all tokens so far, cached ones and `input_ids`; needed with a cache.
                `generate` passes them automatically.
        """
        if prefix_ids is None and past_key_values is not None and past_key_values.get_seq_length():
            raise ValueError("with a cache, self-copy needs prefix_ids: the cached tokens and the new ones")
        if prefix_ids is None and input_ids is None:
            raise ValueError("self-copy needs input_ids: embeddings alone do not say what to copy")
        self.pointer.ids = input_ids if prefix_ids is None else prefix_ids
        try:
            return super().forward(input_ids, past_key_values, *args, **kwargs)
        finally:
            self.pointer.ids = self.pointer.weights = None

    def prepare_inputs_for_generation(self, input_ids, *args, **kwargs):
        """As the backbone's, with the whole prefix in addition to the tokens not yet cached."""
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs) | {"prefix_ids": input_ids}

    def all_scores(self, model_inputs, logits_to_keep=0):
        """As `TaskConditioned.all_scores`, for the mixture: [rows, positions kept, vocabulary]."""
        output = self.base_model(**{**model_inputs, "return_dict": True})
        attention, ids = self.pointer.take()
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = output.last_hidden_state[:, keep]
        logits = log_mixture(self.get_output_embeddings()(hidden), self.gate(hidden), attention[:, keep], ids)
        return CausalLMOutputWithPast(
            logits=logits, past_key_values=output.past_key_values, hidden_states=output.hidden_states,
            attentions=output.attentions,
        )  # fmt: skip

    def gate(self, hidden):
        """sigma(p), the share of the vocabulary: [*, width] -> [*, 1] in fp32."""
        return torch.sigmoid(self.added["pointer"].p_gen_linear(hidden).float())

    def label_scores(self, hidden, labels, ids):
        """As `TaskConditioned.label_scores`, with `nll`: the mixture is computed only at the labels' entries."""
        output = super().label_scores(hidden, labels, ids)
        rows, at, targets = (on_device(tensor, hidden.device) for tensor in label_positions(labels))
        attention, prefix = self.pointer.take()
        gate = self.gate(hidden[rows, at]).squeeze(-1)
        known = targets.clamp(min=0)
        chosen = torch.exp(-F.cross_entropy(output.scores.float(), known, reduction="none"))
        copied = (attention[rows, at].float() * (prefix[rows] == known[:, None])).sum(-1)
        mixture = gate * (chosen + FLOOR) + (1 - gate) * copied
        nll = -mixture.clamp_min(TINY).log().masked_fill(targets == IGNORE, 0)
        return LabelScores(None, targets, rows, nll)


def log_mixture(scores, gate, attention, ids):
    """Logarithm of the mixture over the whole vocabulary.

    Args:
        scores: [rows, positions, vocabulary]; a token that must not be generated (-inf) stays at -inf.
        gate: [rows, positions, 1] the vocabulary's share.
        attention: [rows, positions, prefix].
        ids: [rows, prefix].

    Returns:
        [rows, positions, vocabulary] in fp32.
    """
    mixture = gate * (scores.float().softmax(-1) + FLOOR)
    mixture = mixture.scatter_add(-1, ids[:, None].expand_as(attention), (1 - gate) * attention.float())
    return mixture.clamp_min(TINY).log().masked_fill(scores == float("-inf"), float("-inf"))
