"""Every number given to a flag is accepted, or refused in one message, in every script.

    python -m pytest tests/test_flags.py
"""

import argparse
import importlib
import json
import math

import pytest
from scripts import ROOT, SAMPLES, done, run, small
from versatile.utils import flags, settings
from versatile.utils.errors import UserError

SCRIPTS = ["train", "train_vlm", "train_lifelong", "train_camtl", "evaluate", "evaluate_vlm", "evaluate_lifelong",
           "interact", "sentence_distiller", "combine_all", "compute_task_embeddings", "lifelong.compare", "train_t5",
           "pretrain_t5"]  # fmt: skip
HOSTILE = ["nan", "inf", "-inf", "-1", "1e400", "1e-400", str(10**30), "9" * 5000, "", " ", "0x10", "١٢ x", "\x1b[2J"]


def parser_of(script):
    return importlib.import_module(script).parser()


def converters():
    """(name, parser) of every sub-command of data.convert."""
    from versatile.data.convert import build_parser

    (formats,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return list(formats.choices.items())


def numeric(p):
    """The flags of a parser that take a number: those whose type accepts "1"."""
    for action in p._actions:
        if action.option_strings and action.type not in (None, str) and action.nargs != 0:
            try:
                value = action.type("1")
            except (ValueError, argparse.ArgumentTypeError):
                continue
            value = value[-1] if isinstance(value, list | tuple) else value
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield action


def accepted(action, text):
    """The number that a type makes of a text, or None if it refuses it with a message."""
    try:
        value = action.type(text)
    except argparse.ArgumentTypeError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 300
        assert "expected" in str(error)
        return None
    return value[-1] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("script", SCRIPTS)
def test_numbers_of_a_script(script):
    for action in numeric(parser_of(script)):
        check(action)


def test_numbers_of_the_converters():
    seen = [check(action) for _, p in converters() for action in numeric(p)]
    assert len(seen) > 50


def check(action):
    for text in HOSTILE:
        value = accepted(action, text)
        if value is not None:
            # Accepted values are numbers that every library can hold.
            assert math.isfinite(value), (action.option_strings, text)
            assert abs(value) <= flags.LARGEST_SEED or isinstance(value, float), (action.option_strings, text)


def test_a_refused_number_ends_in_exit_code_2_and_one_message(capsys):
    for flag, text in (("--lr", "nan"), ("--seed", str(2**32)), ("--limit", str(10**30)), ("--max_steps", "")):
        with pytest.raises(SystemExit) as left:
            parser_of("train").parse_args([flag, text])
        assert left.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {flag}: {text!r}: expected ")


def test_the_range_of_seeds_is_what_the_generators_take():
    import torch
    from transformers import set_seed

    assert flags.seed(str(2**32 - 1)) == 2**32 - 1
    set_seed(2**32 - 1)
    torch.manual_seed(2**32 - 1)
    for text in ("-1", str(2**32)):
        with pytest.raises(argparse.ArgumentTypeError, match=f"from 0 to {2**32 - 1}"):
            flags.seed(text)


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", str(10**30), "9" * 5000, ""])
def test_a_number_in_a_config_file_is_refused_with_its_key(text, tmp_path):
    seen = 0
    for script in ("train_t5", "pretrain_t5"):
        for action in numeric(parser_of(script)):
            if text == str(10**30) and isinstance(action.type("1"), float):
                # A large finite number is accepted.
                continue
            seen += 1
            name = action.option_strings[0].removeprefix("--")
            with pytest.raises(UserError) as refused:
                parser_of(script).parse_args([config(tmp_path, name, text)])
            assert str(refused.value.location).endswith(f": {name}") and len(str(refused.value)) < 500
    assert seen > 40


def config(folder, name, text):
    """A json config with one number: as json writes it, or as text."""
    try:
        value = int(text)
    except ValueError:
        value = text
    path = folder / "config.json"
    path.write_text(json.dumps({name: value}))
    return str(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_grad_norm", -1.0), ("num_train_epochs", 0.0), ("adam_beta2", 1.0), ("max_steps", -2), ("save_steps", -1),
     ("logging_steps", -1), ("save_total_limit", 0), ("learning_rate", -1e-3), ("seed", -1)],
)  # fmt: skip
def test_a_number_that_means_nothing_is_refused_by_its_name(name, value, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dict(tasks=["rte"], model_name_or_path="tiny-t5", do_train=True, **{name: value})))
    with pytest.raises(UserError) as refused:
        parser_of("train_t5").parse_args([str(path)])
    assert name in str(refused.value) and refused.value.expected


