"""A task whose rows were never drawn: training says so, and the model can be used for its other tasks.

    python -m pytest tests/test_untrained_tasks.py
"""

import pytest
import torch
from combining import QUICK
from scripts import SAMPLES, run, without_java
from test_combine_t5 import FLAGS, GLUE
from test_train_t5 import config
from training_runs import refused
from versatile.adapters import bert, t5
from versatile.adapters.methods.base import added_parameters
from versatile.utils.errors import UserError
from versatile.utils.files import write_json

DATA = {task: f"{task}={SAMPLES / f'{task}.json'}" for task in ("nlg", "mt")}
UNDRAWN = "no row of mt was drawn"
IDLE = "the adapter for 'mt' changes nothing"


def shaken(model, untrained):
    """Change all additions except those of the task `untrained`."""
    with torch.no_grad():
        for method, name, p in added_parameters(model):
            if method.owner(name) != untrained:
                p.add_(0.1)
    return model


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """A run of train_vlm.py whose first steps had no row of mt."""
    folder = tmp_path_factory.mktemp("vlm")
    result = run("train_vlm", ["--tasks", "nlg", "mt", "--data", *DATA.values(), "--model_checkpoint", "tiny-gpt2",
                               "--method", "lora", "--max_steps", "2", "--limit", "nlg=600", "mt=2", "--fp32",
                               "--no_validation", "--output_dir", folder / "run"], folder)  # fmt: skip
    assert result.code == 0 and f"warning: {UNDRAWN}" in result.out, result
    return folder / "run"


def test_a_vlm_is_evaluated_on_the_tasks_that_were_trained(vlm, tmp_path):
    common = ["--model_checkpoint", vlm, "--no_sample", "--limit", "2", "--max_length", "4",
              "--output_dir", tmp_path / "results"]  # fmt: skip
    result = run("evaluate_vlm", [*common, "--task", "nlg", "--data", DATA["nlg"]], tmp_path, env=without_java())
    assert result.code == 0 and result.err.count(IDLE) == 1 and "never drawn" in result.err, result
    refused(run("evaluate_vlm", [*common, "--task", "mt", "--data", DATA["mt"]], tmp_path), IDLE, "train it for longer")


def test_a_trained_task_is_taken_out_of_a_vlm_and_the_other_is_not(vlm, tmp_path):
    argv = ["--output", tmp_path / "VLM", *QUICK, "--checkpoints", f"nlg={vlm}"]
    refused(run("combine_all", [*argv, f"mt={vlm}"], tmp_path / "both"), f"--checkpoints mt={vlm}", IDLE)
    assert not (tmp_path / "VLM").exists()
    result = run("combine_all", argv, tmp_path / "one")
    assert result.code == 0 and not result.err, result


def test_train_t5_names_the_task_that_was_not_drawn(tmp_path):
    flags = dict(tasks=["rte", "mrpc"], n_train=2, max_steps=1, eval_steps=1, save_steps=1, warmup_steps=0)
    result = run("train_t5", [config(tmp_path, **flags)], tmp_path)
    undrawn = [task for task in ("rte", "mrpc") if f"seen of {task}: 0 of" in result.out]
    assert result.code == 0 and len(undrawn) == 1, result
    assert f"warning: no row of {undrawn[0]} was drawn" in result.out


def test_a_t5_is_used_for_the_tasks_that_were_trained(tmp_path, caplog):
    model, tokenizer = t5.load_t5_of_name("tiny-t5")
    t5.attach(model, ["rte", "cola"], t5.T5Settings(method="lora"))
    t5.save_t5(shaken(model, "cola"), tokenizer, tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", dict(flags=FLAGS | dict(tasks=["rte", "cola"])))
    t5.load_t5(tmp_path / "run", "rte")
    t5.load_t5(tmp_path / "run")
    assert caplog.text.count("the adapter for 'cola' changes nothing") == 1
    with pytest.raises(UserError, match="the adapter for 'cola' changes nothing"):
        t5.load_t5(tmp_path / "run", "cola")
    argv = ["--task", "cola", "--model_checkpoint", tmp_path / "run", "--dataset_path", GLUE, "--limit", "2"]
    refused(run("evaluate", argv, tmp_path / "cola", cwd=tmp_path), "the adapter for 'cola' changes nothing")
    argv = ["--output", tmp_path / "T5", *QUICK, "--data", f"rte={GLUE}", "--checkpoints", f"rte={tmp_path / 'run'}"]
    result = run("combine_all", argv, tmp_path / "one")
    assert result.code == 0, result
    flag = f"cola={tmp_path / 'run'}"
    refused(run("combine_all", ["--into", tmp_path / "T5", "--checkpoints", flag], tmp_path / "two"),
            f"--checkpoints {flag}: the adapter for 'cola' changes nothing")  # fmt: skip


def test_a_classifier_is_used_for_the_tasks_that_were_trained(tmp_path, caplog):
    model, tokenizer = bert.build_classifier("tiny-bert", {"cola": 2, "rte": 2}, None, 32, 0, "lora")
    bert.save_classifier(shaken(model, "rte"), tokenizer, tmp_path)
    bert.load_classifier(tmp_path, "cola")
    bert.load_classifier(tmp_path)
    assert caplog.text.count("the adapter for 'rte' changes nothing") == 1
    with pytest.raises(UserError, match="the adapter for 'rte' changes nothing"):
        bert.load_classifier(tmp_path, "rte")
