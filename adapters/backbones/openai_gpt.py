"""OpenAI GPT, the first one (openai-gpt): it keeps no cache, decoding runs the whole sequence for every token."""

from versatile.adapters.backbones.loading import Family, register

OPENAI_GPT = register(
    Family(
        name="OpenAI GPT",
        model_types=("openai-gpt",),
        blocks=lambda model: model.transformer.h,
        norm_eps=lambda config: config.layer_norm_epsilon,
        positions=lambda config: config.n_positions,
    )
)
