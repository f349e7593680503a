"""lifelong/gem.py: the original's projections, the optimality conditions of the program; GEM's memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelong_models import same, tensors
from versatile.lifelong.gem import EPSILON, Projection, project
from versatile.lifelong.memory import NextTaskMemory, draw_indices


@pytest.mark.parametrize("case", range(4))
def test_projection_is_the_originals(case):
    found = tensors("gem_project2cone2")
    gradient, memories = found[f"c{case}_gradient"].flatten(), found[f"c{case}_memories"].T
    projected = project(gradient, memories, float(found[f"c{case}_margin"]))
    same(projected, found[f"c{case}_projected"].flatten(), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([0.0, 0.5]))
def test_projection_meets_the_conditions_of_its_program(seed, count, margin):
    """Karush, Kuhn and Tucker: duals within bounds, slope within bounds, one of the two at its bound."""
    torch.manual_seed(seed)
    gradient, memories = torch.randn(40).double(), torch.randn(count, 40).double()
    moved = project(gradient, memories, margin) - gradient
    duals = torch.linalg.lstsq(memories.T, moved[:, None]).solution.flatten()
    slope = memories @ gradient + (memories @ memories.T + EPSILON * torch.eye(count).double()) @ duals
    assert (duals >= margin - 1e-6).all() and (slope >= -1e-6).all()
    assert ((duals - margin).abs().minimum(slope.abs()) < 1e-5).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_a_projected_gradient_harms_no_task(seed, count):
    torch.manual_seed(seed)
    gradient, memories = torch.randn(60), torch.randn(count, 60)
    assert (memories @ project(gradient, memories) > -0.05).all()


def quadratic(p, at):
    return lambda step: [((p - at) ** 2).sum()]


def test_a_step_is_left_alone_unless_it_harms():
    p, q = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    keep = torch.tensor([1.0, 0.0, 0.0])
    projection = Projection([p, q], {"old": quadratic(p, keep)})
    p.grad, q.grad = torch.tensor([-1.0, 1.0, 0.0]), torch.ones(2)
    projection.on_gradients(0)
    assert torch.equal(p.grad, torch.tensor([-1.0, 1.0, 0.0])) and projection.projected == 0
    p.grad = torch.tensor([1.0, 1.0, 0.0])
    projection.on_gradients(1)
    assert projection.projected == 1 and p.grad[0] <= 0.01 and p.grad[1] == 1
    assert torch.equal(q.grad, torch.ones(2))


def test_gradients_of_the_memory_are_sums_of_its_parts_and_do_not_stay():
    p = torch.nn.Parameter(torch.zeros(2))
    parts = lambda step: [(p * torch.tensor([1.0, 0.0])).sum(), (p * torch.tensor([0.0, 1.0])).sum()]  # noqa: E731
    projection = Projection([p], {"old": parts})
    p.grad = torch.tensor([-3.0, 1.0])
    projection.on_gradients(0)
    clipped = torch.full((1, 2), 2**-0.5)
    same(p.grad, project(torch.tensor([-3.0, 1.0]), clipped))
    wider = Projection([p], {"old": parts}, max_norm=9.0)
    p.grad = torch.tensor([-3.0, 1.0])
    wider.on_gradients(0)
    same(p.grad, project(torch.tensor([-3.0, 1.0]), torch.ones(1, 2)))
    state = torch.get_rng_state()
    projection.memories["old"] = lambda step: [(p * torch.rand(2)).sum()]
    projection.on_gradients(1)
    assert torch.equal(state, torch.get_rng_state())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(1, 900), st.floats(0, 1), st.integers(0, 99))
def test_memory_is_drawn_without_replacement_by_the_seed(size, next_size, percentage, seed):
    memory = NextTaskMemory(percentage, seed)
    memory.add("a", size, next_size)
    chosen = memory.kept["a"]
    assert len(set(chosen.tolist())) == len(chosen) == min(size, max(1, int(next_size * percentage)))
    assert chosen.min() >= 0 and chosen.max() < size
    assert np.array_equal(chosen, draw_indices(size, len(chosen), seed, 0))
    again = NextTaskMemory(percentage, seed)
    again.load_state_dict(memory.state_dict())
    memory.add("b", 300, 200), again.add("b", 300, 200)
    assert all(np.array_equal(memory.kept[t], again.kept[t]) for t in ("a", "b"))
