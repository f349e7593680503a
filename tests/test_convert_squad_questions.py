"""`python -m data.convert squad-…` of questions, dialogues and queries."""

import json
from pathlib import Path

import pytest
from converting import write
from squad_conversion import WOZ, asked, error, run, turn


def test_qasrl_joins_questions_with_their_sentences(tmp_path):
    sentences = write(tmp_path / "s.csv", 'qasrl_id,tokens,sentence\nw:1:4,"Searches , now","Searches , now"\n')
    rows = "w:1:4,What is it?,False,Searches~!~now~!~Searches\nw:1:4,When?,True,now\n"
    questions = write(tmp_path / "q.csv", f"qasrl_id,question,is_redundant,answer\n{rows}")
    files, report = run(tmp_path, "squad-qasrl", "--train", questions, sentences, "--test", questions, sentences)
    assert asked(files["srl_to_squad-train-v2.0.json"]) == [("Searches , now", "What is it?", ["Searches"])]
    assert asked(files["srl_to_squad-test-v2.0.json"])[0][2] == ["Searches", "now"]
    assert "kept 1, dropped 1 (1 redundant)" in report
    assert "come first" in error(tmp_path / "b", "squad-qasrl", "--test", sentences, questions)
    write(tmp_path / "s.csv", "qasrl_id,sentence\nw:2,x\n")
    assert "no sentence 'w:1:4'" in error(tmp_path / "b", "squad-qasrl", "--test", questions, sentences)


def test_zre_puts_the_subject_into_the_question_and_says_what_cannot_be_answered(tmp_path):
    lines = "born in\tWhere was XXX born?\tAda\tAda was born in London , UK .\tLondon\tUK\n"
    lines += "wife\tWho is XXX's wife?\tBob\tBob lives here .\n\nwife\tWho is it?\tBob\tBob lives here .\t\n"
    path = write(tmp_path / "train.0", lines)
    files, report = run(tmp_path, "squad-zre", "--train", path)
    assert list(files) == ["zre_to_squad-train-v2.0.json"] and "kept 3, dropped 0" in report
    assert asked(files["zre_to_squad-train-v2.0.json"]) == [
        ("Ada was born in London , UK .", "Where was Ada born?", ["London, UK"]),
        ("Bob lives here .", "Who is Bob's wife?", ["unanswerable"]),
        ("Bob lives here .", "Who is it?", ["unanswerable"])]  # fmt: skip
    path = write(tmp_path / "dev.0", lines + "wife\tWho?\n")
    assert "dev.0:5: 2 columns" in error(tmp_path / "b", "squad-zre", "--valid", path)
    _, report = run(tmp_path, "squad-zre", "--valid", path, "--skip_bad")
    assert "kept 3, dropped 1 (1 malformed)" in report


SCHEMA = "Tom {0} beat Ray because he was so [fast/slow] and [fit/ill]. \nWho was [fast/slow]? \nTom/ Ray\n\n"


def test_schema_reads_each_schema_in_both_ways_and_divides_as_decanlp(tmp_path):
    text = "".join(SCHEMA.format(number) for number in range(95))
    files, report = run(tmp_path, "squad-schema", "--schemas", write(tmp_path / "schema.txt", text.rstrip()))
    sizes = {name.split("-")[1]: len(asked(file)) for name, file in files.items()}
    assert sizes == {"train": 80, "dev": 10, "test": 100}
    assert "train: kept 80" in report and "test: kept 100" in report
    question = "Who was {}? Tom or Ray?"
    first, second = asked(files["schema_to_squad-train-v2.0.json"])[:2]
    assert first == ("Tom 0 beat Ray because he was so fast and fit.", question.format("fast"), ["Tom"])
    assert second == ("Tom 0 beat Ray because he was so slow and ill.", question.format("slow"), ["Ray"])
    assert asked(files["schema_to_squad-test-v2.0.json"])[-1][0].startswith("Tom 94 beat Ray")


