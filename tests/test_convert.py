"""`python -m data.convert`: public data sets in, task json out; and the sample data of data/samples.

    python -m pytest tests/test_convert.py
"""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from converting import NOISE, attempt, damaged, error, run, sizes, write
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.data import convert
from versatile.data.converters.base import data_format
from versatile.data.samples import make_samples
from versatile.data.tasks.nlg import SLOTS
from versatile.utils.errors import UserError

ROOT = Path(convert.__file__).parent.parent
MR = "name[The Tin Kettle], customer rating[5 out of 5], near[Café Größe]"
SRC = {"name": "The Tin Kettle", "customer rating": "5 out of 5", "near": "Café Größe"}


def e2e_file(path, rows):
    text = io.StringIO()
    csv.writer(text).writerows([("mr", "ref"), *rows])
    return write(path, text.getvalue())


# --- e2e -------------------------------------------------------------------------------------------------


def test_e2e_train_keeps_a_record_a_row_and_valid_groups_by_mr(tmp_path):
    rows = [(MR, "One, two."), ("name[A, B [old]], food[Thai]", 'Say "hi".'), (MR, " Three. "), (MR, "  ")]
    train, valid = (e2e_file(tmp_path / name, rows) for name in ("train.csv", "valid.csv"))
    got, report = run(tmp_path, "e2e", "--train", train, "--valid", valid)
    other = {"name": "A, B [old]", "food": "Thai"}
    assert got["train"] == [{"src": SRC, "tgt": "One, two."}, {"src": other, "tgt": 'Say "hi".'},
                            {"src": SRC, "tgt": "Three."}]
    assert got["valid"] == [{"src": SRC, "tgt": "One, two.", "refs": ["One, two.", "Three."]},
                            {"src": other, "tgt": 'Say "hi".', "refs": ['Say "hi".']}]
    assert list(got["train"][0]["src"]) == list(SRC)
    assert "test" not in got
    for line in ("train: kept 3, dropped 1 (1 empty reference)", "  distinct MRs: 2",
                 "valid: kept 2, dropped 1 (1 empty reference)", "  references per MR: 1.50",
                 "test: none, so the output has no test split"):
        assert line in report.split("\n")


def test_e2e_cleaned_joins_the_values_of_a_slot_and_reads_the_corrected_mr(tmp_path):
    mr = "name[A], food[Thai], food[English], food[Thai]"
    rows = [("mr", "ref", "fixed", "orig_mr"), (mr, "One.", "1", "name[B]")]
    content = io.StringIO()
    csv.writer(content).writerows(rows)
    got, _ = run(tmp_path, "e2e", "--train", write(tmp_path / "train-fixed.csv", content.getvalue()))
    assert got["train"] == [{"src": {"name": "A", "food": "Thai, English"}, "tgt": "One."}]


def test_iwslt_pairs_of_the_multilingual_task_have_one_test_set(tmp_path):
    assert "tst2011" in error(tmp_path, "iwslt", "--folder", iwslt_folder(tmp_path / "de"))
    for language in ("en", "nl"):
        write(tmp_path / "d" / f"train.tags.en-nl.{language}", TAGS.format(7, "a\nb"))
        for name in ("dev2010", "tst2010"):
            write(tmp_path / "d" / f"IWSLT17.TED.{name}.en-nl.{language}.xml", XML.format('<seg id="1">x</seg>'))
    got, _ = run(tmp_path, "iwslt", "--folder", tmp_path / "d", "--pair", "en-nl")
    assert got["test"] == [{"src": "x", "tgt": "x"}]


def test_e2e_says_that_a_devset_given_twice_is_not_held_out(tmp_path):
    path = e2e_file(tmp_path / "dev.csv", [(MR, "One.")])
    got, report = run(tmp_path, "e2e", "--valid", path, "--test", path)
    assert got["test"] == got["valid"]
    assert "not held out" in report


