"""(IA)3: learned vectors that rescale activations (Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better
and Cheaper than In-Context Learning").

    softmax(Q (l_k ⊙ Kᵀ) / sqrt(d)) (l_v ⊙ V)        and        (l_ff ⊙ γ(W₁ x)) W₂                (section 3.3)

Vectors start at one, so that training starts from the backbone itself. As in peft, the output of a fused
query-key-value matrix is rescaled as a whole, and so are the keys and values of cross-attention.
"""

import functools

import torch
from torch import nn
from versatile.adapters.methods.base import TaskModules, refuse_without_port
from versatile.adapters.methods.lora import sizes

METHODS = {"ia3": "IA3"}
# Rescaled are the outputs of the key and value maps, and the input of the feed-forward module's second map.
OUTPUTS, INPUTS = ("k", "v", "qkv"), ("down",)


class IA3(TaskModules):
    """The vectors of a model's tasks."""

    @classmethod
    def check(cls, name, backbone, settings, location):
        refuse_without_port(backbone, "projections", name, location)

    def maps(self, block, roles):
        """{role: linear map} of a block."""
        every = self.backbone.projections(block)
        return {role: linear for role, linear in every.items() if role.removeprefix("cross_") in roles}

    def new(self, config, block, settings):
        vectors = {role: sizes(linear)[1] for role, linear in self.maps(block, OUTPUTS).items()}
        vectors |= {role: sizes(linear)[0] for role, linear in self.maps(block, INPUTS).items()}
        return nn.ParameterDict({role: nn.Parameter(torch.ones(size)) for role, size in vectors.items()})

    def hook(self, model):
        for number, block in enumerate(self.backbone.blocks(model)):
            for role, linear in self.maps(block, OUTPUTS).items():
                linear.register_forward_hook(functools.partial(self.after_map, number, role))
            for role, linear in self.maps(block, INPUTS).items():
                linear.register_forward_pre_hook(functools.partial(self.before_map, number, role))

    def after_map(self, number, role, linear, args, output):
        """Forward hook: rescale a linear map's output."""
        return self.rescale(number, role, output)

    def before_map(self, number, role, linear, args):
        """Forward pre-hook: rescale a linear map's input."""
        return (self.rescale(number, role, args[0]), *args[1:])

    def rescale(self, number, role, hidden):
        """Multiply each row of hidden [rows, length, width] by its task's vector."""
        tasks = self.of_runs(number)
        if not tasks:
            return hidden
        one = torch.ones((), device=hidden.device).expand(hidden.shape[-1])
        vectors = self.router.of_rows([one if task is None else task[role] for task in tasks])
        return hidden * vectors.to(hidden.dtype)

    @torch.no_grad()
    def is_idle(self, task):
        return all(bool((p == 1).all()) for held in self.blocks for p in held[task].values())
