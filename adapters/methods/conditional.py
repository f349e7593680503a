"""Modules whose parameters depend on a task's embedding: conditional adapters (Pilault, El hattami, Pal 2021, CA-MTL).

Batches may mix tasks. Task-dependent quantities are computed once for each task of the model and then looked up for
every row, without loops over rows or tasks. In a checkpoint the parameters have the published names.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertAttention, eager_attention_forward
from versatile.adapters.methods.base import Method, initialise
from versatile.utils.errors import UserError

METHODS = {"conditional": "Conditional"}
PADDING = -10000.0


# A parameter of the method -> its published name.
_KEYS = {
    "task_type_embeddings": "bert.task_type_embeddings.{rest}",
    "conditional_alignment": "bert.conditional_alignment.{rest}",
    "task_transformation": "bert.encoder.task_transformation.{rest}",
    "block_diagonals": "bert.encoder.layer.{number}.{attention}.self.cond_block_diag_attn.{ending}",
    "matrices": "bert.encoder.layer.{number}.{attention}.self.random_weight_matrix",
    "attention_norms": "bert.encoder.layer.{number}.attention.output.LayerNorm.ln_weight_modulation.{ending}",
    "output_norms": "bert.encoder.layer.{number}.output.LayerNorm.ln_weight_modulation.{ending}",
    "bottlenecks": "bert.encoder.adapter_layer.{rest}",
    "top": "bert.encoder.layer.{last}.{rest}",
}


class Conditional(Method):
    """CA-MTL's conditional modules in a BERT, for all tasks of a model. The model's `form` determines which:

    base: the upper half except the top layer has conditional norms; the top layer is replaced by a fresh one
        (`ConditionalTopLayer`), and the pretrained one is discarded.
    large: the upper half has conditional norms, and every layer has a bottleneck in parallel.

    Both have conditional attention in every layer and align the embeddings.
    """

    shared = "its conditional modules belong to all tasks that were trained together"

    @classmethod
    def check(cls, name, backbone, settings, location):
        if backbone.head != "classifier":
            raise UserError("its block-diagonal attention is that of an encoder, which reads a whole sentence at once; "
                            f"{backbone.name} generates text token by token", location=location,
                            expected="a BERT: train_camtl.py",
                            remedy="choose another method; hyperformer++ also shares what tasks have in "
                                   "common")  # fmt: skip

    def build(self, model, tasks):
        bert, length = model.bert, model.max_seq_length
        width, layers = bert.config.hidden_size, bert.encoder.layer
        self.last, self.conditions = len(layers) - 1, TaskConditions()
        self.task_type_embeddings = nn.Embedding(len(tasks), width)
        self.conditional_alignment = FiLM(width, width)
        self.task_transformation = nn.Linear(width, width)
        fresh = [self.task_type_embeddings, self.conditional_alignment, self.task_transformation]
        self.attention_norms, self.output_norms = nn.ModuleDict(), nn.ModuleDict()
        # The upper half has conditional norms; if the number of layers is odd, the lower half is the larger one.
        for i in range(math.ceil(len(layers) / 2), len(layers) - (model.form == "base")):
            for norms, output in ((self.attention_norms, layers[i].attention.output),
                                  (self.output_norms, layers[i].output)):  # fmt: skip
                output.LayerNorm = ConditionalLayerNorm.like(output.LayerNorm, width, self.conditions)
                norms[str(i)] = output.LayerNorm.give_modulation()
                fresh.append(norms[str(i)])
        self.top = self.bottlenecks = None
        if model.form == "base":
            self.top = ConditionalTopLayer(layers[-1], width, self.conditions)
            del layers[-1]
        else:
            self.bottlenecks = nn.ModuleList(ConditionalBottleneck(width, width) for _ in layers)
            fresh.append(self.bottlenecks)
        blocks = range(self.last + 1)
        self.block_diagonals = nn.ModuleList(ConditionalBlockDiagonal(width, length, width // length) for _ in blocks)
        columns = self.block_diagonals[0].gb_weights.out_features // 2
        self.matrices = nn.ParameterList(nn.Parameter(torch.zeros(length, columns)) for _ in blocks)
        if self.top is not None:
            # This order keeps the weights that a seed has always given.
            top = self.top
            fresh += [top.new_attention.self, self.block_diagonals[-1], top.new_attention.output, top.new_intermediate,
                      top.new_output, top.adapter]  # fmt: skip
        for module in [*fresh, *self.block_diagonals]:
            initialise(module, bert.config.initializer_range)

    def hook(self, model):
        """Nothing: the model's forward calls `encode`."""

    def key(self, name):
        part, _, rest = name.partition(".")
        number, _, ending = rest.partition(".")
        attention = "new_attention" if self.top is not None and number == str(self.last) else "attention"
        return _KEYS[part].format(rest=rest, number=number, ending=ending, last=self.last, attention=attention)

    def owner(self, name):
        return None

    def prepare(self, length):
        """Compute the task-dependent inputs of a batch's forward pass: the condition z', which is stored, and CBDA.

        Args:
            length: of the batch's longest sequence, at most L: an entry depends only on its own row of R, so entries
                beyond this length need not be computed.

        Returns:
            [layers, tasks, length, length], to be added to the attention scores.
        """
        tasks = self.conditions.tasks = self.task_transformation(self.task_type_embeddings.weight)
        chunks = [cbda.chunks(tasks, matrix[:length]) for cbda, matrix in zip(self.block_diagonals, self.matrices)]
        return block_diagonal(torch.stack(chunks))

    def encode(self, bert, biases, rows, input_ids, attention_mask, token_type_ids, first_only=False):
        """The hidden states of the conditioned BERT.

        Args:
            bert: the model's BERT.
            biases: the result of `prepare` for this length or a greater one.
            rows: [rows] each row's task id.
            input_ids, attention_mask, token_type_ids: [rows, length], length at most L.
            first_only: compute only what the first position's hidden state depends on.

        Returns:
            [rows, length or 1, width]: output of the last layer's bottleneck in the large form, of the top layer in
            the base form.
        """
        tasks = self.conditions.tasks
        self.conditions.set(tasks, rows)
        hidden = bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        hidden = self.conditional_alignment(self.task_type_embeddings.weight, hidden, rows)
        padding = (1 - attention_mask[:, None, None, :].to(hidden.dtype)) * PADDING
        length, filmed = input_ids.shape[1], 0
        for i, layer in enumerate([*bert.encoder.layer, *([] if self.top is None else [self.top])]):
            mask = biases[i, :, :length, :length].index_select(0, rows).unsqueeze(1) + padding
            if not first_only or i < self.last:
                hidden = layer(hidden, mask)
            elif self.top is not None:
                hidden = layer(hidden, mask, first_only=True)
            else:
                hidden = layer.feed_forward_chunk(attend_first(layer.attention, hidden, mask)[0])
            if self.bottlenecks is not None:
                # It never feeds back into the layers.
                filmed = self.bottlenecks[i](tasks, (hidden[:, :1] if first_only else hidden) + filmed, rows)
        return hidden if self.bottlenecks is None else filmed


