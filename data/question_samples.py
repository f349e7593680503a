"""Samples of a task: a context, a question about it and its answers, from SQuAD-style json.

    {"data": [{"paragraphs": [{"context": "…", "qas": [{"question": "…", "answers": [{"text": "…"}], "id": "…"}]}]}]}

All other keys are ignored: they may be missing, null, or anything else.
"""

import json
from dataclasses import dataclass

from versatile.data.converters.base import json_records
from versatile.data.converters.squad_style import sample as as_article
from versatile.data.files import records_field, text_field
from versatile.data.json_files import list_items
from versatile.data.question_tasks import find_file
from versatile.utils.errors import UserError, brief
from versatile.utils.files import atomic_write

SHAPE = ('SQuAD-style json: {"data": [{"paragraphs": [{"context": "…", "qas": '
         '[{"question": "…", "answers": [{"text": "…"}]}]}]}]}')  # fmt: skip


@dataclass(frozen=True, slots=True)
class QA:
    """One sample.

    Attributes:
        context, question: texts as in the file; one of them may be blank, not both.
        answers: the true answers, at least one; ("",) if the file has none.
        id: text or integer as in the file, or None. Not unique: duplicate samples share an id.
        location: its place in the file, e.g. "ag_to_squad-test-v2.0.json:data[3].paragraphs[0].qas[0]".
    """

    context: str
    question: str
    answers: tuple
    id: object = None
    location: str = ""


def read_questions(path, several=True):
    """Yield the `QA` of every question in a file, in order, with one article in memory at a time.

    Args:
        path: the json file, plain or ``.gz``.
        several: whether a question may have more than one answer; training samples must have only one.

    Raises:
        UserError: while iterating. The file cannot be read, is not SQuAD-style json or contains no question; a sample
            lacks something required (the message names it).
    """
    empty = True
    for location, article in json_records(path, "data", SHAPE):
        for number, paragraph in enumerate(records_field(article, "paragraphs", location)):
            paragraph_location = f"{location}.paragraphs[{number}]"
            context = text_field(paragraph, "context", paragraph_location)
            for index, question in enumerate(records_field(paragraph, "qas", paragraph_location)):
                empty = False
                yield _sample(context, question, f"{paragraph_location}.qas[{index}]", several)
    if empty:
        raise UserError("holds no question", location=path, expected=SHAPE, remedy="check how the file was made")


def load_task(task, data_dir, split):
    """The list of `QA` of a task's split.

    Args:
        task: a `data.question_task.LifelongTask`.
        data_dir: the directory of the tasks' files.
        split: as in `load_samples`.
    """
    return list(read_samples(task, data_dir, split))


def store_task(task, data_dir, split, path=None):
    """The `QA`s of a task's split, accessible by index: a `RowStore`, which does not keep them in memory.

    Args:
        task, data_dir, split: as in `load_task`.
        path: a file to read instead of the task's own.
    """
    rows = _file_samples(path, split) if path else read_samples(task, data_dir, split)
    # Imported here, as converters import this module and need no numpy.
    from versatile.data.row_store import RowStore

    return RowStore((qa.location, qa) for qa in rows)


def read_samples(task, data_dir, split):
    """Yield the `QA`s of a task's split; raises `UserError` after the last one if none has an answer."""
    count, first, answered = 0, None, False
    for qa in task.samples(split, data_dir) if task.pairs else _file_samples(find_file(data_dir, task, split), split):
        count, first = count + 1, first or qa
        answered = answered or any(text.strip() for text in qa.answers)
        yield qa
    # Some blank answers are correct (SQuAD 2.0 has unanswerable questions); if all are blank, they are withheld.
    if count and not answered:
        raise UserError(f"the answers of all questions ({count}) are blank: there is nothing to train on or to score",
                        location=first.location, expected="answers",
                        remedy="name the file with the true answers; they may be withheld in this one")  # fmt: skip


def _file_samples(path, split):
    return read_questions(path, several=split not in ("train", "distil"))


def load_samples(path, split):
    """The list of `QA` of a file; in the splits "train" and "distil", each question must have a single answer."""
    return list(_file_samples(path, split))


