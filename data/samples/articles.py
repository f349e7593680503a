"""The articles of summarization.json, made up for this project: short local news, and a summary of two sentences.

The facts of the summary are spread over the article, between quotations, numbers and background that it leaves out.
"""

import random

TOWNS = ("Denby", "Larkfield", "Port Ansel", "Marrow Bay", "Oakhurst", "Fenwick", "Little Thorn", "Saltmere",
         "Grayling", "Upper Moss", "Tarn Hill", "Westwick")  # fmt: skip
PEOPLE = ("Mira Holt", "Jonas Reed", "Elsa Varga", "Tobias Lunt", "Ines Calder", "Oskar Pell", "Nadia Brock",
          "Felix Amari", "Greta Sloan", "Hugo Tenby", "Paula Dene", "Ivo Marsh", "Ruth Ansley",
          "Carlo Wend")  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "March", "May", "June", "August", "October", "December")
NUMBERS = ("three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve", "fifteen")
WEATHER = ("in bright sunshine", "in steady rain", "under grey skies", "on a cold and windy morning")
PRAISE = ("We have waited for this for years", "I can hardly believe it", "It is a great day for all of us",
          "Nobody expected this a year ago")  # fmt: skip


def opening(rng):
    """A town opens something new."""
    town, day, month, count = *map(rng.choice, (TOWNS, DAYS, MONTHS)), rng.choice((40, 65, 80, 120, 150, 300))
    mayor, visitor = rng.sample(PEOPLE, 2)
    thing, use, site = rng.choice((
        ("library", "borrow books and use computers", "an old cotton mill"),
        ("swimming pool", "swim all year round", "a former bus garage"),
        ("bridge", "cross the river on foot or by bicycle", "the old ferry landing"),
        ("health centre", "see a doctor without leaving town", "the disused post office"),
        ("playground", "climb, swing and play football", "an empty car park"),
        ("railway station", "reach the coast in an hour", "the fields west of the church")))  # fmt: skip
    cost, years = rng.choice((2, 3, 4, 6, 8, 11)), rng.choice(NUMBERS[:5])
    paid = rng.choice(("a tax on hotel beds", "gifts from its citizens", "the sale of some land", "a national lottery"))
    text = [
        rng.choice((f"{town} celebrated on {day} as its new {thing} was opened {rng.choice(WEATHER)}.",
                    f"Hundreds of people came to {town} on {day} to see the new {thing} opened at last.")),
        f"It stands on the site of {site} and took {years} years to build.",
        f"From now on the people of the town can {use}.",
        f'"{rng.choice(PRAISE)}," said mayor {mayor}, who cut the ribbon together with {count} schoolchildren.',
        f"The building cost {cost} million pounds, and most of the money came from {paid}.",
        f"The plans had been drawn up long ago, but work was stopped twice, once in {month} after a flood.",
        f"Not everyone was happy: {visitor}, who lives next door, complained about the noise of the visitors.",
        rng.choice(("There will be music and free cake until the end of the week.",
                    "The doors will be open from eight in the morning to nine in the evening.")),
    ]  # fmt: skip
    first = rng.choice((f"A new {thing} was opened in {town} on {day}.", f"{town} opened its new {thing} on {day}."))
    second = rng.choice((f"It took {years} years to build and cost {cost} million pounds.",
                         f"It cost {cost} million pounds, paid for mostly by {paid}."))  # fmt: skip
    return text, (first, second)


