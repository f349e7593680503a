"""Rows of json, jsonl, csv and tsv files that would be learned wrongly are refused.

    python -m pytest tests/test_row_files.py
"""

import csv
import re

import pytest
from versatile.data.json_files import iter_records
from versatile.data.row_files import SPLIT_NAMES, read_rows, split_file
from versatile.utils.errors import UserError


@pytest.mark.parametrize("name, content, place", [
    ("a.jsonl", '{"prompt": "a", "answer": "b"}\n{"prompt": "c", "prompt": "d", "answer": "e"}\n', ":2"),
    ("a.jsonl", '{"prompt": "c", "prompt": "Infinity", "answer": "e"}\n', ":1"),
    ("a.json", '[{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "b", "prompt": "e"}]', "[1]"),
    ("splits.json", '{"train": [{"prompt": "a", "b": {"prompt": 2}}, {"prompt": 1, "prompt": 1}]}', ":train[1]"),
])  # fmt: skip
def test_a_row_that_gives_a_key_twice_is_refused(name, content, place, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=r"gives the key 'prompt'.* twice") as stopped:
        list(iter_records(path, "train") if name == "splits.json" else read_rows(path))
    assert stopped.value.location == f"{path}{place}" and stopped.value.expected == "each key once"


def test_a_tsv_quoted_as_csv_is_refused_and_other_quotes_are_text(tmp_path):
    path, rows = tmp_path / "a.tsv", [('"Yes," he said.', '"whole"'), ('""twice""', 'a "b" c'), ('"a" or "b"', '""')]
    path.write_text("prompt\tanswer\n" + "".join(f"{p}\t{a}\n" for p, a in rows))
    assert [tuple(row.values()) for _, row in read_rows(path)] == rows
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("prompt", "answer"), ("a", "b"), ("c", 'He said "no".')])
    with pytest.raises(UserError, match="the 'answer' is quoted as in a csv file") as stopped:
        list(read_rows(path))
    assert stopped.value.location == f"{path}:3" and ".csv" in stopped.value.remedy
    path.write_text('prompt,answer\na,"He said ""no""."\n')
    assert [row["answer"] for _, row in read_rows(path.rename(tmp_path / "a.csv"))] == ['He said "no".']


def test_two_files_of_one_split_are_refused_whatever_they_are_called(tmp_path):
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert split_file(tmp_path, SPLIT_NAMES["valid"], "mine").name == "valid.jsonl"
    for name in ("dev.jsonl", "valid.csv", "val.json.gz"):
        (tmp_path / name).write_text("{}\n")
        with pytest.raises(UserError, match=re.escape("has both valid.jsonl and")):
            split_file(tmp_path, SPLIT_NAMES["valid"], "mine")
        (tmp_path / name).unlink()
