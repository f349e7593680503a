"""training/continuous_batching.py: rows that join and leave get the tokens of `generate`, and of one row alone."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import quick
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel
from versatile.adapters import preallocated_cache
from versatile.adapters.attach import attach, trainable
from versatile.adapters.backbones import loading
from versatile.adapters.methods import pointer
from versatile.data.task import get_task
from versatile.training import continuous_batching
from versatile.training.continuous_batching import RowBatch
from versatile.training.decoding import Decoding, Prompt, decode
from versatile.training.prompt_batches import argmax

LONGEST = 10
METHODS = ["bottleneck", "lora", "ia3", "prefix", "prompt", "hyperformer"]


def lively(model, tokenizer, methods, noise=0.3):
    """An attached model that answers every prompt differently, and its tokenizer."""
    torch.manual_seed(0)
    attach(model, tokenizer, {task: get_task(task).markers for task in methods}, methods)
    for p in trainable(model).values():
        p.data.add_(noise * torch.randn_like(p))
    # A tied head repeats the last token unless the blocks outweigh the embeddings, which are large in a T5.
    backbone_noise = 1.0 if model.config.is_encoder_decoder else 0.2
    for name, p in model.named_parameters():
        if p.ndim > 1 and not name.startswith("added"):
            p.data.add_(backbone_noise * torch.randn_like(p))
    return model.eval(), tokenizer


def small(kind):
    """A random model of another family, with the tokenizer of tiny-gpt2."""
    tokenizer = loading.load_backbone("tiny-gpt2")[1]
    torch.manual_seed(1)
    sizes = dict(vocab_size=len(tokenizer), initializer_range=0.1)
    if kind == "openai-gpt":
        return OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_positions=24, n_embd=32, n_layer=2, n_head=4, **sizes)), tokenizer
    config = GPTNeoXConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                           max_position_embeddings=64, **sizes)  # fmt: skip
    return GPTNeoXForCausalLM(config), tokenizer


def make_prompts(tokenizer, end, tasks=3, count=40):
    """Prompts of 2 to 14 tokens, of all tasks in random order."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(2, 15, (count,), generator=generator).tolist()
    rows = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in lengths]
    return [Prompt(ids, ids[::-1], i % tasks, end) for i, ids in enumerate(rows)]


def check(model, tokenizer, monkeypatch, **options):
    """Compare with `generate`, with rows some of which end early."""
    # Several allocations per row.
    monkeypatch.setattr(preallocated_cache, "COLUMNS", 3)
    decoding = dict(max_length=LONGEST, **options)
    tasks = len(model.info.tasks)
    # An end that is never produced, then one that rows produce at the most different positions.
    whole = decode(model, tokenizer, make_prompts(tokenizer, tokenizer.pad_token_id, tasks), Decoding(**decoding))
    first = {(token, row.index(token)) for row in whole for token in row}
    end = Counter(token for token, _ in first).most_common(1)[0][0]
    prompts = make_prompts(tokenizer, end, tasks)
    with monkeypatch.context() as patch:
        patch.setattr(continuous_batching, "is_supported", lambda *_: False)
        expected = decode(model, tokenizer, prompts, Decoding(**decoding, batch_size=5))
    assert len(set(map(len, expected))) > 2 and len(set(map(tuple, expected))) > 3, "it would prove little"
    joined, join = [], RowBatch.join
    monkeypatch.setattr(RowBatch, "join", lambda batch, other: joined.append(len(other.rows)) or join(batch, other))
    for size, count in ((1, 8), (3, len(prompts)), (6, len(prompts)), (50, len(prompts))):
        progress, some = [], prompts[:count]
        found = decode(model, tokenizer, some, Decoding(**decoding, batch_size=size), progress=progress.append)
        assert found == expected[:count], size
        assert progress == sorted(progress) and progress[-1] == count
    assert len(joined) > 3, "no row was refilled"


@pytest.mark.parametrize("method, backbone", quick.only(
    [("bottleneck", "tiny-gpt2"), ("prompt", "tiny-t5")],
    itertools.product(METHODS, ["tiny-gpt2", "tiny-llama", "tiny-t5"])))  # fmt: skip
