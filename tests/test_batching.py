"""Batches and the token cache.

    python -m pytest tests/test_batching.py
"""

import itertools
import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import CONTEXT, fork
from versatile.data import token_cache
from versatile.data.batching import Batches, plan
from versatile.data.encoders.base import EncodedExample
from versatile.data.encoders.markers import MarkerEncoder, load_split
from versatile.data.task import get_task
from versatile.utils.errors import UserError

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=120)


class Rows:
    """Replaces an encoded split: row i is [i, i, …], its prompt half as long."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)
        self.prompt_lengths = self.lengths // 2

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        return EncodedExample(np.full(self.lengths[i], i), np.full(self.lengths[i], 7), int(self.prompt_lengths[i]))


@settings(max_examples=80, deadline=None)
@given(
    LENGTHS, st.integers(1, 9), st.integers(1, 3), st.sampled_from([None, 64, 512]), st.integers(0, 5), st.booleans()
)
def test_every_epoch_has_every_example_once_in_as_many_batches(lengths, size, world, max_tokens, epoch, shuffle):
    kw = dict(world=world, max_tokens=max_tokens, seed=3, shuffle=shuffle)
    p = plan(lengths, size, epoch=epoch, **kw)
    assert sorted(p.order.tolist()) == list(range(len(lengths)))
    assert len(p) == len(plan(lengths, size, epoch=epoch + 1, **kw))
    assert np.concatenate([p[i] for i in range(len(p))]).tolist() == p.order.tolist()
    assert all(len(p[i]) for i in range(len(p)))


@settings(max_examples=80, deadline=None)
@given(LENGTHS, st.integers(1, 3), st.integers(300, 2000))
def test_a_token_budget_holds_in_every_process(lengths, world, budget):
    p = plan(lengths, 1, world=world, max_tokens=budget, seed=0)
    for step in range(len(p)):
        for rank in range(world):
            mine = [lengths[i] for i in p[step][rank::world]]
            if len(mine) > 1:
                assert len(mine) * (-(-max(mine) // 8) * 8) <= budget


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(5, 90, 500)
    again = [plan(lengths, 8, seed=1, epoch=2).order.tolist() for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != plan(lengths, 8, seed=1, epoch=3).order.tolist()
    assert again[0] != plan(lengths, 8, seed=2, epoch=2).order.tolist()


def test_batches_of_like_length_pad_little():
    lengths = np.random.default_rng(0).gamma(4, 13, 2000).astype(int).clip(5, 256)
    p = plan(lengths, 8, seed=0)
    padded = sum(len(p[i]) * lengths[p[i]].max() for i in range(len(p)))
    assert padded < 1.12 * lengths.sum()


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 3))
def test_processes_together_hold_the_rows_of_one_process(lengths, size, world):
    split = Rows(lengths)
    common = dict(task_ids={"a": 0}, pad_id=999, positions=512, seed=1, shuffle=True)
    alone = Batches({"a": split}, **common, batch_size=size * world)
    parts = [Batches({"a": split}, **common, batch_size=size, rank=r, world=world) for r in range(world)]
    for step in range(len(alone.plan(0))):
        whole, count = alone.batch(0, step)
        shares = [p.batch(0, step) for p in parts]
        assert [c for _, c in shares] == [count] * world
        labels = lambda b: sorted(b["labels"][b["labels"] != -100].tolist())  # noqa: E731
        assert labels(whole) == sorted(x for b, _ in shares for x in labels(b))
        # The loss is over the labels after each row's first token: exactly those are counted.
        assert int((whole["labels"][:, 1:] != -100).sum()) == count


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 6), st.integers(0, 3))
def test_the_batches_of_an_optimizer_step_hold_examples_of_like_length(lengths, size, accumulation, epoch):
    p = plan(lengths, size, seed=1, epoch=epoch, accumulation=accumulation)
    assert sorted(p.order.tolist()) == list(range(len(lengths)))
    widths = [[-(-lengths[i] // 8) for i in p[n]] for n in range(len(p))]
    steps = sorted(sorted(itertools.chain(*widths[at : at + accumulation])) for at in range(0, len(p), accumulation))
    assert all(one[-1] <= other[0] for one, other in itertools.pairwise(steps))
    assert accumulation > 1 or p.order.tolist() == plan(lengths, size, seed=1, epoch=epoch).order.tolist()


def mean_loss(parts, loss):
    """The mean over batches or parts of Σ loss(token) / divisor over a part's labels."""
    means = []
    for batch, divisor in parts:
        rows, columns = (batch["labels"][:, 1:] != -100).nonzero(as_tuple=True)
        divisor = torch.as_tensor(divisor, dtype=torch.float64).expand(len(batch["labels"]))
        means.append(float((loss[batch["labels"][rows, columns + 1]] / divisor[rows]).sum()))
    return sum(means) / len(means)


