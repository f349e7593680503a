"""Tasks on encoder-decoders: T5 with a scaled tied head, T5 v1.1 and mT5 with an untied head.

python -m pytest tests/test_encoder_decoder.py
"""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)
from versatile.adapters import attach as adapting
from versatile.adapters.attach import attach, count_parameters, halve_frozen, trainable
from versatile.adapters.backbones import bundled
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import backbone_of
from versatile.data.task import get_task
from versatile.training.decoding import Decoding, Prompt, decode
from versatile.training.objectives import cross_entropy
from versatile.training.prompt_batches import left_padded
from versatile.utils.attention import PRODUCTS
from versatile.utils.devices import prepare_for_device

BOTTLENECKS = {"nlg": 8, "mt": 12}
MARKERS = {t: get_task(t).markers for t in BOTTLENECKS}
KINDS = ["tiny-t5", "v1.1", "mt5"]


def backbone(kind):
    """A name or a directory; those with an untied head are built and saved by transformers itself."""
    folder = Path(os.environ["VERSATILE_CACHE"]) / f"headed-{kind}"
    if kind == "tiny-t5" or folder.exists():
        return kind if kind == "tiny-t5" else str(folder)
    model, tokenizer = backbones.load_backbone("tiny-t5")
    names = "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"
    shape = {name: getattr(model.config, name) for name in names} | dict(decoder_start_token_id=0)
    torch.manual_seed(3)
    if kind == "mt5":
        other = MT5ForConditionalGeneration(MT5Config(**shape))
    else:
        more = dict(n_positions=128, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        other = T5ForConditionalGeneration(T5Config(**shape, **more))
    other.lm_head = torch.nn.Linear(shape["d_model"], shape["vocab_size"], bias=False)
    other.config.tie_word_embeddings = False
    other.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def attached(name, bottlenecks=BOTTLENECKS, markers=MARKERS, seed=0, noise=0.2, **more):
    """A model in eval mode with noise on the trained weights, so that rows and tasks differ."""
    model, tokenizer = backbones.load_backbone(name)
    torch.manual_seed(seed)
    attach(model, tokenizer, markers, bottlenecks, **more)
    with torch.no_grad():
        for p in trainable(model).values():
            p += noise * torch.randn(p.shape) * (p.ndim > 1)
    return model.eval(), tokenizer


@pytest.fixture(scope="module", params=KINDS)
def held(request):
    return attached(backbone(request.param))


def rows(tokenizer, lengths=((5, 9), (3, 12), (9, 4), (2, 1)), tasks=(0, 1), seed=0):
    """A batch as `data.batching.Batches` makes it: rows of (prompt, target) tokens, padded on the right."""
    g = torch.Generator().manual_seed(seed)
    size = -(-max(p + t for p, t in lengths) // 8) * 8
    ids = torch.full((len(lengths), size), tokenizer.pad_token_id)
    types, labels, mask = ids.clone(), torch.full_like(ids, -100), torch.zeros_like(ids)
    for r, (prompt, target) in enumerate(lengths):
        n = prompt + target
        ids[r, :n] = torch.randint(3, 370, (n,), generator=g)
        types[r, :n] = torch.randint(len(tokenizer) - 6, len(tokenizer), (n,), generator=g)
        labels[r, prompt:n], mask[r, :n] = ids[r, prompt:n], 1
    positions = torch.arange(size).expand_as(ids)
    return dict(input_ids=ids, token_type_ids=types, attention_mask=mask, position_ids=positions, labels=labels,
                task_ids=torch.tensor([tasks[r % len(tasks)] for r in range(len(lengths))]))  # fmt: skip


def of(batch, chosen):
    return {k: v[chosen] for k, v in batch.items()}


def parts(batch, row):
    """(encoder ids, types, decoder ids, types, targets) of a row, by hand, without padding."""
    n, labels = int(batch["attention_mask"][row].sum()), batch["labels"][row]
    p = int((labels != -100).nonzero()[0])
    ids, types = batch["input_ids"][row, :n].tolist(), batch["token_type_ids"][row, :n].tolist()
    return ids[: p - 1] + [1], types[:p], [0, *ids[p - 1 : n - 1]], [types[p - 1], *types[p - 1 : n - 1]], ids[p:n]


def plain(model):
    """The class of transformers under an attached model's."""
    kinds = T5ForConditionalGeneration, MT5ForConditionalGeneration
    return next(kind for kind in kinds if isinstance(model, kind))


def scored_by_hand(model, batch, row):
    """Scores [targets, vocabulary] and targets of a row from transformers' own forward on embeddings made by hand."""
    ids, types, decoder_ids, decoder_types, targets = parts(batch, row)
    embed = model.get_input_embeddings()
    pairs = (ids, types), (decoder_ids, decoder_types)
    encoder, decoder = (sum(embed(torch.tensor([part])) for part in pair) for pair in pairs)
    task = batch["task_ids"][row : row + 1]
    model.router.route(task, 1)
    base = plain(model)
    scores = base.forward(model, inputs_embeds=encoder, decoder_inputs_embeds=decoder, use_cache=False).logits[0, 1:]
    if model.info.mode == "adapter":
        foreign = model._foreign_columns(task.tolist(), "cpu")
        scores[:, model.info.first :] = scores[:, model.info.first :].masked_fill(foreign, -math.inf)
    return scores, torch.tensor(targets)


# ---- tiny-t5


def test_tiny_t5_is_a_transformers_directory_that_comes_out_the_same_each_time(tmp_path, monkeypatch):
    folder = bundled.folder("tiny-t5")
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model) is T5ForConditionalGeneration and model.config.decoder_start_token_id == tokenizer.pad_token_id
    assert tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == len(tokenizer) - 1 < model.config.vocab_size
    text = "The golden palace: 2 <x> für ein Mann!"
    assert tokenizer.decode(tokenizer(text).input_ids) == text + "</s>"
    assert tokenizer("the <extra_id_0>").input_ids[-2:] == [len(tokenizer) - 1, 1]
    assert len(tokenizer("the golden palace").input_ids) == 4
    monkeypatch.setenv("VERSATILE_CACHE", str(tmp_path))
    again = bundled.folder("tiny-t5")
    assert again != folder
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_family_is_known_with_its_positions_and_its_scale():
    for kind, positions, scale in (("tiny-t5", 256, 64**-0.5), ("v1.1", 256, 1.0), ("mt5", 1024, 1.0)):
        model, _ = backbones.load_backbone(backbone(kind))
        family = backbone_of(model.config)
        assert (family.name, family.encoder_decoder) == ("T5", True)
        assert family.max_length(model.config) == positions and family.head_scale(model.config) == scale
        tied = kind == "tiny-t5"
        assert (model.lm_head.weight is model.shared.weight) == tied == model.config.tie_word_embeddings
        fresh, _ = backbones.load_backbone(backbone(kind), random_init=5)
        assert (fresh.lm_head.weight is fresh.shared.weight) == tied == fresh.config.tie_word_embeddings
        assert not torch.equal(fresh.shared.weight, model.shared.weight)


# ---- a row and its two parts


def test_a_row_is_divided_at_its_target():
    model, _ = attached("tiny-t5")
    batch = dict(
        input_ids=torch.tensor([[30, 31, 32, 33, 40, 41, 42, 0], [30, 33, 43, 44, 45, 46, 47, 48]]),
        token_type_ids=torch.tensor([[50, 51, 51, 52, 53, 54, 55, 0], [50, 52, 52, 52, 52, 52, 52, 52]]),
        labels=torch.tensor([[-100] * 4 + [40, 41, 42, -100], [-100] * 2 + [43, 44, 45, 46, 47, 48]]),
        attention_mask=torch.tensor([[1] * 7 + [0], [1] * 8]),
    )
    (ids, types, mask), (decoder_ids, decoder_types), labels = model.divide(**batch)
    assert ids.tolist() == [[30, 31, 32, 1, 0, 0, 0, 0], [30, 1, 0, 0, 0, 0, 0, 0]]
    assert [row[:n] for row, n in zip(types.tolist(), (4, 2))] == [[50, 51, 51, 52], [50, 52]]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert decoder_ids.tolist() == [[0, 33, 40, 41, 42, 0, 0, 0], [0, 33, 43, 44, 45, 46, 47, 48]]
    assert [row[:n] for row, n in zip(decoder_types.tolist(), (5, 8))] == [[52, 52, 53, 54, 55], [52] * 8]
    assert labels.tolist() == [[-100, -100, 40, 41, 42, -100, -100, -100], [-100, -100, 43, 44, 45, 46, 47, 48]]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=5), random=st.randoms())
