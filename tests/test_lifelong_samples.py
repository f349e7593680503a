"""Small samples of lifelong tasks in data/samples/lifelong: as their generator writes them, with disjoint splits."""

from dataclasses import replace

import lifelong_data
import pytest
from scripts import SAMPLES
from versatile.data import question_samples as samples
from versatile.data.question_tasks import TASKS
from versatile.data.samples import make_lifelong
from versatile.utils.errors import UserError


@pytest.mark.parametrize("task", make_lifelong.MAKERS)
def test_files_are_those_of_the_generator(task, tmp_path):
    for split, made in make_lifelong.MAKERS[task]().items():
        name = TASKS[task].filename(split)
        samples.save_samples(tmp_path / name, made)
        assert (tmp_path / name).read_bytes() == (SAMPLES / "lifelong" / name).read_bytes()


@pytest.mark.parametrize("task", make_lifelong.MAKERS)
def test_no_context_stands_in_two_splits(task):
    train, test = (
        samples.load_samples(SAMPLES / "lifelong" / TASKS[task].filename(split), split) for split in ("train", "test")
    )
    assert (len(train), len(test)) == (120, 30)
    assert not {qa.context for qa in train} & {qa.context for qa in test}
    assert len({qa.question for qa in train + test}) == 1
    if task == "ag":
        assert all(qa.answers[0] in make_lifelong.TOPICS for qa in train + test)


def test_a_split_whose_answers_are_all_blank_is_refused(tmp_path):
    qas = lifelong_data.questions("ag", 3)
    path = tmp_path / TASKS["ag"].filename("test")
    samples.save_samples(path, [replace(qa, answers=("",)) for qa in qas])
    with pytest.raises(UserError, match="the answers of all questions \\(3\\) are blank"):
        samples.load_task(TASKS["ag"], tmp_path, "test")
    samples.save_samples(path, [replace(qas[0], answers=("",)), *qas[1:]])
    assert len(samples.load_task(TASKS["ag"], tmp_path, "test")) == 3
