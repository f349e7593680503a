"""README and run.sh say what is true.

    python -m pytest tests/test_readme.py
"""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def run_sh(*args):
    return subprocess.run(
        ["bash", str(ROOT / "run.sh"), *args], capture_output=True, text=True, timeout=60, check=False
    )


def recipes():
    lines = run_sh("list").stdout.splitlines()
    return dict(x.split(None, 1) for x in lines if " python " in x)


def test_every_recipe_and_command_parses_with_its_scripts_flags():
    commands = [shlex.split(line)[1:] for line in recipes().values()]
    for block in blocks("console"):
        for line in block.splitlines():
            words = shlex.split(line.split("#")[0].replace("…", "").replace("<run>", "run"))
            if words[:1] == ["python"] and words[1].endswith(".py"):
                commands.append(words[1:])
    assert len(commands) >= 8
    for script, *flags in commands:
        if (ROOT / script).is_file():
            importlib.import_module(script.removesuffix(".py")).parser().parse_args(flags)


def test_list_prints_every_recipe_that_readme_names():
    named = set(re.findall(r"`\./run\.sh ([\w-]+)`", README))
    known = {"setup", "demo", "test", "bench", "table", "list"} | set(recipes())
    assert named and named <= known


def test_an_unknown_recipe_is_one_line_and_exit_code_2():
    done = run_sh("no-such-recipe")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "./run.sh list" in done.stderr


def test_files_and_pictures_that_readme_names_exist():
    for path in re.findall(r"\]\((?!http|#)([^)#]+)\)", README) + re.findall(
        r"`((?:data|bench|docs)/[\w./]+\.\w+)`", README
    ):
        if not path.startswith(("data/NLG", "data/NMT", "data/persona", "data/CoQA", "data/SQuAD", "data/poem")):
            assert (ROOT / path).is_file(), path
    for heading in re.findall(r"\]\(#([\w-]+)\)", README):
        titles = [
            re.sub(r"[^\w -]", "", t).strip().lower().replace(" ", "-") for t in re.findall(r"^#+ (.*)", README, re.M)
        ]
        assert heading in titles


@pytest.fixture
def registry():
    from data import task

    task.all_tasks()
    before = dict(task._TASKS)
    yield task
    task._TASKS.clear()
    task._TASKS.update(before)


def test_the_task_shown_in_readme_is_a_task(registry):
    code = next(b for b in blocks("python") if "class Poem" in b)
    exec(compile(code, "poem.py", "exec"), {"__name__": "poem"})
    poem = registry._TASKS["poem"]
    (example,) = poem.examples({"title": "Rain", "poem": "It falls."}, "here")
    assert example.references == ["It falls."] and example.context[0].marker == "<title>"
    assert "BLEU" in poem.score(["It falls."], [["It falls."]])[0]


def test_the_family_shown_in_readme_is_a_family():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from adapters import backbones

    code = next(b for b in blocks("python") if "gpt_neox" in b)
    exec(compile(code, "neox.py", "exec"), {})
    try:
        config = GPTNeoXConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=90
        )
        family = backbones.family_of(config)
        assert len(family.blocks(GPTNeoXForCausalLM(config))) == 2
        assert family.norm_eps(config) > 0 and family.positions(config) == config.max_position_embeddings
    finally:
        backbones._FAMILIES.pop("gpt_neox")


def test_importing_a_script_imports_no_other_script():
    for script in ROOT.glob("*.py"):
        names = re.findall(r"^\s*(?:from|import) (\w+)", script.read_text(encoding="utf-8"), re.M)
        assert not {p.stem for p in ROOT.glob("*.py")} & set(names), script


def test_python_is_new_enough_for_what_is_promised():
    assert sys.version_info >= (3, 11) and 'requires-python = ">=3.11"' in (Path(ROOT) / "pyproject.toml").read_text()
