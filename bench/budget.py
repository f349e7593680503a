#!/usr/bin/env python
"""Where a training step's time goes, how much memory it moves, and how close it comes to its matrix products alone.

  one CPU:
    python bench/budget.py --device cpu
    python bench/budget.py --device cpu --width 768 --layers 12 --turn_steps 1
    python bench/budget.py --device cpu --smollm2 --turn_steps 1
  one GPU (operations have the same names, and so groups, as on a CPU):
    python bench/budget.py --device cuda --turn_steps 20

The side is "ours" of train_adapter.py. Times of operations are those of torch.profiler; whatever a turn without it
takes beyond them is Python's. Bytes are those of every operation's inputs and outputs, as if there were no cache. The
floor is the time of the indispensable matrix products of training, at the peak of one product of the model's shape.
"""

import statistics
import sys

import common

# Groups of operations, by the beginnings of their names.
GROUPS = {
    "products": ("mm", "addmm", "linear", "_linear_pointwise"),
    "attention": ("bmm", "baddbmm", "_softmax", "_safe_softmax", "_scaled_dot_product", "_efficient_attention"),
    "norms": ("native_layer_norm", "_fused_rms_norm", "rms_norm", "rsqrt", "mean", "pow"),
    "activations": ("gelu", "silu", "relu", "threshold"),
    "dropout": ("bernoulli", "native_dropout", "_Masked", "draw_mask"),
    "cross-entropy": ("_log_softmax", "nll_loss"),
    "optimizer, clipping": ("_fused_adam", "linalg_vector_norm", "_foreach"),
    "copies, casts": ("copy_", "cat", "clone", "_to_copy", "fill_", "index_select", "index", "embedding",
                      "_reorder_linear_weight", "constant_pad"),
    "sums and products of elements": ("add", "mul", "div", "sub", "sum", "where", "neg", "masked_fill", "triu"),
}
REST, PYTHON = "other operations", "Python"
# Hidden size and number of blocks of SmolLM2-135M.
SMOLLM2 = 576, 30


def parse(argv=None):
    p = common.parser(__doc__)
    common.add_model_flags(p)
    common.add_training_flags(p, 2)
    add_flags(p)
    args = common.parse_training(p, argv)
    if args.smollm2:
        args.width, args.layers = (96, 1) if args.quick else SMOLLM2
    return args


def add_flags(p):
    """The flags common to the budgets of training and decoding."""
    g = p.add_argument_group("budget")
    g.add_argument("--smollm2", action="store_true", help="use SmolLM2-135M's blocks: 30 of them, 576 wide")
    g.add_argument("--operations", action="store_true", help="also print torch.profiler's own table")


def model_name(args):
    name = "SmolLM2's shape" if args.smollm2 else "GPT-2"
    return f"{name}, {args.width} wide, {args.layers} layers"


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    import torch

    numbers = {}
    for dtype in (torch.float32, torch.bfloat16):
        kind = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        numbers[kind] = measure(args, device, dtype)
        print(f"\n{model_name(args)}, {kind}")
        report(kind, numbers[kind])
    common.save(args, budgets=numbers)


def measure(args, device, dtype):
    """The numbers of one precision: {tokens_per_second, share, groups, …}."""
    side = common.Ours(args, common.examples(args), dtype)
    side.turn(0)
    sides = {"training": side.turn, "products": lambda turn: common.product(args, device, dtype)}
    rates = common.interleaved(sides, args.repeats, device)
    padded, counted = count_tokens(side), Traffic()
    with counted:
        side.turn(0)
    tokens, events = profile(side.turn, device, args.operations)
    shares = [t * side.flops_per_token / p for t, p in zip(rates["training"], rates["products"])]
    rate = statistics.median(rates["training"])
    return dict(
        tokens_per_second=rate, share=sorted(shares), flops_per_token=side.flops_per_token,
        peak=statistics.median(rates["products"]), padding=padded, megabytes_per_token=counted.bytes / 1e6 /
        max(1, tokens), groups=shares_of_time(events, tokens, rate),
    )  # fmt: skip


