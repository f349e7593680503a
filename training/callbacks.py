"""Callbacks, which `Trainer` calls in list order at fixed points of training."""


class Callback:
    """Base class of callbacks; its methods do nothing.

    `state_dict` is stored in each checkpoint, so that a resumed run continues from the same state.
    """

    def before_training(self, trainer):
        """Called once model and optimizer exist, before a checkpoint is loaded or a step taken."""

    def after_backward(self, step):
        """Called when the gradients of optimizer step `step` (from 0) are complete but unclipped; may change them."""

    def on_gradients(self, step):
        """Called when the gradients of optimizer step `step` have been clipped; may change them in place."""

    def on_out_of_memory(self, error):
        """Called when a step failed with this error. Returns whether to repeat it: its batches have been split into
        lists of smaller ones, whose losses add up to the originals'."""
        return False

    def on_log(self, step):
        """Called when a point of the curve has been logged after optimizer step `step` (from 1)."""

    def after_training(self, trainer):
        """Called after the last step, but not when a run is interrupted."""

    def state_dict(self):
        """State for a checkpoint: numbers, strings and tensors."""
        return {}

    def load_state_dict(self, state):
        """Restore the state from a checkpoint."""


class MaskAbsentTasks(Callback):
    """Drops the gradients of tasks that have no row of a step in any process.

    Where a table is looked up as a whole, these gradients are zeros, and momentum and weight decay would move
    parameters that no row has used.

    Args:
        parameters: {task: the parameters used only by its rows}.
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
    """Logs the rows drawn so far as `seen` in the history, with one entry for each point of the curve.

    Args:
        tracker: `data.pair_batches.CoverageTracker`, in which the batches record what they draw.
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
        if self.trainer.reporters:
            self.trainer.reporters.add(step, "seen", shares)

    def state_dict(self):
        """The rows that have been drawn."""
        return self.tracker.state_dict()

    def load_state_dict(self, state):
        """See `Callback`."""
        self.tracker.load_state_dict(state)
