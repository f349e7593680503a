"""One data set is one task, whatever the systems that train on it call it.

    python -m pytest -n 0 -q tests/test_tasks.py
"""

import argparse
import subprocess
import sys

import pytest
from conftest import ROOT
from versatile.data import glue, question_tasks, task, text_to_text
from versatile.data.own_tasks import OwnTask
from versatile.data.question_samples import load_task
from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task, resolve
from versatile.data.task_names import task_flag
from versatile.data.text_task import PAIR, classification
from versatile.data.views import add_pairs
from versatile.utils.errors import UserError


@pytest.fixture
def registry(monkeypatch):
    """Remove tasks that a test adds."""
    task.load_tasks()
    monkeypatch.setattr(task, "_TASKS", dict(task._TASKS))


@pytest.mark.parametrize(
    ("names", "text", "pair", "question", "markers"),
    [
        (("sst2", "SST-2", "sst"), "sst2", "sst-2", "sst", "sst2"),
        (("stsb", "STS-B"), "stsb", "sts-b", "stsb", "stsb"),
        (("mnli", "multinli.in.out"), "mnli", "mnli", "multinli.in.out", "mnli"),
        (("nlg", "E2E", "e2enlg"), "nlg", None, "e2enlg", "nlg"),
        (("summarization", "cnn_dailymail"), "summarization", None, "cnn_dailymail", "summarization"),
        (("mt", "iwslt.en.de", "IWSLT"), "mt", None, "iwslt.en.de", "mt"),
        (("ag",), "ag", None, "ag", "ag"),
    ],
)
def test_every_published_name_of_a_data_set_is_the_same_task_in_every_system(names, text, pair, question, markers):
    assert len({id(resolve(name)) for name in names}) == 1
    for name in names:
        for get, expected in ((text_to_text.get_task, text), (glue.get_task, pair), (question_tasks.get_task, question),
                              (task.get_task, markers)):  # fmt: skip
            if expected:
                assert get(name).name == expected
            else:
                with pytest.raises(UserError):
                    get(name)


def test_every_task_goes_in_every_encoder_that_can_express_it():
    for name, one in task.load_tasks().items():
        if name == "ax":
            # Its labels are withheld, and nothing trains on it.
            continue
        for kind in ("markers", "text_to_text", "question_answer"):
            assert task.form(name, kind).name in one.names(), (name, kind)
    two_texts = {"scitail", "snli", "sick", "paws", "imdb", "trec", "yelp_polarity", "superglue-boolq",
                 "superglue-cb", "superglue-rte"}  # fmt: skip
    for name in two_texts:
        assert glue.get_task(name).labels == tuple(names[-1] for names in text_to_text.get_task(name).spellings)
    with pytest.raises(UserError, match="it has 3 columns in its prompt"):
        glue.get_task("winogrande")


def test_every_task_has_a_form_and_says_what_it_is():
    for name, one in task.load_tasks().items():
        assert one.markers or any(one.forms(kind) for kind in task.FORMS), name
        assert one.summary, name


@pytest.mark.parametrize(("kind", "kept"), [("text_to_text", "sst2"), ("sentence_pair", "sst-2"),
                                            ("question_answer", "sst")])  # fmt: skip
def test_a_command_line_takes_any_name_and_keeps_the_systems_own(kind, kept):
    p = argparse.ArgumentParser()
    task_flag(p.add_argument_group("x"), "--tasks", kind, nargs="+")
    args = p.parse_args(["--tasks", "SST2", "mine=data", "nosuchtask"])
    assert args.tasks == [kept, "mine", "nosuchtask"] and args.own_tasks == {"mine": "data"}


def test_a_task_without_the_form_that_is_needed_says_so():
    with pytest.raises(UserError, match=r"'nlg' cannot be used as sentences with a class.*: it has no list of classes"):
        glue.get_task("nlg")


def test_a_new_data_set_is_one_call(registry):
    add_task(Task(name="boat", aliases=("boats",), summary="boats", question_answer=LifelongTask("boat"),
                  text_to_text=classification("boat", PAIR, ("small", "large"), None)))  # fmt: skip
    assert text_to_text.get_task("boats").name == question_tasks.get_task("BOAT").name == "boat"
    assert "boat" in task.Forms("text_to_text")
    with pytest.raises(ValueError, match="names already used"):
        add_task(Task(name="ship", aliases=("boats",)))


@pytest.mark.parametrize("module", ["glue", "question_tasks", "text_to_text", "views", "task_names"])
def test_whatever_is_imported_first_finds_a_task_file_with_prompts_and_answers(module, tmp_path):
    """Modules that list all tasks import their files, which import modules in turn."""
    (tmp_path / "boat.py").write_text(
        "from versatile.data.own_tasks import OwnTask\nfrom versatile.data.views import add_pairs\n\n"
        "add_pairs(OwnTask('boat', 'somebody/boats', ('text',), 'size', ('small', 'large')), 'boats')\n"
    )
    code = (f"from versatile.data import tasks; tasks.__path__.append({str(tmp_path)!r}); "
            f"from versatile.data import {module}, glue; print(glue.get_task('boat').labels)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "('small', 'large')\n", done.stderr


def test_a_data_set_of_prompts_and_answers_is_one_call_for_all_systems(registry, tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text("text\tsize\na dinghy\tsmall\na ferry\tlarge\n")
    add_pairs(OwnTask("boat", str(tmp_path), ("text",), "size", ("small", "large")), "boats", ("boats",))
    expected = [("a dinghy", "small"), ("a ferry", "large")]
    with_markers = task.get_task("boats")
    records = with_markers.records(with_markers.data_path(None), "valid")
    examples = [e for location, record in records for e in with_markers.examples(record, location)]
    assert [(e.source, e.target.text) for e in examples] == expected
    rows = text_to_text.load_rows("boat", "validation")
    assert list(zip(rows["source"], rows["target"])) == expected
    qas = load_task(question_tasks.get_task("boat"), None, "test")
    assert [(qa.context, qa.answers) for qa in qas] == [(text, (answer,)) for text, answer in expected]
    assert [(e.text_a, e.label) for e in glue.read_examples(None, "boats", "dev")] == expected
    # A checkpoint need not keep what the toolkit already knows.
    assert with_markers.definition is None and with_markers.score(["small"], [["small"]])[0]["accuracy"].value == 100
