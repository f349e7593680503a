"""The text-to-text tasks: their wording, answers, splits and scores."""

import json
import math
from collections import namedtuple

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.data import hub, text_task
from versatile.data import text_to_text as t2t
from versatile.utils.errors import UserError

from tests.conftest import GOLDEN
from tests.scripts import SAMPLES

GLUE = SAMPLES / "glue"
PUBLISHED = json.loads((GOLDEN / "hyperformer" / "metrics.json").read_text())

PAIR = {"sentence1": "One.", "sentence2": "Two."}
NLI = {"premise": "One.", "hypothesis": "Two."}
SAID_PAIR, SAID_NLI = "sentence1: One. sentence2: Two.", "premise: One. hypothesis: Two."
LANGUAGES = {"ro": "Unu", "en": "One", "nl": "Een", "cs": "Jedna", "fi": "Yksi", "hi": "Ek"}
TRANSLATION = {"translation": LANGUAGES}
# task -> (a row as on the hub, its source, its target)
WORDING = {
    "rte": (PAIR | {"label": 1}, SAID_PAIR, "1"),
    "sst2": ({"sentence": "One.", "label": 1}, "sentence: One.", "1"),
    "mrpc": (PAIR | {"label": 0}, SAID_PAIR, "0"),
    "stsb": (PAIR | {"label": 3.799999952316284}, SAID_PAIR, "3.8"),
    "qqp": ({"question1": "One?", "question2": "Two?", "label": 1}, "question1: One? question2: Two?", "1"),
    "mnli": (NLI | {"label": 2}, "premise: One. hypothesis Two.", "2"),
    "qnli": ({"question": "One?", "sentence": "Two.", "label": 0}, "question: One? sentence: Two.", "0"),
    "cola": ({"sentence": "One.", "label": 0}, "sentence: One.", "0"),
    "wnli": (PAIR | {"label": 1}, SAID_PAIR, "1"),
    "imdb": ({"text": "One.", "label": 0}, "One.", "0"),
    "yelp_polarity": ({"text": "One.", "label": 1}, "sentence: One.", "1"),
    "trec": ({"text": "One?", "coarse_label": 5, "fine_label": 40}, "sentence: One?", "5"),
    "paws": ({"id": 1, "label": 1} | PAIR, SAID_PAIR, "1"),
    "scitail": (PAIR | {"gold_label": "neutral"}, SAID_PAIR, "1"),
    "sick": (NLI | {"label": "CONTRADICTION"}, SAID_NLI, "2"),
    "snli": (NLI | {"label": 0}, SAID_NLI, "0"),
    "superglue-cb": (NLI | {"label": 2}, SAID_NLI, "2"),
    "superglue-rte": (NLI | {"label": 1}, SAID_NLI, "1"),
    "superglue-boolq": ({"question": "q", "passage": "p", "label": 1}, "question: q passage: p", "1"),
    "social_i_qa": (dict(question="q", context="c", answerA="a", answerB="b", answerC="d", label="3\n"),
                    "question: q context: c answerA: a answerB: b answerC: d", "2"),
    "cosmos_qa": (dict(question="q", context="c", answer0="a", answer1="b", answer2="d", answer3="e", label=3),
                  "question: q context: c answer0: a answer1: b answer2: d answer3: e", "3"),
    "winogrande": (dict(sentence="s _", option1="a", option2="b", answer="2"),
                   "sentence: s _ option1: a option2: b", "2"),
    "hellaswag": (dict(ctx="c", endings=list("abde"), label="2"),
                  "ctx: c ending0: a ending1: b ending2: d ending3: e", "2"),
    "commonsense_qa": (dict(question="q", choices={"label": list("ABCDE"), "text": list("vwxyz")}, answerKey="E"),
                       "question: q A: v B: w C: x D: y E: z", "4"),
    "iwslt2017-ro-nl": (TRANSLATION, "Unu", "Een"), "iwslt2017-en-nl": (TRANSLATION, "One", "Een"),
    "wmt16-en-ro": (TRANSLATION, "One", "Unu"), "wmt16-ro-en": (TRANSLATION, "Unu", "One"),
    "wmt16-en-cs": (TRANSLATION, "One", "Jedna"), "wmt16-en-fi": (TRANSLATION, "One", "Yksi"),
    "wmt14-hi-en": (TRANSLATION, "One", "Ek"),
}  # fmt: skip
PREFIXES = {
    "iwslt2017-ro-nl": "Translate Romanian to Dutch", "iwslt2017-en-nl": "Translate English to Dutch",
    "wmt16-en-ro": "Translate English to Romanian", "wmt16-ro-en": "Translate Romanian to English",
    "wmt16-en-cs": "Translate English to Czech", "wmt16-en-fi": "Translate English to Finnish",
    "wmt14-hi-en": "Translate English to Hindi",
}  # fmt: skip
HALVED = {
    "cola",
    "wnli",
    "rte",
    "trec",
    "superglue-cb",
    "sick",
    "mrpc",
    "stsb",
    "imdb",
    "commonsense_qa",
    "superglue-boolq",
}
HELD_OUT = {"yelp_polarity", "qqp", "qnli", "social_i_qa", "cosmos_qa", "winogrande", "hellaswag", "sst2"}


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def pairs(dataset):
    return list(zip(dataset["source"], dataset["target"]))


