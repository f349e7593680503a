"""Adapters that tasks own, and hypernetworks that generate them (Karimi Mahabadi et al. 2021).

An adapter stands behind a sublayer of the backbone, before the sublayer's residual connection:

    A(x) = LN_post(Up(act(Down(LN_pre(x))))) + x

with either norm present or absent. Its tensors are a task's own parameters (`AdapterController`), or generated from
the task's embedding z by linear maps, each weight by one: for each layer and site apart (`MetaController`), or for
all layers of a stack at once from

    e = LN(W₂ ReLU(W₁ [z ; layer ; block type]))            (`LayersHyperNet`, equations 5 to 8 of the paper)

What makes a stack's adapters is asked once a forward for the tasks of the batch (`StackAdapters`); the blocks only
use what lies ready. Parameters are named as the published code names them.
"""

import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from versatile.adapters.methods.bottleneck import ACTIVATIONS, BottleneckAdapter
from versatile.adapters.routing import NO_TASK, TaskRouter

# Published start of all linear maps here: N(0, 0.01), biases 0. Generated norms therefore start near 0, not 1.
INIT_STD = 1e-2
NORM_EPS = 1e-5
FEED_FORWARD, SELF_ATTENTION = 0, 1
# A position or two of each row, as in decoding: one product over the units of all tasks of the batch is then faster
# than a product for each row.
FUSED_LENGTH = 2


def original_name(name):
    """A parameter's name in the published code; it differs where the toolkit's one bottleneck module has its own."""
    return re.sub(r"(^|\.)adapters\.([^.]+)\.(down|up)\.", r"\1adapters.\2.\3_sampler.", name)


@dataclass
class Weights:
    """The adapters of one site.

    Attributes:
        down, down_bias: [*, bottleneck, width], [*, bottleneck].
        up, up_bias: [*, width, bottleneck], [*, width].
        pre, post: (gain [*, width], bias [*, width]) of the layer norm before and after, or None.
        * is nothing for one adapter, or their number.
    """

    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    pre: tuple | None = None
    post: tuple | None = None
    fused: tuple | None = field(default=None, repr=False)

    def units(self):
        """(down, its bias, up) of several adapters as one: [units of all, width], [units], [width, units]."""
        if self.fused is None:
            up = self.up.transpose(0, 1).flatten(1)
            self.fused = self.down.flatten(0, 1), self.down_bias.flatten(), up
        return self.fused


@dataclass
class Rows:
    """Which rows of a batch go through which adapter.

    Attributes:
        groups: numbers of the adapters the batch needs, in the order of its rows.
        which: [rows] place in `groups` of each row's adapter; None where there is no more than one.
        idle: [rows] true where a row has no adapter; None where every row has one.
    """

    groups: tuple
    which: torch.Tensor | None = None
    idle: torch.Tensor | None = None
    _masks: dict = field(default_factory=dict, repr=False)

    def mask(self, units, like):
        """[rows, 1, adapters · units] one where a unit belongs to the row's adapter, else zero."""
        key = units, like.device, like.dtype
        if key not in self._masks:
            owners = torch.arange(len(self.groups), device=like.device).repeat_interleave(units)
            self._masks[key] = (self.which[:, None] == owners).to(like.dtype).unsqueeze(1)
        return self._masks[key]


def added(hidden, weights, activation, rows=None):
    """What adapters add to hidden states: A(x) - x.

    Args:
        hidden: [rows, length, width].
        weights: `Weights` of one adapter, or of those that `rows` chooses from.
        activation: a function.
        rows: `Rows` of a batch that needs several adapters, or None.

    Returns:
        the shape of `hidden`.
    """
    if rows is None or rows.which is None:
        inner = activation(F.linear(_normed(hidden, weights.pre), weights.down, weights.down_bias))
        return _normed(F.linear(inner, weights.up, weights.up_bias), weights.post)
    hidden = _normed(hidden, weights.pre, rows.which)
    if not torch.is_grad_enabled() and hidden.shape[1] <= FUSED_LENGTH:
        down, bias, up = weights.units()
        inner = activation(F.linear(hidden, down, bias))
        inner = inner * rows.mask(weights.down.shape[1], inner)
        return _normed(F.linear(inner, up) + _of_rows(weights.up_bias, rows.which), weights.post, rows.which)
    inner = activation(_product(hidden, weights.down, weights.down_bias, rows.which))
    return _normed(_product(inner, weights.up, weights.up_bias, rows.which), weights.post, rows.which)


