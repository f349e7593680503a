"""Reading task json, text and csv files: the result, and the message when a file is wrong.

    python -m pytest tests/test_data_files.py
"""

import contextlib
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from versatile.data import compressed, files, json_files
from versatile.utils.errors import UserError

GOOD = {"train": [{"src": "ä", "n": 1, "x": 0.5, "deep": {"l": [1, [], {}, None, True]}}, {}],
        "valid": [{"src": "b"}], "test": [{"src": "c"}]}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def records(path, split="train"):
    return list(json_files.iter_records(path, split))


def error(path, split="train"):
    with pytest.raises(UserError) as caught:
        records(path, split)
    return caught.value


def test_records_come_with_their_place(tmp_path):
    path = write(tmp_path / "data.json", json.dumps(GOOD, ensure_ascii=False))
    for split in GOOD:
        expected = [(f"{path}:{split}[{i}]", record) for i, record in enumerate(GOOD[split])]
        assert records(path, split) == expected
    assert json_files.split_names(path) == ["train", "valid", "test"]


def test_place_names_the_file_as_the_user_did(tmp_path, monkeypatch):
    write(tmp_path / "data.json", json.dumps(GOOD))
    monkeypatch.chdir(tmp_path)
    assert records("data.json")[1][0] == "data.json:train[1]"


def test_val_is_read_as_valid(tmp_path):
    path = write(tmp_path / "d.json", '{"val": [{"a": "b"}]}')
    assert records(path, "valid") == [(f"{path}:val[0]", {"a": "b"})]


