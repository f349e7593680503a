"""Tasks one after another in an encoder-decoder: it answers, generates samples of its tasks, supports each strategy."""

import json

import pytest
import quick
import torch
from lifelong_data import command, questions, report, write
from scripts import tensors
from training_runs import different
from versatile.adapters import checkpoint
from versatile.data.encoders.question_answer import gen_token
from versatile.lifelong import replay
from versatile.lifelong.answers import Predictor, answer, log_probabilities
from versatile.lifelong.strategies import STRATEGIES

import evaluate_lifelong
import train_lifelong

FLAGS = {"olora": ("--method", "lora"), "progprompt": ("--method", "prefix")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), train=8)


def trained(data, out, name, *more):
    argv = command(data, out, name, *FLAGS.get(name, ("--adapter_bottleneck", 2)), "--only_final", *more,
                   model="tiny-t5")  # fmt: skip
    train_lifelong.main(argv)
    return out


@pytest.fixture(scope="module")
def lamol(data, tmp_path_factory):
    """A whole model, trained until it generates usable samples."""
    out = tmp_path_factory.mktemp("lamol")
    argv = command(data, out, "lll", "--add_task_tokens", "--only_final", model="tiny-t5")
    argv[argv.index("--n_train_epochs") + 1] = "80"
    train_lifelong.main([*argv, "--lr", "5e-3", "--top_k_lm", "1"])
    return out


@pytest.mark.slow
def test_its_decoder_writes_whole_samples_from_the_tasks_token(lamol):
    found = json.loads((lamol / "sst" / "generated_ag.report.json").read_text())
    assert found["kept"] > 0 and report(lamol / "sst")["replayed"] == {"ag": found["kept"]}
    line = json.loads((lamol / "sst" / "generated_ag.jsonl").read_text().splitlines()[0])
    assert line["context"] + line["question"] and "what of ag" in line["context"] + line["question"]


@pytest.mark.slow
def test_a_sample_is_what_the_plain_model_writes_behind_the_token(lamol):
    model, tokenizer = checkpoint.load_checkpoint(lamol / "ag")
    predictor = Predictor.of(model, tokenizer, torch.device("cpu"), torch.float32, 48)
    gen, encoder = gen_token("ag", True), predictor.encoder
    (sample,) = replay.generate_samples(model, tokenizer, encoder, gen, 1, replay.Sampling(top_k=1))
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {encoder.ans, encoder.eos}
    written = [model.config.pad_token_id, tokenizer.convert_tokens_to_ids(gen)]
    for token in sample:
        scores = model(input_ids=torch.tensor([[model.config.eos_token_id]]),
                       decoder_input_ids=torch.tensor([written])).logits[0, -1]  # fmt: skip
        scores[sorted(special)] = float("-inf")
        assert int(scores.argmax()) == token
        written.append(token)


@pytest.mark.slow
def test_answers_and_their_probabilities_are_those_of_the_plain_model(lamol):
    predictor = Predictor.load(lamol / "sst", torch.device("cpu"), torch.float32, 48)
    model, eos = predictor.model, predictor.encoder.eos
    qas = questions("sst", 4, start=8)
    texts, pairs = answer(predictor, qas, batch_size=4)
    logs = log_probabilities(predictor, pairs, batch_size=4)
    for (prompt, ids), log in zip(pairs, logs):
        total, written = 0.0, [model.config.pad_token_id, prompt[-1]]
        for token in [*ids, eos]:
            scores = model(input_ids=torch.tensor([[*prompt[:-1], model.config.eos_token_id]]),
                           decoder_input_ids=torch.tensor([written])).logits[0, -1]  # fmt: skip
            total += float(scores.log_softmax(-1)[token])
            written.append(token)
        assert log == pytest.approx(total, abs=1e-3)
    assert len(texts) == 4


@pytest.mark.parametrize("name", quick.every(10, STRATEGIES))
def test_every_strategy_trains_it_and_it_is_evaluated(name, data, tmp_path):
    more = {"ewc": ("--reg_lambda", 1000), "mas": ("--reg_lambda", 1e8)}.get(name, ())
    out = trained(data, tmp_path / "run", name, "--n_train_epochs", 1, *more)
    evaluate_lifelong.main(["--model_dirs", str(out), "--fp32"])
    assert json.loads((out / "matrix.json").read_text())["mean"]["average_accuracy"] is not None
    if not STRATEGIES[name].joint:
        assert different(tensors(out / "ag"), tensors(out / "sst"))


def test_a_teachers_words_and_distributions_reach_it(data, tmp_path):
    out = trained(data, tmp_path / "run", "lll", "--distil", "--seq_distil", "--train_teachers", "--n_train_epochs", 1)
    assert report(out / "sst")["steps"] and len(list((out / "tiny-t5_adapter_2" / "teachers").iterdir())) == 2


@pytest.mark.slow
def test_mas_looks_at_the_scores_behind_the_question(lamol):
    """mean(softmax(scores of the decoder's token after __ans__)²) / B, from the plain model."""
    from versatile.lifelong.importance import MAS, Importance
    from versatile.training.prompt_batches import left_padded

    predictor = Predictor.load(lamol / "sst", torch.device("cpu"), torch.float32, 48)
    model, prompts = predictor.model, predictor.encoder.prompts(questions("sst", 3), 2)
    batch = left_padded([(ids, None) for ids in prompts], predictor.tokenizer.pad_token_id)
    values = []
    for ids in prompts:
        given = torch.tensor([[*ids[:-1], model.config.eos_token_id]])
        start = torch.tensor([[model.config.pad_token_id, ids[-1]]])
        scores = model(input_ids=given, decoder_input_ids=start).logits[0, -1]
        values.append(scores.softmax(-1).square().mean())
    found = Importance(model, MAS).objective(batch, torch.float32)
    torch.testing.assert_close(found, torch.stack(values).mean() / 3, atol=1e-7, rtol=1e-3)
