"""lifelong/batches.py: the original's batches where they are right, and the guarantees of every batch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelong_models import ANS, PAD, random_rows, rows, values
from versatile.lifelong.batches import (
    LENGTH_POWER,
    HalvingOnOutOfMemory,
    LifelongBatches,
    budget,
    fill,
    memory_mib,
    most_samples,
    plan,
)
from versatile.lifelong.losses import Objective
from versatile.lifelong.strategies import STRATEGIES
from versatile.utils.errors import UserError


@pytest.mark.parametrize("number", range(5))
def test_filled_as_in_the_original(number):
    golden = values("dynamic_batches")
    assert golden["LEN_FACTOR"] == LENGTH_POWER
    case = golden["cases"][number]
    order = np.array(case["permutation"] or range(len(case["lengths"])))
    bounds = fill(np.array(case["lengths"])[order].tolist(), case["batch_size"], case["max_batch_size"])
    # In the original an empty batch precedes an over-long first sample, which crashes.
    wanted = [b for b in case["batches"] if b]
    assert (len(wanted) < len(case["batches"])) == (number == 4)
    assert [order[a:b].tolist() for a, b in pairwise(bounds)] == wanted


def test_a_batch_behind_one_closed_by_its_cap_is_full():
    assert np.diff(fill([5] * 20, 1e9, 4)).tolist() == [4] * 5
    assert fill([], 10, 4).tolist() == [0]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 3000), st.integers(1, 20), st.integers(0, 9),
       st.booleans())  # fmt: skip
def test_every_sample_comes_once_and_every_batch_fits(lengths, most, cap, epoch, shuffle):
    made = plan(lengths, most, cap, seed=3, epoch=epoch, shuffle=shuffle)
    assert sorted(made.order.tolist()) == list(range(len(lengths)))
    for i in range(len(made)):
        sizes = [lengths[j] for j in made[i]]
        assert 1 <= len(sizes) <= cap
        assert len(sizes) == 1 or len(sizes) * max(sizes) ** LENGTH_POWER <= most
    again = plan(lengths, most, cap, seed=3, epoch=epoch, shuffle=shuffle)
    assert np.array_equal(made.order, again.order) and np.array_equal(made.bounds, again.bounds)
    assert len(made) == len(plan(lengths, most, cap, seed=3, epoch=epoch + 1, shuffle=shuffle))


def test_rows_hold_what_the_originals_hold():
    """cqa and Y, gen_X and gen_Y, padded; our labels are at their own positions, not where they are predicted."""
    out, items = values("dynamic_batches")["collate"]["out"], values("qadataset")["items"]["no_sep"]["rows"][:4]

    def padded(name):
        width = max(len(i[name]) for i in items)
        return torch.tensor([i[name] + [-1] * (width - len(i[name])) for i in items])

    made = rows(padded("gen_X"), padded("gen_Y"), padded("Y"))
    batch, divisor = LifelongBatches([], Objective(0.25, {ANS: 5}), PAD, 128, 1, 1).collate(made)
    assert divisor == 1 and batch["input_ids"].shape[0] == 8 and batch["input_ids"].shape[1] % 8 == 0
    for first, x, y in ((0, "cqa", "Y"), (1, "gen_X", "gen_Y")):
        for i in range(4):
            row, n = first + 2 * i, len(items[i][x])
            ids, labels = batch["input_ids"][row].tolist(), batch["labels"][row].tolist()
            assert ids[:n] == out[x][0][i][:n] and batch["attention_mask"][row].sum() == n + 1
            shifted = [-1 if t == -100 else t for t in labels[1 : n + 1]]
            assert shifted == out[y][0][i][:n] and set(labels[n + 1 :]) <= {-100}
            assert set(ids[n + 1 :]) <= {PAD} and set(out[x][0][i][n:]) <= {PAD}


def batches(count=23, **how):
    how = dict(budget=200.0, cap=6, seed=1) | how
    return LifelongBatches(random_rows(count, extra=(1, 5)), Objective(0.25, {ANS: 5}), PAD, 64, **how)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_global_batch(weighted, world):
    one = batches(budget=200.0 * world, weighted=weighted)
    several = [batches(rank=r, world=world, weighted=weighted) for r in range(world)]
    for step in range(len(one.plan(0))):
        whole, divisor = one.batch(0, step)
        parts = [b.batch(0, step) for b in several]
        assert {d for _, d in parts} == {divisor}
        assert sum(int((p["labels"] != -100).sum()) for p, _ in parts) == int((whole["labels"] != -100).sum())
        if weighted:
            total = sum(float(p["targets"].hard.sum()) for p, _ in parts)
            assert total == pytest.approx(float(whole["targets"].hard.sum()), rel=1e-5)


def test_a_process_without_a_sample_takes_part_without_labels():
    batch, divisor = LifelongBatches(random_rows(1), Objective(), PAD, 64, 1e9, 4, rank=1, world=2).batch(0, 0)
    assert divisor == 1 and len(batch["input_ids"]) == 1 and (batch["labels"] == -100).all()
    assert not len(batch["targets"].hard)


def test_validation_counts_labels_of_answers():
    made = batches(weighted=False, shuffle=False)
    seen = [made.batch(0, s) for s in range(len(made.plan(0)))]
    assert "targets" not in seen[0][0]
    assert sum(d for _, d in seen) == sum(len(r) - r.prompt_length + 1 for r in made.rows)
    assert made.seen([(0, 0)]) == 0 and made.seen([(2, 0)]) == 2 * len(made) == 46
    assert made.seen([(1, 1), (1, 2)]) == 23 + made.plan(1).bounds[1]


def test_rows_name_their_tasks():
    made = batches(task_ids={"t": 3})
    assert made.present(0, 0) == {"t"} and made.splits == ["t"]
    assert (made.batch(0, 0)[0]["task_ids"] == 3).all()


def test_a_sample_beyond_the_positions_is_refused():
    with pytest.raises(UserError, match="at most 8"):
        LifelongBatches(random_rows(9), Objective(), PAD, 8, 1e9, 4)


def test_budget_of_a_device():
    assert memory_mib(torch.device("cpu")) > 100
    lll, mas = (STRATEGIES[name].memory_share for name in ("lll", "mas"))
    assert budget(lll, 11264) == pytest.approx(3942.4)
    assert budget(mas, 1000, half=True, teacher=True) == pytest.approx(1000 * 0.18 * 1.4 * 0.7)
    assert most_samples(6604) == 4 and most_samples(115000) == 76


def test_out_of_memory_halves_and_says_so():
    said, tried = [], []
    policy = HalvingOnOutOfMemory(1000.0, "the token budget", least=100, print_line=said.append)

    def work(size):
        tried.append(size)
        if size > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return size

    assert policy.run(work) == 250 and tried == [1000, 500, 250]
    assert said == ["out of memory with the token budget 1000: retrying with 500",
                    "out of memory with the token budget 500: retrying with 250"]  # fmt: skip
    again = HalvingOnOutOfMemory(1000.0, "the token budget", least=100)
    again.load_state_dict(policy.state_dict())
    assert again.run(work) == 250 and tried[-1] == 250


def test_out_of_memory_for_good_is_an_error_and_others_pass():
    def work(size):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(UserError, match="out of memory with samples 2"):
        HalvingOnOutOfMemory(8, "samples", least=2, print_line=lambda line: None).run(work)
    with pytest.raises(RuntimeError, match="shapes"):
        HalvingOnOutOfMemory(8, "samples").run(lambda size: (_ for _ in ()).throw(RuntimeError("shapes differ")))
