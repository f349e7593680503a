"""Typing mistakes around train_t5.py: nothing is lost or guessed, and the message names the way out."""

import json
import shutil

import pytest
from conftest import ROOT
from scripts import SAMPLES, contents, done, run
from training_runs import parse_t5 as parse
from training_runs import refused
from versatile.adapters import t5, t5_loading
from versatile.training.evaluation import find_data_folder
from versatile.training.text_to_text_arguments import warmup_steps
from versatile.training.text_to_text_training import check_directory
from versatile.utils.errors import UserError

import train_t5

GLUE = str(SAMPLES / "glue")
CONFIG = dict(
    model_name_or_path="tiny-t5", data_dir=GLUE, tasks=["rte"], learning_rate=1e-2, max_steps=2, train_adapters=True,
    adapter_config_name="adapter", per_device_train_batch_size=4, max_source_length=32, n_train=20, n_val=4, n_test=4,
    split_validation_test=True, do_train=True, do_eval=True, do_test=True, eval_strategy="steps", eval_steps=1,
    save_steps=1, logging_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_loss",
    greater_is_better=False, fp32=True, eval_beams=2,
)  # fmt: skip


def config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIG, "output_dir": str(folder / "run"), **values}))
    return path


def parsed(tmp_path, *flags, **values):
    return parse([str(config(tmp_path, **values)), *map(str, flags)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(a run's directory, what it printed)"""
    folder = tmp_path_factory.mktemp("finished")
    result = run("train_t5", [config(folder)], folder, pictures=True)
    assert result.code == 0, result.err
    return folder / "run", result.out


# ---- --overwrite_output_dir


def test_a_finished_run_outlives_a_command_that_cannot_replace_it(finished, tmp_path):
    folder = finished[0]
    before = contents(folder)
    common = ["--output_dir", folder, "--overwrite_output_dir"]
    for flags, word in (
        (["--data_dir", "/nowhere"], "nowhere"),
        (["--model_name_or_path", "no/such"], "no/such"),
        (["--metric_for_best_model", "fame"], "fame"),
        (["--freeze_model"], "nothing is left"),
    ):
        refused(run("train_t5", [config(tmp_path), *common, *flags], tmp_path), word)
        assert contents(folder) == before
    refused(run("train_t5", [config(tmp_path), "--output_dir", folder], tmp_path), "--overwrite_output_dir", "--resume")


def test_an_overwritten_run_leaves_nothing_behind(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "test_outputs" / "mrpc_output.txt").write_text("of a task that is trained no more")
    (folder / "notes.txt").write_text("mine")
    flags = ["--overwrite_output_dir", "--do_eval", "false", "--do_test", "false", "--eval_strategy", "no",
             "--load_best_model_at_end", "false"]  # fmt: skip
    assert run("train_t5", [config(tmp_path), *flags], tmp_path).code == 0
    assert (folder / "notes.txt").exists() and (folder / "metrics.json").exists()
    assert not (folder / "test_outputs").exists() and not (folder / "val_results.json").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"flags": {"learning_rate": 1, "noise_density": 0.15}}'])
def test_only_a_run_of_train_t5_is_removed(tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(UserError, match="something other than a run of train_t5"):
        check_directory(parsed(tmp_path, "--overwrite_output_dir"), "train_t5.py")
    assert (tmp_path / "run" / "run.json").read_text() == content


# ---- what is trained


def test_a_loss_that_is_no_number_is_noticed_between_two_logged_steps(tmp_path):
    values = dict(
        learning_rate=1e30,
        train_adapters=False,
        max_grad_norm=0,
        logging_steps=100,
        max_steps=12,
        eval_steps=6,
        save_steps=6,
        metric_for_best_model="average_metrics",
        greater_is_better=True,
    )
    result = run("train_t5", [config(tmp_path, **values)], tmp_path)
    refused(result, "nan at step", "lower --lr")
    left = [*(tmp_path / "run").glob("*.safetensors"), *(tmp_path / "run").glob("checkpoints/step_*")]
    assert not left


@pytest.mark.parametrize("own", ["unique_hyper_net", "efficient_unique_hyper_net", None])
def test_without_adapter_blocks_no_method_has_any(tmp_path, own):
    values = dict(adapter_config_name="meta-adapter", train_adapters_blocks=False, unfreeze_layer_norms=True)
    arguments = parsed(tmp_path, **values, **({own: True} if own else {}))
    model, _ = train_t5.build_model(arguments)
    counts = t5.count_parameters(model)
    assert model.settings.method == "finetune"
    assert counts["layer_norms"] > 0 and counts["hypernetworks"] == counts["backbone"] == 0
    named = dict(method="hyperformer++", train_adapters_blocks=False)
    refused(run("train_t5", [config(tmp_path, **named)], tmp_path), "train_adapters_blocks", "hyperformer++")


def test_the_share_of_a_small_t5_is_none(tmp_path):
    wide = dict(adapter_config_name="meta-adapter", task_embedding_dim=8, reduction_factor=1)
    model, _ = train_t5.build_model(parsed(tmp_path, **wide))
    counts = t5.count_parameters(model)
    said = t5.parameter_summary(model)
    assert sum(counts.values()) - counts["total"] > counts["total"]
    assert "%" not in said and f"the T5 itself has {counts['total']:,}" in said


# ---- arguments


def test_a_typed_model_brings_its_tokenizer_and_typed_tasks_are_evaluated(tmp_path):
    config_of_all = ROOT / "configs" / "hyperformer.json"
    found = parse([config_of_all, "--model_name_or_path", "tiny-t5", "--tasks", "rte"])
    assert found.tokenizer_name is None and found.eval_tasks is None and found.tasks == ["rte"]
    typed = ["--tokenizer_name", "other", "--eval_tasks", "mrpc", "--tasks", "rte", "mrpc"]
    found = parse([config_of_all, "--model_name_or_path", "tiny-t5", *typed])
    assert found.tokenizer_name == "other" and found.eval_tasks == ["mrpc"]
    assert parse([config_of_all]).tokenizer_name == "t5-base"


def test_what_is_typed_is_not_overruled_by_another_setting_of_a_config_file(tmp_path):
    file = ROOT / "configs" / "hyperformer++.json"
    known = parse([file])
    assert known.warmup_steps == 500 and known.max_steps > 0 and known.task_embedding_dim == 64
    typed = parse([file, "--warmup_ratio", "0.5", "--num_train_epochs", "2", "--task_embedding_dir", tmp_path])
    assert warmup_steps(typed, 8) == 4 and typed.max_steps == -1 and typed.task_embedding_dim is None
    both = parse([file, "--warmup_ratio", "0.5", "--warmup_steps", "3"])
    assert warmup_steps(both, 8) == 3


def test_the_hypernetwork_of_each_layer_has_one_name_in_all_scripts(tmp_path):
    for name in ("hyperformer-per-layer", "meta"):
        arguments = parsed(tmp_path, "--method", name, "--task_embedding_dim", "8", "--reduction_factor", "16")
        assert train_t5.t5_settings(arguments).method == "meta"


def test_unknown_tasks_are_named_first(tmp_path):
    with pytest.raises(UserError, match=r"rte,mrpc(.|\n)*separate the names with spaces"):
        parsed(tmp_path, "--tasks", "rte,mrpc")
    with pytest.raises(UserError, match="unknown task 'rtee'"):
        parsed(tmp_path, "--eval_tasks", "rtee")


def test_run_json_holds_whole_steps_and_paths_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    flags = parsed(tmp_path, data_dir="data/samples/glue", eval_steps=20, save_steps=20).flags()
    assert flags["data_dir"] == GLUE
    assert [type(flags[name]) for name in ("eval_steps", "save_steps")] == [int, int]


@pytest.mark.parametrize("name", ["/nowhere/spiece.model", "models/t5/spiece.model", "spiece.model", "./t5", "a/b/c"])
def test_nobody_is_asked_about_a_tokenizer_that_is_a_mistyped_path(monkeypatch, name):
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="no such file or directory"):
        t5_loading.load_tokenizer(name)


def test_a_model_that_is_not_there_is_named_by_its_flag(tmp_path):
    for name in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError) as error:
            train_t5.build_model(parsed(tmp_path, "--model_name_or_path", name))
        assert f"--model_name_or_path {name}" in str(error.value) and "smollm2" not in str(error.value)


# ---- evaluate.py and the others


def test_run_json_is_needed_whole(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    common = ["--task", "rte", "--output_dir", tmp_path / "scores", "--model_checkpoint"]
    (folder / "run.json").write_text("{")
    refused(run("evaluate", [*common, folder], tmp_path), "run.json is damaged")
    refused(run("evaluate", [*common, folder / "checkpoints" / "step_00000002"], tmp_path), "run.json is damaged")
    (folder / "run.json").unlink()
    refused(run("evaluate", [*common, folder], tmp_path), "run.json is missing")


def test_a_run_is_evaluated_from_anywhere_with_the_beams_typed(finished, tmp_path):
    folder = finished[0]
    common = ["--task", "rte", "--model_checkpoint", folder, "--output_dir", tmp_path / "scores", "--fp32"]
    for flags, beams in (([], 2), (["--num_beams", 1], 1)):
        result = run("evaluate", [*common, "--split", "valid", *flags], tmp_path, cwd=tmp_path)
        assert result.code == 0, result.err
        found = json.loads((tmp_path / "scores" / "rte_metrics.json").read_text())
        assert f"beams:{beams}" in found["scores"]["acc"]["signature"]
    assert "rte_eval_acc" in json.loads((tmp_path / "scores" / "val_results.json").read_text())
    refused(run("evaluate", [*common, "--dataset_path", tmp_path / "gone"], tmp_path), "--dataset_path", "gone")


def test_data_that_have_moved_are_asked_for_by_evaluates_own_flag(tmp_path):
    with pytest.raises(UserError, match="--dataset_path DIR"):
        find_data_folder(None, str(tmp_path / "gone"))
    assert find_data_folder(GLUE, str(tmp_path / "gone")) == GLUE
    assert find_data_folder(None, None) is None


def test_a_run_goes_on_with_its_data_in_another_place(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    shutil.copytree(GLUE, tmp_path / "glue")
    result = run("train_t5", ["--resume", folder, "--data_dir", tmp_path / "glue"], tmp_path)
    assert result.code == 0 and "this run is already finished" in result.out, result.err


def test_what_is_wrong_with_a_checkpoint_is_said_before_the_task(finished, tmp_path):
    from versatile.adapters.backbones import bundled

    unsaved = tmp_path / "unsaved"
    unsaved.mkdir()
    shutil.copy(finished[0] / "run.json", unsaved)
    for name, words in (
        (tmp_path / "absent", ["no such directory"]),
        (unsaved, ["not saved a best model", "--resume"]),
        (bundled.folder("tiny-t5"), ["bare T5", "train_t5.py"]),
        (tmp_path, ["not a model of train_t5"]),
    ):
        refused(run("evaluate", ["--task", "rte", "--model_checkpoint", name], tmp_path), str(name), *words)
    trained = ["--task", "nlg", "--model_checkpoint", "tiny-gpt2", "--adapter_bottleneck", 2, "--max_steps", 1,
               "--dataset_path", SAMPLES / "nlg.json", "--limit", 4]  # fmt: skip
    done(run("train", [*trained, "--output_dir", tmp_path / "decoder"], tmp_path))
    bare = ["--tasks", "rte", "--data_dir", GLUE, "--model_name_or_path", tmp_path / "decoder", "--output_dir", "e"]
    refused(run("compute_task_embeddings", bare, tmp_path), "this is a trained model", "name its backbone")
    shown = run("evaluate", ["--list_tasks"], tmp_path)
    assert shown.code == 0 and "rte " in shown.out and "nlg " in shown.out


def test_a_tokenizer_without_a_vocabulary_is_refused(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "tokenizer.json").unlink()
    result = run("evaluate", ["--task", "rte", "--limit", "2", "--model_checkpoint", folder], tmp_path)
    refused(result, str(folder), "the tokenizer has no vocabulary", "tokenizer.json")
    shutil.copy(finished[0] / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text("{}")
    result = run("evaluate", ["--task", "rte", "--limit", "2", "--model_checkpoint", folder], tmp_path)
    refused(result, str(folder), "no end token or no padding token")


def test_every_other_script_sends_a_model_of_train_t5_to_evaluate(finished, tmp_path):
    folder = finished[0]
    for script, argv in (
        ("combine_all", ["--merge", "linear", "--checkpoints", *[f"nlg={folder}"] * 2, "--output", tmp_path / "vlm"]),
        ("sentence_distiller", ["--task", "nlg", "--model_checkpoint", folder, "--no_sample",
                                "--dataset_path", SAMPLES / "nlg.json", "--output", tmp_path / "x.json"]),
    ):  # fmt: skip
        refused(run(script, argv, tmp_path), "this is a model of train_t5.py", f"--model_checkpoint {folder}")
    argv = ["--tasks", "rte", "--data_dir", GLUE, "--output_dir", tmp_path / "e", "--model_name_or_path", folder]
    refused(run("compute_task_embeddings", argv, tmp_path), f"--model_name_or_path {folder}", "not a bare T5")


def test_the_end_of_a_run_tells_validation_from_test(finished):
    folder, said = finished
    assert said.index("---- validation ----") < said.index("---- test ----")
    assert said.count("---- test ----") == 1 and "done: 2 steps" in said
    assert (folder / "learning_curve.png").stat().st_size > 1000


# ---- the split that chooses the checkpoint is no test


def own_files(folder, splits):
    (folder / "rte").mkdir(parents=True)
    rows = [dict(sentence1=f"the house {i}", sentence2="a river", label=i % 2) for i in range(12)]
    for split in splits:
        (folder / "rte" / f"{split}.json").write_text(json.dumps(rows))
    return str(folder)


def built(tmp_path, *flags, **values):
    arguments = parsed(tmp_path, *flags, **values)
    return arguments, *train_t5.build_model(arguments)


@pytest.mark.parametrize("where", ["glue", "file", "link"])
def test_validation_rows_are_no_test_rows_where_they_choose_the_checkpoint(tmp_path, where):
    values = dict(split_validation_test=False)
    if where != "glue":
        values["data_dir"] = own_files(tmp_path / "data", ["train", "validation"])
    if where == "link":
        (tmp_path / "data" / "rte" / "test.json").symlink_to("validation.json")
    arguments, model, tokenizer = built(tmp_path, **values)
    with pytest.raises(UserError, match="test rows of rte are the validation rows") as error:
        train_t5.read_splits(arguments, tokenizer, model)
    assert "--split_validation_test true" in error.value.remedy and "--do_test false" in error.value.remedy
    for flags in (["--split_validation_test"], ["--do_test", "false"], ["--load_best_model_at_end", "false"]):
        if where != "link" or flags != ["--split_validation_test"]:
            arguments, *others = built(tmp_path, *flags, **values)
            train_t5.read_splits(arguments, *reversed(others))


def test_what_is_refused_ends_with_2_and_leaves_nothing(tmp_path):
    result = run("train_t5", [config(tmp_path), "--split_validation_test", "false"], tmp_path)
    refused(result, "test rows of rte", "--split_validation_test true")
    assert not (tmp_path / "run").exists()


def test_test_rows_of_their_own_are_taken(tmp_path):
    data = own_files(tmp_path / "data", ["train", "validation", "test"])
    for values in (dict(data_dir=data), dict(tasks=["mnli"], data_dir=GLUE)):
        arguments, model, tokenizer = built(tmp_path, split_validation_test=False, **values)
        assert set(train_t5.read_splits(arguments, tokenizer, model)) == {"train", "validation", "test"}


def test_a_task_that_cannot_be_divided_is_not_told_to_be(tmp_path):
    arguments, _, _ = built(tmp_path)
    from versatile.data import text_to_text

    assert text_to_text.get_task("superglue-rte").rule is None
    with pytest.raises(UserError, match="superglue-rte") as error:
        train_t5.check_test_rows(arguments, ["superglue-rte"])
    assert "--split_validation_test" not in error.value.remedy
