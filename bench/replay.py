#!/usr/bin/env python
"""The two costs of lifelong learning: generating samples of earlier tasks, and training on two objectives at once.

  one CPU:
    python bench/replay.py --device cpu
  one GPU:
    python bench/replay.py --device cuda --samples 512 --batch_size 256 --turn_steps 10
  with an adapter instead of the whole model:
    python bench/replay.py --device cpu --adapter_bottleneck 64

Generation is lifelong.replay.generate_samples as train_lifelong.py calls it before a task: batches from the task's
start token, top-k 20, cached. One side draws the same samples one by one and recomputes the whole prefix for every
token; the other, plain `generate`, has the same batches on the model as attached. The end token is never drawn: every
sample is as long as allowed on every side. Speed counts drawn tokens.

A training step is that of --seq_train_type lll: the real Trainer on batches whose rows of both objectives, qa and
0.25 · lm, go through the model in one forward and backward pass. It is compared with two passes, one per objective,
with their gradients added up (the same step and the same loss, which is checked), and with the originals' way: each
objective padded separately, scores at all positions, one backward pass for both. Tokens are real ones, no padding.
"""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import common

TASK, EOS = "bench", 0
SINGLE = "one by one, uncached, fp32"
ORIGINAL = "the originals' two passes, fp32"


