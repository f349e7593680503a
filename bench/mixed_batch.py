#!/usr/bin/env python
"""The cost of several tasks in one model: batches that mix five tasks against batches of one, and what a task adds.

  one CPU:
    python bench/mixed_batch.py --device cpu
  one GPU:
    python bench/mixed_batch.py --device cuda --turn_steps 20
  a small model, where the many small products of five adapters weigh more:
    python bench/mixed_batch.py --width 256 --layers 6 --repeats 5 --turn_steps 3

The default shape is GPT-2's own; on two cores it takes four minutes. One model holds the five published tasks with
their published bottlenecks. Training is train_vlm.py's: the real Trainer on batches that mix all tasks in equal
shares, against batches of the same tokens and shapes that all belong to one task. Bottlenecks differ, so the
single side is the mean time of the five. Decoding is evaluate_vlm.py's, with prompts of all tasks against the same
prompts of one, every output as long as allowed. A directory's size is that of adapter_model.safetensors and
adapter_config.json, against the bytes of the trained tensors; loading is adapters.checkpoint.load_onto, onto a
backbone already in memory.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import common

BOTTLENECKS = {"mt": 300, "summarization": 100, "dialogue": 100, "qa": 300, "nlg": 10}
TASKS = list(BOTTLENECKS)
MIXED = "five tasks mixed"
SLOWER, LARGER, SECONDS = 1.15, 1.02, 0.3
# bos, eos, a source and a target marker.
EACH = 4
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def parse(argv=None):
    from versatile.utils import flags, settings

    p = common.parser(__doc__)
    common.add_model_flags(p, bottleneck=False)
    g = p.add_argument_group("data and steps")
    g.add_argument("--mean_length", type=flags.positive, default=54, help="mean tokens per training example")
    g.add_argument("--train_batch_size", type=flags.positive, default=10, help="examples per micro-batch; 5, 10, …")
    g.add_argument("--gradient_accumulation_steps", type=flags.positive, default=4, help="micro-batches per step")
    g.add_argument("--turn_steps", type=flags.positive, default=1, help="optimizer steps per turn and side")
    g.add_argument("--prompts", type=flags.positive, default=30, help="prompts per turn and side, in one batch")
    g.add_argument("--prompt_length", type=flags.positive, default=28, help="mean tokens per prompt")
    g.add_argument("--max_length", type=flags.positive, default=40, help="tokens of every output")
    settings.add_precision(p, device=False)
    p.set_defaults(width=768, layers=12, repeats=3)
    args = p.parse_args(argv)
    if args.train_batch_size % len(TASKS):
        p.error(f"--train_batch_size {args.train_batch_size}: expected a multiple of {len(TASKS)}, one share per task")
    if args.quick:
        args.width, args.layers, args.positions, args.mean_length, args.prompts = 64, 1, 64, 16, 10
        args.prompt_length, args.max_length, args.repeats, args.turn_steps = 10, 4, 2, 1
    return args


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    from versatile.utils import devices

    dtype = devices.precision(args, device)
    training, decoding = Training(args, dtype), Decoding(args, device, dtype)
    print(f"GPT-2 {args.width} wide, {args.layers} layers; bottlenecks "
          f"{', '.join(f'{task} {size}' for task, size in BOTTLENECKS.items())}; {str(dtype)[6:]}; training: "
          f"{args.gradient_accumulation_steps} x {args.train_batch_size} rows of {args.mean_length} tokens on average; "
          f"decoding: {args.prompts} prompts, {args.max_length} tokens each", flush=True)  # fmt: skip
    steps = common.interleaved({side: training.side(side) for side in [MIXED, *TASKS]}, args.repeats, device)
    outputs = common.interleaved({side: decoding.side(side) for side in [MIXED, *TASKS]}, args.repeats, device)
    rows = [[side, 1000 / statistics.median(steps[side]), statistics.median(outputs[side])] for side in [MIXED, *TASKS]]
    print(common.table(["", "ms a training step", "tokens/s decoded"], rows))
    with tempfile.TemporaryDirectory() as folder:
        sizes = {task: size(args, task, Path(folder) / task) for task in TASKS}
        seconds = loading(args, device, folder)
    rows = [[task, *sizes[task].values(), statistics.median(seconds[task])] for task in TASKS]
    print(common.table(["", "directory, bytes", "trained tensors, bytes", "tokenizer, bytes", "s to load"], rows))
    results = dict(training=slowdown(steps), decoding=slowdown(outputs))
    for what, slowdowns in results.items():
        middle = statistics.median(slowdowns)
        verdict(f"{what}, a mixed batch's time over a single task's:", middle, slowdowns, SLOWER, "x")
    ratios = [s["directory"] / s["trained"] for s in sizes.values()]
    total = sum(s["directory"] for s in sizes.values()) / sum(s["trained"] for s in sizes.values())
    verdict("bytes of the five directories over the trained tensors':", total, ratios, LARGER, "x", over="tasks")
    loads = [t for times in seconds.values() for t in times]
    verdict("loading a task onto a backbone in memory:", statistics.median(loads), loads, SECONDS, " s", over="loads")
    common.save(args, steps_per_second=steps, tokens_per_second=outputs, bytes=sizes, load_seconds=seconds, **results)


def slowdown(rates):
    """For each turn: the mixed side's time over the mean of the single tasks' times."""
    turns = zip(rates[MIXED], *(rates[task] for task in TASKS))
    return [1 / mixed / statistics.mean(1 / single for single in singles) for mixed, *singles in turns]


def verdict(what, middle, values, target, unit, over="turns"):
    common.record(what, middle, min(values), max(values), lower=True)
    reached = "reached" if middle <= target else "NOT reached"
    print(f"ratio: {what} {middle:.3f}{unit} ({min(values):.3f} to {max(values):.3f} over the {over}; "
          f"target at most {target:g}{unit} {reached})")  # fmt: skip


def attached(args, tasks):
    """(model of these tasks, its tokenizer): the same seed gives the same backbone."""
    import torch
    from versatile.adapters import attach as adapting
    from versatile.adapters.backbones import loading as backbones

    model, tokenizer = common.gpt2(args), common.word_tokenizer()
    model.backbone_fingerprint, model.random_init_seed = backbones.fingerprint(model.state_dict()), None
    model.config._name_or_path = "made-up"
    torch.manual_seed(args.seed + 1)
    markers = {task: [f"<{task}{i}>" for i in range(EACH)] for task in tasks}
    return adapting.attach(model, tokenizer, markers, {task: BOTTLENECKS[task] for task in tasks}), tokenizer


def splits(args, count, mean, longest):
    """{task: made-up examples}: the same tokens for every task except for its markers."""
    lengths = common.lengths(count, mean, longest, args.seed)
    return {task: common.MadeUpSplit(lengths, common.VOCABULARY + EACH * i, args.seed) for i, task in enumerate(TASKS)}


class Training:
    """The Trainer of train_vlm.py on batches composed by hand."""

    def __init__(self, args, dtype):
        import torch
        from versatile.adapters import attach as adapting
        from versatile.data.batching import Batches
        from versatile.training.objectives import CrossEntropy
        from versatile.training.optimizers import build_adamw
        from versatile.training.settings import Settings
        from versatile.training.trainer import Trainer
        from versatile.utils import devices

        self.args, self.step = args, 0
        model, tokenizer = attached(args, TASKS)
        self.rows = args.train_batch_size * args.gradient_accumulation_steps
        data = splits(args, self.rows * args.turn_steps, args.mean_length, min(args.positions, 2 * args.mean_length))
        self.batches = Batches(data, {task: i for i, task in enumerate(TASKS)}, tokenizer.pad_token_id, args.positions,
                               shuffle=True, seed=args.seed, batch_size=args.train_batch_size)  # fmt: skip
        if dtype != torch.float32:
            adapting.halve_frozen(model, dtype)
        settings = Settings(n_epochs=1000, dtype=dtype, gradient_accumulation_steps=args.gradient_accumulation_steps)
        self.trainer = Trainer(model, self.batches, CrossEntropy(), build_adamw(model, 1e-4), lambda step: 1e-4,
                               run=None, settings=settings)  # fmt: skip
        devices.prepare_for_device(model, self.trainer.device, dtype)

    def side(self, task):
        """The work of a turn: some optimizer steps on the same examples, of one task or of all in equal shares."""
        import numpy as np

        size, starts = self.args.train_batch_size, self.batches.starts
        share = size // len(TASKS)
        windows = []
        for step in range(self.args.turn_steps):
            window = []
            for first in range(step * self.rows, (step + 1) * self.rows, size):
                owners = [i // share if task == MIXED else TASKS.index(task) for i in range(size)]
                chosen = np.array([starts[owner] + first + i for i, owner in enumerate(owners)])
                window.append((self.batches.collate(chosen), int(self.batches.labels[chosen].sum())))
            windows.append(window)

        def turn(number):
            for window in windows:
                self.step += 1
                self.trainer.step(SimpleNamespace(state=SimpleNamespace(iteration=self.step)), window)
            return len(windows)

        return turn


class Decoding:
    """The decoding of evaluate_vlm.py."""

    def __init__(self, args, device, dtype):
        from versatile.adapters import inference

        self.args, self.dtype = args, dtype
        self.model, self.tokenizer = attached(args, TASKS)
        inference.prepare_for_inference(self.model, device, dtype)
        longest = min(2 * args.prompt_length, args.positions - args.max_length)
        self.splits = splits(args, args.prompts, args.prompt_length, longest)

    def side(self, task):
        """The work of a turn: the same prompts continued to the same length, for one task or all in equal shares."""
        from versatile.training import decoding

        prompts = []
        for i in range(self.args.prompts):
            owner = i % len(TASKS) if task == MIXED else TASKS.index(task)
            example = self.splits[TASKS[owner]][i]
            end = common.VOCABULARY + EACH * owner + 2
            prompts.append(decoding.Prompt(example.ids[:-1].tolist(), example.types[:-1].tolist(), owner, end))
        length = self.args.max_length
        decoding_options = decoding.Decoding(max_length=length, min_length=length, batch_size=self.args.prompts)

        def turn(number):
            outputs = decoding.decode(self.model, self.tokenizer, prompts, decoding_options, dtype=self.dtype)
            assert all(len(ids) == length for ids in outputs)
            return length * len(outputs)

        return turn


def size(args, task, folder):
    """Save a task's adapter; bytes of its directory without the tokenizer, of its trained tensors, of the tokenizer."""
    from versatile.adapters import attach as adapting
    from versatile.adapters import checkpoint

    model, tokenizer = attached(args, [task])
    checkpoint.save_checkpoint(model, tokenizer, folder)
    files = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    own = sum(files.pop(name) for name in ADAPTER_FILES)
    trained = sum(p.numel() * p.element_size() for p in adapting.trainable(model).values())
    return dict(directory=own, trained=trained, tokenizer=sum(files.values()))


def loading(args, device, folder):
    """{task: seconds of each turn} to load its directory onto a backbone in memory."""
    from versatile.adapters import checkpoint

    seconds = {task: [] for task in TASKS}
    for turn in range(-1, args.repeats):
        model, tokenizer = attached(args, [])
        model.to(device).eval()
        for task in TASKS:
            began = time.perf_counter()
            checkpoint.load_onto(model, tokenizer, Path(folder) / task)
            common.wait(device)
            if turn >= 0:
                seconds[task].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
