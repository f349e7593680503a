"""`python -m data.convert` coqa and squad.

python -m pytest tests/test_convert_qa.py
"""

import json

import pytest
from converting import NOISE, SETTINGS, TEXT, attempt, damaged, error, run, sizes, write
from hypothesis import given
from hypothesis import strategies as st

# --- coqa ------------------------------------------------------------------------------------------------


def story(turns, more=(), name="s1", text="A cat sat."):
    """A CoQA story of (turn_id, question, answer), with the lists `more` of (turn_id, answer)."""
    content = {
        "id": name,
        "story": text,
        "questions": [{"input_text": question, "turn_id": turn} for turn, question, _ in turns],
        "answers": [{"input_text": answer, "turn_id": turn, "span_text": "x"} for turn, _, answer in reversed(turns)],
    }
    if more:
        content["additional_answers"] = {
            str(index): [{"input_text": answer, "turn_id": turn} for turn, answer in answers]
            for index, answers in enumerate(more)
        }
    return content


def coqa_file(path, *stories):
    return write(path, json.dumps({"version": "1.0", "data": stories}))


def test_coqa_pairs_questions_and_answers_by_turn(tmp_path):
    turns = [(2, "where?", "on the mat"), (1, " who? ", "the cat"), (3, "why?", "tired")]
    path = coqa_file(
        tmp_path / "a.json", story(turns, [[(2, "mat"), (1, "the cat")], [(3, "tired")]], text="\nA\n b.\n")
    )
    got, report = run(tmp_path, "coqa", "--valid", path)
    first = {"turn_id": 1, "history": ["who?"], "candidates": ["the cat"], "answers": ["the cat", "the cat"]}
    second = {"turn_id": 2, "history": ["who?", "the cat", "where?"], "candidates": ["on the mat"],
              "answers": ["on the mat", "mat"]}  # fmt: skip
    third = {"turn_id": 3, "history": [*second["history"], "on the mat", "why?"], "candidates": ["tired"],
             "answers": ["tired", "tired"]}  # fmt: skip
    assert got == {"valid": [{"id": "s1", "document": ["A\n b."], "utterances": [first, second, third]}]}
    assert "valid: kept 1, dropped 0\n  questions: 3" in report


def changed(content, **changes):
    return {**content, **changes}


GOOD = story([(1, "who?", "me")], name="good")


@pytest.mark.parametrize(("bad", "found"), [
    (story([(1, "who?", " ")]), "'input_text' of turn 1 is blank"),
    (story([(1, "who?", "a\0b")]), "'input_text' of turn 1 holds a null byte"),
    (story([(1, "", "a")]), "'input_text' of turn 1 is blank"),
    (story([(1, "who?", "a")], text=""), "'story' is blank"),
    (story([(1, "who?", "a"), (1, "who?", "b")]), "a second text for turn 1"),
    (story([("1", "who?", "a")]), "'turn_id' is '1' (str)"),
    (story([(True, "who?", "a")]), "'turn_id' is True"),
    (changed(story([(1, "who?", "a")]), answers=[{"input_text": "a", "turn_id": 2}]), "turn 1 has no answer"),
    (story([(1, "who?", "a")], [[(4, "b")]]), "turn 4 has no question"),
    (story([(1, "who?", "a")], [[(1, "")]]), "'input_text' of turn 1 is blank"),
    (changed(story([(1, "who?", "a")]), additional_answers=[1]), "'additional_answers' is [1]"),
    (changed(story([(1, "who?", "a")]), questions="who?"), "'questions' is 'who?'"),
    (changed(story([(1, "who?", "a")]), answers=[{"turn_id": 1}]), "has no 'input_text'"),
])  # fmt: skip
def test_coqa_names_the_story_of_what_is_wrong_and_skip_bad_counts_it(tmp_path, bad, found):
    path = coqa_file(tmp_path / "a.json", GOOD, bad)
    message = error(tmp_path, "coqa", "--train", path)
    assert message.startswith(f"{path}:data[1] (story s1)")
    assert found in message
    assert "--skip_bad" in message
    got, report = run(tmp_path, "coqa", "--train", path, "--skip_bad")
    assert [record["id"] for record in got["train"]] == ["good"]
    assert "dropped 1 (1 malformed)" in report


def test_coqa_says_what_file_it_expected(tmp_path):
    for content, found in (("{}", "no 'data' split"), ("[]", "at the top level"), ("", "is empty"),
                           ('{"data": [', "ends in the middle"), ('{"data": [1]}', "data[0]: is 1"),
                           ('{"data": [{"story": "x"}]}', "has no 'id'")):  # fmt: skip
        path = write(tmp_path / "a.json", content)
        message = error(tmp_path, "coqa", "--train", path)
        assert found in message
        assert message.startswith(str(path))
        assert "task file" not in message
    assert "nothing is left" in error(tmp_path, "coqa", "--train", coqa_file(tmp_path / "a.json", story([])))


