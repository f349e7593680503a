"""LoRA: a low-rank update of frozen linear maps (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
Models").

    h = W x + (alpha / r) · B A x                                                            (equation 3)

A [r, in] starts at random and B [out, r] at zero, so that training starts from the backbone itself. As in peft, LoRA
updates the query and value maps by default, including those of cross-attention; a fused query-key-value matrix is
updated as a whole, and A starts from peft's Kaiming-uniform distribution.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters.methods.base import TaskModules, all_zero, refuse_without_port
from versatile.adapters.routing import GroupedProduct
from versatile.utils.errors import UserError
from versatile.utils.flags import PROJECTIONS

METHODS = {"lora": "LoRA"}
SETTINGS = {
    "lora_rank": ("positive", 8, "rank r of LoRA's update"),
    "lora_alpha": ("rate", 16.0, "LoRA's scale: what is added is multiplied with alpha / r"),
    "lora_targets": ("projections", "q,v", "the linear maps that LoRA updates, of q, k, v, o, gate, up and down"),
}


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
        """The update for x [rows, length, in]."""
        return F.linear(F.linear(x, self.A), self.B) * self.scale

    def matrices(self):
        """The matrices in the form `GroupedProduct` expects."""
        return self.A, None, self.B * self.scale, None


class LoRA(TaskModules):
    """The updates of a model's tasks. Tasks may have different ranks."""

    sizes = {"lora_rank": (".A", 0)}

    def __init__(self, model, name):
        super().__init__(model, name)
        # The roles of the hooked maps, per block.
        self.hooked = [set() for _ in self.blocks]

    @classmethod
    def check(cls, name, backbone, settings, location):
        refuse_without_port(backbone, "projections", name, location)

    @classmethod
    def check_model(cls, model, backbone, settings):
        roles = {role for block in backbone.blocks(model) for role in backbone.projections(block)}
        # A fused matrix is selected by any of the three.
        roles |= set("qkv") if "qkv" in roles else set()
        if absent := [role for role in settings["lora_targets"].split(",") if role not in roles]:
            raise UserError(f"this {backbone.name} has no projection {' or '.join(absent)}",
                            location=f"--lora_targets {settings['lora_targets']}",
                            expected="some of " + ",".join(role for role in PROJECTIONS if role in roles),
                            remedy="choose from these")  # fmt: skip

    def maps(self, block, targets):
        """{role: linear map} of the maps in a block that a task's `lora_targets` select."""
        names = set(targets.split(","))
        # If queries, keys and values are one matrix, any of the three selects it.
        names |= {"qkv"} if names & set("qkv") else set()
        every = self.backbone.projections(block)
        return {role: linear for role, linear in every.items() if role.removeprefix("cross_") in names}

    def new(self, config, block, settings):
        rank, alpha, maps = settings["lora_rank"], settings["lora_alpha"], self.maps(block, settings["lora_targets"])
        return nn.ModuleDict({role: LowRankUpdate(*sizes(m), rank, alpha) for role, m in maps.items()})

    def insert(self, model, task, modules):
        super().insert(model, task, modules)
        for number, (block, updates) in enumerate(zip(self.backbone.blocks(model), modules)):
            every = self.backbone.projections(block)
            for role in updates.keys() - self.hooked[number]:
                every[role].register_forward_hook(functools.partial(self.after_map, number, role, GroupedProduct()))
            self.hooked[number] |= updates.keys()

    def hook(self, model):
        """Nothing: a map is hooked when the first task that updates it is inserted."""

    def after_map(self, number, role, product, linear, args, output):
        """Forward hook of a linear map: add each row's own update."""
        updates = [task[role] if task is not None and role in task else None for task in self.of_runs(number)]
        if all(update is None for update in updates):
            return output
        return output + product(args[0], updates, self.router)

    def is_idle(self, task):
        return all_zero(update.B for held in self.blocks for update in held[task].values())


def sizes(linear):
    """(in, out) of a torch Linear or transformers' Conv1D, which stores its matrix transposed."""
    # A quantised matrix has the shape of its packed bytes.
    return (linear.in_features, linear.out_features) if isinstance(linear, nn.Linear) else tuple(linear.weight.shape)
