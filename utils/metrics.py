"""Scores of generated text. Every number comes with a signature that says how it was computed.

The scorers are imported where they are used: importing this module costs nothing.

Shapes throughout: `hypotheses` is a list of N strings; `references` is a list of N lists of strings, and examples
may have different numbers of references. A wrong shape is a `UserError`.
"""

import contextlib
import json
import logging
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from versatile.utils.errors import UserError, brief
from versatile.utils.lines import from_one_line
from versatile.utils.screen import counted, format_number


@dataclass(frozen=True)
class Score:
    """One number and how it was computed, e.g. ``Score(27.3, "nrefs:1|case:mixed|…|version:2.6.0")``."""

    value: float
    signature: str

    def in_percent(self):
        """The same score on the scale 0-100, for one on the scale 0-1."""
        return Score(100 * self.value, self.signature.replace("scale:0-1|", "scale:0-100|"))


# --- scores ----------------------------------------------------------------------------------------------


def bleu(hypotheses, references, lowercase=False):
    """Corpus BLEU, 0–100, by sacreBLEU (Post 2018): 13a tokens, mixed or lower case, exp smoothing."""
    from sacrebleu.metrics import BLEU

    score = _sacrebleu(BLEU(lowercase=lowercase), hypotheses, references)
    return _marked(score, references, _is_unspaced, "BLEU's tokens are words between spaces", "chrF")


def chrf(hypotheses, references):
    """Corpus chrF2, 0–100, by sacreBLEU (Popović 2015): character 1–6-grams."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu(CHRF(), hypotheses, references)


def _sacrebleu(metric, hypotheses, references):
    check_counts(hypotheses, references)
    # sacreBLEU wants one list per reference number; None stands for a missing reference.
    most = max(len(group) for group in references)
    streams = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    value = metric.corpus_score(hypotheses, streams).score
    return Score(float(value), str(metric.get_signature()))


def rouge(hypotheses, references, stem=True):
    """Mean ROUGE F scores, 0–1, by Google's rouge-score (Lin 2004), against the best reference of each example.

    Args:
        stem: strip English endings (Porter) before comparing.

    Returns:
        dict of `Score`: rouge1, rouge2, rougeL, rougeLsum. rougeLsum treats each line of a text as a
        sentence, so texts of several sentences should have one sentence per line.
    """
    from rouge_score.rouge_scorer import RougeScorer

    check_counts(hypotheses, references)
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, use_stemmer=stem)
    group_scores = [scorer.score_multi(group, hypothesis) for hypothesis, group in zip(hypotheses, references)]
    signature = "|".join(
        (
            nrefs(references),
            "multi:best|case:lc|tok:rouge-score",
            f"stem:{'porter' if stem else 'no'}|score:f|scale:0-1|{_version('rouge-score')}",
        )
    )
    means = {name: sum(scores[name].fmeasure for scores in group_scores) / len(group_scores) for name in names}
    scores = {name: Score(float(mean), signature) for name, mean in means.items()}
    advice = "ROUGE's tokens are made of a-z and 0-9 alone", "chrF"
    marked = _marked(scores["rouge1"], references, _is_foreign, *advice)
    suffix = marked.signature.removeprefix(signature)
    return {name: Score(score.value, score.signature + suffix) for name, score in scores.items()}


# --- texts that a metric cannot handle -------------------------------------------------------------------

# Scripts without spaces between words, by the first words of their characters' names.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def _is_unspaced(letter):
    return letter > "\u0e00" and unicodedata.name(letter, "").startswith(_UNSPACED)


def _is_foreign(letter):
    return not letter.isascii()


def _marked(score, references, unseen, why, instead):
    """A `Score` whose signature counts the examples the metric cannot handle, with a warning; unchanged if none.

    Args:
        unseen: whether the metric cannot handle a given letter or digit. An example mostly of such characters counts.
        why, instead: for the warning: what the metric's tokens are, and which metric to use.
    """
    count = 0
    for group in references:
        # Most texts are ASCII, which every metric handles.
        letters = [] if all(map(str.isascii, group)) else [c for text in group for c in text if c.isalnum()]
        count += 2 * sum(map(unseen, letters)) > len(letters)
    if not count:
        return score
    logging.getLogger(__name__).warning(
        "%s: it says little about %d of %d examples, which are in another script; see %s",
        why, count, len(references), instead,
    )  # fmt: skip
    return Score(score.value, f"{score.signature}|unseen:{count}")


def rouge_summary(hypotheses, references):
    """`rouge` of summaries: the lines of a text are its sentences; a text of one line is split into sentences.

    Only rougeLsum depends on sentences, so only its signature says how they were found. A sentence ends after
    ``.``, ``!`` or ``?`` (and closing quotes or brackets) if white space and then no lower-case letter follows,
    unless a common abbreviation ("Mr.", "U.S.") or an initial precedes the full stop.

    Returns:
        dict of `Score`, 0–1: rouge1, rouge2, rougeL, rougeLsum.
    """
    check_counts(hypotheses, references)
    lined = [sentence_lines(text) for text in hypotheses]
    scores = rouge(lined, [list(map(sentence_lines, group)) for group in references])
    last = scores["rougeLsum"]
    scores["rougeLsum"] = Score(last.value, f"{last.signature}|sentences:lines|split:regex")
    return scores


# The look-behind and the possessive quantifiers avoid quadratic time on a text of nothing but full stops.
_END_OF_SENTENCE = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+(?=\s+[^\sa-z])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Lt|Sgt|Col|Gen|Gov|Sen|Rep|Rev|"
    r"No|vs|etc|Inc|Ltd|Co|Corp|Jan|Feb|Aug|Sept|Oct|Nov|Dec)\.$"
)


def sentence_lines(text):
    """`text` with a sentence on each line: as it is if it has several lines, else split by `rouge_summary`'s rule."""
    text = text.strip()
    if "\n" in text:
        return text
    lines, start = [], 0
    for end in _END_OF_SENTENCE.finditer(text):
        # Forty characters hold the longest abbreviation; a long text is not searched again for every full stop.
        if not _ABBREVIATION.search(text[max(start, end.end() - 40) : end.end()]):
            lines.append(text[start : end.end()].strip())
            start = end.end()
    return "\n".join([*lines, text[start:].strip()])


