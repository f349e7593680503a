"""Write the small data sets in this folder, one per task.

    python data/samples/make_samples.py

nlg.json (restaurants) and mt.json (English to German) are made here, dialogue.json in dialogues.py, qa.json in
questions.py, summarization.json in articles.py and webnlg.json in triples.py. All names, templates and sentences
were made up for this project; the slots are those of the E2E challenge. No source occurs in two splits. The same seed
gives the same bytes.
"""

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from versatile.data.samples.articles import make_summarization  # noqa: E402 (found by the line above)
from versatile.data.samples.dialogues import make_dialogue  # noqa: E402
from versatile.data.samples.questions import make_qa  # noqa: E402
from versatile.data.samples.triples import make_webnlg  # noqa: E402
from versatile.utils.files import atomic_write  # noqa: E402

# --- nlg: words ------------------------------------------------------------------------------------------

NAMES = (
    "The Copper Ladle", "Blue Finch", "Marlow's Table", "The Lantern Room", "Saffron Lane", "Harper & Quill",
    "The Tin Kettle", "Olive Court", "Juniper House", "The Wandering Fig", "Basil and Stone", "Maple Yard",
    "The Velvet Spoon", "The Old Tollgate", "The Painted Pear", "Nettle & Rye", "The Salt Barge", "Amber Gate",
    "Cedar Corner", "The Quiet Goose", "The Paper Crane", "Willow Steps", "Rook's Landing", "The Clay Oven",
)
LANDMARKS = (
    "Larkfield Library", "the Queen Ada Theatre", "Pinewood Park", "Harbour Books", "the Glass Market",
    "Fenwick Station", "the Clock Museum", "St Orla's Church", "Tanner's Bridge", "the Moonlight Cinema",
)
VALUES = {
    "eatType": ("restaurant", "pub", "coffee shop"),
    "food": ("Italian", "Indian", "Thai", "Greek", "French", "English", "Japanese", "Mexican"),
    "priceRange": ("cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"),
    "customer rating": ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"),
    "area": ("city centre", "riverside"),
    "familyFriendly": ("yes", "no"),
    "near": LANDMARKS,
}
# Adjectives put before the noun; a value missing here is expressed as a clause.
ADJECTIVES = {
    ("priceRange", "cheap"): ("cheap", "inexpensive", "low-cost"),
    ("priceRange", "moderate"): ("moderately priced", "mid-priced"),
    ("priceRange", "high"): ("expensive", "high-priced"),
    ("customer rating", "low"): ("poorly rated", "low-rated"),
    ("customer rating", "high"): ("highly rated", "well-rated"),
    ("familyFriendly", "yes"): ("family-friendly", "child-friendly"),
}
CLAUSES = {
    "food": ("serves {} food", "offers {} dishes", "cooks {} meals", "has {} food on the menu"),
    ("priceRange", "cheap"): ("is cheap", "has low prices", "keeps its prices low"),
    ("priceRange", "moderate"): ("has moderate prices", "is moderately priced"),
    ("priceRange", "high"): ("is expensive", "has high prices"),
    "priceRange": ("charges {} for a meal", "has meals for {}"),
    ("customer rating", "low"): ("has a low customer rating", "is rated poorly by its customers"),
    ("customer rating", "average"): ("has an average customer rating", "gets average ratings from customers"),
    ("customer rating", "high"): ("has a high customer rating", "is rated highly by its customers"),
    "customer rating": ("has a customer rating of {}", "is rated {} by its customers"),
    ("familyFriendly", "yes"): ("is family-friendly", "welcomes families", "is a good place to bring children"),
    ("familyFriendly", "no"): ("is not family-friendly", "is not suitable for children",
                               "does not cater for families"),
}
AREAS = {"city centre": ("in the city centre", "in the centre of the city"),
         "riverside": ("in the riverside area", "by the river", "on the riverside")}
NEARBY = ("near {}", "close to {}", "not far from {}")


# --- nlg: sentences --------------------------------------------------------------------------------------


