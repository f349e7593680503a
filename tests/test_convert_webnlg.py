"""`python -m data.convert webnlg`.

python -m pytest tests/test_convert_webnlg.py
"""

from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from converting import NOISE, SETTINGS, attempt, damaged, error, run, sizes, write
from hypothesis import given
from hypothesis import strategies as st
from versatile.data.samples.triples import make_webnlg
from versatile.data.task import get_task


def entry(triples, texts):
    """An entry as xml; a text is a string or (language, string)."""
    lex = [text if isinstance(text, tuple) else ("", text) for text in texts]
    lines = [
        '    <entry category="Food" eid="Id1" size="1">\n      <originaltripleset>',
        "        <otriple>not | this | one</otriple>\n      </originaltripleset>\n      <modifiedtripleset>",
        *(f"        <mtriple>{escape(triple)}</mtriple>" for triple in triples),
        "      </modifiedtripleset>",
        *(f'      <lex lid="Id1"{lang and f" lang={lang!r}"}>{escape(text)}</lex>' for lang, text in lex),
        "      <dbpedialinks><dbpedialink>x</dbpedialink></dbpedialinks>\n    </entry>",
    ]
    return "\n".join(lines)


def xml_text(*entries):
    entries = "\n".join(entries)
    return f"<?xml version='1.0' encoding='utf-8'?>\n<benchmark>\n  <entries>\n{entries}\n  </entries>\n</benchmark>\n"


TRIPLES = ["A_b | country | Spain", 'A_b |  note |"c & d" ']
SRC = 'A_b | country | Spain && A_b | note | "c & d"'


def test_train_has_a_record_a_text_and_valid_one_an_entry(tmp_path):
    text = xml_text(
        entry(TRIPLES, [" One & two. ", "Three.", ""]), entry(TRIPLES[:1], []), entry(TRIPLES[:1], ["Four."])
    )
    write(tmp_path / "a" / "1triples" / "b.xml", text)
    write(tmp_path / "a" / "0triples" / "z.xml.gz", xml_text(entry(TRIPLES[1:], ["Zero."])))
    write(tmp_path / "a" / "readme.txt", "no xml")
    got, report = run(tmp_path, "webnlg", "--train", tmp_path / "a", "--valid", tmp_path / "a" / "1triples" / "b.xml")
    zero, spain = 'A_b | note | "c & d"', TRIPLES[0]
    assert got["train"] == [
        {"src": zero, "tgt": "Zero."},
        {"src": SRC, "tgt": "One & two."},
        {"src": SRC, "tgt": "Three."},
        {"src": spain, "tgt": "Four."},
    ]
    assert got["valid"] == [
        {"src": SRC, "tgt": "One & two.", "refs": ["One & two.", "Three."]},
        {"src": spain, "tgt": "Four.", "refs": ["Four."]},
    ]
    assert "valid: kept 2, dropped 2 (1 empty texts, 1 entries left without a text)\n  texts: 3" in report
    assert "  texts: 4" in report


def test_texts_in_other_languages_are_dropped_and_counted(tmp_path):
    path = write(tmp_path / "a.xml", xml_text(entry(TRIPLES, ["One.", ("ru", "Один."), ("en", "Two.")])))
    got, report = run(tmp_path, "webnlg", "--test", path)
    assert got["test"][0]["refs"] == ["One.", "Two."]
    assert "dropped 1 (1 texts in other languages)" in report
    got, _ = run(tmp_path, "webnlg", "--test", path, "--language", "RU")
    assert got["test"] == [{"src": SRC, "tgt": "Один.", "refs": ["Один."]}]


