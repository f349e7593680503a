"""CA-MTL's models: equal to the originals, one pass for mixed batches.

python -m pytest tests/test_bert.py
"""

import copy

import pytest
import torch
from bert_models import MODELS, NAMES, SIZES, batch, close, golden, labels, new, rows_of, shaken
from versatile.adapters import bert, classifier
from versatile.adapters.classifier import keyed_parameters
from versatile.adapters.methods.conditional import ConditionalLayerNorm
from versatile.utils import uncertainty
from versatile.utils.attention import PRODUCTS
from versatile.utils.errors import UserError


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_whole_model_equals_the_original(name, attention):
    model, held = golden(name)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        out = model(**{n: held[n] for n in NAMES}, task_ids=held["task_id"], labels=held["labels"],
                    all_positions=True)  # fmt: skip
    close(out.sequence_output, held["sequence_output"], 1e-4)
    close(out.pooled_output, held["pooled_output"])
    close(out.loss, held["loss"])
    assert list(out.logits) == list(out.rows) == [0, 1, 2, 3]
    for task in range(4):
        assert out.rows[task].tolist() == (held["task_id"] == task).nonzero().squeeze(-1).tolist()
        close(out.logits[task], held[f"logits_task{task}"])
        close(out.losses[task], held[f"loss_task{task}"])
        close(out.entropies[out.rows[task]], held[f"entropy_task{task}"])
    close(out.entropies, held["batch_entropy_per_task"])
    means, largest = uncertainty.task_means(out.entropies, held["task_id"])
    close(means, held["batch_entropy_mean_per_task"])
    assert float(largest) == pytest.approx(SIZES[name]["max_mean_batch_entropy"], abs=1e-5)
    # The original returns only the last task's logits.
    close(out.logits[SIZES[name]["returned_logits_are_of_task"]], held["returned_logits"])


@pytest.mark.parametrize("name", [*MODELS, "model_large_odd"])
def test_parameters_have_the_original_names_and_start(name):
    sizes = SIZES[name]
    form = {"CA-MTL-base": "base", "CA-MTL-large": "large"}.get(sizes["model_name"], "plain")
    model = new(form, sizes["num_hidden_layers"])
    found = keyed_parameters(model)
    assert set(found) == set(sizes["param_names"]) and len(found) == len(list(model.parameters()))
    assert len(model.state_dict()) == len(found)
    for key, (mean, deviation) in sizes["initial_stats"].items():
        # The golden ones are one draw of the same distribution: N(0, 0.02), or a constant.
        assert float(found[key].detach().mean()) == pytest.approx(mean, abs=0.006), key
        assert float(found[key].detach().std(unbiased=False)) == pytest.approx(deviation, abs=0.005), key
        assert deviation or found[key].eq(mean).all(), key


@pytest.mark.parametrize("name", ["model_base", "model_large", "model_large_odd"])
def test_frozen_set_is_the_originals_without_its_misspelt_pattern(name):
    sizes = SIZES[name]
    model = new(sizes["model_name"].split("-")[-1], sizes["num_hidden_layers"])
    frozen, trained = bert.freeze(model, "0-1")
    expected = {f"bert.{key}" for key, grad in sizes["requires_grad_after_freeze_0_1"].items() if not grad}
    misspelt = {key for key in expected if ".cond_block_diag_attn." in key}
    assert misspelt and set(frozen) == expected - misspelt
    assert set(trained) == set(keyed_parameters(model)) - set(frozen)
    assert {key for key, p in keyed_parameters(model).items() if p.requires_grad} == set(trained)


def test_freezing_keeps_the_conditional_norms_learning():
    model = new("large")
    bert.freeze(model, "0-3")
    layer = model.bert.encoder.layer[3]
    assert not layer.output.LayerNorm.weight.requires_grad
    assert layer.output.LayerNorm.ln_weight_modulation.gb_weights.weight.requires_grad
    assert model.added["conditional"].bottlenecks[0].emb_transf.weight.requires_grad
    bert.freeze(model, "1-1")
    assert layer.output.LayerNorm.weight.requires_grad and model.bert.encoder.layer[0].output.dense.weight.requires_grad
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad


