"""Conditional modules: equal to the published ones, and a mixed batch is what its tasks' batches are.

python -m pytest tests/test_conditional.py
"""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from versatile.adapters.methods.conditional import (
    ConditionalBlockDiagonal,
    ConditionalBottleneck,
    ConditionalLayerNorm,
    FiLM,
    TaskConditions,
    block_diagonal,
)

CAMTL = GOLDEN / "camtl"
SIZES = json.loads((CAMTL / "modules.json").read_text())


def golden(name):
    """(the file's tensors, its module's parameters)"""
    held = load_file(CAMTL / f"{name}.safetensors")
    return held, {key.removeprefix("param/"): held.pop(key) for key in list(held) if key.startswith("param/")}


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def conditions(tasks, rows):
    held = TaskConditions()
    held.set(tasks, torch.as_tensor(rows))
    return held


@pytest.mark.parametrize("layer_norm", [False, True])
def test_film_equals_the_original(layer_norm):
    held, state = golden(f"film_ln{int(layer_norm)}")
    film = FiLM(6, 5, layer_norm)
    film.load_state_dict(state)
    close(film(held["x_cond"], held["x_to_film"]), held["out"])


@pytest.mark.parametrize("name", ["cbda_h48_L16", "cbda_h32_L8", "cbda_h24_L24"])
def test_block_diagonal_attention_equals_the_original(name):
    held, state = golden(name)
    sizes = SIZES[name]
    cbda = ConditionalBlockDiagonal(sizes["hidden"], sizes["max_seq_length"], sizes["blocks"])
    cbda.load_state_dict(state)
    assert cbda.gb_weights.out_features == 2 * sizes["cols"]
    close(cbda(held["x_cond"], held["x_to_film"]), held["out"])


def test_conditional_layer_norm_equals_the_original():
    held, state = golden("conditional_layer_norm")
    norm = ConditionalLayerNorm(12, 6, conditions(held["condition"], range(4)))
    assert norm.eps == 1e-12
    norm.load_state_dict(state)
    close(norm(held["x"]), held["out"])
    # One condition per task instead of one per row gives the same.
    tasks = torch.stack([held["condition"][held["task_id"].tolist().index(t)] for t in range(3)])
    norm.conditions.set(tasks, held["task_id"])
    close(norm(held["x"]), held["out"])


def test_conditional_bottleneck_equals_the_original():
    held, state = golden("conditional_bottleneck")
    bottleneck = ConditionalBottleneck(12, 12)
    bottleneck.load_state_dict(state)
    close(bottleneck(held["x_cond"], held["hidden"]), held["out"])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_block_diagonal_is_torchs_block_diag_of_the_row_chunks(length, columns, more):
    columns = min(columns, length)
    rows = torch.randn(more, length, columns)
    found = block_diagonal(rows)
    assert found.shape == (more, length, length)
    for each, matrix in zip(found, rows):
        assert torch.equal(each, torch.block_diag(*matrix.split(columns))[:, :length])


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 24), st.integers(1, 24), st.integers(1, 24))
def test_what_lies_beyond_a_shorter_sequence_does_not_count(length, columns, shorter):
    columns, shorter = min(columns, length), min(shorter, length)
    rows = torch.randn(length, columns)
    assert torch.equal(block_diagonal(rows[:shorter]), block_diagonal(rows)[:shorter, :shorter])


@pytest.mark.parametrize("length, hidden", [(10, 40), (8, 48), (6, 24), (16, 16)])
def test_attention_starts_from_the_shift_alone(length, hidden):
    """R starts at zero, the shift of its FiLM does not: a block holds β in every row."""
    torch.manual_seed(0)
    cbda = ConditionalBlockDiagonal(hidden, length, hidden // length)
    condition = torch.randn(2, hidden)
    columns = cbda.gb_weights.out_features // 2
    shift = cbda.gb_weights(condition)[:, columns:]
    found = cbda(condition, torch.zeros(length, columns))
    for i in range(length):
        start = i // columns * columns
        width = min(columns, length - start)
        expected = F.pad(shift[:, :width], (start, length - start - width))
        close(found[:, i], expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 2**16))
def test_a_mixed_batch_equals_a_loop_over_its_rows(rows, seed):
    torch.manual_seed(seed)
    tasks, x = torch.randn(5, 6), torch.randn(len(rows), 3, 12)
    norm, bottleneck, film = ConditionalLayerNorm(12, 6, TaskConditions()), ConditionalBottleneck(12, 6), FiLM(6, 12)
    modules = {
        "norm": lambda part, held: norm(part),
        "bottleneck": lambda part, held: bottleneck(held.tasks, part, held.rows),
        "film": lambda part, held: film(held.tasks, part, held.rows),
    }
    for name, run in modules.items():
        norm.conditions = held = conditions(tasks, rows)
        mixed = run(x, held)
        for i, task in enumerate(rows):
            norm.conditions = held = conditions(tasks[task : task + 1], [0])
            torch.testing.assert_close(mixed[i : i + 1], run(x[i : i + 1], held), msg=name, atol=1e-5, rtol=1e-5)


def test_a_task_that_is_not_in_the_batch_gets_no_gradient():
    torch.manual_seed(0)
    tasks = torch.randn(3, 6, requires_grad=True)
    norm = ConditionalLayerNorm(12, 6, conditions(tasks, [2, 0, 2]))
    (norm(torch.randn(3, 4, 12)) ** 3).sum().backward()
    assert tasks.grad[1].eq(0).all() and tasks.grad[[0, 2]].ne(0).any(-1).all()


def test_a_conditional_norm_starts_from_the_pretrained_one():
    norm = torch.nn.LayerNorm(12, eps=1e-7)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    made = ConditionalLayerNorm.like(norm, 6, conditions(torch.zeros(1, 6), [0, 0]))
    torch.nn.init.zeros_(made.ln_weight_modulation.gb_weights.bias)
    x = torch.randn(2, 3, 12)
    # Without a condition it is the norm it came from.
    close(made(x), norm(x))
    assert made.weight is not norm.weight


def test_a_copy_leaves_the_batch_behind_and_shares_its_conditions():
    held = conditions(torch.randn(2, 6, requires_grad=True) * 2, [0, 1])
    pair = torch.nn.ModuleList(ConditionalLayerNorm(4, 6, held) for _ in range(2))
    copied = copy.deepcopy(pair)
    assert copied[0].conditions is copied[1].conditions is not held
    assert copied[0].conditions.tasks is None