def test_no_token_is_lost_and_widths_are_rounded(divider, lengths, random):
    model, tokenizer = divider
    batch = rows(tokenizer, lengths, seed=random.randrange(1000))
    given = {k: batch[k] for k in ("input_ids", "token_type_ids", "attention_mask", "labels")}
    (ids, types, mask), (decoder_ids, decoder_types), labels = model.divide(**given)
    assert ids.shape == types.shape == mask.shape and ids.shape[1] % 8 == decoder_ids.shape[1] % 8 == 0
    assert labels.shape == decoder_ids.shape == decoder_types.shape
    for r, (prompt, target) in enumerate(lengths):
        row, kept = batch["input_ids"][r].tolist(), mask[r].bool()
        assert ids[r][kept].tolist() == row[: prompt - 1] + [1] and not ids[r][~kept].any()
        assert types[r][kept].tolist() == batch["token_type_ids"][r, :prompt].tolist()
        assert decoder_ids[r, : target + 2].tolist() == [0, *row[prompt - 1 : prompt + target]]
        assert labels[r][labels[r] != -100].tolist() == row[prompt : prompt + target]
        assert torch.equal(labels[r, 2 : target + 2], decoder_ids[r, 2 : target + 2])


@pytest.fixture(scope="module")
def divider():
    return attached("tiny-t5", {"nlg": 0, "mt": 0})


