"""Dropout on a CPU: the same as PyTorch's, drawn differently.

    python -m pytest tests/test_dropout.py
"""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from versatile.utils.dropout import FEWEST, Dropout, dropout, use_fast_dropout

SHAPE = (7, 501, 33)


def drawn(seed, p=0.1, dtype=torch.float32):
    torch.manual_seed(seed)
    x = torch.ones(SHAPE, dtype=dtype, requires_grad=True)
    return x, dropout(x, p)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_and_the_scale_are_those_asked_for(p, dtype):
    x, y = drawn(0, p, dtype)
    kept = y != 0
    count = y.numel()
    # Five standard deviations of a binomial.
    assert abs(int(kept.sum()) - (1 - p) * count) < 5 * (p * (1 - p) * count) ** 0.5
    torch.testing.assert_close(y[kept].float(), torch.full_like(y[kept].float(), 1 / (1 - p)), rtol=4e-3, atol=0)
    assert y.dtype == dtype
    y.sum().backward()
    # The gradient is dropped where the number was.
    assert torch.equal(x.grad, y.detach())


def test_what_is_dropped_does_not_repeat_along_an_axis():
    """Neighbours, rows and columns are independent: four masks come from one draw."""
    dropped = (drawn(1, 0.5)[1].detach() == 0).float() - 0.5
    flat = dropped.flatten()
    for shift in (1, 2, 3, 4, 33, 501):
        correlation = float((flat[shift:] * flat[:-shift]).mean() / 0.25)
        assert abs(correlation) < 5 / len(flat) ** 0.5, shift


def test_the_seed_decides_and_each_call_draws_anew():
    first, again, other = drawn(3)[1], drawn(3)[1], drawn(4)[1]
    assert torch.equal(first, again) and not torch.equal(first, other)
    x = torch.ones(SHAPE)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.1), first) and not torch.equal(dropout(x, 0.1), first)


def test_a_pass_that_runs_again_draws_the_same():
    y = drawn(5)[1]
    torch.manual_seed(5)
    rerun = torch.ones(SHAPE, requires_grad=True)
    checkpoint(lambda x: dropout(x, 0.1) * x, rerun, use_reentrant=False).sum().backward()
    torch.testing.assert_close(rerun.grad, 2 * y.detach())


def test_gradients_of_gradients_are_dropped_alike():
    torch.manual_seed(0)
    x = torch.randn(SHAPE, requires_grad=True)
    torch.manual_seed(6)
    (gradient,) = torch.autograd.grad((dropout(x, 0.1) ** 3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    mask = drawn(6)[1].detach()
    torch.testing.assert_close(second, 6 * x.detach() * mask**3)


def test_rows_that_are_not_contiguous_keep_their_shape():
    x = torch.randn(90, 80, 3).transpose(0, 2)
    for tensor in (x, x.bfloat16()):
        y = dropout(tensor, 0.25)
        kept = y != 0
        assert y.shape == x.shape and 0.7 < float(kept.float().mean()) < 0.8
        torch.testing.assert_close(y[kept].float(), (tensor[kept].float() / 0.75), rtol=1e-2, atol=1e-2)


def test_without_training_without_a_rate_and_in_small_nothing_but_pytorch_runs():
    x = torch.randn(SHAPE)
    assert dropout(x, 0.1, training=False) is x
    assert torch.equal(dropout(x, 0.0), x) and torch.equal(dropout(x, 1.0), torch.zeros_like(x))
    small = torch.randn(FEWEST - 1)
    for tensor in (small, x.double()):
        torch.manual_seed(0)
        ours = dropout(tensor, 0.3)
        torch.manual_seed(0)
        assert torch.equal(ours, torch.nn.functional.dropout(tensor, 0.3))


def test_a_models_modules_are_changed_where_they_stand():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.2), torch.nn.Dropout2d(0.3))
    kept = model[1]
    use_fast_dropout(model)
    assert model[1] is kept and type(kept) is Dropout and kept.p == 0.2 and type(model[2]) is torch.nn.Dropout2d
    assert kept.eval()(x := torch.ones(SHAPE)) is x
    assert not torch.equal(kept.train()(x), x)


# --- attention


def models():
    """{name: (a tiny model with dropout in its attention, its inputs)}; rows of different lengths."""
    from transformers import AutoModel, BertConfig, GPT2Config, LlamaConfig, T5Config

    shape = dict(vocab_size=50)
    configs = {
        "gpt2": GPT2Config(**shape, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.3, bos_token_id=0,
                           eos_token_id=0),
        "llama": LlamaConfig(**shape, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                             num_key_value_heads=2, attention_dropout=0.3),
        "bert": BertConfig(**shape, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48),
        "t5": T5Config(**shape, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
    }  # fmt: skip
    torch.manual_seed(0)
    ids = torch.randint(1, 50, (3, 20))
    mask = (torch.arange(20) < torch.tensor([20, 13, 7])[:, None]).long()
    for name, config in configs.items():
        more = dict(decoder_input_ids=ids[:, :9]) if name == "t5" else {}
        yield name, AutoModel.from_config(config), dict(input_ids=ids, **more), mask


@pytest.mark.parametrize("masked", [True, False])
def test_attention_equals_transformers_own(masked, monkeypatch):
    """With the rest of the training path, at a rate whose masks keep everything."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from versatile.utils import attention

    calls = []
    monkeypatch.setattr(attention.fast, "dropout", lambda x, p, training: calls.append(p) or x)
    for name, model, inputs, mask in models():
        inputs = inputs | (dict(attention_mask=mask) if masked else {})
        real = mask.bool()[:, : inputs.get("decoder_input_ids", mask).shape[1]] if masked else slice(None)
        model.set_attn_implementation("eager")
        expected = model.eval()(**inputs)[0][real]
        for implementation in (attention.PRODUCTS, "sdpa"):
            model.set_attn_implementation(implementation)
            assert torch.allclose(model.eval()(**inputs)[0][real], expected, atol=1e-5), (name, implementation)
            calls.clear()
            rates = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
            kept = [m.p for m in rates]
            model.train()
            for module in rates:
                module.eval()
            assert torch.allclose(model(**inputs)[0][real], expected, atol=1e-5), (name, implementation)
            assert calls and all(0 < p < 1 for p in calls), (name, implementation)
            assert kept == [m.p for m in rates]
    assert attention.fused is not sdpa_attention_forward
