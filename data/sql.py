"""WikiSQL's queries (Zhong et al. 2017): writing them as text, and parsing the text a model wrote.

The logical form of a query is ``(selected column, aggregation, ((column, operator, value), …))``.
"""

import re

AGGREGATIONS = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<", "OP")
# The words that decaNLP's contexts list after the aggregations and operators.
KEY_WORDS = ("SELECT", "WHERE", "AND", "COL", "TABLE", "CAPTION", "PAGE", "SECTION", "OP", "COND", "QUESTION", "AGG",
             "AGGOPS", "CONDOPS")  # fmt: skip


def query_text(sql, header):
    """``SELECT MAX goals FROM table WHERE team = Ajax AND year > 1990``, as decaNLP writes a query.

    Args:
        sql: ``{"sel": column, "agg": aggregation, "conds": [[column, operator, value], …]}``; all but the values are
            numbers.
        header: the names of the table's columns.
    """
    text = f"SELECT {AGGREGATIONS[sql['agg']]} {header[sql['sel']]} FROM table"
    if sql["conds"]:
        conditions = (f"{header[column]} {OPERATORS[operator]} {value}" for column, operator, value in sql["conds"])
        text += " WHERE " + " AND ".join(conditions)
    return " ".join(text.split())


def gold_form(sql, header):
    """The logical form of a true query; `sql` is not modified (the original's scoring lower-cases it in place)."""
    same = _canonical(header)
    conditions = tuple((same[column], operator, _key(value)) for column, operator, value in sql["conds"])
    return same[sql["sel"]], sql["agg"], conditions


def is_right(text, sql, header, strict=False):
    """Whether a model's text is the query `sql`: it has the same text or the same logical form.

    Args:
        strict: see `parse_query`.
    """
    # Some queries are ambiguous as text: a column may be called "max goals" or "born where".
    return _key(text) == _key(query_text(sql, header)) or parse_query(text, header, strict) == gold_form(sql, header)


def parse_query(text, header, strict=False):
    """The logical form of a query a model wrote, or None if it is not a query.

    As in the original, letter case and white space never matter, and a selected or condition column that the table does
    not have is replaced by the most similar one (longest common subsequence over the length of the longer name). Unlike
    the original, ``WHERE`` is also recognised in upper case, ``FROM table`` may be missing, columns with the same name
    are equal, "and" separates conditions only as a whole word, and text that does not begin with ``SELECT`` is not a
    query.

    Args:
        strict: column names must match the table's; the most similar one is not used.
    """
    words = text.lower().split()
    if len(words) < 2 or words[0] != "select":
        return None
    body, end, where = f" {' '.join(words[1:])} ".partition(" from table where ")
    if not end:
        body, _, where = body.partition(" where ")
        body = body.rstrip().removesuffix(" from table")
    columns = _columns(header)
    selected, aggregation = _selected(body.strip(), columns, strict)
    conditions = _conditions(where.strip(), columns, strict) if where.strip() else ()
    return None if selected is None or conditions is None else (selected, aggregation, conditions)


def _key(value):
    """The part of a name or value that is compared: its text in lower case, without white space."""
    return "".join(str(value).lower().split())


def _canonical(header):
    """For each column, the index of the first one with the same name."""
    first = {}
    return [first.setdefault(_key(name), number) for number, name in enumerate(header)]


def _columns(header):
    """{key of a name: index of its first column}, without nameless columns."""
    columns = {}
    for number, name in enumerate(header):
        if name is not None and _key(name):
            columns.setdefault(_key(name), number)
    return columns


def _selected(body, columns, strict):
    """(column, aggregation) of the text between SELECT and FROM; column is None if there is none."""
    if _key(body) in columns:
        return columns[_key(body)], 0
    first, _, rest = body.partition(" ")
    operations = {name.lower(): number for number, name in enumerate(AGGREGATIONS) if name}
    aggregation = operations.get(first, 0)
    name = _key(rest if aggregation else body)
    if not name or not columns or (strict and name not in columns):
        return None, aggregation
    return columns[_most_similar(name, columns)], aggregation


def _most_similar(name, columns):
    # The originals' order: among equally similar ones, the longest.
    return max(sorted(columns, key=len, reverse=True), key=lambda column: _similarity(name, column))


def _similarity(a, b):
    """Length of the longest common subsequence / length of the longer text, 0–1; as in the original, ties are broken by
    the longest common substring, then by the shorter text."""
    row = [0] * (len(b) + 1)
    run, longest = [0] * (len(b) + 1), 0
    for x in a:
        diagonal, run = 0, [0, *(run[j] + 1 if x == y else 0 for j, y in enumerate(b))]
        longest = max(longest, *run)
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1] / max(len(a), len(b)) + longest / 1e4 - min(len(a), len(b)) / 1e8


def _conditions(where, columns, strict):
    """The conditions of a WHERE clause, in order, or None if it cannot be parsed."""
    exact = _exact_conditions(where, columns)
    if strict and not exact:
        return None
    if exact and (strict or not any(re.search(r"\sand\s.*\s[=><]\s", value) for _, _, value in exact)):
        return tuple((column, operator, _key(value)) for column, operator, value in exact)
    return _similar_conditions(where, columns)


def _similar_conditions(where, columns):
    """As `_conditions`, with each column the table's most similar one to the text before an operator."""
    pieces = re.split(r"(?:(?<=\s)|^)([=><])(?=\s|$)", where)
    if len(pieces) < 3 or not columns:
        return None
    texts, operators, conditions = pieces[::2], pieces[1::2], []
    name = texts[0]
    for number, (operator, text) in enumerate(zip(operators, texts[1:]), start=1):
        value, following = text, ""
        if number < len(operators):
            value, separator, following = f" {text} ".rpartition(" and ")
            if not separator:
                return None
        if not _key(name):
            return None
        column = columns[_most_similar(_key(name), columns)]
        conditions.append((column, OPERATORS.index(operator), _key(value)))
        name = following
    return tuple(conditions)


def _exact_conditions(where, columns):
    """(column, operator, value's text) of conditions that name the table's columns, or None if they do not."""
    # White space within a name may differ from the header's: any is allowed between its characters.
    # Longer names come first, or "team" would be found in "team name".
    names = sorted(columns, key=len, reverse=True)
    if not names:
        return None
    choice = "|".join(r"\s*".join(map(re.escape, name)) for name in names)
    operators = "|".join(re.escape(operator.lower()) for operator in OPERATORS)
    matches = list(re.finditer(rf"(?:(?<=\s)|^)({choice})\s+({operators})(?=\s|$)", where))
    if not matches or where[: matches[0].start()].strip():
        return None
    conditions = []
    for match, following in zip(matches, [*matches[1:], None]):
        value = where[match.end() : following.start() if following else None].split()
        if following:
            if not value or value[-1] != "and":
                return None
            value = value[:-1]
        operator = OPERATORS.index(match[2].upper())
        conditions.append((columns[_key(match[1])], operator, " ".join(value)))
    return conditions
