"""The original OpenAI GPT (openai-gpt): it has no cache, so decoding runs the whole sequence for every token."""

from versatile.adapters.backbones.family import Backbone


def _projections(block):
    attention, feed_forward = block.attn, block.mlp
    # Queries, keys and values come from one matrix.
    return dict(qkv=attention.c_attn, o=attention.c_proj, up=feed_forward.c_fc, down=feed_forward.c_proj)


BACKBONE = Backbone(
    name="OpenAI GPT",
    model_types=("openai-gpt",),
    blocks=lambda model: model.transformer.h,
    # No attention port: the module returns a list, and weights only on request.
    feed_forward=lambda block: block.mlp,
    projections=_projections,
    norms=lambda block: [(block, "ln_1"), (block, "ln_2")],
    norm_eps=lambda config: config.layer_norm_epsilon,
    max_length=lambda config: config.n_positions,
    attention_interface=False,
    token_types=True,
)
