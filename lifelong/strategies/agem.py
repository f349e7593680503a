"""Averaged gradient episodic memory (Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM")."""

from versatile.lifelong.strategies.gem import GradientProjection, active_parameters
from versatile.lifelong.strategies.replay_memory import ReplayMemory


class AverageGradientEpisodicMemory(ReplayMemory):
    """No step may raise the mean loss of a batch of the memory: see `lifelong.gem`.

    As for GEM here, the gradient is projected after it has been clipped.
    """

    name, order = "agem", 75
    summary = ("A-GEM, Chaudhry et al. 2019: as gem, with one gradient m of a batch from all earlier tasks' samples; "
               "where gᵀm < 0, the step uses g - (gᵀm / mᵀm) · m.")  # fmt: skip
    published = "--memory_policy per_task, 25 (MNIST) or 13 (CIFAR) samples kept per class"
    memory_share = 0.50
    policy = "per_task"

    def callbacks(self):
        """The projection, from the second task on."""
        return [GradientProjection(self)] if self.rows else []

    def projection(self, trainer):
        """The stage's `lifelong.gem.Projection`."""
        from versatile.lifelong.gem import Projection, project_on_average

        active = active_parameters(self.sequence, trainer.params, (*self.new, *self.memory.kept))
        return Projection(active, {"memory": self.losses(trainer)}, self.settings.max_norm, project_on_average)

    def losses(self, trainer):
        """A function of the step number that yields this process's share of the mean loss of a memory batch."""
        from versatile.lifelong.losses import Objective
        from versatile.training.objectives import cross_entropy
        from versatile.utils.devices import autocast

        sequence = self.sequence
        model, rank, world = sequence.model, sequence.rank, sequence.world
        batches = sequence.make_batches(self.rows, Objective(None), weighted=False)

        def losses(step):
            count = sum(len(trainer.batches.plan(epoch)[i]) for epoch, i in trainer.plan.micro_batches(step))
            batch, labels = batches.collate(self.draw(count, step), slice(rank, None, world))
            with autocast(model.device, sequence.dtype):
                yield cross_entropy(model, batch, labels)

        return losses
