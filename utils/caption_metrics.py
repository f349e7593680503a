"""The scores of the E2E NLG challenge: BLEU, NIST, ROUGE-L, CIDEr, METEOR.

The challenge's scoring script joins two older tools: NIST's mteval-v13a (BLEU, NIST) and the MS-COCO caption
code (METEOR, ROUGE-L, CIDEr). Both are computed here in pure Python, oddities included, because published
numbers carry them; only METEOR 1.5 is left to its Java program.

Hypotheses are a list of N strings (or N token lists), references a list of N lists of them.
"""

import importlib.util
import math
import re
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path

# --- tokenizers -----------------------------------------------------------------------------------------

_ASCII_LOWER = str.maketrans({chr(c): chr(c + 32) for c in range(ord("A"), ord("Z") + 1)})
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_MTEVAL_SPLITS = (
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),  # ASCII punctuation but ' - . ,
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # a point or comma is kept only between digits
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def _unescape(text):
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    return text


def mteval_tokenize(text):
    """`text` -> tokens by mteval-v13a's rules for Western languages; lower-cases ASCII letters only."""
    text = f" {_unescape(text.replace('<skipped>', ''))} ".translate(_ASCII_LOWER)
    for pattern, spaced in _MTEVAL_SPLITS:
        text = pattern.sub(spaced, text)
    return text.split()


