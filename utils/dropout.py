"""Dropout whose masks cost a tenth of PyTorch's on a CPU.

There PyTorch draws a mask number by number, in one thread: 7 ns each, 4 to 12 % of a training step. Here one draw
of 64 bits decides four numbers, and two bytes per number are kept for the backward pass.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# Below this many numbers PyTorch's own is as fast.
FEWEST = 4096
# A number is kept or dropped by comparing 16 random bits.
RANGE = 2**16


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, computed by `dropout`."""

    def forward(self, x):
        return dropout(x, self.p, self.training)


def dropout(x, p, training=True):
    """Dropout: each number is 0 with probability p, rounded to 1/65536, and else scaled to keep the expectation.

    The mask depends on torch's generator alone: the same seed, or checkpointing's second pass, draws the same mask.
    """
    dropped = round(p * RANGE)
    is_plain = x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16) or x.numel() < FEWEST
    if not training or is_plain or not 0 < dropped < RANGE or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    return _Masked.apply(x, draw_mask(x.shape, dropped), RANGE / (RANGE - dropped))


def draw_mask(shape, dropped):
    """int16 mask of a shape: -1 (all bits set) where a number is kept, 0 for `dropped` in 65536."""
    count = shape.numel()
    bits = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw(-(-count // 4))
    mask = torch.from_numpy(bits.view(np.int16))[:count].view(shape)
    # In place, and in 16 bits: boolean tensors take ten times as long.
    return mask.ge_(dropped - RANGE // 2).neg_()


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mask, scale):
        ctx.save_for_backward(mask)
        ctx.scale = scale
        if x.dtype == torch.bfloat16:
            scaled = torch.mul(x, scale).contiguous()
            scaled.view(torch.int16).bitwise_and_(mask)
            return scaled
        return torch.addcmul(x.new_zeros(()), x, mask.to(x.dtype), value=-scale)

    @staticmethod
    def backward(ctx, gradient):
        return _Masked.apply(gradient, *ctx.saved_tensors, ctx.scale), None, None


def use_fast_dropout(model):
    """Turn a model's dropout modules into `Dropout`, changing nothing else."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
