#!/usr/bin/env python
"""Decoding speed: ours in batches, against the original's decoding and against plain `generate`.

  one CPU:
    python bench/decode.py --device cpu
  one GPU:
    python bench/decode.py --device cuda
  an encoder-decoder:
    python bench/decode.py --device cpu --t5

Ours is training.decoding.decode as evaluate.py calls it: prompts sorted by length, left-padded, cached, a finished
greedy row replaced by the next prompt. The original decodes one prompt at a time and recomputes the whole prefix
for every token. Plain `generate` has the same batches of the same size, in file order, on the model as attached:
default attention, frozen matrices cast by autocast on every call.

With an encoder-decoder the sides are ours and plain `generate`.

Outputs either all have one length or vary in length like E2E's; `EndAtLength` ensures this in the models of all sides.
All sides are allowed the same tokens; outputs are compared token by token in fp32. Speed counts produced tokens.
"""

import statistics
import sys
from dataclasses import dataclass, field, replace
from functools import partial

import common

EOS = common.VOCABULARY + 2
ORIGINAL = "original, one by one, fp32"
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass
class Search:
    """What the sides decode, and their outputs.

    Attributes:
        name: of the search, appended to the sides' names.
        prompts: [(ids, types)].
        max_length: maximum tokens of an output.
        batch_size: prompts decoded together.
        target: how many times faster than plain `generate` ours should be.
        beams: number of beams; 1 is greedy search.
        outputs: {side: {prompt number: its tokens}}.
    """

    name: str
    prompts: list
    max_length: int
    batch_size: int
    target: float
    beams: int = 1
    outputs: dict = field(default_factory=dict)

    def record(self, side, rows):
        """Keep a side's outputs, {prompt number: its tokens}; returns the number of tokens produced, including end
        tokens."""
        self.outputs.setdefault(side, {}).update(rows)
        return sum(min(len(row) + 1, self.max_length) for row in rows.values())


class EndAtLength:
    """Forward hook of a model that ends outputs where the prompt says: at the position given by its last type, for an
    encoder-decoder in its decoder.

    It applies the same operations to the scores of every forward pass, whoever decodes. Token types are vocabulary ids,
    and decoding repeats the last one for every new token. A marker's id is beyond all positions: its row never ends.
    """

    def __init__(self, model):
        self.in_decoder = model.config.is_encoder_decoder
        model.register_forward_hook(self, with_kwargs=True)

    def __call__(self, model, args, kwargs, output):
        import torch

        has_ended = self.positions(kwargs) >= kwargs["decoder_" * self.in_decoder + "token_type_ids"][:, -1]
        output.logits[:, -1, EOS] = torch.where(has_ended, 1e4, -torch.inf).to(output.logits.dtype)

    def positions(self, kwargs):
        """The position of the last token read, of each row or of all rows."""
        if not self.in_decoder:
            return kwargs["position_ids"][:, -1]
        mask = kwargs.get("decoder_attention_mask")
        return (kwargs["past_key_values"].get_seq_length() if mask is None else mask.sum(1)) - 1


def parse(argv=None):
    p = build_parser(__doc__)
    p.add_argument("--t5", action="store_true", help="an encoder-decoder instead of a GPT-2, --layers in each stack")
    args = p.parse_args(argv)
    return make_quick(args) if args.quick else args


def build_parser(doc):
    """The parser of the benchmarks of decoding, without --t5."""
    from versatile.utils import flags

    p = common.parser(doc)
    common.add_model_flags(p)
    g = p.add_argument_group("prompts and outputs")
    g.add_argument("--prompts", type=flags.positive, default=128, help="prompts to decode per turn")
    g.add_argument("--single_prompts", type=flags.positive, default=4, help="how many of these the original decodes")
    g.add_argument("--batch_size", type=flags.positive, default=32, help="rows decoded together")
    g.add_argument("--mean_length", type=flags.positive, default=28, help="mean tokens per prompt")
    g.add_argument("--longest_prompt", type=flags.positive, default=56,
                   help="tokens of the longest prompt; a single long one makes its whole batch slow")  # fmt: skip
    g.add_argument("--max_length", type=flags.positive, default=40, help="tokens per output if all have one length")
    g.add_argument("--mean_output", type=flags.positive, default=28, help="mean tokens per output if lengths vary")
    g.add_argument("--longest_output", type=flags.positive, default=60,
                   help="tokens of the longest output if lengths vary")  # fmt: skip
    g.add_argument("--beams", type=flags.positive, default=4, help="number of beams to measure as well; 1: none")
    return p