def with_article(phrase):
    """`phrase` after "a" or "an"; none of the words above is an exception to the vowel rule."""
    return ("an " if phrase[0].lower() in "aeiou" else "a ") + phrase


def listed(items):
    """"x", "x and y", "x, y and z"."""
    return " and ".join([", ".join(items[:-1])] * (len(items) > 1) + list(items[-1:]))


def capital(text):
    return text[:1].upper() + text[1:]


def clause(rng, slot, value):
    """The words after "it" that express one slot, e.g. "serves Thai food"."""
    return rng.choice(CLAUSES.get((slot, value)) or CLAUSES[slot]).format(value)


def location(rng, mr):
    parts = []
    if "area" in mr:
        parts.append(rng.choice(AREAS[mr["area"]]))
    if "near" in mr:
        parts.append(rng.choice(NEARBY).format(mr["near"]))
    rng.shuffle(parts)
    # "near the Glass Market by the river" would put the market, not the place, by the river.
    return ", ".join(parts) if parts and "near" in mr and parts[0].endswith(mr["near"]) else " ".join(parts)


def noun_phrase(rng, mr, slots):
    """("a cheap Thai pub", the slots it does not express); the phrase is None if it would express nothing."""
    chosen = [slot for slot in slots if (slot, mr[slot]) in ADJECTIVES and rng.random() < 0.5][:2]
    rng.shuffle(chosen)
    words = [", ".join(rng.choice(ADJECTIVES[slot, mr[slot]]) for slot in chosen)]
    if "food" in slots and rng.random() < 0.6:
        chosen.append("food")
        words.append(mr["food"])
    rest = [slot for slot in slots if slot not in chosen]
    rng.shuffle(rest)
    if not chosen and "eatType" not in mr:
        return None, rest
    words.append(mr.get("eatType") or rng.choice(("place", "venue")))
    return with_article(" ".join(word for word in words if word)), rest


def follow_ups(rng, mr, rest):
    """Sentences that express the slots in `rest`."""
    sentences = []
    while rest:
        count = min(len(rest), rng.choice((1, 2, 2, 3)))
        subject = f"The {mr['eatType']}" if "eatType" in mr and not sentences and rng.random() < 0.4 else "It"
        sentences.append(f"{subject} {listed([clause(rng, slot, mr[slot]) for slot in rest[:count]])}.")
        rest = rest[count:]
    return sentences


def plain_opening(rng, mr, where, rest):
    """(first sentence, the remaining slots) if the place has only a name and no noun phrase."""
    name = mr["name"]
    said = [clause(rng, slot, mr[slot]) for slot in rest[:rng.choice((1, 2))]]
    if where and rng.random() < 0.5:
        return rng.choice((f"{name} is {where}.", f"You can find {name} {where}.")), rest
    verbs = said + [rng.choice(("is", "can be found")) + f" {where}"] * bool(where)
    return f"{name} {listed(verbs)}.", rest[len(said):]


def opening(rng, mr, where, what, rest):
    """(first one or two sentences, the remaining slots); `what` is a noun phrase."""
    name, at = mr["name"], f" {where}" if where else ""
    forms = [f"{name} is {what}{at}.", f"There is {what} called {name}{at}.",
             f"Looking for {what}{at}? Try {name}."]
    if where:
        forms += [f"{capital(where)}, you will find {name}, {what}.",
                  f"{name} can be found {where}. It is {what}.", f"You can find {name}, {what}, {where}."]
    if "food" in rest and rng.random() < 0.3:
        rest = [slot for slot in rest if slot != "food"]
        return f"If you would like {mr['food']} food, try {name}, {what}{at}.", rest
    if rest and rng.random() < 0.4:
        count = min(len(rest), rng.choice((1, 2)))
        said = listed([clause(rng, slot, mr[slot]) for slot in rest[:count]])
        return rng.choice((f"{name}, {what}{at}, {said}.", f"{name} {said}. It is {what}{at}.")), rest[count:]
    return rng.choice(forms), rest


