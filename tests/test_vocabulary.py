"""One vocabulary: every published spelling in every script, config files, notices, the nearest flag, --version.

    python -m pytest tests/test_vocabulary.py
"""

import argparse
import importlib
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from versatile.utils.devices import PROFILE
from versatile.utils.errors import UserError
from versatile.utils.flags import typed_flags
from versatile.utils.settings import SETTINGS
from versatile.utils.stored_flags import rename_settings, restore_flags

TRAINERS = ["train", "train_vlm", "train_lifelong", "train_t5", "pretrain_t5", "train_camtl"]
EVALUATORS = ["evaluate", "evaluate_vlm", "interact", "sentence_distiller"]
SCRIPTS = [*TRAINERS, *EVALUATORS, "evaluate_lifelong", "combine_all", "compute_task_embeddings"]
# {spelling: a value}, of one setting in each row; what all trainers have.
TRAINING = [
    {"lr": "1e-3", "learning_rate": "1e-3"},
    {"n_epochs": "2", "n_train_epochs": "2", "num_train_epochs": "2"},
    {"model_checkpoint": "x", "model_name": "x", "model_name_or_path": "x"},
    {"train_batch_size": "4", "per_device_train_batch_size": "4", "per_gpu_train_batch_size": "4"},
    {"max_norm": "2", "max_grad_norm": "2"},
    {"adam_eps": "1e-7", "adam_epsilon": "1e-7"},
    {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler": "cosine_w_restarts"},
    {"keep_checkpoints": "5", "save_total_limit": "5"},
    *({name: value} for name, value in dict(
        gradient_accumulation_steps="3", warmup_steps="7", weight_decay="0.1", seed="3", output_dir="o", save_steps="9",
        logging_steps="9", report_to="none", cache_dir="c", resume="r").items()),
]  # fmt: skip
EVALUATION = {"valid_batch_size": "6", "per_device_eval_batch_size": "6", "per_gpu_eval_batch_size": "6"}
DECODING = [
    {"model_checkpoint": "x", "model_name": "x", "model_name_or_path": "x"},
    {"batch_size": "4", "test_batch_size": "4"},
    {"temperature": "0.5", "temperature_qa": "0.5"}, {"top_k": "4", "top_k_qa": "4"},
    {"top_p": "0.5", "top_p_qa": "0.5"},
    {"num_beams": "4", "eval_beams": "4"}, {"seed": "3"}, {"cache_dir": "c"},
]  # fmt: skip
CASES = [
    *((script, row) for script in TRAINERS for row in TRAINING),
    *((script, EVALUATION) for script in TRAINERS if script != "train_lifelong"),
    *((script, row) for script in EVALUATORS for row in DECODING),
    *(("evaluate_lifelong", row) for row in DECODING if not {"num_beams", "seed"} & row.keys()),
    *((script, {"kd_temperature": "3", "temperature_kd": "3", "temperature": "3"}) for script in TRAINERS[::2][:2]),
    ("train_t5", {"sampling_temperature": "10", "temperature": "10"}),
    ("train_camtl", {"warmup_ratio": "0.2", "warmup_proportion": "0.2"}),
    ("evaluate", {"dataset_path": "d", "data_dir": "d"}),
]  # fmt: skip


def parser_of(script):
    return importlib.import_module(script).parser()


def parse(script, *words):
    p = parser_of(script)
    for action in p._actions:
        action.required = False
    return p.parse_args(list(map(str, words)))


@pytest.mark.parametrize("script, row", CASES, ids=lambda v: v if isinstance(v, str) else next(iter(v)))
def test_every_published_spelling_is_taken_and_means_the_same(script, row):
    plain, found = vars(parse(script)), []
    for spelling, value in row.items():
        for word in (f"--{spelling}", f"--{spelling.replace('_', '-')}"):
            changed = {k: v for k, v in vars(parse(script, word, value)).items() if plain[k] != v}
            assert len(changed) == 1, (word, changed)
            found.append(changed)
    assert all(one == found[0] for one in found)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_setting_that_a_script_has_it_has_under_every_spelling(script):
    """Spellings that mean something else there are the exception, and said in a notice or listed here."""
    other = {("train_t5", "temperature"), ("train", "temperature"), ("train_lifelong", "temperature")}
    options = parser_of(script)._option_string_actions
    for name, setting in SETTINGS.items():
        own = options.get(f"--{name}")
        if own is None or (script, name) in other:
            continue
        for spelling in setting.spellings:
            assert options[f"--{spelling}"] is own, spelling


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_explained_and_stands_in_a_group(script):
    p = parser_of(script)
    shown = [action for action in p._actions if action.help != argparse.SUPPRESS]
    assert all(action.help and len(action.help) >= 5 for action in shown)
    (plain,) = [group for group in p._action_groups if group.title == "options"]
    assert {a.option_strings[0] for a in plain._group_actions if a.help != argparse.SUPPRESS} == {
        "-h", "--config", "--version"}  # fmt: skip


def test_no_parser_and_no_version_imports_torch_or_transformers():
    code = (f"import sys, importlib\nfor name in {SCRIPTS}:\n    importlib.import_module(name).parser().format_help()\n"
            "from versatile.utils.parser import version_line\nprint(version_line())\n"
            "assert not {'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("versatile ") and "torch 2" in done.stdout and "transformers 5" in done.stdout


def left(capsys, script, *words):
    """(exit code, stdout, stderr) of a script that leaves while it reads its flags."""
    with pytest.raises(SystemExit) as stop:
        parse(script, *words)
    shown = capsys.readouterr()
    return stop.value.code, shown.out, shown.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_flag_names_the_nearest_right_one(script, capsys):
    code, _, said = left(capsys, script, "--caache_dir", "x")
    assert code == 2 and said.startswith("error: --caache_dir: there is no such flag; did you mean --cache_dir?\n")
    code, _, said = left(capsys, script, "--cache", "x")
    assert code == 2 and "did you mean --cache_dir?" in said
    code, _, said = left(capsys, script, "--xyzzyq", "x")
    assert code == 2 and said.startswith("error: --xyzzyq: there is no such flag\n")
    assert left(capsys, script, "--version")[0] == 0


def test_two_spellings_of_one_setting_on_one_command_line_are_refused(capsys):
    code, _, said = left(capsys, "train", "--lr", "1e-3", "--learning-rate", "1e-4")
    assert code == 2 and "--learning_rate: it is the same setting as --lr: give one of them" in said


def test_switches_take_a_value_and_only_a_truth(capsys):
    for words, on in (([], False), (["--self_copy"], True), (["--self-copy", "true"], True),
                      (["--self_copy=false"], False), (["--self_copy", "no", "--seed", "1"], False)):  # fmt: skip
        assert parse("train", *words).self_copy is on
    assert left(capsys, "train", "--self_copy=perhaps")[2].startswith("error: --self_copy: 'perhaps': expected true or")
    assert left(capsys, "train", "--bf16", "--fp32")[2].startswith("error: --fp32: not allowed with argument --bf16")
    assert parse("train", "--bf16", "--fp32", "false").bf16


def test_a_spelling_that_meant_something_else_is_told_so_once(capsys):
    assert parse("train", "--temperature", "3").kd_temperature == 3.0
    said = capsys.readouterr().err
    assert said.count("note: ") == 1 and "--kd_temperature" in said
    for script in ("train", "train_vlm", "train_camtl", "evaluate", "evaluate_vlm"):
        assert parse(script, "--cache_dir", "c").cache_dir == "c"
        assert "tokenised data go to --token_cache_dir" in capsys.readouterr().err
    silent = dict(train="--kd_temperature=3", interact="--temperature=1 --cache_dir=c",
                  train_t5="--temperature=10 --cache_dir=c")  # fmt: skip
    for script, words in silent.items():
        parse(script, *words.split())
        assert not capsys.readouterr().err


# ---- config files


def written(folder, content, name="config.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


YAML = "task: nlg\nlearning_rate: 1e-3   # as published\nself-copy: true\nmax_history: null\nbf16: yes\n"


@pytest.mark.parametrize("place", ["first", "--config", "--config=", "last"])
def test_a_config_file_says_what_flags_would_and_flags_override_it(tmp_path, place):
    path = written(tmp_path, YAML, "c.yaml")
    typed = ["--seed", "5", "--fp32"]
    words = {"first": [path, *typed], "--config": ["--config", path, *typed], "--config=": [f"--config={path}", *typed],
             "last": [*typed, "--config", path]}[place]  # fmt: skip
    args = parse("train", *words)
    assert (args.task, args.lr, args.self_copy, args.seed, args.fp32, args.bf16) == ("nlg", 1e-3, True, 5, True, False)
    assert parse("train", *words, "--self_copy", "false", "--lr", "1").lr == 1.0
    assert not parse("train", *words, "--self_copy", "false").self_copy
    typed = typed_flags(lambda: parser_of("train"), list(map(str, words)))
    assert typed == dict(task="nlg", lr=1e-3, self_copy=True, seed=5, fp32=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_reads_a_config_file(script, tmp_path):
    path = written(tmp_path, {"cache_dir": "here"})
    assert parse(script, "--config", path).cache_dir == "here"
    assert parse(script, path, "--cache-dir", "there").cache_dir == "there"


def test_what_takes_effect_at_once_is_overridden_too(tmp_path, monkeypatch):
    names = ("CUDA_VISIBLE_DEVICES", "PJRT_DEVICE", PROFILE)
    for name in names:
        monkeypatch.setenv(name, "as before")
    path = written(tmp_path, dict(device="cpu", profile="here"))
    parse("train", path, "--device", "auto", "--profile", str(tmp_path / "there"))
    assert [os.environ[name] for name in names] == ["as before", "as before", str(tmp_path / "there")]
    parse("train", path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and os.environ[PROFILE] == os.path.abspath("here")


def test_lists_and_objects_of_a_config_file(tmp_path):
    content = dict(tasks=["nlg", "mt"], data=dict(nlg="a b.json"), limit=dict(nlg=3), adapter_bottleneck=8,
                   lr_scheduler_kwargs=dict(num_cycles=2))  # fmt: skip
    args = parse("train_vlm", written(tmp_path, content))
    assert args.tasks == ["nlg", "mt"] and args.data == {"nlg": "a b.json"} and args.limit == [["nlg", 3]]
    assert args.adapter_bottleneck == [["", 8]] and args.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("c.json", "{", ["c.json: not valid json"]),
        ("c.json", "[1]", ["c.json: [1] (list) is not a json object"]),
        ("c.json", '{"seed": 1, "seed": 2}', ["c.json", "the key", "appears twice"]),
        ("c.json", {"learning_rat": 1}, ["c.json: learning_rat: there is no such flag", "did you mean learning_rate?"]),
        ("c.json", {"version": True}, ["c.json: version: there is no such flag"]),
        ("c.json", {"lr": "fast"}, ["c.json: lr: 'fast'", "expected: a number above 0"]),
        ("c.json", {"self_copy": "perhaps"}, ["c.json: self_copy", "expected: true or false"]),
        ("c.json", {"kd": "words"}, ["c.json: kd: 'words'", "expected: one of word, sentence, both"]),
        ("c.json", {"seed": [1, 2]}, ["c.json: seed: it is [1, 2]", "expected: one value"]),
        ("c.json", {"lr": 1, "learning-rate": 2}, ["c.json: learning-rate: the same setting as", "c.json: lr"]),
        ("c.json", {"lm_coef": 2.0}, ["c.json: lm_coef: the original never read it"]),
        ("c.yaml", "task: nlg\n\nlr: fast\n", ["c.yaml:3: lr: 'fast'", "expected: a number above 0"]),
        ("c.yaml", "task: nlg\nlrr: 1\n", ["c.yaml:2: lrr: there is no such flag", "did you mean lr?"]),
        ("c.yaml", "task: nlg\ntask: mt\n", ["c.yaml:2: the key task appears twice"]),
        ("c.yaml", "task: nlg\n  lr: [1\n", ["c.yaml:2", "not valid yaml"]),
        ("c.yml", "- task\n", ["c.yml:1: not a yaml mapping"]),
    ],
)
def test_a_broken_config_file_is_refused_with_file_key_and_line(name, content, fragments, tmp_path):
    with pytest.raises(UserError) as refused:
        parse("train", written(tmp_path, content, name))
    for fragment in fragments:
        assert fragment in str(refused.value)


def test_what_a_config_file_switches_off_is_not_asked_for(tmp_path):
    args = parse("train", written(tmp_path, {"lm_coef": False, "self_copy": False, "teacher": None}), "--seed", "1")
    assert not args.self_copy and args.teacher is None


def test_a_config_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        parse("evaluate", "--config", tmp_path / "none.yaml")


# ---- flags of older runs


def test_flags_of_older_runs_are_read_under_todays_names():
    p = parser_of("train")
    old = dict(temperature=3.0, cache_dir="tokens", lr=0.1, max_norm=1.0, own_tasks=None)
    found = restore_flags(p, rename_settings(old, p), "run.json")
    assert found == dict(kd_temperature=3.0, token_cache_dir="tokens", lr=0.1, max_norm=1.0, own_tasks=None)
    new = dict(cache_dir="hub", token_cache_dir=None, kd_temperature=2.0)
    assert restore_flags(p, rename_settings(new, p), "run.json") == new
    p = parser_of("train_lifelong")
    old = dict(n_train_epochs=9, learning_rate=None, max_grad_norm=1.0, temperature_kd=2.0, adam_epsilon=None)
    assert restore_flags(p, rename_settings(old, p), "run.json") == dict(
        n_epochs=9, lr=None, max_norm=1.0, kd_temperature=2.0, adam_eps=None)  # fmt: skip
    p = parser_of("train_camtl")
    old = dict(num_train_epochs=3.0, per_gpu_train_batch_size=None, train_batch_size=8, no_cuda=False)
    assert rename_settings(old, p) == dict(n_epochs=3.0, train_batch_size=8, no_cuda=False)


@pytest.mark.parametrize("name", ["camtl_base", "lifelong_adapter", "lifelong_full"])
def test_stored_runs_of_older_versions_are_read(name):
    path = ROOT / "tests" / "saved" / name / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    p = parser_of(record["command"].split()[0].removesuffix(".py"))
    known = rename_settings(record["flags"], p)
    found = restore_flags(p, known, path)
    assert found["n_epochs"] == 1 and found["max_norm"] == 1.0
    assert not {"n_train_epochs", "num_train_epochs", "learning_rate"} & found.keys()


@pytest.mark.parametrize("number", ["-1e-1", "-.1", "-0.1", "-1E-01"])
def test_negative_numbers_are_values_of_a_flag(number):
    import evaluate

    args = evaluate.parser().parse_args(["--task", "nlg", "--num_beams", "2", "--length_penalty", number])
    assert args.length_penalty == -0.1
