"""Every adaptation method on every kind of backbone: their common guarantees.

    python -m pytest tests/test_methods.py
"""

import copy

import pytest
import quick
import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache
from versatile.adapters import attach as adapting
from versatile.adapters import checkpoint, combine, routing
from versatile.adapters.attach import attach, trainable
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.methods import hypernetworks
from versatile.adapters.methods.registry import all_methods, method_of
from versatile.data.task import get_task
from versatile.training.objectives import cross_entropy
from versatile.utils.errors import UserError

BACKBONES = ["tiny-gpt2", "tiny-llama", "tiny-t5"]
# Two tasks of one method with different settings, if it has any; a third task of another method.
METHODS = {
    "bottleneck": (dict(adapter_bottleneck=8), dict(adapter_bottleneck=5)),
    "lora": (dict(lora_rank=4), dict(lora_rank=2, lora_alpha=8.0)),
    "adapters": (dict(reduction_factor=8), dict(reduction_factor=16)),
    "ia3": ({}, {}),
    "prefix": (dict(prefix_length=5), dict(prefix_length=3)),
    "prompt": (dict(prompt_length=5), dict(prompt_length=3)),
}
# Their tasks share parameters.
GENERATED = ("hyperformer", "hyperformer++", "hyperformer-per-layer")
SHARED = {name: (dict(reduction_factor=8, task_embedding_dim=6),) * 2 for name in GENERATED}
METHODS |= SHARED


def mixed_methods(method):
    first, second = METHODS[method]
    third = "bottleneck" if method == "lora" else "lora"
    return {"nlg": dict(method=method, **first), "mt": dict(method=method, **second), "qa": third}


def adapted(name, methods, seed=0, noise=0.3):
    """(model in eval mode, tokenizer); added parameters are away from their initial values."""
    model, tokenizer = backbones.load_backbone(name)
    torch.manual_seed(seed)
    attach(model, tokenizer, {task: get_task(task).markers for task in methods}, methods)
    for p in trainable(model).values():
        p.data.add_(noise * torch.randn_like(p))
    return model.eval(), tokenizer


@pytest.fixture(scope="module", params=quick.every(3, BACKBONES, METHODS, together=True), ids=str)
def case(request):
    name, method = request.param
    # Tokens far from all embeddings have gradients of hundreds, whose rounding hides the comparison.
    return *adapted(name, mixed_methods(method), noise=0.1 if method == "prompt" else 0.3), name, method


