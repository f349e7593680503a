"""BLEU and ROUGE as the original VLM code computes them, under their own names.

Use them only to compare with the paper's numbers: the BLEU splits on white space and is rounded,
the ROUGE counts each n-gram once and weighs precision against recall by their own ratio. Otherwise report
`utils.metrics.bleu` and `utils.metrics.rouge`.
"""

import math
from collections import Counter

from versatile.utils.caption_metrics import longest_common_subsequence, ngram_counts
from versatile.utils.metrics import Score, check_counts

_MISSING_REFERENCE = 9999  # the length Moses assumes where a line has no reference


def original(hypotheses, references):
    """The original code's scores of N hypotheses against N lists of references (the first of each is used).

    Returns:
        dict of `Score`: original_BLEU and original_BLEU_lc (0–100), original_ROUGE_1, _2, _L, _mean (0–1).

    Raises:
        UserError: the counts do not fit.
    """
    check_counts(hypotheses, references)
    references = [group[0] for group in references]
    scores = {
        "original_BLEU": Score(multi_bleu(hypotheses, references), _bleu_signature("mixed")),
        "original_BLEU_lc": Score(multi_bleu(hypotheses, references, lowercase=True), _bleu_signature("lc")),
    }
    for name, value in rouge(hypotheses, references).items():
        recipe = {"1": "ngrams:sets", "2": "ngrams:sets", "L": "beta:p/r", "mean": "mean:1,2,L"}[name]
        signature = f"nrefs:1|case:mixed|tok:space|{recipe}|scale:0-1|original:VLM"
        scores[f"original_ROUGE_{name}"] = Score(value, signature)
    return scores


def cleaned(hypotheses, references):
    """`original` of texts cleaned up as in the original, for comparison with published numbers.

    A line break counts as a space. In the original it would shift all later lines against their references, and one
    break in one output could take the BLEU of a whole test set to 0. Outputs and references were decoded from tokens
    that begin with a space; its ROUGE, which splits at every space, counts the empty word before it as a match.
    """

    def one_line(text):
        words = " ".join(text.splitlines()).strip()
        return clean_up(f" {words}" if words else "")

    return original([one_line(t) for t in hypotheses], [[one_line(r) for r in group] for group in references])


# The replacements that the original's tokenizer made while decoding, in their order.
_CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
             (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


def clean_up(text):
    """Text as the original scored it, outputs and references alike: " do not" is " don't" and so on.

    Output files keep the raw text; compare published numbers with the scores of cleaned-up text.
    """
    for old, new in _CLEAN_UP:
        text = text.replace(old, new)
    return text


def _bleu_signature(case):
    return f"nrefs:1|case:{case}|tok:none|smooth:none|round:2|original:VLM (Moses multi-bleu)"


def multi_bleu(hypotheses, references, lowercase=False):
    """Moses multi-bleu of two lists of N strings: BLEU-4, 0–100, unsmoothed, rounded to two decimals.

    The strings go through files of lines, so a line break inside a hypothesis shifts all that follows
    against the references; this is a bug of the original, and part of its numbers.
    """
    # Perl sees bytes: only ASCII letters are lower-cased, only ASCII white space splits.
    ours, theirs = ("\n".join(texts).encode() for texts in (hypotheses, references))
    if not hypotheses:
        return 0.0
    if lowercase:
        ours, theirs = ours.lower(), theirs.lower()
    ours, theirs = ([line.split() for line in lines.split(b"\n")] for lines in (ours, theirs))
    matched, total, reference_length = Counter(), Counter(), 0
    for i, hypothesis in enumerate(ours):
        reference = theirs[i] if i < len(theirs) else None
        reference_length += _MISSING_REFERENCE if reference is None else len(reference)
        counts = ngram_counts(hypothesis, 4)
        for ngram, count in (counts & ngram_counts(reference or [], 4)).items():
            matched[len(ngram)] += count
        for n in range(1, 5):
            total[n] += max(len(hypothesis) - n + 1, 0)
    if not all(matched[n] for n in range(1, 5)):
        return 0.0
    log_precision = sum(math.log(matched[n] / total[n]) for n in range(1, 5)) / 4
    return round(100 * math.exp(log_precision + min(0, 1 - reference_length / total[1])), 2)


def rouge(hypotheses, references):
    """Mean F scores (0–1) over two lists of N strings: {"1": …, "2": …, "L": …, "mean": mean of the three}."""
    pairs = list(zip(hypotheses, references))
    scores = {"1": [rouge_n(*pair, 1) for pair in pairs], "2": [rouge_n(*pair, 2) for pair in pairs]}
    scores["L"] = [rouge_l(*pair) for pair in pairs]
    means = {name: sum(f for f, _, _ in values) / max(len(pairs), 1) for name, values in scores.items()}
    return means | {"mean": sum(means.values()) / 3}


def rouge_n(hypothesis, reference, n):
    """(F, precision, recall) of the n-grams of two strings, each distinct n-gram counted once."""
    ours, theirs = (_ngram_set(text.split(" "), n) for text in (hypothesis, reference))
    common = len(ours & theirs)
    precision, recall = (common / len(ngrams) if ngrams else 0.0 for ngrams in (ours, theirs))
    return 2 * precision * recall / (precision + recall + 1e-8), precision, recall


def _ngram_set(words, n):
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def rouge_l(hypothesis, reference):
    """(F, precision, recall) of the longest common subsequence of two strings' words.

    F = (1 + b²)·P·R / (R + b²·P) with b = P / R: a higher precision shifts the weight to recall.
    """
    ours, theirs = hypothesis.split(" "), reference.split(" ")
    common = longest_common_subsequence(ours, theirs)
    precision, recall = common / len(ours), common / len(theirs)
    beta2 = (precision / (recall + 1e-12)) ** 2
    f = (1 + beta2) * precision * recall / (recall + beta2 * precision + 1e-12)
    return f, precision, recall
