"""Self-copy against the original's own outputs (tests/golden/vglm) and against its formula.

python -m pytest tests/test_self_copy.py
"""

import inspect
import json

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2TokenizerFast, MistralConfig, MistralForCausalLM
from versatile.adapters import checkpoint
from versatile.adapters.attach import attach, count_parameters, halve_frozen, only_tables, parameter_summary, trainable
from versatile.adapters.backbones import family
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.imports import vlm as released
from versatile.adapters.methods import pointer as self_copy
from versatile.data.task import get_task
from versatile.training.decoding import Decoding, Prompt, decode
from versatile.training.objectives import cross_entropy
from versatile.utils import devices
from versatile.utils.errors import UserError

VGLM = GOLDEN / "vglm"
TASKS = {"nlg": 8, "mt": 12}
MARKERS = {t: get_task(t).markers for t in TASKS}
KINDS = [(name, mode) for name in ("tiny-gpt2", "tiny-llama") for mode in ("adapter", "full")]


def pointed(name="tiny-gpt2", mode="adapter", seed=0):
    """A model whose output depends on its pointer as much as on its vocabulary."""
    model, tokenizer = backbones.load_backbone(name)
    torch.manual_seed(seed)
    attach(model, tokenizer, MARKERS, TASKS if mode == "adapter" else None)
    self_copy.add(model, std=0.1)
    with torch.no_grad():
        model.added["pointer"].p_gen_linear.bias.fill_(-1.0)
        for p in trainable(model).values():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval(), tokenizer


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def case(request):
    return pointed(*request.param)


def batch(tokenizer, rows=5, length=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    # Few different tokens, so that several positions hold the same one.
    ids = torch.randint(20, 50, (rows, length), generator=g)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return dict(input_ids=ids, token_type_ids=torch.full_like(ids, len(tokenizer) - 1), attention_mask=mask,
                labels=labels, task_ids=torch.tensor([0, 1, 0, -1, 1])[:rows])  # fmt: skip


def without(given, *names):
    return {k: v for k, v in given.items() if k not in names}


def by_the_formula(model, given):
    """log of the mixture, from transformers' own outputs when asked for attentions."""
    seen = {}
    head = model.get_output_embeddings().register_forward_hook(lambda m, args, out: seen.update(hidden=args[0], s=out))
    out = model(**without(given, "labels"), output_attentions=True)
    head.remove()
    attention = out.attentions[-1][:, -1]
    linear = model.added["pointer"].p_gen_linear
    gate = torch.sigmoid(seen["hidden"] @ linear.weight.T + linear.bias)
    mixture = gate * (seen["s"].softmax(-1) + 1e-5)
    for row, ids in enumerate(given["input_ids"]):
        for position, token in enumerate(ids):
            mixture[row, :, token] += (1 - gate[row, :, 0]) * attention[row, :, position]
    return mixture.log()


# ---- the original


@pytest.fixture(scope="module")
def original():
    tokenizer = GPT2TokenizerFast(str(VGLM / "gpt2_tiny_tok/vocab.json"), str(VGLM / "gpt2_tiny_tok/merges.txt"))
    config = GPT2Config(
        vocab_size=300, n_positions=128, n_embd=64, n_layer=2, n_head=4, bos_token_id=299, eos_token_id=299
    )
    state = load_file(VGLM / "self_copy_model.safetensors")
    return released.build_released(state, tokenizer, config, "nlg", pointer=True)


def golden_inputs():
    golden = load_file(VGLM / "self_copy_forward.safetensors")
    given = {k: golden[k].squeeze(1) for k in ("input_ids", "token_type_ids")}
    return golden, given, golden["labels"].squeeze(1)


def test_the_log_distribution_equals_the_original(original):
    golden, given, _ = golden_inputs()
    with torch.no_grad():
        logits = original[0](**given).logits
    torch.testing.assert_close(logits, golden["log_dist"].squeeze(1), atol=2e-5, rtol=1e-5)


def test_the_loss_equals_the_original(original):
    golden, given, labels = golden_inputs()
    with torch.no_grad():
        loss = cross_entropy(original[0], given | dict(labels=labels.masked_fill(labels == -1, -100)))
    torch.testing.assert_close(loss, golden["loss"], atol=1e-5, rtol=1e-5)


def test_a_converted_original_keeps_its_pointer(original, tmp_path):
    _, given, _ = golden_inputs()
    checkpoint.save_checkpoint(*original, tmp_path)
    again, _ = checkpoint.load_checkpoint(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**given).logits, original[0](**given).logits)


