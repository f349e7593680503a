#!/usr/bin/env python
"""Where decoding's time goes, how much memory it moves, and how close it comes to its matrix products alone.

  one CPU:
    python bench/decode_budget.py --device cpu
    python bench/decode_budget.py --device cpu --width 768 --layers 12 --prompts 32
    python bench/decode_budget.py --device cpu --smollm2 --prompts 32
  one GPU (operations have the same names, and so groups, as on a CPU):
    python bench/decode_budget.py --device cuda

The sides are "ours" and "plain generate" of decode.py, greedy, with outputs of one length. The floor is the time of
the indispensable matrix products: each prompt and each output token but the last passes through the blocks once, and
the head gives one token at a time. Its peak is that of products with one batch's rows, by as many different matrices
as the model has, laid out as decoding does.
What plain `generate` takes beyond the floor is all that any decoder could gain.
"""

import statistics
import sys
from functools import partial

import budget
import common
import decode


def parse(argv=None):
    p = decode.build_parser(__doc__)
    p.set_defaults(t5=False)
    budget.add_flags(p)
    args = p.parse_args(argv)
    if args.smollm2:
        args.width, args.layers = budget.SMOLLM2
    return decode.make_quick(args) if args.quick else args


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    search, numbers = decode.make_searches(args)[0], {}
    for kind in decode.PRECISIONS:
        numbers[kind] = measure(args, device, search, kind)
        print(f"\n{budget.model_name(args)}, {kind}, batch {args.batch_size}")
        report(kind, numbers[kind])
    common.save(args, budgets=numbers)


def measure(args, device, search, kind):
    """The numbers of one precision; seconds are those of one output token."""
    import torch
    from versatile.adapters.packed import MIN_FORWARDS, pack_products

    dtype = getattr(torch, decode.PRECISIONS[kind])
    model, tokenizer = decode.prepared(args, device, dtype)
    untouched = decode.random_adapters(args)[0].to(device).eval()
    decode.EndAtLength(untouched)
    turn = partial(decode.ours, (model, tokenizer), search, kind)
    products = Products(args, model, device, dtype)
    sides = {"ours": turn, "plain": partial(decode.plain, untouched, search, kind), "products": products.turn}
    # Reordered once, outside the measured time.
    with pack_products(products.layers, args.batch_size, MIN_FORWARDS, dtype):
        rates = common.interleaved(sides, args.repeats, device)
    counted = budget.Traffic()
    with counted:
        turn(0)
    tokens, events = budget.profile(turn, device, args.operations)
    flops = needed_flops(args, model, search)
    rate = statistics.median(rates["ours"])
    floors = [flops / peak for peak in rates["products"]]
    return dict(
        tokens_per_second=rate, flops_per_token=flops, floor=statistics.median(floors),
        share=sorted(floor * ours for floor, ours in zip(floors, rates["ours"])),
        gain=common.ratio(rates, "ours", "plain"),
        largest_gain=statistics.median(1 / (floor * plain) for floor, plain in zip(floors, rates["plain"])),
        megabytes_per_token=counted.bytes / 1e6 / tokens, groups=budget.shares_of_time(events, tokens, rate),
    )  # fmt: skip


def report(kind, numbers):
    budget.print_groups(numbers["groups"])
    print(f"{numbers['tokens_per_second']:,.0f} tokens/s; {numbers['flops_per_token'] / 1e6:.1f} MFLOP per token: "
          f"floor {1e6 * numbers['floor']:.0f} µs per token; {numbers['megabytes_per_token']:.2f} MB moved per token")
    gain, least, most = numbers["gain"]
    print(f"over plain generate: {gain:.2f}x ({least:.2f} to {most:.2f} over the turns); "
          f"{numbers['largest_gain']:.1f}x at the floor")  # fmt: skip
    budget.print_share("decoding's share of the products' peak", kind, numbers["share"])


def needed_flops(args, model, search):
    """Operations of the indispensable matrix products, per output token; attention's own products are left out."""
    frozen, adapters, head = common.matrix_sizes(args, model)
    prompts = sum(len(ids) for ids, _ in search.prompts)
    outputs = len(search.prompts) * search.max_length
    read = prompts + outputs - len(search.prompts)
    return 2 * (frozen + adapters) * read / outputs + 2 * head


class Products:
    """Matrix products of the shape of a decoding step's, with as many parameters as the model's blocks."""

    def __init__(self, args, model, device, dtype):
        import torch
        from torch import nn

        class Layers(nn.ModuleList):
            def get_output_embeddings(self):
                return None

        count = max(1, common.matrix_sizes(args, model)[0] // (4 * args.width**2))
        layers = [nn.Linear(args.width, 4 * args.width, bias=False) for _ in range(count)]
        self.layers = Layers(layers).requires_grad_(False).to(device, dtype)
        self.hidden = torch.randn(args.batch_size, 1, args.width, device=device, dtype=dtype)
        self.passes = 2 if args.quick else 40

    def turn(self, turn):
        """Some passes; returns their number of operations."""
        import torch

        with torch.no_grad():
            for _ in range(self.passes):
                for layer in self.layers:
                    layer(self.hidden)
        return 2 * len(self.hidden) * self.passes * sum(layer.weight.numel() for layer in self.layers)


if __name__ == "__main__":
    sys.exit(main())
