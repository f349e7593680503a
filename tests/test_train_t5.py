"""train_t5.py and evaluate.py on its models, run as a user runs them, on a tiny random T5."""

import json
import re

import pytest
import quick
import torch
from safetensors.torch import load_file
from scripts import ROOT, run, run_as_user
from training_runs import different, in_two_processes, parse_t5, refused

GLUE = str(ROOT / "data" / "samples" / "glue")
CONFIG = dict(
    model_name_or_path="tiny-t5", data_dir=GLUE, tasks=["rte", "mrpc"], learning_rate=1e-2, max_steps=8, warmup_steps=2,
    per_device_train_batch_size=4, label_smoothing=0.1, temperature=10, train_adapters=True, reduction_factor=16,
    adapter_config_name="adapter", unfreeze_layer_norms=True, max_source_length=32, n_train=30, n_val=4, n_test=4,
    split_validation_test=True, do_train=True, do_eval=True, do_test=True, eval_strategy="steps", eval_steps=4,
    save_steps=4, save_total_limit=2, logging_steps=3, logging_first_step=True, load_best_model_at_end=True, fp32=True,
    metric_for_best_model="eval_loss", greater_is_better=False,
)  # fmt: skip


def config(tmp_path, **values):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "output_dir": str(tmp_path / "run"), **values}))
    return path


def trained(tmp_path, *flags, **values):
    """A finished run's directory and what it printed."""
    result = run("train_t5", [config(tmp_path, **values), *flags], tmp_path)
    assert result.code == 0, result.err
    return tmp_path / "run", result.out


def read(path):
    return json.loads(path.read_text())


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*model.safetensors")):
        found |= {k: (str(t.dtype), tuple(t.shape), t.numpy().tobytes()) for k, t in load_file(file).items()}
    assert found, folder
    return found


