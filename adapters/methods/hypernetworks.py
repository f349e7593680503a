"""Networks that generate adapters from task embeddings (Karimi Mahabadi et al. 2021): components of hyperformer.py.

Each tensor of an adapter is a linear map of an embedding z of the task, separately for each layer and site
(`MetaController`), or, for all layers of a stack at once, of

    e = LN(W₂ ReLU(W₁ [z ; layer ; block type]))            (`LayersHyperNet`, equations 5 to 8 of the paper)

Parameters have the names of the published code.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters.methods.sublayers import INIT_STD, NORM_EPS

FEED_FORWARD, SELF_ATTENTION = 0, 1


@dataclass
class AdapterWeights:
    """The adapters of one site.

    Attributes:
        down, down_bias: [*, bottleneck, width], [*, bottleneck].
        up, up_bias: [*, width, bottleneck], [*, width].
        pre, post: (gain [*, width], bias [*, width]) of the layer norm before and after, or None.
        * is the number of adapters, or absent for a single one.
    """

    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    pre: tuple | None = None
    post: tuple | None = None
    fused: tuple | None = field(default=None, repr=False)

    def units(self):
        """(down, its bias, up) of several adapters merged into one: [units of all, width], [units], [width, units]."""
        if self.fused is None:
            up = self.up.transpose(0, 1).flatten(1)
            self.fused = self.down.flatten(0, 1), self.down_bias.flatten(), up
        return self.fused

    def select(self, numbers, several):
        """The adapters of a batch's runs.

        Args:
            numbers: [runs] index of each run's adapter; the number of adapters selects one that adds nothing.
            several: whether these are several adapters rather than a single one.
        """

        def chosen(tensor):
            tensor = tensor if several else tensor[None]
            return torch.cat([tensor, torch.zeros_like(tensor[:1])]).index_select(0, numbers)

        norms = [norm and tuple(map(chosen, norm)) for norm in (self.pre, self.post)]
        return AdapterWeights(*map(chosen, (self.down, self.down_bias, self.up, self.up_bias)), *norms)


def adapter_output(hidden, weights, product, router):
    """Contribution of generated adapters to hidden states: A(x) - x.

    Args:
        hidden: [rows, length, width].
        weights: `AdapterWeights` of the router's runs.
        product: `GroupedProduct` with the adapters' activation.
        router: `TaskRouter` of the batch.

    Returns:
        the shape of `hidden`.
    """

    def normalise(states, norm):
        if norm is None:
            return states
        if router.which is None:
            return F.layer_norm(states, states.shape[-1:], *norm, NORM_EPS)
        return router.layer_norm(states, *norm, NORM_EPS)

    return normalise(product.stacked(normalise(hidden, weights.pre), weights, router), weights.post)


# ---- embeddings and generators


def initialised_linear(n_in, n_out):
    """A linear map with the published initialisation."""
    layer = nn.Linear(n_in, n_out)
    nn.init.normal_(layer.weight, std=INIT_STD)
    nn.init.zeros_(layer.bias)
    return layer


class TaskHyperNet(nn.Module):
    """An MLP with one hidden layer of `hidden` ReLU units: [*, n_in] -> [*, n_out]."""

    def __init__(self, n_in, hidden, n_out):
        super().__init__()
        # The spelling of the published checkpoints.
        self.task_embeding_generator = nn.Sequential(
            initialised_linear(n_in, hidden), nn.ReLU(), initialised_linear(hidden, n_out))  # fmt: skip

    def forward(self, vectors):
        return self.task_embeding_generator(vectors)


class TaskVectors(nn.Module):
    """The vectors that represent tasks.

    Args:
        names: the embedding's name for each task; tasks with the same name share an embedding.
        size: of an embedding; they start from N(0, 1).
        projected: (hidden units, output size) of a network applied to all embeddings, or None.
        start_values: {name: tensor [size]} to start from instead.
        parametric: whether embeddings with start values are trained; randomly initialised ones always are.
    """

    def __init__(self, names, size, projected=None, start_values=None, parametric=True):
        super().__init__()
        self.names = list(dict.fromkeys(names))
        values = {name: start_values[name] if start_values else torch.randn(size) for name in self.names}
        self.task_to_embeddings = nn.ParameterDict({name: nn.Parameter(v.clone()) for name, v in values.items()})
        self.fixed = bool(start_values) and not parametric
        self.task_to_embeddings.requires_grad_(not self.fixed)
        self.task_hyper_net = TaskHyperNet(size, *projected) if projected else None
        self.size = projected[1] if projected else size

    def forward(self, names):
        """The vectors for these names, [names, size]."""
        vectors = torch.stack([self.task_to_embeddings[name] for name in names])
        return self.task_hyper_net(vectors) if self.task_hyper_net else vectors


class SamplerHyperNet(nn.Module):
    """Generates one linear map of an adapter: [*, size] -> weight [*, n_out, n_in], bias [*, n_out]."""

    def __init__(self, size, n_in, n_out):
        super().__init__()
        self.shape = n_out, n_in
        self.weight_generator = nn.Sequential(initialised_linear(size, n_out * n_in))
        self.bias_generator = nn.Sequential(initialised_linear(size, n_out))

    def forward(self, vectors):
        return self.weight_generator(vectors).unflatten(-1, self.shape), self.bias_generator(vectors)


class NormHyperNet(nn.Module):
    """Generates one layer norm of an adapter: [*, size] -> gain [*, width], bias [*, width]."""

    def __init__(self, size, width):
        super().__init__()
        self.weight_generator, self.bias_generator = initialised_linear(size, width), initialised_linear(size, width)

    def forward(self, vectors):
        return self.weight_generator(vectors), self.bias_generator(vectors)


class MetaController(nn.Module):
    """A hypernetwork for one site of one layer, whose only input is the task embedding.

    Args:
        size: of a task embedding.
        width, bottleneck: the adapters' sizes.
        conditional: whether norms are generated too; otherwise the tasks share them.
        pre, post: whether there is a norm before and after.
    """

    def __init__(self, size, width, bottleneck, conditional=False, pre=False, post=True):
        super().__init__()
        self.meta_up_sampler = SamplerHyperNet(size, bottleneck, width)
        self.meta_down_sampler = SamplerHyperNet(size, width, bottleneck)
        self.conditional = conditional
        for site, wanted in (("pre", pre), ("post", post)):
            generated = NormHyperNet(size, width) if wanted and conditional else None
            shared = nn.LayerNorm(width, eps=NORM_EPS) if wanted and not conditional else None
            self.register_module(f"{site}_layernorm_hypernet", generated)
            self.register_module(f"{site}_layer_norm", shared)

    def forward(self, vectors, dtype=None):
        """`AdapterWeights` for task embeddings [tasks, size]; `dtype` as in `LayersHyperNet.forward`."""
        count = len(vectors)
        vectors = vectors[0] if count == 1 else vectors
        matrices = [part.to(dtype) for net in (self.meta_down_sampler, self.meta_up_sampler) for part in net(vectors)]
        if not self.conditional:
            norms = [norm and (norm.weight, norm.bias) for norm in (self.pre_layer_norm, self.post_layer_norm)]
            if count > 1:
                norms = [norm and tuple(p.expand(count, -1) for p in norm) for norm in norms]
            return AdapterWeights(*matrices, *norms)
        norms = (self.pre_layernorm_hypernet, self.post_layernorm_hypernet)
        return AdapterWeights(*matrices, *(norm and norm(vectors) for norm in norms))


class LayersHyperNet(nn.Module):
    """The hypernetwork of a stack, which generates the adapters of all its layers.

    Args:
        layers: number of layers in the stack.
        size: of a task's vector, and of the layer and block type embeddings.
        hidden, projected: hidden units of the network that computes e, and the size of e.
        width, bottleneck: the adapters' sizes.
        single_generator: HyperFormer++: one generator that also receives the block type. Otherwise (HyperFormer) one
            generator for feed-forward and one for self-attention.
        layer_norm: whether e is normalised.
        pre, post: whether the adapters have a norm before and after; these norms are always generated.
    """

    def __init__(self, layers, size, hidden, projected, width, bottleneck, single_generator, layer_norm=True,
                 pre=False, post=True):  # fmt: skip
        super().__init__()
        self.layers, self.single_generator = layers, single_generator
        self.layer_id_embeddings = nn.Embedding(layers, size)
        if single_generator:
            self.adapters_block_type = nn.Embedding(2, size)
        self.task_hypernet = TaskHyperNet(size * (3 if single_generator else 2), hidden, projected)
        self.LayerNorm = nn.LayerNorm(projected, eps=1e-6) if layer_norm else None
        self.prefixes = ("",) if single_generator else ("feed_forward_", "self_attention_")
        for prefix in self.prefixes:
            setattr(self, f"{prefix}up_sampler_hyper_net", SamplerHyperNet(projected, bottleneck, width))
            setattr(self, f"{prefix}down_sampler_hyper_net", SamplerHyperNet(projected, width, bottleneck))
            for site, wanted in (("pre", pre), ("post", post)):
                net = NormHyperNet(projected, width) if wanted else None
                self.register_module(f"{prefix}{site}_layernorm_hypernet", net)

    @torch.no_grad()
    def shrink_norms(self):
        """Let the generated norms start with gains and shifts of about `INIT_STD`, where e is normalised."""
        for module in self.modules():
            if isinstance(module, NormHyperNet) and self.LayerNorm is not None:
                for generator in (module.weight_generator, module.bias_generator):
                    generator.weight.div_(generator.in_features**0.5)

    def embeddings(self, vectors, layers=slice(None), blocks=slice(None)):
        """The embeddings e that adapters are generated from.

        Args:
            vectors: [tasks, size].
            layers, blocks: slices that select some layers and block types only.

        Returns:
            [tasks, layers, projected]; with `single_generator` [tasks, layers, block types, projected].
        """
        parts = [vectors[:, None], self.layer_id_embeddings.weight[None, layers]]
        if self.single_generator:
            parts = [part.unsqueeze(2) for part in parts]
            parts.append(self.adapters_block_type.weight[None, None, blocks])
        shape = torch.broadcast_shapes(*(part.shape for part in parts))
        e = self.task_hypernet(torch.cat([part.expand(shape) for part in parts], dim=-1))
        return self.LayerNorm(e) if self.LayerNorm is not None else e

    def forward(self, vectors, dtype=None):
        """The adapters of all layers, computed in a few products.

        Args:
            vectors: [tasks, size].
            dtype: dtype to convert the linear maps' tensors to, or None to leave them as computed.

        Returns:
            list of `AdapterWeights`: self-attention and feed-forward of the first layer, then of the second, ….
        """
        e = self.embeddings(vectors)
        if self.single_generator:
            sites = self._generated("", e.flatten(1, 2), dtype)
            return [sites[2 * i + block] for i in range(self.layers) for block in (SELF_ATTENTION, FEED_FORWARD)]
        blocks = {prefix: self._generated(prefix, e, dtype) for prefix in self.prefixes}
        return [w for both in zip(blocks["self_attention_"], blocks["feed_forward_"]) for w in both]

    def at(self, vectors, layer, block, dtype=None):
        """`AdapterWeights` of a single layer and block type."""
        e = self.embeddings(vectors, slice(layer, layer + 1), slice(block, block + 1))
        prefix = "" if self.single_generator else self.prefixes[block]
        return self._generated(prefix, e.flatten(1, 2) if self.single_generator else e, dtype)[0]

    def _generated(self, prefix, e, dtype):
        """`AdapterWeights` of each site, from e [tasks, sites, projected]."""
        e = e[0] if len(e) == 1 else e
        sites, parts = e.dim() - 2, []
        for kind in ("down", "up"):
            weights = getattr(self, f"{prefix}{kind}_sampler_hyper_net")(e)
            parts += [part.to(dtype).unbind(sites) for part in weights]
        for site in ("pre", "post"):
            net = getattr(self, f"{prefix}{site}_layernorm_hypernet")
            parts.append(list(zip(*(p.unbind(sites) for p in net(e)))) if net else [None] * e.shape[sites])
        return [AdapterWeights(*tensors) for tensors in zip(*parts)]


class SitesHyperNet(nn.Module):
    """The hypernetworks of a stack, one `MetaController` per layer and site.

    Args:
        layers: number of layers in the stack.
        more: as in `MetaController`.
    """

    def __init__(self, layers, *more, **named):
        super().__init__()
        self.controllers = nn.ModuleList(MetaController(*more, **named) for _ in range(2 * layers))

    def forward(self, vectors, dtype=None):
        """As `LayersHyperNet.forward`."""
        return [controller(vectors, dtype) for controller in self.controllers]
