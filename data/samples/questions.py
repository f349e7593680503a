"""The documents of qa.json, made up for this project, and short conversations of questions about each.

A document is a list of sentences from one of four frames. A frame's questions come in groups, of which the first
stands alone and the others ("And where?") need the history. All answers except yes and no occur in the document.
"""

import random

PEOPLE = (
    ("Mira Holt", "she", "her"), ("Jonas Reed", "he", "his"), ("Elsa Varga", "she", "her"),
    ("Tobias Lunt", "he", "his"), ("Ines Calder", "she", "her"), ("Oskar Pell", "he", "his"),
    ("Nadia Brock", "she", "her"), ("Felix Amari", "he", "his"), ("Greta Sloan", "she", "her"),
    ("Hugo Tenby", "he", "his"), ("Paula Dene", "she", "her"), ("Ivo Marsh", "he", "his"),
)  # fmt: skip
TOWNS = ("Denby", "Larkfield", "Port Ansel", "Marrow Bay", "Oakhurst", "Fenwick", "Little Thorn", "Saltmere")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COLORS = ("red", "blue", "green", "yellow", "white", "black", "grey", "purple")
ANIMALS = (("dog", "Biscuit"), ("cat", "Pepper"), ("goat", "Olive"), ("donkey", "Moses"), ("goose", "Duchess"),
           ("pony", "Comet"), ("rabbit", "Clover"), ("parrot", "Captain"))  # fmt: skip
GOODS = ("apples", "candles", "fresh bread", "honey", "flowers", "fish", "old books", "wool", "cheese")
RELATIVES = ("brother", "sister", "uncle", "aunt", "grandmother", "cousin")
FRIENDS = ("Sam", "Lena", "Ruth", "Carlo", "Anton", "Maud", "Piet", "Wilma")
YEARS = tuple(range(1843, 1989, 7))
NUMBERS = ("three", "four", "five", "six", "seven", "eight", "nine", "twelve", "twenty", "thirty")


