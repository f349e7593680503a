"""The arithmetic of a plan: operations, hours, memory, and its text."""

from dataclasses import dataclass, field, replace

from bench.plan.tables import GPUS

DECODING = "decoding"
# Bytes that a block keeps per token for its backward pass, in 16 bits, per unit of its width (Korthikanti et al. 2022,
# equation 2, with attention scores recomputed).
KEPT_BYTES = 34


@dataclass(frozen=True)
class Shape:
    """The properties of a model that determine its operations and memory.

    Attributes:
        total, trained: parameters.
        reading, writing: parameters used by a token that is read, and by one that is learned or written.
        layers, width, vocabulary: sizes; a vocabulary of 0 scores no tokens.
    """

    total: int
    trained: int
    reading: int
    writing: int
    layers: int
    width: int
    vocabulary: int


@dataclass(frozen=True)
class Phase:
    """A part of a row's work.

    Attributes:
        name: what is done.
        rows: examples processed, counting repetitions.
        source, target: tokens of one example.
        passes: its cost in forward passes.
        kind: "training", or `DECODING`.
        why: the reason for rows and passes, in words.
        batch: rows processed together.
    """

    name: str
    rows: float
    source: float
    target: float
    passes: float
    kind: str = "training"
    why: str = ""
    batch: int = 1

    def operations(self, shape):
        """Operations of its matrix products; on average a token attends to half of its row."""
        attention = 2 * shape.layers * shape.width * (self.source + self.target)
        row = self.source * (2 * shape.reading + attention) + self.target * (2 * shape.writing + attention)
        return self.rows * self.passes * row


@dataclass
class Plan:
    """What a row needs.

    Attributes:
        row, command: the row's name and the words of its command.
        weights: `tables.Weights`, or None.
        data: {task: `tables.DataSet`}.
        shape: `Shape`, or None: nothing is trained.
        phases: a list of `Phase`.
        steps: optimizer steps in words, or "".
        batch: (rows of a micro-batch, tokens of the longest row, label tokens per row).
        precision: "fp32" or "bf16".
        notes: lines.
    """

    row: str
    command: list
    weights: object = None
    data: dict = field(default_factory=dict)
    shape: object = None
    phases: list = field(default_factory=list)
    steps: str = ""
    batch: tuple = (0, 0, 0)
    precision: str = "fp32"
    notes: list = field(default_factory=list)


def measure_peak(precision, seconds=1.0):
    """Operations per second of this machine's products of two [1024, 1024] matrices, as if it had nothing else to do.

    It is measured in processor time, because other programs take most of the wall time of a busy machine.
    """
    import time

    import torch

    a = torch.randn(1024, 1024, dtype=dict(fp32=torch.float32, bf16=torch.bfloat16)[precision])
    a @ a
    count, end, began = 0, time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end:
        a @ a
        count += 1
    return 2 * 1024**3 * count / (time.process_time() - began) * torch.get_num_threads()


def compute_hours(phases, shape, device, precision):
    """Hours on a device: of its operations, or of launching them if batches are too small to keep it busy."""
    seconds = 0.0
    for phase in phases:
        share = choose_share(device, phase.kind, precision)
        # Text is written one token at a time.
        starts = phase.rows / phase.batch * (phase.target if phase.kind == DECODING else 1)
        starting = starts * phase.passes * shape.layers * device.launch
        seconds += max(phase.operations(shape) / (device.peak[precision] * share), starting)
    return seconds / 3600


def choose_share(device, kind, precision):
    """The share of a device's peak that a kind of phase reaches."""
    return device.share[DECODING if kind == DECODING else precision]


def compute_memory(plan):
    """{what: bytes}: weights in float32, gradients and Adam's moments of trained weights, a batch's activations."""
    shape, (rows, longest, labels) = plan.shape, plan.batch
    wide = 2 if plan.precision == "fp32" else 1
    trains = any(phase.kind == "training" for phase in plan.phases)
    kept = rows * longest * shape.width * KEPT_BYTES * wide * (shape.layers if trains else 1)
    return {"weights": 4 * shape.total, "gradients and Adam": 12 * shape.trained * trains, "activations": kept,
            "scores": 8 * rows * labels * shape.vocabulary}  # fmt: skip


def render(plan, this_machine):
    """A plan as text.

    Args:
        this_machine: `Device` of this machine.
    """
    lines = [f"{plan.row}: python {' '.join(plan.command)}", "", *_describe_needs(plan)]
    if not plan.phases:
        return "\n".join(lines)
    shape = plan.shape
    if shape.trained:
        share = 100 * shape.trained / shape.total
        lines.append(_line("trained", f"{shape.trained:,} of {shape.total:,} parameters ({share:.3g} %)"))
    lines += [_line("steps", plan.steps)] * bool(plan.steps)
    tokens = sum(phase.rows * (phase.source + phase.target) for phase in plan.phases)
    lines.append(_line("tokens", f"{tokens / 1e6:,.0f} million, in all phases"))
    for phase in plan.phases:
        why = "".join(f"{part}, " for part in [phase.why] if part)
        passes = f"{phase.passes} pass{'es' * (phase.passes > 1)}"
        lines.append(_line("operations", f"{phase.operations(shape):.2g}: {phase.name} ({why}{passes})"))
    memory = compute_memory(plan)
    parts = " + ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items() if size)
    lines.append(_line("memory", f"about {sum(memory.values()) / 1e9:.1f} GB: {parts}"))
    caveat = ("A factor of two either way. A GPU takes at least the time to start its small batches; validation, "
              "evaluation and waiting for data are not counted.")  # fmt: skip
    return "\n".join([*lines, "", *_describe_hours(plan, this_machine), "", caveat])


def _describe_needs(plan):
    lines, weights = [], plan.weights
    if weights:
        origin = f"in the package {weights.packaged}, which ./run.sh setup installs" if weights.packaged else (
            "from the hub; not packaged here")  # fmt: skip
        lines.append(_line("weights", f"{weights.title} ({weights.hub}), {weights.megabytes:,} MB, {origin}"))
    for name, data in plan.data.items():
        tokens = f"{data.source:g} + {data.target:g} tokens"
        lines.append(_line("data", f"{name}: {data.title}, {data.rows:,} rows of about {tokens}; {data.origin}"))
    return lines + [_line("before", note) for note in plan.notes]


def _describe_hours(plan, this_machine):
    lines = []
    kinds = dict.fromkeys(phase.kind for phase in plan.phases)
    for device in (this_machine, *GPUS):
        source = "measured now" if device is this_machine else "data sheet"
        precisions = [plan.precision] if device is this_machine else dict.fromkeys(["bf16", plan.precision])
        for precision in precisions:
            hours = compute_hours(plan.phases, plan.shape, device, precision)
            shares = ", ".join(f"{100 * choose_share(device, kind, precision):g} % in {kind}" for kind in kinds)
            sums = f"{device.peak[precision] / 1e12:.3g} TFLOP/s ({source}) x {shares}"
            if hours > 1.01 * compute_hours(plan.phases, plan.shape, replace(device, launch=0.0), precision):
                # What the formula below says of small models.
                sums = f"bound by starting the blocks' kernels, not by {sums}"
            lines.append(_line("time", f"{_hours(hours)} on {device.name} in {precision}: {sums}"))
    return lines


def _hours(hours):
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h" if hours >= 0.95 else f"{60 * hours:.0f} min"


def _line(head, text):
    return f"{head:<11} {text}"
