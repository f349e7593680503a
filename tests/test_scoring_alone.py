"""evaluate.py --score_only: outputs of a file are scored as those that it decodes itself.

python -m pytest tests/test_scoring_alone.py
"""

import json
import re

import pytest
from scripts import metrics, run, small, without_java, write_task
from training_runs import evaluate, refused, short_run
from versatile.utils.errors import UserError
from versatile.utils.metrics import read_hypotheses


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """(a data file, the results of a run trained until its outputs depend on the input)."""
    folder = tmp_path_factory.mktemp("decoded")
    data = small(folder / "nlg.json", train=48, valid=4, test=24)
    argv = short_run(data, folder / "run", "--lr", "1e-2", bottleneck=16, batch=8, epochs=8)
    assert run("train", argv, folder).code == 0
    evaluate(["--task", "nlg", "--dataset_path", data, "--model_checkpoint", folder / "run", "--no_sample", "--fp32",
              "--max_length", 24, "--output_dir", folder / "results"], folder)  # fmt: skip
    return data, folder / "results"


def test_scoring_alone_gives_the_scores_of_the_decoded_run(decoded, tmp_path):
    data, out = decoded
    argv = ["--task", "nlg", "--dataset_path", data, "--score_only", out / "nlg_output.txt"]
    evaluate([*argv, "--output_dir", tmp_path / "alone"], tmp_path / "log")
    again = metrics(tmp_path / "alone")["scores"]
    assert again == {k: v for k, v in metrics(out)["scores"].items() if k != "PPL"}


def test_scoring_alone_takes_a_reference_file_and_writes_only_where_told(tmp_path, monkeypatch, capsys):
    import evaluate as script

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", without_java()["PATH"])
    (tmp_path / "hyp.txt").write_text("a cat sat on the mat\nthe dog is here now\n")
    (tmp_path / "ref.txt").write_text("a cat sat on the mat\nthe cat sat there\n\nthe dog is here now\n")
    script.main(["--task", "nlg", "--score_only", "hyp.txt", "--references", "ref.txt"])
    printed = capsys.readouterr().out
    assert "2 instances, 3 references" in printed and re.search(r"ROUGE_L +1\.0000", printed)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["hyp.txt", "ref.txt"]
    (tmp_path / "ref.txt").write_text("a\n\nb\n\nc\n")
    with pytest.raises(SystemExit):
        script.main(["--task", "nlg", "--score_only", "hyp.txt", "--references", "ref.txt"])
    error = capsys.readouterr().err
    assert "--score_only hyp.txt, with the references of ref.txt: 2 outputs, but references for 3 examples" in error


def test_scoring_alone_takes_the_json_files_of_an_evaluation_and_refuses_flags_without_effect(decoded, tmp_path):
    data, out = decoded
    argv = ["--task", "nlg", "--dataset_path", data, "--output_dir", tmp_path / "alone", "--score_only"]
    evaluate([*argv, out / "nlg_outputs.jsonl"], tmp_path / "log")
    assert (tmp_path / "alone/nlg_output.txt").read_text() == (out / "nlg_output.txt").read_text()
    argv = [*argv, out / "nlg_output.txt"]
    for more in (["--num_beams", "2"], ["--model_checkpoint", "x"], ["--references", "x", "--limit", "2"]):
        refused(run("evaluate", [*argv, *more], tmp_path / "log"), more[-2], "has no effect with --score_only")
    (tmp_path / "bad.jsonl").write_text('{"hypothesis": "a"}\n{"text": "b"}\n')
    argv[-1] = tmp_path / "bad.jsonl"
    refused(run("evaluate", argv, tmp_path / "log"), "bad.jsonl:2", "'hypothesis'")


