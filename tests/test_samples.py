"""The conversations, questions and articles of data/samples: their shape, and that they can be learned from."""

import json
import re
from pathlib import Path

import pytest
from versatile.data.samples.dialogues import TOPICS
from versatile.utils.metrics import rouge

SAMPLES = Path(__file__).resolve().parent.parent / "data" / "samples"


def read(task):
    return json.loads((SAMPLES / f"{task}.json").read_text(encoding="utf-8"))


def sizes(splits):
    return {split: len(records) for split, records in splits.items()}


def words(text):
    return set(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("task", ["dialogue", "qa"])
def test_the_history_of_an_utterance_holds_all_turns_before_its_reply(task):
    splits = read(task)
    assert sizes(splits) == {"train": 70, "valid": 12, "test": 12}
    for record in (record for records in splits.values() for record in records):
        turns = []
        for utterance in record["utterances"]:
            assert utterance["history"][:-1] == turns and len(utterance["candidates"]) == 1
            turns = [*utterance["history"], *utterance["candidates"]]
            assert all(turn == turn.strip() and turn for turn in turns)


@pytest.mark.parametrize("task, key", [("dialogue", "personality"), ("qa", "document"), ("summarization", "src")])
def test_no_source_stands_in_two_splits(task, key):
    seen = {split: {str(record[key]) for record in records} for split, records in read(task).items()}
    assert len(set.union(*seen.values())) == sum(map(len, seen.values()))


def test_dialogues_have_four_to_six_lower_case_replies_that_keep_to_the_persona():
    without = {reply for topic in TOPICS.values() for reply in topic.without}
    plain = {word for topic in TOPICS.values() for reply in topic.answers for word in words(reply)}
    for record in (record for records in read("dialogue").values() for record in records):
        assert len(record["personality"]) in (4, 5) and 4 <= len(record["utterances"]) <= 6
        persona = words(" ".join(record["personality"]))
        replies = [utterance["candidates"][0] for utterance in record["utterances"]]
        for text in (*record["personality"], *record["utterances"][-1]["history"], *replies):
            assert text == text.lower()
        for reply in replies:
            fits = (words(reply) - plain) & persona
            assert fits or any(text in reply for text in without), (record["personality"], reply)


def test_answers_stand_in_the_document_or_are_yes_or_no():
    kinds = set()
    for record in (record for records in read("qa").values() for record in records):
        (document,) = record["document"]
        assert 60 <= len(document.split()) <= 110 and 3 <= len(record["utterances"]) <= 5
        assert [utterance["turn_id"] for utterance in record["utterances"]] == list(
            range(1, len(record["utterances"]) + 1)
        )
        for utterance in record["utterances"]:
            (gold,), answers = utterance["candidates"], utterance["answers"]
            assert answers[0] == gold and len(set(answers)) == len(answers) <= 3
            kinds.add(gold if gold in ("Yes", "No") else "span")
            assert gold in ("Yes", "No") or gold.lower() in document.lower()
    assert kinds == {"Yes", "No", "span"}


def test_summaries_are_two_lines_about_their_own_article():
    splits = read("summarization")
    assert sizes(splits) == {"train": 150, "valid": 20, "test": 20}
    records = [record for records in splits.values() for record in records]
    for record in records:
        assert 80 <= len(record["src"].split()) <= 150 and "\n" not in record["src"]
        lines = record["tgt"].split("\n")
        assert len(lines) == 2 and all(line.endswith(".") for line in lines)
    own = rouge([record["tgt"] for record in records], [[record["src"]] for record in records])
    other = rouge([record["tgt"] for record in records], [[record["src"]] for record in records[1:] + records[:1]])
    assert own["rouge2"].value > 3 * other["rouge2"].value
