"""Decoding and scoring text-to-text tasks: one task's decoding does not affect the next, processes share rows."""

import dataclasses
import math

import pytest
import torch
from conftest import ROOT
from training_runs import parse_t5 as parse
from versatile.adapters import t5
from versatile.data import text_to_text
from versatile.data.encoders.text_to_text import load_split, references
from versatile.data.text_to_text_batches import Rows
from versatile.training import continuous_batching
from versatile.training.text_to_text_evaluation import Evaluation, TextSplit
from versatile.training.text_to_text_model import TextToTextModel

import train_t5

GLUE = str(ROOT / "data" / "samples" / "glue")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    backbone, tokenizer = t5.load_t5_of_name("tiny-t5")
    settings = t5.T5Settings(method="adapters", reduction_factor=8)
    attached = t5.attach(backbone, ["rte", "stsb", "mrpc"], settings)
    with torch.no_grad():
        for p in attached.parameters():
            if p.requires_grad:
                p.normal_(0, 0.3)
    return attached.eval(), tokenizer


def evaluation_of(model, splits, batch_size, decode=True, **settings):
    return Evaluation(TextToTextModel(*model, batch_size=batch_size, **settings), splits, decode)


def outputs(evaluation):
    return {name: result.predictions.texts for name, result in evaluation.results.items()}


def parts(model, names, rows=7, beams=1, **changes):
    made = {}
    for name in names:
        task = text_to_text.get_task(name)
        split = load_split(task, "validation", model[1], (24, 8), data_dir=GLUE, n_obs=rows)
        columns = split.columns
        encoded = Rows(model[0].task_id(name), columns["ids"], columns["label"], columns["target"])
        made[name] = TextSplit(task, "validation", encoded, columns["source"], task.max_new_tokens(model[1]), beams,
                               references(split))  # fmt: skip
        for field, value in changes.get(name, {}).items():
            made[name] = dataclasses.replace(made[name], **{field: value})
    return made


def test_beams_and_lengths_of_one_task_do_not_reach_the_next(model):
    alone = evaluation_of(model, parts(model, ["mrpc"]), 3)
    alone()
    both = evaluation_of(model, parts(model, ["stsb", "mrpc"], stsb=dict(beams=4, length=9)), 3)
    both()
    assert outputs(both)["mrpc"] == outputs(alone)["mrpc"]
    assert model[0].generation_config.num_beams in (None, 1)


def test_outputs_are_those_of_one_row_at_a_time_in_the_rows_order(model):
    made = parts(model, ["rte"])
    together, single = evaluation_of(model, made, 5), evaluation_of(model, made, 1)
    one, other = together(), single()
    assert outputs(together) == outputs(single)
    assert one == {k: pytest.approx(v, rel=1e-5) for k, v in other.items()}
    with torch.no_grad():
        for source, output in zip(made["rte"].sources, outputs(together)["rte"]):
            ids = model[1](source).input_ids
            ids = torch.tensor([[*ids[:23], ids[-1]] if len(ids) > 24 else ids])
            out = model[0].generate(ids, task_ids=torch.tensor([0]), max_new_tokens=made["rte"].length, do_sample=False)
            assert model[1].decode(out[0], skip_special_tokens=True).strip() == output


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_share_the_rows_find_what_one_finds(model, processes):
    """Seven rows for two or three: no row is lost, and none counts twice."""
    made = parts(model, ["rte", "stsb"])
    whole = evaluation_of(model, made, 2)
    expected = whole()
    sent = [[] for _ in range(processes)]
    for rank in range(processes):
        own = TextToTextModel(*model, batch_size=2, share=(rank, processes),
                              gather=lambda t, r=rank: sent[r].append(t) or t)  # fmt: skip
        for split in made.values():
            own.negative_log_likelihood(split.rows)
            own.generate(split.rows, split.rows.sources.lengths(), split.length, split.beams)
    gathered = iter([torch.cat(rows) for rows in zip(*sent)])
    last = evaluation_of(model, made, 2, share=(0, processes), gather=lambda t: next(gathered))
    found = last()
    assert outputs(last) == outputs(whole)
    assert found == {k: pytest.approx(v, rel=1e-5) for k, v in expected.items()}


def test_an_output_is_no_longer_than_the_longest_label(model, monkeypatch):
    made, widths = parts(model, ["rte", "stsb"]), []
    outputs = TextToTextModel.outputs

    def recorded(text_model, rows, *how):
        found = list(outputs(text_model, rows, *how))
        widths.extend((rows.task_id, len(ids)) for _, ids in found)
        return found

    monkeypatch.setattr(TextToTextModel, "outputs", recorded)
    evaluation_of(model, made, 4)()
    for name, part in made.items():
        answers = part.task.answers
        # As published: the longest label's tokens including its end, with the start token among those of an output.
        assert part.length == max(len(model[1](label).input_ids) for label in answers) - 1
        own = [width for task, width in widths if task == model[0].task_id(name)]
        assert own and max(own) <= part.length