def numbered(folder, sizes, task="rte"):
    """Files of a task whose source texts are numbers: {split: rows}."""
    for split, size in sizes.items():
        rows = [{"sentence1": f"{split} {i}", "sentence2": "b", "sentence": "", "label": i % 2} for i in range(size)]
        if task != "rte":
            rows = [row | {"sentence": row["sentence1"]} for row in rows]
        write_json(folder / f"{split}.json", rows)
    return folder


def numbers(dataset):
    """(file, number) of every row."""
    texts = [source.split(": ", 1)[1].removesuffix(" sentence2: b").split() for source in dataset["source"]]
    return [(split, int(number)) for split, number in texts]


# --- wording and answers ---------------------------------------------------------------------------------


def test_every_published_task_is_there():
    assert set(t2t.TASKS) == set(WORDING)
    assert {name for name, task in t2t.TASKS.items() if task.rule == "halved"} == HALVED
    assert {name for name, task in t2t.TASKS.items() if task.rule == "held out"} == HELD_OUT


@pytest.mark.parametrize("name", WORDING)
def test_a_row_becomes_the_published_source_and_target(name, tmp_path):
    record, source, target = WORDING[name]
    write_json(tmp_path / "train.json", [record])
    dataset = t2t.load_rows(name, "train", files=tmp_path)
    assert dataset.column_names == ["source", "target", "task"] and set(dataset.features) == set(dataset.column_names)
    assert all(feature.dtype == "string" for feature in dataset.features.values())
    assert dataset[0] == {"source": source, "target": target, "task": name}
    prefixed = t2t.load_rows(name, "train", files=tmp_path, prefix=True)[0]["source"]
    assert prefixed == f"{PREFIXES.get(name, name)} {source}"
    task = t2t.get_task(name)
    assert task.valid(target) and task.score([target, target], [target, target])


