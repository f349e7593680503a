"""interact.py and the evaluations accept a model of any system: a T5 of train_t5.py, a BERT of train_camtl.py.

    python -m pytest -n 0 -q tests/test_answering.py
"""

import io
import json
import sys

import pytest
import torch
from scripts import SAMPLES
from versatile.adapters import bert
from versatile.data.encoders.sentence_pair import PairEncoder
from versatile.data.glue import get_task
from versatile.data.glue_task import GlueExample

import evaluate
import evaluate_vlm
import interact
import train_camtl
import train_t5
import versatile

GLUE = SAMPLES / "glue"


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5") / "run"
    train_t5.main(["--model_name_or_path", "tiny-t5", "--tasks", "rte", "nlg", "--data_dir", str(data(folder.parent)),
                   "--method", "adapters", "--do_train", "true", "--do_eval", "false", "--do_test", "false",
                   "--max_steps", "1", "--load_best_model_at_end", "false", "--output_dir", str(folder)])  # fmt: skip
    return folder


def data(folder):
    """A directory of the samples of rte and nlg."""
    for name, path in (("RTE", GLUE / "RTE"), ("nlg.json", SAMPLES / "nlg.json")):
        (folder / name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert") / "run"
    train_camtl.main(["--model_name_or_path", "tiny-bert", "--form", "plain", "--max_seq_length", "32", "--tasks",
                      "rte", "cola", "sts-b", "--data_dir", str(GLUE), "--do_train", "--max_steps", "1", "--output_dir",
                      str(folder)])  # fmt: skip
    return folder


def typed(monkeypatch, capsys, folder, lines, *more):
    """The answers of interact.py to lines of a pipe, one per line."""
    stdin = io.TextIOWrapper(io.BytesIO("".join(line + "\n" for line in lines).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    capsys.readouterr()
    assert interact.main(["--model_checkpoint", str(folder), "--fp32", *more]) is None
    return capsys.readouterr().out.splitlines()


# The content of a task's summary, whichever encoder the examples use.
SUMMARY = {"task", "split", "scores", "headline", "instances", "checkpoint", "method", "backbone", "parameters",
           "precision", "versions"}  # fmt: skip


def test_a_t5_answers_a_line_as_it_is_evaluated(t5, tmp_path, monkeypatch, capsys):
    evaluate_vlm.main(["--model_checkpoint", str(t5), "--limit", "3", "--fp32", "--output_dir", str(tmp_path)])
    for name in ("rte", "nlg"):
        summary = json.loads((tmp_path / f"{name}_metrics.json").read_text())
        assert set(summary) >= SUMMARY and summary["instances"] == 3 and summary["method"] == "adapters"
        rows = [json.loads(line) for line in (tmp_path / f"{name}_outputs.jsonl").read_text().splitlines()]
        answers = typed(monkeypatch, capsys, t5, [row["source"] for row in rows], "--task", name)
        assert answers == [row["hypothesis"] for row in rows] and len(answers) == 3
    assert versatile.load(t5, precision="fp32").generate_text("nlg", rows[0]["source"]) == rows[0]["hypothesis"]


def test_what_has_no_effect_on_a_t5_is_said(t5, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"/set max_length 3\n/set\n")))
    interact.main(["--model_checkpoint", str(t5), "--fp32"])
    message = capsys.readouterr().err
    assert "max_length has no effect on this model: outputs are as long as" in message and "num_beams 1" in message
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--task", "rte", "--max_length", "3", "--model_checkpoint", str(t5), "--output_dir",
                       str(tmp_path / "x")])  # fmt: skip
    assert stopped.value.code == 2 and not (tmp_path / "x").exists()
    with pytest.raises(SystemExit):
        interact.main(["--model_checkpoint", str(t5), "--temperature", "9"])
    assert "--temperature: has no effect on a model of train_t5.py: nothing is sampled" in capsys.readouterr().err
    model = versatile.load(t5, precision="fp32")
    for settings in (dict(max_length=3), dict(temperature=9.0), dict(no_sample=False)):
        with pytest.raises(versatile.UserError, match="has no effect"):
            model.generate_text("nlg", "name[A]", **settings)
    assert model.generate_text("nlg", "name[A]", no_sample=True) == model.generate_text("nlg", "name[A]")


def test_a_classifier_answers_with_the_class_and_its_probability(classifier, monkeypatch, capsys):
    lines = ["A man reads. ||| Somebody reads.", "only one sentence", "/task sts-b", "One. ||| Another."]
    pair, refused, score = typed(monkeypatch, capsys, classifier, lines, "--task", "rte")
    scores = head_scores(classifier, 0, "A man reads.", "Somebody reads.")[:2]
    label, probability = pair.split()
    assert label == ("entailment", "not_entailment")[int(scores.argmax())] and refused == ""
    assert float(probability) == pytest.approx(float(scores.softmax(0).max()), abs=1e-3)
    assert float(score) == pytest.approx(float(head_scores(classifier, 2, "One.", "Another.")[0]), abs=1e-3)


@torch.no_grad()
def head_scores(folder, task_id, first, second):
    """The scores of two sentences, from a model loaded by itself."""
    model, tokenizer = bert.load_classifier(folder)
    row = PairEncoder(tokenizer, 32).encode(get_task("rte"), GlueExample(0, first, second, None, ""))
    ids, types = torch.tensor([row.ids]), torch.tensor([row.types])
    return model(ids, token_type_ids=types, task_ids=torch.tensor([task_id])).scores[0]


@pytest.mark.parametrize("script", [evaluate, evaluate_vlm])
def test_a_classifier_is_scored_by_the_evaluations_as_by_its_own_script(script, classifier, tmp_path):
    flags = ["--model_checkpoint", str(classifier), "--fp32", "--output_dir", str(tmp_path / "all")]
    script.main(["--task", "all", *flags])
    train_camtl.main(["--model_name_or_path", str(classifier), "--data_dir", str(GLUE), "--do_eval", "--fp32",
                      "--valid_batch_size", "32", "--output_dir", str(tmp_path / "own")])  # fmt: skip
    own = json.loads((tmp_path / "own" / "eval_results.json").read_text())["tasks"]
    for name in ("rte", "cola", "sts-b"):
        summary = json.loads((tmp_path / "all" / f"{name}_metrics.json").read_text())
        assert {metric: value["score"] for metric, value in summary["scores"].items()} == own[name]["scores"]
        assert summary["split"] == "dev" and summary["instances"] == own[name]["rows"]
        assert set(summary) >= SUMMARY and summary["loss"] == pytest.approx(own[name]["loss"])
    outputs = (tmp_path / "all" / "rte_output.txt").read_text().split()
    assert len(outputs) == own["rte"]["rows"] and set(outputs) <= {"entailment", "not_entailment"}


def test_what_a_classifier_cannot_do_is_refused(classifier, tmp_path, capsys):
    for flags, expected in (
        (["--task", "mnli"], "the model does not know mnli"),
        (["--task", "rte", "--num_beams", "4"], "has no effect on a model of train_camtl.py"),
        (["--task", "rte", "--split", "test"], "have no labels"),
    ):
        with pytest.raises(SystemExit) as stopped:
            evaluate.main([*flags, "--model_checkpoint", str(classifier), "--output_dir", str(tmp_path / "x")])
        assert stopped.value.code == 2 and expected in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
