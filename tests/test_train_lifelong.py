"""train_lifelong.py itself: every mode, killed and resumed, in two processes, and its refusals."""

import json
import shutil

import pytest
import quick
import torch
from lifelong_data import command, questions, report, write
from safetensors.torch import load_file
from scripts import run, tensors
from training_runs import different, error_of, in_two_processes, killed_and_resumed, on_seeing, refused, trained
from versatile.data import question_samples as samples
from versatile.data.question_tasks import TASKS

SCRIPT = "train_lifelong"
# A mode's flags in addition to the common ones.
MODES = {
    "finetune": (), "lll": ("--add_task_tokens", "--save_steps", 1), "multitask": ("--upsample_data",), "multilm": (),
    "mas": ("--reg_lambda", 1e8), "ewc": ("--reg_lambda", 1000, "--save_steps", 1), "gem": ("--save_steps", 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def learnt(data, tmp_path_factory):
    """Called with a mode: the directory of its uninterrupted run, which is made once."""
    made, folder = {}, tmp_path_factory.mktemp("runs")

    def of(mode):
        if mode not in made:
            made[mode] = folder / mode
            trained([*command(data, folder / mode, mode, *MODES[mode])], folder / f"{mode}.log", SCRIPT)
        return made[mode]

    return of


def stages(mode, out):
    return [out] if mode in ("multitask", "multilm") else [out / "ag", out / "sst"]


@pytest.mark.parametrize("mode", quick.every(2, MODES))
def test_every_mode_leaves_a_model_after_each_task_and_each_epoch(mode, learnt):
    out = learnt(mode)
    finished = json.loads((out / "sequence.json").read_text())["finished"]
    assert finished == (["all"] if mode.startswith("multi") else ["ag", "sst"])
    for folder in stages(mode, out):
        done = report(folder)
        assert done["mode"] == mode and done["steps"] == done["total_steps"] > 0 and (folder / "run.json").is_file()
        final = tensors(folder)
        assert different(final, tensors(folder / "epoch_2")) == [] != different(final, tensors(folder / "epoch_1"))
        assert not (folder / "checkpoints").exists() and not (folder / "importance.pt").exists()
    assert (report(stages(mode, out)[-1])["samples"]) == (20 if mode.startswith("multi") else 10)


def test_lll_replays_what_it_generated_and_says_what_it_rejected(learnt):
    out = learnt("lll")
    found = json.loads((out / "sst" / "generated_ag.report.json").read_text())
    lines = (out / "sst" / "generated_ag.jsonl").read_text().splitlines()
    assert found["asked"] == 4 and found["kept"] == len(lines) == 4 - sum(found["rejected"].values())
    assert report(out / "sst")["replayed"] == ({"ag": found["kept"]} if found["kept"] else {})
    assert report(out / "sst")["generation_seconds"] == found["seconds"] > 0 == report(out / "ag")["generation_seconds"]
    said = (out.parent / "lll.log" / "out").read_text()
    assert "ag: task 1 of 2, 10 samples" in said and f"{found['kept']} of 4 generated samples kept" in said


def test_modes_differ_where_they_should(learnt):
    """Runs that only differ at the second task learn the first one identically."""
    one = tensors(learnt("finetune") / "ag")
    for mode in ("ewc", "mas", "gem"):
        assert different(one, tensors(learnt(mode) / "ag")) == []
    ends = [tensors(learnt(mode) / "sst") for mode in ("finetune", "ewc", "mas")]
    assert different(ends[0], ends[1]) and different(ends[0], ends[2]) and different(ends[1], ends[2])


def test_ewc_stays_nearer_to_the_first_task(learnt):
    def moved(mode):
        before, after = (load_file(learnt(mode) / task / "model.safetensors") for task in ("ag", "sst"))
        return sum(float((after[name] - before[name]).square().sum()) for name in before)

    assert moved("ewc") < moved("finetune")


# In training, as soon as the second task is begun (generation), as soon as the first model exists (importance).
KILLS = {
    "lll": ("ag/checkpoints/step_00000002", "sst/run.json", "sst/generated_ag.report.json", "sst/checkpoints/step_*"),
    "ewc": ("ag/checkpoints/step_00000004", "ag/model.safetensors", "ag/importance.pt", "sst/checkpoints/step_*"),
    "gem": ("ag/epoch_1", "ag/memory.json", "sst/checkpoints/step_00000003"),
}


@pytest.mark.parametrize("mode", quick.only(["lll"], KILLS))
def test_killed_at_any_moment_and_resumed_is_the_uninterrupted_run(mode, learnt, data, tmp_path):
    out, whole = tmp_path / "run", learnt(mode)
    kills = [on_seeing(pattern) for pattern in KILLS[mode]]
    struck = killed_and_resumed(command(data, out, mode, *MODES[mode]), out, tmp_path / "log", kills, SCRIPT)
    assert struck >= 2
    for task in ("ag", "sst"):
        assert different(tensors(whole / task), tensors(out / task)) == []
        assert different(tensors(whole / task / "epoch_1"), tensors(out / task / "epoch_1")) == []
        one, other = report(whole / task), report(out / task)
        assert one["history"]["train"] == other["history"]["train"] and one["tokens"] == other["tokens"]
    for name in ("generated_ag.jsonl", "memory.json"):
        if (whole / "sst" / name).exists():
            assert (whole / "sst" / name).read_bytes() == (out / "sst" / name).read_bytes()


def test_what_a_kill_left_in_finished_stages_is_removed_by_the_next_start(learnt, data, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(learnt("ewc"), out)
    before = sorted(out.rglob("*"))
    # Left by a kill between writing the progress and removing what it makes superfluous.
    for name in ("ag/checkpoints/step_00000001/training_state.pt", "sst/checkpoints/step_00000004/model.safetensors",
                 "ag/importance.pt", "ag/epoch_1/.config.json.x.part", ".sequence.json.y.part"):  # fmt: skip
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("x")
    result = run(SCRIPT, command(data, out, "ewc", *MODES["ewc"]), tmp_path / "log")
    assert result.code == 0, result.err
    assert sorted(out.rglob("*")) == before


def test_the_same_command_goes_on_and_learns_nothing_twice(learnt, data, tmp_path):
    out = learnt("lll")
    before = tensors(out / "sst")
    result = run(SCRIPT, command(data, out, "lll", *MODES["lll"], "--skip_tasks", "ag"), tmp_path)
    assert result.code == 0, result.err
    assert "ag: already trained" in result.out and "sst: already trained" in result.out
    assert different(before, tensors(out / "sst")) == []
    refused(run(SCRIPT, command(data, out, "lll", "--add_task_tokens", "--reg_lambda", 3), tmp_path), "reg_lambda")


@pytest.mark.parametrize("mode", quick.only(["ewc"], ["lll", "ewc"]))
def test_two_processes_learn_what_one_does(mode, data, tmp_path):
    more = ("--real_sample",) if mode == "lll" else ("--reg_lambda", 10)
    trained(command(data, tmp_path / "one", mode, *more, model="tiny-llama"), tmp_path / "log", SCRIPT)
    argv = command(data, tmp_path / "two", mode, *more, model="tiny-llama", batch=2)
    in_two_processes(argv, tmp_path / "logs", SCRIPT)
    for task in ("ag", "sst"):
        one, two = (load_file(tmp_path / name / task / "model.safetensors") for name in ("one", "two"))
        for key in one:
            torch.testing.assert_close(one[key], two[key], atol=2e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_adapters_are_learnt_beside_a_frozen_backbone_from_teachers_that_are_trained_once(data, tmp_path):
    argv = command(data, tmp_path / "run", "lll", "--adapter_bottleneck", 4, "--distil", "--seq_distil",
                   "--train_teachers", "--real_sample")  # fmt: skip
    first = run(SCRIPT, argv, tmp_path / "log")
    assert first.code == 0, first.err
    names = set(load_file(tmp_path / "run" / "sst" / "adapter_model.safetensors"))
    assert names == {"rows.lifelong", *(f"blocks.{block}.lifelong.{part}.{kind}" for block in range(2)
                                        for part in ("norm", "down", "up") for kind in ("weight", "bias"))}  # fmt: skip
    assert "ag: distilled from the teacher" in first.out and "10 texts of the teacher" in first.out
    teachers = sorted((tmp_path / "run" / "tiny-gpt2_adapter_4" / "teachers").iterdir())
    assert len(teachers) == 2
    # A teacher is a sequence of one task and can be evaluated by itself.
    evaluated = run("evaluate_lifelong", ["--model_dirs", teachers[0], "--fp32", "--limit", 2], tmp_path / "log")
    assert evaluated.code == 0 and "ag, final: ag: em" in evaluated.out, evaluated.err
    argv[argv.index("--output_dir") + 1] = str(tmp_path / "again")
    again = run(SCRIPT, argv, tmp_path / "log")
    assert again.out.count("the teacher already exists") == 2 and again.out.count("teacher already in ") == 2
    assert "teacher of" not in again.out.replace("texts of the", "")
    assert different(tensors(tmp_path / "run" / "sst"), tensors(tmp_path / "again" / "sst")) == []


def test_unbound_parts_are_learnt_like_tasks(data, tmp_path):
    out = tmp_path / "run"
    trained([*command(data, out, "lll", "--real_sample"), "--unbound", "3", "--n_train_epochs", "1"], tmp_path, SCRIPT)
    assert [report(out / f"task_{i}")["samples"] for i in range(3)] == [6, 7, 7]
    # ceil(0.4 · 7) samples, in equal shares of the parts before.
    assert [report(out / f"task_{i}")["replayed"] for i in (1, 2)] == [{"task_0": 3}, {"task_0": 1, "task_1": 1}]
    from versatile.lifelong import scoring

    assert scoring.open_sequence_run(out).flags.unbound == 3


def test_upsampled_tasks_are_learnt_as_often_as_said(data, tmp_path):
    argv = [*command(data, tmp_path / "run", "multitask"), "--upsample_data", "1_3", "--n_gpus", "1"]
    trained([*argv, "--n_train_epochs", "1", "--train_batch_size", "4"], tmp_path, SCRIPT)
    # 10 samples of ag once, 10 of sst three times.
    assert report(tmp_path / "run")["steps"] == 10


# --- what is refused --------------------------------------------------------------------------------------


def bad(data, tmp_path, *more, **how):
    return run(SCRIPT, command(data, tmp_path / "out", how.pop("mode", "lll"), *more, **how), tmp_path / "log")


def test_data_that_cannot_be_learnt_are_one_message(tmp_path):
    folder = write(tmp_path / "data")
    refused(bad(folder, tmp_path, tasks=("ag", "schema")), "no schema_to_squad-train-v2.0.json", "--data_dir",
            out=tmp_path / "out")  # fmt: skip
    refused(bad(folder, tmp_path, tasks=("ag", "sts")), "unknown task 'sts'", "sst")
    path = folder / TASKS["sst"].filename("train")
    (one, *rest) = questions("sst", 3)
    samples.save_samples(path, [*rest, samples.QA(one.context, one.question, ("positive", "negative"))])
    refused(bad(folder, tmp_path), "2 answers", "sst_to_squad-train-v2.0.json:data[2]", out=tmp_path / "out")
    samples.save_samples(path, [*rest, samples.QA(one.context, one.question, ("golden " * 60,))])
    refused(bad(folder, tmp_path), "an answer has", "sst_to_squad-train-v2.0.json:data[2]", "or more for its context")


def test_a_teacher_that_cannot_teach_is_one_message(data, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from versatile.adapters import checkpoint
    from versatile.adapters.attach import attach
    from versatile.adapters.backbones import bundled
    from versatile.adapters.backbones import loading as backbones
    from versatile.data.encoders.question_answer import special_tokens

    other, teachers = tmp_path / "other", tmp_path / "teachers"
    model = AutoModelForCausalLM.from_pretrained(bundled.folder("tiny-gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(bundled.folder("tiny-gpt2"))
    tokenizer.add_tokens(["versatile"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(other), tokenizer.save_pretrained(other)
    model, tokenizer = backbones.load_backbone(str(other))
    attach(model, tokenizer, {"lifelong": special_tokens(["ag"])})
    checkpoint.save_checkpoint(model, tokenizer, teachers / "ag")
    more = ("--distil", "--teacher_dir", teachers)
    refused(bad(data, tmp_path, *more), "no teacher of sst", "--train_teachers", out=tmp_path / "out")
    checkpoint.save_checkpoint(model, tokenizer, teachers / "sst")
    refused(bad(data, tmp_path, *more), "the teacher's vocabulary (", teachers / "ag", out=tmp_path / "out")


@pytest.mark.parametrize(
    "more, fragment",
    [
        (("--unbound", "4", "--distil"), "its parts have no teachers"),
        (("--unbound", "400"), "there are 20 samples"),
        (("--n_gpus", "2"), "torchrun --nproc_per_node 2"),
        (("--seq_train_type", "multitask", "--upsample_data", "1_2_3"), "3 numbers for 2 tasks"),
        (("--seq_train_type", "multitask", "--upsample_data", "1_x"), "1_3_2"),
        (("--seq_train_type", "multitask", "--distil"), "a teacher knows one"),
        (("--seq_train_type", "ewc", "--real_sample"), "--real_sample requires"),
        (("--teacher_dir", "x"), "a teacher requires"),
        (("--tasks", "ag", "ag"), "ag more than once"),
        (("--tasks", "ag,sst"), "--tasks ag sst"),
        (("--max_len", "3"), "--max_len 3: 3 tokens are too few"),
        (("--seq_distil",), "--train_teachers, or --teacher_dir DIR"),
    ],
)
def test_flags_without_a_meaning_are_refused(more, fragment, data, tmp_path, capsys):
    import train_lifelong

    with pytest.raises(SystemExit) as stopped:
        train_lifelong.main([*command(data, tmp_path, "lll"), *more])
    assert stopped.value.code == 2 and fragment in capsys.readouterr().err


def learn(capsys, *argv):
    """Learn in this process; returns what was printed."""
    import train_lifelong

    capsys.readouterr()
    train_lifelong.main(list(map(str, argv)))
    return capsys.readouterr().out


def cannot(capsys, *argv):
    return error_of(capsys, lambda: learn(capsys, *argv))


QUICK = ("--n_train_epochs", 1, "--only_final")


def test_a_directory_of_another_run_or_of_one_task_is_not_gone_on_with(learnt, data, capsys):
    out = learnt("finetune")
    text = cannot(capsys, "--resume", out / "ag")
    assert f"this is one task of {out}" in text and f"--resume {out}\n" in text
    text = cannot(capsys, *command(data, out, "finetune", "--seed", 7))
    assert f"--output_dir {out}: this directory holds another run" in text and "--seed 7" in text
    assert "--resume" not in text and "choose another directory with --output_dir" in text
    assert "train_lifelong.py" in cannot(capsys, "--resume", data)


def test_an_output_directory_is_place_enough_and_flags_of_the_evaluation_do_nothing(data, tmp_path, capsys):
    argv = command(data, tmp_path / "run", "finetune", *QUICK, "--test_all", "--ref1", "--test_training_set")
    at = argv.index("--model_dir_root")
    learn(capsys, *argv[:at], *argv[at + 2 :], "--distil", "--train_teachers")
    assert len(list((tmp_path / "tiny-gpt2" / "teachers").iterdir())) == 2
    flags = json.loads((tmp_path / "run" / "run.json").read_text())["flags"]
    assert not {"test_all", "ref1", "test_training_set"} & flags.keys()


def test_what_does_not_fit_and_what_is_held_or_replayed_is_said(tmp_path, capsys):
    folder = write(tmp_path / "data")
    samples.save_samples(folder / TASKS["ag"].filename("train"),
                         [*questions("ag", 3), samples.QA("a river " * 60, "what?", ("World",))])  # fmt: skip
    # As many are kept as a quarter of the next task, which has 10.
    few = ("--max_len", 96, "--gen_lm_sample_percentage", 0.25)
    said = learn(capsys, *command(folder, tmp_path / "gem", "gem", *QUICK, *few))
    assert "the context of 1 of 4 samples" in said and "ag: 2 of 4 samples kept" in said
    assert "sst: cut" not in said and said.count("kept") == 1 and "of 3 steps" in said
    write(folder, tasks=("schema",), train=10)
    one = ("--real_sample", "--limit", 2, "--gen_lm_sample_percentage", 0.1)
    said = learn(capsys, *command(folder, tmp_path / "lll", "lll", *QUICK, *one, tasks=("ag", "sst", "schema")))
    assert "ag: 1 real sample replayed" in said and "warning: nothing is replayed: 0.1 of 2 samples" in said
    assert "1 steps" not in said and "1 samples" not in said and "(1 step, 2 samples" in said


def test_an_answer_too_long_to_be_evaluated_is_said_before_learning(tmp_path, capsys):
    folder = write(tmp_path / "data")
    samples.save_samples(folder / TASKS["sst"].filename("test"), [samples.QA("a", "b?", ("golden " * 60,))])
    said = learn(capsys, *command(folder, tmp_path / "run", "finetune", *QUICK))
    warning = "sst_to_squad-test-v2.0.json:data[0].paragraphs[0].qas[0] cannot be evaluated as it is: an answer has"
    assert said.index(warning) < said.index("task 1 of 2") and "evaluate_lifelong.py --max_len " in said
    longer = said.split("evaluate_lifelong.py --max_len ")[1].split()[0]
    import evaluate_lifelong

    evaluate_lifelong.main(["--model_dirs", str(tmp_path / "run"), "--max_len", longer, "--fp32"])


def test_the_length_that_is_asked_for_is_enough_after_bos_too(tmp_path, capsys):
    folder = write(tmp_path / "data")
    samples.save_samples(folder / TASKS["ag"].filename("train"), [samples.QA("a", "b?", ("golden " * 40,))] * 4)
    argv = command(folder, tmp_path / "run", "lll", *QUICK, "--lead_bos")
    said = cannot(capsys, *argv)
    assert "with --max_len 48" in said
    learn(capsys, *argv, "--max_len", said.split("remedy:   --max_len ")[1].split(",")[0])


def test_a_bos_without_effect_is_refused(data, tmp_path, capsys):
    argv = command(data, tmp_path / "run", "lll", *QUICK, "--lead_bos", "--model_name", "tiny-t5")
    assert "--lead_bos" in cannot(capsys, *argv) and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_teachers_are_found_where_train_teachers_put_them(data, tmp_path, capsys):
    learn(capsys, *command(data, tmp_path / "one", "finetune", *QUICK, "--seq_distil", "--train_teachers"))
    teachers = tmp_path / "one" / "tiny-gpt2" / "teachers"
    (text,) = teachers.glob("ag_*/ag/distil_*.json")
    more = ("--seq_distil", "--distil", "--teacher_dir", teachers)
    said = learn(capsys, *command(data, tmp_path / "two", "finetune", *QUICK, *more))
    assert "distilled from the teacher" in said and said.count("already in ") == 2
    # Texts of a different length, or from different weights, are different texts.
    learn(capsys, *command(data, tmp_path / "three", "finetune", *QUICK, "--max_len", 40, *more))
    assert len(list(teachers.glob("ag_*/ag/distil_*.json"))) == 2
    weights = next(teachers.glob("ag_*/ag/model.safetensors"))
    for name in ("model.safetensors", "config.json"):
        (weights.parent / name).write_bytes(next(teachers.glob(f"sst_*/sst/{name}")).read_bytes())
    learn(capsys, *command(data, tmp_path / "four", "finetune", *QUICK, *more))
    assert len(list(teachers.glob("ag_*/ag/distil_*.json"))) == 3
    import shutil

    shutil.copytree(weights.parents[1], teachers / "ag_0.05_42")
    text = cannot(capsys, *command(data, tmp_path / "five", "finetune", *more))
    assert "several teachers of ag: " in text and "ag_0.05_42" in text and not (tmp_path / "five").exists()


def test_a_teacher_with_too_few_positions_is_found_before_learning(data, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from versatile.adapters import checkpoint
    from versatile.adapters.attach import attach
    from versatile.adapters.backbones import bundled
    from versatile.adapters.backbones import loading as backbones
    from versatile.data.encoders.question_answer import special_tokens

    short = AutoModelForCausalLM.from_pretrained(bundled.folder("tiny-gpt2")).config
    short.n_positions = short.max_position_embeddings = 32
    AutoModelForCausalLM.from_config(short).save_pretrained(tmp_path / "short")
    AutoTokenizer.from_pretrained(bundled.folder("tiny-gpt2")).save_pretrained(tmp_path / "short")
    model, tokenizer = backbones.load_backbone(str(tmp_path / "short"))
    attach(model, tokenizer, {"lifelong": special_tokens(["ag"])})
    for task in ("ag", "sst"):
        checkpoint.save_checkpoint(model, tokenizer, tmp_path / "teachers" / task)
    text = cannot(capsys, *command(data, tmp_path / "out", "lll", "--distil", "--teacher_dir", tmp_path / "teachers"))
    assert "it has 32 positions" in text and "--max_len 32" in text and not (tmp_path / "out").exists()