@pytest.mark.parametrize(("text", "found"), [
    (SCHEMA, "1 schemas"),
    (SCHEMA.replace("Tom/ Ray\n", ""), "a schema of 2 lines"),
    (SCHEMA.replace("[fast/slow] and [fit/ill]", "fast"), "no choice in"),
    (SCHEMA.replace("Tom/ Ray", "Tom"), "the answers are 'Tom'"),
])  # fmt: skip
def test_a_file_that_holds_no_schemas_is_one_message(tmp_path, text, found):
    assert found in error(tmp_path, "squad-schema", "--schemas", write(tmp_path / "schema.txt", text))


def test_woz_asks_for_what_is_new_in_the_state(tmp_path):
    path = write(tmp_path / "woz.json", json.dumps(WOZ))
    files, report = run(tmp_path, "squad-woz", "--train", path, "--test", path)
    question = "What is the change in state?"
    expected = [
        ("Thai food?", question, ["food: thai;"]),
        ("area, price range: cheap -- In the north, its phone and address", question, ["area: north; phone, address"]),
        ("Bye", question, ["None"]),
        ("No, Greek", question, ["food: greek;"]),
        ("Phone?", question, ["; phone"]),
    ]
    assert asked(files["woz.en_to_squad-train-v2.0.json"]) == expected
    assert asked(files["woz.en_to_squad-test-v2.0.json"]) == expected
    names = ["en_0_0", "en_0_1", "en_0_2", "en_0_3", "en_1_0"]
    assert files["woz.en_answers.json"] == [[name, answers[0]] for name, (_, _, answers) in zip(names, expected)]
    assert "test: kept 5, dropped 0" in report
    assert "woz.en_answers.json" not in run(tmp_path / "b", "squad-woz", "--train", path)[0]


@pytest.mark.parametrize(("dialogue", "found"), [
    ({"dialogue": [{"transcript": "x", "belief_state": []}]}, ".dialogue[0]: 'system_acts' is None"),
    ({"dialogue": [turn("x", [], [3])]}, "an act is 3"),
    ({"dialogue": [turn("x", [], [[]])]}, "an act is []"),
    ({"dialogue": [turn(" ", [])]}, "'transcript' is blank"),
    ({"dialogue": [turn("x", [("food", 3)])]}, "a slot is ['food', 3]"),
    ({"dialogue": [turn("x", []) | {"belief_state": [{"act": "inform"}]}]}, "'slots' is None"),
    ({"dialogue": [turn("x", []) | {"belief_state": [{"slots": []}]}]}, "has no 'act'"),
    ({}, "has no 'dialogue'"),
    ([], "[1]: [] (list)"),
])  # fmt: skip
def test_a_malformed_dialogue_is_named_or_counted(tmp_path, dialogue, found):
    path = write(tmp_path / "woz.json", json.dumps([WOZ[0], dialogue]))
    message = error(tmp_path, "squad-woz", "--test", path)
    assert f"{path}[1]" in message
    assert found in message
    files, report = run(tmp_path, "squad-woz", "--test", path, "--skip_bad")
    assert "kept 4, dropped 1 (1 malformed)" in report
    assert len(files["woz.en_answers.json"]) == 4


def test_wikisql_writes_the_query_out(tmp_path):
    tables = write(tmp_path / "dev.tables.jsonl", json.dumps({"id": "1-2", "header": ["Player", "No.", "Team  name"],
                                                              "rows": [[1, 2, 3]]}) + "\n\n")  # fmt: skip
    sql = {"sel": 0, "agg": 3, "conds": [[1, 1, 10], [2, 0, "The Reds"]]}
    path = write(tmp_path / "dev.jsonl", json.dumps({"table_id": "1-2", "question": "How many?", "sql": sql, "x": 1}))
    files, _ = run(tmp_path, "squad-wikisql", "--test", path)
    words = ("MAX, MIN, COUNT, SUM, AVG, =, >, <, OP, SELECT, WHERE, AND, COL, TABLE, CAPTION, PAGE, SECTION, OP, "
             "COND, QUESTION, AGG, AGGOPS, CONDOPS")  # fmt: skip
    answer = "SELECT COUNT Player FROM table WHERE No. > 10 AND Team name = The Reds"
    assert asked(files["wikisql_to_squad-test-v2.0.json"]) == [
        (f"The table has columns Player, No., Team  name and key words {words}-- How many?",
         "What is the translation from English to SQL?", [answer])]  # fmt: skip
    assert files["wikisql_answers.json"] == [
        {"sql": sql, "table": {"header": ["Player", "No.", "Team  name"], "id": "1-2"}, "answer": answer}]  # fmt: skip
    Path(tables).unlink()
    message = error(tmp_path / "b", "squad-wikisql", "--test", path)
    assert "dev.tables.jsonl: no such file" in message
    assert "--tables" in message


