"""Shared parts of the benchmarks: flags, the hardware line, interleaved timing, tables, made-up models and data.

Both sides of a comparison run in one process, in turn, again and again: whatever else loads the machine
affects both. A ratio is the median of the turns' ratios.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
VOCABULARY, MARKERS = 8192, 29
TASK = "bench"
# {what: its ratio} of this run's verdicts, for --json; see `record`.
RATIOS = {}
# The clock of `interleaved`; see --processor_time.
CLOCK = [time.perf_counter]


def parser(doc, repeats=5, json_only=False):
    """A parser with the flags common to all benchmarks."""
    from versatile.utils import flags

    p = flags.build_parser(doc)
    g = p.add_argument_group("how to measure")
    g.add_argument("--quick", action="store_true", help="a smoke test of a few seconds; its numbers mean nothing")
    g.add_argument("--json", metavar="FILE", help="also save the numbers here")
    if not json_only:
        g.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
        g.add_argument("--threads", type=flags.positive, help="torch's threads on a CPU (default: torch's choice)")
        g.add_argument("--processor_time", action="store_true",
                       help="measure this process's processor time: for a busy CPU, with --threads 1")  # fmt: skip
        g.add_argument("--repeats", type=flags.positive, default=repeats, help="turns of every side")
        g.add_argument("--seed", type=flags.seed, default=0, help="random seed of the made-up weights and data")
    return p


def start(args):
    """Choose device and threads and print the hardware line; returns the torch device."""
    if args.device == "cpu":
        # The training loop uses a GPU whenever it sees one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    from versatile.utils.devices import quiet_libraries

    quiet_libraries()
    CLOCK.append(time.process_time if args.processor_time else time.perf_counter)
    if args.threads:
        torch.set_num_threads(args.threads)
    has_gpu = torch.cuda.is_available()
    if args.device == "cuda" and not has_gpu:
        sys.exit("error: --device cuda: torch finds no GPU\n  remedy:   use --device cpu")
    device = torch.device("cuda:0" if has_gpu else "cpu")
    print(hardware(device), flush=True)
    torch.manual_seed(args.seed)
    return device


def hardware(device):
    """One line: processor, threads, versions, and the machine's load from other programs."""
    import torch
    import transformers

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    names = [name for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ]
    waiting = ", ".join(f"{name}={os.environ[name]}" for name in names)
    gpu = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    return (f"hardware: {gpu}{name}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
            f"{waiting}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}, load {os.getloadavg()[0]:.1f} at the start")  # fmt: skip


def interleaved(sides, repeats, device, warm=1):
    """Time every side in turn.

    Args:
        sides: {name: function of the turn's number that does some work and returns its number of units}.
        repeats: turns that count.
        device: if a GPU, it is synchronized.
        warm: warm-up turns, which do not count (negative numbers).

    Returns:
        {name: [units per second of each turn]}
    """
    rates = {name: [] for name in sides}
    for turn in range(-warm, repeats):
        for name, work in sides.items():
            wait(device)
            began = CLOCK[-1]()
            units = work(turn)
            wait(device)
            if turn >= 0:
                rates[name].append(units / (CLOCK[-1]() - began))
    return rates


def wait(device):
    """Wait until the GPU has finished its work."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def ratio(rates, ours, theirs):
    """(median, lowest, highest) over the turns of how many times faster `ours` is."""
    ratios = [a / b for a, b in zip(rates[ours], rates[theirs])]
    return statistics.median(ratios), min(ratios), max(ratios)


def verdict(what, rates, ours, theirs, target):
    """The line with the result: the ratio, its spread and whether the target is reached."""
    middle, low, high = ratio(rates, ours, theirs)
    record(what, middle, low, high)
    reached = "reached" if middle >= target else "NOT reached"
    return f"ratio: {what} {middle:.2f}x ({low:.2f} to {high:.2f} over the turns; target {target:g}x {reached})"


def record(what, median, low, high, lower=False):
    """Keep a ratio for --json and bench/run.py; `lower`: lower is better."""
    RATIOS[what] = dict(median=median, low=low, high=high, lower=lower)


def table(head, rows):
    """Rows of texts and numbers as aligned text, the first column left-aligned."""
    cells = [[_cell(c) for c in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value):
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def save(args, **numbers):
    """Write --json, if given."""
    if args.json:
        flags = {k: v for k, v in vars(args).items() if k != "json"}
        text = json.dumps(dict(flags=flags, ratios=RATIOS, **numbers), indent=2, default=str) + "\n"
        Path(args.json).write_text(text, encoding="utf-8")


def default_allocator():
    """Undo what `devices.prepare_for_device` sets in glibc, so that a plain loop runs as in a process of its own.

    By default glibc raises its threshold for separate mappings to the largest block freed so far, at most
    32 MB, and trims at twice that. Any setting ends this, so the values that it arrives at are set.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4
    mallopt(m_mmap_max, 65536)
    mallopt(m_mmap_threshold, 32 * 2**20)
    mallopt(m_trim_threshold, 64 * 2**20)


