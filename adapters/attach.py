"""Attach task embeddings and adaptation methods (adapters/methods/) to a loaded transformers model.

It remains a transformers model, `generate` included: its blocks get forward hooks, its embedding and head are
wrapped, and its class becomes a subclass whose `forward` accepts `task_ids` in addition to the usual arguments.
No block's forward is copied or overridden.
"""

import copy
import re
from dataclasses import dataclass, field

import torch
from versatile.adapters import masks  # noqa: F401  (masks are not read on a GPU)
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.backbones.quantized import refuse_training
from versatile.adapters.labels import LabelScores, label_positions
from versatile.adapters.methods.base import are_separate, parameters_of_tasks  # noqa: F401  (part of this interface)
from versatile.adapters.methods.registry import BARE, get_method, method_of
from versatile.adapters.preallocated_cache import mask_for
from versatile.adapters.routing import TaskRouter
from versatile.adapters.schemas import check_module_names
from versatile.adapters.trained import (  # noqa: F401  (part of this interface)
    count_parameters,
    halve_frozen,
    only_tables,
    parameter_summary,
    table_weights,
    trainable,
)  # fmt: skip

PAD = "<pad>"


@dataclass
class TaskModelInfo:
    """What an attached model knows about itself; saved with it.

    Attributes:
        mode: "adapter" (the backbone is frozen unless `freeze` is False) or "full" (everything is trained).
        markers: {task: its special tokens in order}; the order of tasks gives their ids.
        methods: {task: {"method": its name, setting: value, ...}} (adapters/methods/registry.py); {} for "full".
        first: id of the first added token; smaller ids are the backbone's vocabulary.
        mask_other_tasks: a task's scores cover only the base vocabulary and the task's own tokens.
            False for released checkpoints, whose softmax included the other tasks' columns.
        freeze: the backbone is frozen while adapters are trained; False: it is trained too.
        save_backbone: a checkpoint holds the backbone itself instead of its name.
        self_copy: the output is a mixture with a pointer (adapters/methods/pointer.py).
        histories: {task: number of conversation exchanges it was trained with}, where known.
        definitions: {task: its definition}, for user-defined tasks; see `data.own_tasks`.
        encoder: how the tasks' examples become ids: "markers", whose rows also serve as token types, or
            "question_answer".
        chained: see `chain_tasks`.
    """

    mode: str
    markers: dict
    methods: dict
    first: int
    mask_other_tasks: bool = True
    freeze: bool = True
    save_backbone: bool = False
    self_copy: bool = False
    histories: dict = field(default_factory=dict)
    definitions: dict = field(default_factory=dict)
    encoder: str = "markers"
    chained: bool = False

    @property
    def tasks(self):
        """Task names; a task's id is its index here."""
        return list(self.markers)

    @property
    def bottlenecks(self):
        """{task: width of its bottleneck adapter}, 0 if it has none."""
        return {task: method.get("adapter_bottleneck", 0) for task, method in self.methods.items()}


def attention_of(model, wanted):
    """The attention implementation that a method of the model requires, otherwise the one wanted."""
    return next((method.attention for method in model.added.values() if method.attention), wanted)


class WithMethods:
    """Mixed into a transformers model's class: `added` holds everything added to the backbone, one entry per method."""

    def set_attn_implementation(self, attn_implementation, *args, **kwargs):
        """As in transformers, except that an implementation required by a method takes precedence."""
        super().set_attn_implementation(attention_of(self, attn_implementation), *args, **kwargs)


