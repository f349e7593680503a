"""lifelong/strategies: what every strategy declares, what is refused, and checks of a stage's state file."""

import json
import sys
from pathlib import Path

import pytest
import quick
import torch
from lifelong_data import command, questions, report, write
from versatile.lifelong import run_records, sequence, strategies
from versatile.lifelong.strategies import STRATEGIES
from versatile.lifelong.strategies.base import Strategy
from versatile.lifelong.strategies.multitask import Multitask
from versatile.utils.errors import UserError

import train_lifelong

PUBLISHED = {"lll", "finetune", "multitask", "multilm", "ewc", "mas", "gem", "er", "agem", "derpp", "lwf", "olora",
             "progprompt", "isolated"}  # fmt: skip
METHOD = {"olora": ("--method", "lora"), "progprompt": ("--method", "prefix"), "isolated": ("--adapter_bottleneck", 8)}


def flags_of(*more):
    argv = ["--data_dir", "d", "--model_dir_root", "m", "--tasks", "ag", "sst", *more]
    return train_lifelong.parser().parse_args(list(map(str, argv)))


def test_every_published_strategy_stands_in_help_with_its_formula_or_paper(capsys):
    assert set(STRATEGIES) >= PUBLISHED and strategies.DEFAULT == "lll"
    with pytest.raises(SystemExit):
        train_lifelong.main(["--help"])
    text = capsys.readouterr().out
    for name, strategy in STRATEGIES.items():
        assert f"--seq_train_type {name}:" in text and strategy.summary.split()[0] in text
        assert all(flag in text for flag in strategy.flags)
    assert "Published: --reg_lambda 1." in text


def test_a_new_strategy_is_one_file(tmp_path, monkeypatch):
    """It is found in its folder; its flags and its directory name follow."""
    (tmp_path / "keep_all.py").write_text(
        "from versatile.lifelong.strategies.base import Strategy\n"
        "class KeepAll(Strategy):\n"
        "    name, summary = 'keep_all', 'Keeps all.'\n"
        "    flags = {'--keep_share': dict(type=float, default=0.5, help='how much')}\n"
        "    naming_flags = {'--sorted_memory': dict(action='store_true', help='in order')}\n"
    )
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    found = strategies.find_strategies()
    try:
        assert list(found) == [*STRATEGIES, "keep_all"]
        monkeypatch.setattr(strategies, "STRATEGIES", found)
        args = flags_of("--seq_train_type", "keep_all", "--keep_share", "0.25", "--sorted_memory")
        assert args.keep_share == 0.25 and args.sorted_memory
        assert str(sequence.directory(args)).startswith("m/gpt2/keep_all/ag_sst_seed_42")
        found["keep_all"].check(args)
        args.seq_train_type = "finetune"
        with pytest.raises(UserError, match="--sorted_memory requires --seq_train_type keep_all"):
            STRATEGIES["finetune"].check(args)
    finally:
        sys.modules.pop("versatile.lifelong.strategies.keep_all", None)


def test_a_strategys_modules_are_read_without_torch():
    """This keeps `--help` fast."""
    import subprocess

    code = "import sys; from versatile.lifelong import strategies; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=sequence.__file__.rsplit("/", 2)[0]).returncode == 0


@pytest.mark.parametrize("more, found", [
    (("--seq_train_type", "gem", "--real_sample"), "--real_sample requires --seq_train_type lll"),
    (("--memory_size", 5), "--memory_size requires --seq_train_type agem or er"),
    (("--lwf_lambda", 2), "--lwf_lambda requires --seq_train_type lwf"),
    (("--normalize_importance",), "--normalize_importance requires --seq_train_type ewc or mas"),
    (("--seq_train_type", "lwf", "--distil"), "cannot be combined with --seq_train_type lwf: the previous model is"),
    (("--seq_train_type", "derpp", "--distil"), "--distil: cannot be combined with --seq_train_type derpp"),
    (("--seq_train_type", "lwf", "--method", "lora", "--own_adapters"), "--own_adapters: cannot be combined with"),
    (("--seq_train_type", "olora", "--adapter_bottleneck", 4), "olora: cannot be combined with the method bottleneck"),
    (("--seq_train_type", "er", "--replay", "epoch", "--memory_batch_size", 3), "has no effect with --replay epoch"),
    (("--upsample_data",), "--upsample_data requires --seq_train_type multitask or multilm"),
    (("--seq_train_type", "multilm", "--unbound", 2), "--unbound: multilm trains all tasks at once"),
    (("--seq_train_type", "multitask", "--dynamic_epochs"), "--dynamic_epochs: multitask trains all tasks at once"),
    (("--seq_train_type", "multitask", "--upsample_data", "1_2_3"), "3 numbers for 2 tasks"),
])  # fmt: skip
def test_flags_that_a_strategy_does_not_use_are_refused(more, found):
    args = flags_of(*more)
    with pytest.raises(UserError, match=found):
        strategies.get_strategy(args).check(args)


def test_settings_of_the_originals_scripts_are_passed_to_every_strategy():
    """In addition to those that have no effect there."""
    args = flags_of("--seq_train_type", "er", "--qp_margin", 0.3, "--reg_lambda", 5, "--top_p_lm", 0.5)
    strategies.get_strategy(args).check(args)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_strategys_own_flags_pass_its_check(name):
    args = flags_of("--seq_train_type", name, *(["--real_sample"] if name == "lll" else METHOD.get(name, ())))
    STRATEGIES[name].check(args)


