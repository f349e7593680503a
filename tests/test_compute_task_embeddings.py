"""Pooling of encoder states, and compute_task_embeddings.py as a user runs it."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import ROOT, run
from training_runs import refused
from versatile.adapters.pooling import POOLINGS, AttentivePooling, max_pool, mean_pool

GLUE = str(ROOT / "data" / "samples" / "glue")


def states_and_mask(rows, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, tokens, 5, generator=generator)
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
    return states, (torch.arange(tokens) < lengths).long()


SHAPES = (st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))


@settings(deadline=None, max_examples=40)
@given(*SHAPES)
def test_pooling_sees_the_tokens_and_not_the_padding(rows, tokens, seed):
    states, mask = states_and_mask(rows, tokens, seed)
    torch.manual_seed(seed)
    attentive = AttentivePooling(5, 3)
    alone = {"mean": lambda h: h.mean(0), "max": lambda h: h.amax(0)}
    longer = torch.cat([states.masked_fill(~mask.bool().unsqueeze(-1), 1e4), torch.full((rows, 3, 5), -1e4)], 1)
    more = torch.cat([mask, torch.zeros(rows, 3, dtype=torch.long)], 1)
    for name, pool in {**POOLINGS, "attentive": attentive}.items():
        pooled = pool(states, mask)
        assert pooled.shape == (rows, 5)
        torch.testing.assert_close(pool(longer, more), pooled)
        for row, length in enumerate(mask.sum(1).tolist()):
            own = states[row, :length]
            expected = alone[name](own) if name in alone else attentive(own[None], torch.ones(1, length))[0]
            torch.testing.assert_close(pooled[row], expected)


@settings(deadline=None, max_examples=20)
@given(*SHAPES)
def test_attention_sums_to_one_and_learns(rows, tokens, seed):
    states, mask = states_and_mask(rows, tokens, seed)
    pool = AttentivePooling(5)
    weights = pool.weights(states, mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(rows))
    assert not weights[mask == 0].any()
    pool(states, mask).sum().backward()
    assert pool.hidden.weight.grad is not None and torch.isfinite(pool.score.weight.grad).all()


def test_a_row_without_tokens_is_zero():
    states, mask = torch.randn(2, 3, 5), torch.tensor([[0, 0, 0], [1, 1, 0]])
    for pool in (mean_pool, max_pool, AttentivePooling(5)):
        assert not pool(states, mask)[0].any() and torch.isfinite(pool(states, mask)).all()


def argv(out, *more):
    return ["--tasks", "rte", "mrpc", "--data_dir", GLUE, "--model_name_or_path", "tiny-t5", "--n_train", 12,
            "--max_source_length", 40, "--fp32", "--output_dir", out, *more]  # fmt: skip


def test_an_embedding_is_the_mean_over_examples_of_the_mean_over_tokens(tmp_path):
    result = run("compute_task_embeddings", argv(tmp_path / "a", "--batch_size", 5), tmp_path)
    assert result.code == 0, result.err
    assert "cosine" in result.out
    from versatile.adapters import t5
    from versatile.data import text_to_text

    model, tokenizer = t5.load_t5_of_name("tiny-t5")
    texts = text_to_text.load_rows("rte", "train", data_dir=GLUE, seed=42, n_obs=12)["source"]
    assert not texts[0].startswith("rte")
    one_by_one = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=40, return_tensors="pt").input_ids
        with torch.no_grad():
            one_by_one.append(model.encoder(input_ids=ids).last_hidden_state[0].mean(0))
    found = np.load(tmp_path / "a" / "rte.npy")
    assert found.dtype == np.float32 and found.shape == (64,)
    np.testing.assert_allclose(found, torch.stack(one_by_one).mean(0).numpy(), atol=1e-5)
    about = json.loads((tmp_path / "a" / "task_embeddings.json").read_text())
    assert about["tasks"] == {"rte": 12, "mrpc": 12} and about["pooling"] == "mean"


def test_the_same_command_gives_the_same_file_whatever_the_batches(tmp_path):
    for name, size in (("a", 5), ("b", 5), ("c", 12)):
        assert run("compute_task_embeddings", argv(tmp_path / name, "--batch_size", size), tmp_path).code == 0
    a, b, c = ((tmp_path / name / "mrpc.npy").read_bytes() for name in "abc")
    assert a == b
    np.testing.assert_allclose(np.load(tmp_path / "a" / "mrpc.npy"), np.load(tmp_path / "c" / "mrpc.npy"), atol=1e-5)
    assert len(a) == len(c)


def test_training_takes_them_and_leaves_them_as_they_are(tmp_path):
    assert run("compute_task_embeddings", argv(tmp_path / "vectors"), tmp_path).code == 0
    config = dict(model_name_or_path="tiny-t5", data_dir=GLUE, tasks=["rte", "mrpc"], train_adapters=True, max_steps=2,
                  efficient_unique_hyper_net=True, task_embedding_dir=str(tmp_path / "vectors"), n_train=12, fp32=True,
                  do_train=True, learning_rate=0.01, per_device_train_batch_size=4, max_source_length=32,
                  output_dir=str(tmp_path / "run"))  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = run("train_t5", [tmp_path / "config.json"], tmp_path)
    assert result.code == 0, result.err
    from versatile.adapters import t5

    model, _ = t5.load_t5(tmp_path / "run")
    held = dict(model.task_embedding_controller.task_to_embeddings.named_parameters())
    np.testing.assert_array_equal(held["rte"].detach().numpy(), np.load(tmp_path / "vectors" / "rte.npy"))
    wrong = run(
        "train_t5", [tmp_path / "config.json", "--task_embedding_dim", 8, "--output_dir", tmp_path / "b"], tmp_path
    )
    refused(wrong, "64 values", "--task_embedding_dim 64", out=tmp_path / "b")


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--tasks", "rtee"], ["rtee", "mrpc"]),
        (["--data_dir", "nowhere"], ["nowhere"]),
        (["--model_name_or_path", "tiny-gpt2"], ["gpt2"]),
        (["--n_train", "0"], ["n_train", "above 0"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else None,
)
def test_bad_input_is_one_message_and_nothing_is_written(tmp_path, flags, fragments):
    given_ = list(map(str, argv(tmp_path / "vectors")))
    at = given_.index(flags[0])
    end = at + (3 if flags[0] == "--tasks" else 2)
    refused(run("compute_task_embeddings", [*given_[:at], *given_[end:], *flags], tmp_path), *fragments)
    assert not (tmp_path / "vectors").exists()
