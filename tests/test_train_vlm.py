"""train_vlm.py and evaluate_vlm.py run as a user runs them: mixed batches, a best epoch for each task, resuming.

python -m pytest tests/test_train_vlm.py
"""

import json
import shutil

import pytest
import quick
import scripts
import torch
from scripts import metrics, run, run_as_user, small, tensors, write_task
from trainers import build_trainer
from training_runs import close_runs, different, in_two_processes, refused
from training_runs import trained as trained_by
from versatile.adapters.manifest import peek
from versatile.training.objectives import cross_entropy

TASKS = ("nlg", "mt", "qa")
WIDTHS = {"nlg": 4, "mt": 6, "qa": 0}


def command(files, out, *more, model="tiny-gpt2", tasks=TASKS, epochs=2, batch=4, accumulation=2):
    """Flags of a short run in fp32 on the first records of the samples."""
    data = [f"{task}={files[task]}" for task in tasks]
    widths = [f"{task}={WIDTHS[task]}" for task in tasks]
    return ["--tasks", *tasks, "--data", *data, "--model_checkpoint", model, "--adapter_bottleneck", *widths,
            "--train_batch_size", batch, "--gradient_accumulation_steps", accumulation, "--n_epochs", epochs,
            "--lr", "5e-3", "--fp32", "--output_dir", out, *more]  # fmt: skip


def trained(argv, folder):
    return trained_by(argv, folder, "train_vlm")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    sizes = {"nlg": (14, 4, 4), "mt": (10, 4, 4), "qa": (2, 1, 1)}
    return {task: small(folder / f"{task}.json", task, train=n, valid=v, test=t) for task, (n, v, t) in sizes.items()}


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """An undisturbed run; read it, do not write to it."""
    folder = tmp_path_factory.mktemp("finished")
    return trained_by(command(files, folder / "run"), folder, "train_vlm", pictures=True)


@pytest.mark.parametrize("task", ["mt", "sst2", "ag"])
def test_data_that_are_not_there_are_named_as_they_were_typed(task, files, tmp_path):
    out, data = tmp_path / "run", ["--data", f"nlg={files['nlg']}", f"{task}=no/such"]
    argv = ["--tasks", "nlg", task, *data, "--model_checkpoint", "tiny-gpt2", "--adapter_bottleneck", 4]
    refused(run("train_vlm", [*argv, "--output_dir", out], tmp_path), "no/such", out=out)


def test_a_run_draws_a_curve_of_each_task(finished):
    assert (finished / "learning_curve.png").stat().st_size > 1000


