"""Orthogonal low-rank adaptation (Wang et al. 2023, "Orthogonal subspace learning for language model continual
learning")."""

from versatile.lifelong.strategies.base import Strategy
from versatile.training.callbacks import Callback
from versatile.utils import flags


class OrthogonalLoRA(Strategy):
    """Each task trains its own LoRA, orthogonal to the frozen ones of earlier tasks; the model uses the sum of all,
    whatever the task of a question. See `lifelong.subspaces`.

    The special tokens' embeddings are trained with the first task only: no parameter of an earlier task changes.
    """

    name, order = "olora", 90
    summary = ("O-LoRA, Wang et al. 2023: a LoRA of rank --lora_rank per task, all of them added up, the earlier ones "
               "frozen; L + λ · Σ_{i<t} ‖A_i A_tᵀ‖² keeps the new one orthogonal to them. With --method "
               "lora.")  # fmt: skip
    published = "λ --olora_lambda 0.5, --lora_rank 8, --learning_rate 1e-3 (T5-large)"
    flags = {"--olora_lambda": dict(type=flags.not_negative_rate, default=0.5, help="olora: weight of the penalty")}
    no_own_adapters = "each task already has its own subspace"

    @classmethod
    def method_refusal(cls, method):
        """See `Strategy`."""
        return None if method == "lora" else ("its subspaces are those of LoRA's matrices", "use --method lora")

    @classmethod
    def attached_method(cls, method, tasks):
        """LoRA with one subspace per task, at the same scale alpha / r."""
        return method | {name: method[name] * tasks for name in ("lora_rank", "lora_alpha")}

    def before_task(self, seen, new):
        """Choose the task's subspace."""
        from versatile.lifelong import routing
        from versatile.lifelong.sequence import choose_method
        from versatile.lifelong.subspaces import Subspaces

        model = self.sequence.model
        routing.train_rows(model, not seen)
        self.subspaces = Subspaces(model, choose_method(self.settings)["lora_rank"], len(seen))
        self.is_first = not seen
        return []

    def loss_terms(self):
        """λ · L_orth, from the second task on."""
        from versatile.lifelong.subspaces import OrthogonalityLoss

        return [] if self.is_first else [OrthogonalityLoss(self.subspaces, self.settings.olora_lambda)]

    def callbacks(self):
        """The callback that freezes the other tasks' subspaces."""
        return [FreezeOtherSubspaces(self.subspaces)]


class FreezeOtherSubspaces(Callback):
    """Freezes the other tasks' subspaces during a stage."""

    def __init__(self, subspaces):
        self.subspaces = subspaces

    def before_training(self, trainer):
        """See `Callback`."""
        self.subspaces.freeze_other_subspaces(trainer.optimizer)

    def after_training(self, trainer):
        """See `Callback`."""
        self.subspaces.release()
