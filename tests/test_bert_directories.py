"""CA-MTL's models by name and by directory: built on a pretrained BERT, saved, and loaded with their kind.

python -m pytest tests/test_bert_directories.py
"""

import copy
import importlib.util
import json
import shutil

import pytest
import torch
from bert_models import NAMES, TASKS, batch, close, config, golden, shaken
from transformers import AutoModel, BertConfig, BertForMaskedLM
from versatile.adapters import bert
from versatile.adapters.backbones import bundled
from versatile.adapters.classifier import keyed_parameters
from versatile.utils.errors import UserError


@pytest.mark.parametrize("form", bert.FORMS)
def test_a_saved_model_is_the_same_model_again(form, tmp_path):
    model, tokenizer = bert.build_classifier("tiny-bert", TASKS, form, 64, seed=3)
    shaken(model)
    model.aliases["mnli-mm"] = "mnli"
    bert.save_classifier(model, tokenizer, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").glob("*.json"))[0] == bert.CONFIG
    loaded, words = bert.load_classifier(tmp_path / "run")
    assert (loaded.form, loaded.tasks, loaded.max_seq_length) == (form, TASKS, 64)
    assert list(loaded.tasks) == list(TASKS) and loaded.aliases == {"mnli-mm": "mnli"} and not loaded.training
    assert words("the river")["input_ids"] == tokenizer("the river")["input_ids"]
    given = batch()
    assert torch.equal(loaded(**given).scores, model(**given).scores)
    again, _ = bert.build_classifier(str(tmp_path / "run"), TASKS, None, 64)
    assert again.form == form and torch.equal(again(**given).scores, model(**given).scores)
    assert loaded.config._name_or_path == "tiny-bert"


def test_transformers_does_not_take_a_saved_model_for_a_plain_bert(tmp_path):
    model, tokenizer = bert.build_classifier("tiny-bert", TASKS, "base", 64)
    bert.save_classifier(model, tokenizer, tmp_path)
    with pytest.raises((OSError, ValueError)):
        AutoModel.from_pretrained(tmp_path)


def test_a_saved_model_is_not_taken_for_another(tmp_path):
    model, tokenizer = bert.build_classifier("tiny-bert", TASKS, "base", 64)
    bert.save_classifier(model, tokenizer, tmp_path)
    location = str(tmp_path)
    for given, said in [
        ((dict(reversed(TASKS.items())), "base", 64), "mrpc (2), sts-b (1), mnli (3), cola (2)"),
        ((TASKS | {"rte": 2}, "base", 64), "rte (2)"),
        ((TASKS, "large", 64), "'base'"),
        ((TASKS, "base", 32), "--max_seq_length 32"),
    ]:
        with pytest.raises(UserError) as error:
            bert.build_classifier(location, *given)
        assert said in str(error.value)


@pytest.mark.parametrize("damage", ["weights", "config", "key", "shape", "missing", "tokenizer"])
def test_a_damaged_directory_is_told(damage, tmp_path):
    model, tokenizer = bert.build_classifier("tiny-bert", TASKS, "base", 64)
    bert.save_classifier(model, tokenizer, tmp_path)
    path, settings = tmp_path / bert.CONFIG, json.loads((tmp_path / bert.CONFIG).read_text())
    if damage == "weights":
        (tmp_path / bert.MODEL_WEIGHTS).write_bytes((tmp_path / bert.MODEL_WEIGHTS).read_bytes()[:5000])
    elif damage == "config":
        path.write_text(path.read_text()[:50])
    elif damage == "key":
        path.write_text(json.dumps({k: v for k, v in settings.items() if k != "tasks"}))
    elif damage == "shape":
        path.write_text(json.dumps(settings | {"form": "large"}))
    else:
        (path if damage == "missing" else tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError) as error:
        bert.load_classifier(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_the_seed_alone_decides_the_new_weights():
    torch.manual_seed(5)
    first, _ = bert.build_classifier("tiny-bert", TASKS, "base", 64, seed=1)
    state = torch.get_rng_state()
    second, _ = bert.build_classifier("tiny-bert", TASKS, "base", 64, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    other, _ = bert.build_classifier("tiny-bert", TASKS, "base", 64, seed=2)
    for name, p in first.named_parameters():
        assert torch.equal(p, dict(second.named_parameters())[name]), name
    name = "added.conditional.task_type_embeddings.weight"
    assert not torch.equal(dict(first.named_parameters())[name], dict(other.named_parameters())[name])


def test_pretrained_weights_stay_where_the_form_keeps_them():
    pretrained = AutoModel.from_pretrained(bundled.folder("tiny-bert")).state_dict()
    for form in bert.FORMS:
        model = bert.build_classifier("tiny-bert", TASKS, form, 64)[0]
        found = {n.removeprefix("bert."): p for n, p in keyed_parameters(model).items()}
        gone = {n for n in pretrained if n not in found}
        assert gone == ({n for n in pretrained if n.startswith("encoder.layer.3.")} if form == "base" else set())
        assert all(torch.equal(found[n], pretrained[n]) for n in set(pretrained) - gone)


@pytest.mark.parametrize("length, near", [(100, "32 or 64 or 128"), (48, "16 or 32 or 64 or 128")])
def test_a_length_that_does_not_fit_names_those_that_do(length, near):
    with pytest.raises(UserError, match=f"--max_seq_length {length}") as error:
        bert.build_classifier("tiny-bert", TASKS, "base", length)
    assert near in str(error.value)
    assert bert.build_classifier("tiny-bert", TASKS, "plain", length)[0].max_seq_length == length


@pytest.mark.parametrize("form, layers", [("base", 3), ("other", 4)])
def test_a_form_that_does_not_fit_is_told(form, layers):
    with pytest.raises(UserError):
        bert.check_shape(config(layers), form, 16, "here")
    bert.check_shape(config(3), "large", 16, "here")


def test_a_bert_without_its_vocabulary_is_refused(tmp_path):
    folder = shutil.copytree(bundled.folder("tiny-bert"), tmp_path / "bert")
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="the tokenizer has no vocabulary"):
        bert.build_classifier(str(folder), TASKS, "plain", 64)


def test_other_models_are_refused():
    for name in ("tiny-gpt2", "runs/nothing-here", "no-such-org/no-such-bert"):
        with pytest.raises(UserError, match="--model_name_or_path"):
            bert.build_classifier(name, TASKS, "base", 64)


@pytest.mark.parametrize("name, backbone", [("CA-MTL-base", "bert-base-cased"), ("CA-MTL-large", "bert-large-cased")])
def test_published_names_stand_for_their_backbones(name, backbone, monkeypatch, tmp_path):
    """No hub here: the test looks at what would be fetched."""
    monkeypatch.setitem(bert.PUBLISHED, name, ("tiny-bert", bert.PUBLISHED[name][1]))
    assert bert.build_classifier(name, TASKS, None, 64)[0].form == name.removeprefix("CA-MTL-")
    assert bert.build_classifier(name, TASKS, "plain", 64)[0].form == "plain"
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"{name} .{backbone}.") as error:
        bert.build_classifier(name, TASKS)
    assert "minilm" in str(error.value)


@pytest.mark.skipif(not any(importlib.util.find_spec(p) for p, _ in bundled.MINILM_LOCATIONS), reason="not installed")
def test_minilm_carries_every_form():
    pretrained = AutoModel.from_pretrained(bundled.folder("minilm")).eval()
    for form in bert.FORMS:
        model, tokenizer = bert.build_classifier("minilm", TASKS, form)
        given = tokenizer(
            ["A man reads.", "The old house near the river is for sale."], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            out = model(**given, task_ids=torch.tensor([0, 2]))
        assert out.scores.shape == (2, 3) and out.scores[:, 0].isfinite().all() and tokenizer.is_fast
        if form == "plain":
            real = given["attention_mask"].bool()
            close(out.sequence_output[:, : real.shape[1]][real], pretrained(**given).last_hidden_state[real])


def original_directory(name, folder):
    """A directory as the original code saves one: config.json of a BERT, a pickle of its own keys."""
    model, held = golden(name)
    source = bundled.folder("tiny-bert")
    for file in source.glob("*token*"):
        shutil.copy(file, folder / file.name)
    if (source / "vocab.txt").is_file():
        shutil.copy(source / "vocab.txt", folder / "vocab.txt")
    plain = copy.deepcopy(model.config)
    plain.architectures = ["CaMtl"]
    plain.save_pretrained(folder)
    torch.save({key: p.detach() for key, p in keyed_parameters(model).items()}, folder / "pytorch_model.bin")
    return held


@pytest.mark.parametrize("name", ["model_base", "model_large"])
def test_a_directory_of_the_original_code_is_loaded_as_what_it_is(name, tmp_path):
    held = original_directory(name, tmp_path)
    model, _ = bert.build_classifier(str(tmp_path), TASKS, None, 16)
    assert model.form == name.removeprefix("model_")
    close(model(**{n: held[n] for n in NAMES}, task_ids=held["task_id"], labels=held["labels"]).loss, held["loss"])
    with pytest.raises(UserError, match="4 heads"):
        bert.build_classifier(str(tmp_path), {"cola": 2}, None, 16)


def test_a_masked_language_models_checkpoint_gets_a_pooler(tmp_path):
    source = bundled.folder("tiny-bert")
    shutil.copytree(source, tmp_path / "mlm")
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig.from_pretrained(source)).save_pretrained(tmp_path / "mlm")
    built = [bert.build_classifier(str(tmp_path / "mlm"), TASKS, "large", 64, seed=4)[0] for _ in range(2)]
    assert torch.equal(built[0].bert.pooler.dense.weight, built[1].bert.pooler.dense.weight)
    assert float(built[0].bert.pooler.dense.weight.detach().std()) == pytest.approx(0.02, abs=0.002)