def gpt2(args, **more):
    """A random GPT-2 with a base vocabulary of 8192 and `--width`, `--layers`, `--positions`."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(args.seed)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=args.positions, n_embd=args.width, n_layer=args.layers,
                        n_head=max(1, args.width // 64), bos_token_id=0, eos_token_id=0, **more)  # fmt: skip
    return GPT2LMHeadModel(config)


def smollm2(args, **more):
    """A random model of SmolLM2's blocks with a base vocabulary of 8192; SmolLM2-135M is 576 wide with 30 layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(args.seed)
    heads = args.width // 64 or 1
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=args.width, num_hidden_layers=args.layers,
                         num_attention_heads=heads, num_key_value_heads=max(1, heads // 3), head_dim=64,
                         intermediate_size=args.width * 8 // 3, max_position_embeddings=args.positions, bos_token_id=0,
                         eos_token_id=0, tie_word_embeddings=True, **more)  # fmt: skip
    return LlamaForCausalLM(config)


def t5(args, **more):
    """A random T5 in T5-small's proportions with a base vocabulary of 8192; T5-small is 512 wide with 6 layers."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(args.seed)
    shape = dict(vocab_size=VOCABULARY, d_model=args.width, d_kv=64, d_ff=4 * args.width, num_layers=args.layers,
                 num_heads=max(1, args.width // 64), decoder_start_token_id=0)  # fmt: skip
    return T5ForConditionalGeneration(T5Config(**shape | more))


def add_model_flags(p, bottleneck=True):
    """The flags that `gpt2` and, with `bottleneck`, `attached` read."""
    from versatile.utils import flags

    g = p.add_argument_group("the model (random weights)")
    g.add_argument("--width", type=flags.positive, default=256, help="hidden size; 64 for each attention head")
    g.add_argument("--layers", type=flags.positive, default=6, help="blocks")
    g.add_argument("--positions", type=flags.positive, default=256, help="maximum sequence length")
    if bottleneck:
        g.add_argument("--adapter_bottleneck", type=flags.positive, default=64, help="the adapters' bottleneck size")


def add_training_flags(p, turn_steps, what="optimizer steps of a turn"):
    """The flags that `Ours` reads in addition to those of the model, and the other sides of training."""
    from versatile.utils import flags

    g = p.add_argument_group("data and steps")
    g.add_argument("--examples", type=flags.positive, default=4000, help="examples in the made-up data set")
    g.add_argument("--mean_length", type=flags.positive, default=54, help="mean tokens per example")
    g.add_argument("--train_batch_size", type=flags.positive, default=8, help="examples per micro-batch")
    g.add_argument("--gradient_accumulation_steps", type=flags.positive, default=4, help="micro-batches per step")
    g.add_argument("--turn_steps", type=flags.positive, default=turn_steps, help=what)
    g.add_argument("--lr", type=flags.rate, default=1e-3, help="learning rate of all sides")
    return g


def parse_training(p, argv):
    """The flags of a training benchmark; with --quick those of a smoke test."""
    args = p.parse_args(argv)
    if args.quick:
        args.width, args.layers, args.positions, args.examples = 64, 1, 64, 64
        args.mean_length, args.repeats, args.turn_steps, args.gradient_accumulation_steps = 16, 2, 2, 2
    return args


def examples(args):
    """The lengths of the made-up data set of `add_training_flags`."""
    return lengths(args.examples, args.mean_length, args.positions, args.seed)


def attached(args, full=False, **more):
    """(model with adapters and 29 task embeddings, or trained as a whole; its tokenizer): the same seed gives the same
    weights."""
    import torch
    from versatile.adapters import attach as adapting

    build = next((build for build in (smollm2, t5) if getattr(args, build.__name__, False)), gpt2)
    model, tokenizer = build(args, **more), word_tokenizer()
    torch.manual_seed(args.seed + 1)
    markers = {TASK: [f"<marker{i}>" for i in range(MARKERS)]}
    return adapting.attach(model, tokenizer, markers, None if full else {TASK: args.adapter_bottleneck}), tokenizer


def word_tokenizer():
    """A fast tokenizer of 8192 made-up words; nothing is ever tokenised with it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token="w0", eos_token="w0")


