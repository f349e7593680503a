#!/usr/bin/env python
"""The cost of generating adapters: hyperformer++ against plain adapters, and against generating in every layer's call.

  one CPU:
    python bench/hypernet.py --device cpu
  one GPU, in the published batch:
    python bench/hypernet.py --device cuda --train_batch_size 32 --source_length 128 --turn_steps 10

The default shape is t5-small's with random weights, eight tasks and reduction factor 32, as published. A training step
is forward, backward, clipping and AdamW on a batch of one task, as the sampler draws them. Decoding is generate with
beams, every output as long as allowed. "every call" is the same model with its hypernetwork run again wherever an
adapter is used: in training once per layer and place, in decoding once per layer, place and token. It is checked to
give the same loss. The last side is hyperformer++ on batches that mix all tasks.
"""

import statistics
import sys

import common

TASKS = ["rte", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "cola"]
PLAIN, OURS, NAIVE, MIXED = "adapters", "hyperformer++", "hyperformer++, every call", "hyperformer++, tasks mixed"
METHODS = {PLAIN: "adapters", OURS: "hyperformer++", NAIVE: "hyperformer++"}
SLOWER = 1.25


def parse(argv=None):
    from versatile.utils import flags, settings

    p = common.parser(__doc__)
    g = p.add_argument_group("the model (random weights) and its data")
    g.add_argument("--width", type=flags.positive, default=512, help="d_model, 64 for each attention head")
    g.add_argument("--layers", type=flags.positive, default=6, help="layers of the encoder, and of the decoder")
    g.add_argument("--vocabulary", type=flags.positive, default=32128, help="rows of the embedding table")
    g.add_argument("--reduction_factor", type=flags.positive, default=32, help="adapter bottleneck: d_model over this")
    g.add_argument("--train_batch_size", type=flags.positive, default=16, help="rows of a step and of a decoded batch")
    g.add_argument("--source_length", type=flags.positive, default=48, help="tokens per input")
    g.add_argument("--target_length", type=flags.positive, default=4, help="tokens per label in training")
    g.add_argument("--max_length", type=flags.positive, default=16, help="tokens of every decoded output")
    g.add_argument("--num_beams", type=flags.positive, default=4, help="number of beams")
    g.add_argument("--turn_steps", type=flags.positive, default=1, help="optimizer steps per turn and side")
    settings.add_precision(p, device=False)
    args = p.parse_args(argv)
    if args.quick:
        args.width, args.layers, args.vocabulary, args.train_batch_size, args.repeats = 64, 2, 128, 8, 2
        args.source_length, args.max_length, args.num_beams = 8, 4, 2
    if args.width % 64 or args.width < args.reduction_factor:
        p.error(f"--width {args.width}: expected a multiple of 64, --reduction_factor or more")
    return args


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    from versatile.utils import devices

    dtype = devices.precision(args, device)
    print(f"T5 {args.width} wide, {args.layers} + {args.layers} layers; {len(TASKS)} tasks; {str(dtype)[6:]}; "
          f"{args.train_batch_size} rows of {args.source_length} tokens; {args.num_beams} beams of {args.max_length} "
          f"tokens", flush=True)  # fmt: skip
    work = {side: Workload(args, device, dtype, side) for side in METHODS}
    same_loss(work)
    work[MIXED] = work[OURS].mixing()
    steps = common.interleaved({side: w.training for side, w in work.items()}, args.repeats, device)
    tokens = common.interleaved({side: w.decoding for side, w in work.items()}, args.repeats, device)
    rows = [[side, work[side].trained, 1000 / statistics.median(steps[side]), statistics.median(tokens[side])]
            for side in work]  # fmt: skip
    print(common.table(["", "trained", "ms a training step", "tokens/s decoded"], rows))
    for what, rates in (("training step", steps), ("decoding", tokens)):
        slower(f"{what}, hyperformer++'s time over plain adapters':", rates, PLAIN, OURS, SLOWER)
        slower(f"{what}, a mixed batch's time over a single task's:", rates, OURS, MIXED)
        slower(f"{what}, generating in every call over generating once:", rates, OURS, NAIVE)
    common.save(args, steps_per_second=steps, tokens_per_second=tokens)


