"""--report_to and --lr_scheduler_type in every training script.

    python -m pytest tests/test_reporters.py
"""

import importlib
import importlib.machinery
import importlib.util
import json
import sys
import types

import pytest
import quick
from lifelong_data import command, write
from scripts import SAMPLES
from versatile.training.reporters import Reporters, check_reporters
from versatile.utils.errors import UserError

GLUE = SAMPLES / "glue"


class FakeTracker(types.ModuleType):
    """wandb, or trackio, as far as it is used; `calls` records what it was asked to do."""

    def __init__(self, name):
        super().__init__(name)
        # Other libraries check whether it is installed.
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))

    def log(self, scalars, step):
        self.calls.append(("log", step, scalars))

    def finish(self):
        self.calls.append(("finish",))

    def steps(self, scalar):
        """{step: value} logged under a name."""
        return {call[1]: call[2][scalar] for call in self.calls if call[0] == "log" and scalar in call[2]}


@pytest.fixture
def trackers(monkeypatch):
    """{name: its fake}, imported in place of the libraries."""
    found = {name: FakeTracker(name) for name in ("wandb", "trackio")}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_each_reporter_gets_every_scalar_through_its_own_library(trackers, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    (tmp_path / "run.json").write_text(json.dumps({"command": "train.py", "flags": {"lr": 0.1}}))
    for _ in range(2):
        # A resumed run is found again.
        reporters = Reporters(tmp_path, 3, ["tensorboard", "wandb", "trackio"])
        reporters.add(4, "train", {"loss": 2.0, "lr": 0.1})
        reporters.close()
    for name, project in (("wandb", "versatile"), ("trackio", "mine")):
        first, logged, last, *again = trackers[name].calls
        assert first[1]["project"] == project and first[1]["name"] == tmp_path.name and first[1]["resume"] == "allow"
        assert first[1]["config"] == {"lr": 0.1}
        assert logged == ("log", 4, {"train/loss": 2.0, "train/lr": 0.1}) and last == ("finish",)
        assert again == [first, logged, last]
    assert len({call[1]["id"] for call in trackers["wandb"].calls if call[0] == "init"}) == 1
    assert list(tmp_path.glob("events*"))


def test_none_writes_nothing(tmp_path):
    reporters = Reporters(tmp_path, 0, ["none"])
    reporters.add(1, "train", {"loss": 1.0})
    reporters.close()
    assert not list(tmp_path.iterdir())


def test_a_library_that_cannot_be_started_is_one_message(trackers, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers["wandb"], "init", lambda **options: (_ for _ in ()).throw(OSError("no api key")))
    with pytest.raises(UserError, match="--report_to wandb: it could not be started: no api key"):
        Reporters(tmp_path, 0, ["wandb"])


def test_none_beside_another_is_refused():
    with pytest.raises(UserError, match="none was given together with tensorboard"):
        check_reporters(["tensorboard", "none"])
    check_reporters(["none"])


def lifelong(folder):
    return command(write(folder / "data"), folder / "run", "finetune", "--only_final", tasks=("ag",))


# {script: its flags for a run of a few steps}
RUNS = {
    "train": lambda folder: ["--task", "nlg", "--dataset_path", SAMPLES / "nlg.json", "--model_checkpoint", "tiny-gpt2",
                             "--adapter_bottleneck", 4, "--max_steps", 3, "--limit", 12, "--train_batch_size", 4,
                             "--gradient_accumulation_steps", 1],
    "train_vlm": lambda folder: ["--tasks", "nlg", "--data", f"nlg={SAMPLES / 'nlg.json'}", "--model_checkpoint",
                                 "tiny-gpt2", "--max_steps", 3, "--limit", 12, "--train_batch_size", 4,
                                 "--gradient_accumulation_steps", 1],
    "train_lifelong": lifelong,
    "train_t5": lambda folder: ["--tasks", "rte", "--data_dir", GLUE, "--model_name_or_path", "tiny-t5", "--do_train",
                                "--max_steps", 3, "--n_train", 12, "--train_batch_size", 4, "--max_source_length", 32],
    "pretrain_t5": lambda folder: ["--tasks", "rte", "mnli", "--data_dir", GLUE, "--model_name_or_path", "tiny-t5",
                                   "--max_steps", 3, "--max_source_length", 32, "--train_batch_size", 2],
    "train_camtl": lambda folder: ["--tasks", "rte", "--data_dir", GLUE, "--model_name_or_path", "tiny-bert",
                                   "--do_train", "--max_steps", 3, "--limit", 12, "--max_len", 32],
}  # fmt: skip


def words(script, folder, *more):
    own = [] if script == "train_lifelong" else ["--output_dir", folder / "run"]
    return [str(word) for word in [*RUNS[script](folder), *own, "--fp32", "--logging_steps", 1, *more]]


@pytest.mark.parametrize("script", RUNS)
def test_a_library_that_is_not_installed_is_met_at_the_door(script, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main(words(script, tmp_path, "--report_to", "wandb"))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "error: --report_to wandb: the library wandb is not installed" in said
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("script", quick.every(2, RUNS))
def test_every_script_reports_where_it_is_told_and_keeps_the_schedule_that_is_named(script, tmp_path, trackers):
    more = ["--report_to", "trackio", "--lr", "1e-3", "--lr_scheduler_type", "constant_with_warmup",
            "--warmup_steps", "2"]  # fmt: skip
    importlib.import_module(script).main(words(script, tmp_path, *more))
    rates = trackers["trackio"].steps("train/lr")
    assert [rates[step] for step in (1, 2, 3)] == pytest.approx([0.0, 5e-4, 1e-3])
    assert trackers["trackio"].calls[-1] == ("finish",) and not trackers["wandb"].calls
    assert not list(tmp_path.rglob("events*"))


@pytest.mark.parametrize("script", quick.every(2, RUNS))
def test_a_warm_up_longer_than_the_run_is_said(script, tmp_path, capsys):
    more = ["--lr", "1e-3", "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", "5000"]
    importlib.import_module(script).main(words(script, tmp_path, *more))
    said = capsys.readouterr().out
    assert "warning: 5000 warm-up steps are more than the run's" in said


@pytest.mark.parametrize("script", RUNS)
def test_a_schedule_that_lacks_what_it_needs_is_met_at_the_door(script, tmp_path, capsys):
    for name, options in (("cosine", '{"no_such_thing": 1}'), ("polynomial", '{"lr_end": 5}')):
        # A rate of 5 at the end is above the highest.
        more = ["--lr", "1e-3", "--lr_scheduler_type", name, "--lr_scheduler_kwargs", options]
        with pytest.raises(SystemExit) as stop:
            importlib.import_module(script).main(words(script, tmp_path, *more))
        said = capsys.readouterr().err
        assert stop.value.code == 2 and "error: --lr_scheduler_kwargs" in said and f"the schedule {name} " in said
    assert not list(tmp_path.rglob("run.json"))
