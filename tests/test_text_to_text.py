"""The text-to-text tasks: their wording, answers, splits, sources and scores."""

import csv
import json
import math
import shutil
from collections import namedtuple

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.data import glue, hub, text_task
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


# --- sources ---------------------------------------------------------------------------------------------

HUB_NUMBERS = {"entailment": "0", "neutral": "1", "contradiction": "2"}


def test_labels_of_the_official_folders_go_to_the_hubs_numbers_by_name():
    examples = glue.read_examples(GLUE, "mnli", "train")
    dataset = t2t.load_rows("mnli", "train", data_dir=GLUE)
    assert dataset["target"] == [HUB_NUMBERS[example.label] for example in examples]
    # The official order differs: a number taken over unchanged would be wrong.
    assert glue.TASKS["mnli"].labels.index("contradiction") == 0
    for name, official in (("rte", "rte"), ("qnli", "qnli")):
        expected = [str(int(e.label == "not_entailment")) for e in glue.read_examples(GLUE, official, "dev")]
        assert t2t.load_rows(name, "validation", data_dir=GLUE)["target"] == expected
    for name, official in (("sst2", "sst-2"), ("cola", "cola"), ("mrpc", "mrpc"), ("qqp", "qqp"), ("wnli", "wnli")):
        expected = [example.label for example in glue.read_examples(GLUE, official, "dev")]
        assert t2t.load_rows(name, "validation", data_dir=GLUE)["target"] == expected


def test_mnli_validates_on_the_mismatched_and_tests_on_the_matched_set():
    for split, official in (("validation", "mnli-mm"), ("test", "mnli")):
        examples = glue.read_examples(GLUE, official, "dev")
        expected = [f"premise: {example.text_a} hypothesis {example.text_b}" for example in examples]
        assert t2t.load_rows("mnli", split, data_dir=GLUE)["source"] == expected


ROWS = [
    {"sentence1": 'He said "no", twice', "sentence2": "a\u2028b\x85c", "label": "entailment"},
    {"sentence1": "", "sentence2": "null", "label": "1"},
    {"sentence1": " spaces  kept ", "sentence2": '"', "label": "not_entailment"},
]


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv"])
def test_files_of_all_four_kinds_give_the_same_rows(tmp_path, ending):
    path, columns = tmp_path / "rte" / f"train.{ending}", list(ROWS[0])
    path.parent.mkdir()
    with open(path, "w", encoding="utf-8", newline="") as file:
        if ending == "json":
            json.dump(ROWS, file)
        elif ending == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
        elif ending == "csv":
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(ROWS)
        else:
            file.writelines("\t".join(row) + "\n" for row in (columns, *(row.values() for row in ROWS)))
    expected = [(f"sentence1: {row['sentence1']} sentence2: {row['sentence2']}", target)
                for row, target in zip(ROWS, "011")]  # fmt: skip
    for options in (dict(files=tmp_path / "rte"), dict(files={"train": path}), dict(data_dir=tmp_path)):
        assert pairs(t2t.load_rows("rte", "train", **options)) == expected


def test_a_flat_table_may_name_the_languages_alone(tmp_path):
    (tmp_path / "train.tsv").write_text("en\tro\nOne\tUnu\n", encoding="utf-8")
    assert pairs(t2t.load_rows("wmt16-en-ro", "train", files=tmp_path)) == [("One", "Unu")]


def test_an_escape_without_a_character_becomes_a_question_mark(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"sentence": "a \\ud800 b", "label": 1}\n', encoding="utf-8")
    assert t2t.load_rows("cola", "train", files=tmp_path)["source"] == ["sentence: a ? b"]


