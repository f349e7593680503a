"""Experience replay (Chaudhry et al. 2019, "On tiny episodic memories in continual learning")."""

from versatile.lifelong.strategies.replay_memory import ReplayMemory
from versatile.utils.errors import UserError


class ExperienceReplay(ReplayMemory):
    """Every step trains on a batch of the task and a batch of the memory together (algorithm 1): the loss is the mean
    over the labels of both. With --replay epoch the memory is mixed into the task's samples instead, each once an
    epoch, which is what "replay" means in the tables of O-LoRA, SAPT and TRACE."""

    name, order = "er", 80
    summary = ("ER, Chaudhry et al. 2019: real samples of the earlier tasks are kept; every batch B of the task is "
               "trained on together with a batch M of them: mean cross-entropy over B ∪ M. --replay epoch mixes all "
               "kept samples into the task's samples instead.")  # fmt: skip
    published = "as many memory samples as task samples in each step; 1 to 25 kept per class"
    memory_share = 0.29
    flags = ReplayMemory.flags | {
        "--replay": dict(choices=("step", "epoch"),
                         help="er: replay a batch in every step, or each sample once per epoch (default: step)"),
    }  # fmt: skip

    @classmethod
    def check(cls, settings):
        """See `Strategy`."""
        super().check(settings)
        if settings.replay == "epoch" and settings.memory_batch_size:
            raise UserError("has no effect with --replay epoch", location="--memory_batch_size",
                            remedy="leave one of them out")  # fmt: skip

    def before_task(self, seen, new):
        """With --replay epoch, the memory's rows."""
        super().before_task(seen, new)
        return self.rows if self.settings.replay == "epoch" else []

    def companions(self, epoch, step, count):
        """A batch of the memory, unless --replay epoch has mixed it in already."""
        return [] if self.settings.replay == "epoch" else self.draw(count, epoch, step)
