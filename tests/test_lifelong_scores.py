"""data.question_scores, lifelong.sql and lifelong.matrix: every score, and the results of a sequence of tasks.

python -m pytest tests/test_lifelong_scores.py
"""

import copy
import itertools
import json
import math
import random
import statistics

import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.data import question_scores as scores
from versatile.data import question_tasks as tasks
from versatile.data import sql
from versatile.data.question_samples import QA
from versatile.lifelong import matrix
from versatile.lifelong.matrix import Matrix
from versatile.utils.errors import UserError
from versatile.utils.metrics import Score
from versatile.utils.qa_metrics import words

THEIRS = json.loads((GOLDEN / "l2kd" / "metrics.json").read_text(encoding="utf-8"))
SETTINGS = settings(deadline=None, max_examples=80)


def values(found):
    assert all(isinstance(score, Score) and score.signature for score in found.values())
    return {name: score.value for name, score in found.items()}


def samples(groups, ids=None):
    ids = ids or [None] * len(groups)
    return [QA("c", "q", tuple(group), name, f"f[{at}]") for at, (group, name) in enumerate(zip(groups, ids))]


def error(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    assert caught.value.expected
    return str(caught.value)


# --- parity with the originals ---------------------------------------------------------------------------


def test_texts_score_as_in_the_original():
    assert [" ".join(words(text)) for text, _ in THEIRS["normalize"]] == [text for _, text in THEIRS["normalize"]]
    answers, groups = map(list, zip(*THEIRS["pairs"]))
    for name, metric in (("sst", "compute_metrics_plain"), ("zre", "compute_metrics_corpus_f1")):
        got = scores.score(tasks.get_task(name), answers, samples(groups))
        assert values(got) == pytest.approx(THEIRS[metric], abs=1e-9)
    for key, name in (("EM", "em"), ("nEM", "nem"), ("nF1", "nf1")):
        assert values(got)[name] == pytest.approx(THEIRS[key], abs=1e-9)


def test_dialogues_score_as_in_the_original():
    answers, turns = map(list, zip(*THEIRS["dialogue_items"]))
    order = list(range(len(turns)))
    for seed in (None, 1, 2):
        if seed:
            random.Random(seed).shuffle(order)
        # The true answers are in the order of the ids, the samples in any order.
        asked = samples([[turns[at][1]] for at in order], order)
        got = scores.score(tasks.get_task("woz.en"), [answers[at] for at in order], asked, turns)
        assert values(got) == pytest.approx(THEIRS["compute_metrics_dialogue"], abs=1e-9)


def test_changes_of_a_state_are_read_as_in_the_original():
    for answer, theirs in THEIRS["to_delta_state"]:
        goals, requests = scores._changes(answer)
        assert goals == theirs["inform"]
        assert requests == (theirs["request"] or None)


def test_bleu_is_the_originals():
    answers, groups = THEIRS["bleu_pairs"]
    got = scores.bleu(answers, groups)
    assert got.value == pytest.approx(THEIRS["bleu"], abs=1e-9)
    assert "case:lc" in got.signature
    assert values(scores.score(tasks.get_task("iwslt.en.de"), answers, samples(groups)))["bleu"] == got.value


# Upper-case WHERE loses its conditions in the original, and text without SELECT counts as a query there.
FAULTS = {"SELECT Nationality FROM table WHERE Player = terrence ross": (2, 0, ((0, 0, "terrenceross"),)),
          "nonsense output": None, "": None}  # fmt: skip


def test_queries_are_read_as_in_the_original_but_for_its_faults():
    for item in THEIRS["to_lf"]:
        theirs = item["result"]
        if item["text"] in FAULTS:
            expected = FAULTS[item["text"]]
        elif "error" in theirs:
            expected = None
        else:
            expected = (theirs["sel"], theirs["agg"], tuple(map(tuple, theirs["conds"])))
        assert sql.parse_query(item["text"], item["table"]["header"]) == expected


def test_lfem_is_the_originals_but_for_its_faults_and_leaves_the_true_queries_alone():
    each = [100.0 if item["text"].startswith("SELECT") else theirs
            for item, theirs in zip(THEIRS["to_lf"], THEIRS["lfem_each"])]  # fmt: skip
    assert each.count(100) == THEIRS["lfem_each"].count(100) + 1
    queries = [{"sql": item["gold"], "table": item["table"]} for item in THEIRS["to_lf"]]
    before = copy.deepcopy(queries)
    texts = [item["text"] for item in THEIRS["to_lf"]]
    assert [scores.lfem([text], [query]).value for text, query in zip(texts, queries)] == each
    assert scores.lfem(texts, queries).value == pytest.approx(statistics.mean(each))
    assert queries == before


# --- answers ---------------------------------------------------------------------------------------------


def test_no_answer_is_right_where_there_is_none():
    got = values(scores.score(tasks.get_task("squad2"), ["", "the", "x"], samples([[""], [""], [""]])))
    assert got == pytest.approx({"em": 100 / 3, "nf1": 200 / 3, "nem": 200 / 3})


def test_empty_true_answers_make_empty_answers_unanswerable():
    got = values(scores.corpus_f1(["", "Unanswerable.", "a cat", "", "dog"], [[""], [""], ["cat"], ["dog"], [""]]))
    # Two of five are answered, one of them correctly; two are answerable.
    assert got == {"precision": 50, "recall": 50, "corpus_f1": 50}
    nothing = values(scores.corpus_f1(["unanswerable"], [["unanswerable"]]))
    assert nothing == {"precision": 0, "recall": 0, "corpus_f1": 0}


def test_rouge_takes_the_best_answer_and_the_order_of_sentences_does_not_count():
    task = tasks.get_task("rnnlg.hotel")
    got = scores.score(task, ["The cats sat. A dog ran."], samples([["no", "a dog ran. the cat sat."]]))
    # "cats" and "cat" have one stem; of ten two-word sequences only the one across the full stop is lost.
    assert values(got)["rouge1"] == 100
    assert values(got)["rougeL"] == 100
    assert 60 < values(got)["rouge2"] < 100
    parts = [values(got)[name] for name in ("rouge1", "rouge2", "rougeL")]
    assert values(got)["avg_rouge"] == pytest.approx(statistics.mean(parts))
    assert "scale:0-100" in got["rouge1"].signature
    assert "sentences:full-stop" in got["avg_rouge"].signature
    assert values(scores.rouge(["", "."], [["x"], ["."]]))["avg_rouge"] == 0


def test_every_task_has_the_score_that_stands_for_it():
    turns, queries = [("en_0_0", "food: thai;")], [{"sql": {"sel": 0, "agg": 0, "conds": []}, "answer": None,
                                                    "table": {"header": ["a"]}}]  # fmt: skip
    for name, task in tasks.TASKS.items():
        gold = {"woz.en": turns, "wikisql": queries}.get(name)
        answer = {"woz.en": "food: thai;", "wikisql": "select A from table"}.get(name, "a cat sat on the mat")
        got = scores.score(task, [answer], samples([[answer]]), gold)
        assert values(got)[task.metric] == pytest.approx(100)
        assert {"em", "nf1", "nem"} <= set(got)
        json.dumps(values(got))


def test_the_tenth_turn_comes_after_the_second():
    turns = [(f"en_0_{at}", f"food: f{at};") for at in range(11)]
    answers = [answer for _, answer in turns]
    answers[1] = "None"  # Wrong once; the next turn puts it right. As text, "en_0_10" would stand before "en_0_2".
    assert values(scores.dialogue(answers, turns))["joint_goal_em"] == pytest.approx(100 * 10 / 11)
    wrong = [*answers[:10], "food: x;"]
    assert values(scores.dialogue(wrong, turns))["joint_goal_em"] == pytest.approx(100 * 9 / 11)


def test_dialogues_do_not_mix():
    turns = [("en_1_0", "food: a;"), ("en_0_0", "area: b;"), ("en_0_1", "None"), ("en_1_1", "None")]
    got = values(scores.dialogue(["food: x;", "area: b;", "None", "None"], turns))
    assert got == {"joint_goal_em": 50, "turn_goal_em": 75, "turn_request_em": 100, "avg_dialogue": 75}


def test_true_answers_of_another_file_are_refused():
    task = tasks.get_task("woz.en")
    turns = [(f"en_0_{at}", f"food: f{at};") for at in range(4)]
    groups = [[answer] for _, answer in turns]
    answers = [answer for _, answer in turns]
    assert values(scores.score(task, answers, samples(groups), turns))["joint_goal_em"] == 100
    message = error(scores.score, task, answers, samples(groups), turns[::-1])
    assert message.startswith("woz.en_answers.json: 4 of its 4 answers are not those of the questions")
    assert "has 3 items, and there are 4 questions" in error(scores.score, task, answers, samples(groups), turns[:3])
    assert "there is none" in error(scores.score, task, answers, samples(groups))
    assert "4 outputs, but" in error(scores.score, task, answers, samples(groups[:3]), turns)


# --- queries ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "form"), [
    ("select max goals", (0, 1, ())),
    ("SELECT MAX Goals FROM table", (0, 1, ())),
    ("select team name from table WHERE goals > 3", (1, 0, ((0, 1, "3"),))),
    ("select team name where goals > 3", (1, 0, ((0, 1, "3"),))),
    ("select teamname from table where team name = and so", (1, 0, ((1, 0, "andso"),))),
    ("select team from table where team = x and team name = y", (2, 0, ((2, 0, "x"), (1, 0, "y")))),
    ("select team from table where team < x and goals op 1", (2, 0, ((2, 2, "x"), (0, 3, "1")))),
    ("select team from table where goals =", (2, 0, ((0, 0, ""),))),
    ("select tem from table", (2, 0, ())),
    ("select count", None),
    ("select from table", None),
    ("select max from table", None),
    ("select team from table where", (2, 0, ())),
    ("select team from table where points = 3", (2, 0, ((0, 0, "3"),))),
    ("select team from table where goals = 1 team = x", None),
    ("team from table", None),
    ("select", None),
])  # fmt: skip
def test_queries_are_read(text, form):
    assert sql.parse_query(text, ["Goals", "Team name", "Team", None, " "]) == form


