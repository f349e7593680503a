"""`versatile.load` of a model of train_t5.py.

    python -m pytest tests/test_text_to_text_model.py
"""

import json

import pytest
import quick
from test_cards import TRAINED
from versatile.utils.errors import UserError

import versatile


@pytest.fixture(scope="module", params=quick.every(2, [True, False]), ids=["adapters", "prefixed"])
def run(request, tmp_path_factory):
    """A run with adapters, and one of the whole model, which reads a task's name before its sources."""
    folder, tasks = tmp_path_factory.mktemp("t5") / "run", ["rte", "mrpc"]
    flags = dict(TRAINED["train_t5"], output_dir=folder, max_steps=8, tasks=tasks, eval_tasks=tasks, eval_beams=2)
    if not request.param:
        flags |= dict(train_adapters=False, unfreeze_layer_norms=False)
    return versatile.train(flags, "train_t5")


def test_answers_are_those_of_evaluate(run, tmp_path):
    versatile.evaluate(dict(task="all", model_checkpoint=run, split="valid", limit=6, output_dir=tmp_path, fp32=True))
    model = versatile.load(run, precision="fp32")
    assert list(model.tasks) == ["rte", "mrpc"]
    for task in model.tasks:
        rows = [json.loads(line) for line in (tmp_path / f"{task}_outputs.jsonl").read_text().splitlines()]
        # Stored sources have the prefix, which the model adds by itself.
        head = f"{task} " if model.has_prefix else ""
        sources = [row["source"].removeprefix(head) for row in rows]
        assert len(sources) == 6 and all(row["source"].startswith(head) for row in rows)
        assert model.generate_text(task, sources, batch_size=4) == [row["hypothesis"] for row in rows]
        assert model.generate_text(task, sources[0]) == rows[0]["hypothesis"]


def test_columns_make_the_source_that_the_task_words(run):
    model = versatile.load(run, "rte", precision="fp32")
    columns = dict(sentence1="A man sleeps.", sentence2="He is awake.")
    text = "sentence1: A man sleeps. sentence2: He is awake."
    assert model._example("rte", columns, "input 1").source == text
    assert model.generate_text("rte", [columns]) == [model.generate_text("rte", text)]
    assert model.generate_text("rte", []) == []


def test_what_is_no_input_of_the_model_is_refused(run):
    model = versatile.load(run)
    for task, given in (("cola", "x"), ("rte", {"sentence1": "x"}), ("rte", [3])):
        with pytest.raises(UserError):
            model.generate_text(task, given)
    with pytest.raises(UserError):
        versatile.load(run, "cola")
