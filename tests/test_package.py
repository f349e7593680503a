"""The toolkit as a package: what a wheel holds, and what `import versatile` offers.

    python -m pytest tests/test_package.py
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from scripts import SAMPLES, without_java
from versatile.utils.errors import EXTRAS, UserError

import versatile
from versatile import __main__ as by_name
from versatile import api

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Names at the root of a checkout that belong to other packages where things are installed.
OTHERS = ("adapters", "data", "utils", "evaluate", "tests", "training", "train")


TINY_FLAGS = dict(
    model_checkpoint="tiny-gpt2", adapter_bottleneck=4, limit=8, n_epochs=1, train_batch_size=4, lr=1e-3,
    gradient_accumulation_steps=1, fp32=True, no_validation=True,
)  # fmt: skip


def pip(*words, **options):
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the checkout, as setuptools writes next to its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns(".*", "runs", "results", "outputs", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=leave)
    pip("wheel", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, folder / "source")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel):
    """The directory in which the wheel is installed, by itself."""
    target = wheel.parent / "site"
    pip("install", "--no-index", "--no-deps", "--target", target, wheel)
    return target


def python(code, cwd, *path):
    """Run a few lines with nothing of the checkout to import; returns their output, as json."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_wheel_holds_all_of_the_toolkit_under_one_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"versatile", f"{wheel.name.split('-py3')[0]}.dist-info"}
    rooms = ("adapters", "data", "training", "lifelong", "utils", "configs")
    modules = [path for room in rooms for path in (ROOT / room).rglob("*.py") if "samples" not in path.parts]
    wanted = {f"versatile/{path.relative_to(ROOT)}" for path in modules}
    wanted |= {f"versatile/scripts/{path.name}" for path in ROOT.glob("*.py")}
    wanted |= {f"versatile/{path.name}" for path in (ROOT / "versatile").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == wanted and len(wanted) > 100
    files = [*(ROOT / "configs").glob("*.json"), *(ROOT / "data/samples").rglob("*.json")]
    files += [path for kind in ("tsv", "yaml", "jsonl") for path in (ROOT / "data/samples").rglob(f"*.{kind}")]
    assert {f"versatile/{path.relative_to(ROOT)}" for path in files} < set(names) and len(files) > 30


def test_an_installed_wheel_trains_and_answers_from_python(installed, tmp_path):
    code = f"""
import sys, json, versatile
cheap = "torch" not in sys.modules
run = versatile.train(dict(task="nlg", dataset_path=versatile.SAMPLES / "nlg.json", output_dir="run", max_steps=2,
                           {", ".join(f"{k}={v!r}" for k, v in TINY_FLAGS.items())}))
texts = versatile.load(run).generate_text("nlg", ["name[The Punter]", "name[Aromi], food[Thai]"], max_length=5)
print(json.dumps([cheap, texts, versatile.__file__, str(run), json.load(open("run/run.json"))["commit"]]))
"""
    cheap, texts, file, run, commit = python(code, tmp_path, installed)
    assert cheap and Path(file).is_relative_to(installed) and run == "run" and commit is None
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)
    assert json.loads((tmp_path / "run/metrics.json").read_text())["steps"] == 2


def test_others_packages_stay_importable_beside_an_installed_wheel(installed, tmp_path):
    for name in OTHERS:
        (tmp_path / f"{name}.py").write_text("")
    code = f"""
import json, versatile.training.runs, versatile.data.task, versatile.adapters, versatile.scripts.evaluate
import {", ".join(OTHERS)}
print(json.dumps([module.__file__ for module in ({", ".join(OTHERS)})]))
"""
    assert python(code, "/", installed, tmp_path) == [str(tmp_path / f"{name}.py") for name in OTHERS]


