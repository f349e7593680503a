"""Scores of a task's answers, 0–100, as reported by LAMOL and L2KD. Each is a `utils.metrics.Score`.

Every task gets em, nf1 and nem; a task's kind (`data.question_task`) adds its own scores. The numbers equal the
originals' except where an original is wrong; the docstrings say where.
"""

import string

from versatile.data.question_samples import order_by_id
from versatile.data.sql import is_right
from versatile.utils import metrics, qa_metrics, trace_metrics
from versatile.utils.errors import UserError
from versatile.utils.metrics import Score, check_counts

_NORMAL = "case:lc|punct:no|articles:no"
# TRACE's scores, reported in addition to em, nf1 and nem.
_TRACE = {
    "accuracy": lambda answers, references: {"accuracy": trace_metrics.accuracy(answers, references)},
    "choice": lambda answers, references: {"accuracy": trace_metrics.choice_accuracy(answers, references)},
    "edit": lambda answers, references: {"edit_similarity": trace_metrics.edit_similarity(answers, references)},
    "words_l": lambda answers, references: {"rougeL": trace_metrics.rouge_l(answers, references)},
}


def score(task, answers, samples, gold=None):
    """All scores of a task's test split.

    Args:
        task: a `data.question_task.LifelongTask`.
        answers: a list of N texts, the model's answers.
        samples: the N `QA`s, in the same order.
        gold: for woz.en `question_samples.load_turns`, for wikisql `question_samples.load_queries` of the file that
            `question_tasks.find_gold` finds: N items, in the order of the samples sorted by id. None for other tasks.

    Returns:
        {name: `Score`}, with `task.metric` among the names.
    """
    references = [list(sample.answers) for sample in samples]
    check_counts(answers, references)
    if task.gold:
        gold = _aligned(task, gold, samples)
    if task.kind == "dialogue":
        references = [[answer] for _, answer in gold]
    scores = score_texts(task, answers, references)
    if task.kind == "dialogue":
        scores |= dialogue(answers, gold)
    elif task.kind == "sari":
        scores["sari"] = trace_metrics.sari([sample.context for sample in samples], answers, references)
    elif task.kind == "sql":
        scores |= {"lfem": lfem(answers, gold), "lfem_strict": lfem(answers, gold, strict=True)}
    return scores


def score_texts(task, answers, references):
    """The scores of a task that need only texts.

    Args:
        task: a `data.question_task.LifelongTask`.
        answers: a list of N texts.
        references: a list of N lists of correct texts.
    """
    scores = texts(answers, references)
    if task.pairs:
        scores |= task.pairs.score(answers, references)
    elif task.kind == "rouge":
        scores |= rouge(answers, references)
    elif task.kind == "rouge_l":
        scores["rougeL"] = rouge_l(answers, references)
    elif task.kind in _TRACE:
        scores |= _TRACE[task.kind](answers, references)
    elif task.kind == "bleu":
        scores["bleu"] = bleu(answers, references)
    elif task.kind == "corpus_f1":
        scores |= corpus_f1(answers, references)
    return scores


def _aligned(task, gold, samples):
    """The true answers in the order of the samples; they are given in the order of the samples sorted by id."""
    if gold is None or len(gold) != len(samples):
        counted = gold is not None and f"it has {len(gold)} items, and there are {len(samples)} questions"
        message = counted or "there is none"
        raise UserError(message, location=task.gold, expected="one true answer per question of the test split",
                        remedy="use the two files that were made together")  # fmt: skip
    aligned = [true for _, true in sorted(zip(order_by_id(samples), gold), key=lambda pair: pair[0])]
    # Files in two different orders would also give a score, but a meaningless one.
    shown = [true[1] if task.kind == "dialogue" else true["answer"] for true in aligned]
    pairs = [(text, sample) for text, sample in zip(shown, samples) if isinstance(text, str)]
    same = sum(any(qa_metrics.exact(text, answer) for answer in sample.answers) for text, sample in pairs)
    if 2 * same < len(pairs):
        message = f"{len(pairs) - same} of its {len(pairs)} answers are not those of the questions, sorted by id"
        raise UserError(message, location=task.gold, expected="the answers of the test split, in that order",
                        remedy="use the two files that were made together")  # fmt: skip
    return aligned


