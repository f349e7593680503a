"""A user's own task whose data have moved, or that is evaluated on other data: what is read, and what is refused.

    python -m pytest -n 0 -q tests/test_moved_tasks.py
"""

import json
import shutil

import pytest
from scripts import done, metrics, run
from test_own_tasks import TINY, forget, jsonl, write  # noqa: F401


def trained(folder, data, *flags, script="train"):
    """A run of the task `mine`, whose data are in a folder."""
    task = "--task" if script == "train" else "--tasks"
    done(run(script, [task, f"mine={data}", *TINY, *flags, "--output_dir", folder], folder.parent / "log"))
    return folder


def test_a_resumed_run_reads_the_folder_that_its_task_names_now(tmp_path):
    data, log = write(tmp_path / "data"), tmp_path / "log"
    folder = trained(tmp_path / "run", data, "--max_steps", "1")
    changed, moved = (shutil.copytree(data, tmp_path / name) for name in ("changed", "moved"))
    (changed / "train.jsonl").write_text(jsonl([("another film", "pos")] * 12))
    result = run("train", ["--resume", folder, "--task", f"mine={changed}"], log)
    assert result.code == 2 and "the data have changed since this run was started" in result.err
    shutil.rmtree(data)
    done(run("train", ["--resume", folder, "--task", f"mine={moved}"], log))


COLUMNS = dict(prompt="text", answer="label")
ASK = ["--no_sample", "--max_length", "3", "--limit", "1"]


def write_columns(folder, **settings):
    """A folder whose columns are called text and label, with a task.json that says so."""
    write(folder, **COLUMNS, **settings)
    for path in folder.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"prompt"', '"text"').replace('"answer"', '"label"'))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run of a task whose task.json names other columns."""
    folder = tmp_path_factory.mktemp("model")
    flags = ["--max_steps", "1", "--method", "lora"]
    return trained(folder / "run", write_columns(folder / "data"), *flags, script="train_vlm")


def test_a_missing_column_is_named_with_what_asked_for_it(model, tmp_path):
    plain, log = write(tmp_path / "plain"), tmp_path / "log"
    ask = [*ASK, "--model_checkpoint", model, "--output_dir", tmp_path / "out"]
    result = run("evaluate", ["--task", f"mine={plain}", *ask], log)
    assert result.code == 2 and "test.jsonl:1: has no column 'text'; it has 'prompt', 'answer'" in result.err
    assert 'the columns "text" and "label", set in the task\'s definition in the checkpoint' in result.err
    assert "remedy:   rename them, or put a task.json that names yours beside the data" in result.err
    (plain / "task.json").write_text(json.dumps(dict(prompt="question")))
    for script, task in (("evaluate", "--task"), ("train", "--task")):
        flags = [task, f"mine={plain}", *(ask if script == "evaluate" else TINY)]
        result = run(script, flags, log)
        assert result.code == 2 and "has no column 'question'" in result.err
        assert f'the columns "question" and "answer", set in {plain / "task.json"}' in result.err
        assert "remedy:   rename them, or correct that file" in result.err
    (plain / "task.json").write_text(json.dumps(dict(prompt="prompt", answer="answer")))
    done(run("evaluate", ["--task", f"mine={plain}", *ask], log))


@pytest.mark.parametrize(("script", "flags"), [
    ("evaluate", ["--task", "mine={}"]), ("evaluate", ["--task", "mine", "--data", "mine={}"]),
    ("evaluate", ["--task", "mine", "--dataset_path", "{}"]), ("evaluate_vlm", ["--task", "mine={}"]),
    ("evaluate_vlm", ["--data", "mine={}"]), ("evaluate_vlm", ["--task", "mine", "--dataset_path", "{}"]),
])  # fmt: skip
def test_a_task_json_beside_the_data_applies_whichever_flag_names_them(script, flags, model, tmp_path):
    data = write(tmp_path / "data", prompt="prompt", answer="answer", metrics=["rouge"])
    ask = [*ASK, "--model_checkpoint", model, "--output_dir", tmp_path / "out"]
    done(run(script, [*(word.format(data) for word in flags), *ask], tmp_path / "log"))
    assert metrics(tmp_path / "out")["headline"] == "rougeLsum"


def test_a_model_whose_tasks_data_have_moved_asks_for_their_new_location(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "run")
    for name in ("adapter_config.json", "run.json"):
        text = (copy / name).read_text()
        (copy / name).write_text(text.replace(str(model.parent / "data"), str(tmp_path / "gone")))
    ask = [*ASK, "--model_checkpoint", copy, "--output_dir", tmp_path / "out"]
    result = run("evaluate_vlm", ask, tmp_path / "log")
    assert result.code == 2 and "remedy:   name its new location: --data mine=DIR\n" in result.err
    assert "samples" not in result.err
