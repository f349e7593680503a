"""The grid: every adaptation method, on every kind of backbone, in every regime; and README's tables of it.

    python -m pytest tests/test_grid.py            each method once, on the backbones and in the regimes by turns
    python -m pytest tests/test_grid.py -m slow    the others
"""

import itertools
import json

import pytest
import quick
from scripts import SAMPLES, run, small
from versatile.adapters.methods.registry import FULL, all_methods
from versatile.training import grid

from tests.conftest import ROOT

BACKBONES = ["tiny-gpt2", "tiny-llama", "tiny-t5"]
METHODS = [FULL, *sorted(set(all_methods()) - {"conditional"})]
REGIMES = ["one task", "many at once", "one after another", "from a teacher"]
TURNS = list(zip(METHODS, itertools.cycle(BACKBONES), itertools.cycle(REGIMES)))
SHORT = ["--fp32", "--max_steps", 2, "--train_batch_size", 4, "--gradient_accumulation_steps", 1, "--lr", "1e-2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {task: small(folder / f"{task}.json", task, train=8, valid=2, test=2) for task in ("nlg", "mt")}


@pytest.fixture(scope="module")
def teachers(files, tmp_path_factory):
    """{backbone: a fully trained model of mt}, made on first use."""
    made = {}

    def teacher(backbone):
        if backbone not in made:
            made[backbone] = tmp_path_factory.mktemp("teacher") / "run"
            train("train", files, backbone, FULL, made[backbone])
        return made[backbone]

    return teacher


def train(script, files, backbone, method, out, *more):
    data = ["--task", "mt", "--dataset_path", files["mt"]]
    if script == "train_vlm":
        data = ["--tasks", "nlg", "mt", "--data", f"nlg={files['nlg']}", f"mt={files['mt']}"]
    argv = [*data, "--model_checkpoint", backbone, *SHORT, "--output_dir", out, *more]
    argv += ["--method", method]
    result = run(script, argv, out.parent / "log")
    assert result.code == 0, result.err


def evaluate(script, files, model, folder):
    """Beam search over a batch; for a model of several tasks the batch mixes them."""
    data = ["--task", "mt", "--dataset_path", files["mt"]]
    if script == "evaluate_vlm":
        data = ["--task", "all", "--data", f"nlg={files['nlg']}", f"mt={files['mt']}"]
    result = run(script, [*data, "--model_checkpoint", model, "--no_sample", "--num_beams", 2, "--max_length", 4,
                          "--fp32", "--samples", 0, "--output_dir", folder / "results"], folder / "log")  # fmt: skip
    assert result.code == 0, result.err
    assert json.loads((folder / "results" / "mt_metrics.json").read_text())["nll"] > 0


@pytest.mark.parametrize("method, backbone, regime", quick.only(TURNS, itertools.product(METHODS, BACKBONES, REGIMES)))
def test_every_cell_of_the_grid_trains_and_decodes(method, backbone, regime, files, teachers, tmp_path):
    if regime == "one after another":
        argv = ["--data_dir", SAMPLES / "lifelong", "--tasks", "ag", "e2enlg", "--model_name", backbone, "--limit", 4,
                "--n_train_epochs", 1, "--max_len", 160, "--fp32", "--seq_train_type", "lll", "--add_task_tokens",
                "--gen_lm_sample_percentage", 0.5, "--method", method, "--output_dir", tmp_path / "run"]  # fmt: skip
        result = run("train_lifelong", argv, tmp_path / "log")
        assert result.code == 0, result.err
        assert json.loads((tmp_path / "run" / "sequence.json").read_text())["finished"] == ["ag", "e2enlg"]
        return
    script = "train_vlm" if regime == "many at once" else "train"
    more = ["--teacher", teachers(backbone), "--kd", "word"] if regime == "from a teacher" else []
    train(script, files, backbone, method, tmp_path / "run", *more)
    evaluate(script.replace("train", "evaluate"), files, tmp_path / "run", tmp_path)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_method_of_encoders_is_refused_by_decoders_with_the_reason(backbone, files, tmp_path):
    argv = ["--task", "mt", "--dataset_path", files["mt"], "--model_checkpoint", backbone, "--method", "conditional",
            "--output_dir", tmp_path / "run"]  # fmt: skip
    result = run("train", argv, tmp_path / "log")
    assert result.code == 2 and "encoder" in result.err and not (tmp_path / "run").exists(), result.err


def test_readme_shows_the_grid_as_the_code_has_it():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition(grid.BEGIN)[2].partition(grid.END)[0].strip()
    assert shown == grid.markdown().strip()


def test_the_walk_covers_every_method_and_family_of_the_tables():
    _, rows, _ = grid.methods_by_regimes()
    assert {row[0].strip("`") for row in rows} == set(METHODS)
    header, rows, reasons = grid.methods_by_families()
    assert set(header[1:]) == {backbone.name for backbone in grid.families()}
    assert all(cell == grid.FITS or cell.strip("()").isdigit() for row in rows for cell in row[1:])
    assert {int(cell.strip("()")) for row in rows for cell in row[1:] if cell != grid.FITS} == set(reasons.values())
