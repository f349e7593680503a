"""Scores of short answers by name, 0-100, for a user's own tasks."""

from versatile.utils import metrics, qa_metrics
from versatile.utils.metrics import Score

NAMES = ("exact_match", "f1", "rouge", "accuracy", "bleu")


def score(names, hypotheses, references, labels=None):
    """Score answers.

    Args:
        names: some of `NAMES`.
        hypotheses: a list of N texts.
        references: a list of N lists of correct texts.
        labels: the labels of a classification task, or None.

    Returns:
        {name: `Score`}, in the order asked for. With labels, f1 is the mean of the labels' F1 (macro), otherwise the F1
        of an answer's words (Rajpurkar et al. 2016). "rouge" gives rouge1, rouge2, rougeL and rougeLsum.
    """
    metrics.check_counts(hypotheses, references)
    scores = {}
    for name in names:
        if name == "f1":
            scores["f1"] = macro_f1(hypotheses, references, labels) if labels else word_f1(hypotheses, references)
        elif name == "rouge":
            scores |= rouge(hypotheses, references)
        elif name == "bleu":
            scores["bleu"] = metrics.bleu(hypotheses, references)
        else:
            scores[name] = exact_match(hypotheses, references)
    return scores


def exact_match(hypotheses, references):
    """Share of the answers that equal a correct text, without surrounding white space."""
    right = sum(text.strip() in {r.strip() for r in group} for text, group in zip(hypotheses, references))
    signature = f"{metrics.nrefs(references)}|multi:best|case:mixed|strip:yes|scale:0-100"
    return Score(100 * right / len(hypotheses), signature)


def word_f1(hypotheses, references):
    """Mean word F1 of the answers, each against its best reference."""
    best = [max(qa_metrics.f1(text, right) for right in group) for text, group in zip(hypotheses, references)]
    signature = f"{metrics.nrefs(references)}|multi:best|case:lc|punct:no|articles:no|version:squad|scale:0-100"
    return Score(100 * sum(best) / len(best), signature)


def macro_f1(hypotheses, references, labels):
    """Mean F1 of the labels that occur; an answer that is not a label counts as wrong for its row's label."""
    from sklearn.metrics import f1_score

    texts = [text.strip() for text in hypotheses]
    right = [text if text in group else group[0] for text, group in zip(texts, _stripped(references))]
    occurring = [label for label in labels if label in right or label in texts]
    value = f1_score(right, texts, labels=occurring, average="macro", zero_division=0)
    return Score(100 * float(value), f"labels:{len(occurring)}|average:macro|case:mixed|strip:yes|scale:0-100")


def _stripped(references):
    return [[text.strip() for text in group] for group in references]


def rouge(hypotheses, references):
    """`metrics.rouge_summary` in percent."""
    return {name: score.in_percent() for name, score in metrics.rouge_summary(hypotheses, references).items()}
