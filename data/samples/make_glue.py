"""Write glue/: small samples of the nine GLUE tasks and the diagnostic set, in the layouts of the official script.

    python data/samples/make_glue.py

Every task has 120 train, 30 dev and 10 test rows; MNLI has two dev and two test files. All sentences were made up for
this project. Labels follow from the texts, so a small model can learn them; labels are balanced, and no first text
occurs twice in a task. The quirks are the official ones: CoLA has no header, MRPC begins with a byte order mark,
SST-2's sentences end in a space, quotes are single, MNLI has 12, 16 or 10 columns. The same seed gives the same bytes.
"""

import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from versatile.utils.files import atomic_write  # noqa: E402 (found by the line above)

SIZES = {"train": 120, "dev": 30, "test": 10}
WHO = ("baker", "sailor", "teacher", "farmer", "painter", "doctor", "singer", "tailor", "pilot", "gardener", "miner",
       "waiter", "builder", "lawyer", "nurse")  # fmt: skip
# third person, stem, past, object
DID = (("sells", "sell", "sold", "bread"), ("paints", "paint", "painted", "fence"), ("reads", "read", "read", "letter"),
       ("carries", "carry", "carried", "basket"), ("washes", "wash", "washed", "window"),
       ("opens", "open", "opened", "gate"), ("cleans", "clean", "cleaned", "lamp"), ("finds", "find", "found", "ring"),
       ("buys", "buy", "bought", "bicycle"), ("drops", "drop", "dropped", "plate"))  # fmt: skip
LIKE = ("old", "small", "green", "heavy", "broken", "wooden", "new", "round", "silver", "dusty")
WHEN = ("on Monday", "in the morning", "after lunch", "before noon", "at night", "every week", "in winter", "today")
WHERE = ("Larkfield", "Denby", "Port Ansel", "Marrow Bay", "Oakhurst", "Fenwick", "Saltmere", "Grayling", "Westwick")
PEOPLE = ("Mira Holt", "Jonas Reed", "Elsa Varga", "Tobias Lunt", "Ines Calder", "Oskar Pell", "Nadia Brock")
GOOD = ("charming", "funny", "brilliant", "moving", "delightful", "warm", "clever", "beautiful", "gripping", "lovely")
BAD = ("dull", "boring", "clumsy", "lifeless", "awful", "tedious", "messy", "empty", "annoying", "shallow")
FILM = ("story", "film", "comedy", "drama", "script", "cast", "ending", "thriller", "romance", "sequel")
GENRES = ("fiction", "government", "slate", "telephone", "travel")
OTHER_GENRES = ("facetoface", "letters", "nineeleven", "oup", "verbatim")


def scene(rng):
    """(who, (third person, stem, past, object), adjective, time)."""
    return rng.choice(WHO), rng.choice(DID), rng.choice(LIKE), rng.choice(WHEN)


# --- one task each: (rng, label) -> texts ----------------------------------------------------------------


def cola(rng, label):
    """Good English, or the same with its words in the wrong order or form."""
    who, (verb, stem, _, thing), like, when = scene(rng)
    if label == "1":
        return (f"The {who} {verb} the {like} {thing} {when}.",)
    bad = (f"The {who} the {like} {thing} {verb} {when}.", f"{who} the {verb} {like} the {thing} {when}.",
           f"The {who} {stem} the {thing} {like} {when}.", f"The {who} {verb} {when} the the {like}.")  # fmt: skip
    return (rng.choice(bad),)


def sst_2(rng, label):
    """Lower case, punctuation separated by spaces, a space at the end."""
    words, film = GOOD if label == "1" else BAD, rng.sample(FILM, 2)
    one, other = rng.sample(words, 2)
    return (rng.choice((f"a {one} {film[0]} with a {other} {film[1]} . ", f"the {film[0]} is {one} and {other} . ",
                        f"it 's {one} , and so is the {film[0]} ", f"{one} and {other} {film[0]} ")),)  # fmt: skip


def mrpc(rng, label):
    """The same news in other words, or other news about the same person; quotes need not be balanced."""
    (person, other), (place, elsewhere) = rng.sample(PEOPLE, 2), rng.sample(WHERE, 2)
    count, more = rng.sample(range(11, 990), 2)
    first = f'{person} said that "{count} jobs will be made in {place}, and soon.'
    if label == "1":
        return first, rng.choice((f"In {place}, {count} jobs will soon be made, {person} said.",
                                  f"{person} said {place} will soon have {count} new jobs."))  # fmt: skip
    return first, rng.choice((f"{other} left {elsewhere} with a debt of {more} million dollars.",
                              f"Storms cut the power of {more} houses in {elsewhere}."))  # fmt: skip


