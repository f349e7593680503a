"""data/encoders/question_answer.py against the original's own rows, and its intended differences from them."""

import json

import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelong_models import golden_tokenizer
from versatile.data.encoders.question_answer import ANS, PAD, SEP, UNK, QuestionEncoder, special_tokens
from versatile.data.padding import IGNORE
from versatile.data.question_samples import QA
from versatile.utils.errors import UserError

FIELDS = ("cq", "cqa", "Y", "gen_X", "gen_Y")


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "l2kd" / "qadataset.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return golden_tokenizer()


def sequences(row):
    """The originals' five sequences: {name: ids}."""
    following = [*row.ids.tolist(), row.last]
    labels = [IGNORE] * (row.prompt_length - 1) + following[row.prompt_length :]
    return dict(cq=row.cq, cqa=row.cqa, Y=labels, gen_X=[row.gen, *row.cqa], gen_Y=following)


def samples(golden):
    paragraphs = [p for entry in golden["raw"]["data"] for p in entry["paragraphs"]]
    return [QA(p["context"], q["question"], [a["text"] for a in q["answers"]], q.get("id", 0))
            for p in paragraphs for q in p["qas"]]  # fmt: skip


def rows_of(golden, tokenizer, case):
    use_sep = case.startswith("sep")
    encoder = QuestionEncoder(tokenizer, golden["max_len"], use_sep)
    rows = encoder.encode_rows(samples(golden), "__taskA__" if case == "task_token_no_sep" else "__gen__")
    if case.endswith("extra"):
        extra = golden["extra_rows_sep" if use_sep else "extra_rows"]
        made = [encoder.generated(ids[1:], "__gen__") for ids in extra]
        rows += [row for row in made if row]
    return rows, encoder


def test_ids_of_special_tokens_are_the_originals(golden, tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(t) for t in (ANS, PAD, UNK, "__gen__", "__taskA__", SEP)]
    assert ids == [300, 301, 302, 303, 304, 305]
    names = golden["gen_token_strings"]
    assert special_tokens(["sst"]) == [ANS, PAD, UNK, names["default"]]
    assert special_tokens(["sst", "srl"], True, True) == [ANS, PAD, UNK, SEP, names["add_task_tokens"], "__srl__"]
    assert special_tokens(["sst", "srl"]) == [ANS, PAD, UNK, "__gen__"]


@pytest.mark.parametrize("case", ["no_sep", "no_sep_with_extra", "task_token_no_sep", "sep", "sep_with_extra"])
def test_rows_are_the_originals_but_for_its_faults(golden, tokenizer, case):
    rows, _ = rows_of(golden, tokenizer, case)
    wanted = golden["items"][case]["rows"]
    assert len(rows) == len(wanted)
    for row, want in zip(rows, wanted):
        differs = set()
        if want["idx"] == "q4":
            differs = {"cq"}  # kept more context than cqa
        elif want["idx"] == "q6":
            differs = set(FIELDS)  # an answer longer than what there is room for
        elif want["is_extra"] and want["len_cqa"] == 8:
            differs = set(FIELDS) - {"cq"}  # kept what was generated after the end
        for name in FIELDS:
            theirs = [IGNORE if t == -1 else t for t in want[name]]
            assert (sequences(row)[name] == theirs) == (name not in differs), (want["idx"], name)
        assert row.replayed == bool(want["is_extra"]) and row.id == want["idx"]


def test_a_generated_sample_ends_at_its_end_token(golden, tokenizer):
    rows, encoder = rows_of(golden, tokenizer, "no_sep_with_extra")
    assert golden["extra_rows"][-1][5:] == [227, 68, 299, 187, 49]
    assert rows[-1].cqa == [218, 202, 295, 300, 227, 68] and sequences(rows[-1])["Y"][-3:] == [227, 68, 299]
    assert encoder.counts["no __ans__"] == 1 and encoder.counts["several __ans__"] == 1
    _, encoder = rows_of(golden, tokenizer, "sep_with_extra")
    assert encoder.counts["no __sep__"] == 1


def test_a_generated_sample_without_answer_token_in_reach_is_refused(tokenizer):
    encoder = QuestionEncoder(tokenizer, 16)
    assert encoder.generated([5] * 20 + [300, 7], "__gen__") is None
    assert encoder.counts == {"__ans__ beyond 16 tokens": 1}
    assert len(encoder.generated([5] * 10 + [300] + [7] * 20, "__gen__")) == 15


def test_over_long_answer_is_cut_counted_and_not_ended(golden, tokenizer):
    rows, encoder = rows_of(golden, tokenizer, "no_sep")
    row = next(r for r in rows if r.id == "q6")
    assert len(sequences(row)["gen_X"]) == golden["max_len"] and row.cqa[: row.prompt_length] == row.cq
    full = encoder.tokenize([samples(golden)[-1].answers[0]])[0]
    answer = row.cqa[row.prompt_length :]
    assert answer == full[: len(answer)] and row.last == full[len(answer)]
    assert encoder.counts == {"answer cut": 1, "context cut": 2}


words = st.lists(st.sampled_from(["she", "letter", "__ans__", "the market", "zq", "."]), max_size=30).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(words, words, st.lists(words, max_size=2), st.integers(8, 60), st.booleans())
def test_every_row_fits_and_its_labels_are_its_next_tokens(tokenizer, context, question, answers, max_len, use_sep):
    encoder = QuestionEncoder(tokenizer, max_len, use_sep)
    (row,) = encoder.encode_rows([QA(context, question, answers, "x")], "__gen__")
    _, cqa, labels, gen_x, gen_y = sequences(row).values()
    assert len(gen_x) == len(gen_y) <= max_len and len(labels) == len(cqa)
    assert row.cqa[: len(row.cq)] == row.cq and row.cq[-1] == 300 and row.cqa.count(300) == 1
    assert gen_x[1:] == gen_y[:-1] == row.cqa
    locations = [i for i, y in enumerate(labels) if y != IGNORE]
    assert locations == list(range(len(row.cq) - 1, len(row.cqa)))
    assert [labels[i] for i in locations] == gen_y[len(row.cq) :]
    assert row.cqa.count(305) == use_sep
    assert (row.last != 299) == bool(encoder.counts["answer cut"])
    (prompt,) = encoder.prompts([QA(context, question, ())], 4)
    assert len(prompt) + 4 <= max(max_len, max_len // 2 + 4 + 1) and prompt[-1] == 300


def test_a_vocabulary_without_the_tokens_is_refused(tokenizer):
    with pytest.raises(UserError, match="no token '__srl__'"):
        QuestionEncoder(tokenizer, 64).encode_rows([QA("a", "b", ["c"])], "__srl__")
    with pytest.raises(UserError, match="too few"):
        QuestionEncoder(tokenizer, 4)


def test_many_samples_are_encoded_as_few(golden, tokenizer, monkeypatch):
    whole, _ = rows_of(golden, tokenizer, "no_sep")
    monkeypatch.setattr("versatile.data.encoders.base.CHUNK", 2)
    parts, _ = rows_of(golden, tokenizer, "no_sep")
    assert [sequences(row) for row in parts] == [sequences(row) for row in whole]
