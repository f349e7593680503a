"""lifelong/compare.py: several matrices side by side."""

import json

import pytest
from versatile.lifelong import charts, compare, matrix
from versatile.lifelong.matrix import Matrix, summary
from versatile.utils import result_charts
from versatile.utils.files import write_json


def written(folder, *rows, tasks=("ag", "sst"), seeds=None, **asked):
    matrices = [Matrix(list(tasks), r, metrics=["em"] * len(tasks)) for r in rows]
    write_json(folder / "matrix.json", summary(matrices, seeds) | asked)
    return folder


def recorded(folder, seed, rows, settings, **costs):
    record = dict(seed=seed, settings=settings, seconds=None, peak_memory_mb=None, stored_bytes=None) | costs
    return written(folder, rows, seeds=[seed], records=[record])


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
    assert compare.main([*map(str, [*argv[:3], f"at|once={together}", *argv[4:]])]) in (None, 0)
    assert "| at\\|once | 95.0 |" in output.read_text(encoding="utf-8")
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
        said = "not valid json"
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
    # A file from before this was recorded is accepted as it is.
    argv = [str(one), str(other), str(directories[0]), "--output", str(tmp_path / "out.md")]
    assert compare.main(argv) in (None, 0)
    (tmp_path / "out.md").unlink()
    for key, value, said in (("limit", 8, "other was evaluated with limit 8"), ("split", "train", "split train"),
                             ("ref1", True, "ref1 on"), ("decoding", dict(top_k=5), "decoding top_k 5")):  # fmt: skip
        written(other, rows, **asked | {key: value})
        with pytest.raises(SystemExit) as stopped:
            compare.main(argv)
        assert stopped.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "out.md").exists()


def test_seeds_of_a_method_were_asked_alike_too(tmp_path, capsys):
    asked, rows = dict(split="test", limit=3, ref1=False, decoding="greedy"), [[1.0, 2.0], [3.0, 4.0]]
    dirs = [written(tmp_path / f"er-seed{seed}", rows, seeds=[seed], **asked | dict(limit=seed)) for seed in (3, 50)]
    with pytest.raises(SystemExit):
        compare.main([*map(str, dirs), "--output", str(tmp_path / "out.md")])
    assert "was evaluated with limit 50" in capsys.readouterr().err and not (tmp_path / "out.md").exists()


def test_a_name_may_begin_with_an_underscore(tmp_path):
    record = dict(settings={}, seconds=2.0, peak_memory_mb=None, stored_bytes=None)
    rows = [[90.0, None, None], [80.0, 80.0, None], [70.0, 80.0, 90.0]]
    more = dict(tasks=("ag", "sst", "schema"), seeds=[1], records=[dict(record, seed=1)])
    argv = [str(written(tmp_path / name, rows, **more)) for name in ("_one", "two")]
    assert compare.main([*argv, "--output", str(tmp_path / "out.md")]) in (None, 0)
    assert all((tmp_path / f"out{name}.png").stat().st_size > 5000 for name in ("", "_curves", "_forgetting", "_cost"))


@pytest.mark.parametrize("part, value", [
    ("metrics", None), ("metrics", 5), ("metrics", ["em"]), ("runs", 5), ("runs", [{}]), ("records", None),
    ("records", [None]), ("records", [dict(seconds="x")]), ("seeds", 5), ("mean", {}), ("tasks", ["ag", 1]),
])  # fmt: skip
def test_a_matrix_that_lacks_a_part_or_has_it_of_another_type_is_one_message(part, value, directories, capsys):
    path = directories[0] / "matrix.json"
    content = json.loads(path.read_text())
    write_json(path, {key: one for key, one in (content | {part: value}).items() if (key, one) != ("metrics", None)})
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(directories[0]), "--output", str(directories[0] / "out.md")])
    assert stopped.value.code == 2 and str(path) in capsys.readouterr().err


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


