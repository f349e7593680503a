"""squad-woz, -wikisql, -qasrl, -squad1, -squad2: dialogue states, SQL queries and answers."""

import os

from versatile.data.converters.base import (
    SPLITS,
    given_splits,
    json_records,
    parsed,
    skip_bad_flag,
    split_flags,
    split_records,
    tallied,
    usable,
)
from versatile.data.converters.squad_style import sample, squad_format
from versatile.data.files import csv_rows, records_field, text_field, text_lines
from versatile.data.json_files import list_items
from versatile.data.json_text import loads
from versatile.data.question_samples import SHAPE, check_sql
from versatile.data.sql import AGGREGATIONS, KEY_WORDS, OPERATORS, query_text
from versatile.utils.errors import UserError, brief

# --- woz: how a turn changes what is wanted --------------------------------------------------------------


def _woz_flags(parser):
    split_flags(parser, 1, "json file of dialogues, e.g. woz_train_en.json")
    skip_bad_flag(parser, "dialogues")


@squad_format("woz", _woz_flags, "woz.en")
def woz(args, report):
    """WOZ 2.0 (Wen et al. 2017, Mrkšić et al. 2017), English, task woz.en: woz_{train,validate,test}_en.json.

    One question per turn. The context is the system's acts and the user's utterance, the answer the change in the
    state, "food: thai, area: north; phone", or None. With --test, woz.en_answers.json is also written.
    """

    def read(path):
        for count, (record, drops) in enumerate(parsed(_dialogues(path), _turns, args.skip_bad)):
            if record is not None:
                turn, context, answer = record
                # Sorting by id keeps the file's order, which is that of the file of true answers.
                record = sample(context, "What is the change in state?", [answer], count, [turn, answer])
            yield record, drops

    return split_records(given_splits(args), {}, read, report)


def _dialogues(path):
    for number, (location, dialogue) in enumerate(list_items(path)):
        yield location, (number, dialogue)


def _turns(raw, location, drops):
    number, dialogue = raw
    known, questions = [], []
    for index, turn in enumerate(records_field(dialogue, "dialogue", location)):
        turn_location = f"{location}.dialogue[{index}]"
        utterance = usable(text_field(turn, "transcript", turn_location), "'transcript'", turn_location)
        acts = ", ".join(_act(act, turn_location) for act in _list(turn, "system_acts", turn_location))
        constraints, requests = _state(turn, turn_location)
        new = ", ".join(f"{slot}: {value}" for slot, value in constraints if (slot, value) not in known)
        answer = f"{new}; {', '.join(requests)}".strip()
        known = constraints
        context = " ".join((f"{acts} -- {utterance}" if acts else utterance).split())
        questions.append((f"en_{number}_{index}", context, "None" if answer == ";" else answer))
    if not questions:
        drops["dialogues without a turn"] += 1
    return questions


def _list(record, name, location):
    value = record.get(name)
    if not isinstance(value, list):
        raise UserError(f"{name!r} is {brief(value)}", location=location, expected="a list")
    return value


def _act(act, location):
    """A request for a slot, or "slot: value"."""
    parts = act if isinstance(act, list) else [act]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise UserError(f"an act is {brief(act)}", location=location, expected='a slot, or ["slot", "value"]')
    return ": ".join(parts)


def _state(turn, location):
    """([(slot, value)] of the goals, [requested slot]) in a turn's belief state."""
    constraints, requests = [], []
    for item in records_field(turn, "belief_state", location):
        act = text_field(item, "act", location)
        for slot in _list(item, "slots", location):
            if not isinstance(slot, list) or len(slot) != 2 or not all(isinstance(part, str) for part in slot):
                raise UserError(f"a slot is {brief(slot)}", location=location, expected='["slot", "value"]')
            if act == "inform":
                constraints.append(tuple(slot))
            else:
                requests.append(slot[1])
    return constraints, requests


# --- wikisql: a question about a table as a query --------------------------------------------------------


