"""data/encoders/text_to_text.py: T5's texts are stored on disk as ids; memory does not grow with them.

    python -m pytest tests/test_text_encoder.py
"""

import json
import tracemalloc

import pytest
from versatile.adapters.backbones import bundled
from versatile.adapters.t5_loading import load_tokenizer
from versatile.data import text_to_text
from versatile.data.columns import ColumnWriter, open_column
from versatile.data.encoders.text_to_text import TextEncoder, load_split
from versatile.data.row_store import RowStore
from versatile.utils.errors import UserError

from tests.scripts import SAMPLES

GLUE = SAMPLES / "glue"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(bundled.folder("tiny-t5"))


def write_rte(folder, count, first=0):
    """A folder that holds `count` rows of rte as train.jsonl."""
    (folder / "rte").mkdir(parents=True, exist_ok=True)
    with open(folder / "rte" / "train.jsonl", "w", encoding="utf-8") as file:
        for i in range(first, first + count):
            row = dict(sentence1=f"row {i} is the place", sentence2=f"it is row {i}", label=i % 2)
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.mark.parametrize("choice", [
    {}, dict(n_obs=5, seed=3), dict(prefix=True), dict(split_validation_test=True, seed=1),
], ids=["all", "drawn", "prefix", "halved"])  # fmt: skip
@pytest.mark.parametrize("name", ["rte", "stsb", "mnli"])
def test_a_mapped_split_is_what_the_texts_give_one_by_one(name, choice, tokenizer, tmp_path):
    task, lengths = text_to_text.get_task(name), (12, 3)
    rows = text_to_text.load_rows(task, "validation", data_dir=GLUE, **choice)
    split = load_split(task, "validation", tokenizer, lengths, data_dir=GLUE, cache_dir=tmp_path, **choice)
    columns = split.columns
    assert [*columns["source"]] == [*rows["source"]] and [*columns["target"]] == [*rows["target"]]
    for column, ids_of, limit in (("source", columns["ids"], 12), ("target", columns["label"], 3)):
        whole = tokenizer([*rows[column]]).input_ids
        expected = [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in whole]
        assert [ids_of[i].tolist() for i in range(len(ids_of))] == expected
        assert split.report["cut"].get(column, 0) == sum(len(ids) > limit for ids in whole)


def test_a_split_is_tokenised_once_and_anew_whenever_anything_of_it_changes(tokenizer, tmp_path, monkeypatch):
    folder, calls = write_rte(tmp_path / "data", 6), []
    tokenize = TextEncoder.tokenize
    monkeypatch.setattr(TextEncoder, "tokenize", lambda self, texts: calls.append(texts) or tokenize(self, texts))

    def load(lengths=(16, 4), **choice):
        calls.clear()
        split = load_split(text_to_text.get_task("rte"), "train", tokenizer, lengths, data_dir=folder,
                             cache_dir=tmp_path / "tokens", **choice)  # fmt: skip
        return split, bool(calls)

    first, encoded = load()
    assert encoded
    again, encoded = load()
    assert not encoded and again.key == first.key
    for changed in (dict(lengths=(15, 4)), dict(prefix=True), dict(n_obs=3), dict(n_obs=3, seed=7)):
        assert load(**changed)[1], changed
        assert not load(**changed)[1], changed
    write_rte(tmp_path / "data", 6, first=1)
    other, encoded = load()
    assert encoded and other.columns["source"][0] == "sentence1: row 1 is the place sentence2: it is row 1"


def test_what_is_wrong_with_the_data_is_said_and_leaves_no_entry(tokenizer, tmp_path):
    folder = write_rte(tmp_path / "data", 3)
    path, tokens = folder / "rte" / "train.jsonl", tmp_path / "tokens"

    def attempt(message, data_dir=folder, split="train", **choice):
        with pytest.raises(UserError, match=message):
            load_split(text_to_text.get_task("rte"), split, tokenizer, (16, 4), data_dir=data_dir, cache_dir=tokens,
                         **choice)  # fmt: skip
        assert not tokens.exists() or not any(tokens.iterdir())

    with open(path, "a", encoding="utf-8") as file:
        file.write('{"sentence1": "a", "sentence2": "b", "label": "maybe"}\n')
    attempt("train.jsonl:4: the label is 'maybe'")
    attempt("no such folder", data_dir=tmp_path / "nowhere")
    attempt("0 rows are asked for", n_obs=0)
    attempt("unknown split", split="dev")
    path.write_text("", encoding="utf-8")
    attempt("holds no rows")


def test_two_files_of_one_split_are_refused_though_the_first_is_cached(tokenizer, tmp_path):
    folder = write_rte(tmp_path / "data", 3)

    def load():
        return load_split(text_to_text.get_task("rte"), "train", tokenizer, (16, 4), data_dir=folder,
                            cache_dir=tmp_path / "tokens")  # fmt: skip

    load()
    (folder / "rte" / "train.csv").write_text("sentence1,sentence2,label\na,b,0\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has both train\.jsonl and train\.csv"):
        load()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tokenizer, tmp_path, monkeypatch):
    """Six times the rows: what Python and numpy hold grows by the numbers of each row, not by its texts."""
    peaks, encoder_memory = {}, 1 << 20
    monkeypatch.setattr("versatile.data.row_store.IN_MEMORY", encoder_memory)
    load_split(text_to_text.get_task("rte"), "train", tokenizer, (16, 4), data_dir=write_rte(tmp_path / "warm", 9))
    for count in (2_000, 12_000):
        folder = write_rte(tmp_path / str(count), count)
        tracemalloc.start()
        split = load_split(text_to_text.get_task("rte"), "train", tokenizer, (16, 4), data_dir=folder,
                             cache_dir=tmp_path / "tokens")  # fmt: skip
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(split) == count and split.columns["source"][count - 1].endswith(f"it is row {count - 1}")
    # The row store holds its first megabyte in memory; a row as Python objects takes more than 500 bytes.
    assert peaks[12_000] - peaks[2_000] < 10_000 * 100 + encoder_memory


@pytest.mark.parametrize("count", [0, 1, 3])
def test_lists_texts_and_numbers_come_back_from_their_files(count, tmp_path):
    lists, texts = [[7, 8], [], [9]][:count], ["", "ä\ud800\n☃", "x"][:count]
    numbers, kinds = [3, -1, 2][:count], dict(ids=("list", "i4"), text=("text",), number=("number", "i8"))
    for rows, (name, kind) in zip((lists, texts, numbers), kinds.items()):
        with ColumnWriter(tmp_path, name, *kind) as writer:
            for row in rows:
                writer.write(row)
    mapped, mapped_texts, mapped_numbers = (open_column(tmp_path, name, *kind) for name, kind in kinds.items())
    assert [mapped[i].tolist() for i in range(len(mapped))] == lists
    assert mapped.lengths().tolist() == [*map(len, lists)] and mapped_numbers.tolist() == numbers
    assert [*mapped_texts] == texts and mapped_texts[:2] == texts[:2] and len(mapped_texts) == count


def test_a_row_store_gives_every_row_back_by_its_number(monkeypatch):
    monkeypatch.setattr("versatile.data.row_store.IN_MEMORY", 100)
    rows = [(f"f:{i}", {"a": "\ud800x" * i, "b": float("inf"), "c": [i, None]}) for i in range(50)]
    store = RowStore(iter(rows))
    assert [*store] == [record for _, record in rows] and len(store) == 50
    assert [store.location(i) for i in (49, 0, 7)] == ["f:49", "f:0", "f:7"]
