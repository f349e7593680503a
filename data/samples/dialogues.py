"""The conversations of dialogue.json, made up for this project: a persona, a partner who asks, replies that fit.

A reply says what the persona's sentence on the topic says, or that the speaker has no such thing.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A topic of conversation; in every text {a} and {b} stand for the two halves of a value.

    `answers` are replies to `questions`, `details` pairs of a later question on the same topic and its reply,
    `without` replies of someone whose persona does not mention it, `partner` what the partner says about themselves.
    """

    values: tuple
    persona: tuple
    questions: tuple
    answers: tuple
    details: tuple
    without: tuple
    reactions: tuple
    partner: tuple


# fmt: off
TOPICS = {
    "job": Topic(
        values=(("baker", "a small bakery"), ("nurse", "the children's hospital"), ("teacher", "a village school"),
                ("librarian", "the city library"), ("bus driver", "the bus station"), ("gardener", "a big park"),
                ("cook", "a fish restaurant"), ("mechanic", "my uncle's garage"), ("vet", "an animal clinic"),
                ("carpenter", "a furniture shop"), ("pilot", "the airport"), ("guard", "a museum")),
        persona=("i work as a {a} at {b} .", "i am a {a} and work at {b} .", "my job is {a} at {b} ."),
        questions=("what do you do for a living ?", "what is your job ?", "do you have a job ?"),
        answers=("i am a {a} .", "i work as a {a} at {b} .", "i am a {a} , i like my work ."),
        details=(("where do you work ?", "i work at {b} ."), ("and where is that ?", "at {b} ."),
                 ("do you like being a {a} ?", "yes , everyone at {b} is so nice .")),
        without=("i am looking for a job right now .", "i do not work , i am still a student ."),
        reactions=("that sounds like a nice job .", "oh , that must be hard work .", "cool , i could not do that ."),
        partner=("i am a painter .", "i work in a bank .", "i sell shoes .", "i am still at school ."),
    ),
    "pet": Topic(
        values=(("dog", "biscuit"), ("cat", "pepper"), ("rabbit", "clover"), ("parrot", "captain"),
                ("turtle", "speedy"), ("dog", "moose"), ("cat", "ginger"), ("horse", "comet"),
                ("hamster", "peanut"), ("goat", "olive"), ("dog", "waffles"), ("cat", "midnight")),
        persona=("i have a {a} named {b} .", "my {a} is called {b} .", "i love my {a} {b} ."),
        questions=("do you have any pets ?", "do you like animals ?", "any animals at home ?"),
        answers=("yes , i have a {a} named {b} .", "i do , a {a} .", "yes , my {a} {b} is my best friend ."),
        details=(("what is its name ?", "its name is {b} ."), ("and what do you call it ?", "i call it {b} ."),
                 ("is {b} a good {a} ?", "yes , {b} is a very good {a} .")),
        without=("no , i do not have any pets .", "i like animals but i have none at home ."),
        reactions=("aw , how sweet .", "i love animals !", "that must be fun ."),
        partner=("i have two goldfish .", "i am allergic to cats .", "i have no pets .", "my puppy eats my shoes ."),
    ),
    "food": Topic(
        values=(("pizza", "olives"), ("soup", "noodles"), ("pancakes", "honey"), ("tacos", "beans"),
                ("curry", "rice"), ("pasta", "mushrooms"), ("salad", "nuts"), ("toast", "cheese"),
                ("fish", "lemon"), ("waffles", "berries"), ("burgers", "onions"), ("dumplings", "ginger")),
        persona=("my favorite food is {a} with {b} .", "i love {a} with {b} .", "i could eat {a} with {b} all day ."),
        questions=("what is your favorite food ?", "what do you like to eat ?", "i am hungry , what should i eat ?"),
        answers=("{a} with {b} , always .", "i love {a} with {b} .", "my favorite is {a} ."),
        details=(("with anything on it ?", "yes , with {b} ."), ("how do you like it best ?", "with lots of {b} ."),
                 ("do you make {a} yourself ?", "yes , i make {a} with {b} every sunday .")),
        without=("i eat anything really .", "i am not picky about food ."),
        reactions=("yum , that sounds good .", "now i am hungry .", "i have never tried that ."),
        partner=("i eat a lot of chocolate .", "i love ice cream .", "i only eat vegetables .", "i live on coffee ."),
    ),
    "hobby": Topic(
        values=(("hiking", "in the hills"), ("painting", "in my garden"), ("swimming", "at the lake"),
                ("fishing", "by the river"), ("chess", "at the club"), ("running", "on the beach"),
                ("dancing", "at the town hall"), ("skating", "at the old rink"), ("pottery", "in my basement"),
                ("climbing", "at the gym"), ("sailing", "in the bay"), ("gardening", "on my balcony")),
        persona=("i enjoy {a} , mostly {b} .", "i spend my free time with {a} {b} .", "{a} {b} is my hobby ."),
        questions=("what do you do for fun ?", "do you have any hobbies ?", "what do you do in your free time ?"),
        answers=("i enjoy {a} .", "i do a lot of {a} {b} .", "{a} is my hobby ."),
        details=(("where do you do that ?", "mostly {b} ."), ("where do you go for that ?", "you will find me {b} ."),
                 ("is {a} hard to learn ?", "not at all , i learned it {b} .")),
        without=("i mostly watch tv and rest .", "i have no time for hobbies ."),
        reactions=("that sounds like fun .", "i wish i could do that .", "nice , i tried that once ."),
        partner=("i collect stamps .", "i play video games .", "i read a lot of books .", "i like to knit ."),
    ),
    "music": Topic(
        values=(("jazz", "the piano"), ("rock", "the guitar"), ("folk", "the violin"), ("blues", "the harmonica"),
                ("pop", "the drums"), ("opera", "the cello"), ("country", "the banjo"), ("soul", "the trumpet")),
        persona=("i listen to {a} and play {b} .", "i love {a} music and play {b} .", "i play {b} in a {a} band ."),
        questions=("what kind of music do you like ?", "do you like music ?", "what are you listening to ?"),
        answers=("i like {a} .", "{a} , and i play {b} too .", "i listen to {a} all the time ."),
        details=(("do you play anything ?", "yes , i play {b} ."), ("what instrument do you play ?", "i play {b} ."),
                 ("do you play {a} too ?", "i do , i play it on {b} .")),
        without=("i do not listen to music much .", "i like a bit of everything ."),
        reactions=("great taste .", "my dad likes that too .", "oh , i should listen to that ."),
        partner=("i love hip hop .", "i sing in a choir .", "i like it quiet .", "i go to a lot of concerts ."),
    ),
    "home": Topic(
        values=(("a cabin", "the lake"), ("a farm", "the mountains"), ("a flat", "the harbor"),
                ("a house", "the woods"), ("a boat", "the old bridge"), ("a cottage", "the sea"),
                ("a tiny house", "the desert"), ("a tower", "the market")),
        persona=("i live in {a} near {b} .", "my home is {a} by {b} .", "i moved to {a} close to {b} ."),
        questions=("where do you live ?", "where are you from ?", "what is your home like ?"),
        answers=("i live in {a} near {b} .", "in {a} , it is lovely .", "my home is {a} by {b} ."),
        details=(("what is it near ?", "it is near {b} ."), ("is it quiet there ?", "yes , there is only {b} ."),
                 ("what do you see from {a} ?", "i see {b} every morning .")),
        without=("i would rather not say where i live .", "i travel all the time , i have no home ."),
        reactions=("that sounds peaceful .", "i would love to see that .", "wow , lucky you ."),
        partner=("i live in the city .", "i still live with my mom .", "i live above a shop .", "i moved last week ."),
    ),
    "family": Topic(
        values=(("two sisters", "ada"), ("a brother", "nora"), ("three kids", "lily"), ("a son", "edith"),
                ("a daughter", "rose"), ("twin boys", "clara"), ("four brothers", "iris"), ("a little sister", "may")),
        persona=("i have {a} and my mother is called {b} .", "my mom {b} and i are close , and i have {a} .",
                 "i have {a} and live with my mother {b} ."),
        questions=("do you have a big family ?", "tell me about your family ?", "any brothers , sisters or kids ?"),
        answers=("i have {a} .", "yes , i have {a} and my mom {b} .", "there is my mom {b} , and i have {a} ."),
        details=(("what is your mother's name ?", "her name is {b} ."), ("are you close to your mom ?",
                 "yes , i call my mom {b} every day ."), ("and your mom ?", "my mom is called {b} .")),
        without=("no , it is just me .", "my family is very small ."),
        reactions=("family is so important .", "how lovely .", "that must be a full house ."),
        partner=("i am an only child .", "i have six cousins .", "i am married .", "my grandma raised me ."),
    ),
}
# fmt: on
GREETINGS = ("hi !", "hello there .", "hey , nice to meet you .", "good morning !", "hi , how are you ?")
WELL = ("hi , i am great .", "hello , i am fine .", "hey , good to meet you .", "hi there , i am well .")
RETURNS = ("how about you ?", "and you ?", "what about you ?")
ECHOES = ("oh nice .", "good for you .", "i see .", "interesting .")