# The caption code compares with upper-case bracket names after lower-casing, so "-lrb-" stays a token.
_DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_WRITTEN_AS = str.maketrans(
    {
        **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
        **{"£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4"},
        **{"’": "'", "‘": "`", '"': "''", "“": "``", "”": "''", "«": "``", "»": "''"},
        **{"–": "--", "—": "--", "―": "--", "…": "..."},
    }
)
_ABBREVIATIONS = (
    "mr|mrs|ms|messrs|mme|dr|drs|st|prof|jr|sr|hon|rev|gen|col|lt|sgt|capt|maj|gov|pres|rep|sen|vs|etc|cf|al|est|"
    r"inc|co|corp|ltd|bros|ave|blvd|rd|mt|ft|sq|dept|fig|ph\.d|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)
_PTB_TOKEN = re.compile(
    r"""
    </?[A-Za-z][^<>\s]*\ ?/?>                                                     # tag
  | (?i:https?://|www\.)[^\s"<>|(){}]*[^\s"<>|.!?(){},-]                          # URL
  | \w[\w.+-]*@\w[\w-]*(?:\.\w+)+                                                 # e-mail address
  | [@\#][^\W\d]\w*                                                               # user, hashtag
  | [:;=][-o*']?(?:[()\\{@|\[\]]|[DPdp](?!\w))                                    # smiley
  | (?i: can(?=not\b(?!-)) | (?:gon|wan)(?=na\b(?!-)) | got(?=ta\b(?!-)) | (?:lem|gim)(?=me\b(?!-)) )
  | (?i: 't(?=(?:is|was)\b) | d['’]you\b | c['’]mon\b | o['’]clock\b | ma['’]am\b )
  | (?i: ['’]em\b | 'n\b'? | y['’](?=[a-z]) )
  | (?i: (?:ABBREVIATIONS)\.(?!\w) | no\.(?=\s*\d) )
  | [^\W\d_]+\.(?=[,;:])                                                          # any word before ".,"
  | (?:[^\W\d_]\.)+[^\W\d_]{2,} | (?:[^\W\d_]\.)+(?:[^\W\d_](?!\w))?                # J.Berry, acronym
  | (?i: [^\W\d_]+?(?=n['’`]t\b) | n['’`]t\b | ['’](?:s|m|d|re|ve|ll)\b | ['’]\d0s\b )
  | [OoDdLl]['’][^\W\d_]{2,}(?:-\w+)*                                             # O'Connor
  | [-+]?\d*(?:[.,:]\d+)+(?:-\w+)* | [-+]\d+(?:-\w+)* | \d+/\d+(?:/\d+)?          # number, fraction
  | [A-Z]+(?:&[A-Z]+)+                                                            # B&B
  | [^\W\d_]+(?:[.?][^\W\d_]+(?:-[^\W_]+)*)+                                      # near.There
  | [^\W_]+(?:-[^\W_]+)*(?:/[^\W_]+(?:-[^\W_]+)*){1,2}                            # and/or
  | [^\W_]+(?:[-_][^\W_]+)*                                                       # word, family-friendly
  | [!?]+ | \*+ | \S
    """.replace("ABBREVIATIONS", _ABBREVIATIONS),
    re.VERBOSE,
)
_REPEATED = ((re.compile(r"\.{2,}"), "…"), (re.compile(r"-{2,}"), "—"))


def ptb_tokenize(text):
    """`text` -> lower-cased Penn Treebank tokens without punctuation, as the MS-COCO caption code makes them.

    A stand-in for the Java tokenizer of Stanford CoreNLP 3.4.1. It splits contractions (do n't, kid 's,
    can not), keeps hyphenated words, number ranges, abbreviations, "AT&T" and words with a missing space
    ("near.There"), writes £ as #, € as $ and brackets as -lrb-. Checked against the Java program: the same
    tokens on all 14,672 E2E texts tried, and on 99.7 % of 11,921 lines of dialogue, news and WebNLG texts;
    differences are rare abbreviations and apostrophes inside names.
    """
    text = _unescape(text)
    for pattern, sign in _REPEATED:
        text = pattern.sub(sign, text)
    tokens = (token.translate(_WRITTEN_AS).lower() for token in _PTB_TOKEN.findall(text))
    return [token for token in tokens if token not in _DROPPED]


# --- mteval-v13a: BLEU and NIST --------------------------------------------------------------------------


def ngram_counts(tokens, longest):
    """Counts of all n-grams (tuples) of `tokens`, n = 1 … `longest`."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, longest + 1) for i in range(len(tokens) - n + 1))


def bleu_nist(hypotheses, references):
    """Corpus BLEU-4 (0–1) and NIST-5 (from 0, no upper bound) of raw strings, as mteval-v13a prints them.

    BLEU (Papineni et al. 2002): exp smoothing, brevity penalty by the closest reference length, the shorter
    on a tie. NIST (Doddington 2002): each matched n-gram weighs log2(count of its first n-1 words / its
    count), counted over all references.
    """
    hypotheses = [mteval_tokenize(text) for text in hypotheses]
    references = [[mteval_tokenize(text) for text in group] for group in references]
    information = _information(references)
    matched, total, gain, closest = [0] * 6, [0] * 6, [0.0] * 6, 0
    for hypothesis, group in zip(hypotheses, references):
        allowed = Counter()
        for reference in group:
            allowed |= ngram_counts(reference, 5)
        for ngram, count in (ngram_counts(hypothesis, 5) & allowed).items():
            matched[len(ngram)] += count
            gain[len(ngram)] += count * information[ngram]
        for n in range(1, 6):
            total[n] += max(len(hypothesis) - n + 1, 0)
        lengths = [len(reference) for reference in group if reference]
        closest += min(lengths, key=lambda length: (abs(length - len(hypothesis)), length), default=0)
    # The challenge's script divides by the largest number of references, even for instances that have
    # fewer: its average reference is too short and the length penalty too mild.
    words = sum(len(reference) for group in references for reference in group)
    average_length = words / max(len(group) for group in references)
    nist = sum(gain[n] / max(total[n], 1) for n in range(1, 6)) * _nist_penalty(total[1], average_length)
    return _mteval_bleu(matched, total, closest), nist


def _information(references):
    counts = Counter()
    for group in references:
        for reference in group:
            counts.update(ngram_counts(reference, 5))
            counts[()] += len(reference)
    return {ngram: math.log2(counts[ngram[:-1]] / count) for ngram, count in counts.items() if ngram and count}


def _mteval_bleu(matched, total, reference_length):
    if not total[1]:
        return 0.0
    log_precision, smooth = 0.0, 1
    for n in range(1, 5):
        if total[n] and not matched[n]:
            smooth *= 2
            log_precision -= math.log(smooth * total[n])
        elif total[n]:
            log_precision += math.log(matched[n] / total[n])
    return math.exp(log_precision / 4 + min(0, 1 - reference_length / total[1]))


def _nist_penalty(length, reference_length):
    """1 for texts of at least the references' length, 0.5 at two thirds of it."""
    if not length or not reference_length:
        return 0.0
    beta = math.log(0.5) / math.log(1.5) ** 2
    return math.exp(beta * math.log(min(length / reference_length, 1)) ** 2)


# --- MS-COCO caption code: ROUGE-L and CIDEr -------------------------------------------------------------


def longest_common_subsequence(a, b):
    """Length of the longest common subsequence of two sequences."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def rouge_l(hypotheses, references):
    """Mean ROUGE-L F (0–1, beta 1.2) of token lists.

    Best precision and best recall are taken separately, so they may come from two references.
    """
    beta2, scores = 1.2**2, []
    for hypothesis, group in zip(hypotheses, references):
        hypothesis = hypothesis or [""]  # a text without tokens counts as one empty token in the original
        common = [(longest_common_subsequence(hypothesis, ref or [""]), len(ref) or 1) for ref in group]
        precision = max(length for length, _ in common) / len(hypothesis)
        recall = max(length / size for length, size in common)
        score = (1 + beta2) * precision * recall / (recall + beta2 * precision) if precision else 0.0
        scores.append(score)
    return sum(scores) / len(scores)


def cider(hypotheses, references):
    """Mean CIDEr-D (0–10; Vedantam et al. 2015, n = 1–4, sigma 6) of token lists.

    The document frequencies are the references' own: a single example always scores 0.
    """
    frequency = Counter()
    for group in references:
        frequency.update(set().union(*(ngram_counts(reference, 4) for reference in group)))

    def vector(tokens):
        weights, squares = {}, [0.0] * 5
        for ngram, count in ngram_counts(tokens, 4).items():
            weights[ngram] = count * math.log(len(references) / max(frequency[ngram], 1))
            squares[len(ngram)] += weights[ngram] ** 2
        # The original uses the number of bigrams, not of words, as the length.
        return weights, [math.sqrt(square) for square in squares], max(len(tokens) - 1, 0)

    total = 0.0
    for hypothesis, group in zip(hypotheses, references):
        ours = vector(hypothesis)
        total += sum(_cider_similarity(ours, vector(reference)) for reference in group) / len(group)
    return 10 * total / len(hypotheses)


def _cider_similarity(hypothesis, reference, sigma=6.0):
    (weights, norms, length), (ref_weights, ref_norms, ref_length) = hypothesis, reference
    products = [0.0] * 5
    for ngram, weight in weights.items():
        other = ref_weights.get(ngram, 0.0)
        products[len(ngram)] += min(weight, other) * other
    cosines = [products[n] / (norms[n] * ref_norms[n]) for n in range(1, 5) if norms[n] and ref_norms[n]]
    return sum(cosines) / 4 * math.exp(-((length - ref_length) ** 2) / (2 * sigma**2))


# --- METEOR ----------------------------------------------------------------------------------------------


class MeteorError(RuntimeError):
    """METEOR cannot be computed here; the message says why, in a few words."""


def meteor_java(hypotheses, references, timeout=None):
    """Corpus METEOR 1.5 (0–1; Denkowski and Lavie 2014) of token lists, from the Java program.

    The program comes with the Python package pycocoevalcap. It is stopped after `timeout` seconds (default:
    five minutes and a tenth of a second per example).

    Raises:
        MeteorError: the package or Java is missing, or the program failed.
    """
    java, package = shutil.which("java"), importlib.util.find_spec("pycocoevalcap")
    if not java:
        raise MeteorError("there is no java on PATH")
    if package is None:
        raise MeteorError("pycocoevalcap is not installed")
    jar = Path(package.submodule_search_locations[0], "meteor", "meteor-1.5.jar")
    command = [java, "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", str(jar)]
    command += ["-", "-", "-stdio", "-l", "en", "-norm"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        with subprocess.Popen(command, text=True, encoding="utf-8", **pipes) as process:
            timer = threading.Timer(timeout or 300 + len(hypotheses) / 10, process.kill)
            timer.start()
            try:
                return _meteor_dialogue(process, hypotheses, references)
            finally:
                timer.cancel()
                process.kill()
    except (OSError, ValueError) as error:
        raise MeteorError("its Java program failed or took too long") from error


def _meteor_dialogue(process, hypotheses, references):
    def ask(line):
        process.stdin.write(line + "\n")
        process.stdin.flush()

    def answer():
        line = process.stdout.readline().strip()
        if not line:
            raise ValueError("no answer")
        return line

    statistics = []
    for hypothesis, group in zip(hypotheses, references):
        texts = (" ".join(tokens).replace("|||", "") for tokens in (*group, hypothesis))
        ask(" ||| ".join(("SCORE", *texts)))
        statistics.append(answer())
    ask(" ||| ".join(("EVAL", *statistics)))
    for _ in hypotheses:  # one score per example, then the corpus's
        answer()
    return float(answer())


def meteor_nltk(hypotheses, references):
    """Mean of nltk's METEOR (0–1) over token lists: a different formula from METEOR 1.5, and a different number.

    Raises:
        MeteorError: nltk or its WordNet data are not on this machine (nothing is ever downloaded).
    """
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import meteor_score

        wordnet.ensure_loaded()  # nltk itself would miss it only at the first word without an exact match
        scores = [meteor_score(group, hypothesis) for hypothesis, group in zip(hypotheses, references)]
    except (ImportError, LookupError) as error:
        raise MeteorError("nltk's WordNet data are not installed") from error
    return sum(scores) / len(scores)
