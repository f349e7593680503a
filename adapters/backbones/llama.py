"""The Llama family: Llama, SmolLM, Mistral and Qwen decoders, which share names and block layout."""

from versatile.adapters.backbones.loading import Family, register

LLAMA = register(
    Family(
        name="Llama",
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
        blocks=lambda model: model.model.layers,
        norm_eps=lambda config: config.rms_norm_eps,
        positions=lambda config: config.max_position_embeddings,
        attention=lambda block: block.self_attn,
    )
)
