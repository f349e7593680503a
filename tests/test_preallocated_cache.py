"""adapters/preallocated_cache.py: the same scores and tokens as with transformers' dynamic cache, with fewer copies."""

import pytest
import quick
import torch
from test_continuous_batching import lively, make_prompts, small
from transformers import DynamicCache, EncoderDecoderCache, MistralConfig, MistralForCausalLM
from versatile.adapters import preallocated_cache
from versatile.adapters.backbones import loading
from versatile.adapters.methods import pointer
from versatile.adapters.preallocated_cache import COLUMNS, PreallocatedLayer, can_preallocate, new_cache
from versatile.training import decoding
from versatile.training.decoding import Decoding, decode
from versatile.training.prompt_batches import left_padded
from versatile.utils.attention import PRODUCTS

TASKS = ("nlg", "mt")
STEPS = 2 * COLUMNS + 3


def adapted(backbone, method="bottleneck"):
    of_backbone = small(backbone) if backbone == "gpt-neox" else loading.load_backbone(backbone)
    return lively(*of_backbone, dict.fromkeys(TASKS, method), 0.1 if method == "prompt" else 0.3)


def dynamic(model):
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache(config=model.config)


@torch.no_grad()
def step_scores(model, cache, lengths, has_mask=True):
    """The scores of every step after prompts of these lengths; a decoder-only model's rows are reordered on the way."""
    generator = torch.Generator().manual_seed(3)
    prompts = [(torch.randint(3, 300, (n,), generator=generator).tolist(), [5] * n) for n in lengths]
    inputs, before = model.decoding_inputs(left_padded(prompts, 0))
    tasks = torch.arange(len(lengths)) % len(TASKS)
    scores = [model(**inputs, past_key_values=cache, use_cache=True, task_ids=tasks).logits[:, -1]]
    in_decoder = "decoder_" * model.config.is_encoder_decoder
    mask = inputs.get(f"{in_decoder}attention_mask", torch.ones(len(lengths), before, dtype=torch.long))
    given = {}
    if in_decoder:
        source = inputs["attention_mask"]
        states = model.encode(inputs["input_ids"], inputs.get("token_type_ids"), source, tasks)
        given = dict(attention_mask=source, encoder_outputs=states)
    rows = torch.arange(len(lengths))
    for step in range(STEPS):
        if step % 7 == 3 and not in_decoder:
            order = torch.randperm(len(rows), generator=generator)
            cache.reorder_cache(order)
            rows, mask = rows[order], mask[order]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if not in_decoder:
            given["position_ids"] = mask.sum(1, keepdim=True) - 1
        given[f"{in_decoder}attention_mask"] = mask if has_mask else None
        ids = torch.randint(3, 300, (len(lengths), 1), generator=generator)
        given[f"{in_decoder}input_ids"] = ids[rows]
        scores.append(model(**given, past_key_values=cache, use_cache=True, task_ids=tasks[rows]).logits[:, -1])
    return torch.stack(scores).nan_to_num(neginf=0.0)


def check(model, lengths, has_mask):
    """Compare the preallocated cache, which the model must get, with the dynamic one."""
    cache = new_cache(model)
    ours, theirs = (step_scores(model, each, lengths, has_mask) for each in (cache, dynamic(model)))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert ours[0].std() > 0 and not torch.equal(ours[-1], ours[-2])
    own = getattr(cache, "self_attention_cache", cache)
    assert all(isinstance(layer, PreallocatedLayer) for layer in own.layers)


@pytest.mark.parametrize("lengths, has_mask", quick.only(
    [((3, 9, 5, 1), True)], [((3, 9, 5, 1), True), ((6, 6, 6), True), ((6, 6, 6), False)]))
@pytest.mark.parametrize("backbone", ["tiny-gpt2", "tiny-llama", "gpt-neox", "tiny-t5"])
def test_every_step_has_the_scores_of_the_dynamic_cache(backbone, lengths, has_mask):
    check(adapted(backbone)[0], lengths, has_mask)


@pytest.mark.parametrize("backbone", quick.only(["tiny-llama"], ["tiny-gpt2", "tiny-llama", "tiny-t5"]))
def test_attention_by_plain_products(backbone):
    """In bf16 on a CPU."""
    model, _ = adapted(backbone)
    model.set_attn_implementation(PRODUCTS)
    for lengths, has_mask in (((3, 9, 5, 1), True), ((6, 6, 6), False)):
        check(model, lengths, has_mask)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_keys_that_a_method_prepends(method):
    model, _ = adapted("tiny-llama", method)
    for lengths, has_mask in (((3, 9, 5, 1), True), ((6, 6, 6), False)):
        check(model, lengths, has_mask)