@pytest.mark.parametrize("form, layers", [("large", "0-4"), ("base", "0-3"), ("plain", "3-1"), ("base", "all")])
def test_layers_that_cannot_be_frozen_are_told(form, layers):
    with pytest.raises(UserError, match="--freeze_encoder_layers") as error:
        bert.freeze(new(form), layers)
    assert layers in str(error.value) and "N at most" in str(error.value)


def test_no_norm_and_no_bias_decays():
    """The Trainer's rule, that only matrices decay, spares what the original's list of names means to spare, and the
    `condlayernorm.weight` that it misses."""
    for form in bert.FORMS:
        model = new(form)
        norms = (torch.nn.LayerNorm, ConditionalLayerNorm)
        own = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, norms)}
        biases = {n for n, _ in model.named_parameters() if n.endswith(".bias")}
        assert {n for n, p in model.named_parameters() if p.ndim < 2} == own | biases
        assert form != "base" or any(n.endswith("condlayernorm.weight") for n in own)


@pytest.mark.parametrize("form", bert.FORMS)
def test_a_mixed_batch_equals_a_pass_for_each_task(form):
    model, ids = shaken(new(form)), (0, 2, 1, 3, 1, 0, 2)
    given, gold = batch(ids), labels(ids)
    mixed = model(**given, labels=gold)
    losses = []
    for task in sorted(set(ids)):
        rows = [i for i, t in enumerate(ids) if t == task]
        alone = model(**rows_of(given, rows), labels=gold[rows])
        close(mixed.logits[task], alone.logits[task])
        close(mixed.losses[task], alone.loss)
        close(mixed.predictions[rows], alone.predictions)
        losses.append(alone.loss)
    close(mixed.loss, torch.stack(losses).mean())
    mixed.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    torch.stack(losses).mean().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("form", bert.FORMS)
def test_every_parameter_is_trained_by_every_batch(form):
    """Heads of absent tasks get zeros, not nothing: processes of a distributed run see different tasks."""
    model = shaken(new(form)).train()
    model(**batch((1, 1)), labels=torch.tensor([0.0, 2.0])).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    heads = model.added["heads"].decoders
    assert heads[0].weight.grad.eq(0).all()
    assert heads[1].weight.grad.ne(0).any()
    if form != "plain":
        conditional = model.added["conditional"]
        assert conditional.task_type_embeddings.weight.grad[[0, 2, 3]].eq(0).all()
        assert len(conditional.matrices) == 4 and all(p.grad.ne(0).any() for p in conditional.matrices)


@pytest.mark.parametrize("form", bert.FORMS)
@pytest.mark.parametrize("length", [3, 8, 11])
def test_padding_to_the_longest_sequence_changes_nothing(form, length):
    """Batches that the original pads to exactly L may be shorter here."""
    model, given = shaken(new(form)), batch(length=length)
    padded = {n: torch.nn.functional.pad(v, (0, 16 - length)) if v.dim() > 1 else v for n, v in given.items()}
    short, long = (model(**inputs, all_positions=True) for inputs in (given, padded))
    close(short.scores, long.scores)
    close(short.sequence_output[:, :length], long.sequence_output[:, :length])
    # Padding common to all rows is not computed.
    assert long.sequence_output.shape[1] == length + -length % 8


@pytest.mark.parametrize("attention", ["sdpa", "eager", PRODUCTS])
@pytest.mark.parametrize("form", ["base", "large"])
def test_the_top_layer_at_the_first_position_alone_gives_the_same_scores_and_gradients(form, attention):
    model, ids = shaken(new(form)), (0, 2, 1, 3, 1, 0, 2)
    given, gold = batch(ids), labels(ids)
    model.set_attn_implementation(attention)
    whole = model(**given, labels=gold, all_positions=True)
    whole.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    first = model(**given, labels=gold)
    first.loss.backward()
    assert first.hidden[0].shape[1] == 1 < whole.hidden[0].shape[1]
    close(first.scores, whole.scores)
    close(first.row_losses, whole.row_losses)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("form", bert.FORMS)
