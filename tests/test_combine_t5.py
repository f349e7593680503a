"""combine_all.py on models of train_t5.py: the tasks of several become one T5 that answers each as its own model did.

    python -m pytest tests/test_combine_t5.py
"""

import json
import shlex

import pytest
import quick
import torch
from combining import QUICK, combined, lively
from combining import trained as trained_gpt2
from scripts import ROOT
from test_train_t5 import GLUE, config, read
from training_runs import refused_here
from versatile.adapters import bert, t5
from versatile.training import run_combination
from versatile.utils.errors import UserError
from versatile.utils.files import write_json

import combine_all
import evaluate
import train_t5

FLAGS = dict(data_dir=GLUE, max_source_length=32, data_seed=42, split_validation_test=True, train_adapters=True,
             adapter_config_name="adapter")  # fmt: skip
OWNED = ("adapters", *t5.PORT_METHODS)


def trained(folder, tasks, method="lora", seed=0, flags=(), backbone="tiny-t5", **settings):
    """A directory as train_t5.py leaves it; the tasks' trained weights are random."""
    model, tokenizer = t5.load_t5_of_name(lively(backbone))
    t5.attach(model, tasks, t5.T5Settings(method=method, **settings))
    noise = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=noise)
    t5.save_t5(model, tokenizer, folder)
    write_json(folder / "run.json", dict(flags=FLAGS | dict(flags, tasks=tasks)))
    return folder


def answers(directory, task):
    """(logits, greedy outputs) of a task's batch by the model of a directory."""
    model, _ = t5.load_t5(directory)
    ids = torch.randint(3, 400, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1::2, -3:] = 0
    inputs = dict(input_ids=ids, attention_mask=mask, task_ids=torch.full((6,), model.task_id(task)))
    with torch.no_grad():
        logits = model(**inputs, labels=ids[:, :4].clone()).logits
        return logits, model.generate(**inputs, max_new_tokens=5, do_sample=False)