def test_a_trained_model_is_evaluated_as_it_was_trained_where_nothing_else_is_said(tmp_path):
    folder, _ = trained(tmp_path, n_val=-1, n_test=-1)
    expected = read(folder / "test_results.json")
    # The published split leaves half of the validation rows to the test; a model with adapters has no prefix.
    argv = ["--model_name_or_path", folder, "--do_test", "--fp32"]
    result = run("train_t5", [*argv, "--output_dir", tmp_path / "again"], tmp_path)
    assert result.code == 0, result.err
    found = read(tmp_path / "again" / "test_results.json")
    assert set(found) - {"step"} == set(expected) - {"step"}
    for name in set(found) - {"step"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    # There is no model to describe.
    assert (folder / "README.md").exists() and not (tmp_path / "again" / "README.md").exists()
    # What is given counts.
    result = run("train_t5", [*argv, "--tasks", "rte", "--n_test", "3", "--output_dir", tmp_path / "rte"], tmp_path)
    assert result.code == 0 and "rte, test: 3 instances" in result.out and "mrpc, test" not in result.out
    refused(run("train_t5", ["--model_name_or_path", folder, "--do_test", "--push_to_hub", "a/b", "--output_dir",
                             tmp_path / "no"], tmp_path), "--push_to_hub", "--do_train")  # fmt: skip


def last_checkpoint(folder):
    return sorted((folder / "checkpoints").iterdir())[-1]


def same_run(one, other):
    """Weights of the best and the last model, optimizer, and every logged number are equal to the last bit."""
    first, second = read(one / "metrics.json"), read(other / "metrics.json")
    for name in ("steps", "best_step", "best_metric", "history", "scores", "coverage"):
        assert first[name] == second[name], name
    assert different(tensors(one), tensors(other)) == []
    ends = last_checkpoint(one), last_checkpoint(other)
    assert ends[0].name == ends[1].name
    assert different(tensors(ends[0]), tensors(ends[1])) == []
    states = [torch.load(f / "training_state.pt", weights_only=True)["optimizer"]["state"] for f in ends]
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        assert all(torch.equal(states[0][key][k], states[1][key][k]) for k in states[0][key])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One complete run, shared by several tests."""
    return trained(tmp_path_factory.mktemp("finished"))


def test_a_run_holds_what_it_promises(finished):
    folder, said = finished
    names = {p.name for p in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "run.json", "metrics.json", "arguments_results.json",
            "val_results.json", "test_results.json", "learning_curve.png", "tokenizer.json"} <= names  # fmt: skip
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"step_00000004", "step_00000008"}
    assert any(n.startswith("events") for n in names) and not [n for n in names if n.startswith(".")]
    assert "trained: adapters" in said and "tasks are drawn: rte 50.0 %, mrpc 50.0 %" in said
    assert re.search(r"seen of rte: \d+ of 30 examples", said)


def test_scores_are_named_as_published_and_averaged_over_metrics_alone(finished):
    folder, _ = finished
    scores = read(folder / "val_results.json")
    assert {"rte_eval_acc", "mrpc_eval_f1", "mrpc_eval_acc", "rte_eval_loss", "eval_average_metrics"} <= set(scores)
    assert not [name for name in scores if "gen_len" in name]
    mean = (scores["rte_eval_acc"] + scores["mrpc_eval_f1"] + scores["mrpc_eval_acc"]) / 3
    assert scores["eval_average_metrics"] == pytest.approx(mean)
    assert {"rte_test_acc", "test_average_metrics"} <= set(read(folder / "test_results.json"))


def test_the_final_model_is_the_best_one(finished):
    folder, _ = finished
    metrics, scores = read(folder / "metrics.json"), read(folder / "val_results.json")
    best = min(metrics["history"]["valid"], key=lambda row: row["eval_loss"])
    assert metrics["best_step"] == best["step"]
    # The first step is logged, not evaluated.
    assert [metrics["history"][split][0]["step"] for split in ("train", "valid")] == [1, 4]
    assert scores["eval_loss"] == pytest.approx(best["eval_loss"], rel=1e-5)
    assert different(tensors(folder), tensors(folder / "checkpoints" / f"step_{best['step']:08d}")) == []


def test_run_json_knows_everything_the_run_was_started_with(finished):
    folder, _ = finished
    record = read(folder / "run.json")
    assert record["flags"]["sampling_temperature"] == 10 and record["flags"]["loss_reduction"] == "sum"
    assert record["method"] == "adapters" and record["versions"]["transformers"]


def test_evaluate_finds_the_scores_of_training_with_nothing_typed(finished, tmp_path):
    folder, _ = finished
    argv = [
        "--task",
        "all",
        "--model_checkpoint",
        folder,
        "--output_dir",
        tmp_path,
        "--fp32",
        "--limit",
        CONFIG["n_test"],
    ]
    result = run("evaluate", argv, tmp_path)
    assert result.code == 0, result.err
    scores, wanted = read(tmp_path / "test_results.json"), read(folder / "test_results.json")
    assert scores == {k: pytest.approx(v) for k, v in wanted.items() if k != "step"}
    lines = (tmp_path / "mrpc_outputs.jsonl").read_text().splitlines()
    assert len(lines) == read(tmp_path / "mrpc_metrics.json")["instances"] == 4
    from versatile.utils.table import read_metrics

    (found,) = read_metrics(tmp_path / "rte_metrics.json")
    assert found.task == "rte" and found.scores["acc"].value == pytest.approx(scores["rte_test_acc"])


def test_evaluate_takes_one_task_a_limit_and_a_checkpoint(finished, tmp_path):
    folder, _ = finished
    saved = folder / "checkpoints" / "step_00000004"
    argv = ["--task", "rte", "--model_checkpoint", saved, "--limit", 3, "--split", "valid", "--num_beams", 2,
            "--output_dir", tmp_path, "--no_sample"]  # fmt: skip
    assert run("evaluate", argv, tmp_path).code == 0
    summary = read(tmp_path / "rte_metrics.json")
    assert summary["instances"] == 3 and "beams:2" in summary["scores"]["acc"]["signature"]
    common = ["--model_checkpoint", folder, "--output_dir", tmp_path]
    refused(run("evaluate", ["--task", "cola", *common], tmp_path), "rte, mrpc", "cola")
    refused(run("evaluate", ["--task", "rte", "--top_k", 3, *common], tmp_path), "--top_k", "no effect")


def test_only_what_was_trained_is_in_the_model_and_moves(finished):
    folder, _ = finished
    from versatile.adapters import t5

    model, _ = t5.load_t5(folder)
    bare, _ = t5.load_t5_of_name("tiny-t5")
    kept = dict(bare.named_parameters())
    for name, parameter in model.named_parameters():
        if name in kept and not parameter.requires_grad:
            assert torch.equal(parameter, kept[name]), name
    assert read(folder / "metrics.json")["ledger"]["backbone"] == 0


def test_tasks_that_are_not_in_a_batch_rest(tmp_path):
    """One step is one task: the other task's adapters keep their initial values, to the last bit."""
    from transformers import set_seed
    from versatile.adapters import t5

    folder, _ = trained(tmp_path, max_steps=1, eval_strategy="no", load_best_model_at_end=False, do_eval=False,
                        do_test=False, warmup_steps=0)  # fmt: skip
    model, _ = t5.load_t5(folder)
    set_seed(42)
    bare, _ = t5.load_t5_of_name("tiny-t5")
    start_ = t5.attach(bare, ["rte", "mrpc"], model.settings)
    first = dict(start_.named_parameters())
    moved = {n for n, p in model.named_parameters() if ".adapters." in n and not torch.equal(p, first[n])}
    assert moved and len({task for task in ("rte", "mrpc") for n in moved if f".{task}." in n}) == 1


METHODS = {
    "finetune": dict(train_adapters=False),
    "hyperformer": dict(adapter_config_name="meta-adapter", unique_hyper_net=True, task_embedding_dim=8),
    "hyperformer++": dict(adapter_config_name="meta-adapter", efficient_unique_hyper_net=True, task_embedding_dim=8),
    "meta": dict(adapter_config_name="meta-adapter", task_embedding_dim=8, conditional_layer_norm=True),
}


@pytest.mark.parametrize("method", quick.every(2, METHODS))
def test_every_method_trains_and_reloads(tmp_path, method):
    short = dict(max_steps=2, eval_strategy="no", load_best_model_at_end=False, n_test=2, do_eval=False)
    small = dict(task_hidden_dim=8, projected_task_embedding_dim=8)
    folder, _ = trained(tmp_path, **short, **small, **METHODS[method])
    assert read(folder / "run.json")["method"] == method
    argv = ["--task", "all", "--model_checkpoint", folder, "--output_dir", tmp_path / "again", "--fp32", "--limit", 2]
    assert run("evaluate", argv, tmp_path).code == 0
    scores, wanted = read(tmp_path / "again" / "test_results.json"), read(folder / "test_results.json")
    assert scores["test_loss"] == pytest.approx(wanted["test_loss"], rel=1e-5)
    prompt = (folder / "test_outputs" / "rte_outputs.jsonl").read_text()
    assert ('"source": "rte sentence1:' in prompt) == (method == "finetune")


def test_the_same_command_gives_the_same_run_bit_for_bit(finished, tmp_path):
    again, _ = trained(tmp_path)
    same_run(finished[0], again)


def test_resuming_a_finished_run_changes_nothing(finished, tmp_path):
    out, _ = trained(tmp_path)
    before = tensors(out)
    result = run("train_t5", ["--resume", out], tmp_path)
    assert result.code == 0 and "this run is already finished" in result.out
    assert different(before, tensors(out)) == []
    same_run(finished[0], out)


def test_resuming_with_other_flags_or_data_is_refused(finished, tmp_path):
    folder, _ = finished
    refused(run("train_t5", ["--resume", folder, "--learning_rate", "1"], tmp_path), "--lr 1.0", "0.01")
    refused(run("train_t5", ["--resume", tmp_path], tmp_path), "no run.json")
    refused(run("train_t5", [config(tmp_path, output_dir=str(folder))], tmp_path), "already holds a run", "--resume")


def test_two_processes_are_one_with_the_same_rows(tmp_path):
    """A data set whose rows are all alike: whichever are drawn, both processes see what the single one sees."""
    folder = tmp_path / "data" / "rte"
    folder.mkdir(parents=True)
    rows = [dict(sentence1="the old house", sentence2="a river", label=1)] * 16
    for split in ("train", "validation", "test"):
        (folder / f"{split}.json").write_text(json.dumps(rows[: 16 if split == "train" else 5]))
    values = dict(data_dir=str(tmp_path / "data"), tasks=["rte"], dropout=0, split_validation_test=False, max_steps=6,
                  n_train=-1, n_val=-1, n_test=-1)  # fmt: skip
    for reduction in ("sum", "mean"):
        one, two = tmp_path / f"one-{reduction}", tmp_path / f"two-{reduction}"
        common = [config(tmp_path, **values), "--loss_reduction", reduction]
        assert run("train_t5", [*common, "--output_dir", one], tmp_path / "a").code == 0
        in_two_processes([*common, "--output_dir", two], tmp_path / "b", script="train_t5")
        first, second = load_file(one / "adapter_model.safetensors"), load_file(two / "adapter_model.safetensors")
        for key in first:
            torch.testing.assert_close(first[key], second[key], atol=2e-5, rtol=1e-4)
        a, b = read(one / "val_results.json"), read(two / "val_results.json")
        assert a == {k: pytest.approx(v, rel=1e-4) for k, v in b.items()}
        assert read(two / "metrics.json")["processes"] == 2
    refused(run("train_t5", ["--resume", two], tmp_path / "a"), "had 2 processes", "--nproc_per_node 2")
    (folder / "train.json").write_text(json.dumps(rows[:-1]))
    refused(run("train_t5", ["--resume", one], tmp_path / "a"), "the data have changed")


def arguments(tmp_path, *flags):
    return parse_t5(["--output_dir", tmp_path, "--model_name_or_path", "tiny-t5", "--do_train", "--fp32", *flags])


def test_gradients_of_several_small_batches_are_those_of_a_mean_over_all_labels():
    """--gradient_accumulation_steps with --loss_reduction mean: batches with more labels weigh more."""
    from types import SimpleNamespace

    from transformers import T5Config, T5ForConditionalGeneration
    from versatile.adapters import t5
    from versatile.data.columns import FlatLists
    from versatile.data.text_to_text_batches import Collator, Rows, SampledBatches
    from versatile.training.objectives import SmoothedCrossEntropy

    torch.manual_seed(0)
    small = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = t5.attach(T5ForConditionalGeneration(small), ["a"], t5.T5Settings(reduction_factor=4)).eval()
    targets = [[3], [4], [5, 6, 7, 8], [9, 10, 11, 12]]
    columns = (FlatLists.from_lists(lists) for lists in (torch.randint(2, 20, (4, 5)).tolist(), targets))
    rows = Rows(0, *columns, [""] * 4)

    def batches(draws, accumulation):
        sampler = type("Sampler", (), dict(draws=lambda self, epoch: draws, __len__=lambda self: len(draws)))()
        return SampledBatches(rows, sampler, Collator(0, 0), rows.targets.lengths(), accumulation)

    objective, parts = SmoothedCrossEntropy(0.1), batches([[[0, 1]], [[2, 3]]], 2)
    assert [parts.batch(0, i)[1] for i in range(2)] == [5, 5]
    found = sum(objective(model, *parts.batch(0, i)) / 2 for i in range(2))
    torch.testing.assert_close(found, objective(model, *batches([[[0, 1, 2, 3]]], 1).batch(0, 0)))
    again = batches([[[0, 1]], [[2, 3]], [[1, 2]]], 2)
    assert again.batch(0, 2)[1] == 5 and again.batch(0, 0)[1] == 5 and again.batch(1, 1)[1] == 5
    # Two processes: the labels of both count.
    shared = batches([[[0], [2]]], 1)
    assert shared.batch(0, 0)[1] == 5 and SimpleNamespace(**shared.batch(0, 0)[0]).labels.tolist() == [[3]]


def test_norms_and_biases_do_not_decay(tmp_path):
    """Including T5's own norms, which the published list of names missed."""
    from versatile.adapters import t5
    from versatile.training.optimizers import build_optimizer

    model, _ = t5.load_t5_of_name("tiny-t5")
    model = t5.attach(model, ["a"], t5.T5Settings(method="adapters", unfreeze_model=True))
    groups = build_optimizer(model, arguments(tmp_path, "--weight_decay", 0.1)).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.ndim > 1 and "norm" not in name and "bias" not in name), name


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "cosine_w_restarts", "polynomial", "constant", "constant_w_warmup"]
)
def test_schedules_and_optimizers_are_those_asked_for(tmp_path, name):
    from transformers.optimization import Adafactor
    from versatile.adapters import t5
    from versatile.training.optimizers import AdamW, build_optimizer
    from versatile.training.schedules import build_schedule
    from versatile.training.text_to_text_arguments import warmup_steps

    model, _ = t5.load_t5_of_name("tiny-t5")
    adafactor = ["--adafactor"] * (name == "linear")
    args = arguments(tmp_path, "--lr_scheduler", name, "--warmup_steps", 2, "--learning_rate", 1.0, *adafactor)
    optimizer = build_optimizer(t5.attach(model, ["a"], t5.T5Settings()), args)
    assert type(optimizer) is (Adafactor if name == "linear" else AdamW)
    assert {group["lr"] for group in optimizer.param_groups} == {1.0}
    schedule = build_schedule(args.lr_scheduler_type, args.lr, warmup_steps(args, 10), 10)
    rates = [schedule(step) for step in range(10)]
    assert rates[0] == (1 if name == "constant" else 0)
    assert max(rates) == 1
    end = {"linear": 1 / 8, "polynomial": 1 / 8, "constant": 1, "constant_w_warmup": 1}
    assert rates[9] == pytest.approx(end.get(name, 0.038), rel=0.02)


