"""A user's own task: one folder or file, in every training script and every regime, without editing code.

    python -m pytest -n 0 -q tests/test_own_tasks.py
"""

import gzip
import json
import shutil
from dataclasses import replace

import pytest
from scripts import SAMPLES, done, metrics, run, small
from torch import nn
from versatile.data import glue, own_tasks, question_samples, question_tasks, task, text_to_text
from versatile.data.own_tasks import define, register_own_tasks
from versatile.data.task_names import MODULE_ATTRIBUTES
from versatile.utils import answer_metrics
from versatile.utils.errors import UserError

ROWS = {
    "train": [("good film", "pos"), ("bad film", "neg"), ("good play", "pos"), ("bad play", "neg")] * 3,
    "valid": [("good song", "pos"), ("bad song", "neg")],
    "test": [("good book", "pos"), ("bad book", "neg"), ("a bad one", "neg")],
}


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """No test sees another's tasks."""
    monkeypatch.setattr(own_tasks, "_KNOWN", {})


def jsonl(rows, prompt="prompt", answer="answer"):
    return "".join(json.dumps({prompt: p, answer: a}) + "\n" for p, a in rows)


def write(folder, kind="jsonl", names=("train", "valid", "test"), **settings):
    """A folder with the rows above in files of one kind, and a task.json if there are settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(names, ROWS.values()):
        if kind == "jsonl":
            (folder / f"{name}.jsonl").write_text(jsonl(rows))
        elif kind == "json":
            (folder / f"{name}.json").write_text(json.dumps([{"prompt": p, "answer": a} for p, a in rows]))
        else:
            mark = {"csv": ",", "tsv": "\t"}[kind]
            (folder / f"{name}.{kind}").write_text("".join(f"{p}{mark}{a}\n" for p, a in [("prompt", "answer"), *rows]))
    if settings:
        (folder / "task.json").write_text(json.dumps(settings))
    return folder


def read(source, split="train", name="mine"):
    return [(own.prompt_text(p), a) for own in [define(name, str(source))] for _, p, a in own.rows(split)]


EXPECTED = {split: [(p, [a]) for p, a in rows] for split, rows in ROWS.items()}


# --- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
@pytest.mark.parametrize("valid", ["valid", "validation", "dev", "val"])
def test_a_folder_of_files_is_a_task(tmp_path, kind, valid):
    write(tmp_path / "data", kind, ("train", valid, "test"))
    assert {split: read(tmp_path / "data", split) for split in ROWS} == EXPECTED


def test_packed_files_and_one_file_of_all_splits_are_read_alike(tmp_path):
    write(tmp_path / "data")
    with gzip.open(tmp_path / "data" / "train.jsonl.gz", "wt") as file:
        file.write((tmp_path / "data" / "train.jsonl").read_text())
    (tmp_path / "data" / "train.jsonl").unlink()
    whole = {split: [{"src": p, "tgt": a} for p, a in rows] for split, rows in ROWS.items()}
    (tmp_path / "all.json").write_text(json.dumps(whole))
    for source in (tmp_path / "data", tmp_path / "all.json"):
        assert {split: read(source, split) for split in ROWS} == EXPECTED


def test_columns_and_labels_are_named_in_task_json(tmp_path):
    folder = write(tmp_path / "data")
    (folder / "train.jsonl").write_text('{"a": "one", "b": "two", "y": 1}\n{"a": "x", "b": "y", "y": "no"}\n')
    (folder / "task.json").write_text('{"prompt": ["a", "b"], "answer": "y", "labels": ["no", "yes"]}')
    assert read(folder) == [("a: one b: two", ["yes"]), ("a: x b: y", ["no"])]
    assert define("mine", str(folder)).metrics == ("accuracy",)


def test_a_task_json_may_stand_for_data_that_lie_elsewhere(tmp_path):
    write(tmp_path / "data")
    (tmp_path / "mine.json").write_text('{"data": "data", "metrics": ["rouge"]}')
    own = define("mine", str(tmp_path / "mine.json"))
    assert own.source == str(tmp_path / "data") and own.metrics == ("rouge",)


def test_a_folder_may_say_that_its_data_lie_elsewhere_or_here(tmp_path):
    write(tmp_path / "rows")
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "task.json").write_text(json.dumps({"data": "../rows"}))
    (tmp_path / "rows" / "task.json").write_text(json.dumps({"data": "."}))
    assert read(tmp_path / "named") == read(tmp_path / "rows") == EXPECTED["train"]


@pytest.mark.parametrize("script, flags", [
    ("evaluate", ["--task", "mine={}"]), ("combine_all", ["--data", "mine={}", "--checkpoints", "mine={run}"]),
    ("sentence_distiller", ["--task", "mine={}"]),
])  # fmt: skip
def test_a_split_without_rows_is_named_and_nothing_is_written(script, flags, tmp_path):
    write(tmp_path / "data")
    command = ["--model_checkpoint", "tiny-gpt2", "--adapter_bottleneck", 2, "--max_steps", 1, "--limit", 4]
    done(run("train", ["--task", f"mine={tmp_path / 'data'}", *command, "--output_dir", tmp_path / "run"], tmp_path))
    split = "train" if script == "sentence_distiller" else "test"
    (tmp_path / "data" / f"{split}.jsonl").write_text("\n")
    words = [word.format(tmp_path / "data", run=tmp_path / "run") for word in flags]
    output = tmp_path / "out.json"
    model = [] if script == "combine_all" else ["--model_checkpoint", tmp_path / "run"]
    result = run(script, [*words, *model, "--output_dir" if script == "evaluate" else "--output", output], tmp_path)
    assert result.code == 2 and f"{split}.jsonl: holds no rows" in result.err, result.err
    assert not output.exists() or not list(output.iterdir())


def test_a_data_set_of_the_hub_is_read_by_name_with_its_classes_as_words(monkeypatch):
    import datasets
    from versatile.data import hub

    features = datasets.Features(prompt=datasets.Value("string"), answer=datasets.ClassLabel(names=["no", "yes"]))
    data = datasets.Dataset.from_dict({"prompt": ["a", "b"], "answer": [1, 0]}, features=features)
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, split: asked.append((*given, split)) or data)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config: ["train", "validation"])
    monkeypatch.setattr(hub, "_reach", lambda name: None)
    assert read("owner/name:small", "valid") == [("a", ["yes"]), ("b", ["no"])]
    assert asked == [("owner/name", "small", "validation")]
    with pytest.raises(UserError, match="has no test split"):
        read("owner/name:small", "test")


def test_a_data_set_of_the_hub_that_has_a_script_is_read_from_the_hubs_own_conversion(monkeypatch):
    import datasets
    from versatile.data import hub

    data = datasets.Dataset.from_dict({"prompt": ["a"], "answer": ["b"]})
    asked = []

    def answer(kind, value):
        def ask(name, config=None, **more):
            asked.append((kind, name, config, more))
            if "revision" not in more:
                raise RuntimeError("Dataset scripts are no longer supported, but found old.py")
            return value

        return ask

    monkeypatch.setattr(datasets, "load_dataset", answer("rows", data))
    monkeypatch.setattr(datasets, "get_dataset_split_names", answer("splits", ["train"]))
    monkeypatch.setattr(hub, "_reach", lambda name: None)
    assert read("owner/old:small", "train") == [("a", ["b"])]
    where = dict(revision="refs/convert/parquet", data_dir="small")
    assert ("splits", "owner/old", None, where) in asked
    assert ("rows", "owner/old", None, dict(where, split="train")) in asked


DAMAGES = {
    "no answer": ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', "train.jsonl:2: has no column 'answer'"),
    "not json": ('{"prompt": "a", "answer": "b"}\n{"prompt": \n', "train.jsonl:2"),
    "no object": ("[1]\n", "train.jsonl"),
    "a prompt that is no text": ('{"prompt": 1, "answer": "b"}\n', "train.jsonl:1: 'prompt' is 1"),
    "an answer that is none": ('{"prompt": "a", "answer": null}\n', "train.jsonl:1: 'answer' is None"),
    "an empty list": ('{"prompt": "a", "answer": []}\n', "train.jsonl:1: 'answer' is an empty list"),
    "nothing": ("", "train.jsonl: holds no rows"),
    "no number": ('{"prompt": "a", "answer": "b"}\n{"prompt": "a", "answer": NaN}\n', "train.jsonl:2: NaN is not JSON"),
    "an unused column": ('{"prompt": "a", "answer": "b", "x": -Infinity}\n', "train.jsonl:1: -Infinity is not JSON"),
}


@pytest.mark.parametrize("content, expected", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_row_is_one_message_with_file_and_line(tmp_path, content, expected):
    (write(tmp_path / "data") / "train.jsonl").write_text(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / "data")
    assert expected in str(error.value)


def test_a_bad_label_or_column_of_a_table_is_named_with_its_line(tmp_path):
    folder = write(tmp_path / "data", "csv", labels=["pos", "neg"])
    (folder / "train.csv").write_text("prompt,answer\na,pos\nb,maybe\n")
    with pytest.raises(UserError, match=r"train.csv:3: 'answer' is 'maybe'.*\n.*one of pos, neg"):
        read(folder)
    (folder / "train.csv").write_text("prompt,answer\na,pos\nb\n")
    with pytest.raises(UserError, match=r"train.csv:3: 1 columns"):
        read(folder)


SETTINGS = {
    "an unknown metric": ({"metrics": ["bleurt"]}, "metrics[0]"),
    "an unknown key": ({"metric": ["f1"]}, "unknown key 'metric'"),
    "one label": ({"labels": ["x"]}, "labels"),
    "a column that is no name": ({"prompt": 1}, "expected: a column's name"),
    "data elsewhere beside rows": ({"data": "../other"}, "names other data ('../other' (str)) than the rows beside it"),
}


@pytest.mark.parametrize("settings, expected", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_wrong_task_json_is_named(tmp_path, settings, expected):
    write(tmp_path / "data", **settings)
    with pytest.raises(UserError) as error:
        define("mine", str(tmp_path / "data"))
    assert expected in str(error.value) and "task.json" in str(error.value)


def test_sources_and_names_that_cannot_be_are_refused(tmp_path):
    write(tmp_path / "data")
    for name, source, expected in (
        ("mine", "/no/such/folder", "no such file or folder"),
        ("a b", str(tmp_path / "data"), "cannot be a task's name"),
        ("All", str(tmp_path / "data"), "'All' cannot be a task's name: the word stands for all tasks"),
        ("type", str(tmp_path / "data"), "'type' cannot be a task's name\n.*\n.*type_task"),
        ("mine", str(tmp_path / "data" / "train.jsonl"), "one file holds one split only"),
    ):
        with pytest.raises(UserError, match=expected):
            define(name, source)
    # Names are the same in small and in capital letters.
    for name in ("rte", "MT", "CoLA"):
        with pytest.raises(UserError, match=f"'{name}' is a task of the toolkit"):
            register_own_tasks([define(name, str(tmp_path / "data"))])


@pytest.mark.parametrize("get", [task.get_task, text_to_text.get_task, question_tasks.get_task, glue.get_task])
def test_an_unknown_name_lists_names_like_it_and_says_how_to_bring_ones_own(get):
    typed, near = {task.get_task: ("summarisation", "summarization"), text_to_text.get_task: ("cosmosqa", "cosmos_qa"),
                   question_tasks.get_task: ("wikisq", "wikisql"), glue.get_task: ("sts-c", "sts-b")}[get]  # fmt: skip
    with pytest.raises(UserError) as error:
        get(typed)
    assert f"did you mean {near}" in str(error.value) and f"{typed}=FOLDER_OR_FILE" in str(error.value)


@pytest.mark.parametrize(("script", "flags"), [
    ("train", ["--task", "keys={}", "--model_checkpoint", "tiny-gpt2", "--method", "lora"]),
    ("train_vlm", ["--tasks", "keys={}", "--model_checkpoint", "tiny-gpt2", "--method", "full"]),
    ("train_t5", ["--tasks", "keys={}", "--model_name_or_path", "tiny-t5", "--method", "lora", "--do_train", "true"]),
    ("train_lifelong", ["--tasks", "ag", "keys={}", "--model_name", "tiny-gpt2", "--method", "lora", "--own_adapters",
                        "--data_dir", SAMPLES / "lifelong"]),
    ("train_lifelong", ["--tasks", "ag", "lifelong={}", "--model_name", "tiny-gpt2", "--method", "lora",
                        "--own_adapters", "--data_dir", SAMPLES / "lifelong"]),
])  # fmt: skip
def test_a_name_that_parameters_cannot_have_is_refused_with_nothing_written(script, flags, tmp_path):
    write(tmp_path / "data")
    filled = [str(flag).format(tmp_path / "data") for flag in flags]
    name = next(word for word in filled if word.endswith(f"={tmp_path / 'data'}")).partition("=")[0]
    result = run(script, [*filled, "--output_dir", tmp_path / "run"], tmp_path / "log")
    said = f"{name!r} cannot be a task's name" if name == "keys" else f"the task {name!r}"
    assert result.code == 2 and said in result.err and f"{name}_task" in result.err
    assert not (tmp_path / "run").exists()


def test_names_that_modules_cannot_have_are_those_of_torch():
    attributes = {name for kind in (nn.ModuleDict, nn.ParameterDict) for name in dir(kind())}
    assert {name for name in attributes if own_tasks._NAME.fullmatch(name)} <= MODULE_ATTRIBUTES


# --- as each encoder takes it ----------------------------------------------------------------------------


def test_one_task_is_the_same_examples_in_all_four_forms(tmp_path):
    write(tmp_path / "data", labels=["neg", "pos"], question="What is it?")
    register_own_tasks([define("mine", str(tmp_path / "data"))])
    mine = task.get_task("mine")
    records = mine.records(mine.dataset_path, "test")
    examples = [e for location, record in records for e in mine.examples(record, location)]
    assert [(e.source, e.target.text) for e in examples] == ROWS["test"]
    assert examples[0].location == f"{tmp_path / 'data' / 'test.jsonl'}:1"
    rows = text_to_text.load_rows("mine", "test")
    assert list(zip(rows["source"], rows["target"])) == ROWS["test"]
    assert text_to_text.load_rows("mine", "test", prefix=True)["source"][0] == "mine good book"
    qas = question_samples.load_task(question_tasks.get_task("mine"), None, "test")
    assert [(q.context, q.question, q.answers) for q in qas] == [(p, "What is it?", (a,)) for p, a in ROWS["test"]]
    assert [(e.text_a, e.text_b, e.label) for e in glue.read_examples(None, "mine", "test")] == [
        (p, None, a) for p, a in ROWS["test"]]  # fmt: skip
    assert glue.get_task("mine").labels == ("neg", "pos")


def test_the_definition_that_a_checkpoint_keeps_is_the_task(tmp_path):
    own = define("mine", str(write(tmp_path / "data", labels=["neg", "pos"], metrics=["f1"], prompt="prompt")))
    register_own_tasks([json.loads(json.dumps(own.to_json()))])
    assert own_tasks.get_own_task("mine") == own


def test_a_trained_tasks_settings_apply_to_other_data_unless_these_bring_their_own(tmp_path):
    trained = define("mine", str(write(tmp_path / "data", labels=["neg", "pos"], question="What?")))
    bare, other = write(tmp_path / "bare"), write(tmp_path / "other", question="Which?")
    assert define("mine", str(bare), trained=trained) == replace(trained, source=str(bare))
    assert define("mine", str(other), trained=trained).question == "Which?"
    register_own_tasks([trained])
    own_tasks.relocate("mine", str(bare), "--data")
    assert own_tasks.get_own_task("mine").source == str(bare)


def test_a_label_that_is_a_number_is_no_index_into_the_labels(tmp_path):
    mine = define("mine", str(write(tmp_path / "data", labels=["0", "1", "3"])))
    assert mine.label(3, "answer", "here") == "3"
    with pytest.raises(UserError, match="expected: one of 0, 1, 3"):
        mine.label(2, "answer", "here")
    assert define("mine", str(write(tmp_path / "words", labels=["no", "yes"]))).label(1, "answer", "here") == "yes"


@pytest.mark.parametrize("labels, value, label", [
    (["1.0", "1.5", "2.0"], 1.0, "1.0"), (["1.0", "2.0"], "1", "1.0"), (["-1", "+0", "+1"], 1, "+1"),
    (["-1", "+0", "+1"], 0, "+0"), (["-1", "+0", "+1"], -1, "-1"), (["1.0", "2.0"], 0, None),
    (["1", "1.0"], "1.00", None),
    (["no", "yes"], "1" * 5000, None), (["low", "2"], "1", None),
])  # fmt: skip
def test_a_number_is_the_label_of_the_same_value(labels, value, label, tmp_path):
    mine = define("mine", str(write(tmp_path / "data", labels=labels)))
    if label:
        assert mine.label(value, "answer", "here") == label
    else:
        with pytest.raises(UserError, match="expected: one of"):
            mine.label(value, "answer", "here")


def test_labels_that_are_numbers_of_any_length_are_sorted_by_value(tmp_path):
    (write(tmp_path / "data", "csv") / "train.csv").write_text(f"prompt,answer\na,{'9' * 5000}\nb,10\nc,9\nd,007\n")
    assert define("mine", str(tmp_path / "data")).with_labels().labels == ("007", "9", "10", "9" * 5000)


def test_a_file_that_is_read_in_another_way_has_another_key(tmp_path):
    mine = define("mine", str(write(tmp_path / "data", "tsv")))
    before = mine.content_key("train")
    (tmp_path / "data/train.tsv").rename(tmp_path / "data/train.csv")
    assert mine.content_key("train") != before


def test_a_class_must_not_be_blank_but_a_test_row_may_lack_it(tmp_path):
    mine = define("mine", str(write(tmp_path / "data")))
    (tmp_path / "data" / "test.jsonl").write_text(jsonl([("a", ""), ("b", None), ("c", "pos")]))
    assert [label for _, _, label in mine.with_labels().sentences("test")] == [None, None, "pos"]
    (tmp_path / "data" / "train.jsonl").write_text(jsonl([("a", "pos"), ("b", " ")]))
    with pytest.raises(UserError, match=r"train.jsonl:2: has no answer"):
        mine.with_labels()


# --- scores ----------------------------------------------------------------------------------------------


def test_scores_are_those_that_were_asked_for():
    hypotheses, references = ["the cat", "yes ", "dog"], [["cat"], ["yes"], ["a black dog", "x"]]
    scores = answer_metrics.score(("exact_match", "f1", "rouge", "accuracy"), hypotheses, references)
    values = {name: score.value for name, score in scores.items()}
    assert values["exact_match"] == values["accuracy"] == pytest.approx(100 / 3)
    # Articles do not count: "cat" is right, "dog" of "black dog" has precision 1 and recall 1/2.
    assert values["f1"] == pytest.approx(100 * (1 + 1 + 2 / 3) / 3)
    # "cat" of "the cat": 2/3; "yes": 1; "dog" of "a black dog": precision 1, recall 1/3, F 1/2.
    assert values["rouge1"] == pytest.approx(100 * (2 / 3 + 1 + 1 / 2) / 3)


def test_f1_of_labels_is_the_mean_of_the_labels():
    scores = answer_metrics.score(("f1",), ["a", "a", "b", "?"], [["a"], ["b"], ["b"], ["b"]], labels=["a", "b"])
    # a: precision 1/2, recall 1, F 2/3; b: precision 1, recall 1/3, F 1/2.
    assert scores["f1"].value == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)


# --- in the scripts --------------------------------------------------------------------------------------

TINY = ["--model_checkpoint", "tiny-gpt2", "--fp32", "--n_epochs", "1"]


def test_own_and_known_tasks_train_together_combine_and_answer(tmp_path):
    data, nlg = write(tmp_path / "data", metrics=["exact_match", "rouge"]), small(tmp_path / "nlg.json", train=8,
                                                                                 valid=2, test=2)  # fmt: skip
    log, vlm, alone = tmp_path / "log", tmp_path / "vlm", tmp_path / "alone"
    done(run("train_vlm", ["--tasks", f"mine={data}", "nlg", "--data", f"nlg={nlg}", *TINY, "--output_dir", vlm], log))
    done(run("train", ["--task", f"mine={data}", *TINY, "--adapter_bottleneck", "4", "--output_dir", alone], log))
    result = done(run("train", ["--resume", alone], log))
    both = tmp_path / "both"
    done(run("combine_all", ["--checkpoints", f"mine={alone}", f"nlg={vlm}", "--data", f"nlg={nlg}", "--output", both,
                             "--proof_examples", "2"], log))  # fmt: skip
    result = done(run("evaluate_vlm", ["--task", "all", "--no_sample", "--max_length", "3", "--model_checkpoint", both,
                                       "--data", f"nlg={nlg}", "--output_dir", tmp_path / "out"], log))  # fmt: skip
    assert "mine            exact_match" in result.out
    scores = json.loads((tmp_path / "out" / "mine_metrics.json").read_text())["scores"]
    assert set(scores) == {"exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum", "PPL"}
    # The checkpoint knows where the data are and how they are scored.
    done(run("evaluate", ["--task", "mine", "--no_sample", "--max_length", "3", "--model_checkpoint", alone,
                          "--output_dir", tmp_path / "one"], log))  # fmt: skip
    assert metrics(tmp_path / "one")["headline"] == "exact_match"
    done(run("sentence_distiller", ["--task", "mine", "--no_sample", "--max_length", "3", "--model_checkpoint", alone],
             log))  # fmt: skip
    result = done(run("train", ["--task", f"mine={data}", "--distillation", *TINY, "--adapter_bottleneck", "4",
                                "--output_dir", tmp_path / "student"], log))  # fmt: skip
    assert f"the teacher's texts from {tmp_path / 'data_distilled.json'}" in result.out


def test_a_run_of_many_tasks_gets_a_directory_that_names_their_number(tmp_path):
    data = write(tmp_path / "data")
    tasks = [f"{'a-long-name-of-a-task-' * 2}{i}={data}" for i in range(6)]
    argv = ["--tasks", *tasks, *TINY, "--adapter_bottleneck", "0", "--no_validation", "--max_steps", "1"]
    done(run("train_vlm", argv, tmp_path / "log", cwd=tmp_path))
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("_tiny-gpt2_vlm_6-tasks")


def test_an_own_task_trains_a_t5_beside_a_known_one(tmp_path):
    data, folder = write(tmp_path / "data", labels=["neg", "pos"]), tmp_path / "run"
    shutil.copytree(SAMPLES / "glue" / "RTE", tmp_path / "glue" / "RTE")
    flags = ["--model_name_or_path", "tiny-t5", "--tasks", f"mine={data}", "rte", "--data_dir", tmp_path / "glue",
             "--do_train", "true", "--do_eval", "true", "--do_test", "true", "--n_train", "8", "--n_val", "2",
             "--n_test", "2", "--train_adapters", "true", "--adapter_config_name", "adapter", "--num_train_epochs", "1",
             "--output_dir", folder]  # fmt: skip
    done(run("train_t5", flags, tmp_path / "log"))
    assert "mine_test_accuracy" in json.loads((folder / "test_results.json").read_text())
    done(run("evaluate", ["--task", "mine", "--model_checkpoint", folder, "--output_dir", tmp_path / "out"],
             tmp_path / "log"))  # fmt: skip
    assert set(metrics(tmp_path / "out")["scores"]) == {"accuracy", "PPL"}


@pytest.mark.parametrize("kind", ["folder", "file", "hub"])
def test_the_test_rows_of_an_own_task_are_not_its_validation_rows(kind, tmp_path):
    whole = {split: [{"prompt": p, "answer": a} for p, a in rows] for split, rows in ROWS.items()}
    (tmp_path / "all.json").write_text(json.dumps(whole))
    source = {"folder": write(tmp_path / "data"), "file": tmp_path / "all.json", "hub": "somebody/songs"}[kind]
    register_own_tasks([define("mine", str(source))])
    assert not text_to_text.test_is_validation(text_to_text.get_task("mine"))


def sources(folder):
    """Inputs of an evaluation's outputs."""
    lines = (folder / "mine_outputs.jsonl").read_text().splitlines()
    return [json.loads(line)["source"] for line in lines]