def a(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def market(rng):
    """(text, groups of questions): somebody walks to a market in the rain."""
    name, who, whose = rng.choice(PEOPLE)
    first, town, day, color, goods = name.split()[0], *map(rng.choice, (TOWNS, DAYS, COLORS, GOODS))
    kin, friend, (kind, pet) = rng.choice(RELATIVES), rng.choice(FRIENDS), rng.choice(ANIMALS)
    rain, walked = rng.random() < 0.5, rng.random() < 0.5
    other = rng.choice([item for item in GOODS if item != goods])
    weather = "It was raining" if rain else "The sun was shining"
    thing = "umbrella" if rain else "hat"
    went = "walked to the market" if walked else "took the bus to the market"
    subject = who.capitalize()
    text = [
        rng.choice((f"{name} lives in a small house in {town} with {whose} {kin}.",
                    f"In {town}, in a small house, lives {name} with {whose} {kin}.")),
        rng.choice((f"On {day} {who} {went} to buy {goods}.", f"{subject} {went} on {day} to buy {goods}.")),
        f"{weather}, so {who} wore {a(color)} coat and carried {a(rng.choice(COLORS))} {thing}.",
        f"{first} could not find any {goods}, because the stall had closed early.",
        f"Near the fountain {who} met {whose} friend {friend}, who was selling {other} from a cart.",
        f"The cart was pulled by a {kind} called {pet}.",
        rng.choice((f"The {kind} was hungry and ate {first}'s shopping list.",
                    f"The {kind} was tired and fell asleep on {first}'s foot.")),
        f"In the end {first} bought some {other} and went home with a smile.",
    ]  # fmt: skip
    hungry = "hungry" in text[6]
    groups = [
        [(f"Where does {first} live?", f"in {town}", town, "in a small house"),
         ("And with whom?", f"{whose} {kin}", f"with {whose} {kin}")],
        [(f"Where did {first} go?", "to the market", "the market"), ("On which day?", day, f"on {day}"),
         (f"What did {who} want to buy?", goods), (f"Did {who} find any?", "No", "no, the stall had closed")],
        [(f"Did {first} walk to the market?", "Yes" if walked else "No",
          f"{who} {'walked' if walked else 'took the bus'}"),
         ("Was it raining?", "Yes" if rain else "No", "yes, it was" if rain else "no, the sun was shining")],
        [(f"What color was {first}'s coat?", color, f"{whose} coat was {color}")],
        [(f"Who did {first} meet?", friend, f"{whose} friend {friend}"),
         ("Where?", "near the fountain", "the fountain"), (f"What was {friend} selling?", other)],
        [("What pulled the cart?", f"a {kind}", kind), ("What was it called?", pet),
         ("Was it hungry?" if hungry else "Was it awake?", "Yes" if hungry else "No",
          "yes, it was" if hungry else "no, it fell asleep")],
    ]  # fmt: skip
    return text, groups


def building(rng):
    """(text, groups of questions): the history of a public building."""
    town, (name, _, _), color = rng.choice(TOWNS), rng.choice(PEOPLE), rng.choice(COLORS)
    kind, holds, unit = rng.choice((("library", "old maps", "rooms"), ("museum", "clocks", "halls"),
                                    ("theatre", "costumes", "stages"), ("station", "model trains", "platforms"),
                                    ("town hall", "paintings", "floors")))  # fmt: skip
    opened = rng.choice(YEARS)
    burned, count, price = opened + rng.randrange(8, 30), rng.choice(NUMBERS), rng.choice(NUMBERS)
    day, cause = rng.choice(DAYS), rng.choice(("a forgotten candle", "lightning", "a broken lamp", "a kitchen fire"))
    free = rng.random() < 0.5
    entry = "Entry is free for everyone" if free else f"Entry costs {price} pounds"
    text = [
        f"The {kind} of {town} was opened in {opened}.",
        rng.choice((f"It was designed by {name}, who had never drawn a building before.",
                    f"{name} designed it and paid for the {color} roof as well.")),
        f"It has {count} {unit} and is known for its collection of {holds}.",
        f"In {burned} a fire destroyed most of it; the fire was caused by {cause}.",
        "Nobody was hurt, because the building was empty that night.",
        f"The people of {town} rebuilt the {kind} within two years, and gave it {a(color)} door.",
        f"Today it is open every day except {day}.",
        f"{entry}, and guided tours start at ten in the morning.",
    ]  # fmt: skip
    groups = [
        [(f"When was the {kind} opened?", str(opened), f"in {opened}"), ("Where?", town, f"in {town}"),
         ("Who designed it?", name, f"it was designed by {name}")],
        [(f"How many {unit} does it have?", count, f"{count} {unit}"),
         ("What is it known for?", f"its collection of {holds}", holds)],
        [("When was there a fire?", str(burned), f"in {burned}"),
         ("What caused it?", cause, f"it was caused by {cause}"),
         ("Was anybody hurt?", "No", "nobody was hurt"), ("Why not?", "the building was empty",
          "because the building was empty that night")],
        [(f"Who rebuilt the {kind}?", f"the people of {town}", "the people"),
         ("How long did it take?", "two years", "within two years")],
        [("What color is the door?", color, f"it is {color}")],
        [("On which day is it closed?", day, f"on {day}"), ("Is entry free?", "Yes" if free else "No",
          "yes, for everyone" if free else f"no, it costs {price} pounds"),
         ("And when do the tours start?", "at ten in the morning", "at ten")],
    ]  # fmt: skip
    return text, groups


def lost_pet(rng):
    """(text, groups of questions): an animal runs away and is found."""
    name, who, whose = rng.choice(PEOPLE)
    first, (kind, pet), town, day = name.split()[0], *map(rng.choice, (ANIMALS, TOWNS, DAYS))
    place = rng.choice(("the school kitchen", "the church tower", "a fishing boat", "the post office", "a haystack"))
    finder, food = rng.choice(FRIENDS), rng.choice(GOODS[:4])
    noise = rng.choice(("a thunderstorm", "a marching band", "a loud tractor", "the church bells"))
    hours, job, age = rng.choice(NUMBERS), rng.choice(("farmer", "postman", "teacher", "baker")), rng.choice(NUMBERS)
    liked = rng.random() < 0.5
    text = [
        f"{pet} is a {kind} and belongs to {name}, a {job} in {town}.",
        f"The {kind} is {age} years old and has {a(rng.choice(COLORS))} collar.",
        f"Last {day} {pet} was frightened by {noise} and ran away.",
        f"{first} looked everywhere for {hours} hours and asked all the neighbors for help.",
        f"At last a child named {finder} heard a strange sound and found {pet} in {place}.",
        f"The {kind} was cold but not hurt." if liked else f"The {kind} had hurt one leg but was calm.",
        f"{first} gave {finder} a basket of {food} to say thank you.",
        f"Since then {pet} sleeps indoors, and {first} always keeps the gate locked.",
    ]
    groups = [
        [(f"What kind of animal is {pet}?", f"a {kind}", kind), ("How old?", f"{age} years old", age),
         ("Who does it belong to?", name, first), (f"What is {whose} job?", job, f"a {job}", f"{who} is a {job}")],
        [(f"What frightened {pet}?", noise, f"{pet} was frightened by {noise}"), ("On which day?", day, f"last {day}"),
         ("What did it do then?", "ran away", f"{pet} ran away")],
        [(f"How long did {first} look?", f"{hours} hours", f"for {hours} hours"),
         (f"Did {who} ask anyone for help?", "Yes", "yes, all the neighbors")],
        [(f"Who found {pet}?", finder, f"a child named {finder}"), ("Where?", f"in {place}", place),
         ("Was the animal hurt?", "No" if liked else "Yes", "no, only cold" if liked else "yes, one leg")],
        [(f"What did {finder} get?", f"a basket of {food}", food), ("From whom?", first, name)],
        [(f"Where does {pet} sleep now?", "indoors"), ("Is the gate open?", "No", "no, it is locked")],
    ]  # fmt: skip
    return text, groups


def race(rng):
    """(text, groups of questions): a yearly boat or bicycle race."""
    (winner, who, whose), (second, _, _) = rng.sample(PEOPLE, 2)
    first, town, day, color = winner.split()[0], *map(rng.choice, (TOWNS, DAYS, COLORS))
    what, part = rng.choice((("boat", "sail"), ("bicycle", "wheel"), ("soapbox", "wheel"), ("raft", "paddle")))
    since, entries, prize = rng.choice(YEARS), rng.choice(NUMBERS[3:]), rng.choice(GOODS[:4])
    kin, minutes, before = rng.choice(RELATIVES), rng.choice(NUMBERS), rng.random() < 0.5
    text = [
        f"The {what} race of {town} has been held every summer since {since}.",
        f"This year it took place on {a(rng.choice(('sunny', 'windy', 'cloudy')))} {day}, with {entries} teams.",
        f"The winner was {winner}, who reached the goal {minutes} minutes before everyone else.",
        f"{first} had built the {color} {what} with {whose} {kin} in the garage.",
        f"{second} came second, although a {part} of the {what} broke in the last bend.",
        f"It was {first}'s first victory." if not before else f"{first} had already won the race last year.",
        f"The prize was a box of {prize} and a silver cup.",
        f"After the race {who} shared the {prize} with all the other teams.",
    ]
    groups = [
        [("Since when has the race been held?", str(since), f"since {since}"), ("Where?", town, f"in {town}"),
         ("How often?", "every summer")],
        [("Who won the race?", winner, f"the winner was {winner}"), ("And who came second?", second),
         (f"What broke for {second.split()[0]}?", f"a {part}", part)],
        [("How many teams were there?", entries, f"{entries} teams"), ("On which day was it?", day, f"on {day}")],
        [(f"What color was {first}'s {what}?", color), (f"Who helped {first} to build it?", f"{whose} {kin}", kin),
         ("Where?", "in the garage", "the garage")],
        [(f"Had {first} won before?", "Yes" if before else "No", "yes, last year" if before else
          f"no, it was {whose} first victory")],
        [("What was the prize?", f"a box of {prize} and a silver cup", f"{prize} and a silver cup"),
         (f"Did {first} keep the {prize}?", "No", f"no, {who} shared it"),
         ("Who got some?", "all the other teams", "the other teams")],
    ]  # fmt: skip
    return text, groups


def conversation(rng, number):
    """One record: a document and three to five turns of questions about it."""
    text, groups = rng.choice((market, building, lost_pet, race))(rng)
    count = rng.choice((3, 4, 4, 5))
    order = rng.sample(range(len(groups)), len(groups))
    turns = []
    for group in (groups[index] for index in order):
        # A follow-up needs the questions before it, so groups are only cut at the end.
        turns += group[: rng.choice((1, 2, 2, 3, 4))]
    history, utterances = [], []
    for turn, (question, gold, *others) in enumerate(turns[:count], 1):
        history.append(question)
        answers = [gold, *others[:2]]
        utterances.append({"turn_id": turn, "history": list(history), "candidates": [gold], "answers": answers})
        history.append(gold)
    return {"id": f"sample-{number:03d}", "document": [" ".join(text)], "utterances": utterances}


def make_qa(seed=42):
    """{split: records} of qa.json; no document occurs in two splits."""
    rng = random.Random(seed)
    records, seen = [], set()
    while len(records) < 94:
        record = conversation(rng, len(records))
        words = len(record["document"][0].split())
        if record["document"][0] not in seen and 60 <= words <= 110:
            seen.add(record["document"][0])
            records.append(record)
    return {"train": records[:70], "valid": records[70:82], "test": records[82:]}