def test_data_that_have_moved_may_be_named_by_any_name_of_the_task(finished, files, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((out / "run.json").read_text())
    record["flags"]["data"]["nlg"] = str(tmp_path / "gone.json")
    (out / "run.json").write_text(json.dumps(record))
    refused(run("train_vlm", ["--resume", out], tmp_path), "gone.json")
    for name in ("nlg", "NLG"):
        result = run("train_vlm", ["--resume", out, "--data", f"{name}={files['nlg']}"], tmp_path)
        assert result.code == 0, result.err


def evaluate(model, files, out, *more, script="evaluate_vlm", tasks=TASKS):
    argv = ["--model_checkpoint", model, "--no_sample", "--fp32", "--max_length", 12, "--output_dir", out, *more]
    if script == "evaluate_vlm":
        argv += ["--data", *(f"{task}={files[task]}" for task in tasks)]
    result = run(script, argv, out.parent / "log", env=scripts.without_java())
    assert result.code == 0, result.err
    return result


# --- training ----------------------------------------------------------------------------------------------


def test_every_task_is_trained_validated_and_held_by_the_checkpoint(finished):
    found = metrics(finished)
    assert list(found["tasks"]) == list(TASKS)
    rows = found["history"]["valid"]
    assert len(rows) == 2 and all(list(row["tasks"]) == list(TASKS) for row in rows)
    for row in rows:
        assert row["nll"] == pytest.approx(sum(t["nll"] for t in row["tasks"].values()) / 3)
    for task in TASKS:
        assert found["tasks"][task]["valid_nll"] == min(row["tasks"][task]["nll"] for row in rows)
    keys = tensors(finished)
    assert {k.split(".")[2] for k in keys if k.startswith("blocks")} == {"nlg", "mt"}
    assert {k for k in keys if k.startswith("rows")} == {"rows.nlg", "rows.mt", "rows.qa"}
    config = json.loads((finished / "adapter_config.json").read_text())
    assert {task: m.get("adapter_bottleneck", 0) for task, m in config["methods"].items()} == WIDTHS
    assert [task["name"] for task in config["tasks"]] == list(TASKS)
    assert {t["name"]: t.get("max_history") for t in config["tasks"]} == {"nlg": None, "mt": None, "qa": 1}
    assert json.loads((finished / "run.json").read_text())["method"] == "multi-task"


def model_and_batches(files, name, tasks, batch_size=6):
    from versatile.adapters import attach as adapting
    from versatile.adapters.backbones import loading as backbones
    from versatile.data.batching import Batches
    from versatile.data.encoders.markers import load_split
    from versatile.data.task import get_task

    torch.manual_seed(0)
    model, tokenizer = backbones.load_backbone(name)
    adapting.attach(model, tokenizer, {t: get_task(t).markers for t in TASKS}, WIDTHS)
    model.train(False)
    splits = {
        t: load_split(files[t], "train", form, tokenizer, 256, training=True, options=form.read_options())
        for t, form in ((t, get_task(t)) for t in tasks)
    }
    ids = {t: model.task_id(t) for t in tasks}
    return model, Batches(splits, ids, tokenizer.pad_token_id, 256, batch_size=batch_size)


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama", "tiny-t5"])
def test_the_gradient_of_a_mixed_batch_is_that_of_its_tasks_one_by_one(files, name):
    model, mixed = model_and_batches(files, name, TASKS)
    rows = torch.arange(len(mixed))[::3].numpy()
    batch = mixed.collate(rows)
    assert len(set(batch["task_ids"].tolist())) == 3
    labels = (batch["labels"] != -100).sum()
    cross_entropy(model, batch, labels).backward()
    together = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total = 0.0
    for row in rows:
        # Each example alone, without padding to the batch's longest.
        loss = cross_entropy(model, mixed.collate(rows[rows == row]), labels)
        loss.backward()
        total += float(loss)
    alone = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert together.keys() == alone.keys() and len(alone) > 20
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], atol=1e-6, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", quick.only(["tiny-llama", "tiny-t5"], ["tiny-gpt2", "tiny-llama", "tiny-t5"]))
def test_a_step_of_merged_batches_is_that_of_its_batches_one_by_one(files, name, tmp_path):
    from versatile.training.objectives import SmoothedCrossEntropy

    gradients, parts = [], []
    for merges in (False, True):
        model, mixed = model_and_batches(files, name, TASKS, batch_size=2)
        mixed.planning |= dict(shuffle=True, accumulation=4)
        held = build_trainer(model, mixed, tmp_path / str(merges), n_epochs=1, gradient_accumulation_steps=4,
                             objective=SmoothedCrossEntropy(0.1))  # fmt: skip
        assert held.merges
        held.merges = merges
        windows = [held.window(step) for step in range(held.total_steps)]
        parts.append(sum(map(len, windows)))
        losses = [held.backward(window)[0] for window in windows]
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None} | {"loss": sum(losses)})
    assert parts[1] < parts[0]
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    for key, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], plain, atol=1e-6, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def test_the_order_of_rows_in_a_mixed_batch_changes_nothing(files):
    model, mixed = model_and_batches(files, "tiny-gpt2", TASKS)
    batch = mixed.collate(torch.arange(0, len(mixed), 2).numpy())
    shuffled = torch.randperm(len(batch["task_ids"]), generator=torch.Generator().manual_seed(3))
    assert shuffled.tolist() != sorted(shuffled.tolist())
    plain = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        one = model(**plain).logits
        other = model(**{k: v[shuffled] for k, v in plain.items()}).logits
    torch.testing.assert_close(other, one[shuffled], atol=1e-5, rtol=1e-5)


