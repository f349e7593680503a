"""`python -m data.convert squad-…` of classification sets."""

import json

import pytest
from converting import write
from squad_conversion import AG, asked, error, run
from versatile.data import question_samples as samples


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
        assert all(samples.load_samples(tmp_path / name / "out" / file, "train") for file in got)


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
