"""Where the rows of text-to-text tasks come from: GLUE's folders, files of four kinds, the hub.

    python -m pytest tests/test_text_to_text_sources.py
"""

import csv
import json
import shutil

import datasets
import pytest
from test_text_to_text import GLUE, WORDING, numbered, pairs, write_json
from versatile.data import glue, hub
from versatile.data import text_to_text as t2t
from versatile.utils.errors import UserError

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