def test_the_wording_is_the_same_from_the_columns_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(path, config=None, *, split, revision=None, data_dir=None):
        assert (revision is None) == (path not in hub._SCRIPTS) == (data_dir is None)
        asked.append((path, config or data_dir, split))
        return datasets.Dataset.from_list([WORDING[name][0]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_reach", lambda name: None)
    for name in WORDING.keys() - {"sick"}:
        for split in t2t.SPLITS:
            _, source, target = WORDING[name]
            assert t2t.load_rows(name, split)[0] == {"source": source, "target": target, "task": name}
    assert ("CogComp/trec", "default", "test") in asked and ("CogComp/trec", "default", "validation") not in asked
    assert {split for path, config, split in asked if (path, config) == ("nyu-mll/glue", "stsb")} == {
        "train",
        "validation",
    }
    assert [split for _, config, split in asked if config == "mnli"] == [
        "train", "validation_mismatched", "validation_matched"]  # fmt: skip


@pytest.mark.parametrize("score, _, text, single, from_single", PUBLISHED["round_stsb_target"])
def test_scores_are_rounded_to_a_tenth_as_published(score, _, text, single, from_single):
    assert str(text_task.round_score(score)) == text
    assert t2t.get_task("stsb").target(f"{score:.3f}", "here") == text == from_single
    assert text_task.round_score(score) == pytest.approx(single)


@pytest.mark.parametrize("name", PUBLISHED["postprocessor_of"])
def test_generated_texts_are_read_as_published(name):
    task = t2t.get_task(name)
    assert {"string_to_float": float, "string_to_int": int, None: None}[
        PUBLISHED["postprocessor_of"][name]
    ] is task.numbers
    for text, expected in PUBLISHED["postprocess"].get(name, []):
        got = task.postprocess(text)
        assert type(got) is task.numbers and (math.isnan(got) if expected is None else got == expected)


def test_a_generated_text_is_an_answer_or_counted_as_invalid():
    texts = ["1", " 0 ", "2", "", "01", "1.0", "yes"]
    assert [t2t.get_task("rte").valid(text) for text in texts] == [True, True, False, False, False, False, False]
    assert t2t.get_task("mnli").valid("2") and not t2t.get_task("winogrande").valid("0")
    scores = ["3.8", "5", "3.85", "0.0", "-1", "5.2", "nan", "inf", "three", ""]
    assert [t2t.get_task("stsb").valid(text) for text in scores] == [True] * 4 + [False] * 6
    assert t2t.get_task("stsb").invalid(scores) == 6 and t2t.get_task("wmt16-en-ro").invalid(["", "x"]) == 0


def test_the_longest_answer_gives_the_decoding_length():
    Encoded = namedtuple("Encoded", "input_ids")
    characters = lambda text: Encoded([*map(ord, text), 1])  # noqa: E731
    lengths = {name: task.max_target_length(characters) for name, task in t2t.TASKS.items()}
    assert lengths.pop("stsb") == 4
    assert {name for name, length in lengths.items() if length == 300} == set(PREFIXES)
    assert {length for name, length in lengths.items() if name not in PREFIXES} == {2}
    assert {name for name, task in t2t.TASKS.items() if task.num_beams} == set(PREFIXES)


# --- scores ----------------------------------------------------------------------------------------------


def test_scores_of_texts_are_the_published_ones():
    case = PUBLISHED["classification"]
    texts = [list(map(str, case[side])) for side in ("predictions", "targets")]
    assert t2t.get_task("mrpc").score(*texts) == pytest.approx(case["f1_with_invalid"] | case["accuracy"])
    assert t2t.get_task("cola").score(*texts) == pytest.approx(case["mcc"])
    case = PUBLISHED["regression"]
    texts = [list(map(str, case[side])) for side in ("predictions", "targets")]
    assert t2t.get_task("stsb").score(*texts) == pytest.approx(case["pearson"] | case["spearman"])
    case = PUBLISHED["bleu"]
    texts = case["predictions"], case["targets"]
    assert t2t.get_task("wmt16-en-ro").score(*texts) == pytest.approx(case["out"], abs=1e-4)
    rouge = PUBLISHED["rouge_newline_sep_false_seed0"]["out"]
    assert text_task.METRICS["rouge"](*texts) == pytest.approx(rouge, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["rte", "mnli", "mrpc", "cola", "stsb", "qqp"]))
def test_whatever_is_generated_has_a_finite_score(data, name):
    task = t2t.get_task(name)
    targets = data.draw(st.lists(st.sampled_from(task.answers), min_size=1, max_size=8))
    texts = st.one_of(st.text(max_size=6), st.sampled_from([*task.answers, "9" * 30, "1e999", "nan", "-inf", "1_0"]))
    predictions = data.draw(st.lists(texts, min_size=len(targets), max_size=len(targets)))
    scores = task.score(predictions, targets)
    assert all(math.isfinite(value) and -100 <= value <= 100 + 1e-9 for value in scores.values())
    if not any(map(task.valid, predictions)) and "acc" in scores:
        assert scores["acc"] == 0


def test_the_average_is_over_all_metric_values():
    assert text_task.average({"mrpc": {"f1": 90.0, "acc": 60.0}, "cola": {"mcc": 30.0}}) == 60


# --- splits ----------------------------------------------------------------------------------------------


def test_without_the_split_rule_the_test_set_is_the_validation_set_and_rows_keep_their_order(tmp_path):
    files = numbered(tmp_path, {"train": 5, "validation": 4})
    assert numbers(t2t.load_rows("rte", "train", files=files)) == [("train", i) for i in range(5)]
    assert numbers(t2t.load_rows("rte", "test", files=files)) == [("validation", i) for i in range(4)]
    numbered(tmp_path, {"test": 3})
    assert numbers(t2t.load_rows("rte", "test", files=files)) == [("test", i) for i in range(3)]


@pytest.mark.parametrize("seed", [42, 7])
def test_a_small_task_halves_its_validation_set_by_the_published_permutation(tmp_path, seed):
    files = numbered(tmp_path, {"train": 5, "validation": 31})
    options = dict(files=files, split_validation_test=True, seed=seed)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(seed)).tolist()
    assert numbers(t2t.load_rows("rte", "validation", **options)) == [("validation", i) for i in order[:15]]
    assert numbers(t2t.load_rows("rte", "test", **options)) == [("validation", i) for i in order[15:]]
    assert numbers(t2t.load_rows("rte", "train", **options)) == [("train", i) for i in range(5)]


