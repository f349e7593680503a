"""lifelong/memory.py and its use in ER, A-GEM and DER++: what is kept, and what a step sees of it."""

import argparse
from argparse import Namespace

import numpy as np
import pytest
import torch
from lifelong_models import ANS, PAD, random_rows
from versatile.lifelong.batches import LifelongBatches
from versatile.lifelong.gem import Projection, project_on_average
from versatile.lifelong.losses import Objective
from versatile.lifelong.memory import PerTaskMemory, Reservoir, count_of, make_memory, read_memory
from versatile.lifelong.strategies import STRATEGIES
from versatile.lifelong.strategies.replay_memory import memory_size
from versatile.utils.errors import UserError

# --- what is kept -----------------------------------------------------------------------------------------


def test_a_reservoir_keeps_every_sample_with_the_same_chance():
    """Over 3,000 seeds each of 30 samples of three tasks is kept equally often."""
    runs, size, sizes = 3000, 6, {"a": 12, "b": 5, "c": 13}
    counts, total = np.zeros(30), sum(sizes.values())
    starts = dict(zip(sizes, (0, 12, 17)))
    for seed in range(runs):
        memory = Reservoir(size, seed)
        for task, number in sizes.items():
            memory.add(task, number)
        assert len(memory) == size and memory.passed == total
        for task, indices in memory.kept.items():
            counts[starts[task] + indices] += 1
    expected = runs * size / total
    # The statistic of 30 cells is 29 on average; it exceeds 60 once in a thousand times.
    assert ((counts - expected) ** 2 / expected).sum() < 60


def test_a_reservoir_that_is_not_full_keeps_all():
    memory = Reservoir(20, 3)
    memory.add("a", 8), memory.add("b", 9)
    assert {task: indices.tolist() for task, indices in memory.kept.items()} == {"a": [*range(8)], "b": [*range(9)]}


@pytest.mark.parametrize("size, samples, count", [
    (5, 100, 5), (0.05, 100, 5), (0.07, 100, 7), (0.001, 100, 1), (1, 100, 1), (1.0, 100, 100),
])  # fmt: skip
def test_a_size_is_a_number_or_a_share(size, samples, count):
    assert count_of(size, samples) == count


def test_of_every_task_as_many_are_kept_as_said():
    memory = PerTaskMemory(0.25, 1)
    memory.add("a", 10), memory.add("b", 3)
    assert [len(set(kept.tolist())) for kept in memory.kept.values()] == [3, 1]
    assert isinstance(make_memory("per_task", 4, {"a": 10}, 0), PerTaskMemory)
    assert make_memory("reservoir", 0.5, {"a": 10, "b": 20}, 0).size == 15


@pytest.mark.parametrize("make", [lambda: Reservoir(7, 5), lambda: PerTaskMemory(4, 5)])
def test_a_memory_read_back_goes_on_as_it_was(make, tmp_path):
    import json

    whole, again = make(), make()
    whole.add("a", 9)
    (tmp_path / "memory.json").write_text(json.dumps(whole.state_dict()))
    again.load_state_dict(read_memory(tmp_path / "memory.json", {"a": 9, "b": 11}))
    whole.add("b", 11), again.add("b", 11)
    assert whole.state_dict() == again.state_dict()
    with pytest.raises(UserError, match=r"memory.json"):
        read_memory(tmp_path / "memory.json", {"a": 2})


def test_what_is_no_size_is_refused():
    assert memory_size("200") == 200 and memory_size("0.2") == 0.2 and memory_size("1e-2") == 0.01
    for text in ("0", "1.5", "-3", "all", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match="a number of samples, or a share"):
            memory_size(text)


# --- what a step sees -------------------------------------------------------------------------------------


def strategy(name, **settings):
    """A strategy whose memory holds 8 random rows."""
    known = dict(memory_policy=None, memory_size=8, memory_batch_size=None, seed=3, replay=None, max_norm=1.0,
                 derpp_top_k=4, derpp_alpha=0.5, derpp_beta=0.5)  # fmt: skip
    rows = random_rows(8, 1, extra=range(8))
    sequence = Namespace(args=Namespace(**known | settings), sizes={"t": 8, "new": 9}, data={"t": 0, "new": 0},
                         encode=lambda task, indices, replayed: [rows[i] for i in indices])  # fmt: skip
    made = STRATEGIES[name](sequence)
    made.memory.add("t", 8)
    return made


