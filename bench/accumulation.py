#!/usr/bin/env python
"""Accumulated batches merged into larger parts, as the Trainer runs them, against batches run one by one.

  one CPU:
    python bench/accumulation.py --device cpu
    python bench/accumulation.py --device cpu --width 768 --layers 12 --turn_steps 1
  one GPU:
    python bench/accumulation.py --device cuda --turn_steps 20

Both sides are "ours" of train_adapter.py, with the same rows in each step and the same memory: no part is larger than
the data set's largest batch. Steps have 32 rows in batches of 8, and 16 rows in batches of 1, as in published
multi-task training. Only real tokens count, not padding.
"""

import copy
import statistics
import sys

import common

# Rows per batch, batches per step.
STEPS = ((8, 4), (1, 16))


def parse(argv=None):
    p = common.parser(__doc__)
    common.add_model_flags(p)
    common.add_training_flags(p, 4)
    return common.parse_training(p, argv)


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    import torch

    sides, parts = {}, {}
    for dtype, kind in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for rows, batches in STEPS:
            for merges in (True, False):
                name = side_name(rows, batches, kind, merges)
                sides[name], parts[name] = build(args, rows, batches, dtype, merges)
    rates = common.interleaved(sides, args.repeats, device)
    lines = [[name, statistics.median(values), parts[name]] for name, values in rates.items()]
    print(common.table(["rows x batches of a step", "tokens/s", "parts per step"], lines))
    for kind in ("fp32", "bf16"):
        for rows, batches in STEPS:
            ours, plain = (side_name(rows, batches, kind, merges) for merges in (True, False))
            print(common.verdict(f"{rows} x {batches}, {kind}: merged over one by one", rates, ours, plain, 1))
    common.save(args, rates=rates, parts=parts)


def side_name(rows, batches, kind, merges):
    return f"{rows} x {batches}, {kind}, {'merged' if merges else 'one by one'}"


def build(args, rows, batches, dtype, merges):
    """(the side's turn, mean number of parts per step over its first few steps)."""
    args = copy.copy(args)
    args.train_batch_size, args.gradient_accumulation_steps = rows, batches
    side = common.Ours(args, common.examples(args), dtype)
    side.trainer.merges = merges
    return side.turn, statistics.mean(len(side.trainer.window(step)) for step in range(4))


if __name__ == "__main__":
    sys.exit(main())