def _wikisql_flags(parser):
    split_flags(parser, 1, "jsonl file of questions, e.g. train.jsonl")
    parser.add_argument("--tables", nargs="+", metavar="FILE", help="jsonl files of the tables (default: next to each "
                        "file of questions, e.g. dev.tables.jsonl for dev.jsonl)")  # fmt: skip
    skip_bad_flag(parser, "lines")


@squad_format("wikisql", _wikisql_flags, "wikisql")
def wikisql(args, report):
    """WikiSQL (Zhong et al. 2017), task wikisql: jsonl files of questions and of their tables.

    The context is the column names, the key words and the question in English; the answer is the query, "SELECT
    COUNT player FROM table WHERE no. > 10". With --test, wikisql_answers.json is also written.
    """

    def read(path):
        headers = _headers(args.tables or [_tables_beside(path)])
        for count, (record, drops) in enumerate(parsed(_json_lines(path), _query(headers), args.skip_bad)):
            if record is not None:
                context, answer, gold = record
                record = sample(context, "What is the translation from English to SQL?", [answer], count, gold)
            yield record, drops

    return split_records(given_splits(args), {}, read, report)


def _tables_beside(path):
    ending = ".jsonl.gz" if path.endswith(".gz") else ".jsonl"
    tables = path.removesuffix(ending) + ".tables.jsonl"
    for candidate in (tables, f"{tables}.gz"):
        if os.path.isfile(candidate):
            return candidate
    raise UserError("no such file", location=tables, expected=f"the tables of {path}",
                    remedy="put it there, or name it with --tables FILE")  # fmt: skip


def _json_lines(path):
    """Yield ("file:line", object) for every line that is not blank; a faulty one is replaced by a `UserError`."""
    for line, text in text_lines(path):
        location = f"{path}:{line}"
        if not text.strip():
            continue
        try:
            value = loads(text, location)
        except UserError as error:
            value = UserError(error.found, location=location, expected="one object per line")
        if not isinstance(value, (dict, UserError)):
            value = UserError(f"is {brief(value)}", location=location, expected="one object per line")
        yield location, value


def _headers(paths):
    """{table id: names of its columns}"""
    headers = {}
    for path in paths:
        for location, table in _json_lines(path):
            if isinstance(table, UserError):
                raise UserError(table.found, location=location, expected=table.expected, remedy="copy the file again")
            header = table.get("header")
            if not isinstance(header, list) or not all(name is None or isinstance(name, str) for name in header):
                raise UserError(f"'header' is {brief(header)}", location=location, expected="a list of column names",
                                remedy="check that this is the file of tables")  # fmt: skip
            headers[text_field(table, "id", location)] = header
    return headers


def _query(headers):
    words = ", ".join([*AGGREGATIONS[1:], *OPERATORS, *KEY_WORDS])

    def parse(record, location, drops):
        question_text = usable(text_field(record, "question", location), "'question'", location)
        table = text_field(record, "table_id", location)
        if table not in headers:
            raise UserError(f"no table {table!r}", location=location, expected="a table in the table files",
                            remedy="name the right files with --tables FILE")  # fmt: skip
        header, sql = headers[table], record.get("sql")
        check_sql(sql, len(header), location)
        if any(header[column] is None for column in (sql["sel"], *(cond[0] for cond in sql["conds"]))):
            raise UserError("the query is about a column without a name", location=location, expected="named columns")
        columns = ", ".join(name for name in header if name is not None)
        answer = query_text(sql, header)
        gold = {"sql": {key: sql[key] for key in ("sel", "conds", "agg")}, "table": {"header": header, "id": table},
                "answer": answer}  # fmt: skip
        # No space before the dashes, as in decaNLP.
        return (f"The table has columns {columns} and key words {words}-- {question_text}", answer, gold)

    return parse


# --- qasrl: who did what to whom -------------------------------------------------------------------------


def _qasrl_flags(parser):
    for split in SPLITS:
        parser.add_argument(f"--{split}", nargs=2, metavar=("QUESTIONS", "SENTENCES"),
                            help=f"csv file of questions and csv file of their sentences, e.g. wikinews.dev.gold.csv "
                                 f"wikinews.dev.full.csv (default: none, and no {split} split)")  # fmt: skip
    skip_bad_flag(parser, "rows")


