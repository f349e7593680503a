"""training.optimizers: the update of the originals' AdamW, for parameters that step together, rest, or overflow."""

import copy
import math

import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from versatile.training.optimizers import AdamW


def formula(p, grads, lr, eps, decay, betas=(0.9, 0.999)):
    """A parameter after the steps in the paper's notation, one per gradient."""
    m, v, p = torch.zeros_like(p), torch.zeros_like(p), p.clone()
    for t, grad in enumerate(grads, 1):
        m = betas[0] * m + (1 - betas[0]) * grad
        v = betas[1] * v + (1 - betas[1]) * grad**2
        p = p - lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m / (v.sqrt() + eps)
        p = p - lr * decay * p
    return p


def take(optimizer, **grads):
    for p, grad in grads.values():
        p.grad = grad
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("how", [dict(fused=True), dict(foreach=True), dict(foreach=False)])
def test_updates_are_the_originals(how):
    golden = load_file(GOLDEN / "vglm" / "adamw.safetensors")
    p, q = (torch.nn.Parameter(golden[f"{name}0"].clone()) for name in "pq")
    groups = [dict(params=[p], weight_decay=0.1), dict(params=[q], weight_decay=0.0)]
    optimizer = AdamW(groups, lr=0.01, eps=1e-4, **how)
    for step in range(4):
        take(optimizer, p=(p, golden[f"gp{step}"]), q=(q, golden[f"gq{step}"]))
        for name, ours in (("p", p), ("q", q)):
            torch.testing.assert_close(ours.detach(), golden[f"{name}{step + 1}"], atol=1e-7, rtol=1e-6)
    assert [(g["lr"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.01, 1e-4, 0.1),
                                                                                        (0.01, 1e-4, 0.0)]  # fmt: skip


def test_the_first_step_is_as_far_as_epsilon_lets_it():
    """Where gradients are about as small as epsilon, torch's own AdamW would go 16 times as far."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    take(AdamW([p], lr=1.0, eps=1e-4, weight_decay=0), p=(p, torch.full((1,), 1e-4, dtype=torch.float64)))
    assert p.item() == pytest.approx(-1 / (1 + 1e-4 / (1e-4 * math.sqrt(0.001))), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=12), st.integers(0, 99), st.sampled_from([0.0, 0.3]))
def test_a_parameters_steps_are_counted_by_itself(present, seed, decay):
    """A parameter that rests, without a gradient, keeps its value, its moments and its count."""
    torch.manual_seed(seed)
    made = [torch.nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(3)]
    start, grads = [p.detach().clone() for p in made], [[], [], []]
    optimizer = AdamW(made, lr=0.05, eps=1e-2, weight_decay=decay, fused=True)
    for step in present:
        for i in step:
            made[i].grad = torch.randn(3, dtype=torch.float64)
            grads[i].append(made[i].grad)
        optimizer.step()
        optimizer.zero_grad()
    for p, first, own in zip(made, start, grads):
        torch.testing.assert_close(p.detach(), formula(first, own, 0.05, 1e-2, decay), rtol=1e-9, atol=1e-12)


def test_a_resumed_optimizer_goes_on_counting():
    torch.manual_seed(0)
    grads = torch.randn(6, 2, 3)
    one = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = AdamW(one, lr=0.1, eps=1e-2, fused=True)
    for step in range(6):
        if step == 3:
            state, other = copy.deepcopy(optimizer.state_dict()), [copy.deepcopy(p) for p in one]
            resumed = AdamW(other, lr=0.7, eps=0.5, fused=True)
            resumed.load_state_dict(state)
        for parameters, stepping in ((one, optimizer), (other, resumed)) if step >= 3 else ((one, optimizer),):
            # The second one rests at first.
            pairs = {str(i): (p, grads[step, i].clone()) for i, p in enumerate(parameters) if i == 0 or step > 1}
            take(stepping, **pairs)
    assert all(torch.equal(p, q) for p, q in zip(one, other))
    assert [optimizer.steps_of(p) for p in one] == [6, 4] == [resumed.steps_of(p) for p in other]


def test_a_step_that_overflows_is_none():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler, grads = AdamW([p], lr=0.1, eps=1e-2, weight_decay=0.1, fused=True), _scaler(), []
    for step in range(4):
        grad = torch.full((3,), float("inf") if step in (0, 2) else step + 1.0)
        grads += [grad] * bool(grad.isfinite().all())
        scaler.scale((p * grad).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    torch.testing.assert_close(p.detach(), formula(torch.ones(3), grads, 0.1, 1e-2, 0.1))
    assert len(grads) == 2 == int(optimizer.state[p]["step"])


def _scaler():
    return torch.amp.GradScaler("cpu", init_scale=4.0)


def test_hooks_of_others_see_the_groups_as_they_were_given():
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    seen, optimizer = [], AdamW([dict(params=[p, q])], lr=0.1, eps=1e-3, weight_decay=0.5)
    optimizer.register_step_post_hook(lambda taken, args, kwargs: seen.append(dict(taken.param_groups[0])))
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])
    take(optimizer, p=(p, torch.ones(2)))
    take(optimizer, p=(p, torch.ones(2)), q=(q, torch.ones(2)))
    assert [(g["lr"], g["eps"], g["weight_decay"], len(g["params"])) for g in seen] == [(0.1, 1e-3, 0.5, 2)] * 2