def lengths(count, mean, longest, seed):
    """`count` lengths like those of E2E: a gamma distribution with a third of its mean as standard deviation,
    including the longest."""
    import numpy as np

    drawn = np.random.default_rng(seed).gamma(9.0, mean / 9.0, count).round().astype(np.int64)
    drawn = drawn.clip(8, longest)
    drawn[0] = longest
    return drawn


class MadeUpSplit:
    """Random examples with the interface of `data.token_cache.EncodedSplit`.

    Args:
        lengths: [n] tokens of each example, including bos and eos; half of each is prompt.
        first: id of the first added token; the markers come after it and `<pad>`.
        seed: random seed of the ids.
    """

    def __init__(self, lengths, first, seed):
        import numpy as np

        self.lengths, self.prompt_lengths = lengths, lengths // 2
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.ids = np.random.default_rng(seed).integers(1, VOCABULARY, self.starts[-1])
        self.types = np.full(self.starts[-1], first + 3)
        for begin, prompt, end in zip(self.starts, self.prompt_lengths, self.starts[1:]):
            # bos, a source and a target marker, eos, as in a task's sequences.
            self.ids[begin] = self.types[begin] = first + 1
            self.ids[begin + 1], self.ids[begin + prompt - 1], self.ids[end - 1] = first + 3, first + 4, first + 2
            self.types[begin + prompt - 1 : end] = first + 4

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        """One `EncodedExample`."""
        from versatile.data.encoders.base import EncodedExample

        span = slice(self.starts[index], self.starts[index + 1])
        return EncodedExample(self.ids[span], self.types[span], int(self.prompt_lengths[index]))


class Ours:
    """The Trainer of train.py without its run directory, set up in the same way.

    Args:
        args: of `add_training_flags` and `add_model_flags`.
        lengths: of the made-up data set's examples.
        dtype: precision of the matrix products.
        full: train the whole model instead of adapters.
        sharded: shard the model across the processes (--fsdp).
    """

    def __init__(self, args, lengths, dtype, full=False, sharded=False):
        import ignite.distributed as idist
        import torch
        from versatile.adapters import attach as adapting
        from versatile.data.batching import Batches
        from versatile.training.objectives import CrossEntropy
        from versatile.training.optimizers import build_adamw
        from versatile.training.schedules import linear_decay
        from versatile.training.settings import Settings, StepPlan
        from versatile.training.sharding import shard_model
        from versatile.training.trainer import Trainer
        from versatile.utils import devices

        self.args = args
        self.model, tokenizer = attached(args, full)
        split = MadeUpSplit(lengths, VOCABULARY, args.seed)
        batches = Batches({TASK: split}, {TASK: 0}, tokenizer.pad_token_id, args.positions,
                          rank=idist.get_rank(), world=idist.get_world_size(), shuffle=True, seed=args.seed,
                          batch_size=args.train_batch_size,
                          accumulation=args.gradient_accumulation_steps)  # fmt: skip
        if dtype != torch.float32:
            adapting.halve_frozen(self.model, dtype)
        self.prepare = lambda: devices.prepare_for_device(self.model, idist.device(), dtype)
        self.prepare()
        if sharded:
            shard_model(self.model)
            self.prepare = lambda: None
        settings = Settings(n_epochs=1000, dtype=dtype, gradient_accumulation_steps=args.gradient_accumulation_steps)
        total_steps = StepPlan(batches, settings).total_steps
        self.trainer = Trainer(self.model, batches, CrossEntropy(), build_adamw(self.model, args.lr),
                               linear_decay(args.lr, total_steps), run=None, settings=settings)  # fmt: skip
        self.parameters = self.trainer.params
        self.windows, self.step = self.trainer.windows(0), 0
        self.flops_per_token = needed_flops(args, self.model, batches)

    def turn(self, turn):
        """Some optimizer steps; returns the number of real tokens in them."""
        self.prepare()
        before = self.trainer.tokens
        for _ in range(self.args.turn_steps):
            self.step += 1
            engine = SimpleNamespace(state=SimpleNamespace(iteration=self.step))
            self.trainer.step(engine, next(self.windows))
        self.trainer.read_steps()
        return self.trainer.tokens - before


