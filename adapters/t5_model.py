"""A T5 for several tasks: settings, attaching methods, and choosing and counting trained parameters. See t5.py."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn
from versatile.adapters.attach import WithMethods, check_methods, put_methods
from versatile.adapters.encoder_decoder import padded_right, source_of
from versatile.adapters.imports.hyperformer import original_names
from versatile.adapters.methods.base import is_added
from versatile.adapters.methods.bottleneck import ACTIVATIONS
from versatile.adapters.methods.registry import get_method, method_of
from versatile.adapters.preallocated_cache import mask_for
from versatile.adapters.routing import TaskRouter
from versatile.adapters.schemas import COMBINED_T5, PORT_METHODS, PUBLISHED_T5, check_module_names
from versatile.utils.errors import UserError
from versatile.utils.lengths import IGNORE
from versatile.utils.screen import format_count

METHODS = (*PUBLISHED_T5, *PORT_METHODS)
MODEL_TYPES = ("t5", "mt5")


@dataclass
class T5Settings:
    """How a T5 is adapted; saved with it. Names and defaults are those of the published flags.

    Attributes:
        method: one of `METHODS`, or "combined". "finetune" trains the T5 itself. "adapters": one adapter per task.
            "hyperformer": one hypernetwork per stack, with separate generators for feed-forward and self-attention.
            "hyperformer++": one per stack with a single generator. "meta": one hypernetwork per layer and site
            ("hyperformer-per-layer"). All use adapters/methods/, as on any backbone. "combined": each task has its
            own method and was trained separately.
        method_settings: {setting: value} of the method.
        reduction_factor: the adapters' width is d_model // reduction_factor.
        non_linearity: of the adapters; one of `ACTIVATIONS`.
        add_layer_norm_before_adapter, add_layer_norm_after_adapter: the adapters' norms.
        conditional_layer_norm: for "meta", generate norms too ("hyperformer" and "hyperformer++" always do).
        unique_hyper_net_layer_norm: normalise the embedding that weights are generated from.
        adapters: a name for each task; tasks with the same name share an adapter. None: each has its own.
        task_embeddings: the same for task embeddings.
        task_embedding_dim: size of a task embedding.
        task_embedding_dir: directory with <task embedding>.npy files to load; None: random initialisation.
        parametric_task_embedding: train task embeddings that were given.
        train_task_embeddings: pass task embeddings through a network of `task_hidden_dim` units first.
        projected_task_embedding_dim, task_hidden_dim: sizes of that network and of the hypernetworks' own.
        freeze_…, unfreeze_…: see `trainable`.
    """

    method: str = "finetune"
    method_settings: dict = dataclasses.field(default_factory=dict)
    reduction_factor: int = 16
    non_linearity: str = "swish"
    add_layer_norm_before_adapter: bool = False
    add_layer_norm_after_adapter: bool = True
    conditional_layer_norm: bool = False
    unique_hyper_net_layer_norm: bool = True
    adapters: list | None = None
    task_embeddings: list | None = None
    task_embedding_dim: int = 512
    task_embedding_dir: str | None = None
    parametric_task_embedding: bool = False
    train_task_embeddings: bool = False
    projected_task_embedding_dim: int = 64
    task_hidden_dim: int = 128
    freeze_model: bool = False
    freeze_model_but_lm_head: bool = False
    freeze_embeds: bool = False
    freeze_encoder: bool = False
    freeze_model_but_task_embeddings: bool = False
    unfreeze_lm_head: bool = False
    unfreeze_layer_norms: bool = False
    unfreeze_model: bool = False


class TaskT5(WithMethods):
    """Mixed into a transformers T5's class: `forward` takes one task id per row.

    Attributes:
        tasks: names of the tasks; a task's id is its index.
        settings: `T5Settings`.
        methods: {task: its method}, as in the manifest; {} if the whole T5 is trained.
        router: `TaskRouter` shared by the methods.
    """

    # Whether checkpoints must hold the T5 because it has no name, and the fingerprint of the T5 of that name.
    has_stored_backbone, backbone_fingerprint = False, None

    @property
    def saves_backbone(self):
        """Whether a checkpoint holds the T5 itself: all of it is trained, or it cannot be found by name."""
        if self.has_stored_backbone or self.backbone_fingerprint is None:
            return True
        return all(p.requires_grad for name, p in self.named_parameters() if not is_added(name))

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        encoder_outputs=None,
        past_key_values=None,
        inputs_embeds=None,
        decoder_inputs_embeds=None,
        labels=None,
        use_cache=None,
        task_ids=None,
        num_items_in_batch=None,
        **kwargs,
    ):
        """The T5's forward, with these additional arguments:

        Args:
            task_ids: [rows] one task id per row; -1: no adapter; None if there is only one task.
            num_items_in_batch: the loss is the sum over labels divided by this (default: number of labels).
        """
        rows = decoder_inputs_embeds if decoder_input_ids is None else decoder_input_ids
        if encoder_outputs is not None:
            # Otherwise the rows are routed with the encoder's input.
            self.router.route(task_ids, len(labels if rows is None else rows))
        if rows is not None:
            decoder_attention_mask = mask_for(past_key_values, decoder_attention_mask, rows)
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            task_ids=task_ids,
            **kwargs,
        )
        if labels is not None and num_items_in_batch is not None:
            # transformers' T5 ignores it: gradient accumulation would weight micro-batches equally instead of labels.
            loss = output[0] * ((labels != IGNORE).sum() / num_items_in_batch)
            if isinstance(output, tuple):
                return (loss, *output[1:])
            output.loss = loss
        return output

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None, **kwargs):
        """As in transformers; a recomputed block sees the tasks of its original forward pass."""
        options = dict(gradient_checkpointing_kwargs or {})
        if self.added and options.get("use_reentrant") is not True:
            options |= dict(use_reentrant=False, context_fn=self.router.checkpoint_contexts)
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs=options or None, **kwargs)

    def route_stack(self, stack, args, kwargs):
        """Forward pre-hook of encoder and decoder: route the batch's tasks when the encoder's input arrives."""
        task_ids, block = kwargs.pop("task_ids", None), stack.block[0]
        if self.added and block.gradient_checkpointing and stack.training:
            recompute = getattr(block, "_gradient_checkpointing_func", None)
            if getattr(recompute, "keywords", {}).get("use_reentrant"):
                raise ValueError("gradient checkpointing with use_reentrant=True loses the gradient of generated "
                                 "adapters: use gradient_checkpointing_kwargs={'use_reentrant': False}")  # fmt: skip
        if stack is self.encoder:
            ids = kwargs.get("input_ids", args[0] if args else None)
            self.router.inputs += 1
            self.router.route(task_ids, len(kwargs["inputs_embeds"] if ids is None else ids))
        return args, kwargs

    def read_prompts(self, batch, task_ids):
        """As `EncoderDecoderConditioned.read_prompts`; the decoder begins with only the start token."""
        # Padded on the right as in training, where soft prompts directly precede the first token.
        read = padded_right({name: batch[name] for name in ("input_ids", "attention_mask")})
        states = self.encoder(**read, task_ids=task_ids, return_dict=True).last_hidden_state
        start = torch.full_like(read["input_ids"][:, :1], self.generation_config.decoder_start_token_id)
        source = source_of(self, states, read["attention_mask"])
        return source, dict(input_ids=start, attention_mask=torch.ones_like(start))

    @property
    def task_embedding_controller(self):
        """The `TaskVectors` that the adapters are generated from, or None."""
        return next((method.embeddings for method in self.added.values() if hasattr(method, "embeddings")), None)

    def task_id(self, task):
        """The id of a task; an unknown name raises a `UserError` listing the known ones."""
        if task not in self.tasks:
            raise UserError(f"the model holds the task(s) {', '.join(self.tasks)}, not {task!r}", location="task",
                            expected="a task it was trained for")  # fmt: skip
        return self.tasks.index(task)


def attach(model, tasks, settings, embeddings=None, methods=None):
    """Turn a loaded T5 into a multi-task model.

    Args:
        model: a transformers T5ForConditionalGeneration (or MT5…).
        tasks: their names; a task's id is its index.
        settings: `T5Settings`.
        embeddings: {name: tensor [task_embedding_dim]} of given task embeddings; None: those of
            `settings.task_embedding_dir`, or random ones.
        methods: {task: its method}, with all settings filled in, if `settings.method` is "combined".

    Returns:
        the same model object, its class now also `TaskT5`, with `trainable` already applied.

    Raises:
        UserError: a model of another kind, or settings that do not fit the model or the tasks.
    """
    tasks = list(tasks)
    check_settings(model.config, tasks, settings)
    base = type(model)
    model.__class__ = type(base.__name__, (TaskT5, base), {"__module__": base.__module__})
    model.tasks, model.settings = tasks, dataclasses.replace(settings)
    model.router, model.added = TaskRouter(), nn.ModuleDict()
    model.router.tasks = list(tasks)
    if embeddings is not None and settings.task_embedding_dir is None:
        model.settings.task_embedding_dir = "given"
    model.methods = {}
    if settings.method != "finetune":
        method = _method(settings)
        model.settings.method_settings = {name: value for name, value in method.items() if name != "method"}
        model.methods = methods or dict.fromkeys(tasks, method)
        complete = _complete_methods(model, embeddings)
        check_methods(model, complete)
        put_methods(model, complete)
    for stack in (model.encoder, model.decoder):
        # Before the methods' own hooks, which read the router.
        stack.register_forward_pre_hook(model.route_stack, with_kwargs=True, prepend=True)
    model.to(model.shared.weight.device)
    trainable(model, settings)
    return model


def _method(settings):
    """The method selected by a T5's settings, in the form used in a manifest."""
    method = dict(method=settings.method, **settings.method_settings)
    return method_of(method, "method_settings") if settings.method in PORT_METHODS else method


