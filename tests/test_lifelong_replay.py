"""lifelong/replay.py: what is drawn and on what it depends, what is refused, what is written."""

import json

import lifelong_models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lifelong_models import ANS, EOS, GEN, golden_tokenizer, model, tensors, values
from transformers import TopKLogitsWarper
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.data.encoders.question_answer import PAD, QuestionEncoder, special_tokens
from versatile.data.question_samples import QA
from versatile.lifelong import replay
from versatile.lifelong.losses import LM, Objective
from versatile.lifelong.replay import Sampling, generate_samples, quotas
from versatile.training.decoding import Decoding, Prompt, decode
from versatile.utils.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    made = golden_tokenizer()
    made.pad_token = PAD
    return made


@pytest.fixture(scope="module")
def student():
    """The golden model of 306 tokens, made to say __ans__ and eos often enough."""
    weights = tensors("model_student306")
    weights["transformer.wte.weight"][[ANS, EOS]] *= torch.tensor([[1.6], [-2.0]])
    return model(weights).eval()


@pytest.fixture
def encoder(tokenizer):
    return QuestionEncoder(tokenizer, 24)


def test_top_k_is_the_originals():
    """All scores tied with the k-th are kept. Its top-p is ignored; ours is transformers'."""
    found = tensors("top_k")
    for k in (1, 5, 20, 100):
        assert torch.equal(TopKLogitsWarper(k)(None, found["logits"]), found[f"top{k}"])
    assert torch.equal(found["top0"], found["logits"])
    assert torch.equal(TopKLogitsWarper(2)(None, found["tie_logits"]), found["tie_top2"])
    assert torch.equal(found["top5"], found["top5_topp0.5_ignored"])


def test_greedy_answers_are_the_originals():
    """Through training/decoding.py, whose prompts need no token types."""
    golden, names = values("cached_greedy"), lifelong_models.tokenizer()
    names.pad_token = PAD
    prompts = [Prompt(ids, None, 0, golden["eos"]) for ids in golden["prompts"]]
    answers = decode(model(tensors(golden["model"])).eval(), names, prompts, Decoding(max_length=12, batch_size=3))
    assert [p + a for p, a in zip(golden["prompts"], answers)] == golden["outputs"]


def test_samples_depend_on_seed_task_and_place_alone(student, tokenizer, encoder):
    def draw(count=8, **how):
        sampling = Sampling(batch_size=4, seed=how.pop("seed", 1))
        return generate_samples(student, tokenizer, encoder, "__gen__", count, sampling, **how)

    first = draw()
    torch.rand(7)
    assert draw() == first and draw(4) == first[:4] and len(first) == 8
    assert first[:4] != first[4:] and draw(seed=2) != first and draw(number=1) != first


@pytest.mark.parametrize("sampling", [Sampling(top_k=1), Sampling(top_k=0, top_p=1e-6), Sampling(top_k=3)])
def test_every_token_is_one_that_the_model_ranks_high(student, tokenizer, encoder, sampling):
    """Against the model's scores without cache or batch."""
    rank = max(sampling.top_k, 1)
    for ids in generate_samples(student, tokenizer, encoder, "__gen__", 6, sampling):
        scores = student(input_ids=torch.tensor([[GEN, *ids]])).logits[0]
        scores[:, [301, 302, 303, 304, 305]] = float("-inf")
        for i, token in enumerate(ids):
            assert scores[i, token] >= scores[i].topk(rank).values[-1] - 1e-4


def test_samples_end_and_hold_no_other_special_token(student, tokenizer, encoder):
    samples = generate_samples(student, tokenizer, encoder, "__gen__", 64, Sampling())
    for ids in samples:
        assert not {301, 302, 303, 304, 305} & set(ids) and EOS not in ids[:-1]
        assert ids[-1] == EOS or len(ids) == encoder.max_len
    assert any(ANS in ids for ids in samples) and any(ids[-1] == EOS for ids in samples)


def test_what_is_kept_and_what_is_refused_add_up_and_is_read_again(student, tokenizer, encoder, tmp_path, monkeypatch):
    path = tmp_path / "generated.jsonl"
    given = path, "taskA", "__gen__", 64, student, tokenizer, encoder, Sampling()
    rows, report = replay.load_or_generate(*given)
    assert report["kept"] == len(rows) > 3 and report["kept"] + sum(report["rejected"].values()) == 64
    assert set(report["rejected"]) <= {"no __ans__", "several __ans__", "__ans__ beyond 24 tokens"}
    assert all(r.replayed and r.task == "taskA" and r.gen == GEN and r.cqa.count(ANS) == 1 for r in rows)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [set(r) for r in records] == [{"task", "context", "question", "answer", "ids"}] * len(rows)
    assert sum(r["ids"][-1] != EOS for r in records) == report["unfinished"]
    labels = [[*r.cqa, r.last] for r in rows]
    assert labels == [r["ids"] for r in records], "an unfinished one's last label is its next token"
    monkeypatch.setattr(replay, "generate_samples", None)
    again, same = replay.load_or_generate(*given)
    assert same == report and [r.cqa for r in again] == [r.cqa for r in rows]
    with pytest.raises(TypeError):
        replay.load_or_generate(*given[:-1], Sampling(seed=43))
    whole = path.read_bytes()
    for content, words in ((b"", "holds 0 samples"), (whole[: whole.index(b"\n") + 1], "holds 1 samples"),
                           (whole[:-1] + b"\xff\n", "not UTF-8")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UserError, match=words) as error:
            replay.load_or_generate(*given)
        assert "generated again" in error.value.remedy
    # Without a whole report the samples are drawn again.
    path.with_suffix(".report.json").write_text('{"asked": 64}')
    with pytest.raises(TypeError):
        replay.load_or_generate(*given)


