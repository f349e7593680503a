"""sentence_distiller.py: the same file however often it is stopped, gold unchanged, and train.py learns from it.

python -m pytest tests/test_sentence_distiller.py
"""

import contextlib
import errno
import gzip
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import quick
import torch
from conftest import GOLDEN
from scripts import ROOT, SAMPLES, Result, small, start, until, write_task
from training_runs import refused, short_run
from versatile.data.task import get_task
from versatile.training import sentence_distillation as sentences
from versatile.training.decoding import Decoding

import sentence_distiller

TASKS = ("nlg", "mt", "dialogue", "qa")


def lively(folder, tasks, bottleneck=None, model="tiny-llama"):
    """A model with noise on every weight, so that it answers every input differently; saved like a run's."""
    from versatile.adapters import checkpoint
    from versatile.adapters.attach import attach
    from versatile.adapters.backbones import loading as backbones

    torch.manual_seed(0)
    held, tokenizer = backbones.load_backbone(model)
    attach(held, tokenizer, {t: get_task(t).markers for t in tasks}, bottleneck and dict.fromkeys(tasks, bottleneck))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in held.parameters():
            if parameter.ndim > 1 and (parameter.requires_grad or bottleneck is None):
                parameter += 0.2 * torch.randn(parameter.shape, generator=noise)
    checkpoint.save_checkpoint(held, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """One model with four tasks; read it, do not write to it."""
    return lively(tmp_path_factory.mktemp("teacher"), TASKS)


@pytest.fixture
def data(tmp_path):
    return small(tmp_path / "nlg.json", train=20, valid=4, test=4)


def asked(teacher, data, *more, task="nlg"):
    """Flags of a short run in fp32, ten batches of two."""
    return ["--task", task, "--dataset_path", data, "--model_checkpoint", teacher, "--no_sample", "--fp32",
            "--max_length", 6, "--min_length", 2, "--batch_size", 2, *more]  # fmt: skip


def here(script, argv):
    """Run a script in this process, which saves a second: `scripts.Result`."""
    out, err, code, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads()
    # The same number as in the processes of `scripts`: equal runs are then equal to the last bit.
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            importlib.import_module(script).main(list(map(str, argv)))
        except SystemExit as stop:
            code = stop.code
    torch.set_num_threads(threads)
    return Result(code, out.getvalue(), err.getvalue())


def distilled(argv):
    """Run it to its end; returns what it printed."""
    result = here("sentence_distiller", argv)
    assert result.code == 0, result.err
    return result.out


def learnt(argv):
    """Run train.py to its end; returns the run directory."""
    result = here("train", argv)
    assert result.code == 0, result.err
    return argv[argv.index("--output_dir") + 1]


def held(path):
    return json.loads(path.read_text(encoding="utf-8"))


def beside(data):
    return data.with_name(f"{data.stem}_distilled.json")


def targets(record):
    """The teacher's texts of a record, in order."""
    if "utterances" in record:
        return [text for u in record["utterances"] for text in u["distillated_candidates"]]
    return [record["distillated_tgt"]]


def bare(value):
    """A value without the teacher's texts."""
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if not k.startswith("distillated_")}
    return [bare(v) for v in value] if isinstance(value, list) else value


def by_hand(folder, data, task, length=6):
    """Every training example decoded alone, record by record."""
    from versatile.adapters import checkpoint
    from versatile.data import instances
    from versatile.training.decoding import decode

    model, tokenizer = checkpoint.load_checkpoint(folder, task)
    task, texts = get_task(task), []
    options = task.read_options(decoding=True)
    for record in held(data)["train"]:
        examples = list(task.examples(record, "here", options))
        prompts, _ = instances.prompts(task, model.task_id(task.name), tokenizer, examples, 256, length)
        ids = [decode(model, tokenizer, [p], Decoding(max_length=length, min_length=2))[0] for p in prompts]
        texts.append([tokenizer.decode(i, clean_up_tokenization_spaces=False).strip() for i in ids])
    return texts


# --- what comes out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", quick.every(2, TASKS))
def test_every_training_example_gets_its_text_in_order_and_the_gold_stays(task, teacher, tmp_path):
    data = small(tmp_path / "data.json", task, train=4, valid=2, test=2)
    out = distilled(asked(teacher, data, "--batch_size", 3, task=task))
    made = held(beside(data))
    assert bare(made) == held(data)
    assert list(made) == list(held(data))
    assert made["valid"] == held(data)["valid"] and made["test"] == held(data)["test"]
    found, expected = [targets(record) for record in made["train"]], by_hand(teacher, data, task)
    assert found == expected
    assert len({text for texts in expected for text in texts}) > 3, "the teacher says the same to everything"
    assert f"{sum(map(len, expected))} outputs" in out and "next: python train.py" in out
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["data.json", "data_distilled.json"]


