"""lifelong/importance.py: importance and penalty as in the original, except for the anchor."""

import math

import pytest
import torch
from lifelong_models import PAD, model, random_rows, same, tensors, values
from versatile.lifelong.batches import LifelongBatches
from versatile.lifelong.importance import Importance, task_batches
from versatile.lifelong.losses import Objective
from versatile.training.objectives import cross_entropy
from versatile.training.optimizers import AdamW
from versatile.training.prompt_batches import left_padded
from versatile.utils.errors import UserError

FILL = -1


def case(mode):
    found = tensors(f"{mode}_regularizer")
    start = {name[5:]: t for name, t in found.items() if name.startswith("init/")}
    return model(start), found, values(f"{mode}_regularizer")


def batches(mode, found, task):
    """A task's three batches in the toolkit's form."""
    for i in range(3):
        if mode == "mas":
            lengths = found[f"{task}/len_cq_{i}"].tolist()
            prompts = [ids[:n].tolist() for ids, n in zip(found[f"{task}/cq_{i}"], lengths)]
            yield left_padded([(ids, None) for ids in prompts], PAD)
        else:
            yield answers(found[f"{task}/cqa_{i}"], found[f"{task}/Y_{i}"])


def answers(cqa, shifted):
    """Input ids and labels that predict `shifted`: labels are one position later."""
    ids = torch.cat([cqa, torch.full((len(cqa), 1), PAD)], 1)
    labels = torch.cat([torch.full((len(cqa), 1), -100), shifted.masked_fill(shifted == FILL, -100)], 1)
    return dict(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids))


def optimizer_of(trained, settings):
    """The original's groups: no parameter whose name holds "bias" decays; the layer norms' weights do."""
    plain = [p for n, p in trained.named_parameters() if "bias" in n]
    decayed = [p for n, p in trained.named_parameters() if "bias" not in n]
    groups = [dict(params=decayed, weight_decay=settings["weight_decay_non_bias"]), dict(params=plain, weight_decay=0)]
    return AdamW(groups, lr=settings["lr"], eps=settings["eps"], betas=tuple(settings["betas"]))


