"""What GEM and the strategies of replay share: real samples kept of the tasks trained, and the file that names them."""

from versatile.lifelong.strategies.base import Strategy


class KeptSamples(Strategy):
    """Keeps a `lifelong.memory.Memory`, which subclasses make.

    Attributes:
        memory: of the tasks before.
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
        """Nothing is mixed into the task's samples."""
        self.new = new
        return []

    def kept_bytes(self):
        """Of their texts in UTF-8."""
        data = self.sequence.data
        samples = [data[task][int(i)] for task, indices in self.memory.kept.items() for i in indices]
        return sum(len("".join((qa.context, qa.question, *qa.answers)).encode()) for qa in samples)

    def state_dict(self):
        """Which samples are kept."""
        return self.memory.state_dict()

    def load_state_dict(self, state):
        """From one."""
        self.memory.load_state_dict(state)

    def read_state(self, path):
        """See `Strategy`."""
        from versatile.lifelong.memory import read_memory

        return read_memory(path, self.sequence.sizes)
