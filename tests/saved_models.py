"""Directories of models of every kind, with no weight left at its initial value."""

import torch
from versatile.adapters import attach, bert, checkpoint, t5
from versatile.adapters.backbones import loading as backbones

TASKS = {"nlg": ["<bos_nlg>", "<eos_nlg>", "<name>"], "mt": ["<bos_mt>", "<eos_mt>"]}


def changed(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return model


def save_marked(path, methods):
    """A tiny GPT-2 with markers of two tasks; methods None: train the whole model."""
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    attach.attach(model, tokenizer, TASKS, methods)
    checkpoint.save_checkpoint(changed(model), tokenizer, path)


def save_t5(path, method):
    model, tokenizer = t5.load_t5_of_name("tiny-t5")
    t5.attach(model, ["rte", "mrpc"], t5.T5Settings(method=method, task_embedding_dim=8, task_hidden_dim=8))
    t5.save_t5(changed(model), tokenizer, path)


def save_bert(path, form, aliases=None):
    model, tokenizer = bert.build_classifier("tiny-bert", {"cola": 2, "sts-b": 1}, form, 32)
    model.aliases = aliases or model.aliases
    bert.save_classifier(changed(model), tokenizer, path)