def coqa(hypotheses, references):
    """CoQA's F1 and exact match, 0–100, as its official script computes them (Reddy et al. 2019).

    Words are compared in lower case, without punctuation and articles. With several gold answers each is left out
    in turn, the best score against the others is taken, and the mean counts. The official script rounds to one decimal.

    Returns:
        {"F1": Score, "EM": Score}
    """
    from versatile.utils import qa_metrics

    check_counts(hypotheses, references)
    golds = nrefs(references)
    rest = "multi:leave-one-out|case:lc|punct:no|articles:no|mean:turn|scale:0-100|version:coqa-1.0"
    return {name: Score(value, f"{golds}|{rest}") for name, value in
            zip(("F1", "EM"), qa_metrics.coqa(hypotheses, references))}  # fmt: skip


def distinct(hypotheses, n):
    """Distinct-n (Li et al. 2016), 0–1: distinct n-grams / all n-grams of the corpus; 0 if there are none.

    It decreases as the corpus grows: only corpora of equal size can be compared.
    """
    from versatile.utils import dialogue_metrics

    if n < 1:
        raise UserError(f"n-grams of length {n}", location="distinct", expected="n of 1 or more")
    _check_hypotheses(hypotheses)
    value = dialogue_metrics.distinct(hypotheses, n)
    return Score(value, f"n:{n}|level:corpus|per:n-grams|case:lc|tok:words+punct|texts:{len(hypotheses)}|scale:0-1")


def persona_coverage(hypotheses, personas):
    """How much of a persona sentence a reply covers, 0–1, after P-Cover (Song et al. 2019).

    W(x) are the words of x, lower-cased, without punctuation and stop words; for a reply y and its persona P,

        cover(y, P) = max over p in P of  sum of idf(w) over w in W(y) ∩ W(p)  /  sum of idf(w) over w in W(p)

    and the score is the mean over the replies. idf(w) = ln((1 + D) / (1 + d(w))) + 1, where d(w) of all D distinct
    persona sentences in `personas` contain w. P-Cover itself takes the mean idf of the shared words, which a single
    rare word maximises, and takes idf from the ranks of a word-vector file; this score is 1 where a persona sentence
    is repeated, 0 where nothing is shared, and needs no file.

    Args:
        personas: a list of N lists of sentences. A reply whose persona has no sentence with a content word does
            not count; the signature says how many did.
    """
    from versatile.utils import dialogue_metrics

    _check_hypotheses(hypotheses)
    if len(hypotheses) != len(personas):
        message = f"{len(hypotheses)} hypotheses, but {len(personas)} personas"
        raise UserError(message, expected="one persona, a list of sentences, per hypothesis")
    for i, persona in enumerate(personas):
        if isinstance(persona, str) or not all(isinstance(text, str) for text in persona):
            raise UserError(f"the persona is {brief(persona)}", location=f"example {i}", expected="a list of strings")
    value, counted = dialogue_metrics.persona_coverage(hypotheses, personas)
    return Score(value, f"best:sentence|recall:idf|idf:persona-sentences|case:lc|stop:yes|counted:{counted}|scale:0-1")