class TaskConditioned(WithMethods):
    """Mixed into a transformers causal LM's class: `forward` takes one task id per row.

    Attributes:
        info: `TaskModelInfo`.
        router: `TaskRouter` shared by the adapter banks.
    """

    @property
    def saves_backbone(self):
        """Whether a checkpoint holds the backbone itself."""
        return self.info.mode == "full" or self.info.save_backbone

    def forward(
        self,
        input_ids=None,
        past_key_values=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        task_ids=None,
        **kwargs,
    ):
        """The backbone's forward, with these changes:

        Args:
            token_type_ids: [rows, length] ids whose embeddings are added to the tokens', or None.
            task_ids: [rows] one task id per row; -1: no adapter; None if there is only one task.
            labels: [rows, length], unshifted, -100 where there is no loss. With labels the output is `LabelScores`:
                scores are computed only at labelled positions.

        A batch with labels is best left on the CPU, where reading it does not wait for the GPU; what the device needs
        is copied there.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, token_type_ids)
        ids = self.router.route(task_ids, inputs_embeds.shape[0])
        model_inputs = dict(
            inputs_embeds=inputs_embeds,
            attention_mask=mask_for(past_key_values, on_device(attention_mask, inputs_embeds.device), inputs_embeds),
            position_ids=on_device(position_ids, inputs_embeds.device),
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        if labels is None:
            return self.all_scores(model_inputs, logits_to_keep)
        return self.label_scores(self.base_model(**model_inputs)[0], labels, ids)

    def input_states(self, input_ids, attention_mask, task_ids=None):
        """Last hidden states [rows, length, width] of the input, which is padded on the right."""
        self.router.route(task_ids, len(input_ids))
        embeds = self.embed(input_ids)
        attention_mask = on_device(attention_mask, embeds.device)
        return self.base_model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False)[0]

    def embed(self, ids, types=None):
        """Embeddings [rows, length, width] of tokens and their types."""
        embed = self.get_input_embeddings()
        ids, types = (on_device(tensor, embed.weight.device) for tensor in (ids, types))
        return embed(ids) if types is None else embed(ids) + embed(types)

    def scores_along(self, input_ids, token_type_ids, prompt_length, task_ids=None):
        """Scores [rows, positions, vocabulary] of equally long rows whose targets begin at `prompt_length`."""
        return self(input_ids=input_ids, token_type_ids=token_type_ids, task_ids=task_ids).logits

    def decoding_inputs(self, batch):
        """Left-padded prompts, a dict of tensors -> (arguments for `generate`, number of ids before its output)."""
        return batch, batch["input_ids"].shape[1]

    def all_scores(self, model_inputs, logits_to_keep=0):
        """The backbone's own output for the arguments `model_inputs`, with scores at the last `logits_to_keep`
        positions (0: all)."""
        return super().forward(logits_to_keep=logits_to_keep, **model_inputs)

    def label_scores(self, hidden, labels, ids):
        """Scores at labelled positions only.

        Args:
            hidden: [rows, length, width] last hidden states.
            labels: [rows, length], unshifted, -100 where there is no loss.
            ids: the rows' task ids, a list.

        Returns:
            `LabelScores`
        """
        rows, at, targets = (on_device(tensor, hidden.device) for tensor in label_positions(labels))
        picked = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows * labels.shape[1] + at)
        head = self.get_output_embeddings()
        if self.info.mask_other_tasks and len(self.info.markers) > 1 and self.info.mode == "adapter":
            return LabelScores(head(picked, self._foreign_columns(ids, picked.device)[rows]), targets, rows)
        return LabelScores(head(picked), targets, rows)

    def _foreign_columns(self, ids, device):
        """[rows, added tokens], true where an added token belongs to a task other than the row's."""
        embedding = self.get_output_embeddings().rows
        columns = [None] * len(embedding.spare) + [t for t, rows in embedding.tasks.items() for _ in rows]
        of_task = {i: [c is not None and (i < 0 or c != self.info.tasks[i]) for c in columns] for i in set(ids)}
        return torch.tensor([of_task[i] for i in ids], device=device)

    def task_id(self, task):
        """The id of a task; an unknown name raises a KeyError listing the known ones."""
        if task not in self.info.markers:
            raise KeyError(f"task {task!r} is not in this model; it holds {self.info.tasks}")
        return self.info.tasks.index(task)

    def tie_weights(self, *args, **kwargs):
        """As in transformers in "full" mode; otherwise a no-op, as wrapped tables already share what they share."""
        if self.info.mode == "full":
            super().tie_weights(*args, **kwargs)

    def gradient_checkpointing(self):
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        checkpointing = dict(use_reentrant=False, context_fn=self.router.checkpoint_contexts)
        self.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)


def on_device(tensor, device):
    """Move a tensor, or None, to a device without blocking the host."""
    return None if tensor is None else tensor.to(device, non_blocking=True)