def test_labels_or_what_is_decoded_is_needed_and_not_both(held):
    model, tokenizer = held
    batch = rows(tokenizer)
    for more in ({"labels": None}, {"decoder_input_ids": batch["input_ids"]}):
        with pytest.raises(ValueError, match="whole rows with labels, or decoder_input_ids"):
            model(**batch | more)


# ---- the arithmetic


def test_the_loss_is_that_of_transformers_own_forward_one_row_at_a_time(held):
    model, tokenizer = held
    batch = rows(tokenizer)
    with torch.no_grad():
        found = cross_entropy(model, batch, 1)
        expected = sum(F.cross_entropy(*scored_by_hand(model, batch, r), reduction="sum") for r in range(4))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(cross_entropy(model, batch), expected / 26, rtol=1e-5, atol=1e-5)
        scores = model(**batch).scores
        by_hand = torch.cat([scored_by_hand(model, batch, r)[0] for r in range(4)])
        assert scores.shape[0] == 64
        torch.testing.assert_close(scores[:26], by_hand, rtol=1e-4, atol=1e-4)


def test_full_fine_tuning_has_the_same_loss_and_trains_everything():
    for kind in KINDS:
        model, tokenizer = attached(backbone(kind), None, {"mt": MARKERS["mt"]}, noise=0.0)
        batch = rows(tokenizer, tasks=(0,))
        assert set(trainable(model)) == {n for n, _ in model.named_parameters()}
        expected = sum(F.cross_entropy(*scored_by_hand(model, batch, r), reduction="sum") for r in range(4))
        torch.testing.assert_close(cross_entropy(model, batch, 1), expected, rtol=1e-5, atol=1e-4)
        # The table has room for a few more tokens than the tokenizer knows.
        assert model.shared.weight.shape[0] == 512 and len(tokenizer) == 475


def test_a_table_without_room_grows_and_a_head_of_its_own_stays_one():
    many = {"mt": [f"<m{i}>" for i in range(60)]}
    for kind in KINDS:
        model, tokenizer = attached(backbone(kind), None, many, noise=0.0)
        bare = backbones.load_backbone(backbone(kind))[0]
        assert model.shared.weight.shape[0] == model.lm_head.weight.shape[0] == 531 == len(tokenizer)
        assert (model.lm_head.weight is model.shared.weight) == (kind == "tiny-t5")
        assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
        assert torch.equal(model.lm_head.weight[:512], bare.lm_head.weight)
        new = model.lm_head.weight[512:]
        assert new.std().item() == pytest.approx(bare.shared.weight.std().item() / 7, rel=0.1)