def test_the_batch_size_changes_nothing(teacher, data, tmp_path):
    for size in (1, 7, 32):
        distilled(asked(teacher, data, "--batch_size", size, "--output", tmp_path / f"{size}.json"))
    assert len({(tmp_path / f"{size}.json").read_bytes() for size in (1, 7, 32)}) == 1


def test_equal_inputs_are_decoded_once_and_sampled_each_for_itself(teacher, tmp_path):
    record = held(SAMPLES / "nlg.json")["train"][0]
    data = write_task(tmp_path / "data.json", train=[record, record | {"tgt": "Another text."}] * 3)
    out = distilled(asked(teacher, data))
    assert "6 examples, 1 of them different" in out
    assert len({r["distillated_tgt"] for r in held(beside(data))["train"]}) == 1
    sampled = [a for a in asked(teacher, data, "--overwrite", "--temperature", 3.0) if a != "--no_sample"]
    assert "different" not in distilled(sampled)
    assert len({r["distillated_tgt"] for r in held(beside(data))["train"]}) > 3


@pytest.mark.parametrize("kind", quick.only(["released"], ["full", "released", "adapter", "several"]))
def test_any_teacher_will_do(kind, data, tmp_path):
    folder = tmp_path / "teacher"
    if kind == "released":
        released(folder)
    else:
        lively(folder, ["mt", "nlg"] if kind == "several" else ["nlg"], None if kind == "full" else 16)
    distilled(asked(folder, data))
    assert [targets(r) for r in held(beside(data))["train"]] == by_hand(folder, data, "nlg")


def released(folder):
    """A directory as the original code released them, of the golden VLM's weights."""
    from safetensors.torch import load_file

    vglm = GOLDEN / "vglm"
    config = json.loads((vglm / "config.json").read_text())
    folder.mkdir()
    torch.save(load_file(vglm / "vlm_model.safetensors"), folder / "pytorch_model.bin")
    sizes = dict(model_type="gpt2", vocab_size=300, n_positions=128, n_embd=64, n_layer=2, n_head=4)
    (folder / "config.json").write_text(json.dumps(sizes))
    (folder / "added_tokens.json").write_text(json.dumps(config["special_token_ids"]))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vglm / "gpt2_tiny_tok" / name, folder / name)
    return folder


def test_a_compressed_file_is_read_and_written(teacher, data, tmp_path):
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(data.read_bytes()))
    distilled(asked(teacher, data, "--limit", 4))
    distilled(asked(teacher, packed, "--limit", 4))
    assert (tmp_path / "packed_distilled.json").read_bytes() == beside(data).read_bytes()
    distilled(asked(teacher, packed, "--limit", 4, "--output", tmp_path / "out.json.gz"))
    assert gzip.decompress((tmp_path / "out.json.gz").read_bytes()) == beside(data).read_bytes()


@pytest.mark.parametrize("limit, records", [(8, 2), (9, 2), (10, 2), (11, 2), (12, 3)])
def test_a_limit_keeps_only_records_that_are_wholly_distilled(limit, records, teacher, tmp_path):
    whole = held(SAMPLES / "qa.json")["train"][0]
    data = write_task(tmp_path / "data.json", train=[whole | {"utterances": whole["utterances"][:4]}] * 5, test=[whole])
    distilled(asked(teacher, data, "--limit", limit, task="qa"))
    made = held(beside(data))
    assert bare(made) == {**held(data), "train": held(data)["train"][:records]}
    assert all(len(targets(record)) == 4 for record in made["train"])


def test_empty_outputs_stay_empty_and_are_counted(tmp_path, data):
    folder = lively(tmp_path / "teacher", ["nlg"], 16)
    silence(folder)
    out = distilled(asked(folder, data, "--min_length", 0))
    assert "20 outputs are empty or only white space" in out
    assert "warning: every output is empty" in out and "next:" not in out
    assert {r["distillated_tgt"] for r in held(beside(data))["train"]} == {""}


