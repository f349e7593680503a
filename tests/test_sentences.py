"""The parts of sentence-level distillation: reading, the file of outputs so far, writing.

python -m pytest tests/test_sentences.py
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.data.json_files import top_level
from versatile.data.task import Task
from versatile.training import sentence_distillation as sentences
from versatile.training.decoding import Prompt
from versatile.utils import progress
from versatile.utils.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


class Plain(Task):
    """A task whose records hold any number of examples."""

    name = "plain"

    def examples(self, record, location, options):
        return [_Example(t) for t in record["texts"]]

    def distil(self, record, outputs):
        return {**record, "distillated_texts": list(outputs)}


class _Example:
    def __init__(self, text):
        self.source, self.target = text, self
        self.text = text


@settings(deadline=None, max_examples=60)
@given(records=st.lists(st.tuples(st.lists(TEXT, max_size=3), JSON), min_size=1, max_size=5), rest=JSON, other=JSON,
       front=st.booleans(), limit=st.integers(1, 9) | st.none(), merge=st.booleans())  # fmt: skip
def test_whatever_the_file_holds_comes_out_again_with_each_example_its_own_text(
    records, rest, other, front, limit, merge, tmp_path_factory
):
    records = [dict(texts=texts, beside=value) for texts, value in records]
    parts = {"train": records, "rest": rest}
    whole = {"other": other, **parts} if front else {**parts, "other": other}
    path = tmp_path_factory.mktemp("any") / "data.json"
    path.write_text(json.dumps(whole), encoding="utf-8")
    encode = lambda examples: ([Prompt([*e.text.encode()], [0] * len(e.text.encode()), 0, 1) for e in examples], {})  # noqa: E731
    try:
        inputs = sentences.read_inputs(path, Plain(), None, encode, limit, merge)
    except UserError:
        assert limit and len(records[0]["texts"]) > limit
        return
    count = sum(len(r["texts"]) for r in records[: inputs.records])
    assert len(inputs.prompt_numbers) == count <= (limit or count)
    if merge:
        assert len(inputs.prompts) == len({t for r in records[: inputs.records] for t in r["texts"]})
    texts = [bytes(p.ids.astype("uint8")).decode()[::-1] for p in inputs.prompts]
    report = sentences.OutputStatistics()
    content = "".join(sentences.render_data_file(path, Plain(), None, inputs, texts, report))
    taught = [{**r, "distillated_texts": [t[::-1] for t in r["texts"]]} for r in records[: inputs.records]]
    assert json.loads(content) == {**whole, "train": taught}
    assert list(json.loads(content)) == list(whole)
    assert report.outputs == count
    (path.parent / "out.json").write_bytes(content.encode())
    assert [key for key, value in top_level(path.parent / "out.json") if list_or(value)] == list(whole)


def list_or(value):
    """Remove a list's items, as `top_level` requires."""
    return list(value) is not None if hasattr(value, "__next__") else True


def test_batches_do_not_depend_on_where_a_run_begins():
    class Prompt:
        def __init__(self, n):
            self.ids = [0] * n

    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    batches = sentences.plan_batches([Prompt(n) for n in lengths], 4)
    assert sorted(i for batch in batches for i in batch) == list(range(11))
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)
    seeds = [sentences.batch_seed(42, n) for n in range(100)] + [sentences.batch_seed(43, 0)]
    assert len(set(seeds)) == 101


def test_two_processes_do_not_write_the_same_file(tmp_path):
    one, two = (sentences.PartialOutputs(tmp_path / "x.partial", {}, [[0], [1]]) for _ in range(2))
    with one.opened():
        one.add(["a"], 1, 0)
        with pytest.raises(UserError, match="another process"), two.opened():
            pass
        assert (tmp_path / "x.partial").exists()
    with two.opened():
        assert (two.texts, two.done) == (["a", None], 1)


@pytest.mark.parametrize("line", [
    b'{"t\xed\xa0\x80eacher": "x"}', rb'{"t\ud800eacher": "x"}', b"[]", b'"x"', b"[" * 100_000, b"9" * 5000, b"\xff",
])  # fmt: skip
def test_a_damaged_first_line_of_a_partial_file_is_refused_in_words_that_can_be_printed(tmp_path, line):
    path = tmp_path / "x.partial"
    batch = b'{"batch": 0, "inputs": [0, 1], "texts": ["a", "b"], "tokens": 3, "cut": 0}\n'
    path.write_bytes(line + b"\n" + batch)
    partial = sentences.PartialOutputs(path, {"a": 1}, [[0, 1]])
    with pytest.raises(UserError, match="--restart") as caught, partial.opened():
        pass
    assert str(path) in str(caught.value) and str(caught.value).encode()
    assert path.read_bytes() == line + b"\n" + batch


@pytest.mark.parametrize("change", [
    {"texts": "ab"}, {"texts": [1, 2]}, {"texts": ["a"]}, {"texts": ["a", "\ud800"]}, {"texts": None}, {"tokens": "3"},
    {"tokens": True}, {"tokens": 1e308}, {"cut": -1}, {"cut": None}, {"inputs": [1, 0]}, {"batch": "0"},
])  # fmt: skip
def test_a_damaged_batch_of_a_partial_file_is_refused(tmp_path, change):
    path, batch = tmp_path / "x.partial", {"batch": 0, "inputs": [0, 1], "texts": ["a", "b"], "tokens": 3, "cut": 0}
    path.write_text('{"a": 1}\n' + json.dumps(batch | change) + "\n")
    with pytest.raises(UserError, match=r"x\.partial:2: is damaged") as caught:  # noqa: SIM117
        with sentences.PartialOutputs(path, {"a": 1}, [[0, 1]]).opened():
            pass
    assert str(caught.value).encode()
    path.write_text('{"a": 1}\n' + json.dumps(batch) + "\n")
    with sentences.PartialOutputs(path, {"a": 1}, [[0, 1]]).opened() as partial:
        assert partial.texts == ["a", "b"]


def test_without_a_terminal_a_line_tells_the_progress_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", -1)
    with progress.Progress(10, "decoding", 4) as done:
        done(6)
        done(10)
    out = capsys.readouterr().out
    assert "decoding: 6 of 10, about" in out and "decoding: 10 of 10" in out
