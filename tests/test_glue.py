"""GLUE's tsv files as the official script writes them, read row by row."""

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from versatile.data import glue
from versatile.data.samples import make_glue
from versatile.utils.errors import UserError

from tests.scripts import SAMPLES

GLUE = SAMPLES / "glue"
# The task ids of CA-MTL.
ORDER = ["cola", "mnli", "rte", "wnli", "qqp", "sts-b", "sst-2", "qnli", "mrpc"]
LABELS = {
    "cola": ("0", "1"), "wnli": ("0", "1"), "qqp": ("0", "1"), "sst-2": ("0", "1"), "mrpc": ("0", "1"), "sts-b": None,
    "mnli": ("contradiction", "entailment", "neutral"), "mnli-mm": ("contradiction", "entailment", "neutral"),
    "ax": ("contradiction", "entailment", "neutral"), "rte": ("entailment", "not_entailment"),
    "qnli": ("entailment", "not_entailment"),
}  # fmt: skip


def write(folder, file, text):
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as error:
        glue.read_examples(*args, **kwargs)
    return error.value


def test_the_nine_tasks_come_first_in_the_order_of_the_published_task_ids():
    assert list(glue.TASKS) == [*ORDER, "mnli-mm", "ax"]
    assert {name: task.labels for name, task in glue.TASKS.items()} == LABELS
    assert [name for name, task in glue.TASKS.items() if task.regression] == ["sts-b"]
    assert glue.get_task("STS-B") is glue.TASKS["sts-b"]
    with pytest.raises(UserError, match="unknown task 'stsx'"):
        glue.get_task("stsx")


def test_the_samples_are_what_their_generator_writes():
    tables = make_glue.tables()
    assert {str(path.relative_to(GLUE)) for path in GLUE.rglob("*.tsv")} == set(tables)
    for file, table in tables.items():
        assert (GLUE / file).read_bytes() == make_glue.text(file, table).encode("utf-8"), file


