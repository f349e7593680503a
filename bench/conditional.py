#!/usr/bin/env python
"""CA-MTL: a batch that mixes tasks in one pass, against a loop over its tasks; and the cost of choosing rows.

  one CPU:
    python bench/conditional.py --device cpu
  one GPU, in BERT-base's own shape:
    python bench/conditional.py --device cuda --width 768 --layers 12 --heads 12

The default shape is MiniLM's, with random weights. GLUE's nine tasks have equal shares of a batch, whose sequences
are padded to the longest. The loop runs each task's rows separately through the same modules: one conditional layer
norm, one layer's attention with its block-diagonal matrices, and a whole optimizer step, each forward and backward. A
step's loss is the same on both sides. Uncertainty sampling scores one batch of every task before each step, except
STS-B's, which has no entropy of its own; its share is its time over that of choosing and stepping together, both as
in train_camtl.py. The floor is the time of the matrix products alone at the measured peak.
"""

import statistics
import sys

import common
import numpy as np

# common has put the toolkit on the path.
from train_camtl import CPU_ROWS

TASKS = {"cola": 2, "mnli": 3, "rte": 2, "wnli": 2, "qqp": 2, "sts-b": 1, "sst-2": 2, "qnli": 2, "mrpc": 2}
# The gradient and update of BERT's embedding table are part of a step.
BERT_VOCABULARY = 30522
MIXED, LOOP = "mixed, one pass", "loop over tasks"
PARTS = {"norm": "conditional layer norm", "attention": "conditional attention", "step": "optimizer step",
         "choosing": "choosing rows"}  # fmt: skip


def parse(argv=None):
    from versatile.utils import flags, settings

    p = common.parser(__doc__)
    g = p.add_argument_group("the model (random weights) and its data")
    g.add_argument("--form", choices=["base", "large"], default="base", help="CA-MTL's form")
    g.add_argument("--width", type=flags.positive, default=384, help="hidden size, a multiple of --max_seq_length")
    g.add_argument("--layers", type=flags.positive, default=6, help="layers, an even number in the base form")
    g.add_argument("--heads", type=flags.positive, default=12, help="attention heads")
    g.add_argument("--max_seq_length", type=flags.positive, default=128, help="maximum sequence length")
    g.add_argument("--mean_length", type=flags.positive, default=40, help="mean tokens per sequence")
    g.add_argument("--train_batch_size", type=flags.positive, default=32, help="rows per step")
    g.add_argument("--turn_steps", type=flags.positive, default=1, help="calls per turn and side")
    settings.add_precision(p, device=False)
    args = p.parse_args(argv)
    if args.quick:
        args.width, args.layers, args.heads, args.max_seq_length, args.mean_length = 64, 2, 2, 16, 8
        args.train_batch_size, args.repeats = 9, 2
    if args.width % args.max_seq_length or args.width % args.heads:
        p.error(f"--width {args.width}: expected a multiple of --max_seq_length and of --heads")
    if args.form == "base" and args.layers % 2:
        p.error(f"--layers {args.layers}: expected an even number in the base form")
    return args


def main(argv=None):
    args = parse(argv)
    device = common.start(args)
    from versatile.utils import devices

    dtype = devices.precision(args, device)
    work = Workload(args, device, dtype)
    print(f"BERT {args.width} wide, {args.layers} layers, {args.form} form; {str(dtype)[6:]}; {args.train_batch_size} "
          f"rows of {len(TASKS)} tasks, {args.mean_length} tokens on average, {work.longest} at most",
          flush=True)  # fmt: skip
    rates = {}
    for part in PARTS:
        sides = {MIXED: getattr(work, part), LOOP: getattr(work, f"{part}_by_task")}
        rates[part] = common.interleaved({n: work.turn(side) for n, side in sides.items()}, args.repeats, device)
    ms = {part: {side: 1000 / statistics.median(times[side]) for side in times} for part, times in rates.items()}
    print(common.table(["ms", MIXED, LOOP], [[PARTS[part], *ms[part].values()] for part in PARTS]))
    for part in PARTS:
        print(common.verdict(f"{PARTS[part]}, a mixed batch in one pass against a loop:", rates[part], MIXED, LOOP, 1))
    operations = work.operations()
    shares = [1 / c / (1 / c + 1 / s) for c, s in zip(rates["choosing"][MIXED], rates["step"][MIXED])]
    common.record("choosing rows' share of a step", statistics.median(shares), min(shares), max(shares), lower=True)
    print(f"ratio: choosing rows takes {statistics.median(shares):.0%} of a step's whole time "
          f"({min(shares):.0%} to {max(shares):.0%}); it scores {work.scored / args.train_batch_size:.2g} times the "
          "rows it keeps")  # fmt: skip
    peak = max(common.interleaved({"products": work.product}, args.repeats, device)["products"])
    floors = {part: 1000 * count / peak for part, count in operations.items()}
    reached = [[PARTS[part], floors[part], ms[part][MIXED], f"{floors[part] / ms[part][MIXED]:.0%}"]
               for part in floors]  # fmt: skip
    print(common.table([f"products at {peak / 1e9:.0f} GFLOP/s", "floor, ms", "takes, ms", "reached"], reached))
    print(f"the floor of choosing rows' share, both at the peak: {floors['choosing'] / sum(floors.values()):.0%}")
    common.save(args, per_second=rates, choosing_share=shares)


