"""`python -m data.convert squad-…`: public data sets to LAMOL's json: generation, and what holds for all of them."""

import json

import pytest
from converting import NOISE, TEXT, damaged, write
from hypothesis import given
from hypothesis import strategies as st
from squad_conversion import AG, MORE, WOZ, article, asked, error, run
from versatile.data import convert
from versatile.data import question_samples as samples
from versatile.data import question_tasks as tasks
from versatile.data.question_scores import score
from versatile.utils.errors import UserError

FORM = "what is the natural language form ?"


ACT = "inform_no_match(acceptscreditcards='no';pricerange='pricey')"


SAID = "there are no pricey hotel -s that do not accept credit card -s"


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


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["woz", "wikisql"])
def test_true_answers_score_100_from_the_real_files_on(tmp_path, shared_data, name):
    if name == "woz":
        run(tmp_path, "squad-woz", "--test", shared_data / "woz" / "woz_validate_en.json")
    else:
        tables = shared_data / "wikisql" / "dev.tables.reconstructed_headers.jsonl"
        run(tmp_path, "squad-wikisql", "--test", shared_data / "wikisql" / "dev.jsonl", "--tables", tables)
    task = tasks.get_task("woz.en" if name == "woz" else "wikisql")
    asked_for = samples.load_samples(tasks.find_file(tmp_path / "out", task, "test"), "test")
    load = samples.load_turns if name == "woz" else samples.load_queries
    scores = score(task, [qa.answers[0] for qa in asked_for], asked_for, load(tasks.find_gold(tmp_path / "out", task)))
    assert scores[task.metric].value == 100


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
        # Some from each quarter of the file: with only the first ones, a sorted file would lose classes.
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
    test = samples.load_samples(tasks.find_file(folder / "out", task, "test"), "test")
    assert [(qa.context, qa.answers) for qa in test] == [(act, (a, b)) for act, a, b in rows]
    train = samples.load_samples(tasks.find_file(folder / "out", task, "train"), "train")
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
        assert all(samples.load_samples(file, "train") for file in folder.glob("out/*"))