def test_directories_that_differ_in_their_seed_alone_are_one_method(tmp_path, capsys):
    flags, output = dict(seq_train_type="er", limit=400), tmp_path / "out.md"
    first, second = ([90, 0], [80, 80]), ([80, 0], [90, 80])
    er = [recorded(tmp_path / f"small-er-seed{seed}", seed, list(rows), flags, seconds=seconds,
                   other_seconds=7, stored_bytes=3e6)
          for seed, rows, seconds in ((1, first, 100), (2, second, 120))]  # fmt: skip
    more = recorded(tmp_path / "small-er-1500-seed1", 1, list(first), flags | dict(limit=1500), peak_memory_mb=2000)
    assert compare.main([*map(str, (*er, more)), "--output", str(output)]) in (None, 0)
    heads, _, *rows = output.read_text(encoding="utf-8").splitlines()
    assert heads.endswith("| forgetting | seconds | seconds between tasks | peak MB | stored MB | seeds |")
    start = "| small-er | 85.0 ± 7.1 | 80.0 ± 0.0 | 82.5 ± 3.5 | 0.0 ± 14.1 | – | 0.0 ± 14.1 |"
    assert rows == [
        f"{start} 110 ± 14 | 7 ± 0 | – | 3.0 ± 0.0 | 2 |",
        "| small-er-1500-seed1 | 80.0 | 80.0 | 80.0 | −10.0 | – | 10.0 | – | – | 2000 | – | 1 |",
    ]
    # With two tasks forgetting is one point: there is no line to draw.
    assert not (tmp_path / "out_scaling.png").exists()
    for name in ("", "_curves", "_forgetting", "_cost"):
        assert (tmp_path / f"out{name}.png").stat().st_size > 5000
    # The same seed twice does not count as a second one.
    with pytest.raises(SystemExit) as stopped:
        compare.main([str(er[0]), str(recorded(tmp_path / "again", 1, list(first), flags)), "--output", str(output)])
    assert stopped.value.code == 2 and "seed 1 is given twice" in capsys.readouterr().err


def test_directories_of_one_name_are_seeds_of_it_if_their_settings_are_one(tmp_path, capsys):
    rows, output = [[90, 0], [80, 80]], str(tmp_path / "out.md")
    old = [written(tmp_path / name, rows) for name in ("a", "b")]
    argv = ["--runs", *(f"replay={folder}" for folder in old), "--output", output]
    assert compare.main(argv) in (None, 0) and "| replay | 80.0 ± 0.0 |" in capsys.readouterr().out
    # An earlier version did not have a flag that is off.
    known = [recorded(tmp_path / f"s{n}", n, rows, flags) for n, flags in ((1, dict(lr=0)), (2, dict(lr=0, new=False)))]
    assert compare.main(["--runs", *(f"known={folder}" for folder in known), "--output", output]) in (None, 0)
    assert "| known | 80.0 ± 0.0 |" in capsys.readouterr().out
    other = [recorded(tmp_path / f"r{n}", n, rows, dict(limit=n)) for n in (1, 2)]
    with pytest.raises(SystemExit) as stopped:
        compare.main(["--runs", *(f"replay={folder}" for folder in other), "--output", output])
    assert stopped.value.code == 2 and "another --limit" in capsys.readouterr().err


def test_what_has_not_been_run_is_an_empty_row_with_its_command(directories, tmp_path, capsys):
    output = tmp_path / "out.md"
    absent = [tmp_path / "small-lifelong-er", tmp_path / "small-lifelong-lamol-seed3"]
    assert compare.main(list(map(str, [directories[0], *absent, "--output", output]))) in (None, 0)
    *_, first, second = output.read_text(encoding="utf-8").splitlines()
    assert first == "| small-lifelong-er: `./run.sh small-lifelong-er` |" + " |" * 6
    assert second.startswith("| small-lifelong-lamol-seed3: `./run.sh small-lifelong-lamol --seed 3` |")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        compare.main(list(map(str, [*absent, "--output", output])))
    assert stopped.value.code == 2 and "./run.sh small-lifelong-lamol --seed 3" in capsys.readouterr().err


