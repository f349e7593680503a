"""A task known to the toolkit works in every script whose encoder can express it, with the same rows and scores.

    python -m pytest -n 0 -q tests/test_known_tasks.py
"""

import json
import shutil

import pytest
from scripts import SAMPLES, done, metrics, run, small
from versatile.data import glue, instances, question_samples, question_tasks, task, text_to_text
from versatile.utils.errors import UserError

GLUE = SAMPLES / "glue"
TINY = ["--model_checkpoint", "tiny-gpt2", "--fp32", "--n_epochs", "1", "--train_batch_size", "8"]


def markers(name, path, split):
    """(source, target, references) of a split as the encoder with markers reads it."""
    one = task.get_task(name)
    records = one.records(path, split)
    return [(e.source, e.target.text, e.references) for at, record in records for e in one.examples(record, at)]


def text(name, split, folder):
    rows = text_to_text.load_rows(name, split, data_dir=folder)
    return list(zip(rows["source"], rows["target"]))


def questions(name, split, folder):
    return question_samples.load_task(question_tasks.get_task(name), folder, split)


# --- the same rows in every encoder ------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "published"), [("train", "train"), ("valid", "validation")])
def test_a_text_to_text_task_has_the_same_rows_with_markers_and_as_questions(split, published):
    expected = text("rte", published, GLUE)
    assert [(source, target) for source, target, _ in markers("rte", GLUE, split)] == expected
    theirs = questions("rte", {"valid": "dev"}.get(split, split), GLUE)
    assert [(qa.context, *qa.answers) for qa in theirs] == expected
    assert {qa.question for qa in theirs} == {"does the second sentence follow from the first?"}


def test_withheld_answers_are_not_scored_but_the_validation_rows_are():
    assert task.get_task("rte").scored_split == "valid" and task.get_task("mnli").scored_split == "test"
    tested = [(qa.context, *qa.answers) for qa in questions("rte", "test", GLUE)]
    assert tested == text("rte", "validation", GLUE)
    assert text_to_text.test_is_validation(text_to_text.get_task("qa"), SAMPLES)
    assert not text_to_text.test_is_validation(text_to_text.get_task("nlg"), SAMPLES)


def test_a_generation_task_has_the_same_inputs_as_text_to_text_with_all_its_references():
    one = task.get_task("nlg")
    expected = instances.read_instances(SAMPLES / "nlg.json", "test", one, one.read_options(decoding=True))
    split = text_to_text.SplitRows(text_to_text.get_task("nlg"), "test", SAMPLES)
    assert [(source, [target, *further]) for source, target, further in split] == [
        (e.source, e.references) for e in expected]  # fmt: skip
    assert max(len(e.references) for e in expected) > 1
    theirs = questions("webnlg", "train", SAMPLES)
    assert [(qa.context, *qa.answers) for qa in theirs] == [
        (source, target) for source, target, _ in markers("webnlg", SAMPLES / "webnlg.json", "train")]  # fmt: skip


def test_a_question_task_has_the_same_rows_with_markers_and_as_text_to_text():
    lifelong = SAMPLES / "lifelong"
    expected = [(f"{qa.context} {qa.question}".strip(), *qa.answers) for qa in questions("ag", "train", lifelong)]
    assert [(source, target) for source, target, _ in markers("ag", lifelong, "train")] == expected
    assert text("ag", "train", lifelong) == expected
    with pytest.raises(UserError, match="ag has no validation file"):
        markers("ag", lifelong, "valid")


def test_sentences_with_a_class_are_read_from_the_columns_of_the_text_to_text_form(tmp_path):
    rows = [{"premise": "a b", "hypothesis": "c", "label": label} for label in (0, 1, 2)]
    (tmp_path / "superglue-cb").mkdir()
    (tmp_path / "superglue-cb" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(e.text_a, e.text_b, e.label) for e in glue.read_examples(tmp_path, "superglue-cb", "train")] == [
        ("a b", "c", label) for label in ("entailment", "contradiction", "neutral")]  # fmt: skip


def test_scores_are_the_tasks_own():
    outputs, right = ["0", "1", "maybe", "1"], [["0"], ["0"], ["1"], ["1"]]
    scores, _ = task.get_task("mrpc").score(outputs, right)
    expected = text_to_text.get_task("mrpc").score(outputs, [group[0] for group in right])
    assert {name: score.value for name, score in scores.items()} == expected and set(expected) == {"f1", "acc"}
    hypotheses, references = ["a cheap pub", "a bar"], [["a cheap pub", "a pub"], ["the bar"]]
    ours = text_to_text.get_task("webnlg").score(hypotheses, references)
    assert ours == {name: s.value for name, s in task.get_task("webnlg").score(hypotheses, references)[0].items()}


