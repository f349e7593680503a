"""What README and run.sh say is true.

    python -m pytest tests/test_readme.py
"""

import importlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

# README and the pages it links to: {file: text}.
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
README = "\n".join(PAGES.values())
# Stands in the log of a replaced python before each file of commands.
PART = "--- a file of commands"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def run_sh(*args):
    return subprocess.run(
        ["bash", str(ROOT / "run.sh"), *args], capture_output=True, text=True, timeout=240, check=False
    )


def recipes(*names):
    lines = run_sh("list", *names).stdout.splitlines()
    return dict(x.split(None, 1) for x in lines if " python " in x)


def test_every_recipe_and_command_parses_with_its_scripts_flags():
    commands = [shlex.split(line)[1:] for line in recipes().values()]
    for block in blocks("console"):
        for line in block.splitlines():
            words = shlex.split(line.split("#")[0].replace("…", "").replace("<run>", "run"))
            if words[:1] == ["python"] and words[1].endswith(".py"):
                commands.append([word.replace("GLUE", "data/samples/glue") for word in words[1:]])
    assert len(commands) >= 8
    for script, *flags in commands:
        if not (ROOT / script).is_file():
            continue
        importlib.import_module(script.removesuffix(".py")).parser().parse_args(flags)


def test_list_prints_every_recipe_that_readme_names():
    named = set(re.findall(r"`\./run\.sh ([\w-]+)`", README))
    known = {"setup", "demo", "lifelong-demo", "camtl-demo", "test", "bench", "table", "list"} | set(recipes())
    assert named and named <= known


def test_published_recipes_are_in_the_originals_precision():
    published = {name: line for name, line in recipes().items() if re.match("vlm-|lifelong-|t5-|camtl-", name)}
    assert len(published) > 40
    for name, line in published.items():
        # Combining is always in float32.
        assert ("--fp32" in line.split()) != ("combine_all.py" in line), name


def test_each_number_of_frozen_layers_that_was_published_has_its_recipe():
    found = recipes("camtl-base", "camtl-base-0-4", "camtl-base-uncertainty", "camtl-base-0-4-uncertainty")
    frozen = {name: option(line, "--freeze_encoder_layers") for name, line in found.items()}
    assert frozen == {name: "0-4" if "0-4" in name else "0-5" for name in found} and len(found) == 4


def option(line, flag):
    words = line.split()
    return words[words.index(flag) + 1]


def test_an_unknown_recipe_is_one_line_and_exit_code_2():
    done = run_sh("no-such-recipe")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "./run.sh list" in done.stderr


@pytest.mark.parametrize("words", [["--output_dir", "my run"], ["--output_dir=my run"], ["--dataset_path", "a b"]])
def test_a_recipe_refuses_a_name_with_a_space_before_anything_is_trained(words):
    done = run_sh("e2e-adapter", *words)
    assert done.returncode == 2 and not done.stdout and f"error: {words[0].split('=')[0]} '" in done.stderr


def lifelong_recipes():
    """{name: flags as parsed} of every order and method that run.sh names."""
    import train_lifelong

    text = (ROOT / "recipes.sh").read_text(encoding="utf-8")
    orders, methods = (re.search(rf'^LIFELONG_{what}="(.*)"$', text, re.M)[1].split() for what in ("ORDERS", "METHODS"))
    lines = recipes(*(f"lifelong-{order}-{method}" for order in orders for method in methods))
    assert len(lines) == len(orders) * len(methods) == 189
    found, p = {}, train_lifelong.parser()
    for name, line in lines.items():
        python, script, *flags = shlex.split(line)
        assert (python, script) == ("python", "train_lifelong.py")
        found[name] = p.parse_args(["--data_dir", "data", "--model_dir_root", "runs", *flags])
        train_lifelong.check_flags(p, found[name])
    return found


