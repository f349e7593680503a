"""The GPT-NeoX family: GPT-NeoX-20B, Pythia, and other models of its architecture."""

from versatile.adapters.backbones.family import Backbone


def _projections(block):
    attention, feed_forward = block.attention, block.mlp
    return dict(
        qkv=attention.query_key_value, o=attention.dense, up=feed_forward.dense_h_to_4h, down=feed_forward.dense_4h_to_h
    )


BACKBONE = Backbone(
    name="GPT-NeoX",
    model_types=("gpt_neox",),
    blocks=lambda model: model.gpt_neox.layers,
    attention=lambda block: block.attention,
    feed_forward=lambda block: block.mlp,
    projections=_projections,
    norms=lambda block: [(block, "input_layernorm"), (block, "post_attention_layernorm")],
    norm_eps=lambda config: config.layer_norm_eps,
    max_length=lambda config: config.max_position_embeddings,
)