@pytest.mark.parametrize(("mr", "found"), [
    ("name[The Tin Kettle], foo[bar]", "unknown slot 'foo'"),
    ("name[The Tin Kettle", "no [value]"),
    ("name[The Tin Kettle] food[Thai]", "no comma"),
    ("name[The Tin Kettle],", "no [value]"),
    ("", "no [value]"),
    ("name[A], name[B]", "two values for 'name'"),
    ("name[ ]", "'name' is empty"),
])
def test_e2e_names_the_line_of_a_bad_mr_and_skip_bad_counts_it(tmp_path, mr, found):
    path = e2e_file(tmp_path / "train.csv", [(MR, "First\nsecond line."), (mr, "Two.")])
    message = error(tmp_path, "e2e", "--train", path)
    assert message.startswith(f"{path}:4: ")
    assert found in message
    assert "--skip_bad" in message
    got, report = run(tmp_path, "e2e", "--train", path, "--skip_bad")
    assert len(got["train"]) == 1
    assert "dropped 1 (1 malformed)" in report


def test_e2e_names_a_row_of_the_wrong_length_and_a_header_without_references(tmp_path):
    path = e2e_file(tmp_path / "train.csv", [(MR, "One.", "more"), (MR, "Two.")])
    assert f"{path}:2: 3 columns" in error(tmp_path, "e2e", "--train", path)
    got, _ = run(tmp_path, "e2e", "--train", path, "--skip_bad")
    assert [record["tgt"] for record in got["train"]] == ["Two."]
    (tmp_path / "out" / "data.json").unlink()
    for content, found in (("MR\r\nname[A]\r\n", "testset_w_refs.csv"), ("", "is empty"),
                           ('mr,ref\nname[A],"open', "not valid csv")):
        assert found in error(tmp_path, "e2e", "--test", write(tmp_path / "t.csv", content))
    assert "nothing is left" in error(tmp_path, "e2e", "--test", e2e_file(tmp_path / "t.csv", [(MR, " ")]))


def test_limits_keep_the_first_records(tmp_path):
    path = e2e_file(tmp_path / "a.csv", [(f"name[{i // 2}]", f"Text {i}.") for i in range(10)])
    got, report = run(tmp_path, "e2e", "--train", path, "--valid", path, "--train_limit", 3, "--valid_limit", 2)
    assert [record["tgt"] for record in got["train"]] == ["Text 0.", "Text 1.", "Text 2."]
    assert [record["refs"] for record in got["valid"]] == [["Text 0.", "Text 1."], ["Text 2.", "Text 3."]]
    assert "  references: 4" in report


