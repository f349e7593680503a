#!/usr/bin/env python
"""Training speed: adapters beside a frozen backbone, against the original's plain loop.

  one CPU:
    python bench/train_adapter.py --device cpu
  one GPU:
    python bench/train_adapter.py --device cuda --turn_steps 20
  with lengths like E2E's, where the original loses less time to padding:
    python bench/train_adapter.py --device cpu --mean_length 46 --positions 112
  where our time goes: bench/budget.py

Ours is the path of train.py: the real Trainer over batches of similar length, frozen matrices, scores only at
labels, clipping once per step, in fp32 and in bf16. The plain loop does what the original code does:
every row padded to the longest of the data set, scores at all positions, gradients of all weights (only
adapters and the whole embedding table are updated; the others' gradients accumulate and count in the clipping,
which runs every micro-batch), fp32. Dropout is GPT-2's 0.1 on both sides. Only real tokens count, not padding.
"""

import sys

import common

ORIGINAL = "original loop, fp32"


def parse(argv=None):
    p = common.parser(__doc__)
    common.add_model_flags(p)
    common.add_training_flags(p, 8, "our steps a turn; the plain loop: a fourth")
    return common.parse_training(p, argv)


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    import torch

    bf16, fp32 = torch.bfloat16, torch.float32
    lengths = common.examples(args)
    ours = {dtype: common.Ours(args, lengths, dtype) for dtype in (fp32, bf16)}
    plain = Plain(args, lengths, device)
    sides = {
        ORIGINAL: plain.turn,
        "ours, fp32": ours[fp32].turn,
        "ours, bf16": ours[bf16].turn,
        "products, fp32": lambda turn: common.product(args, device, fp32),
        "products, bf16": lambda turn: common.product(args, device, bf16),
    }
    print(f"model: {plain.parameters / 1e6:.1f}M parameters with adapters; lengths: mean {lengths.mean():.1f}, "
          f"longest {lengths.max()}; batch {args.train_batch_size} x {args.gradient_accumulation_steps}",
          flush=True)  # fmt: skip
    rates = common.interleaved(sides, args.repeats, device)
    rows = []
    for name in (ORIGINAL, "ours, fp32", "ours, bf16"):
        middle, low, high = common.ratio(rates, name, ORIGINAL)
        peak = share(rates, name, ours[fp32].flops_per_token, name[-4:])
        tokens = sorted(rates[name])[len(rates[name]) // 2]
        rows.append([name, tokens, f"{middle:.2f}x", f"{low:.2f}-{high:.2f}", f"{100 * peak:.0f} %"])
    print(common.table(["", "tokens/s", "ratio", "spread", "of the peak"], rows))
    for kind in ("fp32", "bf16"):
        peak = max(rates[f"products, {kind}"]) / 1e9
        shape = f"[{common.product_rows(args)}, {args.width}] x [{args.width}, {4 * args.width}]"
        print(f"peak of {kind} products {shape}: {peak:.0f} GFLOP/s")
    print(f"needed products: {ours[fp32].flops_per_token / 1e6:.1f} MFLOP per real token")
    print(common.verdict("our training over the original's loop: bf16", rates, "ours, bf16", ORIGINAL, 9))
    print(common.verdict("our training over the original's loop: fp32", rates, "ours, fp32", ORIGINAL, 6.3))
    common.save(args, rates=rates, flops_per_token=ours[fp32].flops_per_token)


def share(rates, name, flops_per_token, kind):
    """The share of the measured peak that the needed products reach: median over the turns."""
    shares = [r * flops_per_token / p for r, p in zip(rates[name], rates[f"products, {kind}"])]
    return sorted(shares)[len(shares) // 2]


class Plain:
    """The original code's loop, around a transformers GPT-2."""

    def __init__(self, args, lengths, device):
        import numpy as np
        import torch
        from versatile.adapters.methods.bottleneck import BottleneckAdapter

        self.args, self.device, self.at = args, device, 0
        self.model = common.gpt2(args)
        self.model.resize_token_embeddings(common.VOCABULARY + 1 + common.MARKERS, mean_resizing=False)
        for block in self.model.transformer.h:
            block.adapter = BottleneckAdapter(args.width, args.adapter_bottleneck)
            block.register_forward_hook(adapt)
        self.model.to(device).train()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        trained = [p for n, p in self.model.named_parameters() if "adapter" in n or "wte" in n]
        self.optimizer = torch.optim.AdamW(trained, lr=args.lr, eps=1e-6, weight_decay=0.0)
        split = common.MadeUpSplit(lengths, common.VOCABULARY, args.seed)
        # As many rows as a few turns see, with the longest length of the whole data set.
        rows = min(len(split), 512)
        self.data = torch.full((3, rows, int(lengths.max())), common.VOCABULARY)
        self.data[2] = -100
        for i in range(rows):
            ids, types, prompt = split[i].ids, split[i].types, split[i].prompt_length
            self.data[0, i, : len(ids)], self.data[1, i, : len(ids)] = torch.from_numpy(ids), torch.from_numpy(types)
            self.data[2, i, prompt : len(ids)] = torch.from_numpy(ids[prompt:])
        # Its time does not depend on the rows of a turn, so every turn counts the data set's mean.
        self.mean = float(np.mean(lengths))

    def turn(self, turn):
        """A fourth of our steps; returns the number of real tokens in them."""
        common.default_allocator()
        steps = max(1, self.args.turn_steps // 4)
        for _ in range(steps):
            self.step()
        return steps * self.args.gradient_accumulation_steps * self.args.train_batch_size * self.mean

    def step(self):
        import torch

        count = self.args.gradient_accumulation_steps
        for _ in range(count):
            rows = torch.arange(self.at, self.at + self.args.train_batch_size) % self.data.shape[1]
            self.at += self.args.train_batch_size
            ids, types, labels = self.data[:, rows].to(self.device)
            # The original passes no attention mask: padding is on the right, after everything that counts.
            loss = self.model(input_ids=ids, token_type_ids=types, labels=labels).loss / count
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            # The original reads the loss in every micro-batch.
            loss.item()
        # The table's gradient outside the new rows is discarded, after all the work to compute it.
        self.model.transformer.wte.weight.grad[: common.VOCABULARY] = 0
        self.optimizer.step()
        self.optimizer.zero_grad()


def adapt(block, args, output):
    return (block.adapter(output[0]), *output[1:]) if isinstance(output, tuple) else block.adapter(output)


if __name__ == "__main__":
    sys.exit(main())