def same(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("method", quick.only(["prompt"], OWNED))
def test_each_task_answers_as_its_own_model_to_the_last_bit(method, tmp_path, capsys):
    runs = {task: trained(tmp_path / task, [task], method, seed) for seed, task in enumerate(("rte", "mrpc"))}
    both = combined(tmp_path / "both", runs)
    assert capsys.readouterr().out.count("0, equal bit for bit; 3 of 3 greedy outputs equal") == 2
    proofs = read(both / "run.json")["proof"]
    assert all((p["max_abs_difference"], p["outputs_equal"], p["examples"]) == (0, 3, 3) for p in proofs.values())
    own, other = (answers(run, task) for task, run in runs.items())
    assert same(answers(both, "rte"), own) and same(answers(both, "mrpc"), other)
    assert not torch.equal(own[0], other[0])


@pytest.mark.slow
def test_methods_and_settings_may_differ_and_one_more_task_joins_later(tmp_path):
    """First a model of two tasks whose adapters share their norms, then one with an adapter of another name."""
    norms = dict(add_layer_norm_before_adapter=True)
    pair = trained(tmp_path / "pair", ["cola", "rte"], "adapters", reduction_factor=8, **norms)
    named = trained(tmp_path / "named", ["mrpc"], "adapters", 1, adapters=["mine"], **norms)
    lora = trained(tmp_path / "lora", ["qnli"], "lora", 2, method_settings=dict(lora_rank=3))
    prompt = trained(tmp_path / "prompt", ["sst2"], "prompt", 3)
    both = combined(tmp_path / "both", {"qnli": lora, "rte": pair})
    before = {task: answers(both, task) for task in ("qnli", "rte")}
    argv = ["--into", both, "--checkpoints", f"mrpc={named}", f"sst2={prompt}", *QUICK]
    combine_all.main(list(map(str, argv)))
    model, _ = t5.load_t5(both)
    assert model.tasks == ["qnli", "rte", "mrpc", "sst2"] and model.settings.method == "combined"
    assert [model.methods[task]["method"] for task in model.tasks] == ["lora", "adapters", "adapters", "prompt"]
    assert model.methods["qnli"]["lora_rank"] == 3 and model.methods["rte"]["reduction_factor"] == 8
    sources = dict(qnli=lora, rte=pair, mrpc=named, sst2=prompt)
    assert all(same(answers(both, task), answers(source, task)) for task, source in sources.items())
    assert all(same(answers(both, task), answer) for task, answer in before.items())
    assert {t: s["checkpoint"] for t, s in read(both / "run.json")["sources"].items()} == {
        t: str(source) for t, source in sources.items()}  # fmt: skip


def test_a_mixed_batch_equals_its_rows_alone(tmp_path):
    runs = {task: trained(tmp_path / task, [task], method) for task, method in
            (("rte", "adapters"), ("mrpc", "adapters"), ("cola", "ia3"))}  # fmt: skip
    model, _ = t5.load_t5(combined(tmp_path / "all", runs))
    ids = torch.randint(3, 400, (6, 9), generator=torch.Generator().manual_seed(1))
    batch = dict(input_ids=ids, labels=ids[:, :4].clone(), task_ids=torch.arange(6) % 3)
    with torch.no_grad():
        alone = [model(**{name: value[i : i + 1] for name, value in batch.items()}).logits for i in range(6)]
        torch.testing.assert_close(model(**batch).logits, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_runs_of_train_t5_are_combined_and_scored_as_they_were(tmp_path):
    scores = {}
    for task, typed in (("rte", ["--method", "lora"]), ("mrpc", ["--method", "adapters"])):
        folder = tmp_path / task
        folder.mkdir()
        train_t5.main([str(config(folder, tasks=[task], eval_tasks=[task], unfreeze_layer_norms=False)), *typed])
        scores |= read(folder / "run" / "val_results.json")
    both = combined(tmp_path / "both", {task: tmp_path / task / "run" for task in ("rte", "mrpc")})
    results = tmp_path / "results"
    argv = ["--model_checkpoint", both, "--split", "valid", "--limit", 4, "--output_dir", results, "--fp32"]
    evaluate.main(list(map(str, ["--task", "all", *argv])))
    again = read(results / "val_results.json")
    assert {name for name in again if name.startswith(("rte", "mrpc"))} <= set(scores)
    for name in ("rte_eval_loss", "rte_eval_acc", "mrpc_eval_loss", "mrpc_eval_f1", "mrpc_eval_acc"):
        assert again[name] == pytest.approx(scores[name], rel=1e-6), name
    evaluate.main(list(map(str, ["--task", "rte", *argv])))
    assert read(results / "rte_metrics.json")["method"] == "combined"
    assert "evaluate.py --task all" in (both / "README.md").read_text()


def other_kind(folder):
    model, tokenizer = bert.build_classifier("tiny-bert", {"cola": 2}, None, 32, 0, "lora")
    bert.save_classifier(model, tokenizer, folder)
    return folder


def emptied(folder, *files):
    """A directory with nothing but empty files with these names."""
    folder.mkdir()
    for name in files:
        (folder / name).write_text("{}")
    return folder


WRONG = {
    "hypernetworks": (lambda f: trained(f, ["mrpc"], "hyperformer++", task_embedding_dim=8, task_hidden_dim=8),
                      "hyperformer++: its hypernetworks generate the adapters of all tasks"),
    "a full model": (lambda f: trained(f, ["mrpc"], "finetune"), "this is a fully fine-tuned model", "frozen T5"),
    "trained norms": (lambda f: trained(f, ["mrpc"], "adapters", unfreeze_layer_norms=True),
                      "layer_norm.weight of its backbone was trained too", "--unfreeze_layer_norms false"),
    "a trained T5": (lambda f: trained(f, ["mrpc"], "lora", unfreeze_model=True), "its backbone's fingerprint is"),
    "another length": (lambda f: trained(f, ["mrpc"], flags=dict(max_source_length=64)),
                       "its --max_source_length is 64", "32, as in --checkpoints rte="),
    "other halves": (lambda f: trained(f, ["mrpc"], flags=dict(data_seed=1)), "its --data_seed is 1"),
    "another activation": (lambda f: trained(f, ["mrpc"], "adapters", non_linearity="relu"),
                           "its --non_linearity is relu"),
    "another task": (lambda f: trained(f, ["cola"]), "the task(s) cola, not 'mrpc'"),
    "a classifier": (other_kind, "this is not a model of train_t5.py, as another source is"),
    "a language model": (lambda f: trained_gpt2(f, ["mt"]), "this is not a model of train_t5.py, as another source is"),
    "nothing": (lambda f: f, "no such directory"),
    "an empty directory": (emptied, "the directory has no config.json (it holds: nothing)",
                           "a run directory of train_t5.py that has saved a model"),
    "no model yet": (lambda f: emptied(f, "run.json"), "this run has not saved a best model yet",
                     "python train_t5.py --resume"),
    "a bare T5": (lambda f: lively("tiny-t5"), "this is a bare backbone: a task cannot be taken out of it"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(kind, tmp_path, capsys):
    make, *words = WRONG[kind]
    runs = dict(rte=trained(tmp_path / "rte", ["rte"], "adapters"), mrpc=make(tmp_path / "wrong"))
    refused_here(capsys, lambda: combined(tmp_path / "out", runs), *words, out=tmp_path / "out")


def test_a_result_that_answers_otherwise_is_refused(tmp_path, capsys, monkeypatch):
    runs, copy = {task: trained(tmp_path / task, [task]) for task in ("rte", "mrpc")}, run_combination.copy_tensors

    def wrong(state, wanted, location):
        copy({name: tensor + 0.1 for name, tensor in state.items()}, wanted, location)

    monkeypatch.setattr(run_combination, "copy_tensors", wrong)
    refused_here(capsys, lambda: combined(tmp_path / "out", runs),
                 "the combined model answers differently: scores of rte", out=tmp_path / "out")  # fmt: skip


@pytest.mark.parametrize("share, refused", [(1e-5, False), (1e-3, True), (float("nan"), True)])
def test_scores_may_differ_by_a_share_of_the_largest_as_those_of_language_models(share, refused, tmp_path, capsys,
                                                                                 monkeypatch):  # fmt: skip
    run, compare = {"rte": trained(tmp_path / "rte", ["rte"])}, run_combination.compare_scores
    monkeypatch.setattr(run_combination, "compare_scores", lambda pairs: compare(
        (1000 * (b + share * b.abs().max()), 1000 * b) for _, b in pairs))  # fmt: skip
    if refused:
        refused_here(capsys, lambda: combined(tmp_path / "out", run), "scores of rte differ", out=tmp_path / "out")
    else:
        assert read(combined(tmp_path / "out", run) / "run.json")["proof"]["rte"]["max_abs_difference"] > 1e-3


def test_a_task_there_twice_and_a_vlm_that_is_none_are_refused(tmp_path, capsys):
    rte = trained(tmp_path / "rte", ["rte"])
    both, argv = combined(tmp_path / "both", {"rte": rte}), ["--checkpoints", f"rte={rte}", "--into"]
    for into, *words in ((both, "task 'rte' is given twice", f"--into {both} has it"),
                         (tmp_path / "none", f"--into {tmp_path / 'none'}: no such directory")):  # fmt: skip
        refused_here(capsys, lambda into=into: combine_all.main([*argv, str(into)]), *words)


def test_data_of_the_proof_are_named_or_those_of_the_run(tmp_path, capsys):
    run = trained(tmp_path / "rte", ["rte"], flags=dict(data_dir=None))
    for typed, folder in (([], ROOT / "data" / "samples" / "glue"), (["--data", f"rte={GLUE}"], GLUE)):
        both = combined(tmp_path / "both", {"rte": run}, *typed, "--push_to_hub=")
        assert read(both / "run.json")["proof"]["rte"]["data"] == str(folder)
        for path in both.iterdir():
            path.unlink()
    refused_here(capsys, lambda: combined(tmp_path / "both", {"rte": run}, "--data", f"mrpc={GLUE}"),
                 "task 'mrpc' is not combined")  # fmt: skip


def test_the_commands_that_come_next_name_each_tasks_own_data(tmp_path, capsys):
    (tmp_path / "glue").symlink_to(GLUE)
    runs = {"rte": trained(tmp_path / "rte", ["rte"]),
            "mrpc": trained(tmp_path / "mrpc", ["mrpc"], flags=dict(data_dir=str(tmp_path / "glue")))}  # fmt: skip
    both = combined(tmp_path / "both", runs)
    commands = [shlex.split(line)[3:] for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert [words[1] for words in commands] == ["rte", "mrpc"]
    for words in commands:
        evaluate.main([*words, "--split", "valid", "--limit", "2", "--output_dir", str(tmp_path / "results"), "--fp32"])
    assert "metrics.json" not in (both / "README.md").read_text()


def folders_of(tmp_path, **tasks):
    """{task: a folder that holds only this task's GLUE folder}."""
    folders = {task: tmp_path / f"glue-{task}" for task in tasks}
    for task, folder in folders.items():
        folder.mkdir()
        (folder / tasks[task]).symlink_to(f"{GLUE}/{tasks[task]}")
    return folders


def evaluated_data(model, out, *more):
    """{task: the folder that evaluate.py reads} of all tasks of a model."""
    argv = ["--task", "all", "--model_checkpoint", model, "--split", "valid", "--limit", 2, "--fp32", *more]
    evaluate.main(list(map(str, [*argv, "--output_dir", out])))
    return {path.name.split("_")[0]: read(path)["dataset_path"] for path in out.glob("*_metrics.json")}


@pytest.mark.slow
def test_all_tasks_are_evaluated_on_the_data_of_each(tmp_path, capsys):
    folders = folders_of(tmp_path, rte="RTE", mrpc="MRPC", cola="CoLA")
    runs = {task: trained(tmp_path / task, [task], flags=dict(data_dir=str(folder)))
            for task, folder in folders.items()}  # fmt: skip
    both = combined(tmp_path / "both", {task: runs[task] for task in ("rte", "mrpc")})
    assert f"evaluate.py --task all --model_checkpoint {both}" in capsys.readouterr().out
    own = {task: str(folder) for task, folder in folders.items()}
    assert evaluated_data(both, tmp_path / "results") == {task: own[task] for task in ("rte", "mrpc")}
    # Added models keep the data they remember; data named for the proof are remembered as well.
    (cola := tmp_path / "glue-cola").rename(moved := tmp_path / "moved")
    argv = ["--into", both, "--checkpoints", f"cola={runs['cola']}", *QUICK]
    refused_here(capsys, lambda: combine_all.main(list(map(str, argv))), str(cola), "--data cola=DIR")
    combine_all.main(list(map(str, [*argv, "--data", f"cola={moved}"])))
    assert evaluated_data(both, tmp_path / "all") == own | dict(cola=str(moved))
    more = ["--data", f"rte={GLUE}"]
    assert evaluated_data(both, tmp_path / "named", *more) == own | dict(cola=str(moved), rte=GLUE)
    assert set(evaluated_data(both, tmp_path / "one", "--data_dir", GLUE, *more).values()) == {GLUE}


def test_data_that_cannot_be_read_are_named_by_the_flag_that_was_typed(tmp_path, capsys):
    rte = trained(tmp_path / "rte", ["rte"])
    both, absent, empty = combined(tmp_path / "both", {"rte": rte}), tmp_path / "absent", tmp_path / "empty"
    (empty / "RTE").mkdir(parents=True)
    argv = ["--task", "rte", "--model_checkpoint", str(both), "--output_dir", str(tmp_path / "x")]
    for start in (lambda *data: combined(tmp_path / "out", {"rte": rte}, *data),
                  lambda *data: evaluate.main([*argv, *map(str, data)])):  # fmt: skip
        refused_here(capsys, lambda s=start: s("--data", f"rte={absent}"), f"--data rte={absent}: no such folder",
                     "--data rte=DIR", out=tmp_path / "out")  # fmt: skip
        refused_here(capsys, lambda s=start: s("--data", f"rte={empty}"), "check --data rte=DIR; ",
                     "download_glue_data.py --data_dir DIR", out=tmp_path / "out")  # fmt: skip
    for flag in ("--data_dir", "--dataset_path"):
        refused_here(capsys, lambda f=flag: evaluate.main([*argv, f, str(absent)]), f"{flag} {absent}: no such folder",
                     f"{flag} DIR")  # fmt: skip
        refused_here(capsys, lambda f=flag: evaluate.main([*argv, f, str(empty)]), f"check {flag}; ")


@pytest.mark.parametrize("method, said", [("hyperformer++", "the method 'hyperformer\\+\\+'"), ("loar", "'loar'")])
def test_a_method_that_no_task_can_have_for_itself_is_refused(method, said, tmp_path):
    both = combined(tmp_path / "both", {"rte": trained(tmp_path / "rte", ["rte"])})
    manifest = read(both / "adapter_config.json")
    manifest["methods"]["rte"] = dict(method=method)
    (both / "adapter_config.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=said):
        t5.load_t5(both)