def test_rows_of_like_lengths_together_are_the_batch(form, monkeypatch):
    """A CPU computes little padding: outputs and gradients equal those of one pass."""
    monkeypatch.setattr(classifier, "CPU_TOKENS", 128)
    model, ids = shaken(new(form)), (0, 2, 1, 3, 1, 0, 2) * 4
    given, gold, calls = batch(ids), labels(ids), []
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
    found = model(**given, labels=gold, all_positions=True)
    found.loss.backward()
    passes = len(calls)
    assert len(found.parts[0][0]) == 8 and 2 < passes == len(found.parts)
    assert sorted(torch.cat([rows for rows, _ in found.parts]).tolist()) == list(range(28))
    gradients = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    model._parts = lambda mask: [(None, 16)]
    expected = model(**given, labels=gold, all_positions=True)
    expected.loss.backward()
    assert len(calls) == passes + 1
    close(found.scores, expected.scores)
    real = given["attention_mask"].bool()
    close(found.sequence_output[real], expected.sequence_output[real])
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_equal_lengths_stay_together():
    model, given = new(), batch((0,) * 80)
    assert len(model._parts(given["attention_mask"])) > 1
    given["attention_mask"][:] = 1
    assert model._parts(given["attention_mask"]) == [(None, 16)]


def test_predictions_are_those_of_every_task():
    out = shaken(new())(**batch())
    for task, rows in out.rows.items():
        expected = out.logits[task][:, 0] if task == 2 else out.logits[task].argmax(-1).float()
        assert torch.equal(out.predictions[rows], expected)


def test_labels_keep_their_fraction():
    """In the original a batch whose first row is a class turns 3.8 into 3."""
    model, given = new(), batch((0, 2))
    out = model(**given, labels=torch.tensor([1.0, 3.8]))
    score = float(out.logits[2].detach())
    assert float(out.losses[2].detach()) == pytest.approx((score - 3.8) ** 2, rel=1e-5)


def test_an_empty_row_of_labels_is_not_needed_to_predict():
    out = new()(**batch())
    assert out.loss is None and out.losses is None and out.predictions.shape == (6,)


def test_a_batch_that_does_not_fit_is_told():
    model = new()
    with pytest.raises(ValueError, match="at most 16"):
        model(**batch(length=17))
    with pytest.raises(ValueError, match="task_ids is needed"):
        model(batch()["input_ids"])
    with pytest.raises(ValueError, match="expected 0 cola, 1 mnli"):
        model(**batch((0, 4)))
    with pytest.raises(KeyError, match="rte"):
        model.task_id("rte")
    model.aliases["mnli-mm"] = "mnli"
    assert model.task_id("mnli-mm") == model.task_id("mnli") == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", bert.FORMS)
def test_half_precision_gives_the_same_up_to_rounding(form, attention):
    model, given, gold = shaken(new(form)), batch(), labels((0, 2, 1, 3, 1, 0))
    model.set_attn_implementation(attention)
    expected = model(**given, labels=gold)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**given, labels=gold)
    found.loss.backward()
    assert found.scores.dtype == torch.float32
    close(found.loss, expected.loss, 0.2)
    close(found.entropies, expected.entropies, 0.05)
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("form", bert.FORMS)
def test_recomputed_layers_meet_the_same_conditions(form):
    model = shaken(new(form, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
    given, gold, calls = batch(), labels((0, 2, 1, 3, 1, 0)), []
    model.bert.encoder.layer[0].output.register_forward_pre_hook(lambda *_: calls.append(1))
    model(**given, labels=gold).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.bert.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(**given, labels=gold).loss.backward()
    assert len(calls) == 3, "the layer was not computed a second time"
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], msg=name)


@pytest.mark.parametrize("form", bert.FORMS)
def test_a_copy_computes_the_same(form):
    model, given = shaken(new(form)), batch()
    scores = model(**given).scores
    copied = copy.deepcopy(model)
    assert torch.equal(copied(**given).scores, scores)


def test_candidates_are_judged_in_one_pass_as_the_model_judges_them():
    model, given = shaken(new(hidden_dropout_prob=0.5)).train(), batch()
    calls = []
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
    found = uncertainty.candidate_entropies(model, {**given, "labels": torch.zeros(6)})
    assert len(calls) == 1 and model.training
    assert torch.allclose(found, model.eval()(**given).entropies, atol=0.05) and found[1] == 0