def weather(rng):
    """A storm, a flood or heavy snow hits a town."""
    (town, other), day, (chief, owner) = rng.sample(TOWNS, 2), rng.choice(DAYS), rng.sample(PEOPLE, 2)
    what, did, damage = rng.choice((
        ("storm", "tore the roofs off", "fallen trees"), ("flood", "filled the cellars of", "mud and broken glass"),
        ("snowstorm", "cut off the power of", "snow as high as a man"), ("hailstorm", "broke the windows of", "ice"),
    ))  # fmt: skip
    houses, hurt, hours = rng.choice((20, 30, 45, 60, 90, 200)), rng.choice(NUMBERS), rng.choice(NUMBERS[:4])
    shelter = rng.choice(("a sports hall", "the town hall", "the primary school", "a church"))
    none = rng.random() < 0.4
    casualties = "Nobody was hurt" if none else f"{hurt.capitalize()} people were slightly hurt"
    text = [
        rng.choice((f"A heavy {what} {did} about {houses} houses in {town} on {day} night.",
                    f"About {houses} families in {town} woke up on {day} to the damage of a heavy {what}.")),
        f"The {what} reached the town shortly after midnight and lasted for {hours} hours.",
        f"{casualties}, according to fire chief {chief}.",
        f"The fire brigade was called out {rng.choice((31, 48, 52, 77))} times before the morning.",
        f"The road to {other} was closed because of {damage}, and trains stopped running.",
        f"Those who could not stay at home spent the night in {shelter}, where volunteers served hot soup.",
        f'"I heard a terrible noise and ran outside in my pyjamas," said {owner}, who owns a shop near the river.',
        f"It was the worst {what} in the region for {rng.choice((15, 20, 30, 40))} years.",
        rng.choice(("The council has promised help to everyone who lost their belongings.",
                    "Experts say that such nights will become more common in the years to come.")),
    ]  # fmt: skip
    did_it = f"damaged about {houses} houses" if what != "snowstorm" else f"left about {houses} houses without power"
    first = f"A heavy {what} {did_it} in {town} on {day}."
    second = rng.choice((f"{casualties} and the road to {other} was closed.",
                         f"{casualties}, and some people spent the night in {shelter}."))  # fmt: skip
    return text, (first, second)


def match(rng):
    """A team wins a match or a cup."""
    (winner, loser), day, (scorer, coach) = rng.sample(TOWNS, 2), rng.choice(DAYS), rng.sample(PEOPLE, 2)
    sport, unit = rng.choice((("football", "goal"), ("handball", "goal"), ("hockey", "goal"), ("water polo", "goal")))
    low = rng.randrange(0, 4)
    high, minute, crowd = low + 1, rng.randrange(70, 90), rng.choice((400, 900, 1200, 2500, 5000))
    years, final = rng.choice(NUMBERS), rng.random() < 0.5
    stage = "the final of the county cup" if final else "the last match of the season"
    gain = "won the cup" if final else "will play in the first league next year"
    text = [
        rng.choice((f"{winner} beat {loser} {high}-{low} on {day} in {stage}.",
                    f"It was a long evening for {loser}, who lost {high}-{low} to {winner} on {day} in {stage}.")),
        f"{crowd} people watched the {sport} match {rng.choice(WEATHER)}.",
        f"The winning {unit} was scored by {scorer} in minute {minute}, after a mistake by the goalkeeper.",
        f"Before that {loser} had been the better side and had missed {rng.choice(NUMBERS[:4])} good chances.",
        f'"{rng.choice(PRAISE)}," said {coach}, the coach of {winner}, with tears in the eyes.',
        f"With the victory {winner} {gain}, for the first time in {years} years.",
        f"The players of {loser} left the field without a word, and their captain did not want to talk to reporters.",
        rng.choice(("The team will be welcomed at the town hall on the next day.",
                    "After the match fans danced in the streets until two in the morning.",
                    "The two teams will meet again in spring.")),
    ]  # fmt: skip
    result = f"{winner} beat {loser} {high}-{low}"
    first = rng.choice((f"{result} in {stage}.", f"{scorer} scored the winning {unit} as {result} on {day}."))
    return text, (first, f"{winner} {gain} for the first time in {years} years.")