# ---- the arithmetic


def test_logits_are_the_formula_for_every_family_and_mode(case):
    model, tokenizer = case
    given = batch(tokenizer)
    with torch.no_grad():
        logits, expected = model(**without(given, "labels")).logits, by_the_formula(model, given)
    possible = logits > float("-inf")
    seen = possible & (given["attention_mask"] == 1).unsqueeze(-1)
    assert possible.float().mean() > 0.99
    torch.testing.assert_close(logits[seen], expected[seen], atol=1e-4, rtol=1e-4)


def test_the_loss_is_the_negative_log_likelihood_of_the_mixture(case, monkeypatch):
    model, tokenizer = case
    given = batch(tokenizer)
    labels = given["labels"][:, 1:]
    # The logits have no foreign columns, which the loss leaves out; the next test has them.
    monkeypatch.setattr(model.info, "mask_other_tasks", False)
    with torch.no_grad():
        loss, logits = cross_entropy(model, given), by_the_formula(model, given)
    nll = -logits[:, :-1].gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)[labels != -100].mean()
    torch.testing.assert_close(loss, nll, atol=1e-4, rtol=1e-4)


def test_the_loss_of_a_mixed_batch_is_that_of_its_rows(case):
    model, tokenizer = case
    given = batch(tokenizer)
    with torch.no_grad():
        together = cross_entropy(model, given, 1)
        rows = [{k: v[row : row + 1] for k, v in given.items()} for row in range(5)]
        alone = sum(cross_entropy(model, row, 1) for row in rows)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_gate_and_what_attention_depends_on(case):
    model, tokenizer = case
    given = batch(tokenizer)
    model.zero_grad()
    cross_entropy(model, given).backward()
    grads = {n: p.grad.clone() for n, p in trainable(model).items() if p.grad is not None}
    model.zero_grad()
    weight, bias = (grads[f"added.pointer.p_gen_linear.{kind}"] for kind in ("weight", "bias"))
    assert weight.abs().sum() > 0 and bias.abs() > 0
    assert all(torch.isfinite(g).all() for g in grads.values())
    if model.info.mode == "adapter":
        assert set(grads) == set(trainable(model))
    # Blocks recomputed in the backward pass give the same.
    model.train()
    model.gradient_checkpointing()
    dropout = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    kept = [m.p for m in dropout]
    for m in dropout:
        m.p = 0.0
    cross_entropy(model, given).backward()
    for name, grad in grads.items():
        torch.testing.assert_close(trainable(model)[name].grad, grad, atol=1e-5, rtol=1e-4)
    assert model.pointer.weights is None and model.pointer.ids is None
    for m, p in zip(dropout, kept):
        m.p = p
    model.gradient_checkpointing_disable()
    model.zero_grad()
    model.eval()


def test_a_step_of_training_lowers_the_loss_and_moves_the_gate():
    model, tokenizer = pointed()
    given, gate = batch(tokenizer), model.added["pointer"].p_gen_linear.weight.clone()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2)
    before = float(cross_entropy(model, given).detach())
    for _ in range(5):
        cross_entropy(model, given).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(gate, model.added["pointer"].p_gen_linear.weight)
    assert float(cross_entropy(model, given).detach()) < before - 0.1


# ---- decoding