@settings(max_examples=80, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 6), st.integers(1, 3), st.sampled_from([None, 320]))
def test_merged_batches_have_the_same_rows_and_mean_loss_and_are_no_larger(lengths, size, accumulation, world, tokens):
    splits = {"a": Rows(lengths), "b": Rows(lengths[::2] + [1, 1, 1])}
    shares = [Batches(splits, {"a": 0, "b": 1}, 999, 304, seed=1, shuffle=True, accumulation=accumulation, rank=rank,
                      batch_size=size, world=world, max_tokens=tokens) for rank in range(world)]  # fmt: skip
    loss, count = torch.rand(1000, dtype=torch.float64), len(shares[0].plan(1))
    for start in range(0, count, accumulation):
        window = [(1, n) for n in range(start, min(start + accumulation, count))]
        plain = [[b.batch(*at) for at in window] for b in shares]
        plain = [[(batch, labels) for batch, labels in made if labels] for made in plain]
        merged = [batches.merged(window) for batches in shares]
        for batches, before, after in zip(shares, plain, merged):
            kept = lambda made: sorted(r for b, _ in made for r in b["labels"][:, 1:].max(1).values.tolist() if r >= 0)  # noqa: E731
            assert kept(before) == kept(after)
            assert len(after) <= len(before)
            most_tokens, most_labels = batches.largest(1)
            for batch, _ in after:
                labels = int((batch["labels"][:, 1:] != -100).sum())
                # A process without a row of its own joins in with one that has no labels.
                assert labels <= most_labels and (not labels or batch["input_ids"].numel() <= most_tokens)
                assert (batch["task_ids"].diff() >= 0).all()
        if plain[0]:
            whole = sum(mean_loss(made, loss) for made in plain)
            assert sum(mean_loss(made, loss) for made in merged) == pytest.approx(whole, rel=1e-6)


def test_short_rows_of_a_step_are_merged_and_the_longest_batch_stays():
    batches = Batches({"a": Rows([8] * 12 + [64] * 4)}, {"a": 0}, 0, 512, batch_size=2, shuffle=True, accumulation=2)
    found = set()
    for start in range(0, 8, 2):
        parts = batches.merged([(0, start), (0, start + 1)])
        found.add((parts[0][0]["input_ids"].shape[1], len(parts)))
    assert found == {(8, 1), (64, 2)}


def test_a_batch_is_the_contract():
    batch = Batches({"a": Rows([5, 12, 9]), "b": Rows([3])}, {"a": 4, "b": 2}, pad_id=99, positions=512, batch_size=4,
                    shuffle=False).collate(np.array([0, 1, 3]))  # fmt: skip
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "position_ids", "labels", "task_ids"}
    assert batch["task_ids"].tolist() == [4, 4, 2]
    assert batch["input_ids"].shape == (3, 16)
    assert batch["input_ids"][0].tolist() == [0] * 5 + [99] * 11
    assert batch["attention_mask"].sum(1).tolist() == [5, 12, 3]
    assert batch["labels"][1].tolist() == [-100] * 6 + [1] * 6 + [-100] * 4
    assert batch["position_ids"][2].tolist() == list(range(16))