def test_the_real_coqa_files(tmp_path, shared_data):
    folder = shared_data / "coqa"
    got, _ = run(tmp_path, "coqa", "--train", folder / "coqa-train-v1.0.json", "--valid", folder / "coqa-dev-v1.0.json")
    assert sizes(got) == {"train": 1, "valid": 1}
    assert [utterance["turn_id"] for utterance in got["train"][0]["utterances"]] == list(range(1, 21))
    with open(folder / "coqa-dev-v1.0.json", encoding="utf-8") as file:
        dev = json.load(file)["data"][0]
    record = got["valid"][0]
    assert (record["id"], record["document"]) == (dev["id"], [dev["story"].strip()])
    assert len(record["utterances"]) == 12
    last = record["utterances"][-1]
    asked, answered = ([turn["input_text"].strip() for turn in dev[name]] for name in ("questions", "answers"))
    assert last["history"] == [text for pair in zip(asked, answered) for text in pair][:-1]
    assert last["answers"] == ["no", "no", "No", "no"]
    assert all(len(utterance["answers"]) == 4 for utterance in record["utterances"])


STORIES = st.lists(
    st.tuples(
        TEXT, st.dictionaries(st.integers(-3, 2**60), st.lists(TEXT, min_size=2, max_size=4), min_size=1, max_size=4)
    ),
    min_size=1,
    max_size=3,
)


@SETTINGS
@given(STORIES, st.randoms(use_true_random=False))
def test_any_stories_come_back_from_coqa(stories, random):
    data, wanted = [], []
    for index, (text, turns) in enumerate(stories):
        listed = [(turn, texts[0], texts[1]) for turn, texts in turns.items()]
        random.shuffle(listed)
        more = [[(turn, texts[n]) for turn, texts in turns.items() if len(texts) > n] for n in (2, 3)]
        data.append(story(listed, more, f"s{index}", f"  {text}\n"))
        history, utterances = [], []
        for turn, (question, *answers) in sorted(turns.items()):
            history = [*history, question]
            utterances.append({"turn_id": turn, "history": history, "candidates": answers[:1], "answers": answers})
            history = [*history, answers[0]]
        wanted.append({"id": f"s{index}", "document": [text], "utterances": utterances})
    content = json.dumps({"data": data}, ensure_ascii=random.random() < 0.5).encode()
    assert attempt(["coqa", "--test", "{}/a.json"], {"a.json": content}) == {"test": wanted}


# --- squad -----------------------------------------------------------------------------------------------


def squad_file(path, *articles):
    """A SQuAD file of (title, [(context, [(question, answers or None)])]); None is an impossible question."""
    data = [
        {"title": title, "paragraphs": [{"context": context, "qas": [squad_question(*qa) for qa in qas]}
                                        for context, qas in paragraphs]}
        for title, paragraphs in articles
    ]  # fmt: skip
    return write(path, json.dumps({"version": "v2.0", "data": data}))


def squad_question(question, answers):
    if answers is None:
        return {"question": question, "id": "q", "answers": [], "is_impossible": True, "plausible_answers": []}
    return {"question": question, "id": "q", "answers": [{"text": text, "answer_start": 0} for text in answers]}


def squad_utterance(turn, question, answers):
    return {"turn_id": turn, "history": [question], "candidates": answers[:1], "answers": answers}


def test_squad_gives_a_record_a_paragraph_with_independent_questions(tmp_path):
    first = ("Rome", [("A city.", [("what?", ["a city", "city", "a city"]), ("why?", None), (" who? ", [" x"])]),
                      ("Old.", [("when?", None)])])  # fmt: skip
    a, b = (
        squad_file(tmp_path / "a.json", first),
        squad_file(tmp_path / "b.json", first, ("", [("C.", [("c?", ["c"])])])),
    )
    got, report = run(tmp_path, "squad", "--train", a, b, "--valid", a)
    utterances = [squad_utterance(1, "what?", ["a city", "city"]), squad_utterance(2, "who?", ["x"])]
    rome = {"id": "Rome#0", "document": ["A city."], "utterances": utterances}
    other = {"id": "untitled#0", "document": ["C."], "utterances": [squad_utterance(1, "c?", ["c"])]}
    assert got["train"] == [rome, {**rome, "id": "Rome(2)#0"}, other]
    assert got["valid"] == [rome]
    assert "valid: kept 1, dropped 3 (2 impossible questions, 1 paragraphs left without a question)" in report
    assert "train: kept 3, dropped 6" in report
    assert "  questions: 5" in report


