"""`python -m data.convert squad-…`: public data sets to LAMOL's json.

python -m pytest tests/test_convert_squad.py
"""

import json
from pathlib import Path

import pytest
from converting import NOISE, SETTINGS, TEXT, damaged, write
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.data import convert
from versatile.data import question_samples as samples
from versatile.data import question_tasks as tasks
from versatile.data.question_scores import score
from versatile.utils.errors import UserError

MORE = settings(SETTINGS, max_examples=40)


def run(folder, *argv):
    """({file name: json}, the report as text)"""
    output = folder / "out"
    report = convert.convert([*map(str, argv), "--output", str(output)])
    files = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.iterdir())}
    return files, "\n".join(report.lines())


def error(folder, *argv):
    with pytest.raises(UserError) as caught:
        run(folder, *argv)
    assert caught.value.location
    assert caught.value.remedy
    assert not (folder / "out").exists() or not [*(folder / "out").iterdir()]
    return str(caught.value)


def asked(file):
    """[(context, question, answers)] of SQuAD-style json."""
    found = []
    for each in file["data"]:
        for paragraph in each["paragraphs"]:
            for question in paragraph["qas"]:
                answers = [answer["text"] for answer in question["answers"]]
                found.append((paragraph["context"], question["question"], answers))
    return found


def article(context, question, answers, name):
    """An article of L2KD's own files, as they are released."""
    found = [{"answer_start": None, "text": text} for text in answers]
    return {"title": "dummy", "paragraphs": [{"context": context, "qas": [
        {"id": name, "answers": found, "question": question, "is_impossible": False}]}]}  # fmt: skip


FORM = "what is the natural language form ?"
ACT = "inform_no_match(acceptscreditcards='no';pricerange='pricey')"
SAID = "there are no pricey hotel -s that do not accept credit card -s"


# --- e2e, rnnlg ------------------------------------------------------------------------------------------


def test_rnnlg_gives_the_released_article_to_the_byte(tmp_path):
    lines = ["#####", "#  Copyright", "#####", json.dumps([[ACT, SAID, "sorry"], ["bye()", "bye", "bye"]], indent=4)]
    path = write(tmp_path / "train.json", "\n".join(lines))
    files, report = run(tmp_path, "squad-rnnlg", "--domain", "hotel", "--train", path, "--test", path)
    train, test = files["rnnlg.hotel_to_squad-train-v2.0.json"], files["rnnlg.hotel_to_squad-test-v2.0.json"]
    assert train["data"][0] == article(ACT, FORM, [SAID], "959016e880a640a0d6615a42c18da072")
    assert asked(train) == [(ACT, FORM, [SAID]), (ACT, FORM, ["sorry"]), *[("bye()", FORM, ["bye"])] * 2]
    assert asked(test) == [(ACT, FORM, [SAID, "sorry"]), ("bye()", FORM, ["bye", "bye"])]
    assert "train: kept 4, dropped 0" in report
    assert f"wrote {tmp_path / 'out' / 'rnnlg.hotel_to_squad-test-v2.0.json'}" in report


@pytest.mark.parametrize(("content", "found"), [
    ("# a\n[[1, 2]]", "[0]: [1, 2] (list)"),
    ('# a\n[["a", "b", ""]]', "the second sentence is blank"),
    ('# a\n[["a", null, "c"]]', "the first sentence is None"),
    ("# a\n{}", "is {} (dict)"),
    ("# a\n# b\n[[", ":3: is not valid JSON"),
    ("", ":1: is not valid JSON"),
    ("[]", "train split: nothing is left of it"),
])  # fmt: skip
def test_rnnlg_says_what_is_wrong_with_a_file(tmp_path, content, found):
    path = write(tmp_path / "a.json", content)
    assert found in error(tmp_path, "squad-rnnlg", "--domain", "tv", "--train", path)