def _complete_methods(model, embeddings):
    """{task: its method} with all relevant T5 settings, in the form adapters/methods/ expects."""
    settings, tasks = model.settings, model.tasks
    published = dataclasses.asdict(settings)
    if settings.method in PUBLISHED_T5:
        names = settings.adapters
        if settings.method != "adapters":
            names = settings.task_embeddings or tasks
            if embeddings is None and settings.task_embedding_dir is not None:
                embeddings = read_task_embeddings(settings.task_embedding_dir, names, settings.task_embedding_dim)
        published |= dict(names=dict(zip(tasks, names or tasks)), embeddings=embeddings, shared_norms=True,
                          published_start=True)
    return {task: published | method | dict(method=get_method(method["method"]).name)
            for task, method in model.methods.items()}  # fmt: skip


def check_kind(config, location):
    """Raise a `UserError` if a transformers config is not a T5's."""
    kind = getattr(config, "model_type", None)
    if kind not in MODEL_TYPES:
        raise UserError(f"model_type {kind!r} is not supported", location=location,
                        expected="one of " + ", ".join(MODEL_TYPES), remedy="choose a T5")  # fmt: skip


def check_settings(config, tasks, settings):
    """Raise a `UserError` if settings do not fit a T5's config or the tasks."""
    check_kind(config, "the backbone")
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(f"the tasks {list(tasks)}", location="tasks", expected="one name or more, each once")
    for field, value, known in (
        ("method", settings.method, (*METHODS, COMBINED_T5)),
        ("non_linearity", settings.non_linearity, ACTIVATIONS),
    ):
        if value not in known:
            raise UserError(f"{value!r}", location=field, expected="one of " + ", ".join(known))
    for field in ("adapters", "task_embeddings"):
        names = getattr(settings, field)
        if names is not None and len(names) != len(tasks):
            raise UserError(f"{len(names)} names ({', '.join(names)})", location=field,
                            expected=f"one for each of the {len(tasks)} tasks {', '.join(tasks)}")  # fmt: skip
    for flag, what, names in (("tasks", "task", tasks), ("adapters", "adapter", settings.adapters),
                              ("task_embeddings", "task embedding", settings.task_embeddings)):  # fmt: skip
        check_module_names(names or [], flag, what)
    if not 1 <= settings.reduction_factor <= config.d_model:
        raise UserError(f"{settings.reduction_factor}", location="reduction_factor",
                        expected=f"1 to the model's width {config.d_model}")  # fmt: skip
    for field in ("task_embedding_dim", "projected_task_embedding_dim", "task_hidden_dim"):
        if getattr(settings, field) < 1:
            raise UserError(f"{getattr(settings, field)}", location=field, expected="1 or more")


