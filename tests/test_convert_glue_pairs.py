"""`python -m data.convert glue-pairs`: numbered pairs become files that read like GLUE's own.

    python -m pytest tests/test_convert_glue_pairs.py
"""

import json

import pytest
from versatile.data import convert, glue
from versatile.utils.errors import UserError


def pairs(path, *rows):
    path.write_text(json.dumps({str(i): dict(text_a=a, text_b=b, label=c) for i, (a, b, c) in enumerate(rows)}))
    return path


def run(tmp_path, task, **splits):
    words = [word for split, path in splits.items() for word in (f"--{split}", str(path))]
    return convert.convert(["glue-pairs", "--task", task, *words, "--output", str(tmp_path / "glue")])


def test_what_is_written_reads_like_glue(tmp_path):
    train = pairs(tmp_path / "a.json", ('He "said\tso.', "He\nspoke. ", "entailment"), ("A", "B  c", "neutral"))
    valid = pairs(tmp_path / "b.json", ("C", "D", "contradiction"))
    report = run(tmp_path, "mnli", train=train, valid=valid)
    assert report.kept == {"train": 2, "valid": 1}
    rows = glue.read_examples(tmp_path / "glue", "mnli", "train")
    assert [(r.text_a, r.text_b, r.label) for r in rows] == [
        ('He "said so.', "He spoke.", "entailment"), ("A", "B  c", "neutral")]  # fmt: skip
    assert (tmp_path / "glue/MNLI/dev_matched.tsv").is_file()
    assert [r.label for r in glue.read_examples(tmp_path / "glue", "mnli", "dev")] == ["contradiction"]


@pytest.mark.parametrize(("task", "label", "kept"), [("qqp", "1", "1"), ("qqp", 0, "0"), ("sts-b", 3.8, 3.8)])
def test_labels_are_numbers_or_their_texts(tmp_path, task, label, kept):
    run(tmp_path, task, train=pairs(tmp_path / "a.json", ("a", "b", label)))
    assert [r.label for r in glue.read_examples(tmp_path / "glue", task, "train")] == [kept]


@pytest.mark.parametrize(("task", "row", "words"), [
    ("qqp", ("a", "b", "2"), "the label is '2'"), ("mnli", ("a", "b", "0"), "the label is '0'"),
    ("sts-b", ("a", "b", 6), "the score is '6'"), ("qqp", ("a", "b", None), "'label' is None"),
    ("qqp", ("a", "b", True), "'label' is True"), ("qqp", ("a", " ", "1"), "'text_b' is blank"),
    ("qqp", (3, "b", "1"), "text_a"),
])  # fmt: skip
def test_a_bad_pair_is_named_and_nothing_is_written(tmp_path, task, row, words):
    path = pairs(tmp_path / "a.json", ("a", "b", "1.0" if task == "sts-b" else glue.get_task(task).labels[0]), row)
    with pytest.raises(UserError, match="--skip_bad") as error:
        run(tmp_path, task, train=path)
    assert words in str(error.value) and error.value.location == f"{path}:1"
    assert not (tmp_path / "glue").exists()
    command = ["glue-pairs", "--task", task, "--train", str(path), "--skip_bad", "--output", str(tmp_path / "glue")]
    report = convert.convert(command)
    assert report.kept["train"] == 1 and report.dropped["train"] == {"malformed": 1}


@pytest.mark.parametrize("text", ["[1, 2]", '{"0": [1, 2]}', '{"0": 3}', '{"0": {"text_a": "x"', "", "{}"])
def test_a_file_of_another_kind_is_one_message(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        run(tmp_path, "qqp", train=path)
    assert error.value.expected and "train" not in error.value.expected
    assert not (tmp_path / "glue").exists()


def test_rows_are_held_out_of_the_training_file(tmp_path):
    rows = [(f"a{i}", f"b{i}", "1") for i in range(5)]
    path = pairs(tmp_path / "a.json", *rows, ("a9", "b9", "0"), ("a1", "b1", "1"))
    run(tmp_path, "qqp", train=path, valid_from_train=2)
    train, dev = (glue.read_examples(tmp_path / "glue", "qqp", split) for split in ("train", "dev"))
    assert [r.text_a for r in dev] == ["a9", "a1"] and [r.text_a for r in train] == ["a0", "a2", "a3", "a4"]


def test_the_real_files_are_converted(tmp_path, shared_data):
    for task, sizes in (("mnli", (5000, 500)), ("qqp", (5000, 500))):
        folder = shared_data / "glue_pairs_json" / task.upper()
        run(tmp_path, task, train=folder / "train.json", valid=folder / "dev.json")
        assert tuple(len(glue.read_examples(tmp_path / "glue", task, split)) for split in ("train", "dev")) == sizes