def make_quick(args):
    """The flags of a smoke test."""
    args.width, args.layers, args.positions, args.prompts = 64, 1, 64, 8
    args.batch_size, args.mean_length, args.max_length, args.repeats, args.single_prompts = 4, 10, 6, 2, 2
    args.mean_output, args.longest_output, args.beams = 9, 12, 2
    return args


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    import torch

    models = {kind: prepared(args, device, getattr(torch, name)) for kind, name in PRECISIONS.items()}
    # Same weights; attention and matrices as `attach` leaves them.
    untouched = random_adapters(args)[0].to(device).eval()
    EndAtLength(untouched)
    searches = make_searches(args)
    sides = {} if args.t5 else {ORIGINAL: partial(original, args, untouched, searches[0])}
    for search in searches:
        for kind in PRECISIONS:
            sides[f"plain generate{search.name}, {kind}"] = partial(plain, untouched, search, kind)
            sides[f"ours{search.name}, {kind}"] = partial(ours, models[kind], search, kind)
    longest = max(len(ids) for ids, _ in searches[0].prompts)
    print(f"{args.prompts} prompts of {args.mean_length} tokens on average, the longest {longest}, batch "
          f"{args.batch_size}; outputs of {args.max_length}, or of {args.mean_output} on average, the longest "
          f"{args.longest_output}", flush=True)  # fmt: skip
    rates = common.interleaved(sides, args.repeats, device)
    rows, base = [], next(iter(sides))
    for name in sides:
        middle, low, high = common.ratio(rates, name, base)
        rows.append([name, sorted(rates[name])[len(rates[name]) // 2], f"{middle:.1f}x", f"{low:.1f}-{high:.1f}"])
    print(common.table(["", "tokens/s", "ratio", "spread"], rows))
    same = min([compare(untouched, search) for search in searches])
    compare_bf16(untouched, models["bf16"][0], searches[0])
    for search in searches:
        for kind in PRECISIONS:
            print(common.verdict(f"our decoding over plain generate{search.name}, {kind}:", rates,
                                 f"ours{search.name}, {kind}", f"plain generate{search.name}, {kind}",
                                 search.target))  # fmt: skip
    if base == ORIGINAL:
        print(common.verdict("our decoding over the original's, fp32:", rates, "ours, fp32", ORIGINAL, 30))
    common.save(args, rates=rates, equal=same)
    return 0 if same else 1


def random_adapters(args):
    """(model, tokenizer) of a random model that answers every prompt differently."""
    # With the families' own initialisation it repeats its last token: nothing would depend on the context.
    if not args.t5:
        return common.attached(args, initializer_range=0.1)
    model, tokenizer = common.attached(args)
    for name, p in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            p.data.mul_(4)
    return model, tokenizer


def prepared(args, device, dtype):
    """(model, tokenizer) prepared as in evaluate.py."""
    from versatile.adapters.inference import prepare_for_inference

    model, tokenizer = random_adapters(args)
    prepare_for_inference(model, device, dtype)
    EndAtLength(model)
    return model, tokenizer


def make_searches(args):
    """Greedy search with outputs of one length, then with varying lengths, and beam search with the latter."""
    prompts = make_prompts(args)
    lengths = common.lengths(args.prompts, args.mean_output, args.longest_output, args.seed + 1)
    # A separate decoder begins with two tokens.
    ending = [(ids, [*types[:-1], (2 if args.t5 else len(ids)) + int(length) - 2])
              for (ids, types), length in zip(prompts, lengths)]  # fmt: skip
    one_length, differing, of_beams = (1, 1.3, 1) if args.t5 else (1.6, 1.6, 1.3)
    searches = [Search("", prompts, args.max_length, args.batch_size, target=one_length),
                Search(", lengths differ", ending, args.longest_output, args.batch_size, target=differing)]  # fmt: skip
    if args.beams > 1:
        # As many rows at once, and about as many tokens per turn.
        batch_size, name = max(1, args.batch_size // args.beams), f", {args.beams} beams"
        count = max(batch_size, args.prompts // args.beams)
        searches.append(Search(name, ending[:count], args.longest_output, batch_size, of_beams, args.beams))
    return searches


def make_prompts(args):
    """[(ids, types)], of similar lengths like E2E's inputs, unsorted."""
    # E2E's longest input is 1.5 times its mean; an outlier among so few prompts would be a quarter of the work.
    longest = min(args.longest_prompt, args.positions - max(args.max_length, args.longest_output))
    lengths = common.lengths(args.prompts, args.mean_length, longest, args.seed)
    split = common.MadeUpSplit(lengths, common.VOCABULARY, args.seed)
    return [(row.ids[:-1].tolist(), row.types[:-1].tolist()) for row in (split[i] for i in range(len(split)))]


def forbidden(model):
    """Added tokens other than the end token, and the base vocabulary's special token."""
    return [0, *(i for i in range(common.VOCABULARY, model.config.vocab_size) if i != EOS)]


def ours(model_and_tokenizer, search, kind, turn=0):
    """`decode` as evaluate.py calls it; returns the number of tokens produced."""
    import torch
    from versatile.training.decoding import Decoding, Prompt, decode
    from versatile.utils import devices

    (model, tokenizer), dtype = model_and_tokenizer, getattr(torch, PRECISIONS[kind])
    devices.prepare_for_device(model, next(model.parameters()).device, dtype)
    decoding = Decoding(max_length=search.max_length, batch_size=search.batch_size, num_beams=search.beams)
    prompts = [Prompt(*prompt, 0, EOS) for prompt in search.prompts]
    return search.record(f"ours, {kind}", dict(enumerate(decode(model, tokenizer, prompts, decoding, dtype=dtype))))


def plain(model, search, kind, turn=0):
    """`generate` over the prompts in the given order; returns the number of tokens produced."""
    import torch
    from transformers import GenerationConfig
    from versatile.training.prompt_batches import left_padded
    from versatile.utils.devices import autocast

    common.default_allocator()
    device, dtype, outputs = model.device, getattr(torch, PRECISIONS[kind]), []
    config = GenerationConfig(do_sample=False, num_beams=search.beams, max_new_tokens=search.max_length,
                              min_new_tokens=1, eos_token_id=EOS, pad_token_id=common.VOCABULARY,
                              suppress_tokens=forbidden(model))  # fmt: skip
    for start in range(0, len(search.prompts), search.batch_size):
        batch = left_padded(search.prompts[start : start + search.batch_size], common.VOCABULARY)
        inputs, before = model.decoding_inputs({k: v.to(device) for k, v in batch.items()})
        with torch.no_grad(), autocast(device, dtype):
            out = model.generate(**inputs, generation_config=config)
        new = out[:, before:].tolist()
        outputs += [row[: row.index(EOS)] if EOS in row else row for row in new]
    return search.record(f"plain generate, {kind}", dict(enumerate(outputs)))


def original(args, model, search, turn):
    """A few prompts, different ones each turn: every token from the whole prefix, scores at all positions."""
    import torch

    common.default_allocator()
    banned = torch.tensor(forbidden(model), device=model.device)
    outputs = {}
    for i in range(turn * args.single_prompts, (turn + 1) * args.single_prompts):
        ids, types = search.prompts[i % len(search.prompts)]
        new = []
        while len(new) < search.max_length:
            last = scores(model, ids, types, new)[-1]
            last[banned] = -torch.inf
            if not new:
                last[EOS] = -torch.inf
            token = int(last.argmax())
            if token == EOS:
                break
            new.append(token)
        outputs[i % len(search.prompts)] = new
    return search.record(ORIGINAL, outputs)


def compare(model, search):
    """Whether all sides gave the same tokens in fp32; prints the result.

    Outputs whose scores agree to a thousandth in the model as attached differ by rounding, which depends on a batch's
    shape: greedy ones are compared where they diverge, those of beams as a whole. Anything else is an error.
    """
    ours, same = search.outputs["ours, fp32"], True
    for side in [side for side in search.outputs if side.endswith("fp32") and side != "ours, fp32"]:
        outputs = search.outputs[side]
        differ = [i for i, row in outputs.items() if row != ours[i]]
        print(f"outputs{search.name}, fp32: {len(outputs) - len(differ)} of {len(outputs)} equal to those of {side}")
        for i in differ:
            at, gap = difference(model, search.prompts[i], ours[i], outputs[i], search.beams > 1)
            is_tie = gap < 1e-3
            same &= is_tie
            print(f"  prompt {i} differs from token {at} on, where the two score {gap:.1e} apart: "
                  f"{'a tie but for rounding' if is_tie else 'an ERROR'}")  # fmt: skip
    lengths = [min(len(row) + 1, search.max_length) for row in ours.values()]
    print(f"our outputs{search.name}: {min(lengths)} to {max(lengths)} tokens, {sum(lengths) / len(lengths):.1f} on "
          f"average, {len({token for row in ours.values() for token in row})} different ones")  # fmt: skip
    return same


def compare_bf16(model, prepared_model, search):
    """Print how many greedy outputs differ in bf16, and how many do if only plain generate's batches differ.

    Both are due to rounding if, where outputs diverge, the two tokens' scores are as close as bf16's error.
    """
    size = max(1, search.batch_size * 3 // 4)
    regrouped = replace(search, batch_size=size, outputs={})
    plain(model, regrouped, "bf16")
    expected = search.outputs["plain generate, bf16"]
    sides = {"ours": search.outputs["ours, bf16"],
             f"plain generate in batches of {size}": regrouped.outputs["plain generate, bf16"]}  # fmt: skip
    for side, outputs in sides.items():
        differ = [i for i, row in outputs.items() if row != expected[i]]
        gaps = [difference(model, search.prompts[i], outputs[i], expected[i])[1] for i in differ]
        print(f"outputs, bf16: {len(outputs) - len(gaps)} of {len(outputs)} of {side} equal to those of plain generate "
              f"in batches of {search.batch_size}")  # fmt: skip
        if gaps:
            print(f"  where they part, the tokens score {statistics.median(gaps):.2g} apart in fp32, {max(gaps):.2g} "
                  "at most")  # fmt: skip
    errors = [score_errors(model, other, search, expected) for other in (model, prepared_model)]
    plain_error, our_error = (f"{mean:.2g}, {largest:.2g} at most" for mean, largest in errors)
    print(f"scores in bf16 are off by {plain_error}, in the model as attached; by {our_error}, in ours")


def score_errors(model, other, search, outputs, count=16):
    """(mean, largest) difference of the top tokens' scores between `other` in bf16 and `model` in fp32."""
    import torch
    from versatile.utils.devices import autocast

    errors = []
    for (ids, types), output in list(zip(search.prompts, outputs.values()))[:count]:
        exact = scores(model, ids, types, output)[:-1]
        with autocast(model.device, torch.bfloat16):
            rounded = scores(other, ids, types, output)[:-1]
        chosen = torch.tensor(output, device=exact.device)[:, None]
        errors.append((rounded.float().gather(1, chosen) - exact.gather(1, chosen)).abs())
    errors = torch.cat(errors)
    return float(errors.mean()), float(errors.max())


def difference(model, prompt, a, b, whole=False):
    """(where two outputs diverge, how far apart the two tokens score there, or with `whole` all from there on)."""
    at = next(k for k, (x, y) in enumerate(zip([*a, EOS], [*b, EOS])) if x != y)
    if len(a) != len(b):
        return at, float("inf")
    gaps = log_likelihoods(model, prompt, a) - log_likelihoods(model, prompt, b)
    return at, abs(float(gaps[at:].sum() if whole else gaps[at]))


def log_likelihoods(model, prompt, output):
    """Log-likelihoods of an output's tokens, [tokens]; the end token is excluded."""
    import torch

    along = scores(model, *prompt, output)[:-1]
    along[:, EOS] = -torch.inf
    return along.log_softmax(-1).gather(1, torch.tensor(output, device=along.device)[:, None])[:, 0]


def scores(model, ids, types, new):
    """The scores of the first new token and of the next after each, from one full forward pass over one row."""
    import torch

    if model.config.is_encoder_decoder:
        tensors = torch.tensor([[ids, types, [1] * len(ids)]], device=model.device).unbind(1)
        inputs, before = model.decoding_inputs(dict(zip(("input_ids", "token_type_ids", "attention_mask"), tensors)))
        tokens = torch.cat([inputs["decoder_input_ids"], torch.tensor([new], device=model.device).long()], dim=1)
        inputs |= dict(decoder_input_ids=tokens, decoder_attention_mask=torch.ones_like(tokens))
        with torch.no_grad():
            return model(**inputs).logits[0, before - 1 :]
    prompt_length = len(ids)
    ids = torch.tensor([ids + new], device=model.device)
    types = torch.tensor([types + types[-1:] * len(new)], device=model.device)
    positions = torch.arange(ids.shape[1], device=model.device)[None]
    with torch.no_grad():
        return model(input_ids=ids, token_type_ids=types, position_ids=positions).logits[0, prompt_length - 1 :]


if __name__ == "__main__":
    sys.exit(main())
