"""combine_all.py --merge: several adapters merged into one, by peft's tensor functions; clear errors.

    python -m pytest tests/test_merging.py
"""

import functools
import itertools
import json
import warnings

import pytest
import quick
import torch
from scripts import ROOT, small
from training_runs import refused_here
from versatile.adapters import checkpoint, combine
from versatile.adapters.attach import attach, trainable
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.merging import merge_sources, merge_tensors
from versatile.data.task import get_task

import combine_all
import evaluate

METHODS = {"bottleneck": 4, "lora": dict(method="lora", lora_rank=3), "ia3": "ia3"}


def trained(folder, tasks, seed, backbone="tiny-gpt2"):
    """A directory as training leaves it; the tasks' trained weights are random."""
    model, tokenizer = backbones.load_backbone(backbone)
    attach(model, tokenizer, {task: get_task(task).markers for task in tasks}, tasks)
    noise = torch.Generator().manual_seed(seed)
    for p in trainable(model).values():
        p.data += 0.1 * torch.randn(p.shape, generator=noise)
    checkpoint.save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module", params=METHODS)
def runs(request, tmp_path_factory):
    """(kind of adapter, three directories trained for one task)."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, [trained(folder / str(seed), {"nlg": METHODS[request.param]}, seed) for seed in range(3)]


def merged(out, *argv):
    combine_all.main(["--output", str(out), *map(str, argv)])
    return checkpoint.read_safetensors(out / checkpoint.ADAPTER_WEIGHTS)


@pytest.mark.parametrize("method", combine_all.MERGES)
@pytest.mark.parametrize("majority", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_tensors_merge_as_pefts(method, majority, density):
    peft = pytest.importorskip("peft.utils.merge_utils", reason="the package peft is not installed")
    tensors, weights = [torch.randn(6, 5) for _ in range(3)], [0.5, 1.5, -0.7]
    theirs = getattr(peft, "task_arithmetic" if method == "linear" else method)
    given = [tensors, torch.tensor(weights)]
    given += [density] if method in combine_all.MERGES[2:] else []
    given += [majority] if method.endswith("ties") else []
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(*given)
    torch.manual_seed(3)
    torch.testing.assert_close(merge_tensors(tensors, weights, method, density, majority), expected)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_merged_lora_is_pefts_weighted_adapter(method, tmp_path):
    peft = pytest.importorskip("peft", reason="the package peft is not installed")
    from versatile.adapters.imports import peft_export

    weights, runs = [0.7, -0.4], []
    for seed, alpha in enumerate((6.0, 12.0)):
        model, tokenizer = backbones.load_backbone("tiny-llama")
        attach(model, tokenizer, {"nlg": []}, {"nlg": dict(method="lora", lora_rank=3, lora_alpha=alpha)})
        torch.manual_seed(seed)
        for p in trainable(model).values():
            p.data += 0.1 * torch.randn_like(p)
        checkpoint.save_checkpoint(model, tokenizer, tmp_path / str(seed))
        peft_export.export_task(tmp_path / str(seed), tmp_path / f"peft{seed}")
        runs.append(combine.read_sources(tmp_path / str(seed), ["nlg"])[0])
    ours = merge_sources(runs, "nlg", method, weights, density=0.5)
    bare = backbones.load_backbone("tiny-llama")[0]
    theirs = peft.PeftModel.from_pretrained(bare, tmp_path / "peft0", adapter_name="a")
    theirs.load_adapter(tmp_path / "peft1", adapter_name="b")
    more = dict(density=0.5) if method == "ties" else {}
    theirs.add_weighted_adapter(["a", "b"], weights, "merged", combination_type=method, **more)
    layer = theirs.base_model.model.model.layers[1].self_attn.v_proj
    scale = ours.method["lora_alpha"] / ours.method["lora_rank"]
    product = scale * ours.state["blocks.1.nlg.v.B"] @ ours.state["blocks.1.nlg.v.A"]
    torch.testing.assert_close(product, layer.get_delta_weight("merged"), atol=1e-6, rtol=1e-5)
    assert product.abs().max() > 1e-3


@pytest.mark.parametrize("kind", METHODS)
def test_the_mean_of_an_adapter_with_itself_is_that_adapter(kind, tmp_path):
    run = trained(tmp_path / "run", {"nlg": METHODS[kind]}, 0)
    model, _ = checkpoint.load_checkpoint(run)
    merged(tmp_path / "out", "--merge", "linear", "--checkpoints", f"nlg={run}", f"nlg={run}")
    again, _ = checkpoint.load_checkpoint(tmp_path / "out")
    ids = torch.arange(5, 25).view(2, 10)
    given = dict(input_ids=ids, task_ids=torch.tensor([0, 0]))
    torch.testing.assert_close(again(**given).logits, model(**given).logits, atol=1e-5, rtol=1e-5)


def test_the_weights_of_two_loras_act_as_help_says(tmp_path):
    run = trained(tmp_path / "run", {"nlg": METHODS["lora"]}, 0)
    source = combine.read_sources(run, ["nlg"])[0]
    help_of_weights = next(action.help for action in combine_all.parser()._actions if action.dest == "weights")
    for weight, factor in ((0.5, 2), (0.25, 1)):
        sources = [source, merge_sources([source, source], "nlg", "linear", [weight, weight])]
        scales = [own.method["lora_alpha"] / own.method["lora_rank"] for own in sources]
        site = next(key.removesuffix(".B") for key in source.state if key.endswith(".B"))
        before, after = (s * own.state[f"{site}.B"] @ own.state[f"{site}.A"] for s, own in zip(scales, sources))
        torch.testing.assert_close(after, factor * before)
    assert "the mean of two LoRAs has the weights 0.25 0.25" in help_of_weights


@pytest.mark.parametrize("merge", quick.every(8, combine_all.MERGES))
def test_adapters_of_one_task_become_one_that_is_scored(runs, merge, tmp_path, capsys):
    kind, runs = runs
    given = [f"nlg={run}" for run in runs]
    first = merged(tmp_path / "out", "--merge", merge, "--checkpoints", *given, "--weights", 0.5, 0.3, 0.2)
    again = merged(tmp_path / "again", "--merge", merge, "--checkpoints", *given, "--weights", 0.5, 0.3, 0.2)
    assert all(torch.equal(first[key], again[key]) for key in first), "what is dropped depends on the seed alone"
    states = [checkpoint.read_safetensors(run / checkpoint.ADAPTER_WEIGHTS) for run in runs]
    rows = sum(w * state["rows.nlg"] for w, state in zip((0.5, 0.3, 0.2), states))
    torch.testing.assert_close(first["rows.nlg"], rows)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["method"] == f"merged ({merge})" and record["flags"]["weights"] == [0.5, 0.3, 0.2]
    if (kind, merge) == ("lora", "ties"):
        data = small(tmp_path / "nlg.json", "nlg", train=2, valid=1, test=2)
        evaluate.main(["--task", "nlg", "--dataset_path", str(data), "--model_checkpoint", str(tmp_path / "out"),
                       "--no_sample", "--max_length", "4", "--fp32",
                       "--output_dir", str(tmp_path / "scores")])  # fmt: skip
        assert list((tmp_path / "scores").iterdir())


def test_adapters_of_several_tasks_become_one_task(tmp_path):
    run = trained(tmp_path / "run", {"nlg": "lora", "mt": "lora"}, 0)
    other = trained(tmp_path / "other", {"mt": "lora"}, 1)
    state = merged(tmp_path / "out", "--merge", "task_arithmetic", "--task", "mt", "--checkpoints", f"nlg={run}",
                   f"mt={run}", f"mt={other}")  # fmt: skip
    assert list(checkpoint.load_checkpoint(tmp_path / "out")[0].info.tasks) == ["mt"]
    both = [checkpoint.read_safetensors(folder / checkpoint.ADAPTER_WEIGHTS)["rows.mt"] for folder in (run, other)]
    torch.testing.assert_close(state["rows.mt"], sum(both) / 2)


def test_what_does_not_merge_is_one_message(tmp_path, capsys):
    ranks = itertools.count()

    def run(method, backbone="tiny-gpt2"):
        return trained(tmp_path / f"run{next(ranks)}", {"nlg": method}, 0, backbone)

    lora, wide = run("lora"), run(dict(method="lora", lora_rank=2))
    llama, narrow = run("lora", "tiny-llama"), run(4)
    rows = run(0)
    out = tmp_path / "out"
    two, merge = [f"nlg={lora}", f"nlg={lora}"], ["--merge", "ties"]
    for argv, *words in (
        ([*merge, "--checkpoints", f"nlg={lora}", f"nlg={wide}"], "lora_rank 2", "lora_rank 8"),
        ([*merge, "--checkpoints", f"nlg={lora}", f"nlg={narrow}"], "bottleneck", "merge adapters of the same method"),
        ([*merge, "--checkpoints", f"nlg={lora}", f"nlg={llama}"], "model_type is llama", "gpt2"),
        ([*merge, "--checkpoints", f"nlg={rows}", f"nlg={rows}"], "there is no adapter to merge"),
        ([*merge, "--checkpoints", f"nlg={lora}"], "--merge takes two checkpoints or more"),
        ([*merge, "--checkpoints", f"nlg={lora}", f"mt={lora}"], "--task TASK"),
        ([*merge, "--checkpoints", *two, "--weights", "1"], "1 weight for 2 adapters"),
        ([*merge, "--checkpoints", *two, "--density", "0"], "--density: '0': expected a number above 0"),
        (["--merge", "linear", "--checkpoints", *two, "--density", "0.5"], "--density has no effect with"),
        (["--merge", "linear", "--checkpoints", *two, "--weights", "1", "-1"], "add up to 0"),
        (["--checkpoints", *two], "task 'nlg' is named twice"),
        (["--checkpoints", f"nlg={lora}", "--weights", "1"], "--weights requires --merge"),
        (["--checkpoints", f"nlg={lora}", "--seed", "1"], "--seed requires --merge"),
        (["--merge", "linear", "--checkpoints", *two, "--seed", "1"], "--seed has no effect with --merge linear"),
        ([*merge, "--checkpoints", *two, "--data", "nlg=x"], "--data has no effect with --merge"),
        ([*merge, "--checkpoints", *two, "--proof_tokens", "4"], "--proof_tokens has no effect with --merge"),
    ):
        start = functools.partial(combine_all.main, ["--output", str(out), *map(str, argv)])
        refused_here(capsys, start, *words, out=out)


@pytest.mark.parametrize("name, task, script", [("t5_adapters", "rte", "train_t5.py"),
                                                ("camtl_plain", "cola", "train_camtl.py")])  # fmt: skip
def test_models_that_are_only_combined_are_not_merged_and_the_way_is_named(name, task, script, tmp_path, capsys):
    source = ROOT / "tests" / "saved" / name
    argv = ["--merge", "linear", "--checkpoints", f"{task}={source}", f"{task}={source}", "--output", tmp_path / "out"]
    refused_here(capsys, lambda: combine_all.main(list(map(str, argv))), f"{source}: this is a model of {script}",
                 "adapters of train.py or train_vlm.py", "leave --merge out", out=tmp_path / "out")  # fmt: skip
    assert script in combine_all.parser().format_help().partition("--merge ")[2]