def test_every_method_in_mixed_batches(backbone, method, monkeypatch):
    tasks = dict.fromkeys(("nlg", "mt", "qa"), method)
    check(*lively(*loading.load_backbone(backbone), tasks, 0.1 if method == "prompt" else 0.3), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openai-gpt", "gpt-neox"])
def test_other_families(kind, monkeypatch):
    check(*lively(*small(kind), dict.fromkeys(("nlg", "mt"), "lora")), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tiny-gpt2", "tiny-t5"])
def test_tasks_of_several_methods(backbone, monkeypatch):
    methods = dict(zip(("nlg", "mt", "qa"), ("bottleneck", "prompt", "ia3")))
    check(*lively(*loading.load_backbone(backbone), methods), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tiny-gpt2", "tiny-llama"])
def test_self_copy(backbone, monkeypatch):
    model, tokenizer = lively(*loading.load_backbone(backbone), dict.fromkeys(("nlg", "mt"), "bottleneck"))
    check(pointer.add(model).eval(), tokenizer, monkeypatch)


@pytest.mark.slow
def test_a_minimum_length(monkeypatch):
    check(*lively(*loading.load_backbone("tiny-gpt2"), dict.fromkeys(("nlg", "mt"), "lora")), monkeypatch, min_length=4)


def test_a_row_that_has_ended_stays_within_the_positions(monkeypatch):
    model, tokenizer = lively(*small("openai-gpt"), {"nlg": "bottleneck"})
    prompts = [Prompt([5] * (14 - i % 3), [6] * (14 - i % 3), 0, tokenizer.pad_token_id) for i in range(9)]
    rows = decode(model, tokenizer, prompts, Decoding(max_length=LONGEST, batch_size=4))
    assert {len(row) for row in rows} == {LONGEST}


def test_what_generate_alone_can_do_goes_through_it():
    model, _ = loading.load_backbone("tiny-gpt2")
    assert continuous_batching.is_supported(model, Decoding())
    assert not continuous_batching.is_supported(model, Decoding(num_beams=2))
    assert not continuous_batching.is_supported(model, Decoding(no_sample=False))
    model.generation_config.repetition_penalty = 1.3
    assert not continuous_batching.is_supported(model, Decoding())
    assert continuous_batching.is_supported(loading.load_backbone("tiny-t5")[0], Decoding())


@pytest.mark.parametrize("method, backbone", quick.every(2, ["bottleneck", "prefix"], ["tiny-gpt2", "tiny-llama"]))
def test_beams_of_prompts_that_are_read_once(backbone, method, monkeypatch):
    from versatile.training import decoding

    model, tokenizer = lively(*loading.load_backbone(backbone), dict.fromkeys(("nlg", "mt"), method))
    prompts, options = make_prompts(tokenizer, 7, tasks=2), Decoding(max_length=6, num_beams=3, batch_size=6)
    widths = []
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    outputs = decode(model, tokenizer, prompts, options)
    handle.remove()
    # Of 18 beams only single tokens are read.
    assert {width for rows, width in widths if rows > 6} == {1} and max(width for _, width in widths) > 1
    monkeypatch.setattr(decoding, "_cache", lambda *_: {})
    assert decode(model, tokenizer, prompts, options) == outputs


@pytest.mark.parametrize("length", [1, 127, 128, 129, 400])
def test_the_argmax_is_torchs(length):
    torch.manual_seed(0)
    for scores in (torch.randn(5, length), torch.randn(50, length).round(), torch.zeros(2, length)):
        assert torch.equal(argmax(scores), scores.argmax(-1))
    lowest = torch.full((2, length), -torch.inf)
    lowest[1, -1] = 0.0
    assert argmax(lowest).tolist() == lowest.argmax(-1).tolist()


def test_a_single_query_is_attended_to_by_plain_products():
    """Equal to PyTorch's fused attention, even where heads share keys, with and without a mask."""
    from types import SimpleNamespace

    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from versatile.utils import attention

    torch.manual_seed(0)
    query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=3, training=False)
    mask = torch.ones(3, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., :3] = False
    for given in (None, mask):
        ours, _ = attention.fused(module, query, key, value, given, scaling=0.3)
        torch.testing.assert_close(ours, sdpa_attention_forward(module, query, key, value, given, scaling=0.3)[0])


def test_a_cpu_that_cannot_reorder_matrices_in_bf16_decodes_with_them_as_they_are(monkeypatch):
    from versatile.adapters import packed
    from versatile.adapters.inference import prepare_for_inference

    # As on a CPU without AVX-512: asked to reorder, oneDNN raises an error.
    supported = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: False)
    monkeypatch.setattr(packed.torch.ops, "mkldnn", supported)
    assert packed.can_reorder(torch.float32) and not packed.can_reorder(torch.bfloat16)
    model, _ = lively(*loading.load_backbone("tiny-gpt2"), dict.fromkeys(("nlg", "mt"), "lora"))
    prepare_for_inference(model, torch.device("cpu"), torch.bfloat16)
    with packed.pack_products(model, 32, 100, torch.bfloat16):
        assert not any("forward" in vars(m) or "product" in vars(m) for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backbone", ["tiny-gpt2", "tiny-llama"])
def test_frozen_matrices_are_reordered_while_decoding_and_give_the_same_scores(backbone, dtype):
    from versatile.adapters.inference import prepare_for_inference
    from versatile.adapters.packed import MIN_FORWARDS, MIN_ROWS, can_reorder, pack_products
    from versatile.utils.devices import autocast

    if not can_reorder(dtype):
        pytest.skip(f"this CPU does not reorder matrices in {dtype}")
    model, _ = lively(*loading.load_backbone(backbone), dict.fromkeys(("nlg", "mt"), "lora"))
    prepare_for_inference(model, torch.device("cpu"), dtype)
    given = dict(input_ids=torch.arange(24).view(3, 8) + 5, task_ids=torch.tensor([0, 1, 0]))
    with torch.no_grad(), autocast(torch.device("cpu"), dtype):
        plain = model(**given).logits
        with pack_products(model, MIN_ROWS, MIN_FORWARDS, dtype):
            replaced = [m for m in model.modules() if "forward" in vars(m) or "product" in vars(m)]
            packed = model(**given).logits
        again = model(**given).logits
    assert len(replaced) > 4 * model.config.num_hidden_layers
    assert not any("forward" in vars(m) or "product" in vars(m) for m in replaced)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05 * float(plain[plain.isfinite()].std())
    torch.testing.assert_close(packed, plain, rtol=tolerance, atol=tolerance)
    assert torch.equal(again, plain) and not torch.equal(packed, torch.zeros_like(plain))
    half = dtype == torch.bfloat16
    for rows, forwards, is_worth_it in ((MIN_ROWS, MIN_FORWARDS - 1, False), (1, MIN_FORWARDS, half)):
        with pack_products(model, rows, forwards, dtype):
            assert any("forward" in vars(m) for m in model.modules()) == is_worth_it
