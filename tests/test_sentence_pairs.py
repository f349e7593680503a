"""GLUE rows: tokenised once, truncated from the longer text, and collated into batches that may mix tasks."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from versatile.adapters.backbones import bundled
from versatile.data import glue, glue_files
from versatile.data.encoders.base import EncodedExample
from versatile.data.encoders.sentence_pair import PairEncoder, load_split, longest_first
from versatile.data.glue_task import GlueExample
from versatile.data.pair_batches import CandidateBatches, CoverageTracker, PairBatches
from versatile.utils.errors import UserError

SAMPLES = "data/samples/glue"
COLA = "src\t1\t\tThe dog sleeps.\nsrc\t0\t*\tDog the sleeps.\nsrc\t1\t\tA cat ran.\n"
STSB_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
STSB = STSB_HEADER + "".join(f"{i}\tg\tf\ty\t{i}\ts\ts\tA dog ran {i}.\tThe cat sat.\t{s}\n"
                             for i, s in enumerate(("3.8", "0.25", "5.0", "4.2", "1.0")))  # fmt: skip
RTE = "index\tsentence1\tsentence2\tlabel\n7\tA man runs.\tA man moves.\tentailment\n9\tA b.\tC d.\tnot_entailment\n"


@pytest.fixture(scope="module")
def tokenizer(cache):
    return AutoTokenizer.from_pretrained(bundled.folder("tiny-bert"))


def write(folder, **files):
    """{task folder: content of its train and dev files}; returns the data directory."""
    names = {"cola": "CoLA", "stsb": "STS-B", "rte": "RTE"}
    for name, content in files.items():
        for split in ("train", "dev"):
            path = folder / names[name] / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8", newline="\n")
    return folder


@pytest.fixture
def splits(tmp_path, tokenizer):
    data = write(tmp_path, cola=COLA, stsb=STSB, rte=RTE)
    return {name: load_split(data, name, "train", tokenizer, 32) for name in ("cola", "sts-b", "rte")}


# --- rows


@given(st.integers(0, 40), st.one_of(st.none(), st.integers(0, 40)), st.integers(0, 50))
def test_one_token_after_another_goes_from_the_longer_text_and_at_a_tie_from_the_second(first, second, room):
    a, b = first, second
    while a + (b or 0) > room:
        if b is None or a > b:
            a -= 1
        else:
            b -= 1
    assert longest_first(first, second, room) == (a, b)


@given(st.lists(st.tuples(st.text(), st.one_of(st.none(), st.text(min_size=1))), min_size=1), st.integers(5, 40))
def test_rows_are_what_the_tokenizer_makes_of_them(tokenizer, texts, longest):
    # A special token spelt out in a text stays text, which the library's own call does not ensure.
    texts = [(a.replace("[", "("), b if b is None else b.replace("[", "(")) for a, b in texts]
    examples = [GlueExample(i, a, b, None, "x") for i, (a, b) in enumerate(texts)]
    encoder, task, cuts = PairEncoder(tokenizer, longest), glue.get_task("rte"), 0
    for example in examples:
        encoded, whole = encoder.encode(task, example), tokenizer(example.text_a, example.text_b)
        row, first, cut = encoded.ids, encoded.types.count(0), encoder.counts.total() > cuts
        cuts += cut
        assert len(row) == min(longest, len(whole["input_ids"])) and cut == (len(whole["input_ids"]) > longest)
        assert [row[0], row[first - 1], row[-1]] == [tokenizer.cls_token_id] + 2 * [tokenizer.sep_token_id]
        if not cut:
            assert row == whole["input_ids"] and whole["token_type_ids"] == encoded.types


def test_a_special_token_spelt_in_a_text_stays_text(tokenizer):
    example = GlueExample(0, "a [SEP] b [PAD]", "c [CLS]", None, "x")
    encoded = PairEncoder(tokenizer, 64).encode(glue.get_task("rte"), example)
    row, first = encoded.ids, encoded.types.count(0)
    assert row.count(tokenizer.sep_token_id) == 2 and row.count(tokenizer.cls_token_id) == 1
    assert row[first - 1] == tokenizer.sep_token_id and tokenizer.pad_token_id not in row


def test_a_tokenizer_that_comes_with_a_length_of_its_own_is_not_cut_by_it(tmp_path, tokenizer):
    own = AutoTokenizer.from_pretrained(bundled.folder("tiny-bert"))
    own.backend_tokenizer.enable_truncation(5)
    own.backend_tokenizer.enable_padding(length=16)
    data = write(tmp_path, rte=RTE)
    one, other = (load_split(data, "rte", "dev", t, 32) for t in (own, tokenizer))
    assert one[0].ids.tolist() == other[0].ids.tolist() and one.key == other.key


# --- labels


def test_labels_are_ids_in_the_tasks_order_and_scores_as_they_are(splits):
    assert splits["cola"].labels.tolist() == [1, 0, 1] and splits["rte"].labels.tolist() == [0, 1]
    rows = [splits[name].columns["index"].tolist() for name in ("rte", "cola")]
    assert splits["sts-b"].labels.tolist() == pytest.approx([3.8, 0.25, 5.0, 4.2, 1.0])
    assert rows == [[7, 9], [0, 1, 2]]


def test_mnlis_labels_are_those_of_the_published_models(tokenizer):
    split = load_split(SAMPLES, "mnli", "dev", tokenizer, 64)
    names = [e.label for e in glue.read_examples(SAMPLES, "mnli", "dev")]
    assert [("contradiction", "entailment", "neutral")[int(i)] for i in split.labels] == names


def test_test_files_have_no_labels_and_dev_files_must(tmp_path, tokenizer):
    assert np.isnan(load_split(SAMPLES, "sts-b", "test", tokenizer, 64).labels).all()
    with pytest.raises(UserError, match="label"):
        load_split(write(tmp_path, rte=RTE.replace("label", "lable")), "rte", "dev", tokenizer, 64)


def test_a_batch_of_classes_and_scores_keeps_the_scores_fractions(splits):
    """In the original the first row's type turns 3.8 into 3."""
    batches = PairBatches(splits, {"cola": 0, "sts-b": 1, "rte": 2}, 0, 32, 10)
    batch, _ = batches.batch(0, 0)
    scores = batch["labels"][batch["task_ids"] == 1]
    assert batch["labels"].dtype == torch.float32
    assert sorted(scores.tolist()) == pytest.approx([0.25, 1.0, 3.8, 4.2, 5.0])


