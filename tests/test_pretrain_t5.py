"""Span corruption, and pretrain_t5.py as a user runs it."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scripts import run
from training_runs import in_two_processes, refused
from versatile.data import span_corruption
from versatile.data.span_corruption import (
    Corrupted,
    EpochBatches,
    chunks,
    corrupt,
    counts,
    lengths,
    noise_mask,
)
from versatile.utils.errors import UserError

SENTINELS, EOS = list(range(999, 899, -1)), 1
SHAPES = dict(
    length=st.integers(2, 200), density=st.floats(0.05, 0.6), span=st.floats(1, 6), seed=st.integers(0, 2**31)
)


def restore(source, target, sentinels, eos):
    """The tokens that `corrupt` was given."""
    spans, known = {}, set(map(int, sentinels))
    for token in map(int, target[:-1]):
        if token in known:
            current = spans[token] = []
        else:
            current.append(token)
    whole = []
    for token in map(int, source[:-1]):
        whole += spans[token] if token in known else [token]
    return np.array(whole, dtype=np.int32)


def corrupted(length, density, span, seed):
    ids = np.random.default_rng(seed + 1).integers(2, 800, length).astype(np.int32)
    mask = noise_mask(length, density, span, np.random.default_rng(seed))
    return ids, mask, *corrupt(ids, mask, SENTINELS, EOS)


@settings(deadline=None)
@given(**SHAPES)
def test_the_original_text_can_be_recovered(length, density, span, seed):
    ids, _, source, target = corrupted(length, density, span, seed)
    np.testing.assert_array_equal(restore(source, target, SENTINELS, EOS), ids)


@settings(deadline=None)
@given(**SHAPES)
def test_sentinels_come_in_order_in_input_and_target_and_both_end(length, density, span, seed):
    _, mask, source, target = corrupted(length, density, span, seed)
    spans = int((mask & ~np.concatenate([[False], mask[:-1]])).sum())
    for ids in (source, target):
        assert [i for i in ids.tolist() if i in set(SENTINELS)] == SENTINELS[:spans]
        assert ids[-1] == EOS and (ids == EOS).sum() == 1
    assert target[0] == SENTINELS[0] and source[0] not in SENTINELS


@settings(deadline=None)
@given(**SHAPES)
def test_the_asked_share_is_noise_in_the_asked_number_of_spans(length, density, span, seed):
    _, mask, source, target = corrupted(length, density, span, seed)
    noise, spans = counts(length, density, span)
    assert mask.sum() == noise and not mask[0]
    assert len(source) == length - noise + spans + 1 and len(target) == noise + spans + 1
    assert abs(noise - length * density) <= 1 or noise in (1, length - 1)


def test_fifteen_percent_in_spans_of_three_fill_an_input_of_512():
    """The lengths of the published pretraining: 568 tokens make inputs of 512 and targets of 114."""
    assert lengths(512, 0.15, 3.0) == (568, 114)


def test_a_limit_is_reached_without_counting_up_to_it_or_refused():
    assert lengths(2**31 - 1, 0.15, 3.0) == (2386092940, 477218589)
    assert lengths(3, 0.15, 3.0) == (2, 3)
    with pytest.raises(UserError, match="--max_source_length: 2 tokens hold no corrupted sequence"):
        lengths(2, 0.15, 3.0)


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 300), st.floats(0.05, 0.6), st.floats(1, 6))
def test_inputs_are_as_long_as_they_may_be_and_no_longer(limit, density, span):
    length, target = lengths(limit, density, span)
    noise, spans = counts(length, density, span)
    assert length - noise + spans + 1 <= limit and target == noise + spans + 1
    noise, spans = counts(length + 1, density, span)
    assert length + 1 - noise + spans + 1 > limit


def test_corruption_depends_on_seed_epoch_and_row_alone():
    rows = np.random.default_rng(0).integers(2, 800, (4, 40)).astype(np.int32)
    one, other = (Corrupted(rows, SENTINELS, EOS, seed=s) for s in (7, 8))
    again = Corrupted(rows, SENTINELS, EOS, seed=7)
    np.testing.assert_array_equal(one[2]["input_ids"], again[2]["input_ids"])
    different = [not np.array_equal(one[i]["input_ids"], one[i + 4]["input_ids"]) for i in range(4)]
    assert any(different)
    assert any(not np.array_equal(one[i]["input_ids"], other[i]["input_ids"]) for i in range(4))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 3), st.integers(0, 5))
def test_an_epoch_has_no_row_twice_and_two_processes_share_what_one_sees(size, batch, replicas, epoch):
    if size < batch * replicas:
        return
    shares = list(EpochBatches(size, batch, 3, replicas).draws(epoch))
    whole = EpochBatches(size, batch * replicas, 3).draws(epoch)
    parts = [[i for own in together for i in own] for together in shares]
    assert [sorted(p) for p in parts] == [sorted(*w) for w in whole]
    seen = [i for p in parts for i in p]
    assert len(set(seen)) == len(seen) and {i // size for i in seen} <= {epoch}
    assert all(len(b) == batch and len(s) == replicas for s in shares for b in s)


def test_texts_are_packed_without_a_gap_and_without_padding():
    from versatile.adapters.backbones import bundled
    from versatile.adapters.t5_loading import load_tokenizer

    tokenizer = load_tokenizer(str(bundled.folder("tiny-t5")))
    lines = ["the golden palace is a cheap restaurant", "a man is reading a book"] * 5
    rows = chunks(lines, tokenizer, 16)
    flat = [i for line in lines for i in tokenizer(line, add_special_tokens=False).input_ids]
    assert rows.ravel().tolist() == flat[: rows.size] and len(flat) - rows.size < 16
    assert span_corruption.sentinels_of(tokenizer)[0] == tokenizer.convert_tokens_to_ids("<extra_id_0>")


# ---- the script


def text_file(tmp_path, lines=160):
    path = tmp_path / "text.txt"
    words = ["the", "old", "house", "near", "river", "serves", "english", "food", "two", "children", "reading", "book"]
    generator = np.random.default_rng(0)
    path.write_text("\n".join(" ".join(generator.choice(words, 12)) for _ in range(lines)) + "\n")
    return path


def config(tmp_path, **values):
    path = tmp_path / "pretrain.json"
    base = dict(model_name_or_path="tiny-t5", from_scratch=True, train_files=[str(text_file(tmp_path))], fp32=True,
                max_source_length=24, max_steps=6, per_device_train_batch_size=4, learning_rate=3e-3, logging_steps=2,
                eval_strategy="steps", eval_steps=3, save_steps=3, load_best_model_at_end=True, dropout=0,
                metric_for_best_model="loss", output_dir=str(tmp_path / "run"), validation_share=0.1)  # fmt: skip
    path.write_text(json.dumps({**base, **values}))
    return path


def read(path):
    return json.loads(path.read_text())


def test_pretraining_learns_and_is_taken_by_train_t5(tmp_path):
    whole = tmp_path / "whole"
    assert run("pretrain_t5", [config(tmp_path), "--output_dir", whole], tmp_path).code == 0
    history = read(whole / "metrics.json")["history"]
    assert history["train"][-1]["loss"] < history["train"][0]["loss"]
    assert read(whole / "metrics.json")["eval_perplexity"] > 1

    from versatile.adapters import t5
    from versatile.adapters.manifest import peek

    assert peek(whole) is None
    model, tokenizer = t5.load_t5_of_name(str(whole))
    weights = load_file(whole / "model.safetensors")
    assert torch.equal(model.state_dict()["shared.weight"], weights["shared.weight"])
    assert tokenizer("a").input_ids[-1] == tokenizer.eos_token_id


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    # With its usual epsilon AdamW takes a whole step even where a gradient is only rounding error.
    file = config(tmp_path, adam_epsilon=1e-3)
    result = run("pretrain_t5", [file, "--output_dir", one, "--per_device_train_batch_size", 8], tmp_path / "a")
    assert result.code == 0, result.err
    in_two_processes([file, "--output_dir", two], tmp_path / "b", script="pretrain_t5")
    first, second = read(one / "metrics.json"), read(two / "metrics.json")
    assert first["eval_loss"] == pytest.approx(second["eval_loss"], rel=1e-4)
    weights = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for key in weights[0]:
        torch.testing.assert_close(weights[0][key], weights[1][key], atol=1e-4, rtol=1e-3)


def test_bad_input_is_one_message(tmp_path):
    out = tmp_path / "run"
    short = tmp_path / "short.txt"
    short.write_text("a few words\n")
    blank = tmp_path / "blank.txt"
    blank.write_text("\n\n")
    for values, fragments in (
        (dict(train_files=[str(tmp_path / "absent.txt")]), ["absent.txt", "no such file"]),
        (dict(train_files=[str(short), str(short)]), ["less than one sequence"]),
        (dict(train_files=[str(short)]), ["--train_files: 1 text(s): nothing is left", "--validation_files"]),
        (dict(validation_files=[str(tmp_path / "absent.txt")]), ["--validation_files", "absent.txt", "no such file"]),
        (dict(metric_for_best_model="rougeL"), ["--metric_for_best_model rougeL", "loss, perplexity"]),
        (dict(train_files=[str(blank)]), ["blank.txt", "no text"]),
        (dict(validation_share=1e-6), ["validation_share", "--validation_files"]),
        (dict(tasks=["rte,mrpc"]), ["rte,mrpc", "separate the names with spaces"]),
        (dict(train_files=None), ["no text", "--train_files"]),
        (dict(noise_density=1.5), ["noise_density", "between 0 and 0.95"]),
        (dict(freeze_encoder=True), ["freeze_encoder", "train_t5.py"]),
        (dict(per_device_train_batch_size=5000), ["less than one batch"]),
    ):
        refused(run("pretrain_t5", [config(tmp_path, **values)], tmp_path), *fragments)
        assert not out.exists()
