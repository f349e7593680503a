"""python -m pytest tests/test_table.py"""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from versatile.utils import result_charts, table
from versatile.utils.errors import UserError

ADAPTER = {"adapters": 2_000, "task_rows": 500, "backbone": 0, "total": 100_000}
WHOLE = {"adapters": 0, "task_rows": 500, "backbone": 100_000, "total": 100_000}


def summary(task="nlg", method="adapter", value=67.123, **more):
    """The output of an evaluation for one task."""
    name = {"nlg": "BLEU", "summarization": "rougeLsum"}.get(task, "F1")
    scores = {name: {"score": value, "signature": "nrefs:1|case:lc"}, "PPL": {"score": 3.5, "signature": "tokens:9"}}
    parameters = WHOLE if method == "finetune" else ADAPTER
    return {"task": task, "method": method, "scores": scores, "headline": name, "instances": 60, "split": "test",
            "checkpoint": f"runs/{method}_{task}", "backbone": "smollm2", "parameters": parameters} | more  # fmt: skip


def write(path, content, age=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    return path


def rows(text, heading="# Results"):
    """{first cell: the other cells} of the table under a heading."""
    block = text.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("|")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def made(*locations):
    return table.markdown(table.Cells(table.collect(locations)[0]))


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    write(folder / "a" / "metrics.json", summary())
    write(folder / "b" / "metrics.json", summary(method="finetune", value=70.5))
    write(folder / "c" / "metrics.json", summary("summarization", "adapter+distillation", 0.3127))
    for task, value in (("nlg", 66.0), ("qa", 60.25)):
        write(folder / "vlm" / f"{task}_metrics.json", summary(task, "combined", value, checkpoint="runs/vlm"))
    both = {task: summary(task, "multi-task", value) for task, value in (("nlg", 65.0), ("qa", 61.0))}
    write(folder / "multi" / "metrics.json", {"checkpoint": "runs/m", "tasks": both})
    return folder


def test_the_table_has_a_row_a_task_and_a_column_a_method(results):
    text = made(results)
    assert text.startswith("# Results\n\nBackbone: smollm2.\n") and "\n[1]" not in text
    found = rows(text)
    assert found["task"] == ["score", "fine-tune", "adapter", "adapter + distillation", "multi-task", "combined"]
    assert found["nlg (test, 60 instances)"] == ["BLEU", "**70.50**", "67.12", "–", "65.00", "66.00"]
    assert found["qa (test, 60 instances)"] == ["F1", "–", "–", "–", "**61.00**", "60.25"]
    assert found["summarization (test, 60 instances)"] == ["rougeLsum", "–", "–", "0.313", "–", "–"]
    assert len(rows(text, "## All scores")) == 2 + 3  # the head, the rule, a row (the last of two) each task


def test_parameters_are_counted_once_a_model(results):
    found = rows(made(results), "## Trained parameters")
    assert found["method"] == ["nlg", "qa", "summarization", "together"]
    assert found["fine-tune"] == ["100,500 (100.50 %)", "–", "–", "100,500 (100.50 %)"]
    assert found["adapter"] == ["2,500 (2.50 %)", "–", "–", "2,500 (2.50 %)"]
    assert found["combined"] == ["shared", "shared", "–", "2,500 (2.50 %)"]
    assert found["multi-task"] == ["2,500 (2.50 %)", "2,500 (2.50 %)", "–", "5,000 (5.00 %)"]  # their own checkpoints


def test_every_signature_stands_under_the_table(results):
    write(results / "a" / "metrics.json", summary(scores={"BLEU": {"score": 1.5, "signature": "nrefs:7"}}))
    legend = made(results).split("## How the scores were computed")[1]
    assert "- BLEU – nlg (fine-tune, multi-task, combined): `nrefs:1|case:lc`\n" in legend
    assert "- BLEU – nlg (adapter): `nrefs:7`" in legend
    assert "- PPL – nlg, qa, summarization: `tokens:9`" in legend


def test_other_methods_get_their_own_columns_behind_the_papers(tmp_path):
    write(tmp_path / "u" / "metrics.json", summary(method="untrained", value=0.5))
    write(tmp_path / "w" / "metrics.json", summary(method="word-distillation"))
    assert rows(made(tmp_path))["task"][-2:] == ["untrained", "word distillation"]
    # The paper's columns appear where there is a result, first and in the paper's order.
    assert "combined" not in made(tmp_path)
    for method in ("combined", "adapter+word-distillation", "adapter"):
        write(tmp_path / method / "metrics.json", summary(method=method))
    expected = ["score", "adapter", "adapter + word distillation", "combined", "untrained", "word distillation"]
    assert rows(made(tmp_path))["task"] == expected


def test_outputs_of_beams_have_a_column_beside_the_greedy_ones(tmp_path):
    write(tmp_path / "a" / "metrics.json", summary(decoding={"num_beams": 1}))
    write(tmp_path / "b" / "metrics.json", summary(value=68.5, decoding={"num_beams": 4}))
    write(tmp_path / "c" / "metrics.json", summary(method="lora", value=1, decoding=None))
    found = rows(made(tmp_path))
    assert found["task"][-3:] == ["adapter", "adapter, 4 beams", "lora"] and "[1]" not in made(tmp_path)
    assert found["nlg (test, 60 instances)"][-2:] == ["**68.50**", "1.00"]
    assert table.label("hyperformer++") == "hyperformer++" and table.label("lora+distillation") == "lora + distillation"


def test_a_file_without_a_method_is_told_by_its_parameters(tmp_path):
    for name, parameters in (("old", WHOLE), ("older", ADAPTER)):
        content = summary(parameters=parameters)
        write(tmp_path / name / "metrics.json", {k: v for k, v in content.items() if k not in ("method", "headline")})
    found = rows(made(tmp_path))["nlg (test, 60 instances)"]
    assert found[:3] == ["BLEU", "**67.12**", "**67.12**"]


def test_the_newest_of_two_results_wins_and_a_note_says_so(tmp_path):
    old = write(tmp_path / "z" / "metrics.json", summary(value=10.0), age=86_400)
    new = write(tmp_path / "a" / "metrics.json", summary(value=20.0))
    text = made(tmp_path)
    assert rows(text)["nlg (test, 60 instances)"][1] == "20.00 [1]"
    note = next(line for line in text.splitlines() if line.startswith("[1] "))
    assert "nlg, adapter: the newest of 2 results" in note and note.index(str(new)) < note.index(f"not {old}")


def test_the_same_result_in_two_files_is_no_news(tmp_path):
    write(tmp_path / "nlg_metrics.json", summary())
    write(tmp_path / "metrics.json", {"tasks": {"nlg": summary()}}, age=60)
    assert "newest" not in made(tmp_path)
    assert len(table.find([tmp_path, tmp_path / "metrics.json", tmp_path])) == 2


@pytest.mark.parametrize(
    ("key", "value", "note"),
    [
        ("instances", 12, "nlg, combined: 12 instances; the others: 60"),
        ("split", "valid", "nlg, combined: valid split; the others: test"),
        ("backbone", "gpt2", "nlg, combined: backbone gpt2; the others: smollm2"),
        ("dataset_path", "b.json", "nlg, combined: data b.json; the others: a.json"),
    ],
)
def test_what_was_measured_otherwise_is_noted_and_nothing_is_called_best(key, value, note, tmp_path):
    same = {"dataset_path": "a.json"}
    write(tmp_path / "a" / "metrics.json", summary(**same))
    write(tmp_path / "b" / "metrics.json", summary(method="finetune", **same))
    write(tmp_path / "c" / "metrics.json", summary(method="combined", value=99.0, **(same | {key: value})))
    text = made(tmp_path)
    assert f"[1] {note}" in text and "**" not in text and "[2]" not in text
    assert rows(text)["nlg (test, 60 instances)"][-1] == "99.00 [1]"


def test_a_score_that_json_could_not_hold_is_infinite(tmp_path):
    infinite = summary(scores={"PPL": {"score": None, "signature": ""}}, headline="PPL")
    write(tmp_path / "a" / "metrics.json", infinite)
    write(tmp_path / "b" / "metrics.json", summary(method="finetune", headline="PPL"))
    text = made(tmp_path)
    assert rows(text)["nlg (test, 60 instances)"] == ["PPL (lower is better)", "**3.50**", "inf"]
    assert "no signature" in text
    # Where higher is better it is no number, and not the best.
    write(tmp_path / "a" / "metrics.json", summary(value=None))
    write(tmp_path / "b" / "metrics.json", summary(method="finetune"))
    assert rows(made(tmp_path))["nlg (test, 60 instances)"] == ["BLEU", "**67.12**", "nan"]


# --- the script ------------------------------------------------------------------------------------------


def test_the_script_prints_and_writes_the_table_and_a_picture(results, monkeypatch, capsys):
    monkeypatch.chdir(results.parent)
    write(results / "broken" / "metrics.json", "{")
    table.main([])
    out, err = capsys.readouterr()
    head, rest = (results / "table.md").read_text(encoding="utf-8").split("## All scores")
    assert head in out and rest not in out and "7 results" in out and "results/table.md" in out
    assert err.count("\n") == 1 and err.startswith("left out results/broken/metrics.json: cannot read it")
    assert (results / "table.png").read_bytes().startswith(b"\x89PNG") and "](table.png)" in out
    assert not list(results.rglob("*.part"))
    table.main([str(results / "a"), str(results / "b" / "metrics.json"), "--output", "elsewhere/t.md"])
    assert rows((results.parent / "elsewhere" / "t.md").read_text())["nlg (test, 60 instances)"][1] == "**70.50**"
    assert (results.parent / "elsewhere" / "t.png").is_file()


@pytest.mark.parametrize("argv", [[], ["empty"], ["missing"], ["empty", "--output", "t.png"]])
def test_nothing_to_show_is_an_error_that_names_where_it_looked(argv, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        table.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(
        f"error: {('--output t.png' if '--output' in argv else (argv or ['results'])[0])}: "
    )
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot read it"),
        ("[" * 100_000, "cannot read it"),
        ([1], "it holds [1]"),
        ({"best": 3.2}, "it has no 'task': not an evaluation"),
        ({"task": "nlg"}, "it has no 'scores'"),
        (summary(scores={"BLEU": 3}), "the score 'BLEU' is 3"),
        (summary(scores={"BLEU": {"score": "3"}}), "the score 'BLEU' is"),
        (summary(headline="chrF"), "the headline score 'chrF'"),
        (summary(headline=["BLEU"]), "the headline score ['BLEU']"),
        (summary(instances="60"), "'instances' is '60'"),
        (summary(parameters=dict(adapters=10**400)), "'parameters' is {'adapters': 1"),
        (summary(parameters=[3]), "'parameters' is [3]"),
        (summary(method=None, parameters=None), "it says neither 'method' nor 'parameters'"),
        ({"tasks": [1]}, "'tasks' is [1]"),
        ({"tasks": {"nlg": 3}}, "the results of 'nlg' are 3"),
    ],
)
def test_a_broken_file_is_one_line_and_the_others_are_shown(content, message, tmp_path):
    path = write(tmp_path / "broken" / "metrics.json", content)
    with pytest.raises(UserError, match="none of them can be used"):
        table.collect([tmp_path])
    write(tmp_path / "good" / "metrics.json", summary())
    results, (note,) = table.collect([tmp_path])
    assert len(results) == 1 and note.startswith(f"left out {path}: ") and message in note and "\n" not in note


