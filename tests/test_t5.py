"""T5 with adapters and hypernetworks: the published models' numbers, mixed batches, what is trained.

    python -m pytest tests/test_t5.py
"""

import copy
import json
from pathlib import Path

import pytest
import quick
import torch
from safetensors.torch import load_file
from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration
from versatile.adapters import t5
from versatile.adapters.methods import hypernetworks as hypernet
from versatile.utils.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "hyperformer"
MODELS = json.loads((GOLDEN / "t5_models.json").read_text())
SMALL = dict(reduction_factor=4, non_linearity="gelu_new", task_embedding_dim=6, projected_task_embedding_dim=5,
             task_hidden_dim=8)  # fmt: skip
CASES = {
    "none": dict(method="finetune"),
    "adapter": dict(method="adapters"),
    "hyperformer": dict(method="hyperformer"),
    "hyperformer_pp": dict(method="hyperformer++"),
    "meta_per_layer": dict(method="meta", train_task_embeddings=True, conditional_layer_norm=True),
}
HELD = [name for name in CASES if (GOLDEN / f"t5_{name}.safetensors").is_file()]
METHODS = [m for m in t5.METHODS if m != "finetune"]
GATED = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def bare(kind=T5ForConditionalGeneration, config=T5Config, **more):
    """A tiny T5 with random weights."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=60, d_model=24, d_kv=6, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
                 relative_attention_num_buckets=8, pad_token_id=0, eos_token_id=1)  # fmt: skip
    return kind(config(**(sizes | more))).eval()


def attached(method, tasks=("a", "b", "c"), model=None, **more):
    """A tiny T5 with adapters whose parameters are large enough to matter."""
    model = t5.attach(model or bare(), tasks, t5.T5Settings(**(SMALL | dict(method=method) | more)))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "adapter" in name or "task_embedding" in name or name.startswith("added."):
                p.add_(torch.randn_like(p) * 0.2)
    return model


def batch(rows=5, seed=2):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 60, (rows, 7), generator=g)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = torch.randint(2, 60, (rows, 4), generator=g)
    labels[0, 3] = -100
    return dict(input_ids=ids * mask, attention_mask=mask, labels=labels)


MIXED = torch.tensor([1, 0, -1, 2, 1])


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


# ---- the published models


@pytest.fixture(scope="module", params=HELD)
def published(request):
    """(name, model, its tensors, its description)."""
    said, tensors = MODELS[request.param], load_file(GOLDEN / f"t5_{request.param}.safetensors")
    model = T5ForConditionalGeneration(T5Config(**said["config"])).eval()
    settings = t5.T5Settings(**SMALL, unfreeze_layer_norms=True, **CASES[request.param])
    t5.attach(model, ["cola", "mrpc"], settings)
    state = {key.removeprefix("param/"): t for key, t in tensors.items() if key.startswith("param/")}
    t5.load_original(model, state)
    return request.param, model, tensors, said


@torch.no_grad()
def test_a_published_model_gives_its_logits_losses_and_encoder_outputs(published):
    name, model, tensors, _ = published
    inputs = {key: tensors[key] for key in ("input_ids", "attention_mask")}
    for task in ["None"] if name == "none" else model.tasks:
        ids = torch.full((2,), 0 if name == "none" else model.task_id(task))
        found = model(**inputs, labels=tensors["labels"], task_ids=ids)
        torch.testing.assert_close(found.logits, tensors[f"logits_{task}"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.loss, tensors[f"loss_{task}"], atol=0, rtol=1e-4)
        encoded = model.get_encoder()(**inputs, task_ids=ids).last_hidden_state
        torch.testing.assert_close(encoded, tensors[f"encoder_out_{task}"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how, beams", [("greedy", 1), ("beam3", 3)])
def test_a_published_model_generates_what_it_generated(published, how, beams):
    _, model, tensors, said = published
    inputs = {key: tensors[key] for key in ("input_ids", "attention_mask")}
    found = model.generate(**inputs, task_ids=torch.full((2,), 1), max_length=12, num_beams=beams)
    assert found.tolist() == said[f"generate_{how}_task_mrpc"]


def test_parameters_and_what_is_trained_have_the_published_names(published):
    _, model, _, said = published
    names = t5.original_names(model)
    # Today's T5 has no relative bias in cross-attention.
    assert set(names.values()) == {n for n in said["param_names"] if "EncDecAttention.relative" not in n}
    trained = {names[name] for name, p in model.named_parameters() if p.requires_grad}
    expected = said["trainable_after_freezing_with_layernorms"]
    assert trained == (set(names.values()) if expected is None else set(expected))
    assert set(t5.original_state(model)) == set(names.values())


def test_a_published_state_dict_that_does_not_fit_is_refused():
    tensors = load_file(GOLDEN / "t5_hyperformer.safetensors")
    state = {key.removeprefix("param/"): t for key, t in tensors.items() if key.startswith("param/")}
    model = attached("hyperformer", ["cola", "mrpc"])
    cut, bias = "encoder.adapter_layers_hyper_net.LayerNorm.weight", "decoder.block.0.layer.1.EncDecAttention.relative"
    for change, said in (
        ({cut: None}, f"1 missing.*{cut}"),
        ({"more": torch.ones(1)}, "1 not expected.*more"),
        ({cut: torch.ones(4)}, r"shape \[4\][\s\S]*\[5\]"),
        ({f"{bias}_attention_bias.weight": torch.ones(8, 4)}, "is not zero"),
        ({"lm_head.weight": torch.ones(60, 24)}, "is not shared.weight"),
    ):
        wrong = {k: t for k, t in (state | change).items() if t is not None}
        with pytest.raises(UserError, match=said):
            t5.load_original(model, wrong)
    t5.load_original(model, state | {f"{bias}_attention_bias.weight": torch.zeros(8, 4)})
    with pytest.raises(UserError, match=r"not expected"):
        t5.load_original(attached("hyperformer++", ["cola", "mrpc"]), state)


# ---- batches that mix tasks


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_mixed_batch_gives_each_row_what_its_task_gives(method):
    model, inputs = attached(method, train_task_embeddings=method == "meta"), batch()
    mixed = model(**inputs, task_ids=MIXED).logits
    for task in (-1, 0, 1, 2):
        alone = model(**inputs, task_ids=torch.full((5,), task)).logits
        torch.testing.assert_close(mixed[task == MIXED], alone[task == MIXED], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(mixed[task != MIXED], alone[task != MIXED], atol=1e-2)
    assert torch.allclose(mixed[2], bare()(**inputs).logits[2], atol=1e-4)


@pytest.mark.parametrize("method, beams", quick.every(3, METHODS, [1, 3]))
def test_generating_for_mixed_tasks_gives_what_each_row_alone_gives(method, beams):
    model, inputs = attached(method), batch()
    inputs.pop("labels")
    how = dict(num_beams=beams, num_return_sequences=beams, min_new_tokens=8, max_new_tokens=8)
    mixed = model.generate(**inputs, task_ids=MIXED, **how)
    for row in range(5):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        alone = model.generate(**one, task_ids=MIXED[row : row + 1], **how)
        assert torch.equal(mixed[row * beams : (row + 1) * beams], alone)


@pytest.mark.parametrize("method", quick.every(3, METHODS))
def test_gradients_of_a_mixed_batch_are_the_sum_of_single_tasks(method):
    model, inputs = without_dropout(attached(method, unfreeze_layer_norms=True)).train(), batch()
    parameters = [p for p in model.parameters() if p.requires_grad]
    count = (inputs["labels"] != -100).sum()

    def gradients(rows, ids):
        part = {key: value[rows] for key, value in inputs.items()}
        loss = model(**part, task_ids=ids, num_items_in_batch=count).loss
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]

    mixed = gradients(list(range(5)), MIXED)
    alone = [gradients([row], MIXED[row : row + 1]) for row in range(5)]
    for a, *b in zip(mixed, *alone):
        torch.testing.assert_close(a, sum(b), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", quick.every(3, METHODS))
def test_gradient_checkpointing_changes_no_gradient_even_with_two_forwards_before_backward(method):
    model = without_dropout(attached(method, unfreeze_layer_norms=True)).train()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients():
        # The second forward pass routes other rows before the first one's blocks are recomputed.
        loss = model(**batch(), task_ids=MIXED, use_cache=False).loss
        loss = loss + model(**batch(3, seed=3), task_ids=torch.tensor([2, 2, 0]), use_cache=False).loss
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert model.encoder.block[0].gradient_checkpointing
    for a, b in zip(gradients(), plain):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant"):
        model(**batch(), task_ids=MIXED, use_cache=False)


def test_task_ids_are_asked_for_where_there_are_several_tasks():
    model = attached("hyperformer++")
    for call in (model, model.generate, model.get_encoder()):
        inputs = batch()
        if call is not model:
            inputs.pop("labels")
        with pytest.raises(ValueError, match="task_ids is needed"):
            call(**inputs)
    with pytest.raises(ValueError, match=r"\[3\] name no task"):
        model(**batch(), task_ids=torch.tensor([0, 1, 2, 3, 0]))
    with pytest.raises(UserError, match=r"a, b, c, not 'd'"):
        model.task_id("d")
    single, one = attached("hyperformer++", ["a"]), torch.zeros(5, dtype=torch.long)
    assert torch.equal(single(**batch()).logits, single(**batch(), task_ids=one).logits)


# ---- made once


@pytest.mark.parametrize("method", ["hyperformer", "hyperformer++", "meta"])
def test_adapters_are_generated_once_for_a_step_and_once_for_all_decoding(method):
    model, inputs = without_dropout(attached(method, unfreeze_layer_norms=True)).train(), batch()
    nets = [m for m in model.modules() if isinstance(m, hypernet.SamplerHyperNet | hypernet.NormHyperNet)]
    calls = dict.fromkeys(nets, 0)
    for net in nets:
        net.register_forward_hook(lambda net, args, out: calls.__setitem__(net, calls[net] + 1))

    def counts():
        found = set(calls.values())
        calls.update(dict.fromkeys(nets, 0))
        return found

    model(**inputs, task_ids=MIXED).loss.backward()
    assert counts() == {1}
    model.gradient_checkpointing_enable()
    model(**inputs, task_ids=MIXED, use_cache=False).loss.backward()
    assert counts() == {1}
    inputs.pop("labels")
    model.eval().generate(**inputs, task_ids=MIXED, num_beams=3, min_new_tokens=6, max_new_tokens=6)
    assert counts() == {1}


@pytest.mark.parametrize("method", quick.every(3, METHODS))
def test_after_a_training_step_generating_uses_the_new_parameters(method):
    model, inputs = attached(method), batch()
    prompt = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=5.0)
    how = dict(max_new_tokens=3, min_new_tokens=3, output_logits=True, return_dict_in_generate=True)
    before = model.generate(**prompt, task_ids=MIXED, **how)
    model(**inputs, task_ids=MIXED).loss.backward()
    optimizer.step()
    after = model.generate(**prompt, task_ids=MIXED, **how)
    assert not torch.allclose(before.logits[0], after.logits[0], atol=1e-3)
    fresh = copy.deepcopy(model)
    again = fresh.generate(**prompt, task_ids=MIXED, **how)
    assert torch.equal(torch.stack(again.logits), torch.stack(after.logits))


def test_a_copy_of_a_model_has_its_own_adapters():
    model = attached("hyperformer++")
    twin = copy.deepcopy(model)
    before = model(**batch(), task_ids=MIXED).logits
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if "adapter" in name:
                p.zero_()
    assert torch.equal(model(**batch(), task_ids=MIXED).logits, before)
    assert not torch.allclose(twin(**batch(), task_ids=MIXED).logits, before, atol=1e-2)


# ---- kinds of T5, sharing, given embeddings


@pytest.mark.parametrize("kind, config, more", [
    (T5ForConditionalGeneration, T5Config, GATED),
    (MT5ForConditionalGeneration, MT5Config, GATED),
    (T5ForConditionalGeneration, T5Config, dict(num_layers=3, num_decoder_layers=1)),
])  # fmt: skip
@pytest.mark.parametrize("method", ["adapters", "hyperformer++"])
def test_gated_and_lopsided_kinds_of_t5_take_adapters(kind, config, more, method):
    model = attached(method, model=bare(kind, config, **more))
    inputs = batch()
    mixed = model(**inputs, task_ids=MIXED)
    for row, task in enumerate(MIXED):
        one = {key: value[row : row + 1] for key, value in inputs.items()}
        found = model(**one, task_ids=task[None]).logits
        torch.testing.assert_close(mixed.logits[row : row + 1], found, atol=1e-4, rtol=1e-4)
    mixed.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert isinstance(model, kind) and type(model).__name__ == kind.__name__
    assert model.generate(inputs["input_ids"], task_ids=MIXED, num_beams=2, max_new_tokens=3).shape[0] == 5


def test_cross_attention_has_no_adapter():
    names = t5.original_names(attached("adapters")).values()
    found = {name.split(".adapter_controller")[0] for name in names if "adapter_controller" in name}
    assert found == {f"encoder.block.{i}.layer.{k}" for i in range(2) for k in (0, 1)} | {
        f"decoder.block.{i}.layer.{k}" for i in range(2) for k in (0, 2)
    }


def test_the_adapter_stands_before_the_residual_connection():
    model, hidden = attached("adapters", ["a"]), {}
    layer = model.encoder.block[0].layer[-1]
    layer.register_forward_hook(lambda m, args, out: hidden.update(into=args[0], out=out))
    with torch.no_grad():
        model.get_encoder()(batch()["input_ids"])
        sublayer = layer.DenseReluDense
        plain = sublayer.wo(torch.relu(sublayer.wi(layer.layer_norm(hidden["into"]))))
        method = model.added["adapters"]
        a, norm = method.blocks[0]["a"]["feed_forward"], method.norms[0]["feed_forward"]["post_layer_norm"]
        inner = torch.nn.functional.gelu(a.down(plain), approximate="tanh")
        torch.testing.assert_close(hidden["out"], hidden["into"] + norm(a.up(inner)) + plain)


@pytest.mark.parametrize("method, field", [("adapters", "adapters"), ("hyperformer++", "task_embeddings")])
def test_tasks_can_share_an_adapter_or_an_embedding(method, field):
    model = attached(method, **{field: ["x", "y", "x"]})
    inputs = batch()
    logits = [model(**inputs, task_ids=torch.full((5,), task)).logits for task in range(3)]
    assert torch.equal(logits[0], logits[2]) and not torch.allclose(logits[0], logits[1], atol=1e-2)
    mixed = model(**inputs, task_ids=torch.tensor([0, 1, 2, 1, 0])).logits
    torch.testing.assert_close(mixed[2], logits[0][2], atol=1e-4, rtol=1e-4)


def given_embeddings(folder, names, size=6):
    import numpy as np

    values = {name: np.arange(size, dtype=np.float64) + i for i, name in enumerate(names)}
    for name, value in values.items():
        np.save(folder / f"{name}.npy", value)
    return values


@pytest.mark.parametrize("parametric", [False, True])
def test_given_task_embeddings_are_fixed_unless_parametric(tmp_path, parametric):
    values = given_embeddings(tmp_path, ["a", "b", "c"])
    model = attached("hyperformer++", task_embedding_dir=str(tmp_path), parametric_task_embedding=parametric)
    held = t5.attach(bare(), ["a", "b", "c"], model.settings).task_embedding_controller.task_to_embeddings
    for name, value in values.items():
        assert held[name].tolist() == value.tolist()
        assert held[name].requires_grad == parametric
    # Not even with everything else.
    changed = t5.trainable(model, t5.T5Settings(**SMALL, method="hyperformer++", unfreeze_model=True))
    assert any(".embeddings.task_to" in name for name in changed) == parametric


def test_task_embeddings_that_cannot_be_used_are_refused(tmp_path):
    import numpy as np

    how = dict(method="hyperformer++", task_embedding_dir=str(tmp_path))
    given_embeddings(tmp_path, ["a", "b"])
    with pytest.raises(UserError, match=r"c\.npy: no such file \(embeddings there: a, b\)"):
        attached(**how)
    for value, said in ((np.ones(5), r"5 values[\s\S]*task_embedding_dim, 6"), (np.full(6, np.nan), "not finite"),
                        (np.array(["x"] * 6), "not finite"), (np.array([{}] * 6), "not a readable")):  # fmt: skip
        np.save(tmp_path / "c.npy", value, allow_pickle=True)
        with pytest.raises(UserError, match=said):
            attached(**how)


@pytest.mark.parametrize("change, said", [
    (dict(method="soft"), "method: 'soft'"),
    (dict(non_linearity="softplus"), "non_linearity: 'softplus'"),
    (dict(reduction_factor=25), "reduction_factor: 25"),
    (dict(reduction_factor=0), "reduction_factor: 0"),
    (dict(adapters=["x"]), r"adapters: 1 names \(x\)[\s\S]*3 tasks a, b, c"),
    (dict(task_embeddings=["x", "y"]), "task_embeddings: 2 names"),
    (dict(task_embedding_dim=0), "task_embedding_dim: 0"),
    (dict(tasks=["a", "a"]), "tasks: the tasks"),
    (dict(tasks=["wmt16.en"]), "without dots"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused_before_the_model_is_changed(change, said):
    model = bare()
    with pytest.raises(UserError, match=said):
        attached(**(dict(method="adapters", model=model) | change))
    assert type(model) is T5ForConditionalGeneration


# ---- what is trained


def trained(model, **flags):
    """Published names of the parameters trained with these flags."""
    settings, names = t5.T5Settings(**SMALL, method=model.settings.method, **flags), t5.original_names(model)
    return {names[name] for name in t5.trainable(model, settings)}


def test_flags_apply_in_the_published_order():
    model = attached("hyperformer", ["a", "b"], model=bare())
    every = set(t5.original_names(model).values())
    own = {name for name in every if "hyper_net" in name or "task_embedding" in name}
    norms = {name for name in every if "layer_norm" in name or "LayerNorm" in name}
    vectors = {f"task_embedding_controller.task_to_embeddings.{task}" for task in "ab"}
    head = {"shared.weight"}
    encoder = {name for name in every if name.startswith("encoder.")}
    assert trained(model) == own
    assert trained(model, freeze_model=True) == set()
    assert trained(model, freeze_model_but_lm_head=True) == head
    assert trained(model, freeze_model_but_lm_head=True, freeze_embeds=True) == set()
    assert trained(model, freeze_encoder=True) == own - encoder
    assert trained(model, freeze_model_but_task_embeddings=True, freeze_model_but_lm_head=True) == vectors
    assert trained(model, freeze_model=True, unfreeze_lm_head=True) == head
    assert trained(model, freeze_encoder=True, unfreeze_layer_norms=True) == (own - encoder) | norms
    assert trained(model, freeze_model=True, unfreeze_model=True) == every
    plain = attached("finetune")
    everything = {name for name, _ in plain.named_parameters()}
    assert trained(plain) == everything
    # The head is tied: the embeddings of the encoder, too, are the shared ones.
    kept = {n for n in everything if not n.startswith(("encoder.", "shared."))}
    assert trained(plain, freeze_encoder=True) == kept
    untied = bare(**GATED)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    untied = attached("adapters", model=untied)
    assert trained(untied, freeze_model_but_lm_head=True) == {"lm_head.weight"}
    assert "shared.weight" in trained(untied, unfreeze_model=True)


def test_no_forward_changes_what_is_trained():
    model = attached("adapters", unfreeze_layer_norms=True)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model(**batch(), task_ids=torch.zeros(5, dtype=torch.long)).loss.backward()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and ".blocks." in name}
    assert with_gradient and all(name.split(".")[4] == "a" for name in with_gradient)


GLUE = ["rte", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "cola"]
SHAPES = {"t5-small": {}, "t5-base": dict(d_model=768, d_ff=3072, num_layers=12, num_heads=12)}
PUBLISHED = dict(reduction_factor=32, unfreeze_layer_norms=True, train_task_embeddings=True, task_embedding_dim=64)
# (size, method, tasks): trained of adapters, hypernetworks, task embeddings, layer norms.
COUNTS = {
    ("t5-small", "adapters", 8): (3_271_680, 0, 0, 16_384),
    ("t5-small", "adapters", 1): (430_464, 0, 0, 16_384),
    ("t5-small", "hyperformer", 8): (0, 4_713_920, 17_088, 16_384),
    ("t5-small", "hyperformer++", 8): (0, 2_398_880, 17_088, 16_384),
    ("t5-small", "meta", 8): (0, 27_980_160, 17_088, 16_384),
    ("t5-base", "adapters", 8): (14_533_632, 0, 0, 47_616),
    ("t5-base", "adapters", 1): (1_881_216, 0, 0, 47_616),
    ("t5-base", "hyperformer", 8): (0, 10_241_248, 17_088, 47_616),
    ("t5-base", "hyperformer++", 8): (0, 5_162_928, 17_088, 47_616),
    ("t5-base", "meta", 8): (0, 122_279_040, 17_088, 47_616),
}
TOTALS = {"t5-small": 60_506_624, "t5-base": 222_903_552}


@pytest.mark.parametrize("size, method, tasks", COUNTS)
def test_trained_parameters_of_each_method(size, method, tasks):
    how = t5.T5Settings(**PUBLISHED, method=method, conditional_layer_norm=method == "meta")
    with torch.device("meta"):
        model = t5.attach(T5ForConditionalGeneration(T5Config(**SHAPES[size])), GLUE[:tasks], how)
    kinds = ("adapters", "hypernetworks", "task_embeddings", "layer_norms", "backbone", "total")
    assert t5.count_parameters(model) == dict(zip(kinds, (*COUNTS[size, method, tasks], 0, TOTALS[size])))


def test_the_count_of_hyperformer_pp_at_t5_base_is_that_of_its_formula():
    d, m, e, hidden, layers = 768, 24, 64, 128, 12
    stack = (e + 1) * (2 * d * m + d + m + 2 * d)  # generators: up, down, their biases, the norm
    stack += (3 * e + 1) * hidden + (hidden + 1) * e + 2 * e + (layers + 2) * e  # e, its norm, layers, block types
    assert COUNTS["t5-base", "hyperformer++", 8][1] == 2 * stack


# Table 1 of the paper; 0.29 % is in its abstract, too.
@pytest.mark.parametrize("method, published", [("hyperformer++", 0.29), ("meta", 6.86), ("adapters", 0.82)])
def test_the_counts_at_t5_base_have_the_published_shares(method, published):
    assert round(100 * sum(COUNTS["t5-base", method, 8]) / TOTALS["t5-base"] / 8, 2) == published


def test_the_log_line_names_what_is_trained_and_its_share():
    how = t5.T5Settings(**PUBLISHED, method="hyperformer++")
    with torch.device("meta"):
        model = t5.attach(T5ForConditionalGeneration(T5Config(**SHAPES["t5-base"])), GLUE, how)
    assert t5.parameter_summary(model) == (
        "trained: hypernetworks 5,162,928 + task embeddings 17,088 + layer norms 47,616 = 2.35 % of 222.9M "
        "(0.29 % per task)"
    )


def test_the_loss_can_be_divided_by_the_labels_of_several_batches():
    model, inputs = attached("adapters"), batch()
    out = model(**inputs, task_ids=MIXED)
    shared = model(**inputs, task_ids=MIXED, num_items_in_batch=torch.tensor(38))
    torch.testing.assert_close(shared.loss, out.loss * 19 / 38)
    as_tuple = model(**inputs, task_ids=MIXED, num_items_in_batch=38, return_dict=False)
    torch.testing.assert_close(as_tuple[0], shared.loss)
