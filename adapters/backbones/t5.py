"""The T5 family: T5, T5 v1.1, Flan-T5 and mT5, encoder-decoders with relative positions."""

from versatile.adapters.backbones.family import Backbone


def _max_length(config):
    """Relative positions are unlimited, but the published models were trained on inputs and targets of 512 tokens each.

    An example counts input and target together.
    """
    return 2 * (getattr(config, "n_positions", None) or 512)


def _head_scale(config):
    """The original T5 scales the input of its tied head; v1.1 and its descendants have a separate head instead."""
    return config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0


def _projections(block):
    projections = {name: getattr(block.layer[0].SelfAttention, name) for name in "qkvo"}
    for layer in block.layer[1:-1]:
        projections |= {f"cross_{name}": getattr(layer.EncDecAttention, name) for name in "qkvo"}
    feed_forward = block.layer[-1].DenseReluDense
    # v1.1 and its descendants use a gated feed-forward module.
    ups = dict(gate="wi_0", up="wi_1") if hasattr(feed_forward, "wi_0") else dict(up="wi")
    return projections | {role: getattr(feed_forward, name) for role, name in ups.items()} | dict(down=feed_forward.wo)


BACKBONE = Backbone(
    name="T5",
    model_types=("t5", "mt5"),
    blocks=lambda model: [*model.encoder.block, *model.decoder.block],
    attention=lambda block: block.layer[0].SelfAttention,
    feed_forward=lambda block: block.layer[-1].DenseReluDense,
    projections=_projections,
    norms=lambda block: [(layer, "layer_norm") for layer in block.layer],
    norm_eps=lambda config: config.layer_norm_epsilon,
    max_length=_max_length,
    auto_class="AutoModelForSeq2SeqLM",
    # T5's table has up to a hundred times the standard deviation of GPT-2's (0.14), for which the published
    # N(0, 0.02) was chosen: new rows get the same fraction of the table's standard deviation.
    row_std=lambda model: model.get_input_embeddings().weight.std().item() / 7,
    encoder_decoder=True,
    head_scale=_head_scale,
)