def test_only_what_needs_no_order_of_tasks_is_one_stage():
    assert {name for name, strategy in STRATEGIES.items() if strategy.joint} == {"multitask", "multilm"}
    assert {name for name, s in STRATEGIES.items() if s.generates_samples} == {"lll", "multilm"}
    assert sequence.stages(flags_of("--seq_train_type", "multilm")) == {"all": ["ag", "sst"]}
    assert sequence.stages(flags_of("--seq_train_type", "ewc")) == {"ag": ["ag"], "sst": ["sst"]}


@pytest.mark.parametrize("repeat, counts", [(False, (2, 3)), (True, (3, 3)), ([2, 1], (4, 3))])
def test_joint_training_repeats_rows_as_said(repeat, counts):
    class Context:
        args = flags_of("--seq_train_type", "multitask")

    Context.args.upsample_data = repeat
    given = {"ag": ["a0", "a1"], "sst": ["s0", "s1", "s2"]}
    rows = list(Multitask(Context).training_rows(given))
    assert tuple(sum(row.startswith(task) for row in rows) for task in "as") == counts
    assert rows[:2] == ["a0", "a1"] and (counts[0] < 4 or rows[2:4] == ["a0", "a1"])


def test_the_base_adds_and_changes_nothing():
    class Context:
        args = flags_of("--seq_train_type", "finetune")

    strategy = Strategy(Context)
    assert strategy.before_task(["ag"], ["sst"]) == strategy.callbacks() == strategy.loss_terms() == []
    assert strategy.companions(0, 0, 4) == [] and strategy.state_dict() == strategy.metrics() == {}


# --- state files ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


def half_trained(data, out, name, monkeypatch):
    """The flags of a sequence that stopped after training its first task."""
    from versatile.lifelong import learning

    argv = command(data, out, name, "--n_train_epochs", 1, "--only_final", "--adapter_bottleneck", 2)
    stage = learning.Sequence.train_stage

    def stop(self, number, *rest):
        if number:
            raise KeyboardInterrupt
        stage(self, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(learning.Sequence, "train_stage", stop)
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            train_lifelong.main(argv)
    assert json.loads((out / "sequence.json").read_text())["finished"] == ["ag"]
    return argv


def damage(path, how):
    """Make a state file unusable in one of several ways."""
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif path.suffix == ".json":
        path.write_text({"other keys": "[1]", "other tasks": '{"kept": {"woz.en": [0]}}',
                         "beyond": '{"kept": {"ag": [99]}}', "texts": '{"kept": {"ag": ["x"]}}',
                         "no count": '{"kept": {"ag": [0]}, "passed": null}'}[how])  # fmt: skip
    else:
        state = torch.load(path, weights_only=True)
        name = next(iter(state["omega"]))
        if how == "other keys":
            del state["anchor"]
        elif how == "other tasks":
            state["omega"]["nothing"] = state["omega"].pop(name)
        else:
            state["omega"][name] = torch.zeros(3, 7, 2)
        torch.save(state, path)


@pytest.mark.parametrize("name", quick.only(["gem"], ["ewc", "gem", "er"]))
def test_a_state_file_that_is_missing_or_damaged_is_one_message(name, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    argv = half_trained(data, out, name, monkeypatch)
    path = out / "ag" / STRATEGIES[name].state_file
    whole, files = path.read_bytes(), sorted(p for p in out.rglob("*") if p != path)
    for how in ("missing", "cut", "empty", "other keys", "other tasks", "beyond", "texts"):
        path.write_bytes(whole)
        damage(path, how)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            train_lifelong.main(argv)
        text = capsys.readouterr().err
        assert stopped.value.code == 2 and text.count("error: ") == 1 and str(path) in text and "remedy" in text, how
        assert sorted(p for p in out.rglob("*") if p != path) == files
    path.write_bytes(whole)
    train_lifelong.main(argv)
    assert json.loads((out / "sequence.json").read_text())["finished"] == ["ag", "sst"]


def test_what_a_stage_leaves_for_the_next_is_counted(data, tmp_path):
    """Its trained weights, a strategy's state, and the texts of samples; a teacher is referred to by name."""
    adapter = ("--adapter_bottleneck", 4, "--n_train_epochs", 1)
    reports, sizes = {}, {}
    for name, more in (("er", ("--memory_size", 3)), ("ewc", ()), ("lll", ("--distil", "--train_teachers"))):
        out = tmp_path / name
        train_lifelong.main(list(map(str, command(data, out, name, *adapter, *more))))
        reports[name] = [report(out / task) for task in ("ag", "sst")]
        sizes[name] = [(out / task / "adapter_model.safetensors").stat().st_size for task in ("ag", "sst")]
    kept = json.loads((tmp_path / "er/ag/memory.json").read_text())["kept"]["ag"]
    samples = questions("ag", 10)
    texts = sum(len(samples[i].context + samples[i].question + samples[i].answers[0]) for i in kept)
    state = (tmp_path / "er/ag/memory.json").stat().st_size
    assert len(kept) == 3 and reports["er"][0]["stored_bytes"] == sizes["er"][0] + state + texts
    # Importances are removed when the sequence is done, but they were there.
    first, last = reports["ewc"]
    assert first["stored_bytes"] > 2 * sizes["ewc"][0] and last["stored_bytes"] == sizes["ewc"][1]
    (teacher,) = reports["lll"][1]["teachers"]
    record = run_records.make_record(tmp_path / "lll", sequence.read_flags(tmp_path / "lll/run.json"))
    seconds = [one["seconds"] for one in reports["lll"]]
    seconds += [report(Path(one["teachers"][0]))["seconds"] for one in reports["lll"]]
    assert Path(teacher).name == "sst" and record["seconds"] == pytest.approx(sum(seconds))
    assert "train_teachers" not in record["settings"] and record["settings"]["distil"] is True