def test_the_loss_is_per_token_and_the_model_is_left_in_training(model):
    made = parts(model, ["rte"])
    model[0].train()
    try:
        found = evaluation_of(model, made, 3, decode=False)()
        assert model[0].training
    finally:
        model[0].eval()
    assert set(found) == {"rte_eval_loss", "eval_loss"}
    with torch.no_grad():
        total = count = 0
        for i in range(len(made["rte"].rows)):
            row = made["rte"].rows[i]
            labels = torch.tensor(row["labels"].astype("int64"))[None]
            out = model[0](input_ids=torch.tensor(row["input_ids"].astype("int64"))[None], labels=labels,
                           task_ids=torch.tensor([0]))  # fmt: skip
            total, count = total + float(out.loss) * labels.numel(), count + labels.numel()
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_perfect_answer_scores_a_hundred_and_its_perplexity_is_that_of_the_loss(model):
    made = parts(model, ["rte", "mrpc"])
    evaluation = evaluation_of(model, made, 4)
    answers = iter([split.rows.texts for split in made.values()])
    evaluation.text_model.generate = lambda *_: list(next(answers))
    scores = evaluation("test")
    assert scores["test_average_metrics"] == 100 and scores["mrpc_test_invalid"] == 0
    summaries = {name: result.summary(method="adapters") for name, result in evaluation.results.items()}
    assert summaries["mrpc"]["headline"] == "f1" and summaries["mrpc"]["scores"]["f1"]["score"] == 100
    assert summaries["rte"]["scores"]["PPL"]["score"] == pytest.approx(math.exp(scores["rte_test_loss"]))


METHODS = dict(finetune_single_task="finetune", finetune="finetune", adapters="adapters", adapters_dagger="adapters",
               test="adapters") | {"hyperformer-per-layer": "meta"}  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda p: p.stem)
def test_every_config_makes_the_model_it_is_named_after(path):
    flags = ["--model_name_or_path", "tiny-t5", "--tokenizer_name", "tiny-t5", "--data_dir", GLUE, "--fp32"]
    arguments = parse([path, *flags])
    model, _ = train_t5.build_model(arguments)
    assert model.settings.method == METHODS.get(path.stem, path.stem)
    counts = t5.count_parameters(model)
    if model.settings.method == "finetune":
        assert counts["backbone"] + counts["layer_norms"] == counts["total"]
    else:
        assert counts["backbone"] == 0 and counts["layer_norms"] > 0
        assert counts["adapters" if model.settings.method == "adapters" else "hypernetworks"] > 0
    assert model.tasks == arguments.tasks


def test_with_train_adapters_blocks_off_only_the_layer_norms_are_trained():
    flags = ["--model_name_or_path", "tiny-t5", "--tokenizer_name", "tiny-t5", "--train_adapters_blocks", "false"]
    model, _ = train_t5.build_model(parse([ROOT / "configs" / "adapters.json", *flags]))
    counts = t5.count_parameters(model)
    assert counts["layer_norms"] > 0 and counts["adapters"] == counts["backbone"] == 0


@pytest.mark.parametrize("beams", [1, 4])
def test_decoding_is_asked_for_as_published(model, monkeypatch, beams):
    """Beams end by the heuristic of transformers' early_stopping=False; rte's labels leave room for their digit."""
    # Greedy search that is `generate`'s, too; test_text_to_text_decoding.py has the usual one.
    monkeypatch.setattr(continuous_batching, "is_supported", lambda *_: False)
    made, asked = parts(model, ["rte"], beams=beams), []
    generate = model[0].generate
    monkeypatch.setattr(model[0], "generate", lambda **given: asked.append(given) or generate(**given))
    evaluation_of(model, made, 4)()
    longest = max(len(model[1](label).input_ids) for label in made["rte"].task.answers)
    assert asked
    for given in asked:
        assert given["early_stopping"] is False and given["num_beams"] == beams
        assert given["max_new_tokens"] == longest - 1


@pytest.mark.parametrize("length, tokens", [(300, 299), (1, 1)])
def test_a_length_of_its_own_counts_the_start_token_too(model, length, tokens):
    task = dataclasses.replace(text_to_text.get_task("wmt16-en-ro"), max_length=length)
    assert task.max_target_length(model[1]) == length and task.max_new_tokens(model[1]) == tokens
