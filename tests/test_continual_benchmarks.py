"""The benchmarks of continual learning: their converters, orders and scores.

python -m pytest tests/test_continual_benchmarks.py
"""

import json

import pytest
from converting import write
from squad_conversion import asked, error, run
from versatile.data import question_scores as scores
from versatile.data import question_tasks as tasks
from versatile.data.question_samples import QA
from versatile.data.task_orders import CLASSIFICATION, ORDERS, SUPERNI, TRACE, expand_orders, order_name
from versatile.lifelong import matrix, sequence
from versatile.lifelong.matrix import Matrix, read_single_tasks
from versatile.utils import trace_metrics
from versatile.utils.errors import UserError

import evaluate_lifelong
import train_lifelong

SAMSUM, SST2 = "task1572_samsum_summary", "task363_sst2_polarity_classification"


def superni(folder, task, train, test):
    """A task's files as in Super-NaturalInstructions: (input, outputs) of train and test."""
    for split, rows in (("train", train), ("test", test), ("dev", test)):
        instances = [dict(id=f"{task[:8]}-{split}{i}", input=text, output=out) for i, (text, out) in enumerate(rows)]
        content = dict(Contributors=["x"], Definition=[f"Do {task[4:8]}. "], Instances=instances)
        write(folder / task / f"{split}.json", json.dumps(content))
    return folder


def classified(folder, place, labels, train, test):
    """A task's files as in O-LoRA."""
    write(folder / place / "labels.json", json.dumps(labels))
    for split, rows in (("train", train), ("test", test), ("dev", test)):
        content = [dict(sentence=sentence, label=label) for sentence, label in rows]
        write(folder / place / f"{split}.json", json.dumps(content))
    return folder


# ---- converters


def test_superni_holds_validation_rows_out_of_the_training_rows_and_says_so(tmp_path):
    train = [(f" text {i} ", [f"first {i}", "second"]) for i in range(20)]
    folder = superni(tmp_path / "in", SAMSUM, train, [("asked", ["a ", "b"])])
    superni(folder, SST2, [("same", ["POS"]), ("same", ["NEG"]), *((f"{i}", ["POS"]) for i in range(8))],
            [("t", ["NEG"])])  # fmt: skip
    files, report = run(tmp_path, "squad-superni", "--folder", folder, "--valid_from_train", 3)
    names = [f"{task}_to_squad-{split}-v2.0.json" for task in (SAMSUM, SST2) for split in ("dev", "test", "train")]
    assert sorted(files) == sorted(names)
    own = {split: asked(files[f"{SAMSUM}_to_squad-{split}-v2.0.json"]) for split in ("train", "dev", "test")}
    assert [len(rows) for rows in own.values()] == [17, 3, 1]
    contexts = [context for context, _, _ in own["train"] + own["dev"]]
    assert sorted(contexts) == sorted(f"text {i}" for i in range(20))
    # The first output is learned; at test time all are correct.
    assert all(answers == [f"first {context[5:]}"] for context, _, answers in own["train"] + own["dev"])
    assert own["test"] == [("asked", "Do 1572.", ["a", "b"])]
    assert "the released dev files equal the test files and are not read" in report
    assert "further outputs, left out: 20" in report
    # The same seed draws the same, another seed differs.
    assert run(tmp_path / "b", "squad-superni", "--folder", folder, "--valid_from_train", 3)[0] == files
    assert run(tmp_path / "c", "squad-superni", "--folder", folder, "--valid_from_train", 3, "--seed", 1)[0] != files


def test_no_training_row_shares_a_text_with_one_held_out(tmp_path):
    rows = [("twice", ["a"]), ("twice", ["b"]), ("once", ["c"]), ("alone", ["d"])]
    folder = superni(tmp_path / "in", SAMSUM, rows, [("t", ["a"])])
    for seed in range(6):
        files, report = run(tmp_path / str(seed), "squad-superni", "--folder", folder, "--seed", seed)
        train, dev = (asked(files[f"{SAMSUM}_to_squad-{split}-v2.0.json"]) for split in ("train", "dev"))
        assert len(dev) == 1 and not {c for c, _, _ in train} & {c for c, _, _ in dev}
        assert ("1 sharing a text with one held out" in report) == (dev[0][0] == "twice")
    files, report = run(tmp_path / "none", "squad-superni", "--folder", folder, "--valid_from_train", 0)
    assert f"{SAMSUM}_to_squad-dev-v2.0.json" not in files and "held out of the training" not in report


