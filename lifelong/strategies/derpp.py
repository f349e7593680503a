"""Dark experience replay++ (Buzzega et al. 2020)."""

from dataclasses import replace

from versatile.lifelong.strategies.replay_memory import ReplayMemory
from versatile.utils import flags


class DarkExperienceReplay(ReplayMemory):
    """Samples kept from earlier tasks are trained on with their labels and with the logits the model once gave them:

        L = L_t + α · E_(x', z')~M [ ‖z' - h(x')‖² ] + β · E_(x'', y'')~M [ ℓ(y'', f(x'')) ]               (equation 6)

    where h are the logits, and x' and x'' two batches of the memory. Only the k highest logits of each label are kept,
    as the vocabulary has tens of thousands of tokens: a memory takes size · labels · k · 8 bytes. The squared
    difference is averaged over the k tokens (in the published code over all classes) and over the labels. A sample's
    logits are those at the end of its task; in the original they are those of the step in which it was seen.
    """

    name, order = "derpp", 85
    summary = ("DER++, Buzzega et al. 2020: as er, with two memory batches in every step: L + α · mean squared "
               "difference from the stored logits of the k likeliest tokens of the first + β · mean cross-entropy of "
               "the second.")  # fmt: skip
    published = "--memory_policy reservoir, α --derpp_alpha 0.1 to 0.5, β --derpp_beta 0.5 to 1"
    memory_share = 0.19
    flags = ReplayMemory.flags | {
        "--derpp_alpha": dict(type=flags.not_negative_rate, default=0.1, help="derpp: weight of the stored logits"),
        "--derpp_beta": dict(type=flags.not_negative_rate, default=0.5, help="derpp: weight of the stored labels"),
        "--derpp_top_k": dict(type=flags.positive, default=20, help="derpp: logits stored for each label"),
    }
    no_teacher = "it stores a sample's label and the model's own logits"
    state_file = "memory.pt"

    def __init__(self, sequence):
        super().__init__(sequence)
        # {task: {index: (ids [labels, k], logits [labels, k])}}
        self.logits = {}

    @property
    def replay_weight(self):
        """β: the stored labels form a separate term."""
        return self.settings.derpp_beta

    def companions(self, epoch, step, count):
        """Two batches of the memory: the first is trained on its stored logits, the second on its labels."""
        first = self.draw(count, epoch, step, 0)
        return [replace(row, use_logits=True) for row in first] + self.draw(count, epoch, step, 1)

    def encode_kept(self, task, indices):
        """Rows with their stored logits."""
        from versatile.lifelong.stored_logits import RowWithLogits

        rows = super().encode_kept(task, indices)
        return [RowWithLogits.of(row, *self.logits[task][int(i)]) for row, i in zip(rows, indices)]

    def loss_terms(self):
        """α · the mean squared difference from the stored logits."""
        from versatile.lifelong.stored_logits import StoredLogitsLoss

        return [StoredLogitsLoss(self.settings.derpp_alpha)]

    def after_task(self, task, batches):
        """Choose the samples to keep, and store the model's logits for the new ones."""
        from versatile.lifelong.stored_logits import top_logits

        super().after_task(task, batches)
        new = self.memory.kept[task]
        self.logits[task] = dict(zip(map(int, new), top_logits(self.sequence, task, new, self.settings.derpp_top_k)))
        # Drop the logits of samples that have left the memory.
        self.logits = {name: {int(i): self.logits[name][int(i)] for i in indices}
                       for name, indices in self.memory.kept.items()}  # fmt: skip

    def state_dict(self):
        """Which samples are kept, and their logits."""
        from versatile.lifelong.stored_logits import pack_logits

        return super().state_dict() | dict(scores=pack_logits(self.logits))

    def load_state_dict(self, state):
        """See `Strategy`."""
        from versatile.lifelong.stored_logits import unpack_logits

        super().load_state_dict(state)
        self.logits = unpack_logits(state["scores"])

    def read_state(self, path):
        """See `Strategy`."""
        from versatile.lifelong.stored_logits import read_memory_with_logits

        return read_memory_with_logits(path, self.sequence.sizes)
