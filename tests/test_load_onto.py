"""Adapter directories loaded onto a model that is already in memory.

python -m pytest tests/test_load_onto.py
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from versatile.adapters import checkpoint, inference
from versatile.adapters.attach import attach, trainable
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.methods import pointer as self_copy
from versatile.data.task import get_task
from versatile.utils.errors import UserError

NAMES = ["tiny-gpt2", "tiny-llama", "tiny-t5"]


def made(name="tiny-gpt2", seed=0, random_init=False, **bottlenecks):
    """An attached model with every trained weight away from its initial value."""
    model, tokenizer = backbones.load_backbone(name, random_init=random_init)
    torch.manual_seed(seed)
    attach(model, tokenizer, {task: get_task(task).markers for task in bottlenecks}, bottlenecks)
    for p in trainable(model).values():
        p.data.add_(0.05 * torch.randn_like(p))
    return model.eval(), tokenizer


def directory(folder, *args, **bottlenecks):
    model, tokenizer = made(*args, **bottlenecks)
    checkpoint.save_checkpoint(model, tokenizer, folder)
    return folder


def scores(model, tokenizer, task, columns=()):
    """Scores of some inputs under a task: the base vocabulary's columns and those of the tasks named."""
    ids = torch.randint(0, 400, (3, 9), generator=torch.Generator().manual_seed(1))
    marker = tokenizer.convert_tokens_to_ids(get_task(task).markers[2])
    ids[:, 0] = marker
    with torch.no_grad():
        out = model.scores_along(ids, torch.full_like(ids, marker), 5, torch.full((3,), model.task_id(task)))
    own = tokenizer.convert_tokens_to_ids([m for t in columns for m in get_task(t).markers])
    return out[..., [*range(model.info.first), *own]]


@pytest.mark.parametrize("name", NAMES)
def test_loaded_tasks_answer_as_alone_and_the_others_as_before(name, tmp_path):
    directory(tmp_path / "mt", name, 1, mt=12)
    directory(tmp_path / "both", name, 2, qa=5, summarization=0)
    model, tokenizer = made(name, nlg=8)
    before = scores(model, tokenizer, "nlg", ["nlg"])
    assert checkpoint.load_onto(model, tokenizer, tmp_path / "mt") == ["mt"]
    assert checkpoint.load_onto(model, tokenizer, tmp_path / "both") == ["qa", "summarization"]
    assert model.info.tasks == ["nlg", "mt", "qa", "summarization"]
    assert torch.equal(scores(model, tokenizer, "nlg", ["nlg"]), before)
    for folder in ("mt", "both"):
        alone, words = checkpoint.load_checkpoint(tmp_path / folder)
        for task in alone.info.tasks:
            assert torch.equal(scores(model, tokenizer, task, [task]), scores(alone, words, task, [task]))


def test_a_backbone_with_no_task_yet_takes_tasks(tmp_path):
    directory(tmp_path / "mt", "tiny-gpt2", 1, mt=12)
    model, tokenizer = made()
    checkpoint.load_onto(model, tokenizer, tmp_path / "mt")
    alone, words = checkpoint.load_checkpoint(tmp_path / "mt")
    assert model.info == alone.info and tokenizer.get_vocab() == words.get_vocab()
    assert torch.equal(scores(model, tokenizer, "mt", ["mt"]), scores(alone, words, "mt", ["mt"]))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_grew_is_saved_and_loads_to_the_same_scores(name, tmp_path):
    directory(tmp_path / "mt", name, 1, mt=12)
    model, tokenizer = made(name, nlg=8)
    checkpoint.load_onto(model, tokenizer, tmp_path / "mt")
    checkpoint.save_checkpoint(model, tokenizer, tmp_path / "vlm")
    again, words = checkpoint.load_checkpoint(tmp_path / "vlm")
    assert again.info == model.info and words.get_vocab() == tokenizer.get_vocab()
    for task in ("nlg", "mt"):
        assert torch.equal(scores(again, words, task, ["nlg", "mt"]), scores(model, tokenizer, task, ["nlg", "mt"]))
    stored = load_file(tmp_path / "vlm" / "adapter_model.safetensors")
    for key, tensor in load_file(tmp_path / "mt" / "adapter_model.safetensors").items():
        assert torch.equal(stored[key], tensor)


