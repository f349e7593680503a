"""training_state.pt: every damaged key is refused or ignored, and no signal tears a checkpoint.

    python -m pytest tests/test_trainer_state.py
"""

import math
import os
import signal

import pytest
import torch
from versatile.training.runs import Run
from versatile.training.trainer_state import check_state, load_optimizer
from versatile.utils.errors import UserError
from versatile.utils.interrupts import Signals


@pytest.fixture
def optimizer():
    """AdamW after a step."""
    made = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    made.param_groups[0]["params"][0].grad = torch.ones(3)
    made.step()
    return made


def training_state(optimizer):
    return dict(step=2, optimizer=optimizer.state_dict(), scaler={}, data_key="k", world=1, best={"all": 1.5},
                best_step={"all": 2}, waited={"all": 0}, tokens=10, seconds=1.5, callbacks=[],
                history=dict(train=[dict(step=1, loss=math.nan)], valid=[dict(step=2)]))  # fmt: skip


def test_training_state_of_every_damaged_key_is_refused(optimizer):
    right, scaler = training_state(optimizer), torch.amp.GradScaler("cpu", enabled=False)
    check_state(right, 2, "f")
    load_optimizer(right, optimizer, scaler, "f")
    for wrong in (None, [], 1, "x"):
        with pytest.raises(UserError):
            check_state(wrong, 2, "f")
    for key in set(right):
        with pytest.raises(UserError):
            check_state({k: v for k, v in right.items() if k != key}, 2, "f")
        # The data's key is only compared, not checked.
        for wrong in (None, -1, math.nan, "x", [1], {"all": "x"}, {"train": [1], "valid": []}) * (key != "data_key"):
            damaged = right | {key: wrong}
            if key == "scaler" and isinstance(wrong, dict):
                continue
            with pytest.raises(UserError):
                check_state(damaged, 2, "f")
    with pytest.raises(UserError, match="step is 2"):
        check_state(right, 3, "f")


def test_an_optimizer_of_another_model_is_one_message(optimizer, tmp_path):
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for state in (other.state_dict(), dict(state={}, param_groups=[{}]), dict(state={}, param_groups=[1])):
        with pytest.raises(UserError, match=r"training_state\.pt"):
            load_optimizer(dict(optimizer=state, scaler={}), optimizer, scaler, tmp_path)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("moment", [torch.ones(1), torch.ones(3, 2), torch.ones(())])
def test_moments_of_another_shape_are_refused(name, moment, optimizer, tmp_path):
    """torch does not compare the shapes: it would read beyond the end of the memory."""
    state = training_state(optimizer)
    state["optimizer"]["state"][0][name] = moment
    with pytest.raises(UserError, match=rf"state\[0\].{name} has the shape(.|\n)*expected: \(3,\)"):
        load_optimizer(state, optimizer, torch.amp.GradScaler("cpu", enabled=False), tmp_path)


def test_a_run_does_not_resume_without_its_moments(optimizer, tmp_path):
    state, scaler = training_state(optimizer), torch.amp.GradScaler("cpu", enabled=False)
    state["optimizer"]["state"] = {}
    with pytest.raises(UserError, match="empty after 2 steps"):
        load_optimizer(state, optimizer, scaler, tmp_path)
    load_optimizer(state | dict(step=0), optimizer, scaler, tmp_path)


def test_a_checkpoint_whose_state_is_damaged_is_passed_over(optimizer, tmp_path, capsys):
    run = Run.create(tmp_path / "run", {})
    for step in (1, 2):
        state = training_state(optimizer) | dict(step=step, tokens=10 if step == 1 else "ten")
        run.save_checkpoint(step, state, lambda folder: None)
    assert run.load_checkpoint(lambda folder: None, check_state)[0] == 1
    assert "tokens is 'ten'" in capsys.readouterr().out


def test_signals_while_a_checkpoint_is_saved_leave_it_whole(tmp_path):
    run = Run.create(tmp_path / "run", {})

    def save(folder):
        (folder / "one").write_text("1")
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        (folder / "two").write_text("2")

    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        run.save_checkpoint(1, dict(step=1), save)
    assert signals.caught == signal.SIGTERM
    assert sorted(p.name for p in run.checkpoint(1).iterdir()) == ["one", "training_state.pt", "two"]


def test_ctrl_c_twice_while_a_checkpoint_is_saved_leaves_the_one_before(tmp_path):
    run = Run.create(tmp_path / "run", {})
    run.save_checkpoint(1, dict(step=1), lambda folder: (folder / "model").write_text("1"))

    def save(folder):
        (folder / "model").write_text("2")
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Signals():
        run.save_checkpoint(2, dict(step=2), save)
    assert run.saved_steps() == [1] and [p.name for p in run.checkpoints.iterdir()] == ["step_00000001"]
    assert run.load_checkpoint(lambda folder: None)[0] == 1