@pytest.mark.parametrize(("bad", "found"), [
    (entry(["a | b"], ["T."]), "the triple 'a | b'"),
    (entry(["a | b | "], ["T."]), "the triple 'a | b | '"),
    (entry(["a | b | c | d"], ["T."]), "the triple 'a | b | c | d'"),
    (entry([], ["T."]), "1 modifiedtripleset and 0 mtriple"),
    (entry(TRIPLES, ["T."]).replace("modifiedtripleset", "m"), "0 modifiedtripleset"),
    (entry(TRIPLES, ["T."]).replace("originaltripleset", "modifiedtripleset"), "2 modifiedtripleset"),
])  # fmt: skip
def test_a_bad_entry_is_named_and_skip_bad_counts_it(tmp_path, bad, found):
    good = entry(TRIPLES, ["One."])
    path = write(tmp_path / "a.xml", xml_text(good, bad))
    message = error(tmp_path, "webnlg", "--train", path)
    assert message.startswith(f"{path}:{5 + good.count(chr(10))}: ")
    assert found in message
    got, report = run(tmp_path, "webnlg", "--train", path, "--skip_bad")
    assert got["train"] == [{"src": SRC, "tgt": "One."}]
    assert "dropped 1 (1 malformed)" in report


def test_files_that_are_no_webnlg_xml_are_named(tmp_path):
    whole = xml_text(entry(TRIPLES, ["One."]))
    path = tmp_path / "a.xml"
    for content, found in (
        ("<a><b>c</b></a>", "holds no <entry>"),
        ("", "not valid xml"),
        (whole.replace("</lex>", ""), "not valid xml"),
        (whole.replace("&amp;", "&"), "not valid xml"),
        (whole.replace("<benchmark>", '<!DOCTYPE a [<!ENTITY b "c">]>\n<benchmark>'), "declares a document type"),
        (b"<entry>\xff</entry>", "not valid xml"),
    ):
        message = error(tmp_path, "webnlg", "--train", write(path, content))
        assert message.startswith(str(path))
        assert found in message
    (tmp_path / "empty").mkdir()
    assert "holds no .xml file" in error(tmp_path, "webnlg", "--train", tmp_path / "empty")
    assert "no such file" in error(tmp_path, "webnlg", "--train", tmp_path / "none")


def test_a_cut_file_is_used_only_when_asked_for(tmp_path):
    whole = xml_text(entry(TRIPLES, ["One."]), entry(TRIPLES, ["Two."]))
    path = write(tmp_path / "a.xml", whole[: whole.index("Two.")])
    assert "--allow_cut" in error(tmp_path, "webnlg", "--train", path)
    got, report = run(tmp_path, "webnlg", "--train", path, "--allow_cut")
    assert [record["tgt"] for record in got["train"]] == ["One."]
    assert f"note: {path} ends before its closing tags" in report


def test_the_real_webnlg_files(tmp_path, shared_data):
    folder = shared_data / "webnlg"
    got, _ = run(tmp_path, "webnlg", "--train", folder / "train", "--valid", folder / "dev")
    assert sizes(got) == {"train": 6259, "valid": 1667}
    assert sum(len(record["refs"]) for record in got["valid"]) == 4464
    for split, part in (("train", "train"), ("valid", "dev")):
        files = sorted((folder / part).rglob("*.xml"))
        entries = [entry for file in files for entry in ElementTree.parse(file).iter("entry")]
        pairs = [(" && ".join(t.text.strip() for t in entry.iter("mtriple")), text.text.strip())
                 for entry in entries for text in entry.iter("lex")]  # fmt: skip
        assert sorted((r["src"], ref) for r in got[split] for ref in r.get("refs", [r["tgt"]])) == sorted(pairs)


def test_files_that_hold_the_same_entry_are_refused_as_one_split(tmp_path):
    whole = write(tmp_path / "test" / "a_all.xml", xml_text(entry(TRIPLES[:1], ["One."]), entry(TRIPLES, ["Two."])))
    write(tmp_path / "test" / "b_unseen.xml", xml_text(entry(TRIPLES[1:], ["New."]), entry(TRIPLES[::-1], ["Two."])))
    message = error(tmp_path, "webnlg", "--test", whole.parent)
    assert "b_unseen.xml:" in message
    assert f"an entry that {whole} also holds" in message
    assert "testdata_with_lex.xml" in message
    got, _ = run(tmp_path, "webnlg", "--test", whole, "--valid", whole)
    assert sizes(got) == {"valid": 2, "test": 2}