class TaskConditions:
    """The conditions of the current batch, shared by the conditional modules inside the backbone.

    The model's forward sets them before its layers run. They are kept until the next forward pass, so layers that are
    recomputed in the backward pass see the same ones.

    Attributes:
        tasks: [tasks, width] one condition per task.
        rows: [rows] index of each row's condition.
    """

    tasks = rows = None

    def set(self, tasks, rows):
        self.tasks, self.rows = tasks, rows

    def __getstate__(self):
        # A copied or pickled model starts without a batch: tensors in the middle of a graph cannot be copied.
        return {}


class FiLM(nn.Module):
    """Feature-wise linear modulation, FiLM(c, x) = (1 + γ(c))·x + β(c), with one Linear for both.

    Args:
        condition: width of c.
        width: width of x.
        layer_norm: normalise the result.
    """

    def __init__(self, condition, width, layer_norm=False):
        super().__init__()
        self.gb_weights = nn.Linear(condition, 2 * width)
        self.layer_norm = nn.LayerNorm(width) if layer_norm else None

    def forward(self, condition, x, rows=None):
        """Modulate.

        Args:
            condition: [n, condition].
            x: [width] or [length, width], the same for every condition; or [n, length, width].
            rows: [m] index of the condition for each row of x, which is then [m, length, width].

        Returns:
            [n, width], [n, length, width] or [m, length, width].
        """
        gamma, beta = self.gb_weights(condition).chunk(2, -1)
        if rows is not None:
            gamma, beta = gamma.index_select(0, rows), beta.index_select(0, rows)
        if x.dim() > 1:
            gamma, beta = gamma.unsqueeze(1), beta.unsqueeze(1)
        x = (1 + gamma) * x + beta
        return x if self.layer_norm is None else self.layer_norm(x)