def add_tokens(tokenizer, markers):
    """Append `<pad>` and the tasks' markers to the tokenizer as special tokens, in order.

    Returns:
        id of the first added token.

    Raises:
        ValueError: a marker is already a token.
    """
    from tokenizers import AddedToken

    wanted = [m for names in markers.values() for m in names]
    vocabulary = tokenizer.get_vocab()
    clash = [m for m in wanted if m in vocabulary]
    if clash:
        raise ValueError(f"the tokenizer already has the tokens {clash}; a task's markers must be new")
    first = len(tokenizer)
    names = ([] if PAD in vocabulary else [PAD]) + wanted
    tokenizer.add_tokens([AddedToken(n, special=True, normalized=False) for n in names], special_tokens=True)
    tokenizer.pad_token = PAD
    return first


def start_rows_from_words(model, tokenizer, task, std=None):
    """Initialise a task's embeddings from the words in their markers' names instead of at random.

    `<customerRating>` starts as the mean of the base embeddings of " customer", " rating", scaled to the standard
    deviation of a random row. A marker then points in the direction of its words from the first step, while
    a type embedding is still a small addition to a token's own.
    """
    words = {"bos": "beginning", "eos": "end"}
    std = model.row_std if std is None else std
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    for module in {id(m): m for m in (embed, head)}.values():
        table = module.weight.detach()
        rows = module.rows.tasks[task] if model.info.mode == "adapter" else module.weight
        for i, marker in enumerate(model.info.markers[task]):
            # "<customerRating>" -> customer rating, "<bos_nlg>" -> beginning
            parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", marker)
            parts = [words.get(p.lower(), p.lower()) for p in parts if p.lower() != task] or [marker]
            ids = tokenizer(" " + " ".join(parts), add_special_tokens=False).input_ids
            at = i if model.info.mode == "adapter" else tokenizer.convert_tokens_to_ids(marker)
            mean = table[ids].mean(0)
            with torch.no_grad():
                rows[at] = mean * (std / mean.std())


def attach(
    model, tokenizer, markers, methods=None, mask_other_tasks=True, std=None, *, freeze=True, save_backbone=None
):
    """Turn a loaded backbone into a multi-task model.

    Args:
        model: a transformers language model of a known family.
        tokenizer: its fast tokenizer; `<pad>` and the markers are added to it.
        markers: {task: its special tokens in order}.
        methods: {task: its method}, in any form `methods.registry.method_of` accepts, to freeze the backbone and train
            the added parameters and task embeddings (a number: a bottleneck adapter of this width, 0: embeddings only);
            None to train everything.
        mask_other_tasks: see `TaskModelInfo`.
        std: standard deviation of new rows at initialisation (default: the family's).
        freeze: with `methods`, False trains the backbone too.
        save_backbone: save the backbone itself in checkpoints (default: when it is not frozen), so that it can be
            found again.

    Returns:
        the same model object, its class now also `TaskConditioned`.

    Raises:
        UserError: a method that does not fit the backbone; a task name that torch rejects.
    """
    methods = None if methods is None else {task: method_of(value) for task, value in methods.items()}
    backbone = backbone_of(model.config)
    check_methods(model, methods or {})
    if methods is not None:
        check_module_names(markers, "--tasks", "task")
    if methods is None or not freeze:
        refuse_training(model, "this run")
    # A backbone inside a checkpoint is saved with its original tokenizer, without the tokens added below.
    bare = copy.deepcopy(tokenizer) if methods is not None and (save_backbone or not freeze) else None
    model.row_std = std = backbone.row_std(model) if std is None else std
    first = add_tokens(tokenizer, markers)
    info = TaskModelInfo(
        mode="full" if methods is None else "adapter",
        markers={task: list(names) for task, names in markers.items()},
        methods=methods or {},
        first=first,
        mask_other_tasks=mask_other_tasks,
        freeze=freeze or methods is None,
        save_backbone=bare is not None,
    )
    make_task_conditioned(model, info)
    model.bare_tokenizer = bare
    if info.mode == "full":
        _grow_tables(model, len(tokenizer), std)
        return model
    model.requires_grad_(not freeze)
    model.spare_rows = len(tokenizer) - first - sum(map(len, markers.values()))
    put_method(model, BARE, {task: {} for task in markers})
    put_methods(model, {task: method for task, method in methods.items() if method["method"] != BARE})
    return model