def test_the_real_e2e_files(tmp_path, shared_data):
    folder = shared_data / "e2e"
    argv = ("e2e", "--train", folder / "trainset.csv", "--valid", folder / "devset.csv")
    got, report = run(tmp_path, *argv)
    first = (tmp_path / "out" / "data.json").read_bytes()
    assert len(got["train"]) == 10000
    assert len({json.dumps(record["src"]) for record in got["train"]}) == 4188
    assert len(got["valid"]) == 547
    assert sum(len(record["refs"]) for record in got["valid"]) == 4672
    assert all(record["tgt"] == record["refs"][0] for record in got["valid"])
    assert "train: kept 10000, dropped 0" in report
    with open(folder / "trainset.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    back = [", ".join(f"{slot}[{value}]" for slot, value in record["src"].items()) for record in got["train"]]
    assert back == [row["mr"] for row in rows]
    run(tmp_path, *argv)
    assert (tmp_path / "out" / "data.json").read_bytes() == first


# --- parallel, multi30k ----------------------------------------------------------------------------------


def test_parallel_drops_half_empty_pairs_in_train_only(tmp_path):
    en = write(tmp_path / "a.en", "A\u2028b\u00a0c\n\n two \r\n\nlast")
    de = write(tmp_path / "a.de.gz", "Ä\x85b\n\n\nx\nletzte\n")
    got, report = run(tmp_path, "parallel", "--train", en, de, "--valid", en, de)
    whole = [{"src": "A\u2028b\u00a0c", "tgt": "Ä\x85b"}, {"src": "last", "tgt": "letzte"}]
    assert got["train"] == whole
    assert got["valid"] == [whole[0], {"src": "two", "tgt": ""}, {"src": "", "tgt": "x"}, whole[1]]
    assert "train: kept 2, dropped 3 (1 both sides empty, 2 one side empty)" in report
    assert "valid: kept 4, dropped 1 (1 both sides empty)" in report
    assert "  kept with one side empty: 2" in report


def test_parallel_names_both_counts_when_they_differ(tmp_path):
    en, de = write(tmp_path / "a.en", "1\n2\n3\n"), write(tmp_path / "a.de", "1\n")
    assert f"{en}: 3 sentences, but {de} has 1" in error(tmp_path, "parallel", "--train", en, de)
    swapped = error(tmp_path, "parallel", "--train", de, en)
    assert "--train" in swapped
    assert "wrong order" in swapped
    other = write(tmp_path / "b.de", "1\n2\n3\n4\n5\n")
    assert f"{en}: 3 sentences, but {other} has 5" in error(tmp_path, "parallel", "--train", en, other)


def test_parallel_names_the_line_that_is_not_utf8(tmp_path):
    en, de = write(tmp_path / "a.en", "1\n2\n"), write(tmp_path / "a.de", b"eins\nsch\xf6n\n")
    assert f"{de}:2: byte 0xf6 is not UTF-8" in error(tmp_path, "parallel", "--train", en, de)


def test_no_files_at_all_and_missing_files_are_errors(tmp_path):
    assert "--train/--valid/--test" in error(tmp_path, "parallel")
    assert "no such file" in error(tmp_path, "e2e", "--train", tmp_path / "none.csv")
    assert "no train.en or train.en.gz" in error(tmp_path, "multi30k", "--folder", tmp_path)
    assert "no train.en" in error(tmp_path, "multi30k", "--folder", tmp_path / "none")


def test_the_real_multi30k_files(tmp_path, shared_data):
    got, _ = run(tmp_path, "multi30k", "--folder", shared_data / "multi30k")
    assert sizes(got) == {"train": 29000, "valid": 1014, "test": 1000}
    lines = gzip.decompress((shared_data / "multi30k" / "train.de.gz").read_bytes()).decode().split("\n")[:-1]
    assert [record["tgt"] for record in got["train"]] == [line.strip() for line in lines]


# --- iwslt -----------------------------------------------------------------------------------------------

TAGS = ' <doc docid="1">\n<url>http://x</url>\n<talkid>{}</talkid>\n<title>T</title>\n{}\n</doc>\n'
XML = ('<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n<srcset>\n<doc docid="5">\n<title>T &amp; U</title>\n'
       "{}\n</doc>\n</srcset>\n</mteval>\n")


def iwslt_folder(folder, source="<seg id=\"1\"> A &lt;b&gt; c </seg>\n<seg id='2'>d</seg>",
                 target='<seg id="1">Ä</seg><seg id="2"></seg>'):
    english = "He &amp; she &copy x.\n<b>Two</b>"
    for language, text, segments in (("en", english, source), ("de", "Er\nZwei", target)):
        write(folder / f"train.tags.en-de.{language}", TAGS.format(7, text))
        for name in ("dev2010", "tst2010"):
            write(folder / f"IWSLT17.TED.{name}.en-de.{language}.xml", XML.format(segments))
    return folder


def test_iwslt_leaves_out_metadata_and_undoes_entities(tmp_path):
    folder = iwslt_folder(tmp_path / "pack" / "en-de").parent
    got, report = run(tmp_path, "iwslt", "--folder", folder, "--test", "tst2010", "dev2010")
    assert got["train"] == [{"src": "He & she &copy x.", "tgt": "Er"}, {"src": "<b>Two</b>", "tgt": "Zwei"}]
    assert got["valid"] == [{"src": "A <b> c", "tgt": "Ä"}, {"src": "d", "tgt": ""}]
    assert got["test"] == got["valid"] * 2
    assert "train: kept 2, dropped 5 (5 metadata lines)" in report


def test_iwslts_edition_of_2016_is_read_as_that_of_2017(tmp_path):
    got, _ = run(tmp_path, "iwslt", "--folder", iwslt_folder(tmp_path / "new"), "--test", "tst2010")
    for path in iwslt_folder(tmp_path / "old").glob("IWSLT17.*"):
        path.rename(path.with_name(path.name.replace("IWSLT17", "IWSLT16")))
    assert run(tmp_path, "iwslt", "--folder", tmp_path / "old", "--test", "tst2010")[0] == got
    assert "no IWSLT17.TED.tst2011.en-de.en.xml" in error(tmp_path / "none", "iwslt", "--folder", tmp_path / "old")


def test_iwslt_names_the_segment_that_does_not_fit(tmp_path):
    folder = iwslt_folder(tmp_path / "a", target='<seg id="1">Ä</seg><seg id="3">x</seg>')
    message = error(tmp_path, "iwslt", "--folder", folder, "--test", "tst2010")
    assert "en.xml:7: is segment 2 of talk 5, but" in message
    assert "segment 3 of talk 5" in message
    folder = iwslt_folder(tmp_path / "b", target='<seg id="1">Ä</seg>')
    assert "2 sentences, but" in error(tmp_path, "iwslt", "--folder", folder, "--test", "tst2010")
    write(folder / "train.tags.en-de.de", TAGS.format(8, "Er\nZwei"))
    message = error(tmp_path, "iwslt", "--folder", folder, "--test", "tst2010")
    assert "train.tags.en-de.en:5: is in talk 7" in message


def test_iwslt_stops_at_broken_xml_and_at_document_types(tmp_path):
    folder = iwslt_folder(tmp_path / "a")
    path = folder / "IWSLT17.TED.dev2010.en-de.en.xml"
    argv = ("iwslt", "--folder", folder, "--test", "tst2010")
    whole = path.read_text()
    path.write_text(whole.replace("&lt;", "<"))
    assert f"{path}:6: is not valid xml" in error(tmp_path, *argv)
    path.write_text(whole.replace("<mteval>", '<!DOCTYPE a [<!ENTITY b "c">]>\n<mteval>', 1))
    assert f"{path}:2: declares a document type" in error(tmp_path, *argv)
    path.write_text(whole[:whole.index("</doc>")])
    assert "--allow_cut" in error(tmp_path, *argv)
    got, report = run(tmp_path, *argv, "--allow_cut")
    assert len(got["valid"]) == 2
    assert f"note: {path} ends before its closing tags" in report
    with pytest.raises(UserError, match="not a language pair"):
        run(tmp_path, *argv, "--pair", "ende")


def test_the_real_iwslt_files(tmp_path, shared_data):
    # This sample of the data set is truncated: its xml files have no closing tags.
    got, _ = run(tmp_path, "iwslt", "--folder", shared_data / "iwslt2017_en-de", "--allow_cut")
    assert sizes(got) == {"train": 9, "valid": 5, "test": 39}
    with open(shared_data / "iwslt2017_en-de" / "train.tags.en-de.de", encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    assert [record["tgt"] for record in got["train"]] == lines[7:]


# --- the output and the command --------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_is_an_error(tmp_path):
    path = e2e_file(tmp_path / "a.csv", [(MR, "One.")])
    (tmp_path / "folder.json").mkdir()
    for output, found in ((tmp_path / "folder.json", "is a directory"), (path, "not a .json name"),
                          (path / "b" / "x.json", "cannot"), (Path("/proc/none/x.json"), "cannot"),
                          (tmp_path / f"{'x' * 300}.json", "cannot")):
        with pytest.raises(UserError, match=found):
            convert.convert(["e2e", "--train", str(path), "--output", str(output)])
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(UserError, match="no permission"):
            convert.convert(["e2e", "--train", str(path), "--output", str(tmp_path / "locked" / "x.json")])


def test_a_failed_run_leaves_the_old_output(tmp_path):
    good = e2e_file(tmp_path / "a.csv", [(MR, "One.")])
    bad = e2e_file(tmp_path / "b.csv", [(MR, "One."), ("x", "Two.")])
    run(tmp_path, "e2e", "--train", good)
    before = (tmp_path / "out" / "data.json").read_bytes()
    with pytest.raises(UserError):
        run(tmp_path, "e2e", "--train", bad)
    assert (tmp_path / "out" / "data.json").read_bytes() == before
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize("name, more", [("e2e", []), ("squad-e2e", ["--seed", "1"])])
def test_a_file_that_was_there_is_said_to_be_replaced(name, more, tmp_path):
    source = e2e_file(tmp_path / "a.csv", [(MR, "One.")])
    output = tmp_path / ("o.json" if name == "e2e" else "lifelong")
    argv = list(map(str, [name, "--train", source, "--test", source, "--output", output, *more]))
    first, second = ([line for line in convert.convert(argv).lines() if line.startswith("wrote ")] for _ in range(2))
    files = [output] if name == "e2e" else sorted(output.iterdir(), reverse=True)
    assert first == [f"wrote {file}" for file in files]
    assert second == [f"{line}, in place of the file that was there" for line in first]


def test_the_command_prints_its_report_and_leaves_with_2_on_an_error(tmp_path):
    path = e2e_file(tmp_path / "a.csv", [(MR, "One.")])
    command = [sys.executable, "-m", "data.convert", "e2e", "--output", tmp_path / "o.json", "--train"]
    done = subprocess.run([*command, path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train: kept 1, dropped 0" in done.stdout
    assert done.stdout.endswith(f"wrote {tmp_path / 'o.json'}\n")
    done = subprocess.run([*command, tmp_path / "none.csv"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "none.csv: no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_flag_of_every_format_has_a_help_text_with_its_default():
    formats = convert.build_parser()._subparsers._group_actions[0].choices
    assert set(formats) == set(convert.FORMATS)
    for parser in formats.values():
        for action in parser._actions[1:]:
            assert ("(required)" if action.dest == "output" else "(default: ") in action.help or action.required


def test_the_commands_of_the_description_parse():
    text = convert.__doc__.replace("\\\n", " ")
    commands = [line.split()[3:] for line in text.split("\n") if line.strip().startswith("python -m data.convert")]
    assert {command[0] for command in commands} == set(convert.FORMATS)
    for command in commands:
        if "--help" not in command:
            convert.build_parser().parse_args(command)


def test_two_formats_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two formats are called 'e2e'"):
        data_format("e2e", None)(lambda args, report: {})


# --- properties: whatever the files hold, the result is a task json or a `UserError` ----------------------

MRS = st.lists(st.sampled_from(["name", "food", "foo", "[", "]", ",", " ", "x", "name[A]", ", ", '"']),
               max_size=8).map("".join)
ROWS = st.tuples(MRS, st.text(max_size=5)) | st.tuples(MRS)


@settings(deadline=None, max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=4), st.booleans(), st.data())
def test_e2e_survives_any_rows(rows, skip_bad, data):
    text = io.StringIO()
    csv.writer(text).writerows([("mr", "ref"), *rows])
    content = damaged(text.getvalue().encode("utf-8", "replace"), data)
    got = attempt(["e2e", "--train", "{}/a.csv", "--valid", "{}/a.csv"] + ["--skip_bad"] * skip_bad,
                  {"a.csv": content})
    for record in (got or {}).get("train", []):
        assert set(record["src"]) <= set(SLOTS)
        assert record["tgt"].strip()


@settings(deadline=None, max_examples=40)
@given(NOISE, NOISE)
def test_parallel_survives_any_bytes(source, target):
    got = attempt(["parallel", "--train", "{}/a", "{}/b"], {"a": source, "b": target})
    assert got is None or all(record["src"] and record["tgt"] for record in got["train"])
    attempt(["parallel", "--test", "{}/a.gz", "{}/b"], {"a.gz": source, "b": target})
    attempt(["multi30k", "--folder", "{}", "--test_set", "val"],
            {"train.en": source, "train.de": target, "val.en": b"a\n", "val.de": b"b\n"})


@settings(deadline=None, max_examples=40)
@given(st.booleans(), st.data())
def test_iwslt_survives_any_bytes(allow_cut, data):
    with tempfile.TemporaryDirectory() as folder:
        files = {path.name: path.read_bytes() for path in iwslt_folder(Path(folder) / "a").iterdir()}
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = damaged(files[name], data)
    attempt(["iwslt", "--folder", "{}", "--test", "tst2010"] + ["--allow_cut"] * allow_cut, files)


# --- the sample data -------------------------------------------------------------------------------------

SAMPLES = ROOT / "data" / "samples"


def test_the_samples_are_what_their_generator_writes():
    assert {path.stem for path in SAMPLES.glob("*.json")} == set(make_samples.MAKERS)
    for task, make in make_samples.MAKERS.items():
        assert (SAMPLES / f"{task}.json").read_bytes() == make_samples.as_text(make()).encode()
    assert max(path.stat().st_size for path in SAMPLES.glob("*.json")) < 280_000


def test_the_nlg_sample_says_what_its_meaning_representations_hold():
    splits = json.loads((SAMPLES / "nlg.json").read_text(encoding="utf-8"))
    assert sizes(splits) == {"train": 600, "valid": 60, "test": 60}
    seen = {split: {json.dumps(record["src"]) for record in records} for split, records in splits.items()}
    assert len(set.union(*seen.values())) == sum(map(len, seen.values()))
    for split, records in splits.items():
        for record in records:
            assert set(record["src"]) <= set(SLOTS)
            assert len(record["src"]) >= 3
            refs = record.get("refs", [record["tgt"]])
            assert split == "train" or 3 <= len(set(refs)) == len(refs) <= 5
            for text in refs:
                for slot in ("name", "food", "near", "eatType"):
                    assert record["src"].get(slot, "").lower() in text.lower()


def test_no_pair_of_the_mt_sample_stands_in_two_splits():
    splits = json.loads((SAMPLES / "mt.json").read_text(encoding="utf-8"))
    assert sizes(splits) == {"train": 400, "valid": 40, "test": 40}
    for side in ("src", "tgt"):
        assert len({record[side] for records in splits.values() for record in records}) == 480


def test_validation_held_out_of_training_shares_no_mr_with_it(tmp_path):
    rows = [(f"name[R{i % 7}], food[F]", f"Text {i}.") for i in range(30)]
    train = e2e_file(tmp_path / "train.csv", rows)
    convert.convert(["e2e", "--train", str(train), "--valid_from_train", "2", "--output", str(tmp_path / "o.json")])
    out = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    names = {split: {r["src"]["name"] for r in out[split]} for split in out}
    assert names == {"train": {f"R{i}" for i in range(5)}, "valid": {"R5", "R6"}}
    assert len(out["train"]) + sum(len(r["refs"]) for r in out["valid"]) == 30
    for flags in (["--valid_from_train", "7"], ["--valid_from_train", "2", "--valid", str(train)]):
        with pytest.raises(UserError, match="valid_from_train"):
            convert.convert(["e2e", "--train", str(train), *flags, "--output", str(tmp_path / "o.json")])
