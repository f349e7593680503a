"""The Llama family: Llama, SmolLM, Mistral and Qwen decoders, which share names and block layout."""

from versatile.adapters.backbones.family import Backbone


def _projections(block):
    attention, feed_forward = block.self_attn, block.mlp
    return dict(q=attention.q_proj, k=attention.k_proj, v=attention.v_proj, o=attention.o_proj,
                gate=feed_forward.gate_proj, up=feed_forward.up_proj, down=feed_forward.down_proj)  # fmt: skip


BACKBONE = Backbone(
    name="Llama",
    model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
    blocks=lambda model: model.model.layers,
    attention=lambda block: block.self_attn,
    feed_forward=lambda block: block.mlp,
    projections=_projections,
    norms=lambda block: [(block, "input_layernorm"), (block, "post_attention_layernorm")],
    norm_eps=lambda config: config.rms_norm_eps,
    max_length=lambda config: config.max_position_embeddings,
)
