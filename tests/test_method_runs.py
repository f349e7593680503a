"""Every adaptation method in every regime, with the scripts: one task, a teacher, combining, many tasks, a sequence.

    python -m pytest tests/test_method_runs.py
"""

import itertools
import json

import lifelong_data
import pytest
import quick
import scripts
from scripts import metrics, small, tensors
from versatile.adapters import checkpoint
from versatile.adapters.methods.registry import all_methods, method_of
from versatile.training import method_flags

import combine_all
import evaluate
import evaluate_vlm
import train
import train_lifelong
import train_vlm

# Method -> the flags typed in addition to --method, and the resulting method.
TYPED = {
    "lora": (["--lora_rank", "3"], dict(method="lora", lora_rank=3)),
    "ia3": ([], "ia3"),
    "prefix": (["--prefix_length", "4"], dict(method="prefix", prefix_length=4)),
    "prompt": (["--prompt_length", "4"], dict(method="prompt", prompt_length=4)),
}
BACKBONES = ["tiny-gpt2", "tiny-llama", "tiny-t5"]
SHORT = ["--fp32", "--train_batch_size", "4", "--gradient_accumulation_steps", "1", "--n_epochs", "1", "--lr", "1e-2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {task: str(small(folder / f"{task}.json", task, train=8, valid=2, test=2)) for task in ("nlg", "mt")}


@pytest.fixture(scope="module")
def teachers(files, tmp_path_factory):
    """{backbone: a teacher of mt on it}, trained on first use."""
    folder = tmp_path_factory.mktemp("teachers")

    def teacher(name):
        if not (folder / name).exists():
            run_train("mt", files, folder / name, name, "--adapter_bottleneck", "4")
        return folder / name

    return teacher


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    for name, value in scripts.without_java().items():
        monkeypatch.setenv(name, value)


def run_train(task, files, out, name, *more):
    train.main(["--task", task, "--dataset_path", files[task], "--model_checkpoint", name, "--output_dir", str(out),
                *SHORT, *more])  # fmt: skip
    return out


@pytest.mark.parametrize("name, method", quick.every(5, BACKBONES, TYPED))
def test_a_method_goes_from_one_task_to_many(name, method, teachers, files, tmp_path, capsys):
    typed, expected = TYPED[method]
    single = run_train("nlg", files, tmp_path / "nlg", name, "--method", method, *typed)
    kept = checkpoint.load_checkpoint(single)[0].info.methods
    assert kept == {"nlg": method_of(expected)}
    assert metrics(single)["adapters"] > 0 == metrics(single)["backbone"]
    assert json.loads((single / "run.json").read_text())["method"] == method
    # From a teacher's distributions; the same method with its defaults.
    student = run_train("mt", files, tmp_path / "mt", name, "--method", method, "--teacher", str(teachers(name)))
    assert checkpoint.load_checkpoint(student)[0].info.methods == {"mt": method_of(method)}
    data = [f"{task}={path}" for task, path in files.items()]
    combine_all.main(["--output", str(tmp_path / "vlm"), "--checkpoints", f"nlg={single}", f"mt={student}",
                      "--data", *data, "--proof_examples", "2", "--proof_tokens", "4"])  # fmt: skip
    assert "2 of 2 equal" in capsys.readouterr().out
    evaluate_vlm.main(["--task", "all", "--model_checkpoint", str(tmp_path / "vlm"), "--data", *data, "--no_sample",
                       "--num_beams", "2", "--max_length", "5", "--fp32",
                       "--output_dir", str(tmp_path / "out")])  # fmt: skip
    assert list((tmp_path / "out").rglob("*nlg*"))


@pytest.mark.parametrize("name, method", quick.every(4, BACKBONES, TYPED))
def test_a_batch_that_mixes_tasks_trains_each_of_them(name, method, files, tmp_path):
    argv = ["--tasks", "nlg", "mt", "--data", *(f"{task}={path}" for task, path in files.items()), "--model_checkpoint",
            name, "--method", f"nlg={method}", "mt=bottleneck", "--adapter_bottleneck", "mt=3", *TYPED[method][0],
            "--output_dir", str(tmp_path / "run"), *SHORT]  # fmt: skip
    train_vlm.main(argv)
    info = checkpoint.load_checkpoint(tmp_path / "run")[0].info
    assert info.methods == {"nlg": method_of(TYPED[method][1]), "mt": method_of(3)}
    assert len(metrics(tmp_path / "run")["tasks"]) == 2


@pytest.mark.parametrize("name, method", quick.only(
    [("tiny-llama", "lora")], itertools.product(["tiny-gpt2", "tiny-llama"], TYPED)))
def test_a_sequence_of_tasks_has_an_adapter_for_each_or_one_for_all(name, method, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    lifelong_data.write(data)
    for own in ([], ["--own_adapters", "previous"]):
        out = tmp_path / f"run{len(own)}"
        train_lifelong.main(lifelong_data.command(data, out, "lll", "--real_sample", "--method", method,
                                                  *TYPED[method][0], *own, model=name))  # fmt: skip
        info = checkpoint.load_checkpoint(out / "sst")[0].info
        held = ["ag", "sst"] if own else ["lifelong"]
        assert [t for t, m in info.methods.items() if m == method_of(TYPED[method][1])] == held
    first, second = (tensors(tmp_path / "run2" / task) for task in ("ag", "sst"))
    own = [key for key in first if key.split(".")[0] == "blocks" and key.split(".")[2] == "sst"]
    assert own and all(first[key] != second[key] for key in own)


@pytest.mark.parametrize("name", quick.only(["tiny-llama"], BACKBONES))
def test_hyperformer_trains_the_five_generation_tasks(name, tmp_path, capsys):
    tasks = ("nlg", "mt", "qa", "dialogue", "summarization")
    files = {task: str(small(tmp_path / f"{task}.json", task, train=2, valid=1, test=1)) for task in tasks}
    data = [f"{task}={path}" for task, path in files.items()]
    run = str(tmp_path / "run")
    train_vlm.main(["--tasks", *tasks, "--data", *data, "--model_checkpoint", name, "--method", "hyperformer++",
                    "--reduction_factor", "8", "--output_dir", run, *SHORT])  # fmt: skip
    info = checkpoint.load_checkpoint(run)[0].info
    assert info.methods == dict.fromkeys(tasks, method_of(dict(method="hyperformer++", reduction_factor=8)))
    evaluate_vlm.main(["--task", "nlg", "--model_checkpoint", run, "--data", data[0], "--no_sample", "--num_beams",
                       "2", "--max_length", "5", "--fp32", "--output_dir", str(tmp_path / "out")])  # fmt: skip
    with pytest.raises(SystemExit):
        combine_all.main(["--output", str(tmp_path / "vlm"), "--checkpoints", f"nlg={run}"])
    assert "hypernetworks generate the adapters of all tasks" in capsys.readouterr().err


def test_a_sequence_has_no_adapters_of_tasks_that_share_a_hypernetwork(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    lifelong_data.write(data)
    argv = lifelong_data.command(data, tmp_path / "run", "finetune", "--method", "hyperformer", "--reduction_factor", 8)
    with pytest.raises(SystemExit):
        train_lifelong.main([*argv, "--own_adapters"])
    assert "--own_adapters: not with hyperformer" in capsys.readouterr().err
    train_lifelong.main(argv)
    assert checkpoint.load_checkpoint(tmp_path / "run" / "sst")[0].info.methods["lifelong"]["method"] == "hyperformer"


@pytest.mark.parametrize(
    "typed, words",
    [
        (["--method", "lora", "--adapter_bottleneck", "4"], "--adapter_bottleneck 4: --method lora was given"),
        (["--method", "full", "--adapter_bottleneck", "0"], "--adapter_bottleneck 0: --method full was given"),
        (["--method", "ia3", "--lora_rank", "4"], "--lora_rank: has no effect with the method ia3"),
        (["--lora_rank", "4"], "--lora_rank: has no effect with the method full"),
        (["--method", "lora", "--lora_rank", "0"], "--lora_rank: '0': expected a whole number above 0"),
        (["--method", "loar"], "--method: invalid choice: 'loar'"),
        (["--method", "lora", "--emb_only"], "--emb_only: trains no adapter, but --method lora asks for one"),
        (["--method", "lora", "--outputlayer_only"], "--outputlayer_only: trains nothing but"),
        (["--method", "conditional"], "--method conditional: its block-diagonal attention is that of an encoder"),
        (["--method", "prefix", "--self_copy"], "--self_copy: reads attention weights"),
    ],
)
def test_flags_that_contradict_each_other_are_one_message(typed, words, files, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_train("nlg", files, tmp_path / "run", "tiny-gpt2", *typed)
    assert stopped.value.code == 2 and words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_every_setting_of_every_method_is_a_flag(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = capsys.readouterr().out
    for method in all_methods().values():
        assert method.name in shown and all(f"--{name}" in shown for name in method.settings)


def test_directories_are_named_by_what_is_not_default():
    assert method_flags.name_of(method_of("lora")) == "lora"
    assert method_flags.name_of(method_of(dict(method="lora", lora_rank=4))) == "lora_rank4"
    assert method_flags.name_of(None) == "full"


def test_evaluation_knows_what_a_checkpoint_was_trained_with(files, tmp_path, capsys):
    run = run_train("nlg", files, tmp_path / "run", "tiny-gpt2", "--method", "lora", "--lora_rank", "2")
    common = ["--task", "nlg", "--dataset_path", files["nlg"], "--model_checkpoint", str(run), "--output_dir",
              str(tmp_path / "out"), "--no_sample", "--max_length", "4", "--fp32"]  # fmt: skip
    for typed, words in (
        (["--adapter_bottleneck", "0"], "was trained with the method lora"),
        (["--emb_only"], "--emb_only: "),
    ):
        with pytest.raises(SystemExit):
            evaluate.main([*common, *typed])
        assert words in capsys.readouterr().err
    evaluate.main(common)