def test_e2e_keeps_texts_as_they_are_and_groups_references_for_the_test(tmp_path):
    mr = "name[The Golden Curry], food[Indian]"
    path = write(tmp_path / "a.csv", f'mr,ref\r\n"{mr}","A  curry."\r\nname[B],b\r\n"{mr}",Curry!\r\n')
    files, _ = run(tmp_path, "squad-e2e", "--train", path, "--test", path)
    curry = (mr, FORM, ["A  curry."])
    assert asked(files["e2enlg_to_squad-train-v2.0.json"]) == [curry, ("name[B]", FORM, ["b"]), (mr, FORM, ["Curry!"])]
    assert asked(files["e2enlg_to_squad-test-v2.0.json"]) == [
        (mr, FORM, ["A  curry.", "Curry!"]), ("name[B]", FORM, ["b"])]  # fmt: skip
    apart, _ = run(tmp_path / "apart", "squad-e2e", "--test", path, "--single_reference", "--test_sample", 2)
    assert [len(answers) for _, _, answers in asked(apart["e2enlg_to_squad-test-v2.0.json"])] == [1, 1]
    path = write(tmp_path / "b.csv", "mr,ref\nname[A],a\nname[B],\n")
    assert "b.csv:3: 'ref' is blank" in error(tmp_path / "b", "squad-e2e", "--train", path)
    files, report = run(tmp_path / "b", "squad-e2e", "--train", path, "--skip_bad")
    assert "kept 1, dropped 1 (1 malformed)" in report


def test_real_e2e_and_rnnlg_records_equal_the_released_ones(tmp_path, shared_data):
    def released(name, split):
        return json.loads((shared_data / "lamol_squad" / f"{name}_to_squad-{split}-v2.0.json").read_text())["data"]

    for domain, folder in (("rest", "restaurant"), ("hotel", "hotel"), ("laptop", "laptop")):
        files = [f"--{split}={shared_data / 'rnnlg' / folder / f'{split}.json'}" for split in ("train", "test")]
        got, _ = run(tmp_path, "squad-rnnlg", "--domain", domain, *files)
        train, test = (got[f"rnnlg.{domain}_to_squad-{split}-v2.0.json"]["data"] for split in ("train", "test"))
        theirs = released(f"rnnlg.{domain}", "train")
        if domain == "laptop":  # A part drawn by chance: every one of them is among ours.
            ours = {json.dumps(each, sort_keys=True) for each in train}
            assert all(json.dumps(each, sort_keys=True) in ours for each in theirs)
        else:
            assert train[:2000] == theirs
        theirs = released(f"rnnlg.{domain}", "test")
        assert test[: len(theirs)] == theirs
    got, _ = run(tmp_path, "squad-e2e", "--train", shared_data / "e2e" / "trainset.csv")
    theirs = {json.dumps(each, sort_keys=True) for each in released("e2enlg", "train")}
    ours = {json.dumps(each, sort_keys=True) for each in got["e2enlg_to_squad-train-v2.0.json"]["data"]}
    # Their 2000 of 42061 rows, ours 10000: they meet where both have a row.
    assert len(theirs & ours) == 475


# --- the text classification sets ------------------------------------------------------------------------

AG = "Is this sentence World, Sports, Business, or Sci/Tech?"


def test_ag_is_written_as_released(tmp_path):
    rows = ('"3","Fears for T N","Unions at Turner   Newall say"\n"4","Loosing"," \\\\""Sven,\\responsible ""x"" "\n'
            '"1","a","b       c"\n')  # fmt: skip
    path = write(tmp_path / "train.csv", rows)
    files, _ = run(tmp_path, "squad-ag", "--train", path)
    got = files["ag_to_squad-train-v2.0.json"]["data"]
    first = "Fears for T N Unions at Turner Newall say"
    assert got[0] == {"paragraphs": [{"context": first, "qas": [{"question": AG, "answers": [{"text": "Business"}]}]}]}
    assert asked({"data": got[1:]}) == [
        ('Loosing \\\\"Sven,\\responsible "x" ', AG, ["Sci/Tech"]), ("a b  c", AG, ["World"])]  # fmt: skip


