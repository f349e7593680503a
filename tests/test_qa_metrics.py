"""python -m pytest tests/test_qa_metrics.py: answers, replies and summaries."""

import json

import pytest
from conftest import GOLDEN, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.utils import dialogue_metrics, metrics, qa_metrics
from versatile.utils.errors import UserError

SAMPLES = ROOT / "data" / "samples"
answers = st.lists(st.sampled_from(["the", "Farmer's", "red", "barn", "!", "a", "no", "well-known"]), max_size=4)
texts = answers.map(" ".join)
corpora = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=4)), min_size=1, max_size=5)


def values(scores):
    return {name: score.value for name, score in scores.items()}


# --- CoQA ------------------------------------------------------------------------------------------------


def test_coqa_equals_the_official_script(shared_data):
    story = json.loads((shared_data / "coqa" / "coqa-dev-v1.0.json").read_text(encoding="utf-8"))["data"][0]
    annotators = [story["answers"], *story["additional_answers"].values()]
    references = [[answer["input_text"] for answer in turn] for turn in zip(*annotators)]
    predictions = json.loads((GOLDEN / "metrics" / "coqa_pred.json").read_text(encoding="utf-8"))
    assert [p["turn_id"] for p in predictions] == [answer["turn_id"] for answer in story["answers"]]
    golden = json.loads((GOLDEN / "metrics" / "coqa_scores.json").read_text())["overall"]
    scores = metrics.coqa([p["answer"] for p in predictions], references)
    assert {name: round(value, 1) for name, value in values(scores).items()} == {
        "F1": golden["f1"],
        "EM": golden["em"],
    }
    assert scores["F1"].signature.startswith("nrefs:4|multi:leave-one-out|") and "scale:0-100" in scores["F1"].signature


@pytest.mark.parametrize(
    ("answer", "golds", "f1", "em"),
    [
        ("The barn.", ["a barn"], 100, 100),
        ("in a red barn", ["in the barn"], 80, 0),
        ("red red", ["red"], 200 / 3, 0),
        ("wellknown", ["well-known"], 100, 100),
        ("barn in", ["in barn"], 100, 0),
        ("the", ["an!"], 100, 100),
        ("the", ["barn"], 0, 0),
        ("", ["unknown"], 0, 0),
        # Left out in turn: against (blue, red) 1, against (red, red) 1, against (red, blue) 1.
        ("red", ["red", "blue", "red"], 100, 100),
        # Only one annotator agrees, and without them nobody does.
        ("red", ["red", "blue"], 50, 50),
        ("red", ["red", "blue", "green", "grey"], 75, 75),
        ("red barn", ["red barn", "red", "blue"], 100 * (2 + 2 / 3) / 3, 200 / 3),
    ],
)
def test_coqa_by_hand(answer, golds, f1, em):
    assert values(metrics.coqa([answer], [golds])) == pytest.approx({"F1": f1, "EM": em})


@settings(max_examples=100, deadline=None)
@given(texts, st.lists(texts, min_size=2, max_size=5))
def test_leaving_one_out_is_done_as_it_is_said(answer, golds):
    best = [max(qa_metrics.f1(answer, g) for g in golds[:i] + golds[i + 1 :]) for i in range(len(golds))]
    assert qa_metrics.against_all(qa_metrics.f1, answer, golds) == pytest.approx(sum(best) / len(best))


@settings(max_examples=60, deadline=None)
@given(corpora, st.randoms(use_true_random=False))
def test_coqa_is_bounded_and_the_order_does_not_matter(corpus, random):
    scores = values(metrics.coqa(*map(list, zip(*corpus))))
    assert 0 <= scores["EM"] <= scores["F1"] + 1e-9 <= 100 + 2e-9
    shuffled = [(hypothesis, random.sample(group, len(group))) for hypothesis, group in corpus]
    random.shuffle(shuffled)
    assert values(metrics.coqa(*map(list, zip(*shuffled)))) == pytest.approx(scores)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5))
def test_a_gold_answer_scores_100_against_itself(golds):
    assert values(metrics.coqa(golds, [[gold] for gold in golds])) == pytest.approx({"F1": 100, "EM": 100})
    assert values(metrics.coqa(golds, [[gold.upper(), gold] for gold in golds])) == pytest.approx(
        {"F1": 100, "EM": 100}
    )


# --- replies ---------------------------------------------------------------------------------------------


def test_distinct_by_hand():
    replies = ["i like dogs .", "I like cats ."]
    assert metrics.distinct(replies, 1).value == pytest.approx(5 / 8)
    assert metrics.distinct(replies, 2).value == pytest.approx(5 / 6)
    assert metrics.distinct(replies, 4).value == 1
    assert metrics.distinct(replies, 5).value == 0 and metrics.distinct([""], 1).value == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), st.integers(1, 3), st.randoms(use_true_random=False))
def test_distinct_is_bounded_and_falls_when_a_corpus_is_repeated(replies, n, random):
    value = metrics.distinct(replies, n).value
    assert 0 <= value <= 1
    assert metrics.distinct(replies * 2, n).value == pytest.approx(value / 2)
    assert metrics.distinct(random.sample(replies, len(replies)), n).value == value