def test_the_thousand_rows_of_a_large_task_that_validate_are_not_trained_on(tmp_path):
    files = numbered(tmp_path, {"train": 1040, "validation": 6}, task="sst2")
    options = dict(files=files, split_validation_test=True)
    order = torch.randperm(1040, generator=torch.Generator().manual_seed(42)).tolist()
    train, validation = (numbers(t2t.load_rows("sst2", split, **options)) for split in ("train", "validation"))
    assert validation == [("train", i) for i in order[:1000]] and train == [("train", i) for i in order[1000:]]
    assert not set(train) & set(validation)
    assert numbers(t2t.load_rows("sst2", "test", **options)) == [("validation", i) for i in range(6)]


def test_of_a_thousand_rows_and_fewer_half_is_held_out(tmp_path):
    files = numbered(tmp_path, {"train": 21, "validation": 6}, task="sst2")
    options = dict(files=files, split_validation_test=True)
    train, validation = (numbers(t2t.load_rows("sst2", split, **options)) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (11, 10) and not set(train) & set(validation)


def test_a_negative_number_of_rows_means_all_of_them_and_a_positive_one_a_drawn_sample(tmp_path):
    files = numbered(tmp_path, {"train": 9, "validation": 8})
    every = numbers(t2t.load_rows("rte", "train", files=files))
    assert numbers(t2t.load_rows("rte", "train", files=files, n_obs=-1)) == every and len(every) == 9
    order = torch.randperm(9, generator=torch.Generator().manual_seed(42)).tolist()
    assert numbers(t2t.load_rows("rte", "train", files=files, n_obs=3)) == [every[i] for i in order[:3]]
    assert sorted(numbers(t2t.load_rows("rte", "train", files=files, n_obs=100))) == every
    half = numbers(t2t.load_rows("rte", "test", files=files, split_validation_test=True))
    assert numbers(t2t.load_rows("rte", "test", files=files, split_validation_test=True, n_obs=2)) == half[:2]
    with pytest.raises(UserError, match="0 rows"):
        t2t.load_rows("rte", "train", files=files, n_obs=0)


def test_snli_rows_without_a_gold_label_are_left_out(tmp_path, monkeypatch):
    rows = [NLI | {"label": label} for label in (0, -1, 2)]
    files = {"train": write_json(tmp_path / "train.json", rows)}
    assert t2t.load_rows("snli", "train", files=files)["target"] == ["0", "2"]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.Dataset.from_list(rows))
    monkeypatch.setattr(hub, "_reach", lambda name: None)
    assert t2t.load_rows("snli", "train")["target"] == ["0", "2"]