def test_lifelong_recipes_are_the_published_ones_in_all_orders():
    from versatile.data import question_tasks as tasks
    from versatile.lifelong import sequence

    found = lifelong_recipes()
    for args in found.values():
        tasks.sequence(args.tasks)
        assert args.add_task_tokens and args.gen_lm_sample_percentage == 0.2
    assert len({sequence.directory(args) for args in found.values()}) == len(found)
    learned = {name.split("-")[1]: args.tasks for name, args in found.items()}
    initial = {"woz.en": "w", "cnn_dailymail": "c", "wikisql": "s", "sst": "t", "srl": "r"}
    initials = {"".join(initial.get(t, "?") for t in order): name
                for name, order in learned.items() if len(order) == 3}  # fmt: skip
    letters = [*itertools.permutations("wcs"), *itertools.permutations("trw")]
    assert initials == {name: name for name in map("".join, letters)}
    # LAMOL's own: decaNLP's from the largest on, five of text classification.
    assert learned["deca"] == ["squad2", "wikisql", "sst", "srl", "woz.en"]
    four = [learned[f"tc{number}"] for number in (1, 2, 3, 4)]
    assert {tuple(sorted(order)) for order in four} == {tuple(sorted(learned["tc"]))}
    assert len(set(map(tuple, [*four, learned["tc"], learned["tc_reversed"]]))) == 6
    for name in ("nlg", "tc"):
        assert len(learned[name]) == 5 and learned[f"{name}_reversed"] == learned[name][::-1]
    assert {args.seed for name, args in found.items() if "-nlg" in name} == {531}
    soft = found["lifelong-tc-seqsoftkd"]
    assert soft.seq_train_type == "lll" and soft.distil and soft.seq_distil and soft.train_teachers


@pytest.mark.parametrize("name", ["lifelong-wcs", "lifelong-cwx-kd", "lifelong-tc-kdd", "lifelong-tc-kd-again"])
def test_an_unknown_lifelong_recipe_is_refused_by_list_too(name):
    for args in ([name], ["list", name]):
        done = run_sh(*args)
        assert done.returncode == 2 and f"no recipe '{name}'" in done.stderr and not done.stdout


@pytest.fixture
def started(tmp_path):
    """Starts a copy of run.sh in an empty directory, with a python that only writes down what it is called with.

    Of the demo it says that `HALF` cores are half of them. Commands that contain `FAILS` fail, and those that
    contain `SLEEPS` take a minute, in a process whose id is in a file `pid_…`.
    """

    def start(*args, **more):
        python, log = tmp_path / "venv/bin/python", tmp_path / "log"
        python.parent.mkdir(parents=True, exist_ok=True)
        # Only a `-c` that asks for a name is really run.
        python.write_text(
            '#!/bin/sh\ncase "$1 $2" in "-c "*machine*) echo "$HALF"; exit ;; esac\n'
            f'if [ "$1" = -c ]; then PYTHONPATH="{ROOT}" exec "{sys.executable}" "$@"; fi\n'
            f'if [ "$3" != --commands ]; then echo "$*" >>"{log}"; exit; fi\n'
            # Of commands one after another, those from the first that fails on are not run.
            'lines="$(sed "\\|${FAILS:-no such line}|q")"\n'
            f'echo "{PART}\n$lines" >>"{log}"\n'
            'case "$lines" in *"${SLEEPS:-no such line}"*) touch pid_$$; exec sleep 60 ;; esac\n'
            'case "$lines" in *"${FAILS:-no such line}"*) sleep 0.5; exit 3 ;; esac\n'
        )
        python.chmod(0o755)
        for name in ("run.sh", "recipes.sh", "recipes_data.sh", "requirements.txt", "requirements-dev.txt"):
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        script = "cksum requirements.txt run.sh | cksum >venv/.installed; exec bash run.sh " + shlex.join(args)
        env = {"PATH": os.environ["PATH"], "VENV": "venv", "MODEL_ROOT_DIR": "models", "HALF": "1", **more}
        # Under nohup tests ignore SIGHUP, and so would the script.
        return subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.PIPE,
                                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # fmt: skip

    return start


@pytest.fixture
def called(started, tmp_path):
    """Runs a copy of run.sh to its end as `started` starts it; returns the commands that its python was called with."""

    def run(*args, **more):
        with started(*args, **more) as process:
            output, errors = process.communicate(timeout=240)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, "run.sh", output, errors)
        return [shlex.split(line) for line in (tmp_path / "log").read_text().splitlines()]

    return run