def test_a_table_without_names_has_no_queries():
    assert sql.parse_query("select x from table where y = 1", [None, ""]) is None


def test_columns_of_one_name_are_one():
    header = ["Year", "Team", "year"]
    assert sql.is_right("select year from table", {"sel": 2, "agg": 0, "conds": []}, header)
    assert sql.is_right("select team from table where year = 1", {"sel": 1, "agg": 0, "conds": [[2, 0, 1]]}, header)
    assert not sql.is_right("select team from table where year = 1", {"sel": 1, "agg": 0, "conds": [[2, 1, 1]]}, header)


NAMES = st.text("abc .and=(max)where", min_size=1, max_size=9).filter(str.strip)
CONDITIONS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), NAMES | st.integers() | st.just(2.5)), max_size=3)


@SETTINGS
@given(st.lists(NAMES, min_size=4, max_size=4), st.integers(0, 3), st.integers(0, 5), CONDITIONS, st.booleans())
def test_a_query_written_out_is_right_in_any_letter_case(header, column, aggregation, conditions, upper):
    query = {"sel": column, "agg": aggregation, "conds": [list(condition) for condition in conditions]}
    text = sql.query_text(query, header)
    assert sql.is_right(text.upper() if upper else text.lower(), query, header)


@SETTINGS
@given(st.text("selctfrom tablwh=>and maxgo123", max_size=40), st.lists(NAMES, max_size=3))
def test_no_text_breaks_the_reader(text, header):
    for each in (text, f"select {text}", f"select {text} from table where {text}"):
        found = sql.parse_query(each, header)
        assert found is None or 0 <= found[0] < len(header)


