"""The terms that LwF and DER++ add to a batch's loss, against plain computations from scores of whole sequences."""

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from lifelong_models import ANS, PAD, model, random_rows, tensors
from versatile.lifelong import stored_logits
from versatile.lifelong.batches import LifelongBatches
from versatile.lifelong.losses import Objective, WeightedLoss
from versatile.lifelong.previous import PreviousModelLoss, copy_model
from versatile.lifelong.stored_logits import RowWithLogits, StoredLogitsLoss


@pytest.fixture
def student():
    return model(tensors("model_student304")).eval()


def moved(of, scale=0.1):
    """A copy with different weights."""
    other = copy_model(of)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p) * scale)
    return other


def batches_of(rows, objective, cap=99, **options):
    return LifelongBatches(rows, objective, PAD, 64, 1e9, cap, shuffle=False, **options)


def label_scores(of, row):
    """(scores [labels, vocabulary], labels) of one row, in float64."""
    ids = torch.tensor([[*row.cqa, row.last]])
    with torch.no_grad():
        scores = of(input_ids=ids).logits[0, row.prompt_length - 1 : -1].double().numpy()
    return scores, [*row.ids[row.prompt_length :].tolist(), row.last]


def softmax(scores):
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def cross_entropies(of, rows):
    """-log p of every label of some rows."""
    pairs = [label_scores(of, row) for row in rows]
    return np.array([-np.log(softmax(s)[i, label]) for s, labels in pairs for i, label in enumerate(labels)])


# --- LwF --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight, temperature", [(1.0, 2.0), (0.3, 1.0), (2.0, 5.0)])
def test_lwf_is_the_cross_entropy_of_the_label_and_of_the_softened_answer_of_the_model_before(
    weight, temperature, student
):
    before, rows = moved(student), random_rows(5)
    loss = WeightedLoss(None, [PreviousModelLoss(before, weight, temperature)])
    found = loss(student, batches_of(rows, Objective(None, {ANS: 5})).batch(0, 0)[0]).item()
    old_terms = []
    for row in rows:
        y, answer = label_scores(before, row)[0], label_scores(student, row)[0]
        softened = softmax(y) ** (1 / temperature)
        softened /= softened.sum(-1, keepdims=True)
        ours = softmax(answer) ** (1 / temperature)
        ours /= ours.sum(-1, keepdims=True)
        old_terms += [*(-(softened * np.log(ours)).sum(-1))]
    assert found == pytest.approx(cross_entropies(student, rows).mean() + weight * np.mean(old_terms), rel=1e-4)


def test_lwf_in_parts_adds_up_and_has_no_slope_where_the_model_has_not_moved(student):
    rows = random_rows(6)
    loss = WeightedLoss(None, [PreviousModelLoss(copy_model(student), 1.0, 2.0)])
    plain, made = WeightedLoss(), batches_of(rows, Objective(None))
    whole = loss(student, made.batch(0, 0)[0]).item()
    assert sum(loss(student, part).item() for part in made.split_batch(0, 0, 3)[0]) == pytest.approx(whole, rel=1e-5)
    slopes = []
    for objective in (loss, plain):
        student.zero_grad()
        objective(student, made.batch(0, 0)[0]).backward()
        slopes.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=1e-4)


def test_a_model_that_was_copied_stays_and_shares_what_is_frozen(student):
    for name, p in student.named_parameters():
        p.requires_grad_("wte" not in name)
    before = copy_model(student)
    old = {name: p.clone() for name, p in before.named_parameters()}
    with torch.no_grad():
        for p in student.parameters():
            if p.requires_grad:
                p.add_(1.0)
    for name, p in before.named_parameters():
        assert torch.equal(p, old[name]) and not p.requires_grad
        assert (p.data_ptr() == student.get_parameter(name).data_ptr()) == ("wte" in name)


# --- DER++ ------------------------------------------------------------------------------------------------


def scored(rows, of, k):
    """`RowWithLogits`s with the k highest scores of a model."""
    made = []
    for row in rows:
        scores = label_scores(of, row)[0]
        ids = np.argsort(-scores, axis=1)[:, :k]
        made.append(RowWithLogits.of(row, ids.astype(np.int32), np.take_along_axis(scores, ids, 1).astype(np.float32)))
    return made


@pytest.mark.parametrize("alpha, beta, k", [(0.5, 1.0, 3), (0.1, 0.5, 300), (2.0, 0.0, 1)])
def test_derpp_is_the_sum_of_its_three_means(alpha, beta, k, student):
    own, first, second = random_rows(4), random_rows(3, 5, extra=range(3)), random_rows(5, 6, extra=range(5))
    before = moved(student)
    companions = [replace(row, use_logits=True) for row in scored(first, before, k)] + scored(second, before, k)
    made = batches_of(own, Objective(None, {ANS: 5}, replay_weight=beta), companions=lambda *at: companions)
    loss = WeightedLoss(None, [StoredLogitsLoss(alpha)])
    squares = []
    for row in first:
        old, new = label_scores(before, row)[0], label_scores(student, row)[0]
        ids = np.argsort(-old, axis=1)[:, :k]
        squares += [*((np.take_along_axis(old, ids, 1) - np.take_along_axis(new, ids, 1)) ** 2).mean(1)]
    expected = cross_entropies(student, own).mean() + beta * cross_entropies(student, second).mean()
    expected += alpha * np.mean(squares)
    assert loss(student, made.batch(0, 0)[0]).item() == pytest.approx(expected, rel=1e-4)
    parts = made.split_batch(0, 0, 4)[0]
    assert len(parts) == 4 and sum(loss(student, p).item() for p in parts) == pytest.approx(expected, rel=1e-4)


def test_scores_are_stored_of_the_samples_chosen_and_read_back(student, tmp_path):
    rows = random_rows(9)
    sequence = Namespace(
        model=student.train(), dtype=torch.float32,
        encode=lambda task, indices: [rows[i] for i in indices],
        make_batches=lambda rows, objective, **options: batches_of(rows, objective, 2, weighted=False),
    )  # fmt: skip
    chosen = [1, 4, 5, 8]
    found = stored_logits.top_logits(sequence, "t", chosen, 4)
    assert student.training
    student.eval()
    for i, (ids, scores) in zip(chosen, found):
        full = label_scores(student, rows[i])[0]
        np.testing.assert_allclose(np.take_along_axis(full, ids, 1), scores, atol=1e-4)
        np.testing.assert_allclose(scores, -np.sort(-full, axis=1)[:, :4], atol=1e-4)
    kept = {"t": dict(zip(chosen, found)), "gone": {}}
    state = dict(kept={"t": chosen, "gone": []}, passed=9, scores=stored_logits.pack_logits(kept))
    torch.save(state, tmp_path / "memory.pt")
    read = stored_logits.read_memory_with_logits(tmp_path / "memory.pt", {"t": 9, "gone": 3})
    again = stored_logits.unpack_logits(read["scores"])
    assert again.keys() == kept.keys() and [*again["t"]] == chosen
    for i in chosen:
        assert all(np.array_equal(a, b) for a, b in zip(again["t"][i], kept["t"][i]))
    with pytest.raises(ValueError, match="samples kept of t"):
        stored_logits.read_memory_with_logits(tmp_path / "memory.pt", {"t": 8, "gone": 3})