def parts(log):
    """(what it makes, what of runs/ it uses before it has made it) of each file of commands."""
    for part in log.read_text().split(PART)[1:]:
        made, missing = set(), set()
        lines = [line for line in part.splitlines() if line and not line.startswith(("#", "-"))]
        for script, *flags in map(shlex.split, lines):
            args = importlib.import_module(script).parser().parse_args(flags)
            files = [getattr(args, "dataset_path", None), *dict(getattr(args, "checkpoints", None) or ()).values()]
            models = [getattr(args, name) for name in ("model_checkpoint", "teacher") if getattr(args, name, None)]
            used = {str(name) for name in [*files, *models] if name and str(name).startswith("runs/")}
            missing |= used - made
            made |= {str(getattr(args, name)) for name in ("output_dir", "output") if getattr(args, name, None)}
        yield made, missing


@pytest.mark.parametrize("half", ["1", ""])
def test_the_demo_trains_distils_combines_and_scores_what_it_made(called, tmp_path, half):
    # Nothing was really decoded: at the end there are no outputs to compare.
    with pytest.raises(subprocess.CalledProcessError):
        called("demo", HALF=half)
    apart = list(parts(tmp_path / "log"))
    assert len(apart) == (2 if half else 1) and not any(missing for _, missing in apart)
    made = set().union(*(made for made, _ in apart))
    assert {f"{folder}/demo/{name}" for folder in ("runs", "results") for name in ("VLM", "nlg-distilled")} <= made
    assert "--teacher runs/demo/nlg-teacher" in (tmp_path / "log").read_text()
    # Interrupted models are resumed, finished ones are left out.
    (tmp_path / "log").unlink()
    for name, file in (("nlg", "metrics.json"), ("mt", "run.json")):
        (tmp_path / "runs/demo" / name).mkdir()
        (tmp_path / "runs/demo" / name / file).write_text("{}")
    with pytest.raises(subprocess.CalledProcessError):
        called("demo", HALF=half)
    later = (tmp_path / "log").read_text()
    assert "train --resume runs/demo/mt\n" in later and "--output_dir runs/demo/nlg\n" not in later


ADAPTERS, TEACHER = "--output_dir runs/demo/mt", "--output_dir runs/demo/nlg-teacher"


@pytest.mark.parametrize("half", ["1", ""])
@pytest.mark.parametrize("part", [ADAPTERS, TEACHER])
def test_the_demo_ends_with_the_status_of_the_part_that_failed(called, tmp_path, part, half):
    with pytest.raises(subprocess.CalledProcessError) as failed:
        called("demo", FAILS=part, HALF=half)
    log = (tmp_path / "log").read_text()
    assert failed.value.returncode == 3 and "utils.table" not in log
    # What is combined does not need the teacher.
    assert ("combine_all" in log) == (part == TEACHER)