# --- the matrix ------------------------------------------------------------------------------------------

ABC = ["a", "b", "c"]
FULL = Matrix(ABC, [[80, 20, 10], [70, 90, 30], [60, 85, 95]], [5, 10, 15], ["em", "em", "lfem"])


def test_the_numbers_are_those_of_the_papers():
    assert matrix.average_accuracy(FULL) == (60 + 85 + 95) / 3
    assert matrix.backward_transfer(FULL) == ((60 - 80) + (85 - 90)) / 2
    assert matrix.forward_transfer(FULL) == ((20 - 10) + (30 - 15)) / 2
    assert matrix.forgetting(FULL) == ((80 - 60) + (90 - 85)) / 2
    # A task that got better before it got worse: forgetting counts from its best, backward transfer from its first.
    later = Matrix(ABC, [[80, None, None], [88, 90, None], [60, 95, 95]])
    assert matrix.forgetting(later) == ((88 - 60) + (90 - 95)) / 2
    assert matrix.backward_transfer(later) == ((60 - 80) + (95 - 90)) / 2
    assert matrix.forward_transfer(later) is None


def test_what_was_not_scored_makes_no_number():
    gap = Matrix(ABC, [[80, None, None], [70, float("nan"), None], [60, 85, 95]])
    assert gap.rows[1][1] is None
    assert matrix.average_accuracy(gap) == 80
    assert matrix.backward_transfer(gap) is matrix.forgetting(gap) is None
    one = Matrix(["a"], [[70]])
    assert matrix.average_accuracy(one) == 70
    assert [number(one) for number in list(matrix.NUMBERS.values())[1:]] == [None] * 3
    assert matrix.average_accuracy(Matrix(["a"], [[None]])) is None


@pytest.mark.parametrize("arguments", [
    (ABC, [[1, 2, 3]] * 2), (ABC, [[1, 2]] * 3), ([], []), (["a", "a"], [[1, 2]] * 2), (["a"], [["x"]]),
    (["a"], [[True]]), (["a"], [[1]], [1, 2]), (["a"], [[1]], [1], ["em", "em"]),
])  # fmt: skip
def test_a_matrix_of_the_wrong_shape_is_refused(arguments):
    assert error(Matrix, *arguments)


NUMBER = st.floats(0, 100)


@st.composite
def runs(draw):
    number, size = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    names = [f"t{at}" for at in range(size)]
    row = st.lists(NUMBER | st.none(), min_size=size, max_size=size)
    return [Matrix(names, draw(st.lists(row, min_size=size, max_size=size))) for _ in range(number)]