def test_a_run_goes_on_and_is_evaluated_where_its_data_lie_now(tmp_path):
    data, log, folder = write(tmp_path / "data"), tmp_path / "log", tmp_path / "run"
    done(run("train", ["--task", f"mine={data}", *TINY, "--method", "lora", "--output_dir", folder], log))
    other = write(tmp_path / "other")
    (other / "test.jsonl").write_text(jsonl([("something else", "pos")]))
    ask = ["--no_sample", "--max_length", "3", "--model_checkpoint", folder]
    for i, where in enumerate((["--task", f"mine={other}"], ["--task", "mine", "--dataset_path", other],
                               ["--task", "mine", "--data", f"mine={other}"])):  # fmt: skip
        done(run("evaluate", [*where, *ask, "--output_dir", tmp_path / f"out{i}"], log))
        assert sources(tmp_path / f"out{i}") == ["something else"]
    texts = tmp_path / "texts.json"
    (other / "train.jsonl").write_text(jsonl([("to be rewritten", "pos")]))
    done(run("sentence_distiller", ["--task", f"mine={other}", *ask, "--output", texts], log))
    assert "to be rewritten" in texts.read_text() and "good film" not in texts.read_text()
    result = run("evaluate", ["--task", "mine", *ask, "--dataset_path", other / "test.jsonl"], log)
    assert result.code == 2 and "one file holds one split only" in result.err
    data.rename(tmp_path / "moved")
    result = run("evaluate", ["--task", "mine", *ask], log)
    assert result.code == 2 and "no such file or folder" in result.err and "--dataset_path" in result.err
    result = run("evaluate", ["--task", "all", *ask], log)
    assert result.code == 2 and "evaluate_vlm.py --task all" in result.err
    done(run("train", ["--resume", folder, "--task", f"mine={tmp_path / 'moved'}", "--dataset_path",
                       tmp_path / "moved"], log))  # fmt: skip


