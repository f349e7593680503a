"""Checkpoints of T5 models with tasks: written, read back without any flag, refused if they do not fit.

    python -m pytest tests/test_t5_checkpoint.py
"""

import json
import shutil

import pytest
import quick
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from versatile.adapters import t5
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.manifest import peek
from versatile.utils.errors import UserError

TASKS = ["rte", "stsb", "cola"]
SMALL = dict(reduction_factor=8, non_linearity="relu", task_embedding_dim=6, projected_task_embedding_dim=5,
             task_hidden_dim=8)  # fmt: skip
METHODS = {
    "finetune": dict(method="finetune"),
    "adapters": dict(method="adapters", adapters=["x", "y", "x"], add_layer_norm_before_adapter=True),
    "hyperformer": dict(method="hyperformer", unique_hyper_net_layer_norm=False),
    "hyperformer++": dict(method="hyperformer++", task_embeddings=["u", "u", "v"], train_task_embeddings=True),
    "meta": dict(method="meta", conditional_layer_norm=True, add_layer_norm_after_adapter=False),
}


def shaken(model, seed=3):
    """Change all trained weights, so that none has its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def attached(name="tiny-t5", tasks=TASKS, **more):
    model, tokenizer = t5.load_t5_of_name(name)
    torch.manual_seed(0)
    return shaken(t5.attach(model, tasks, t5.T5Settings(**(SMALL | more)))), tokenizer


@torch.no_grad()
def answers(model, task_ids=(0, 1, 2, -1)):
    ids = torch.randint(3, 400, (len(task_ids), 6), generator=torch.Generator().manual_seed(5))
    labels = torch.randint(3, 400, (len(task_ids), 4), generator=torch.Generator().manual_seed(6))
    return model.eval()(input_ids=ids, labels=labels, task_ids=torch.tensor(task_ids)).logits


def same(a, b):
    return torch.equal(answers(a), answers(b))


@pytest.fixture
def saved(tmp_path):
    """A saved hyperformer++ directory."""
    model, tokenizer = attached(method="hyperformer++")
    t5.save_t5(model, tokenizer, tmp_path / "run")
    return tmp_path / "run"


# ---- there and back


@pytest.mark.parametrize("method", quick.every(3, METHODS))
def test_a_reloaded_directory_generates_with_nothing_typed(method, tmp_path):
    model, tokenizer = attached(**METHODS[method], unfreeze_layer_norms=True)
    t5.save_t5(model, tokenizer, tmp_path)
    again, tokens = t5.load_t5(tmp_path)
    assert not again.training and same(again, model)
    assert (again.tasks, again.settings) == (model.tasks, model.settings)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trained
    text = tokens("a man is reading", return_tensors="pt")
    ids = torch.tensor([again.task_id("stsb")])
    assert again.generate(**text, task_ids=ids, max_new_tokens=3).shape[0] == 1
    assert tokens.get_vocab() == tokenizer.get_vocab()
    # And once more, from the loaded model.
    t5.save_t5(again, tokens, tmp_path / "again")
    assert same(t5.load_t5(tmp_path / "again")[0], model)
    assert peek(tmp_path).encoder == "text_to_text" and t5.read_settings(tmp_path) == (model.tasks, model.settings)


def test_a_directory_holds_only_what_was_trained_under_the_published_names(saved):
    model, _ = attached(method="hyperformer++")
    state = load_file(saved / "adapter_model.safetensors")
    assert set(state) == {t5.original_names(model)[n] for n, p in model.named_parameters() if p.requires_grad}
    assert "encoder.adapter_layers_hyper_net.task_hypernet.task_embeding_generator.0.weight" in state
    assert not any("SelfAttention" in name or name == "shared.weight" for name in state)
    assert not (saved / "backbone").exists() and not (saved / "model.safetensors").exists()
    said = json.loads((saved / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "tiny-t5" and [t["name"] for t in said["tasks"]] == TASKS
    assert said["base_model_fingerprint"] == backbones.load_backbone("tiny-t5")[0].backbone_fingerprint
    assert said["trained_backbone"] == []
    size, bytes_ = (saved / "adapter_model.safetensors").stat().st_size, sum(4 * t.numel() for t in state.values())
    assert bytes_ < size < bytes_ + 20_000


def test_layer_norms_and_head_are_saved_where_they_were_trained(tmp_path):
    model, tokenizer = attached(method="adapters", unfreeze_layer_norms=True, unfreeze_lm_head=True)
    t5.save_t5(model, tokenizer, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    norms = {name for name in state if name.endswith("layer_norm.weight") and "adapter" not in name}
    assert len(norms) == 12 and "shared.weight" in state
    assert same(t5.load_t5(tmp_path)[0], model)


def test_what_is_chosen_after_attaching_is_what_a_reloaded_model_trains(tmp_path):
    model, tokenizer = attached(method="adapters")
    t5.trainable(model, t5.T5Settings(**SMALL, method="adapters", unfreeze_layer_norms=True, freeze_encoder=True))
    t5.save_t5(shaken(model), tokenizer, tmp_path)
    again = t5.load_t5(tmp_path)[0]
    assert again.settings.unfreeze_layer_norms and again.settings.freeze_encoder and same(again, model)


def test_a_fine_tuned_t5_is_an_ordinary_transformers_directory(tmp_path):
    model, tokenizer = attached(method="finetune")
    t5.save_t5(model, tokenizer, tmp_path)
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, labels=ids, task_ids=torch.zeros(1, dtype=torch.long)).logits
        assert torch.equal(plain(input_ids=ids, labels=ids).logits, expected)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == len(tokenizer)


@pytest.mark.parametrize("gated", [False, True])
def test_a_backbone_that_no_name_leads_to_is_carried(gated, tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    _, tokenizer = backbones.load_backbone("tiny-t5")
    more = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False) if gated else {}
    torch.manual_seed(1)
    config = T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
                      decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **more)  # fmt: skip
    made = T5ForConditionalGeneration(config)
    if gated:
        # As in the published files of v1.1, whose head is untied.
        made.lm_head.weight = torch.nn.Parameter(torch.randn(512, 32))
    model = shaken(t5.attach(made, TASKS, t5.T5Settings(**SMALL, method="adapters", unfreeze_layer_norms=True)))
    t5.save_t5(model, tokenizer, tmp_path / "a")
    assert (tmp_path / "a" / "backbone" / "model.safetensors").is_file()
    again, tokens = t5.load_t5(tmp_path / "a")
    assert same(again, model)
    # A carried backbone stays carried, wherever it is saved next and whatever happens to the first directory.
    t5.save_t5(again, tokens, tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert same(t5.load_t5(tmp_path / "b")[0], model)
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "b" / "backbone")


def test_a_backbone_trained_beside_its_adapters_is_carried(tmp_path):
    model, tokenizer = attached(method="hyperformer++", unfreeze_model=True)
    t5.save_t5(model, tokenizer, tmp_path)
    assert same(t5.load_t5(tmp_path)[0], model)
    state = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("SelfAttention" in name for name in state)


def test_a_run_that_holds_its_backbone_can_be_moved(tmp_path):
    run = tmp_path / "run"
    bare, tokenizer = backbones.load_backbone("tiny-t5")
    bare.save_pretrained(run / "shape")
    tokenizer.save_pretrained(run / "shape")
    model, tokenizer = attached(str(run / "shape"), method="adapters")
    for folder in (run, run / "checkpoints" / "step_00000002"):
        t5.save_t5(model, tokenizer, folder)
    wanted = answers(model)
    run.rename(tmp_path / "moved")
    for folder in ("moved", "moved/checkpoints/step_00000002"):
        assert torch.equal(answers(t5.load_t5(tmp_path / folder)[0]), wanted)
    shutil.rmtree(tmp_path / "moved" / "shape")
    with pytest.raises(UserError, match="shape"):
        t5.load_t5(tmp_path / "moved")


def test_a_random_backbone_is_built_again_from_its_seed(tmp_path):
    model, tokenizer = t5.load_t5_of_name("tiny-t5", random_init=7)
    t5.attach(model, TASKS, t5.T5Settings(**SMALL, method="adapters"))
    t5.save_t5(shaken(model), tokenizer, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["random_init_seed"] == 7
    assert same(t5.load_t5(tmp_path)[0], model)


def test_given_task_embeddings_are_in_the_file_though_fixed(tmp_path):
    import numpy as np

    folder = tmp_path / "embeddings"
    folder.mkdir()
    for i, task in enumerate(TASKS):
        np.save(folder / f"{task}.npy", np.arange(6.0) * (i + 1))
    model, tokenizer = attached(method="hyperformer++", task_embedding_dir=str(folder))
    t5.save_t5(model, tokenizer, tmp_path / "run")
    shutil.rmtree(folder)
    again, _ = t5.load_t5(tmp_path / "run")
    assert same(again, model)
    vectors = again.task_embedding_controller.task_to_embeddings
    assert vectors["cola"].tolist() == [0, 3, 6, 9, 12, 15] and not vectors["cola"].requires_grad


def test_embeddings_handed_over_stay_fixed_after_reloading(tmp_path):
    model, tokenizer = t5.load_t5_of_name("tiny-t5")
    given = {task: torch.randn(6) for task in TASKS}
    t5.attach(model, TASKS, t5.T5Settings(**SMALL, method="hyperformer++"), embeddings=given)
    t5.save_t5(shaken(model), tokenizer, tmp_path)
    vectors = t5.load_t5(tmp_path)[0].task_embedding_controller.task_to_embeddings
    assert all(torch.equal(vectors[task], given[task]) and not vectors[task].requires_grad for task in TASKS)


@pytest.mark.parametrize("method", METHODS)
def test_weights_load_back_into_the_model_that_wrote_them(method, tmp_path):
    model, tokenizer = attached(**METHODS[method], unfreeze_layer_norms=True)
    t5.save_t5(model, tokenizer, tmp_path)
    before = answers(model)
    shaken(model, seed=9)
    assert not torch.allclose(answers(model), before, atol=1e-3)
    t5.load_weights(model, tmp_path)
    assert torch.equal(answers(model), before)


# ---- what does not fit


def change(path, **values):
    said = json.loads(path.read_text())
    for key, value in values.items():
        said[key] = value
    path.write_text(json.dumps(said))


def test_a_missing_an_unexpected_and_a_misshapen_key_are_named(saved):
    path = saved / "adapter_model.safetensors"
    state, key = load_file(path), "decoder.adapter_layers_hyper_net.layer_id_embeddings.weight"
    for wrong, said in (
        ({k: t for k, t in state.items() if k != key}, rf"1 missing \(first {key}\)"),
        (state | {"encoder.more": torch.ones(2)}, r"1 not expected \(first encoder.more\)"),
        (state | {key: torch.ones(2, 7)}, rf"{key} has shape \[2, 7\][\s\S]*expected: \[2, 6\]"),
        (state | {key: torch.full((2, 6), float("nan"))}, f"not numbers.*{key}"),
    ):
        save_file(wrong, path)
        with pytest.raises(UserError, match=said):
            t5.load_t5(saved)


def test_another_width_and_another_backbone_are_named_with_both_sides(saved, tmp_path):
    wide, tokenizer = backbones.load_backbone("tiny-t5", random_init=1)
    wide.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    config = saved / "adapter_config.json"
    change(config, base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(UserError, match=rf"the backbone {tmp_path}/other has the fingerprint \w+[\s\S]*trained on"):
        t5.load_t5(saved)
    change(config, d_model=768, layers=[12, 12])
    with pytest.raises(UserError, match=r"has width 64 and 2 \+ 2 layers[\s\S]*width 768 and 12 \+ 12 layers"):
        t5.load_t5(saved)
    change(config, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="no such directory"):
        t5.load_t5(saved)


def test_another_reduction_factor_than_the_file_s_is_named_with_both_shapes(saved):
    said = json.loads((saved / "adapter_config.json").read_text())
    change(saved / "adapter_config.json", settings=said["settings"] | dict(reduction_factor=4))
    with pytest.raises(UserError, match=r"has shape \[\d+[\s\S]*expected: \[\d+"):
        t5.load_t5(saved)


def test_an_unknown_task_is_named_with_those_held(saved):
    assert t5.load_t5(saved, task="cola")[0].task_id("cola") == 2
    with pytest.raises(UserError, match=r"rte, stsb, cola, not 'mnli'"):
        t5.load_t5(saved, task="mnli")


@pytest.mark.parametrize("method, norm", quick.every(
    3, ["adapters", "hyperformer", "hyperformer++", "meta"], [True, False]))
def test_adapters_that_change_nothing_are_noticed(method, norm, tmp_path):
    model, tokenizer = attached(method=method, add_layer_norm_after_adapter=norm, conditional_layer_norm=True)
    t5.save_t5(model, tokenizer, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    last = "post_layer" if norm else "up_sampler"
    save_file({k: torch.zeros_like(t) if last in k else t for k, t in state.items()},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(UserError, match="the adapter for 'rte' changes nothing"):
        t5.load_t5(tmp_path)


def test_one_idle_task_among_others_is_noticed(tmp_path):
    model, tokenizer = attached(method="adapters", add_layer_norm_after_adapter=False)
    with torch.no_grad():
        for held in model.added["adapters"].blocks:
            for adapter in held["stsb"].values():
                for p in adapter.up.parameters():
                    p.zero_()
    t5.save_t5(model, tokenizer, tmp_path)
    with pytest.raises(UserError, match="the adapter for 'stsb' changes nothing"):
        t5.load_t5(tmp_path, "stsb")


def test_directories_of_another_kind_are_refused(saved, tmp_path):
    assert peek(tmp_path) is None
    with pytest.raises(UserError, match="not a T5 that was trained for tasks"):
        t5.load_t5(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        t5.load_t5(tmp_path / "gone")
    config = saved / "adapter_config.json"
    said = json.loads(config.read_text())
    change(config, settings=said["settings"] | dict(prompt_length=3))
    with pytest.raises(UserError, match="unknown key 'prompt_length' in settings"):
        t5.load_t5(saved)
    change(config, settings=said["settings"], encoder="markers", first=0)
    change(config, tasks=[dict(name=task, markers=[]) for task in TASKS])
    with pytest.raises(UserError, match="another kind of model"):
        t5.load_t5(saved)
    config.write_text("{")
    with pytest.raises(UserError, match="not valid json"):
        t5.load_t5(saved)
    with pytest.raises(UserError, match="model_type 'gpt2' is not supported"):
        t5.load_t5_of_name("tiny-gpt2")


def test_a_damaged_file_is_named(saved):
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        t5.load_t5(saved)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        t5.load_t5(saved)
