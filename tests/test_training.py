"""training.trainer: the guarantees of the training loop, on models small enough to compute by hand."""

import copy
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from trainers import build_trainer
from versatile.adapters.labels import LabelScores
from versatile.training.callbacks import Callback
from versatile.training.objectives import cross_entropy, negative_log_likelihood
from versatile.training.trainer import seed_step
from versatile.training.validation import TOGETHER, Report, Validation
from versatile.utils.errors import UserError


class Line(torch.nn.Module):
    """The loss of a label is (w·x + b − y)²."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.weight = torch.nn.Parameter(torch.tensor([[0.5, -0.25]]))
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, labels, attention_mask):
        found = input_ids @ self.frozen @ self.weight.T + self.bias
        return LabelScores(None, labels, nll=(found.squeeze(-1) - labels) ** 2)


class Rows:
    """Batches of two rows each; `plan` and `batch` as the trainer wants them."""

    def __init__(self, rows, size=2, seed=0, labels=None):
        draw = torch.Generator().manual_seed(seed)
        self.x = torch.randn(rows, 2, generator=draw)
        self.y = torch.randn(rows, generator=draw) if labels is None else torch.full((rows,), labels)
        self.size, self.skip, self.splits = size, set(), [self]

    def plan(self, epoch=0):
        return range(math.ceil(len(self.x) / self.size))

    def batch(self, epoch, step):
        part = slice(step * self.size, (step + 1) * self.size)
        x = self.x[part]
        return dict(input_ids=x, labels=self.y[part], attention_mask=torch.ones(len(x), 3)), len(x)


def trainer(folder, model=None, batches=None, valid=None, evaluate=None, **options):
    """A trainer of `Line`; files are its state dict."""
    model = model or Line()
    return build_trainer(
        model, batches or Rows(10), Path(folder),
        evaluate=evaluate or (Validation(model, {"t": valid}, torch.float32) if valid else None),
        save=lambda at: torch.save(model.state_dict(), at / "weights"),
        load=lambda at: model.load_state_dict(torch.load(at / "weights", weights_only=True)),
        **{"lr": 0.1, "n_epochs": 2, **options},
    )  # fmt: skip


class Scripted(Validation):
    """Reports the losses given by a test, one after another."""

    def __init__(self, *losses):
        self.losses = iter(losses)

    def __call__(self):
        loss = next(self.losses)
        return Report({TOGETHER: loss}, dict(nll=loss), "", {})


# --- the arithmetic ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("max_norm", [1e9, 0.05])
def test_steps_are_those_of_plain_pytorch(accumulation, max_norm, tmp_path):
    """Mean over the labels of each batch, mean over the window, one clipping, AdamW, a rate falling to 0.

    AdamW is the originals': epsilon is added to √v before its bias correction, and decay comes after the step.
    """
    held = trainer(tmp_path, gradient_accumulation_steps=accumulation, max_norm=max_norm, weight_decay=0.3)
    plain, rows = copy.deepcopy(held.model), held.batches
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in (plain.weight, plain.bias)}
    steps = math.ceil(5 / accumulation)
    for step in range(2 * steps):
        lr, t = 0.1 * (2 * steps - step) / (2 * steps), step + 1
        first = step % steps * accumulation
        window = [rows.batch(0, i) for i in range(first, min(first + accumulation, 5))]
        loss = sum(cross_entropy(plain, batch, n) for batch, n in window) / len(window)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([plain.weight, plain.bias], max_norm)
        for p, (m, v) in moments.items():
            m.lerp_(p.grad, 0.1)
            v.lerp_(p.grad**2, 0.001)
            size = lr * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
            p.data = (p.data - size * m / (v.sqrt() + 1e-6)) * (1 - lr * (0.3 if p is plain.weight else 0))
            p.grad = None
    result = held.fit()
    assert result["steps"] == 2 * steps
    torch.testing.assert_close(held.model.weight, plain.weight)
    torch.testing.assert_close(held.model.bias, plain.bias)


def test_the_rate_rises_in_warm_up_and_falls_linearly_to_nothing(tmp_path):
    held = trainer(tmp_path, warmup_steps=4, lr=1.0)
    rates = [held.schedule(step) for step in range(held.total_steps + 1)]
    assert held.total_steps == 10
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])
    assert trainer(tmp_path, max_steps=3).schedule(0) == pytest.approx(0.1)
    assert trainer(tmp_path, max_steps=3).schedule(2) == pytest.approx(0.1 / 3)


def test_a_window_of_accumulated_batches_never_crosses_an_epochs_end(tmp_path):
    held = trainer(tmp_path, gradient_accumulation_steps=3)
    asked = []
    held.batches.batch = lambda epoch, i: asked.append((epoch, i)) or (None, 1)
    assert [len(window) for window in held.windows(0)] == [3, 2, 3, 2]
    assert asked == [(e, i) for e in range(2) for i in range(5)]
    asked.clear()
    assert [len(window) for window in held.windows(3)] == [2] and asked == [(1, 3), (1, 4)]


def test_weight_decay_is_for_matrices_alone(tmp_path):
    still = Line()
    with torch.no_grad():
        still.bias.fill_(1.0)
    x = Rows(4)
    x.x.zero_()
    x.y = torch.ones(4)
    # The loss is 0 whatever the weight: only decay moves anything.
    held = trainer(tmp_path, still, x, n_epochs=1, weight_decay=0.5)
    held.fit()
    assert still.bias.item() == 1.0
    factor = (1 - 0.1 * 0.5) * (1 - 0.05 * 0.5)
    torch.testing.assert_close(still.weight, torch.tensor([[0.5, -0.25]]) * factor)


def test_randomness_is_a_function_of_seed_step_and_process():
    drawn = {}
    for key in [(s, t, r) for s in (0, 1) for t in (0, 1) for r in (0, 1)]:
        seed_step(*key)
        drawn[key] = float(torch.rand(()))
    assert len(set(drawn.values())) == 8
    seed_step(1, 0, 1)
    assert float(torch.rand(())) == drawn[1, 0, 1]


# --- validation --------------------------------------------------------------------------------------------


def test_likelihood_weighs_every_label_alike():
    rows = Rows(5)
    model = Line()
    total, count = negative_log_likelihood(model, rows, torch.float32)
    whole = model(rows.x, rows.y, None).nll.detach().sum()
    assert count == 5 and total == pytest.approx(float(whole))
    assert not model.training


def test_the_best_model_is_kept_and_early_stopping_counts_epochs_without_a_better_one(tmp_path):
    result = trainer(tmp_path, evaluate=Scripted(3.0, 2.0, 2.5, 2.0, 1.0), n_epochs=9, early_stopping=2).fit()
    # 2.0 again is not better.
    assert (result["steps"], result["best_step"], result["valid_nll"]) == (20, 10, 2.0)
    assert result["stopped_early"]
    best = torch.load(tmp_path / "weights", weights_only=True)
    at_best = torch.load(tmp_path / "checkpoints" / "step_00000010" / "weights", weights_only=True)
    assert all(torch.equal(best[k], at_best[k]) for k in best)


def test_patience_that_runs_out_at_the_very_end_is_not_stopping_early(tmp_path):
    held = trainer(tmp_path, evaluate=Scripted(1.0, 2.0, 3.0), n_epochs=3, early_stopping=2)
    assert not held.fit()["stopped_early"]


@pytest.mark.parametrize("before", [True, False])
def test_a_validation_loss_that_is_no_number_stops_the_run(before, tmp_path):
    held = trainer(tmp_path, valid=Rows(4, labels=math.nan), eval_before_start=before)
    with pytest.raises(UserError, match="validation loss is nan"):
        held.fit()
    assert not (tmp_path / "weights").exists()


def test_a_training_loss_that_is_no_number_leaves_no_checkpoint_behind(tmp_path):
    rows = Rows(10)
    rows.y[5] = math.nan
    with pytest.raises(UserError, match=r"the loss is nan at step 3 \(epoch 1\)") as caught:
        trainer(tmp_path, batches=rows, save_steps=1).fit()
    assert "--lr" in caught.value.remedy and "the checkpoints written before are still there" in caught.value.remedy
    # Only the steps before, nothing of the failed one.
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000001", "step_00000002"]


def test_a_weight_that_is_no_number_is_noticed_without_a_loss(tmp_path):
    held = trainer(tmp_path, save_steps=1)
    held.optimizer.register_step_post_hook(lambda *_: held.model.bias.data.fill_(math.inf))
    with pytest.raises(UserError, match="a trained weight is inf or nan at step 1") as caught:
        held.fit()
    assert "checkpoints" not in caught.value.remedy
    assert not list((tmp_path / "checkpoints").glob("step_*"))


# --- checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", range(1, 10))
def test_resuming_after_any_step_repeats_the_run(stopped, tmp_path):
    whole = trainer(tmp_path / "whole", valid=Rows(4, seed=3), save_steps=1, log_every=1)
    expected = whole.fit()
    for late in sorted((tmp_path / "whole" / "checkpoints").iterdir())[stopped:]:
        late.rename(tmp_path / late.name)
    again = trainer(tmp_path / "whole", valid=Rows(4, seed=3), save_steps=1, log_every=1)
    result = again.fit()
    assert torch.equal(again.model.weight, whole.model.weight) and torch.equal(again.model.bias, whole.model.bias)
    assert result["history"] == expected["history"]
    assert [row["step"] for row in result["history"]["train"]] == list(range(1, 11))
    assert [row["step"] for row in result["history"]["valid"]] == [5, 10]


def test_the_time_left_is_told_by_the_pace_since_the_run_was_resumed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("versatile.training.trainer.QUIET_SECONDS", -1)
    options = dict(save_steps=1, log_every=1)
    slow = trainer(tmp_path, **options)
    slow.seconds = 1e6  # of a busy machine
    slow.fit()
    for late in sorted((tmp_path / "checkpoints").iterdir())[5:]:
        shutil.rmtree(late)
    capsys.readouterr()
    again = trainer(tmp_path, **options)
    again.fit()
    assert again.seconds > 1e6
    left = re.findall(r"about ([\d.]+) min left", capsys.readouterr().out)
    assert len(left) == 5 and all(float(minutes) < 10 for minutes in left)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    trainer(tmp_path).fit()
    other = trainer(tmp_path)
    other.run.data_key = "other"
    with pytest.raises(UserError, match="the data have changed"):
        other.fit()


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
])  # fmt: skip
def test_out_of_memory_says_what_to_lower(error, tmp_path):
    held = trainer(tmp_path)

    def full(model, batch, normalizer):
        raise error

    held.objective = full
    with pytest.raises(UserError, match="out of memory") as caught:
        held.fit()
    assert "--train_batch_size" in caught.value.remedy


# --- the curve and callbacks ------------------------------------------------------------------------------


def test_a_point_of_the_curve_is_the_mean_since_the_last_one_even_over_an_interruption(tmp_path):
    """It has no perplexity: losses of several kinds may be in it."""
    options = dict(mean_loss=True, log_every=3, save_steps=1)
    single = trainer(tmp_path / "single", log_every=1).fit()["history"]["train"]
    trainer(tmp_path / "whole", **options).fit()
    for late in sorted((tmp_path / "whole" / "checkpoints").iterdir())[4:]:
        late.rename(tmp_path / late.name)
    result = trainer(tmp_path / "whole", **options).fit()
    assert [row["step"] for row in result["history"]["train"]] == [3, 6, 9, 10]
    for row in result["history"]["train"]:
        since = [one["loss"] for one in single if (row["step"] - 1) // 3 == (one["step"] - 1) // 3]
        assert row["loss"] == pytest.approx(sum(since) / len(since), rel=1e-6) and "ppl" not in row
    assert set(result["history"]) == {"train", "valid"}


class Counter(Callback):
    """Records its calls."""

    def __init__(self):
        self.calls, self.known = [], 0

    def before_training(self, held):
        self.calls.append(("before", len(list(held.run.checkpoints.glob("step_*")))))

    def after_backward(self, step):
        self.calls.append(("backward", step))

    def on_gradients(self, step):
        self.calls.append(("clipped", step))
        self.known += 1

    def on_log(self, step):
        self.calls.append(("log", step))

    def after_training(self, held):
        self.calls.append(("after", held.total_steps))

    def state_dict(self):
        return dict(known=self.known)

    def load_state_dict(self, state):
        self.known = state["known"]


def test_callbacks_are_called_in_order_and_carried_by_checkpoints(tmp_path):
    counter = Counter()
    trainer(tmp_path, max_steps=2, log_every=2, callbacks=[counter]).fit()
    assert counter.calls == [("before", 0), ("backward", 0), ("clipped", 0), ("backward", 1), ("clipped", 1),
                             ("log", 2), ("after", 2)]  # fmt: skip
    again = Counter()
    trainer(tmp_path, max_steps=3, callbacks=[again]).fit()
    assert again.calls[1] == ("backward", 2) and again.known == 3


def test_the_state_of_other_callbacks_is_one_message(tmp_path):
    trainer(tmp_path, max_steps=2, callbacks=[Counter()]).fit()
    with pytest.raises(UserError, match=r"training_state\.pt"):
        trainer(tmp_path, max_steps=3).fit()


def test_a_callback_changes_the_gradients_that_are_clipped_and_the_clipped_ones(tmp_path):
    class Change(Callback):
        def before_training(self, held):
            self.params = held.params

        def after_backward(self, step):
            self.params[0].grad.fill_(3.0)
            self.params[1].grad.fill_(4.0)

        def on_gradients(self, step):
            norm = sum(p.grad.square().sum() for p in self.params).sqrt()
            assert float(norm) == pytest.approx(1.0, rel=1e-4)
            self.params[1].grad = None

    held = trainer(tmp_path, max_steps=1, callbacks=[Change()])
    held.fit()
    assert held.model.bias.item() == 0 and not torch.equal(held.model.weight, Line().weight)


# --- what is frozen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-t5"])
def test_frozen_tensors_get_no_gradient_no_optimizer_state_and_no_change(name, tmp_path):
    from scripts import SAMPLES
    from versatile.adapters import attach as adapting
    from versatile.adapters import checkpoint
    from versatile.adapters.backbones import loading as backbones
    from versatile.data.batching import Batches
    from versatile.data.encoders.markers import load_split
    from versatile.data.task import get_task

    task = get_task("nlg")
    torch.manual_seed(0)
    model, tokenizer = backbones.load_backbone(name)
    adapting.attach(model, tokenizer, {"nlg": task.markers}, {"nlg": 4})
    split = load_split(SAMPLES / "nlg.json", "train", task, tokenizer, 256, training=True)
    batches = Batches({"nlg": split}, {"nlg": 0}, tokenizer.pad_token_id, 256, limits={"nlg": 12}, batch_size=4)
    before = {k: v.detach().clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}
    held = build_trainer(model, batches, tmp_path, n_epochs=2, weight_decay=0.1,
                         evaluate=Validation(model, {"nlg": batches}, torch.float32),
                         save=lambda folder: checkpoint.save_checkpoint(model, tokenizer, folder))  # fmt: skip
    held.fit()
    trained = adapting.trainable(model)
    assert {k.split(".")[-1] if "rows" in k else "adapter" for k in trained} == {"nlg", "adapter"}
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if key in trained:
            assert not torch.equal(tensor, before[key]), f"{key} was not trained"
        else:
            assert torch.equal(tensor, before[key]), f"{key} moved"
            assert tensor.grad is None
    in_optimizer = {id(p) for group in held.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == set(map(id, trained.values()))
    assert set(map(id, held.optimizer.state)) == in_optimizer


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-t5"])
def test_in_full_fine_tuning_everything_is_trained(name, tmp_path):
    from scripts import SAMPLES
    from versatile.adapters import attach as adapting
    from versatile.adapters.backbones import loading as backbones
    from versatile.data.batching import Batches
    from versatile.data.encoders.markers import load_split
    from versatile.data.task import get_task

    task = get_task("nlg")
    torch.manual_seed(0)
    model, tokenizer = backbones.load_backbone(name)
    adapting.attach(model, tokenizer, {"nlg": task.markers})
    split = load_split(SAMPLES / "nlg.json", "train", task, tokenizer, 256, training=True)
    batches = Batches({"nlg": split}, {"nlg": 0}, tokenizer.pad_token_id, 256, limits={"nlg": 8}, batch_size=8)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    build_trainer(model, batches, tmp_path, n_epochs=1).fit()
    assert [k for k, p in model.named_parameters() if torch.equal(p, before[k])] == []