def e2e(hypotheses, references):
    """The scores of the E2E NLG challenge, equal to those of its own scripts (`utils.caption_metrics`).

    Returns:
        ``(scores, notes)``: a dict of `Score` — BLEU 0–1, NIST ≥ 0, METEOR 0–1 (see `meteor`), ROUGE_L 0–1,
        CIDEr 0–10 — and a list of lines to show the user about what could not be computed.
    """
    from versatile.utils import caption_metrics as caption

    check_counts(hypotheses, references)
    number = nrefs(references)
    bleu_value, nist_value = caption.bleu_nist(hypotheses, references)
    meteor_scores, notes = meteor(hypotheses, references)
    tokens = _ptb(hypotheses, references)
    mteval = f"{number}|case:lc|tok:mteval-v13a"
    coco = f"{number}|{_PTB_SIGNATURE}"
    scores = {
        "BLEU": Score(bleu_value, f"{mteval}|smooth:exp|bp:closest|scale:0-1"),
        "NIST": Score(nist_value, f"{mteval}|n:5|scale:0-inf"),
        **meteor_scores,
        "ROUGE_L": Score(caption.rouge_l(*tokens), f"{coco}|beta:1.2|scale:0-1"),
        "CIDEr": Score(caption.cider(*tokens), f"{coco}|cider:D|n:4|sigma:6|df:references|scale:0-10"),
    }
    return scores, notes


_PTB_SIGNATURE = "case:lc|tok:ptb-python|punct:no"
_METEOR_REMEDY = (
    "install pycocoevalcap==1.2 and a Java runtime (java on PATH); nltk's METEOR_nltk, another number, needs "
    "`python -m nltk.downloader wordnet`"
)


def meteor(hypotheses, references):
    """METEOR 1.5 if pycocoevalcap and Java are available, else nltk's METEOR, else none.

    Nothing is ever downloaded.

    Returns:
        ``(scores, notes)``: ``{"METEOR": Score}``, ``{"METEOR_nltk": Score}`` or ``{}``, all 0–1, and, unless
        it is METEOR 1.5, one line that says why and how to get it.
    """
    from versatile.utils import caption_metrics as caption

    check_counts(hypotheses, references)
    tokens = _ptb(hypotheses, references)
    signature = f"{nrefs(references)}|{_PTB_SIGNATURE}|scale:0-1"
    try:
        value = caption.meteor_java(*tokens)
        return {"METEOR": Score(value, f"{signature}|lang:en|norm:yes|version:1.5")}, []
    except caption.MeteorError as error:
        reason = f"METEOR left out: {error}"
    try:
        value = caption.meteor_nltk(*tokens)
    except caption.MeteorError as error:
        return {}, [f"{reason}, and {error}; {_METEOR_REMEDY}"]
    scores = {"METEOR_nltk": Score(value, f"{signature}|nltk|{_version('nltk')}")}
    return scores, [f"{reason}; METEOR_nltk is used instead and is not comparable with it; {_METEOR_REMEDY}"]


def _ptb(hypotheses, references):
    from versatile.utils.caption_metrics import ptb_tokenize

    return list(map(ptb_tokenize, hypotheses)), [list(map(ptb_tokenize, group)) for group in references]


def perplexity(total_nll, tokens):
    """exp(total_nll / tokens): `total_nll` is the summed negative log-likelihood (nats) of `tokens` tokens."""
    if tokens <= 0:
        raise UserError("no target tokens were scored", remedy="check that the split is not empty")
    try:
        value = math.exp(total_nll / tokens)
    except OverflowError:
        value = math.inf
    return Score(value, f"tokens:{tokens}|mean:token|base:e")


def nrefs(references):
    """The signature's part for the number of references: "nrefs:2", or "nrefs:var" if it varies."""
    counts = {len(group) for group in references}
    return f"nrefs:{counts.pop() if len(counts) == 1 else 'var'}"


def _version(package):
    from importlib.metadata import version

    return f"version:{version(package)}"


# --- output ----------------------------------------------------------------------------------------------


def format_scores(scores):
    """The scores (dict of `Score`) as text, one aligned line each: name, value, signature."""
    if not scores:
        return ""
    width = max(map(len, scores))
    values = {name: format_number(score.value, 4) for name, score in scores.items()}
    digits = max(map(len, values.values()))
    return "\n".join(
        f"{name:<{width}}  {values[name]:>{digits}}  {score.signature}" for name, score in scores.items()
    )


