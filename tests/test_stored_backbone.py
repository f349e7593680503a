"""Backbones without a name: trained with an adapter, or drawn from a seed; and training the tables alone.

python -m pytest tests/test_stored_backbone.py
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from scripts import contents
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from versatile.adapters import checkpoint
from versatile.adapters.attach import attach, count_parameters, halve_frozen, only_tables, parameter_summary, trainable
from versatile.adapters.backbones import loading as backbones
from versatile.data.task import get_task
from versatile.training.objectives import cross_entropy
from versatile.training.runs import Run
from versatile.utils.errors import UserError

TASKS = {"nlg": 8, "mt": 12}
MARKERS = {t: get_task(t).markers for t in TASKS}
NAMES = ["tiny-gpt2", "tiny-llama", "tiny-t5"]


def attached(name="tiny-gpt2", bottlenecks=TASKS, seed=0, random_init=False, **more):
    model, tokenizer = backbones.load_backbone(name, random_init=random_init)
    torch.manual_seed(seed)
    return attach(model, tokenizer, MARKERS, bottlenecks, **more), tokenizer


def batch(tokenizer, seed=0, tasks=(0, 1, 1, 0)):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 400, (len(tasks), 10), generator=g)
    return dict(input_ids=ids, token_type_ids=torch.full_like(ids, len(tokenizer) - 1), labels=ids.clone(),
                task_ids=torch.tensor(tasks))  # fmt: skip


def train(model, tokenizer, steps=3, lr=1e-2):
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=lr)
    for step in range(steps):
        cross_entropy(model, batch(tokenizer, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def logits(model, tokenizer):
    given = batch(tokenizer, 9)
    with torch.no_grad():
        return model.scores_along(given["input_ids"], given["token_type_ids"], 5, given["task_ids"])


# ---- adapters beside a backbone that is trained too


@pytest.fixture(scope="module", params=NAMES)
def trained(request, tmp_path_factory):
    """(name, model trained with its backbone, tokenizer, directory it was saved in)."""
    model, tokenizer = attached(request.param, freeze=False)
    train(model, tokenizer)
    folder = tmp_path_factory.mktemp("trained")
    checkpoint.save_checkpoint(model, tokenizer, folder)
    return request.param, model, tokenizer, folder


def test_everything_is_trained_and_said_to_be(trained):
    name, model, _, _ = trained
    frozen, _ = attached(name)
    assert set(trainable(model)) == {n for n, _ in model.named_parameters()}
    counts = count_parameters(model)
    assert counts == count_parameters(frozen) | dict(backbone=counts["total"])
    assert f"+ all {counts['total']:,} parameters of the backbone" in parameter_summary(model)
    bare = backbones.load_backbone(name)[0].state_dict()
    moved = [n for n, p in checkpoint.backbone_state(model).items() if not torch.equal(p, bare[n])]
    assert set(checkpoint.backbone_state(model)) == set(bare) and len(moved) == len(bare)


def test_a_trained_backbone_is_saved_and_loads_to_the_same_logits(trained, tmp_path):
    _, model, tokenizer, folder = trained
    config = json.loads((folder / checkpoint.CONFIG).read_text())
    assert config["base_model_name_or_path"] == "backbone" and config["freeze"] is False
    # Found next to the config wherever the directory is moved.
    moved = shutil.copytree(folder, tmp_path / "moved")
    again, words = checkpoint.load_checkpoint(moved, "mt")
    assert torch.equal(logits(again, words), logits(model, tokenizer))
    assert again.info == model.info and set(trainable(again)) == set(trainable(model))
    assert again.backbone_fingerprint == config["base_model_fingerprint"] == model.backbone_fingerprint
    assert again.config._name_or_path == str(moved.resolve() / "backbone")
    with torch.no_grad():
        given = batch(tokenizer, 5, (1, 0, 1, -1))
        assert torch.equal(cross_entropy(again, given), cross_entropy(model, given))
    # And it can be saved again: the same files.
    checkpoint.save_checkpoint(again, words, tmp_path / "twice")
    assert contents(tmp_path / "twice") == contents(folder)


def test_the_stored_backbone_is_an_ordinary_transformers_directory(trained):
    name, model, _, folder = trained
    auto = AutoModelForSeq2SeqLM if name == "tiny-t5" else AutoModelForCausalLM
    plain = auto.from_pretrained(folder / "backbone")
    bare, words = backbones.load_backbone(name)
    assert type(plain).__name__ == type(bare).__name__ and plain.config.vocab_size == bare.config.vocab_size
    wanted = checkpoint.backbone_state(model)
    assert all(torch.equal(p, wanted[n]) for n, p in plain.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder / "backbone").get_vocab() == words.get_vocab()
    assert not any("adapter" in n or "rows" in n for n in load_file(folder / "backbone" / "model.safetensors"))
    assert not any(b.startswith(b"\x80") for b in contents(folder).values())


def test_weights_go_back_into_a_live_model(trained):
    """Resuming: the optimizer holds these very parameters."""
    name, model, tokenizer, folder = trained
    live, _ = attached(name, freeze=False, seed=7)
    held = trainable(live)
    checkpoint.load_weights(live, folder)
    assert all(p is held[n] for n, p in trainable(live).items())
    assert live.backbone_fingerprint == model.backbone_fingerprint
    assert all(torch.equal(p, model.state_dict()[n]) for n, p in live.state_dict().items())
    assert torch.equal(logits(live.eval(), tokenizer), logits(model, tokenizer))


def test_a_mixture_of_two_savings_is_one_clear_error(trained, tmp_path):
    _, model, tokenizer, folder = trained
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    other, words = attached(trained[0], freeze=False, seed=1)
    checkpoint.save_checkpoint(train(other, words, steps=1), words, tmp_path / "other")
    shutil.copy(tmp_path / "other/backbone/model.safetensors", mixed / "backbone/model.safetensors")
    words = r"adapter_config.json: the backbone in backbone/ has(.|\n)*saved at different times"
    with pytest.raises(UserError, match=words):
        checkpoint.load_checkpoint(mixed)
    shutil.rmtree(mixed / "backbone")
    with pytest.raises(UserError, match="no such directory"):
        checkpoint.load_checkpoint(mixed)
    assert torch.equal(logits(model, tokenizer), logits(checkpoint.load_checkpoint(folder)[0], tokenizer))


def test_a_backbone_that_is_saved_stays_in_full_precision(tmp_path):
    model, tokenizer = attached(freeze=False)
    halve_frozen(model, torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in model.parameters()) and model.get_output_embeddings().half is None
    # A model only for answering is halved, and is then no longer the same.
    model.requires_grad_(False)
    halve_frozen(model, torch.bfloat16)
    with pytest.raises(ValueError, match="half precision"):
        checkpoint.save_checkpoint(model, tokenizer, tmp_path / "x")
    assert not contents(tmp_path)


def test_a_run_replaces_its_best_model_with_its_backbone(tmp_path):
    run = Run.create(tmp_path / "run", {}, 3)
    model, tokenizer = attached(freeze=False)
    for steps in (1, 2):
        train(model, tokenizer, steps)
        run.save_best(lambda folder: checkpoint.save_checkpoint(model, tokenizer, folder))
        again, words = checkpoint.load_checkpoint(run.directory)
        assert torch.equal(logits(again, words), logits(model, tokenizer))
    assert not list(run.directory.glob(".*"))


def test_a_padded_table_is_stored_whole(tmp_path):
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    model.resize_token_embeddings(448, mean_resizing=False)
    model.save_pretrained(tmp_path / "padded")
    tokenizer.save_pretrained(tmp_path / "padded")
    model, tokenizer = attached(str(tmp_path / "padded"), freeze=False)
    checkpoint.save_checkpoint(train(model, tokenizer), tokenizer, tmp_path / "saved")
    again, words = checkpoint.load_checkpoint(tmp_path / "saved")
    assert again.get_input_embeddings().base.weight.shape[0] == 448
    assert torch.equal(logits(again, words), logits(model, tokenizer))


def test_a_frozen_backbone_is_still_named_and_not_stored(tmp_path):
    model, tokenizer = attached()
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / checkpoint.CONFIG).read_text())
    assert config["base_model_name_or_path"] == "tiny-gpt2" and "random_init_seed" not in config
    assert not (tmp_path / "backbone").exists() and "rows" not in config


# ---- backbones drawn from a seed


def test_a_seed_makes_the_same_backbone_each_time_and_disturbs_nobody():
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    models = {seed: backbones.load_backbone("tiny-llama", random_init=seed)[0] for seed in (0, 1, 2)}
    assert torch.equal(torch.randn(3), expected)
    prints = {m.backbone_fingerprint for m in models.values()}
    assert len(prints) == 3 and backbones.load_backbone("tiny-llama")[0].backbone_fingerprint not in {
        models[s].backbone_fingerprint for s in (1, 2)
    }
    torch.randn(5)
    for seed, model in models.items():
        again, _ = backbones.load_backbone("tiny-llama", random_init=seed)
        assert again.backbone_fingerprint == model.backbone_fingerprint and again.random_init_seed == seed


def test_without_a_seed_torchs_own_generator_gives_one():
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(backbones.load_backbone("tiny-gpt2", random_init=True)[0])
    assert drawn[0].random_init_seed == drawn[1].random_init_seed
    assert drawn[0].backbone_fingerprint == drawn[1].backbone_fingerprint
    torch.manual_seed(6)
    another = backbones.load_backbone("tiny-gpt2", random_init=True)[0]
    assert another.backbone_fingerprint != drawn[0].backbone_fingerprint
    for nothing in (False, None):
        assert backbones.load_backbone("tiny-gpt2", random_init=nothing)[0].random_init_seed is None


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_beside_a_random_backbone_loads_back(name, tmp_path):
    model, tokenizer = attached(name, random_init=17)
    train(model, tokenizer)
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / checkpoint.CONFIG).read_text())
    assert config["random_init_seed"] == 17 and not (tmp_path / "backbone").exists()
    again, words = checkpoint.load_checkpoint(tmp_path)
    assert torch.equal(logits(again, words), logits(model, tokenizer))
    checkpoint.save_checkpoint(again, words, tmp_path / "twice")
    assert json.loads((tmp_path / "twice" / checkpoint.CONFIG).read_text()) == config
    # Another torch might draw other numbers.
    (tmp_path / checkpoint.CONFIG).write_text(json.dumps(config | {"random_init_seed": 18}))
    with pytest.raises(UserError, match=r"seed 18 in torch \d(.|\n)*depend on the torch version"):
        checkpoint.load_checkpoint(tmp_path)


def test_a_random_backbone_that_is_trained_is_stored(tmp_path):
    model, tokenizer = attached(random_init=17, freeze=False)
    checkpoint.save_checkpoint(train(model, tokenizer), tokenizer, tmp_path)
    assert "random_init_seed" not in json.loads((tmp_path / checkpoint.CONFIG).read_text())
    again, words = checkpoint.load_checkpoint(tmp_path)
    assert torch.equal(logits(again, words), logits(model, tokenizer))


# ---- the tables alone


@pytest.mark.parametrize("name, tables", [("tiny-gpt2", 1), ("tiny-llama", 2)])
def test_only_the_tables_move(name, tables, tmp_path):
    model, tokenizer = attached(name, None)
    only_tables(model)
    size = len(tokenizer) * 64 * tables
    counts = count_parameters(model)
    assert counts == dict(adapters=0, task_rows=0, backbone=size, total=counts["total"])
    said = "the embedding table" if tables == 1 else "the input and output tables"
    assert parameter_summary(model).startswith(f"trained: {said}, {size:,} parameters = ")
    before = {n: p.clone() for n, p in model.state_dict().items()}
    # Training in bf16 must not make the saved file coarser.
    halve_frozen(model, torch.bfloat16)
    train(model, tokenizer)
    moved = {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}
    names = {"tiny-gpt2": {"transformer.wte.weight"}, "tiny-llama": {"model.embed_tokens.weight"}}[name]
    assert moved == names | {"lm_head.weight"}
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    again, words = checkpoint.load_checkpoint(tmp_path)
    assert again.info.mode == "full" and torch.equal(logits(again, words), logits(model, tokenizer))
    assert all(torch.equal(p, model.state_dict()[n]) for n, p in again.state_dict().items())


def test_only_tables_is_no_way_to_train_beside_adapters():
    with pytest.raises(ValueError, match="without adapters"):
        only_tables(attached()[0])
    assert parameter_summary(attached(bottlenecks=None)[0]).startswith("trained: all ")