@SETTINGS
@given(runs())
def test_a_summary_of_any_runs_is_json_and_a_table(found):
    summary = json.loads(json.dumps(matrix.summary(found, seeds=list(range(len(found)))), allow_nan=False))
    size = len(found[0].tasks)
    assert len(summary["runs"]) == len(found)
    for i, j in itertools.product(range(size), repeat=2):
        cell, mean, sd = [run.rows[i][j] for run in found], *(summary[of]["rows"][i][j] for of in ("mean", "sd"))
        if None in cell:
            assert mean is sd is None
        else:
            assert mean == pytest.approx(statistics.mean(cell))
            assert sd is None if len(cell) == 1 else sd == pytest.approx(statistics.stdev(cell), abs=1e-6)
    lines = matrix.markdown(found).split("\n")
    assert len(lines) == size + 11
    assert all(line.count("|") == size + 2 for line in lines[: size + 2])


def test_over_seeds_is_the_mean_and_the_deviation_of_a_sample():
    assert matrix.over_seeds([50.0, 53.0, 56.0]) == (53, 3)
    assert matrix.over_seeds([50.0]) == (50, None)
    assert matrix.over_seeds([50.0, None]) == matrix.over_seeds([]) == (None, None)


def test_the_markdown_is_a_table_of_scores_and_a_table_of_numbers():
    other = Matrix(ABC, [[82, 22, 12], [72, 92, 32], [62, 87, 97]], [5, 10, 15], ["em", "em", "lfem"])
    assert matrix.markdown([FULL]).split("\n") == [
        "| after | a (em) | b (em) | c (lfem) |", "|---|---:|---:|---:|", "| a | 80.0 | 20.0 | 10.0 |",
        "| b | 70.0 | 90.0 | 30.0 |", "| c | 60.0 | 85.0 | 95.0 |", "",
        "| average accuracy | backward transfer | forward transfer | forgetting |", "|---:|---:|---:|---:|",
        "| 80.0 | −12.5 | 12.5 | 12.5 |", "",
        "| AP | F.Ra | FWT (SAPT) | BWT (SAPT) |", "|---:|---:|---:|---:|",
        "| 80.0 | 12.5 | – | −8.3 |", ""]  # fmt: skip
    assert "| c | 61.0 ± 1.4 | 86.0 ± 1.4 | 96.0 ± 1.4 |" in matrix.markdown([FULL, other])


def test_runs_of_different_sequences_are_not_summarised():
    other = Matrix(["b", "a", "c"], FULL.rows, FULL.before, FULL.metrics)
    assert "runs of ['a', 'b', 'c'] and of ['b', 'a', 'c']" in error(matrix.summary, [FULL, other])
    assert error(matrix.summary, [])


def test_the_heat_map_is_a_picture(tmp_path):
    one = Matrix(ABC, [[80, None, None], [70, 90, None], [math.nan, 85, 100]], None, ["em", "em", "lfem"])
    for name, found in (("one.png", [one]), ("full.png", [FULL, FULL]), ("single.png", [Matrix(["a"], [[3]])])):
        matrix.heat_map(tmp_path / "new" / name, found, "a title")
        content = (tmp_path / "new" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["full.png", "one.png", "single.png"]


@pytest.mark.parametrize("text, conditions", [
    ("select year from table where home teams = ajax", ((0, 0, "ajax"),)),
    ("select year from table where year > 3 and home teams = new york", ((1, 1, "3"), (0, 0, "newyork"))),
    ("select year from table where hometeam < 3 and yaer = 1990", ((0, 2, "3"), (1, 0, "1990"))),
    ("select year from table where home team = rock and roll", ((0, 0, "rockandroll"),)),
    ("select year from table where nothing", None),
])  # fmt: skip
def test_a_conditions_column_is_the_most_similar_one(text, conditions):
    found = sql.parse_query(text, ["Home team", "Year"])
    assert found == (None if conditions is None else (1, 0, conditions))


def test_the_strict_logical_form_takes_no_similar_column():
    query = {"sql": {"sel": 1, "agg": 0, "conds": [[0, 0, "Ajax"]]}, "table": {"header": ["Home team", "Year"]}}
    texts = ["SELECT Year FROM table WHERE home team = ajax", "SELECT Year FROM table WHERE home teams = ajax",
             "SELECT Years FROM table WHERE home team = ajax"]  # fmt: skip
    assert [scores.lfem([text], [query]).value for text in texts] == [100, 100, 100]
    assert [scores.lfem([text], [query], strict=True).value for text in texts] == [100, 0, 0]
    assert scores.lfem(texts, [query] * 3, strict=True).signature.split("|")[3] == "column:exact"
