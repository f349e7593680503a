"""HyperFormer and HyperFormer++: adapters that hypernetworks generate from task embeddings (Karimi Mahabadi et al.
2021, "Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks").

    A(x) = LN(Up(GeLU(Down(x)))) + x        (equation 1; Up, Down and LN generated from e, equations 2 to 4)
    e = h_I([z_task ; l_layer ; p_position])                              (equations 5 to 8)

An adapter follows the self-attention and the feed-forward module of every block, before the residual connection.
HyperFormer has one generator for each of the two in every stack; HyperFormer++ has a single one that also receives the
position. In the per-layer variant, the published meta-adapter, every module has separate generators, and e is only
the task embedding, passed through a shared network. The networks are defined in hypernetworks.py.
"""

import functools

import torch
from torch import nn
from versatile.adapters.methods.base import Method, first_output, refuse_without_port
from versatile.adapters.methods.bottleneck import ACTIVATIONS
from versatile.adapters.methods.hypernetworks import LayersHyperNet, SitesHyperNet, TaskVectors, adapter_output
from versatile.adapters.methods.sublayers import adapter_width, probe
from versatile.adapters.routing import GroupedProduct, TaskRouter
from versatile.utils.errors import UserError

METHODS = {
    "hyperformer": "HyperFormer",
    "hyperformer++": "HyperFormer",
    "hyperformer-per-layer": "PerLayerHyperFormer",
}
SETTINGS = {
    "reduction_factor": ("positive", 32, "the adapters' width is the backbone's divided by this"),
    "task_embedding_dim": ("positive", 64, "size of the embeddings of tasks, layers and positions"),
    "task_hidden_dim": ("positive", 128, "hidden units of the network that makes the generators' input"),
    "projected_task_embedding_dim": ("positive", 64, "size of the generators' input"),
}
# Settings of published T5s, with their defaults. names: {task: its embedding}, where tasks share embeddings;
# embeddings: {name: tensor} of given ones; train_task_embeddings: they pass through a network first. published_start:
# generated norms start as in published T5s, with gains and shifts of some 0.08; otherwise, as in sublayers.py, near 0.
PUBLISHED = dict(
    non_linearity="gelu_new", add_layer_norm_before_adapter=False, add_layer_norm_after_adapter=True,
    conditional_layer_norm=True, unique_hyper_net_layer_norm=True, train_task_embeddings=False, names=None,
    embeddings=None, parametric_task_embedding=False, published_start=False,
)  # fmt: skip
_NETWORK = ".task_embeding_generator"