def test_a_mixed_batch_equals_each_row_alone_and_so_do_its_gradients(held):
    model, tokenizer = held
    batch = rows(tokenizer)
    model.zero_grad()
    cross_entropy(model, batch, 1).backward()
    together = {n: p.grad.clone() for n, p in trainable(model).items()}
    model.zero_grad()
    for r in range(4):
        alone = rows(tokenizer)
        n = int(alone["attention_mask"][r].sum())
        # Without a token of padding.
        alone = {k: v[r : r + 1] if k == "task_ids" else v[r : r + 1, :n] for k, v in alone.items()}
        cross_entropy(model, alone, 1).backward()
    for name, p in trainable(model).items():
        torch.testing.assert_close(together[name], p.grad, atol=2e-4, rtol=1e-3)
    model.zero_grad()


def test_each_adapter_runs_once_in_every_block_of_encoder_and_decoder(held):
    model, tokenizer = held
    calls = []
    blocks = backbone_of(model.config).blocks(model)
    handles = [a.down.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
               for b in model.added["bottleneck"].blocks for a in b.values()]  # fmt: skip
    model(**rows(tokenizer))
    for handle in handles:
        handle.remove()
    assert len(blocks) == 4 and calls == [2, 2] * 4


def test_a_foreign_tasks_adapters_and_rows_change_nothing(held):
    model, tokenizer = held
    batch = of(rows(tokenizer), torch.tensor([1, 3])) | {"token_type_ids": None}
    with torch.no_grad():
        before = cross_entropy(model, batch)
        foreign = [p for n, p in model.named_parameters() if ".nlg." in f"{n}."]
        for p in foreign:
            p.add_(3.0)
        after = cross_entropy(model, batch)
        for p in foreign:
            p.sub_(3.0)
    assert foreign and torch.equal(before, after)


def test_only_adapters_and_rows_are_trained_and_rows_start_at_a_share_of_the_tables_scale():
    for kind in KINDS:
        model, tokenizer = attached(backbone(kind), noise=0.0)
        assert all(n.startswith("added.") for n in trainable(model))
        assert sum("rows.tasks." in n for n in trainable(model)) == (2 if kind == "tiny-t5" else 4)
        counts, width = count_parameters(model), 64
        each = {t: 4 * (2 * width * n + 3 * width + n) for t, n in BOTTLENECKS.items()}
        assert counts["adapters"] == sum(each.values()) and not counts["backbone"]
        scale = model.shared.base.weight.std().item() / 7
        assert model.shared.rows.table().std().item() == pytest.approx(scale, rel=0.1)
        adapting.start_rows_from_words(model, tokenizer, "nlg")
        assert model.shared.rows.tasks["nlg"][3].std().item() == pytest.approx(scale, rel=1e-3)


def test_frozen_matrices_kept_in_half_give_autocasts_results_bit_for_bit():
    for kind in KINDS:
        losses = []
        for halve in (False, True):
            model, tokenizer = attached(backbone(kind))
            if halve:
                halve_frozen(model, torch.bfloat16)
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(model, rows(tokenizer))
            loss.backward()
            losses.append((loss, [p.grad for p in trainable(model).values()]))
        assert torch.equal(losses[0][0], losses[1][0])
        assert all(torch.equal(a, b) for a, b in zip(losses[0][1], losses[1][1]))


def test_settling_and_gradient_checkpointing_change_results_by_rounding_only():
    for kind in KINDS:
        grads = []
        for changed in (False, True):
            model, tokenizer = attached(backbone(kind))
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
                if hasattr(module, "dropout") and isinstance(module.dropout, float):
                    module.dropout = 0.0
            if changed:
                prepare_for_device(model, torch.device("cpu"), torch.bfloat16)
                assert model.decoder.block[1].layer[1].EncDecAttention.config._attn_implementation == PRODUCTS
                model.gradient_checkpointing()
            model.train()
            # Two forward passes before the backward pass: blocks are recomputed with the first one's task ids.
            first = cross_entropy(model, rows(tokenizer))
            (first + cross_entropy(model, rows(tokenizer, seed=1, tasks=(1, -1)))).backward()
            grads.append([p.grad for p in trainable(model).values()])
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# ---- decoding


def prompts(tokenizer, seed=0, count=7):
    g = torch.Generator().manual_seed(seed)
    ends, made = [tokenizer.convert_tokens_to_ids(f"<eos_{t}>") for t in BOTTLENECKS], []
    for i in range(count):
        n = 2 + 3 * i % 11
        ids = torch.randint(3, 370, (n,), generator=g).tolist()
        made.append(Prompt(ids, [len(tokenizer) - 1 - i % 3] * n, i % 2, ends[i % 2]))
    return made