def prompts(tokenizer, model, count=5):
    g = torch.Generator().manual_seed(3)
    made = []
    for i in range(count):
        task = model.info.tasks[i % len(model.info.tasks)]
        ids = torch.randint(20, 60, (3 + 2 * i,), generator=g).tolist()
        eos = tokenizer.convert_tokens_to_ids(get_task(task).eos)
        types = [tokenizer.convert_tokens_to_ids(get_task(task).bos)] * len(ids)
        made.append(Prompt(ids, types, model.task_id(task), eos))
    return made


def greedy_by_hand(model, tokenizer, prompt, length):
    """The whole prefix is recomputed for every token, without a cache."""
    ids, types = list(prompt.ids), list(prompt.types)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {prompt.eos_id}
    for step in range(length):
        given = dict(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]),
                     task_ids=torch.tensor([prompt.task_id]))  # fmt: skip
        with torch.no_grad():
            scores = model(**given).logits[0, -1]
        scores[sorted(special)] = float("-inf")
        if step == 0:
            scores[prompt.eos_id] = float("-inf")
        chosen = int(scores.argmax())
        if chosen == prompt.eos_id:
            break
        ids.append(chosen)
        types.append(types[-1])
    return ids[len(prompt.ids) :]


def test_cached_and_batched_decoding_equals_recomputing_every_prefix(case):
    model, tokenizer = case
    given = prompts(tokenizer, model)
    ours = decode(model, tokenizer, given, Decoding(max_length=12))
    assert ours == [greedy_by_hand(model, tokenizer, p, 12) for p in given]


@pytest.mark.parametrize("beams", [1, 3])
def test_batched_decoding_equals_one_by_one(case, beams):
    model, tokenizer = case
    given = prompts(tokenizer, model)
    together = decode(model, tokenizer, given, Decoding(max_length=8, num_beams=beams))
    alone = decode(model, tokenizer, given, Decoding(max_length=8, num_beams=beams, batch_size=1))
    assert together == alone


def test_beams_with_a_cache_equal_beams_without(case):
    model, tokenizer = case
    given = dict(input_ids=torch.tensor([[30, 31, 32, 31], [40, 41, 40, 42]]), task_ids=torch.tensor([0, 1]),
                 num_beams=3, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    with torch.no_grad():
        assert torch.equal(model.generate(**given), model.generate(**given, use_cache=False))


def test_copying_shows_in_what_is_decoded(case):
    model, tokenizer = case
    given = prompts(tokenizer, model)
    kept = model.added["pointer"].p_gen_linear.bias.detach().clone()
    try:
        model.added["pointer"].p_gen_linear.bias.data.fill_(-30.0)
        outputs = decode(model, tokenizer, given, Decoding(max_length=6))
        assert all(set(out) <= set(p.ids) for out, p in zip(outputs, given))
    finally:
        model.added["pointer"].p_gen_linear.bias.data.copy_(kept)


def test_a_window_that_slides_over_the_cache_keeps_tokens_and_attention_in_step():
    _, tokenizer = backbones.load_backbone("tiny-llama")
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                           num_attention_heads=4, num_key_value_heads=2, sliding_window=6,
                           max_position_embeddings=128)  # fmt: skip
    model = attach(MistralForCausalLM(config), tokenizer, MARKERS, TASKS)
    self_copy.add(model.eval()).added["pointer"].p_gen_linear.bias.data.fill_(-1.0)
    given = prompts(tokenizer, model)
    ours = decode(model, tokenizer, given, Decoding(max_length=12, batch_size=1))
    assert ours == [greedy_by_hand(model, tokenizer, p, 12) for p in given]


def test_a_cache_without_its_tokens_is_an_error(case):
    model, tokenizer = case
    given = without(batch(tokenizer), "labels", "attention_mask")
    with torch.no_grad():
        past = model(**given, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="prefix_ids"):
            model(**given, past_key_values=past)
    with pytest.raises(ValueError, match="what to copy"):
        model(inputs_embeds=torch.zeros(1, 3, 64), task_ids=torch.tensor([0]))