@pytest.mark.parametrize(("changes", "found"), [
    ({"table_id": "x"}, "no table 'x'"),
    ({"sql": {"sel": 9, "agg": 0, "conds": []}}, "of a table of 2 columns"),
    ({"sql": {"sel": 1, "agg": 0, "conds": []}}, "a column without a name"),
    ({"sql": 3}, "the query is 3"),
    ({"question": ""}, "'question' is blank"),
])  # fmt: skip
def test_a_query_that_cannot_be_used_is_named_or_counted(tmp_path, changes, found):
    tables = write(tmp_path / "t.jsonl", json.dumps({"id": "1", "header": ["a", None]}))
    good = {"table_id": "1", "question": "q?", "sql": {"sel": 0, "agg": 0, "conds": []}}
    path = write(tmp_path / "d.jsonl", "\n".join(map(json.dumps, [good, good | changes, good])) + "\n[]\n{\n")
    message = error(tmp_path, "squad-wikisql", "--test", path, "--tables", tables)
    assert "d.jsonl:2: " in message
    assert found in message
    files, report = run(tmp_path, "squad-wikisql", "--test", path, "--tables", tables, "--skip_bad")
    assert "kept 2, dropped 3 (3 malformed)" in report
    assert len(files["wikisql_answers.json"]) == 2


def squad_file(path, **changes):
    question = {"id": "1", "question": "who?", "answers": [{"text": "cat", "answer_start": 2}]} | changes
    content = {"version": "x", "data": [{"title": "T", "paragraphs": [{"context": "A cat sat.", "qas": [question]}]}]}
    return write(path, json.dumps(content)), content["data"]


def test_squad_passes_through(tmp_path):
    path, data = squad_file(tmp_path / "a.json", extra={"kept": [1]})
    files, report = run(tmp_path, "squad-squad1", "--train", path, "--valid", path)
    assert files == {"squad-train-v1.1.json": {"data": data}, "squad-dev-v1.1.json": {"data": data}}
    assert "train: kept 1 article, dropped 0" in report and "questions: 1" in report
    path, data = squad_file(tmp_path / "b.json", answers=[], is_impossible=True)
    files, _ = run(tmp_path / "b", "squad-squad2", "--train", path)
    assert files == {"squad-train-v2.0.json": {"data": data}}
    assert "0 answers" in error(tmp_path / "c", "squad-squad1", "--valid", path)


@pytest.mark.parametrize(("changes", "found"), [
    ({"answers": [{"text": "cat", "answer_start": 3}]}, "'cat' (str) does not begin at 3"),
    ({"answers": [{"text": "cat", "answer_start": -8}]}, "does not begin at -8"),
    ({"answers": [{"text": "cat", "answer_start": "2"}]}, "does not begin at '2'"),
    ({"answers": [{"text": "", "answer_start": 2}]}, "an answer is blank"),
    ({"answers": [{"text": "cat"}, {"text": "A cat"}]}, "2 answers"),
    ({"answers": None}, "'answers' is None"),
    ({"question": " "}, "'question' is blank"),
])  # fmt: skip
def test_squad_is_checked_on_the_way(tmp_path, changes, found):
    path, _ = squad_file(tmp_path / "a.json", **changes)
    message = error(tmp_path, "squad-squad2", "--train", path)
    assert f"{path}:data[0].paragraphs[0].qas[0]" in message
    assert found in message


def test_real_squad_files_pass_whole(tmp_path, shared_data):
    for name, file, number in (("squad2", "dev-v2.0.json", 4449), ("squad1", "xquad.en.json", 1105)):
        got, report = run(tmp_path / name, f"squad-{name}", "--valid", shared_data / "squad" / file)
        (data,) = got.values()
        assert data["data"] == json.loads((shared_data / "squad" / file).read_text(encoding="utf-8"))["data"]
        assert f"questions: {number}" in report
