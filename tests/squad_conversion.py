"""Converting to LAMOL's json in tests."""

import json

import pytest
from converting import SETTINGS
from hypothesis import settings
from versatile.data import convert
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


AG = "Is this sentence World, Sports, Business, or Sci/Tech?"


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
