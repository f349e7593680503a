"""Models of CA-MTL for tests: the originals' golden ones, new ones, and batches for them."""

import json

import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from transformers import BertConfig, BertModel
from versatile.adapters.classifier import TaskClassifier
from versatile.adapters.imports import camtl

CAMTL = GOLDEN / "camtl"
SIZES = json.loads((CAMTL / "modules.json").read_text())
MODELS = ["model_base", "model_large", "model_bert"]
TASKS = {"cola": 2, "mnli": 3, "sts-b": 1, "mrpc": 2}
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def config(layers=4, **more):
    given = dict(vocab_size=70, hidden_size=48, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64,
                 max_position_embeddings=20, layer_norm_eps=1e-12)  # fmt: skip
    return BertConfig(**(given | more))


def golden(name):
    """(the original's model as ours, the file's tensors)"""
    held = load_file(CAMTL / f"{name}.safetensors")
    state = {key.removeprefix("param/"): held.pop(key) for key in list(held) if key.startswith("param/")}
    sizes = SIZES[name]
    return camtl.load_original(state, config(sizes["num_hidden_layers"]), sizes["tasks"]), held


def new(form="base", layers=4, tasks=TASKS, **more):
    torch.manual_seed(0)
    return TaskClassifier(BertModel(config(layers, **more)), tasks, form, 16).eval()


def shaken(model):
    """The same model without any parameter left at an initial value that hides mistakes (0 or 1)."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def batch(ids=(0, 2, 1, 3, 1, 0), length=16, seed=0):
    """A mixed batch with padding; its last row is as long as the batch."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, length + 1, (len(ids),), generator=generator)
    lengths[-1] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    return dict(
        input_ids=torch.randint(1, 70, mask.shape, generator=generator) * mask,
        attention_mask=mask,
        token_type_ids=torch.randint(0, 2, mask.shape, generator=generator) * mask,
        task_ids=torch.tensor(ids),
    )


def labels(ids, seed=0):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor(list(TASKS.values()))[torch.tensor(ids)]
    classes = (torch.rand(len(ids), generator=generator) * counts).floor()
    return torch.where(counts == 1, torch.rand(len(ids), generator=generator) * 5, classes)


def rows_of(given, rows):
    return {name: value[rows] for name, value in given.items()}


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)