def test_a_schedule_that_depends_on_scores_is_refused():
    from versatile.training.schedules import build_schedule
    from versatile.utils.errors import UserError

    with pytest.raises(UserError, match="reduce_lr_on_plateau"):
        build_schedule("reduce_lr_on_plateau", 1.0, 0, 10)


@pytest.mark.parametrize(("name", "options", "said"), [
    ("cosine_with_min_lr", None, ["needs min_lr or min_lr_rate", """--lr_scheduler_kwargs '{"min_lr": 1e-05}'"""]),
    ("warmup_stable_decay", {"min_lr_ratio": 0.1}, ["needs num_decay_steps", """'{"num_decay_steps": 100}'"""]),
    ("linear", {"num_cycles": 2}, ["linear has no argument 'num_cycles'", "expected: none", "cosine_with_restarts"]),
    ("constant", {"num_cycles": 2}, ["constant has no argument 'num_cycles'"]),
])  # fmt: skip
def test_arguments_that_a_schedule_lacks_or_does_not_have_are_named(name, options, said):
    from versatile.training.schedules import build_schedule
    from versatile.utils.errors import UserError

    with pytest.raises(UserError) as error:
        build_schedule(name, 1.0, 1, 10, options)
    assert str(error.value).startswith("--lr_scheduler_kwargs") and "num_training_steps" not in str(error.value)
    assert [part for part in said if part not in str(error.value)] == []


