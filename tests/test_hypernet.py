"""Adapters, generated or not: the published code's outputs, its start, and batches that mix them.

    python -m pytest tests/test_hypernet.py
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from versatile.adapters.methods import hypernetworks as hypernet
from versatile.adapters.methods.bottleneck import ACTIVATIONS, BottleneckAdapter

GOLDEN = Path(__file__).parent / "golden" / "hyperformer"
MODULES = json.loads((GOLDEN / "modules.json").read_text())
SWISH = ACTIVATIONS["swish"]
CONTROLLERS = sorted(p.stem for p in GOLDEN.glob("adapter_controller_pre*"))
METAS = sorted(p.stem for p in GOLDEN.glob("meta_adapter_*"))
LAYERS = sorted(p.stem for p in GOLDEN.glob("layers_*"))


def golden(name, module):
    """The tensors of a case, whose parameters go into a module; names must be exactly the published ones."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    published = {key.removeprefix("param/"): t for key, t in tensors.items() if key.startswith("param/")}
    own = {hypernet.original_name(n): p for n, p in module.named_parameters()}
    assert set(own) == set(published)
    with torch.no_grad():
        for key, p in own.items():
            assert p.shape == published[key].shape
            p.copy_(published[key])
    return tensors


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# ---- the published code's numbers