def test_a_task_without_rows_in_a_step_does_not_move(files, tmp_path):
    from versatile.adapters.attach import parameters_of_tasks
    from versatile.training.callbacks import MaskAbsentTasks

    model, mixed = model_and_batches(files, "tiny-gpt2", TASKS)
    mixed.skip = {"mt"}
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    callbacks = [MaskAbsentTasks(parameters_of_tasks(model))]
    build_trainer(model, mixed, tmp_path / "run", n_epochs=1, weight_decay=0.5, callbacks=callbacks).fit()
    for key, p in model.named_parameters():
        moved = not torch.equal(p, before[key])
        assert moved == (p.requires_grad and "mt" not in key.split(".")), key


def test_two_processes_train_what_one_trains_with_twice_the_batch(files, tmp_path):
    # A Llama has no dropout, which would differ from process to process.
    one = trained(command(files, tmp_path / "one", batch=4, model="tiny-llama"), tmp_path / "log")
    two = tmp_path / "two"
    in_two_processes(command(files, two, batch=2, model="tiny-llama"), tmp_path / "logs", "train_vlm")
    close_runs(one, two)


def test_each_task_keeps_the_weights_of_its_own_best_epoch(files, tmp_path):
    """A rate at which tasks get worse at different times."""
    argv = command(files, tmp_path / "run", "--keep_checkpoints", "20", "--lr", "0.3", epochs=6, accumulation=1)
    out = trained(argv, tmp_path / "log")
    best = metrics(out)["tasks"]
    assert len({t["best_step"] for t in best.values()}) > 1, "all are best at once: the test would prove nothing"
    final = tensors(out)
    for task in TASKS:
        epoch = tensors(out / "checkpoints" / f"step_{best[task]['best_step']:08d}")
        own = [k for k in final if task in k.split(".")]
        assert own and not different({k: final[k] for k in own}, {k: epoch[k] for k in own})


def test_a_task_that_gets_no_better_stops_by_itself(files, tmp_path):
    argv = command(files, tmp_path / "run", "--keep_checkpoints", "40", "--lr", "0.08", "--early_stopping", "1",
                   epochs=12, accumulation=1)  # fmt: skip
    out = trained(argv, tmp_path / "log")
    found = metrics(out)
    stops = {t: next(i for i in range(1, 12) if v[i] >= min(v[:i])) for t, v in losses_of_tasks(found).items()
             if any(v[i] >= min(v[:i]) for i in range(1, len(v)))}  # fmt: skip
    assert len(set(stops.values())) > 1, "all stop at once: the test would prove nothing"
    steps = [row["step"] for row in found["history"]["valid"]]
    states = {s: tensors(out / "checkpoints" / f"step_{s:08d}") for s in steps}
    for task, number in stops.items():
        # From the first epoch without improvement on, its weights stay as they are.
        for step in steps[number + 1 :]:
            own = [k for k in states[step] if task in k.split(".")]
            assert not [k for k in own if states[step][k] != states[steps[number]][k]]
    assert found["stopped_early"] == (len(stops) == 3)


def losses_of_tasks(found):
    return {task: [row["tasks"][task]["nll"] for row in found["history"]["valid"]] for task in TASKS}


def test_an_unfrozen_backbone_is_trained_kept_and_evaluated(files, tmp_path):
    argv = command(files, tmp_path / "run", "--unfreeze_backbone", "--lr", "1e-3")
    out = trained(argv, tmp_path / "log")
    assert "all" not in metrics(out)["history"]["valid"][0]["tasks"]
    assert (out / "backbone" / "model.safetensors").is_file()
    result = evaluate(out, files, tmp_path / "results", "--task", "mt", "--split", "valid", tasks=("mt",))
    assert "PPL" in result.out
    best = min(metrics(out)["history"]["valid"], key=lambda row: row["nll"])
    assert metrics(tmp_path / "results")["nll"] == pytest.approx(best["tasks"]["mt"]["nll"], rel=1e-5)