def texts(answers, references):
    """em, nf1 and nem: for each answer the score against the best-matching true answer, averaged over the answers.

    em is 1 if the texts are equal character by character, without surrounding white space, which answers never have;
    nem if they are equal in lower case, without punctuation and articles; nf1 is the F1 of the words that remain
    (Rajpurkar et al. 2016). If both the answer and the true answer are left without words, the original gives an nf1
    of 0; here, as in SQuAD 2.0, it is 1.
    """
    check_counts(answers, references)
    nrefs = metrics.nrefs(references)

    def mean(one):
        best = (max(one(answer, right) for right in group) for answer, group in zip(answers, references))
        return 100 * sum(best) / len(answers)

    return {
        "em": Score(mean(lambda answer, right: float(answer.strip() == right.strip())),
                    f"{nrefs}|multi:best|case:mixed|strip:yes|scale:0-100"),
        "nf1": Score(mean(qa_metrics.f1), f"{nrefs}|multi:best|{_NORMAL}|version:squad|scale:0-100"),
        "nem": Score(mean(qa_metrics.exact), f"{nrefs}|multi:best|{_NORMAL}|version:squad|scale:0-100"),
    }


def bleu(answers, references):
    """Corpus BLEU by sacreBLEU, lower-cased."""
    return metrics.bleu(answers, references, lowercase=True)


def rouge(answers, references):
    """rouge1, rouge2, rougeL and avg_rouge, their mean: F scores with stemming, against the best true answer.

    A full stop ends a sentence, and rougeL is summary-level ROUGE-L (the union of the sentences' longest common
    subsequences), as in the originals. These call ROUGE-1.5.5; Google's rouge-score is used instead, whose values are
    not identical to the last digit. A one-word text has no bigrams, so its rouge2 is always 0.
    """
    lined = [[_sentences(text) for text in group] for group in references]
    scores = metrics.rouge([_sentences(text) for text in answers], lined)
    scores = {name: score.in_percent() for name, score in scores.items()}
    signature = scores["rougeLsum"].signature
    result = {name: scores[name] for name in ("rouge1", "rouge2")}
    result["rougeL"] = Score(scores["rougeLsum"].value, f"{signature}|level:summary|sentences:full-stop")
    mean = sum(score.value for score in result.values()) / len(result)
    result["avg_rouge"] = Score(mean, f"{signature}|mean:1,2,L|level:summary|sentences:full-stop")
    return result


def rouge_l(answers, references):
    """ROUGE-L as in Super-NaturalInstructions and SAPT: F scores with stemming, against the best true answer, of the
    longest common subsequence of the whole texts (in `rouge`, of their sentences)."""
    score = metrics.rouge(answers, references)["rougeL"].in_percent()
    return Score(score.value, f"{score.signature}|level:text")


def _sentences(text):
    return "\n".join(part.strip() for part in text.split(".") if part.strip())


# --- zre: relations, or none -----------------------------------------------------------------------------


def corpus_f1(answers, references):
    """corpus_f1, precision and recall of answers that may be "unanswerable" (Levy et al. 2017).

    An answer is correct if the set of its words, lower-cased, without punctuation and without the, a, an, and, equals
    the set of words of all true answers together. Precision is the number of correct answers over the answers other
    than "unanswerable", recall over the answerable questions; a correct "unanswerable" counts in neither. If some true
    answers are empty texts, an empty answer also means "unanswerable"; the original counts it as an answer.
    """
    check_counts(answers, references)
    pairs = [(_set(answer), set().union(*map(_set, group))) for answer, group in zip(answers, references)]
    if any(not theirs for _, theirs in pairs):
        pairs = [tuple(words or {"unanswerable"} for words in pair) for pair in pairs]
    right = answered = answerable = 0
    for ours, theirs in pairs:
        answered += ours != {"unanswerable"}
        answerable += theirs != {"unanswerable"}
        right += ours == theirs and theirs != {"unanswerable"}
    precision, recall = (right / number if number else 0.0 for number in (answered, answerable))
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    signature = f"{metrics.nrefs(references)}|multi:union|words:set|case:lc|punct:no|level:corpus|scale:0-100"
    values = {"corpus_f1": f1, "precision": precision, "recall": recall}
    return {name: Score(100 * value, signature) for name, value in values.items()}


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _set(answer):
    return {word.translate(_PUNCTUATION) for word in answer.lower().split()} - {"the", "a", "an", "and", ""}


