"""AdamW with the update of the original systems.

All four train with an AdamW that adds epsilon to √v before the bias correction, and lets weights decay after the step:

    p ← (p − lr · √(1−β2ᵗ) / (1−β1ᵗ) · m / (√v + ε)) · (1 − lr · λ)

torch's own corrects v first, so that the same epsilon weighs 1 / √(1−β2ᵗ) times less: 32 times in the first step. With
an epsilon of 1e-4, as LAMOL's, this decides how far the first steps go.
"""

import math
import re
from types import SimpleNamespace

import torch
from versatile.training.sharding import part_like, whole
from versatile.utils.errors import UserError, first_line


class AdamW(torch.optim.AdamW):
    """torch's AdamW (fused, if asked for), given for each step the values that make its update the one above.

    t is the number of steps that a parameter has taken, not the optimizer: one without a gradient rests. Parameters of
    one group that have taken different numbers of steps are stepped apart.

    Its state, and so a checkpoint, is that of torch's AdamW.
    """

    def __init__(self, params, **options):
        super().__init__(params, **options)
        # {parameter: steps it has taken}: torch's own counts may lie on a GPU, which would have to be waited for.
        self._taken = {}
        # Hooks rather than a `step` of its own: torch's `step` runs them, and would run those of others twice.
        self.register_step_pre_hook(_as_original)
        self.register_step_post_hook(_as_given)

    def state_dict(self):
        """As torch's; of sharded parameters whole tensors, put together by all processes."""
        state = super().state_dict()
        parts = {key: {name: whole(value) for name, value in own.items()} for key, own in state["state"].items()}
        return state | dict(state=parts)

    def load_state_dict(self, state_dict):
        """As torch's; see `state_dict`."""
        super().load_state_dict(state_dict)
        for p, own in self.state.items():
            own.update({name: part_like(value, p) for name, value in own.items()})
        self._taken = {}

    def steps_of(self, parameter):
        """How many steps a parameter has taken."""
        if parameter not in self._taken:
            self._taken[parameter] = int(self.state[parameter]["step"]) if parameter in self.state else 0
        return self._taken[parameter]

    def parts(self, group):
        """A parameter group as groups whose parameters have all taken as many steps, with the values of the next."""
        if getattr(self, "found_inf", None) is not None:
            # Gradients that overflowed are not a step, but only the device knows.
            self._taken = {}
        by_step = {}
        for p in group["params"]:
            if p.grad is not None:
                by_step.setdefault(self.steps_of(p) + 1, []).append(p)
        lr, decay = group["lr"], group["weight_decay"]
        kept = (1 - lr * decay) or 1e-12
        for step, parameters in by_step.items():
            self._taken.update(dict.fromkeys(parameters, step))
            eps = group["eps"] / math.sqrt(1 - group["betas"][1] ** step)
            # torch decays before the step: p·(1 − lr'·λ') − lr'·u is (p − lr·u)·(1 − lr·λ) with these.
            yield {**group, "params": parameters, "eps": eps, "lr": lr * kept, "weight_decay": decay / kept}


def _as_original(optimizer, args, kwargs):
    optimizer.given_groups = optimizer.param_groups
    optimizer.param_groups = [part for group in optimizer.given_groups for part in optimizer.parts(group)]


def _as_given(optimizer, args, kwargs):
    optimizer.param_groups = optimizer.given_groups


def parameter_groups(model, weight_decay, spared=None):
    """What is trained of a model, for an optimizer: matrices decay; biases, norms and other vectors do not.

    Args:
        model: its parameters with `requires_grad` are taken.
        weight_decay: that of the matrices.
        spared: regular expression of names whose matrices do not decay either.
    """
    decay, plain = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            decays = p.ndim > 1 and not (spared and re.search(spared, name))
            (decay if decays else plain).append(p)
    groups = [dict(params=decay, weight_decay=weight_decay), dict(params=plain, weight_decay=0.0)]
    return [group for group in groups if group["params"]]


def build_adamw(model, lr, eps=1e-6, weight_decay=0.0):
    """`AdamW` over `parameter_groups`. The model is on its device: there the update is fused, but on XLA."""
    fused = next(model.parameters()).device.type != "xla"
    return AdamW(parameter_groups(model, weight_decay), lr=lr, eps=eps, fused=fused)


def build_optimizer(model, args):
    """The optimizer that --optim names, over `parameter_groups`.

    For torch's AdamW it is the one with the originals' update. Adafactor takes the rate given, without scaling by the
    parameters, as in the original HyperFormer.
    """
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    named = SimpleNamespace(
        optim=OptimizerNames(args.optim), optim_args=args.optim_args, learning_rate=args.lr, adam_epsilon=args.adam_eps,
        adam_beta1=args.adam_beta1, adam_beta2=args.adam_beta2, weight_decay=args.weight_decay,
    )  # fmt: skip
    kind, options = Trainer.get_optimizer_cls_and_kwargs(named, model)
    kind = AdamW if kind is torch.optim.AdamW else kind
    return kind(parameter_groups(model, args.weight_decay, "bias|norm"), **options)


def check_optimizer(args):
    """A `UserError` where --optim names no optimizer of transformers that can be built."""
    from transformers.training_args import OptimizerNames

    try:
        OptimizerNames(args.optim)
        build_optimizer(torch.nn.Linear(1, 1), args)
    except (ValueError, TypeError, ImportError, AttributeError, KeyError) as error:
        raise UserError(f"it cannot be used: {first_line(error)}", location=f"--optim {args.optim}",
                        expected="an optimizer of transformers, with the --optim_args it takes",
                        remedy="choose adamw_torch, adafactor, sgd, …") from error  # fmt: skip