def test_er_sees_as_many_samples_of_the_memory_as_of_the_task_and_the_same_again_when_resumed():
    one, other = strategy("er"), strategy("er")
    assert one.before_task(["t"], ["new"]) == other.before_task(["t"], ["new"]) == []
    seen = [[row.id for row in one.companions(0, step, 4)] for step in range(40)]
    assert seen == [[row.id for row in other.companions(0, step, 4)] for step in range(40)]
    assert all(len(set(ids)) == 4 for ids in seen) and len({tuple(ids) for ids in seen}) > 30
    assert sorted({i for ids in seen for i in ids}) == [*range(8)]
    assert len(one.companions(1, 0, 30)) == 8 and len(strategy("er", memory_batch_size=2).companions(0, 0, 5)) == 0
    assert one.metrics() == {"memory": {"t": 8}}


def test_er_mixes_the_memory_into_the_epoch_where_that_is_asked():
    made = strategy("er", replay="epoch")
    assert [row.id for row in made.before_task(["t"], ["new"])] == [*range(8)] and made.companions(0, 0, 4) == []


def test_companions_share_the_mean_of_their_batch_in_one_part_or_several_processes():
    """ER's loss is the mean over the labels of B ∪ M, however the batch is divided."""
    own, memory = random_rows(6), random_rows(6, seed=5, extra=range(6))

    def batches(rank=0, world=1):
        return LifelongBatches(own, Objective(None, {ANS: 5}), PAD, 64, 1e9, 3, rank=rank, world=world, shuffle=False,
                               companions=lambda epoch, step, count: memory[step : step + count])  # fmt: skip

    whole = batches().batch(0, 1)[0]["targets"].hard
    labels = sum(len(row) - row.prompt_length + 1 for row in batches().batch_rows(0, 1))
    assert len(batches().batch_rows(0, 1)) == 6 and batches().present(0, 1) == {"t"}
    assert torch.allclose(whole[whole > 0], torch.full((labels,), 1 / labels))
    halves = [batches(rank, 2).batch(0, 1)[0]["targets"].hard for rank in range(2)]
    pieces = [part["targets"].hard for part in batches().split_batch(0, 1, 3)[0]]
    for parts in (halves, pieces):
        assert sum(float(part.sum()) for part in parts) == pytest.approx(1)
        assert sum(int((part > 0).sum()) for part in parts) == labels


# --- A-GEM ------------------------------------------------------------------------------------------------


def test_agem_takes_away_the_part_of_a_gradient_that_harms_the_memory():
    torch.manual_seed(0)
    for _ in range(20):
        gradient, memory = torch.randn(30).double(), torch.randn(30).double()
        g, m = gradient.numpy(), memory.numpy()
        found = project_on_average(gradient, memory[None]).numpy()
        np.testing.assert_allclose(found, g - g.dot(m) / m.dot(m) * m, rtol=1e-10)
        assert abs(found.dot(m)) < 1e-10


@pytest.mark.parametrize("sign, projected", [(1.0, 0), (-1.0, 1)])
def test_agem_leaves_alone_a_gradient_that_harms_nothing(sign, projected):
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    projection = Projection([p], {"memory": lambda step: [(p * torch.tensor([3.0, 4.0])).sum()]},
                            project=project_on_average)  # fmt: skip
    p.grad = sign * torch.tensor([1.0, 0.0])
    projection.on_gradients(0)
    assert projection.projected == projected
    # g − (gᵀm / mᵀm) m with g = (−1, 0), m = (3, 4) / 5
    expected = torch.tensor([-0.64, 0.48]) if projected else torch.tensor([1.0, 0.0])
    torch.testing.assert_close(p.grad, expected)


@pytest.mark.parametrize("replay, replayed", [("step", {}), ("epoch", {"ag": 3})])
def test_er_says_what_it_looked_back_at(replay, replayed, tmp_path):
    import json

    from lifelong_data import command, report, write

    import train_lifelong

    argv = command(write(tmp_path / "data", train=6), tmp_path / "run", "er", "--memory_size", 3, "--replay", replay,
                   "--only_final", "--adapter_bottleneck", 2, "--n_train_epochs", 1)  # fmt: skip
    train_lifelong.main(argv)
    done = report(tmp_path / "run" / "sst")
    assert done["memory"] == {"ag": 3} and done["replayed"] == replayed
    # 6 own samples in batches of 4; mixed, 9.
    assert done["steps"] == (3 if replayed else 2)
    kept = json.loads((tmp_path / "run" / "ag" / "memory.json").read_text())["kept"]
    assert len(kept["ag"]) == 3