def to_json(scores):
    """``{"BLEU": {"score": …, "signature": …}, …}``; JSON has no infinity, so an infinite score is None."""
    return {
        name: {"score": score.value if math.isfinite(score.value) else None, "signature": score.signature}
        for name, score in scores.items()
    }


# --- input -----------------------------------------------------------------------------------------------


def check_counts(hypotheses, references, location=None):
    """Raise a `UserError` unless each hypothesis has a non-empty list of references, and there is at least one.

    Args:
        location: the files that they come from, for the error.
    """
    if len(hypotheses) != len(references):
        raise UserError(
            f"{counted(len(hypotheses), 'output')}, but references for {counted(len(references), 'example')}",
            location=location,
            expected="one line of output, and one or more references, per example",
            remedy="use the references of the decoded split; in their file an empty line ends an example",
        )
    _check_hypotheses(hypotheses)
    for i, group in enumerate(references):
        if isinstance(group, str) or not group or not all(isinstance(text, str) for text in group):
            message = f"the references are {brief(group)}"
            raise UserError(message, location=f"example {i}", expected="a list of one or more strings")


def _check_hypotheses(hypotheses):
    if not hypotheses:
        raise UserError("there is nothing to score: 0 hypotheses", remedy="check the output file or --split")
    for i, hypothesis in enumerate(hypotheses):
        if not isinstance(hypothesis, str):
            raise UserError(f"the hypothesis is {brief(hypothesis)}", location=f"example {i}", expected="a string")


def read_hypotheses(path):
    """The outputs in a file: one per line, the "hypothesis" of each line of a .jsonl file, as evaluation writes them,
    or the "answer"s of a json list, the format of CoQA's script.

    Raises:
        UserError: as `read_lines`, or a line of a .jsonl file without a hypothesis.
    """
    lines = read_lines(path)
    if Path(path).suffix == ".jsonl":
        return [_text_of(line, "hypothesis", f"{path}:{number}") for number, line in enumerate(lines, 1)]
    if lines[0].lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            items = json.loads("\n".join(lines))
            # A text may begin with a bracket, too.
            if items and all(isinstance(item, dict) for item in items):
                return [_text_in(item, "answer", f"{path}: item {number}", "CoQA's answers: a text in each object")
                        for number, item in enumerate(items, 1)]  # fmt: skip
    return [from_one_line(line) for line in lines]


def _text_of(line, field, location):
    """The text of one field of a line's json object."""
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        item = None
    return _text_in(item, field, location, "a line of <task>_outputs.jsonl")


def _text_in(item, field, location, expected):
    """The text of one field of a json value; half of a surrogate pair, which is not a character, becomes ``?``."""
    value = item.get(field) if isinstance(item, dict) else None
    if not isinstance(value, str):
        raise UserError(f"not a json object with the text {field!r}", location=location, expected=expected)
    return value.encode("utf-8", "replace").decode("utf-8")


def read_lines(path):
    """The lines of a UTF-8 text file, e.g. one hypothesis per line; an empty line is an empty hypothesis.

    Raises:
        UserError: the file does not exist, is empty, or is not UTF-8 (the message names the line).
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read it: {error.strerror}", location=path, remedy="check the path") from error
    lines = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r"))
        except UnicodeDecodeError as error:
            message = f"byte {error.start + 1} of the line is not UTF-8"
            raise UserError(message, location=f"{path}:{number}", remedy="save the file as UTF-8") from error
    if not content:
        raise UserError("the file is empty", location=path, expected="one text per line")
    return lines


def read_references(path):
    """References from a file, as a list of lists of strings.

    In the E2E challenge's layout each line is a reference and an empty line ends an example; a file without
    empty lines (apart from trailing ones) has one reference per example.

    Raises:
        UserError: as `read_lines`, or two empty lines together: an example without references.
    """
    lines = [line.strip() for line in read_lines(path)]
    if not any(lines):
        raise UserError("the file is empty", location=path, expected="one reference per line")
    while not lines[-1]:
        lines.pop()
    if "" not in lines:
        return [[line] for line in lines]
    groups = [[]]
    for number, line in enumerate(lines, 1):
        if line:
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
        else:
            raise UserError(
                "an example without references",
                location=f"{path}:{number}",
                expected="one or more references, one per line, then one empty line",
                remedy="remove the empty line, or put the missing reference above it",
            )
    return groups