def test_persona_coverage_by_hand():
    personas = [["i have a dog .", "my dog likes fish ."]]
    # Two sentences; "dog" is in both, "likes" and "fish" in one each: ln(3/3) + 1 and ln(3/2) + 1.
    dog, rare = 1.0, 1.4054651
    assert metrics.persona_coverage(["what about you ?"], personas).value == 0
    assert metrics.persona_coverage(["yes , a dog !"], personas).value == 1
    assert metrics.persona_coverage(["fish"], personas).value == pytest.approx(rare / (dog + 2 * rare))
    # A reply need not repeat the whole persona: one sentence is enough.
    assert metrics.persona_coverage(["my Dog likes fish"], personas).value == 1


def test_a_persona_without_a_content_word_does_not_count():
    score = metrics.persona_coverage(["dogs", "dogs"], [["i love dogs"], ["i am .", ""]])
    assert 0 < score.value < 1 and "counted:1" in score.signature
    assert metrics.persona_coverage(["dogs"], [[]]).value == 0


personas = st.lists(texts, max_size=3)
dialogues = st.lists(st.tuples(texts, personas), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(dialogues, st.randoms(use_true_random=False))
def test_persona_coverage_is_bounded_and_the_order_does_not_matter(pairs, random):
    value = metrics.persona_coverage(*map(list, zip(*pairs))).value
    assert 0 <= value <= 1
    shuffled = [(reply, random.sample(persona, len(persona))) for reply, persona in pairs]
    random.shuffle(shuffled)
    assert metrics.persona_coverage(*map(list, zip(*shuffled))).value == pytest.approx(value)
    # Saying every sentence of the persona covers it fully.
    told = [(" ".join(persona), persona) for _, persona in pairs]
    counted = any(dialogue_metrics.content_words(" ".join(persona)) for _, persona in pairs)
    assert metrics.persona_coverage(*map(list, zip(*told))).value == pytest.approx(float(counted))


def test_the_replies_of_the_sample_dialogues_fit_their_own_persona_best():
    records = json.loads((SAMPLES / "dialogue.json").read_text(encoding="utf-8"))["valid"]
    rows = [(u["candidates"][0], r["personality"]) for r in records for u in r["utterances"]]
    replies, own = map(list, zip(*rows))
    other = own[len(own) // 2 :] + own[: len(own) // 2]
    assert metrics.persona_coverage(replies, own).value > 2 * metrics.persona_coverage(replies, other).value


# --- summaries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It rained. Nobody came! Why? 7 of them knew.", ["It rained.", "Nobody came!", "Why?", "7 of them knew."]),
        ("Mr. J. Smith of the U.S. Army paid 3.5 million.", ["Mr. J. Smith of the U.S. Army paid 3.5 million."]),
        ('"Go." He went (slowly.) So did I', ['"Go."', "He went (slowly.)", "So did I"]),
        ("it ended... then i left. then", ["it ended... then i left. then"]),
        ("Wait… Now", ["Wait…", "Now"]),
        ("One. Two\nThree. Four", ["One. Two", "Three. Four"]),
        (" ", [""]),
    ],
)
def test_sentences_are_found(text, sentences):
    assert metrics.sentence_lines(text).split("\n") == sentences


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="aA. !?\"\n'1", max_size=40))
def test_splitting_into_sentences_changes_only_white_space(text):
    lines = metrics.sentence_lines(text)
    assert "".join(lines.split()) == "".join(text.split())
    assert metrics.sentence_lines(lines) == lines


def test_a_text_of_full_stops_is_split_at_once():
    assert metrics.sentence_lines("." * 300_000) == "." * 300_000
    assert metrics.sentence_lines("A. " * 100_000).startswith("A. A.")


def test_rouge_of_a_summary_does_not_depend_on_how_its_sentences_are_written():
    reference = [["The bridge was closed.\nRepairs take a month."]]
    lines, one = (
        metrics.rouge_summary([text], reference)
        for text in ("Repairs take a month.\nThe bridge was closed.", "Repairs take a month. The bridge was closed.")
    )
    assert values(lines) == values(one) and one["rougeLsum"].value == 1 and one["rougeL"].value == 0.5
    assert one["rougeLsum"].signature.endswith("sentences:lines|split:regex")
    assert list(one) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def test_the_sample_summaries_score_one_against_themselves():
    records = json.loads((SAMPLES / "summarization.json").read_text(encoding="utf-8"))["test"]
    targets = [record["tgt"] for record in records]
    same = metrics.rouge_summary([text.replace("\n", " ") for text in targets], [[text] for text in targets])
    assert all(value == pytest.approx(1) for value in values(same).values())


# --- broken input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: metrics.coqa(["a"], [[]]), "the references are"),
        (lambda: metrics.coqa(["a"], ["a"]), "expected: a list of one or more strings"),
        (lambda: metrics.rouge_summary([None], [["a"]]), "the hypothesis is None"),
        (lambda: metrics.distinct([], 1), "nothing to score"),
        (lambda: metrics.distinct([3], 1), "the hypothesis is 3"),
        (lambda: metrics.distinct(["a"], 0), "n of 1 or more"),
        (lambda: metrics.persona_coverage(["a"], []), "1 hypotheses, but 0 personas"),
        (lambda: metrics.persona_coverage(["a"], ["i am a baker"]), "expected: a list of strings"),
    ],
)
def test_a_wrong_shape_is_named(score, message):
    with pytest.raises(UserError, match=message):
        score()
