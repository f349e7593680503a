"""`python -m data.convert personachat`.

python -m pytest tests/test_convert_dialogue.py
"""

import json

import pytest
from converting import NOISE, SETTINGS, TEXT, attempt, damaged, error, run, sizes, write
from hypothesis import given
from hypothesis import strategies as st


def conversation(personality, exchanges):
    """The record of a conversation; an exchange is (partner, reply, wrong candidates)."""
    history, utterances = [], []
    for partner, reply, wrong in exchanges:
        utterances.append({"history": [*history, partner], "candidates": [*wrong, reply]})
        history += [partner, reply]
    return {"personality": personality, "utterances": utterances}


def as_text(personality, exchanges, candidates=True):
    lines = [f"your persona: {text}" for text in personality]
    for partner, reply, wrong in exchanges:
        lines.append(f"{partner}\t{reply}" + f"\t\t{'|'.join([*wrong, reply])}" * candidates)
    return "".join(f"{number} {line}\n" for number, line in enumerate(lines, start=1))


EXCHANGES = [("hi !", "hello .", ["a", "b", "c"]), ("how are you ?", "fine .", ["d", "e", "f"])]
PERSONA = ["i like to ski.", "i have two dogs."]


def test_personachat_keeps_the_gold_reply_and_as_many_wrong_ones_as_asked(tmp_path):
    path = write(tmp_path / "a.txt.gz", as_text(PERSONA, EXCHANGES) + as_text(["p"], [("x", "y", [])], False))
    for flags, keep in (((), 0), (("--keep_candidates", 2), 2), (("--keep_candidates", 9), 9)):
        got, report = run(tmp_path, "personachat", "--train", path, *flags)
        cut = [(partner, reply, wrong[max(0, 3 - keep) :]) for partner, reply, wrong in EXCHANGES]
        assert got["train"] == [conversation(PERSONA, cut), conversation(["p"], [("x", "y", [])])]
        assert "train: kept 2, dropped 0\n  turns: 3" in report


def test_personachat_takes_the_gold_reply_out_of_the_wrong_ones_wherever_it_stands(tmp_path):
    path = write(tmp_path / "a.txt", "1 hi\tyes\t\tno|yes|maybe\r\n")
    got, _ = run(tmp_path, "personachat", "--valid", path, "--keep_candidates", 5)
    assert got == {"valid": [{"personality": [], "utterances": [{"history": ["hi"],
                                                                 "candidates": ["no", "maybe", "yes"]}]}]}  # fmt: skip


def test_personachat_leaves_out_partner_personas_and_silent_exchanges_and_counts_them(tmp_path):
    text = (
        "1 partner's persona: i ski.\n2 your persona: p\n3 partner's persona: i swim.\n4 __SILENCE__\thello ?\n"
        "5 hi\they\n6 and you ?\t__SILENCE__\n7 so ?\tso what\n\n1 your persona: q\n2 __SILENCE__\tx\n"
    )
    got, report = run(tmp_path, "personachat", "--train", write(tmp_path / "a.txt", text))
    assert got["train"] == [conversation(["p"], [("hi", "hey", []), ("so ?", "so what", [])])]
    assert (
        "dropped 6 (2 lines with the partner's persona, 3 exchanges with __SILENCE__, "
        "1 dialogues left without a turn)" in report
    )


def test_the_json_of_personachat_gives_what_the_text_files_give(tmp_path):
    silent = {"history": ["__SILENCE__"], "candidates": ["a", "hello ?"]}
    first = {"history": ["__SILENCE__", "hello ?", "hi"], "candidates": ["a", "hey"]}
    later = {"history": ["__SILENCE__", "hello ?", "hi", "hey", "so ?"], "candidates": ["b", "a", "so what"]}
    content = {"train": [{"personality": ["p"], "utterances": [silent, first, later]}], "valid": [], "more": 1}
    content["valid"] = [conversation(PERSONA, EXCHANGES)]
    path = write(tmp_path / "a.json", json.dumps(content))
    got, report = run(tmp_path, "personachat", "--json", path, "--keep_candidates", 1)
    assert got["train"] == [conversation(["p"], [("hi", "hey", ["a"]), ("so ?", "so what", ["a"])])]
    assert got["valid"] == [conversation(PERSONA, [(p, r, w[-1:]) for p, r, w in EXCHANGES])]
    assert "train: kept 1, dropped 1 (1 exchanges with __SILENCE__)" in report


@pytest.mark.parametrize(("text", "line", "found"), [
    ("1 your persona: p\n3 hi\they\n", 2, "begins with '3 hi"),
    ("2 hi\they\n", 1, "begins with '2 hi"),
    ("hi\they\n", 1, "begins with 'hi"),
    ("1 your persona: p\n2 hi\n", 2, "0 tabs"),
    ("1 a\tb\tc\td\te\n", 1, "4 tabs"),
    ("1 a\tb\n2 your persona: p\n", 2, "persona line after the first turn"),
    ("1 your persona:  \n", 1, "the persona sentence is blank"),
    ("1 a\t \n", 1, "the reply is blank"),
    ("1 \tb\n", 1, "the partner's turn is blank"),
    ("1 a\tb\0\n", 1, "the reply holds a null byte"),
    ("1 a\tb\t\tc|d\n", 1, "the reply is not among the candidates"),
])  # fmt: skip
def test_personachat_names_the_line_of_a_bad_dialogue_and_skip_bad_counts_it(tmp_path, text, line, found):
    path = write(tmp_path / "a.txt", text + "1 good\tyes\n")
    message = error(tmp_path, "personachat", "--train", path)
    assert message.startswith(f"{path}:{line}: ")
    assert found in message
    assert "--skip_bad" in message
    got, report = run(tmp_path, "personachat", "--train", path, "--skip_bad")
    assert got["train"] == [conversation([], [("good", "yes", [])])]
    assert "dropped 1 (1 malformed)" in report


