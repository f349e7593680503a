"""Directories written by older versions still load, and give the same answers.

    python -m pytest tests/test_saved_directories.py

tests/saved holds one of each kind, trained for a few steps beside tiny backbones; expected.json holds the outputs of
the version that wrote them. The outputs are of no value in themselves, but they must not change.
"""

import json

import pytest
import torch

from tests import quick
from tests.conftest import ROOT
from tests.scripts import SAMPLES, run

SAVED = ROOT / "tests" / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text())


def test_every_saved_directory_has_its_expectation():
    known = {name for kind in EXPECTED.values() for name in kind}
    assert known == {folder.name for folder in SAVED.iterdir() if folder.is_dir()}


GENERATION = [(name, task) for name, tasks in EXPECTED["generation"].items() for task in tasks]


@pytest.mark.parametrize("name, task", quick.only(GENERATION[::2], GENERATION))
def test_generation_tasks_are_scored_as_before(name, task, tmp_path):
    expected = EXPECTED["generation"][name][task]
    result = run("evaluate", ["--task", task, "--dataset_path", SAMPLES / f"{task}.json", "--no_sample", "--fp32",
                              "--limit", 3, "--max_length", 8, "--batch_size", 1, "--model_checkpoint", SAVED / name,
                              "--output_dir", tmp_path / "results"], tmp_path / "log")  # fmt: skip
    assert result.code == 0, result.err
    metrics = json.loads((tmp_path / "results" / f"{task}_metrics.json").read_text())
    assert metrics["nll"] == pytest.approx(expected["nll"], rel=1e-5)
    outputs = (tmp_path / "results" / f"{task}_outputs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["hypothesis"] for line in outputs] == expected["outputs"]


@pytest.mark.parametrize("name", EXPECTED["text_to_text"])
def test_text_to_text_tasks_are_scored_as_before(name, tmp_path):
    result = run("evaluate", ["--task", "all", "--fp32", "--model_checkpoint", SAVED / name, "--limit", 6,
                              "--dataset_path", SAMPLES / "glue", "--output_dir", tmp_path / "results"],
                 tmp_path / "log")  # fmt: skip
    assert result.code == 0, result.err
    for task, expected in EXPECTED["text_to_text"][name].items():
        metrics = json.loads((tmp_path / "results" / f"{task}_metrics.json").read_text())
        assert metrics["scores"]["PPL"]["score"] == pytest.approx(expected["ppl"], rel=1e-5)


@pytest.mark.parametrize("name", EXPECTED["glue"])
def test_glue_tasks_are_scored_as_before(name, tmp_path):
    result = run("train_camtl", ["--model_name_or_path", SAVED / name, "--data_dir", SAMPLES / "glue", "--do_eval",
                                 "--limit", 24, "--tasks", "cola", "sts-b", "rte", "--max_seq_length", 32,
                                 "--output_dir", tmp_path / "results"], tmp_path / "log")  # fmt: skip
    assert result.code == 0, result.err
    tasks = json.loads((tmp_path / "results" / "eval_results.json").read_text())["tasks"]
    losses = {task: scored["loss"] for task, scored in tasks.items()}
    assert losses == pytest.approx(EXPECTED["glue"][name], rel=1e-4)


@pytest.mark.parametrize("name, stage", [(n, s) for n, stages in EXPECTED["lifelong"].items() for s in stages])
def test_stages_of_a_sequence_of_tasks_load_as_before(name, stage):
    from versatile.adapters import checkpoint

    model, tokenizer = checkpoint.load_checkpoint(SAVED / name / stage)
    ids = tokenizer("the golden palace is a cheap restaurant", return_tensors="pt").input_ids
    with torch.no_grad():
        scores = model(input_ids=ids, task_ids=torch.zeros(1, dtype=torch.long)).logits[0, -1]
    assert scores[[0, 50, 100, 200, 300]].tolist() == pytest.approx(EXPECTED["lifelong"][name][stage], abs=1e-5)


def test_a_sequence_of_tasks_is_evaluated(tmp_path):
    result = run("evaluate_lifelong", ["--model_dirs", SAVED / "lifelong_adapter", "--data_dir", SAMPLES / "lifelong",
                                       "--limit", 2, "--output_dir", tmp_path / "results"],
                 tmp_path / "log")  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "results" / "matrix.json").read_text())["tasks"] == ["ag", "e2enlg"]
