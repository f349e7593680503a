#!/usr/bin/env python
"""Training speed against the libraries `adapters` and `peft`: the same GPT-2 shape, data and number of parameters.

  one CPU:
    python bench/peers.py --device cpu
    python bench/peers.py --device cpu --width 768 --layers 12 --turn_steps 2
  one GPU:
    python bench/peers.py --device cuda --turn_steps 20

Each side is a process of its own, which waits during the others' turns. The libraries need a different transformers
from the toolkit's: the first run makes an environment for them in --environment (a few downloads, about 15 seconds),
on top of the running one's packages. Ours is the path of train.py. Theirs is the loop that both document: a model of
transformers, batches padded to their longest row, AdamW (fused), clipping, autocast in bf16, a loss on the target's
tokens. `adapters` trains a bottleneck adapter of the same size after every block, `peft` LoRA on the fused projection
of queries, keys and values with as many parameters. Dropout is GPT-2's 0.1 on all sides. Only real tokens count, not
padding.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import common

VERSIONS = ("adapters==1.3.0", "peft==0.21.0")
SIDES = ("ours", "adapters", "peft")
KINDS = ("fp32", "bf16")


def parse(argv=None):
    p = common.parser(__doc__)
    common.add_model_flags(p)
    g = common.add_training_flags(p, 6)
    g.add_argument("--environment", type=Path, default=None, metavar="DIR",
                   help="environment of the libraries; made if missing (default: in the toolkit's cache)")  # fmt: skip
    g.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="sides to measure; always ours")
    return common.parse_training(p, argv)


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    args.sides = ["ours", *(side for side in args.sides if side != "ours")]
    pythons = dict.fromkeys(args.sides, sys.executable)
    if len(args.sides) > 1:
        pythons |= dict.fromkeys(args.sides[1:], make_environment(args.environment))
    workers = {f"{side}, {kind}": common.Worker(__file__, (side, kind), args, pythons[side])
               for side in args.sides for kind in KINDS}  # fmt: skip
    try:
        for worker in workers.values():
            worker.answer()
        rates = common.interleaved({name: worker.turn for name, worker in workers.items()}, args.repeats, device)
        about = {name: worker.close() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.process.kill()
    rows = []
    for name, values in rates.items():
        side, kind = name.split(", ")
        middle, low, high = common.ratio(rates, f"ours, {kind}", name)
        rows.append([name, statistics.median(values), about[name]["parameters"], about[name]["memory_mb"],
                     f"{middle:.2f}x", f"{low:.2f}-{high:.2f}"])  # fmt: skip
    print(common.table(["", "tokens/s", "trained", "peak MB", "ours is", "spread"], rows))
    small = args.width < 512
    targets = {"fp32": 2.0 if small else 1.5, "bf16": 2.5 if small else 1.9}
    for side in args.sides[1:] or ["ours"]:
        for kind in KINDS:
            print(common.verdict(f"our training over {side}, {kind}", rates, f"ours, {kind}", f"{side}, {kind}",
                                 targets[kind] if side != "ours" else 1))  # fmt: skip
    common.save(args, rates=rates, about=about)


def make_environment(folder):
    """The python of an environment with the libraries, made if missing, on top of this one's packages."""
    from versatile.utils.files import cache_root

    folder = folder or cache_root() / "bench_peers"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").is_file():
        print(f"making an environment for {', '.join(VERSIONS)} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        paths = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own = subprocess.run([python, "-c", paths], check=True, capture_output=True, text=True).stdout.strip()
        # After its own packages, which take precedence.
        above = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (Path(own) / "zz_above.pth").write_text("\n".join(above) + "\n")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *VERSIONS]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: pip could not install {', '.join(VERSIONS)}: {done.stderr.strip().splitlines()[-1]}\n"
                     "  remedy:   connect to a package index, or leave them out: --sides ours")  # fmt: skip
        (folder / "complete").touch()
    return str(python)


# --- in the sides' processes -----------------------------------------------------------------------------


def work(name, kind, flags):
    """Answer each line of the input with a turn."""
    args = common.worker_flags(flags)
    import torch

    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    lengths = common.examples(args)
    side = common.Ours(args, lengths, dtype) if name == "ours" else Theirs(args, name, lengths, dtype)
    common.answer_turns(side, parameters=lambda: sum(p.numel() for p in side.parameters))


class Theirs:
    """A library's model in the loop from its documentation."""

    def __init__(self, args, library, lengths, dtype):
        import numpy as np
        import torch

        self.args, self.dtype, self.lengths, self.count = args, dtype, lengths, 0
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(args.seed)
        model = common.gpt2(args)
        model.resize_token_embeddings(common.VOCABULARY + 1 + common.MARKERS, mean_resizing=False)
        self.model = {"adapters": with_bottleneck, "peft": with_lora}[library](model, args).to(self.device).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=args.lr, weight_decay=0.0, fused=True)
        self.split = common.MadeUpSplit(lengths, common.VOCABULARY, args.seed)
        self.order = np.random.default_rng(args.seed).permutation(len(lengths))

    def turn(self, turn):
        """Some optimizer steps; returns the number of real tokens in them."""
        return sum(self.step() for _ in range(self.args.turn_steps))

    def step(self):
        import torch

        tokens, accumulation = 0, self.args.gradient_accumulation_steps
        for _ in range(accumulation):
            batch = {name: value.to(self.device) for name, value in self.batch().items()}
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.model(**batch).loss / accumulation
            loss.backward()
            tokens += int(batch["attention_mask"].sum())
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return tokens

    def batch(self):
        """The next rows of the shuffled data set, padded to the longest of them."""
        import torch

        size = self.args.train_batch_size
        chosen = [self.order[(self.count + i) % len(self.order)] for i in range(size)]
        self.count += size
        rows = [self.split[i] for i in chosen]
        longest = max(len(row.ids) for row in rows)
        ids, mask = torch.full((size, longest), common.VOCABULARY), torch.zeros(size, longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (own, prompt) in enumerate((example.ids, example.prompt_length) for example in rows):
            ids[row, : len(own)], mask[row, : len(own)] = torch.from_numpy(own), 1
            labels[row, prompt : len(own)] = torch.from_numpy(own[prompt:])
        return dict(input_ids=ids, attention_mask=mask, labels=labels)


def with_bottleneck(model, args):
    """A bottleneck adapter after every block's feed-forward layer, of the same size as ours."""
    # The library, not the toolkit's folder of that name.
    paths = list(sys.path)
    sys.path[:] = [path for path in paths if Path(path or ".").resolve() != common.ROOT]
    import adapters

    sys.path[:] = paths
    adapters.init(model)
    config = adapters.SeqBnConfig(reduction_factor=args.width / args.adapter_bottleneck, non_linearity="relu")
    model.add_adapter(common.TASK, config=config)
    model.train_adapter(common.TASK)
    return model


def with_lora(model, args):
    """LoRA with as many parameters: r · (width + 3 · width) per block equals 2 · width · bottleneck."""
    import peft

    rank = max(1, args.adapter_bottleneck // 2)
    return peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=["c_attn"], fan_in_fan_out=True,
                                                      task_type="CAUSAL_LM"))  # fmt: skip


if __name__ == "__main__":
    sys.exit(work(*sys.argv[2:]) if sys.argv[1:2] == ["--worker"] else main())
