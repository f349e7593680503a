"""run.json with every key damaged in every way: each script reads it, or says what is wrong in one message."""

import json
import random
from argparse import Namespace

import pytest
import quick
from scripts import ROOT, Result
from training_runs import parse_t5, refused
from versatile.adapters.backbones import loading
from versatile.lifelong import learning, sequence
from versatile.training import experiment, runs, span_corruption_pretraining, text_to_text_arguments
from versatile.training.text_to_text_arguments import restored
from versatile.utils.errors import UserError
from versatile.utils.stored_flags import restore_flags

import pretrain_t5
import train
import train_camtl
import train_lifelong
import train_t5
import train_vlm

# Replacements for a value. The last is not json that Python writes, so it is inserted as text.
HUGE = "9" * 5000
WRONG = [None, True, False, -1, 0, 2**63, 1e300, float("nan"), float("inf"), "", " ", "x", "\ud800", "\u2028", "a\0b",
         "../../etc/passwd", "x" * 5000, [], {}, ["x"], [["x"]], [None], {"x": None}, {"name": "x"}, HUGE]  # fmt: skip
NESTED = "[" * 100_000 + "]" * 100_000


class Read(BaseException):
    """The flags were read, and found to be valid."""


def stop(*args, **options):
    raise Read


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    """Ends a script where the model would be loaded."""
    for owner, name in ((loading, "load_backbone"), (experiment, "load_model"), (learning, "load_model"),
                        (train_camtl, "build_model"), (train_t5, "build_model"),
                        (span_corruption_pretraining, "pretrain")):  # fmt: skip
        monkeypatch.setattr(owner, name, stop)


T5 = ["--tasks", "rte", "--data_dir", "data/samples/glue", "--model_name_or_path", "tiny-t5", "--do_train",
      "--max_steps", "4", "--fp32", "--split_validation_test", "true", "--output_dir", "{out}"]  # fmt: skip
SCRIPTS = {
    train: ["--task", "nlg", "--dataset_path", "data/samples/nlg.json", "--model_checkpoint", "tiny-gpt2",
            "--adapter_bottleneck", "8", "--fp32"],
    train_vlm: ["--tasks", "nlg", "mt", "--data", "nlg=data/samples/nlg.json", "mt=data/samples/mt.json", "--fp32",
                "--model_checkpoint", "tiny-gpt2", "--adapter_bottleneck", "nlg=8", "16", "--limit", "4"],
    train_lifelong: ["--tasks", "ag", "e2enlg", "--data_dir", "data/samples/lifelong", "--model_dir_root", "{out}/root",
                     "--model_name", "tiny-gpt2", "--own_adapters", "--adapter_bottleneck", "4", "--fp32"],
    train_camtl: ["--tasks", "cola", "mrpc", "--data_dir", "data/samples/glue", "--model_name_or_path", "tiny-bert",
                  "--do_train", "--output_dir", "{out}", "--fp32"],
    train_t5: T5,
    pretrain_t5: ["--model_name_or_path", "tiny-t5", "--train_files", "LICENSE", "--max_steps", "4", "--fp32",
                  "--output_dir", "{out}"],
}  # fmt: skip


def begun(script, out):
    """The run.json of a run of a script, without its training: a dict."""
    argv = [word.format(out=out) for word in SCRIPTS[script]]
    if script in (train_t5, pretrain_t5):
        args = Namespace(**text_to_text_arguments.parse(script.parser, argv, f"{script.__name__}.py").flags())
    else:
        args = script.parser().parse_args(argv)
    record = runs.record(args, method="a method")
    return json.loads(json.dumps({**record, "command": f"{script.__name__}.py"}))


def resumed(script, out, text, capsys):
    """Whether a script accepts a run.json; otherwise it has exited with one message."""
    (out / "run.json").write_text(text, encoding="utf-8")
    capsys.readouterr()
    try:
        script.main(["--resume", str(out)])
    except Read:
        return True
    except SystemExit as error:
        shown = capsys.readouterr()
        refused(Result(error.code, shown.out, shown.err))
        return False
    raise AssertionError("neither refused nor read")