def _sample(context, record, location, several):
    question = text_field(record, "question", location)
    if not context.strip() and not question.strip():
        raise UserError("context and question are blank", location=location, expected="a text in one of them",
                        remedy="correct the record, or remove it")  # fmt: skip
    answers = []
    for index, answer in enumerate(records_field(record, "answers", location)):
        answers.append(text_field(answer, "text", f"{location}.answers[{index}]"))
    if len(answers) > 1 and not several:
        raise UserError(f"{len(answers)} answers: {brief(answers)}", location=location,
                        expected="one answer in a training file (in a test file each of several is right)",
                        remedy="keep one, or write a question for each")  # fmt: skip
    name = record.get("id")
    if name is not None and type(name) not in (str, int):
        raise UserError(f"'id' is {brief(name)}", location=location, expected="a text, a whole number or null",
                        remedy="correct the record")  # fmt: skip
    return QA(context, question, tuple(answers) or ("",), name, location)


def save_samples(path, samples):
    """Atomically write `QA`s to a json file, one article each; `read_questions` restores all but `location`."""
    with atomic_write(path) as file:
        file.write('{"data": [')
        for number, qa in enumerate(samples):
            article = as_article(qa.context, qa.question, qa.answers, qa.id)["article"]
            file.write((",\n" if number else "\n") + json.dumps(article, ensure_ascii=False))
        file.write("\n]}\n")


# --- true answers that are more than text -----------------------------------------------------------------


def order_by_id(samples):
    """The positions of the samples sorted by id, the order of `load_turns` and `load_queries`.

    Without ids, the given order is kept.

    Raises:
        UserError: only some samples have an id, or some ids are texts and others numbers.
    """
    for sample in samples:
        if type(sample.id) is not type(samples[0].id):
            raise UserError(f"'id' is {brief(sample.id)}, and that of {samples[0].location} is {brief(samples[0].id)}",
                            location=sample.location, expected="ids of one kind, in a file that is sorted by them",
                            remedy="give every question an id, or none")  # fmt: skip
    positions = range(len(samples))
    return [*positions] if not samples or samples[0].id is None else sorted(positions, key=lambda at: samples[at].id)


def load_turns(path):
    """The list of (turn id, answer) in a woz.en_answers.json: ``[["en_0_0", "food: thai ;"], …]``."""
    turns = []
    for location, item in list_items(path):
        if not isinstance(item, list) or len(item) != 2 or not all(isinstance(part, str) for part in item):
            raise UserError(
                brief(item),
                location=location,
                expected='a turn and its answer: ["en_0_0", "food: thai ;"]',
                remedy="correct the file, or make it again",
            )
        dialogue, _, turn = item[0].rpartition("_")
        if not dialogue or not turn.isascii() or not turn.isdigit():
            raise UserError(
                f"the turn is called {item[0]!r}",
                location=location,
                remedy="correct it, or make the file again",
                expected="a dialogue and the number of its turn, as in en_0_3",
            )
        turns.append(tuple(item))
    return turns


def load_queries(path):
    """The list of ``{"sql": {"sel", "agg", "conds"}, "table": {"header"}, "answer"}`` in a wikisql_answers.json."""
    queries = []
    for location, item in list_items(path):
        sql, header = (_part(item, *keys, location=location) for keys in (("sql",), ("table", "header")))
        if not isinstance(header, list) or not all(name is None or isinstance(name, str) for name in header):
            raise UserError(f"'table.header' is {brief(header)}", location=location, expected="a list of column names",
                            remedy="correct the file, or make it again")  # fmt: skip
        check_sql(sql, len(header), location)
        queries.append({"sql": sql, "table": {"header": header}, "answer": item.get("answer")})
    return queries


def _part(item, *keys, location):
    for key in keys:
        if not isinstance(item, dict) or key not in item:
            raise UserError(
                f"has no {'.'.join(keys)!r}",
                location=location,
                remedy="correct the file, or make it again",
                expected='{"sql": {"sel", "agg", "conds"}, "table": {"header"}, "answer"}',
            )
        item = item[key]
    return item


def check_sql(sql, columns, location):
    """Raise a `UserError` unless `sql` is WikiSQL's ``{"sel", "agg", "conds": [[column, operator, value]]}``.

    Args:
        columns: number of columns in the table.
        location: the location named in the message.
    """

    def below(value, limit):
        return type(value) is int and 0 <= value < limit

    if (
        not isinstance(sql, dict)
        or not below(sql.get("sel"), columns)
        or not below(sql.get("agg"), 6)
        or not isinstance(sql.get("conds"), list)
        or not all(
            isinstance(cond, list) and len(cond) == 3 and below(cond[0], columns) and below(cond[1], 4)
            and type(cond[2]) in (str, int, float)
            for cond in sql["conds"]
        )
    ):  # fmt: skip
        expected = f'{{"sel": column, "agg": 0–5, "conds": [[column, 0–3, value]]}} of a table of {columns} columns'
        raise UserError(f"the query is {brief(sql, 200)}", location=location, expected=expected, remedy="correct it")
