"""CoQA's answer scores (Reddy, Chen and Manning 2019), equal to those of its official script, version 1.0.

Plain numbers; `utils.metrics.coqa` checks its input and adds signatures.
"""

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text):
    """Lower-cased words of an answer, without ASCII punctuation and articles.

    Punctuation is removed, not replaced by a space: "well-known" is one word, "wellknown".
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact(prediction, gold):
    """1.0 if the words of the two texts are the same in the same order, else 0.0."""
    return float(words(prediction) == words(gold))


def f1(prediction, gold):
    """Harmonic mean, 0–1, of precision and recall of the words, counted as often as they occur in both."""
    ours, theirs = words(prediction), words(gold)
    if not ours or not theirs:
        # An answer of nothing but articles and punctuation agrees with another such answer only.
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def against_all(score, prediction, golds):
    """The score of one answer, 0–1, against several gold answers.

    Each gold answer is left out in turn and the best score against the others taken; the mean of these counts.
    This is how a human annotator, who cannot be compared with themselves, is scored. One gold answer alone is
    compared directly.
    """
    scores = [score(prediction, gold) for gold in golds]
    if len(scores) == 1:
        return scores[0]
    # Leaving one out changes the best score only where the best one itself is left out.
    second, best = sorted(scores)[-2:]
    return (best * (len(scores) - 1) + second) / len(scores)


def coqa(hypotheses, references):
    """(F1, EM), 0–100: the means over all answers, regardless of story or domain."""
    pairs = list(zip(hypotheses, references))
    return tuple(100 * sum(against_all(score, *pair) for pair in pairs) / len(pairs) for score in (f1, exact))
