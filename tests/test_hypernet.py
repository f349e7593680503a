"""Adapters, generated or not: the published code's outputs, its initialisation, and batches that mix them.

    python -m pytest tests/test_hypernet.py
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration
from versatile.adapters import t5
from versatile.adapters.imports.hyperformer import original_parameters
from versatile.adapters.methods import hypernetworks as hypernet
from versatile.adapters.methods.bottleneck import ACTIVATIONS, BottleneckAdapter
from versatile.adapters.methods.sublayers import SITES, SublayerAdapter, SublayerAdapters
from versatile.adapters.routing import GroupedProduct, TaskRouter

GOLDEN = Path(__file__).parent / "golden" / "hyperformer"
MODULES = json.loads((GOLDEN / "modules.json").read_text())
SWISH = ACTIVATIONS["swish"]
CONTROLLERS = sorted(p.stem for p in GOLDEN.glob("adapter_controller_pre*"))
METAS = sorted(p.stem for p in GOLDEN.glob("meta_adapter_*"))
LAYERS = sorted(p.stem for p in GOLDEN.glob("layers_*"))


def golden(name, parameters):
    """The tensors of a case, its parameters copied into {name: parameter}; names must be exactly the published ones."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    published = {key.removeprefix("param/"): t for key, t in tensors.items() if key.startswith("param/")}
    own = dict(parameters)
    assert set(own) == set(published)
    with torch.no_grad():
        for key, p in own.items():
            assert p.shape == published[key].shape
            p.copy_(published[key])
    return tensors


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def model_of(method, tasks, width=12, layers=2, **settings):
    """A tiny T5 with a method in it."""
    config = T5Config(vocab_size=20, d_model=width, d_kv=4, d_ff=8, num_layers=layers, num_heads=2, pad_token_id=0,
                      decoder_start_token_id=0)  # fmt: skip
    return t5.attach(T5ForConditionalGeneration(config), tasks, t5.T5Settings(method=method, **settings))