def sts_b(rng, score):
    """Two sentences; the score is how many of five parts they have in common."""
    pairs = [rng.sample(options, 2) for options in (WHO, DID, LIKE, DID, WHEN)]
    changed = rng.sample(range(5), 5 - score)
    parts = zip(*((one, other if i in changed else one) for i, (one, other) in enumerate(pairs)))
    return tuple(f"The {who} {did[0]} the {like} {thing[3]} {when}." for who, did, like, thing, when in parts)


def qqp(rng, label):
    """The same question in other words, or another one."""
    (_, stem, _, thing), like, place = rng.choice(DID), rng.choice(LIKE), rng.choice(WHERE)
    first = f"How do I {stem} a {like} {thing} in {place}?"
    if label == "1":
        return first, f"What is the best way to {stem} a {like} {thing} in {place}?"
    other = rng.choice([item for item in DID if item[3] != thing])
    return first, rng.choice((f"Why did people {other[1]} a {other[3]} in {place}?", f"Who made the first {other[3]}?"))


def nli(rng, label):
    """A premise, and a hypothesis that follows from it, may be true, or cannot be true."""
    who, (verb, _, _, thing), like, when = scene(rng)
    premise = f"A {who} {verb} a {like} {thing} {when} in {rng.choice(WHERE)}"
    if label == "entailment":
        return premise, rng.choice((f"Someone {verb} a {thing}", f"A {who} does something with a {thing}"))
    if label == "contradiction":
        return premise, rng.choice((f"Nobody {verb} a {thing}", f"There is no {who} and no {thing} at all"))
    return premise, rng.choice((f"A {who} hopes to be paid for the {thing}", f"The {thing} was a gift from a friend"))


def rte(rng, label):
    """Two sentences, and one that does or does not follow from them."""
    (person, other), (place, elsewhere) = rng.sample(PEOPLE, 2), rng.sample(WHERE, 2)
    year = rng.randrange(1900, 2010)
    text = f"{person} was born in {place} in {year}. {person} became a {rng.choice(WHO)} there."
    if label == "entailment":
        return text, rng.choice((f"{person} comes from {place}.", f"{person} was born in {year}."))
    return text, rng.choice((f"{other} comes from {elsewhere}.", f"{person} never saw {place}."))


def wnli(rng, label):
    """Who "she" refers to: the person of whom the second sentence can be true."""
    giver, taker = rng.sample(("Anna", "Bea", "Clara", "Dora", "Emma", "Flora", "Greta", "Hanna"), 2)
    like, thing = rng.choice(LIKE), rng.choice(DID)[3]
    kind, cause, right = rng.choice((("gave", "was generous", 0), ("gave", "needed it", 1), ("sold", "was paid", 0),
                                     ("lent", "had asked for it", 1)))  # fmt: skip
    meant = (giver, taker)[right if label == "1" else 1 - right]
    return f"{giver} {kind} {taker} the {like} {thing} because she {cause}.", f"{meant} {cause}."


def qnli(rng, label):
    """A question, and a sentence that does or does not answer it."""
    place, number = rng.choice(WHERE), rng.randrange(100, 1000)
    year, river, mayor = rng.randrange(1200, 1900), rng.choice(("Tarn", "Ouse", "Lark", "Wend")), rng.choice(PEOPLE)
    facts = {
        "year": (f"In what year was {place} founded {number} miles from the sea?", f"It was founded in {year}."),
        "river": (f"On what river are the {number} mills of {place}?", f"The mills stand on the river {river}."),
        "mayor": (f"Which mayor of {place} planted {number} trees?", f"The trees were planted by mayor {mayor}."),
    }
    kind = rng.choice(list(facts))
    other = kind if label == "entailment" else rng.choice([name for name in facts if name != kind])
    return facts[kind][0], facts[other][1]


# --- rows ------------------------------------------------------------------------------------------------


def examples(make, labels, size, rng, seen):
    """`size` rows (label, texts) with the labels in turn, shuffled; first texts in `seen` are not used again."""
    rows = []
    while len(rows) < size:
        label = labels[len(rows) % len(labels)]
        texts = make(rng, label)
        if texts[0] not in seen:
            seen.add(texts[0])
            rows.append((label, texts))
    rng.shuffle(rows)
    return rows


def parses(text):
    """Stand-ins for MNLI's two columns of parse trees."""
    words = text.split()
    binary = words[-1]
    for word in reversed(words[:-1]):
        binary = f"( {word} {binary} )"
    return binary, f"(ROOT (S {' '.join(f'(X {word})' for word in words)}))"