def test_texts_of_a_written_sample_can_be_read(tokenizer, tmp_path):
    encoder = QuestionEncoder(tokenizer, 64, use_sep=True)
    the, pub, near = encoder.tokenize(["the river", "what is it ?", "a pub"])
    replay.write_samples(tmp_path / "x.jsonl", [[*the, 305, *pub, ANS, *near, EOS]], tokenizer, encoder, "squad1")
    record = json.loads((tmp_path / "x.jsonl").read_text())
    assert (record["context"], record["question"], record["answer"]) == ("the river", "what is it ?", "a pub")
    bare = QuestionEncoder(tokenizer, 64)
    replay.write_samples(tmp_path / "y.jsonl", [[*pub, ANS, EOS]], tokenizer, bare, "squad1")
    record = json.loads((tmp_path / "y.jsonl").read_text())
    assert (record["context"], record["question"], record["answer"]) == ("", "what is it ?", "")


BROKEN = ["{", "[1]", '{"ids": "x"}', '{"ids": [5, 5]}', '{"ids": [5, 300, 9999]}', '{"ids": [true, 300]}']


@pytest.mark.parametrize("line", BROKEN)
def test_a_line_that_is_no_sample_is_named(encoder, tmp_path, line):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"ids": [5, 300, 6]}\n' + line + "\n")
    with pytest.raises(UserError, match=r"broken\.jsonl:2"):
        replay.read_samples(path, encoder, "__gen__", "a")


@given(st.integers(1, 200_000), st.sampled_from([0.0, 0.03, 0.05, 0.07, 0.2, 1.0]), st.integers(1, 6))
def test_equal_shares_are_rounded_down(size, percentage, count):
    shares = quotas(size, percentage, [f"t{i}" for i in range(count)])
    (share,) = set(shares.values())
    assert share * count <= size * percentage + 1 and (share + 1) * count > size * percentage - 1e-6


def test_shares_of_the_paper():
    assert quotas(100, 0.07, ["a"]) == {"a": 7}
    assert quotas(10, 0.05, ["a"]) == {"a": 1}
    assert quotas(6604, 0.05, ["a", "b"]) == {"a": 165, "b": 165}
    assert quotas(10, 0.05, ["a", "b"]) == {"a": 0, "b": 0}


def test_samples_begin_after_what_stands_before_their_start_token(student, tokenizer):
    plain, led = QuestionEncoder(tokenizer, 24), QuestionEncoder(tokenizer, 24, before_gen=(EOS,))
    greedy = Sampling(top_k=1, batch_size=2)
    name = tokenizer.convert_ids_to_tokens(GEN)
    one, other = (generate_samples(student, tokenizer, encoder, name, 1, greedy)[0] for encoder in (plain, led))
    for found, ids in ((one, [GEN]), (other, [EOS, GEN])):
        for token in found[:5]:
            with torch.no_grad():
                scores = student(input_ids=torch.tensor([ids])).logits[0, -1]
            scores[sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {ANS, EOS})] = -torch.inf
            assert token == int(scores.argmax())
            ids = [*ids, token]
    row = led.encode_rows([QA("a b", "c?", ("d",))], name)[0]
    (_, (kind, ids, start)) = Objective(before_gen=(EOS,)).sequences(row)
    assert (kind, ids, start) == (LM, [EOS, GEN, *row.cqa, row.last], 2)


def test_an_adapter_model_generates_too():
    backbone, tokenizer = backbones.load_backbone("tiny-gpt2", random_init=1)
    learner = attach(backbone, tokenizer, {"all": special_tokens(["a"]), "b": ["__b__"]}, {"all": 4, "b": 0},
                     mask_other_tasks=False).eval()  # fmt: skip
    encoder = QuestionEncoder(tokenizer, 16)
    samples = generate_samples(learner, tokenizer, encoder, "__b__", 5, Sampling(top_k=0), task_id=1)
    assert len(samples) == 5 and all(len(ids) <= 16 for ids in samples)
    assert samples == generate_samples(learner, tokenizer, encoder, "__b__", 5, Sampling(top_k=0), task_id=1)
