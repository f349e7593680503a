"""Adapters and task embeddings on real transformers models: their sizes, arithmetic, gradients."""

import pytest
import torch
import torch.nn.functional as F
from attached_models import BOTTLENECKS, MARKERS, Words, attached, batch, gpt2_on_meta, without
from versatile.adapters import attach as adapting
from versatile.adapters import labels, routing
from versatile.adapters.attach import attach, count_parameters, halve_frozen, parameter_summary, trainable
from versatile.data.task import get_task
from versatile.training.objectives import cross_entropy


@pytest.fixture(scope="module", params=["tiny-gpt2", "tiny-llama"])
def both(request):
    return attached(request.param)


@pytest.mark.parametrize("bottleneck, adapters", [(300, 5_560_848), (100, 1_872_048), (10, 212_088)])
def test_adapter_sizes_are_the_published_ones(bottleneck, adapters):
    with torch.device("meta"):
        model = attach(gpt2_on_meta(), Words(), {"nlg": get_task("nlg").markers}, {"nlg": bottleneck})
    counts = count_parameters(model)
    assert counts == dict(adapters=adapters, task_rows=8448, backbone=0, total=124_439_808)


def test_five_published_tasks_have_the_published_total():
    from versatile.adapters.imports.vlm import ROWS

    published = {"mt": 300, "summarization": 100, "dialogue": 100, "qa": 300, "nlg": 10}
    with torch.device("meta"):
        model = attach(gpt2_on_meta(), Words(), {t: ROWS[t] for t in published}, published)
    assert count_parameters(model)["adapters"] == 15_077_880
    assert count_parameters(model)["task_rows"] == 29 * 768


def test_the_trained_share_is_printed():
    with torch.device("meta"):
        model = attach(gpt2_on_meta(), Words(), {"nlg": get_task("nlg").markers}, {"nlg": 10})
    assert "adapters 212,088 + task embeddings 8,448 = 0.18 % of 124.4M" in parameter_summary(model)


def test_a_new_adapter_starts_as_published_and_not_as_the_identity():
    torch.manual_seed(0)
    from versatile.adapters.methods.bottleneck import BottleneckAdapter

    adapter = BottleneckAdapter(256, 64)
    for weight in (adapter.down.weight, adapter.up.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05) and abs(weight.mean().item()) < 1e-3
    assert not adapter.down.bias.any() and not adapter.up.bias.any()
    assert (adapter.norm.weight == 1).all() and not adapter.norm.bias.any()
    hidden = torch.randn(2, 3, 256)
    assert (adapter(hidden) - hidden).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
@pytest.mark.parametrize("bottlenecks", [BOTTLENECKS, None])
def test_rows_can_start_from_the_words_in_their_markers(name, bottlenecks):
    model, tokenizer = attached(name, bottlenecks)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = model.get_input_embeddings()(torch.arange(400, len(tokenizer))).detach().clone()
    adapting.start_rows_from_words(model, tokenizer, "nlg")
    after = model.get_input_embeddings()(torch.arange(400, len(tokenizer))).detach()
    ids = tokenizer(" customer rating").input_ids
    words = model.get_input_embeddings()(torch.tensor(ids)).mean(0)
    row = model.get_input_embeddings()(torch.tensor(tokenizer.convert_tokens_to_ids("<customerRating>")))
    assert F.cosine_similarity(row, words, dim=0) > 0.999
    assert row.std().item() == pytest.approx(0.02, rel=1e-3)
    # The other task's embeddings and the base table are unchanged.
    assert torch.equal(before[-4:], after[-4:]) and not torch.equal(before[1:-4], after[1:-4])
    assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if n in frozen)


def test_a_mixed_batch_equals_each_task_alone(both):
    model, tokenizer = both
    model.eval()
    mixed = without(batch(tokenizer), "labels")
    with torch.no_grad():
        together = model(**mixed).logits
        for task in (0, 1, -1):
            rows = mixed["task_ids"] == task
            alone = model(**{k: v[rows] for k, v in mixed.items()}).logits
            torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=1e-5)


