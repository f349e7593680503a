"""coqa, squad: questions about a text."""

import collections
from functools import partial

from versatile.data.converters.base import (
    data_format,
    given_splits,
    held_out_flag,
    held_out_sizes,
    json_records,
    parsed,
    skip_bad_flag,
    split_flags,
    split_records,
    tallied,
    usable,
)
from versatile.data.files import records_field, text_field
from versatile.utils.errors import UserError, brief

_COQA = 'a CoQA file: {"version": …, "data": [{"id", "story", "questions", "answers"}, …]}'
_SQUAD = 'a SQuAD file: {"version": …, "data": [{"title", "paragraphs": [{"context", "qas"}, …]}, …]}'


def _questions(record):
    return len(record["utterances"])


# --- coqa: a conversation about a story ------------------------------------------------------------------


def _coqa_flags(parser):
    split_flags(parser, 1, "CoQA json file, e.g. coqa-train-v1.0.json (for valid the dev file)")
    skip_bad_flag(parser, "stories")


@data_format("coqa", _coqa_flags)
def coqa(args, report):
    """CoQA: one record per story, with its questions and answers paired and ordered by turn_id.

    A question's "answers" are the gold answer and, in the dev file, those in additional_answers.
    """

    def read(path):
        return parsed(json_records(path, "data", _COQA), _story, args.skip_bad)

    return tallied(split_records(given_splits(args), {}, read, report), report, "questions", _questions)


def _story(story, location, drops):
    name = text_field(story, "id", location)
    location = f"{location} (story {name})"
    document = usable(text_field(story, "story", location), "'story'", location)
    questions, answers = _turns(story, "questions", location), _turns(story, "answers", location)
    more = story.get("additional_answers") or {}
    if not isinstance(more, dict):
        raise UserError(
            f"'additional_answers' is {brief(more)}", location=location, expected='an object {"0": [..], …}'
        )
    more = [_turns(more, key, f"{location}.additional_answers") for key in more]
    for turn in sorted({*questions, *answers, *(turn for answered in more for turn in answered)}):
        if turn not in questions or turn not in answers:
            missing = "question" if turn not in questions else "answer"
            raise UserError(
                f"turn {turn} has no {missing}", location=location, expected="a question and an answer for each turn_id"
            )
    history, utterances = [], []
    for turn in sorted(questions):
        history = [*history, questions[turn]]
        answered = [answers[turn], *(texts[turn] for texts in more if turn in texts)]
        utterances.append(
            {"turn_id": turn, "history": history, "candidates": [answers[turn]], "answers": answered}
        )  # fmt: skip
        history = [*history, answers[turn]]
    if not utterances:
        drops["stories without a question"] += 1
        return None
    return {"id": name, "document": [document], "utterances": utterances}


def _turns(story, name, location):
    """{turn_id: text} of a list of questions or answers."""
    turns = {}
    for index, item in enumerate(records_field(story, name, location)):
        turn, item_location = item.get("turn_id"), f"{location}.{name}[{index}]"
        if type(turn) is not int:
            raise UserError(f"'turn_id' is {brief(turn)}", location=item_location, expected="a whole number")
        if turn in turns:
            raise UserError(f"a second text for turn {turn}", location=item_location, expected="each turn_id once")
        text = text_field(item, "input_text", item_location)
        turns[turn] = usable(text, f"'input_text' of turn {turn}", item_location)
    return turns


# --- squad: single questions about a paragraph -----------------------------------------------------------


def _squad_flags(parser):
    split_flags(parser, "+", "SQuAD v1.1 or v2.0 json files, one after another")
    held_out_flag(parser, "valid", "N paragraphs at the end of the training files (before those for the test)")
    held_out_flag(parser, "test", "the last N paragraphs of the training files")
    parser.add_argument(
        "--unanswerable", metavar="TEXT", help="answer impossible questions with TEXT (default: drop and count them)"
    )
    skip_bad_flag(parser, "paragraphs")


@data_format("squad", _squad_flags)
def squad(args, report):
    """SQuAD v1.1 and v2.0: one record per paragraph, each question on its own, with its distinct answers.

    The id is the article's title and the paragraph's number in it; turn_id counts the questions kept.
    With --valid_from_train and --test_from_train, paragraphs of one article may end up in different splits, but copies
    of the same paragraph in several files may not.
    """
    if args.unanswerable is not None:
        usable(args.unanswerable, "the answer", "--unanswerable")
    files = given_splits(args)
    parse = partial(_paragraph, unanswerable=args.unanswerable and args.unanswerable.strip())

    def read(paths):
        return parsed(_paragraphs(paths), parse, args.skip_bad)

    sizes = held_out_sizes(args, files)
    splits = split_records(files, sizes, read, report, key=lambda record: record["document"][0])
    return tallied(splits, report, "questions", _questions)


def _paragraphs(paths):
    """Yield (location, (id, paragraph)) for every paragraph; no two have the same id."""
    numbers, used = collections.Counter(), set()
    for path in paths:
        for location, article in json_records(path, "data", _SQUAD):
            title = name = str(article.get("title") or "untitled").strip()
            while name in used:
                numbers[title] += 1
                name = f"{title}({numbers[title] + 1})"
            used.add(name)
            try:
                paragraphs = records_field(article, "paragraphs", location)
            except UserError as error:
                yield location, error
                continue
            for index, paragraph in enumerate(paragraphs):
                yield f"{location}.paragraphs[{index}]", (f"{name}#{index}", paragraph)


def _paragraph(raw, location, drops, unanswerable):
    name, paragraph = raw
    document = usable(text_field(paragraph, "context", location), "'context'", location)
    utterances = []
    for index, question in enumerate(records_field(paragraph, "qas", location)):
        question_location = f"{location}.qas[{index}]"
        question_text = usable(text_field(question, "question", question_location), "'question'", question_location)
        if _impossible(question, question_location):
            if not unanswerable:
                drops["impossible questions"] += 1
                continue
            answers = [unanswerable]
        else:
            entries = records_field(question, "answers", question_location)
            texts = (text_field(entry, "text", question_location) for entry in entries)
            answers = list(dict.fromkeys(usable(text, "'text'", question_location) for text in texts))
            if not answers:
                raise UserError("'answers' is empty", location=question_location,
                                expected="an answer, or 'is_impossible': true")  # fmt: skip
        turn = len(utterances) + 1
        utterances.append({"turn_id": turn, "history": [question_text], "candidates": answers[:1], "answers": answers})
    if not utterances:
        drops["paragraphs left without a question"] += 1
        return None
    return {"id": name, "document": [document], "utterances": utterances}


def _impossible(question, location):
    value = question.get("is_impossible", False)
    if not isinstance(value, bool):
        raise UserError(f"'is_impossible' is {brief(value)}", location=location, expected="true or false")
    return value
