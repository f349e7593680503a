"""The GPT-2 family: gpt2, distilgpt2, gpt2-medium and other models of its architecture."""

from versatile.adapters.backbones.family import Backbone


def _projections(block):
    attention, feed_forward = block.attn, block.mlp
    # Queries, keys and values come from one matrix.
    return dict(qkv=attention.c_attn, o=attention.c_proj, up=feed_forward.c_fc, down=feed_forward.c_proj)


BACKBONE = Backbone(
    name="GPT-2",
    model_types=("gpt2",),
    blocks=lambda model: model.transformer.h,
    attention=lambda block: block.attn,
    feed_forward=lambda block: block.mlp,
    projections=_projections,
    norms=lambda block: [(block, "ln_1"), (block, "ln_2")],
    norm_eps=lambda config: config.layer_norm_epsilon,
    max_length=lambda config: config.n_positions,
    token_types=True,
)
