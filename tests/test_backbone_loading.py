"""Backbones from names and directories: the family, the hub, damaged weights."""

import json

import pytest
import torch
from attached_models import BOTTLENECKS, MARKERS, attached, batch, without
from versatile.adapters import checkpoint
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.tensors import write_tensors
from versatile.training.objectives import cross_entropy
from versatile.utils.errors import UserError


def test_the_family_is_told_from_the_config_not_from_the_path(tmp_path):
    model, tokenizer = backbones.load_backbone("tiny-llama")
    odd = tmp_path / "my-gpt2-model"
    model.save_pretrained(odd)
    tokenizer.save_pretrained(odd)
    loaded, _ = backbones.load_backbone(odd)
    assert backbone_of(loaded.config).name == "Llama"


def test_an_unsupported_family_names_the_supported_ones(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"model_type 'bert' is not supported(.|\n)*gpt2, gpt_neox, llama"):
        backbones.load_backbone(tmp_path)


def test_a_path_with_nothing_usable_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"no config.json"):
        backbones.load_backbone(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="this is a file"):
        backbones.load_backbone(tmp_path / "file")
    with pytest.raises(UserError, match="no such directory"):
        backbones.load_backbone(str(tmp_path / "nowhere"))


def test_without_a_network_the_hub_is_asked_twice_and_no_more(monkeypatch):
    class ConnectError(Exception):
        pass

    asked = []

    def fail(url):
        asked.append(url)
        raise ConnectError("no name service")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    monkeypatch.setattr(backbones.time, "sleep", lambda seconds: None)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name: pytest.fail("asked again"))
    with pytest.raises(UserError, match=r"cannot be reached(.|\n)*use smollm2"):
        backbones.load_backbone("a-name-of-the-hub")
    assert len(asked) == 2


def test_a_hub_that_is_slow_is_left_to_the_library_that_fetches(monkeypatch):
    class ReadTimeout(Exception):
        pass

    def slow(url):
        raise ReadTimeout

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", slow)
    backbones.reach_hub("a-name-of-the-hub")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    model, tokenizer = attached()
    checkpoint.save_checkpoint(model, tokenizer, tmp_path / "adapter")
    path = tmp_path / "adapter" / checkpoint.ADAPTER_WEIGHTS
    state = checkpoint.read_safetensors(path)
    state["rows.mt"][0, 0] = value
    write_tensors(path, state)
    with pytest.raises(UserError, match=r"values that are not numbers \(first in rows\.mt\)(.|\n)*copy it again"):
        checkpoint.load_checkpoint(tmp_path / "adapter")
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    model.transformer.wpe.weight.data[3, 3] = value
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"not numbers \(first in transformer\.wpe\.weight\)"):
        backbones.load_backbone(tmp_path)


def test_a_truncated_backbone_or_a_larger_tokenizer_is_refused(tmp_path):
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    model.save_pretrained(tmp_path)
    tokenizer.add_tokens(["one", "too", "many"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="403 tokens, the model's table has 400 rows"):
        backbones.load_backbone(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="weights cannot be read"):
        backbones.load_backbone(tmp_path)


def test_random_init_keeps_the_shape_and_drops_the_weights():
    trained, _ = backbones.load_backbone("tiny-gpt2")
    fresh, _ = backbones.load_backbone("tiny-gpt2", random_init=True)
    assert fresh.config.n_embd == trained.config.n_embd
    assert not torch.equal(fresh.transformer.h[0].attn.c_attn.weight, trained.transformer.h[0].attn.c_attn.weight)


def test_a_table_larger_than_the_tokenizer_keeps_ids_and_columns_in_step(tmp_path):
    """Qwen and others pad their table: markers get the ids right after the tokenizer's, not at the table's end."""
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    model.resize_token_embeddings(448, mean_resizing=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = attached(str(tmp_path))
    given = batch(tokenizer, tasks=(0, 1))
    with torch.no_grad():
        assert model(**without(given, "labels")).logits.shape[-1] == len(tokenizer) == 416
        # The last token of all is a marker of the second task, and only of it.
        own = {k: v[given["task_ids"] == 1] for k, v in given.items()}
        assert torch.isfinite(cross_entropy(model, own | {"labels": torch.full_like(own["input_ids"], 415)}))


def test_markers_must_be_new_to_the_tokenizer():
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    tokenizer.add_tokens(["<bos_mt>"])
    with pytest.raises(ValueError, match=r"already has the tokens \['<bos_mt>'\]"):
        attach(model, tokenizer, MARKERS, BOTTLENECKS)


def test_packaged_weights_of_another_size_or_content_are_refused(tmp_path, monkeypatch):
    from versatile.adapters.backbones import bundled

    file = tmp_path / "x.gguf"
    with pytest.raises(UserError, match="no such file"):
        bundled.check_smollm2(file)
    file.write_bytes(b"short")
    with pytest.raises(UserError, match="5 bytes"):
        bundled.check_smollm2(file)
    monkeypatch.setattr(bundled, "SMOLLM2_BYTES", 5)
    with pytest.raises(UserError, match="sha256"):
        bundled.check_smollm2(file)