def describe(rng, mr):
    """One description that expresses every slot of the meaning representation once."""
    where = location(rng, mr)
    slots = [slot for slot in ("food", "priceRange", "customer rating", "familyFriendly") if slot in mr]
    what, rest = noun_phrase(rng, mr, slots)
    if what:
        first, rest = opening(rng, mr, where, what, rest)
    else:
        first, rest = plain_opening(rng, mr, where, rest)
    return " ".join([first, *follow_ups(rng, mr, rest)])


def meaning(rng):
    """A random meaning representation with three to eight slots."""
    slots = rng.sample(list(VALUES), rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 7)))
    return {"name": rng.choice(NAMES), **{slot: rng.choice(VALUES[slot]) for slot in VALUES if slot in slots}}


def descriptions(rng, mr, count):
    """`count` different descriptions."""
    texts = []
    while len(texts) < count:
        text = describe(rng, mr)
        if text not in texts:
            texts.append(text)
    return texts


def make_nlg(seed=42):
    """{split: records} of nlg.json."""
    rng = random.Random(seed)
    mrs, seen = [], set()
    while len(mrs) < 320:
        mr = meaning(rng)
        if str(mr) not in seen:
            seen.add(str(mr))
            mrs.append(mr)
    train = [{"src": mr, "tgt": text} for mr in mrs[:200] for text in descriptions(rng, mr, 3)]
    rng.shuffle(train)
    splits = {"train": train}
    for split, chosen in (("valid", mrs[200:260]), ("test", mrs[260:])):
        texts = [descriptions(rng, mr, rng.choice((3, 4, 5))) for mr in chosen]
        splits[split] = [{"src": mr, "tgt": refs[0], "refs": refs} for mr, refs in zip(chosen, texts)]
    return splits


# --- mt: words -------------------------------------------------------------------------------------------


class Noun:
    """An English noun and its German gender (m, f, n) and cases."""

    def __init__(self, english, gender, german, oblique=None):
        self.english, self.gender = english, gender
        # The weak masculines (der Nachbar, den Nachbarn) have one form for all cases but the nominative.
        self.forms = {"nom": german, "acc": oblique or german, "dat": oblique or german}

    def the(self, case):
        """With the definite article: "den Brief"."""
        article = {"nom": {"m": "der", "f": "die", "n": "das"}, "acc": {"m": "den", "f": "die", "n": "das"},
                   "dat": {"m": "dem", "f": "der", "n": "dem"}}[case][self.gender]
        return f"{article} {self.forms[case]}"

    def a(self, adjective):
        """Accusative with the indefinite article and an adjective: "einen neuen Brief"."""
        article = {"m": "einen", "f": "eine", "n": "ein"}[self.gender]
        return f"{article} {adjective}{ {'m': 'en', 'f': 'e', 'n': 'es'}[self.gender]} {self.forms['acc']}"

    def it(self, case):
        if self.gender == "m":
            return {"nom": "er", "acc": "ihn"}[case]
        return {"f": "sie", "n": "es"}[self.gender]