def read_embedding(path):
    """The array in a .npy file; a `UserError` unless it holds finite numbers."""
    import zipfile

    import numpy as np

    try:
        value = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"not a readable .npy file: {error}", location=path, remedy="compute it again") from error
    if not isinstance(value, np.ndarray):
        raise UserError("an archive of arrays, not a .npy file", location=path, remedy="compute it again")
    if value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        raise UserError("holds values that are not finite numbers", location=path, remedy="compute it again")
    return value


def read_task_embeddings(directory, names, size):
    """{name: tensor [size]} from <name>.npy files; anything that does not fit raises a `UserError`."""
    from pathlib import Path

    import numpy as np

    embeddings = {}
    for name in dict.fromkeys(names):
        path = Path(directory) / f"{name}.npy"
        if not path.is_file():
            present = ", ".join(sorted(p.stem for p in Path(directory).glob("*.npy"))) or "none"
            raise UserError(
                f"no such file (embeddings there: {present})",
                location=path,
                expected="an embedding for each task",
                remedy="compute_task_embeddings.py writes them",
            )
        value = read_embedding(path)
        if value.size != size:
            raise UserError(
                f"{value.size} values (shape {list(value.shape)})",
                location=path,
                expected=f"task_embedding_dim, {size}",
                remedy=f"--task_embedding_dim {value.size}",
            )
        embeddings[name] = torch.from_numpy(value.reshape(-1).astype(np.float32))
    return embeddings


