"""The loss of train_t5.py: smoothed cross-entropy as the original's, summed or averaged."""

import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from versatile.adapters.labels import IGNORE, LabelScores
from versatile.training.objectives import SmoothedCrossEntropy, cross_entropy


def smoothed_loss(logits, labels, smoothing, ignore=IGNORE):
    """(smoothed loss, negative log-likelihood), both sums."""
    labels = labels.masked_fill(labels == ignore, IGNORE)
    output = LabelScores(logits.flatten(0, -2), labels.flatten())
    return SmoothedCrossEntropy(smoothing).losses(output).sum(), cross_entropy.losses(output).sum()


def test_the_sums_are_those_of_the_original():
    golden = load_file(GOLDEN / "hyperformer" / "label_smoothing.safetensors")
    loss, nll = smoothed_loss(golden["logits"], golden["targets"], 0.1, ignore=0)
    torch.testing.assert_close(loss, golden["loss"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll, golden["nll"], rtol=1e-5, atol=1e-5)


def test_the_mean_is_that_of_torch():
    logits, labels = torch.randn(3, 5, 11), torch.randint(11, (3, 5))
    labels[1, 2:] = IGNORE
    loss, nll = smoothed_loss(logits, labels, 0.2)
    count = (labels != IGNORE).sum()
    flat = (logits.reshape(-1, 11), labels.reshape(-1))
    torch.testing.assert_close(loss / count, torch.nn.functional.cross_entropy(*flat, label_smoothing=0.2))
    torch.testing.assert_close(nll / count, torch.nn.functional.cross_entropy(*flat))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 9), st.floats(0, 0.9), st.integers(0, 2**31))
def test_padding_neither_adds_to_the_loss_nor_has_a_gradient(rows, length, size, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, size, generator=generator, requires_grad=True)
    labels = torch.randint(size, (rows, length), generator=generator)
    whole, _ = smoothed_loss(logits, labels, smoothing)
    padded = torch.cat([logits, torch.full((rows, 2, size), 5.0)], 1)
    longer, _ = smoothed_loss(padded, torch.cat([labels, torch.full((rows, 2), IGNORE)], 1), smoothing)
    torch.testing.assert_close(whole, longer)
    nothing, _ = smoothed_loss(logits, torch.full_like(labels, IGNORE), smoothing)
    assert nothing.item() == 0
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert not gradient.any()


def test_without_smoothing_a_sure_and_right_model_has_no_loss():
    logits = torch.full((1, 2, 4), -60.0)
    logits[0, :, 3] = 60.0
    labels = torch.full((1, 2), 3)
    assert float(smoothed_loss(logits, labels, 0)[0]) == pytest.approx(0)
    assert float(smoothed_loss(logits, labels, 0.1)[0]) > 1


def test_half_precision_logits_are_reduced_in_full():
    logits = torch.randn(2, 3, 7).bfloat16()
    labels = torch.randint(7, (2, 3))
    loss, _ = smoothed_loss(logits, labels, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, smoothed_loss(logits.float(), labels, 0.1)[0])