def test_data_that_are_not_there_are_asked_for():
    for name, source, expected in (("rte", "/no/such/folder", "no such folder"),
                                   ("ag", "/no/such/folder", "no such directory")):  # fmt: skip
        with pytest.raises(UserError, match=expected):
            markers(name, source, "train")
    with pytest.raises(UserError, match="no data of nlg here"):
        text("nlg", "train", GLUE)


def test_names_with_a_dot_are_those_of_questions_alone():
    """A task's own name becomes part of parameter names, in which torch allows no dot."""
    for one in task.load_tasks().values():
        assert "." not in one.name
    for name in ("woz.en", "rnnlg.rest", "cl.agnews", "trace.fomc"):
        assert task.canonical_name(name, "question_answer") == name
        held = task.canonical_name(name, "markers")
        assert held == name.replace(".", "_") == task.canonical_name(name, "text_to_text")
        assert task.canonical_name(held, "question_answer") == name and task.get_task(name).name == held
    with pytest.raises(ValueError, match="without dots"):
        task.add_task(task.Task(name="a.b"))


# --- in the scripts ------------------------------------------------------------------------------------------


def test_glue_trains_with_markers_alone_and_beside_a_generation_task(tmp_path):
    log, alone, vlm = tmp_path / "log", tmp_path / "alone", tmp_path / "vlm"
    done(run("train", ["--task", "RTE", "--dataset_path", GLUE, *TINY, "--adapter_bottleneck", "4", "--limit", "16",
                       "--output_dir", alone], log))  # fmt: skip
    done(run("evaluate", ["--task", "rte", "--no_sample", "--max_length", "2", "--model_checkpoint", alone,
                          "--dataset_path", GLUE, "--limit", "8", "--output_dir", tmp_path / "one"], log))  # fmt: skip
    found = metrics(tmp_path / "one")
    assert set(found["scores"]) == {"acc", "PPL"} and found["headline"] == "acc" and found["split"] == "valid"
    nlg = small(tmp_path / "nlg.json", train=8, valid=2, test=2)
    done(run("train_vlm", ["--tasks", "sst2", "nlg", "--data", f"sst2={GLUE}", f"nlg={nlg}", *TINY, "--limit", "8",
                           "--output_dir", vlm], log))  # fmt: skip
    both, data = tmp_path / "both", ["--data", f"nlg={nlg}", f"rte={GLUE}", f"sst2={GLUE}"]
    done(run("combine_all", ["--checkpoints", f"rte={alone}", f"sst2={vlm}", f"nlg={vlm}", *data, "--output", both,
                             "--proof_examples", "2"], log))  # fmt: skip
    result = done(run("evaluate_vlm", ["--task", "all", "--no_sample", "--max_length", "3", "--model_checkpoint", both,
                                       *data, "--limit", "4", "--output_dir", tmp_path / "out"], log))  # fmt: skip
    assert "sst2            acc" in result.out and "rte             acc" in result.out
    # Only this task has a teacher's texts next to its data.
    folder = tmp_path / "GLUE"
    shutil.copytree(GLUE / "RTE", folder / "RTE")
    done(run("sentence_distiller", ["--task", "rte", "--no_sample", "--max_length", "2", "--model_checkpoint", alone,
                                    "--dataset_path", folder, "--limit", "16"], log))  # fmt: skip
    result = done(run("train", ["--task", "rte", "--dataset_path", folder, "--distillation", *TINY, "--limit", "8",
                                "--adapter_bottleneck", "4", "--output_dir", tmp_path / "student"], log))  # fmt: skip
    assert f"the teacher's texts from {folder / 'rte_distilled.json'}" in result.out


