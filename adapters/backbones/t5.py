"""The T5 family as backbones of tasks: T5, T5 v1.1, Flan-T5, mT5, encoder-decoders with relative positions."""

from versatile.adapters.backbones.loading import Family, register


def _positions(config):
    """Relative positions have no end, but the published models were trained on inputs and on targets of 512 tokens.

    An example is input and target together.
    """
    return 2 * (getattr(config, "n_positions", None) or 512)


def _head_scale(config):
    """The first T5 scales what its tied head multiplies; v1.1 and its descendants have a head of their own instead."""
    return config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0


T5 = register(
    Family(
        name="T5",
        model_types=("t5", "mt5"),
        blocks=lambda model: [*model.encoder.block, *model.decoder.block],
        norm_eps=lambda config: config.layer_norm_epsilon,
        positions=_positions,
        # T5's table is up to a hundred times as coarse as GPT-2's (standard deviation 0.14), beside which the
        # published N(0, 0.02) was chosen: here it is the same share of the table's.
        row_std=lambda model: model.get_input_embeddings().weight.std().item() / 7,
        encoder_decoder=True,
        head_scale=_head_scale,
    )
)
