"""Whole training runs of LAMOL's original code, step by step: losses, rates and the weights at the end of each task.

Rows are the original's data as ids: [tokens of the question, last label, ids]. Batches are in file order, of as many
rows as the original's log says.
"""

import json
from types import SimpleNamespace

import numpy as np
import torch
from conftest import GOLDEN
from lifelong_models import model
from safetensors.torch import load_file
from trainers import build_trainer
from versatile.data.batching import Plan
from versatile.data.encoders.question_answer import Row
from versatile.lifelong.batches import LifelongBatches
from versatile.lifelong.gem import Projection, memory_losses
from versatile.lifelong.importance import Importance, task_batches
from versatile.lifelong.losses import Objective, WeightedLoss
from versatile.lifelong.schedule import Annealing

RUNS = GOLDEN / "lamol_runs"
ANS, PAD, GEN, EOS = 50257, 50258, 50260, 50256
TASKS = ("sst", "srl")
KEPT = 12


def values(name):
    return json.loads((RUNS / f"{name}.json").read_text())


def rows_of(data, task):
    return [Row(np.array(ids, np.int32), prompt, last, GEN, task) for prompt, last, ids in values("rows")[data][task]]


def replayed():
    """The rows of generated.json with exactly one __ans__."""
    for _, *ids in values("generated")["srl"]:
        if ids.count(ANS) == 1:
            yield Row(np.array(ids, np.int32), ids.index(ANS) + 1, EOS, GEN, "sst", True)


def learner():
    """The model that the original started from, with the rows of its four new tokens."""
    weights = load_file(RUNS / "model.safetensors")
    new = [0.1 * torch.randn(32, generator=torch.Generator().manual_seed(ANS + i)) for i in range(4)]
    weights["transformer.wte.weight"] = torch.cat([weights["transformer.wte.weight"], torch.stack(new)])
    return model(weights, heads=values("config")["n_head"])


class InOrder(LifelongBatches):
    """Batches of rows in their order, with the given sizes."""

    def plan(self, epoch=0):
        return Plan(np.arange(len(self.rows)), np.concatenate([[0], np.cumsum(self.sizes)]))


def batches(rows, sizes, lm=None, **how):
    made = InOrder(rows, Objective(lm, {ANS: 5.0}), PAD, 256, 1e9, 4, **how)
    made.sizes = sizes
    return made


def trainer(folder, held, rows, log, epochs, lr, lm=None):
    """The toolkit's trainer with the settings of the original's `log`."""
    made = batches(rows, [entry["n"] for entry in log[: len(log) // epochs]], lm)
    annealing = Annealing.of(lr, len(rows), epochs, 0.005)
    run = build_trainer(
        held, made, folder, lr=lr, eps=1e-4, weight_decay=0.01, objective=WeightedLoss(), n_epochs=epochs, log_every=1,
        schedule=lambda plan: lambda step: annealing(made.seen(plan.micro_batches(step))),
    )  # fmt: skip
    # The original decays everything but biases; here norms are not decayed either.
    decay, plain = run.optimizer.param_groups
    norms = [p for name, p in held.named_parameters() if ".ln_" in name and name.endswith("weight")]
    decay["params"] += norms
    plain["params"] = [p for p in plain["params"] if all(p is not norm for norm in norms)]
    return run


def check(run, held, log, final, task, bound):
    ours = [row["loss"] for row in run.history["train"]]
    np.testing.assert_allclose([row["lr"] for row in run.history["train"]], [entry["lr"] for entry in log], rtol=1e-9)
    np.testing.assert_allclose(ours, [entry["loss"] for entry in log], rtol=bound, atol=bound)
    for name, p in held.named_parameters():
        wanted = final.get(f"{task}/{name}")
        if wanted is None:
            p, wanted = p[ANS:], final[f"{task}/special_rows_50257_on"]
        torch.testing.assert_close(p.detach(), wanted, rtol=0, atol=bound, msg=lambda m, name=name: f"{name}: {m}")


def learn(tmp_path, name, data, epochs, lr, lm=None, before=None, bound=3e-5):
    """Both tasks of a run, compared after each."""
    held, log, done = learner(), values(name)["log"], 0
    final = load_file(RUNS / f"{name}_final.safetensors")
    for number, task in enumerate(TASKS):
        rows = rows_of(data, task)
        if lm and number:
            rows += replayed()
        steps = epochs * -(-len(rows) // 4) if not (lm and number) else len(log) - done
        part = log[done : done + steps]
        run = trainer(tmp_path / task, held, rows, part, epochs, lr, lm)
        if before:
            before(run, held, number)
        run.fit()
        check(run, held, part, final, task, bound)
        done += steps
    assert done == len(log)
    return SimpleNamespace(held=held, run=run)


def test_fine_tuning(tmp_path):
    learn(tmp_path, "finetune", "data", 2, 1e-3)


def test_lamol(tmp_path):
    learn(tmp_path, "lll", "data", 2, 1e-3, lm=0.25)


def test_gem(tmp_path):
    def hold(run, held, number):
        if number:
            memory = batches(rows_of("data_gem", "sst")[:KEPT], [KEPT], weighted=False)
            run.callbacks.append(Projection(run.params, {"sst": memory_losses(held, memory)}))

    # Rounding errors grow over 96 steps at a high rate.
    run = learn(tmp_path, "gem", "data_gem", 8, 1e-2, before=hold, bound=5e-4).run
    assert run.callbacks[0].projected > 0


def test_mas_but_for_what_is_held(tmp_path):
    """With the original's anchor, which stays at the first task's start."""
    start = {name: p.detach().clone() for name, p in learner().named_parameters()}

    def hold(run, held, number):
        if number:
            importance = Importance(held, "mas", 1e6)
            rows = rows_of("data_gem", "sst")
            each = batches(rows, [4] * (len(rows) // 4), weighted=False)
            importance.finish_task(task_batches("mas", each), len(rows))
            importance.anchor = start
            importance.attach(run.optimizer)

    learn(tmp_path, "mas", "data_gem", 4, 2e-2, before=hold)