class Workload:
    """The model, its batches, and the work of every side."""

    def __init__(self, args, device, dtype):
        import torch
        from transformers import BertConfig, BertModel
        from versatile.adapters.classifier import TaskClassifier
        from versatile.adapters.methods.conditional import ConditionalLayerNorm, TaskConditions
        from versatile.training.optimizers import build_adamw
        from versatile.utils import devices

        self.args, self.device, self.dtype = args, device, dtype
        config = BertConfig(vocab_size=BERT_VOCABULARY, hidden_size=args.width, num_hidden_layers=args.layers,
                            num_attention_heads=args.heads, intermediate_size=4 * args.width,
                            max_position_embeddings=max(512, args.max_seq_length))  # fmt: skip
        self.model = TaskClassifier(BertModel(config), TASKS, args.form, args.max_seq_length).to(device).train()
        devices.prepare_for_device(self.model, device, dtype)
        self.optimizer = build_adamw(self.model, 1e-5)
        self.batch = self.made_up(args.train_batch_size, args.seed)
        self.batches = self.candidate_batches()
        self.candidates = self.batches.candidates(0, 0)
        self.choosing()
        self.longest = self.batch["input_ids"].shape[1]
        self.layer_norm = ConditionalLayerNorm(args.width, args.width, TaskConditions()).to(device)
        shape = args.train_batch_size, self.longest, args.width
        self.hidden = torch.randn(shape, device=device, requires_grad=True)
        self.tasks = torch.randn(len(TASKS), args.width, device=device, requires_grad=True)

    def made_up(self, rows, seed):
        """Random rows of all tasks alternating, padded to the longest."""
        import torch

        lengths = torch.from_numpy(common.lengths(rows, self.args.mean_length, self.args.max_seq_length, seed))
        mask = torch.arange(int(lengths.max())) < lengths.clamp(max=self.args.max_seq_length).unsqueeze(1)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, common.VOCABULARY, mask.shape, generator=generator) * mask
        owners = torch.arange(rows) % len(TASKS)
        counts = torch.tensor(list(TASKS.values()))[owners]
        labels = (torch.rand(rows, generator=generator) * counts).floor()
        inputs = dict(input_ids=ids, attention_mask=mask.long(), task_ids=owners, labels=labels)
        return {name: value.to(self.device) for name, value in inputs.items()}

    def candidate_batches(self):
        """One batch of every task, from which `choosing` keeps the rows of a step, made as in train_camtl.py."""
        from versatile.data.pair_batches import CandidateBatches
        from versatile.training.uncertainty_sampling import UncertaintySampler

        splits = {task: MadeUpPairs(self.args, labels, i) for i, (task, labels) in enumerate(TASKS.items())}
        ids = {task: self.model.task_id(task) for task in TASKS}
        return CandidateBatches(splits, ids, 0, self.args.max_seq_length, self.args.train_batch_size,
                                select=UncertaintySampler(self.model, self.dtype),
                                rows_at_once=CPU_ROWS if self.device.type == "cpu" else None)  # fmt: skip

    def turn(self, side):
        """A side's turn for `common.interleaved`; a side's return value, if any, is a loss."""
        from versatile.utils import devices

        def run(number):
            for _ in range(self.args.turn_steps):
                if side in (self.step, self.choosing, self.choosing_by_task):
                    side()
                else:
                    with devices.autocast(self.device, self.dtype):
                        loss = side()
                    loss.backward()
                if side in (self.step, self.step_by_task):
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            return self.args.turn_steps

        return run

    def by_task(self, batch):
        """[(task, its row numbers)]"""
        return [(task, (batch["task_ids"] == task).nonzero().squeeze(-1)) for task in range(len(TASKS))]

    def norm_of(self, tasks, owners, hidden):
        self.layer_norm.conditions.set(tasks, owners)
        return self.layer_norm(hidden).sum()

    def norm(self):
        return self.norm_of(self.tasks, self.batch["task_ids"], self.hidden)

    def norm_by_task(self):
        return sum(self.norm_of(self.tasks[t : t + 1], rows.new_zeros(len(rows)), self.hidden[rows])
                   for t, rows in self.by_task(self.batch))  # fmt: skip

    def attention_of(self, tasks, owners, hidden, mask):
        from versatile.adapters.methods.conditional import PADDING, block_diagonal

        layer, conditional = self.model.bert.encoder.layer[0].attention.self, self.model.added["conditional"]
        chunks = conditional.block_diagonals[0].chunks(tasks, conditional.matrices[0][: self.longest])
        bias = block_diagonal(chunks).index_select(0, owners).unsqueeze(1)
        return layer(hidden, bias + (1 - mask[:, None, None, :].float()) * PADDING)[0].sum()

    def attention(self):
        return self.attention_of(self.tasks, self.batch["task_ids"], self.hidden, self.batch["attention_mask"])

    def attention_by_task(self):
        mask = self.batch["attention_mask"]
        return sum(self.attention_of(self.tasks[t : t + 1], rows.new_zeros(len(rows)), self.hidden[rows], mask[rows])
                   for t, rows in self.by_task(self.batch))  # fmt: skip

    def step(self):
        """As in training: on a CPU in parts of similar lengths, whose gradients add up."""
        from versatile.training.objectives import WeightedRows
        from versatile.utils import devices

        window, _ = self.batches.batch(0, 0)
        for part in window if isinstance(window, list) else [window]:
            with devices.autocast(self.device, self.dtype):
                loss = WeightedRows()(self.model, part, 1)
            loss.backward()

    def step_by_task(self):
        parts = [{n: v[rows] for n, v in self.batch.items()} for _, rows in self.by_task(self.batch)]
        return sum(self.model(**part).loss for part in parts) / len(parts)

    def product(self, number):
        """A matrix product of the model's own shape; returns its number of operations."""
        import torch

        rows, width = 512, self.args.width
        left, right = (torch.randn(*shape, device=self.device, dtype=self.dtype)
                       for shape in ((rows, width), (width, 4 * width)))  # fmt: skip
        count = 1 if self.args.quick else 200
        for _ in range(count):
            left @ right
        return count * 2 * rows * width * 4 * width

    def operations(self):
        """{part: operations of the encoder's products that are indispensable for its rows' tokens}, without padding.

        The top layer's keys and values are needed everywhere, the rest of it only at the first position.
        """
        token = 2 * self.args.width**2 * (12 * (self.args.layers - 1) + 2)
        lengths = self.batches.lengths
        scored = ~np.isin(self.batches.owners(self.candidates), list(self.batches.select.regression))
        self.scored = int(scored.sum())
        return dict(choosing=token * int(lengths[self.candidates[scored]].sum()),
                    step=3 * token * int(lengths[self.batches.chosen(0, 0)].sum()))  # fmt: skip

    def choosing(self):
        keep = self.batches.select(self.batches, self.candidates, self.args.train_batch_size)
        # The next step trains on them.
        self.batches.chosen = lambda epoch, step: self.candidates[keep]

    def choosing_by_task(self):
        import torch
        from versatile.data.padding import tensors
        from versatile.utils import uncertainty

        owners = self.batches.owners(self.candidates)
        entropies = [uncertainty.candidate_entropies(self.model, tensors(self.batches.inputs(rows)), self.dtype)
                     for rows in (self.candidates[owners == task] for task in range(len(TASKS)))]  # fmt: skip
        lenders = self.batches.select.regression
        uncertainty.choose_rows(torch.cat(entropies), torch.from_numpy(owners), self.args.train_batch_size, lenders)


class MadeUpPairs:
    """A task's random rows, with the interface of `data.token_cache.EncodedSplit`."""

    def __init__(self, args, labels, seed):
        import numpy as np

        rng = np.random.default_rng(args.seed + seed)
        self.lengths = common.lengths(args.train_batch_size, args.mean_length, args.max_seq_length, args.seed + seed)
        self.labels = np.floor(rng.random(len(self.lengths)) * labels)
        self.rows = [rng.integers(1, common.VOCABULARY, length) for length in self.lengths]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        from versatile.data.encoders.base import EncodedExample

        ids = self.rows[row]
        first = len(ids) // 2
        return EncodedExample(ids, [0] * first + [1] * (len(ids) - first), len(ids))


if __name__ == "__main__":
    sys.exit(main())
