"""Residual bottleneck adapters, one per block and task.

An adapter sits after a block's second residual connection (Lin, Madotto & Fung 2020, section 2.1):

    adapter(h) = h + Up(ReLU(Down(LayerNorm(h))))
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters.methods.base import TaskModules, all_zero, first_output
from versatile.adapters.routing import GroupedProduct

METHODS = {"bottleneck": "Bottleneck"}
SETTINGS = {"adapter_bottleneck": ("positive", 64, "width of an adapter")}


# The names are the published flags'; swish and SiLU are one function.
ACTIVATIONS = {
    "relu": torch.relu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
}


class BottleneckAdapter(nn.Module):
    """One task's adapter in one block.

    Args:
        width: the backbone's hidden size.
        bottleneck: size of the inner layer; `2·width·bottleneck + 3·width + bottleneck` parameters.
        eps: epsilon of the layer norm, the same as the backbone's.
        norm: whether the adapter starts with its own layer norm; without one it has
            `2·width·bottleneck + width + bottleneck` parameters.
        activation: one of `ACTIVATIONS`.
        std: standard deviation of the initial weights; biases start at 0.
    """

    def __init__(self, width, bottleneck, eps=1e-5, *, norm=True, activation="relu", std=0.02):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps) if norm else None
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.activation = ACTIVATIONS[activation]
        # Published initialisation: N(0, 0.02) everywhere, so an adapter is not the identity before training.
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden):
        """hidden: [rows, length, width] -> the same shape."""
        return hidden + self.delta(self.norm(hidden) if self.norm else hidden)

    def delta(self, normed):
        """The adapter's contribution, given normalised hidden states."""
        return self.up(self.activation(self.down(normed)))

    def matrices(self):
        """The matrices in the form `GroupedProduct` expects, for hidden states that are normalised but not yet scaled:
        down includes the norm's gain, its bias the norm's shift."""
        weight = self.down.weight.float()
        bias = weight @ self.norm.bias + self.down.bias.float()
        return weight * self.norm.weight, bias, self.up.weight.float(), self.up.bias.float()


class Bottleneck(TaskModules):
    """The adapters of a model's tasks, after every block. Tasks may have different widths.

    In a mixed batch, normalisation and residual addition, which the adapters have in common, run once for all rows.
    """

    sizes = {"adapter_bottleneck": (".down.weight", 0)}

    def __init__(self, model, name):
        super().__init__(model, name)
        self.products = [GroupedProduct(torch.relu) for _ in self.blocks]

    def new(self, config, block, settings):
        return BottleneckAdapter(self.backbone.hidden_size(config), settings["adapter_bottleneck"],
                                 self.backbone.norm_eps(config))  # fmt: skip

    def hook(self, model):
        for number, block in enumerate(self.backbone.blocks(model)):
            block.register_forward_hook(functools.partial(self.after_block, number))

    def after_block(self, number, block, args, output):
        """Apply each row's adapter to a block's hidden states."""
        adapters = self.of_runs(number)
        return first_output(output, functools.partial(self.adapt, number, adapters)) if adapters else output

    def adapt(self, number, adapters, hidden):
        """hidden: [rows, length, width] -> the same shape, after one adapter per run (None: unchanged)."""
        if len(adapters) == 1:
            return adapters[0](hidden)
        eps = next(a for a in adapters if a is not None).norm.eps
        normed = F.layer_norm(hidden, hidden.shape[-1:], eps=eps)
        product = self.products[number]
        if not product.is_fused(hidden):
            zeros = normed.new_zeros(normed.shape[-1])
            gain, shift = (self.router.of_rows([zeros if a is None else getattr(a.norm, part) for a in adapters])
                           for part in ("weight", "bias"))  # fmt: skip
            normed = torch.addcmul(shift, normed, gain)
        return hidden + product(normed, adapters, self.router)

    def is_idle(self, task):
        return all_zero(p for held in self.blocks for p in held[task].up.parameters())