def slower(what, rates, base, side, target=None):
    """Print how much longer `side` takes than `base`, and whether a target is reached."""
    middle, low, high = common.ratio(rates, base, side)
    common.record(what, middle, low, high, lower=True)
    aim = f"; target at most {target:g}x {'reached' if middle <= target else 'NOT reached'}" if target else ""
    print(f"ratio: {what} {middle:.3f}x ({low:.3f} to {high:.3f} over the turns{aim})")


def same_loss(work):
    """Exit if generating in every call does not give the same model."""
    ours, naive = (work[side].loss(0).item() for side in (OURS, NAIVE))
    if abs(ours - naive) > 1e-2 * abs(ours):
        sys.exit(f"error: the sides give different losses: {ours} and {naive}")


class EveryCall:
    """A stack's adapters, each generated where it is used."""

    def __init__(self, method, hypernet, names, dtype):
        self.method, self.hypernet, self.names, self.dtype = method, hypernet, names, dtype

    def __getitem__(self, site):
        import torch
        from versatile.adapters.methods.hypernetworks import FEED_FORWARD, SELF_ATTENTION

        with torch.autocast(self.method.device.type, enabled=False):
            block = FEED_FORWARD if site % 2 else SELF_ATTENTION
            return self.hypernet.at(self.method.embeddings(self.names), site // 2, block, self.dtype)


class Workload:
    """One side's model and its batches."""

    def __init__(self, args, device, dtype, side):
        import torch
        from versatile.adapters import t5

        self.args, self.device, self.dtype, self.ids, self.step = args, device, dtype, None, 0
        model = common.t5(args, vocab_size=args.vocabulary)
        settings = t5.T5Settings(
            method=METHODS[side], reduction_factor=args.reduction_factor, non_linearity="gelu_new",
            train_task_embeddings=True, task_embedding_dim=64, unfreeze_layer_norms=True,
        )  # fmt: skip
        torch.manual_seed(args.seed + 1)
        self.model = t5.attach(model, TASKS, settings).to(device)
        if side == NAIVE:
            method = self.model.added[METHODS[side]]
            method.generate = lambda *batch: [EveryCall(method, hypernet, *batch) for hypernet in method.hypernets]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        generator = torch.Generator().manual_seed(args.seed)
        shapes = dict(input_ids=args.source_length, labels=args.target_length)
        self.batch = {name: torch.randint(2, args.vocabulary, (args.train_batch_size, length), generator=generator)
                      .to(device) for name, length in shapes.items()}  # fmt: skip
        self.batch["attention_mask"] = torch.ones_like(self.batch["input_ids"])

    def mixing(self):
        """The same side on batches that mix all tasks."""
        import copy

        import torch

        mixed = copy.copy(self)
        mixed.ids = torch.arange(self.args.train_batch_size, device=self.device) % len(TASKS)
        return mixed

    def task_ids(self, step):
        """The rows' task ids: one task per step, or all tasks."""
        import torch

        if self.ids is not None:
            return self.ids.clone()
        return torch.full((self.args.train_batch_size,), step % len(TASKS), device=self.device)

    def loss(self, step):
        """The loss of a step's batch without dropout: the same for all sides of one model."""
        import torch

        self.model.eval()
        with torch.no_grad():
            return self.model(**self.batch, task_ids=self.task_ids(step)).loss

    def training(self, turn):
        """The work of a turn: some optimizer steps."""
        import torch
        from versatile.utils.devices import autocast

        self.model.train()
        for _ in range(self.args.turn_steps):
            self.step += 1
            with autocast(self.device, self.dtype):
                loss = self.model(**self.batch, task_ids=self.task_ids(self.step), use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return self.args.turn_steps

    def decoding(self, turn):
        """The work of a turn: one batch decoded, every output as long as allowed."""
        from versatile.utils.devices import autocast

        self.model.eval()
        inputs = {name: value for name, value in self.batch.items() if name != "labels"}
        length = self.args.max_length
        with autocast(self.device, self.dtype):
            outputs = self.model.generate(**inputs, task_ids=self.task_ids(max(turn, 0)), num_beams=self.args.num_beams,
                                        min_new_tokens=length, max_new_tokens=length)  # fmt: skip
        assert outputs.shape == (self.args.train_batch_size, length + 1)
        return length * len(outputs)


if __name__ == "__main__":
    sys.exit(main())