def test_attention_stays_eager_whatever_is_asked_for(case):
    model, _ = case
    for dtype in (torch.float32, torch.bfloat16):
        devices.prepare_for_device(model, torch.device("cpu"), dtype)
        assert model.config._attn_implementation == "eager"
    assert "task_ids" in inspect.signature(model.forward).parameters


# ---- files


@pytest.mark.parametrize("name, mode", KINDS, ids=["-".join(k) for k in KINDS])
def test_a_directory_loads_and_decodes_with_nothing_typed(name, mode, tmp_path):
    model, tokenizer = pointed(name, mode)
    given = prompts(tokenizer, model)
    ours = decode(model, tokenizer, given, Decoding(max_length=8))
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    keys = set(load_file(tmp_path / ("model.safetensors" if mode == "full" else checkpoint.ADAPTER_WEIGHTS)))
    assert {k for k in keys if "p_gen" in k} == {"p_gen_linear.weight", "p_gen_linear.bias"}
    again, words = checkpoint.load_checkpoint(tmp_path)
    assert again.info == model.info and again.info.self_copy
    assert decode(again, words, given, Decoding(max_length=8)) == ours
    checked = batch(tokenizer)
    with torch.no_grad():
        assert torch.equal(cross_entropy(again, checked), cross_entropy(model, checked))
        model.added["pointer"].p_gen_linear.weight.zero_()
        checkpoint.load_weights(model, tmp_path)
        assert torch.equal(cross_entropy(again, checked), cross_entropy(model, checked))
    # The backbone is still verified to be the same.
    if mode == "adapter":
        assert again.backbone_fingerprint == backbones.load_backbone(name)[0].backbone_fingerprint


def test_a_gate_missing_from_the_file_is_one_clear_error(tmp_path):
    model, tokenizer = pointed()
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    config = json.loads((tmp_path / checkpoint.CONFIG).read_text())
    (tmp_path / checkpoint.CONFIG).write_text(json.dumps(config | {"self_copy": False}))
    with pytest.raises(UserError, match=r"2 not expected \(first p_gen_linear.bias"):
        checkpoint.load_checkpoint(tmp_path)


def test_a_checkpoint_without_a_pointer_does_not_pretend(tmp_path):
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    attach(model, tokenizer, MARKERS, TASKS)
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    assert not checkpoint.load_checkpoint(tmp_path)[0].info.self_copy
    with pytest.raises(UserError, match="trained without it"):
        checkpoint.load_checkpoint(tmp_path, pointer=True)


def test_the_gate_is_counted_and_named():
    model, _ = pointed()
    assert count_parameters(model)["self_copy"] == 65
    assert "self-copy gate 65" in parameter_summary(model)
    full, _ = pointed(mode="full")
    only_tables(full)
    assert full.added["pointer"].p_gen_linear.weight.requires_grad and "self-copy gate 65" in parameter_summary(full)


def test_it_decodes_in_half_precision(case):
    model, tokenizer = pointed()
    given = prompts(tokenizer, model)
    model.requires_grad_(False)
    halve_frozen(model, torch.bfloat16)
    devices.prepare_for_device(model, torch.device("cpu"), torch.bfloat16)
    outputs = decode(model, tokenizer, given, Decoding(max_length=6), dtype=torch.bfloat16)
    assert all(1 <= len(out) <= 6 for out in outputs)


def test_a_family_without_attention_weights_is_one_clear_error(monkeypatch):
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    attach(model, tokenizer, MARKERS, TASKS)
    monkeypatch.setitem(family._BACKBONES, "gpt2", family.Backbone("Blind", ("gpt2",), None, None, None))
    with pytest.raises(UserError, match="Blind exposes no attention weights"):
        self_copy.add(model)