PEOPLE = (
    Noun("teacher", "m", "Lehrer"), Noun("doctor", "f", "Ärztin"), Noun("boy", "m", "Junge", "Jungen"),
    Noun("neighbour", "m", "Nachbar", "Nachbarn"), Noun("girl", "n", "Mädchen"), Noun("woman", "f", "Frau"),
    Noun("man", "m", "Mann"), Noun("gardener", "m", "Gärtner"), Noun("baker", "m", "Bäcker"),
    Noun("student", "f", "Studentin"), Noun("engineer", "f", "Ingenieurin"), Noun("child", "n", "Kind"),
    Noun("grandmother", "f", "Großmutter"), Noun("farmer", "m", "Bauer", "Bauern"),
)
THINGS = {noun.english: noun for noun in (
    Noun("book", "n", "Buch"), Noun("letter", "m", "Brief"), Noun("newspaper", "f", "Zeitung"),
    Noun("poem", "n", "Gedicht"), Noun("bicycle", "n", "Fahrrad"), Noun("clock", "f", "Uhr"),
    Noun("car", "n", "Auto"), Noun("chair", "m", "Stuhl"), Noun("table", "m", "Tisch"),
    Noun("lamp", "f", "Lampe"), Noun("picture", "n", "Bild"), Noun("map", "f", "Landkarte"),
    Noun("cake", "m", "Kuchen"), Noun("apple", "m", "Apfel"), Noun("soup", "f", "Suppe"),
    Noun("pear", "f", "Birne"), Noun("coat", "m", "Mantel"), Noun("bag", "f", "Tasche"),
    Noun("key", "m", "Schlüssel"), Noun("umbrella", "m", "Regenschirm"), Noun("window", "n", "Fenster"),
    Noun("ball", "m", "Ball"), Noun("door", "f", "Tür"),
)}
# English base, he …, has …; German infinitive, er …, hat …; possible objects.
VERBS = (
    ("read", "reads", "read", "lesen", "liest", "gelesen", "book letter newspaper poem map"),
    ("buy", "buys", "bought", "kaufen", "kauft", "gekauft",
     "book newspaper bicycle clock car chair table lamp picture map cake coat bag umbrella ball"),
    ("repair", "repairs", "repaired", "reparieren", "repariert", "repariert",
     "bicycle clock car chair table lamp window door umbrella"),
    ("carry", "carries", "carried", "tragen", "trägt", "getragen",
     "chair lamp picture coat bag umbrella table"),
    ("find", "finds", "found", "finden", "findet", "gefunden", "key bag umbrella ball map letter book coat"),
    ("eat", "eats", "eaten", "essen", "isst", "gegessen", "cake apple soup pear"),
    ("hide", "hides", "hidden", "verstecken", "versteckt", "versteckt", "key bag ball map letter cake book"),
    ("sell", "sells", "sold", "verkaufen", "verkauft", "verkauft", "cake pear bicycle car picture lamp table"),
    ("clean", "cleans", "cleaned", "putzen", "putzt", "geputzt", "window door car table bicycle lamp"),
)
ADJECTIVE_PAIRS = (("red", "rot"), ("new", "neu"), ("old", "alt"), ("small", "klein"), ("big", "groß"),
                   ("green", "grün"), ("beautiful", "schön"), ("heavy", "schwer"))
FOOD_ADJECTIVES = (("small", "klein"), ("big", "groß"))
SPOTS = (("in the garden", "im Garten"), ("at the station", "am Bahnhof"), ("in the kitchen", "in der Küche"),
         ("in front of the house", "vor dem Haus"), ("behind the church", "hinter der Kirche"),
         ("next to the library", "neben der Bibliothek"))
GOALS = (("to the park", "in den Park"), ("to the station", "zum Bahnhof"), ("to the market", "auf den Markt"),
         ("to the library", "in die Bibliothek"), ("to the lake", "an den See"), ("to school", "in die Schule"))


# --- mt: sentences ---------------------------------------------------------------------------------------


def statements(who, verb, what, adjective, spot):
    """(English, German) pairs about somebody who does something to a thing."""
    base, does, done, infinitive, tut, getan, _ = verb
    person, thing = f"the {who.english}", f"the {what.english}"
    wer, wen = who.the("nom"), what.the("acc")
    return [
        (f"{person} {does} {thing} {spot[0]}.", f"{wer} {tut} {wen} {spot[1]}."),
        (f"Yesterday {person} was not able to {base} {thing}.",
         f"Gestern konnte {wer} {wen} nicht {infinitive}."),
        (f"{person} has already {done} {thing}.", f"{wer} hat {wen} schon {getan}."),
        (f"I believe that {person} {does} {thing}.", f"Ich glaube, dass {wer} {wen} {tut}."),
        (f"{person} wants to {base} {thing}.", f"{wer} will {wen} {infinitive}."),
        (f"Does {person} {base} {thing}?", f"{tut} {wer} {wen}?"),
        (f"When it rains, {person} {does} {thing}.", f"Wenn es regnet, {tut} {wer} {wen}."),
        (f"Tomorrow {person} will {base} {thing}.", f"Morgen wird {wer} {wen} {infinitive}."),
        (f"{thing} is {adjective[0]}, but {person} {does} it.",
         f"{what.the('nom')} ist {adjective[1]}, aber {wer} {tut} {what.it('acc')}."),
        (f"{person} has not {done} {thing}.", f"{wer} hat {wen} nicht {getan}."),
        (f"{person} {does} {with_article(f'{adjective[0]} {what.english}')}.",
         f"{wer} {tut} {what.a(adjective[1])}."),
    ]