class ConditionalBlockDiagonal(FiLM):
    """CBDA: a block-diagonal matrix for each condition, added to the attention scores of a layer.

    A matrix R [length, columns], columns = ceil(length / blocks), is modulated and cut into `blocks` chunks of rows
    (the last one may be shorter). These are placed on the diagonal of a matrix whose first `length` columns are kept.

    Args:
        condition: width of the condition.
        length: L, the maximum sequence length.
        blocks: N, published as hidden size // L.
    """

    def __init__(self, condition, length, blocks):
        super().__init__(condition, math.ceil(length / blocks))

    def chunks(self, condition, matrix):
        """condition: [n, condition], matrix: R [length, columns] -> [n, length, columns], not yet on the diagonal."""
        return super().forward(condition, matrix)

    def forward(self, condition, matrix):
        """As `chunks` -> [n, length, length]."""
        return block_diagonal(self.chunks(condition, matrix))


def block_diagonal(chunks):
    """Place the row chunks of a matrix on the diagonal.

    Args:
        chunks: [..., length, columns]; a chunk has as many rows as columns, except that the last may have fewer.

    Returns:
        [..., length, length], 0 outside the blocks: entry (i, j) is chunks[i, j mod columns] if i and j are in the
        same block.
    """
    length, columns = chunks.shape[-2:]
    block = torch.arange(length, device=chunks.device) // columns
    tiled = chunks.repeat(*[1] * (chunks.dim() - 1), math.ceil(length / columns))[..., :length]
    return torch.where(block[:, None] == block, tiled, 0)


class ConditionalLayerNorm(nn.Module):
    """Layer normalisation with weight FiLM(z', w) and a bias that all tasks share.

    It replaces a LayerNorm of the backbone and is called in the same way.

    Args:
        width: the hidden size.
        condition: width of z'.
        conditions: `TaskConditions` of the model.
        eps: epsilon; published as 1e-12.
    """

    def __init__(self, width, condition, conditions, eps=1e-12):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.ln_weight_modulation = FiLM(condition, width)
        self.conditions, self.eps = conditions, eps

    @classmethod
    def like(cls, norm, condition, conditions):
        """A conditional norm initialised with a pretrained LayerNorm's weight, bias and epsilon."""
        conditional = cls(len(norm.weight), condition, conditions, norm.eps)
        with torch.no_grad():
            conditional.weight.copy_(norm.weight)
            conditional.bias.copy_(norm.bias)
        return conditional

    def give_modulation(self):
        """Remove the modulation from this module's parameters and return it; it is still used here. Weight and bias
        belong to the backbone, the modulation to the method."""
        modulation = self._modules.pop("ln_weight_modulation")
        object.__setattr__(self, "ln_weight_modulation", modulation)
        return modulation

    def forward(self, x):
        """x: [rows, length, width] -> the same shape."""
        weight = self.ln_weight_modulation(self.conditions.tasks, self.weight)
        weight = weight.index_select(0, self.conditions.rows).unsqueeze(1)
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias, normed, weight.to(normed.dtype))