def silence(folder):
    """Make the end token's row so large that it is always the most likely."""
    from versatile.adapters import checkpoint

    model, tokenizer = checkpoint.load_checkpoint(folder, "nlg")
    rows, hidden = model.get_output_embeddings().rows.tasks["nlg"], []
    model.model.norm.register_forward_hook(lambda m, args, out: hidden.append(out))
    from versatile.data import instances

    task = get_task("nlg")
    example = next(iter(task.examples(held(SAMPLES / "nlg.json")["train"][0], "", task.read_options(decoding=True))))
    prompt = instances.prompts(task, 0, tokenizer, [example], 256, 4)[0][0]
    with torch.no_grad():
        model(input_ids=torch.tensor([prompt.ids]), token_type_ids=torch.tensor([prompt.types]))
        rows[task.markers.index(task.eos)] = 100 * hidden[0][0, -1]
    # Every input must lead to nearly the same hidden state: the end token responds to its constant part.
    checkpoint.save_checkpoint(model, tokenizer, folder)


def test_train_learns_what_the_distiller_wrote(teacher, data, tmp_path):
    distilled(asked(teacher, data))
    result = here("train", short_run(data, tmp_path / "taught", "--distillation", "--max_steps", 1))
    assert f"the teacher's texts from {beside(data)}" in result.out and result.out.count("teacher's texts") == 1
    taught = tmp_path / "taught"
    # The same as from a file whose gold texts are the teacher's.
    records = held(beside(data))
    for record in records["train"]:
        record["tgt"] = record.pop("distillated_tgt")
    file = write_task(tmp_path / "as_gold.json", **records)
    gold = learnt(short_run(file, tmp_path / "gold", "--max_steps", 1))
    assert (taught / "adapter_model.safetensors").read_bytes() == (gold / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("where", ["beside", "elsewhere"])
def test_the_next_command_runs_as_printed(where, tmp_path):
    folder = lively(tmp_path / "teacher", ["dialogue"], 16)
    data = small(tmp_path / "the data.json", "dialogue", train=2, valid=1, test=1)
    more = [] if where == "beside" else ["--output", tmp_path / "taught.json"]
    out = distilled(asked(folder, data, "--max_history", 1, *more, task="dialogue"))
    words = shlex.split(re.search("next: python train.py (.*)", out)[1])
    assert words[words.index("--model_checkpoint") + 1] == "tiny-llama"
    run = learnt([*words, "--max_steps", 1, "--fp32", "--output_dir", tmp_path / "run"])
    flags = json.loads((run / "run.json").read_text())["flags"]
    assert flags["distillation"] and flags["max_history"] == 1
    assert flags["dataset_path"] == str(data if where == "beside" else tmp_path / "taught.json")


def test_the_seeds_command_runs_as_printed_where_the_data_lie_in_their_own_place(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "NMT").mkdir(parents=True)
    data = small(tmp_path / "data" / "NMT" / "data_en_ge.json", "mt", train=2, valid=1, test=1)
    argv = ["--task", "mt", "--max_history=2", "--model_checkpoint", teacher, "--no_sample"]
    result = here("sentence_distiller", argv)
    assert result.code == 0, result.err
    assert [len(targets(r)) for r in held(beside(data))["train"]] == [1, 1]


@pytest.mark.parametrize("task", ["nlg", "dialogue"])
def test_training_on_a_file_without_the_teachers_texts_says_where_to_get_them(task, tmp_path):
    data = small(tmp_path / "data.json", task, train=2, valid=1, test=1)
    result = here("train", short_run(data, tmp_path / "run", "--distillation", task=task))
    refused(result, f"{data}:train[0]", "distillated_", "sentence_distiller.py", out=tmp_path / "run")
    assert f"{beside(data)}, which is not there" in result.err


def test_help_imports_nothing_heavy():
    code = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print('loaded:', {'torch', 'transformers', 'numpy', 'ijson'} & set(sys.modules)))\n"
        "sys.argv = ['sentence_distiller.py', '--help']\n"
        "runpy.run_path('sentence_distiller.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "loaded: set()" in done.stdout and "--restart" in done.stdout


# --- stopped and resumed -----------------------------------------------------------------------------------


def killed_after(argv, partial, lines, folder, number=signal.SIGKILL):
    """Start, and kill as soon as the partial file has this many lines; returns how it ended."""
    job = start("sentence_distiller", argv, folder)
    until(lambda: partial.exists() and partial.read_bytes().count(b"\n") >= lines, job)
    job.kill(number)
    return job.wait()