def test_names_cannot_break_the_table(tmp_path):
    odd = summary("a|b\nc $x_1$ `", "x|y", scores={"s|t": {"score": -1.0, "signature": "`|"}}, headline="s|t")
    write(tmp_path / "metrics.json", odd)
    cells = table.Cells(table.collect([tmp_path])[0])
    line = next(line for line in table.markdown(cells).splitlines() if line.startswith("| a\\|b c $x_1$ ' (test"))
    assert line.replace("\\|", "").count("|") == 4
    result_charts.bar_chart(tmp_path / "chart.png", cells)


@pytest.mark.parametrize("score", [1e308, -1e308, 10**400, None])
def test_scores_that_have_no_place_on_an_axis_are_shown_as_text(tmp_path, score):
    write(tmp_path / "metrics.json", summary(scores={"BLEU": {"score": score, "signature": ""}}, headline="BLEU"))
    cells = table.Cells(table.collect([tmp_path])[0])
    assert table.markdown(cells)
    result_charts.bar_chart(tmp_path / "chart.png", cells)
    assert not result_charts.tradeoff_chart(tmp_path / "stored.png", cells)


def test_scores_stand_against_stored_parameters_where_methods_differ_in_size(results, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(result_charts, "_points", lambda axes, points, colours: drawn.update(points))
    cells = table.Cells(table.collect([results])[0])
    assert result_charts.tradeoff_chart(tmp_path / "all.png", cells) and (tmp_path / "all.png").is_file()
    # summarization has one method, and both of qa's are of one size.
    assert drawn == {"adapter": (2_500, 67.123), "finetune": (100_500, 70.5), "combined": (2_500, 66.0),
                     "multi-task": (2_500, 65.0)}  # fmt: skip
    alone = table.Cells(table.collect([results / "a"])[0])
    assert not result_charts.tradeoff_chart(tmp_path / "none.png", alone) and not (tmp_path / "none.png").exists()


value = st.one_of(st.none(), st.floats(-1e9, 1e9), st.integers(-5, 10**12))
result = st.builds(
    lambda task, method, score, split, count: summary(task, method, score, split=split, instances=count),
    st.sampled_from(["nlg", "qa", "x"]),
    st.sampled_from(["adapter", "finetune", "other"]),
    value,
    st.sampled_from(["test", "valid", None]),
    st.one_of(st.none(), st.integers(0, 5)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(result, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_the_files_does_not_matter(contents, random):
    read = [table._result(c, f"{i}/metrics.json", float(i)) for i, c in enumerate(contents)]
    text = table.markdown(table.Cells(read))
    assert text == table.markdown(table.Cells(random.sample(read, len(read))))
    widths = {line.replace("\\|", "").count("|") for line in text.split("\n## ")[0].splitlines() if line[:1] == "|"}
    assert len(widths) == 1


def test_flags_that_are_wrong_are_one_message(capsys):
    with pytest.raises(SystemExit) as stopped:
        table.main(["--nothing"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: --nothing: there is no such flag\n  remedy: ")