@squad_format("qasrl", _qasrl_flags, "srl")
def qasrl(args, report):
    """QA-SRL, task srl: csv files of questions and of sentences, as in the Gold Standard (Roit et al. 2020).

    The context is the unchanged, tokenised sentence. Train has the first of several answers, valid and test have all.
    Redundant questions are dropped. decaNLP's QA-SRL 1.0 has other files.
    """

    def read(split):
        questions, sentences = getattr(args, split)
        remedy = "the questions come first (….gold.csv), then the sentences (….full.csv)"
        known = {}
        for _, row in csv_rows(sentences, ("qasrl_id", "sentence"), remedy):
            if isinstance(row, UserError):
                raise row
            known[row["qasrl_id"]] = row["sentence"]

        def parse(row, location, drops):
            if row.get("is_redundant", "").lower() == "true":
                drops["redundant"] += 1
                return None
            if row["qasrl_id"] not in known:
                raise UserError(f"no sentence {row['qasrl_id']!r}", location=location, expected=f"one of {sentences}")
            context = usable(known[row["qasrl_id"]], "the sentence", location)
            answers = list(dict.fromkeys(usable(text, "an answer", location) for text in row["answer"].split("~!~")))
            answers = answers[:1] if split == "train" else answers
            return sample(context, usable(row["question"], "the question", location), answers)

        rows = csv_rows(questions, ("qasrl_id", "question", "answer"), remedy)
        return parsed(rows, parse, args.skip_bad)

    return split_records({split: split for split in given_splits(args)}, {}, read, report)


# --- squad1, squad2: copied as they are ------------------------------------------------------------------


def _squad_flags(parser):
    split_flags(parser, 1, "SQuAD json file", splits=("train", "valid"))
    skip_bad_flag(parser, "articles")


def _register(name, version):
    def read(args, report):
        def articles(split):
            def parse(article, location, drops):
                _check(article, location, version, split == "train")
                return {"article": article, "gold": None}

            return parsed(json_records(getattr(args, split), "data", SHAPE), parse, args.skip_bad)

        report.unit = "article"
        splits = split_records({split: split for split in given_splits(args)}, {}, articles, report)
        return tallied(splits, report, "questions", _questions)

    read.__doc__ = f"""SQuAD {version}, task {name}: the json files as they are, article by article, checked.

    Every answer must stand where its answer_start says, and a training question has at most one. The test split is the
    valid one.
    """
    return squad_format(name, _squad_flags, name)(read)


_register("squad1", "1.1")
_register("squad2", "2.0")


def _questions(record):
    return sum(len(paragraph["qas"]) for paragraph in record["article"]["paragraphs"])


def _check(article, location, version, train):
    """Raise a `UserError` unless every question of an article can be learned from."""
    for number, paragraph in enumerate(records_field(article, "paragraphs", location)):
        paragraph_location = f"{location}.paragraphs[{number}]"
        context = text_field(paragraph, "context", paragraph_location)
        usable(context, "'context'", paragraph_location)
        for index, question in enumerate(records_field(paragraph, "qas", paragraph_location)):
            question_location = f"{paragraph_location}.qas[{index}]"
            usable(text_field(question, "question", question_location), "'question'", question_location)
            answers = records_field(question, "answers", question_location)
            if (not answers and version == "1.1") or (len(answers) > 1 and train):
                raise UserError(f"{len(answers)} answers", location=question_location,
                                expected="one, to learn from" if train else "at least one in SQuAD 1.1")  # fmt: skip
            for answer in answers:
                text, start = text_field(answer, "text", question_location), answer.get("answer_start")
                usable(text, "an answer", question_location)
                if start is not None and (type(start) is not int or start < 0 or not context.startswith(text, start)):
                    raise UserError(f"the answer {brief(text)} does not begin at {brief(start)} in the context",
                                    location=question_location,
                                    expected="the position where it begins, in characters")  # fmt: skip
