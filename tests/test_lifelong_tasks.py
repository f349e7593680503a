"""lifelong.tasks and lifelong.samples: which files a task has, and what they hold.

python -m pytest tests/test_lifelong_tasks.py
"""

import gzip
import json

import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.data import question_samples as samples
from versatile.data import question_tasks as tasks
from versatile.data.question_samples import QA
from versatile.data.task_orders import ORDERS
from versatile.utils.errors import UserError

SETTINGS = settings(deadline=None, max_examples=60)


def squad(*paragraphs):
    """SQuAD-style json of (context, [(question, answers), …])."""
    return {
        "data": [
            {"paragraphs": [{"context": context, "qas": [
                {"question": question, "answers": [{"text": text} for text in answers]} for question, answers in asked
            ]}]} for context, asked in paragraphs
        ]
    }  # fmt: skip


def written(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def error(call, *args, **named):
    with pytest.raises(UserError) as caught:
        result = call(*args, **named)
        list(result)
    assert caught.value.location
    assert caught.value.expected
    assert caught.value.remedy
    return str(caught.value)


# --- tasks -----------------------------------------------------------------------------------------------


def test_every_task_of_the_originals_has_the_originals_file_names():
    names = ["squad1", "squad2", "iwslt.en.de", "cnn_dailymail", "multinli.in.out", "sst", "srl", "zre", "woz.en",
             "wikisql", "schema", "ag", "dbpedia", "yahoo", "amazon", "yelp", "e2enlg", "e2enlg2", "rnnlg.rest",
             "rnnlg.hotel", "rnnlg.tv", "rnnlg.laptop"]  # fmt: skip
    splits = ("train", "dev", "test", "distil")
    assert list(tasks.TASKS)[: len(names)] == names
    assert set(tasks.TASKS) - set(names) == {task for order in ORDERS.values() for task in order}
    files = {name: tuple(tasks.get_task(name).filename(split) for split in splits) for name in names}
    assert files["squad1"] == ("squad-train-v1.1.json", "squad-dev-v1.1.json", "squad-dev-v1.1.json",
                               "squad-distil-v1.1.json")  # fmt: skip
    assert files["squad2"][2] == "squad-dev-v2.0.json"
    assert files["multinli.in.out"][2] == "multinli.in.out_to_squad-dev-v2.0.json"
    for name in set(names) - {"squad1", "squad2", "multinli.in.out"}:
        assert files[name] == tuple(
            f"{name}_to_squad-{split}-v2.0.json" for split in ("train", "dev", "test", "distil")
        )
    without = {name for name in names if not tasks.get_task(name).has_dev}
    assert without == set(names[11:])


def test_every_task_has_a_known_kind_of_score():
    kinds = {task.kind for task in tasks.TASKS.values()}
    assert kinds == {"text", "rouge", "rouge_l", "edit", "dialogue", "sql", "bleu", "corpus_f1", "accuracy", "choice",
                     "words_l", "sari"}  # fmt: skip
    assert {name for name, task in tasks.TASKS.items() if task.gold} == {"woz.en", "wikisql"}


def test_an_unknown_task_is_refused_with_the_name_it_may_be():
    message = error(tasks.sequence, ["woz.en", "rnnlg.restaurant"])
    assert "'rnnlg.restaurant'" in message
    assert "did you mean rnnlg.rest" in message
    assert "cnn_dailymail" in message
    assert "ag more than once" in error(tasks.sequence, ["ag", "yelp", "ag"])
    assert "no tasks" in error(tasks.sequence, [])
    assert [task.name for task in tasks.sequence(["yelp", "ag"])] == ["yelp", "ag"]


def test_files_are_found_plain_or_compressed(tmp_path):
    written(tmp_path / "ag_to_squad-train-v2.0.json", squad(("c", [("q", ["a"])])))
    (tmp_path / "squad-dev-v1.1.json.gz").write_bytes(gzip.compress(json.dumps(squad(("c", [("q", ["a"])]))).encode()))
    assert tasks.find_file(tmp_path, tasks.get_task("ag"), "train") == str(tmp_path / "ag_to_squad-train-v2.0.json")
    path = tasks.find_file(tmp_path, tasks.get_task("squad1"), "test")
    assert path.endswith("squad-dev-v1.1.json.gz")
    assert samples.load_samples(path, "test") == [QA("c", "q", ("a",), None, f"{path}:data[0].paragraphs[0].qas[0]")]


def test_a_missing_file_is_named_with_those_that_are_there(tmp_path):
    for name in ("ag_to_squad-tset-v2.0.json", "zre_to_squad-dev-v2.0.json", "notes.txt"):
        written(tmp_path / name, "{}")
    message = error(tasks.find_file, tmp_path, tasks.get_task("ag"), "test")
    assert "no ag_to_squad-test-v2.0.json; its json files are: ag_to_squad-tset-v2.0.json, zre" in message
    assert "notes.txt" not in message
    assert "python -m data.convert" in message
    message = error(tasks.find_file, tmp_path, tasks.get_task("ag"), "distil")
    assert "ag_to_squad-distil-v2.0.json" in message
    assert "teacher" in message
    assert "woz.en_answers.json" in error(tasks.find_gold, tmp_path, tasks.get_task("woz.en"))
    assert "squad-woz" in error(tasks.find_gold, tmp_path, tasks.get_task("woz.en"))
    assert "no such directory" in error(tasks.find_file, tmp_path / "none", tasks.get_task("ag"), "test")
    assert "not a directory" in error(tasks.find_file, tmp_path / "notes.txt", tasks.get_task("ag"), "test")


def test_a_task_without_a_dev_file_needs_none_but_takes_one(tmp_path):
    assert tasks.find_file(tmp_path, tasks.get_task("ag"), "dev") is None
    assert tasks.find_gold(tmp_path, tasks.get_task("ag")) is None
    path = written(tmp_path / "ag_to_squad-dev-v2.0.json", "{}")
    assert tasks.find_file(tmp_path, tasks.get_task("ag"), "dev") == str(path)
    error(tasks.find_file, tmp_path, tasks.get_task("sst"), "dev")


# --- samples ---------------------------------------------------------------------------------------------


def test_the_originals_sample_file_is_read_with_all_its_gaps(tmp_path):
    raw = json.loads((GOLDEN / "l2kd" / "qadataset.json").read_text())["raw"]
    path = written(tmp_path / "a.json", raw)
    got = samples.load_samples(path, "test")
    assert [qa.id for qa in got] == ["q1", "q2", "q3", "q4", "q5", None, "q6"]
    assert got[1].answers == ("near the mill", "old mill")
    assert got[2].context == ""
    assert got[4] == QA("x", "empty", ("",), "q5", f"{path}:data[1].paragraphs[1].qas[0]")
    message = error(samples.load_samples, path, "train")
    assert f"{path}:data[0].paragraphs[0].qas[1]: 2 answers" in message


TEXTS = st.text(st.characters(blacklist_categories=("Cs",)), max_size=8)


@SETTINGS
@given(st.lists(st.tuples(TEXTS, st.lists(st.tuples(TEXTS.filter(str.strip), st.lists(TEXTS, max_size=3)),
                                          min_size=1, max_size=3)), min_size=1, max_size=4))  # fmt: skip
def test_what_is_written_is_read(tmp_path_factory, paragraphs):
    path = written(tmp_path_factory.mktemp("a") / "a.json", squad(*paragraphs))
    got = samples.load_samples(path, "test")
    assert [(qa.context, qa.question, qa.answers) for qa in got] == [
        (context, question, tuple(answers) or ("",)) for context, asked in paragraphs for question, answers in asked
    ]


IDS = st.none() | TEXTS | st.integers(-(2**40), 2**40)


@SETTINGS
@given(st.lists(st.tuples(TEXTS, TEXTS.filter(str.strip), st.lists(TEXTS, min_size=1, max_size=3), IDS), min_size=1))
def test_what_is_saved_is_loaded(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("a") / "new" / "a.json"
    saved = [QA(context, question, tuple(answers), name) for context, question, answers, name in rows]
    samples.save_samples(path, saved)
    got = [QA(qa.context, qa.question, qa.answers, qa.id) for qa in samples.load_samples(path, "test")]
    assert got == saved


def broken(**changes):
    question = {"question": "q", "answers": [{"text": "a"}]} | changes
    return {"data": [{"paragraphs": [{"context": "c", "qas": [{key: value for key, value in question.items()
                                                              if value != "gone"}]}]}]}  # fmt: skip


@pytest.mark.parametrize(("content", "found"), [
    (broken(question=3), "qas[0]: 'question' is 3 (int)"),
    (broken(question="gone"), "qas[0]: has no 'question'"),
    (broken(answers="gone"), "qas[0]: has no 'answers'"),
    (broken(answers=None), "'answers' is None"),
    (broken(answers=["a"]), "'answers[0]' is 'a' (str)"),
    (broken(answers=[{"text": None}]), "qas[0].answers[0]: 'text' is None"),
    (broken(answers=[{}]), "qas[0].answers[0]: has no 'text'"),
    (broken(id=[1]), "qas[0]: 'id' is [1]"),
    (broken(id=True), "qas[0]: 'id' is True"),
    ({"data": [{"paragraphs": [{"context": " ", "qas": [{"question": "", "answers": []}]}]}]}, "are blank"),
    ({"data": [{"paragraphs": [{"context": None, "qas": []}]}]}, "data[0].paragraphs[0]: 'context' is None"),
    ({"data": [{"paragraphs": [{"qas": []}]}]}, "has no 'context'"),
    ({"data": [{"paragraphs": 5}]}, "data[0]: 'paragraphs' is 5"),
    ({"data": [{"paragraphs": []}]}, "holds no question"),
    ({"data": [[]]}, "data[0]: is [] (list)"),
    ({"data": []}, "data: is empty"),
    ({"train": []}, "has no 'data'"),
    ([], "is a list at the top level"),
    ("", "is empty"),
    ('{"data": [', "ends in the middle of the JSON"),
    ('{"data": [NaN]}', "NaN at line 1"),
])  # fmt: skip
def test_a_malformed_file_is_refused_by_file_and_place(tmp_path, content, found):
    path = written(tmp_path / "a.json", content)
    message = error(samples.load_samples, path, "test")
    assert message.startswith(f"{path}")
    assert found in message
    assert "task json" not in message


def test_the_released_files_are_read_as_they_are(shared_data):
    folder = shared_data / "lamol_squad"
    counts = {}
    for name in ("e2enlg", "rnnlg.rest", "rnnlg.hotel", "rnnlg.laptop", "ag"):
        for split in ("train", "distil", "test"):
            if (folder / tasks.get_task(name).filename(split)).exists():
                counts[name, split] = samples.load_samples(tasks.find_file(folder, tasks.get_task(name), split), split)
    assert {key: len(value) for key, value in counts.items() if key[1] != "test"} == {
        (name, split): 2000 for name in ("e2enlg", "rnnlg.rest", "rnnlg.hotel", "rnnlg.laptop")
        for split in ("train", "distil")
    }  # fmt: skip
    assert [len(counts[name, "test"]) for name in ("rnnlg.rest", "rnnlg.hotel", "rnnlg.laptop", "ag")] == [
        1039, 1075, 1100, 3000]  # fmt: skip
    assert all(len(qa.answers) == 2 for qa in counts["rnnlg.hotel", "test"])
    assert {qa.id for qa in counts["ag", "test"]} == {None}
    pairs = zip(counts["e2enlg", "train"], counts["e2enlg", "distil"])
    assert all(a.context == b.context and a.id == b.id for a, b in pairs)


# --- true answers ----------------------------------------------------------------------------------------


def named(*ids):
    return [QA("c", "q", ("a",), name, f"f:{at}") for at, name in enumerate(ids)]


def test_samples_are_ordered_by_id_numbers_as_numbers():
    assert samples.order_by_id(named(10, 9, 2)) == [2, 1, 0]
    assert samples.order_by_id(named("10", "9", "2")) == [0, 2, 1]
    assert samples.order_by_id(named(None, None)) == [0, 1]
    assert samples.order_by_id([]) == []
    assert "f:1: 'id' is 'x' (str), and that of f:0 is 1" in error(samples.order_by_id, named(1, "x"))
    error(samples.order_by_id, named(None, 1))


@pytest.mark.parametrize(("content", "found"), [
    ("{}", "is an object at the top level"),
    ("3", "is 3 (int) at the top level"),
    ("", "is empty"),
    ('[["en_0_0", "a"], ', "ends in the middle of the JSON"),
    ("[[]]", "[0]: [] (list)"),
    ('[["en_0_0", null]]', "[0]: ['en_0_0', None]"),
    ('[["en_0_0", "a"], ["en_0", 1]]', "[1]: ['en_0', 1]"),
    ('[["en", "a"]]', "[0]: the turn is called 'en'"),
    ('[["en_x", "a"]]', "[0]: the turn is called 'en_x'"),
])  # fmt: skip
def test_a_malformed_file_of_turns_is_refused(tmp_path, content, found):
    path = written(tmp_path / "woz.en_answers.json", content)
    message = error(samples.load_turns, path)
    assert message.startswith(str(path))
    assert found in message


SQL = {"sel": 0, "agg": 3, "conds": [[1, 2, 7.5]]}


@pytest.mark.parametrize(("changes", "found"), [
    ({"sql": None}, "the query is None"),
    ({"sql": SQL | {"sel": 2}}, "of a table of 2 columns"),
    ({"sql": SQL | {"agg": 6}}, "the query is"),
    ({"sql": SQL | {"sel": True}}, "the query is"),
    ({"sql": SQL | {"conds": [[1, 4, "x"]]}}, "the query is"),
    ({"sql": SQL | {"conds": [[1, 0, None]]}}, "the query is"),
    ({"sql": SQL | {"conds": [[1, 0]]}}, "the query is"),
    ({"table": {}}, "has no 'table.header'"),
    ({"table": {"header": "ab"}}, "'table.header' is 'ab'"),
])  # fmt: skip
def test_a_malformed_file_of_queries_is_refused(tmp_path, changes, found):
    good = {"sql": SQL, "table": {"header": ["a", None]}, "answer": "x"}
    path = written(tmp_path / "wikisql_answers.json", [good, good | changes])
    message = error(samples.load_queries, path)
    assert message.startswith(f"{path}[1]")
    assert found in message
    assert samples.load_queries(written(path, [good])) == [good]
