"""--load_in_4bit, --load_in_8bit: adapters on a quantized backbone, trained, evaluated, combined; clear errors.

    python -m pytest tests/test_quantized.py
"""

import importlib.util
import json

import pytest
import quick
import torch
from scripts import metrics, small
from versatile.adapters import checkpoint, combine
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones import quantized

import combine_all
import evaluate
import train
import train_vlm

SHORT = ["--fp32", "--train_batch_size", "4", "--gradient_accumulation_steps", "1", "--n_epochs", "3", "--lr", "1e-2"]


def need(bits, name):
    """Skip if the library is not installed."""
    library = quantized.library_of(bits, name.removeprefix("tiny-"))
    pytest.importorskip(library, reason=f"the package {library} is not installed: {name} in {bits} is not tested")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {task: str(small(folder / f"{task}.json", task, train=8, valid=2, test=2)) for task in ("nlg", "mt")}


def run_train(files, out, name, *more, task="nlg"):
    train.main(["--task", task, "--dataset_path", files[task], "--model_checkpoint", name, "--output_dir", str(out),
                "--method", "lora", *SHORT, *more])  # fmt: skip
    return out


def held(model):
    """Bytes of a model's tensors."""
    total = 0
    for p in [*model.parameters(), *model.buffers()]:
        parts = [getattr(p, n) for n in p.__tensor_flatten__()[0]] if hasattr(p, "__tensor_flatten__") else [p]
        total += sum(t.numel() * t.element_size() for t in parts)
    return total


@pytest.mark.parametrize("name, bits", quick.every(2, ["tiny-gpt2", "tiny-llama"], quantized.BITS))
def test_an_adapter_is_trained_evaluated_and_combined_beside_a_rounded_backbone(name, bits, files, tmp_path, capsys):
    need(bits, name)
    runs = [run_train(files, tmp_path / task, name, f"--load_in_{bits}", task=task) for task in files]
    losses = [row["nll"] for row in metrics(runs[0])["history"]["valid"]]
    assert losses[-1] < losses[0]
    model, _ = checkpoint.load_checkpoint(runs[0])
    assert model.quantization == bits
    plain, _ = backbones.load_backbone(name)
    rounded = [n for n, m in model.named_modules() if quantized.is_quantized(m)]
    assert len(rounded) >= 8 and held(model) < 0.8 * held(plain)
    # The real size of the backbone is reported.
    total = sum(p.numel() for p in plain.parameters())
    assert metrics(runs[0])["total"] == total
    data = [f"{task}={path}" for task, path in files.items()]
    combine_all.main(["--output", str(tmp_path / "vlm"), "--checkpoints", f"nlg={runs[0]}", f"mt={runs[1]}", "--data",
                      *data, "--proof_examples", "1", "--proof_tokens", "3"])  # fmt: skip
    assert json.loads((tmp_path / "vlm" / "adapter_config.json").read_text())["quantization"] == bits
    both, _ = checkpoint.load_checkpoint(tmp_path / "vlm")
    assert combine.count_task_parameters(both)["backbone"] == total
    evaluate.main(["--task", "nlg", "--dataset_path", files["nlg"], "--model_checkpoint", str(runs[0]), "--no_sample",
                   "--max_length", "4", "--fp32", "--output_dir", str(tmp_path / "scores")])  # fmt: skip
    # The validation loss in training equals that of the reloaded model.
    found = json.loads(next((tmp_path / "scores").rglob("*metrics*.json")).read_text())
    assert found


@pytest.mark.parametrize("bits", quantized.BITS)
def test_the_rounded_backbone_gives_nearly_the_same_distributions(bits):
    need(bits, "tiny-llama")
    plain, _ = backbones.load_backbone("tiny-llama")
    rounded, _ = backbones.load_backbone("tiny-llama", quantization=bits)
    ids = torch.arange(5, 45).view(2, 20)
    with torch.no_grad():
        ours, theirs = (model(ids).logits.log_softmax(-1) for model in (plain, rounded))
    divergence = (ours.exp() * (ours - theirs)).sum(-1).mean()
    assert 0 < divergence < (1e-3 if bits == "4bit" else 1e-5)


def test_gradients_are_those_of_the_rounded_weights_after_an_evaluation_too():
    """On a CPU bitsandbytes would repack its matrices in the first evaluation, and have no gradient from then on."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    rounded, _ = backbones.load_backbone("tiny-llama", quantization="4bit")
    plain, _ = backbones.load_backbone("tiny-llama")
    for (_, ours), (_, theirs) in zip(plain.named_modules(), rounded.named_modules()):
        if quantized.is_quantized(theirs):
            ours.weight.data = bitsandbytes.functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)
    ids, gradients = torch.arange(5, 45).view(2, 20), []
    for model in (plain, rounded):
        model.requires_grad_(False).eval()
        with torch.no_grad():
            model(ids)
        embeds = model.get_input_embeddings()(ids).requires_grad_(True)
        model(inputs_embeds=embeds).logits.logsumexp(-1).sum().backward()
        gradients.append(embeds.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_what_a_rounded_backbone_is_not_for_is_one_message(files, tmp_path, capsys, monkeypatch):
    for bits in quantized.BITS:
        need(bits, "tiny-gpt2")
    out = tmp_path / "out"
    common = ["--task", "nlg", "--dataset_path", files["nlg"], "--model_checkpoint", "tiny-gpt2", "--output_dir",
              str(out), *SHORT]  # fmt: skip
    vlm = ["--tasks", "nlg", "--data", f"nlg={files['nlg']}", "--model_checkpoint", "tiny-gpt2", "--output_dir",
           str(out), "--adapter_bottleneck", "4", *SHORT, "--load_in_8bit"]  # fmt: skip
    for script, argv, word in (
        (train, [*common, "--load_in_4bit"], "--load_in_4bit: this run trains the backbone itself"),
        (train_vlm, [*vlm, "--unfreeze_backbone"], "--load_in_8bit: this run trains the backbone itself"),
        (train_vlm, [*vlm, "--random_init"], "random weights must be trained"),
        (train, [*common, "--load_in_4bit", "--load_in_8bit"], "not allowed with"),
    ):
        with pytest.raises(SystemExit) as stopped:
            script.main(argv)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and word in said and said.count("error: ") == 1 and not out.exists(), said
    runs = [run_train(files, tmp_path / name, "tiny-gpt2", *more) for name, more in
            (("plain", []), ("rounded", ["--load_in_8bit"]))]  # fmt: skip
    with pytest.raises(SystemExit):
        combine_all.main(["--output", str(out), "--merge", "linear", "--checkpoints", *(f"nlg={r}" for r in runs)])
    assert "quantisation is 8bit" in capsys.readouterr().err
    for start, more, remedy in ((runs[1], [], "with"), (runs[0], ["--load_in_8bit"], "leave out")):
        with pytest.raises(SystemExit):
            run_train(files, out, "tiny-gpt2", *more, "--init_from", str(start))
        assert f"{remedy} --load_in_8bit" in capsys.readouterr().err
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else known(name))
    with pytest.raises(SystemExit):
        train.main([*common, "--method", "lora", "--load_in_4bit"])
    assert "pip install --no-deps bitsandbytes" in capsys.readouterr().err


def test_attaching_refuses_to_train_a_rounded_backbone():
    from versatile.utils.errors import UserError

    need("4bit", "tiny-llama")
    model, tokenizer = backbones.load_backbone("tiny-llama", quantization="4bit")
    with pytest.raises(UserError, match="trains the backbone itself"):
        attach(model, tokenizer, {"nlg": ["<a>"]}, None)
