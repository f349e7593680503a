"""evaluate_lifelong.py: its answers, its files, several seeds, and what it refuses."""

import csv
import json

import pytest
import torch
from lifelong_data import command, openai_gpt, questions, write
from scripts import SAMPLES
from training_runs import error_of
from versatile.adapters import checkpoint
from versatile.data import question_samples as samples
from versatile.data.question_samples import QA
from versatile.data.question_tasks import TASKS
from versatile.lifelong import scoring
from versatile.lifelong.answers import Predictor, answer, log_probabilities
from versatile.utils.parser import Refuse

import evaluate_lifelong
import train_lifelong

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Directories of learnt sequences: two seeds of finetune, and multitask."""
    folder = tmp_path_factory.mktemp("runs")
    for name, mode, seed in (("one", "finetune", 1), ("two", "finetune", 2), ("together", "multitask", 1)):
        train_lifelong.main([*command(data, folder / name, mode), "--seed", str(seed)])
    openai = openai_gpt(folder / "openai-gpt")
    train_lifelong.main([*command(data, folder / "openai", "lll", model=openai), "--adapter_bottleneck", "4"])
    return folder


def evaluated(*argv):
    evaluate_lifelong.main([str(word) for word in ("--fp32", "--samples", 0, *argv)])


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_task_is_scored_after_every_task(runs, data):
    evaluated("--model_dirs", runs / "one", "--test_all", "--before")
    matrix = json.loads((runs / "one" / "matrix.json").read_text())
    assert matrix["tasks"] == ["ag", "sst"] and matrix["metrics"] == ["em", "em"] and matrix["seeds"] == [1]
    (run,) = matrix["runs"]
    assert len(run["before"]) == 2 and run["forward_transfer"] is not None
    for i, stage in enumerate(("ag", "sst")):
        found = json.loads((runs / "one" / stage / "metrics.json").read_text())
        assert list(found) == ["1", "final"]
        for j, task in enumerate(("ag", "sst")):
            rows = table(runs / "one" / stage / f"qa_{task}_final.csv")
            assert [row["y"] for row in rows] == [qa.answers[0] for qa in questions(task, 4, start=10)]
            exact = 100 * sum(row["y"] == row["pred"] for row in rows) / 4
            assert found["final"][task]["em"]["score"] == run["rows"][i][j] == exact
            assert list(rows[0]) == ["y", "pred", "logs"] and all(float(row["logs"]) < 0 for row in rows)
            assert (runs / "one" / stage / f"qa_{task}_1.csv").is_file()
    assert (runs / "one" / "matrix.png").stat().st_size > 1000
    text = (runs / "one" / "matrix.md").read_text()
    assert "| after | ag (em) | sst (em) |" in text and "R[T][j] − R[j][j]" in text


def test_models_may_answer_only_what_they_were_trained_on(runs, data, tmp_path):
    evaluated("--model_dirs", runs / "two", "--trained_only", "--output_dir", tmp_path)
    (run,) = json.loads((tmp_path / "matrix.json").read_text())["runs"]
    (first, none), last = run["rows"]
    assert first is not None and none is None and None not in last and run["forgetting"] is not None
    assert list(json.loads((tmp_path / "two" / "ag" / "metrics.json").read_text())["final"]) == ["ag"]
    evaluated("--model_dirs", runs / "together", "--trained_only", "--output_dir", tmp_path / "together")
    assert json.loads((tmp_path / "together" / "matrix.json").read_text())["runs"][0]["rows"][-1] != [None, None]


def test_a_matrix_says_what_its_runs_were_trained_with_and_what_they_cost(runs, data, tmp_path):
    evaluated("--model_dirs", runs / "one", runs / "two", "--output_dir", tmp_path)
    first, second = json.loads((tmp_path / "matrix.json").read_text())["records"]
    assert (first["seed"], second["seed"]) == (1, 2) and first["settings"] == second["settings"]
    assert first["settings"]["seq_train_type"] == "finetune" and "seed" not in first["settings"]
    reports = [json.loads((runs / "one" / task / "training_metrics.json").read_text()) for task in ("ag", "sst")]
    assert first["seconds"] == pytest.approx(sum(report["seconds"] for report in reports))
    assert first["other_seconds"] == pytest.approx(sum(report["after_task_seconds"] for report in reports))
    assert first["peak_memory_mb"] == max(report["peak_memory_mb"] for report in reports)
    weights = max(path.stat().st_size for path in (runs / "one" / "sst").glob("*.safetensors"))
    assert first["stored_bytes"] == weights
    for report in reports:
        assert report["teachers"] == []


def test_both_scripts_take_the_same_flags_as_the_originals_do(data, tmp_path):
    argv = command(data, tmp_path, "finetune", "--top_k_qa", 1, "--n_gpus", 1, "--add_task_tokens")
    at = argv.index("--output_dir")
    argv = [*argv[:at], *argv[at + 2 :]]
    for _ in range(2):
        # The second time everything is already trained.
        train_lifelong.main(argv)
    evaluate_lifelong.main(argv)
    assert list(tmp_path.glob("*/finetune/*/matrix.json"))


@pytest.mark.slow
def test_finetuning_forgets_and_replay_does_not(tmp_path):
    folder = write(tmp_path / "data", train=40, test=8)
    for mode in ("finetune", "lll"):
        train_lifelong.main([*command(folder, tmp_path / mode, mode, batch=8), "--n_train_epochs", "25", "--lr", "3e-3",
                             "--adam_epsilon", "1e-8", "--only_final", "--add_task_tokens"])  # fmt: skip
        evaluated("--model_dirs", tmp_path / mode)
        (run,) = json.loads((tmp_path / mode / "matrix.json").read_text())["runs"]
        assert run["rows"][0][0] > 90 and run["rows"][1][1] > 90
        assert run["forgetting"] > 90 if mode == "finetune" else run["forgetting"] < 20
        assert not list((tmp_path / mode).glob("*/epoch_*"))


@pytest.mark.parametrize("name", ["one", "openai"])
def test_answers_in_batches_are_those_of_plain_greedy_search(name, runs):
    answerer = Predictor.load(runs / name / "sst", CPU, torch.float32, 48)
    qas = [*questions("ag", 5), QA("", "what of the river?", ("World of Sports",)), *questions("sst", 3)]
    texts, pairs = answer(answerer, qas, batch_size=4)
    assert len({len(prompt) for prompt, _ in pairs}) > 2
    logs = log_probabilities(answerer, pairs, batch_size=4)
    model, tokenizer = checkpoint.load_checkpoint(runs / name / "sst")
    longest = max(len(ids) for ids in answerer.encoder.tokenize(["World of Sports", "positive", "negative"]))
    eos = answerer.encoder.eos
    added = [i for i in tokenizer.added_tokens_decoder if i != eos]
    for text, (prompt, ids), log in zip(texts, pairs, logs):
        plain, total = [], 0.0
        for _ in range(longest + 1):
            with torch.no_grad():
                scores = model(input_ids=torch.tensor([prompt + plain])).logits[0, -1]
            likely = scores.log_softmax(-1)
            scores[added] = float("-inf")
            # Decoded outputs are scored completely, even where decoding had to stop early.
            wanted = (ids + [eos])[len(plain)]
            if len(plain) < longest:
                assert int(scores.argmax()) == wanted
            total += float(likely[wanted])
            if wanted == eos:
                break
            plain.append(wanted)
        assert plain == ids and text == tokenizer.decode(ids).strip()
        assert log == pytest.approx(total, abs=1e-3)


def test_answers_by_chance_depend_on_their_seed(runs, data):
    found = []
    for seed in (1, 1, 2):
        evaluated("--model_dirs", runs / "two", "--data_dir", data, "--top_k_qa", 20, "--temperature_qa", 3,
                  "--qa_seed", seed)  # fmt: skip
        found.append((runs / "two" / "ag" / "qa_sst_final.csv").read_bytes())
    assert found[0] == found[1] != found[2]


def test_a_copy_of_an_epoch_is_no_epoch(tmp_path):
    from versatile.lifelong import sequence

    for name in ("epoch_2", "epoch_1", "epoch_1 (copy)", "epoch_1_old", "epoch_"):
        (tmp_path / name).mkdir()
    assert sequence.find_epochs(tmp_path) == {n: tmp_path / f"epoch_{n}" for n in (1, 2)}


def test_scripts_for_other_models_name_the_one_for_a_sequence(runs, tmp_path, capsys):
    import combine_all
    import evaluate
    import evaluate_vlm

    folder, stage = runs / "one", runs / "one" / "sst"
    for main, argv in ((evaluate.main, ["--task", "nlg", "--dataset_path", str(SAMPLES / "nlg.json"),
                                        "--model_checkpoint"]),
                       (evaluate_vlm.main, ["--model_checkpoint"]),
                       (combine_all.main, ["--output", str(tmp_path / "out"), "--checkpoints"])):  # fmt: skip
        for path, kind in ((folder, "sequence"), (stage, "model")):
            name = f"nlg={path}" if main is combine_all.main else str(path)
            with pytest.raises(SystemExit) as stopped:
                main([*argv, name])
            said = capsys.readouterr().err
            assert stopped.value.code == 2 and f"this is a {kind} of train_lifelong.py" in said, said
            assert "evaluate_lifelong.py --model_dirs" in said


def test_every_flag_of_the_training_is_taken_here():
    trained, here = (script.parser()._option_string_actions for script in (train_lifelong, evaluate_lifelong))
    refused = {"--resume", *(f for f, action in trained.items() if isinstance(action, Refuse))}
    assert set(trained) - set(here) <= refused


def test_several_seeds_give_mean_and_deviation(runs, data, tmp_path):
    evaluated("--model_dirs", runs / "one", runs / "two", "--data_dir", data, "--output_dir", tmp_path, "--limit", 2)
    found = json.loads((tmp_path / "matrix.json").read_text())
    assert found["seeds"] == [1, 2] and len(found["runs"]) == 2 and found["sd"]["average_accuracy"] is not None
    assert "±" in (tmp_path / "matrix.md").read_text() and (tmp_path / "matrix.png").is_file()
    for name, seed in (("one", 1), ("two", 2)):
        assert json.loads((tmp_path / name / "matrix.json").read_text())["seeds"] == [seed]
        assert len(table(tmp_path / name / "sst" / "qa_ag_final.csv")) == 2


def test_what_is_learnt_at_once_has_only_an_end(runs, data):
    evaluated("--model_dirs", runs / "together", "--test_training_set", "--ref1")
    (run,) = json.loads((runs / "together" / "matrix.json").read_text())["runs"]
    assert run["rows"][0] == [None, None] and None not in run["rows"][1] and run["average_accuracy"] is not None
    assert len(table(runs / "together" / "qa_ag_final.csv")) == 10


def test_true_answers_beside_the_text_are_those_of_the_questions_kept(tmp_path):
    turns = [(f"d_{i}", f"food: thai ; {i}") for i in range(4)]
    order = [2, 0, 3, 1]
    samples.save_samples(tmp_path / TASKS["woz.en"].filename("test"),
                         [QA("hello", "What is the change?", (turns[i][1],), i) for i in order])  # fmt: skip
    (tmp_path / "woz.en_answers.json").write_text(json.dumps(turns))
    part = scoring.read_splits(["woz.en"], tmp_path, "test", limit=2)["woz.en"]
    assert [qa.id for qa in part.qas] == [2, 0] and [turn for turn, _ in part.gold] == ["d_0", "d_2"]
    from versatile.data.question_scores import score

    assert score(part.task, [qa.answers[0] for qa in part.qas], part.qas, part.gold)["joint_goal_em"].value == 100


def refused(capsys, *argv):
    return error_of(capsys, lambda: evaluated(*argv))


def test_what_cannot_be_evaluated_is_one_message(runs, data, tmp_path, capsys):
    assert "no run.json here" in refused(capsys, "--model_dirs", tmp_path, "--data_dir", data)
    assert "--tasks is needed" in refused(capsys, "--data_dir", data)
    assert "--output_dir is needed" in refused(capsys, "--model_dirs", runs / "one", runs / "two")
    (tmp_path / "run.json").write_bytes((runs / "one" / "run.json").read_bytes())
    assert "ag has not been trained yet" in refused(capsys, "--model_dirs", tmp_path, "--data_dir", data)
    assert "train_lifelong.py" in refused(capsys, "--model_dirs", runs / "one" / "ag" / "epoch_1")
    assert f"one task of {runs / 'one'}" in refused(capsys, "--model_dirs", runs / "one" / "ag")
    (tmp_path / "run.json").write_text("[]")
    text = refused(capsys, "--model_dirs", tmp_path)
    assert f"--model_dirs {tmp_path}" in text and "(str)" not in text and "'" not in text
    some = write(tmp_path / "data", tasks=("ag",))
    text = refused(capsys, "--model_dirs", runs / "one", "--data_dir", some)
    assert "no sst_to_squad-test-v2.0.json" in text
    samples.save_samples(some / TASKS["sst"].filename("test"), [QA("a", "b", ("golden " * 60,))])
    text = refused(capsys, "--model_dirs", runs / "one", "--data_dir", some)
    assert "an answer has" in text and "sst_to_squad-test-v2.0.json:data[0]" in text and "--max_len" in text
    with_more = text.split("--max_len ")[-1].split()[0].strip(",")
    # The length that the message asks for is enough; one less is not.
    evaluated("--model_dirs", runs / "one", "--data_dir", some, "--max_len", with_more, "--output_dir", tmp_path / "o")
    assert "an answer has" in refused(capsys, "--model_dirs", runs / "one", "--data_dir", some, "--max_len",
                                      int(with_more) - 1)  # fmt: skip
    samples.save_samples(some / TASKS["sst"].filename("test"), [QA("a", "b", ("golden " * 6000,))])
    assert "remove the sample" in refused(capsys, "--model_dirs", runs / "one", "--data_dir", some)
    assert "at least 9" in refused(capsys, "--model_dirs", runs / "one", "--data_dir", data, "--max_len", 3)


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_output_directory_takes_everything(runs, data, tmp_path, capsys):
    evaluated("--model_dirs", runs / "one")
    before = everything(runs / "one")
    evaluated("--model_dirs", runs / "one", "--limit", 2, "--ref1", "--top_k_qa", 5, "--test_all", "--before",
              "--output_dir", tmp_path / "out")  # fmt: skip
    assert everything(runs / "one") == before
    found = json.loads((tmp_path / "out" / "matrix.json").read_text())
    assert (found["split"], found["limit"], found["ref1"], found["decoding"]["top_k"]) == ("test", 2, True, 5)
    for stage in ("_before", "ag", "sst"):
        assert (tmp_path / "out" / "one" / stage / "metrics.json").is_file()
    found = json.loads((runs / "one" / "matrix.json").read_text())
    assert (found["split"], found["limit"], found["ref1"], found["decoding"]) == ("test", None, False, "greedy")
    text = refused(capsys, "--model_dirs", runs / "one", runs / "two", "--output_dir", runs / "one")
    assert "one of the sequences themselves" in text


def test_only_seeds_may_differ_in_one_matrix(runs, data, tmp_path, capsys):
    more = ("--data_dir", data, "--output_dir", tmp_path / "out")
    assert "named twice" in refused(capsys, "--model_dirs", runs / "one", f"{runs / 'two'}/../one", *more)
    text = refused(capsys, "--model_dirs", runs / "one", runs / "together", *more)
    assert "--seq_train_type multitask" in text and "lifelong.compare" in text
    text = refused(capsys, "--model_dirs", runs / "one", "--tasks", "sst", "ag")
    assert "trained with --tasks ag sst, not --tasks sst ag" in text
    evaluated("--model_dirs", runs / "one", "--tasks", "ag", "sst", "--limit", 1, *more)


def test_examples_are_those_of_the_last_model(runs, data, tmp_path, capsys):
    evaluated("--model_dirs", runs / "one", "--samples", 1, "--output_dir", tmp_path)
    assert capsys.readouterr().out.count("\nquestion ") == 2


def test_a_finished_model_that_is_missing_or_cut_off_is_noticed(runs, data, tmp_path, capsys):
    for task in ("ag", "sst"):
        (tmp_path / task).mkdir()
        for name in ("model.safetensors", "config.json", "run.json"):
            (tmp_path / task / name).write_bytes((runs / "one" / task / name).read_bytes())
    for name in ("run.json", "sequence.json"):
        (tmp_path / name).write_bytes((runs / "one" / name).read_bytes())
    resume = ("--resume", str(tmp_path))
    for task, remedy in (("sst", "remove sst from"), ("ag", f"remove {tmp_path}")):
        path = tmp_path / task / "model.safetensors"
        whole = path.read_bytes()
        for content, said in ((whole[:-100], "not whole"), (None, "missing")):
            path.unlink() if content is None else path.write_bytes(content)
            text = refused(capsys, "--model_dirs", tmp_path)
            assert f"the weights of {task}, which is finished, are {said}" in text and remedy in text
            with pytest.raises(SystemExit) as stopped:
                train_lifelong.main(resume)
            assert stopped.value.code == 2 and capsys.readouterr().err == text
        path.write_bytes(whole)


def test_a_title_says_how_it_was_learnt():
    from argparse import Namespace

    known = dict(seq_train_type="lll", model_checkpoint="some/gpt2", adapter_bottleneck=8, own_adapters="fresh",
                 distil=True, seq_distil=False, real_sample=True, unbound=None)  # fmt: skip
    run = scoring.SequenceRun(None, Namespace(**known))
    assert run.title == "lll, gpt2, own adapters of 8, Word-KD, real samples" and run.only_end is None
    run = scoring.SequenceRun(None, Namespace(**known | dict(adapter_bottleneck=None, distil=False, unbound=3)))
    assert run.title == "lll, gpt2, real samples, unbound, 3 parts" and "3 parts" in run.only_end
