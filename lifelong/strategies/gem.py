"""Gradient episodic memory (Lopez-Paz & Ranzato 2017)."""

from versatile.lifelong.strategies.kept_samples import KeptSamples
from versatile.training.callbacks import Callback
from versatile.utils import flags
from versatile.utils.screen import counted


class GradientEpisodicMemory(KeptSamples):
    """No step may raise the loss on samples kept from earlier tasks: see `lifelong.gem`."""

    name, order = "gem", 70
    summary = ("GEM, Lopez-Paz & Ranzato 2017: samples of each task are kept, as many as a share of the next task; a "
               "gradient with a negative product with that of an earlier task's samples is projected to the nearest "
               "one without: g + Mᵀv, v the minimum of ½ vᵀ(MMᵀ + ε)v + gᵀMᵀv, v ≥ margin.")  # fmt: skip
    published = "--gen_lm_sample_percentage 0.05, --qp_margin 0.5"
    is_published = True
    memory_share = 0.50
    flags = {
        "--qp_margin": dict(type=flags.not_negative_rate, default=0.5, help="gem: lower bound of the dual variables"),
    }

    def make_memory(self):
        """See `KeptSamples`."""
        from versatile.lifelong.memory import NextTaskMemory

        return NextTaskMemory(self.settings.gen_lm_sample_percentage, self.settings.seed)

    def callbacks(self):
        """The projection, from the second task on."""
        return [GradientProjection(self)] if self.memory.kept else []

    def memory_losses(self):
        """{earlier task: loss function of its kept samples, as `Projection` takes it}."""
        from versatile.lifelong.gem import memory_losses
        from versatile.lifelong.losses import Objective

        losses, sequence = {}, self.sequence
        for task, indices in self.memory.kept.items():
            batches = sequence.make_batches(sequence.encode(task, indices, True), Objective(None), weighted=False)
            losses[task] = memory_losses(sequence.model, batches, sequence.dtype)
        return losses

    def projection(self, trainer):
        """The stage's `lifelong.gem.Projection`."""
        from functools import partial

        from versatile.lifelong.gem import Projection, project

        settings = self.settings
        active = active_parameters(self.sequence, trainer.params, (*self.new, *self.memory.kept))
        return Projection(active, self.memory_losses(), settings.max_norm,
                          partial(project, margin=settings.qp_margin))  # fmt: skip

    def after_task(self, task, batches):
        """Choose the samples to keep of the task."""
        from versatile.training.experiment import print_once

        sizes = self.sequence.sizes
        order, size = list(sizes), sizes[task]
        self.memory.add(task, size, sizes[order[order.index(task) + 1]])
        print_once(f"{task}: {len(self.memory.kept[task]):,} of {counted(size, 'sample')} kept to constrain gradients")


def active_parameters(sequence, parameters, tasks):
    """The parameters whose gradients are projected: all but the adapters of tasks not trained yet.

    A zero gradient would not keep those fixed, as weight decay would still apply. An earlier task's own adapter is
    updated when its memory takes effect in the projection.

    Args:
        sequence: `learning.Sequence`.
        parameters: all trained parameters.
        tasks: names of the tasks trained now or before.
    """
    from versatile.lifelong import routing

    own_parameters = routing.parameters_of_tasks(sequence.model, sequence.data)
    untrained = {id(p) for task, own in own_parameters.items() if task not in tasks for p in own}
    return [p for p in parameters if id(p) not in untrained]


class GradientProjection(Callback):
    """Applies a strategy's `projection` to a stage's gradients."""

    def __init__(self, strategy):
        self.strategy = strategy

    def before_training(self, trainer):
        """See `Callback`."""
        self.projection = self.strategy.projection(trainer)

    def on_gradients(self, step):
        """See `Callback`."""
        self.projection.on_gradients(step)

    def state_dict(self):
        """How many steps have been projected."""
        return dict(projected=self.projection.projected)

    def load_state_dict(self, state):
        """Restore what `state_dict` returned."""
        self.projection.projected = state.get("projected", 0)

    def after_training(self, trainer):
        """See `Callback`."""
        self.projection.after_training(trainer)
