#!/usr/bin/env python
"""Fused attention (SDPA) against plain products ("eager"): which one utils.devices.prepare_for_device should choose.

  one CPU:
    python bench/attention.py --device cpu
  one GPU:
    python bench/attention.py --device cuda

Runs transformers' two attention functions on tensors of a model's shape, as the models call them:
training (forward and backward) with right-padded rows, with and without dropout, and decoding (one token
against a cache, left-padded, no gradients). Speed counts calls; the ratio is eager's time over SDPA's, so
above 1 SDPA is faster.
"""

import math
import statistics
import sys
import time

import common

LENGTHS = (64, 128, 256, 512, 1024)


def parse(argv=None):
    from versatile.utils import flags

    p = common.parser(__doc__, repeats=7)
    g = p.add_argument_group("shapes")
    g.add_argument("--lengths", type=flags.positive, nargs="+", default=list(LENGTHS), help="tokens per row")
    g.add_argument("--tokens", type=flags.positive, default=2048, help="tokens per training batch")
    g.add_argument("--heads", type=flags.positive, default=4, help="attention heads")
    g.add_argument("--head_width", type=flags.positive, default=64, help="head size")
    g.add_argument("--decode_rows", type=flags.positive, default=32, help="rows of a decoding batch")
    g.add_argument("--dropout", type=float, default=0.1, help="attention dropout to measure in addition to 0")
    g.add_argument("--slice_seconds", type=flags.rate, default=0.05, help="how long each side is timed per turn")
    args = p.parse_args(argv)
    if args.quick:
        args.lengths, args.repeats, args.tokens, args.decode_rows, args.slice_seconds = [64], 2, 128, 2, 0.002
    return args


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    import torch
    from versatile.utils import devices

    # As in training: memory of a given size is not requested from the kernel again each time.
    if device.type == "cpu":
        devices._keep_memory()
    works = {
        "training": (train, 0.0),
        f"training, dropout {args.dropout:g}": (train, args.dropout),
        "decoding": (decode, 0.0),
    }
    rows, numbers = [], []
    for what, (make, dropout) in works.items():
        for kind in (torch.float32, torch.bfloat16):
            for length in args.lengths:
                row = measure(args, device, kind, length, make, dropout)
                name = str(kind).removeprefix("torch.")
                numbers.append(dict(what=what, dtype=name, length=length, **row))
                rows.append([what, name, length, row["eager"], row["sdpa"], f"{row['ratio']:.2f}x", row["spread"]])
    print(common.table(["", "dtype", "length", "eager, ms", "SDPA, ms", "eager/SDPA", "spread"], rows))
    agree(numbers, device)
    common.save(args, measured=numbers)


def agree(numbers, device):
    """One ratio: how much faster the chosen function is than the other, over all shapes; and where it is slower."""
    won = []
    for n in numbers:
        eager = device.type == "cpu" and n["dtype"] == "bfloat16"
        won.append(1 / n["ratio"] if eager else n["ratio"])
        if won[-1] < 0.95:
            other = "SDPA" if eager else "eager"
            print(f"note: {other} is {1 / won[-1]:.2f}x as fast as the chosen one in {n['what']}, {n['dtype']}, "
                  f"length {n['length']}")  # fmt: skip
    mean = math.exp(statistics.fmean(map(math.log, won)))
    common.record("its choice over the other one", mean, min(won), max(won))
    print(f"ratio: its choice over the other one {mean:.2f}x as fast (geometric mean of {len(won)} shapes; "
          f"{min(won):.2f} to {max(won):.2f}; it is the faster one in {sum(w >= 1 for w in won)})")  # fmt: skip


def measure(args, device, dtype, length, make, dropout):
    """{eager, sdpa: median milliseconds per call, ratio, spread} of one shape."""
    sides = {name: make(args, device, dtype, length, dropout, name) for name in ("eager", "sdpa")}
    counts = {name: calls(work, device, args.slice_seconds) for name, work in sides.items()}

    def repeat(name):
        def turn(_):
            for _ in range(counts[name]):
                sides[name]()
            return counts[name]

        return turn

    rates = common.interleaved({name: repeat(name) for name in sides}, args.repeats, device)
    middle, low, high = common.ratio(rates, "sdpa", "eager")
    return dict(eager=1000 / statistics.median(rates["eager"]), sdpa=1000 / statistics.median(rates["sdpa"]),
                ratio=middle, spread=f"{low:.2f}-{high:.2f}")  # fmt: skip


def calls(work, device, seconds):
    """The number of calls that fill a slice of time."""
    work()
    common.wait(device)
    began = time.perf_counter()
    work()
    common.wait(device)
    return max(1, min(1000, int(seconds / (time.perf_counter() - began))))


def function(name):
    """transformers' attention function of GPT-2."""
    from transformers import AttentionInterface
    from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

    return eager_attention_forward if name == "eager" else AttentionInterface()[name]


class Layer:
    """What the attention functions read from their module."""

    training = True
    is_causal = True


def mask_for(name, allowed, dtype):
    """The mask in the form that transformers gives each function: added to the scores, or true where allowed."""
    import torch

    if name == "sdpa":
        return allowed
    return torch.zeros(allowed.shape, device=allowed.device, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def train(args, device, dtype, length, dropout, name):
    """Forward and backward of a right-padded causal batch, as a function."""
    import torch

    rows = max(1, args.tokens // length)
    shape = (rows, args.heads, length, args.head_width)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    values = torch.randn(rows, length, args.heads, args.head_width, device=device, dtype=dtype)
    real = torch.arange(length, device=device) < torch.randint(length // 2, length + 1, (rows, 1), device=device)
    allowed = torch.ones(length, length, dtype=torch.bool, device=device).tril() & real[:, None, None, :]
    mask, attend = mask_for(name, allowed, dtype), function(name)

    def work():
        out, _ = attend(Layer, query, key, value, mask, dropout=dropout, scaling=args.head_width**-0.5)
        torch.autograd.grad(out, (query, key, value), values)

    return work


def decode(args, device, dtype, length, dropout, name):
    """One new token per row against a left-padded cache of `length`, as a function."""
    import torch

    rows = args.decode_rows
    query = torch.randn(rows, args.heads, 1, args.head_width, device=device, dtype=dtype)
    key, value = (torch.randn(rows, args.heads, length, args.head_width, device=device, dtype=dtype) for _ in range(2))
    real = torch.arange(length, device=device) >= torch.randint(0, length // 2, (rows, 1), device=device)
    mask, attend = mask_for(name, real[:, None, None, :], dtype), function(name)

    def work():
        with torch.no_grad():
            attend(Layer, query, key, value, mask, dropout=dropout, scaling=args.head_width**-0.5)

    return work


if __name__ == "__main__":
    sys.exit(main())