# --- woz: the state of a dialogue ------------------------------------------------------------------------


def dialogue(answers, turns):
    """joint_goal_em, turn_request_em, turn_goal_em and avg_dialogue (Zhong et al. 2018).

    An answer states what a turn changes: ``food: thai , area: north ; phone , address``, with goals before the
    semicolon and requests after it. turn_goal_em and turn_request_em are the shares of turns whose goals and requests
    are correct; joint_goal_em is the share of turns at which all goals of the dialogue so far are correct; avg_dialogue
    is the mean of joint_goal_em and turn_request_em. Goals are compared as a set and requests in order, both
    case-sensitively.

    Args:
        answers: a list of N texts.
        turns: a list of N (turn id, true answer); the ids end in ``_<number of the turn>``. The original sorts
            turns as text, which puts the tenth before the second.
    """
    check_counts(answers, [[answer] for _, answer in turns])
    number = len(turns)
    joint = goal = request = 0
    dialogue_of = [turn.rpartition("_")[0] for turn, _ in turns]
    order = sorted(range(number), key=lambda at: (dialogue_of[at], int(turns[at][0].rpartition("_")[2])))
    current = None
    for at in order:
        if dialogue_of[at] != current:
            current, ours, theirs = dialogue_of[at], {}, {}
        (goals, requests), (true_goals, true_requests) = _changes(answers[at]), _changes(turns[at][1])
        ours |= goals
        theirs |= true_goals
        joint += ours == theirs
        goal += goals == true_goals
        request += requests == true_requests
    signature = f"dialogues:{len(set(dialogue_of))}|turns:{number}|case:mixed|requests:ordered|scale:0-100"
    shares = {name: 100 * count / number for name, count in
              (("joint_goal_em", joint), ("turn_request_em", request), ("turn_goal_em", goal))}  # fmt: skip
    shares["avg_dialogue"] = (shares["joint_goal_em"] + shares["turn_request_em"]) / 2
    return {name: Score(value, signature) for name, value in shares.items()}


def _changes(answer):
    """({slot: value}, [requested slot, …]) of an answer.

    The requests of "none", ";" and anything without exactly one semicolon are None, which differs from goals without
    requests: a quirk of the original that its published numbers depend on.
    """
    parts = answer.split(";")
    if len(parts) != 2 or answer.strip() == ";":
        return {}, None
    goals = {}
    for part in parts[0].split(","):
        pair = part.split(":")
        if len(pair) == 2:
            goals[pair[0].strip()] = pair[1].strip()
    return goals, [part.strip() for part in parts[1].split(",")]


# --- wikisql: logical forms ------------------------------------------------------------------------------


def lfem(answers, queries, strict=False):
    """Logical form accuracy of SQL queries (Zhong et al. 2017), as `data.sql` reads them.

    Args:
        answers: a list of N texts.
        queries: a list of N ``{"sql": …, "table": {"header": […]}}``; they are not modified.
        strict: column names must match the table's; the originals take the most similar one.
    """
    check_counts(answers, [[""]] * len(queries))
    right = sum(is_right(text, query["sql"], query["table"]["header"], strict) for text, query in zip(answers, queries))
    column = "exact" if strict else "closest"
    return Score(100 * right / len(queries), f"conditions:ordered|case:lc|whitespace:no|column:{column}|scale:0-100")
