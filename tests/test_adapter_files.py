"""What an adapter directory holds, what is loaded from it, and what is refused."""

import json

import pytest
import torch
from attached_models import BOTTLENECKS, attached, batch, without
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel
from versatile.adapters import checkpoint
from versatile.adapters.attach import trainable
from versatile.training.objectives import cross_entropy
from versatile.utils.errors import UserError


@pytest.fixture(scope="module", params=["tiny-gpt2", "tiny-llama"])
def both(request):
    return attached(request.param)


def test_an_adapter_file_holds_what_was_trained_and_nothing_else(tmp_path):
    model, tokenizer = attached("tiny-llama")
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    expected = {f"{kind}.{task}" for kind in ("rows", "output_rows") for task in BOTTLENECKS}
    for layer in range(2):
        for task in BOTTLENECKS:
            for part in ("norm", "down", "up"):
                expected |= {f"blocks.{layer}.{task}.{part}.{kind}" for kind in ("weight", "bias")}
    assert set(saved) == expected
    assert sum(t.numel() for t in saved.values()) == sum(p.numel() for p in trainable(model).values())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llama"
    assert {task: m["adapter_bottleneck"] for task, m in config["methods"].items()} == BOTTLENECKS


@pytest.mark.parametrize("bottlenecks", [BOTTLENECKS, {"nlg": 0, "mt": 4}, None])
def test_a_saved_model_comes_back_with_nothing_typed(both, tmp_path, bottlenecks):
    name = "tiny-gpt2" if both[0].config.model_type == "gpt2" else "tiny-llama"
    model, tokenizer = attached(name, bottlenecks)
    for p in trainable(model).values():
        p.data.add_(0.01 * torch.randn_like(p))
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    again, words = checkpoint.load_checkpoint(tmp_path, "mt")
    given = batch(tokenizer, tasks=(0, 1))
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(again, given), cross_entropy(model.eval(), given), atol=0, rtol=0)
    assert words.get_vocab() == tokenizer.get_vocab()
    assert again.info == model.info
    assert checkpoint.peek(tmp_path)
    with pytest.raises(UserError, match=r"holds the task\(s\) nlg, mt, not 'qa'") as caught:
        checkpoint.load_checkpoint(tmp_path, "qa")
    assert caught.value.expected == "--task with one of nlg, mt"
    with pytest.raises(UserError, match=r"--teacher x: the checkpoint holds") as caught:
        checkpoint.load_checkpoint(tmp_path, "qa", flag="--teacher x")
    assert "--task" not in str(caught.value) and "trained for 'qa'" in caught.value.expected


def test_a_fully_trained_model_is_an_ordinary_transformers_directory(tmp_path):
    model, tokenizer = attached(bottlenecks=None)
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is GPT2LMHeadModel
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.eval()(ids, task_ids=torch.tensor([-1])).logits)


def saved(tmp_path):
    model, tokenizer = attached()
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_damaged_or_foreign_adapter_files_are_one_clear_error(tmp_path):
    path = saved(tmp_path)
    weights = path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        checkpoint.load_checkpoint(path)
    weights.unlink()
    with pytest.raises(UserError, match="no such file"):
        checkpoint.load_checkpoint(path)
    weights.write_bytes(whole)
    edit(path / "adapter_config.json", base_model_fingerprint="0" * 16)
    with pytest.raises(UserError, match="fingerprint"):
        checkpoint.load_checkpoint(path)
    (path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="not valid json"):
        checkpoint.load_checkpoint(path)


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path):
    from safetensors.torch import save_file

    path = saved(tmp_path)
    weights = path / "adapter_model.safetensors"
    state = load_file(weights)
    cases = [
        (without(state, "blocks.0.mt.up.bias"), "1 missing .first blocks.0.mt.up.bias"),
        (state | {"lora.x": torch.ones(2)}, "1 not expected .first lora.x"),
        (state | {"rows.mt": torch.ones(4, 3)}, r"rows.mt has shape \[4, 3\]"),
    ]
    for broken, message in cases:
        save_file(broken, weights)
        with pytest.raises(UserError, match=message):
            checkpoint.load_checkpoint(path)


def test_an_adapter_that_changes_nothing_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = saved(tmp_path)
    state = load_file(path / "adapter_model.safetensors")
    save_file(
        {k: torch.zeros_like(v) if ".up." in k else v for k, v in state.items()}, path / "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match="changes nothing"):
        checkpoint.load_checkpoint(path)