# --- the cache


def test_a_file_is_tokenised_once(tmp_path, tokenizer, monkeypatch):
    data = write(tmp_path, rte=RTE)
    first = load_split(data, "rte", "train", tokenizer, 32)
    monkeypatch.setattr(glue, "read_examples", lambda *a: pytest.fail("read again"))
    again = load_split(data, "rte", "train", tokenizer, 32)
    assert again.key == first.key and [again[i].ids.tolist() for i in (0, 1)] == [first[i].ids.tolist() for i in (0, 1)]


def test_another_content_length_or_tokenizer_is_another_cache(tmp_path, tokenizer):
    from transformers import BertTokenizer

    data, keys = write(tmp_path, rte=RTE), []
    keys.append(load_split(data, "rte", "train", tokenizer, 32).key)
    keys.append(load_split(data, "rte", "train", tokenizer, 31).key)
    keys.append(load_split(data, "rte", "train", BertTokenizer(), 32).key)
    write(tmp_path, rte=RTE.replace("A b.", "A c."))
    keys.append(load_split(data, "rte", "train", tokenizer, 32).key)
    assert len(set(keys)) == 4
    copied = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}_copy")
    assert load_split(copied, "rte", "train", tokenizer, 32).key == keys[-1]


def test_the_order_of_the_tasks_changes_the_ids_and_nothing_else(splits):
    """The original finds its cache by length alone, and gets the ids of another order."""
    there, back = {n: splits[n] for n in ("cola", "rte")}, {n: splits[n] for n in ("rte", "cola")}
    one, _ = PairBatches(there, {"cola": 0, "rte": 1}, 0, 32, 5).batch(0, 0)
    other, _ = PairBatches(back, {"rte": 0, "cola": 1}, 0, 32, 5).batch(0, 0)

    def rows(batch, names):
        each = zip(batch["task_ids"].tolist(), batch["input_ids"].tolist(), batch["labels"].tolist())
        return sorted((names[t], ids, label) for t, ids, label in each)

    assert rows(one, ["cola", "rte"]) == rows(other, ["rte", "cola"])