@pytest.mark.parametrize("more", [
    pytest.param((), marks=pytest.mark.slow), ("--num_beams", 2),
    pytest.param(("--temperature", 2.0, "--sampled"), marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_in_the_middle_and_gone_on_equals_never_stopped(more, teacher, tmp_path):
    sampled = "--sampled" in more
    more = [a for a in more if a != "--sampled"]
    data = small(tmp_path / "nlg.json", train=40, valid=4, test=4)
    argv = [a for a in asked(teacher, data, "--max_length", 24, *more) if not sampled or a != "--no_sample"]
    distilled([*argv, "--output", tmp_path / "whole.json"])
    partial = tmp_path / "nlg_distilled.json.partial"
    struck = [killed_after(argv, partial, lines, tmp_path / "log").code for lines in (2, 15)]
    assert struck == [-signal.SIGKILL] * 2
    assert not beside(data).exists()
    with open(partial, "ab") as file:
        file.write(b'{"batch": 17, "inp')
    out = distilled(argv)
    assert "continuing: " in out
    assert beside(data).read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize("name", quick.every(2, ["SIGTERM", "SIGINT"]))
def test_a_signal_says_how_to_go_on(name, teacher, data, tmp_path):
    argv, number = asked(teacher, data, "--max_length", 64, "--min_length", 60), getattr(signal, name)
    partial = tmp_path / "nlg_distilled.json.partial"
    result = killed_after([*argv, "--restart"], partial, 3, tmp_path / "log", number)
    assert result.code == 128 + number
    assert result.err == ""
    assert f"{name}: the outputs so far are in {partial}. To resume:\n  python sentence_distiller.py" in result.out
    assert "--restart" not in result.out
    distilled(argv)
    assert [len(targets(r)) for r in held(beside(data))["train"]] == [1] * 20


@pytest.fixture
def stopped(teacher, data, tmp_path):
    """(flags, the partial file) of a run that was killed in the middle."""
    argv = asked(teacher, data, "--max_length", 24, "--min_length", 20)
    partial = tmp_path / "nlg_distilled.json.partial"
    assert killed_after(argv, partial, 4, tmp_path / "log").code == -signal.SIGKILL
    return argv, partial


def test_what_an_interrupted_run_left_is_not_mixed_with_other_settings(stopped, data, tmp_path):
    argv, partial = stopped
    before = partial.read_bytes()
    for more, name in [(["--max_length", 30], "max_length was 24, now it is 30"), (["--limit", 12], "limit was None"),
                       (["--batch_size", 5], "batch_size was 2, now it is 5"),
                       (["--model_checkpoint", lively(tmp_path / "other", ["nlg"])], "teacher was ")]:  # fmt: skip
        refused(here("sentence_distiller", [*argv, *more]), partial, name, "--restart")
        assert partial.read_bytes() == before
    small(data, train=21, valid=4, test=4)
    refused(here("sentence_distiller", argv), partial, "data was ", "--restart")
    distilled([*argv, "--restart"])
    assert len(held(beside(data))["train"]) == 21


def test_a_damaged_partial_file_is_refused_and_a_torn_end_is_not_damage(stopped, data, tmp_path):
    argv, partial = stopped
    lines = partial.read_bytes().splitlines(keepends=True)
    for broken in (lines[0] + b"\x00\x00\n", lines[0] + lines[2], lines[0] + lines[1] + b"[]\n", b"[1]\n" + lines[1]):
        partial.write_bytes(broken)
        refused(here("sentence_distiller", argv), partial, "is damaged", "--restart")
        assert partial.read_bytes() == broken
    made = b""
    for torn in (b"", lines[0][:9], lines[0] + lines[1], lines[0] + lines[1] + lines[2][:-1]):
        partial.write_bytes(torn)
        distilled([*argv, "--overwrite"])
        made = made or beside(data).read_bytes()
        assert beside(data).read_bytes() == made


def test_killed_between_writing_the_output_and_removing_the_partial_file_ends_well(
    teacher, data, tmp_path, monkeypatch
):
    argv, partial = asked(teacher, data), tmp_path / "nlg_distilled.json.partial"
    with monkeypatch.context() as patch:
        patch.setattr(sentences.PartialOutputs, "remove", lambda self: None)
        sentence_distiller.main(list(map(str, argv)))
    finished, kept = beside(data).read_bytes(), partial.read_bytes()
    assert "was finished before" in distilled(argv)
    assert beside(data).read_bytes() == finished and not partial.exists()
    # With another output in the way, or with batches missing, it is an error, and nothing is lost.
    for output, left in ((b"{}", kept), (finished, kept[: kept.rindex(b"{")])):
        beside(data).write_bytes(output)
        partial.write_bytes(left)
        refused(here("sentence_distiller", argv), beside(data), "already exists", "--overwrite")
        assert partial.read_bytes() == left and beside(data).read_bytes() == output


def test_a_full_disk_is_one_clear_error_and_what_was_written_is_gone_on_with(
    teacher, data, tmp_path, monkeypatch, capsys
):
    argv, partial = list(map(str, asked(teacher, data))), tmp_path / "nlg_distilled.json.partial"
    append = sentences.PartialOutputs._append

    def full(self, value):
        if self.done == 3:
            self.file.write(b'{"bat')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, value)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sentences.PartialOutputs, "_append", full)
        sentence_distiller.main(argv)
    assert stop.value.code == 2
    assert f"{partial}: cannot write: the disk is full" in capsys.readouterr().err
    assert not beside(data).exists()
    assert "continuing: 6 outputs" in distilled(argv)


# --- bad input ---------------------------------------------------------------------------------------------


def left(folder):
    return sorted(p.name for p in folder.iterdir() if p.is_file())


def test_an_output_in_the_way_is_replaced_only_when_asked(teacher, data, tmp_path):
    beside(data).write_text("mine")
    refused(here("sentence_distiller", asked(teacher, data)), beside(data), "--overwrite")
    assert beside(data).read_text() == "mine"
    distilled(asked(teacher, data, "--overwrite"))
    assert len(held(beside(data))["train"]) == 20


def test_the_data_file_is_never_written_over(teacher, data, tmp_path):
    again = shutil.copy(data, tmp_path / "nlg_distilled.json")
    for file, more in ((data, ["--output", data]), (again, [])):
        result = here("sentence_distiller", asked(teacher, file, "--overwrite", *more))
        refused(result, "is the data file itself")
        assert len(held(data)["train"]) == len(held(again)["train"]) == 20


BROKEN = {
    "cut off": b'{"train": [{"src": {"name": "A"}, "tgt": "b"}], "test": [',
    "no json": b"train",
    "no train": b'{"test": [{"src": {"name": "A"}, "tgt": "b"}]}',
    "no tgt": b'{"train": [{"src": {"name": "A"}}]}',
    "not a record": b'{"train": [3]}',
    "no slot": b'{"train": [{"src": {"nme": "A"}, "tgt": "b"}]}',
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_data_are_one_clear_error_and_leave_nothing(what, teacher, tmp_path):
    data = tmp_path / "data.json"
    data.write_bytes(BROKEN[what])
    refused(here("sentence_distiller", asked(teacher, data)), data)
    assert left(tmp_path) == ["data.json"]


def test_a_teacher_that_cannot_teach_this_is_one_clear_error(teacher, data, tmp_path):
    articles = SAMPLES / "summarization.json"
    for folder, words, argv in (
        (teacher, "not 'summarization'", asked(teacher, articles, task="summarization")),
        ("tiny-gpt2", "bare backbone", asked("tiny-gpt2", data)),
        (tmp_path / "no", "", asked(tmp_path / "no", data)),
    ):
        result = here("sentence_distiller", [*argv, "--output", tmp_path / "out.json"])
        refused(result, f"--model_checkpoint {folder}", words)
    assert left(tmp_path) == ["nlg.json"]


def test_a_limit_without_room_for_a_record_is_an_error(teacher, tmp_path):
    data = small(tmp_path / "data.json", "qa", train=2, valid=1, test=1)
    refused(here("sentence_distiller", asked(teacher, data, "--limit", 1, task="qa")), "--limit 1")
    assert left(tmp_path) == ["data.json"]


def test_a_checkpoints_fingerprint_follows_its_files_and_nothing_else(teacher, tmp_path):
    folder = shutil.copytree(teacher, tmp_path / "copy")
    first = sentences.checkpoint_fingerprint(teacher)
    (folder / "metrics.json").write_text("{}")
    assert sentences.checkpoint_fingerprint(folder) == first
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert sentences.checkpoint_fingerprint(folder) != first
    assert sentences.checkpoint_fingerprint("gpt2") == "gpt2"