def test_one_task_alone_is_what_train_py_makes_of_it(files, tmp_path):
    """The same data, order and initial values: a VLM of one task equals the single-task run."""
    vlm = trained(command(files, tmp_path / "vlm", tasks=("mt",)), tmp_path / "log")
    argv = ["--task", "mt", "--dataset_path", files["mt"], "--model_checkpoint", "tiny-gpt2", "--adapter_bottleneck", 6,
            "--train_batch_size", 4, "--gradient_accumulation_steps", 2, "--n_epochs", 2, "--lr", "5e-3", "--fp32",
            "--output_dir", tmp_path / "single"]  # fmt: skip
    single = trained_by(argv, tmp_path / "log")
    assert not different(tensors(vlm), tensors(single))


@pytest.mark.slow
def test_the_seeds_command_runs_as_printed(tmp_path):
    """With data where the tasks look for them, and a backbone where `gpt2` is looked for."""
    from versatile.adapters.backbones import bundled
    from versatile.data.task import get_task

    shutil.copytree(bundled.folder("tiny-gpt2"), tmp_path / "gpt2")
    for task in ("mt", "nlg", "dialogue", "qa", "summarization"):
        path = tmp_path / get_task(task).dataset_path
        path.parent.mkdir(parents=True)
        sizes = dict(train=2, valid=1, test=1)
        small(path, task, **sizes)
    argv = ["--gradient_accumulation_steps=16", "--train_batch_size=1", "--valid_batch_size=1", "--n_epochs", "3"]
    result = run("train_vlm", argv, tmp_path / "log", cwd=tmp_path)
    assert result.code == 0, result.err
    (made,) = (tmp_path / "runs").iterdir()
    assert {task: m["adapter_bottleneck"] for task, m in peek(made).methods.items()} == {
        "dialogue": 100, "mt": 300, "nlg": 10, "qa": 300, "summarization": 100,
    }  # fmt: skip
    argv = ["--task", "mt", "--no_sample", "--model_checkpoint", made]
    result = run("evaluate_vlm", argv, tmp_path / "log", cwd=tmp_path, env=scripts.without_java())
    assert result.code == 0, result.err
    assert (tmp_path / "results" / "VLM_result" / "mt_output.txt").is_file()


# --- evaluation --------------------------------------------------------------------------------------------


def test_all_tasks_decoded_together_say_what_each_says_alone(finished, files, tmp_path):
    together = tmp_path / "together"
    evaluate(finished, files, together, "--batch_size", "5")
    for task in TASKS:
        alone = tmp_path / task / "out"
        data = ["--task", task, "--dataset_path", files[task], "--batch_size", "1"]
        evaluate(finished, files, alone, *data, script="evaluate")
        for name in (f"{task}_outputs.jsonl", f"{task}_output.txt", f"{task}_ref.txt"):
            assert (together / name).read_bytes() == (alone / name).read_bytes()
        one, other = (json.loads((f / f"{task}_metrics.json").read_text()) for f in (together, alone))
        assert one["nll"] == pytest.approx(other["nll"], rel=1e-5)
        assert {k: v["score"] for k, v in one["scores"].items() if k != "PPL"} == {
            k: v["score"] for k, v in other["scores"].items() if k != "PPL"
        }
        assert one["method"] == "multi-task" and one["backbone"] == "tiny-gpt2"


def test_beams_may_mix_tasks(finished, files, tmp_path):
    for size in (1, 7):
        evaluate(finished, files, tmp_path / str(size), "--num_beams", "3", "--batch_size", str(size))
    for task in TASKS:
        name = f"{task}_outputs.jsonl"
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "7" / name).read_bytes()