class HyperFormer(Method):
    """The task embeddings and hypernetworks of a model; encoder and decoder each have a hypernetwork."""

    shared = "its hypernetworks generate the adapters of all tasks that were trained together"
    full_precision = True
    sizes = {
        "task_embedding_dim": (".layer_id_embeddings.weight", 1),
        "task_hidden_dim": (f".task_hypernet{_NETWORK}.0.weight", 0),
        "projected_task_embedding_dim": (f".task_hypernet{_NETWORK}.2.weight", 0),
    }
    published = PUBLISHED

    def __init__(self, model, name):
        super().__init__(model, name)
        self.embeddings, self.hypernets = None, nn.ModuleList()
        self.names, self.product, self._latest = {}, None, (None, None)

    @classmethod
    def check(cls, name, backbone, settings, location):
        for port in ("attention", "feed_forward"):
            refuse_without_port(backbone, port, name, location)

    def build(self, model, tasks):
        settings = next(iter(tasks.values()))
        width = self.backbone.hidden_size(model.config)
        if self.embeddings is not None or any(other != settings for other in tasks.values()):
            raise UserError(f"the tasks {', '.join(tasks)} were added separately or with other settings",
                            location=self.name,
                            expected="all of a model's tasks at once: they share hypernetworks")  # fmt: skip
        settings = self.published | settings
        self.names = settings["names"] or dict(zip(tasks, tasks))
        self.product = GroupedProduct(ACTIVATIONS[settings["non_linearity"]])
        projected = settings["task_hidden_dim"], settings["projected_task_embedding_dim"]
        self.embeddings = TaskVectors(self.names.values(), settings["task_embedding_dim"],
                                      projected if settings["train_task_embeddings"] else None,
                                      settings["embeddings"], settings["parametric_task_embedding"])  # fmt: skip
        sizes = dict(width=width, bottleneck=adapter_width(width, settings),
                     pre=settings["add_layer_norm_before_adapter"],
                     post=settings["add_layer_norm_after_adapter"])  # fmt: skip
        for blocks in self.stacks(model):
            self.hypernets.append(self.hypernet(len(blocks), settings, sizes))
        self.to(model.get_input_embeddings().weight.device)

    def hypernet(self, layers, settings, sizes):
        """The hypernetwork of a stack; `sizes` are those of its adapters."""
        hypernet = LayersHyperNet(
            layers, self.embeddings.size, settings["task_hidden_dim"], settings["projected_task_embedding_dim"],
            single_generator=self.name == "hyperformer++", layer_norm=settings["unique_hyper_net_layer_norm"], **sizes,
        )  # fmt: skip
        if not settings["published_start"]:
            hypernet.shrink_norms()
        return hypernet

    def stacks(self, model):
        """The blocks of each stack: the decoder alone, or the encoder and the decoder."""
        blocks = list(self.backbone.blocks(model))
        if not self.backbone.encoder_decoder:
            return [blocks]
        return [blocks[: model.config.num_layers], blocks[model.config.num_layers :]]

    def hook(self, model):
        for stack, blocks in enumerate(self.stacks(model)):
            for number, block in enumerate(blocks):
                for site, port in enumerate((self.backbone.attention, self.backbone.feed_forward)):
                    port(block).register_forward_hook(functools.partial(self.after_module, stack, 2 * number + site))
        self.router.prepare.append(self.prepare)

    def prepare(self):
        """Generate a batch's adapters before the blocks run, so that recomputed blocks do not generate them again."""
        names = [self.names.get(task) for task in self.router.present]
        if any(names):
            self.router.kept[self.name] = self.weights(names)

    def after_module(self, stack, site, module, args, output):
        """Forward hook of an attention or feed-forward module: apply the tasks' adapters to its hidden states."""
        stacks = self.router.kept.get(self.name)
        if stacks is None:
            return output
        return first_output(output, functools.partial(self.adapt, stacks[stack][site]))

    def adapt(self, weights, hidden):
        """Apply to each row of hidden [rows, length, width] its run's adapter in `weights`."""
        return hidden + adapter_output(hidden, weights, self.product, self.router)

    def weights(self, names):
        """The adapters of each stack's sites, for the name of each run's embedding or None; without gradients they are
        reused for the same input as long as no parameter changes."""
        device = self.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        if torch.is_grad_enabled():
            self._latest = None, None
            return self.generate(names, dtype)
        # Changes through `p.data.copy_` do not increase versions, so a new input also invalidates the cache.
        versions = tuple((p.data_ptr(), p._version) for p in self.parameters())
        key = tuple(names), device, dtype, self.router.inputs, versions
        if self._latest[0] != key:
            self._latest = key, self.generate(names, dtype)
        return self._latest[1]

    def generate(self, names, dtype=None):
        """[[`Weights` of each site] of each stack], for the name of each run's embedding or None.

        Args:
            dtype: dtype of the matrix products, or None.
        """
        distinct = [name for name in dict.fromkeys(names) if name is not None]
        # Adapters are generated once and in full precision, whatever autocast does elsewhere.
        with torch.autocast(self.device.type, enabled=False):
            vectors = self.embeddings(distinct)
            stacks = [hypernet(vectors, dtype) for hypernet in self.hypernets]
            if distinct == names:
                return stacks
            numbers = [len(distinct) if name is None else distinct.index(name) for name in names]
            numbers = torch.tensor(numbers, device=vectors.device)
            return [[weights.select(numbers, len(distinct) > 1) for weights in stack] for stack in stacks]

    def key(self, name):
        return f"hyperformer.{name}"

    def owner(self, name):
        if ".task_to_embeddings." not in f".{name}":
            return None
        tasks = [task for task, own in self.names.items() if own == name.split(".")[-1]]
        return tasks[0] if len(tasks) == 1 else None

    @torch.no_grad()
    def is_idle(self, task):
        router = TaskRouter()
        return not any(adapter_output(probe(weights.up), weights, self.product, router).any()
                       for stack in self.generate([self.names[task]]) for weights in stack)  # fmt: skip

    @property
    def device(self):
        """Device of the parameters."""
        return next(self.embeddings.parameters()).device


class PerLayerHyperFormer(HyperFormer):
    """As `HyperFormer`, with separate generators for each module of each block."""

    sizes = {
        "task_embedding_dim": (f".task_hyper_net{_NETWORK}.0.weight", 1),
        "task_hidden_dim": (f".task_hyper_net{_NETWORK}.0.weight", 0),
        "projected_task_embedding_dim": (f".task_hyper_net{_NETWORK}.2.weight", 0),
    }
    published = PUBLISHED | dict(train_task_embeddings=True)

    def hypernet(self, layers, settings, sizes):
        return SitesHyperNet(layers, self.embeddings.size, conditional=settings["conditional_layer_norm"], **sizes)
