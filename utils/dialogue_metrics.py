"""Diversity of replies and how much of a persona they cover, as plain numbers.

`utils.metrics.distinct` and `utils.metrics.persona_coverage` check their input and add signatures.
"""

import math
import re
from collections import Counter

# Letters and digits, with apostrophes inside: "don't" and the PersonaChat-like "mother's" are one word each.
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_TOKEN = re.compile(_WORD.pattern + r"|[^\w\s]|_")

# Words that say nothing about a person: articles, pronouns, auxiliaries, prepositions, conjunctions, fillers.
_STOP_WORDS = """
a about after again all also always am an and another any are aren't as at away back be because been before being but
by can can't could couldn't d did didn't do does doesn't doing don don't down every for from get got had hadn't has
hasn't have haven't having he he's hello her here hers hey hi him his how i i'd i'll i'm i've if in into is isn't it
it's its just ll lot lots m many me more most much my myself no nor not now of off oh ok okay on once one only or
other our ours out over own re really s same she she's should so some such t than that that's the their theirs them
then there there's these they they're this those through to too up us ve very was wasn't we we're well were weren't
what what's when where which while who whom why will with won't would wouldn't yeah yes you you're your yours
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def tokens(text):
    """Lower-cased words and punctuation marks."""
    return _TOKEN.findall(text.lower())


def content_words(text):
    """The set of lower-cased words that are not stop words."""
    return {word.replace("’", "'") for word in _WORD.findall(text.lower())} - STOP_WORDS


def distinct(hypotheses, n):
    """Distinct n-grams / all n-grams of the corpus, 0–1; n-grams do not run from one text into the next.

    0 where no text has n tokens.
    """
    grams = Counter()
    for text in hypotheses:
        words = tokens(text)
        grams.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(grams) / grams.total() if grams else 0.0


def document_frequencies(sentences):
    """(how many of the distinct sentences hold each content word, how many distinct sentences there are)."""
    distinct_sentences = set(sentences)
    return Counter(word for text in distinct_sentences for word in content_words(text)), len(distinct_sentences)


def persona_coverage(hypotheses, personas):
    """(mean coverage 0–1, how many replies counted); see `utils.metrics.persona_coverage` for the formula."""
    frequencies, total = document_frequencies(sentence for persona in personas for sentence in persona)
    idf = {word: math.log((1 + total) / (1 + count)) + 1 for word, count in frequencies.items()}
    values = []
    for reply, persona in zip(hypotheses, personas):
        spoken = content_words(reply)
        facts = [words for sentence in persona if (words := content_words(sentence))]
        if facts:
            # fsum: the order of a set's words differs from run to run, the exact sum does not.
            weights = ((math.fsum(idf[w] for w in words & spoken), math.fsum(idf[w] for w in words)) for words in facts)
            values.append(max(shared / whole for shared, whole in weights))
    return (math.fsum(values) / len(values) if values else 0.0), len(values)
