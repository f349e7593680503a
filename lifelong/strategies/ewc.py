"""Elastic weight consolidation (Kirkpatrick et al. 2017)."""

from versatile.lifelong.strategies.importance_penalty import ImportancePenalty


class ElasticWeightConsolidation(ImportancePenalty):
    """ω += 1/N · Σ_batches (∂ mean cross-entropy / B)², over batches of B samples of a task of N samples."""

    name, order = "ewc", 50
    summary = ("EWC, Kirkpatrick et al. 2017: ω += 1/N · Σ_batches (∂ mean cross-entropy / B)² after each task; "
               "every later step adds -lr · 2 · reg_lambda · ω · (p - p*), p* the "
               "parameters at the end of the previous task.")  # fmt: skip
    memory_share = 0.30