def other_sentences(who, whom, what, adjective, spot, goal):
    """(English, German) pairs about giving, going and being somewhere; `whom` in the dative."""
    thing, person = f"the {what.english}", f"the {who.english}"
    return [
        (f"{person} gives the {whom.english} {thing}.",
         f"{who.the('nom')} gibt {whom.the('dat')} {what.the('acc')}."),
        (f"{person} goes {goal[0]} with the {whom.english}.",
         f"{who.the('nom')} geht mit {whom.the('dat')} {goal[1]}."),
        (f"Where is {thing}? It is {spot[0]}.",
         f"Wo ist {what.the('nom')}? {capital(what.it('nom'))} ist {spot[1]}."),
        (f"{person} shows the {whom.english} {with_article(f'{adjective[0]} {what.english}')}.",
         f"{who.the('nom')} zeigt {whom.the('dat')} {what.a(adjective[1])}."),
        (f"Every morning {person} waits for the {whom.english} {spot[0]}.",
         f"Jeden Morgen wartet {who.the('nom')} {spot[1]} auf {whom.the('acc')}."),
    ]


def sentence_pair(rng):
    who, whom = rng.sample(PEOPLE, 2)
    adjective, spot, goal = rng.choice(ADJECTIVE_PAIRS), rng.choice(SPOTS), rng.choice(GOALS)
    if rng.random() < 0.7:
        verb = rng.choice(VERBS)
        what = THINGS[rng.choice(verb[-1].split())]
        if verb[0] == "eat":
            adjective = rng.choice(FOOD_ADJECTIVES)
        english, german = rng.choice(statements(who, verb, what, adjective, spot))
    else:
        what = THINGS[rng.choice([name for name in THINGS if name not in ("window", "door", "soup")])]
        english, german = rng.choice(other_sentences(who, whom, what, adjective, spot, goal))
    return capital(english), capital(german)


def make_mt(seed=42):
    """{split: records} of mt.json."""
    rng = random.Random(seed)
    pairs, seen = [], set()
    while len(pairs) < 480:
        source, target = sentence_pair(rng)
        if source not in seen and target not in seen:
            seen.update((source, target))
            pairs.append({"src": source, "tgt": target})
    return {"train": pairs[:400], "valid": pairs[400:440], "test": pairs[440:]}


def as_text(splits):
    """{split: records} as json, one record per line."""
    lists = []
    for split, records in splits.items():
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        lists.append(f"{json.dumps(split)}: [\n" + ",\n".join(lines) + "\n]")
    return "{\n" + ",\n".join(lists) + "\n}\n"


MAKERS = {"nlg": make_nlg, "mt": make_mt, "dialogue": make_dialogue, "qa": make_qa,
          "summarization": make_summarization, "webnlg": make_webnlg}  # fmt: skip


def main():
    for task, make in MAKERS.items():
        name, splits = f"{task}.json", make()
        with atomic_write(HERE / name) as file:
            file.write(as_text(splits))
        sizes = ", ".join(f"{split} {len(records)}" for split, records in splits.items())
        print(f"wrote {HERE / name}: {sizes}")


if __name__ == "__main__":
    main()
