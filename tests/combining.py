"""Single-task checkpoints to combine, for tests."""

import os
from pathlib import Path

import torch
from scripts import SAMPLES
from versatile.adapters import checkpoint, combine
from versatile.adapters.attach import attach, trainable
from versatile.adapters.backbones import loading as backbones
from versatile.data import instances
from versatile.data.task import get_task
from versatile.training.decoding import Decoding, decode

import combine_all

NAMES = ["tiny-gpt2", "tiny-llama", "tiny-t5"]
TASKS = {"mt": 12, "nlg": 4, "dialogue": 8, "summarization": 0}
QUICK = ["--proof_examples", "3", "--proof_tokens", "6"]


def lively(name):
    """A backbone whose outputs depend on the input; a tiny one's do not, as its weights are too small."""
    folder = Path(os.environ["VERSATILE_CACHE"]) / f"lively-{name}"
    if not folder.exists():
        model, tokenizer = backbones.load_backbone(name)
        noise = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p.data += 0.3 * torch.randn(p.shape, generator=noise) * (p.ndim > 1)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def trained(folder, tasks, backbone="tiny-gpt2", seed=0, history=3, **more):
    """A directory as training leaves it; the tasks' trained weights are random."""
    model, tokenizer = backbones.load_backbone(lively(backbone) if backbone in NAMES else str(backbone))
    markers = {task: get_task(task).markers for task in tasks}
    attach(model, tokenizer, markers, {task: TASKS.get(task, 6) for task in tasks}, **more)
    model.info.histories = {task: history for task in tasks if get_task(task).max_history}
    noise = torch.Generator().manual_seed(seed)
    for p in trainable(model).values():
        p.data += 0.1 * torch.randn(p.shape, generator=noise)
    checkpoint.save_checkpoint(model, tokenizer, folder)
    return folder


def pairs(sources):
    return [f"{task}={folder}" for task, folder in sources.items()]


def combined(output, sources, *more):
    combine_all.main(["--checkpoints", *pairs(sources), "--output", str(output), *QUICK, *map(str, more)])
    return output


def answers(directory, task, count=3):
    """`answered` by the model of a directory."""
    return answered(*checkpoint.load_checkpoint(directory, task), task, count)


def answered(model, tokenizer, task, count=3):
    """(scores on base and own columns, greedy outputs) for a task's samples, one task in a batch."""
    form = get_task(task)
    found = instances.read_instances(SAMPLES / f"{task}.json", "valid", form, form.read_options(decoding=True), count)
    prompts, _ = instances.prompts(form, model.task_id(task), tokenizer, found, 256, 12)
    with torch.no_grad():
        scores = [combine._scores(model, tokenizer, task, (p.ids, p.types)) for p in prompts]
    return scores, decode(model, tokenizer, prompts, Decoding(max_length=12))


def same(one, other):
    return all(map(torch.equal, one[0], other[0])) and one[1] == other[1]


def gpt2_singles(folder):
    """{task: a directory trained for it alone} on tiny-gpt2."""
    return {task: trained(folder / task, [task], seed=seed) for seed, task in enumerate(["mt", "nlg", "dialogue"])}
