"""AdamW with the update of the original systems.

All four use an AdamW that adds epsilon to √v before the bias correction, and applies weight decay after the step:

    p ← (p − lr · √(1−β2ᵗ) / (1−β1ᵗ) · m / (√v + ε)) · (1 − lr · λ)

torch's AdamW corrects v first, so that the same epsilon weighs 1 / √(1−β2ᵗ) times less: 32 times in the first step.
With an epsilon of 1e-4, as in LAMOL, this determines the size of the first steps.
"""

import math
import re
from types import SimpleNamespace

import torch
from versatile.training.sharding import part_like, whole
from versatile.utils.errors import UserError, first_line


class AdamW(torch.optim.AdamW):
    """torch's AdamW (optionally fused), given values in each step that turn its update into the one above.

    t counts the steps of each parameter, not of the optimizer: a parameter without a gradient is not updated.
    Parameters of one group that have taken different numbers of steps are updated separately.

    The state, and so a checkpoint, is that of torch's AdamW.
    """

    def __init__(self, params, **options):
        super().__init__(params, **options)
        # {parameter: steps it has taken}: torch's own counts may be on a GPU, and reading them would wait for it.
        self._taken = {}
        # Hooks rather than an overridden `step`: torch's `step` runs hooks, and would run those of others twice.
        self.register_step_pre_hook(_as_original)
        self.register_step_post_hook(_as_given)

    def state_dict(self):
        """As in torch; state of sharded parameters is gathered into whole tensors, by all processes."""
        state = super().state_dict()
        parts = {key: {name: whole(value) for name, value in own.items()} for key, own in state["state"].items()}
        return state | dict(state=parts)

    def load_state_dict(self, state_dict):
        """As in torch; see `state_dict`."""
        super().load_state_dict(state_dict)
        for p, own in self.state.items():
            own.update({name: part_like(value, p) for name, value in own.items()})
        self._taken = {}

    def steps_of(self, parameter):
        """Number of steps that a parameter has taken."""
        if parameter not in self._taken:
            self._taken[parameter] = int(self.state[parameter]["step"]) if parameter in self.state else 0
        return self._taken[parameter]

    def parts(self, group):
        """Split a parameter group by the number of steps taken; each part has the values for its next step."""
        if getattr(self, "found_inf", None) is not None:
            # Overflowed gradients make no step, but only the device knows about them.
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
            # torch decays before the step: with these values p·(1 − lr'·λ') − lr'·u equals (p − lr·u)·(1 − lr·λ).
            yield {**group, "params": parameters, "eps": eps, "lr": lr * kept, "weight_decay": decay / kept}


def _as_original(optimizer, args, kwargs):
    optimizer.given_groups = optimizer.param_groups
    optimizer.param_groups = [part for group in optimizer.given_groups for part in optimizer.parts(group)]


def _as_given(optimizer, args, kwargs):
    optimizer.param_groups = optimizer.given_groups


def parameter_groups(model, weight_decay, spared=None):
    """An optimizer's parameter groups for a model: matrices decay; biases, norms and other vectors do not.

    Args:
        model: its parameters with `requires_grad` are used.
        weight_decay: weight decay of the matrices.
        spared: regular expression of parameter names whose matrices do not decay either.
    """
    decay, plain = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            decays = p.ndim > 1 and not (spared and re.search(spared, name))
            (decay if decays else plain).append(p)
    groups = [dict(params=decay, weight_decay=weight_decay), dict(params=plain, weight_decay=0.0)]
    return [group for group in groups if group["params"]]


def build_adamw(model, lr, eps=1e-6, weight_decay=0.0):
    """`AdamW` over `parameter_groups`. The model must be on its device; the update is fused, except on XLA."""
    fused = next(model.parameters()).device.type != "xla"
    return AdamW(parameter_groups(model, weight_decay), lr=lr, eps=eps, fused=fused)


def build_optimizer(model, args):
    """The optimizer named by --optim, over `parameter_groups`.

    torch's AdamW is replaced by the one with the originals' update. Adafactor uses the given learning rate, without
    scaling by the parameters, as in the original HyperFormer.
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
    """Raise a `UserError` unless --optim names an optimizer of transformers that can be built."""
    from transformers.training_args import OptimizerNames

    try:
        OptimizerNames(args.optim)
        build_optimizer(torch.nn.Linear(1, 1), args)
    except (ValueError, TypeError, ImportError, AttributeError, KeyError) as error:
        raise UserError(f"it cannot be used: {first_line(error)}", location=f"--optim {args.optim}",
                        expected="an optimizer of transformers, with the --optim_args it takes",
                        remedy="choose adamw_torch, adafactor, sgd, …") from error  # fmt: skip