@pytest.mark.slow
def test_an_installed_script_is_called_by_its_name(installed, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(installed)}
    options = dict(cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    start = [sys.executable, "-m", "versatile"]
    flags = dict(TINY_FLAGS, task="nlg", dataset_path=SAMPLES / "nlg.json", max_steps=1, output_dir="run")
    done = subprocess.run([*start, "train", *api.command_line(flags)], **options)
    assert done.returncode == 0, done.stderr
    # The next command is shown as it has to be typed here.
    assert "next: python -m versatile evaluate --task nlg" in done.stdout
    command = json.loads((tmp_path / "run/run.json").read_text())["command"]
    assert command.startswith("train.py --model_checkpoint=tiny-gpt2")
    done = subprocess.run([*start, "trane"], **options)
    assert done.returncode == 2 and "no script 'trane'" in done.stderr and "train_vlm" in done.stderr


def test_options_of_a_schedule_are_a_dict():
    words = api.command_line(dict(fp32=True, lr_scheduler_kwargs={"num_cycles": 2}, data=dict(nlg="x")))
    assert words[1:3] == ["--lr_scheduler_kwargs", '{"num_cycles": 2}'] and words[-1] == "nlg=x"


def train(tmp_path, task="nlg", **more):
    return versatile.train({"task": task, "dataset_path": versatile.SAMPLES / f"{task}.json", "max_steps": 1,
                            "output_dir": tmp_path / task, **TINY_FLAGS, **more})  # fmt: skip


def test_python_combines_evaluates_and_answers_what_it_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", without_java()["PATH"])
    runs = {task: train(tmp_path, task) for task in ("nlg", "qa")}
    data = {task: versatile.SAMPLES / f"{task}.json" for task in runs}
    vlm = versatile.combine(runs, tmp_path / "VLM", data=data, proof_examples=1, proof_tokens=4)
    model = versatile.load(vlm, precision="fp32")
    text = "name[The Punter], food[Italian]"
    alone = versatile.load(runs["nlg"], precision="fp32").generate_text("nlg", text, max_length=6)
    assert model.generate_text("nlg", text, max_length=6) == alone != ""
    turns = ["document: The Severn rises in Wales.", "Where does it rise?"]
    (answer,) = model.generate_text("qa", [turns], max_length=6)
    assert isinstance(answer, str)
    flags = dict(task="nlg", dataset_path=data["nlg"], model_checkpoint=vlm, no_sample=True, limit=2, max_length=4)
    scores = versatile.evaluate(flags)
    assert list(scores) == ["nlg"] and scores["nlg"]["instances"] == 2
    # What an earlier evaluation left there is not returned.
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/mt_metrics.json").write_text("")
    assert list(versatile.evaluate(dict(flags, output_dir=tmp_path / "scores"))) == ["nlg"]
    with pytest.raises(versatile.UserError, match="does not write scores task by task"):
        versatile.evaluate(dict(model_dirs=["x"]), "evaluate_lifelong")
    wrong = (dict(max_length=0), "max_length"), (dict(num_beams="4"), "num_beams"), (dict(beams=4), "beams")
    for settings, words in wrong:
        with pytest.raises(versatile.UserError, match=words):
            model.generate_text("nlg", text, **settings)
    with pytest.raises(versatile.UserError, match="not a text"):
        model.generate_text("nlg", None)


def test_a_directory_named_in_a_config_file_or_by_a_root_is_the_runs(tmp_path, monkeypatch):
    flags = dict(TINY_FLAGS, task="nlg", dataset_path=str(versatile.SAMPLES / "nlg.json"), max_steps=1)
    (tmp_path / "train.json").write_text(json.dumps(dict(flags, output_dir=str(tmp_path / "named"))))
    assert versatile.train(dict(config=tmp_path / "train.json")) == tmp_path / "named"
    assert (tmp_path / "named/metrics.json").is_file()
    monkeypatch.chdir(tmp_path)
    sequence = dict(data_dir=ROOT / "data/samples/lifelong", tasks=["ag"], model_name="tiny-gpt2", adapter_bottleneck=8)
    sequence |= dict(seq_train_type="finetune", model_dir_root="root", limit=6, n_train_epochs=1, min_n_steps=1)
    folder = versatile.train(sequence, script="train_lifelong")
    assert folder.parts[0] == "root" and (folder / "ag").is_dir() and not (tmp_path / "runs").exists()


def test_flags_of_a_call_are_none_of_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    train(tmp_path, profile=str(tmp_path / "profile"), device="cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7" and "VERSATILE_PROFILE" not in os.environ


def test_a_thread_trains(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert (pool.submit(train, tmp_path).result() / "metrics.json").is_file()


def run_here(code, tmp_path, monkeypatch):
    """Execute code in an empty directory; returns its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", without_java()["PATH"])
    names = {"__name__": "notebook"}
    exec(compile(code, "notebook.py", "exec"), names)
    return names


def test_the_notebook_runs(tmp_path, monkeypatch):
    names = run_here((ROOT / "docs/notebook.py").read_text(encoding="utf-8"), tmp_path, monkeypatch)
    assert list(names["model"].tasks) == ["nlg", "qa"] and (tmp_path / "runs/notebook/both/run.json").is_file()


def test_the_lines_of_python_in_readme_run(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import versatile\n.*?)```", text, re.S)
    assert len(code.splitlines()) <= 10 and '"smollm2"' in code
    code = code.replace("dict(flags,", 'dict(flags, model_checkpoint="tiny-gpt2", limit=4, max_steps=1,')
    names = run_here(code, tmp_path, monkeypatch)
    assert list(names["model"].tasks) == ["nlg", "mt"] and capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("flags", "words"), [
    (dict(task="nlg", n_epochs="many"), "--n_epochs: 'many'"),
    (dict(task="nlg", epochs=3), "--epochs: there is no such flag"),
    (dict(task="poems"), "poems"),
    (dict(task="nlg", dataset_path="nowhere.json"), "nowhere.json"),
])  # fmt: skip
def test_what_a_script_would_refuse_is_an_exception(tmp_path, flags, words):
    before = list(sys.argv)
    with pytest.raises(UserError) as error:
        versatile.train(dict(TINY_FLAGS, output_dir=tmp_path / "run", **flags))
    assert words in str(error.value) and not (tmp_path / "run").exists() and sys.argv == before


def test_a_script_called_by_its_name_prints_what_python_raises_and_leaves_the_command_line_alone(capsys):
    before = list(sys.argv)
    with pytest.raises(UserError) as error:
        api.run_script("train", dict(task="nlg", epochs=3))
    with pytest.raises(SystemExit):
        by_name.main(["train", "--task", "nlg", "--epochs=3"])
    printed = capsys.readouterr().err
    # Each as what was called is named.
    assert printed == f"error: {error.value}\n".replace("see train.py", "see versatile train")
    assert "see versatile train --help" in printed and sys.argv == before


def test_what_is_no_input_of_the_model_is_refused(tmp_path):
    model = versatile.load(train(tmp_path))
    for task, text in (("mt", "A man."), ("nlg", "no slots"), ("nlg", [["name[A]", 3]]), ("nlg", [[]])):
        with pytest.raises(UserError):
            model.generate_text(task, text)
    assert model.generate_text("nlg", []) == []
    for directory, precision in ((tmp_path, None), (tmp_path / "nowhere", None), (tmp_path / "nlg", "fp12")):
        with pytest.raises(UserError):
            versatile.load(directory, precision=precision)
    with pytest.raises(UserError, match="no script 'test_package'"):
        versatile.train({}, script="test_package")
    with pytest.raises(UserError, match="evaluate trains nothing"):
        versatile.train({}, script="evaluate")
    # A key of Decoding is named; there is no file to copy again.
    for settings, found in ((dict(max_len=3), "unknown key 'max_len'"), (dict(temperature=0), "temperature is 0")):
        with pytest.raises(UserError, match=found) as refused:
            model.generate_text("nlg", "name[A]", **settings)
        assert refused.value.remedy == "correct it, or leave it out"


def test_half_a_surrogate_pair_is_read_as_in_data_files(tmp_path):
    model = versatile.load(train(tmp_path, "mt"))
    assert model.generate_text("mt", ["a \ud800 b"], max_length=3) == model.generate_text("mt", ["a ? b"], max_length=3)


def test_results_that_are_not_kept_are_not_said_to_be_anywhere(tmp_path, capsys):
    flags = dict(task="mt", model_checkpoint=train(tmp_path, "mt"), dataset_path=SAMPLES / "mt.json", limit=1,
                 max_length=3, no_sample=True)  # fmt: skip
    for output in (None, tmp_path / "out"):
        capsys.readouterr()
        assert "BLEU" in versatile.evaluate(dict(flags, output_dir=output))["mt"]["scores"]
        assert ("results in" in capsys.readouterr().out) == bool(output)


def test_flags_are_written_as_on_the_command_line():
    flags = dict(config="c.json", task="nlg", fp32=True, bf16=False, limit=None, lr=-1, tasks=["a", "b"], data={"a": 1})
    words = ["c.json", "--task=nlg", "--fp32", "--bf16=false", "--lr=-1", "--tasks", "a", "b", "--data", "a=1"]
    assert api.command_line(flags) == words


def pins(name):
    """{package: version} of a requirements file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines if "==" in x)}


def bounds(*groups):
    """{package: `Requirement`} of lists of pyproject.toml."""
    return {canonicalize_name(r.name): r for group in groups for r in map(Requirement, group)}


def test_what_was_tested_is_within_the_bounds_and_each_package_is_named_in_both():
    extras = dict(PYPROJECT["optional-dependencies"])
    assert set(extras) == {"t5", "metrics", "peft", "quantization", "lm-eval", "dev"}
    development, harness = bounds(extras.pop("dev")), bounds(extras.pop("lm-eval"))
    running = bounds(PYPROJECT["dependencies"], *extras.values())
    for file, wanted in (("requirements.txt", running), ("requirements-dev.txt", development)):
        assert set(pins(file)) == set(wanted), file
        for name, version in pins(file).items():
            assert wanted[name].specifier.contains(version), (name, version)
    # lm_eval's dependencies would hold others back.
    assert "lm-eval" in harness and "lm-eval" not in running | development
    assert set(EXTRAS.values()) == set(extras)


@pytest.mark.slow
def test_without_the_extras_packages_a_model_trains_and_a_script_that_needs_one_says_so(tmp_path):
    code = f"""
import json
from importlib.machinery import PathFinder
find, missing = PathFinder.find_spec, {set(EXTRAS)!r}
PathFinder.find_spec = staticmethod(lambda name, *more: None if name.split(".")[0] in missing else find(name, *more))
import versatile
from versatile.api import command_line
from versatile.scripts import evaluate, train
flags = dict(task="nlg", dataset_path=versatile.SAMPLES / "nlg.json", output_dir="run", max_steps=1, **{TINY_FLAGS!r})
train.main(command_line(flags))
text = versatile.load("run").generate_text("nlg", "name[A]", max_length=3)
try:
    evaluate.main(["--task", "nlg", "--dataset_path", str(flags["dataset_path"]), "--model_checkpoint", "run"])
except SystemExit as leave:
    print(json.dumps([text, leave.code]))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[1] == 2
    assert re.search(r"error: .*the package \w+ is not installed\n  remedy: .*versatile-lm\[metrics\]", done.stderr)


def test_every_paper_is_cited_with_what_the_format_asks_for():
    import yaml

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= set(cited)
    assert cited["version"] == PYPROJECT["version"] and cited["license"] == PYPROJECT["license"]
    titles = [paper["title"] for paper in cited["references"]]
    text = (ROOT / "README.md").read_text(encoding="utf-8").translate({ord(c): None for c in "{}\\"})
    readme = " ".join(text.split())
    assert len(titles) == 5 and all(title in readme for title in titles)
    for paper in cited["references"]:
        assert {"type", "title", "authors", "year"} <= set(paper) and all("family-names" in a for a in paper["authors"])


def test_every_name_of_the_interface_is_there():
    assert set(versatile.__all__) <= set(dir(versatile))
    for name in versatile.__all__:
        assert getattr(versatile, name)
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        versatile.tain  # noqa: B018


def commands(text, cwd, *words):
    """`versatile --commands -` with a text."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-m", "versatile", "--commands", *(words or ["-"])]
    return subprocess.run(start, input=text, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_commands_run_one_after_another_in_one_process_until_one_fails(tmp_path):
    lines = [shlex.join(["train.py", *api.command_line(dict(TINY_FLAGS, task=task, max_steps=1, output_dir=f"my {task}",
                         dataset_path=SAMPLES / f"{task}.json"))]) for task in ("nlg", "mt")]  # fmt: skip
    broken = f"evaluate --task nlg --model_checkpoint nowhere --dataset_path {SAMPLES / 'nlg.json'}"
    done = commands("\n".join([f"# two {len(lines)}", lines[0], "", *lines[1:], broken, lines[0]]), tmp_path)
    assert done.returncode == 2 and "nowhere" in done.stderr and done.stderr.count("error:") == 1
    printed = done.stdout.splitlines()
    assert printed[0] == "two 2" and sum(line.startswith("done:") for line in printed) == 2
    typed = [line.split()[:5] for line in printed if line.startswith("$ ")]
    assert typed == [["$", "python", "-m", "versatile", script] for script in ("train", "train", "evaluate")]
    assert "'--output_dir=my nlg'" in done.stdout
    # Each gives the same as in a process of its own.
    alone = versatile.train(dict(TINY_FLAGS, task="mt", dataset_path=SAMPLES / "mt.json", max_steps=1,
                                 output_dir=tmp_path / "alone"))  # fmt: skip
    name = "adapter_model.safetensors"
    assert (alone / name).read_bytes() == (tmp_path / "my mt" / name).read_bytes()
    assert json.loads((tmp_path / "my mt/run.json").read_text())["command"].startswith("train.py --model_checkpoint")


def test_commands_that_cannot_be_run_are_met_before_the_first_one_is(tmp_path):
    line = shlex.join(["train", *api.command_line(dict(TINY_FLAGS, task="nlg", dataset_path=SAMPLES / "nlg.json"))])
    for second, words in (("trane --task nlg", "no script 'trane'"), ("train --task 'nlg", "No closing quotation")):
        done = commands(f"{line} --output_dir run\n{second}\n", tmp_path)
        assert done.returncode == 2 and "standard input:2" in done.stderr and words in done.stderr, done.stderr
        assert not (tmp_path / "run").exists() and "Traceback" not in done.stderr
    for text, words in (("", ("nowhere.txt",)), ("", ("a", "b")), ("# none\n", ()), ("train \\", ())):
        done = commands(text, tmp_path, *words)
        assert done.returncode == 2 and ("--commands" in done.stderr or "standard input" in done.stderr)
        assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_commands_may_be_pasted_from_a_docstring(tmp_path):
    done = commands("\ufeffpython train.py \\\n  --version\n# after\n./evaluate.py --help\n", tmp_path)
    assert done.returncode == 0 and "usage: evaluate.py" in done.stdout
    assert done.stdout.index("versatile 0") < done.stdout.index("\nafter\n")


def test_idle_threads_wait_as_the_user_says(tmp_path):
    code = "import json, os, versatile.utils.errors; print(json.dumps(os.environ.get('GOMP_SPINCOUNT')))"
    for given, expected in (({}, "2000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")):
        env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | given
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
        assert json.loads(done.stdout) == expected