@pytest.mark.parametrize(("names", "stem"), [
    (["ag_sst_0.2_1", "ag_sst_0.2_2"], "ag_sst_0.2"), (["er-seed1", "er-seed2", "er"], "er"),
    (["ag_0.5_1_real_sample_own", "ag_0.5_2_real_sample_own"], "ag_0.5_real_sample_own"),
    (["ag_seed_1_unbound_3", "ag_seed_22_unbound_3"], "ag_unbound_3"), (["ag_1_own", "sst_2_own"], None),
    (["ag_1", "ag_1_own"], None), (["lora-a", "lora-b"], None),
    (["lamol1", "lamol2"], "lamol"), (["1", "2"], ""), (["er1", "gem2"], None),
])  # fmt: skip
def test_seeds_of_a_method_are_named_without_the_seed_wherever_it_stands(names, stem):
    assert compare.without_seed(names) == stem


def test_scores_and_forgetting_over_time_are_those_of_the_tasks_so_far():
    rows = [[80, 10, 0], [60, 70, 20], [50, 75, 90]]
    learned = Matrix(["a", "b", "c"], rows)
    assert matrix.average_so_far(learned) == [80, 65, pytest.approx(215 / 3)]
    assert matrix.forgetting_so_far(learned) == [None, 20, ((80 - 50) + (70 - 75)) / 2]
    assert matrix.forgetting_so_far(learned)[-1] == matrix.forgetting(learned)
    together = Matrix(["a", "b"], [[None, None], [1, 2]])
    assert matrix.average_so_far(together) == [None, 1.5] and matrix.forgetting_so_far(together) == [None, None]


def test_a_line_has_a_band_over_seeds_and_what_is_trained_at_once_none(tmp_path):
    seeds = [[[80, 0, 0], [60, 70, 0], [50, 75, 90]], [[90, 0, 0], [60, 70, 0], [50, 75, 90]]]
    er = compare.read_method(written(tmp_path / "er", *seeds, tasks="abc"))
    points = charts._over_time(er, matrix.average_so_far)
    assert [point[:2] for point in points] == [(1, 85), (2, 65), (3, pytest.approx(215 / 3))]
    assert points[0][2] == pytest.approx(7.0711, abs=1e-3) and points[1][2] == 0
    together = compare.read_method(written(tmp_path / "together", [[None] * 3, [None] * 3, [1, 2, 3]], tasks="abc"))
    assert charts._over_time(together, matrix.forgetting_so_far) == []
    only = {"together": together}
    assert not charts.draw_scaling(tmp_path / "none.png", only, {}) and not (tmp_path / "none.png").exists()


@pytest.mark.slow
def test_fifteen_tasks_and_methods_are_drawn_with_styles_of_their_own(tmp_path):
    tasks = [f"task{i}_something_long_winded_to_be_named" for i in range(15)]
    rows = [[90.0 - 3 * (i - j) if j <= i else None for j in range(15)] for i in range(15)]
    method = compare.read_method(written(tmp_path / "m", rows, rows, tasks=tasks))
    names = [f"superni-{i}" for i in range(14)]
    paths = charts.draw_charts(tmp_path / "all.png", dict.fromkeys(names, method))
    # Nothing is known of costs.
    assert [path.name for path in paths] == ["all.png", "all_curves.png", "all_forgetting.png", "all_scaling.png"]
    styles = [tuple(charts._style(i).values()) for i in range(14)]
    assert len(set(styles)) == 14 and len(set(result_charts.COLOURS)) == len(result_charts.COLOURS) == 10
    assert charts._without_common_start(names)[:2] == ["0", "1"]
    assert charts._without_common_start(["er", "er-2"]) == ["er", "er-2"]