def test_overwritten_is_tokenised_anew(tmp_path, tokenizer, monkeypatch):
    data = write(tmp_path, rte=RTE)
    load_split(data, "rte", "train", tokenizer, 32)
    read, calls = glue.iter_examples, []
    monkeypatch.setattr(glue, "iter_examples", lambda *a: calls.append(a) or read(*a))
    assert len(load_split(data, "rte", "train", tokenizer, 32, overwrite=True)) == 2 and len(calls) == 1


def test_a_limit_takes_the_first_rows_and_is_part_of_the_key(tmp_path, tokenizer):
    data = write(tmp_path, stsb=STSB)
    whole, few, all_of_it = (load_split(data, "sts-b", "train", tokenizer, 32, limit=n) for n in (None, 2, 99))
    assert len(few) == 2 and few.labels.tolist() == whole.labels.tolist()[:2]
    assert few[1].ids.tolist() == whole[1].ids.tolist()
    assert few.key != whole.key == all_of_it.key and few.report["kept"] == 5


def test_only_the_rows_of_a_limit_are_tokenised_and_counted_as_cut(tmp_path, tokenizer, monkeypatch):
    data, tokenize, seen = write(tmp_path, stsb=STSB), PairEncoder.tokenize, []
    monkeypatch.setattr(PairEncoder, "tokenize", lambda e, texts: seen.append(len(texts) // 2) or tokenize(e, texts))
    reports = [load_split(data, "sts-b", "dev", tokenizer, 5, limit=n).report for n in (2, None, 2, 3)]
    assert seen == [2, 5, 3] and [r["cut"]["over 5 tokens"] for r in reports] == [2, 5, 2, 3]
    assert {r["kept"] for r in reports} == {5}


# --- what is wrong or missing


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (RTE + "3\tA man.\tentailment\n", "train.tsv:4: 3 columns"),
        (RTE + "3\tA man.\tB.\tperhaps\n", "train.tsv:4: the label is 'perhaps'"),
        ("index\tsentence1\tlabel\n", "no 'sentence2'"),
    ],
)
def test_a_broken_line_is_refused_with_its_place_and_leaves_no_cache(content, said, tmp_path, tokenizer):
    data, kept = write(tmp_path / "data", rte=content), tmp_path / "kept"
    with pytest.raises(UserError) as refused:
        load_split(data, "rte", "train", tokenizer, 32, cache_dir=kept)
    assert said in str(refused.value) and not list(kept.glob("*"))


def test_missing_files_are_all_named_with_the_tasks_that_are_whole(tmp_path):
    data = write(tmp_path, cola=COLA, rte=RTE)
    glue_files.need(data, ["cola", "rte"], ["train", "dev"])
    with pytest.raises(UserError) as refused:
        glue_files.need(data, ["cola", "rte", "sst-2"], ["train", "dev"])
    said = str(refused.value)
    assert "no SST-2/train.tsv, SST-2/dev.tsv" in said and "--tasks cola rte leaves them out" in said
    with pytest.raises(UserError, match="no such directory"):
        glue_files.need(tmp_path / "none", ["cola"], ["train"])