def test_squad_answers_impossible_questions_with_a_given_text(tmp_path):
    path = squad_file(tmp_path / "a.json", ("T", [("Old.", [("when?", None), ("a?", ["b"])])]))
    got, report = run(tmp_path, "squad", "--train", path, "--unanswerable", " no answer ")
    assert got["train"][0]["utterances"] == [
        squad_utterance(1, "when?", ["no answer"]),
        squad_utterance(2, "a?", ["b"]),
    ]
    assert "dropped 0" in report
    (tmp_path / "out" / "data.json").unlink()
    assert "--unanswerable" in error(tmp_path, "squad", "--train", path, "--unanswerable", " ")


def test_squad_holds_out_the_last_paragraphs_and_none_of_them_stays_in_training(tmp_path):
    paragraphs = [(f"P{i}.", [("q?", ["a"]), ("r?", None)]) for i in range(8)]
    a = squad_file(tmp_path / "a.json", ("T", [("P6.", [("early?", ["a"])]), *paragraphs[:4]]))
    b = squad_file(tmp_path / "b.json", ("U", [*paragraphs[4:], ("gone", [("r?", None)])]))
    got, report = run(tmp_path, "squad", "--train", a, b, "--valid_from_train", 2, "--test_from_train", 1)
    documents = {split: [record["document"][0] for record in records] for split, records in got.items()}
    assert documents == {"train": ["P0.", "P1.", "P2.", "P3.", "P4."], "valid": ["P5.", "P6."], "test": ["P7."]}
    assert list(got) == ["train", "valid", "test"]
    assert "valid: kept 2, dropped 2 (2 impossible questions)" in report
    assert "1 sharing a text with one held out" in report
    first = (tmp_path / "out" / "data.json").read_bytes()
    got, _ = run(
        tmp_path, "squad", "--train", a, b, "--valid_from_train", 2, "--test_from_train", 1, "--train_limit", 2
    )
    assert sizes(got) == {"train": 2, "valid": 2, "test": 1}
    run(tmp_path, "squad", "--train", a, b, "--valid_from_train", 2, "--test_from_train", 1)
    assert (tmp_path / "out" / "data.json").read_bytes() == first


def test_squad_says_when_nothing_can_be_held_out(tmp_path):
    path = squad_file(tmp_path / "a.json", ("T", [(f"P{i}.", [("q?", ["a"])]) for i in range(3)]))
    message = error(tmp_path, "squad", "--train", path, "--valid_from_train", 2, "--test_from_train", 1)
    assert "3 records are to be held out, and the training files have 3" in message
    for flags in (["--valid", path, "--train", path], ["--test", path]):
        message = error(tmp_path, "squad", *flags, "--valid_from_train", 1)
        assert message.startswith("--valid_from_train: requires --train and cannot be combined with --valid")


def squad_with(**changes):
    question = {"question": "q?", "answers": [{"text": "a"}]}
    return {"title": "T", "paragraphs": [{"context": "C.", "qas": [{**question, **changes}]}]}


@pytest.mark.parametrize(("article", "location", "found"), [
    ({"title": "T"}, "data[1]", "has no 'paragraphs'"),
    ({"paragraphs": [{"qas": []}]}, "data[1].paragraphs[0]", "has no 'context'"),
    ({"paragraphs": [{"context": " ", "qas": []}]}, "data[1].paragraphs[0]", "'context' is blank"),
    ({"paragraphs": [{"context": "C."}]}, "data[1].paragraphs[0]", "has no 'qas'"),
    (squad_with(question=""), "data[1].paragraphs[0].qas[0]", "'question' is blank"),
    (squad_with(answers=[]), "data[1].paragraphs[0].qas[0]", "'answers' is empty"),
    (squad_with(answers=["a"]), "data[1].paragraphs[0].qas[0]", "'answers[0]' is 'a'"),
    (squad_with(answers=[{"text": "a\0"}]), "data[1].paragraphs[0].qas[0]", "null byte"),
    (squad_with(is_impossible="false"), "data[1].paragraphs[0].qas[0]", "'is_impossible' is 'false'"),
])  # fmt: skip
def test_squad_names_the_question_of_what_is_wrong_and_skip_bad_counts_it(tmp_path, article, location, found):
    path = write(tmp_path / "a.json", json.dumps({"data": [squad_with(), article]}))
    message = error(tmp_path, "squad", "--train", path)
    assert message.startswith(f"{path}:{location}: ")
    assert found in message
    assert "--skip_bad" in message
    got, report = run(tmp_path, "squad", "--train", path, "--skip_bad")
    assert len(got["train"]) == 1
    assert "dropped 1 (1 malformed)" in report


