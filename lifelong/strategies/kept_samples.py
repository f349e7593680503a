"""Base class of GEM and the replay strategies: real samples kept from trained tasks, and the file that lists them."""

from versatile.lifelong.strategies.base import Strategy


class KeptSamples(Strategy):
    """Keeps a `lifelong.memory.Memory`, which subclasses create.

    Attributes:
        memory: samples of earlier tasks.
        new: names of the stage's tasks.
    """

    state_file = "memory.json"

    def __init__(self, sequence):
        super().__init__(sequence)
        self.memory, self.new = self.make_memory(), ()

    def make_memory(self):
        """An empty `lifelong.memory.Memory`."""
        raise NotImplementedError

    def before_task(self, seen, new):
        """Note the stage's tasks; nothing is mixed into their samples."""
        self.new = new
        return []

    def kept_bytes(self):
        """Size of the kept samples' texts in UTF-8."""
        data = self.sequence.data
        samples = [data[task][int(i)] for task, indices in self.memory.kept.items() for i in indices]
        return sum(len("".join((qa.context, qa.question, *qa.answers)).encode()) for qa in samples)

    def state_dict(self):
        """Which samples are kept."""
        return self.memory.state_dict()

    def load_state_dict(self, state):
        """See `Strategy`."""
        self.memory.load_state_dict(state)

    def read_state(self, path):
        """See `Strategy`."""
        from versatile.lifelong.memory import read_memory

        return read_memory(path, self.sequence.sizes)