def test_real_ag_records_equal_the_released_ones(tmp_path, shared_data):
    folder = shared_data / "ag_news_csv"
    got, report = run(tmp_path, "squad-ag", "--train", folder / "train.csv", "--test", folder / "test.csv")
    ours = {json.dumps(each) for file in got.values() for each in file["data"]}
    theirs = json.loads((shared_data / "lamol_squad" / "ag_to_squad-test-v2.0.json").read_text())["data"]
    assert all(json.dumps(each) in ours for each in theirs)
    assert "train: kept 3600, dropped 0" in report


def test_escapes_are_undone_and_the_star_is_a_word(tmp_path):
    path = write(tmp_path / "yelp.csv", '"5","a \\""new\\"" tire.\\n\\nDone ""x"""\n"1","bad\nvery"\n"3","so"\n')
    files, _ = run(tmp_path, "squad-yelp", "--test", path)
    question = "Is this sentence very negative, negative, neutral, positive, or very positive?"
    assert asked(files["yelp_to_squad-test-v2.0.json"]) == [
        ('a "new" tire.\n\nDone "x"', question, ["very positive"]),
        ("bad\nvery", question, ["very negative"]), ("so", question, ["neutral"])]  # fmt: skip


def test_the_polarity_set_is_not_taken_for_five_stars(tmp_path):
    path = write(tmp_path / "a.csv", '"2","t","good"\n"1","t","bad"\n')
    message = error(tmp_path, "squad-amazon", "--train", path)
    assert "holds no classes but 1 and 2" in message
    assert "--polarity" in message
    files, _ = run(tmp_path, "squad-amazon", "--train", path, "--polarity")
    question = "Is this sentence negative or positive?"
    assert asked(files["amazon_to_squad-train-v2.0.json"]) == [
        ("t good", question, ["positive"]), ("t bad", question, ["negative"])]  # fmt: skip


def test_the_classes_are_those_of_the_file_beside_or_named(tmp_path):
    path = write(tmp_path / "a" / "train.csv", '1,"A"," B"\n')
    files, _ = run(tmp_path, "squad-dbpedia", "--train", path)
    got = asked(files["dbpedia_to_squad-train-v2.0.json"])
    assert got[0][1].startswith("Is this sentence Company, EducationalInstitution, Artist,")
    assert got[0][1].endswith(", Film, or WrittenWork?")
    assert got[0][0::2] == ("A B", ["Company"])
    write(tmp_path / "a" / "classes.txt", "Firm\nSchool\n\nBoat\n")
    files, _ = run(tmp_path, "squad-dbpedia", "--train", path)
    assert asked(files["dbpedia_to_squad-train-v2.0.json"]) == [
        ("A B", "Is this sentence Firm, School, or Boat?", ["Firm"])]  # fmt: skip
    other = write(tmp_path / "other.txt", "X\nX\n")
    assert "names 2 classes" in error(tmp_path / "b", "squad-dbpedia", "--train", path, "--classes", other)


@pytest.mark.parametrize(("row", "found"), [
    ('"5","a","b"', "a.csv:2: the class is '5' (str)"),
    ('"0","a","b"', "the class is '0'"),
    ('"x","a","b"', "the class is 'x'"),
    ('"1","a"', "a.csv:2: 2 columns"),
    ('"1"," ",""', "the text is blank"),
    ('"1","a\0","b"', "a.csv:2"),
])  # fmt: skip
def test_a_row_that_cannot_be_used_is_named_or_counted(tmp_path, row, found):
    path = write(tmp_path / "a.csv", f'"1","t","x"\n{row}\n')
    message = error(tmp_path, "squad-ag", "--train", path)
    assert found in message
    assert "--skip_bad" in message
    assert "kept 1, dropped 1 (1 malformed)" in run(tmp_path, "squad-ag", "--train", path, "--skip_bad")[1]


def test_quotes_that_do_not_pair_up_are_an_error(tmp_path):
    path = write(tmp_path / "a.csv", '"1","t","x"\n"2","t"x,"y"\n')
    assert "a.csv:2: is not valid csv" in error(tmp_path, "squad-ag", "--train", path)