def test_padding_never_exceeds_the_positions():
    batch = Batches({"a": Rows([61])}, {"a": 0}, 0, positions=62, batch_size=1).collate(np.array([0]))
    assert batch["input_ids"].shape == (1, 62)


# ---- the cache


@pytest.fixture
def tokenizer():
    from test_encoding import TINY, add_tokens
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast(str(TINY / "vocab.json"), str(TINY / "merges.txt"))
    add_tokens(tokenizer, {t: get_task(t).markers for t in ("nlg", "mt")})
    return tokenizer


def write(path, train):
    path.write_text(json.dumps({"train": train}), encoding="utf-8")
    return path


PAIRS = [{"src": f"the river inn number {i}", "tgt": f"le restaurant {i} " * (i % 3 + 1)} for i in range(50)]


def load(path, tokenizer, tmp_path, task="mt", **kw):
    kw = dict(training=True) | kw
    return load_split(path, "train", get_task(task), tokenizer, 128, cache_dir=tmp_path / "cache", **kw)


def test_the_cache_returns_what_encoding_gives(tokenizer, tmp_path):
    task, encoder = get_task("mt"), MarkerEncoder(tokenizer, 128)
    split = load(write(tmp_path / "d.json", PAIRS), tokenizer, tmp_path)
    rows = [encoder.encode(task, e) for p in PAIRS for e in task.examples(p, "")]
    assert len(split) == len(rows)
    for i, row in enumerate(rows):
        mapped = split[i]
        assert (mapped.ids.tolist(), mapped.types.tolist()) == (row.ids, row.types)
        assert (mapped.prompt_length, mapped.label) == (row.prompt_length, row.label)


def test_the_cache_is_found_again_and_keyed_on_content(tokenizer, tmp_path, monkeypatch):
    path = write(tmp_path / "d.json", PAIRS)
    first = load(path, tokenizer, tmp_path)
    with monkeypatch.context() as m:
        m.setattr(token_cache, "_write_entry", lambda *a: pytest.fail("built twice"))
        # The same bytes under another name are the same data.
        assert load(write(tmp_path / "copy.json", PAIRS), tokenizer, tmp_path).key == first.key
    # The original's key ignored the path and the content: a second data set silently reused the first.
    assert load(write(path, PAIRS[:20]), tokenizer, tmp_path).key != first.key
    tokenizer.add_tokens(["zzz"])
    assert load(write(path, PAIRS), tokenizer, tmp_path).key != first.key


def test_what_cannot_be_learnt_from_is_dropped_in_training_and_counted(tokenizer, tmp_path):
    odd = [{"src": " ", "tgt": "a b c"}, {"src": "a b c", "tgt": "\t"}, {"src": "e", "tgt": "the the the"}, *PAIRS[:3]]
    path = write(tmp_path / "d.json", odd)
    split = load(path, tokenizer, tmp_path)
    assert split.report["kept"] == 4 - (split.report["dropped"].get("a side under 2 tokens", 0) == 1)
    assert split.report["dropped"]["empty source"] == 1 and split.report["dropped"]["empty target"] == 1
    # Evaluation drops only examples without a reference: a blank target.
    assert len(load(path, tokenizer, tmp_path, training=False)) == 5
    left = "no example of split 'train' is left: 3 dropped \\(empty target\\)"
    with pytest.raises(UserError, match=left) as caught:
        load(write(path, [{"src": "a", "tgt": ""}] * 3), tokenizer, tmp_path)
    assert caught.value.expected and caught.value.remedy