def rescue(rng):
    """An animal is rescued from an odd place."""
    town, day, (helper, owner) = rng.choice(TOWNS), rng.choice(DAYS), rng.sample(PEOPLE, 2)
    animal, age = rng.choice(("cat", "dog", "pony", "goat", "swan", "donkey", "parrot", "sheep")), rng.choice(NUMBERS)
    place = rng.choice(("a chimney", "a frozen lake", "a drainpipe", "a church tower", "an empty well", "a lift"))
    tool = rng.choice(("a fishing net", "a long ladder", "a garden hose", "two blankets", "a crane", "some honey cake"))
    hours, calls = rng.choice(NUMBERS), rng.choice(NUMBERS)
    walker, years = rng.choice(("a postman", "a jogger", "a schoolgirl")), rng.choice((9, 14, 22))
    text = [
        rng.choice((f"Firefighters in {town} had an unusual task on {day}: a {animal} was stuck in {place}.",
                    f"A {animal} that was stuck in {place} kept the firefighters of {town} busy on {day}.")),
        f"It had been noticed by {walker}, who heard strange sounds and called for help.",
        f"After {hours} hours the {animal} was brought to safety with the help of {tool}.",
        f'"I have never seen anything like it," said {helper}, who has been a firefighter for {years} years.',
        f"The {animal} is {age} years old and belongs to {owner}, who had been looking for it since the day before.",
        "Nobody knows how it got there.",
        "A vet examined it and found nothing but a few scratches, so it could go home the same evening.",
        f"It was already the {rng.choice(('second', 'third', 'fifth'))} rescue of an animal in the town this month; "
        f"last year there were only {calls}.",
    ]  # fmt: skip
    first = rng.choice((f"A {animal} was rescued from {place} in {town} on {day}.",
                        f"Firefighters in {town} rescued a {animal} from {place}."))  # fmt: skip
    second = rng.choice((f"It took {hours} hours and {tool}, and the {animal} was hardly hurt.",
                         f"The {animal}, which belongs to {owner}, was saved with the help of {tool}."))  # fmt: skip
    return text, (first, second)


def decision(rng):
    """A council votes on a change."""
    town, day, month, (speaker, critic) = *map(rng.choice, (TOWNS, DAYS, MONTHS)), rng.sample(PEOPLE, 2)
    plan, why, fear = rng.choice((
        ("ban cars from the market square", "make the square safer for children", "shops will lose customers"),
        ("close the old cinema", "save money", "young people will have nowhere to go"),
        ("plant two thousand trees", "keep the town cool in summer", "there will be no room left to park"),
        ("make all buses free", "get people out of their cars", "the buses will be too full"),
        ("build a wind farm on the hill", "produce its own power", "the view will be spoiled"),
        ("turn off street lights after midnight", "save power", "people will be afraid to walk home")))  # fmt: skip
    against = rng.randrange(3, 12)
    votes, cost = against + rng.randrange(1, 10), rng.choice((80, 150, 240, 600, 900))
    signatures = rng.choice((300, 800, 1500))
    text = [
        rng.choice((f"The council of {town} decided on {day} to {plan}.",
                    f"After a debate of {rng.choice(NUMBERS)} hours the council of {town} voted on {day} to {plan}.")),
        f"{votes} members were in favor and {against} were against it.",
        f"The council wants to {why}, said {speaker}, who had worked on the plan for two years.",
        f"The change will come into force in {month} and cost about {cost} thousand pounds.",
        f"Critics fear that {fear}.",
        f'"They did not listen to us at all," said {critic}, who had collected {signatures} signatures against it.',
        "Other towns in the region have tried the same, and most of them are content with the results.",
        rng.choice(("The council will look at the effects again after one year.",
                    "A group of citizens has announced that it will go to court.")),
    ]  # fmt: skip
    first = rng.choice((f"The council of {town} has voted to {plan}.", f"{town} will {plan} from {month}."))
    second = rng.choice((f"It wants to {why}, but critics fear that {fear}.",
                         f"The vote was {votes} to {against}, and critics fear that {fear}."))  # fmt: skip
    return text, (first, second)


def record(rng):
    text, summary = rng.choice((opening, weather, match, rescue, decision))(rng)
    # Neither the closing sentence nor the quotation is ever summarised, so some articles omit them.
    text = text if rng.random() < 0.6 else text[:-1]
    text = text if rng.random() < 0.6 else [line for line in text if not line.startswith('"')]
    return {"src": " ".join(text), "tgt": "\n".join(summary)}


def make_summarization(seed=42):
    """{split: records} of summarization.json; no article or summary occurs twice."""
    rng = random.Random(seed)
    records, seen = [], set()
    while len(records) < 190:
        article = record(rng)
        if article["tgt"] not in seen and 80 <= len(article["src"].split()) <= 150:
            seen.add(article["tgt"])
            records.append(article)
    return {"train": records[:150], "valid": records[150:170], "test": records[170:]}