@pytest.mark.slow
def test_a_t5_is_evaluated_and_combined_on_data_that_have_moved(tmp_path):
    log, data = tmp_path / "log", write(tmp_path / "data", labels=["neg", "pos"])
    runs = [tmp_path / "a", tmp_path / "b"]
    for name, folder in zip(("mine", "yours"), runs):
        done(run("train_t5", ["--model_name_or_path", "tiny-t5", "--tasks", f"{name}={data}", "--method", "lora",
                              "--do_train", "true", "--max_steps", "2", "--lr", "0.01", "--output_dir", folder], log))
    data.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    ask = ["--model_checkpoint", runs[0]]
    result = run("evaluate", ["--task", "mine", *ask], log)
    assert result.code == 2 and "no such file or folder" in result.err and "--data TASK=DIR" in result.err
    for i, where in enumerate((["--task", f"mine={moved}"], ["--task", "mine", "--dataset_path", moved],
                               ["--task", "mine", "--data", f"mine={moved}"])):  # fmt: skip
        done(run("evaluate", [*where, *ask, "--output_dir", tmp_path / f"out{i}"], log))
        assert metrics(tmp_path / f"out{i}")["instances"] == 3
    # train_t5.py itself reads them as the model was trained, by its name alone.
    out = tmp_path / "again"
    done(run("train_t5", ["--model_name_or_path", runs[0], "--tasks", f"mine={moved}", "--do_test", "true",
                          "--output_dir", out], log))  # fmt: skip
    assert json.loads((out / "test_results.json").read_text())["test_loss"] > 0
    both = tmp_path / "both"
    done(run("combine_all", ["--checkpoints", f"mine={runs[0]}", f"yours={runs[1]}", "--data", f"mine={moved}",
                             f"yours={moved}", "--output", both, "--proof_examples", "2"], log))  # fmt: skip
    done(run("evaluate", ["--task", "all", "--model_checkpoint", both, "--output_dir", tmp_path / "all"], log))