def test_blank_outputs_are_left_out(tmp_path):
    folder = superni(tmp_path / "in", SAMSUM, [("a", ["", "x"]), ("b", [" "]), *((f"{i}", ["y"]) for i in range(9))],
                     [("t", ["z", ""])])  # fmt: skip
    files, report = run(tmp_path, "squad-superni", "--folder", folder)
    assert "1 without an output" in report
    assert asked(files[f"{SAMSUM}_to_squad-test-v2.0.json"]) == [("t", "Do 1572.", ["z"])]


def test_classification_asks_with_the_options_and_names_the_hub_for_what_is_missing(tmp_path):
    folder = classified(tmp_path / "in", "NLI/MNLI", ["neutral", "entailment"],
                        [(f"sentence 1: {i}\nsentence 2: x", "neutral") for i in range(10)],
                        [("sentence 1: t", "entailment"), ("sentence 1: u", "-")])  # fmt: skip
    classified(folder, "COPA/COPA", ["A", "B"], [(f"Which? {i}", "A") for i in range(10)], [("Which?", "B")])
    files, report = run(tmp_path, "squad-classification", "--folder", folder)
    question = 'What is the logical relationship between the "sentence 1" and the "sentence 2"? Choose one from the ' \
               "option. Option: neutral, entailment"  # fmt: skip
    assert asked(files["cl.mnli_to_squad-test-v2.0.json"]) == [("sentence 1: t", question, ["entailment"])]
    assert asked(files["cl.copa_to_squad-test-v2.0.json"]) == [("Which?", "", ["B"])]
    assert len(files["cl.copa_to_squad-train-v2.0.json"]["data"]) == 9 and "1 without an agreed label" in report
    assert "cl.yahoo (community-datasets/yahoo_answers_topics)" in report and report.count(" (") >= 13
    message = error(tmp_path / "b", "squad-classification", "--folder", folder, "--tasks", "cl.imdb", "cl.mnli")
    assert "no folder SC/IMDB" in message and "cl.imdb (stanfordnlp/imdb)" in message


def test_trace_keeps_its_own_validation_rows(tmp_path):
    for split in ("train", "eval", "test"):
        write(tmp_path / "in" / "FOMC" / f"{split}.json", json.dumps([dict(prompt=f"{split}?", answer="A")]))
    files, report = run(tmp_path, "squad-trace", "--folder", tmp_path / "in")
    found = {name.split("-")[1]: asked(file) for name, file in files.items()}
    assert found == {"train": [("train?", "", ["A"])], "dev": [("eval?", "", ["A"])], "test": [("test?", "", ["A"])]}
    assert "trace.py150" in report


@pytest.mark.parametrize(("change", "words"), [
    (dict(Definition=None), "'Definition' is None"), (dict(Instances={}), "Instances"),
    (dict(Instances=[dict(input="a", output={})]), "Instances[0]: 'output' is {}"),
    (dict(Instances=[dict(output=["a"])]), "Instances[0]: 'input' is None"),
    (dict(Instances=[dict(input="a", output=["b", 5])]), "Instances[0]: an output is 5"),
    (dict(Instances=[dict(input="a", output=["b"], id={"x": 1})]), "Instances[0]: 'id' is {'x': 1}"),
    (dict(Instances=[]), "Instances: is empty"),
])  # fmt: skip
def test_a_broken_superni_file_is_one_message(change, words, tmp_path):
    folder = superni(tmp_path / "in", SAMSUM, [(f"{i}", ["a"]) for i in range(9)], [("t", ["a"])])
    path = folder / SAMSUM / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert words in error(tmp_path, "squad-superni", "--folder", folder)


