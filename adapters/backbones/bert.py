"""BERT: an encoder without a language-modelling head; each task has its own classifier (adapters/classifier.py)."""

from versatile.adapters.backbones.family import Backbone


def _projections(block):
    attention = block.attention
    return dict(q=attention.self.query, k=attention.self.key, v=attention.self.value, o=attention.output.dense,
                up=block.intermediate.dense, down=block.output.dense)  # fmt: skip


BACKBONE = Backbone(
    name="BERT",
    model_types=("bert",),
    blocks=lambda model: getattr(model, "bert", model).encoder.layer,
    # `output` adds the residual and normalises; the module output before that is its dense layer's.
    attention=lambda block: block.attention.output.dense,
    feed_forward=lambda block: block.output.dense,
    projections=_projections,
    norms=lambda block: [(block.attention.output, "LayerNorm"), (block.output, "LayerNorm")],
    norm_eps=lambda config: config.layer_norm_eps,
    max_length=lambda config: config.max_position_embeddings,
    auto_class="AutoModel",
    attention_interface=False,
    head="classifier",
)
