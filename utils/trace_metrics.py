"""The scores of TRACE (Wang et al. 2023), 0-100: accuracy of choices, ROUGE-L, edit similarity of code, SARI.

TRACE takes ROUGE-L from the package `rouge`, edit similarity from `fuzzywuzzy` and SARI from a script of the hub; they
are reimplemented here so that no network is needed. An empty answer scores 0.
"""

import difflib
import re
from collections import Counter

from versatile.utils.metrics import Score, check_counts, nrefs


def choice_accuracy(hypotheses, references):
    """Share of the answers whose first character, the letter of a choice (ScienceQA), is that of a correct one."""
    right = [max(float(text[:1] == other[:1] != "") for other in group) for text, group in zip(hypotheses, references)]
    return _mean(right, hypotheses, references, "first:1|case:mixed")


def accuracy(hypotheses, references):
    """Share of the answers that equal one of the correct texts."""
    right = [float(text != "" and text in group) for text, group in zip(hypotheses, references)]
    return _mean(right, hypotheses, references, "case:mixed")


def _mean(values, hypotheses, references, recipe):
    check_counts(hypotheses, references)
    value = 100 * sum(values) / len(values)
    return Score(value, f"{nrefs(references)}|multi:best|{recipe}|scale:0-100|original:TRACE")


# --- ROUGE-L ---------------------------------------------------------------------------------------------


def rouge_l(hypotheses, references):
    """Mean F of the distinct words in the sentences' longest common subsequences, against the best reference.

    Sentences end at full stops, words are separated by spaces, and neither case nor endings are changed, unlike in the
    ROUGE-L of `metrics.rouge`.
    """
    best = [max(_rouge_l(text, other) for other in group) for text, group in zip(hypotheses, references)]
    return _mean(best, hypotheses, references, "case:mixed|stem:no|words:sets|sentences:full-stop")


def _rouge_l(hypothesis, reference):
    if not hypothesis or not reference:
        return 0.0
    ours, theirs = ([part.split() or [""] for part in text.split(".") if part] for text in (hypothesis, reference))
    if not ours or not theirs:
        return 0.0
    common = set().union(*(_common_words(left, right) for left in ours for right in theirs))
    precision, recall = (len(common) / len(set().union(*sentences)) for sentences in (ours, theirs))
    return 2 * precision * recall / (precision + recall + 1e-8)


def _common_words(first, second):
    """The words of one longest common subsequence: the one that the package `rouge` backtracks to."""
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, word in enumerate(first):
        for j, other in enumerate(second):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if word == other else max(lengths[i][j + 1], lengths[i + 1][j])
    i, j, words = len(first), len(second), set()
    while i and j:
        if first[i - 1] == second[j - 1]:
            words.add(first[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words


# --- edit similarity -------------------------------------------------------------------------------------


def edit_similarity(hypotheses, references):
    """100 · 2M / T, M the characters in the matching blocks of two texts (Ratcliff/Obershelp), T those of both texts.

    The best reference counts. Py150's placeholders of literals are filled in first. TRACE rounds each answer's score.
    """
    best = [max(_similarity(text, other) for other in group) for text, group in zip(hypotheses, references)]
    return _mean(best, hypotheses, references, "case:mixed|by:difflib|literals:filled")


def _similarity(hypothesis, reference):
    if not hypothesis or not reference:
        return 0.0
    return difflib.SequenceMatcher(None, fill_literals(hypothesis), fill_literals(reference), autojunk=False).ratio()


def fill_literals(code):
    """Py150's code with <STR_LIT:text> replaced by its text, <NUM_LIT> by 0 and other literals by nothing."""
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    return re.sub(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", r"\1", code, flags=re.S)


# --- SARI ------------------------------------------------------------------------------------------------


def sari(sources, hypotheses, references):
    """SARI (Xu et al. 2016): how well words are kept, deleted and added when simplifying a text; the mean over texts of

        (F_keep + P_delete + F_add) / 3, each the mean over n-grams of 1 to 4 words.

    As in the hub's script, which TRACE calls: 13a tokens in lower case, 0/0 is 1, and the recall of what is kept is
    that of all n-grams together. (The authors' own script takes 0/0 as 0 and sums that recall differently.)

    Args:
        sources: N texts that were to be simplified.
        hypotheses, references: as everywhere in `metrics`.
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    check_counts(hypotheses, references)
    tokenize = Tokenizer13a()
    scores = []
    for source, hypothesis, group in zip(sources, hypotheses, references, strict=True):
        # `split` at single spaces, as in that script: an empty text is one empty word.
        texts = [tokenize(text.lower()).split(" ") for text in (source, hypothesis, *group)]
        scores.append(sum(map(sum, (_sari_of_ngrams(*map(_ngrams(n), texts)) for n in range(1, 5)))) / 12)
    value = 100 * sum(scores) / len(scores)
    return Score(value, f"{nrefs(references)}|case:lc|tok:13a|n:4|0/0:1|scale:0-100|original:evaluate")


def _ngrams(n):
    return lambda words: Counter(zip(*(words[i:] for i in range(n))))


def _sari_of_ngrams(source, hypothesis, *references):
    """(F of keeping, precision of deleting, F of adding) of counted n-grams."""
    number, wanted = len(references), sum(references, Counter())
    source, hypothesis = (Counter({g: c * number for g, c in counts.items()}) for counts in (source, hypothesis))
    kept, to_keep = source & hypothesis, source & wanted
    right = kept & wanted
    precision = _ratio(sum(right[gram] / kept[gram] for gram in right), len(kept))
    keep = _f1(precision, _ratio(sum(right.values()), sum(to_keep.values())))
    deleted = source - hypothesis
    rightly = deleted - wanted
    delete = _ratio(sum(rightly[gram] / deleted[gram] for gram in rightly), len(deleted))
    added, to_add = set(hypothesis) - set(source), set(wanted) - set(source)
    good = len(added & set(wanted))
    return keep, delete, _f1(_ratio(good, len(added)), _ratio(good, len(to_add)))


def _ratio(part, whole):
    return part / whole if whole else 1.0


def _f1(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