@pytest.mark.parametrize("name", ORDER)
def test_every_task_of_the_samples_is_read_with_balanced_labels(name):
    splits = {split: glue.read_examples(GLUE, name, split) for split in ("train", "dev", "test")}
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 120, "dev": 30, "test": 10}
    assert all(example.label is None for example in splits["test"])
    assert [example.index for example in splits["test"]] == list(range(10))
    firsts = [example.text_a for examples in splits.values() for example in examples]
    assert len(set(firsts)) == len(firsts)
    task = glue.TASKS[name]
    assert all((example.text_b is None) == (len(task.columns) == 1) for example in splits["train"])
    labels = [example.label for example in splits["train"]]
    if task.regression:
        assert min(labels) == 0 and max(labels) == 5 and all(isinstance(label, float) for label in labels)
    else:
        assert {label: labels.count(label) for label in labels} == dict.fromkeys(task.labels, 120 // len(task.labels))


def test_the_samples_have_the_columns_and_quirks_of_the_official_files():
    def columns(file):
        lines = (GLUE / file).read_text(encoding="utf-8").split("\n")
        assert lines.pop() == ""
        return {line.count("\t") + 1 for line in lines}, lines

    for file, count in (("CoLA/train.tsv", 4), ("CoLA/test.tsv", 2), ("MNLI/train.tsv", 12), ("QQP/train.tsv", 6),
                        ("MNLI/dev_matched.tsv", 16), ("MNLI/dev_mismatched.tsv", 16), ("MNLI/test_matched.tsv", 10),
                        ("STS-B/dev.tsv", 10), ("STS-B/test.tsv", 9), ("SST-2/dev.tsv", 2), ("MRPC/dev.tsv", 5),
                        ("RTE/dev.tsv", 4), ("QNLI/test.tsv", 3), ("QQP/test.tsv", 3)):  # fmt: skip
        assert columns(file)[0] == {count}, file
    assert (GLUE / "MRPC/train.tsv").read_bytes().startswith(b"\xef\xbb\xbfQuality\t")
    assert columns("CoLA/train.tsv")[1][0].startswith("mu20\t")
    assert all(example.text_a.endswith(" ") for example in glue.read_examples(GLUE, "sst-2", "train"))
    assert all(example.text_a.count('"') == 1 for example in glue.read_examples(GLUE, "mrpc", "dev"))


def test_mismatched_mnli_has_its_own_dev_and_test_files_and_the_training_set_of_mnli():
    assert glue.read_examples(GLUE, "mnli-mm", "train") == glue.read_examples(GLUE, "mnli", "train")
    for split in ("dev", "test"):
        one, other = glue.read_examples(GLUE, "mnli", split), glue.read_examples(GLUE, "mnli-mm", split)
        assert not {example.text_a for example in one} & {example.text_a for example in other}
        assert "mismatched" in other[0].location


def test_the_diagnostic_set_lies_where_either_version_of_the_official_script_puts_it(tmp_path):
    assert len(glue.read_examples(GLUE, "ax", "test")) == 10
    write(tmp_path, "MNLI/diagnostic.tsv", "index\tsentence1\tsentence2\n7\tone\tother\n")
    (example,) = glue.read_examples(tmp_path, "ax", "test")
    assert (example.index, example.text_a, example.text_b, example.label) == (7, "one", "other", None)
    assert "no 'train' split" in refusal(GLUE, "ax", "train").found


def test_an_example_says_its_file_and_line_and_a_limit_takes_the_first_rows():
    examples = glue.read_examples(GLUE, "rte", "train", limit=3)
    assert [example.location for example in examples] == [f"{GLUE / 'RTE/train.tsv'}:{line}" for line in (2, 3, 4)]
    assert examples == glue.read_examples(GLUE, "rte", "train")[:3]
    assert glue.read_examples(GLUE, "cola", "dev", limit=1)[0].location == f"{GLUE / 'CoLA/dev.tsv'}:1"
    assert "limit is 0" in refusal(GLUE, "rte", "train", limit=0).found


# Text that ends no line and no column; a \r only inside, since one at the end belongs to the line end.
TEXT = st.text(st.characters(blacklist_characters="\t\n\r", blacklist_categories=["Cs"]), max_size=30)
WEIRD = st.one_of(
    TEXT, st.sampled_from(['"', '""', "a \u2028 b", "\x85", "\x0b\x0c", "\ufeff", " ", "", "a\rb", "\x1e"])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WEIRD, WEIRD, st.sampled_from(LABELS["rte"])), min_size=1, max_size=5), st.booleans())
def test_any_text_without_tabs_and_line_ends_comes_back_as_it_was_written(tmp_path, rows, windows):
    end = "\r\n" if windows else "\n"
    lines = ["index\tsentence1\tsentence2\tlabel", *("\t".join(("7", *row)) for row in rows)]
    write(tmp_path, "RTE/train.tsv", "".join(line + end for line in lines))
    examples = glue.read_examples(tmp_path, "rte", "train")
    assert [(example.text_a, example.text_b, example.label) for example in examples] == rows
    assert all(example.index == 7 for example in examples)


def test_a_last_line_without_its_end_and_blank_lines_are_no_matter(tmp_path):
    write(tmp_path, "WNLI/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n\n1\tc\td\t0")
    assert [example.label for example in glue.read_examples(tmp_path, "wnli", "dev")] == ["1", "0"]


def test_a_labelled_test_file_keeps_its_labels(tmp_path):
    write(tmp_path, "STS-B/test.tsv", "index\tsentence1\tsentence2\tscore\n0\ta\tb\t3.800\n")
    assert glue.read_examples(tmp_path, "sts-b", "test")[0].label == 3.8


