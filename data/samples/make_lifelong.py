"""Write the small samples of two lifelong tasks: lifelong/<task>_to_squad-{train,test}-v2.0.json, 120 and 30 each.

    python data/samples/make_lifelong.py

ag (the topic of a news item) is made here, e2enlg (a restaurant's meaning representation in words) from the records of
nlg.json. All names and sentences were made up for this project; contexts, questions and answers have the form of the
released files. No context occurs in two splits. The same seed gives the same bytes.
"""

import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from versatile.data import question_samples as samples  # noqa: E402
from versatile.data.question_samples import QA  # noqa: E402
from versatile.data.question_tasks import TASKS  # noqa: E402
from versatile.data.samples.make_samples import make_nlg  # noqa: E402 (found by the line above)

TRAIN, TEST = 120, 30
PLACES = ("Larkfield", "Port Almund", "Veska", "Torrin", "New Harrow", "Sable Bay", "Ostmere", "Kallin")
PEOPLE = ("Ada Winslow", "Tomas Brell", "Ines Korda", "Jon Halvard", "Mira Oduya", "Paul Grenn")
# topic -> (headlines, sentences); {place}, {person}, {number} and the topic's own words are filled in.
TOPICS = {
    "World": (
        ("Talks in {place} end without a treaty", "Voters in {place} go to the polls", "Minister {person} resigns",
         "Thousands march in {place}"),
        ("The government of {place} said on Monday that {number} people had crossed the border.",
         "President {person} called for peace after {number} days of unrest.",
         "Observers counted {number} polling stations that opened late.",
         "Diplomats met in {place} for the first time in {number} years."),
    ),
    "Sports": (
        ("{place} win the cup", "{person} breaks the record", "Late goal saves {place}", "Coach {person} to leave"),
        ("{person} scored {number} points as {place} won the final.",
         "The team of {place} lost for the first time in {number} matches.",
         "{person} finished the race in {place} {number} seconds ahead.",
         "Fans of {place} cheered when the striker scored in minute {number}."),
    ),
    "Business": (
        ("Shares of {place} Steel fall", "{place} Bank to cut jobs", "Oil prices rise",
         "{person} to head {place} Foods"),
        ("The company said its profit rose {number} percent in the quarter.",
         "Chief executive {person} sold {number} million shares.",
         "Investors expect sales of {number} million dollars this year.",
         "The bank of {place} raised its interest rate for the market."),
    ),
    "Sci/Tech": (
        ("New chip doubles speed", "Probe reaches the comet", "Software flaw found in {place}",
         "{person} maps the genome of a moss"),
        ("Researchers in {place} built a computer with {number} processors.",
         "The telescope near {place} found {number} new planets.",
         "Engineer {person} released version {number} of the software on the internet.",
         "Scientists say the satellite will orbit for {number} years."),
    ),
}  # fmt: skip
TOPIC_QUESTION = "Is this sentence World, Sports, Business, or Sci/Tech?"
NLG_QUESTION = "what is the natural language form ?"


def make_ag(seed=42):
    """{split: a list of `QA`} of ag."""
    rng = random.Random(seed)
    questions, seen = [], set()
    while len(questions) < TRAIN + TEST:
        # All topics equally often.
        topic = list(TOPICS)[len(questions) % len(TOPICS)]
        headline, sentence = map(rng.choice, TOPICS[topic])
        words = dict(place=rng.choice(PLACES), person=rng.choice(PEOPLE), number=rng.randint(3, 90))
        text = f"{headline} {sentence}".format(**words)
        if text not in seen:
            seen.add(text)
            questions.append(QA(text, TOPIC_QUESTION, (topic,)))
    return {"train": questions[:TRAIN], "test": questions[TRAIN:]}


def make_e2enlg():
    """{split: a list of `QA`} of e2enlg."""
    records, splits = make_nlg(), {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        splits[split] = []
        for number, record in enumerate(records[split][:count]):
            context = ", ".join(f"{slot}[{value}]" for slot, value in record["src"].items())
            answers = tuple(record.get("refs", [record["tgt"]]))
            splits[split].append(QA(context, NLG_QUESTION, answers, f"{split}-{number}"))
    return splits


MAKERS = {"ag": make_ag, "e2enlg": make_e2enlg}


def main():
    for task, make in MAKERS.items():
        for split, questions in make().items():
            path = HERE / "lifelong" / TASKS[task].filename(split)
            samples.save_samples(path, questions)
            print(f"wrote {path}: {len(questions)}")


if __name__ == "__main__":
    main()
