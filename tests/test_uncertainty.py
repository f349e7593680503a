"""Uncertainty sampling: entropies and choices equal to the original's, and its improvements.

python -m pytest tests/test_uncertainty.py
"""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from versatile.data.pair_batches import equal_share_steps
from versatile.utils import uncertainty

CAMTL = GOLDEN / "camtl"
CASES = json.loads((CAMTL / "mt_uncertainty.json").read_text())
BATCHES = [(case, batch) for case in CASES for batch in case["batches"]]


def regression(tasks):
    """{STS-B's id: MRPC's or None}, {} without STS-B."""
    ids = {name: i for i, name in enumerate(tasks)}
    return {ids["sts-b"]: ids.get("mrpc")} if "sts-b" in ids else {}


@pytest.mark.parametrize("task", ["cola", "mnli", "sts-b", "uniform"])
def test_entropy_equals_the_original(task):
    held = load_file(CAMTL / "entropy.safetensors")
    found = uncertainty.normalized_entropy(held[f"{task}_logits"])
    torch.testing.assert_close(found.double(), held[f"{task}_entropy"].double(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("number", range(len(BATCHES)))
def test_choice_equals_the_original(number):
    case, batch = BATCHES[number]
    entropies, ids = torch.tensor(batch["entropy"]), torch.tensor(batch["task_id"])
    means, largest = uncertainty.task_means(entropies, ids)
    torch.testing.assert_close(means, torch.tensor(batch["entropy_mean"]))
    assert float(largest) == pytest.approx(batch["max_mean"], rel=1e-6)
    borrow = regression(case["tasks"])
    chosen = uncertainty.choose_rows(entropies, ids, case["train_batch_size"], borrow).tolist()
    scores = uncertainty.scores(entropies, ids, borrow)
    # STS-B rows tie exactly with the MRPC rows they borrow from: the scores must agree, not the order of ties.
    theirs = [batch["candidates"].index(item) for item in batch["selected"]]
    torch.testing.assert_close(scores[chosen], scores[theirs])
    tied = scores.unique(return_counts=True)
    if tied[1].max() == 1 or scores[chosen].unique().numel() == len(chosen):
        assert chosen == theirs
    assert [batch["task_id"][i] for i in theirs] == batch["selected_task_id"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "+".join(case["tasks"]))
def test_epoch_length_equals_the_original(case):
    size = case["train_batch_size"]
    steps = equal_share_steps(case["dataset_sizes"], size, case["percent_of_max_data_size"])
    # If also told to sample uniformly, the original divides by the batch size once more.
    assert (steps // size if case["uniform_mt_sampling"] else steps) == case["len_loader"]


def test_percent_is_clipped():
    assert equal_share_steps([3, 2], 1, 7.0) == 6
    assert equal_share_steps([3, 2], 1, -1.0) == 1


def test_sts_b_without_mrpc_gets_the_mean_of_the_others():
    entropies, ids = torch.tensor([0.2, 0.6, 0.0, 0.0, 0.9]), torch.tensor([0, 0, 2, 2, 1])
    found = uncertainty.scores(entropies, ids, {2: None})
    mean = (0.4 + 0.9) / 2
    assert found.tolist() == pytest.approx([0.2 * 0.4 / 0.9, 0.6 * 0.4 / 0.9, *[mean * mean / 0.9] * 2, 0.9])
    # A lender without rows in the batch does not count.
    assert torch.equal(uncertainty.scores(entropies, ids, {2: 3}), found)


def test_sts_b_rows_beyond_mrpcs_keep_zero():
    entropies, ids = torch.tensor([0.5, 0.0, 0.0, 0.0]), torch.tensor([3, 2, 2, 2])
    assert uncertainty.scores(entropies, ids, {2: 3}).tolist() == [0.5, 0.5, 0.0, 0.0]


def test_regressions_alone_are_taken_in_order():
    assert uncertainty.choose_rows(torch.zeros(5), torch.zeros(5, dtype=torch.long), 3, {0: None}).tolist() == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=32)), min_size=1, max_size=20), st.integers(1, 25))
def test_choice_is_the_best_rows_in_order(rows, keep):
    ids, entropies = torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
    chosen = uncertainty.choose_rows(entropies, ids, keep, {2: 3})
    scores = uncertainty.scores(entropies, ids, {2: 3})
    assert len(chosen) == len(set(chosen.tolist())) == min(keep, len(rows))
    assert not scores.isnan().any()
    assert torch.equal(scores[chosen], scores.sort(descending=True).values[: len(chosen)])
    assert torch.equal(entropies, torch.tensor([r[1] for r in rows]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-200, 200, width=32), min_size=2, max_size=6))
def test_entropy_lies_between_none_and_a_uniform_distributions(logits):
    found = uncertainty.normalized_entropy(torch.tensor([logits]))
    uniform = math.log(len(logits)) / (math.log(len(logits)) + 1e-5)
    assert 0 <= float(found) <= uniform + 1e-6


def test_entropy_of_rows_with_fewer_classes_leaves_the_surplus_out():
    logits = torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 3.0], [4.0, 9.0, 9.0]])
    valid = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]).bool()
    found = uncertainty.normalized_entropy(logits, valid)
    expected = [uncertainty.normalized_entropy(logits[i : i + 1, : int(valid[i].sum())])[0] for i in range(3)]
    torch.testing.assert_close(found, torch.stack(expected))
    assert found[2] == 0


class Noisy(torch.nn.Module):
    """Its entropies are random as long as dropout is on."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)

    def forward(self, x):
        logits = self.dropout(self.linear(x)).float()
        return SimpleNamespace(entropies=uncertainty.normalized_entropy(logits))


def test_candidates_are_judged_without_dropout_and_without_gradients():
    torch.manual_seed(0)
    model, batch = Noisy(), dict(x=torch.randn(6, 4), labels=torch.zeros(6))
    first, second = (uncertainty.candidate_entropies(model.train(), batch) for _ in range(2))
    assert torch.equal(first, second)
    assert first.dtype == torch.float32 and not first.requires_grad
    assert model.training and model.dropout.training


def test_the_precision_can_be_told():
    model, batch = Noisy(), dict(x=torch.randn(6, 4))
    exact = uncertainty.normalized_entropy(model.linear(batch["x"]))
    assert torch.equal(uncertainty.candidate_entropies(model, batch, torch.float32), exact)
    half = uncertainty.candidate_entropies(model, batch, torch.bfloat16)
    assert torch.allclose(half, exact, atol=0.05) and not torch.equal(half, exact)


def test_judging_inside_autocast_leaves_the_step_its_gradients():
    """Half-precision copies of weights made without gradients must not be used by the step."""
    model, batch = Noisy(), dict(x=torch.randn(6, 4))
    with torch.autocast("cpu", torch.bfloat16):
        uncertainty.candidate_entropies(model, batch)
        model(**batch).entropies.sum().backward()
    assert model.linear.weight.grad is not None


def test_a_failing_model_is_left_in_its_mode():
    model = Noisy()
    with pytest.raises(RuntimeError):
        uncertainty.candidate_entropies(model, dict(x=torch.randn(2, 5)))
    assert model.training