def test_an_own_task_stands_in_a_sequence_of_tasks(tmp_path):
    data, folder = write(tmp_path / "data", metrics=["f1"]), tmp_path / "run"
    flags = ["--tasks", f"mine={data}", "ag", "--data_dir", SAMPLES / "lifelong", "--model_name", "tiny-gpt2",
             "--limit", "6", "--n_train_epochs", "1", "--max_len", "60", "--min_n_steps", "1", "--output_dir", folder]
    done(run("train_lifelong", flags, tmp_path / "log"))
    result = done(run("evaluate_lifelong", ["--model_dirs", folder, "--limit", "2"], tmp_path / "log"))
    assert "| after | mine (f1) | ag (em) |" in result.out
    data.rename(tmp_path / "moved")
    result = run("evaluate_lifelong", ["--model_dirs", folder, "--limit", "2"], tmp_path / "log")
    assert result.code == 2 and f"{data}: no such file or folder" in result.err
    here = ["--tasks", f"mine={tmp_path / 'moved'}", "ag"]
    done(run("evaluate_lifelong", ["--model_dirs", folder, "--limit", "2", *here], tmp_path / "log"))
    done(run("train_lifelong", ["--resume", folder, *here], tmp_path / "log"))
    # Only what has moved need be named, and the same command as at first goes on as well.
    alone = ["--tasks", here[1]]
    done(run("evaluate_lifelong", ["--model_dirs", folder, "--limit", "2", *alone], tmp_path / "log"))
    done(run("train_lifelong", ["--resume", folder, *alone], tmp_path / "log"))
    (tmp_path / "moved").rename(data)
    assert "already trained" in done(run("train_lifelong", flags, tmp_path / "log")).out


def test_an_own_classification_trains_a_bert_and_is_predicted(tmp_path):
    data, folder = write(tmp_path / "data", metrics=["accuracy", "f1"]), tmp_path / "run"
    flags = ["--model_name_or_path", "tiny-bert", "--form", "plain", "--max_seq_length", "16", "--do_train",
             "--do_eval", "--num_train_epochs", "1", "--tasks", f"mine={data}", "--output_dir", folder]  # fmt: skip
    done(run("train_camtl", flags, tmp_path / "log"))
    out = tmp_path / "out"
    done(run("train_camtl", ["--model_name_or_path", folder, "--do_eval", "--do_predict", "--output_dir", out],
             tmp_path / "log"))  # fmt: skip
    report = json.loads((out / "eval_results.json").read_text())["tasks"]["mine"]
    assert set(report["scores"]) == {"accuracy", "macro_f1"}
    lines = (out / "submission" / "mine.tsv").read_text().splitlines()
    assert len(lines) == 4 and {line.split("\t")[1] for line in lines[1:]} <= {"neg", "pos"}