def test_where_to_get_says_what_is_there_and_what_is_not(tmp_path):
    write(tmp_path, cola=COLA)
    (tmp_path / "CoLA" / "test.tsv").write_text("index\tsentence\n0\tA.\n")
    text = glue_files.where_to_get(tmp_path)
    assert "cola     all there" in text and "missing: MNLI/train.tsv" in text and "download_glue_data.py" in text
    assert "https://" in text.split("MNLI  ")[1] and "  CoLA  " not in text
    assert "everything" in glue_files.where_to_get(tmp_path, ["cola"])
    assert "missing: " in glue_files.where_to_get(None)


# --- batches


class Rows:
    """A split of this many rows, each consisting of its number."""

    def __init__(self, count, label=1.0):
        self.lengths = np.full(count, 3)
        self.labels = np.full(count, label, np.float32)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, row):
        return EncodedExample(np.array([1, row, 2]), np.zeros(3), 3)


SIZES = dict(a=5, b=11, c=8)


def batches_of(sizes, batch_size=4, kind=PairBatches, **more):
    return kind({t: Rows(n) for t, n in sizes.items()}, {t: i for i, t in enumerate(sizes)}, 0, 8, batch_size, **more)


def drawn(batches, epoch):
    """[(task id, row)] of an epoch, in order."""
    found = []
    for step in range(len(batches.plan(epoch))):
        batch, _ = batches.batch(epoch, step)
        rows = zip(batch["task_ids"].tolist(), batch["input_ids"][:, 1].tolist(), batch["weights"].tolist())
        found += [(task, row) for task, row, weight in rows if weight]
    return found


def every_row(sizes):
    return sorted((i, row) for i, n in enumerate(sizes.values()) for row in range(n))


def test_an_epoch_has_every_row_once_in_an_order_of_its_own():
    batches = batches_of(SIZES)
    first, second = drawn(batches, 0), drawn(batches, 1)
    assert sorted(first) == sorted(second) == every_row(SIZES) and first != second
    assert drawn(batches_of(SIZES), 0) == first != drawn(batches_of(SIZES, seed=1), 0)


def test_a_batchs_loss_is_the_mean_over_its_tasks():
    batch, divisor = batches_of(SIZES, 24).batch(0, 0)
    for task, size in enumerate(SIZES.values()):
        weights = batch["weights"][batch["task_ids"] == task]
        assert len(weights) == size and torch.allclose(weights, torch.tensor(1 / (3 * size)))
    assert divisor == 1 and float(batch["weights"].sum()) == pytest.approx(1)


@pytest.mark.parametrize("world", [2, 3, 30])
def test_processes_share_one_global_batch(world):
    """A single process with a batch as large draws the same rows with the same weights."""
    alone = batches_of(SIZES, 2 * world)
    parts = [batches_of(SIZES, 2, rank=r, world=world) for r in range(world)]
    assert all(len(part.plan()) == len(alone.plan()) for part in parts)
    for step in range(len(alone.plan())):
        found = []
        for b in [alone, *parts]:
            batch, _ = b.batch(0, step)
            each = zip(batch["task_ids"].tolist(), batch["input_ids"][:, 1].tolist(), batch["weights"].tolist())
            found.append([row for row in each if row[2]])
        assert sorted(found[0]) == sorted(row for part in found[1:] for row in part)
    assert all(part.tracker.counts == alone.tracker.counts == SIZES for part in parts)


def test_a_batch_in_parts_of_like_lengths_is_the_batch(tokenizer):
    splits = {t: load_split(SAMPLES, t, "train", tokenizer, 64) for t in ("cola", "mnli")}
    whole, parts = (PairBatches(splits, {"cola": 0, "mnli": 1}, 0, 64, 20, rows_at_once=n) for n in (None, 8))
    batch, several = whole.batch(0, 3)[0], parts.batch(0, 3)[0]
    assert [len(part["labels"]) for part in several] == [8, 8, 4] and whole.tracker.counts == parts.tracker.counts

    def rows(part):
        ids = [row[mask.bool()].tolist() for row, mask in zip(part["input_ids"], part["attention_mask"])]
        return list(zip(ids, part["task_ids"].tolist(), part["labels"].tolist(), part["weights"].tolist()))

    assert sorted(rows(batch)) == sorted(row for part in several for row in rows(part))
    lengths = [part["input_ids"].shape[1] for part in several]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1] == batch["input_ids"].shape[1]