def _product(hidden, weight, bias, which):
    """A linear map for each row: [rows, length, in] -> [rows, length, out]."""
    return torch.baddbmm(_of_rows(bias, which), hidden, weight.index_select(0, which).transpose(1, 2))


def _of_rows(vectors, which):
    """[adapters, n] -> [rows, 1, n]."""
    return vectors.index_select(0, which).unsqueeze(1)


def _normed(hidden, norm, which=None):
    """Layer norm with gain and bias of one adapter, or of each row's; `norm` None: the hidden states as they are."""
    if norm is None:
        return hidden
    gain, bias = norm
    if which is None:
        return F.layer_norm(hidden, hidden.shape[-1:], gain, bias, NORM_EPS)
    normed = F.layer_norm(hidden, hidden.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(_of_rows(bias, which), normed, _of_rows(gain, which))


# ---- adapters that are parameters


class AdapterController(nn.Module):
    """The adapters of one site, by name, and the layer norms that they share.

    Args:
        names: the adapters' names.
        width, bottleneck, activation: as in `BottleneckAdapter`.
        pre, post: whether there is a norm before and after; `2·width` parameters each, for all adapters together.
    """

    def __init__(self, names, width, bottleneck, activation="swish", pre=False, post=True):
        super().__init__()
        kind = dict(norm=False, activation=activation, std=INIT_STD)
        self.adapters = nn.ModuleDict({name: BottleneckAdapter(width, bottleneck, **kind) for name in names})
        self.pre_layer_norm = nn.LayerNorm(width, eps=NORM_EPS) if pre else None
        self.post_layer_norm = nn.LayerNorm(width, eps=NORM_EPS) if post else None

    def weights(self, names):
        """`Weights` of the adapters of these names."""
        held = [self.adapters[name] for name in names]
        parts = zip(*((a.down.weight, a.down.bias, a.up.weight, a.up.bias) for a in held))
        parts = [each[0] if len(held) == 1 else torch.stack(each) for each in parts]
        return Weights(*parts, *_shared(self.pre_layer_norm, self.post_layer_norm, len(held)))


def _shared(pre, post, count):
    """(gain, bias) of norms that `count` adapters share, before and after."""
    norms = [norm and (norm.weight, norm.bias) for norm in (pre, post)]
    if count > 1:
        norms = [norm and tuple(p.expand(count, -1) for p in norm) for norm in norms]
    return norms


# ---- what is generated, and from what


def linear(n_in, n_out):
    """A linear map with the published start."""
    made = nn.Linear(n_in, n_out)
    nn.init.normal_(made.weight, std=INIT_STD)
    nn.init.zeros_(made.bias)
    return made


class TaskHyperNet(nn.Module):
    """A vector through a layer of `hidden` ReLU units: [*, n_in] -> [*, n_out]."""

    def __init__(self, n_in, hidden, n_out):
        super().__init__()
        # Spelt as in the published checkpoints.
        self.task_embeding_generator = nn.Sequential(linear(n_in, hidden), nn.ReLU(), linear(hidden, n_out))

    def forward(self, vectors):
        return self.task_embeding_generator(vectors)


class TaskEmbeddings(nn.Module):
    """The vectors that stand for tasks.

    Args:
        names: the embedding's name for each task; tasks of one name share one embedding.
        size: of an embedding; they start from N(0, 1).
        projected: (hidden units, size) of a network that all embeddings go through, or None.
        given: {name: tensor [size]} to start from instead.
        parametric: whether given embeddings are trained; those that start at random always are.
    """

    def __init__(self, names, size, projected=None, given=None, parametric=True):
        super().__init__()
        self.names = list(dict.fromkeys(names))
        values = {name: given[name] if given else torch.randn(size) for name in self.names}
        self.task_to_embeddings = nn.ParameterDict({name: nn.Parameter(v.clone()) for name, v in values.items()})
        self.fixed = bool(given) and not parametric
        self.task_to_embeddings.requires_grad_(not self.fixed)
        self.task_hyper_net = TaskHyperNet(size, *projected) if projected else None
        self.size = projected[1] if projected else size

    def forward(self, names):
        """The vectors of these names, [names, size]."""
        vectors = torch.stack([self.task_to_embeddings[name] for name in names])
        return self.task_hyper_net(vectors) if self.task_hyper_net else vectors


class SamplerHyperNet(nn.Module):
    """Generates one linear map of an adapter: [*, size] -> weight [*, n_out, n_in], bias [*, n_out]."""

    def __init__(self, size, n_in, n_out):
        super().__init__()
        self.shape = n_out, n_in
        self.weight_generator = nn.Sequential(linear(size, n_out * n_in))
        self.bias_generator = nn.Sequential(linear(size, n_out))

    def forward(self, vectors):
        return self.weight_generator(vectors).unflatten(-1, self.shape), self.bias_generator(vectors)


class NormHyperNet(nn.Module):
    """Generates one layer norm of an adapter: [*, size] -> gain [*, width], bias [*, width]."""

    def __init__(self, size, width):
        super().__init__()
        self.weight_generator, self.bias_generator = linear(size, width), linear(size, width)

    def forward(self, vectors):
        return self.weight_generator(vectors), self.bias_generator(vectors)


class MetaController(nn.Module):
    """A hypernetwork of one site of one layer, whose input is the task embedding alone.

    Args:
        size: of a task embedding.
        width, bottleneck: the adapters' sizes.
        conditional: norms are generated too; otherwise the tasks share them.
        pre, post: as in `AdapterController`.
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
        """`Weights` for task embeddings [tasks, size]; `dtype` as in `LayersHyperNet.forward`."""
        count = len(vectors)
        vectors = vectors[0] if count == 1 else vectors
        matrices = [part.to(dtype) for net in (self.meta_down_sampler, self.meta_up_sampler) for part in net(vectors)]
        if not self.conditional:
            return Weights(*matrices, *_shared(self.pre_layer_norm, self.post_layer_norm, count))
        norms = (self.pre_layernorm_hypernet, self.post_layernorm_hypernet)
        return Weights(*matrices, *(norm and norm(vectors) for norm in norms))


class LayersHyperNet(nn.Module):
    """The hypernetwork of a stack: generates the adapters of all its layers.

    Args:
        layers: the stack's number of layers.
        size: of a task's vector, and of the embeddings of layers and block types.
        hidden, projected: hidden units of the network that makes e, and e's size.
        width, bottleneck: the adapters' sizes.
        one: HyperFormer++: one generator, told the block type. Otherwise (HyperFormer) one for feed-forward and one
            for self-attention.
        layer_norm: e is normalised.
        pre, post: the adapters have a norm before and after; always generated.
    """

    def __init__(self, layers, size, hidden, projected, width, bottleneck, one, layer_norm=True, pre=False, post=True):
        super().__init__()
        self.layers, self.one = layers, one
        self.layer_id_embeddings = nn.Embedding(layers, size)
        if one:
            self.adapters_block_type = nn.Embedding(2, size)
        self.task_hypernet = TaskHyperNet(size * (3 if one else 2), hidden, projected)
        self.LayerNorm = nn.LayerNorm(projected, eps=1e-6) if layer_norm else None
        self.prefixes = ("",) if one else ("feed_forward_", "self_attention_")
        for prefix in self.prefixes:
            setattr(self, f"{prefix}up_sampler_hyper_net", SamplerHyperNet(projected, bottleneck, width))
            setattr(self, f"{prefix}down_sampler_hyper_net", SamplerHyperNet(projected, width, bottleneck))
            for site, wanted in (("pre", pre), ("post", post)):
                made = NormHyperNet(projected, width) if wanted else None
                self.register_module(f"{prefix}{site}_layernorm_hypernet", made)

    def embeddings(self, vectors, layers=slice(None), blocks=slice(None)):
        """The e that adapters are generated from.

        Args:
            vectors: [tasks, size].
            layers, blocks: slices of them, to have fewer.

        Returns:
            [tasks, layers, projected]; with `one` [tasks, layers, block types, projected].
        """
        parts = [vectors[:, None], self.layer_id_embeddings.weight[None, layers]]
        if self.one:
            parts = [part.unsqueeze(2) for part in parts]
            parts.append(self.adapters_block_type.weight[None, None, blocks])
        shape = torch.broadcast_shapes(*(part.shape for part in parts))
        e = self.task_hypernet(torch.cat([part.expand(shape) for part in parts], dim=-1))
        return self.LayerNorm(e) if self.LayerNorm is not None else e

    def forward(self, vectors, dtype=None):
        """The adapters of all layers, from a handful of products.

        Args:
            vectors: [tasks, size].
            dtype: what the linear maps' tensors are wanted in, if not as computed.

        Returns:
            list of `Weights`: self-attention and feed-forward of the first layer, of the second, ….
        """
        e = self.embeddings(vectors)
        if self.one:
            sites = self._generated("", e.flatten(1, 2), dtype)
            return [sites[2 * i + block] for i in range(self.layers) for block in (SELF_ATTENTION, FEED_FORWARD)]
        blocks = {prefix: self._generated(prefix, e, dtype) for prefix in self.prefixes}
        return [w for both in zip(blocks["self_attention_"], blocks["feed_forward_"]) for w in both]

    def at(self, vectors, layer, block, dtype=None):
        """`Weights` of one layer and block type alone."""
        e = self.embeddings(vectors, slice(layer, layer + 1), slice(block, block + 1))
        prefix = "" if self.one else self.prefixes[block]
        return self._generated(prefix, e.flatten(1, 2) if self.one else e, dtype)[0]

    def _generated(self, prefix, e, dtype):
        """`Weights` of each site, from e [tasks, sites, projected]."""
        e = e[0] if len(e) == 1 else e
        sites, parts = e.dim() - 2, []
        for kind in ("down", "up"):
            made = getattr(self, f"{prefix}{kind}_sampler_hyper_net")(e)
            parts += [part.to(dtype).unbind(sites) for part in made]
        for site in ("pre", "post"):
            net = getattr(self, f"{prefix}{site}_layernorm_hypernet")
            parts.append(list(zip(*(p.unbind(sites) for p in net(e)))) if net else [None] * e.shape[sites])
        return [Weights(*each) for each in zip(*parts)]


# ---- one batch


class Step:
    """A batch on its way through a stack: its rows and the adapters that lie ready for them.

    Args:
        rows: `Rows`.
        weights: list of `Weights`, one per site; [] where no row has an adapter.
        activation: a function.
    """

    def __init__(self, rows, weights, activation):
        self.rows, self.weights, self.activation = rows, weights, activation

    def __call__(self, site, hidden):
        """hidden [rows, length, width] through the adapters of a site -> the same shape."""
        if not self.rows.groups:
            return hidden
        extra = added(hidden, self.weights[site], self.activation, self.rows)
        if self.rows.idle is not None:
            extra = extra.masked_fill(self.rows.idle[:, None, None], 0)
        return hidden + extra

    def adds(self, hidden):
        """Whether the adapters of any site change hidden states [rows, length, width]."""
        return any(bool(added(hidden, weights, self.activation, self.rows).any()) for weights in self.weights)


class Routes:
    """Which tasks a model has, and which adapter each of them uses; shared by its stacks.

    Args:
        tasks: their names; a task's id is its place.
        names: the name of each task's adapter or task embedding; tasks of one name share it.
    """

    def __init__(self, tasks, names):
        self.router = TaskRouter()
        self.router.tasks = list(tasks)
        self.names = list(dict.fromkeys(names))
        self.group = [self.names.index(name) for name in names]
        self._last = None, None, None

    def rows(self, task_ids, count, device):
        """`Rows` of a batch of `count` rows; arguments and errors as of `TaskRouter.route`.

        Both stacks and all steps of decoding pass the same tensor: it is read once.
        """
        inference = task_ids is not None and task_ids.is_inference()
        key = (count, device, None if task_ids is None or inference else task_ids._version)
        if self._last[0] is task_ids and self._last[1] == key and not inference:
            return self._last[2]
        ids = self.router.route(task_ids, count)
        chosen = [NO_TASK if i == NO_TASK else self.group[i] for i in ids]
        groups = tuple(dict.fromkeys(i for i in chosen if i != NO_TASK))
        rows = Rows(groups)
        if len(groups) > 1:
            which = [groups.index(i) if i != NO_TASK else 0 for i in chosen]
            rows.which = torch.tensor(which, device=device)
        if groups and NO_TASK in chosen:
            rows.idle = torch.tensor([i == NO_TASK for i in chosen], device=device)
        self._last = task_ids, key, rows
        return rows


class StackAdapters:
    """Makes the adapters of one stack, once for each batch.

    Under gradient they are made anew in each forward. Without, as in decoding, what was made for a decoder is kept
    until the next input is encoded, the tasks change or a parameter does.

    Args:
        routes: `Routes`.
        controllers: `AdapterController` or `MetaController` of each site, or None.
        hypernet: `LayersHyperNet`, or None.
        embeddings: `TaskEmbeddings` that hypernetworks start from, or None.
        activation: name of one of `ACTIVATIONS`.
        decoder: `StackAdapters` of the decoder that this encoder's output goes to; None: this is the decoder.
    """

    def __init__(self, routes, controllers, hypernet, embeddings, activation, decoder=None):
        self.routes, self.controllers, self.hypernet, self.embeddings = routes, controllers, hypernet, embeddings
        self.activation, self.decoder = ACTIVATIONS[activation], decoder
        self._kept = None, None

    def forget(self):
        """Drop what was kept."""
        self._kept = None, None

    def step(self, task_ids, count, device):
        """`Step` of a batch of `count` rows on a device."""
        rows = self.routes.rows(task_ids, count, device)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        return Step(rows, self._weights(rows.groups, dtype, device) if rows.groups else [], self.activation)

    def _weights(self, groups, dtype, device):
        if self.decoder is not None:
            # A new input. Versions do not tell of values that were changed behind torch's back (`p.data.copy_`).
            self.decoder.forget()
            return self.make(groups, dtype, device)
        if torch.is_grad_enabled():
            self.forget()
            return self.make(groups, dtype, device)
        key = groups, dtype, device, tuple((p.data_ptr(), p._version) for p in self.parameters(groups))
        if self._kept[0] != key:
            self._kept = key, self.make(groups, dtype, device)
        return self._kept[1]

    def make(self, groups, dtype, device):
        """`Weights` of each site, of the adapters with these numbers; `dtype`: what products run in, or None."""
        names = [self.routes.names[i] for i in groups]
        if self.embeddings is None:
            return [controller.weights(names) for controller in self.controllers]
        # What is generated is computed once and in full precision, whatever autocast does to the rest.
        with torch.autocast(device.type, enabled=False):
            vectors = self.embeddings(names)
            if self.hypernet is None:
                return [controller(vectors, dtype) for controller in self.controllers]
            return self.hypernet(vectors, dtype)

    def parameters(self, groups=None):
        """The parameters that these adapters are made of; None: those of all adapters."""
        if self.embeddings is not None:
            for module in [self.embeddings, self.hypernet, *(self.controllers or [])]:
                if module is not None:
                    yield from module.parameters()
            return
        names = self.routes.names if groups is None else [self.routes.names[i] for i in groups]
        for controller in self.controllers:
            for module in [*(controller.adapters[n] for n in names), controller.pre_layer_norm,
                           controller.post_layer_norm]:  # fmt: skip
                if module is not None:
                    yield from module.parameters()