def chain_tasks(model):
    """Let each task's rows see its own prompt followed by those of earlier tasks (ProgressivePrompts).

    Raises:
        UserError: together the prompts are longer than the model can read.
    """
    backbone = backbone_of(model.config, head=getattr(model, "head", "lm"))
    for name, tasks in _by_method(model.info.methods).items():
        get_method(name).load_class().check_chain(model, backbone, list(tasks.values()))
    model.info.chained = model.router.chained = True


def check_methods(model, methods):
    """Raise a `UserError` if a task's method does not fit a backbone.

    Args:
        model: the backbone, before or after `attach`.
        methods: {task: method}, with all settings filled in.
    """
    backbone = backbone_of(model.config, head=getattr(model, "head", "lm"))
    for settings in methods.values():
        name = settings["method"]
        kind = get_method(name).load_class()
        kind.check(name, backbone, settings, f"--method {name}")
        kind.check_model(model, backbone, settings)


def put_methods(model, methods):
    """Add the methods of tasks, {task: method}, to a model, one `put_method` call per method."""
    for name, tasks in _by_method(methods).items():
        put_method(model, name, tasks)


def _by_method(methods):
    """{name: {task: method}} of {task: method}, in the order of tasks."""
    result = {}
    for task, method in methods.items():
        result.setdefault(method["method"], {})[task] = method
    return result


def put_method(model, name, tasks):
    """Add a method and the tasks that use it, {task: settings}, to a model; a method already present gets the tasks."""
    if name in model.added:
        model.added[name].build(model, tasks)
        return
    method = get_method(name).load_class()(model, name)
    method.build(model, tasks)
    model.added[name] = method
    method.hook(model)
    if method.attention:
        model.set_attn_implementation(method.attention)


def add_method(model, task, value):
    """Add a method to a task that only has task embeddings; arguments as in `attach`."""
    settings = method_of(value)
    check_methods(model, {task: settings})
    put_method(model, settings["method"], {task: settings})
    model.info.methods[task] = settings


def make_task_conditioned(model, info):
    """Swap the model's class for a subclass with `TaskConditioned`; its name stays, so saved configs stay correct."""
    # Imported here: it imports this module.
    from versatile.adapters.encoder_decoder import EncoderDecoderConditioned

    base, causal = type(model), not backbone_of(model.config).encoder_decoder
    kinds = TaskConditioned if causal else EncoderDecoderConditioned, base
    model.__class__ = type(base.__name__, kinds, {"__module__": base.__module__})
    model.info = info
    model.router = TaskRouter()
    model.router.tasks = info.tasks
    model.added = torch.nn.ModuleDict()


def keep_tasks(model, order):
    """Restrict an attached model to the tasks in `order`, whose position gives their ids.

    Token ids and rows are unchanged: a released checkpoint orders its rows and its task ids differently, and a
    single-task one also holds the other tasks' embeddings.
    """
    info = model.info
    info.markers = {task: info.markers[task] for task in order}
    info.methods = {task: info.methods[task] for task in order}
    model.router.tasks = info.tasks


def _grow_tables(model, size, std):
    """Full fine-tuning: enlarge the tables themselves. New rows start from N(0, std) as in the original."""
    old = model.get_input_embeddings().weight.shape[0]
    if size > old:
        model.resize_token_embeddings(size, mean_resizing=False)
        with torch.no_grad():
            for table in table_weights(model):
                table[old:].normal_(std=std)


def join(model, tokenizer, markers, methods, modules):
    """Append tasks to an adapter model; their rows must already be in its tables.

    Args:
        tokenizer: the model's; the markers are added to it.
        markers: {task: its special tokens in order}, all new to the tokenizer.
        methods: {task: method}, with all settings filled in.
        modules: {task: its modules as created by `TaskModules.create`}, for tasks that have any.
    """
    add_tokens(tokenizer, markers)
    for task, blocks in modules.items():
        name = methods[task]["method"]
        if name not in model.added:
            put_method(model, name, {})
        model.added[name].insert(model, task, blocks)
    model.info.markers |= {task: list(names) for task, names in markers.items()}
    model.info.methods |= methods
    model.router.tasks = model.info.tasks
    model.config.vocab_size = model.info.first + len(model.get_input_embeddings().rows)


def compile_blocks(model):
    """torch.compile each block separately: one short compilation serves all blocks of a model."""
    for block in backbone_of(model.config).blocks(model):
        block.compile()
