"""The ports of every backbone family, on a tiny model of each.

    python -m pytest tests/test_backbones.py
"""

import pytest
import torch
import transformers
from versatile.adapters import checkpoint
from versatile.adapters.attach import attach
from versatile.adapters.backbones import family
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import Backbone, all_backbones, backbone_of
from versatile.data.task import get_task
from versatile.training.objectives import cross_entropy

_SMALL = dict(vocab_size=90, num_hidden_layers=2, num_attention_heads=2, hidden_size=32)
CONFIGS = {
    "gpt2": dict(vocab_size=90, n_layer=2, n_head=2, n_embd=32, n_positions=40),
    "openai-gpt": dict(vocab_size=90, n_layer=2, n_head=2, n_embd=32, n_positions=40),
    "gpt_neox": _SMALL | dict(intermediate_size=64, max_position_embeddings=40),
    "bert": _SMALL | dict(intermediate_size=64, max_position_embeddings=40),
}
for _name in ("llama", "mistral", "qwen2", "qwen3", "smollm3"):
    CONFIGS[_name] = CONFIGS["gpt_neox"] | dict(num_key_value_heads=1, pad_token_id=0)
for _name in ("t5", "mt5"):
    CONFIGS[_name] = dict(vocab_size=90, d_model=32, d_ff=64, d_kv=16, num_layers=2, num_heads=2, n_positions=20)


def tiny(model_type):
    """(model, its `Backbone`) with random weights."""
    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type])
    backbone = all_backbones()[model_type]
    torch.manual_seed(0)
    return getattr(transformers, backbone.auto_class).from_config(config).eval(), backbone


def test_there_is_a_tiny_model_of_every_family():
    assert set(CONFIGS) == set(all_backbones())


@pytest.mark.parametrize("model_type", CONFIGS)
def test_ports_lead_to_modules_that_run_and_have_the_shapes_they_say(model_type):
    model, backbone = tiny(model_type)
    blocks = backbone.blocks(model)
    config, width, seen = model.config, backbone.hidden_size(model.config), {}
    assert len(blocks) == (4 if backbone.encoder_decoder else 2) and width == 32
    assert backbone.max_length(config) == 40 and 0 < backbone.norm_eps(config) < 1e-3

    def note(name):
        def hook(module, args, output):
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    for i, block in enumerate(blocks):
        for port in ("attention", "feed_forward"):
            if getattr(backbone, port):
                getattr(backbone, port)(block).register_forward_hook(note((i, port)))
        for role, projection in backbone.projections(block).items():
            projection.register_forward_hook(note((i, role)))
        for parent, attribute in backbone.norms(block):
            assert getattr(parent, attribute).weight.shape == (width,)
    ids = torch.randint(0, 90, (3, 7))
    model(input_ids=ids, **(dict(decoder_input_ids=ids) if backbone.encoder_decoder else {}))
    ports = [p for p in ("attention", "feed_forward") if getattr(backbone, p)]
    roles = [(i, role) for i, block in enumerate(blocks) for role in backbone.projections(block)]
    assert set(seen) == {(i, p) for i in range(len(blocks)) for p in ports} | set(roles)
    assert all(seen[i, p].shape == (3, 7, width) for i in range(len(blocks)) for p in ports)
    assert {role.removeprefix("cross_") for _, role in roles} >= {"o", "up", "down"}
    assert all({"q", "k", "v"} <= set(r) or "qkv" in r for r in map(backbone.projections, blocks))


def test_every_linear_map_of_a_block_is_a_projection():
    for model_type in CONFIGS:
        model, backbone = tiny(model_type)
        for block in backbone.blocks(model):
            maps = [m for m in block.modules() if isinstance(m, torch.nn.Linear | transformers.pytorch_utils.Conv1D)]
            assert {id(m) for m in maps} == {id(m) for m in backbone.projections(block).values()}, model_type


def test_a_new_family_trains_saves_and_loads_with_no_other_file_touched(tmp_path):
    folder, (model, _) = tmp_path / "neox", tiny("gpt_neox")
    tokenizer = backbones.load_backbone("tiny-gpt2")[1]
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model, tokenizer = backbones.load_backbone(folder)
    attach(model, tokenizer, {t: get_task(t).markers for t in ("nlg", "mt")}, {"nlg": 4, "mt": 6})
    ids, task_ids = torch.randint(0, 80, (4, 9)), torch.tensor([0, 1, 1, 0])
    cross_entropy(model, dict(input_ids=ids, labels=ids, task_ids=task_ids)).backward()
    assert all(p.grad.any() for n, p in model.named_parameters() if p.requires_grad and ".rows." not in n)
    checkpoint.save_checkpoint(model.eval(), tokenizer, tmp_path / "saved")
    again, _ = checkpoint.load_checkpoint(tmp_path / "saved")
    with torch.no_grad():
        out = model(input_ids=ids, task_ids=task_ids).logits
        assert torch.equal(again(input_ids=ids, task_ids=task_ids).logits, out)
        # A separate head: each task has output rows next to it.
        assert out.shape[-1] == len(tokenizer)
    beams = dict(max_new_tokens=4, num_beams=3, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert model.generate(input_ids=ids, task_ids=task_ids, **beams).shape[0] == 4


def test_a_model_type_belongs_to_one_family(monkeypatch):
    monkeypatch.setattr(family, "_BACKBONES", dict(all_backbones()))
    with pytest.raises(ValueError, match="'gpt2': in both GPT-2 and Other"):
        family.register(Backbone("Other", ("gpt2",), None, None, None))


def test_a_family_with_classifiers_is_no_language_model():
    config = transformers.AutoConfig.for_model("bert")
    assert backbone_of(config, head="classifier").name == "BERT"
    with pytest.raises(backbones.UserError, match="model_type 'bert' is not supported"):
        backbone_of(config)
