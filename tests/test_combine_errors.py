"""combine_all.py: what cannot be combined is one clear error, and nothing is written or lost."""

import json
import shutil

import pytest
from combining import QUICK, combined, gpt2_singles, trained
from scripts import contents
from test_released import finetuned_directory, released_directory
from versatile.adapters import checkpoint
from versatile.adapters.attach import attach
from versatile.adapters.backbones import loading as backbones
from versatile.data.task import get_task

import combine_all
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return gpt2_singles(tmp_path_factory.mktemp("gpt2"))


def other_backbone(folder, **config):
    """A backbone like tiny-gpt2 except for its config; equal weights where the shapes match."""
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    changed = type(model.config)(**{**model.config.to_dict(), **config})
    type(model)(changed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def other_tokenizer(folder):
    """tiny-gpt2 with two tokens swapped."""
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return folder


def finetuned(folder):
    model, tokenizer = backbones.load_backbone("tiny-gpt2")
    attach(model, tokenizer, {"nlg": get_task("nlg").markers})
    checkpoint.save_checkpoint(model, tokenizer, folder)
    return folder


def not_whole(folder):
    trained(folder, ["nlg"])
    (folder / checkpoint.ADAPTER_WEIGHTS).unlink()
    return folder


def unsaved(folder):
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return folder


def made(folder, **config):
    return trained(folder, ["nlg"], other_backbone(folder.with_name("other"), **config))


def a_file(path):
    path.write_text("x")
    return path


WRONG = {
    "another backbone": (lambda f: trained(f, ["nlg"], "tiny-llama"), "model_type is llama", "gpt2, as in"),
    "other weights": (lambda f: made(f), "backbone (fingerprint of its weights) is", "as in --checkpoints mt="),
    "another width": (lambda f: made(f, n_embd=32), "hidden size is 32", "64, as in --checkpoints mt="),
    "fewer positions": (lambda f: made(f, n_positions=64), "number of positions is 64", "256, as in"),
    "another tokenizer": (lambda f: trained(f, ["nlg"], other_tokenizer(f.with_name("other"))), "tokenizer (hash) is"),
    "a trained backbone": (lambda f: trained(f, ["nlg"], freeze=False), "backbone (fingerprint of its weights) is"),
    "foreign columns": (
        lambda f: trained(f, ["nlg"], mask_other_tasks=False),
        "all markers, as released",
        "own markers only",
    ),
    "a full model": (finetuned, "this is a fully fine-tuned model", "train.py --adapter_bottleneck N"),
    "a bare backbone": (other_backbone, "this is a bare backbone"),
    "another task": (lambda f: trained(f, ["qa"]), "the task(s) qa, not 'nlg'", "trained for 'nlg'"),
    "weights missing": (not_whole, checkpoint.ADAPTER_WEIGHTS, "no such file"),
    "no model yet": (unsaved, "this run has not saved a best model yet"),
    "nothing": (lambda f: f, "no such directory"),
    "a file": (a_file, "this is a file", "a run directory"),
    "a released single task": (lambda f: released_directory(f, "gpt2_adapter_model"), "positions is 128", "256, as in"),
    "a released full model": (finetuned_directory, "this is a fully fine-tuned model"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_combined_is_one_clear_error(kind, gpt2, tmp_path, capsys):
    make, *said = WRONG[kind]
    source = make(tmp_path / "wrong")
    there = {p.name for p in tmp_path.iterdir()}
    with pytest.raises(SystemExit) as stopped:
        combined(tmp_path / "out", {"mt": gpt2["mt"], "nlg": source})
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("error: ") == 1
    assert all(part in error for part in [*said, str(source)]), error
    assert {p.name for p in tmp_path.iterdir()} == there


@pytest.mark.parametrize("name, task, reason", [
    ("t5_hyperformer", "rte", "hyperformer: its hypernetworks generate the adapters of all tasks"),
    ("t5_adapters", "rte", "adapters: decoder.block.0.layer.0.layer_norm.weight of its backbone was trained too"),
    ("t5_full", "rte", "this is a fully fine-tuned model: a task cannot be taken out of it"),
    ("camtl_base", "cola", "conditional: its conditional modules belong to all tasks"),
    ("camtl_plain", "cola", "this is a fully fine-tuned model: a task cannot be taken out of it"),
])  # fmt: skip
def test_what_tasks_share_is_the_reason_why_published_systems_are_not_combined(name, task, reason, tmp_path, capsys):
    source = ROOT / "tests" / "saved" / name
    with pytest.raises(SystemExit) as stopped:
        combined(tmp_path / "out", {task: source})
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and f"--checkpoints {task}={source}: " in error and reason in error
    assert not any(tmp_path.iterdir())


def test_a_task_there_twice_and_a_place_that_is_taken_are_refused(gpt2, tmp_path, capsys):
    vlm = combined(tmp_path / "vlm", {"mt": gpt2["mt"]})
    before = contents(tmp_path)
    (tmp_path / "file").write_text("mine")
    nlg, mt = f"nlg={gpt2['nlg']}", f"mt={gpt2['mt']}"
    for argv, *said in (
        (["--into", vlm, "--checkpoints", mt], f"--checkpoints {mt}: task 'mt' is given twice", f"--into {vlm} has it"),
        (["--output", vlm, "--checkpoints", nlg], "this path already exists", f"add to it: --into {vlm}"),
        (["--output", tmp_path / "file", "--checkpoints", nlg], "this path already exists"),
        (["--into", tmp_path / "none", "--checkpoints", nlg], f"--into {tmp_path / 'none'}: no such directory"),
        (["--into", vlm], "--checkpoints is needed"),
        (["--checkpoints", nlg], "--output is needed"),
        (["--checkpoints", mt, mt, "--output", tmp_path / "x"], "task 'mt' is named twice"),
        (["--checkpoints", "runs/mt", "--output", tmp_path / "x"], "expected TASK=RUN"),
        (["--checkpoints", mt, "--output", tmp_path / "x", "--data", "qa=x.json"], "task 'qa' is not combined"),
        (["--checkpoints", mt, "--output", tmp_path / "x", "--data", "mt=x.json"], "x.json"),
        (["--checkpoints", mt, "--output", tmp_path / "file" / "x"], f"--output {tmp_path / 'file'}: cannot write"),
    ):
        with pytest.raises(SystemExit) as stopped:
            combine_all.main([str(word) for word in argv])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.startswith("error: ")
        assert all(part in error for part in said), error
    assert contents(tmp_path) == {**before, "file": b"mine"}


def test_nothing_else_in_a_directory_is_lost_by_adding_to_it(gpt2, tmp_path, capsys):
    run = shutil.copytree(gpt2["mt"], tmp_path / "run")
    (run / "learning_curve.png").write_bytes(b"mine")
    before, argv = contents(run), ["--into", str(run), "--checkpoints", f"nlg={gpt2['nlg']}", *QUICK]
    with pytest.raises(SystemExit):
        combine_all.main(argv)
    error = capsys.readouterr().err
    assert "it also holds learning_curve.png, which would be lost" in error and "--output VLM" in error
    assert contents(run) == before and [p.name for p in tmp_path.iterdir()] == ["run"]
    combine_all.main([*argv, "--output", str(tmp_path / "vlm")])
    assert checkpoint.load_checkpoint(tmp_path / "vlm")[0].info.tasks == ["mt", "nlg"] and contents(run) == before


def test_a_training_run_is_added_to_in_another_directory_as_the_remedy_says(gpt2, tmp_path, capsys):
    """Whichever flag names the run: its own files stay."""
    run = shutil.copytree(gpt2["mt"], tmp_path / "run")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "kept").write_text("mine")
    (run / "run.json").write_text(json.dumps(dict(flags=dict(task="mt"))))
    before, argv = contents(run), ["--checkpoints", f"nlg={gpt2['nlg']}", *QUICK]
    for flag, said in (("--output", "this path already exists"), ("--into", "it also holds checkpoints")):
        with pytest.raises(SystemExit):
            combine_all.main([flag, str(run), *argv])
        error, remedy, out = capsys.readouterr().err, f"--into {run} --output VLM", tmp_path / flag
        assert said in error and remedy in error, error
        combine_all.main([*argv, *remedy.replace("VLM", str(out)).split()])
        assert checkpoint.load_checkpoint(out)[0].info.tasks == ["mt", "nlg"] and contents(run) == before


def test_a_vlm_behind_a_link_is_replaced_where_it_lies(gpt2, tmp_path):
    vlm, link = combined(tmp_path / "vlm", {"mt": gpt2["mt"]}), tmp_path / "link"
    link.symlink_to("vlm")
    combine_all.main(["--into", str(link), "--checkpoints", f"nlg={gpt2['nlg']}", *QUICK])
    assert link.is_symlink() and checkpoint.load_checkpoint(vlm)[0].info.tasks == ["mt", "nlg"]


def test_a_task_of_another_version_is_refused(gpt2, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(type(get_task("mt")), "markers", (*get_task("mt").markers, "<more>"))
    with pytest.raises(SystemExit):
        combined(tmp_path / "vlm", {"mt": gpt2["mt"]})
    assert "task 'mt' has other markers here" in capsys.readouterr().err and not (tmp_path / "vlm").exists()
