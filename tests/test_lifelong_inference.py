"""evaluate_lifelong.py --infer_task: scores with a question's task known and inferred, side by side."""

import json

import pytest
import quick
import torch
from lifelong_data import command, write
from versatile.data import question_samples as samples
from versatile.data.encoders.question_answer import first_token
from versatile.data.question_samples import QA
from versatile.data.question_tasks import TASKS
from versatile.lifelong.answers import Predictor
from versatile.lifelong.matrix import InferredTasks, Matrix, side_by_side, summary
from versatile.lifelong.task_inference import EmbeddingInference, PerplexityInference

import evaluate_lifelong
import train_lifelong

TEXTS = {"ag": "three ships sailed over the sea", "sst": "what a lovely film it was"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two tasks whose questions have no word in common."""
    folder = write(tmp_path_factory.mktemp("data"))
    for task, text in TEXTS.items():
        for split, count in (("train", 8), ("test", 4)):
            qas = [QA(f"{text} {text.split()[i % 4]}", f"{task}?", (text.split()[i % 2],), f"{task}-{i}")
                   for i in range(count)]  # fmt: skip
            samples.save_samples(folder / TASKS[task].filename(split), qas)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Separate adapters, trained to generate their tasks' samples."""
    out = tmp_path_factory.mktemp("run")
    argv = command(data, out, "lll", "--adapter_bottleneck", 8, "--own_adapters", "--only_final", "--real_sample")
    argv[argv.index("--n_train_epochs") + 1] = "20"
    train_lifelong.main([*argv, "--lr", "1e-2"])
    return out


def questions(task, split="test"):
    return [QA(f"{TEXTS[task]} {TEXTS[task].split()[i % 4]}", f"{task}?", ("x",), str(i)) for i in range(4)]


def test_the_task_of_the_lowest_perplexity_is_that_of_a_plain_computation(run):
    predictor = Predictor.load(run / "sst", torch.device("cpu"), torch.float32, 48)
    inference, encoder = PerplexityInference(True, False), predictor.encoder
    qas = questions("ag")
    found = {task: inference.perplexities(predictor, qas, task, 3) for task in TEXTS}
    for task, values in found.items():
        for prompt, value in zip(encoder.prompts(qas, 1), values.tolist()):
            ids = [encoder.vocabulary["__gen__"], *prompt[:-1]]
            with torch.no_grad():
                logits = predictor.model(input_ids=torch.tensor([ids]),
                                         task_ids=torch.tensor([predictor.model.task_id(task)])).logits[0]  # fmt: skip
            logs = logits.log_softmax(-1)
            expected = -sum(float(logs[i, token]) for i, token in enumerate(ids[1:])) / (len(ids) - 1)
            assert value == pytest.approx(expected, abs=1e-3)
    lowest = [min(TEXTS, key=lambda task, i=i: float(found[task][i])) for i in range(len(qas))]
    assert inference.infer(predictor, qas, list(TEXTS), 3) == lowest
    assert inference.infer(predictor, qas, ["sst"], 3) == ["sst"] * 4


@pytest.mark.parametrize("name", ["perplexity", "embedding"])
def test_both_ways_tell_tasks_apart_that_have_no_word_in_common(name, run):
    predictor = Predictor.load(run / "sst", torch.device("cpu"), torch.float32, 48)
    inference = PerplexityInference(True, False)
    if name == "embedding":
        inference = EmbeddingInference({task: questions(task) for task in TEXTS})
    for task in TEXTS:
        assert inference.infer(predictor, questions(task), list(TEXTS), 3) == [task] * 4


def test_an_embedding_is_the_mean_of_the_backbones_states_without_an_adapter(run):
    predictor = Predictor.load(run / "sst", torch.device("cpu"), torch.float32, 48)
    qas = [*questions("ag"), QA("short", "q?", ("x",), "9")]
    found = EmbeddingInference({}).embed(predictor, qas, 5)
    for ids, value in zip(predictor.encoder.prompts(qas, 1), found):
        with torch.no_grad():
            states = predictor.model(input_ids=torch.tensor([ids]), task_ids=torch.tensor([-1]),
                                     output_hidden_states=True).hidden_states[-1]  # fmt: skip
        torch.testing.assert_close(value, states[0].mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["perplexity", "embedding"])
def test_both_scores_stand_side_by_side(name, run, data, tmp_path, capsys):
    evaluate_lifelong.main(["--model_dirs", str(run), "--fp32", "--infer_task", name, "--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "matrix.json").read_text())
    inferred = found["inferred"]
    assert inferred["by"] == name and inferred["accuracy"]["mean"]["rows"][1] == [100, 100]
    # After the first task there is only one to choose from.
    assert inferred["accuracy"]["mean"]["rows"][0] == [100, 0]
    assert inferred["mean"]["rows"][1] == found["mean"]["rows"][1]
    text = (tmp_path / "matrix.md").read_text()
    for line in ("| known |", "| inferred |", "| inferred rightly, % | 100.0 | 100.0 | 100.0 |"):
        assert line in text and line in printed
    (folder,) = {path.parent for path in tmp_path.rglob("qa_ag_inferred.csv") if path.parent.name == "sst"}
    lines = (folder / "qa_ag_inferred.csv").read_text().splitlines()
    assert lines[0] == "y,pred,logs,task" and all(line.endswith(",ag") for line in lines[1:]) and len(lines) == 5
    written = json.loads((folder / "metrics.json").read_text())["task inferred"]["ag"]
    assert written["by"] == name and written["inferred_rightly"] == 100


def test_a_question_taken_for_another_task_goes_through_that_tasks_adapter(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(PerplexityInference, "infer", lambda self, predictor, qas, *rest: ["sst"] * len(qas))
    evaluate_lifelong.main(["--model_dirs", str(run), "--fp32", "--infer_task", "perplexity", "--output_dir",
                            str(tmp_path)])  # fmt: skip
    (folder,) = {path.parent for path in tmp_path.rglob("qa_ag_inferred.csv") if path.parent.name == "sst"}
    known, inferred = ([line.split(",")[:3] for line in (folder / f"qa_ag_{name}.csv").read_text().splitlines()]
                       for name in ("final", "inferred"))  # fmt: skip
    assert known != inferred
    assert (folder / "qa_sst_final.csv").read_text().splitlines()[1:] == [
        line.rpartition(",")[0] for line in (folder / "qa_sst_inferred.csv").read_text().splitlines()[1:]]  # fmt: skip


def test_several_seeds_have_a_mean_of_both():
    def matrix(known, inferred, right):
        made = Matrix(["a"], [[known]])
        made.inferred = InferredTasks("embedding", Matrix(["a"], [[inferred]]), Matrix(["a"], [[right]]))
        return made

    both = [matrix(80, 60, 50), matrix(90, 70, 100)]
    found = summary(both)
    assert found["inferred"]["mean"]["average_accuracy"] == 65 and found["mean"]["average_accuracy"] == 85
    assert "| inferred | 65.0 ± 7.1 |" in side_by_side(both)
    assert side_by_side([Matrix(["a"], [[1]])]) == ""


@pytest.mark.parametrize("name", quick.every(2, ["perplexity", "embedding"]))
def test_where_all_tasks_share_the_model_the_scores_are_the_same(name, data, tmp_path):
    train_lifelong.main(command(data, tmp_path / "run", "finetune", "--adapter_bottleneck", 2, "--only_final"))
    evaluate_lifelong.main(["--model_dirs", str(tmp_path / "run"), "--fp32", "--infer_task", name])
    found = json.loads((tmp_path / "run" / "matrix.json").read_text())
    assert found["inferred"]["mean"]["rows"] == found["mean"]["rows"]
    # Questions without a common word are distinguishable by content, but not to a model that treats them alike.
    right = found["inferred"]["accuracy"]["mean"]["rows"][1]
    assert right == ([100, 100] if name == "embedding" else [None, None])
    assert not [*(tmp_path / "run").rglob("qa_*_inferred.csv")]


def test_samples_may_begin_after_the_backbones_first_token(data, tmp_path):
    out = tmp_path / "run"
    train_lifelong.main(command(data, out, "lll", "--adapter_bottleneck", 8, "--add_task_tokens", "--lead_bos"))
    report = json.loads((out / "sst" / "generated_ag.report.json").read_text())
    evaluate_lifelong.main(["--model_dirs", str(out), "--fp32", "--infer_task", "perplexity"])
    predictor = Predictor.load(out / "sst", torch.device("cpu"), torch.float32, 48)
    (bos,), (qa,) = first_token(predictor.tokenizer), questions("ag")[:1]
    (prompt,) = predictor.encoder.prompts([qa], 1)
    assert report["settings"]["before_gen"] == [bos]
    ids = [bos, predictor.encoder.vocabulary["__ag__"], *prompt[:-1]]
    with torch.no_grad():
        logs = predictor.model(input_ids=torch.tensor([ids]), task_ids=torch.tensor([0])).logits[0].log_softmax(-1)
    expected = -sum(float(logs[i, ids[i + 1]]) for i in range(1, len(ids) - 1)) / (len(ids) - 2)
    found = PerplexityInference(True, True, True).perplexities(predictor, [qa], "ag", 1)
    assert float(found[0]) == pytest.approx(expected, abs=1e-3)


def test_before_any_training_a_run_scores_what_the_model_it_starts_from_scores(run, data, tmp_path):
    argv = command(data, tmp_path / "run", "finetune", "--adapter_bottleneck", 8, "--own_adapters", "--only_final",
                   "--add_task_tokens", "--init_from", run / "sst")  # fmt: skip
    train_lifelong.main(argv)
    scored = []
    for folder in (run, tmp_path / "run"):
        out = tmp_path / f"scores of {folder.name}"
        evaluate_lifelong.main(["--model_dirs", str(folder), "--fp32", "--before", "--output_dir", str(out)])
        scored += json.loads((out / "matrix.json").read_text())["runs"]
    earlier, later = scored
    assert later["before"] == earlier["rows"][-1] == [50, 50] and earlier["before"] == [0, 0]


@pytest.mark.parametrize("name", quick.every(2, ["perplexity", "embedding"]))
def test_a_model_of_unbound_parts_infers_its_tasks(name, data, tmp_path):
    train_lifelong.main(command(data, tmp_path / "run", "lll", "--unbound", 2, "--real_sample", "--only_final"))
    evaluate_lifelong.main(["--model_dirs", str(tmp_path / "run"), "--fp32", "--infer_task", name])
    found = json.loads((tmp_path / "run" / "matrix.json").read_text())
    # Its generation token is that of all tasks, so perplexity cannot tell them apart.
    right = {"perplexity": [None, None], "embedding": [100, 100]}[name]
    assert found["inferred"]["accuracy"]["mean"]["rows"] == [[None, None], right]
    assert found["inferred"]["mean"]["rows"] == found["mean"]["rows"] and found["mean"]["rows"][0] == [None, None]
