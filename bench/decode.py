#!/usr/bin/env python
"""Decoding speed: ours in batches, against the original's way and against plain `generate`.

  one CPU:
    python bench/decode.py --device cpu
  one GPU:
    python bench/decode.py --device cuda

Ours is utils.decoding.decode as evaluate.py calls it: prompts sorted by length, left-padded, cached. The
original decodes one prompt at a time and computes the whole prefix anew for every token. Plain `generate` has
the same batches of the same size, in file order, on the model as attached: default attention, frozen matrices
cast by autocast on every call. All are greedy and may produce the same tokens; outputs are compared token for
token in fp32. Speed counts produced tokens.
"""

import sys

import common

EOS = common.VOCABULARY + 2
ORIGINAL = "original, one by one, fp32"


def parse(argv=None):
    from versatile.utils import flags

    p = common.parser(__doc__)
    common.model_flags(p)
    g = p.add_argument_group("prompts and outputs")
    g.add_argument("--prompts", type=flags.positive, default=128, help="prompts to decode a turn")
    g.add_argument("--single_prompts", type=flags.positive, default=4, help="of these, the original's way gets so many")
    g.add_argument("--batch_size", type=flags.positive, default=32, help="prompts decoded together")
    g.add_argument("--mean_length", type=flags.positive, default=28, help="tokens a prompt on average")
    g.add_argument("--longest_prompt", type=flags.positive, default=56,
                   help="tokens of the longest prompt; a single long one makes its whole batch slow")  # fmt: skip
    g.add_argument("--max_length", type=flags.positive, default=40, help="tokens an output")
    args = p.parse_args(argv)
    if args.quick:
        args.width, args.layers, args.positions, args.prompts = 64, 1, 64, 8
        args.batch_size, args.mean_length, args.max_length, args.repeats, args.single_prompts = 4, 10, 6, 2, 2
    return args


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    import torch

    fp32, bf16 = torch.float32, torch.bfloat16
    models = {dtype: settled(args, device, dtype) for dtype in (fp32, bf16)}
    # Same weights; attention and matrices as `attach` leaves them.
    untouched = common.attached(args, initializer_range=0.1)[0].to(device).eval()
    prompts = make_prompts(args)
    outputs = {"ours": {}, "original": {}, "plain": {}}
    sides = {
        ORIGINAL: lambda turn: original(args, untouched, prompts, turn, outputs["original"]),
        "plain generate, fp32": lambda turn: plain(args, untouched, prompts, fp32, outputs["plain"]),
        "ours, fp32": lambda turn: ours(args, models[fp32], prompts, fp32, outputs["ours"]),
        "plain generate, bf16": lambda turn: plain(args, untouched, prompts, bf16, {}),
        "ours, bf16": lambda turn: ours(args, models[bf16], prompts, bf16, {}),
    }
    longest = max(len(ids) for ids, _ in prompts)
    print(f"{args.prompts} prompts of {args.mean_length} tokens on average, the longest {longest}, "
          f"outputs of {args.max_length}, batch {args.batch_size}", flush=True)  # fmt: skip
    rates = common.interleaved(sides, args.repeats, device)
    rows = []
    for name in sides:
        middle, low, high = common.ratio(rates, name, ORIGINAL)
        rows.append([name, sorted(rates[name])[len(rates[name]) // 2], f"{middle:.1f}x", f"{low:.1f}-{high:.1f}"])
    print(common.table(["", "tokens/s", "ratio", "spread"], rows))
    same = compare(args, untouched, prompts, outputs)
    print(common.verdict("our decoding over plain generate, fp32:", rates, "ours, fp32", "plain generate, fp32", 1))
    print(common.verdict("our decoding over plain generate, bf16:", rates, "ours, bf16", "plain generate, bf16", 1))
    print(common.verdict("our decoding over the original's, fp32:", rates, "ours, fp32", ORIGINAL, 30))
    common.save(args, rates=rates, equal=same)
    return 0 if same else 1


def settled(args, device, dtype):
    """(model, tokenizer) made ready as evaluate.py does."""
    import torch
    from versatile.adapters import attach as adapting
    from versatile.utils import devices

    # With GPT-2's own 0.02 a random model repeats its last token: nothing would depend on the context.
    model, tokenizer = common.attached(args, initializer_range=0.1)
    model.requires_grad_(False).to(device).eval()
    if dtype != torch.float32:
        adapting.halve_frozen(model, dtype)
    devices.prepare_for_device(model, device, dtype)
    return model, tokenizer


def make_prompts(args):
    """[(ids, types)], of like lengths as E2E's inputs, in no order of length."""
    # E2E's longest input is 1.5 times its mean; an outlier among so few prompts would be a quarter of the work.
    longest = min(args.longest_prompt, args.positions - args.max_length)
    lengths = common.lengths(args.prompts, args.mean_length, longest, args.seed)
    split = common.MadeUpSplit(lengths, common.VOCABULARY, args.seed)
    return [(row.ids[:-1].tolist(), row.types[:-1].tolist()) for row in (split[i] for i in range(len(split)))]


def forbidden(model):
    """Added tokens other than the end token, and the base vocabulary's own special token."""
    return [0, *(i for i in range(common.VOCABULARY, model.config.vocab_size) if i != EOS)]


def ours(args, model_and_tokenizer, prompts, dtype, outputs):
    from versatile.training.decoding import Decoding, Prompt, decode
    from versatile.utils import devices

    model, tokenizer = model_and_tokenizer
    devices.prepare_for_device(model, next(model.parameters()).device, dtype)
    decoding = Decoding(max_length=args.max_length, batch_size=args.batch_size)
    found = decode(model, tokenizer, [Prompt(*p, 0, EOS) for p in prompts], decoding, dtype=dtype)
    outputs.update(enumerate(found))
    return produced(found, args)


def plain(args, model, prompts, dtype, outputs):
    """`generate` over the prompts as they come."""
    import torch
    from transformers import GenerationConfig
    from versatile.training.prompt_batches import left_padded
    from versatile.utils.devices import autocast

    common.default_allocator()
    device, found = model.device, []
    config = GenerationConfig(do_sample=False, max_new_tokens=args.max_length, min_new_tokens=1, eos_token_id=EOS,
                              pad_token_id=common.VOCABULARY, suppress_tokens=forbidden(model))  # fmt: skip
    for start in range(0, len(prompts), args.batch_size):
        batch = left_padded(prompts[start : start + args.batch_size], common.VOCABULARY)
        with torch.no_grad(), autocast(device, dtype):
            out = model.generate(**{k: v.to(device) for k, v in batch.items()}, generation_config=config)
        new = out[:, batch["input_ids"].shape[1] :].tolist()
        found += [row[: row.index(EOS)] if EOS in row else row for row in new]
    outputs.update(enumerate(found))
    return produced(found, args)


def original(args, model, prompts, turn, outputs):
    """A few prompts, other ones each turn: every token from the whole prefix, scores at all positions."""
    import torch

    common.default_allocator()
    banned = torch.tensor(forbidden(model), device=model.device)
    found = {}
    for i in range(turn * args.single_prompts, (turn + 1) * args.single_prompts):
        ids, types = prompts[i % len(prompts)]
        new = []
        while len(new) < args.max_length:
            last = scores(model, ids, types, new)
            last[banned] = -torch.inf
            if not new:
                last[EOS] = -torch.inf
            token = int(last.argmax())
            if token == EOS:
                break
            new.append(token)
        found[i % len(prompts)] = new
    outputs.update(found)
    return produced(found.values(), args)


def produced(outputs, args):
    """Tokens produced, end tokens counted."""
    return sum(min(len(row) + 1, args.max_length) for row in outputs)


def compare(args, model, prompts, outputs):
    """Whether the three ways gave the same tokens; says so.

    A difference at a place where the two tokens score alike to a thousandth is rounding, which differs with a
    batch's shape; any other is an error.
    """
    ours, same = outputs["ours"], True
    for name in ("plain", "original"):
        differ = [i for i, row in outputs[name].items() if row != ours[i]]
        print(f"outputs, fp32: {len(outputs[name]) - len(differ)} of {len(outputs[name])} equal to those of {name}")
        for i in differ:
            at, gap = difference(model, prompts[i], ours[i], outputs[name][i])
            tie = gap < 1e-3
            same &= tie
            print(f"  prompt {i} differs from token {at} on, where the two score {gap:.1e} apart: "
                  f"{'a tie but for rounding' if tie else 'an ERROR'}")  # fmt: skip
    print(f"different tokens in our outputs: {len({t for row in ours.values() for t in row})}")
    return same


def difference(model, prompt, a, b):
    """(place of the first difference, how far apart the two tokens score after the tokens before)."""
    a, b = [*a, EOS], [*b, EOS]
    at = next(k for k, (x, y) in enumerate(zip(a, b)) if x != y)
    last = scores(model, *prompt, a[:at])
    return at, abs(float(last[a[at]] - last[b[at]]))


def scores(model, ids, types, new):
    """The next token's scores, from a whole forward over one row."""
    import torch

    with torch.no_grad():
        return model(
            input_ids=torch.tensor([ids + new], device=model.device),
            token_type_ids=torch.tensor([types + types[-1:] * len(new)], device=model.device),
        ).logits[0, -1]


if __name__ == "__main__":
    sys.exit(main())