def test_training_a_mixed_batch_gives_the_gradients_of_the_tasks_alone(both):
    model, tokenizer = both
    model.eval()
    mixed = batch(tokenizer, tasks=(0, 1))
    cross_entropy(model, mixed, 1).backward()
    together = {n: p.grad.clone() for n, p in trainable(model).items()}
    model.zero_grad()
    for task in (0, 1):
        rows = mixed["task_ids"] == task
        cross_entropy(model, {k: v[rows] for k, v in mixed.items()}, 1).backward()
    for name, p in trainable(model).items():
        torch.testing.assert_close(together[name], p.grad, atol=1e-4, rtol=1e-4)
    model.zero_grad()


def test_each_adapter_runs_once_a_block_whatever_the_mix(both):
    model, tokenizer = both
    calls = []
    blocks = model.added["bottleneck"].blocks
    handles = [a.down.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
               for b in blocks for a in b.values()]  # fmt: skip
    model(**without(batch(tokenizer, rows=9), "labels"))
    for handle in handles:
        handle.remove()
    assert calls == [3, 3] * len(blocks)


def test_a_few_tokens_without_gradients_take_one_product_with_the_same_result(both, monkeypatch):
    model, tokenizer = both
    model.eval()
    given = without(batch(tokenizer, rows=9), "labels")
    with torch.no_grad():
        fused = model(**given).logits
        monkeypatch.setattr(routing, "FUSED_TOKENS", 0)
        torch.testing.assert_close(model(**given).logits, fused, atol=2e-5, rtol=1e-5)
        monkeypatch.undo()
        # Cached results are recomputed when a weight has changed.
        next(iter(model.added["bottleneck"].blocks[0].values())).up.bias.add_(1.0)
        changed = model(**given).logits
        assert not torch.allclose(changed, fused)
        monkeypatch.setattr(routing, "FUSED_TOKENS", 0)
        torch.testing.assert_close(model(**given).logits, changed, atol=2e-5, rtol=1e-5)


def test_scores_only_where_labels_stand_give_the_loss_of_all_scores(both):
    model, tokenizer = both
    model.eval()
    given = batch(tokenizer)
    with torch.no_grad():
        loss = cross_entropy(model, given)
        logits = model(**without(given, "labels")).logits
    foreign = model._foreign_columns(given["task_ids"].tolist(), "cpu")
    logits[..., model.info.first :] = logits[..., model.info.first :].masked_fill(foreign[:, None], float("-inf"))
    shifted = given["labels"][:, 1:].reshape(-1)
    full = F.cross_entropy(logits[:, :-1].reshape(len(shifted), -1), shifted, ignore_index=-100)
    torch.testing.assert_close(loss, full, atol=1e-5, rtol=1e-5)


def test_a_foreign_tasks_rows_change_nothing(both):
    """Why a combined model equals its parts: other tasks' embeddings are not in a task's softmax."""
    model, tokenizer = both
    model.eval()
    given = batch(tokenizer, tasks=(1,))
    with torch.no_grad():
        before = cross_entropy(model, given | {"token_type_ids": None})
        for name, p in model.named_parameters():
            if name.endswith("rows.tasks.nlg"):
                p.add_(3.0)
        after = cross_entropy(model, given | {"token_type_ids": None})
        for name, p in model.named_parameters():
            if name.endswith("rows.tasks.nlg"):
                p.sub_(3.0)
    torch.testing.assert_close(before, after, atol=0, rtol=0)