@pytest.mark.parametrize(("rows", "words"), [
    ([dict(sentence="a", label="C")], "[0]: the label is 'C'"), ([1], "[0]: is 1"), ([dict(label="A")], "'sentence'"),
    ([dict(sentence="a", label="A")], "1 rows of cl.copa are to be held out, and it has 1"), ([], "holds no rows"),
])  # fmt: skip
def test_a_broken_classification_file_is_one_message(rows, words, tmp_path):
    folder = classified(tmp_path / "in", "COPA/COPA", ["A", "B"], [], [("t", "A")])
    (folder / "COPA/COPA" / "train.json").write_text(json.dumps(rows))
    assert words in error(tmp_path, "squad-classification", "--folder", folder)
    assert "no folder" in error(tmp_path / "b", "squad-classification", "--folder", tmp_path / "nowhere")


@pytest.mark.slow
def test_the_shared_benchmarks_are_converted_whole(tmp_path, shared_data):
    files, _ = run(tmp_path, "squad-superni", "--folder", shared_data / "superni")
    assert {name.split("_to_squad")[0] for name in files} == set(SUPERNI)
    files, report = run(tmp_path / "cl", "squad-classification", "--folder", shared_data / "cl_benchmark")
    written = {name.split("_to_squad")[0] for name in files}
    assert len(files) == 3 * 10 and all(f"{name} (" in report for name in set(CLASSIFICATION) - written)


# ---- orders


def test_every_order_has_the_tasks_of_its_benchmark():
    sets = {"superni": set(SUPERNI), "long": set(CLASSIFICATION), "trace": set(TRACE),
            "standard": {"cl.dbpedia", "cl.amazon", "cl.yahoo", "cl.agnews"}}  # fmt: skip
    for name, order in ORDERS.items():
        assert set(order) == sets[name.partition("-")[0]] and len(order) == len(set(order))
        assert [task.name for task in tasks.sequence(order)] == list(order)
    assert ORDERS["long-order4"][:3] == ("cl.yelp", "cl.amazon", "cl.mnli") and ORDERS["long-order5"][-1] == "cl.yahoo"
    assert ORDERS["superni-order2"][0] == "task748_glucose_reverse_cause_event_detection"


def test_the_name_of_an_order_stands_for_its_tasks():
    args = train_lifelong.parser().parse_args(["--tasks", "standard-order3", "ag", "--model_dir_root", "m"])
    assert args.tasks == ["cl.yahoo", "cl.amazon", "cl.agnews", "cl.dbpedia", "ag"]
    assert expand_orders(["ag", "sst"]) == ["ag", "sst"] and order_name(["ag"]) is None
    # Fifteen names are too many for a directory's name.
    args = train_lifelong.parser().parse_args(["--tasks", "superni-order1", "--model_dir_root", "m"])
    assert len(args.tasks) == 15 and sequence.directory(args).name == "superni-order1_0.05_42"


# ---- scores


def test_rouge_l_is_that_of_the_whole_text():
    samples = [QA("c", "q", ("the cat sat. it purred",))]
    found = scores.score(tasks.get_task(SAMSUM), ["it purred. the cat sat"], samples)
    # Three of five words in order; sentence by sentence all five are.
    assert found["rougeL"].value == pytest.approx(60) and tasks.get_task(SAMSUM).metric == "rougeL"
    assert scores.rouge(["it purred. the cat sat"], [["the cat sat. it purred"]])["rougeL"].value == pytest.approx(100)


def test_edit_similarity_is_the_share_of_matching_characters():
    samples = [QA("c", "q", ("bcde",)), QA("c", "q", ("y", "x"))]
    found = scores.score(tasks.get_task("trace.py150"), ["abcd", "x"], samples)
    assert found["edit_similarity"].value == pytest.approx((75 + 100) / 2)
    # Placeholders of literals are filled in first.
    assert trace_metrics.fill_literals("f(<STR_LIT:a b>, <NUM_LIT>, <STR_LIT>)") == "f(a b, 0, )"
    assert trace_metrics.edit_similarity(["x = <NUM_LIT:3>"], [["x = 3"]]).value == 100