def test_uniform_sampling_draws_every_task_equally_often_and_no_row_twice_before_all():
    sizes = dict(a=3, b=40, c=17)
    batches = batches_of(sizes, 4, uniform=1.0)
    assert len(batches.plan()) == 10 * 3
    many = [drawn(batches, epoch) for epoch in range(4)]
    for rows in many:
        counts = np.bincount([task for task, _ in rows])
        assert len(rows) == 120 and counts.max() - counts.min() <= 1
    for task, size in enumerate(sizes.values()):
        times = np.bincount([row for epoch in many for t, row in epoch if t == task], minlength=size)
        assert len(times) == size and times.max() - times.min() <= 1


@pytest.mark.parametrize(("percent", "steps"), [(1.0, 9), (0.5, 4), (0.0, 1), (7.0, 9), (-1.0, 1)])
def test_the_share_of_the_largest_task_sets_the_length_of_an_epoch(percent, steps):
    assert len(batches_of(SIZES, 4, uniform=percent).plan()) == steps
    assert len(batches_of(SIZES, 4, CandidateBatches, select=None, percent=percent).plan()) == steps


def test_candidates_are_one_batch_of_each_task_and_exhausted_tasks_start_again():
    batches = batches_of(SIZES, 4, CandidateBatches, select=None)
    found = [batches.candidates(0, step) for step in range(9)]
    starts = np.cumsum([0, *SIZES.values()])
    for number, size in enumerate(SIZES.values()):
        parts = [c[(c >= starts[number]) & (c < starts[number + 1])] - starts[number] for c in found]
        loader = -(-size // 4)
        assert [len(p) for p in parts] == [min(4, size - 4 * (i % loader)) for i in range(9)]
        passes = [np.concatenate(parts[i : i + loader]).tolist() for i in range(0, 9 - loader + 1, loader)]
        assert all(sorted(p) == list(range(size)) for p in passes) and passes[0] != passes[1]
    assert found[0].tolist() != batches.candidates(1, 0).tolist()


def test_the_selection_decides_what_is_learnt_and_the_rest_is_not_seen():
    asked = []

    def select(batches, candidates, keep):
        asked.append((len(candidates), keep))
        return np.argsort(candidates)[-keep:]

    batches = batches_of(SIZES, 4, CandidateBatches, select=select)
    batch, _ = batches.batch(0, 0)
    assert asked == [(12, 4)] and set(batch["task_ids"].tolist()) == {2} and batch["weights"].tolist() == [0.25] * 4
    assert batches.tracker.counts == dict(a=0, b=0, c=4)


def test_what_has_been_seen_is_counted_and_survives_a_checkpoint(tmp_path):
    seen = CoverageTracker(dict(a=10, b=3))
    seen.add("a", np.array([1, 1, 7]))
    assert seen.counts == dict(a=3, b=0) and seen.shares() == dict(a=0.2, b=0.0)
    torch.save(seen.state_dict(), tmp_path / "state")
    other = CoverageTracker(dict(a=10, b=3))
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert other.counts == seen.counts and all((other.rows[t] == seen.rows[t]).all() for t in "ab")
    other.add("a", np.array([2]))
    assert other.shares()["a"] == pytest.approx(0.3)


@pytest.mark.parametrize(("name", "train", "dev"), [("mrpc", 3668, 408), ("sts-b", 5749, 1500), ("rte", 2127, 277)])
@pytest.mark.slow
def test_real_files_are_read_whole(name, train, dev, tokenizer, shared_data):
    """Single quotes, a byte order mark, odd line separators: no row is lost."""
    found = {s: load_split(shared_data / "glue", name, s, tokenizer, 128) for s in ("train", "dev")}
    assert (len(found["train"]), len(found["dev"])) == (train, dev) and found["train"].lengths.max() <= 128
    assert not np.isnan(found["train"].labels).any()
