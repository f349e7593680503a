"""The GPT-2 family: gpt2, distilgpt2, gpt2-medium and other models of its architecture."""

from versatile.adapters.backbones.loading import Family, register

GPT2 = register(
    Family(
        name="GPT-2",
        model_types=("gpt2",),
        blocks=lambda model: model.transformer.h,
        norm_eps=lambda config: config.layer_norm_epsilon,
        positions=lambda config: config.n_positions,
        attention=lambda block: block.attn,
    )
)
