"""data/token_cache.py: a damaged cache entry is noticed, reported and rebuilt; a whole one is used.

    python -m pytest tests/test_token_cache.py
"""

import json

import pytest
import quick
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.t5_loading import load_tokenizer
from versatile.data import question_samples, question_tasks, task, text_to_text
from versatile.data.encoders import markers, question_answer, sentence_pair
from versatile.data.encoders import text_to_text as text_to_text_encoder

from tests.scripts import SAMPLES


@pytest.fixture(scope="module")
def tokenizers():
    _, gpt2 = backbones.load_backbone("tiny-gpt2")
    cache_task = task.get_task("mt")
    gpt2.add_special_tokens({"additional_special_tokens": list(cache_task.markers)})
    from transformers import AutoTokenizer
    from versatile.adapters.backbones import bundled

    _, lifelong = backbones.load_backbone("tiny-gpt2")
    lifelong.add_special_tokens({"additional_special_tokens": question_answer.special_tokens(["ag"])})
    bert, t5 = AutoTokenizer.from_pretrained(bundled.folder("tiny-bert")), load_tokenizer(bundled.folder("tiny-t5"))
    return gpt2, bert, t5, lifelong


def load_rows(kind, tokenizers, folder):
    """Every row of a split, through the cache in `folder`."""
    if kind == "json":
        split = markers.load_split(SAMPLES / "mt.json", "valid", task.get_task("mt"), tokenizers[0], 256, training=True,
                                   cache_dir=folder)  # fmt: skip
        return [(row.ids.tolist(), row.types.tolist()) for row in (split[i] for i in range(len(split)))]
    if kind == "t5":
        split = text_to_text_encoder.load_split(text_to_text.get_task("rte"), "validation", tokenizers[2], (24, 4),
                                                data_dir=SAMPLES / "glue", cache_dir=folder)  # fmt: skip
        rows = [split[i] for i in range(len(split))]
        texts = [[*split.columns[name]] for name in ("source", "target")]
        return [(row.ids.tolist(), row.label.tolist()) for row in rows], texts
    if kind == "lifelong":
        store = question_samples.store_task(question_tasks.get_task("ag"), SAMPLES / "lifelong", "train")
        rows = question_answer.QuestionEncoder(tokenizers[3], 80).load_rows(store, "__gen__", "ag", cache_dir=folder)
        return [(row.ids.tolist(), row.prompt_length, row.last) for row in rows]
    split = sentence_pair.load_split(SAMPLES / "glue", "rte", "dev", tokenizers[1], 64, cache_dir=folder)
    return [split[i].ids.tolist() for i in range(len(split))]


def cut(path):
    path.write_bytes(path.read_bytes()[:5])


def zero(path):
    path.write_bytes(b"\0" * path.stat().st_size)


def replace_with_directory(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "cut": cut, "zeroed": zero, "gone": lambda path: path.unlink(), "emptied": lambda path: path.write_bytes(b""),
    "a directory": replace_with_directory, "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}  # fmt: skip


@pytest.mark.parametrize("kind, damage", quick.every(3, ["json", "glue", "t5", "lifelong"], DAMAGES))
def test_an_entry_with_any_damaged_file_is_said_and_made_anew(kind, damage, tokenizers, tmp_path, capsys):
    rows = load_rows(kind, tokenizers, tmp_path)
    (entry,) = tmp_path.iterdir()
    for name in sorted(path.name for path in entry.iterdir()):
        before = (entry / name).read_bytes()
        DAMAGES[damage](entry / name)
        if (entry / name).is_file() and (entry / name).read_bytes() == before:
            # Numbers that are all 0 anyway, as the end token's ids are with some tokenizers; an array without an item.
            continue
        capsys.readouterr()
        assert load_rows(kind, tokenizers, tmp_path) == rows
        assert "damaged" in capsys.readouterr().out
        assert load_rows(kind, tokenizers, tmp_path) == rows
        assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize("meta", ["[]", "{}", "null", '{"files": 3}', '{"files": {"ids.bin": []}}', "[" * 100_000])
def test_a_meta_file_that_says_something_else_is_damage_too(meta, tokenizers, tmp_path, capsys):
    rows = load_rows("json", tokenizers, tmp_path)
    (entry,) = tmp_path.iterdir()
    (entry / "meta.json").write_text(meta)
    assert load_rows("json", tokenizers, tmp_path) == rows
    assert "damaged" in capsys.readouterr().out


def test_a_file_where_an_entry_should_be_is_replaced(tokenizers, tmp_path):
    rows = load_rows("glue", tokenizers, tmp_path)
    (entry,) = tmp_path.iterdir()
    for file in entry.iterdir():
        file.unlink()
    entry.rmdir()
    entry.write_text("x")
    assert load_rows("glue", tokenizers, tmp_path) == rows and entry.is_dir()


def test_a_whole_entry_is_not_written_again(tokenizers, tmp_path):
    load_rows("json", tokenizers, tmp_path)
    (entry,) = tmp_path.iterdir()
    before = (entry / "ids.bin").stat().st_ino
    load_rows("json", tokenizers, tmp_path)
    assert (entry / "ids.bin").stat().st_ino == before
    listed = json.loads((entry / "meta.json").read_text())["files"]
    assert {*listed, "meta.json"} == {path.name for path in entry.iterdir()}