class ConditionalBottleneck(nn.Module):
    """c = Linear(z'); FiLM(c, x) -> Linear(width -> width // 3) -> Linear(-> width), without a non-linearity.

    Args:
        width: the hidden size.
        condition: width of z'.
    """

    def __init__(self, width, condition):
        super().__init__()
        self.emb_transf = nn.Linear(condition, width)
        self.hidden_modulation = FiLM(width, width)
        self.down_proj_layer = nn.Linear(width, width // 3)
        self.up_proj_layer = nn.Linear(width // 3, width)

    def forward(self, condition, hidden, rows=None):
        """condition: [n, condition], hidden: [rows, length, width], rows as in `FiLM` -> shape of hidden."""
        modulated = self.hidden_modulation(self.emb_transf(condition), hidden, rows)
        return self.up_proj_layer(self.down_proj_layer(modulated))


class ConditionalTopLayer(nn.Module):
    """The top layer of the base form: a BERT layer with fresh weights and conditional norms, followed by the adapter.

        a   = CondLN(drop(dense(attention(h))) + h)
        y   = CondLN(drop(dense(intermediate(a))) + a)
        out = CondLN(Bottleneck(z', y) + a)

    Args:
        layer: the backbone's top layer; its modules are reused, and the caller must reinitialise their weights.
        condition: width of z'.
        conditions: `TaskConditions` of the model.
    """

    def __init__(self, layer, condition, conditions):
        super().__init__()
        self.new_attention, self.new_intermediate, self.new_output = layer.attention, layer.intermediate, layer.output
        width, eps = layer.output.dense.out_features, layer.output.LayerNorm.eps
        for output in (self.new_attention.output, self.new_output):
            output.LayerNorm = ConditionalLayerNorm(width, condition, conditions, eps)
        self.adapter = nn.Module()
        self.adapter.bottleneck = ConditionalBottleneck(width, condition)
        self.adapter.condlayernorm = ConditionalLayerNorm(width, condition, conditions, eps)
        self.conditions = conditions

    @property
    def attention(self):
        return self.new_attention

    def forward(self, hidden, attention_mask, first_only=False):
        """hidden: [rows, length, width], attention_mask: added to the scores -> as hidden, or the first position."""
        attend = attend_first if first_only else BertAttention.forward
        attended = attend(self.new_attention, hidden, attention_mask)[0]
        fed = self.new_output(self.new_intermediate(attended), attended)
        adapted = self.adapter.bottleneck(self.conditions.tasks, fed, self.conditions.rows)
        return self.adapter.condlayernorm(adapted + attended)


def attend_first(attention, hidden, attention_mask):
    """Output of a BertAttention at the first position only, the one a classifier reads: a single query.

    Args:
        attention: the module.
        hidden: [rows, length, width].
        attention_mask: [rows, 1, length, length], added to the scores.

    Returns:
        ([rows, 1, width],)
    """
    layer, first = attention.self, hidden[:, :1]
    query, key, value = (
        linear(x).unflatten(-1, (-1, layer.attention_head_size)).transpose(1, 2)
        for linear, x in ((layer.query, first), (layer.key, hidden), (layer.value, hidden))
    )
    function = ALL_ATTENTION_FUNCTIONS.get_interface(layer.config._attn_implementation, eager_attention_forward)
    rate = layer.dropout.p if layer.training else 0.0
    context, _ = function(layer, query, key, value, attention_mask[:, :, :1], dropout=rate, scaling=layer.scaling)
    return (attention.output(context.flatten(2), first),)