def parse(argv=None):
    from versatile.utils import flags

    p = common.parser(__doc__)
    common.add_model_flags(p, bottleneck=False)
    p.add_argument("--adapter_bottleneck", type=flags.positive, help="adapter bottleneck (default: the whole model)")
    g = p.add_argument_group("generated samples")
    g.add_argument("--samples", type=flags.positive, default=64, help="samples to generate per turn")
    g.add_argument("--single_samples", type=flags.positive, default=2, help="samples to generate one by one")
    g.add_argument("--batch_size", type=flags.positive, default=32, help="samples generated together")
    g.add_argument("--max_len", type=flags.positive, default=64, help="tokens of every generated sample")
    g = p.add_argument_group("training steps")
    g.add_argument("--train_batch_size", type=flags.positive, default=16, help="samples per step")
    g.add_argument("--mean_length", type=flags.positive, default=54, help="mean tokens per sample")
    g.add_argument("--turn_steps", type=flags.positive, default=2, help="steps per turn and side")
    args = p.parse_args(argv)
    if args.quick:
        args.width, args.layers, args.positions, args.samples, args.batch_size = 64, 1, 64, 8, 4
        args.max_len, args.train_batch_size, args.mean_length, args.repeats = 12, 4, 16, 2
    if args.max_len >= args.positions:
        p.error(f"--max_len {args.max_len}: expected less than --positions {args.positions}, one is the start token's")
    return args


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    import torch

    generation = {dtype: Generation(args, device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    training = {dtype: Training(args, dtype) for dtype in (torch.float32, torch.bfloat16)}
    what = "the whole model" if args.adapter_bottleneck is None else f"an adapter of {args.adapter_bottleneck}"
    print(f"GPT-2 {args.width} wide, {args.layers} layers, {what}; {args.samples} samples of {args.max_len} tokens, "
          f"{args.batch_size} at once; steps of {args.train_batch_size} samples, {args.mean_length} tokens on average",
          flush=True)  # fmt: skip
    drawn, sides = {}, {SINGLE: lambda turn: generation[torch.float32].single()}
    for dtype, side in generation.items():
        kind = name(dtype)
        sides[f"plain generate, {kind}"] = lambda turn, side=side, kind=kind: side.plain(drawn, kind)
        sides[f"ours, {kind}"] = lambda turn, side=side, kind=kind: side.ours(drawn, kind)
    tokens = common.interleaved(sides, args.repeats, device)
    show("generated tokens/s", tokens, SINGLE)
    same = sum(a == b for a, b in zip(drawn["ours, fp32"], drawn["plain, fp32"]))
    print(f"samples, fp32: {same} of {args.samples} equal to those of plain generate from the same seed")
    sides = {ORIGINAL: lambda turn: training[torch.float32].original(turn)}
    for dtype, side in training.items():
        sides[f"two passes, {name(dtype)}"] = side.two_passes
        sides[f"ours, {name(dtype)}"] = side.fused
    losses = training[torch.float32].losses()
    steps = common.interleaved(sides, args.repeats, device)
    show("trained tokens/s", steps, ORIGINAL)
    equal = all(abs(losses["ours"] - loss) <= 1e-4 * abs(loss) for loss in losses.values())
    print(f"loss, fp32: {losses['ours']:.6f} in one pass, {losses['two passes']:.6f} in two, "
          f"{losses['originals']:.6f} the originals' way: "
          f"{'equal' if equal else 'an ERROR'}")  # fmt: skip
    print(common.verdict("our generation over one by one, fp32:", tokens, "ours, fp32", SINGLE, 10))
    for kind in ("fp32", "bf16"):
        plain, two = f"plain generate, {kind}", f"two passes, {kind}"
        print(common.verdict(f"our generation over plain generate, {kind}:", tokens, f"ours, {kind}", plain, 1))
        print(common.verdict(f"one pass over two, {kind}:", steps, f"ours, {kind}", two, 1))
    print(common.verdict("our step over the originals', fp32:", steps, "ours, fp32", ORIGINAL, 1))
    common.save(args, generated=tokens, trained=steps, losses=losses, same_samples=same)
    return 0 if equal else 1


def name(dtype):
    import torch

    return "fp32" if dtype == torch.float32 else "bf16"


def show(unit, rates, against):
    rows = []
    for side in rates:
        middle, low, high = common.ratio(rates, side, against)
        rows.append([side, sorted(rates[side])[len(rates[side]) // 2], f"{middle:.2f}x", f"{low:.2f}-{high:.2f}"])
    print(common.table(["", unit, "ratio", "spread"], rows))


def attached(args):
    """(model as lifelong/learning.py attaches it, its tokenizer): the same seed gives the same weights."""
    import torch
    from versatile.adapters import attach as adapting
    from versatile.data.encoders.question_answer import special_tokens

    # With GPT-2's own 0.02 all scores of a random model are alike.
    model, tokenizer = common.gpt2(args, initializer_range=0.1), common.word_tokenizer()
    torch.manual_seed(args.seed + 1)
    widths = None if args.adapter_bottleneck is None else {TASK: args.adapter_bottleneck}
    adapting.attach(model, tokenizer, {TASK: special_tokens([TASK])}, widths)
    # The end token's score is 0: out of thousands of tokens it is never among the top 20.
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "wte" in n and len(p) >= common.VOCABULARY)[EOS] = 0
    return model, tokenizer


class Generation:
    """Samples of an earlier task: ours, plain `generate`'s, and one by one."""

    def __init__(self, args, device, dtype):
        import torch
        from versatile.adapters import attach as adapting
        from versatile.data.encoders.question_answer import GEN, QuestionEncoder
        from versatile.lifelong.replay import Sampling
        from versatile.utils import devices

        self.args, self.device, self.dtype = args, device, dtype
        self.model, self.tokenizer = attached(args)
        if dtype != torch.float32:
            adapting.halve_frozen(self.model, dtype)
        devices.prepare_for_device(self.model.to(device).eval(), device, dtype)
        # Same weights; attention and matrices as `attach` leaves them.
        self.untouched = attached(args)[0].to(device).eval()
        self.encoder, self.gen = QuestionEncoder(self.tokenizer, args.max_len), GEN
        self.sampling = Sampling(batch_size=args.batch_size, seed=args.seed)
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        self.never = sorted(special - {self.encoder.ans, EOS})

    def ours(self, drawn, kind):
        """A turn's samples, drawn as replay draws them; returns their number of tokens."""
        from versatile.lifelong.replay import generate_samples
        from versatile.utils import devices

        devices.prepare_for_device(self.model, self.device, self.dtype)
        samples = generate_samples(self.model, self.tokenizer, self.encoder, self.gen, self.args.samples, self.sampling,
                                   dtype=self.dtype)  # fmt: skip
        drawn[f"ours, {kind}"] = samples
        return self.counted(samples, self.args.samples)

    def plain(self, drawn, kind):
        """The same with `generate`, on the model as attached."""
        import torch
        from transformers import GenerationConfig
        from versatile.training.trainer import seed_step
        from versatile.utils.devices import autocast

        common.default_allocator()
        start, samples = self.tokenizer.convert_tokens_to_ids(self.gen), []
        config = GenerationConfig(do_sample=True, top_k=20, max_new_tokens=self.args.max_len, eos_token_id=EOS,
                                  pad_token_id=EOS, suppress_tokens=self.never)  # fmt: skip
        for location, first in enumerate(range(0, self.args.samples, self.args.batch_size)):
            seed_step(self.args.seed, location, 0)
            rows = min(self.args.batch_size, self.args.samples - first)
            ids = torch.full((rows, 1), start, device=self.device)
            with torch.no_grad(), autocast(self.device, self.dtype):
                out = self.untouched.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            samples += out[:, 1:].tolist()
        drawn[f"plain, {kind}"] = samples
        return self.counted(samples, self.args.samples)

    def single(self):
        """A few samples one by one, every token from the whole prefix."""
        import torch

        common.default_allocator()
        never, samples = torch.tensor(self.never, device=self.device), []
        for _ in range(self.args.single_samples):
            ids = torch.tensor([[self.tokenizer.convert_tokens_to_ids(self.gen)]], device=self.device)
            for _ in range(self.args.max_len):
                with torch.no_grad():
                    last = self.untouched(input_ids=ids, use_cache=False).logits[0, -1]
                last[never] = -torch.inf
                best, tokens_at = last.topk(20)
                token = tokens_at[torch.multinomial(best.softmax(-1), 1)]
                ids = torch.cat([ids, token[None]], dim=1)
            samples.append(ids[0, 1:].tolist())
        return self.counted(samples, self.args.single_samples)

    def counted(self, samples, count):
        assert len(samples) == count and all(len(ids) == self.args.max_len for ids in samples)
        return count * self.args.max_len


class Training:
    """The Trainer of train_lifelong.py on the same rows: in one pass, in two, and the originals' way."""

    def __init__(self, args, dtype):
        import torch
        from versatile.adapters import attach as adapting
        from versatile.lifelong.losses import LM, QA, Objective, WeightedLoss
        from versatile.training.optimizers import build_adamw
        from versatile.training.settings import Settings
        from versatile.training.trainer import Trainer
        from versatile.utils import devices

        self.args, self.dtype, self.number = args, dtype, 0
        self.model, tokenizer = attached(args)
        if dtype != torch.float32:
            adapting.halve_frozen(self.model, dtype)
        self.gen, self.ans = tokenizer.convert_tokens_to_ids(["__gen__", "__ans__"])
        # The flags' defaults, as learning.Sequence.objective reads them.
        self.objective = Objective(0.25, {self.ans: 5.0})
        self.rows, self.pad_id = self.made_up(), tokenizer.pad_token_id
        batches = self.batches(self.objective)
        optimizer = build_adamw(self.model, 1e-4, eps=1e-4, weight_decay=0.01)
        self.trainer = Trainer(self.model, batches, WeightedLoss(), optimizer, lambda step: 1e-4, run=None,
                               settings=Settings(n_epochs=10**6, dtype=dtype))  # fmt: skip
        self.prepare = lambda: devices.prepare_for_device(self.model, self.trainer.device, dtype)
        self.tokens = sum(2 * len(row) + 3 for row in self.rows)
        size = args.train_batch_size
        chosen = [self.rows[i : i + size] for i in range(0, len(self.rows), size)]
        sides = [self.batches(one(self.objective, part)) for part in (QA, LM)]
        self.windows = dict(
            ours=[[batches.collate(rows)] for rows in chosen],
            two=[[([part.collate(rows)[0] for part in sides], 1)] for rows in chosen],
        )
        self.separate = [[objective.collate(rows)[0] for objective in sides] for rows in chosen]

    def made_up(self):
        """Rows of random tokens; half of each is the answer."""
        import numpy as np
        from versatile.data.encoders.question_answer import Row

        args, rng, rows = self.args, np.random.default_rng(self.args.seed), []
        longest = min(2 * args.mean_length, args.positions - 2)
        for length in common.lengths(args.turn_steps * args.train_batch_size, args.mean_length, longest, args.seed):
            ids = rng.integers(1, common.VOCABULARY, length).astype(np.int32)
            ids[length // 2 - 1] = self.ans
            rows.append(Row(ids, int(length // 2), EOS, self.gen, TASK))
        return rows

    def batches(self, objective):
        from versatile.lifelong.batches import LifelongBatches

        return LifelongBatches(self.rows, objective, self.pad_id, self.args.positions, float("inf"),
                               self.args.train_batch_size, seed=self.args.seed)  # fmt: skip

    def fused(self, turn):
        """A turn's optimizer steps, both objectives in one pass; returns their number of tokens."""
        return self.steps("ours")

    def two_passes(self, turn):
        """The same with one pass per objective."""
        return self.steps("two")

    def steps(self, side):
        self.prepare()
        for window in self.windows[side]:
            self.number += 1
            self.trainer.step(SimpleNamespace(state=SimpleNamespace(iteration=self.number)), window)
        return self.tokens

    def original(self, turn):
        """The same, as the originals compute it."""
        import torch

        common.default_allocator()
        self.model.train()
        for number in range(len(self.separate)):
            self.original_loss(number).backward()
            torch.nn.utils.clip_grad_norm_(self.trainer.params, 1.0)
            self.trainer.optimizer.step()
            self.trainer.optimizer.zero_grad()
        return self.tokens

    def original_loss(self, number):
        """qa + lambda * lm from the scores at all positions."""
        import torch
        import torch.nn.functional as F

        total = 0.0
        for batch, weight in zip(self.separate[number], (1.0, self.objective.lm_lambda)):
            inputs = {k: batch[k].to(self.trainer.device) for k in ("input_ids", "attention_mask", "position_ids")}
            scores = self.model(**inputs).logits[:, :-1].flatten(0, 1)
            weights = torch.ones(scores.shape[1], device=scores.device)
            for token, value in self.objective.token_weights.items():
                weights[token] = value
            targets = batch["labels"][:, 1:].flatten().to(scores.device)
            total = total + weight * F.cross_entropy(scores, targets, weights)
        return total

    def losses(self):
        """The first batch's loss in one pass, in two and the originals' way, without dropout."""
        import torch
        from versatile.lifelong.losses import WeightedLoss

        self.model.eval()
        losses = dict.fromkeys(("ours", "two passes"), 0.0)
        with torch.no_grad():
            for side, batches in (("ours", [self.windows["ours"][0][0][0]]), ("two passes", self.separate[0])):
                for batch in batches:
                    losses[side] += float(WeightedLoss()(self.model, batch))
            losses["originals"] = float(self.original_loss(0))
        return losses


def one(objective, part):
    """The same objective, restricted to the sequences of one part."""
    from versatile.lifelong.losses import Objective

    @dataclass
    class Part(Objective):
        def sequences(self, row):
            return [part_ids for part_ids in Objective.sequences(self, row) if part_ids[0] == part]

    return Part(objective.lm_lambda, objective.token_weights)


if __name__ == "__main__":
    sys.exit(main())
