"""Batches of one task at a time: the published draws, and the properties that every run relies on."""

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.data.task_sampler import MultiTaskBatchSampler
from versatile.utils.errors import UserError

from tests.conftest import GOLDEN

CASES = json.loads((GOLDEN / "hyperformer" / "multitask_sampler.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_batches_are_those_of_the_published_sampler(case):
    sampler = MultiTaskBatchSampler(case["dataset_sizes"], case["batch_size"], case["temperature"],
                                    case["num_replicas"], case["seed"], case["shuffle"])  # fmt: skip
    assert len(sampler) == case["num_batches"]
    assert sampler.probabilities().tolist() == pytest.approx(case["task_distribution"], abs=1e-15)
    assert [shares[case["rank"]] for shares in sampler.draws(case["epoch"])] == case["batches"]


def test_the_seed_is_42_unless_another_is_given_and_makes_a_difference():
    batches = {seed: list(MultiTaskBatchSampler([50, 50], 4, 1, seed=seed).draws(0)) for seed in (0, 1, 42)}
    assert list(MultiTaskBatchSampler([50, 50], 4, 1).draws(0)) == batches[42]
    assert batches[0] != batches[1] != batches[42] != batches[0]


def test_temperature_goes_from_the_sizes_to_an_even_share_and_zero_is_by_size():
    p = {t: MultiTaskBatchSampler([900, 100], 10, t).probabilities().tolist() for t in (0, 1, 10, math.inf)}
    assert p[0] == p[1] == [0.9, 0.1]
    assert p[10] == pytest.approx([9**0.1 / (9**0.1 + 1), 1 / (9**0.1 + 1)])
    assert p[math.inf] == [0.5, 0.5]
    assert MultiTaskBatchSampler([900, 100], 10, 1e-320).probabilities().tolist() == [1, 0]


SHAPES = st.integers(1, 4).flatmap(
    lambda replicas: st.tuples(
        st.lists(st.integers(replicas, 40), min_size=1, max_size=5),  # sizes
        st.integers(1, 6),  # batch
        st.sampled_from([0, 0.5, 1, 2, 10, math.inf]),
        st.just(replicas),
        st.integers(0, 2**31),  # seed
        st.booleans(),
        st.integers(0, 3),  # epoch
    ).filter(lambda shape: (sum(shape[0]) + shape[1] - 1) // shape[1] >= replicas)
)


def ranks(shape):
    """The batches of every process."""
    sizes, batch, temperature, replicas, seed, shuffle, epoch = shape
    draws = MultiTaskBatchSampler(sizes, batch, temperature, replicas, seed, shuffle).draws(epoch)
    return [list(batches) for batches in zip(*draws)]


@settings(max_examples=80, deadline=None)
@given(SHAPES)
def test_every_process_has_the_same_task_at_every_step_and_rows_of_its_own(shape):
    sizes, batch, replicas = shape[0], shape[1], shape[3]
    bounds = list(itertools.accumulate(sizes, initial=0))
    lists = ranks(shape)
    assert {len(batches) for batches in lists} == {(sum(sizes) + batch - 1) // batch // replicas}
    owners = {}
    for step in zip(*lists):
        tasks = {next(i for i, end in enumerate(bounds[1:]) if row < end) for rows in step for row in rows}
        assert len(tasks) == 1
        assert all(len(rows) == batch and min(rows) >= 0 for rows in step)
        for rank, rows in enumerate(step):
            for row in rows:
                assert owners.setdefault(row, rank) == rank


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(0, 30))
def test_the_coverage_is_that_of_the_batches_that_are_drawn(shape, batches):
    sizes, batch, temperature, replicas, seed, shuffle, _ = shape
    names = [f"task {i}" for i in range(len(sizes))]
    report = MultiTaskBatchSampler(sizes, batch, temperature, replicas, seed, shuffle).coverage(batches, names)
    steps = []
    for epoch in itertools.count():
        if len(steps) >= batches:
            break
        steps += zip(*ranks((*shape[:6], epoch)))
    rows = [row for step in steps[:batches] for rows in step for row in rows]
    start = 0
    for name, size, line in zip(names, sizes, report):
        own = [row for row in rows if start <= row < start + size]
        assert (line["task"], line["size"], line["drawn"], line["distinct"]) == (name, size, len(own), len(set(own)))
        assert line["batches"] * batch * replicas == len(own)
        assert line["data_share"] == len(set(own)) / size
        start += size
    if batches:
        assert sum(line["batch_share"] for line in report) == pytest.approx(1)


def test_a_long_run_draws_the_tasks_by_their_probability_and_sees_all_of_a_small_one():
    sampler = MultiTaskBatchSampler([5000, 200, 40], 8, 2)
    report = sampler.coverage(10 * len(sampler))
    for line in report:
        assert line["batch_share"] == pytest.approx(line["probability"], abs=0.02)
    assert report[2]["data_share"] == 1 and report[0]["data_share"] > 0.5


@pytest.mark.parametrize(
    "args, says",
    [
        (([], 4, 1), "no tasks"),
        (([10, 3], 4, 1, 4), "data set of task 1 has 3 rows for 4 processes"),
        (([10], 0, 1), "batch size is 0"),
        (([10], 4, -1), "is -1"),
        (([10], 4, math.nan), "is nan"),
        (([10], 8, 1, 4), "less than one batch"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(args, says):
    with pytest.raises(UserError, match=says):
        MultiTaskBatchSampler(*args)