def test_files_of_semantic_parsing_are_not_mixed_in(tmp_path):
    write(tmp_path / "test" / "rdf-to-text-generation-test-data-with-refs-en.xml", xml_text(entry(TRIPLES, ["One."])))
    parsing = tmp_path / "test" / "semantic-parsing-test-data-with-refs-en.xml"
    write(parsing, xml_text(entry(TRIPLES[:1], ["T."])))
    assert "belongs to semantic parsing" in error(tmp_path, "webnlg", "--test", parsing.parent)
    assert sizes(run(tmp_path, "webnlg", "--test", parsing)[0]) == {"test": 1}


# --- properties ------------------------------------------------------------------------------------------

WORD = (
    st.text(st.characters(blacklist_categories=("Cs", "Cc", "Cn"), blacklist_characters="|\r"), min_size=1, max_size=8)
    .map(str.strip)
    .filter(bool)
)
ENTRIES = st.lists(
    st.tuples(
        st.lists(st.tuples(WORD, WORD, WORD).map(" | ".join), min_size=1, max_size=3),
        st.lists(WORD, min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@SETTINGS
@given(ENTRIES)
def test_any_entries_come_back(entries):
    content = xml_text(*(entry(*one) for one in entries)).encode()
    got = attempt(["webnlg", "--train", "{}/a.xml", "--test", "{}"], {"a.xml": content})
    sources = [" && ".join(triples) for triples, _ in entries]
    assert got["train"] == [{"src": src, "tgt": text} for src, (_, texts) in zip(sources, entries) for text in texts]
    grouped = [{"src": src, "tgt": texts[0], "refs": texts} for src, (_, texts) in zip(sources, entries)]
    assert got["test"] == grouped


@SETTINGS
@given(st.booleans(), st.booleans(), NOISE, st.data())
def test_damaged_files_are_survived(skip_bad, allow_cut, noise, data):
    content = damaged(xml_text(entry(TRIPLES, ["One.", "Two."]), entry(TRIPLES, ["Three."])).encode(), data)
    flags = ["--skip_bad"] * skip_bad + ["--allow_cut"] * allow_cut
    got = attempt(["webnlg", "--train", "{}/a.xml", *flags], {"a.xml": content})
    for record in (got or {}).get("train", []):
        assert record["tgt"].strip()
        assert all(triple.count(" | ") >= 2 for triple in record["src"].split(" && "))
    attempt(["webnlg", "--valid", "{}/a.xml", *flags], {"a.xml": noise})


# --- the task --------------------------------------------------------------------------------------------


def test_the_task_reads_what_was_converted_and_scores_against_all_references(tmp_path):
    path = write(tmp_path / "a.xml", xml_text(entry(TRIPLES, ["One.", "Two words."])))
    got, _ = run(tmp_path, "webnlg", "--train", path, "--test", path)
    task = get_task("webnlg")
    ((first,), (second,)) = [list(task.examples(record, "here")) for record in got["train"]]
    assert (first.source, first.target.text, second.references) == (SRC, "One.", ["Two words."])
    (example,) = task.examples(got["test"][0], "here")
    assert example.references == ["One.", "Two words."]
    for text in example.references:
        assert task.score([text * 2], [[ref * 2 for ref in example.references]])[0]["chrF"].value == 100


def test_the_sample_says_all_its_values_and_no_entry_stands_in_two_splits():
    splits = make_webnlg()
    assert sizes(splits) == {"train": 480, "valid": 30, "test": 30}
    seen = {split: {frozenset(r["src"].split(" && ")) for r in records} for split, records in splits.items()}
    assert len(set.union(*seen.values())) == sum(map(len, seen.values())) == 220
    for record in (record for records in splits.values() for record in records):
        triples = [triple.split(" | ") for triple in record["src"].split(" && ")]
        assert all(len(triple) == 3 for triple in triples) and len(set(record.get("refs", [0]))) in (1, 3)
        for text in record.get("refs", [record["tgt"]]):
            for subject, _, value in triples:
                assert subject.replace("_", " ") in text and value.replace("_", " ") in text
