"""Small models with adapters in them, for tests."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.data.task import get_task

BOTTLENECKS = {"nlg": 8, "mt": 12}


MARKERS = {t: get_task(t).markers for t in BOTTLENECKS}


def attached(name="tiny-gpt2", bottlenecks=BOTTLENECKS, markers=MARKERS, seed=0):
    model, tokenizer = backbones.load_backbone(name)
    torch.manual_seed(seed)
    return attach(model, tokenizer, markers, bottlenecks), tokenizer


def batch(tokenizer, rows=6, length=14, seed=0, tasks=(0, 1, -1)):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 400, (rows, length), generator=g)
    types = torch.full_like(ids, len(tokenizer) - 1)
    labels = ids.clone()
    labels[:, : length // 2] = -100
    return dict(input_ids=ids, token_type_ids=types, labels=labels,
                task_ids=torch.tensor([tasks[i % len(tasks)] for i in range(rows)]))  # fmt: skip


def without(batch, *names):
    return {k: v for k, v in batch.items() if k not in names}


def gpt2_on_meta():
    with torch.device("meta"):
        return GPT2LMHeadModel(GPT2Config())


class Words:
    """Replaces GPT-2's tokenizer: 50257 tokens and any added ones."""

    def __init__(self):
        self.added, self.pad_token = [], None

    def __len__(self):
        return 50257 + len(self.added)

    def get_vocab(self):
        return {}

    def add_tokens(self, tokens, special_tokens):
        assert special_tokens
        self.added += [str(t) for t in tokens]