def test_the_files_of_a_conversation(tmp_path):
    """qa's output is json in the form of CoQA's script, and dialogue's comes with its personas."""
    files = {task: small(tmp_path / f"{task}.json", task, train=2, valid=1, test=1) for task in ("qa", "dialogue")}
    out = trained_by(
        ["--tasks", "qa", "dialogue", "--data", *(f"{t}={f}" for t, f in files.items()), "--model_checkpoint",
         "tiny-gpt2", "--adapter_bottleneck", "4", "--max_steps", "2", "--fp32", "--output_dir", tmp_path / "run"],
        tmp_path / "log", "train_vlm",
    )  # fmt: skip
    results = tmp_path / "results"
    evaluate(out, files, results, tasks=files)
    (story,) = json.loads(files["qa"].read_text())["valid"]
    answers = json.loads((results / "qa_output.txt").read_text())
    assert [(a["id"], a["turn_id"]) for a in answers] == [(story["id"], u["turn_id"]) for u in story["utterances"]]
    assert all(isinstance(a["answer"], str) and set(a) == {"id", "turn_id", "answer"} for a in answers)
    (talk,) = json.loads(files["dialogue"].read_text())["valid"]
    personas = (results / "dialogue_persona.txt").read_text().splitlines()
    assert personas == ["\t".join(talk["personality"])] * len(talk["utterances"])
    assert (results / "dialogue_ref.txt").read_text().splitlines() == [u["candidates"][-1] for u in talk["utterances"]]


def test_a_released_vlm_is_evaluated_as_it_is_and_as_a_directory_of_ours(tmp_path):
    from test_released import released_directory
    from versatile.adapters.imports import vlm as released
    from versatile.data.task import get_task

    tasks = list(released.ROWS)
    files = {task: small(tmp_path / f"{task}.json", task, valid=1, test=2) for task in tasks}
    theirs = released_directory(tmp_path / "released", "vlm_model")
    ours = tmp_path / "ours"
    released.convert(theirs, ours)
    for folder in (theirs, ours):
        evaluate(folder, files, tmp_path / f"{folder.name}_results", "--max_history", "1", tasks=tasks)
    for task in tasks:
        one, other = (tmp_path / f"{f.name}_results" / f"{task}_outputs.jsonl" for f in (theirs, ours))
        assert one.read_bytes() == other.read_bytes()
        found = json.loads((tmp_path / "released_results" / f"{task}_metrics.json").read_text())
        assert found["split"] == get_task(task).scored_split and found["tasks_of_model"] == released.TASK_IDS


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more, fragments", [
    (["--tasks", "nlg", "poetry"], ["unknown task 'poetry'", "--list_tasks"]),
    (["--tasks", "nlg", "--data", "mt=x.json"], ["--data: task 'mt' is not trained"]),
    (["--tasks", "nlg", "mt"], ["no data for task mt", "--data mt=FILE"]),
    (["--data", "nlg"], ["'nlg': expected TASK=FILE"]),
    (["--data", "nlg=a.json", "nlg=b.json"], ["task 'nlg' is named twice"]),
    (["--tasks", "nlg", "mt", "nlg"], ["--tasks: task 'nlg' is named twice"]),
    (["--sampling_temperature", "3"], ["--sampling_temperature: has no effect with --sampling proportional"]),
    (["--adapter_bottleneck", "nlg=four"], ["'four': expected a whole number"]),
    (["--limit", "qa=4"], ["--limit: task 'qa' is not trained"]),
    (["--adapter_bottleneck", "qa=4"], ["--adapter_bottleneck: task 'qa' is not trained"]),
    (["--adapter_bottleneck", "8", "16"], ["--adapter_bottleneck: two values for all tasks: 8 and 16", "nlg=…"]),
    (["--limit", "nlg=8", "nlg=16"], ["--limit: two values for task 'nlg': 8 and 16"]),
    (["--sampling", "uniform", "--max_tokens", "100"], ["--max_tokens", "--train_batch_size"]),
    (["--distillation", "nlg"], ["distillated_tgt", "nlg_distilled.json, which is not there", "sentence_distiller.py"]),
    (["--lm_coef", "2"], ["--lm_coef", "leave it out"]),
    (["--no_validation", "--early_stopping", "2"], ["--early_stopping: has no effect with --no_validation"]),
    (["--model_checkpoint", "nowhere/at/all"], ["--model_checkpoint nowhere/at/all"]),
])  # fmt: skip
def test_bad_flags_are_one_clear_message(more, fragments, files, tmp_path):
    argv = ["--tasks", "nlg", "--data", f"nlg={files['nlg']}", "--model_checkpoint", "tiny-gpt2",
            "--output_dir", tmp_path / "run"]  # fmt: skip
    for flag in ("--tasks", "--data", "--model_checkpoint"):
        if flag in more and flag != "--tasks":
            at = argv.index(flag)
            argv = argv[:at] + argv[at + 2 :]
    if "--tasks" in more:
        argv = argv[2:]
    result = run("train_vlm", [*argv, *more], tmp_path, cwd=tmp_path)
    refused(result, *fragments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more, fragments", [
    (["--task", "summarization"], ["nlg, mt, qa, not 'summarization'"]),
    (["--model_checkpoint", "tiny-gpt2"], ["holds no trained tasks"]),
    (["--model_checkpoint", "nope"], ["--model_checkpoint nope: no such directory"]),
    (["--dataset_path", "x.json"], ["--data TASK=FILE"]),
    (["--data", "poetry=x.json"], ["task 'poetry' is not evaluated"]),
    (["--min_length", "9", "--max_length", "3"], ["--min_length 9"]),
])  # fmt: skip
def test_bad_evaluations_are_one_clear_message(more, fragments, finished, tmp_path):
    argv = [] if "--model_checkpoint" in more else ["--model_checkpoint", finished]
    result = run("evaluate_vlm", [*argv, *more, "--output_dir", tmp_path / "results"], tmp_path, cwd=tmp_path)
    refused(result, *fragments)
    assert not (tmp_path / "results").exists()


