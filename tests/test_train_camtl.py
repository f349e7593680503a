"""train_camtl.py itself: trained, killed and resumed, in two processes, scored, predicting, and its refusals."""

import json
import re
import shutil
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scripts import ROOT, metrics, run, tensors
from training_runs import different, error_of, in_two_processes, refused, trained
from versatile.data import glue
from versatile.training import classification as prediction

import train_camtl

SCRIPT = "train_camtl"
SAMPLES = "data/samples/glue"
TASKS = ("cola", "sts-b", "mrpc")


def small_bert(folder, dropout=0.1):
    """A random BERT, 32 wide, with two layers and the tokenizer of tiny-bert."""
    from transformers import AutoTokenizer, BertConfig, BertModel
    from versatile.adapters.backbones import bundled

    tokenizer = AutoTokenizer.from_pretrained(bundled.folder("tiny-bert"))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64, hidden_dropout_prob=dropout,
                        attention_probs_dropout_prob=dropout)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return small_bert(tmp_path_factory.mktemp("bert"))


def command(bert, out, *more, form="base", tasks=TASKS, epochs=2, do=("--do_train", "--do_eval")):
    """A run of about 12 steps."""
    return list(map(str, ["--model_name_or_path", bert, "--form", form, "--data_dir", SAMPLES, "--tasks", *tasks,
                          "--output_dir", out, *do, "--max_seq_length", 32, "--limit", 16, "--num_train_epochs", epochs,
                          "--learning_rate", 1e-3, "--fp32", "--logging_steps", 1, *more]))  # fmt: skip


@pytest.fixture(scope="module")
def whole(bert, tmp_path_factory):
    """One run with everything: uncertainty, MNLI and its guests, frozen layers, weight decay, predictions."""
    out = tmp_path_factory.mktemp("run") / "whole"
    argv = command(bert, out, "--use_mt_uncertainty", "--do_predict", "--freeze_encoder_layers", "0-0",
                   "--weight_decay", 0.5, "--save_steps", 3, tasks=("mnli", *TASKS))  # fmt: skip
    trained(argv, out.parent / "log", SCRIPT, pictures=True)
    return out, argv


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


# --- a run


def test_a_run_leaves_model_scores_curves_and_what_was_seen(whole):
    out, _ = whole
    names = {p.name for p in out.iterdir()}
    assert {
        "model.safetensors",
        "adapter_config.json",
        "run.json",
        "metrics.json",
        "eval_results.json",
        "eval_results.txt",
        "learning_curve.png",
        "data_seen.png",
        "data_seen.json",
        "parameters.json",
    } <= names
    assert all((out / name).stat().st_size > 1000 for name in ("learning_curve.png", "data_seen.png"))
    assert any(name.startswith("events.") for name in names) and not [n for n in names if n.endswith(".part")]
    found = metrics(out)
    # 16 rows per task in batches of 8, four tasks: int(2 · 4 · 1) steps per epoch.
    assert found["steps"] == found["total_steps"] == 16 and found["form"] == "base"
    assert [r["step"] for r in found["history"]["valid"]] == [8, 16]
    rates = [r["lr"] for r in found["history"]["train"]]
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-3 / 15) and len(rates) == 16


def test_what_was_seen_adds_up(whole):
    out, _ = whole
    seen = read_json(out / "data_seen.json")
    assert [r["step"] for r in seen] == list(range(1, 17))
    for row in seen:
        assert sum(row["rows"].values()) == 8 * row["step"] and set(row["rows"]) == {"mnli", *TASKS}
        assert all(0 <= share <= min(1, row["rows"][task] / 16) for task, share in row["share"].items())
    # The model, not the size of the data, decides what is learned.
    assert len(set(seen[-1]["rows"].values())) > 1