def test_the_other_classification_sets_are_read_as_published(tmp_path, shared_data):
    for name, folder, extra in (("yahoo", "yahoo_answers_csv", ()), ("dbpedia", "dbpedia_csv", ()),
                                ("yelp", "yelp_review_full_csv", ()),
                                ("amazon", "amazon_review_polarity_csv", ("--polarity",))):  # fmt: skip
        files = [f"--{split}={shared_data / folder / f'{split}.csv'}" for split in ("train", "test")]
        got, report = run(tmp_path / name, f"squad-{name}", *files, *extra)
        for file in got.values():
            assert not any('\\"' in context or "\\n" in context for context, _, _ in asked(file))
        assert "malformed" not in report
        assert all(samples.load(tmp_path / name / "out" / file, "train") for file in got)


# --- sst, multinli, srl ----------------------------------------------------------------------------------


def test_sst_asks_for_one_of_two_words(tmp_path):
    path = write(tmp_path / "a.csv", 'label,sentence\n0,"One ""long"" string."\n1,Fine\n')
    files, _ = run(tmp_path, "squad-sst", "--train", path, "--valid", path)
    question = "Is this review negative or positive?"
    assert list(files) == ["sst_to_squad-dev-v2.0.json", "sst_to_squad-train-v2.0.json"]
    assert asked(files["sst_to_squad-train-v2.0.json"]) == [
        ('One "long" string.', question, ["negative"]), ("Fine", question, ["positive"])]  # fmt: skip
    path = write(tmp_path / "b.csv", "label,sentence\n2,x\n")
    assert "b.csv:2: the label is '2'" in error(tmp_path / "b", "squad-sst", "--test", path)


def test_multinli_takes_both_dev_files_and_drops_what_is_not_agreed_on(tmp_path):
    head = "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
    matched = write(tmp_path / "m.tsv", head + '0\t"He went.\tHe "left".\tneutral\tentailment\n1\ta\tb\tneutral\t-\n')
    other = write(tmp_path / "mm.tsv", head + "0\tA\tB\tneutral\tneutral\n")
    files, report = run(tmp_path, "squad-multinli", "--valid", matched, other)
    end = '" -- entailment, neutral, or contradiction?'
    assert asked(files["multinli.in.out_to_squad-dev-v2.0.json"]) == [
        ('Premise: ""He went."', f'Hypothesis: "He "left".{end}', ["entailment"]),
        ('Premise: "A"', f'Hypothesis: "B{end}', ["neutral"])]  # fmt: skip
    assert "kept 2, dropped 1 (1 without an agreed label)" in report
    path = write(tmp_path / "t.tsv", "index\tsentence1\tsentence2\n0\ta\tb\n")
    assert "the test files have no labels" in error(tmp_path / "b", "squad-multinli", "--valid", path)
    path = write(tmp_path / "t.tsv", head + "0\ta\n")
    assert "t.tsv:2: 2 columns" in error(tmp_path / "b", "squad-multinli", "--valid", path)
    path = write(tmp_path / "t.tsv", head + "0\ta\tb\tc\tmaybe\n")
    assert "gold_label is 'maybe'" in error(tmp_path / "b", "squad-multinli", "--train", path)


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


# --- zre, schema: as decaNLP reads them ------------------------------------------------------------------


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


# --- woz, wikisql: with files of true answers ------------------------------------------------------------


def turn(said, state, acts=()):
    belief = [{"act": "request" if name == "slot" else "inform", "slots": [[name, value]]} for name, value in state]
    return {"transcript": said, "system_acts": [*acts], "belief_state": belief, "turn_label": []}


FOOD = ("food", "thai")
WOZ = [
    {"dialogue_idx": 0, "dialogue": [
        turn("Thai  food? ", [FOOD]),
        turn("In the north, its phone and address", [("slot", "phone"), ("slot", "address"), FOOD, ("area", "north")],
             ["area", ["price range", "cheap"]]),
        turn("Bye", [FOOD, ("area", "north")]),
        turn("No, Greek", [("food", "greek"), ("area", "north")]),
    ]},
    {"dialogue_idx": 7, "dialogue": [turn("Phone?", [("slot", "phone")])]},
]  # fmt: skip


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


