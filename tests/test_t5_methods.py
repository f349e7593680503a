"""The general adaptation methods on train_t5.py's model.

    python -m pytest tests/test_t5_methods.py
"""

import pytest
import quick
import torch
from test_train_t5 import config, read
from versatile.adapters import t5
from versatile.adapters.methods.registry import get_method
from versatile.adapters.trained import halve_frozen
from versatile.utils.errors import UserError

import train_t5

SETTINGS = {
    "bottleneck": dict(adapter_bottleneck=6),
    "lora": dict(lora_rank=3),
    "ia3": {},
    "prefix": dict(prefix_length=4),
    "prompt": dict(prompt_length=4),
}
TASKS = ["cola", "mrpc", "rte"]


def adapted(method, noise=0.3):
    model, tokenizer = t5.load_t5_of_name("tiny-t5")
    torch.manual_seed(0)
    t5.attach(model, TASKS, t5.T5Settings(method=method, method_settings=SETTINGS[method]))
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(noise * torch.randn_like(p))
    return model.eval(), tokenizer


def batch(rows=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 400, (rows, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::2, -3:] = 0
    labels = torch.randint(3, 400, (rows, 4), generator=generator)
    return dict(input_ids=ids, attention_mask=mask, labels=labels, task_ids=torch.arange(rows) % len(TASKS))


def test_every_method_of_a_task_alone_is_among_them():
    assert set(SETTINGS) == set(t5.PORT_METHODS)
    assert all(get_method(name).load_class().shared is None for name in SETTINGS)


@pytest.mark.parametrize("method", SETTINGS)
def test_a_mixed_batch_equals_its_rows_and_beams_each_row_alone(method):
    model, _ = adapted(method)
    given = batch()
    with torch.no_grad():
        together = model(**given).logits
        alone = [model(**{k: v[i : i + 1] for k, v in given.items()}).logits for i in range(len(together))]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
        assert (model(**given | dict(task_ids=given["task_ids"].flip(0))).logits - together).abs().max() > 1e-3
        del given["labels"]
        how = dict(max_new_tokens=5, num_beams=3, do_sample=False, eos_token_id=None)
        outputs = model.generate(**given, **how)
        for i, output in enumerate(outputs):
            assert torch.equal(model.generate(**{k: v[i : i + 1] for k, v in given.items()}, **how)[0], output)


@pytest.mark.parametrize("method", SETTINGS)
def test_only_what_is_added_is_trained_and_the_file_gives_it_back(method, tmp_path):
    model, tokenizer = adapted(method)
    assert all(name.startswith("added.") == p.requires_grad for name, p in model.named_parameters())
    model(**batch()).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    t5.save_t5(model, tokenizer, tmp_path)
    again, _ = t5.load_t5(tmp_path)
    assert again.settings == model.settings and again.tasks == TASKS
    with torch.no_grad():
        assert torch.equal(again(**batch()).logits, model(**batch()).logits)
    assert t5.parameter_summary(model).startswith("trained: adapters ")


@pytest.mark.parametrize("method", quick.every(3, [*SETTINGS, "adapters", "hyperformer", "hyperformer++", "finetune"]))
def test_frozen_matrices_kept_in_half_give_autocasts_results_bit_for_bit(method):
    found = []
    for halve in (False, True):
        model, _ = t5.load_t5_of_name("tiny-t5")
        torch.manual_seed(0)
        size = {} if method in SETTINGS else dict(reduction_factor=8)
        t5.attach(model, TASKS, t5.T5Settings(method=method, method_settings=SETTINGS.get(method, {}), **size))
        counts = t5.count_parameters(model.eval())
        if halve:
            halve_frozen(model, torch.bfloat16)
            assert t5.count_parameters(model) == counts
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch()).loss
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        halved = {p.dtype for p in model.parameters()} == {torch.float32, torch.bfloat16}
        model.requires_grad_(False)
        if halve:
            halve_frozen(model, torch.bfloat16)
            assert model.lm_head.weight.dtype == torch.bfloat16 and model.shared.weight.dtype == torch.float32
        given = {name: value for name, value in batch().items() if name != "labels"}
        with torch.autocast("cpu", torch.bfloat16):
            found.append((loss, gradients, model.generate(**given, max_new_tokens=5, do_sample=False, num_beams=2)))
    # A T5 that is trained is saved, and stays as fine as it is.
    assert halved == (method != "finetune")
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][2], found[1][2])
    # (IA)3 scales what enters a feed-forward's last map, which T5 gives the precision of that map's weight.
    close = 0.01 if method == "ia3" else 0
    assert found[0][1]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close * float(a.abs().max()))


def test_a_t5_that_is_saved_beside_its_adapters_stays_whole():
    model, _ = adapted("lora")
    model.has_stored_backbone = True
    halve_frozen(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_its_tables_are_tied_as_those_of_any_t5():
    model, _ = adapted("lora")
    model.tie_weights()
    assert model.get_output_embeddings().weight is model.shared.weight


def test_what_does_not_fit_is_refused(tmp_path):
    model, tokenizer = adapted("lora", noise=0)
    t5.save_t5(model, tokenizer, tmp_path)
    with pytest.raises(UserError, match="the adapter for 'cola' changes nothing"):
        t5.load_t5(tmp_path)
    model, _ = t5.load_t5_of_name("tiny-t5")
    with pytest.raises(UserError, match="'lora_rank' is not a setting of the method ia3"):
        t5.attach(model, TASKS, t5.T5Settings(method="ia3", method_settings=dict(lora_rank=3)))


def test_train_t5_trains_and_scores_by_method(tmp_path):
    # The config asks for adapters of its own: typed flags take precedence.
    train_t5.main([str(config(tmp_path)), "--method", "lora", "--lora_rank", "2", "--max_steps", "4"])
    tasks, settings = t5.read_settings(tmp_path / "run")
    assert tasks == ["rte", "mrpc"] and settings.method == "lora" and settings.method_settings["lora_rank"] == 2
    found = read(tmp_path / "run" / "metrics.json")
    assert found["method"] == "lora" and found["ledger"]["adapters"] > 0


@pytest.mark.parametrize(
    "typed, words",
    [
        (["--method", "loar"], "--method"),
        (["--method", "ia3", "--lora_rank", "2"], "--lora_rank: has no effect with the method ia3"),
        (["--method", "lora", "--lora_rank", "0"], "lora_rank: '0': expected a whole number above 0"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_is_loaded(typed, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_t5.main([str(config(tmp_path)), *typed])
    assert stopped.value.code == 2 and words in capsys.readouterr().err and not (tmp_path / "run").exists()