def shares_of_time(events, tokens, rate):
    """{group: its share of the time}, Python included.

    Args:
        events: {group: seconds} of a profiled turn.
        tokens: number in that turn.
        rate: tokens per second without the profiler.
    """
    per_token = {name: took / tokens for name, took in events.items()}
    per_token[PYTHON] = max(0.0, 1 / rate - sum(per_token.values()))
    total = sum(per_token.values())
    return {name: took / total for name, took in per_token.items()}


def print_groups(groups):
    """Print {group: its share of the time}, the largest first."""
    rows = [[name, f"{share:.1%}"] for name, share in sorted(groups.items(), key=lambda item: -item[1])]
    print(common.table(["", "of the time"], rows))


def report(kind, numbers):
    print_groups(numbers["groups"])
    floor = numbers["flops_per_token"] / numbers["peak"]
    print(f"{numbers['tokens_per_second']:,.0f} tokens/s; {numbers['flops_per_token'] / 1e6:.1f} MFLOP per token, "
          f"peak {numbers['peak'] / 1e9:.0f} GFLOP/s: floor {1e6 * floor:.0f} µs per token; "
          f"{numbers['megabytes_per_token']:.2f} MB moved per token; {numbers['padding']:.1%} of tokens are padding")
    print_share("share of the products' peak", kind, numbers["share"])


def print_share(what, kind, shares):
    """Print and record a sorted list of the turns' shares of the products' peak."""
    middle, low, high = statistics.median(shares), shares[0], shares[-1]
    common.record(f"{what}, {kind}", middle, low, high)
    print(f"ratio: {middle:.2f}x of the products' peak, {kind} ({low:.2f} to {high:.2f} over the turns)")


def count_tokens(side):
    """The share of a step's positions that are padding."""
    masks = [batch["attention_mask"] for step in range(4) for batch, _ in side.trainer.window(step)]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def profile(turn, device, table):
    """(number of tokens, {group: seconds}) of a turn under torch.profiler; `table`: print the profiler's own too."""
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as profiler
    from versatile.utils import dropout

    original = dropout.draw_mask

    def draw_mask(*args):
        with record_function("draw_mask"):
            return original(*args)

    cuda = device.type == "cuda"
    dropout.draw_mask = draw_mask
    try:
        with profiler(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as profiled:
            tokens = turn(0)
    finally:
        dropout.draw_mask = original
    averages, groups = profiled.key_averages(), {}
    for event in averages:
        took = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
        group = group_of(event.key)
        groups[group] = groups.get(group, 0.0) + took
    if table:
        print(averages.table(sort_by=f"self_{'cuda' if cuda else 'cpu'}_time_total", row_limit=30,
                             max_name_column_width=60))  # fmt: skip
    return tokens, groups


def group_of(name):
    """The group of `GROUPS` that an operation belongs to; its backward pass counts with it."""
    name = name.removeprefix("aten::").removeprefix("mkldnn::")
    return next((group for group, names in GROUPS.items() if name.startswith(names)), REST)


class Traffic:
    """Context that counts the bytes of the tensors that operations read and write; views move none."""

    def __init__(self):
        self.bytes = 0

    def __enter__(self):
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        traffic = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                output = func(*args, **(kwargs or {}))
                aliases = [value.alias_info for value in func._schema.returns]
                if not any(alias is not None and not alias.is_write for alias in aliases):
                    tensors = {id(t): t for t in flat((args, kwargs, output)) if isinstance(t, torch.Tensor)}
                    traffic.bytes += sum(t.numel() * t.element_size() for t in tensors.values())
                return output

        self.mode = Mode()
        self.mode.__enter__()

    def __exit__(self, *error):
        self.mode.__exit__(*error)


def flat(value):
    """The leaves of nested tuples, lists and dicts."""
    from torch.utils._pytree import tree_leaves

    return tree_leaves(value)


if __name__ == "__main__":
    sys.exit(main())