@pytest.mark.parametrize("name", ["woz", "wikisql"])
def test_true_answers_score_100_from_the_real_files_on(tmp_path, shared_data, name):
    if name == "woz":
        run(tmp_path, "squad-woz", "--test", shared_data / "woz" / "woz_validate_en.json")
    else:
        tables = shared_data / "wikisql" / "dev.tables.reconstructed_headers.jsonl"
        run(tmp_path, "squad-wikisql", "--test", shared_data / "wikisql" / "dev.jsonl", "--tables", tables)
    task = tasks.get_task("woz.en" if name == "woz" else "wikisql")
    asked_for = samples.load(tasks.find(tmp_path / "out", task, "test"), "test")
    load = samples.load_turns if name == "woz" else samples.load_queries
    scores = score(task, [qa.answers[0] for qa in asked_for], asked_for, load(tasks.find_gold(tmp_path / "out", task)))
    assert scores[task.metric].value == 100


# --- squad1, squad2, iwslt, cnn_dailymail ----------------------------------------------------------------


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
    ({"answers": [{"text": "cat", "answer_start": 3}]}, "'cat' (str) does not stand at 3"),
    ({"answers": [{"text": "cat", "answer_start": -8}]}, "does not stand at -8"),
    ({"answers": [{"text": "cat", "answer_start": "2"}]}, "does not stand at '2'"),
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


def test_cnn_dailymail_joins_the_highlights(tmp_path):
    path = write(tmp_path / "a.csv", 'id,article,highlights\n1,"A ﬁne\nday.","One\nTwo!\nThree."\n')
    files, _ = run(tmp_path, "squad-cnn_dailymail", "--test", path)
    assert asked(files["cnn_dailymail_to_squad-test-v2.0.json"]) == [
        ("A fine day.", "What is the summary?", ["One. Two! Three."])]  # fmt: skip


def test_iwslt_asks_for_german(tmp_path):
    for language, text in (("en", "Hello &amp;"), ("de", "Hallo")):
        write(tmp_path / f"train.tags.en-de.{language}", f"<talkid>1</talkid>\n{text}\n")
        for name in ("tst2013", "tst2014"):
            empty = "" if language == "de" and name == "tst2014" else text
            body = f'<seg id="1">{text}</seg><seg id="2">{empty}</seg>'
            write(tmp_path / f"IWSLT17.TED.{name}.en-de.{language}.xml", f'<x><doc docid="1">{body}</doc></x>')
    files, report = run(tmp_path / "o", "squad-iwslt", "--folder", tmp_path)
    question = "Translate from English to German"
    assert asked(files["iwslt.en.de_to_squad-train-v2.0.json"]) == [("Hello &", question, ["Hallo"])]
    assert len(asked(files["iwslt.en.de_to_squad-dev-v2.0.json"])) == 2
    assert len(asked(files["iwslt.en.de_to_squad-test-v2.0.json"])) == 1
    assert "1 one side empty" in report


# --- all of them -----------------------------------------------------------------------------------------


def test_a_later_fault_leaves_none_of_the_files(tmp_path):
    good = write(tmp_path / "a.csv", "label,sentence\n0,x\n")
    bad = write(tmp_path / "b.csv", "label,sentence\n0,x\n7,x\n")
    error(tmp_path, "squad-sst", "--train", good, "--valid", good, "--test", bad)


def test_the_output_is_a_directory_and_other_tasks_stay_in_it(tmp_path):
    path = write(tmp_path / "a.csv", "label,sentence\n0,x\n1,y\n")
    for name in ("data.json", "new.json"):
        write(tmp_path / "data.json", "{}")
        with pytest.raises(UserError, match="name a directory"):
            convert.convert(["squad-sst", "--train", str(path), "--output", str(tmp_path / name)])
    assert (tmp_path / "data.json").read_text() == "{}"
    write(tmp_path / "out" / "other.json", "{}")
    files, report = run(tmp_path, "squad-sst", "--train", path, "--train_limit", 1)
    assert set(files) == {"other.json", "sst_to_squad-train-v2.0.json"}
    assert "train: kept 1" in report