def mnli_rows(split, rows, genres, rng):
    header = ["index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse"]
    header += ["sentence1_parse", "sentence2_parse", "sentence1", "sentence2"]
    votes = {"train": 1, "dev": 5, "test": 0}[split]
    header += [f"label{i + 1}" for i in range(votes)] + ["gold_label"] * bool(votes)
    table = [header]
    for number, (label, (one, other)) in enumerate(rows):
        prompt, trees = rng.randrange(10000, 150000), list(zip(parses(one), parses(other)))
        pair = f"{prompt}{label[0] if votes else ''}"
        table.append([number, prompt, pair, rng.choice(genres), *trees[0], *trees[1], one, other,
                      *[label] * votes, *[label] * bool(votes)])  # fmt: skip
    return table


def sts_b_rows(split, rows, rng):
    header = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]
    table = [header if split == "test" else [*header, "score"]]
    for number, (score, texts) in enumerate(rows):
        value = min(5.0, max(0.0, score + rng.choice((-0.2, 0, 0.2))))
        row = [number, "main-captions", "made-up", "2020test", f"{number:04d}", "none", "none", *texts]
        table.append(row if split == "test" else [*row, f"{value:.3f}"])
    return table


def mrpc_rows(split, rows, rng):
    first = "index" if split == "test" else "Quality"
    table = [[first, "#1 ID", "#2 ID", "#1 String", "#2 String"]]
    for number, (label, texts) in enumerate(rows):
        ids = rng.sample(range(100000, 3000000), 2)
        table.append([number if split == "test" else label, *ids, *texts])
    return table


def qqp_rows(split, rows, rng):
    if split == "test":
        return [["id", "question1", "question2"], *([i, *texts] for i, (_, texts) in enumerate(rows))]
    ids = lambda: rng.sample(range(1000, 500000), 3)  # noqa: E731
    header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    return [header, *([*ids(), *texts, label] for label, texts in rows)]


def cola_rows(split, rows, rng):
    if split == "test":
        return [["index", "sentence"], *([i, *texts] for i, (_, texts) in enumerate(rows))]
    return [["mu20", label, "" if label == "1" else "*", *texts] for label, texts in rows]


def sst_2_rows(split, rows, rng):
    if split == "test":
        return [["index", "sentence"], *([i, texts[0].strip()] for i, (_, texts) in enumerate(rows))]
    return [["sentence", "label"], *([*texts, label] for label, texts in rows)]


def plain_rows(columns):
    def table(split, rows, rng):
        if split == "test":
            return [["index", *columns], *([i, *texts] for i, (_, texts) in enumerate(rows))]
        return [["index", *columns, "label"], *([i, *texts, label] for i, (label, texts) in enumerate(rows))]

    return table


BINARY, ENTAILMENT, MNLI = ("0", "1"), ("entailment", "not_entailment"), ("contradiction", "entailment", "neutral")
MAKERS = {
    "CoLA": (cola, BINARY, cola_rows), "SST-2": (sst_2, BINARY, sst_2_rows), "MRPC": (mrpc, BINARY, mrpc_rows),
    "STS-B": (sts_b, (0, 1, 2, 3, 4, 5), sts_b_rows), "QQP": (qqp, BINARY, qqp_rows),
    "RTE": (rte, ENTAILMENT, plain_rows(("sentence1", "sentence2"))),
    "WNLI": (wnli, BINARY, plain_rows(("sentence1", "sentence2"))),
    "QNLI": (qnli, ENTAILMENT, plain_rows(("question", "sentence"))),
}  # fmt: skip


def tables():
    """{path below glue/: rows of columns} for every file."""
    files = {}
    for folder, (make, labels, layout) in MAKERS.items():
        rng, seen = random.Random(f"glue {folder}"), set()
        for split, size in SIZES.items():
            files[f"{folder}/{split}.tsv"] = layout(split, examples(make, labels, size, rng, seen), rng)
    rng, seen = random.Random("glue MNLI"), set()
    files["MNLI/train.tsv"] = mnli_rows("train", examples(nli, MNLI, SIZES["train"], rng, seen), GENRES, rng)
    for kind, genres in (("matched", GENRES), ("mismatched", OTHER_GENRES)):
        for split in ("dev", "test"):
            rows = examples(nli, MNLI, SIZES[split], rng, seen)
            files[f"MNLI/{split}_{kind}.tsv"] = mnli_rows(split, rows, genres, rng)
    rows = examples(nli, MNLI, SIZES["test"], rng, seen)
    files["diagnostic/diagnostic.tsv"] = plain_rows(("sentence1", "sentence2"))("test", rows, rng)
    return files


def text(file, table):
    """A table as the text of its file."""
    mark = "\ufeff" if file in ("MRPC/train.tsv", "MRPC/dev.tsv") else ""
    return mark + "".join("\t".join(map(str, row)) + "\n" for row in table)


def main():
    for file, table in tables().items():
        with atomic_write(HERE / "glue" / file) as out:
            out.write(text(file, table))


if __name__ == "__main__":
    main()
