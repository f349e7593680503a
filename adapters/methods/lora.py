"""LoRA: a low-rank update beside frozen linear maps (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
Models").

    h = W x + (alpha / r) · B A x                                                            (equation 3)

A [r, in] starts at random and B [out, r] at zero, so that training starts from the backbone itself. As in peft, the
maps are those of queries and values (a fused matrix of queries, keys and values as a whole), in cross-attention too,
and A starts from peft's Kaiming-uniform distribution.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters.methods.base import TaskModules, all_zero, refuse_without_port
from versatile.adapters.routing import GroupedProduct

METHODS = {"lora": "LoRA"}
SETTINGS = {
    "lora_rank": ("positive", 8, "rank r of LoRA's update"),
    "lora_alpha": ("rate", 16.0, "LoRA's scale: what is added is multiplied with alpha / r"),
}
ROLES = ("q", "v", "qkv")


class LowRankUpdate(nn.Module):
    """One task's update of one linear map.

    Args:
        n_in, n_out: the map's sizes.
        rank, alpha: as above; rank · (n_in + n_out) parameters.
    """

    def __init__(self, n_in, n_out, rank, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, n_in))
        self.B = nn.Parameter(torch.zeros(n_out, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def delta(self, x):
        """What is added, of x [rows, length, in]."""
        return F.linear(F.linear(x, self.A), self.B) * self.scale

    def matrices(self):
        """As `GroupedProduct` takes them."""
        return self.A, None, self.B * self.scale, None


class LoRA(TaskModules):
    """The updates of a model's tasks. Tasks may have different ranks."""

    sizes = {"lora_rank": (".A", 0)}

    @classmethod
    def check(cls, name, backbone, settings, location):
        refuse_without_port(backbone, "projections", name, location)

    def maps(self, block):
        """{role: linear map} of those that are updated in a block."""
        every = self.backbone.projections(block)
        return {role: linear for role, linear in every.items() if role.removeprefix("cross_") in ROLES}

    def new(self, config, block, settings):
        rank, alpha = settings["lora_rank"], settings["lora_alpha"]
        return nn.ModuleDict({role: LowRankUpdate(*sizes(m), rank, alpha) for role, m in self.maps(block).items()})

    def hook(self, model):
        for number, block in enumerate(self.backbone.blocks(model)):
            for role, linear in self.maps(block).items():
                linear.register_forward_hook(functools.partial(self.after_map, number, role, GroupedProduct()))

    def after_map(self, number, role, product, linear, args, output):
        """Forward hook of a linear map: each row's own update is added."""
        tasks = self.of_runs(number)
        if not tasks:
            return output
        return output + product(args[0], [task and task[role] for task in tasks], self.router)

    def is_idle(self, task):
        return all_zero(update.B for held in self.blocks for update in held[task].values())


def sizes(linear):
    """(in, out) of a torch Linear or transformers' Conv1D, which keeps its matrix the other way round."""
    shape = linear.weight.shape
    return (shape[1], shape[0]) if isinstance(linear, nn.Linear) else (shape[0], shape[1])