def test_gz_and_byte_order_mark_are_read_alike(tmp_path):
    plain = write(tmp_path / "a.json", b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    packed = write(tmp_path / "a.json.gz", gzip.compress(json.dumps(GOOD).encode()))
    assert [r for _, r in records(plain)] == [r for _, r in records(packed)] == GOOD["train"]


def test_fingerprint_is_the_sha256_of_the_bytes(tmp_path):
    content = b"x" * 3_000_000
    assert files.fingerprint(write(tmp_path / "f", content)) == hashlib.sha256(content).hexdigest()


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "big.json"
    with open(path, "w") as file:
        line = json.dumps({"src": "w " * 50, "tgt": "v " * 50})
        file.write('{"train": [' + ",\n".join([line] * 40_000) + '], "test": [{}]}')
    tracemalloc.start()
    count = sum(1 for _ in json_files.iter_records(path, "train"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000
    assert path.stat().st_size > 8_000_000
    assert peak < 2_000_000


@pytest.mark.parametrize(("content", "found"), [
    (b"", "is empty"),
    (b" \n\n", "is empty"),
    (b"[]", "is a list at the top level"),
    (b"12", "is 12 (int) at the top level"),
    (b'{"test": [{}], "extra": 1}', "has no 'train' split; its keys are: 'test', 'extra'"),
    (b"{}", "its keys are: none"),
    (b'{"train": []}', "is empty"),
    (b'{"train": {"item": 1}}', "is an object"),
    (b'{"train": "x"}', "is 'x' (str)"),
    (b'{"train": [{}, 3]}', "is 3 (int)"),
    (b'{"train": [{}], "train": [{}]}', "more than once"),
    (b'{"train":\n [{"a": NaN}]}', "NaN at line 2, column 9 is not JSON"),
    (b'{"train": [{"a": -Infinity}]}', "Infinity at line 1"),
    (b'{"train": [{"a": "\xe4b"}]}', "is not UTF-8 text, at line 1"),
    ('{"train": [{"a": "b"}]}'.encode("utf-16"), "is not UTF-8 text, at line 1, column 1"),
    (b'{"train": [{"a": "b"},\n {"a": "c"}', "ends in the middle of the JSON, at line 2, column 12"),
    ('{"train": [\n{"ä": "ü", x}]}'.encode(), "is not valid JSON at line 2, column 12, near 'x}]}'"),
    (b'{"train": [{}]} x', "is not valid JSON at line 1, column 17"),
    (b'{"train": [{"a": 1e999}]}', "overflow"),
])
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, content, found):
    path = write(tmp_path / "data.json", content)
    raised = error(path)
    assert str(raised.location).startswith(str(path))
    assert found in str(raised)
    assert raised.expected
    assert raised.remedy


def test_the_place_of_a_record_that_is_no_object(tmp_path):
    path = write(tmp_path / "d.json", '{"train": [{}, [1]]}')
    assert error(path).location == f"{path}:train[1]"


def test_line_and_column_are_right_far_into_a_large_file(tmp_path):
    lines = [json.dumps({"src": f"größe {i}"}, ensure_ascii=False) for i in range(20_000)]
    lines[15_000] = '{"src": größe}'
    path = write(tmp_path / "d.json", '{"train": [\n' + ",\n".join(lines) + "]}")
    assert "line 15002, column 9" in str(error(path))


def test_a_file_cut_off_behind_the_wanted_split_does_not_pass(tmp_path):
    path = write(tmp_path / "d.json", json.dumps(GOOD)[:-3])
    assert "ends in the middle" in str(error(path, "train"))


def test_deep_nesting_is_an_error_where_it_is_read_and_harmless_where_it_is_not(tmp_path):
    deep = "[" * 200_000 + "]" * 200_000
    path = write(tmp_path / "d.json", f'{{"train": [{{"a": {deep}}}], "valid": [{{}}]}}')
    assert "nested more than" in str(error(path))
    assert len(records(path, "valid")) == 1


def test_files_that_cannot_be_opened(tmp_path):
    assert "no such file" in str(error(tmp_path / "none.json"))
    assert "is a directory" in str(error(tmp_path))
    assert "not a whole gzip file" in str(error(write(tmp_path / "a.json.gz", b'{"train": [{}]}')))
    packed = gzip.compress(json.dumps(GOOD).encode())
    assert "gzip" in str(error(write(tmp_path / "b.json.gz", packed[:-12])))
    assert "gzip" in str(error(write(tmp_path / "c.json.gz", packed[:20] + b"\xff\xff\xff" + packed[23:])))
    assert "file name" in str(error("a\0b"))
    for function in (json_files.split_names, files.fingerprint):
        with pytest.raises(UserError, match="no such file"):
            function(tmp_path / "none.json")


@pytest.mark.parametrize(("function", "value", "found"), [
    (files.text_field, 12, "'f' is 12 (int)"),
    (files.text_field, None, "'f' is None"),
    (files.texts_field, "ab", "'f' is 'ab' (str)"),
    (files.texts_field, ["a", 1], "'f[1]' is 1 (int)"),
    (files.mapping_field, ["a"], "'f' is ['a'] (list)"),
    (files.mapping_field, {"a": "b", "c": None}, "'f.c' is None"),
    (files.records_field, [{}, "x"], "'f[1]' is 'x'"),
])
def test_a_field_of_the_wrong_type_is_named(function, value, found):
    with pytest.raises(UserError) as caught:
        function({"f": value}, "f", "data.json:train[3]")
    assert caught.value.location == "data.json:train[3]"
    assert found in caught.value.found
    with pytest.raises(UserError, match="has no 'f'; its keys are: 'g'"):
        function({"g": 1}, "f", "p")


def test_fields_come_back_as_they_are():
    assert files.text_field({"f": "  "}, "f", "p") == "  "
    assert files.texts_field({"f": []}, "f", "p") == []
    assert files.mapping_field({"f": {"b": "1", "a": "2"}}, "f", "p") == {"b": "1", "a": "2"}
    assert files.records_field({"f": [{"a": 1}]}, "f", "p") == [{"a": 1}]


def test_only_newlines_end_a_line(tmp_path):
    path = write(tmp_path / "t.txt", "a\u2028b\x85c\u00a0\r\nd")
    assert list(files.text_lines(path)) == [(1, "a\u2028b\x85c\u00a0\r\n"), (2, "d")]


def test_csv_places_count_the_lines_of_quoted_line_breaks(tmp_path):
    path = write(tmp_path / "t.csv", 'MR,ref,x\r\n"a\r\nb","say ""hi""",1\r\nshort\r\n\r\nc,d,e\r\n')
    rows = list(files.csv_rows(path, ("mr", "ref"), "fix it"))
    assert rows[0] == (f"{path}:2", {"mr": "a\r\nb", "ref": 'say "hi"', "x": "1"})
    assert rows[1][0] == f"{path}:4"
    assert isinstance(rows[1][1], UserError)
    assert rows[2] == (f"{path}:6", {"mr": "c", "ref": "d", "x": "e"})


def test_reading_needs_no_heavy_library():
    check = ("import sys, data.files, data.convert; "
             "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", check], cwd=Path(files.__file__).parent.parent,
                          capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- properties ------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12)
KEYS = st.sampled_from(["train", "val", "valid", "test", "train.item", ""])


def outcome(content, split, name="d.json"):
    """The records, or None for a `UserError`; anything else is a failure."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, content)
        for function in (json_files.split_names, files.fingerprint):
            with contextlib.suppress(UserError):
                function(path)
        try:
            return [record for _, record in json_files.iter_records(path, split)]
        except UserError as raised:
            assert raised.location
            return None


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(KEYS, st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=3) | VALUES) | VALUES,
       st.sampled_from(["train", "valid", "test"]))
def test_any_json_gives_its_records_or_a_user_error(document, split):
    got = outcome(json.dumps(document), split)
    names = ("valid", "val") if split == "valid" else (split,)
    there = [name for name in names if name in document] if isinstance(document, dict) else []
    right = (len(there) == 1 and isinstance(document[there[0]], list) and document[there[0]]
             and all(isinstance(record, dict) for record in document[there[0]]))
    assert got == (document[there[0]] if right else None)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_json_is_a_user_error_or_still_json(data):
    content = bytearray(json.dumps(GOOD, ensure_ascii=False).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 6))
        tokens = st.sampled_from([b"NaN", b"{", b"]", b'"', b"\\u"])
        content[at:at + cut] = data.draw(st.binary(max_size=4) | tokens)
    outcome(bytes(content), data.draw(st.sampled_from(["train", "valid", "test"])))


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60), st.sampled_from(["d.json", "d.json.gz"]))
@example(b"\x1f\x8b\x08\x00", "d.json.gz")
@example(b"\xef\xbb\xbf", "d.json")
def test_any_bytes_are_a_user_error(content, name):
    assert outcome(content, "train", name) is None


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=60))
def test_damaged_gzip_is_a_user_error_or_unharmed(noise):
    packed = gzip.compress(json.dumps(GOOD).encode(), mtime=0)
    for content in (packed[:len(noise) * 2] + noise, packed + noise, packed[:-len(noise) or None]):
        assert outcome(content, "train", "d.json.gz") in (None, GOOD["train"])


def test_halves_of_characters_and_long_numbers_are_read():
    from versatile.data.json_text import WholeCharacters, loads

    text = r'{"a": "x \ud83d y \ude00 \ud83d\ude00 \\ud83d \\\ud83d", "n": 13835058055282163712, "f": 0.1}'
    wanted = {"a": "x ? y ? 😀 \\ud83d \\?", "n": 13835058055282163712, "f": 0.1}
    assert loads(text, "here") == wanted
    content = f'{{"train": [{text}]}}'.encode()
    for size in (1, 2, 5, 7, 11, 12, 13, 64):
        file = WholeCharacters(io.BytesIO(content), "file")
        pieces = []
        while piece := file.read(size):
            pieces.append(piece)
        read = b"".join(pieces)
        assert len(read) == len(content) and json.loads(read)["train"] == [wanted]


def test_half_a_character_in_a_task_file(tmp_path):
    path = write(tmp_path / "data.json", rb'{"train": [{"a": "\ude00 x", "hash": 13835058055282163712, "f": 1.5}]}')
    ((_, record),) = json_files.iter_records(path, "train")
    assert record == {"a": "? x", "hash": 13835058055282163712, "f": 1.5} and type(record["f"]) is float


def test_a_number_of_thousands_of_digits_is_the_files_fault(tmp_path):
    from versatile.data.json_text import loads

    path = write(tmp_path / "data.json", b'{"train": [{"a": ' + b"1" * 5000 + b"}]}")
    assert "too many digits" in str(error(path)) and str(path) in str(error(path))
    with pytest.raises(UserError, match="too many digits"):
        loads("1" * 5000, "here")


def test_lines_fields_and_strings_without_end_are_refused_in_one_message(tmp_path, monkeypatch):
    from versatile.data import files, json_files, json_text

    for module in (files, json_files, json_text):
        monkeypatch.setattr(module, "LONGEST", 1 << 20)
    with gzip.open(tmp_path / "a.json.gz", "wb") as file:
        file.write(b'{"train": [{"a": "' + b"x" * (3 << 20))
    assert "without a quotation mark" in str(error(tmp_path / "a.json.gz"))
    path = write(tmp_path / "a.txt", b"x" * (2 << 20))
    with pytest.raises(UserError, match="a line of more than 1 MiB"):
        list(files.text_lines(path))
    path = write(tmp_path / "a.csv", b'"' + b"x\n" * (1 << 20) + b'"')
    with pytest.raises(UserError, match="a field of more than 1 MiB"):
        list(files.bare_csv_rows(path))
    monkeypatch.undo()
    path = write(tmp_path / "b.csv", b'1,"' + b"x" * 200_000 + b'"\n')
    assert [len(row[1]) for _, row in files.bare_csv_rows(path)] == [200_000]


@pytest.mark.parametrize("read", [lambda path: list(json_files.iter_records(path, "train")),
                                  lambda path: list(files.text_lines(path)),
                                  lambda path: list(files.csv_rows(path, ["a"], ""))])  # fmt: skip
def test_a_gzip_file_that_decompresses_beyond_all_measure_is_refused_as_it_is_read(tmp_path, monkeypatch, read):
    content = b'{"train": [{}' + b", {}" * 500_000 + b"]}"
    path = write(tmp_path / "bomb.json.gz", gzip.compress(content))
    monkeypatch.setattr(compressed, "MOST_RATIO", 100)
    monkeypatch.setattr(compressed, "MOST_BYTES", 1 << 20)
    with pytest.raises(UserError, match=r"bomb\.json\.gz.*decompresses to more than 1,048,576 bytes"):
        read(path)


@pytest.mark.parametrize(("ratio", "size"), [(100_000, 1), (1, 1 << 30)])
def test_a_large_gzip_file_and_one_that_shrinks_much_are_both_read(tmp_path, monkeypatch, ratio, size):
    path = write(tmp_path / "a.json.gz", gzip.compress(b'{"train": [{}' + b", {}" * 5000 + b"]}"))
    monkeypatch.setattr(compressed, "MOST_RATIO", ratio)
    monkeypatch.setattr(compressed, "MOST_BYTES", size)
    assert len(list(json_files.iter_records(path, "train"))) == 5001