def said(rng, texts, value):
    """One of the texts, with its slots filled."""
    return rng.choice(texts).format(a=value[0], b=value[1])


def partner_turn(rng, last, asked_back, question, first):
    """The partner's turn: a greeting, a word about `last` (the topic just talked about), then the question."""
    if first:
        return f"{rng.choice(GREETINGS)} {question}"
    parts = [rng.choice(TOPICS[last].partner)] if asked_back else []
    if not parts and rng.random() < 0.7:
        parts.append(rng.choice(TOPICS[last].reactions))
    return " ".join([*parts, question])


def conversation(rng):
    """One record: a personality of four or five sentences and four to six utterances."""
    persona = rng.sample(list(TOPICS), rng.choice((4, 4, 5)))
    values = {topic: rng.choice(TOPICS[topic].values) for topic in persona}
    missing = rng.choice([topic for topic in TOPICS if topic not in values])
    topics = rng.sample(persona, 3) + [missing] * (rng.random() < 0.5)
    rng.shuffle(topics)
    questions = []
    for topic in topics:
        questions.append((topic, False))
        if topic in values and rng.random() < 0.6:
            questions.append((topic, True))
    for topic in persona:
        if len(questions) < 4 and topic not in topics:
            questions.append((topic, False))
    history, utterances, last, asked_back = [], [], None, False
    for number, (topic, later) in enumerate(questions[: rng.choice((4, 5, 5, 6))]):
        if topic not in values:
            question, reply = rng.choice(TOPICS[topic].questions), rng.choice(TOPICS[topic].without)
        elif later:
            question, reply = (text.format(a=values[topic][0], b=values[topic][1])
                               for text in rng.choice(TOPICS[topic].details))  # fmt: skip
        else:
            question = rng.choice(TOPICS[topic].questions)
            reply = said(rng, TOPICS[topic].answers, values[topic])
        history.append(partner_turn(rng, last, asked_back, question, not number))
        if not number and history[0].startswith(GREETINGS[-1]):
            reply = f"{rng.choice(WELL)} {reply}"
        elif asked_back and rng.random() < 0.5:
            reply = f"{rng.choice(ECHOES)} {reply}"
        follows = questions[number + 1 : number + 2]
        asked_back = rng.random() < 0.4 and not (follows and follows[0][1])
        if asked_back:
            reply = f"{reply} {rng.choice(RETURNS)}"
        utterances.append({"history": list(history), "candidates": [reply]})
        history.append(reply)
        last = topic
    return {"personality": [said(rng, TOPICS[topic].persona, values[topic]) for topic in persona],
            "utterances": utterances}  # fmt: skip


def make_dialogue(seed=42):
    """{split: records} of dialogue.json; no personality occurs in two splits."""
    rng = random.Random(seed)
    records, seen = [], set()
    while len(records) < 94:
        record = conversation(rng)
        key = tuple(sorted(record["personality"]))
        if key not in seen and len(record["utterances"]) >= 4:
            seen.add(key)
            records.append(record)
    return {"train": records[:70], "valid": records[70:82], "test": records[82:]}