def test_conversations_keep_the_history_they_were_trained_with(tmp_path):
    directory(tmp_path / "qa", qa=4)
    config = json.loads((tmp_path / "qa" / "adapter_config.json").read_text())
    config["tasks"][0]["max_history"] = 3
    (tmp_path / "qa" / "adapter_config.json").write_text(json.dumps(config))
    model, tokenizer = made(nlg=8)
    checkpoint.load_onto(model, tokenizer, tmp_path / "qa")
    assert model.info.histories == {"qa": 3}


def test_a_model_ready_for_inference_stays_frozen_and_one_in_training_trains_all(tmp_path):
    directory(tmp_path / "mt", mt=12)
    model, tokenizer = made(nlg=8)
    alone = len(trainable(model))
    checkpoint.load_onto(model, tokenizer, tmp_path / "mt")
    assert len(trainable(model)) == 2 * alone
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = made(nlg=8)
        inference.prepare_for_inference(model, torch.device("cpu"), dtype)
        checkpoint.load_onto(model, tokenizer, tmp_path / "mt")
        assert not trainable(model) and not any(m.training for n, m in model.named_modules() if ".mt" in n)


def fingerprints(model, tokenizer):
    """Everything that loading could change."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return state, repr(model.info), list(model.router.tasks), model.config.vocab_size, tokenizer.get_vocab()


def refused(model, tokenizer, folder, message):
    before = fingerprints(model, tokenizer)
    with pytest.raises(UserError, match=message):
        checkpoint.load_onto(model, tokenizer, folder)
    after = fingerprints(model, tokenizer)
    assert before[0].keys() == after[0].keys() and before[1:] == after[1:]
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values()))


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    model, tokenizer = made(nlg=8)
    refused(model, tokenizer, tmp_path, "adapter_config.json")
    refused(model, tokenizer, directory(tmp_path / "nlg", nlg=8), "already holds a task 'nlg'")
    refused(model, tokenizer, directory(tmp_path / "seed", random_init=5, mt=4), "fingerprint")
    folder = directory(tmp_path / "mt", mt=4)
    whole = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")

    def with_config(**changes):
        (folder / "adapter_config.json").write_text(json.dumps(whole | changes))
        return folder

    refused(model, tokenizer, with_config(first=390), "tokenizer has 400 tokens")
    refused(model, tokenizer, with_config(mask_other_tasks=False), "cannot join")
    refused(model, tokenizer, with_config(self_copy=True), "cannot join")
    clash = [dict(name="mt", markers=["<bos_mt>", "<eos_mt>", "<name>", "<target_mt>"])]
    refused(model, tokenizer, with_config(tasks=clash), "'<name>' of 'mt' is already a token")
    with_config()
    idle = {k: torch.zeros_like(t) if ".up." in k else t for k, t in weights.items()}
    short = {k: t for k, t in weights.items() if k != "blocks.1.mt.up.bias"}
    for state, message in [
        (idle, "changes nothing"),
        (short, "1 missing .first blocks.1.mt.up.bias"),
        (weights | {"rows.mt": torch.ones(4, 3)}, r"rows.mt has shape \[4, 3\]"),
    ]:
        save_file(state, folder / "adapter_model.safetensors")
        refused(model, tokenizer, folder, message)
    save_file(weights, folder / "adapter_model.safetensors")
    assert checkpoint.load_onto(model, tokenizer, folder) == ["mt"]


def test_models_without_room_for_adapters_are_refused(tmp_path):
    folder = directory(tmp_path / "mt", mt=4)
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    attach(model, tokenizer, {"nlg": get_task("nlg").markers})
    refused(model, tokenizer, folder, "fully fine-tuned")
    model, tokenizer = made(nlg=8)
    self_copy.add(model)
    refused(model, tokenizer, folder, "cannot join")