@pytest.mark.parametrize(("dialogue", "found"), [
    ({"utterances": []}, "train[0]: has no 'personality'"),
    ({"personality": [1], "utterances": []}, "'personality[0]' is 1"),
    ({"personality": ["p"]}, "has no 'utterances'"),
    ({"personality": ["p"], "utterances": [{"history": [], "candidates": ["a"]}]}, "[0]: 'history' is empty"),
    ({"personality": ["p"], "utterances": [{"history": ["a"], "candidates": []}]}, "[0]: 'candidates' is empty"),
    ({"personality": ["p"], "utterances": [{"history": ["a", " ", "b"], "candidates": ["c"]}]}, "turn of the history"),
    ({"personality": ["p"], "utterances": [{"history": ["a"], "candidates": ["c", ""]}]}, "the gold reply is blank"),
])  # fmt: skip
def test_personachat_names_the_record_of_a_bad_json_dialogue(tmp_path, dialogue, found):
    path = write(tmp_path / "a.json", json.dumps({"train": [dialogue]}))
    message = error(tmp_path, "personachat", "--json", path)
    assert message.startswith(f"{path}:train[0]")
    assert found in message


def test_personachat_says_which_flags_do_not_go_together(tmp_path):
    path = write(tmp_path / "a.json", '{"rest": []}')
    assert "cannot be combined with --train" in error(tmp_path, "personachat", "--json", path, "--train", path)
    assert "no train, valid or test list" in error(tmp_path, "personachat", "--json", path)
    assert "no files were given" in error(tmp_path, "personachat")
    with pytest.raises(SystemExit):
        run(tmp_path, "personachat", "--train", path, "--keep_candidates", -1)


def test_the_real_personachat_files(tmp_path, shared_data):
    folder = shared_data / "personachat"
    got, report = run(tmp_path, "personachat", "--train", folder / "train_self_original_no_cands.txt",
                      "--valid", folder / "valid_self_revised_no_cands.txt")  # fmt: skip
    assert sizes(got) == {"train": 189, "valid": 500}
    assert "  turns: 1393" in report
    assert "  turns: 3907" in report
    back = "".join(
        as_text(
            record["personality"], [(u["history"][-1], u["candidates"][-1], []) for u in record["utterances"]], False
        )
        for record in got["train"]
    )
    assert back == (folder / "train_self_original_no_cands.txt").read_text(encoding="utf-8").rstrip("\n") + "\n"


DIALOGUES = st.lists(
    st.tuples(
        st.lists(TEXT.filter(lambda text: "persona:" not in text), max_size=3),
        st.lists(st.tuples(TEXT, TEXT, st.lists(TEXT, max_size=3)), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


@SETTINGS
@given(DIALOGUES, st.integers(0, 4))
def test_any_dialogues_come_back_from_text_and_from_json(dialogues, keep):
    dialogues = [
        (persona, [(p, r, [w for w in wrong if w != r]) for p, r, wrong in exchanges])
        for persona, exchanges in dialogues
    ]
    wanted = [
        conversation(persona, [(p, r, wrong[max(0, len(wrong) - keep) :]) for p, r, wrong in exchanges])
        for persona, exchanges in dialogues
    ]
    text = "".join(as_text(*dialogue) for dialogue in dialogues)
    flags = ["personachat", "--keep_candidates", str(keep)]
    assert attempt([*flags, "--train", "{}/a.txt"], {"a.txt": text.encode()}) == {"train": wanted}
    whole = {"valid": [conversation(*dialogue) for dialogue in dialogues]}
    assert attempt([*flags, "--json", "{}/a.json"], {"a.json": json.dumps(whole).encode()}) == {"valid": wanted}


# --- whatever the files hold, the result is a task json or a `UserError` ---------------------------------


@SETTINGS
@given(st.booleans(), st.data())
def test_damaged_files_are_survived(skip_bad, data):
    text = as_text(PERSONA, EXCHANGES).encode() * 2
    hugging = json.dumps({"train": [conversation(PERSONA, EXCHANGES)] * 2}).encode()
    flags = ["--skip_bad"] * skip_bad
    for flag, content in (("--train", text), ("--json", hugging)):
        got = attempt(["personachat", flag, "{}/a", *flags], {"a": damaged(content, data)})
        for record in (got or {}).get("train", []):
            assert record["utterances"]
            for utterance in record["utterances"]:
                texts = [*utterance["history"], *utterance["candidates"], *utterance.get("answers", [])]
                assert all(part == part.strip() and part for part in texts)
                assert "\0" not in "".join(texts)
                assert len(utterance["history"]) % 2 or flag == "--json"


@SETTINGS
@given(NOISE)
def test_any_bytes_are_survived(content):
    for name in ("personachat",):
        attempt([name, "--train", "{}/a"], {"a": content})
        attempt([name, "--valid", "{}/a.gz"], {"a.gz": content})


def test_the_task_reads_what_was_converted(tmp_path):
    from versatile.data import task

    got, _ = run(tmp_path, "personachat", "--train", write(tmp_path / "a.txt", as_text(PERSONA, EXCHANGES)))
    assert len(list(task.get_task("dialogue").examples(got["train"][0], "here"))) == 2