def greedily_by_hand(model, tokenizer, prompt, length):
    """Without cache or padding, by transformers' own forward pass."""
    special = sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {prompt.eos_id})
    out = []
    while len(out) < length:
        # One label more than there is text: its value is not used.
        ids = torch.tensor([prompt.ids + out + [7]])
        types = torch.tensor([prompt.types + prompt.types[-1:] * (len(out) + 1)])
        labels = torch.where(torch.arange(ids.shape[1]) >= len(prompt.ids), ids, -100)
        batch = dict(input_ids=ids, token_type_ids=types, labels=labels, attention_mask=torch.ones_like(ids),
                     task_ids=torch.tensor([prompt.task_id]))  # fmt: skip
        with torch.no_grad():
            scores = scored_by_hand(model, batch, 0)[0][-1]
        scores[special] = -math.inf
        if not out:
            scores[prompt.eos_id] = -math.inf
        out.append(int(scores.argmax()))
        if out[-1] == prompt.eos_id:
            return out[:-1]
    return out


def test_greedy_search_in_mixed_batches_equals_search_by_hand_token_for_token(held):
    model, tokenizer = held
    asked = prompts(tokenizer)
    expected = [greedily_by_hand(model, tokenizer, p, 9) for p in asked]
    assert len(set(map(tuple, expected))) > 3, "the model says the same to everything: the test would prove little"
    for size in (1, 3, 7):
        assert decode(model, tokenizer, asked, Decoding(max_length=9, batch_size=size)) == expected


def test_beams_in_mixed_batches_equal_one_by_one_and_each_tasks_own_model(held):
    model, tokenizer = held
    asked, beams = prompts(tokenizer), dict(num_beams=3, max_length=8)
    alone = [decode(model, tokenizer, [p], Decoding(**beams))[0] for p in asked]
    assert decode(model, tokenizer, asked, Decoding(batch_size=7, **beams)) == alone
    greedy = decode(model, tokenizer, asked, Decoding(max_length=8))
    assert len(set(map(tuple, alone))) > 2 and alone != greedy
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    assert not special & {token for row in [*alone, *greedy] for token in row}


def test_teacher_forced_scores_are_those_of_decoding_step_by_step(held):
    """Training and decoding see the same: the same scores at the same positions."""
    model, tokenizer = held
    asked = prompts(tokenizer)
    batch = left_padded([(p.ids, p.types) for p in asked], tokenizer.pad_token_id)
    inputs, skip = model.decoding_inputs(batch)
    task_ids = torch.tensor([p.task_id for p in asked])
    out = model.generate(**inputs, task_ids=task_ids, max_new_tokens=6, do_sample=False, eos_token_id=None,
                         pad_token_id=0, output_logits=True, return_dict_in_generate=True)  # fmt: skip
    for row, p in enumerate(asked):
        target = out.sequences[row, skip:].tolist()
        assert len(target) == 6 and out.sequences[row, :skip].tolist() == [0, p.ids[-1]]
        ids, types = torch.tensor([p.ids + target]), torch.tensor([p.types + p.types[-1:] * 6])
        with torch.no_grad():
            along = model.scores_along(ids, types, len(p.ids), task_ids[row : row + 1])[0]
        # The start token's scores are not used; the last token's own are those of a seventh.
        assert along.shape[0] == 8
        torch.testing.assert_close(along[1:7], torch.stack([s[row] for s in out.logits]), rtol=1e-4, atol=1e-4)


def test_generate_may_be_called_as_transformers_is(held):
    model, _ = held
    ids = torch.tensor([[9, 8, 7, 1], [4, 5, 1, 0]])
    mask, more = (ids != 0).long(), dict(max_new_tokens=5, do_sample=False)
    out = model.generate(ids, attention_mask=mask, task_ids=torch.tensor([0, 1]), num_beams=2, **more)
    alone = model.generate(input_ids=ids[1:, :3], task_ids=torch.tensor([1]), num_beams=2, **more)
    assert out[1, : alone.shape[1]].tolist() == alone[0].tolist() and out[0, 0] == 0
    with pytest.raises(ValueError, match="task_ids is needed"):
        model.generate(ids, **more)
    with pytest.raises(ValueError, match="name no task"):
        model.generate(ids, task_ids=torch.tensor([0, 5]), **more)