@pytest.mark.parametrize("values", quick.only([1], [1, 4]))
@pytest.mark.parametrize("script", quick.every(3, SCRIPTS), ids=lambda script: script.__name__)
def test_a_damaged_flag_is_one_message_or_has_no_effect(script, values, tmp_path, capsys):
    record, draw = begun(script, tmp_path), random.Random(script.__name__)
    assert resumed(script, tmp_path, json.dumps(record), capsys)
    assert resumed(script, tmp_path, json.dumps({**record, "flags": {**record["flags"], "unknown": 3}}), capsys)
    taken = total = 0
    for name in record["flags"]:
        for value in draw.sample(WRONG, values):
            text = json.dumps({**record, "flags": {**record["flags"], name: value}})
            text = text.replace(json.dumps(HUGE), HUGE) if draw.random() < 0.5 else text
            taken, total = taken + resumed(script, tmp_path, text, capsys), total + 1
        without = {key: value for key, value in record["flags"].items() if key != name}
        resumed(script, tmp_path, json.dumps({**record, "flags": without}), capsys)
    assert taken < total / 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_file_that_is_no_record_is_one_message(script, tmp_path, capsys):
    record = begun(script, tmp_path)
    for key in ("command", "flags", "method", "versions", "sources"):
        for value in (3, [], "\ud800", [[]]):
            text = json.dumps({**record, key: value})
            assert not resumed(script, tmp_path, text, capsys), (key, value)
    flags = json.dumps(record["flags"])
    for text in ("", "[]", "null", "{", NESTED, f'{{"flags": {NESTED}}}', f'{{"flags": {{}}, "flags": {flags}}}',
                 f'{{"flags": {{"seed": {HUGE}}}}}'):  # fmt: skip
        assert not resumed(script, tmp_path, text, capsys), text[:60]


REFUSED = [("lr", "0.1", "a number above 0"), ("lr", 0, "a number above 0"), ("n_epochs", 2.5, "a whole number"),
           ("seed", True, "a whole number"), ("select", "worst", "best, last"), ("fp32", 1, "true or false"),
           ("cache_dir", "\ud800", "UTF-8"), ("cache_dir", "/\ud800", "UTF-8"), ("task", ["nlg"], "a text"),
           ("seed", None, "a whole number")]  # fmt: skip


@pytest.mark.parametrize("flag, value, expected", REFUSED)
def test_the_message_names_file_key_value_and_what_was_expected(flag, value, expected):
    with pytest.raises(UserError, match=rf"run\.json: flags\.{flag}: ") as error:
        restore_flags(train.parser(), {flag: value}, "a/run.json")
    assert expected in error.value.expected and error.value.remedy


def test_what_a_script_wrote_is_read_as_it_was_given():
    argv = ["--tasks", "nlg", "mt", "--data", "nlg=a=b.json", "--adapter_bottleneck", "nlg=8", "16", "--lr", "1e-3"]
    args = vars(train_vlm.parser().parse_args(argv))
    assert restore_flags(train_vlm.parser(), json.loads(json.dumps(args)), "") == args
    for more, value in ((["--upsample_data"], True), (["--upsample_data", "1_3"], [1, 3]), ([], False)):
        args = vars(train_lifelong.parser().parse_args(["--tasks", "ag", "sst", *more]))
        found = restore_flags(train_lifelong.parser(), json.loads(json.dumps(args)), "")
        assert found == args and found["upsample_data"] == value
    with pytest.raises(UserError, match=r"flags\.bf16 and flags\.fp32"):
        restore_flags(train.parser(), dict(bf16=True, fp32=True), "run.json")


def test_flags_of_a_t5_run_are_checked_for_its_evaluation_too():
    assert restored(dict(tasks=["rte"], report_to=[], config="a.json"), "") == dict(
        tasks=["rte"], report_to=["tensorboard"])  # fmt: skip
    switches = dict(greater_is_better=False, do_test=True, unique_hyper_net_layer_norm=False)
    assert restored(switches, "") == switches
    for name, value in dict(max_source_length="x", data_seed=-2.5, split_validation_test="yes", tasks=[[]]).items():
        with pytest.raises(UserError, match=name):
            restored({name: value}, "run.json")


@pytest.mark.parametrize("content", ["[]", '{"finished": [3], "processes": 1}', '{"finished": "ag", "processes": 1}',
                                     '{"finished": ["ag", "ag"], "processes": 1}', '{"finished": []}', NESTED,
                                     '{"finished": ["\\ud800"], "processes": 1}',
                                     '{"finished": [], "processes": true}'])  # fmt: skip
def test_a_damaged_sequence_is_one_message(content, tmp_path):
    (tmp_path / "sequence.json").write_text(content)
    with pytest.raises(UserError, match=r"sequence\.json") as error:
        sequence.SequenceProgress(tmp_path)
    assert "remove it" in error.value.remedy


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.name)
def test_the_flags_of_every_published_t5_config_come_back_as_they_were_written(config):
    flags = json.loads(json.dumps(parse_t5([str(config), "--output_dir", "nowhere"]).flags()))
    found = restored(flags, "run.json")
    assert found == {name: value for name, value in flags.items() if name in found} and "tasks" in found