# Text, reference, ROUGE-L of the package rouge 1.0.1 and the ratio of fuzzywuzzy 0.18.0, called as TRACE does.
TRACED = [
    (". . the on dog? red. . on red. mat ran sat dog? cat", "cat a ran on dog?", 0.4285714239795918, 29),
    ("ran cat on a home a The mat red. dog? a mat", "mat ran The sat dog? red. red.", 0.5333333285333334, 47),
    ("dog? on the dog? the a home . home The The the ran red.",
     "mat sat home mat home a sat ran sat sat cat dog? red. a", 0.4999999950000001, 29),
    ("mat dog?", "a on dog? on home a dog? mat", 0.2857142816326531, 33),
]  # fmt: skip


def test_rouge_l_and_edit_similarity_of_trace_are_those_of_the_packages_it_calls():
    for text, right, rouge, ratio in TRACED:
        assert trace_metrics.rouge_l([text], [[right]]).value == pytest.approx(100 * rouge, abs=1e-6)
        assert abs(trace_metrics.edit_similarity([text], [[right]]).value - ratio) <= 0.5
    # Not the score of whole texts with stemming.
    assert trace_metrics.rouge_l(["cats ran"], [["cat ran"]]).value < scores.rouge_l(["cats ran"], [["cat ran"]]).value
    assert trace_metrics.rouge_l(["", "."], [["a"], ["a"]]).value == 0


SIMPLE = "About 95 species are currently accepted ."
SIMPLER = ["About 95 species are currently known .", "About 95 species are now accepted .",
           "95 species are now accepted ."]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), [
    # From the card of evaluate's script, and from the tests of tensor2tensor, whose sums it has.
    ("About 95 you now get in .", 26.953601953601954),
    ("About 95 species are now agreed .", 61.70966), ("About 95 species are currently agreed .", 50.88682),
])  # fmt: skip
def test_sari_is_that_of_the_published_examples(text, value):
    found = trace_metrics.sari([SIMPLE], [text], [SIMPLER])
    assert found.value == pytest.approx(value, abs=5e-6) and "13a" in found.signature
    assert trace_metrics.sari(["a b c d e"], ["a b x"], [["a b x"]]).value == pytest.approx(100)
    assert trace_metrics.sari([SIMPLE] * 2, [text, SIMPLER[0]], [SIMPLER] * 2).value > found.value


def test_each_task_of_trace_has_the_score_of_its_paper():
    metric = {name.removeprefix("trace."): tasks.get_task(name).metric for name in TRACE}
    assert metric == {"c-stance": "accuracy", "fomc": "accuracy", "meetingbank": "rougeL", "py150": "edit_similarity",
                      "scienceqa": "accuracy", "numglue-cm": "accuracy", "numglue-ds": "accuracy",
                      "20minuten": "sari"}  # fmt: skip
    # The source of a simplification is the prompt.
    simplified = scores.score(tasks.get_task("trace.20minuten"), [SIMPLER[0]], [QA(SIMPLE, "", (SIMPLER[0],))])
    assert simplified["sari"].value == pytest.approx(trace_metrics.sari([SIMPLE], SIMPLER[:1], [SIMPLER[:1]]).value)
    choice = [QA("p", "", ("A\nBecause it is so.",)), QA("p", "", ("B\nBecause.",))]
    found = scores.score(tasks.get_task("trace.scienceqa"), ["A\nBut.", ""], choice)
    assert found["accuracy"].value == 50 and found["em"].value == 0
    exact = [QA("p", "", ("A",)), QA("p", "", ("B",))]
    assert scores.score(tasks.get_task("trace.fomc"), ["A", "b"], exact)["accuracy"].value == 50