def test_tasks_without_data_are_left_out_and_said_so(finished, files, tmp_path):
    model = shutil.copytree(finished, tmp_path / "model")
    (model / "run.json").unlink()
    result = evaluate(model, files, tmp_path / "out", tasks=("mt",))
    assert "nlg: left out" in result.out and "qa: left out" in result.out
    assert sorted(p.name.split("_")[0] for p in (tmp_path / "out").iterdir()) == ["mt"] * 4
    argv = ["--model_checkpoint", model, "--output_dir", tmp_path / "none"]
    result = run("evaluate_vlm", argv, tmp_path / "log", cwd=tmp_path)
    refused(result, "none of the tasks has data", "remedy:   name data for one", "data.convert",
            "--data nlg=data/samples/nlg.json")  # fmt: skip


def test_tasks_whose_own_place_is_empty_are_evaluated_on_what_they_were_trained_on(finished, files, tmp_path):
    model = shutil.copytree(finished, tmp_path / "model")
    record = json.loads((model / "run.json").read_text())
    record["flags"]["data"]["mt"] = str(write_task(tmp_path / "mt.json", train=[{"src": "a", "tgt": "b"}]))
    (model / "run.json").write_text(json.dumps(record))
    argv = ["--model_checkpoint", model, "--no_sample", "--fp32", "--max_length", 4, "--output_dir", tmp_path / "out"]
    result = run("evaluate_vlm", argv, tmp_path / "log", cwd=tmp_path, env=scripts.without_java())
    assert result.code == 0, result.err
    assert f"using the data it was trained on, {files['nlg']}" in result.out and "mt: left out, " in result.out
    assert {p.name.split("_")[0] for p in (tmp_path / "out").iterdir()} == {"nlg", "qa"}


@pytest.mark.slow
def test_the_scripts_start_from_a_shell(files, tmp_path):
    result = run_as_user("train_vlm", command(files, tmp_path / "run", "--max_steps", "2"))
    assert result.code == 0, result.err
    argv = ["--task", "nlg", "--dataset_path", files["nlg"], "--limit", 2, "--no_sample", "--model_checkpoint",
            tmp_path / "run", "--output_dir", tmp_path / "out"]  # fmt: skip
    result = run_as_user("evaluate_vlm", argv)
    assert result.code == 0, result.err
