"""Tiny models and rows of the golden data of the original lifelong learning code."""

import json

import numpy as np
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
from versatile.adapters.attach import TaskModelInfo, make_task_conditioned
from versatile.data.encoders.question_answer import SEP, Row, special_tokens

L2KD = GOLDEN / "l2kd"
EOS, ANS, PAD, UNK, GEN = 299, 300, 301, 302, 303


def tensors(name):
    return load_file(L2KD / f"{name}.safetensors")


def values(name):
    return json.loads((L2KD / f"{name}.json").read_text())


def tokenizer(*more):
    """The golden vocabulary: 300 tokens, then __ans__ 300, __pad__, __unk__, __gen__, and `more`."""
    folder = GOLDEN / "vglm" / "gpt2_tiny_tok"
    made = GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    made.add_tokens([*special_tokens(["any"]), *more], special_tokens=True)
    return made


def golden_tokenizer():
    """With __taskA__ 304 and __sep__ 305."""
    return tokenizer("__taskA__", SEP)


def model(weights, heads=2):
    """A GPT-2 with the given weights, without dropout, that accepts an attached model's inputs."""
    vocabulary, width = weights["transformer.wte.weight"].shape
    blocks = {name.split(".")[2] for name in weights if ".h." in name}
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=weights["transformer.wpe.weight"].shape[0], n_embd=width,
        n_layer=len(blocks), n_head=heads, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
        bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    made = GPT2LMHeadModel(config)
    missing, unexpected = made.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    made.tie_weights()
    make_task_conditioned(made, TaskModelInfo(mode="full", markers={"all": []}, methods={}, first=EOS + 1))
    return made


def rows(gen_x, gen_y, y, extra=None):
    """The rows that a golden batch was made from."""
    made = []
    for i in range(len(gen_y)):
        labels = [t for t in gen_y[i].tolist() if t != -1]
        prompt = int((y[i] != -1).nonzero()[0]) + 1
        replayed = extra is not None and bool(extra[i])
        made.append(Row(np.array(labels[:-1], np.int32), prompt, labels[-1], int(gen_x[i, 0]), "t", replayed))
    return made


def random_rows(count, seed=0, vocabulary=EOS, extra=()):
    """Rows of random tokens."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        question, answer = (rng.integers(0, vocabulary, rng.integers(1, 12)) for _ in range(2))
        ids = np.array([*question, ANS, *answer], np.int32)
        made.append(Row(ids, len(question) + 1, EOS, GEN, "t", i in extra, i))
    return made


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(ours, theirs, rtol=1e-4, atol=1e-6):
    torch.testing.assert_close(torch.as_tensor(ours).float(), torch.as_tensor(theirs).float(), rtol=rtol, atol=atol)
