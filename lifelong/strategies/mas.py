"""Memory aware synapses (Aljundi et al. 2018)."""

from versatile.lifelong.strategies.importance_penalty import ImportancePenalty


class MemoryAwareSynapses(ImportancePenalty):
    """ω += 1/N · Σ_batches |∂ mean(softmax(logits after the question)²) / B|."""

    name, order = "mas", 60
    summary = ("MAS, Aljundi et al. 2018: as ewc, with ω += 1/N · Σ_batches |∂ mean(softmax(scores after the "
               "question)²) / B|.")  # fmt: skip
    memory_share = 0.18