def running(folder):
    """The processes that wrote their ids to files."""
    return [path.name for path in folder.glob("pid_*") if Path(f"/proc/{path.name[4:]}").exists()]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_where_one_part_of_the_demo_fails_the_other_is_stopped(started, tmp_path):
    with started("demo", SLEEPS=TEACHER, FAILS=ADAPTERS) as process:
        process.communicate(timeout=240)
    assert process.returncode == 3 and list(tmp_path.glob("pid_*")) and not running(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_demo_ends_both_parts(started, tmp_path, number):
    with started("demo", SLEEPS="train") as process:
        end = time.time() + 30
        while len(running(tmp_path)) < 2 and time.time() < end:
            time.sleep(0.02)
        assert len(running(tmp_path)) == 2
        process.send_signal(number)
        process.communicate(timeout=240)
    assert process.returncode == 128 + number and not running(tmp_path)


def test_lifelong_demo_compares_finetuning_with_replay_on_bundled_data(called):
    trained, evaluated = [], []
    for script, *flags in called("lifelong-demo", "--limit", "3"):
        args = importlib.import_module(script.removesuffix(".py")).parser().parse_args(flags)
        (trained if script == "train_lifelong.py" else evaluated).append(args)
    assert [args.seq_train_type for args in trained] == ["finetune", "lll"]
    assert [args.model_dirs for args in evaluated] == [[args.output_dir] for args in trained]
    for args in trained:
        assert args.limit == 3 and args.adapter_bottleneck
        assert all((ROOT / args.data_dir / f"{t}_to_squad-train-v2.0.json").is_file() for t in args.tasks)


def test_a_lifelong_recipe_evaluates_the_directory_it_trained(called):
    train, evaluate = called("lifelong-csw-kd", "--seed", "7")
    assert train[0] == "train_lifelong.py" and train[-2:] == ["--seed", "7"]
    folder = "models/gpt2/lll/cnn_dailymail_wikisql_woz.en_0.2_7_distil"
    assert evaluate == f"evaluate_lifelong.py --model_dirs {folder} --fp32 --output_dir results/lifelong-csw-kd".split()


def test_recipes_of_continual_benchmarks_go_with_their_strategies_and_lie_apart():
    from versatile.lifelong import sequence

    import train_lifelong

    names = [name for name in recipes() if re.match("superni-|clbench-", name)]
    assert len(names) == 28
    lines, folders = recipes(*names), set()
    for name, line in lines.items():
        args = train_lifelong.parser().parse_args(shlex.split(line)[2:])
        sequence.check_names(train_lifelong.parser(), args)
        train_lifelong.check_flags(train_lifelong.parser(), args)
        folders.add(sequence.directory(args))
        assert (args.limit, len(args.tasks)) == ((200, 15) if name.startswith("superni") else (400, 10))
        assert args.method == ("prefix" if name.endswith("progprompt") else "lora")
    assert len(folders) == len(names)
    both = train_lifelong.parser().parse_args(shlex.split(lines["superni-l2kd"])[2:])
    assert both.distil and both.seq_distil and both.train_teachers


@pytest.mark.parametrize(("recipe", "variable"), [("superni-er", "SUPERNI_DIR"), ("clbench-er", "CL_BENCHMARK_DIR")])
def test_a_recipe_whose_data_are_not_named_is_one_message(called, recipe, variable):
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        called(recipe)
    assert stopped.value.returncode == 2 and f"error: {variable}: not set" in stopped.value.stderr


def test_seeds_and_orders_of_a_benchmark_lie_side_by_side(called, tmp_path):
    there = tmp_path / "data/small/superni/task591_sciq_answer_generation_to_squad-test-v2.0.json"
    there.parent.mkdir(parents=True)
    there.touch()
    *_, evaluate = called("superni-er", "--seed", "7", "--tasks", "superni-order2")
    folder = "runs/superni/smollm2_lora/er/superni-order2_seed_7"
    assert evaluate == (f"evaluate_lifelong.py --model_dirs {folder} --trained_only "
                        "--output_dir results/superni-er-superni-order2-seed7").split()  # fmt: skip


def test_seeds_of_the_three_task_recipes_lie_side_by_side(called, tmp_path):
    there = tmp_path / "data/small/lifelong/rnnlg.rest_to_squad-test-v2.0.json"
    there.parent.mkdir(parents=True)
    there.touch()
    *_, evaluate = called("small-lifelong-lamol", "--seed", "2")
    assert evaluate[-2:] == ["--output_dir", "results/small-lifelong-lamol-seed2"] and "--limit" in evaluate
    # Two sequences that begin with the same task have separate directories.
    *_, evaluate = called("small-lifelong-lamol", "--tasks", "sst", "woz.en", "--seed", "2")
    assert evaluate[-1] == "results/small-lifelong-lamol-sst_woz.en-seed2"


def test_benchmarks_are_converted_from_the_folders_that_variables_name(called):
    converted, *_ = called("clbench-er", CL_BENCHMARK_DIR="CL")
    assert converted[:3] == ["-m", "data.convert", "squad-classification"]
    assert converted[3:] == ["--folder", "CL", "--output", "data/small/clbench"]


@pytest.mark.parametrize(("order", "sizes"), [
    ("wcs", {"squad-cnn_dailymail": (6604, None), "squad-wikisql": (6525, None)}),
    ("nlg_reversed", {"squad-e2e": (6000, 2000)}),
    ("tc", {}),
])  # fmt: skip
def test_lifelong_recipes_convert_as_many_questions_as_l2kd_released(called, tmp_path, order, sizes):
    from versatile.data import convert

    there = tmp_path / "data/lifelong/woz.en_to_squad-train-v2.0.json"
    there.parent.mkdir(parents=True)
    there.touch()
    *converted, train, _ = called(f"lifelong-{order}-kd", CNN_DAILYMAIL_DIR="c", WIKISQL_DIR="w", E2E_DIR="e")
    assert train[0] == "train_lifelong.py"
    found = [convert.build_parser().parse_args(words[2:]) for words in converted]
    assert {args.format: (args.train_sample, args.test_sample) for args in found} == sizes
    for args in found:
        assert args.train and args.test and args.output == "data/lifelong"
        assert args.format != "squad-e2e" or args.single_reference


def headings(text):
    """The anchors of a page's headings, as used in links."""
    titles = re.findall(r"^#+ (.*)", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_pictures_and_headings_that_a_page_names_exist(page):
    text = PAGES[page]
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), target
        assert not heading or heading in headings(PAGES[linked]), target
    for path in re.findall(r"`((?:data|bench|docs)/[\w./]+\.\w+)`", text):
        if not path.startswith(("data/NLG", "data/NMT", "data/persona", "data/CoQA", "data/SQuAD", "data/poem")):
            assert (ROOT / path).is_file(), path


def test_readme_is_short_and_leads_to_every_page():
    readme = PAGES[ROOT / "README.md"]
    assert readme.count("\n") <= 220
    assert all(f"docs/{page.name}" in readme for page in PAGES if page.parent.name == "docs")


@pytest.fixture
def registry():
    from versatile.data import task

    task.all_tasks()
    before = dict(task._TASKS)
    # A reader may have added it.
    task._TASKS.pop("poem", None)
    yield task
    task._TASKS.clear()
    task._TASKS.update(before)


def test_the_task_shown_in_readme_is_a_task(registry):
    code = next(b for b in blocks("python") if "class Poem" in b)
    exec(compile(code, "poem.py", "exec"), {"__name__": "poem"})
    poem = registry._TASKS["poem"]
    (example,) = poem.examples({"title": "Rain", "poem": "It falls."}, "here")
    distilled = poem.distil({"title": "Rain", "poem": "It falls."}, ["It pours."])
    (taught,) = poem.training_examples(distilled, "here", poem.read_options(distilled=True))
    assert taught.target.text == "It pours." and taught.references == ["It falls."]
    assert example.references == ["It falls."] and example.context[0].marker == "<title>"
    assert "BLEU" in poem.score(["It falls."], [["It falls."]])[0]
    assert poem.typed(poem.sample, {})[0].context[0].text == poem.sample


def test_the_data_set_shown_in_readme_is_a_task_of_all_systems(registry):
    from versatile.data import glue, question_tasks, text_to_text

    code = next(b for b in blocks("python") if "add_pairs" in b)
    exec(compile(code, "boolq.py", "exec"), {"__name__": "boolq"})
    record = {"question": "is it", "passage": "It is.", "answer": True}
    (example,) = registry.get_task("boolq").examples(record, "here")
    assert (example.source, example.target.text) == ("question: is it passage: It is.", "true")
    assert text_to_text.get_task("boolq").answers == glue.get_task("boolq").labels == ("false", "true")
    assert question_tasks.get_task("boolq").metric == "accuracy"


def test_the_family_shown_in_readme_is_the_one_in_its_file():
    from versatile.adapters.backbones import gpt_neox

    code = next(b for b in blocks("python") if "gpt_neox" in b)
    assert "".join(code.split()) in "".join(Path(gpt_neox.__file__).read_text(encoding="utf-8").split())


def test_importing_a_script_imports_no_other_script():
    for script in ROOT.glob("*.py"):
        names = re.findall(r"^\s*(?:from|import) (\w+)", script.read_text(encoding="utf-8"), re.M)
        assert not {p.stem for p in ROOT.glob("*.py")} & set(names), script


def test_python_is_new_enough_for_what_is_promised():
    assert sys.version_info >= (3, 11) and 'requires-python = ">=3.11"' in (Path(ROOT) / "pyproject.toml").read_text()