def test_a_converted_copy_is_taken_where_the_hubs_data_set_needs_a_script(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        if not kwargs.get("revision"):
            raise RuntimeError("Dataset scripts are no longer supported, but found paws.py")
        return datasets.Dataset.from_list([WORDING["paws"][0]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_reach", lambda name: None)
    assert len(t2t.load_rows("paws", "train")) == 1
    assert asked[1] == (("google-research-datasets/paws",), {
        "split": "train", "revision": "refs/convert/parquet", "data_dir": "labeled_final"})  # fmt: skip


def test_repositories_of_a_script_load_their_converted_copy_one_configuration_after_the_other(monkeypatch):
    """Like `datasets` 5: scripts are refused, a name on that branch is looked up in the cache, a folder is not."""
    cached = set()

    def load_dataset(path, name=None, *, split, revision=None, data_dir=None):
        if path == "allenai/social_i_qa":
            raise FileNotFoundError("the branch is gone")
        if path == "lighteval/siqa":
            return datasets.Dataset.from_list([WORDING["social_i_qa"][0]])
        if revision != "refs/convert/parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found iwslt2017.py")
        if name is not None:
            raise ValueError(f"Couldn't find cache for {path} for config {name!r}. Available: {sorted(cached)}")
        cached.add(data_dir)
        return datasets.Dataset.from_list([{"translation": {"ro": data_dir, "en": data_dir, "nl": data_dir}}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_reach", lambda name: None)
    for name in ("iwslt2017-ro-nl", "iwslt2017-en-nl"):
        assert t2t.load_rows(name, "test")["target"] == [name]
    assert len(t2t.load_rows("social_i_qa", "validation")) == 1


def test_without_the_hub_the_user_is_told_which_files_would_do(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    for options in ({}, {"data_dir": tmp_path}):
        with pytest.raises(UserError) as error:
            t2t.load_rows("paws", "train", **options)
        assert "the hub cannot be reached" in error.value.found
        assert error.value.location == "google-research-datasets/paws/labeled_final"
        assert "{train,validation,test}.{json,jsonl,csv,tsv}" in error.value.remedy
    assert f"{tmp_path} holds no data of paws" in error.value.found
    with pytest.raises(UserError, match="sick is not on the hub"):
        t2t.load_rows("sick", "train")


@pytest.mark.parametrize(
    "file, text, location, says",
    [
        ("train.json", '[{"sentence": "a", "label": 2}]', "[0]", "the label is 2"),
        ("train.json", '[{"sentence": "a", "label": 1}, {"sentence": "a", "label": -1}]', "[1]", "the label is -1"),
        ("train.json", '[{"sentence": "a", "label": null}]', "[0]", "the label is None"),
        ("train.json", '[{"sentence": 3, "label": 1}]', "[0]", "'sentence' is 3"),
        ("train.json", '[{"text": "a", "label": 1}]', "[0]", "has no 'sentence'; it has 'text', 'label'"),
        ("train.json", '["a"]', "[0]", "is 'a'"),
        ("train.json", "[]", "", "holds no rows"),
        ("train.jsonl", '{"sentence": "a", "label": 1}\n{"sentence": \n', ":2", "is not JSON"),
        ("train.jsonl", "[" * 100000, "", "is not|nested|JSON"),
        ("train.csv", "sentence,label\na,1\nb\n", ":3", "1 columns"),
        ("train.csv", "sentence,sentence\na,1\n", ":1", "the same name"),
        ("train.tsv", "sentence\tlabel\na\t1\tx\n", ":2", "3 columns"),
        ("train.tsv", "", "", "holds no rows"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path, file, text, location, says):
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says) as error:
        t2t.load_rows("cola", "train", files=tmp_path)
    assert str(error.value.location).startswith(str(tmp_path / file) + location)


@pytest.mark.parametrize("score", ["7.3", "-3", "1e39", "NaN", "1" * 400, '"good"', "true"])
def test_a_similarity_that_is_none_is_refused(score, tmp_path):
    (tmp_path / "train.jsonl").write_text(f'{{"sentence1": "a", "sentence2": "b", "label": {score}}}\n')
    with pytest.raises(UserError, match=r"the score is .*|NaN is not JSON") as error:
        list(t2t.load_rows("stsb", "train", files=tmp_path))
    assert str(error.value.location) == f"{tmp_path / 'train.jsonl'}:1"


def test_a_tasks_own_folder_is_read_under_any_name_of_a_split_and_never_beside_other_data(tmp_path):
    (tmp_path / "rte").mkdir()
    row = '{"sentence1": "a", "sentence2": "b", "label": 0}\n'
    for name in ("train", "dev"):
        (tmp_path / "rte" / f"{name}.jsonl").write_text(row * (1 + (name == "dev")))
    assert [len(list(t2t.load_rows("rte", split, data_dir=tmp_path))) for split in ("train", "validation")] == [1, 2]
    (tmp_path / "rte/dev.jsonl").unlink()
    shutil.copytree(GLUE / "RTE", tmp_path / "RTE")
    with pytest.raises(UserError, match="has no file of rte for validation") as error:
        list(t2t.load_rows("rte", "validation", data_dir=tmp_path))
    assert error.value.location == tmp_path / "rte"


def test_folders_and_names_that_cannot_be_meant_are_refused(tmp_path):
    numbered(tmp_path, {"train": 3})
    (tmp_path / "train.csv").write_text("sentence1,sentence2,label\n")
    for call, says in (
        (lambda: t2t.load_rows("rte", "train", files=tmp_path), "has both train.json and train.csv"),
        (lambda: t2t.load_rows("rte", "validation", files=tmp_path), "has no file of rte for validation"),
        (lambda: t2t.load_rows("rte", "validation", files={"train": "x.json"}), "no file is given for validation"),
        (lambda: t2t.load_rows("rte", "train", files={"train": tmp_path / "x.txt"}), "is a '.txt' file"),
        (lambda: t2t.load_rows("rte", "train", files=tmp_path / "none"), "no such folder"),
        (lambda: t2t.load_rows("rte", "train", data_dir=tmp_path / "none"), "no such folder"),
        (lambda: t2t.load_rows("rte", "dev", files=tmp_path), "unknown split 'dev'"),
        (lambda: t2t.load_rows("sst-5", "train"), "unknown task 'sst-5'"),
    ):
        with pytest.raises(UserError, match=says):
            call()


@pytest.mark.slow
def test_real_glue_has_the_sizes_and_answers_of_its_files(shared_data):
    sizes = {}
    for name in ("rte", "cola", "mrpc", "stsb", "wnli", "sst2"):
        splits = {split: t2t.load_rows(name, split, data_dir=shared_data / "glue", split_validation_test=True)
                  for split in t2t.SPLITS}  # fmt: skip
        sizes[name] = [len(dataset) for dataset in splits.values()]
        for dataset in splits.values():
            assert set(dataset["target"]) <= set(t2t.get_task(name).answers)
    assert sizes == {"rte": [2127, 138, 139], "cola": [8551, 521, 522], "mrpc": [3668, 204, 204],
                     "stsb": [5749, 750, 750], "wnli": [518, 35, 36], "sst2": [4000, 1000, 872]}  # fmt: skip


def test_yelp_polarity_as_its_original_files_number_it_is_refused(tmp_path):
    path = tmp_path / "yelp_polarity" / "train.csv"
    path.parent.mkdir()
    for labels, found in (("112", "train.csv:4: the label is 2"), ("11", "every label is 1")):
        path.write_text("label,text\n" + "".join(f"{label},Some text.\n" for label in labels), encoding="utf-8")
        with pytest.raises(UserError) as error:
            t2t.load_rows("yelp_polarity", "train", tmp_path, n_obs=1)
        assert found in str(error.value) and "write neg" in str(error.value)
    path.write_text("label,text\npos,Good.\nneg,Bad.\n", encoding="utf-8")
    assert t2t.load_rows("yelp_polarity", "train", tmp_path)["target"] == ["1", "0"]


def test_blank_targets_are_said_and_left_out(tmp_path, caplog):
    path = tmp_path / "wmt16-ro-en" / "test.json"
    path.parent.mkdir()
    write_json(path, [{"translation": {"ro": "Da.", "en": "Yes."}}, {"translation": {"ro": "Nu.", "en": " "}}])
    assert t2t.load_rows("wmt16-ro-en", "test", tmp_path)["target"] == ["Yes."]
    assert "1 of 2 rows for test have a blank target" in caplog.text
    write_json(path, [{"translation": {"ro": "Nu.", "en": ""}}])
    with pytest.raises(UserError, match="the targets of all rows for test \\(1\\) are blank"):
        t2t.load_rows("wmt16-ro-en", "test", tmp_path)
