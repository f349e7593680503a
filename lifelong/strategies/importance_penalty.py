"""Base class of EWC and MAS: parameters important to earlier tasks are pulled back to their old values."""

from versatile.lifelong.strategies.base import Strategy
from versatile.training.callbacks import Callback
from versatile.utils import flags


class ImportancePenalty(Strategy):
    """After every step a parameter moves by -lr · 2 · reg_lambda · ω · (p - p*); see `lifelong.importance`."""

    flags = {"--reg_lambda": dict(type=flags.not_negative_rate, default=1.0, help="ewc, mas: strength of the penalty")}
    naming_flags = {
        "--normalize_importance": dict(
            action="store_true",
            help="ewc, mas: divide each task's ω by its mean and λ by 2 · Σ lr, so that over a task a parameter of "
                 "mean importance is pulled back to e^-λ of its displacement, on any model (default: ω and λ as "
                 "published)"),
    }  # fmt: skip
    titles = {"normalize_importance": "normalised importance"}
    published = "--reg_lambda 1"
    is_published = True
    state_file, transient_state = "importance.pt", True

    def __init__(self, sequence):
        super().__init__(sequence)
        from versatile.lifelong.importance import Importance

        self.importance = Importance(sequence.model, self.name, self.settings.reg_lambda,
                                     self.settings.normalize_importance)  # fmt: skip

    def callbacks(self):
        """The penalty; it does nothing in the first task."""
        return [Penalty(self.importance)]

    def after_task(self, task, batches):
        """Add the task's importance ω to the earlier tasks', and set p* to the current parameters."""
        from versatile.lifelong.batches import HalvingOnOutOfMemory
        from versatile.lifelong.importance import task_batches
        from versatile.training.experiment import print_once
        from versatile.utils.progress import Progress

        rank, world = self.sequence.rank, self.sequence.world

        def accumulate(cap):
            answers = batches()
            answers.cap = cap
            with Progress(len(answers.plan()), f"importance ({self.name})") as done:
                batch_list = count_batches(task_batches(self.name, answers, rank, world), done)
                self.importance.finish_task(batch_list, len(answers), self.sequence.dtype)

        HalvingOnOutOfMemory(batches().cap, "samples per importance batch", print_line=print_once).run(accumulate)

    def state_dict(self):
        """ω and p*."""
        return self.importance.state_dict()

    def read_state(self, path):
        """See `Strategy`."""
        from versatile.lifelong.importance import read_importance

        return read_importance(path, self.importance)

    def load_state_dict(self, state):
        """See `Strategy`."""
        self.importance.load_state_dict(state)


class Penalty(Callback):
    """Applies the penalty after every optimizer step that is actually taken."""

    def __init__(self, importance):
        self.importance = importance

    def before_training(self, trainer):
        """See `Callback`."""
        self.importance.begin_task([trainer.schedule(step) for step in range(trainer.total_steps)])
        self.hook = self.importance.attach(trainer.optimizer)

    def after_training(self, trainer):
        """See `Callback`."""
        self.hook.remove()


def count_batches(batches, done):
    """Yield the batches; `done` is called with the number processed so far."""
    for number, batch in enumerate(batches, 1):
        yield batch
        done(number)
