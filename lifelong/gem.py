"""Projection of gradients that would raise the loss on samples kept from earlier tasks: GEM and A-GEM.

GEM (Lopez-Paz & Ranzato 2017): if the gradient g of a step has a negative inner product with the gradient m_k of any
earlier task's memory, it is replaced by the nearest gradient that has none (equation 11):

    min_v ½ vᵀ(MMᵀ + ε)v + gᵀMᵀv   with v ≥ margin,   then g + Mᵀv,   M the rows m_k

A-GEM (Chaudhry et al. 2019): the same with one gradient m, of samples of all earlier tasks' memories (equation 11):

    g − (gᵀm / mᵀm) · m
"""

import numpy as np
import torch
from versatile.training.callbacks import Callback
from versatile.training.experiment import print_once
from versatile.training.objectives import cross_entropy
from versatile.training.validation import sum_over_processes
from versatile.utils.devices import autocast

EPSILON = 1e-3


def project(gradient, memories, margin=0.5, epsilon=EPSILON):
    """The projected gradient.

    Args:
        gradient: [n].
        memories: [t, n] gradients of the earlier tasks' memories.
        margin: lower bound of the dual variables.
        epsilon: added to the diagonal, so that the quadratic program has a unique solution.

    Returns:
        [n], with the gradient's dtype and device.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import nnls

    # The program has t variables; it is solved in float64, as the products may differ by orders of magnitude.
    product = (memories @ memories.T).double().cpu().numpy()
    product = 0.5 * (product + product.T) + epsilon * np.eye(len(memories))
    linear = (memories @ gradient).double().cpu().numpy()
    # With the Cholesky factor L of the matrix and v = u + margin, this is non-negative least squares: u >= 0 minimises
    # |Lᵀu + L⁻¹(q + matrix · margin)|, up to terms that do not depend on u.
    factor = np.linalg.cholesky(product)
    start = np.full(len(memories), float(margin))
    duals = start + nnls(factor.T, -solve_triangular(factor, linear + product @ start, lower=True))[0]
    return gradient + memories.T @ torch.from_numpy(duals).to(memories)


def project_on_average(gradient, memories):
    """A-GEM's projection: `gradient` [n] without its component along the one gradient in `memories` [1, n]."""
    (memory,) = memories
    return gradient - (gradient @ memory) / (memory @ memory) * memory


def memory_losses(model, batches, dtype=torch.float32, whole=True):
    """The loss function of one task's memory, as `Projection` takes it.

    Args:
        model: the model in training.
        batches: this process's `LifelongBatches` of the kept rows, with `weighted=False`.
        dtype: precision of the matrix products.
        whole: every step uses the whole memory, as in the paper; False: one batch of it, each in turn.

    Returns:
        a function of the step number that yields losses which add up to the mean over the labels used.
    """

    def losses(step):
        plan = batches.plan()
        chosen = [batches.batch(0, i) for i in (range(len(plan)) if whole else [step % len(plan)])]
        labels = sum(count for _, count in chosen)
        for batch, _ in chosen:
            with autocast(model.device, dtype):
                loss = cross_entropy(model, batch, labels)
            yield loss

    return losses


class Projection(Callback):
    """Projects the gradients of a step after they have been clipped.

    As in the original, each memory's gradient is clipped to the same norm, and the result is not clipped again.

    Args:
        parameters: the trained parameters.
        memories: {task: function of the step number that returns losses to be backpropagated one after another; with
            several processes, each process's share}. The state of torch's generator is restored afterwards.
        max_norm: largest norm of a memory's gradient.
        project: (gradient [n], memories [t, n]) -> the projected gradient.

    Attributes:
        projected: number of steps whose gradients were projected.
    """

    def __init__(self, parameters, memories, max_norm=1.0, project=project):
        self.parameters, self.memories, self.max_norm, self.project = list(parameters), memories, max_norm, project
        self.projected = 0

    def on_gradients(self, step):
        """See `Callback`: change the parameters' gradients if they would harm an earlier task."""
        if not self.memories:
            return
        devices = {p.device.index for p in self.parameters if p.device.type == "cuda"}
        with torch.random.fork_rng(sorted(devices)):
            memories = torch.stack([self._gradient(losses(step)) for losses in self.memories.values()])
        gradient = self._flat([p.grad for p in self.parameters])
        if bool((memories @ gradient < 0).any()):
            self._put(self.project(gradient, memories))
            self.projected += 1

    def after_training(self, trainer):
        """See `Callback`: print how often gradients were projected."""
        if self.memories:
            print_once(f"gradients projected: in {self.projected:,} of {trainer.total_steps:,} steps")

    def _gradient(self, losses):
        # Not `backward`: with several processes it would make DDP count parameters as used that the next step does not
        # use, such as an earlier task's own adapter.
        gradients = (torch.autograd.grad(loss, self.parameters, allow_unused=True) for loss in losses)
        gradient = sum_over_processes(sum(map(self._flat, gradients)), torch.as_tensor)
        return gradient * (self.max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)

    def _flat(self, gradients):
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients)]
        return torch.cat([part.flatten().float() for part in parts])

    def _put(self, flat):
        for p, part in zip(self.parameters, flat.split([p.numel() for p in self.parameters])):
            # Parameters that the current step does not use may still have to move for an earlier task.
            p.grad = part.view_as(p).to(p.dtype)
