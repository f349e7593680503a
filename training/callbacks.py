"""Callbacks: what takes part in training beside the loss. `Trainer` calls them at fixed moments, in their order."""


class Callback:
    """What the loop calls. Every method does nothing here.

    `state_dict` goes into each checkpoint, so that a resumed run continues the one that was stopped.
    """

    def before_training(self, trainer):
        """Model and optimizer are made; no checkpoint is loaded, no step is taken yet."""

    def after_backward(self, step):
        """The gradients of optimizer step `step` (from 0) are complete, not yet clipped; they may be changed."""

    def on_gradients(self, step):
        """The gradients of optimizer step `step` are clipped; they may be changed in place."""

    def on_out_of_memory(self, error):
        """A step failed with this error. Returns whether to take it again: its batches have become lists of smaller
        ones, whose losses add up to theirs."""
        return False

    def on_log(self, step):
        """A point of the curve has been logged behind optimizer step `step` (from 1)."""

    def after_training(self, trainer):
        """The last step is taken. An interrupted run does not get here."""

    def state_dict(self):
        """For a checkpoint: numbers, strings and tensors."""
        return {}

    def load_state_dict(self, state):
        """From one."""


class MaskAbsentTasks(Callback):
    """Drops the gradients of tasks without a row in a step, in any process.

    They are zeros where a table is looked up as a whole; momentum and weight decay would move what no row has used.

    Args:
        parameters: {task: the parameters that only its rows use}.
    """

    def __init__(self, parameters):
        self.parameters = parameters if len(parameters) > 1 else {}

    def before_training(self, trainer):
        """See `Callback`."""
        self.trainer = trainer

    def after_backward(self, step):
        """See `Callback`."""
        if not self.parameters:
            return
        batches, micro_batches = self.trainer.batches, self.trainer.plan.micro_batches(step)
        present = set().union(*(batches.present(epoch, i) for epoch, i in micro_batches))
        for task, parameters in self.parameters.items():
            if task not in present:
                for p in parameters:
                    p.grad = None


class Coverage(Callback):
    """Logs what the batches have been made of so far: `seen` of the history, one entry for each point of the curve.

    Args:
        tracker: `data.pair_batches.CoverageTracker`, to which the batches tell what they draw.
    """

    def __init__(self, tracker):
        self.tracker = tracker

    def before_training(self, trainer):
        """See `Callback`."""
        self.trainer = trainer
        trainer.history["seen"] = []

    def on_log(self, step):
        """See `Callback`."""
        shares = self.tracker.shares()
        self.trainer.history["seen"].append(dict(step=step, rows=dict(self.tracker.counts), share=shares))
        if self.trainer.board:
            self.trainer.board.add(step, "seen", shares)

    def state_dict(self):
        """Which rows have been drawn."""
        return self.tracker.state_dict()

    def load_state_dict(self, state):
        """From one."""
        self.tracker.load_state_dict(state)
