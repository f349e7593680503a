"""lifelong/compare.py: several matrices side by side."""

import pytest
from versatile.lifelong import compare
from versatile.lifelong.matrix import Matrix, summary
from versatile.utils.files import write_json


def written(folder, *rows, tasks=("ag", "sst"), **asked):
    write_json(folder / "matrix.json", summary([Matrix(list(tasks), r, metrics=["em", "em"]) for r in rows]) | asked)
    return folder


@pytest.fixture
def directories(tmp_path):
    finetune = written(tmp_path / "finetune", [[90.0, 10.0], [20.0, 80.0]])
    lamol = written(tmp_path / "lamol", [[90.0, 0.0], [80.0, 80.0]], [[80.0, 0.0], [90.0, 80.0]])
    together = written(tmp_path / "together", [[None, None], [95.0, 85.0]])
    return finetune, lamol, together


def test_the_table_has_the_end_of_each_way_and_its_numbers(directories, tmp_path, capsys):
    finetune, lamol, together = directories
    output = tmp_path / "all" / "lifelong.md"
    argv = [finetune, "--runs", f"replay={lamol}", f"at once={together}", "--output", output]
    assert compare.main(list(map(str, argv))) in (None, 0)
    lines = output.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| | ag (em) | sst (em) | average accuracy | backward transfer | forward transfer | forgetting |"
    assert lines[2] == "| finetune | 20.0 | 80.0 | 50.0 | −70.0 | – | 70.0 |"
    # Two seeds: 80 and 90 are 85 ± 7.1.
    assert lines[3] == "| replay | 85.0 ± 7.1 | 80.0 ± 0.0 | 82.5 ± 3.5 | 0.0 ± 14.1 | – | 0.0 ± 14.1 |"
    assert lines[4] == "| at once | 95.0 | 85.0 | 90.0 | – | – | – |"
    assert output.with_suffix(".png").stat().st_size > 5000
    assert "lifelong.png" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["none", "other tasks", "damaged", "same name", "no name", "nothing"])
def test_what_cannot_be_compared_is_one_message(case, directories, tmp_path, capsys):
    finetune, lamol, _ = directories
    argv, said = [finetune, lamol], ""
    if case == "none":
        argv, said = [tmp_path / "empty"], "no matrix.json here"
    elif case == "other tasks":
        argv, said = [finetune, written(tmp_path / "b", [[1.0, 2.0], [3.0, 4.0]], tasks=("woz.en", "ag"))], "woz.en, ag"
    elif case == "damaged":
        (lamol / "matrix.json").write_text('{"tasks": ["ag"], "mean"')
        said = "cannot be read"
    elif case == "same name":
        other = tmp_path / "b" / "lamol"
        argv, said = [finetune, lamol, other], f"{lamol} and {other} are both called lamol"
    elif case == "no name":
        argv, said = ["--runs", finetune], "expected NAME=DIR"
    else:
        argv, said = [], "name directories"
    with pytest.raises(SystemExit) as stopped:
        compare.main([*map(str, argv), "--output", str(tmp_path / "out.md")])
    assert stopped.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "out.md").exists()


def test_only_what_was_asked_alike_is_compared(directories, tmp_path, capsys):
    asked, rows = dict(split="test", limit=None, ref1=False, decoding="greedy"), [[1.0, 2.0], [3.0, 4.0]]
    one, other = (written(tmp_path / name, rows, **asked) for name in ("one", "other"))
    # A file from before this was written down is taken as it is.
    argv = [str(one), str(other), str(directories[0]), "--output", str(tmp_path / "out.md")]
    assert compare.main(argv) in (None, 0)
    (tmp_path / "out.md").unlink()
    for key, value, said in (("limit", 8, "other was evaluated with limit 8"), ("split", "train", "split train"),
                             ("ref1", True, "ref1 on"), ("decoding", dict(top_k=5), "decoding top_k 5")):  # fmt: skip
        written(other, rows, **asked | {key: value})
        with pytest.raises(SystemExit) as stopped:
            compare.main(argv)
        assert stopped.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "out.md").exists()


def test_a_table_that_cannot_be_written_is_one_message(directories, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.png").mkdir()
    for output, said in ((tmp_path, "a directory"), (tmp_path / "a.png", "a.md"), (tmp_path / "file" / "a.md", "file"),
                         (tmp_path / "taken.md", "taken.png"), ("/proc/none/a.md", "--output")):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            compare.main([str(directories[0]), "--output", str(output)])
        text = capsys.readouterr().err
        assert stopped.value.code == 2 and said in text and text.count("error:") == 1
    assert not (tmp_path / "taken.md").exists() and not (tmp_path / "a.png").exists()
