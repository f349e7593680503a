"""Scores of a task's answers, 0–100, as LAMOL and L2KD report them. Every one is a `utils.metrics.Score`.

Everything gets em, nf1 and nem; a task's kind (`data.question_tasks`) adds its own. The numbers are the originals'
except where an original is wrong; there the docstring says so.
"""

import string

from versatile.data.question_samples import order_by_id
from versatile.data.sql import is_right
from versatile.utils import metrics, qa_metrics, trace_metrics
from versatile.utils.errors import UserError
from versatile.utils.metrics import Score, check_counts

_NORMAL = "case:lc|punct:no|articles:no"
# Scores of TRACE that stand beside em, nf1 and nem.
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
        answers: a list of N texts, what the model answered.
        samples: the N `QA`s, in the same order.
        gold: for woz.en `samples.load_turns`, for wikisql `samples.load_queries` of the file that
            `tasks.find_gold` finds: N items, in the order of the samples sorted by id. Other tasks have none.

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
    """The scores of a task that need nothing but texts.

    Args:
        task: a `data.question_task.LifelongTask`.
        answers: a list of N texts.
        references: a list of N lists of texts that are right.
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
    """The true answers in the order of the samples; they come in that of the samples sorted by id."""
    if gold is None or len(gold) != len(samples):
        counted = gold is not None and f"it has {len(gold)} items, and there are {len(samples)} questions"
        message = counted or "there is none"
        raise UserError(message, location=task.gold, expected="one true answer per question of the test split",
                        remedy="take the two files that were made together")  # fmt: skip
    aligned = [true for _, true in sorted(zip(order_by_id(samples), gold), key=lambda pair: pair[0])]
    # Files of two different orders would give a score, too: of nothing.
    shown = [true[1] if task.kind == "dialogue" else true["answer"] for true in aligned]
    pairs = [(text, sample) for text, sample in zip(shown, samples) if isinstance(text, str)]
    same = sum(any(qa_metrics.exact(text, answer) for answer in sample.answers) for text, sample in pairs)
    if 2 * same < len(pairs):
        message = f"{len(pairs) - same} of its {len(pairs)} answers are not those of the questions, sorted by id"
        raise UserError(message, location=task.gold, expected="the answers of the test split, in that order",
                        remedy="take the two files that were made together")  # fmt: skip
    return aligned


def texts(answers, references):
    """em, nf1 and nem: the means over the answers of the best true answer's score.

    em is 1 where the texts are the same, character by character; nem where the same words are left in lower case,
    without punctuation and articles; nf1 is the F1 of these words (Rajpurkar et al. 2016). The original gives an
    answer of no words an nf1 of 0 where no words are right, too; here, as in SQuAD 2.0, it is 1.
    """
    check_counts(answers, references)
    nrefs = metrics.nrefs(references)

    def mean(one):
        best = (max(one(answer, right) for right in group) for answer, group in zip(answers, references))
        return 100 * sum(best) / len(answers)

    return {
        "em": Score(mean(lambda answer, right: float(answer == right)), f"{nrefs}|multi:best|case:mixed|scale:0-100"),
        "nf1": Score(mean(qa_metrics.f1), f"{nrefs}|multi:best|{_NORMAL}|version:squad|scale:0-100"),
        "nem": Score(mean(qa_metrics.exact), f"{nrefs}|multi:best|{_NORMAL}|version:squad|scale:0-100"),
    }


def bleu(answers, references):
    """Corpus BLEU by sacreBLEU, lower-cased."""
    return metrics.bleu(answers, references, lowercase=True)


def rouge(answers, references):
    """rouge1, rouge2, rougeL and avg_rouge, their mean: F scores with stemming, the best true answer's.

    A full stop ends a sentence, and rougeL is ROUGE-L of a summary of sentences (the union of their longest common
    subsequences), as in the originals. Those call ROUGE-1.5.5; Google's rouge-score stands in for it and is not
    the same to the last digit. A text of one word has no pairs of words: its rouge2 is 0, whatever it is.
    """
    lined = [[_sentences(text) for text in group] for group in references]
    scores = metrics.rouge([_sentences(text) for text in answers], lined)
    signature = scores["rougeLsum"].signature.replace("scale:0-1|", "scale:0-100|")
    chosen = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougeLsum"}
    values = {name: 100 * scores[kind].value for name, kind in chosen.items()}
    result = {name: Score(value, signature) for name, value in values.items()}
    result["rougeL"] = Score(values["rougeL"], f"{signature}|level:summary|sentences:full-stop")
    mean = sum(values.values()) / len(values)
    result["avg_rouge"] = Score(mean, f"{signature}|mean:1,2,L|level:summary|sentences:full-stop")
    return result


def rouge_l(answers, references):
    """ROUGE-L as Super-NaturalInstructions and SAPT have it: F scores with stemming, the best true answer's, of the
    longest common subsequence of the whole texts (of `rouge` it is that of their sentences)."""
    score = metrics.rouge(answers, references)["rougeL"]
    return Score(100 * score.value, score.signature.replace("scale:0-1|", "scale:0-100|") + "|level:text")


def _sentences(text):
    return "\n".join(part.strip() for part in text.split(".") if part.strip())


# --- zre: relations, or none -----------------------------------------------------------------------------


def corpus_f1(answers, references):
    """corpus_f1, precision and recall of answers that may be "unanswerable" (Levy et al. 2017).

    An answer is right if its words, lower-cased, without punctuation and the, a, an, and, are as a set those of all
    true answers together. Precision is the right ones over those answered other than "unanswerable", recall over
    those that can be answered; a right "unanswerable" counts in neither. Where some true answers are empty texts,
    an empty answer says "unanswerable" as well; the original takes it for an answer.
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

    An answer tells what a turn changes: ``food: thai , area: north ; phone , address``, goals before the semicolon
    and requests behind it. turn_goal_em and turn_request_em are the shares of turns whose goals and requests are
    right, joint_goal_em of those where all goals so far of its dialogue are; avg_dialogue is the mean of
    joint_goal_em and turn_request_em. Goals compare as a set, requests in their order, all in the letter case given.

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

    The requests of "none", ";" and what has not exactly one semicolon are None, which is not the same as no requests
    beside goals: a quirk of the original that its published numbers hang on.
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
        queries: a list of N ``{"sql": …, "table": {"header": […]}}``; they stay as they are.
        strict: a column must be named as in the table; the originals take the most similar one.
    """
    check_counts(answers, [[""]] * len(queries))
    right = sum(is_right(text, query["sql"], query["table"]["header"], strict) for text, query in zip(answers, queries))
    column = "exact" if strict else "closest"
    return Score(100 * right / len(queries), f"conditions:ordered|case:lc|whitespace:no|column:{column}|scale:0-100")
