"""`python -m data.convert cnn_dailymail` and `superni`.

python -m pytest tests/test_convert_summaries.py
"""

import csv
import gzip
import hashlib
import io
import json

import pytest
from converting import NOISE, SETTINGS, TEXT, attempt, damaged, error, run, sizes, write
from hypothesis import given
from hypothesis import strategies as st

HEADER = ("id", "article", "highlights")


def csv_text(rows, header=HEADER):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()


def story_text(article, highlights):
    blocks = [*article, *(f"@highlight\n\n{text}" for text in highlights)]
    return "\n\n".join(blocks) + "\n"


# --- csv -------------------------------------------------------------------------------------------------


def test_an_article_comes_on_one_line_and_its_highlights_one_a_line(tmp_path):
    rows = [
        ("0", "x1", '(CNN) -- "One",\r\n two .\n\n By . Me . ', " First . \n\nSecond ."),
        ("1", "x2", " ", "Only this ."),
        ("2", "x3", "Only that .", "\n"),
        ("3", "x4", "By . Me .  a\u2028b", "Last"),
    ]
    path = write(tmp_path / "a.csv.gz", csv_text(rows, ("", *HEADER)))
    got, report = run(tmp_path, "cnn_dailymail", "--train", path, "--test", path)
    assert (
        got["train"]
        == got["test"]
        == [
            {"src": '(CNN) -- "One", two . By . Me .', "tgt": "First .\nSecond ."},
            {"src": "By . Me .  a\u2028b", "tgt": "Last"},
        ]
    )
    assert "train: kept 2, dropped 2 (1 without an article, 1 without highlights)" in report


def test_the_last_articles_can_be_held_out_and_do_not_stay_in_training(tmp_path):
    rows = [(str(i), f"Article {i % 7}", "H") for i in range(10)]
    path = write(tmp_path / "a.csv", csv_text([*rows[:5], ("x", "", "H"), *rows[5:], ("x", "", "H")]))
    flags = ("--valid_from_train", 2, "--test_from_train", 1)
    got, report = run(tmp_path, "cnn_dailymail", "--train", path, *flags)
    articles = {split: [record["src"][-1] for record in records] for split, records in got.items()}
    assert articles == {"train": list("3456"), "valid": list("01"), "test": ["2"]}
    assert "train: kept 4, dropped 5 (3 sharing a text with one held out, 2 without an article)" in report
    (tmp_path / "out" / "data.json").unlink()
    assert "12 records" in error(tmp_path, "cnn_dailymail", "--train", path, "--test_from_train", 12)
    assert "cannot be combined with --test" in error(tmp_path, "cnn_dailymail", "--train", path, "--test", path, *flags)


def test_a_bad_row_is_named_and_skip_bad_counts_it(tmp_path):
    for bad, found in ((("x", "a"), "2 columns"), (("x", "a\0b", "c"), "null byte")):
        path = write(tmp_path / "a.csv", csv_text([("1", "Two\nlines", "H"), bad, ("2", "A", "H")]))
        message = error(tmp_path, "cnn_dailymail", "--train", path)
        assert message.startswith(f"{path}:4: ")
        assert found in message
        got, report = run(tmp_path, "cnn_dailymail", "--train", path, "--skip_bad")
        assert len(got["train"]) == 2
        assert "dropped 1 (1 malformed)" in report
        (tmp_path / "out" / "data.json").unlink()
    for content, found in (("id,text\n1,2\n", "its columns are"), ("", "is empty"),
                           (b"article,highlights\n\xff,b\n", "not UTF-8"),
                           ('article,highlights\n"a,b\n', "not valid csv")):  # fmt: skip
        assert found in error(tmp_path, "cnn_dailymail", "--train", write(tmp_path / "b.csv", content))


def test_the_real_csv_file(tmp_path, shared_data):
    path = shared_data / "cnn_dailymail" / "train_sample.csv"
    got, _ = run(tmp_path, "cnn_dailymail", "--train", path, "--valid_from_train", 10, "--test_from_train", 5)
    assert sizes(got) == {"train": 65, "valid": 10, "test": 5}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    records = [record for records in got.values() for record in records]
    assert [record["src"] for record in records] == [row["article"].strip() for row in rows]
    assert [record["tgt"].split("\n") for record in records] == [
        [line.strip() for line in row["highlights"].strip().split("\n")] for row in rows
    ]


# --- stories ---------------------------------------------------------------------------------------------

URL = "http://web.archive.org/web/2015id_/http://www.cnn.com/2015/1.html"