@pytest.mark.parametrize("mode", ["ewc", "mas"])
def test_importance_and_steps_are_the_originals(mode):
    learner, found, settings = case(mode)
    held = Importance(learner, mode, settings["reg_lambda"])
    held.finish_task(batches(mode, found, "task1"), settings["data_count_after_each_task"])
    check(held.omega, found, "omega_after_task1")
    assert all(p.grad is None for p in learner.parameters())
    optimizer = optimizer_of(learner, settings)
    held.attach(optimizer)
    if mode == "ewc":
        # The original forgets to drop the last gradient of the importance.
        held.objective(list(batches(mode, found, "task1"))[-1], torch.float32).backward()
    for i in range(3):
        batch = answers(found[f"task2/cqa_{i}"], found[f"task2/Y_{i}"])
        loss = cross_entropy(learner, batch)
        same(loss, settings["losses"][i])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), settings["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        if i in (0, 2):
            check(dict(learner.named_parameters()), found, f"after_step{i + 1}", atol=1e-6)
    held.finish_task(batches(mode, found, "task2"), settings["data_count_after_each_task"])
    check(held.omega, found, "omega_after_task2", atol=1e-6)


def check(ours, found, part, atol=1e-8):
    for name, value in ours.items():
        same(value, found[f"{part}/{name}"], rtol=1e-3, atol=atol)


def step(learner, optimizer, batch):
    cross_entropy(learner, batch, 1).backward()
    optimizer.step()
    optimizer.zero_grad()


def tasks(count):
    """A model, and a batch list for each of this many tasks."""
    learner = case("ewc")[0]
    return learner, [
        [LifelongBatches(random_rows(3, seed), Objective(None), PAD, 32, 1e9, 9).batch(0, 0)[0]]
        for seed in range(count)
    ]  # fmt: skip


def plain(batches):
    return [{k: v for k, v in b.items() if k != "targets"} for b in batches]


def test_the_place_held_is_the_end_of_the_task_before():
    learner, (first, second) = tasks(2)
    held, optimizer = Importance(learner, "ewc", 10.0), torch.optim.SGD(learner.parameters(), lr=0.01)
    held.attach(optimizer)
    start = {n: p.detach().clone() for n, p in learner.named_parameters()}
    step(learner, optimizer, plain(first)[0])
    assert not held.omega, "nothing is held in the first task"
    held.finish_task(plain(first), 3)
    end = {n: p.detach().clone() for n, p in learner.named_parameters()}
    for name, p in learner.named_parameters():
        assert torch.equal(held.anchor[name], p) and not torch.equal(p, start[name])
    held.penalize(optimizer)
    assert all(torch.equal(p, end[n]) for n, p in learner.named_parameters()), "it stands where it is held"
    step(learner, optimizer, plain(second)[0])
    assert all(torch.equal(held.anchor[n], end[n]) for n in end)
    held.finish_task(plain(second), 3)
    assert all(torch.equal(held.anchor[n], p) for n, p in learner.named_parameters())


def test_what_matters_stays_nearer_and_never_goes_beyond_its_place():
    learner, (batch,) = tasks(1)
    held, optimizer = Importance(learner, "ewc", 1.0), torch.optim.SGD(learner.parameters(), lr=0.5)
    held.finish_task(plain(batch), 3)
    name, p = "transformer.wpe.weight", learner.transformer.wpe.weight
    held.omega[name] = torch.linspace(0, 4, p.numel()).reshape(p.shape)
    with torch.no_grad():
        p.add_(1.0)
    held.penalize(optimizer)
    left = (p - held.anchor[name]).detach().flatten()
    same(left, (1 - held.omega[name].flatten()).clamp(min=0), atol=1e-5)


def test_resumed_is_the_same_and_another_mode_is_refused():
    learner, _ = tasks(0)
    held = Importance(learner, "mas", 3.0)
    prompts = [left_padded([([5, 300], None)], PAD)]
    held.finish_task(prompts, 1)
    again = Importance(learner, "mas", 3.0)
    again.load_state_dict(held.state_dict())
    for one in (held, again):
        one.finish_task(prompts, 1)
    assert all(torch.equal(held.omega[n], again.omega[n]) for n in held.omega)
    with pytest.raises(UserError, match="made with mas"):
        Importance(learner, "ewc").load_state_dict(held.state_dict())


def test_a_grown_vocabulary_is_free_in_its_new_rows_and_held_in_the_old():
    learner, (batch,) = tasks(1)
    held = Importance(learner, "ewc", 100.0)
    held.finish_task(plain(batch), 3)
    learner.resize_token_embeddings(310, mean_resizing=False)
    table = learner.get_input_embeddings().weight
    with torch.no_grad():
        table.add_(0.1)
    before, optimizer = table.detach().clone(), torch.optim.SGD(learner.parameters(), lr=1.0)
    held.penalize(optimizer)
    assert torch.equal(table[304:], before[304:]) and not torch.equal(table[:304], before[:304])
    held.finish_task(plain(batch), 3)
    assert len(held.omega["transformer.wte.weight"]) == 310


@pytest.mark.parametrize("mode", ["ewc", "mas"])
def test_processes_find_together_what_one_finds(mode):
    learner, _ = tasks(0)
    made = LifelongBatches(random_rows(7), Objective(None), PAD, 32, 1e9, 2, weighted=False)
    found = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        held = Importance(learner, mode)
        held.finish_task(task_batches(mode, made, rank, world), 7)
        found.append(held.omega)
    for name, whole in found[0].items():
        same(found[1][name] + found[2][name], whole, atol=1e-9)


# --- normalised -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ewc", "mas"])
def test_a_normalised_importance_has_the_mean_1_whatever_the_scale_of_the_published_one(mode):
    learner = model(tensors("model_student304"))
    batches = LifelongBatches(random_rows(4), Objective(None), PAD, 64, 1e9, 2, weighted=False)
    published, normalised = Importance(learner, mode), Importance(learner, mode, 1.0, True)
    for importance in (published, normalised):
        importance.finish_task(task_batches(mode, batches), 4)
    total = sum(p.numel() for p in learner.parameters())
    mean = sum(float(omega.double().sum()) for omega in published.omega.values()) / total
    assert 0 < mean < 1e-2
    for name, omega in normalised.omega.items():
        same(omega, published.omega[name] / mean, rtol=1e-4, atol=1e-7)


def test_a_task_whose_only_step_has_a_rate_of_0_has_no_penalty():
    importance = Importance(torch.nn.Linear(2, 1), "ewc", 1.0, True)
    importance.begin_task([0.0])
    assert importance.strength == 0


@pytest.mark.parametrize("steps, rate", [(50, 1e-3), (400, 6e-5)])
@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_over_a_task_a_parameter_of_mean_importance_is_drawn_back_to_e_to_the_minus_lambda(steps, rate, strength):
    learner = torch.nn.Linear(2, 1, bias=False)
    importance = Importance(learner, "ewc", strength, True)
    importance.omega, importance.anchor = {"weight": torch.tensor([[1.0, 0.0]])}, {"weight": torch.zeros(1, 2)}
    with torch.no_grad():
        learner.weight.copy_(torch.tensor([[3.0, 3.0]]))
    rates = [rate * (steps - step) / steps for step in range(steps)]
    importance.begin_task(rates)
    optimizer = torch.optim.SGD(learner.parameters(), lr=rate)
    for lr in rates:
        optimizer.param_groups[0]["lr"] = lr
        importance.penalize(optimizer)
    assert learner.weight[0, 0].item() == pytest.approx(3 * math.exp(-strength), rel=0.06)
    assert learner.weight[0, 1].item() == 3