BROKEN = {
    "a task without data": (dict(tasks=["rte", "qqp"], data_dir="MISSING/qqp"), ["qqp"]),
    "no such folder": (dict(data_dir="nowhere"), ["nowhere"]),
    "an unknown task": (dict(tasks=["rte", "rtee"]), ["rtee", "mrpc"]),
    "an unknown key": (dict(learningrate=1), ["config.json: learningrate", "learning_rate"]),
    "no such model": (dict(model_name_or_path="no/such/model"), ["no/such/model"]),
    "another kind of model": (dict(model_name_or_path="tiny-gpt2"), ["gpt2", "t5"]),
    "a metric that nothing computes": (dict(metric_for_best_model="accuracy"), ["accuracy", "rte_eval_acc"]),
    "too wide a reduction": (dict(reduction_factor=1000), ["reduction_factor", "64"]),
    "no embedding": (dict(adapter_config_name="meta-adapter", task_embedding_dir="nowhere"), ["rte.npy"]),
}


@pytest.mark.parametrize("what", BROKEN)
def test_bad_input_is_one_message_and_nothing_half_written(tmp_path, what):
    values, fragments = BROKEN[what]
    values = dict(values)
    if str(values.get("data_dir", "")).startswith("MISSING"):
        (tmp_path / "RTE").symlink_to(f"{GLUE}/RTE")
        values["data_dir"] = str(tmp_path)
    out = tmp_path / "run"
    result = run("train_t5", [config(tmp_path, **values)], tmp_path)
    refused(result, *fragments, out=out)
    assert not out.exists()


