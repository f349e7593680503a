"""Greedy outputs of train_t5.py's models: rows that join and leave get the tokens of transformers' `generate`."""

from collections import Counter

import pytest
import quick
import torch
from versatile.adapters import t5
from versatile.adapters.schemas import COMBINED_T5
from versatile.data.prompt import Prompt
from versatile.training import continuous_batching
from versatile.training.continuous_batching import RowBatch
from versatile.training.decoding import Decoding
from versatile.training.text_to_text_model import TextToTextModel

TASKS, LONGEST = ["cola", "mrpc", "rte"], 10
SETTINGS = {"reduction_factor": 8, "task_embedding_dim": 8, "projected_task_embedding_dim": 6, "task_hidden_dim": 8}
# Tasks of one method each, of different sizes.
OWN = dict(cola=dict(method="prompt", prompt_length=3), mrpc=dict(method="prefix", prefix_length=4),
           rte=dict(method="lora", lora_rank=4, lora_alpha=8, lora_targets="q,v"))  # fmt: skip


def lively(method, **settings):
    """A `TextToTextModel` with random weights that answers every input differently, and as its end a token that rows
    produce at the most different positions."""
    backbone, tokenizer = t5.load_t5_of_name("tiny-t5")
    torch.manual_seed(0)
    methods = OWN if method == COMBINED_T5 else None
    model = t5.attach(backbone, TASKS, t5.T5Settings(method=method, **SETTINGS | settings), methods=methods).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            # Generated adapters are products of several matrices.
            p.add_((0.3 if name.startswith("added") else 1.0 if p.ndim > 1 else 0.1) * torch.randn_like(p))
    text_model = TextToTextModel(model, tokenizer)
    model.generation_config.eos_token_id = tokenizer.pad_token_id
    whole = by_generate(text_model, make_rows())
    first = {(token, row.index(token)) for row in whole.values() for token in row}
    model.generation_config.eos_token_id = Counter(token for token, _ in first).most_common(1)[0][0]
    return text_model