def batch(model, rows=8, length=12, seed=0, tasks=None):
    """Rows of several tasks in random order, padded on the right, with labels; -1 is a row without a task."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 400, (rows, length), generator=generator)
    labels = ids.clone()
    labels[:, : length // 2] = -100
    mask = torch.ones_like(ids)
    mask[1::3, -3:] = 0
    labels[mask == 0] = -100
    cycle = tasks or [*range(len(model.info.tasks)), -1]
    task_ids = torch.tensor([cycle[i % len(cycle)] for i in range(rows)])
    return dict(input_ids=ids, attention_mask=mask, labels=labels, task_ids=task_ids)


def scores(model, given, rows=slice(None)):
    return model(**{k: v[rows] for k, v in given.items()}).scores


def test_there_is_a_case_of_every_method_of_a_task_alone():
    alone = {name for name, m in all_methods().items() if m.load_class().shared is None}
    assert set(METHODS) - set(SHARED) | {"task_embeddings"} == alone
    # Those of encoders: tests/test_bert.py.
    assert set(METHODS) | {"task_embeddings", "conditional"} == set(all_methods())


@torch.no_grad()
def test_a_mixed_batch_equals_rows_one_by_one(case, monkeypatch):
    model = case[0]
    given = batch(model)
    for fused in (routing.FUSED_TOKENS, 0):
        monkeypatch.setattr(routing, "FUSED_TOKENS", fused)
        many = given["labels"][:, 1:].ne(-100).sum(1).tolist()
        together = scores(model, given)[: sum(many)].split(many)
        for row, several in enumerate(together):
            torch.testing.assert_close(scores(model, given, slice(row, row + 1))[: many[row]], several,
                                       atol=2e-4, rtol=1e-4)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name, method", quick.every(3, BACKBONES, METHODS))
def test_a_model_made_ready_to_answer_in_half_precision_has_nearly_the_same_scores(name, method):
    from versatile.adapters.inference import prepare_for_inference
    from versatile.utils.devices import autocast

    model = adapted(name, mixed_methods(method), noise=0.05)[0]
    given, device = batch(model), torch.device("cpu")
    whole = scores(model, given)
    prepare_for_inference(model, device, torch.bfloat16)
    with autocast(device, torch.bfloat16):
        half = scores(model, given)
    finite = whole.isfinite()
    assert torch.equal(half.isfinite(), finite)
    whole, half = whole[finite], half[finite].float()
    assert (half - whole).abs().mean() < 0.03 * whole.abs().mean()


@torch.no_grad()
def test_every_task_has_scores_of_its_own(case):
    model = case[0]
    given = batch(model, rows=1)
    found = [model(**given | dict(task_ids=torch.tensor([i]))).scores[:5, :400] for i in (-1, 0, 1, 2)]
    for i, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-3 for other in found[:i])


def test_a_mixed_batch_has_the_gradients_of_its_tasks(case):
    model = case[0]
    given = batch(model, tasks=[0, 1, 2])

    def gradients(rows):
        model.zero_grad()
        cross_entropy(model, {k: v[rows] for k, v in given.items()}, 1).backward()
        return {n: p.grad.clone() for n, p in trainable(model).items() if p.grad is not None}

    together, total, owners = gradients(slice(None)), {}, adapting.parameters_of_tasks(model)
    names = {id(p): name for name, p in trainable(model).items()}
    for i, task in enumerate(model.info.tasks):
        own = gradients(given["task_ids"] == i)
        others = {names[id(p)] for t, ps in owners.items() if t != task for p in ps}
        assert not any(own[name].any() for name in others & set(own))
        assert any(own[names[id(p)]].any() for p in owners[task])
        total = {name: total.get(name, 0) + own.get(name, 0) for name in total | own}
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, total[name], atol=2e-4, rtol=1e-3)


def test_blocks_that_run_again_in_the_backward_pass_meet_their_own_tasks(case):
    """Two forward passes with different tasks and sizes before the backward pass."""
    model = copy.deepcopy(case[0])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # A T5's attention stores its rate as a number.
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0

    def gradients():
        model.zero_grad()
        first, second = (
            cross_entropy(model, given, 1)
            for given in (batch(model, tasks=[0, 1]), batch(model, rows=3, seed=4, tasks=[2, -1]))
        )
        (first + second).backward()
        return {n: p.grad.clone() for n, p in trainable(model).items() if p.grad is not None}

    plain = gradients()
    model.train()
    model.gradient_checkpointing()
    again = gradients()
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_decoding_a_mixed_batch_equals_its_rows_alone(case):
    """Left padding, greedy and beams, with the cache."""
    model, tokenizer = case[:2]
    given = batch(model, rows=4, tasks=[0, 1, 2, -1])
    del given["labels"]
    given["attention_mask"] = torch.ones_like(given["attention_mask"])
    given["attention_mask"][2, :4] = 0
    given["position_ids"] = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    inputs, behind = model.decoding_inputs(given)
    for beams in (1, 3):
        settings = dict(max_new_tokens=6, do_sample=False, num_beams=beams, pad_token_id=tokenizer.pad_token_id,
                        eos_token_id=None)  # fmt: skip
        together = model.generate(**inputs, **settings)
        for row in range(4):
            alone = model.generate(**{k: v[row : row + 1] for k, v in inputs.items()}, **settings)
            assert together[row, behind:].tolist() == alone[0, behind:].tolist()


@torch.no_grad()
def test_decoding_with_a_cache_gives_the_scores_without_one(case):
    model, tokenizer = case[:2]
    ids = batch(model, rows=1)["input_ids"]
    for task in (0, 1):
        given = dict(input_ids=ids, task_ids=torch.tensor([task]))
        inputs, behind = model.decoding_inputs(given)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        settings = dict(max_new_tokens=5, do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=None)
        out = model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
        row = torch.cat([ids, out.sequences[:, behind:]], dim=1)
        along = model.scores_along(row, None, ids.shape[1], given["task_ids"])[0, -6:-1]
        torch.testing.assert_close(torch.cat(out.logits)[:, :400], along[:, :400], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_a_new_method_starts_from_the_backbone_where_its_paper_says_so():
    for name in BACKBONES:
        bare, _ = adapted(name, {"nlg": 0}, noise=0)
        for method in ("lora", "ia3"):
            model, _ = adapted(name, {"nlg": method}, noise=0)
            given = batch(model, tasks=[0])
            assert torch.equal(scores(model, given), scores(bare, given))
            assert model.added[method].is_idle("nlg")


# ---- the formulas


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_lora_and_ia3_equal_weights_with_their_update_in_them(name):
    for method in ("lora", "ia3"):
        model, _ = adapted(name, {"nlg": dict(method=method)})
        bare, _ = adapted(name, {"nlg": 0}, noise=0)
        bare.get_input_embeddings().rows.load_state_dict(model.get_input_embeddings().rows.state_dict())
        bare.get_output_embeddings().rows.load_state_dict(model.get_output_embeddings().rows.state_dict())
        backbone, changed = model.added[method].backbone, 0
        for block, held in zip(backbone.blocks(bare), model.added[method].blocks):
            for role, linear in backbone.projections(block).items():
                if role not in held["nlg"]:
                    continue
                changed += 1
                own, out_first = held["nlg"][role], isinstance(linear, torch.nn.Linear)
                if method == "lora":
                    update = own.B @ own.A * 16 / 8
                    linear.weight.add_(update if out_first else update.T)
                elif role == "down":
                    linear.weight.mul_(own[None, :] if out_first else own[:, None])
                else:
                    linear.weight.mul_(own[:, None] if out_first else own[None, :])
                    if linear.bias is not None:
                        linear.bias.mul_(own)
        assert changed
        given = batch(model, tasks=[0])
        torch.testing.assert_close(scores(model, given), scores(bare, given), atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-llama"])
def test_a_prefix_is_what_a_cache_that_begins_with_it_gives(name):
    model, _ = adapted(name, {"nlg": dict(method="prefix", prefix_length=4)})
    ids = torch.randint(3, 400, (2, 7))
    ours = model(input_ids=ids, task_ids=torch.tensor([0, 0])).logits
    cache = DynamicCache(config=model.config)
    for layer, held in enumerate(model.added["prefix"].blocks):
        keys, values = (held["nlg"][role].expand(2, -1, -1, -1) for role in ("key", "value"))
        cache.update(keys, values, layer)
    theirs = model(input_ids=ids, task_ids=torch.tensor([-1, -1]), past_key_values=cache,
                   attention_mask=torch.ones(2, 11, dtype=torch.long),
                   position_ids=torch.arange(7).expand(2, -1)).logits  # fmt: skip
    torch.testing.assert_close(ours[..., :400], theirs[..., :400], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_a_prompt_is_what_tokens_before_the_input_give(name):
    model, _ = adapted(name, {"nlg": dict(method="prompt", prompt_length=4)})
    tokens = model.added["prompt"].blocks[0]["nlg"]["tokens"].expand(2, -1, -1)
    ids, more, task, none = torch.randint(3, 400, (2, 7)), {}, torch.tensor([0, 0]), torch.tensor([-1, -1])
    both = torch.cat([tokens, model.get_input_embeddings()(ids)], dim=1)
    if name == "tiny-t5":
        more = dict(decoder_input_ids=torch.randint(3, 400, (2, 5)))
        model.router.route(none, 2)
        theirs = model.get_encoder()(inputs_embeds=both)
        theirs = model(encoder_outputs=theirs, **more, task_ids=none).logits
    else:
        # The input keeps its absolute positions; relative ones continue from the prompt's.
        places = torch.cat([torch.arange(4), torch.arange(7)]) if name == "tiny-gpt2" else torch.arange(11)
        theirs = model(inputs_embeds=both, position_ids=places.expand(2, -1), task_ids=none).logits[:, 4:]
    ours = model(input_ids=ids, **more, task_ids=task).logits
    torch.testing.assert_close(ours[..., :400], theirs[..., :400], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_chained_prompts_stand_one_behind_the_other(name):
    """[P_k, …, P_1, x], as progressive prompts."""
    lengths = dict(nlg=3, mt=2)
    model, _ = adapted(name, {task: dict(method="prompt", prompt_length=n) for task, n in lengths.items()})
    whole, _ = adapted(name, {"mt": dict(method="prompt", prompt_length=5)})
    held = model.added["prompt"].blocks[0]
    whole.added["prompt"].blocks[0]["mt"]["tokens"].copy_(torch.cat([held["mt"]["tokens"], held["nlg"]["tokens"]]))
    adapting.chain_tasks(model)
    given = batch(model, rows=2, tasks=[1])
    ours, theirs = scores(model, given), scores(whole, given | dict(task_ids=torch.tensor([0, 0])))
    torch.testing.assert_close(ours[:, :400], theirs[:, :400], atol=1e-4, rtol=1e-4)


def test_a_prompt_starts_from_embeddings_of_the_vocabulary():
    model, _ = adapted("tiny-gpt2", {"nlg": "prompt"}, noise=0)
    tokens, table = model.added["prompt"].blocks[0]["nlg"]["tokens"], model.get_input_embeddings().weight
    assert len(tokens) == 20 and all((table == row).all(1).any() for row in tokens)


def test_lora_starts_as_pefts():
    torch.manual_seed(0)
    model, _ = adapted("tiny-llama", {"nlg": dict(method="lora", lora_rank=16)}, noise=0)
    update = model.added["lora"].blocks[0]["nlg"]["q"]
    bound = 1 / update.A.shape[1] ** 0.5
    assert update.scale == 1.0 and not update.B.any() and 0.9 * bound < update.A.abs().max() <= bound
    assert set(model.added["lora"].blocks[0]["nlg"]) == {"q", "v"}


# ---- files


@torch.no_grad()
def test_a_saved_model_comes_back_bit_for_bit_and_holds_what_was_trained(case, tmp_path):
    model, tokenizer, *_ = case
    checkpoint.save_checkpoint(model, tokenizer, tmp_path)
    again, words = checkpoint.load_checkpoint(tmp_path)
    assert again.info == model.info and words.get_vocab() == tokenizer.get_vocab()
    given = batch(model)
    assert torch.equal(scores(again, given), scores(model, given))
    state = checkpoint.read_safetensors(tmp_path / checkpoint.ADAPTER_WEIGHTS)
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in trainable(model).values())
    assert set(checkpoint.owners_of_keys(model).values()) - {None} == set(model.info.tasks)
    assert adapting.are_separate(model) == (case[3] not in SHARED)


@torch.no_grad()
def test_a_combined_model_answers_as_each_alone(case, tmp_path):
    name, method = case[2:]
    methods, singles = mixed_methods(method), {}
    if method in SHARED:
        pytest.skip("refused: see below")
    for seed, (task, settings) in enumerate(methods.items()):
        singles[task] = adapted(name, {task: settings}, seed=seed)
        checkpoint.save_checkpoint(*singles[task], tmp_path / task)
    sources = [s for task in methods for s in combine.read_sources(tmp_path / task, [task])]
    combine.check_sources(sources)
    whole, _ = combine.build_combined_model(sources)
    grown, words = backbones.load_backbone(name)
    attach(grown, words, {}, {})
    for task in methods:
        checkpoint.load_onto(grown, words, tmp_path / task)
    assert whole.info.methods == grown.info.methods == {task: method_of(m) for task, m in methods.items()}
    given = batch(whole, tasks=[0])
    for task, (single, _) in singles.items():
        alone = scores(single, given)[:, :400]
        for model in (whole, grown.eval()):
            own = given | dict(task_ids=torch.full_like(given["task_ids"], model.task_id(task)))
            assert torch.equal(scores(model, own)[:, :400], alone)


@pytest.mark.parametrize("method", SHARED)
def test_a_task_is_not_taken_out_of_what_tasks_share(method, tmp_path):
    model, tokenizer = adapted("tiny-gpt2", {"nlg": method, "mt": method})
    checkpoint.save_checkpoint(model, tokenizer, tmp_path / "both")
    reason = "hypernetworks generate the adapters of all tasks"
    with pytest.raises(UserError, match=reason):
        combine.read_sources(tmp_path / "both", ["nlg"])
    other, words = adapted("tiny-gpt2", {"qa": 4})
    with pytest.raises(UserError, match=reason):
        checkpoint.load_onto(other, words, tmp_path / "both")


def test_hyperformer_generates_each_adapter_from_task_layer_and_position():
    """Equations 1 to 8, by hand, at one site. In float64: layer norms of small values magnify float32's rounding, which
    differs between processors."""
    model, _ = adapted("tiny-gpt2", {"nlg": "hyperformer++", "mt": "hyperformer++"})
    method, layer, position = model.added["hyperformer++"].double(), 1, 0
    net = method.hypernets[0]
    z = method.embeddings.task_to_embeddings["mt"]
    e = torch.cat([z, net.layer_id_embeddings.weight[layer], net.adapters_block_type.weight[position]])
    first, _, second = net.task_hypernet.task_embeding_generator
    e = F.layer_norm(second(F.relu(first(e))), (64,), net.LayerNorm.weight, net.LayerNorm.bias, 1e-6)
    (down, down_bias), (up, up_bias) = net.down_sampler_hyper_net(e), net.up_sampler_hyper_net(e)
    gain, bias = net.post_layernorm_hypernet(e)

    x = torch.randn(2, 3, 64, dtype=torch.float64)
    model.router.route(torch.tensor([1, 1]), 2)
    ours = method.after_module(0, 2 * layer + 1, None, (), x)
    inner = F.gelu(F.linear(x, down, down_bias), approximate="tanh")
    by_hand = x + F.layer_norm(F.linear(inner, up, up_bias), (64,), gain, bias, 1e-5)
    torch.testing.assert_close(ours, by_hand, atol=1e-5, rtol=1e-5)
    # A block's feed-forward and self-attention, in the ports' order, are the hypernetwork's 0 and 1.
    assert (hypernetworks.FEED_FORWARD, hypernetworks.SELF_ATTENTION) == (0, 1)


def test_a_copy_of_a_model_has_parameters_of_its_own(case):
    model = case[0]
    twin, given = copy.deepcopy(model), batch(model)
    with torch.no_grad():
        before = scores(model, given)
        assert torch.equal(scores(twin, given), before)
        for p in trainable(twin).values():
            p.add_(0.1)
        assert torch.equal(scores(model, given), before) and not torch.allclose(scores(twin, given), before)


def test_tasks_can_start_from_anothers_adapter(case):
    from versatile.adapters.methods.base import copy_adapter

    name, method = case[2:]
    if method in SHARED:
        pytest.skip("tasks have no adapters of their own")
    settings = dict(method=method, **METHODS[method][0])
    model, _ = adapted(name, {"nlg": settings, "mt": settings})
    given = batch(model, rows=2, tasks=[0])
    other = given | dict(task_ids=torch.tensor([1, 1]))
    with torch.no_grad():
        assert not torch.allclose(scores(model, given)[:, :400], scores(model, other)[:, :400], atol=1e-3)
        copy_adapter(model, "nlg", ["mt"])
        assert torch.equal(scores(model, given)[:, :400], scores(model, other)[:, :400])


def test_settings_are_known_by_name():
    assert method_of(8) == dict(method="bottleneck", adapter_bottleneck=8)
    assert method_of(0) == dict(method="task_embeddings")
    assert method_of("lora") == dict(method="lora", lora_rank=8, lora_alpha=16.0, lora_targets="q,v")
    with pytest.raises(UserError, match="unknown method 'loar'"):
        method_of("loar")
    with pytest.raises(UserError, match="'lora_rank' is not a setting of the method ia3"):
        method_of(dict(method="ia3", lora_rank=3))


def test_a_backbone_without_the_port_is_refused(tmp_path):
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=400, n_layer=1, n_head=2, n_embd=16))
    with pytest.raises(UserError, match="prefix needs access to a block's self-attention, which the family OpenAI GPT"):
        attach(model, backbones.load_backbone("tiny-gpt2")[1], {"nlg": get_task("nlg").markers}, {"nlg": "prefix"})


@pytest.mark.parametrize("name, targets, absent, present", [
    ("tiny-gpt2", "gate", "gate", "q,k,v,o,up,down"),
    ("tiny-gpt2", "v,gate,up", "gate", "q,k,v,o,up,down"),
    ("tiny-t5", "q,gate", "gate", "q,k,v,o,up,down"),
])  # fmt: skip
def test_lora_refuses_projections_that_the_backbone_lacks(name, targets, absent, present):
    model, tokenizer = backbones.load_backbone(name)
    with pytest.raises(UserError, match=f"--lora_targets {targets}: .* no projection {absent}\n.*some of {present}"):
        attach(model, tokenizer, {"nlg": get_task("nlg").markers}, {"nlg": dict(method="lora", lora_targets=targets)})


def test_a_prompt_is_at_most_as_long_as_the_table_of_positions():
    def attached(name, length):
        model, tokenizer = backbones.load_backbone(name)
        attach(model, tokenizer, {"nlg": get_task("nlg").markers}, {"nlg": dict(method="prompt", prompt_length=length)})
        ids = torch.full((1, 4), 5)
        return model(input_ids=ids, task_ids=torch.tensor([0])).logits

    # Positions of a rotary model are computed, not looked up.
    assert not attached("tiny-gpt2", 256).isnan().any() and not attached("tiny-llama", 300).isnan().any()
    with pytest.raises(UserError, match=r"--prompt_length 257: .* 256 positions"):
        attached("tiny-gpt2", 257)
    # Two prompts of 100 are read by the second task; with three the third would read 300.
    chained = adapted("tiny-gpt2", {task: dict(method="prompt", prompt_length=100) for task in ("nlg", "mt")})[0]
    adapting.chain_tasks(chained)
    longer = adapted("tiny-gpt2", {task: dict(method="prompt", prompt_length=100) for task in ("nlg", "mt", "qa")})[0]
    with pytest.raises(UserError, match=r"--prompt_length 100: .* prompts of all 3") as stopped:
        adapting.chain_tasks(longer)
    assert stopped.value.expected == "at most 85"


def test_each_row_gets_its_own_tasks_vector():
    router = routing.TaskRouter()
    router.tasks = ["a", "b"]
    router.route(torch.tensor([1, 0, 1]), 3)
    got = router.of_rows([torch.full((2,), 5.0), torch.full((2,), 7.0)])
    assert F.relu(got)[:, 0, 0].tolist() == [5.0, 7.0, 5.0] and router.present == ("b", "a")
