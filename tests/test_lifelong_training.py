"""Parts of lifelong/ in the toolkit's training loop: resumed equals uninterrupted, parts of batches equal batches."""

import pytest
import torch
from lifelong_models import ANS, PAD, model, random_rows, tensors, tokenizer
from trainers import build_trainer
from versatile.lifelong.batches import LifelongBatches, SplitBatches
from versatile.lifelong.gem import Projection, memory_losses
from versatile.lifelong.importance import Importance, task_batches
from versatile.lifelong.losses import Objective, WeightedLoss
from versatile.lifelong.schedule import Annealing
from versatile.lifelong.strategies.importance_penalty import Penalty
from versatile.lifelong.teachers import DistributionTeacher
from versatile.utils.errors import UserError

ROWS, EPOCHS = 14, 2


def kept():
    """The first task's samples, in two batches."""
    return LifelongBatches(random_rows(4, seed=9), Objective(None), PAD, 64, 1e9, 2, weighted=False)


def trainer(folder, mode="lll", epochs=EPOCHS, dropout=0.1, most=None, whole=True, **settings):
    """A trainer of the second task; the first one's rows are protected by the strategy of `mode`."""
    learner, teacher = model(tensors("model_student304")), None
    for module in learner.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    if mode == "distil":
        teacher = DistributionTeacher((model(tensors("model_teacher304")).eval(), tokenizer()), (learner, tokenizer()))
    objective = Objective(0.25 if mode in ("lll", "distil") else None, {ANS: 5}, mode == "distil")
    batches = LifelongBatches(random_rows(ROWS, extra=(2, 3)), objective, PAD, 64, 200.0, 5, seed=7)
    callbacks = [SplitBatches(batches)]
    if mode == "gem":
        callbacks.append(Projection(learner.parameters(), {"old": memory_losses(learner, kept(), whole=whole)}))
    if mode == "ewc":
        importance = Importance(learner, "ewc", 50.0)
        importance.finish_task(task_batches("ewc", kept()), 4)
        callbacks.append(Penalty(importance))
    annealing = Annealing.of(5e-3, ROWS, EPOCHS, 0.2)
    held = build_trainer(
        learner, batches, folder, lr=5e-3, eps=1e-4, objective=WeightedLoss(teacher), callbacks=callbacks,
        schedule=lambda plan: lambda step: annealing(batches.seen(plan.micro_batches(step))),
        save=lambda at: torch.save(learner.state_dict(), at / "weights"),
        load=lambda at: learner.load_state_dict(torch.load(at / "weights", weights_only=True)),
        n_epochs=epochs, seed=3, **settings,
    )  # fmt: skip
    if most:
        forward = type(learner).forward
        held.asked = []

        def limited(self, *args, **given):
            held.asked.append(len(given["input_ids"]))
            if held.asked[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, *args, **given)

        type(learner).forward = limited
    return held


@pytest.mark.parametrize("mode", ["lll", "distil", "ewc", "gem"])
def test_a_resumed_run_is_the_uninterrupted_one(mode, tmp_path):
    whole = trainer(tmp_path / "whole", mode)
    assert whole.total_steps > 5
    whole.fit()
    trainer(tmp_path / "cut", mode, max_steps=3).fit()
    cut = trainer(tmp_path / "cut", mode)
    result = cut.fit()
    assert result["steps"] == whole.total_steps and cut.history["train"][-1] == whole.history["train"][-1]
    for (name, one), other in zip(whole.model.named_parameters(), cut.model.parameters()):
        assert torch.equal(one, other), name


def test_the_rate_follows_the_samples(tmp_path):
    held = trainer(tmp_path / "run")
    rates = [held.schedule(step) for step in range(held.total_steps)]
    top = rates.index(max(rates))
    # The first step has seen nothing; two of 14 samples are the warm-up.
    assert rates[0] == 0 and top == 1 and rates[top:] == sorted(rates[top:], reverse=True)
    last = held.batches.plan(EPOCHS - 1).bounds
    left = (last[-1] - last[-2] + 2) / (ROWS * EPOCHS)
    assert rates[-1] == pytest.approx(5e-3 * left)


@pytest.mark.parametrize("mode", ["lll", "distil"])
def test_when_memory_runs_out_batches_are_taken_in_parts_and_nothing_changes(mode, tmp_path, capsys):
    whole = trainer(tmp_path / "whole", mode, dropout=0)
    whole.fit()
    parts = trainer(tmp_path / "parts", mode, dropout=0, most=4)
    parts.fit()
    assert "every batch is split into 2 parts from now on" in capsys.readouterr().out
    assert parts.batches.pieces > 1 and max(parts.asked) > 4
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters()):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_memory_for_not_even_one_sample_is_an_error(tmp_path):
    with pytest.raises(UserError, match="out of memory"):
        trainer(tmp_path / "none", most=1).fit()


@pytest.mark.parametrize("whole", [True, False])
def test_an_old_task_held_by_gem_is_kept_better(whole, tmp_path):
    after = {}
    for mode in ("finetune", "gem"):
        held = trainer(tmp_path / mode, mode, epochs=8, dropout=0, whole=whole)
        held.schedule = lambda step: 5e-3
        held.fit()
        losses = [row["loss"] for row in held.history["train"]]
        assert losses[-1] < losses[0]
        with torch.no_grad():
            after[mode] = sum(loss.item() for loss in memory_losses(held.model, kept())(0))
    assert after["gem"] < after["finetune"]


def test_losses_of_a_memory_are_the_mean_over_its_labels():
    learner = model(tensors("model_student304")).eval()
    whole = LifelongBatches(random_rows(4, seed=9), Objective(None), PAD, 64, 1e9, 4, weighted=False)
    (one,) = memory_losses(learner, whole)(0)
    parts = [loss.item() for loss in memory_losses(learner, kept())(0)]
    assert len(parts) == 2 and sum(parts) == pytest.approx(one.item(), rel=1e-5)
    turns = [[loss.item() for loss in memory_losses(learner, kept(), whole=False)(step)] for step in range(3)]
    assert [len(t) for t in turns] == [1, 1, 1] and turns[0] == turns[2] != turns[1]