def test_a_label_that_is_not_the_tasks_is_met_with_its_line(tmp_path):
    folder = tmp_path / "rte"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [dict(sentence1="a", sentence2="b", label=0), dict(sentence1="a", sentence2="b", label="perhaps")]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    result = run("train_t5", [config(tmp_path, data_dir=str(tmp_path), tasks=["rte"])], tmp_path)
    refused(result, "train.json", "perhaps", "entailment", out=tmp_path / "run")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    values = dict(learning_rate=1e30, train_adapters=False, max_grad_norm=0, logging_steps=1)
    result = run("train_t5", [config(tmp_path, **values)], tmp_path)
    refused(result, "nan at step", "lower --lr")


def test_from_scratch_with_a_named_size_and_a_tokenizer(tmp_path):
    from versatile.adapters.backbones import bundled

    tokenizer = bundled.folder("tiny-t5") / "tokenizer.json"
    values = dict(model_name_or_path=None, from_scratch=True, config_name="t5-tiny", tokenizer_name=str(tokenizer),
                  config_overrides="d_model=32,num_layers=1,num_decoder_layers=1,d_ff=32,d_kv=8,num_heads=2",
                  max_steps=2, eval_strategy="no", load_best_model_at_end=False, tasks=["rte"])  # fmt: skip
    for adapters in (False, True):
        folder = tmp_path / str(adapters)
        folder.mkdir()
        out, _ = trained(folder, **values, train_adapters=adapters)
        argv = ["--task", "rte", "--model_checkpoint", out, "--output_dir", folder / "again", "--fp32", "--limit", 4]
        result = run("evaluate", argv, folder)
        assert result.code == 0, result.err
        loss = read(folder / "again" / "test_results.json")["test_loss"]
        assert loss == pytest.approx(read(out / "test_results.json")["test_loss"], rel=1e-5)


@pytest.mark.slow
def test_the_readmes_command_runs_as_a_user_runs_it(tmp_path):
    argv = [ROOT / "configs" / "test.json", "--output_dir", tmp_path / "run", "--max_steps", "2", "--eval_steps", "2",
            "--save_steps", "2"]  # fmt: skip
    result = run_as_user("train_t5", argv)
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "test_results.json").is_file()
    shown = run_as_user("train_t5", ["--help"])
    assert shown.code == 0 and "--label_smoothing" in shown.out and "torchrun" in shown.out