def test_generate_carries_tasks_and_types_also_with_beams(both):
    model, tokenizer = both
    model.eval()
    prompt = without(batch(tokenizer, rows=4, tasks=(0, 1)), "labels")
    for beams in (1, 3):
        kw = dict(
            max_new_tokens=8, do_sample=False, num_beams=beams, pad_token_id=tokenizer.pad_token_id, eos_token_id=None
        )
        mask = torch.ones_like(prompt["input_ids"])
        together = model.generate(**prompt, attention_mask=mask, **kw)
        for row in range(4):
            one = {k: v[row : row + 1] for k, v in prompt.items()}
            alone = model.generate(**one, attention_mask=mask[:1], **kw)
            assert together[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize("ids, message", [([2, 0], "name no task"), ([-2, 0], "name no task"), ([0], "has 1 entries")])
def test_an_id_that_names_no_task_is_an_error(both, ids, message):
    model, tokenizer = both
    with pytest.raises(ValueError, match=message):
        model(**batch(tokenizer, rows=2) | {"task_ids": torch.tensor(ids)})


def test_several_tasks_need_ids_and_unknown_names_are_errors(both):
    model, tokenizer = both
    with pytest.raises(ValueError, match="task_ids is needed"):
        model(**without(batch(tokenizer), "task_ids"))
    with pytest.raises(KeyError, match="'qa' is not in this model"):
        model.task_id("qa")


def test_only_adapters_and_rows_are_trained_and_no_base_table_is_copied(both):
    model, _ = both
    names = trainable(model)
    assert all(n.startswith("added.") for n in names)
    base = model.get_input_embeddings().base.weight
    assert base.shape[0] == 400 and not base.requires_grad
    assert all(p.shape[0] < 100 for n, p in names.items() if "rows" in n)
    tied = model.config.tie_word_embeddings
    assert sum("rows.tasks." in n for n in names) == (2 if tied else 4)
    assert (model.get_input_embeddings().rows is model.get_output_embeddings().rows) == tied


def test_full_fine_tuning_trains_everything_and_adds_rows_to_the_table():
    model, tokenizer = attached(bottlenecks=None, markers={"mt": MARKERS["mt"]})
    assert all(p.requires_grad for p in model.parameters())
    assert model.get_input_embeddings().weight.shape[0] == 400 + 5 == len(tokenizer)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    given = batch(tokenizer, tasks=(0,))
    loss = cross_entropy(model.eval(), given)
    logits = model(**without(given, "labels")).logits
    shifted = given["labels"][:, 1:].reshape(-1)
    torch.testing.assert_close(
        loss, F.cross_entropy(logits[:, :-1].reshape(len(shifted), -1), shifted), atol=1e-5, rtol=1e-5
    )


def test_frozen_matrices_kept_in_half_give_autocasts_results_bit_for_bit(both):
    name = "tiny-gpt2" if both[0].config.model_type == "gpt2" else "tiny-llama"
    losses = []
    for halve in (False, True):
        model, tokenizer = attached(name)
        model.eval()
        if halve:
            halve_frozen(model, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model, batch(tokenizer))
        loss.backward()
        losses.append((loss, [p.grad for p in trainable(model).values()]))
    assert torch.equal(losses[0][0], losses[1][0])
    assert all(torch.equal(a, b) for a, b in zip(losses[0][1], losses[1][1]))


def test_a_tied_table_stays_whole_when_a_frozen_head_is_halved():
    model, tokenizer = attached(bottlenecks=None)
    model.eval().requires_grad_(False)
    given = batch(tokenizer, tasks=(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        before = cross_entropy(model, given)
        halve_frozen(model, torch.bfloat16)
        after = cross_entropy(model, given)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16
    assert torch.equal(before, after)


def test_settling_a_model_changes_results_by_rounding_only(both):
    from versatile.utils.devices import prepare_for_device

    model, tokenizer = attached("tiny-gpt2" if both[0].config.model_type == "gpt2" else "tiny-llama")
    given = batch(tokenizer)
    with torch.no_grad():
        before = cross_entropy(model.eval(), given)
        prepare_for_device(model, torch.device("cpu"), torch.float32)
        torch.testing.assert_close(cross_entropy(model, given), before, atol=1e-5, rtol=1e-5)
        prepare_for_device(model, torch.device("cpu"), torch.bfloat16)
        torch.testing.assert_close(cross_entropy(model, given), before, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(both):
    name = "tiny-gpt2" if both[0].config.model_type == "gpt2" else "tiny-llama"
    grads = []
    for recompute in (False, True):
        model, tokenizer = attached(name)
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if recompute:
            model.gradient_checkpointing()
        # Two forward passes before the backward pass: blocks are recomputed with the first one's task ids.
        first = cross_entropy(model, batch(tokenizer, tasks=(0, 1)))
        second = cross_entropy(model, batch(tokenizer, tasks=(1, -1), seed=1))
        (first + second).backward()
        grads.append([p.grad for p in trainable(model).values()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_module_is_importable_by_its_parts():
    assert labels.IGNORE == -100
