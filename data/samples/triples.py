"""The triples of webnlg.json, made up for this project: one to three facts about one thing, and texts stating them."""

import random

TOWNS = ("Denby", "Larkfield", "Port Ansel", "Marrow Bay", "Oakhurst", "Fenwick", "Saltmere", "Grayling", "Tarn Hill",
         "Westwick")  # fmt: skip
PEOPLE = ("Mira Holt", "Jonas Reed", "Elsa Varga", "Tobias Lunt", "Ines Calder", "Oskar Pell", "Nadia Brock",
          "Felix Amari", "Greta Sloan", "Hugo Tenby")  # fmt: skip
YEARS = tuple(str(year) for year in range(1871, 2012, 7))
# The things of a kind, and their predicates: {predicate: (values, ways to express it after the subject)}.
KINDS = {
    "book": (
        ("The Glass Orchard", "Nine Quiet Rivers", "A Map of Snow", "The Clockmaker's Debt", "Salt and Lanterns",
         "The Last Ferry", "Under the Copper Moon", "Letters to a Lighthouse"),
        {
            "author": (PEOPLE, ("was written by {}", "is a book by {}")),
            "publisher": (("Harbour Books", "Quill House", "Amber Press"), ("was published by {}", "came out at {}")),
            "language": (("English", "Danish", "Polish", "Greek"), ("is written in {}", "is a book in {}")),
            "numberOfPages": (("112", "208", "254", "316", "480"), ("has {} pages", "is {} pages long")),
        },
    ),
    "bridge": (
        ("Tanner's Bridge", "Queen Ada Bridge", "Long Heron Bridge", "Millstone Bridge", "Swan Crossing",
         "Old Weir Bridge", "Northgate Bridge"),
        {
            "location": (TOWNS, ("is in {}", "stands in {}")),
            "architect": (PEOPLE, ("was designed by {}", "is the work of {}")),
            "yearOpened": (YEARS, ("was opened in {}", "has been open since {}")),
            "lengthInMetres": (("85", "140", "230", "410"), ("is {} metres long", "has a length of {} metres")),
        },
    ),
    "dish": (
        ("Plumbread", "Fennel pie", "Red barley soup", "Smoked carp", "Honey dumpling", "Cabbage roll"),
        {
            "region": (TOWNS, ("comes from {}", "is a speciality of {}")),
            "mainIngredient": (("butter", "rye", "garlic", "cream", "dill"), ("is made with {}", "contains {}")),
            "course": (("starter", "main course", "dessert"), ("is served as a {}", "is eaten as a {}")),
        },
    ),
    "team": (
        ("Denby Rovers", "Saltmere United", "Westwick Wanderers", "Grayling Town", "Oakhurst Foxes"),
        {
            "manager": (PEOPLE, ("is managed by {}", "has {} as its manager")),
            "ground": (("Fenwick Park", "Mill Lane", "the Old Quarry"), ("plays at {}", "has its home at {}")),
            "founded": (YEARS, ("was founded in {}", "was started in {}")),
        },
    ),
}  # fmt: skip


def _texts(subject, facts):
    """Three texts that state the facts, [(ways to express it, value)]."""
    either, other = ([ways[turn].format(value) for ways, value in facts] for turn in (0, 1))
    mixed = [pair[place % 2] for place, pair in enumerate(zip(either, other), start=1)]
    return [
        f"{subject} {' and '.join(either[:2])}." + "".join(f" It {clause}." for clause in either[2:]),
        f"{subject} {other[0]}." + (f" It {' and '.join(other[1:])}." if other[1:] else ""),
        ". It ".join([f"{subject} {mixed[0]}", *mixed[1:]]) + "." if mixed[1:] else f"It is {subject} that {mixed[0]}.",
    ]


def make_webnlg(seed=5):
    """{split: records}: train has one record per text, valid and test one per entry with all its texts."""
    rng, entries = random.Random(seed), {}
    while len(entries) < 220:
        things, predicates = KINDS[rng.choice(list(KINDS))]
        subject, chosen = rng.choice(things), rng.sample(list(predicates), rng.choice((1, 2, 2, 3, 3)))
        facts = [(predicates[predicate][1], rng.choice(predicates[predicate][0])) for predicate in chosen]
        triples = [
            " | ".join(part.replace(" ", "_") for part in (subject, predicate, value))
            for predicate, (_, value) in zip(chosen, facts)
        ]
        entries.setdefault(frozenset(triples), (" && ".join(triples), _texts(subject, facts)))
    entries = list(entries.values())
    train = [{"src": src, "tgt": text} for src, texts in entries[:160] for text in texts]
    rest = [{"src": src, "tgt": texts[0], "refs": texts} for src, texts in entries[160:]]
    return {"train": train, "valid": rest[:30], "test": rest[30:]}