def test_all_tasks_are_scored_at_the_one_best_model(whole, tmp_path):
    """The original keeps each metric's best over time, from different models."""
    out, _ = whole
    results, found = read_json(out / "eval_results.json"), metrics(out)
    entries = {entry["step"]: entry for entry in found["history"]["valid"]}
    best = max(entry["average"] for entry in entries.values())
    assert results["step"] == found["best_step"] and results["average"] == entries[results["step"]]["average"] == best
    assert results["tasks"] == entries[results["step"]]["tasks"]
    assert set(results["tasks"]) == {"mnli", "mnli-mm", *TASKS}
    again = run(SCRIPT, ["--model_name_or_path", out, "--data_dir", SAMPLES, "--limit", 16, "--do_eval", "--do_predict",
                         "--output_dir", tmp_path / "again", "--fp32"], tmp_path)  # fmt: skip
    assert again.code == 0, again.err
    scored = read_json(tmp_path / "again" / "eval_results.json")
    assert scored["step"] == results["step"] and scored["average"] == pytest.approx(best, abs=1e-6)
    for task, result in results["tasks"].items():
        assert scored["tasks"][task]["scores"] == pytest.approx(result["scores"], abs=1e-6)
        assert scored["tasks"][task]["loss"] == pytest.approx(result["loss"], abs=1e-5)
    for path in out.glob("*_test_iter_*.tsv"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert read_json(tmp_path / "again" / "metrics.json")["tasks"]["mnli"]["method"] == "CA-MTL-base+uncertainty"
    assert "average" in again.out and "mnli-mm" in again.out


def test_the_average_counts_mnli_once(whole):
    tasks = read_json(whole[0] / "eval_results.json")["tasks"]
    each = {name: np.mean(list(r["scores"].values())) for name, r in tasks.items()}
    mnli = (each.pop("mnli") + each.pop("mnli-mm")) / 2
    assert read_json(whole[0] / "eval_results.json")["average"] == pytest.approx((mnli + sum(each.values())) / 4)


def test_results_are_what_the_table_of_results_reads(whole):
    from versatile.utils import table

    results, notes = table.collect([whole[0]])
    assert not notes and {r.task for r in results} == {"mnli", "mnli-mm", *TASKS, "average"}
    assert {r.method for r in results} == {"CA-MTL-base+uncertainty"} and all(r.parameters for r in results)


def test_predictions_have_the_files_and_labels_that_glue_wants(whole):
    out, _ = whole
    step = metrics(out)["best_step"]
    for name in ("mnli", "mnli-mm", "ax", *TASKS):
        header, *lines = (out / f"{name}_test_iter_{step}.tsv").read_text().splitlines()
        rows = [line.split("\t") for line in lines]
        assert header == "index\tprediction" and len(rows) == 10
        assert [int(index) for index, _ in rows] == [e.index for e in glue.read_examples(SAMPLES, name, "test")]
        if name == "sts-b":
            assert all(value == f"{float(value):.3f}" for _, value in rows)
        else:
            assert {label for _, label in rows} <= set(glue.TASKS[name].labels)
        submitted = out / "submission" / glue.TASKS[name].submission
        assert submitted.read_text().splitlines() == [header, *lines]
    names = sorted(p.name for p in (out / "submission").iterdir())
    assert names == ["AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "MRPC.tsv", "STS-B.tsv"]


def test_frozen_layers_stay_and_the_log_lists_what_is_frozen_and_what_is_not(whole, bert):
    out, _ = whole
    lists, said = read_json(out / "parameters.json"), (out.parent / "log" / "out").read_text()
    state = load_file(out / "model.safetensors")
    assert sorted(lists["frozen"] + lists["trained"]) == sorted(state)
    before = load_file(bert / "model.safetensors")
    for name in lists["frozen"]:
        assert torch.equal(state[name], before[name.removeprefix("bert.")]), name
    assert "bert.encoder.layer.0.attention.self.cond_block_diag_attn.gb_weights.weight" in lists["trained"]
    assert "bert.embeddings.word_embeddings.weight" in lists["frozen"]
    frozen, learnt = said.split("trained: ")
    assert "bert.encoder.layer.0.output.dense.{weight,bias}" in frozen.split("frozen: ")[1]
    assert "decoders.{0-3}.model.{weight,bias}" in learnt


def test_weight_decay_spares_every_bias_and_norm(bert):
    """`condlayernorm.weight`, which the original decays, among them."""
    from versatile.adapters import bert as berts
    from versatile.adapters.classifier import keyed_parameters
    from versatile.training.optimizers import parameter_groups

    model, _ = berts.build_classifier(str(bert), {"cola": 2, "sts-b": 1}, "base", 32)
    spared = {id(p) for g in parameter_groups(model, 0.1) if not g["weight_decay"] for p in g["params"]}
    named = keyed_parameters(model)
    kept = {name for name, p in named.items() if id(p) in spared}
    assert kept >= {name for name in named if name.endswith("bias") or re.search(r"(?i)(layer_?norm)\.weight$", name)}
    assert "bert.encoder.layer.1.adapter.condlayernorm.weight" in kept
    assert all(named[name].ndim > 1 for name in named.keys() - kept) and len(kept) < len(named)


def test_the_selector_keeps_what_the_model_is_least_certain_about(bert):
    from versatile.adapters import bert as berts
    from versatile.data.encoders.sentence_pair import load_split
    from versatile.data.padding import tensors
    from versatile.data.pair_batches import CandidateBatches
    from versatile.training.uncertainty_sampling import UncertaintySampler
    from versatile.utils import uncertainty

    model, tokenizer = berts.build_classifier(str(bert), {"mrpc": 2, "sts-b": 1, "mnli": 3}, "base", 32)
    splits = {t: load_split(ROOT / SAMPLES, t, "train", tokenizer, 32, limit=6) for t in model.tasks}
    selector = UncertaintySampler(model, torch.float32)
    batches = CandidateBatches(splits, {t: model.task_id(t) for t in splits}, 0, 32, 4, select=selector)
    judged = []
    note = lambda _, args, inputs: judged.extend(inputs["task_ids"].tolist())  # noqa: E731
    model.register_forward_pre_hook(note, with_kwargs=True)
    candidates, chosen = batches.candidates(0, 0), batches.chosen(0, 0)
    # A regression has no entropy of its own, so its rows are not run.
    assert sorted(judged) == [0] * 4 + [2] * 4
    with torch.no_grad():
        entropies = model(**tensors(batches.inputs(candidates))).entropies
    ids = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    each = dict(zip(candidates.tolist(), uncertainty.scores(entropies, ids, {1: 0}).tolist()))
    assert selector.regression == {1: 0} and not model.training and len(chosen) == 4
    kept = sorted((each[row] for row in chosen.tolist()), reverse=True)
    assert kept == pytest.approx(sorted(each.values(), reverse=True)[:4], abs=1e-5)


# --- interrupted, in several processes


def test_resuming_with_other_flags_and_another_run_in_the_same_directory_are_refused(whole, tmp_path):
    out, argv = whole
    refused(run(SCRIPT, ["--resume", out, "--learning_rate", 1], tmp_path), "--lr 1.0 was given")
    refused(run(SCRIPT, argv, tmp_path), "already holds a run")


@pytest.mark.parametrize(("size", "more"), [
    (5, ("--use_mt_uncertainty",)),
    pytest.param(9, (), marks=pytest.mark.slow),
    pytest.param(9, ("--uniform_mt_sampling", "--form", "large"), marks=pytest.mark.slow),
])  # fmt: skip
def test_two_processes_are_one_with_twice_the_batch(size, more, tmp_path):
    bert = small_bert(tmp_path / "bert", dropout=0.0)
    one, two = tmp_path / "one", tmp_path / "two"
    do = ("--do_train", "--do_eval", "--do_predict", "--max_steps", 5, *more)
    trained(command(bert, one, "--per_device_train_batch_size", 2 * size, do=do), tmp_path / "1", SCRIPT)
    in_two_processes(command(bert, two, "--per_device_train_batch_size", size, do=do), tmp_path / "2", SCRIPT)
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("train", "seen"):
        assert len(metrics(one)["history"][name]) == len(metrics(two)["history"][name]) == 5
    assert metrics(one)["history"]["seen"] == metrics(two)["history"]["seen"]
    for a, b in zip(metrics(one)["history"]["train"], metrics(two)["history"]["train"]):
        assert a == pytest.approx(b, rel=1e-4)
    scored = [read_json(d / "eval_results.json")["tasks"] for d in (one, two)]
    assert {t: r["loss"] for t, r in scored[0].items()} == pytest.approx(
        {t: r["loss"] for t, r in scored[1].items()}, 1e-4
    )
    step = metrics(one)["best_step"]
    labels = [(d / f"cola_test_iter_{step}.tsv").read_text() for d in (one, two)]
    assert labels[0] == labels[1]


# --- how long, how often, from where


def test_epochs_may_be_fractions_and_max_steps_overrides_them():
    from train_camtl import trainer_settings

    batches = Namespace(plan=lambda epoch: range(10))
    flags = dict(gradient_accumulation_steps=3, max_steps=-1, n_epochs=2.5, warmup_steps=None,
                 warmup_ratio=0.2, logging_steps=None, max_norm=1.0, seed=1,
                 save_steps=500, select="best", report_to=["none"],
                 evaluate_during_training=False, logging_first_step=False)  # fmt: skip

    def planned(**more):
        settings, warmup = trainer_settings(Namespace(**flags | more), batches, torch.float32)
        return settings.n_epochs, settings.max_steps, warmup

    assert planned() == (3, 10, 2) and planned(n_epochs=0.01) == (1, 1, 0)
    assert planned(max_steps=41) == (11, 41, 8) and planned(warmup_steps=0) == (3, 10, 0)


def test_scored_while_training_and_the_last_model_kept(bert, tmp_path):
    out, board = tmp_path / "run", tmp_path / "board"
    argv = command(bert, out, "--evaluate_during_training", "--logging_steps", 3, "--logging_first_step", "--select",
                   "last", "--logging_dir", board, "--gradient_accumulation_steps", 2, "--uniform_mt_sampling",
                   "--percent_of_max_data_size", 0.5, form="plain", do=("--do_train",), epochs=4)  # fmt: skip
    trained(argv, tmp_path / "log", SCRIPT)
    found = metrics(out)
    # int(2 · 3 · 0.5) batches per epoch, two per step.
    assert found["total_steps"] == 8 and found["best_step"] == 8
    assert [r["step"] for r in found["history"]["valid"]] == [1, 2, 3, 4, 6, 8]
    assert [r["step"] for r in found["history"]["train"]] == [1, 3, 6, 8]
    assert list(board.glob("events.*")) and not list(out.glob("events.*"))
    assert read_json(out / "eval_results.json")["step"] == 8
    rows = found["history"]["seen"][-1]["rows"]
    assert sum(rows.values()) == 4 * 3 * 8 and max(rows.values()) - min(rows.values()) <= 1


def test_training_without_dev_files_keeps_the_last_model(bert, tmp_path):
    """Only what is asked for is read; a json file is all it needs."""
    data = tmp_path / "glue" / "CoLA"
    data.mkdir(parents=True)
    lines = (ROOT / SAMPLES / "CoLA" / "train.tsv").read_text(encoding="utf-8").split("\n")[:8]
    (data / "train.tsv").write_text("\n".join(lines), encoding="utf-8")
    config = dict(model_name_or_path=str(bert), data_dir=str(data.parent), output_dir=str(tmp_path / "run"),
                  tasks=["cola"], do_train=True, max_seq_length=64, num_train_epochs=1, fp32=True)  # fmt: skip
    (tmp_path / "camtl.json").write_text(json.dumps(config))
    result = run(SCRIPT, [tmp_path / "camtl.json"], tmp_path / "log")
    assert result.code == 0, result.err
    found = metrics(tmp_path / "run")
    assert (found["steps"], found["best_step"], found["form"]) == (1, 1, "plain") and "tasks" not in found
    assert not (tmp_path / "run" / "eval_results.json").exists()


def test_a_trained_model_is_trained_on_and_its_directory_written_anew(whole, tmp_path):
    out = tmp_path / "run"
    argv = ["--model_name_or_path", whole[0], "--data_dir", SAMPLES, "--limit", 8, "--output_dir", out, "--do_train",
            "--max_steps", 1, "--fp32", "--tasks", "sts-b", "cola"]  # fmt: skip
    trained([*argv], tmp_path / "1", SCRIPT)
    config = read_json(out / "adapter_config.json")
    assert [t["name"] for t in config["tasks"]] == ["mnli", *TASKS] and config["form"] == "base"
    assert different(tensors(whole[0]), tensors(out))
    (out / "notes.txt").write_text("mine")
    first = read_json(out / "run.json")["started"]
    trained([*argv, "--overwrite_output_dir", "--max_steps", 2], tmp_path / "2", SCRIPT)
    assert metrics(out)["steps"] == 2 and read_json(out / "run.json")["started"] >= first
    assert (out / "notes.txt").read_text() == "mine" and len(list((out / "checkpoints").iterdir())) == 1
    own = [*argv, "--overwrite_output_dir"]
    own[1] = out
    refused(run(SCRIPT, own, tmp_path), "is inside the run that --overwrite_output_dir would remove")


# --- what is refused


def failed(capsys, argv):
    """The error of a refused command line, in this process."""
    return error_of(capsys, lambda: train_camtl.main(list(map(str, argv))))


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(whole, bert, tmp_path, capsys):
    out = tmp_path / "run"

    def said(*more, base=bert, **options):
        return failed(capsys, [*command(base, out, **options), *more])

    assert "not divisible by 20" in (text := said("--max_seq_length", 20)) and "16 or 32" in text
    assert "3 to 64, the positions" in said("--max_seq_length", 128)
    assert "the top layer is new" in said("--freeze_encoder_layers", "0-1")
    assert "does not know rte" in (text := said(base=whole[0], tasks=("cola", "rte"))) and "mnli, cola, sts-b" in text
    assert "--form large: the model's is base" in said(base=whole[0], form="large")
    assert "the model's is 32" in said("--max_seq_length", 16, base=whole[0])
    assert "its heads are not trained" in said(do=("--do_eval",))
    assert "remedy:   give 0-0" in said("--freeze_encoder_layers", "0")
    empty = tmp_path / "empty"
    empty.mkdir()
    for do in (("--do_eval",), ("--do_train",)):
        assert "has no config.json (it holds: nothing)" in said(base=empty, do=do)
    checkpoints = whole[0] / "checkpoints"
    newest = max(checkpoints.glob("step_*"), key=lambda folder: int(folder.name.removeprefix("step_")))
    assert f"name a checkpoint; the newest is {newest}" in said(base=checkpoints, do=("--do_eval",))
    assert not out.exists()


def test_files_that_are_missing_or_broken_are_refused_before_anything_is_written(bert, tmp_path, capsys):
    out, folder = tmp_path / "run", tmp_path / "glue" / "CoLA"
    folder.mkdir(parents=True)

    def said(**options):
        return failed(capsys, [*command(bert, out, **options), "--data_dir", folder.parent])

    assert "no CoLA/train.tsv, CoLA/dev.tsv, STS-B/train.tsv" in (text := said()) and "--download" in text
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("a\t1\t\tFine.\nb\t1\tShort.\n")
    assert "train.tsv:2: 3 columns" in said(tasks=("cola",))
    (folder / "train.tsv").write_text("a\t1\t\tFine.\nb\t2\t\tTwo.\n")
    assert "train.tsv:2: the label is '2'" in said(tasks=("cola",))
    assert "no CoLA/test.tsv" in (text := said(tasks=("cola",), do=("--do_train", "--do_predict")))
    assert "leave --do_predict out" in text
    assert not out.exists()


def test_tasks_without_a_test_file_are_trained_and_not_predicted(bert, tmp_path, capsys):
    """And anything that the GLUE site would refuse is reported."""
    data, out = tmp_path / "glue", tmp_path / "run"
    for task in ("CoLA", "MRPC"):
        shutil.copytree(ROOT / SAMPLES / task, data / task)
    (data / "MRPC" / "test.tsv").unlink()
    argv = command(bert, out, "--max_steps", 1, form="plain", tasks=("cola", "mrpc"), do=("--do_train", "--do_predict"))
    result = run(SCRIPT, [*argv, "--data_dir", data], tmp_path / "log")
    assert result.code == 0, result.err
    assert "no test.tsv of mrpc: not predicted" in result.out and "the first 16 rows" in result.out
    assert "missing: MNLI-m.tsv, RTE.tsv" in result.out and "train cola: 16 rows of 120" in result.out
    assert [p.name for p in (out / "submission").iterdir()] == ["CoLA.tsv"] and metrics(out)["steps"] == 1


def test_a_directory_that_is_no_run_is_refused_by_this_scripts_name(tmp_path, capsys):
    assert "a run directory of train_camtl.py" in failed(capsys, ["--resume", tmp_path])


def test_a_finished_run_that_is_gone_on_with_only_predicts(bert, tmp_path):
    out = tmp_path / "run"
    trained(command(bert, out, tasks=("cola",), epochs=1), tmp_path / "1", SCRIPT)
    before, parameters = tensors(out), read_json(out / "parameters.json")
    scores = (out / "eval_results.json").read_text()
    # As after a kill between run.json and parameters.json, and before the scores.
    for name in ("parameters.json", "eval_results.json"):
        (out / name).unlink()
    result = run(SCRIPT, ["--resume", out, "--do_predict"], tmp_path / "2")
    assert result.code == 0 and "already finished" in result.out, result.err
    assert read_json(out / "parameters.json") == parameters
    assert (out / "eval_results.json").read_text() == scores
    assert different(before, tensors(out)) == [] and list(out.glob("cola_test_iter_2.tsv"))


def test_the_sources_of_missing_files_are_printed_and_nothing_is_done(tmp_path):
    result = run(SCRIPT, ["--download", "--data_dir", tmp_path, "--tasks", "cola", "sst-2"], tmp_path / "log")
    assert result.code == 0 and "missing: CoLA/train.tsv" in result.out and "https://" in result.out


def test_sts_b_submissions_stay_in_range_and_a_wrong_number_of_rows_is_said(tmp_path, caplog):
    split = SimpleNamespace(columns=dict(index=np.arange(3)))
    prediction.write_predictions(tmp_path, "sts-b", split, np.array([-0.25, 2.5, 5.125]), 7)
    content = (tmp_path / "submission" / "STS-B.tsv").read_text(encoding="utf-8")
    assert content == "index\tprediction\n0\t0.000\n1\t2.500\n2\t5.000\n"
    assert "STS-B.tsv has 3 predictions; GLUE's test file has 1379 rows" in caplog.text
    caplog.clear()
    split = SimpleNamespace(columns=dict(index=np.arange(146)))
    prediction.write_predictions(tmp_path, "wnli", split, np.zeros(146), 7)
    assert not caplog.text