def adapted(model, site, hidden):
    """Hidden states after the encoder's adapters at a site, for the batch routed last."""
    method = next(iter(model.added.values()))
    where = (site // 2, SITES[site % 2]) if isinstance(method, SublayerAdapters) else (0, site)
    return method.after_module(*where, None, (), hidden)


def added(hidden, weights, activation):
    """The output that one generated adapter adds."""
    return hypernet.adapter_output(hidden, weights, GroupedProduct(activation), TaskRouter())


# ---- the published code's numbers


def controller(case, tasks, **settings):
    """(a T5 whose first site has the adapters of a case, the case's tensors)."""
    model = model_of("adapters", tasks, width=24, layers=1, reduction_factor=4, **settings)
    site = "encoder.block.0.layer.0.adapter_controller."
    own = {name.removeprefix(site): p for name, p in original_parameters(model).items() if name.startswith(site)}
    return model, golden(case, own)


@pytest.mark.parametrize("case", CONTROLLERS)
@torch.no_grad()
def test_a_task_s_own_adapter_gives_the_published_output(case):
    said = MODULES[case]
    model, tensors = controller(case, said["tasks"], non_linearity=said["non_linearity"],
                                add_layer_norm_before_adapter=said["pre"],
                                add_layer_norm_after_adapter=said["post"])  # fmt: skip
    for number, task in enumerate(said["tasks"]):
        model.router.route(torch.full((len(tensors["x"]),), number), len(tensors["x"]))
        close(adapted(model, 0, tensors["x"]), tensors[f"out_{task}"])
    # The adapter without norms and residual.
    alone = model.added["adapters"].blocks[0]["cola"]["attention"]
    close(alone(tensors["x"]) - tensors["x"], tensors["adapter_only_cola"])


@torch.no_grad()
def test_shared_adapters_give_the_published_output():
    owner = MODULES["adapter_controller_shared"]["task_to_adapter"]
    model, tensors = controller("adapter_controller_shared", list(owner), adapters=list(owner.values()))
    for number, task in enumerate(owner):
        model.router.route(torch.full((len(tensors["x"]),), number), len(tensors["x"]))
        close(adapted(model, 0, tensors["x"]), tensors[f"out_{task}"])


@pytest.mark.parametrize("case", METAS)
@torch.no_grad()
def test_a_hypernetwork_of_one_place_gives_the_published_output(case):
    said = MODULES[case]
    size = said["projected_task_embedding_dim" if said["train_task_embeddings"] else "task_embedding_dim"]
    module = hypernet.MetaController(size, 24, 6, said["conditional_layer_norm"], said["pre"], said["post"])
    tensors = golden(case, module.named_parameters())
    weights = module(tensors["task_embedding"][None])
    for name in ("down", "up"):
        close(getattr(weights, name), tensors[f"{name}_weight"])
        close(getattr(weights, f"{name}_bias"), tensors[f"{name}_bias"])
    close(tensors["x"] + added(tensors["x"], weights, SWISH), tensors["out"])


@torch.no_grad()
def test_task_embeddings_give_the_published_vectors():
    module = hypernet.TaskVectors(["cola", "mrpc", "sst2"], 10, projected=(9, 7))
    tensors = golden("task_embedding_controller_proj", module.named_parameters())
    for task in ("cola", "mrpc", "sst2"):
        close(module([task])[0], tensors[f"out_{task}"])
    owner = MODULES["task_embedding_controller_shared"]["task_to_embeddings"]
    module = hypernet.TaskVectors(list(owner.values()), 10)
    tensors = golden("task_embedding_controller_shared", module.named_parameters())
    for task, name in owner.items():
        close(module([name])[0], tensors[f"out_{task}"])


def layers_net(case):
    said, one = MODULES[case], "one_hypernet" in case
    sizes = [said[name] for name in ("num_layers", "task_embedding_dim", "hidden", "projected")]
    return hypernet.LayersHyperNet(*sizes, 24, 6, one, said["unique_hyper_net_layer_norm"], said["pre"], said["post"])


@pytest.mark.parametrize("case", LAYERS)
@torch.no_grad()
def test_a_stack_s_hypernetwork_gives_the_published_weights_and_outputs(case):
    module = layers_net(case)
    tensors = golden(case, module.named_parameters())
    e = module.embeddings(tensors["task_embedding"][None])[0]
    sites = module(tensors["task_embedding"][None])
    assert len(sites) == 2 * module.layers
    for layer in range(module.layers):
        # Block type 0, feed-forward, is the one on file.
        close(e[layer, 0] if module.single_generator else e[layer], tensors[f"layer{layer}/embedding"])
        for at, site, short in ((2 * layer, "self_attention", "sa"), (2 * layer + 1, "feed_forward", "ff")):
            weights, prefix = sites[at], f"layer{layer}/{site}."
            found = {"down.weight": weights.down, "down.bias": weights.down_bias, "up.weight": weights.up,
                     "up.bias": weights.up_bias}  # fmt: skip
            for name, norm in (("pre", weights.pre), ("post", weights.post)):
                found |= dict(zip((f"{name}_norm.weight", f"{name}_norm.bias"), norm or ()))
            assert {prefix + name for name in found} == {key for key in tensors if key.startswith(prefix)}
            for name, value in found.items():
                close(value, tensors[prefix + name])
            x = tensors["x"]
            close(x + added(x, weights, SWISH), tensors[f"layer{layer}/{short}_adapter_out"])


# ---- the published start


def test_parameters_start_as_published():
    torch.manual_seed(0)
    said = MODULES["adapter_default_init"]
    adapter = SublayerAdapter(512, 32, "swish", False, False)
    for linear, std in ((adapter.down, said["down_std"]), (adapter.up, said["up_std"])):
        assert linear.weight.std().item() == pytest.approx(std, rel=0.03)
        assert linear.bias.abs().max().item() == said["bias_abs_max"]
    for one in (True, False):
        net = hypernet.LayersHyperNet(64, 64, 128, 64, 128, 8, one)
        for module in net.modules():
            if isinstance(module, torch.nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.01, rel=0.05)
                assert not module.bias.any()
        assert net.layer_id_embeddings.weight.std().item() == pytest.approx(1, rel=0.05)
    task = hypernet.TaskVectors(["cola"], 4096).task_to_embeddings["cola"]
    assert (task.mean().item(), task.std().item()) == (pytest.approx(0, abs=0.05), pytest.approx(1, rel=0.05))


def test_generated_norms_start_near_zero_not_one():
    torch.manual_seed(0)
    net = hypernet.LayersHyperNet(2, 64, 128, 64, 128, 8, single_generator=True)
    gain, bias = net(torch.randn(1, 64))[0].post
    assert gain.abs().max() < 0.5 and bias.abs().max() < 0.5


# ---- batches that mix adapters


def shaken(model, std=1.0):
    """A model whose adapters are large enough to matter."""
    torch.manual_seed(2)
    with torch.no_grad():
        for p in model.added.parameters():
            p.normal_(std=std)
    return model


@settings(max_examples=40, deadline=None)
@given(
    tasks=st.lists(st.integers(-1, 3), min_size=1, max_size=9),
    length=st.integers(1, 4),
    norms=st.tuples(st.booleans(), st.booleans()),
    grad=st.booleans(),
)
def test_each_row_goes_through_its_own_task_s_adapter(tasks, length, norms, grad):
    # Tasks 1 and 3 share an adapter.
    model = shaken(model_of("adapters", list("wxyz"), adapters=["a", "b", "c", "b"], layers=1, reduction_factor=2,
                            add_layer_norm_before_adapter=norms[0], add_layer_norm_after_adapter=norms[1]))  # fmt: skip
    hidden, method = torch.randn(len(tasks), length, 12), model.added["adapters"]
    with torch.set_grad_enabled(grad):
        model.router.route(torch.tensor(tasks), len(tasks))
        for site, port in enumerate(SITES):
            found, shared = adapted(model, site, hidden), method.norms[0][port]
            for row, task in enumerate(tasks):
                x = hidden[row : row + 1]
                if task == -1:
                    assert torch.equal(found[row : row + 1], x)
                    continue
                adapter = method.blocks[0]["abcb"[task]][port]
                extra = adapter.delta(shared["pre_layer_norm"](x) if norms[0] else x)
                extra = shared["post_layer_norm"](extra) if norms[1] else extra
                torch.testing.assert_close(found[row : row + 1], x + extra, atol=1e-4, rtol=1e-4)


def model_that_generates(kind, tasks=3):
    """A T5 whose adapters are generated, with parameters large enough to matter."""
    more = {} if kind == "meta" else dict(add_layer_norm_before_adapter=True)
    return shaken(model_of(
        kind, [f"t{i}" for i in range(tasks)], reduction_factor=3, non_linearity="gelu_new", task_embedding_dim=6,
        train_task_embeddings=True, task_hidden_dim=4, projected_task_embedding_dim=5, **more,
    ), 0.5)  # fmt: skip


KINDS = ["hyperformer", "hyperformer++", "meta"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 5])
def test_generated_adapters_of_a_mixed_batch_are_those_of_single_tasks(kind, length):
    model, hidden = model_that_generates(kind), torch.randn(5, length, 12)
    ids = torch.tensor([2, 0, -1, 2, 1])
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for site in range(4):
                model.router.route(ids, 5)
                found = adapted(model, site, hidden)
                for row, task in enumerate(ids):
                    model.router.route(task[None], 1)
                    alone = adapted(model, site, hidden[row : row + 1])
                    torch.testing.assert_close(found[row : row + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_s_gradient_is_the_sum_of_single_tasks(kind):
    model, hidden = model_that_generates(kind), torch.randn(4, 5, 12)
    ids = torch.tensor([2, 0, 2, 1])
    method = next(iter(model.added.values()))
    parameters = [*method.embeddings.parameters(), *method.hypernets[0].parameters()]
    model.router.route(ids, 4)
    mixed = torch.autograd.grad(sum(adapted(model, site, hidden).pow(2).sum() for site in range(4)), parameters)
    total = 0
    for row, task in enumerate(ids):
        model.router.route(task[None], 1)
        total = total + sum(adapted(model, site, hidden[row : row + 1]).pow(2).sum() for site in range(4))
    alone = torch.autograd.grad(total, parameters)
    for a, b in zip(mixed, alone):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("one", [True, False])
def test_all_layers_are_generated_by_one_product_each_and_as_one_by_one(one):
    net = hypernet.LayersHyperNet(3, 6, 7, 5, 12, 4, one, pre=True)
    calls = []
    for module in net.modules():
        if isinstance(module, hypernet.SamplerHyperNet | hypernet.NormHyperNet):
            module.register_forward_hook(lambda module, args, out: calls.append(module))
    vectors = torch.randn(2, 6)
    sites = net(vectors)
    # Down, up, norm before, norm after; two of each where feed-forward and self-attention have their own.
    assert len(calls) == len(set(calls)) == (4 if one else 8)
    for layer in range(3):
        for at, block in ((2 * layer, hypernet.SELF_ATTENTION), (2 * layer + 1, hypernet.FEED_FORWARD)):
            single = net.at(vectors, layer, block)
            for name in ("down", "down_bias", "up", "up_bias"):
                torch.testing.assert_close(getattr(sites[at], name), getattr(single, name))
            for name in ("pre", "post"):
                for a, b in zip(getattr(sites[at], name), getattr(single, name)):
                    torch.testing.assert_close(a, b)


# ---- made once, and anew when anything has changed


def weights(model, ids):
    """The adapters ready for a batch."""
    model.router.route(ids, len(ids))
    return next(iter(model.router.kept.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_kept_while_decoding_until_something_changes(kind):
    model = model_that_generates(kind)
    method, ids, other = next(iter(model.added.values())), torch.tensor([0, 1]), torch.tensor([0, 2])
    with torch.no_grad():
        first = weights(model, ids)
        assert weights(model, ids) is first and weights(model, ids.clone()) is first
        assert weights(model, other) is not first
        first = weights(model, ids)
        with torch.autocast("cpu", torch.bfloat16):
            assert weights(model, ids) is not first
        first = weights(model, ids)
        for p in method.parameters():
            p.add_(0.5)
            changed = weights(model, ids)
            assert changed is not first
            first = changed
        # Changes through .data leave torch's version as it was; the next input reveals them.
        next(method.parameters()).data.mul_(2)
        model.get_encoder()(torch.tensor([[2], [3]]), task_ids=ids)
        assert weights(model, ids) is not first
        first = weights(model, ids)
        ids[1] = 2
        assert weights(model, ids) is not first
    assert weights(model, ids) is not weights(model, ids)
    assert all(site.down.requires_grad for stack in weights(model, ids) for site in stack)


def test_under_autocast_products_are_generated_in_full_precision_and_cast_once():
    model, hidden = model_that_generates("hyperformer++"), torch.randn(1, 3, 12)
    ids = torch.tensor([0])
    whole = weights(model, ids)[0][1]
    with torch.autocast("cpu", torch.bfloat16):
        half = weights(model, ids)[0][1]
        assert half.down.dtype == torch.bfloat16 and half.post[0].dtype == torch.float32
        assert torch.equal(half.down, whole.down.bfloat16())
        expected = hidden + added(hidden, whole, ACTIVATIONS["gelu_new"])
        torch.testing.assert_close(adapted(model, 1, hidden), expected, atol=0.1, rtol=0.1)


def test_unknown_task_ids_are_refused():
    router = TaskRouter()
    router.tasks = ["a", "b"]
    for ids, count, words in ((torch.tensor([2]), 1, r"\[2\] name no task"), (torch.tensor([0]), 2, "1 entries"),
                              (None, 1, "task_ids is needed")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            router.route(ids, count)


def test_the_vlm_s_adapter_is_the_same_module_with_its_own_norm():
    adapter = BottleneckAdapter(8, 3)
    assert list(adapter.state_dict()) == [f"{m}.{k}" for m in ("norm", "down", "up") for k in ("weight", "bias")]
    x = torch.randn(2, 8)
    expected = x + adapter.up(torch.relu(adapter.down(adapter.norm(x))))
    assert torch.equal(adapter(x), expected)
    bare = BottleneckAdapter(8, 3, norm=False, activation="gelu_new")
    assert torch.equal(bare(x), x + bare.up(torch.nn.functional.gelu(bare.down(x), approximate="tanh")))
