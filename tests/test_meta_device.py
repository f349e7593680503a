"""What a GPU would refuse or wait for, without one: training, validation and decoding on the meta device.

    python -m pytest tests/test_meta_device.py
"""

import argparse
import contextlib
import itertools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import bert_models
import ignite.distributed as idist
import pytest
import quick
import test_methods
import test_t5
import test_training
import torch
from meta_device import DEVICE, DeviceFault, DeviceRules
from torch.optim import optimizer as optimizers
from trainers import build_trainer
from transformers.generation import utils as generation
from versatile.adapters import attach as adapting
from versatile.adapters import bert, classifier
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.methods import pointer
from versatile.adapters.methods.registry import FULL, all_methods
from versatile.data.prompt import Prompt
from versatile.data.task import get_task
from versatile.training import objectives
from versatile.training.decoding import Decoding, decode
from versatile.training.distillation import WordTeacher
from versatile.training.objectives import CrossEntropy, Distilled, SmoothedCrossEntropy, WeightedRows
from versatile.utils import devices, uncertainty

LONGEST = 4
METHODS = [FULL, *sorted(set(all_methods()) - {"conditional"})]
TASKS = ("nlg", "mt", "qa")


@pytest.fixture(autouse=True)
def cuda_like(monkeypatch):
    """Autocast and fused optimizers do not support the meta device; decoding ends by length, as answers are 0."""
    enabled, dtype, context = torch.is_autocast_enabled, torch.get_autocast_dtype, torch.autocast
    meta = DEVICE.type
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cuda": kind != meta and enabled(kind))
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16 if kind == meta else dtype(kind))
    monkeypatch.setattr(torch, "autocast", lambda kind, *args, **options: (
        contextlib.nullcontext() if kind == meta else context(kind, *args, **options)))  # fmt: skip

    def ends(check, unfinished, tokens, length):
        bool(unfinished.max() == 0)
        check.steps = getattr(check, "steps", 0) + 1
        return check.steps == LONGEST

    monkeypatch.setattr(generation.StopCheck, "__call__", ends)
    monkeypatch.setattr(idist, "device", lambda: DEVICE)
    kinds = optimizers._get_fused_kernels_supported_devices
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: [*kinds(), meta])


def adapted(backbone, method, tasks=TASKS):
    """(a model of several tasks on the device, its tokenizer)"""
    model, tokenizer = backbones.load_backbone(backbone)
    methods = None if method == FULL else dict.fromkeys(tasks, method)
    attach(model, tokenizer, {task: get_task(task).markers for task in tasks}, methods)
    return prepared(model), tokenizer


def prepared(model):
    devices.prepare_for_device(model, DEVICE, torch.float32)
    return model.to(DEVICE)


def batch(model, **options):
    """Rows of all tasks in the form of training batches: on the CPU."""
    rows = test_methods.batch(model, tasks=range(len(TASKS)), **options)
    positions = torch.arange(rows["input_ids"].shape[1]).expand_as(rows["input_ids"]).contiguous()
    return rows | dict(token_type_ids=rows["input_ids"], position_ids=positions)


def training_step(model, objective, *micro_batches):
    """Optimizer steps of the training loop on these micro-batches; the host reads once, at the curve's point."""
    batches = Epoch(*micro_batches)
    trainer = build_trainer(model, batches, Path(tempfile.mkdtemp()), objective=objective, n_epochs=3,
                            gradient_accumulation_steps=len(micro_batches))  # fmt: skip
    rules = DeviceRules.active()
    before = rules.reads
    for step in (1, 2, 3):
        trainer.step(SimpleNamespace(state=SimpleNamespace(iteration=step)), trainer.window(step - 1))
    assert rules.reads == before
    with rules.allow_reads():
        trainer.read_steps()
    assert rules.reads == before + 1
    assert trainer.optimizer.state and trainer.history["train"] == [] and trainer.output["lr"] > 0


class Epoch:
    """An epoch of these batches, of five labels each."""

    def __init__(self, *batches):
        self.batches, self.splits, self.skip = batches, [self], set()

    def plan(self, epoch=0):
        return range(len(self.batches))

    def batch(self, epoch, step):
        return self.batches[step], 5


# ---- the mode detects what it should


def use_cpu_index(x):
    return x[torch.tensor([0, 1])]


