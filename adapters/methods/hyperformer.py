"""HyperFormer and HyperFormer++: adapters that hypernetworks generate from task embeddings (Karimi Mahabadi et al.
2021, "Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks").

    A(x) = LN(Up(GeLU(Down(x)))) + x        (equation 1; Up, Down and LN generated from e, equations 2 to 4)
    e = h_I([z_task ; l_layer ; p_position])                              (equations 5 to 8)

An adapter stands behind the self-attention and the feed-forward module of every block, before the residual connection.
HyperFormer has a generator for each of the two in every stack; HyperFormer++ has one, which is told the position. The
modules are those of hypernetworks.py, with which train_t5.py builds the published models. Here they act through the
ports of any backbone.
"""

import functools

import torch
from torch import nn
from versatile.adapters.methods.base import Method, first_output, refuse_without_port
from versatile.adapters.methods.bottleneck import ACTIVATIONS
from versatile.adapters.methods.hypernetworks import LayersHyperNet, Rows, TaskEmbeddings, added
from versatile.utils.errors import UserError

METHODS = {"hyperformer": "HyperFormer", "hyperformer++": "HyperFormer"}
SETTINGS = {
    "reduction_factor": ("positive", 32, "the adapters' width is the backbone's divided by this"),
    "task_embedding_dim": ("positive", 64, "size of the embeddings of tasks, layers and positions"),
    "task_hidden_dim": ("positive", 128, "hidden units of the network that makes the generators' input"),
    "projected_task_embedding_dim": ("positive", 64, "size of the generators' input"),
}
_NETWORK = ".task_hypernet.task_embeding_generator"


class HyperFormer(Method):
    """The task embeddings and hypernetworks of a model; an encoder and its decoder have a hypernetwork each."""

    shared = "its hypernetworks generate the adapters of all tasks that were trained together"
    sizes = {
        "task_embedding_dim": (".layer_id_embeddings.weight", 1),
        "task_hidden_dim": (f"{_NETWORK}.0.weight", 0),
        "projected_task_embedding_dim": (f"{_NETWORK}.2.weight", 0),
    }

    def __init__(self, model, name):
        super().__init__(model, name)
        self.activation = ACTIVATIONS["gelu_new"]
        self.embeddings, self.hypernets = None, nn.ModuleList()
        self._latest = None, None

    @classmethod
    def check(cls, name, backbone, settings, location):
        for port in ("attention", "feed_forward"):
            refuse_without_port(backbone, port, name, location)

    def build(self, model, tasks):
        settings = next(iter(tasks.values()))
        width = self.backbone.hidden_size(model.config)
        if self.embeddings is not None or any(other != settings for other in tasks.values()):
            raise UserError(f"the tasks {', '.join(tasks)} were given at another time or with other settings",
                            location=self.name,
                            expected="all of a model's tasks at once: they share hypernetworks")  # fmt: skip
        if width < settings["reduction_factor"]:
            raise UserError(
                f"the backbone is {width} wide",
                location=f"--reduction_factor {settings['reduction_factor']}",
                expected=f"1 to {width}",
            )
        self.embeddings = TaskEmbeddings(list(tasks), settings["task_embedding_dim"])
        for blocks in self.stacks(model):
            self.hypernets.append(LayersHyperNet(
                len(blocks), settings["task_embedding_dim"], settings["task_hidden_dim"],
                settings["projected_task_embedding_dim"], width, width // settings["reduction_factor"],
                one=self.name == "hyperformer++",
            ))  # fmt: skip
        self.to(model.get_input_embeddings().weight.device)

    def stacks(self, model):
        """The blocks of each stack: of a decoder, or of an encoder and its decoder."""
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
        """Generate a batch's adapters before the blocks run: those that are recomputed must not do it again."""
        if names := self.used():
            self.rows(names, self.device)
            self.weights(names, self.device)

    def used(self):
        """Names of the batch's tasks that have generated adapters."""
        return tuple(name for name in self.router.present if name in self.embeddings.names)

    def after_module(self, stack, site, module, args, output):
        """Forward hook of an attention or feed-forward module: its hidden states through their tasks' adapters."""
        names = self.used()
        if not names:
            return output
        return first_output(output, functools.partial(self.adapt, stack, site, names))

    def adapt(self, stack, site, names, hidden):
        """hidden [rows, length, width], each row through its task's adapter."""
        rows = self.rows(names, hidden.device)
        extra = added(hidden, self.weights(names, hidden.device)[stack][site], self.activation, rows)
        return hidden + (extra if rows.idle is None else extra.masked_fill(rows.idle[:, None, None], 0))

    def rows(self, names, device):
        """`Rows` of the batch; made once a forward."""
        router, key = self.router, (self.name, "rows", device)
        if key not in router.kept:
            rows = Rows(names)
            if router.which is not None:
                of_runs = [names.index(name) if name in names else 0 for name in router.present]
                which = router.which.to(device)
                rows.which = torch.tensor(of_runs, device=device)[which] if len(names) > 1 else None
                idle = torch.tensor([name not in names for name in router.present], device=device)[which]
                rows.idle = idle if len(names) < len(router.present) else None
            router.kept[key] = rows
        return router.kept[key]

    def weights(self, names, device):
        """The generated adapters of each stack; made once a forward, without gradients once for the same tasks."""
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        key = self.name, names, device, dtype, torch.is_grad_enabled()
        if key not in self.router.kept:
            self.router.kept[key] = self.generate(names, device, dtype)
        return self.router.kept[key]

    def generate(self, names, device, dtype):
        """As `weights`; what was generated without gradients is kept until tasks or parameters change."""
        grad = torch.is_grad_enabled()
        key = names, device, dtype, tuple((p.data_ptr(), p._version) for p in self.parameters())
        if grad or self._latest[0] != key:
            # What is generated is computed once and in full precision, whatever autocast does to the rest.
            with torch.autocast(device.type, enabled=False):
                vectors = self.embeddings(names)
                weights = [hypernet(vectors, dtype) for hypernet in self.hypernets]
            self._latest = (None, None) if grad else (key, weights)
            return weights
        return self._latest[1]

    def key(self, name):
        return f"hyperformer.{name}"

    def owner(self, name):
        return name.split(".")[-1] if ".task_to_embeddings." in f".{name}" else None

    @torch.no_grad()
    def is_idle(self, task):
        stacks = self.generate((task,), self.device, None)
        width = stacks[0][0].up.shape[-2]
        probe = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0)).to(self.device)
        return not any(added(probe, weights, self.activation).any()
                       for stack in stacks for weights in stack)  # fmt: skip

    @property
    def device(self):
        """Where the parameters are."""
        return next(self.parameters()).device
