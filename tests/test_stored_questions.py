"""Samples and rows of lifelong learning on disk: the same as in memory, tokenised once, with constant memory.

    python -m pytest tests/test_stored_questions.py
"""

import json
import tracemalloc

import numpy as np
import pytest
from versatile.adapters.backbones import loading as backbones
from versatile.data import question_samples as samples
from versatile.data import question_tasks as tasks
from versatile.data.encoders import base
from versatile.data.encoders.question_answer import QuestionEncoder, special_tokens
from versatile.data.row_store import RowChain, RowStore, RowView
from versatile.utils.errors import UserError

from tests.scripts import SAMPLES

LIFELONG = SAMPLES / "lifelong"
FIELDS = ("prompt_length", "last", "gen", "task", "replayed")


@pytest.fixture(scope="module")
def tokenizer():
    _, tokenizer = backbones.load_backbone("tiny-gpt2")
    tokenizer.add_special_tokens({"additional_special_tokens": special_tokens(["ag"], use_sep=True)})
    return tokenizer


def write_questions(path, count):
    """A file of `count` samples of one kind."""
    with open(path, "w", encoding="utf-8") as file:
        articles = (
            {"paragraphs": [{"context": f"this is context number {i}",
                             "qas": [{"question": "what is it?", "answers": [{"text": f"number {i}"}], "id": i}]}]}
            for i in range(count)
        )  # fmt: skip
        file.write('{"data": [' + json.dumps(next(articles)))
        for article in articles:
            file.write(",\n" + json.dumps(article))
        file.write("]}")
    return path


def as_tuples(rows):
    return [(row.ids.tolist(), *(getattr(row, name) for name in FIELDS)) for row in rows]


def test_withheld_answers_are_refused_here_as_where_samples_are_loaded(tmp_path):
    task = tasks.get_task("ag")
    path = write_questions(tmp_path / task.filename("train"), 3)
    path.write_text(path.read_text("utf-8").replace('"text": "number', '"text": " ", "was": "number'), "utf-8")
    for read in (samples.load_task, samples.store_task):
        with pytest.raises(UserError, match="the answers of all questions \\(3\\) are blank"):
            read(task, tmp_path, "train")
    assert len(samples.store_task(task, tmp_path, "train", path)) == 3


@pytest.mark.parametrize("use_sep", [False, True])
@pytest.mark.parametrize("max_len", [24, 120])
@pytest.mark.parametrize("name", ["ag", "e2enlg"])
def test_stored_rows_are_the_rows_in_memory_and_so_is_what_was_cut(name, max_len, use_sep, tokenizer, tmp_path):
    task = tasks.get_task(name)
    one, other, again = (QuestionEncoder(tokenizer, max_len, use_sep) for _ in range(3))
    expected = one.encode_rows(samples.load_task(task, LIFELONG, "train"), "__gen__", name)
    for encoder in (other, again):
        stored = encoder.load_rows(samples.store_task(task, LIFELONG, "train"), "__gen__", name, cache_dir=tmp_path)
        assert as_tuples(stored) == as_tuples(expected) and encoder.counts == one.counts
        assert stored.lengths().tolist() == [len(row) for row in expected]
    assert len(list(tmp_path.iterdir())) == 1


def test_rows_are_made_anew_whenever_anything_of_them_changes(tokenizer, tmp_path, monkeypatch):
    calls, tokenize = [], QuestionEncoder.tokenize
    monkeypatch.setattr(QuestionEncoder, "tokenize", lambda self, texts: calls.append(texts) or tokenize(self, texts))

    def encoded(encoder, limit, count=6):
        calls.clear()
        path = write_questions(tmp_path / "a.json", count)
        store = samples.store_task(None, None, "train", path)[:limit]
        rows = encoder.load_rows(store, "__gen__", "ag", cache_dir=tmp_path / "tokens")
        assert len(rows) == min(limit, count)
        return bool(calls)

    for encoder, limit, count in ((QuestionEncoder(tokenizer, 60), 9, 6), (QuestionEncoder(tokenizer, 59), 9, 6),
                                  (QuestionEncoder(tokenizer, 60, True), 9, 6), (QuestionEncoder(tokenizer, 60), 5, 6),
                                  (QuestionEncoder(tokenizer, 60), 9, 7)):  # fmt: skip
        assert encoded(encoder, limit, count)
        assert not encoded(encoder, limit, count)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("versatile.data.row_store.IN_MEMORY", 1 << 20)
    monkeypatch.setattr(base, "CHUNK", 500)
    peaks = {}
    for count in (2_000, 10_000):
        path = write_questions(tmp_path / f"{count}.json", count)
        tracemalloc.start()
        store = samples.store_task(None, None, "train", path)
        rows = QuestionEncoder(tokenizer, 60).load_rows(store, "__gen__", "ag", cache_dir=tmp_path / "tokens")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(rows) == count and store[count - 1].id == count - 1
    # A sample and its row as Python objects take more than 700 bytes.
    assert peaks[10_000] - peaks[2_000] < 8_000 * 60 + (1 << 20)


def test_views_and_chains_are_the_lists_they_stand_for():
    first, second = ([f"{name}{'x' * i}" for i in range(n)] for name, n in (("a", 5), ("b", 3)))
    stores = [RowStore((f"place {i}", text) for i, text in enumerate(texts)) for texts in (first, second)]
    chain, every = RowChain([*stores, ["c"], []]), [*first, *second, "c"]
    assert [*chain] == every and [chain[i] for i in range(len(chain))] == every and chain[-1] == "c"
    assert chain.lengths().tolist() == [len(text) for text in every]
    for part in (slice(2), slice(2, 7), slice(None), slice(1, 99), slice(-2, None), slice(0), slice(None, None, 3)):
        assert [*chain[part]] == every[part] and len(chain[part]) == len(every[part])
        assert chain[part].lengths().tolist() == [len(text) for text in every[part]]
    repeated = RowView(stores[1], np.arange(7) % 3)
    assert [*repeated] == [second[i % 3] for i in range(7)] and [*repeated[2:][1:3]] == second[:2]
    with pytest.raises(IndexError):
        chain[len(chain)]
    keys = {x.content_key for x in (stores[0], stores[1], RowChain(stores), stores[0][:2], stores[0][:3], repeated)}
    assert len(keys) == 6
    assert stores[0][:9].content_key == stores[0][:5].content_key