@pytest.mark.parametrize(
    "file, name, text, line, says",
    [
        ("RTE/train.tsv", "rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\n", 3, "3 columns"),
        ("RTE/train.tsv", "rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", 2, "the label is 'maybe'"),
        ("RTE/train.tsv", "rte", "index\tsentence1\tsentence2\n0\ta\tb\n", 1, "the header has no 'label'"),
        ("RTE/train.tsv", "rte", "index,sentence1,sentence2,label\n", 1, "the header has no"),
        ("RTE/train.tsv", "rte", "index\tsentence1\tsentence2\tlabel\nx\ta\tb\tentailment\n", 2, "the index is 'x'"),
        ("RTE/train.tsv", "rte", f"index\tsentence1\tsentence2\tlabel\n{9**26}\ta\tb\tentailment\n", 2, "the index is"),
        ("RTE/train.tsv", "rte", "label\tsentence1\tsentence2\tlabel\n", 1, "'label' more than once"),
        ("STS-B/train.tsv", "sts-b", "sentence1\tsentence2\tscore\na\tb\t5.5\n", 2, "the score is '5.5'"),
        ("STS-B/train.tsv", "sts-b", "sentence1\tsentence2\tscore\na\tb\tnan\n", 2, "the score is 'nan'"),
        ("STS-B/train.tsv", "sts-b", "sentence1\tsentence2\tscore\na\tb\tgood\n", 2, "the score is 'good'"),
        ("CoLA/train.tsv", "cola", "gj04\t1\t\tA sentence.\ngj04\t1\tA sentence.\n", 2, "3 columns"),
        ("CoLA/train.tsv", "cola", "source\tlabel\tmark\tsentence\n", 1, "the label is 'label'"),
        ("RTE/train.tsv", "rte", "", None, "holds no examples"),
        ("RTE/train.tsv", "rte", "index\tsentence1\tsentence2\tlabel\n", None, "holds no examples"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path, file, name, text, line, says):
    path = write(tmp_path, file, text)
    error = refusal(tmp_path, name, "train")
    assert says in error.found and error.remedy
    assert str(error.location) == (f"{path}:{line}" if line else str(path))


def test_files_that_are_not_there_or_not_text_are_refused(tmp_path):
    error = refusal(tmp_path, "qnli", "dev")
    assert error.found == "no such file" and "download_glue_data.py" in error.remedy
    assert error.location == tmp_path / "QNLI" / "dev.tsv"
    path = tmp_path / "WNLI" / "dev.tsv"
    path.parent.mkdir()
    path.write_bytes(b"index\tsentence1\tsentence2\tlabel\n0\tcaf\xe9\tb\t1\n")
    assert refusal(tmp_path, "wnli", "dev").location == f"{path}:2"
    assert "no 'valid' split" in refusal(GLUE, "rte", "valid").found


def test_the_rows_that_the_official_qqp_has_cut_in_two_are_left_out_with_a_warning(tmp_path, caplog):
    row = "1\t2\t3\tHow?\tWhy?\t1\n"
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    write(tmp_path, "QQP/train.tsv", header + row + "4\t5\t6\tHow\n" + "is it?\tWhy?\t0\n" + row)
    with caplog.at_level(logging.WARNING):
        examples = glue.read_examples(tmp_path, "qqp", "train")
    assert [example.text_a for example in examples] == ["How?", "How?"]
    assert "2 rows" in caplog.text and "line 3" in caplog.text


def test_the_real_files_are_read_whole(shared_data):
    folder = shared_data / "glue"
    sizes = {name: [len(glue.read_examples(folder, name, split)) for split in ("train", "dev")] for name in ORDER}
    assert sizes == {
        "cola": [8551, 1043], "mnli": [390, 11], "rte": [2127, 277], "wnli": [518, 71], "qqp": [192, 64],
        "sts-b": [5749, 1500], "sst-2": [5000, 872], "qnli": [320, 2700], "mrpc": [3668, 408],
    }  # fmt: skip
    assert len(glue.read_examples(shared_data / "glue", "mnli-mm", "dev")) == 5