PLANTED = {
    "a CPU index": (use_cpu_index, "index.Tensor mixes devices"),
    "a forgotten .to(device)": (lambda x: x + torch.ones(3), r"add.Tensor mixes devices: \[3\] on the device, \[3\]"),
    "ids of an embedding": (lambda x: torch.nn.functional.embedding(torch.tensor([1]), x[None]), "embedding.default"),
    "a list of tensors": (lambda x: torch.cat([x, torch.ones(3)]), "cat.default"),
    "item": (lambda x: x[0].item(), "waits"),
    "tolist": (lambda x: x.tolist(), "waits"),
    "cpu": (lambda x: x.cpu(), "waits"),
    "a copy to the CPU": (lambda x: torch.ones(3).copy_(x), "waits"),
    "float": (lambda x: float(x.sum()), "waits"),
    "bool": (lambda x: bool((x > 0).all()), "waits"),
    "nonzero": (lambda x: x.nonzero(), "waits"),
    "a mask as an index": (lambda x: x[x > 0], "waits"),
    "a mask as an index, assigned": (lambda x: x.clone().__setitem__(x > 0, torch.ones(3, device=DEVICE)), "waits"),
    "unique": (lambda x: x.unique(), "waits"),
}  # fmt: skip
ALLOWED = {
    "a number": lambda x: (x * 2 + torch.tensor(1.0)).sum(),
    "a copy to the device": lambda x: x + torch.ones(3).to(DEVICE, non_blocking=True),
    "made from a list": lambda x: x[torch.tensor([0, 1], device=DEVICE)],
    "a mask that keeps the shape": lambda x: x.masked_fill(x > 0, 1),
    "on the CPU alone": lambda x: (torch.ones(3)[torch.tensor([0])].tolist(), torch.ones(3).nonzero()),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_the_mode_refuses(planted):
    work, words = PLANTED[planted]
    with DeviceRules(), pytest.raises(DeviceFault, match=words):
        work(torch.ones(3, device=DEVICE))


def test_the_mode_refuses_in_the_backward_pass():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x * 2

        @staticmethod
        def backward(context, gradient):
            return gradient * float(gradient.sum())

    with DeviceRules(), pytest.raises(DeviceFault, match="waits"):
        Reads.apply(torch.ones(3, device=DEVICE, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("work", ALLOWED.values(), ids=ALLOWED)
def test_the_mode_lets_pass(work):
    with DeviceRules() as rules:
        work(torch.ones(3, device=DEVICE))
    assert rules.reads == 0


def test_allowed_reads_are_counted():
    with DeviceRules() as rules:
        with rules.allow_reads():
            assert [float(torch.ones((), device=DEVICE)), *torch.ones(2, device=DEVICE).tolist()] == [0, 0, 0]
        with pytest.raises(DeviceFault):
            torch.ones((), device=DEVICE).item()
    assert rules.reads == 2


def plant_a_read(monkeypatch):
    losses = CrossEntropy.losses
    monkeypatch.setattr(CrossEntropy, "losses", lambda *args: (found := losses(*args)) * (found.sum().item() >= 0))


def plant_labels_that_are_read_on_the_device(monkeypatch):
    positions = adapting.label_positions
    monkeypatch.setattr(adapting, "label_positions", lambda labels: positions(labels.to(DEVICE)))


def plant_a_forgotten_copy(monkeypatch):
    monkeypatch.setattr(adapting, "on_device", lambda tensor, device: tensor)


@pytest.mark.parametrize("plant", [plant_a_read, plant_labels_that_are_read_on_the_device, plant_a_forgotten_copy])
@pytest.mark.parametrize("backbone", ["tiny-gpt2", "tiny-t5"])
def test_a_fault_planted_in_a_training_step_is_found(plant, backbone, monkeypatch):
    model, _ = adapted(backbone, "lora")
    plant(monkeypatch)
    with DeviceRules(), pytest.raises(DeviceFault):
        training_step(model, CrossEntropy(), batch(model))


# ---- every method on every backbone


def decode_on_device(model, tokenizer, rules):
    """How often the host waits, for rows of all tasks."""
    prompts = [Prompt([*range(5, 9 + i)], None, i, 3) for i in range(len(TASKS))]
    before = rules.reads
    with rules.allow_reads():
        decode(model.eval(), tokenizer, prompts, Decoding(max_length=LONGEST))
    return rules.reads - before


@pytest.mark.parametrize("method, backbone", quick.only(
    [("prompt", "tiny-gpt2")], itertools.product(METHODS, test_methods.BACKBONES)))
def test_a_training_step_validation_and_decoding(method, backbone):
    model, tokenizer = adapted(backbone, method)
    with DeviceRules() as rules:
        training_step(model, CrossEntropy(), batch(model), batch(model, rows=3, seed=1))
        before = rules.reads
        with rules.allow_reads():
            objectives.negative_log_likelihood(model, Epoch(batch(model)), torch.float32)
        # One for the loss of a batch.
        assert rules.reads == before + 1
        reads = decode_on_device(model, tokenizer, rules)
    if model.config.is_encoder_decoder:
        # One per token, to see whether decoding ends; a constant number of the library's before; one for the outputs.
        assert LONGEST < reads <= LONGEST + BEFORE_DECODING
    else:
        # One for each token: which token, and thereby which rows have ended.
        assert reads == LONGEST


BEFORE_DECODING = 12


@pytest.mark.parametrize("backbone", quick.every(2, ["tiny-gpt2", "tiny-llama"]))
def test_self_copy(backbone):
    model, tokenizer = backbones.load_backbone(backbone)
    attach(model, tokenizer, {task: get_task(task).markers for task in TASKS}, dict.fromkeys(TASKS, "bottleneck"))
    model = pointer.add(model).to(DEVICE)
    with DeviceRules() as rules:
        training_step(model, CrossEntropy(), batch(model))
        assert decode_on_device(model, tokenizer, rules) <= LONGEST + BEFORE_DECODING


@pytest.mark.parametrize("backbone", quick.only(["tiny-t5"], test_methods.BACKBONES))
def test_a_teacher_and_smoothed_labels(backbone):
    student, teacher = adapted(backbone, "lora"), adapted(backbone, FULL)
    given = batch(student[0], rows=4)
    given["task_ids"].zero_()
    words = WordTeacher(teacher, student, get_task(TASKS[0]))
    with DeviceRules():
        training_step(student[0], Distilled(words), given)
        training_step(student[0], SmoothedCrossEntropy(0.1), given)


@pytest.mark.parametrize("method", quick.every(6, test_t5.t5.METHODS))
def test_the_published_methods_of_t5(method):
    model = prepared(test_t5.attached(method, train_task_embeddings=method == "meta"))
    given = test_t5.batch() | dict(task_ids=test_t5.MIXED)
    decoder = torch.zeros_like(given["labels"])
    decoder[:, 1:] = given["labels"][:, :-1].clamp(min=0)
    with DeviceRules() as rules:
        training_step(model, SmoothedCrossEntropy(), given | dict(decoder_input_ids=decoder))
        before = rules.reads
        with rules.allow_reads():
            moved = objectives.move_to_device({k: v for k, v in given.items() if k != "labels"}, DEVICE)
            model.eval().generate(**moved, max_new_tokens=LONGEST)
    assert rules.reads - before <= LONGEST + BEFORE_DECODING


@pytest.mark.parametrize("form", quick.every(3, ["base", "large", "plain"]))
def test_ca_mtl(form):
    model, given = prepared(bert_models.new(form)), bert_models.batch()
    rows = given["task_ids"].tolist()
    labelled = given | dict(labels=bert_models.labels(rows), weights=torch.full((len(rows),), 1 / len(rows)))
    with DeviceRules() as rules:
        training_step(model, WeightedRows(), labelled)
        before = rules.reads
        with rules.allow_reads():
            output = model.eval()(**given)
            output.predictions.double().cpu()
            uncertainty.candidate_entropies(model, given, torch.float32).cpu()
    assert rules.reads == before + 2


def test_every_form_of_ca_mtl_is_among_them():
    assert classifier.TaskClassifier and {"base", "large", "plain"} == set(bert.FORMS)


# ---- what depends on the hardware


@pytest.mark.parametrize("flags, bf16, expected", [
    ("", True, torch.bfloat16), ("", False, torch.float32), ("fp32", True, torch.float32),
    ("fp16", False, torch.float16), ("bf16", False, torch.bfloat16),
])  # fmt: skip
def test_the_precision_on_a_gpu(flags, bf16, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: asked.append(options) or bf16)
    args = argparse.Namespace(**{name: name == flags for name in ("bf16", "fp16", "fp32")})
    assert devices.precision(args, torch.device("cuda")) == expected
    # A GPU that only emulates bf16 would be slower with it.
    assert all(options == dict(including_emulation=False) for options in asked)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_on_a_gpu_has_the_dtype_of_the_flags(dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **options: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    with devices.autocast(torch.device("cuda"), dtype):
        assert torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == dtype
    assert not torch.is_autocast_enabled("cuda")
    assert isinstance(devices.autocast(torch.device("cuda"), torch.float32), contextlib.nullcontext)


def test_a_step_that_overflows_in_fp16_is_left_out_and_the_loss_scaled_less(tmp_path, monkeypatch):
    monkeypatch.setattr(idist, "device", lambda: torch.device("cpu"))
    rows = test_training.Rows(4)
    # The loss is still finite; its gradient, scaled by 65536, overflows fp16.
    rows.y[:2] = 100
    held = test_training.trainer(tmp_path, batches=rows, max_steps=1, dtype=torch.float16)
    before = held.model.weight.clone()
    assert held.scaler.is_enabled() and held.scaler.get_scale() == 2**16
    held.fit()
    assert torch.equal(held.model.weight, before) and held.scaler.get_scale() == 2**15
    assert not test_training.trainer(tmp_path / "bf16", dtype=torch.bfloat16).scaler.is_enabled()


@pytest.mark.parametrize("gpu, processes, backend", [(True, 2, "nccl"), (False, 2, "gloo"), (True, 1, None)])
def test_processes_on_gpus_talk_by_nccl(gpu, processes, backend, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(idist, "Parallel", lambda backend: chosen.append(backend) or contextlib.nullcontext())
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with devices.parallel():
        assert chosen == [backend]
