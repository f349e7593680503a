"""Fine-tuning: nothing is done against forgetting."""

from versatile.lifelong.strategies.base import Strategy


class Finetune(Strategy):
    """One task after another."""

    name, order = "finetune", 20
    summary = "Fine-tuning on one task after another; nothing is done against forgetting (the lower bound)."