def story_folders(tmp_path):
    name = hashlib.sha1(URL.encode()).hexdigest()
    write(tmp_path / "cnn" / f"{name}.story", story_text([" (CNN) -- One.", "Two."], ["First", "Second"]))
    write(
        tmp_path / "dm" / "abc.story", story_text(["By . Me"], []) + "@highlight\r\n\r\nin two \n lines\n@highlight\n"
    )
    write(tmp_path / "dm" / "none.story", story_text(["No highlight."], []))
    return ("cnn_dailymail", "--stories", tmp_path / "cnn", tmp_path / "dm")


def test_stories_are_found_by_name_and_by_the_sha1_of_their_url(tmp_path):
    argv = story_folders(tmp_path)
    train, valid = write(tmp_path / "train.txt", f"{URL}\r\n\nnone.story\n"), write(tmp_path / "valid.txt", "abc")
    got, report = run(tmp_path, *argv, "--train_list", train, "--valid_list", valid)
    assert got == {
        "train": [{"src": "(CNN) -- One. Two.", "tgt": "First\nSecond"}],
        "valid": [{"src": "By . Me", "tgt": "in two lines"}],
    }
    assert "train: kept 1, dropped 1 (1 without highlights)" in report
    got, _ = run(tmp_path, *argv, "--train_list", write(tmp_path / "l", f"abc.story\n{URL}"), "--test_from_train", 1)
    assert [got[split][0]["src"] for split in ("train", "test")] == ["By . Me", "(CNN) -- One. Two."]


def test_a_story_that_is_missing_or_broken_is_named_and_skip_bad_counts_it(tmp_path):
    argv = story_folders(tmp_path)
    bad = write(tmp_path / "dm" / "bad.story", b"caf\xe9\n")
    for name, location, found in (
        ("gone", "train.txt:2", "no file gone.story in"),
        ("bad", f"{bad}:1", "not UTF-8"),
        (URL + "x", "train.txt:2", "no file "),
        ("a\0b", "train.txt:2", "no file "),
    ):
        path = write(tmp_path / "train.txt", f"abc\n{name}\n")
        message = error(tmp_path, *argv, "--train_list", path)
        assert location in message.split("\n")[0]
        assert found in message
        got, report = run(tmp_path, *argv, "--train_list", path, "--skip_bad")
        assert len(got["train"]) == 1
        assert "dropped 1 (1 malformed)" in report
        (tmp_path / "out" / "data.json").unlink()


def test_it_says_which_flags_do_not_go_together(tmp_path):
    argv = story_folders(tmp_path)
    path = write(tmp_path / "l", "abc\n")
    assert "--train_list/--valid_list/--test_list: no files" in error(tmp_path, *argv)
    assert "cannot be combined with --stories" in error(tmp_path, *argv, "--train", path, "--train_list", path)
    assert "--train_list: needs --stories" in error(tmp_path, "cnn_dailymail", "--train_list", path)
    assert "is not a folder" in error(tmp_path, "cnn_dailymail", "--stories", path, "--train_list", path)
    flags = ("--train_list", path, "--valid_list", path, "--valid_from_train", 1)
    assert "requires --train_list and cannot be combined with --valid_list" in error(tmp_path, *argv, *flags)


def test_the_layout_of_the_real_story_files(tmp_path, shared_data):
    # Its two stories hold placeholder text.
    folder = shared_data / "cnn_dailymail" / "placeholder_layout" / "cnn" / "stories"
    names = sorted(path.name for path in folder.iterdir())
    train, valid = (write(tmp_path / f"{i}.txt", f"{name}\n") for i, name in enumerate(names))
    got, _ = run(tmp_path, "cnn_dailymail", "--stories", folder, "--train_list", train, "--valid_list", valid)
    assert got["train"] == [
        {"src": "6 Article text. Another line.", "tgt": "This is a highlight.\nThis is another highlight"}
    ]
    assert sizes(got) == {"train": 1, "valid": 1}


# --- properties ------------------------------------------------------------------------------------------

LINES = st.lists(TEXT.filter(lambda text: text != "@highlight"), min_size=1, max_size=4)
ARTICLES = st.lists(st.tuples(LINES, LINES), min_size=1, max_size=4)


@SETTINGS
@given(ARTICLES, st.sampled_from(["\n", "\r\n", " \n\n\t", "\r"]))
def test_any_articles_come_back_from_csv_and_from_stories(articles, line_break):
    wanted = {"train": [{"src": " ".join(article), "tgt": "\n".join(lines)} for article, lines in articles]}
    rows = [(i, line_break.join(article), line_break.join(lines)) for i, (article, lines) in enumerate(articles)]
    assert attempt(["cnn_dailymail", "--train", "{}/a.csv"], {"a.csv": csv_text(rows).encode()}) == wanted
    files = {f"{i}.story": story_text(*article).encode() for i, article in enumerate(articles)}
    files["list"] = "\n".join(files).encode()
    assert attempt(["cnn_dailymail", "--stories", "{}", "--train_list", "{}/list"], files) == wanted