@pytest.mark.parametrize("backbone, options", quick.every(
    4, ["tiny-gpt2", "tiny-t5"], [dict(num_beams=3), dict(no_sample=False, top_p=1.0)]))
def test_generate_gives_the_same_outputs(backbone, options, monkeypatch):
    model, tokenizer = adapted(backbone)
    searches = Decoding(max_length=20, batch_size=4, **options)
    # Of these, four have one length: `generate` drops their mask.
    prompts = sorted(make_prompts(tokenizer, tokenizer.pad_token_id, len(TASKS), 12), key=lambda p: len(p.ids))
    prompts += [type(p)(p.ids[:1] * 5, p.types[:1] * 5, p.task_id, p.eos_id) for p in prompts[:4]]
    updates, update = [], PreallocatedLayer.update
    monkeypatch.setattr(PreallocatedLayer, "update",
                        lambda layer, *args, **kwargs: updates.append(layer.free) or update(layer, *args, **kwargs))
    ours = decode(model, tokenizer, prompts, searches)
    assert COLUMNS - 1 in updates and 1 in updates
    monkeypatch.setattr(decoding, "_cache", lambda *_: {})
    assert decode(model, tokenizer, prompts, searches) == ours


@pytest.mark.parametrize("options", [dict(num_beams=3), dict(no_sample=False, top_p=1.0)])
@pytest.mark.parametrize("setting", [dict(use_cache=False), dict(cache_implementation="static")])
def test_what_a_models_generation_config_says_about_caches(options, setting):
    """`generate` would pass all tokens again to a cache that has them, or refuse a second cache."""
    model, tokenizer = adapted("tiny-llama")
    prompts, searches = make_prompts(tokenizer, 7, len(TASKS), 8), Decoding(max_length=6, batch_size=4, **options)
    expected = decode(model, tokenizer, prompts, searches)
    model.generation_config.update(**setting)
    assert decode(model, tokenizer, prompts, searches) == expected


def test_most_steps_copy_nothing():
    layer, states = PreallocatedLayer(), torch.randn(2, 3, 5, 4)
    assert layer.get_seq_length() == 0 and layer.get_mask_sizes(5) == (5, 0)
    keys, _ = layer.update(states, states + 1)
    assert torch.equal(keys, states) and layer.get_mask_sizes(2) == (7, 0)
    places = set()
    for step in range(STEPS):
        width, _ = layer.get_mask_sizes(1)
        new = torch.randn(2, 3, 1, 4)
        keys, values = layer.update(new, new + 1)
        assert keys.shape == values.shape == (2, 3, width, 4) and keys.is_contiguous()
        assert layer.get_seq_length() == 6 + step and layer.free == width - 6 - step
        assert torch.equal(keys[:, :, 5 + step], new[:, :, 0]) and not keys[:, :, 6 + step :].any()
        assert torch.equal(values[:, :, :5], states + 1)
        places.add(keys.data_ptr())
    assert len(places) <= STEPS / COLUMNS + 1
    # Several tokens at once, and a cut, do without free columns.
    layer.crop(0)
    assert layer.free
    layer.crop(-2)
    assert layer.get_seq_length() == layer.keys.shape[2] == 3 + STEPS
    keys, _ = layer.update(states, states)
    assert keys.shape[2] == layer.get_seq_length() == 8 + STEPS and torch.equal(keys[:, :, -5:], states)
    layer.reset()
    assert layer.get_seq_length() == 0 and layer.free == 0


def test_models_whose_attention_needs_the_exact_width_keep_the_dynamic_cache(monkeypatch):
    model, _ = adapted("tiny-gpt2")
    assert can_preallocate(model) and can_preallocate(adapted("tiny-llama", "prefix")[0])
    # Its masks have two dimensions, and are None without padding.
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    assert not can_preallocate(model)
    monkeypatch.undo()
    assert can_preallocate(model) and not can_preallocate(pointer.add(model))
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = MistralConfig(vocab_size=50, num_key_value_heads=1, sliding_window=4, **sizes)
    window = MistralForCausalLM(config)
    assert not can_preallocate(window) and type(new_cache(window)) is DynamicCache
    assert not can_preallocate(small("openai-gpt")[0])
    assert preallocated_cache.cache_argument(window) == {}