@pytest.mark.parametrize("case", CONTROLLERS)
@torch.no_grad()
def test_a_task_s_own_adapter_gives_the_published_output(case):
    said = MODULES[case]
    module = hypernet.AdapterController(said["tasks"], 24, 24 // 4, said["non_linearity"], said["pre"], said["post"])
    tensors, act = golden(case, module), ACTIVATIONS[said["non_linearity"]]
    for task in said["tasks"]:
        found = hypernet.added(tensors["x"], module.weights([task]), act)
        close(tensors["x"] + found, tensors[f"out_{task}"])
    # The adapter without norms and residual.
    alone = module.adapters["cola"]
    close(alone(tensors["x"]) - tensors["x"], tensors["adapter_only_cola"])


@torch.no_grad()
def test_shared_adapters_give_the_published_output():
    owner = MODULES["adapter_controller_shared"]["task_to_adapter"]
    module = hypernet.AdapterController(dict.fromkeys(owner.values()), 24, 6)
    tensors = golden("adapter_controller_shared", module)
    for task, name in owner.items():
        x = tensors["x"]
        close(x + hypernet.added(x, module.weights([name]), SWISH), tensors[f"out_{task}"])


@pytest.mark.parametrize("case", METAS)
@torch.no_grad()
def test_a_hypernetwork_of_one_place_gives_the_published_output(case):
    said = MODULES[case]
    size = said["projected_task_embedding_dim" if said["train_task_embeddings"] else "task_embedding_dim"]
    module = hypernet.MetaController(size, 24, 6, said["conditional_layer_norm"], said["pre"], said["post"])
    tensors = golden(case, module)
    weights = module(tensors["task_embedding"][None])
    for name in ("down", "up"):
        close(getattr(weights, name), tensors[f"{name}_weight"])
        close(getattr(weights, f"{name}_bias"), tensors[f"{name}_bias"])
    close(tensors["x"] + hypernet.added(tensors["x"], weights, SWISH), tensors["out"])


@torch.no_grad()
def test_task_embeddings_give_the_published_vectors():
    module = hypernet.TaskEmbeddings(["cola", "mrpc", "sst2"], 10, projected=(9, 7))
    tensors = golden("task_embedding_controller_proj", module)
    for task in ("cola", "mrpc", "sst2"):
        close(module([task])[0], tensors[f"out_{task}"])
    owner = MODULES["task_embedding_controller_shared"]["task_to_embeddings"]
    module = hypernet.TaskEmbeddings(list(owner.values()), 10)
    tensors = golden("task_embedding_controller_shared", module)
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
    tensors = golden(case, module)
    e = module.embeddings(tensors["task_embedding"][None])[0]
    sites = module(tensors["task_embedding"][None])
    assert len(sites) == 2 * module.layers
    for layer in range(module.layers):
        # Block type 0, feed-forward, is the one on file.
        close(e[layer, 0] if module.one else e[layer], tensors[f"layer{layer}/embedding"])
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
            close(x + hypernet.added(x, weights, SWISH), tensors[f"layer{layer}/{short}_adapter_out"])


# ---- the published start


def test_parameters_start_as_published():
    torch.manual_seed(0)
    said = MODULES["adapter_default_init"]
    adapter = hypernet.AdapterController(["cola"], 512, 32).adapters["cola"]
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
    task = hypernet.TaskEmbeddings(["cola"], 4096).task_to_embeddings["cola"]
    assert (task.mean().item(), task.std().item()) == (pytest.approx(0, abs=0.05), pytest.approx(1, rel=0.05))


def test_generated_norms_start_near_zero_not_one():
    torch.manual_seed(0)
    net = hypernet.LayersHyperNet(2, 64, 128, 64, 128, 8, one=True)
    gain, bias = net(torch.randn(1, 64))[0].post
    assert gain.abs().max() < 0.5 and bias.abs().max() < 0.5


# ---- batches that mix adapters


def controllers(sites, names, **more):
    torch.manual_seed(1)
    made = [hypernet.AdapterController(names, 12, 5, **more) for _ in range(sites)]
    with torch.no_grad():
        for p in (p for c in made for p in c.parameters()):
            p.normal_()
    return made


@settings(max_examples=40, deadline=None)
@given(
    tasks=st.lists(st.integers(-1, 3), min_size=1, max_size=9),
    length=st.integers(1, 4),
    norms=st.tuples(st.booleans(), st.booleans()),
    grad=st.booleans(),
)
def test_each_row_goes_through_its_own_task_s_adapter(tasks, length, norms, grad):
    # Tasks 1 and 3 share an adapter.
    names = ["a", "b", "c", "b"]
    held = controllers(2, ["a", "b", "c"], pre=norms[0], post=norms[1])
    stack = hypernet.StackAdapters(hypernet.Routes("wxyz", names), held, None, None, "swish")
    hidden = torch.randn(len(tasks), length, 12)
    with torch.set_grad_enabled(grad):
        step = stack.step(torch.tensor(tasks), len(tasks), hidden.device)
        for site in range(2):
            found = step(site, hidden)
            for row, task in enumerate(tasks):
                x = hidden[row : row + 1]
                if task == -1:
                    assert torch.equal(found[row : row + 1], x)
                else:
                    extra = hypernet.added(x, held[site].weights([names[task]]), SWISH)
                    torch.testing.assert_close(found[row : row + 1], x + extra, atol=1e-4, rtol=1e-4)


def stack_of(kind, tasks=3):
    """A stack of two layers whose adapters are generated, with parameters large enough to matter."""
    torch.manual_seed(2)
    names = [f"t{i}" for i in range(tasks)]
    vectors = hypernet.TaskEmbeddings(names, 6, projected=(4, 5))
    if kind == "meta":
        net, held = None, [hypernet.MetaController(5, 12, 4, conditional=i % 2 == 0) for i in range(4)]
    else:
        net, held = hypernet.LayersHyperNet(2, 5, 7, 5, 12, 4, kind == "hyperformer++", pre=True), None
    stack = hypernet.StackAdapters(hypernet.Routes(names, names), held, net, vectors, "gelu_new")
    with torch.no_grad():
        for p in stack.parameters():
            p.normal_(std=0.5)
    return stack


KINDS = ["hyperformer", "hyperformer++", "meta"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 5])
def test_generated_adapters_of_a_mixed_batch_are_those_of_single_tasks(kind, length):
    stack, hidden = stack_of(kind), torch.randn(5, length, 12)
    ids = torch.tensor([2, 0, -1, 2, 1])
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            step = stack.step(ids, 5, hidden.device)
            for site in range(4):
                found = step(site, hidden)
                for row, task in enumerate(ids.tolist()):
                    alone = stack.step(torch.tensor([task]), 1, hidden.device)(site, hidden[row : row + 1])
                    torch.testing.assert_close(found[row : row + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_s_gradient_is_the_sum_of_single_tasks(kind):
    stack, hidden = stack_of(kind), torch.randn(4, 5, 12)
    ids = torch.tensor([2, 0, 2, 1])
    parameters = list(stack.parameters())
    step = stack.step(ids, 4, hidden.device)
    mixed = torch.autograd.grad(sum(step(site, hidden).pow(2).sum() for site in range(4)), parameters)
    total = 0
    for row, task in enumerate(ids):
        step = stack.step(task[None], 1, hidden.device)
        total = total + sum(step(site, hidden[row : row + 1]).pow(2).sum() for site in range(4))
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


def made(stack, ids, count):
    """The adapters a stack hands out for a batch."""
    return stack.step(ids, count, torch.device("cpu")).weights


@pytest.mark.parametrize("kind", [*KINDS, "adapters"])
def test_a_decoder_keeps_its_adapters_until_something_changes(kind):
    if kind == "adapters":
        names = ["t0", "t1", "t2"]
        stack = hypernet.StackAdapters(hypernet.Routes(names, names), controllers(4, names), None, None, "relu")
    else:
        stack = stack_of(kind)
    encoder = hypernet.StackAdapters(stack.routes, stack.controllers, stack.hypernet, stack.embeddings, "relu", stack)
    ids, other = torch.tensor([0, 1]), torch.tensor([0, 2])
    with torch.no_grad():
        first = made(stack, ids, 2)
        assert made(stack, ids, 2) is first and made(stack, ids.clone(), 2) is first
        assert made(stack, other, 2) is not first
        first = made(stack, ids, 2)
        with torch.autocast("cpu", torch.bfloat16):
            assert made(stack, ids, 2) is not first
        first = made(stack, ids, 2)
        for p in stack.parameters((0, 1)):
            p.add_(0.5)
            changed = made(stack, ids, 2)
            assert changed is not first
            first = changed
        # Behind torch's back no version tells; the next input does.
        next(stack.parameters((0, 1))).data.mul_(2)
        made(encoder, ids, 2)
        assert made(stack, ids, 2) is not first
        first = made(stack, ids, 2)
        ids[1] = 2
        assert made(stack, ids, 2) is not first
    assert made(stack, ids, 2) is not made(stack, ids, 2)
    assert all(w.down.requires_grad for w in made(stack, ids, 2))


def test_under_autocast_products_are_generated_in_full_precision_and_cast_once():
    stack = stack_of("hyperformer++")
    ids, hidden = torch.tensor([0]), torch.randn(1, 3, 12)
    whole = made(stack, ids, 1)[1]
    with torch.autocast("cpu", torch.bfloat16):
        step = stack.step(ids, 1, hidden.device)
        assert step.weights[1].down.dtype == torch.bfloat16 and step.weights[1].post[0].dtype == torch.float32
        assert torch.equal(step.weights[1].down, whole.down.bfloat16())
        torch.testing.assert_close(
            step(1, hidden), hidden + hypernet.added(hidden, whole, stack.activation), atol=0.1, rtol=0.1
        )


def test_unknown_task_ids_are_refused():
    routes = hypernet.Routes(["a", "b"], ["a", "b"])
    for ids, count, said in ((torch.tensor([2]), 1, r"\[2\] name no task"), (torch.tensor([0]), 2, "1 entries"),
                             (None, 1, "task_ids is needed")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            routes.rows(ids, count, torch.device("cpu"))


def test_the_vlm_s_adapter_is_the_same_module_with_its_own_norm():
    adapter = BottleneckAdapter(8, 3)
    assert list(adapter.state_dict()) == [f"{m}.{k}" for m in ("norm", "down", "up") for k in ("weight", "bias")]
    x = torch.randn(2, 8)
    expected = x + adapter.up(torch.relu(adapter.down(adapter.norm(x))))
    assert torch.equal(adapter(x), expected)
    bare = BottleneckAdapter(8, 3, norm=False, activation="gelu_new")
    assert torch.equal(bare(x), x + bare.up(torch.nn.functional.gelu(bare.down(x), approximate="tanh")))
