"""GLUE's metrics: the published numbers, and their values where they are undefined."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.data import glue
from versatile.utils import glue_metrics as m
from versatile.utils.errors import UserError

from tests.conftest import GOLDEN

PUBLISHED = json.loads((GOLDEN / "hyperformer" / "metrics.json").read_text())


def test_scores_of_generated_classes_are_the_published_ones():
    case = PUBLISHED["classification"]
    pair = case["predictions"], case["targets"]
    assert 100 * m.accuracy(*pair) == pytest.approx(case["accuracy"]["acc"])
    assert 100 * m.f1_with_invalid(*pair) == pytest.approx(case["f1_with_invalid"]["f1"])
    assert 100 * m.matthews(*pair) == pytest.approx(case["mcc"]["mcc"])


def test_correlations_of_generated_scores_are_the_published_ones():
    case = PUBLISHED["regression"]
    pair = case["predictions"], case["targets"]
    assert 100 * m.pearson_with_invalid(*pair) == pytest.approx(case["pearson"]["pearson_corrcoef"])
    assert 100 * m.spearman_with_invalid(*pair) == pytest.approx(case["spearman"]["spearman_corrcoef"])
    case = PUBLISHED["regression_constant"]
    pair = case["predictions"], case["targets"]
    assert m.pearson(*pair) == case["pearson"]["pearson_corrcoef"] == 0
    assert m.spearman(*pair) == case["spearman"]["spearman_corrcoef"] == 0


def test_what_has_no_value_is_zero_and_never_nan():
    assert m.matthews([1, 1, 1], [1, 0, 1]) == 0
    assert m.f1([0, 0], [0, 0]) == 0
    for correlation in (m.pearson, m.spearman):
        assert correlation([1.0], [2.0]) == 0
        assert correlation([1.0, 2.0], [3.0, 3.0]) == 0
        assert correlation([math.nan, 1.0, 2.0], [1.0, 2.0, 3.0]) == 0


def test_a_prediction_that_is_no_number_counts_as_minus_one():
    targets = [1.0, 2.0, 3.0, 4.0]
    for function, plain in ((m.pearson_with_invalid, m.pearson), (m.spearman_with_invalid, m.spearman)):
        for bad in (math.nan, math.inf, -math.inf):
            assert function([1.0, bad, 3.0, 4.5], targets) == plain([1.0, -1.0, 3.0, 4.5], targets)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 4), st.integers(0, 1)), min_size=1, max_size=30))
def test_f1_with_invalid_is_that_of_precision_and_recall_with_every_invalid_answer_wrong(pairs):
    predictions, targets = map(list, zip(*pairs))
    hits = sum(p == t == 1 for p, t in pairs)
    wrong_ones = sum(t == 0 and p != 0 for p, t in pairs)
    missed = sum(t == 1 and p != 1 for p, t in pairs)
    expected = 2 * hits / (2 * hits + wrong_ones + missed) if hits else 0
    assert m.f1_with_invalid(predictions, targets) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30))
def test_matthews_is_the_correlation_of_the_two_binary_columns(pairs):
    one, other = np.array(pairs).T
    expected = 0 if np.ptp(one) == 0 or np.ptp(other) == 0 else np.corrcoef(one, other)[0, 1]
    assert m.matthews(one, other) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "task, predictions, labels, expected",
    [
        ("cola", ["1", "0", "1"], ["1", "0", "0"], {"matthews": 0.5}),
        ("cola", [1, 0, 1], ["1", "0", "0"], {"matthews": 0.5}),
        ("mnli", ["neutral", "entailment"], [2, 0], {"accuracy": 0.5}),
        ("mnli-mm", np.array([0, 1, 2]), ["contradiction", "entailment", "neutral"], {"accuracy": 1.0}),
        ("rte", ["entailment"], ["not_entailment"], {"accuracy": 0.0}),
        ("mrpc", ["1", "0", "1"], ["1", "0", "0"], {"accuracy": 2 / 3, "f1": 2 / 3}),
        ("qqp", [1, 1], [1, 0], {"accuracy": 0.5, "f1": 2 / 3}),
        ("sts-b", [1, 2, 3], [2.0, 4.0, 6.0], {"pearson": 1.0, "spearman": 1.0}),
        ("ax", ["neutral", "entailment"], ["neutral", "entailment"], {"matthews": 1.0}),
    ],
)
def test_every_task_has_glues_own_metrics_from_0_to_1(task, predictions, labels, expected):
    assert glue.score(task, predictions, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: glue.score("rte", ["maybe"], ["entailment"]), "'maybe'.* is not a label of rte"),
        (lambda: glue.score("rte", [2], ["entailment"]), "2 .*is not a label of rte"),
        (lambda: glue.score("rte", [], []), "nothing to score"),
        (lambda: glue.score("sts-b", [1.0], [1.0, 2.0]), "1 predictions, but 2 targets"),
        (lambda: glue.score("sst9", ["1"], ["1"]), "unknown task 'sst9'"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, says):
    with pytest.raises(UserError, match=says):
        call()
