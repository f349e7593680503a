"""The T5 family as backbones of tasks: T5, T5 v1.1, Flan-T5, mT5, encoder-decoders with relative positions."""

from versatile.adapters.backbones.family import Backbone


def _max_length(config):
    """Relative positions have no end, but the published models were trained on inputs and on targets of 512 tokens.

    An example is input and target together.
    """
    return 2 * (getattr(config, "n_positions", None) or 512)


def _head_scale(config):
    """The first T5 scales what its tied head multiplies; v1.1 and its descendants have a head of their own instead."""
    return config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0


def _projections(block):
    found = {name: getattr(block.layer[0].SelfAttention, name) for name in "qkvo"}
    for layer in block.layer[1:-1]:
        found |= {f"cross_{name}": getattr(layer.EncDecAttention, name) for name in "qkvo"}
    feed_forward = block.layer[-1].DenseReluDense
    # v1.1 and its descendants gate one product with another.
    ups = dict(gate="wi_0", up="wi_1") if hasattr(feed_forward, "wi_0") else dict(up="wi")
    return found | {role: getattr(feed_forward, name) for role, name in ups.items()} | dict(down=feed_forward.wo)


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
    # T5's table is up to a hundred times as coarse as GPT-2's (standard deviation 0.14), beside which the
    # published N(0, 0.02) was chosen: here it is the same share of the table's.
    row_std=lambda model: model.get_input_embeddings().weight.std().item() / 7,
    encoder_decoder=True,
    head_scale=_head_scale,
)