# ---- what is trained


def trainable(model, settings):
    """Choose the trained parameters by applying the flags in their published order; later ones override earlier ones.

    By default, an adapter method trains adapters and hypernetworks with their norms and the task embeddings, and the T5
    is frozen. freeze_model: train nothing; freeze_model_but_lm_head: only the output head (if tied, the embeddings);
    freeze_embeds: not the embeddings; freeze_encoder: nothing in the encoder;
    freeze_model_but_task_embeddings: only the task embeddings; unfreeze_lm_head; unfreeze_layer_norms: all layer norms;
    unfreeze_model: everything. Given task embeddings stay fixed unless `parametric_task_embedding`.

    `requires_grad` is set once, here. (The published code set it again in every forward pass, only for the batch's
    task.) The flags are recorded in `model.settings` and so in checkpoints.

    Returns:
        {name: parameter} of all trained parameters.
    """
    for flag in (f.name for f in dataclasses.fields(T5Settings) if "freeze_" in f.name):
        setattr(model.settings, flag, getattr(settings, flag))
    model.requires_grad_(True)
    vectors, names = model.task_embedding_controller, original_names(model)
    if settings.method != "finetune":
        model.requires_grad_(False)
        for name, p in model.named_parameters():
            p.requires_grad_(is_added(name))
    if settings.freeze_model:
        model.requires_grad_(False)
    if settings.freeze_model_but_lm_head:
        model.requires_grad_(False)
        model.lm_head.requires_grad_(True)
    if settings.freeze_embeds:
        for module in (model.shared, model.encoder.embed_tokens, model.decoder.embed_tokens):
            module.requires_grad_(False)
    if settings.freeze_encoder:
        model.encoder.requires_grad_(False)
        for name, p in model.named_parameters():
            if names[name].startswith("encoder."):
                p.requires_grad_(False)
    if settings.freeze_model_but_task_embeddings:
        model.requires_grad_(False)
        if vectors is not None:
            vectors.task_to_embeddings.requires_grad_(True)
    if settings.unfreeze_lm_head:
        model.lm_head.requires_grad_(True)
    if settings.unfreeze_layer_norms:
        for module in model.modules():
            if is_norm(module):
                module.requires_grad_(True)
    if settings.unfreeze_model:
        model.requires_grad_(True)
    if vectors is not None and vectors.fixed:
        vectors.task_to_embeddings.requires_grad_(False)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def is_norm(module):
    """Whether a module is a layer norm: torch's, or that of a T5, whose variants each have their own class."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("LayerNorm")


def _kind(published):
    """The kind of a parameter in `count_parameters`, by its name in the published code."""
    parts = published.split(".")
    if parts[0] == "task_embedding_controller":
        return "task_embeddings"
    if any(p == "adapter_layers_hyper_net" or p.startswith("meta_") or p.endswith("_hypernet") for p in parts):
        return "hypernetworks"
    if parts[0] == "added" or "adapter_controller" in parts:
        return "adapters"
    return "layer_norms" if parts[-2].endswith("layer_norm") else "backbone"


def count_parameters(model):
    """The trained share of a model.

    Returns:
        dict(adapters, hypernetworks, task_embeddings, layer_norms, backbone: trained parameters of each kind, layer
        norms being the T5's and backbone the rest of it; total: parameters of the bare T5).
    """
    counts = dict(adapters=0, hypernetworks=0, task_embeddings=0, layer_norms=0, backbone=0, total=0)
    names = original_names(model)
    for name, p in model.named_parameters():
        if p.requires_grad:
            counts[_kind(names[name])] += p.numel()
        # A tied head counts with the table, also where it was put in half precision (`halve_frozen`).
        if not is_added(name) and not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            counts["total"] += p.numel()
    return counts


def parameter_summary(model):
    """One line for the log: the trained parameters and their share of the T5, in total and per task."""
    counts = count_parameters(model)
    total = counts.pop("total")
    trained = sum(counts.values())
    parts = " + ".join(f"{kind.replace('_', ' ')} {n:,}" for kind, n in counts.items() if n) or "nothing"
    share = 100 * trained / total
    if trained > total:
        # In a very small T5 the adapters may outnumber its own parameters.
        return f"trained: {parts} = {trained:,} parameters; the T5 itself has {total:,}"
    return f"trained: {parts} = {share:.2f} % of {format_count(total)} ({share / len(model.tasks):.2f} % per task)"