@pytest.mark.parametrize("hypotheses, references, fragments", [
    ("one\n", "one\ntwo\n", ["1 output, but references for 2 examples", "2 examples"]),
    ("", "one\n", ["hyp.txt", "empty"]),
    (None, "one\n", ["hyp.txt", "No such file"]),
    ("one\n", None, ["ref.txt", "No such file"]),
    ("caf\udce9\n", "one\n", ["hyp.txt:1", "not UTF-8"]),
])  # fmt: skip
def test_scoring_alone_of_bad_files_is_one_clear_error(hypotheses, references, fragments, tmp_path):
    for name, content in (("hyp.txt", hypotheses), ("ref.txt", references)):
        if content is not None:
            (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    argv = ["--task", "nlg", "--score_only", tmp_path / "hyp.txt", "--references", tmp_path / "ref.txt"]
    refused(run("evaluate", argv, tmp_path / "log"), *fragments)


def test_hypotheses_are_read_alike_from_every_format(tmp_path):
    texts = ["a ? b", "[1] a list? no"]
    # Half of a pair of surrogates.
    half = json.dumps("a \ud83d b")
    written = {"h.txt": "a ? b\n[1] a list? no\n",
               "h.json": f'[{{"answer": {half}}},\n {{"answer": "[1] a list? no"}}]',
               "h.jsonl": f'{{"hypothesis": {half}}}\n{{"hypothesis": "[1] a list? no"}}\n'}
    for name, content in written.items():
        (tmp_path / name).write_text(content)
        assert read_hypotheses(tmp_path / name) == texts, name
    (tmp_path / "bracket.txt").write_text("[a]\nb\n")
    assert read_hypotheses(tmp_path / "bracket.txt") == ["[a]", "b"]
    (tmp_path / "h.json").write_text('[{"answer": "a"},\n {"answer": 5}]')
    with pytest.raises(UserError, match=r"h\.json: item 2: not a json object with the text 'answer'"):
        read_hypotheses(tmp_path / "h.json")


def test_scoring_alone_into_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "hyp.txt").write_text("a cat\n")
    argv = ["--task", "nlg", "--score_only", tmp_path / "hyp.txt", "--references", tmp_path / "hyp.txt"]
    for out in (tmp_path / "hyp.txt", "/proc/out"):
        refused(run("evaluate", [*argv, "--output_dir", out], tmp_path / "log"), f"--output_dir {out}", "cannot write")


def test_the_toolkits_own_output_file_scores_full_marks_where_outputs_equal_references(tmp_path):
    from versatile.training.evaluation import lines

    texts = ["The ferry was late.\nPassengers waited.", "A bakery opened\x85on \\n Mill Lane.\r\nIt sells bread."]
    rows = [dict(src="x y", tgt=text) for text in texts]
    data = write_task(tmp_path / "data.json", train=rows, valid=rows, test=rows)
    (tmp_path / "out.txt").write_bytes(lines(texts).encode())
    for more in ([], ["--references", tmp_path / "out.txt"]):
        argv = ["--task", "summarization", "--dataset_path", data, "--score_only", tmp_path / "out.txt", *more]
        result = run("evaluate", argv, tmp_path / "log")
        assert result.code == 0, result.err
        for name in ("rouge1 ", "rougeLsum ", "original_ROUGE_1 "):
            assert re.search(rf"^{name} *1\.0000", result.out, re.M), result.out


def test_blank_references_are_said_and_not_scored(tmp_path):
    rows = [dict(src="one two three", tgt=text) for text in ("", "eins zwei drei vier", " ")]
    whole = dict(train=rows, valid=rows, test=rows)
    data = write_task(tmp_path / "data.json", **whole)
    (tmp_path / "out.txt").write_text("x\neins zwei drei vier\ny\n")
    argv = ["--task", "mt", "--dataset_path", data, "--score_only", tmp_path / "out.txt"]
    result = run("evaluate", argv, tmp_path / "log")
    assert "2 of 3 examples have blank references" in result.out and re.search(r"^BLEU +100\.0", result.out, re.M)
    write_task(data, **(whole | dict(test=[rows[0]])))
    (tmp_path / "out.txt").write_text("x\n")
    result = run("evaluate", argv, tmp_path / "log")
    assert result.code == 2 and "blank" in result.err