def test_samples_are_drawn_by_chance_in_their_order_and_alike_each_time(tmp_path):
    path = write(tmp_path / "a.csv", "label,sentence\n" + "".join(f"{at % 2},{at:03}\n" for at in range(200)))
    drawn = []
    for seed in (0, 0, 1):
        files, report = run(tmp_path, "squad-sst", "--train", path, "--train_sample", 40, "--seed", seed)
        drawn.append([context for context, _, _ in asked(files["sst_to_squad-train-v2.0.json"])])
        assert "train: kept 40, dropped 0\n  drawn by chance: 40 of 200" in report
        assert drawn[-1] == sorted(drawn[-1])
        assert len(set(drawn[-1])) == 40
        # Some from each quarter of the file: with the first ones alone, a sorted file would lose classes.
        assert all(any(low <= int(text) < low + 50 for text in drawn[-1]) for low in range(0, 200, 50))
    assert drawn[0] == drawn[1] != drawn[2]
    files, report = run(tmp_path, "squad-sst", "--train", path, "--train_sample", 900, "--train_limit", 3)
    assert [context for context, _, _ in asked(files["sst_to_squad-train-v2.0.json"])] == ["000", "001", "002"]


@MORE
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_what_rnnlg_holds_comes_back_from_the_reader(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("r")
    path = write(folder / "a.json", "# c\n" + json.dumps(rows))
    run(folder, "squad-rnnlg", "--domain", "tv", "--train", path, "--test", path)
    task = tasks.get_task("rnnlg.tv")
    test = samples.load(tasks.find(folder / "out", task, "test"), "test")
    assert [(qa.context, qa.answers) for qa in test] == [(act, (a, b)) for act, a, b in rows]
    train = samples.load(tasks.find(folder / "out", task, "train"), "train")
    assert [(qa.context, *qa.answers) for qa in train] == [(act, text) for act, a, b in rows for text in (a, b)]


@MORE
@given(rows=st.lists(st.tuples(st.integers(1, 4), TEXT, TEXT), min_size=1, max_size=4), data=st.data())
def test_damaged_files_give_whole_json_or_an_error(tmp_path_factory, rows, data):
    folder = tmp_path_factory.mktemp("d")
    quoted = [[str(number), *texts] for number, *texts in rows]
    text = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in quoted)
    path = write(folder / "a.csv", damaged(text.encode(), data))
    try:
        files, _ = run(folder, "squad-ag", "--train", path, *(["--skip_bad"] if data.draw(st.booleans()) else []))
    except UserError as caught:
        assert caught.location
        assert not [*folder.glob("out/*")]
    else:
        assert all(answers[0] in AG for _, _, answers in asked(files["ag_to_squad-train-v2.0.json"]))


@MORE
@given(name=st.sampled_from(["squad-woz", "squad-squad2", "squad-sst", "squad-e2e", "squad-multinli", "squad-zre"]),
       data=st.data())  # fmt: skip
def test_noise_is_an_error_everywhere(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("n")
    whole = {
        "squad-woz": json.dumps(WOZ),
        "squad-squad2": json.dumps({"data": []}),
        "squad-sst": "label,sentence\n1,x\n",
        "squad-e2e": "mr,ref\na,b\n",
        "squad-zre": "a\tb XXX\tc\td\te\n",
        "squad-multinli": "gold_label\tsentence1\tsentence2\nneutral\ta\tb\n",
    }
    content = data.draw(NOISE) if data.draw(st.booleans()) else damaged(whole[name].encode(), data)
    path = write(folder / "a", content)
    try:
        run(folder, name, "--train", path)
    except UserError as caught:
        assert caught.location
        assert not [*folder.glob("out/*")]
    else:
        assert all(samples.load(file, "train") for file in folder.glob("out/*"))