def make_rows(tasks=3, count=40):
    """Rows of 2 to 14 tokens, of all tasks in random order."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(2, 15, (count,), generator=generator).tolist()
    inputs = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in lengths]
    return [dict(input_ids=ids, labels=[1], task_id=i % tasks) for i, ids in enumerate(inputs)]


def lengths_of(rows):
    return [len(row["input_ids"]) for row in rows]


@torch.no_grad()
def by_generate(text_model, rows, batch_size=5):
    """{row number: token ids} by `generate`, up to the end."""
    text_model.batch_size, end = batch_size, text_model.model.generation_config.eos_token_id
    found = dict(text_model._outputs_of_generate(rows, lengths_of(rows), LONGEST, 1))
    return {number: ids[: ids.index(end)] if end in ids else ids for number, ids in found.items()}


def by_coming_and_going(text_model, rows, batch_size, monkeypatch):
    """The same without `generate`."""
    text_model.batch_size = batch_size
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(text_model.model, "generate", None)
        return dict(text_model.outputs(rows, lengths_of(rows), LONGEST, 1))


def check(text_model, rows, monkeypatch):
    expected = by_generate(text_model, rows)
    outputs = list(map(tuple, expected.values()))
    assert len(set(map(len, outputs))) > 2 and len(set(outputs)) > len(rows) // 3, "it would prove little"
    joined, join = [], RowBatch.join
    monkeypatch.setattr(RowBatch, "join", lambda batch, other: joined.append(len(other.rows)) or join(batch, other))
    for size in (1, 3, 6, 50):
        count = 8 if size == 1 else len(rows)
        found = by_coming_and_going(text_model, rows[:count], size, monkeypatch)
        assert found == {i: expected[i] for i in range(count)}, size
    assert len(joined) > 3, "no row was refilled"
    return expected


@pytest.mark.parametrize("method", quick.only(["hyperformer++"], [*t5.METHODS, COMBINED_T5]))
def test_every_method_of_one_task_and_of_tasks_in_one_batch(method, monkeypatch):
    text_model = lively(method)
    mixed = check(text_model, make_rows(), monkeypatch)
    alone = check(text_model, make_rows(tasks=1), monkeypatch)
    if method != "finetune":
        assert sum(mixed[i] != alone[i] for i in alone if i % len(TASKS)) > len(alone) // 4, "tasks are alike"


@pytest.mark.slow
def test_the_end_may_come_at_once_and_special_tokens_are_tokens(monkeypatch):
    text_model, rows = lively("adapters"), make_rows()
    firsts = Counter(ids[0] for ids in by_generate(text_model, rows).values() if ids)
    special, end = (token for token, _ in firsts.most_common(2))
    text_model.tokenizer.add_special_tokens(dict(pad_token=text_model.tokenizer.convert_ids_to_tokens(special)))
    text_model.model.generation_config.eos_token_id = end
    outputs = check(text_model, rows, monkeypatch)
    assert [] in outputs.values() and any(special in ids for ids in outputs.values())


@pytest.mark.slow
def test_a_model_keeps_its_own_least_length(monkeypatch):
    text_model, rows = lively("adapters"), make_rows()
    shortest = min(map(len, by_generate(text_model, rows).values()))
    text_model.model.generation_config.min_length = 5
    outputs = check(text_model, rows, monkeypatch)
    # The start token is one of the five.
    assert shortest < 4 == min(map(len, outputs.values()))


def test_a_frozen_backbone_in_bf16_gives_about_the_same(monkeypatch):
    text_model, rows = lively("adapters"), make_rows()
    text_model.dtype = torch.bfloat16
    expected, found = by_generate(text_model, rows), by_coming_and_going(text_model, rows, 6, monkeypatch)
    assert sum(found[i] == expected[i] for i in expected) > len(rows) // 2


def test_a_model_in_training_is_left_in_it_and_keeps_its_gradients(monkeypatch):
    text_model, rows = lively("hyperformer++"), make_rows()
    trained = {name for name, p in text_model.model.named_parameters() if p.requires_grad}
    expected = text_model.generate(rows, lengths_of(rows), LONGEST, 1)
    text_model.model.train()
    assert text_model.generate(rows, lengths_of(rows), LONGEST, 1) == expected and text_model.model.training
    assert trained == {name for name, p in text_model.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.model.generation_config, "repetition_penalty", 1.3),
        lambda m: setattr(m.model.generation_config, "eos_token_id", [1, 7]),
        lambda m: setattr(m.model.generation_config, "decoder_start_token_id", [0] * 8),
        lambda m: setattr(m.collate, "lengths", (16, 8)),
    ],
    ids=["penalty", "two ends", "start tokens by row", "fixed shapes"],
)
def test_what_generate_alone_can_do_goes_through_it(change):
    text_model = lively("adapters")
    assert text_model.is_continuous(Decoding()) and not text_model.is_continuous(Decoding(num_beams=2))
    change(text_model)
    assert not text_model.is_continuous(Decoding())
    asked, generate = [], text_model.model.generate
    text_model.model.generate = lambda **given: asked.append(given) or generate(**given)
    rows = make_rows(count=8)
    text_model.batch_size = 8
    assert len(text_model.generate(rows, lengths_of(rows), 3, 1)) == 8 and len(asked) == 1


def test_typed_inputs_of_several_tasks_are_decoded_in_the_same_way(monkeypatch):
    """The method that interact.py calls."""
    text_model, rows = lively("adapters"), make_rows(count=12)
    # Texts omit the end if it is the tokenizer's.
    text_model.model.generation_config.eos_token_id = text_model.tokenizer.eos_token_id
    prompts = [Prompt(row["input_ids"], None, row["task_id"], 1) for row in rows]
    found = text_model.decode(prompts, Decoding(batch_size=3))
    monkeypatch.setattr(continuous_batching, "is_supported", lambda *_: False)
    assert text_model.decode(prompts, Decoding(batch_size=4)) == found and len(set(found)) > 3