def test_the_real_squad_files(tmp_path, shared_data):
    v2, v1 = shared_data / "squad" / "dev-v2.0.json", shared_data / "squad" / "xquad.en.json"
    got, report = run(tmp_path, "squad", "--train", v2, "--test", v1)
    questions = {split: sum(len(record["utterances"]) for record in got[split]) for split in got}
    assert questions == {"train": 4449 - 2342, "test": 1105}
    assert "2342 impossible questions" in report
    got, _ = run(tmp_path, "squad", "--train", v2, "--unanswerable", "none")
    assert sum(len(record["utterances"]) for record in got["train"]) == 4449
    # The two files share paragraphs.
    got, _ = run(tmp_path, "squad", "--train", v2, v1, "--valid_from_train", 20, "--test_from_train", 30)
    documents = {split: {record["document"][0] for record in got[split]} for split in got}
    assert (len(got["valid"]), len(got["test"])) == (20, 30)
    assert len(set.union(*documents.values())) == sum(map(len, documents.values()))
    ids = [record["id"] for records in got.values() for record in records]
    assert len(set(ids)) == len(ids)


PARAGRAPHS = st.tuples(
    TEXT, st.lists(st.tuples(TEXT, st.none() | st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=3)
)
ARTICLES = st.lists(
    st.tuples(st.sampled_from(["T", "T(2)", "", "U"]), st.lists(PARAGRAPHS, max_size=3)), min_size=1, max_size=5
)


@SETTINGS
@given(ARTICLES, st.integers(0, 2), st.integers(0, 2))
def test_any_paragraphs_come_back_from_squad_and_no_text_is_in_two_splits(articles, valid, test):
    wanted = []
    for _, paragraphs in articles:
        for context, qas in paragraphs:
            asked = [(question, list(dict.fromkeys(answers))) for question, answers in qas if answers]
            if asked:
                wanted.append([context, [squad_utterance(n, *qa) for n, qa in enumerate(asked, start=1)]])
    data = [
        {
            "title": t,
            "paragraphs": [{"context": c, "qas": [squad_question(*qa) for qa in qas]} for c, qas in paragraphs],
        }
        for t, paragraphs in articles
    ]
    flags = ["--valid_from_train", str(valid)] * bool(valid) + ["--test_from_train", str(test)] * bool(test)
    got = attempt(["squad", "--train", "{}/a.json", *flags], {"a.json": json.dumps({"data": data}).encode()})
    if got is None:
        kept = {context for context, _ in wanted[: len(wanted) - valid - test]}
        held = {context for context, _ in wanted[len(wanted) - valid - test :]}
        assert len(wanted) <= valid + test or kept <= held or test * valid
        return
    records = [record for split in got.values() for record in split]
    assert len({record["id"] for record in records}) == len(records)
    if len({context for context, _ in wanted}) == len(wanted):
        assert [[record["document"][0], record["utterances"]] for record in records] == wanted
        assert (len(got.get("valid", [])), len(got.get("test", []))) == (valid, test)
    documents = [{record["document"][0] for record in split} for split in got.values()]
    assert len(set.union(*documents)) == sum(map(len, documents))


# --- whatever the files hold, the result is a task json or a `UserError` ---------------------------------


@SETTINGS
@given(st.booleans(), st.data())
def test_damaged_files_are_survived(skip_bad, data):
    coqa = json.dumps({"data": [GOOD, story([(1, "a", "b")], [[(1, "c")]])]}).encode()
    squad = json.dumps({"data": [squad_with(), squad_with(is_impossible=False)]}).encode()
    flags = ["--skip_bad"] * skip_bad
    for name, content in (("coqa", coqa), ("squad", squad)):
        got = attempt([name, "--train", "{}/a", *flags], {"a": damaged(content, data)})
        for record in (got or {}).get("train", []):
            assert record["utterances"]
            for utterance in record["utterances"]:
                texts = [*utterance["history"], *utterance["candidates"], *utterance.get("answers", [])]
                assert all(part == part.strip() and part for part in texts)
                assert "\0" not in "".join(texts)


@SETTINGS
@given(NOISE)
def test_any_bytes_are_survived(content):
    for name in ("coqa", "squad"):
        attempt([name, "--train", "{}/a"], {"a": content})
        attempt([name, "--valid", "{}/a.gz"], {"a.gz": content})


def test_the_task_reads_what_was_converted(tmp_path):
    from versatile.data import task

    path = coqa_file(tmp_path / "a.json", story([(1, "who?", "me"), (2, "why?", "so")], [[(1, "I")]]))
    got, _ = run(tmp_path, "coqa", "--train", path)
    examples = list(task.get_task("qa").examples(got["train"][0], "here"))
    assert [example.references for example in examples] == [["me", "I"], ["so"]]