UNUSED = "--temperature, --top_k: no effect with --no_sample; --length_penalty: no effect with one beam"


@pytest.mark.parametrize(("more", "said"), [
    (["--no_sample", "--temperature", "3", "--top_k", "7", "--length_penalty", "5"], UNUSED),
    (["--temperature", "3", "--num_beams", "2", "--length_penalty", "5"], ""),
    (["--no_sample"], ""),
])  # fmt: skip
@pytest.mark.parametrize("script", ["evaluate", "evaluate_vlm", "sentence_distiller"])
def test_decoding_flags_without_effect_are_named(script, more, said, tmp_path, capsys):
    # It is printed before the model is loaded.
    argv = ["--task", "nlg", "--dataset_path", str(small(tmp_path / "nlg.json", train=2, test=2)), "--model_checkpoint",
            str(tmp_path / "none"), *more]  # fmt: skip
    with pytest.raises(SystemExit):
        importlib.import_module(script).main(argv)
    assert [line for line in capsys.readouterr().out.splitlines() if "no effect" in line] == [said] * bool(said)


def test_the_documented_spellings_are_those_of_the_table():
    page = (ROOT / "docs/flags.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `--")]
    for setting in settings.TABLE:
        also = "".join(right for left, right in rows if f"`--{setting.name}`" in left + right)
        assert [s for s in setting.spellings if f"`--{s}`" not in also] == []


@pytest.mark.parametrize(("script", "typed", "once"), [
    ("train_vlm", "--method nlg=lora --lr 1e-3 --method mt=prefix", "--method nlg=lora mt=prefix"),
    ("train_vlm", "--data nlg=a --data=mt=b", "--data nlg=a mt=b"),
    ("combine_all", "--output o --checkpoints nlg=a --checkpoints mt=b", "--checkpoints nlg=a mt=b"),
])  # fmt: skip
def test_a_flag_of_several_values_given_twice_is_refused(script, typed, once, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser_of(script).parse_args(typed.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith(f"error: {once.split()[0]}: given twice: name all of its values in one: {once}\n")


def test_tasks_given_again_override_those_before():
    assert parser_of("train_lifelong").parse_args(["--tasks", "ag", "sst", "--tasks", "sst"]).tasks == ["sst"]


def test_a_converters_flag_of_several_values_given_three_times_is_refused(capsys):
    from versatile.data.convert import build_parser

    words = "iwslt --folder d --pair en-de --output o --valid a --valid b --valid c"
    with pytest.raises(SystemExit):
        build_parser().parse_args(words.split())
    assert "--valid: given 3 times: name all of its values in one: --valid a b c" in capsys.readouterr().err


def test_a_flag_of_several_values_overrides_a_config_files_and_of_a_plain_flag_the_last_counts(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dict(method=["nlg=lora"], lr=1)))
    args = parser_of("train_vlm").parse_args([str(path), "--method", "mt=prefix", "--lr", "0.1", "--lr", "0.2"])
    assert (args.method, args.lr) == ([["mt", "prefix"]], 0.2)


@pytest.mark.parametrize("script", ["train", "train_vlm", "evaluate", "evaluate_vlm", "combine_all", "train_lifelong",
                                    "train_camtl", "sentence_distiller"])  # fmt: skip
def test_the_samples_are_found_from_any_directory_unless_it_has_its_own(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = parser_of(script)._option_string_actions
    shipped, own = "data/samples/mt.json", tmp_path / "data/samples/nlg.json"
    own.parent.mkdir(parents=True)
    own.touch()
    for flag in {"--dataset_path", "--data_dir"} & known.keys():
        assert vars(parser_of(script).parse_args([flag, shipped]))[known[flag].dest] == str(ROOT / shipped)
        assert vars(parser_of(script).parse_args([flag, "data/samples/nlg.json"]))[known[flag].dest] == (
            "data/samples/nlg.json")  # fmt: skip
    if "--data" in known:
        args = parser_of(script).parse_args(["--data", f"mt={shipped}", "nlg=data/samples/nlg.json"])
        assert args.data == {"mt": str(ROOT / shipped), "nlg": "data/samples/nlg.json"}


def test_a_script_started_elsewhere_trains_on_the_samples(tmp_path):
    flags = "--task mt --dataset_path data/samples/mt.json --model_checkpoint tiny-gpt2 --limit 4 --max_steps 1 --fp32"
    folder = tmp_path / "run"
    done(run("train", [*flags.split(), "--output_dir", folder], tmp_path / "log", cwd=tmp_path))
    assert json.loads((folder / "run.json").read_text())["flags"]["dataset_path"] == str(SAMPLES / "mt.json")
