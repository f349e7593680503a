"""python -m versatile.lm_eval on a tiny model; skipped where lm_eval is not installed.

    python -m pytest tests/test_lm_eval.py
"""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from scripts import SAMPLES
from test_cards import TRAINED
from versatile.adapters import checkpoint
from versatile.adapters.backbones import loading

import versatile
from versatile import lm_eval as command

TASK = SAMPLES / "lm_eval" / "everyday.yaml"
harness = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install '.[lm-eval]'")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An adapter that changes its backbone's outputs."""
    folder = tmp_path_factory.mktemp("run") / "nlg"
    versatile.train(dict(TRAINED["train"], output_dir=folder, lr=1.0, max_steps=5, n_epochs=5))
    return folder


def test_a_run_and_its_backbone_are_compared_without_a_network(run, tmp_path):
    # From the checkout, where a script has the same name as a library of the harness.
    words = ["--model_checkpoint", run, "--tasks", TASK, "--output_dir", tmp_path]
    done = subprocess.run([sys.executable, "-m", "versatile.lm_eval", *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "lm_eval.json").read_text())
    assert (written["backbone"], written["checkpoint"]) == ("tiny-gpt2", str(run))
    rows = {row["metric"]: row for row in written["results"]}
    assert set(rows) == {"acc", "acc_norm"} and "everyday" in done.stdout
    for row in rows.values():
        assert 0 <= row["backbone"] <= 1 and row["difference"] == pytest.approx(row["run"] - row["backbone"])
        assert row["error"] > 0


@torch.no_grad()
def likelihoods(model, tokenizer, task_id, pairs):
    """The sums that the harness computes, computed by hand."""
    sums = []
    for context, continuation in pairs:
        start, ids = (tokenizer(text).input_ids for text in (context, context + continuation))
        tasks = {} if task_id is None else dict(task_ids=torch.tensor([task_id]))
        logs = model(input_ids=torch.tensor([ids]), **tasks).logits[0].float().log_softmax(-1)
        sums.append(sum(logs[i - 1, ids[i]].item() for i in range(len(start), len(ids))))
    return sums


def test_a_batch_is_answered_by_the_adapter_of_the_task_and_the_backbone_by_none(run, tmp_path):
    from lm_eval.api.instance import Instance

    pairs = [("the golden palace", " is cheap"), ("a man is", " reading a book in the park")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    both = versatile.combine({"nlg": run, "mt": mt(tmp_path)}, tmp_path / "both", proof_examples=1, proof_tokens=2,
                             data={task: SAMPLES / f"{task}.json" for task in ("nlg", "mt")})  # fmt: skip
    model, tokenizer = checkpoint.load_checkpoint(both)
    found = {}
    for task_id in (0, 1):
        lm = command.harness_model(model, tokenizer, task_id, 4)
        found[task_id] = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        assert found[task_id] == pytest.approx(likelihoods(model, tokenizer, task_id, pairs), abs=1e-4)
    bare, tokenizer = loading.load_backbone("tiny-gpt2")
    lm = command.harness_model(bare, tokenizer, None, 4)
    found[None] = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    assert found[None] == pytest.approx(likelihoods(bare, tokenizer, None, pairs), abs=1e-4)
    assert len({round(values[0], 3) for values in found.values()}) == 3
    requests = [Instance("generate_until", {}, ("a man is", dict(until=["."], max_gen_toks=4)), 0)]
    lm = command.harness_model(model, tokenizer, 1, 4)
    ids = tokenizer("a man is", return_tensors="pt").input_ids
    expected = model.generate(ids, task_ids=torch.tensor([1]), max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
    assert lm.generate_until(requests, disable_tqdm=True) == [tokenizer.decode(expected, skip_special_tokens=True)]


def mt(tmp_path):
    flags = dict(TRAINED["train"], task="mt", dataset_path=SAMPLES / "mt.json", output_dir=tmp_path / "mt", lr=1.0)
    return versatile.train(dict(flags, max_steps=3, n_epochs=3))


def test_what_is_no_run_or_no_task_is_one_message(run, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("task: [1, 2]\n")
    refused = {
        "no such file": ["--model_checkpoint", run, "--tasks", tmp_path / "none.yaml"],
        "names no task": ["--model_checkpoint", run, "--tasks", tmp_path / "bad.yaml"],
        "the harness cannot evaluate it": ["--model_checkpoint", run, "--tasks", "no_such_task_at_all"],
        "no trained tasks": ["--model_checkpoint", tmp_path, "--tasks", TASK],
        "a trained model": ["--model_checkpoint", run, "--tasks", TASK, "--backbone", run],
    }
    for words, argv in refused.items():
        with pytest.raises(SystemExit) as leave:
            command.main(list(map(str, argv)))
        err = capsys.readouterr().err
        assert leave.value.code == 2 and err.count("error:") == 1 and words in err, err


def test_several_tasks_have_to_be_told_apart(tmp_path, capsys):
    vlm = versatile.train(dict(TRAINED["train_vlm"], output_dir=tmp_path / "vlm"), "train_vlm")
    with pytest.raises(SystemExit):
        command.main(["--model_checkpoint", str(vlm), "--tasks", str(TASK)])
    assert "one of qa, mt" in capsys.readouterr().err


def test_an_error_of_its_flags_names_the_command_that_was_typed(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--model_checkpoint", "run"])
    assert stopped.value.code == 2 and "see python -m versatile.lm_eval --help" in capsys.readouterr().err