def test_numbers_under_the_names_of_the_papers():
    rows = [[80, 10, 0], [60, 70, 20], [50, 75, 90]]
    found = matrix.summary([Matrix(["a", "b", "c"], rows, before=[5, 5, 5], alone=[82, 71, 88])])["mean"]
    assert found["AP"] == found["average_accuracy"] == pytest.approx((50 + 75 + 90) / 3)
    assert found["F.Ra"] == pytest.approx(((80 - 50) + (70 - 75)) / 2)
    assert found["FWT (SAPT)"] == pytest.approx((-2 - 1 + 2) / 3)
    assert found["forward_transfer"] == pytest.approx(((10 - 5) + (20 - 5)) / 2)
    assert found["BWT (SAPT)"] == pytest.approx(((50 - 80) + (75 - 70) + 0) / 3)
    assert found["backward_transfer"] == pytest.approx(((50 - 80) + (75 - 70)) / 2)
    # What a task scores before it is learned is not forgotten, whether it was evaluated or not.
    for cell in (95, None):
        assert matrix.forgetting(Matrix(["x", "y", "z"], [[80, cell, 5], [60, 70, 20], [50, 65, 90]])) == 17.5
    without = matrix.summary([Matrix(["a", "b"], [[1, 2], [3, 4]])])["mean"]
    assert without["FWT (SAPT)"] is None and without["BWT (SAPT)"] == 1
    assert "| AP | F.Ra | FWT (SAPT) | BWT (SAPT) |" in matrix.markdown([Matrix(["a"], [[1]])])


def single(folder, task, value, metric="em"):
    folder.mkdir(parents=True)
    (folder / "matrix.json").write_text(json.dumps(matrix.summary([Matrix([task], [[value]], metrics=[metric])])))
    return folder


def test_scores_of_models_that_learned_one_task_are_read_from_their_results(tmp_path):
    a, b = single(tmp_path / "a", "ag", 70.5), single(tmp_path / "b", "sst", 80)
    assert read_single_tasks([b, a], ["ag", "sst", "srl"], ["em", "em", "nf1"]) == [70.5, 80, None]
    # Several of one task are its seeds.
    assert read_single_tasks([b, a, a], ["ag", "sst", "srl"], ["em", "em", "nf1"]) == [70.5, 80, None]
    assert read_single_tasks([], ["ag"], ["em"]) is None
    other, score = single(tmp_path / "c", "yelp", 1), single(tmp_path / "d", "srl", 1)
    for folder, words in ((other, "it is of yelp by em"), (score, "it is of srl by em"), (tmp_path, "no matrix.json")):
        with pytest.raises(UserError, match=words):
            read_single_tasks([folder], ["ag", "sst", "srl"], ["em", "em", "nf1"])


def test_an_order_is_learned_and_evaluated_from_the_converted_files(tmp_path):
    labels = ["World", "Sports"]
    rows = [(f"Text: {i} of {i % 3}", labels[i % 2]) for i in range(8)]
    for place in ("TC/dbpedia", "SC/amazon", "TC/yahoo", "TC/agnews"):
        classified(tmp_path / "in", place, labels, rows, rows[:2])
    run(tmp_path, "squad-classification", "--folder", tmp_path / "in")
    common = ["--tasks", "standard-order1", "--seq_train_type", "finetune", "--model_name", "tiny-gpt2",
              "--model_dir_root", str(tmp_path / "models"), "--adapter_bottleneck", "4", "--fp32"]  # fmt: skip
    train_lifelong.main([*common, "--data_dir", str(tmp_path / "out"), "--n_train_epochs", "1", "--limit", "4"])
    folder = tmp_path / "models" / "tiny-gpt2_adapter_4" / "finetune" / "standard-order1_seed_42"
    known = single(tmp_path / "known", "cl.yahoo", 50)
    evaluate_lifelong.main([*common, "--single_task", str(known)])
    found = json.loads((folder / "matrix.json").read_text())
    assert found["tasks"] == list(ORDERS["standard-order1"]) and found["mean"]["AP"] is not None
    assert found["runs"][0]["alone"] == [None, None, 50, None] and found["mean"]["FWT (SAPT)"] is None
    assert "1/T · Σ_j (R[j][j] − s[j])" in (folder / "matrix.md").read_text()