def test_a_task_is_trained_evaluated_and_combined_under_any_of_its_names(tmp_path):
    log, alone, vlm, both, folder = (tmp_path / name for name in ("log", "alone", "vlm", "both", "data"))
    folder.mkdir()
    rows = [dict(context=f"a pub {i}", qas=[dict(question="say it", answers=[dict(text=f"It is {i}.")])])
            for i in range(8)]  # fmt: skip
    for split in ("train", "test"):
        (folder / f"rnnlg.rest_to_squad-{split}-v2.0.json").write_text(json.dumps(dict(data=[dict(paragraphs=rows)])))
    done(run("train", ["--task", "rnnlg.rest", "--dataset_path", folder, *TINY, "--method", "lora", "--no_validation",
                       "--output_dir", alone], log))  # fmt: skip
    evaluate = ["--no_sample", "--max_length", "3", "--limit", "4"]
    done(run("evaluate", ["--task", "rnnlg.rest", *evaluate, "--model_checkpoint", alone, "--dataset_path", folder,
                          "--output_dir", tmp_path / "one"], log))  # fmt: skip
    assert metrics(tmp_path / "one")["headline"] == "avg_rouge"
    nlg = small(tmp_path / "nlg.json", train=8, valid=2, test=4)
    done(run("train_vlm", ["--tasks", "E2E", "RTE", "--data", f"e2e={nlg}", f"RTE={GLUE}", *TINY, "--limit", "e2e=8",
                           "RTE=8", "--method", "e2e=lora", "Rte=ia3", "--no_validation", "--output_dir", vlm],
             log))  # fmt: skip
    data = ["--data", f"rnnlg.rest={folder}", f"E2E={nlg}"]
    done(run("combine_all", ["--checkpoints", f"rnnlg.rest={alone}", f"e2e={vlm}", *data, "--output", both,
                             "--proof_examples", "2"], log))  # fmt: skip
    result = done(run("evaluate_vlm", ["--task", "all", *evaluate, *data, "--model_checkpoint", both,
                                       "--output_dir", tmp_path / "out"], log))  # fmt: skip
    assert "rnnlg_rest      avg_rouge" in result.out and "nlg             sacreBLEU" in result.out


@pytest.mark.parametrize(("data", "said"), [
    (["rte=x.json"], "--data: task 'rte' is not trained"),
    (["e2e=a.json", "nlg=b.json"], "--data: task 'nlg' is named twice"),
])  # fmt: skip
def test_data_of_a_task_under_another_name_are_checked(data, said, tmp_path):
    result = run("train_vlm", ["--tasks", "nlg", "--data", *data, *TINY], tmp_path / "log")
    assert result.code == 2 and said in result.err


@pytest.mark.slow
def test_a_t5_trains_on_generation_tasks_beside_glue(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(GLUE / "RTE", data / "RTE")
    small(data / "nlg.json", train=8, valid=2, test=3)
    flags = ["--model_name_or_path", "tiny-t5", "--tasks", "e2e", "rte", "--data_dir", data, "--do_train", "true",
             "--do_eval", "true", "--do_test", "true", "--n_train", "8", "--n_val", "2", "--n_test", "2",
             "--split_validation_test", "true", "--method", "adapters", "--num_train_epochs", "1",
             "--output_dir", folder]  # fmt: skip
    done(run("train_t5", flags, tmp_path / "log"))
    found = json.loads((folder / "test_results.json").read_text())
    assert {"nlg_test_sacreBLEU", "nlg_test_BLEU", "rte_test_acc"} <= set(found)
    done(run("evaluate", ["--task", "all", "--model_checkpoint", folder, "--limit", "2", "--output_dir",
                          tmp_path / "out"], tmp_path / "log"))  # fmt: skip
    assert "sacreBLEU" in json.loads((tmp_path / "out" / "nlg_metrics.json").read_text())["scores"]


def test_glue_and_generation_tasks_stand_in_a_sequence(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(GLUE / "RTE", data / "RTE")
    shutil.copy(SAMPLES / "webnlg.json", data / "webnlg.json")
    flags = ["--tasks", "rte", "webnlg", "--data_dir", data, "--model_name", "tiny-gpt2", "--limit", "6",
             "--n_train_epochs", "1", "--max_len", "60", "--min_n_steps", "1", "--output_dir", folder]  # fmt: skip
    done(run("train_lifelong", flags, tmp_path / "log"))
    result = done(run("evaluate_lifelong", ["--model_dirs", folder, "--limit", "2"], tmp_path / "log"))
    assert "| after | rte (acc) | webnlg (BLEU) |" in result.out


def test_sentences_of_another_benchmark_train_a_bert(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "run"
    (data / "superglue-cb").mkdir(parents=True)
    for split in ("train", "validation"):
        rows = [{"premise": f"a {i}", "hypothesis": "c", "label": i % 3} for i in range(9)]
        (data / "superglue-cb" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(GLUE / "RTE", data / "RTE")
    flags = ["--model_name_or_path", "tiny-bert", "--form", "plain", "--max_seq_length", "16", "--do_train",
             "--do_eval", "--num_train_epochs", "1", "--tasks", "superglue-cb", "rte", "--data_dir", data,
             "--output_dir", folder]  # fmt: skip
    done(run("train_camtl", flags, tmp_path / "log"))
    report = json.loads((folder / "eval_results.json").read_text())["tasks"]
    assert report["superglue-cb"]["rows"] == 9 and set(report["superglue-cb"]["scores"]) == {"accuracy"}
    result = run("train_camtl", [*flags[:-4], "nlg", "--data_dir", data, "--output_dir", tmp_path / "x"],
                 tmp_path / "log")  # fmt: skip
    assert result.code == 2