def needed_flops(args, model, batches):
    """Operations of the indispensable matrix products of training, per real token.

    Frozen matrices need a forward product and one for the activations' gradient, adapters a third for their own
    gradient; the head is needed at labels only. Attention's own products, 2 to 4 % at these lengths, are left out.
    """
    frozen, adapters, head = matrix_sizes(args, model)
    labels = batches.labels.sum() / batches.lengths.sum()
    return float(4 * frozen + 6 * adapters + 4 * head * labels)


def matrix_sizes(args, model):
    """Parameters in the matrices of (the blocks, all blocks' adapters, the head)."""
    from versatile.adapters.backbones.family import backbone_of

    blocks = backbone_of(model.config).blocks(model)
    frozen = sum(p.numel() for block in blocks for p in block.parameters() if p.dim() == 2)
    return frozen, args.layers * 2 * args.width * args.adapter_bottleneck, args.width * (VOCABULARY + 1 + MARKERS)


def product_rows(args):
    """Rows of the product that measures the peak: a micro-batch's tokens."""
    return args.train_batch_size * args.mean_length


def product(args, device, dtype):
    """A turn of plain matrix products of the model's own shape; returns their number of operations."""
    import torch

    a = torch.randn(product_rows(args), args.width, device=device, dtype=dtype)
    b = torch.randn(args.width, 4 * args.width, device=device, dtype=dtype)
    for _ in range(1 if args.quick else 400):
        a @ b
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] * (1 if args.quick else 400)


class Worker:
    """A side in a process of its own: it reads a line per turn and answers with the turn's tokens.

    Args:
        script: run as `script --worker NAME.. FLAGS`; its `main` then calls `worker_flags` and `answer_turns`.
        names: identify the side.
        args: the flags to pass on.
        python: the interpreter that runs it.
        environment: additional variables.
    """

    def __init__(self, script, names, args, python=sys.executable, environment=()):
        command = [python, script, "--worker", *names, json.dumps(vars(args), default=str)]
        fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.name = ", ".join(names)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=os.environ | fixed | dict(environment))  # fmt: skip

    def ask(self):
        """Start its turn."""
        self.process.stdin.write("turn\n")
        self.process.stdin.flush()

    def turn(self, turn):
        """Some optimizer steps; returns the number of real tokens in them."""
        self.ask()
        return self.answer()["tokens"]

    def close(self):
        """End the process; returns its report on itself."""
        self.process.stdin.close()
        return self.answer()

    def answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"error: the process of {self.name} ended; its output is above")


def worker_flags(text):
    """In a side's process: the flags passed on by `Worker`."""
    import torch

    args = argparse.Namespace(**json.loads(text))
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def answer_turns(side, **about):
    """In a side's process: a turn for each line of the input; at the end memory and further reports on the side.

    Args:
        side: its `turn` returns the number of real tokens in it.
        about: {name: function that returns the value to report}.
    """
    import torch
    from versatile.utils.devices import peak_memory_mb

    cuda = torch.cuda.is_available()
    print("{}", flush=True)
    for turn, _ in enumerate(sys.stdin):
        tokens = side.turn(turn)
        if cuda:
            torch.cuda.synchronize()
        print(json.dumps(dict(tokens=tokens)), flush=True)
    memory = dict(memory_mb=round(peak_memory_mb(torch.device("cuda" if cuda else "cpu"))))
    print(json.dumps(memory | {name: value() for name, value in about.items()}), flush=True)