@SETTINGS
@given(st.booleans(), st.data())
def test_damaged_files_are_survived(skip_bad, data):
    flags = ["--skip_bad"] * skip_bad
    content = damaged(csv_text([("1", "A b.\nc", "H\nI"), ("2", '"q", r', "J")]).encode(), data)
    story = damaged(story_text(["A", "b"], ["H", "I"]).encode(), data)
    for got in (
        attempt(["cnn_dailymail", "--train", "{}/a", *flags], {"a": content}),
        attempt(["cnn_dailymail", "--train", "{}/a", "--valid_from_train", "1", *flags], {"a": content}),
        attempt(["cnn_dailymail", "--stories", "{}", "--train_list", "{}/l", *flags], {"a.story": story, "l": b"a"}),
    ):
        for record in (record for split in (got or {}).values() for record in split):
            assert record["src"] and not set("\r\n\0") & set(record["src"])
            assert all(line.strip() for line in record["tgt"].split("\n"))


@SETTINGS
@given(NOISE)
def test_any_bytes_are_survived(content):
    attempt(["cnn_dailymail", "--test", "{}/a.gz"], {"a.gz": content})
    attempt(["cnn_dailymail", "--stories", "{}", "--train_list", "{}/a"], {"a": content})


@pytest.mark.parametrize("flag", ["--valid_from_train", "--test_from_train"])
def test_what_is_held_out_is_at_least_one(tmp_path, flag):
    with pytest.raises(SystemExit):
        run(tmp_path, "cnn_dailymail", "--train", tmp_path, flag, 0)


def test_a_list_reads_no_story_outside_its_folder(tmp_path):
    from versatile.data.converters.summaries import _listed_stories
    from versatile.utils.errors import UserError

    (tmp_path / "in").mkdir()
    (tmp_path / "out.story").write_text("secret\n\n@highlight\n\nx\n")
    (tmp_path / "list.txt").write_text(f"../out.story\n{tmp_path}/out\n")
    found = list(_listed_stories(str(tmp_path / "list.txt"), [str(tmp_path / "in")]))
    assert [isinstance(item, UserError) and "is a path" in str(item) for _, item in found] == [True, True]


# --- Super-NaturalInstructions ---------------------------------------------------------------------------


def superni_text(*rows):
    instances = [dict(id=str(i), input=text, output=outputs) for i, (text, outputs) in enumerate(rows)]
    return json.dumps(dict(Definition=["Summarise it."], Instances=instances))


def test_an_instances_input_and_first_output_come_on_one_line_each(tmp_path):
    train = write(tmp_path / "train.json", superni_text(*((f"Text\n {i}. ", [f" sum {i}", "other"]) for i in range(6))))
    test = write(tmp_path / "test.json", superni_text(("Asked", "one text")))
    got, _ = run(tmp_path, "superni", "--train", train, "--valid_from_train", 2, "--test", test)
    assert {split: len(rows) for split, rows in got.items()} == {"train": 4, "valid": 2, "test": 1}
    assert got["train"][1] == {"src": "Text 1.", "tgt": "sum 1"}
    assert got["valid"][0]["src"] == "Text 4." and got["test"] == [{"src": "Asked", "tgt": "one text"}]


def test_an_instance_without_an_output_is_named_or_skipped(tmp_path):
    path = write(tmp_path / "train.json", superni_text(("a", 3)))
    assert "'output' is 3" in error(tmp_path, "superni", "--train", path)
    # What is documented to be skipped is, and files may be packed or begin with a byte order mark.
    text = superni_text(("a", ["b"]), ("c", []), ("d", ["e"]))
    for name, content in (("a.json", text.encode()), ("b.json", "\ufeff".encode() + text.encode()),
                          ("c.json.gz", gzip.compress(text.encode()))):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        got, _ = run(tmp_path / f"of {name}", "superni", "--train", tmp_path / name, "--skip_bad")
        assert [row["tgt"] for row in got["train"]] == ["b", "e"], name
    path = write(tmp_path / "train.json", superni_text(("a", ["b"]), ("c", [" "])))
    message = error(tmp_path, "superni", "--train", path)
    assert "Instances[1]" in message and "has no output" in message
    got, report = run(tmp_path, "superni", "--train", path, "--skip_bad")
    assert [row["src"] for row in got["train"]] == ["a"] and "1 malformed" in report
