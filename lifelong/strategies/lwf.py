"""Learning without forgetting (Li & Hoiem 2016)."""

from versatile.lifelong.strategies.base import Strategy
from versatile.utils import flags


class LearningWithoutForgetting(Strategy):
    """The previous model's predictions for the new task's questions are preserved by distillation:

        L = L_new + λ_o · L_old,   L_old = -Σ_i y'_i log ŷ'_i,   y'_i = y_i^(1/T) / Σ_j y_j^(1/T)    (equations 1 to 4)

    summed over the tokens i of the vocabulary and averaged over the labels of the answers, where y is the distribution
    of the model after the previous task and ŷ that of the model in training. No samples of earlier tasks are needed.
    """

    name, order = "lwf", 65
    summary = ("LwF, Li & Hoiem 2016: the model after the previous task is the teacher on the new task's rows: "
               "cross-entropy + λ_o · cross-entropy between its distributions and the model's, both at temperature T, "
               "averaged over the labels.")  # fmt: skip
    published = "λ_o --lwf_lambda 1, T --lwf_temperature 2"
    memory_share = 0.41
    flags = {
        "--lwf_lambda": dict(type=flags.not_negative_rate, default=1.0,
                             help="lwf: weight of the previous model's predictions"),
        "--lwf_temperature": dict(type=flags.temperature, default=2.0, help="lwf: temperature of both distributions"),
    }  # fmt: skip
    no_teacher = "the previous model is already the teacher"
    no_own_adapters = "an earlier adapter's predictions cannot be tested through the new task's"

    def __init__(self, sequence):
        super().__init__(sequence)
        self.previous = None

    def before_task(self, seen, new):
        """Keep a copy of the model as it is; nothing is replayed."""
        from versatile.lifelong.previous import copy_model

        self.previous = copy_model(self.sequence.model) if seen else None
        return []

    def loss_terms(self):
        """λ_o · L_old, from the second task on."""
        from versatile.lifelong.previous import PreviousModelLoss

        if self.previous is None:
            return []
        settings = self.settings
        return [PreviousModelLoss(self.previous, settings.lwf_lambda, settings.lwf_temperature)]