def test_a_failed_build_leaves_nothing(tokenizer, tmp_path):
    path = write(tmp_path / "d.json", [*PAIRS, {"src": 5, "tgt": "x"}])
    with pytest.raises(UserError, match=r"train\[50\]"):
        load(path, tokenizer, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def _load_in_child(path, cache_dir, queue):
    from test_encoding import TINY, add_tokens
    from transformers import GPT2TokenizerFast

    tokenizer = GPT2TokenizerFast(str(TINY / "vocab.json"), str(TINY / "merges.txt"))
    add_tokens(tokenizer, {t: get_task(t).markers for t in ("nlg", "mt")})
    split = load_split(path, "train", get_task("mt"), tokenizer, 128, training=True, cache_dir=cache_dir)
    queue.put((split.key, int(sum(split[i].ids.sum() for i in range(len(split))))))


def test_two_processes_may_build_the_same_cache_at_once(tmp_path):
    path = write(tmp_path / "d.json", PAIRS * 40)
    queue = CONTEXT.Queue()
    children = [fork(_load_in_child, path, tmp_path / "cache", queue) for _ in range(2)]
    results = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert results[0] == results[1]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [results[0][0]]


def test_golden_files_are_where_tests_look_for_them():
    assert (GOLDEN / "vglm" / "builders.json").is_file()


class Lengths:
    """A split of which only the lengths are read."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)
        self.prompt_lengths = np.ones(len(lengths), int)

    def __len__(self):
        return len(self.lengths)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [0.001, 1e-320])
def test_at_the_lowest_temperature_all_but_one_example_are_of_the_largest_task(temperature):
    splits = {name: Lengths([5] * n) for name, n in (("small", 20), ("large", 30))}
    drawn = Batches(splits, {"small": 0, "large": 1}, 0, 100, temperature=temperature, batch_size=3)
    assert np.bincount(drawn.owners(drawn.plan(0).order)).tolist() == [1, 50]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.sampled_from([0.5, 2.0, 5.0, float("inf")]))
def test_tasks_are_drawn_as_the_temperature_says_and_none_twice_before_all_came_once(sizes, temperature):
    splits = {f"t{i}": Lengths([5] * n) for i, n in enumerate(sizes)}
    ids = {task: i for i, task in enumerate(splits)}
    drawn = Batches(splits, ids, 0, 100, temperature=temperature, batch_size=3, seed=1)
    total, starts = sum(sizes), np.concatenate([[0], np.cumsum(sizes)])
    weights = np.array(sizes) ** (1 / temperature)
    wanted = total * weights / weights.sum()
    seen = []
    for epoch in range(5):
        order = drawn.plan(epoch).order
        again = Batches(splits, ids, 0, 100, temperature=temperature, batch_size=3, seed=1).plan(epoch)
        assert np.array_equal(order, again.order), "an epoch is a function of the seed and its number"
        assert len(drawn.plan(epoch)) == len(drawn.plan(0))
        counts = np.bincount(drawn.owners(order), minlength=len(sizes))
        assert all(c >= 1 and (abs(c - w) <= 1 or c == 1) for c, w in zip(counts, wanted))
        seen.append(order)
    for start, stop in itertools.pairwise(starts):
        own = np.concatenate([o[(o >= start) & (o < stop)] for o in seen])
        times = np.bincount(own - start, minlength=stop - start)
        assert times.max() - times.min() <= 1


def test_in_proportion_every_example_comes_once_an_epoch():
    splits = {"a": Lengths([5] * 7), "b": Lengths([9] * 20)}
    drawn = Batches(splits, {"a": 0, "b": 1}, 0, 100, batch_size=4, seed=1)
    for epoch in range(3):
        assert sorted(drawn.plan(epoch).order) == list(range(27))


def test_skipped_tasks_leave_the_batches_and_no_others_do():
    splits = {"a": Lengths([5] * 7), "b": Lengths([5] * 20), "c": Lengths([90] * 4)}
    drawn = Batches(splits, {"a": 0, "b": 1, "c": 2}, 0, 100, batch_size=4, seed=1)
    before = [drawn.chosen(0, i) for i in range(len(drawn.plan(0)))]
    drawn.skip = {"b", "c"}
    for i, whole in enumerate(before):
        assert drawn.chosen(0, i).tolist() == [e for e in whole if e < 7]
        assert drawn.present(0, i) <= {"a"}
        if not len(drawn.chosen(0, i)):
            assert drawn.batch(0, i) == (None, 0)
