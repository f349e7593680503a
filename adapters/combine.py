"""Combine tasks of several trained models on the same backbone into one model.

A task consists of its adapters and its rows (with an untied head, also output rows), which are copied unchanged, so
the combined model gives exactly the outputs of the task's source model. Released checkpoints also score other tasks'
markers. Combining them follows the original: each task's embeddings come from its own checkpoint; outputs equal those
of the task's source model, but perplexity, which counts the other markers, does not.
Two details differ from the original. It gives `<pad>` a fresh random row; here the sources' row is kept if all have the
same one, otherwise `<pad>` is never scored. It also drops the `p_gen_linear` that every task trained separately; here
self-copy is limited to tasks of one source.
"""

import copy
import gc
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from versatile.adapters import checkpoint, manifest
from versatile.adapters.attach import TaskConditioned, attach
from versatile.adapters.backbones import loading as backbones
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.backbones.quantized import number_of_values
from versatile.adapters.methods import pointer as self_copy
from versatile.adapters.methods.base import added_parameters, is_added
from versatile.adapters.methods.registry import BARE, FULL, get_method
from versatile.utils.errors import UserError

# Tolerance for a combined model's scores relative to the largest (`compare_scores`), as rounding errors scale with the
# scores. On a CPU the difference is 0; other kernels may round differently.
SCORE_TOLERANCE = 1e-4


@dataclass
class Source:
    """One task's part of a trained model, with the information about the model needed once it is no longer loaded.

    Attributes:
        task: its name.
        flag: the flag that named it, for errors.
        directory: the checkpoint.
        markers, method, history: the task's; history is None if unknown.
        held: all tasks of the checkpoint.
        state: {key of `checkpoint.adapter_state`: tensor} of the task.
        common: the same for tensors that belong to no task: `<pad>`'s row, a pointer's gate.
        mask_other_tasks, self_copy, freeze, save_backbone: as in `TaskModelInfo`.
        backbone: {property: value} of the backbone, in the order of comparison.
        definition: the definition of a user-defined task, or None.
    """

    task: str
    flag: str
    directory: Path
    markers: list
    method: dict
    history: int | None
    held: list
    state: dict
    common: dict
    mask_other_tasks: bool
    self_copy: bool
    freeze: bool
    save_backbone: bool
    backbone: dict
    definition: dict | None = None


def open_source(directory, tasks=None):
    """(model, tokenizer) of a trained model with adapters.

    Args:
        directory: a run, one of its checkpoints, a VLM, or a released checkpoint.
        tasks: names of the requested tasks; None: all it holds.

    Raises:
        UserError: no usable model, a model without adapters, or a task it does not hold.
    """
    # Exceptions caught by transformers keep frames alive, so a previously loaded model would stay in memory.
    gc.collect()
    path, flag = Path(directory), source_flag(directory, tasks and tasks[0])
    backbones.need_directory(path, flag, "a run directory, a VLM or a released checkpoint")
    source = manifest.peek(path)
    refuse_shared(source, tasks, directory)
    manifest.need_language_model(path, flag)
    manifest.refuse_question_model(source, path, flag)
    if source is None or source.mode == "full":
        # Report more specific errors first: a run that has not saved yet, a damaged config.
        backbones.read_config(path, flag)
        raise _not_adapters(flag, "fully fine-tuned model" if source else "bare backbone")
    try:
        # Of requested tasks each is checked below; the others are not used.
        model, tokenizer = checkpoint.load_checkpoint(path, tasks and tasks[0], flag=flag, allow_idle=bool(tasks))
    except UserError as error:
        if not str(error.location).startswith("--") or error.location == flag:
            raise
        # Errors from loading name flags of other scripts.
        what, _, name = str(error.location).partition(" ")
        raise UserError(f"{name or what}: {error.found}", location=flag, expected=error.expected,
                        remedy=error.remedy) from error  # fmt: skip
    if model.info.mode == "full":
        raise _not_adapters(flag, "fully fine-tuned model")
    if missing := [task for task in tasks or [] if task not in model.info.markers]:
        raise missing_task(source_flag(directory, missing[0]), model.info.tasks, missing[0])
    for task in () if source.released else tasks or ():
        model.added[model.info.methods[task]["method"]].refuse_idle(task, source_flag(directory, task))
    return model, tokenizer


def refuse_shared(source, tasks, directory):
    """Raise a `UserError` if a requested task's method shares parameters; `source` is a `Manifest` or None."""
    for task in (tasks or source.tasks) if source else ():
        name = source.methods.get(task, {}).get("method")
        if name in (None, FULL):
            continue
        reason = get_method(name).load_class().shared
        remedy = "train the tasks together, or each with --method bottleneck"
        if not reason and (trained := source.config.get("trained_backbone")):
            reason = f"{trained[0]} of its backbone was trained too, which all tasks go through"
            remedy = "train it on a frozen T5: --unfreeze_layer_norms false"
        if reason:
            raise UserError(
                f"task {task!r} was trained with {name}: {reason}",
                location=source_flag(directory, tasks and task),
                expected="a method whose parameters belong to one task each",
                remedy=remedy,
            )


def source_flag(directory, task=None):
    """The flag that named a source."""
    return f"--checkpoints {task}={directory}" if task else f"--into {directory}"


def missing_task(flag, tasks, task):
    """The `UserError` for a task that a source, which holds `tasks`, was not trained for."""
    return UserError(f"holds the task(s) {', '.join(tasks)}, not {task!r}", location=flag, remedy="name another",
                     expected=f"a checkpoint that was trained for {task!r}")  # fmt: skip


def repeated_task(flag, task, earlier):
    """The `UserError` for a task that an earlier source also has."""
    return UserError(f"task {task!r} is given twice", location=flag, expected=f"each task once; {earlier} has it too",
                     remedy="leave one out")  # fmt: skip


def _not_adapters(flag, what):
    return UserError(f"this is a {what}: a task cannot be taken out of it", location=flag,
                     expected="a backbone with adapters or task embeddings",
                     remedy="train one: train.py --adapter_bottleneck N")  # fmt: skip


def read_sources(directory, tasks=None):
    """The `Source` of each task; arguments and errors as in `open_source`. The model itself is not kept in memory."""
    model, tokenizer = open_source(directory, tasks)
    info, state, owners = model.info, checkpoint.adapter_state(model), checkpoint.owners_of_keys(model)
    backbone, common = _backbone(model, tokenizer), {k: p for k, p in state.items() if owners[k] is None}
    return [
        Source(
            task=task, flag=source_flag(directory, tasks and task), directory=Path(directory),
            markers=info.markers[task],
            method=info.methods[task], history=info.histories.get(task), held=info.tasks,
            definition=info.definitions.get(task),
            state={k: p for k, p in state.items() if owners[k] == task}, common=common,
            mask_other_tasks=info.mask_other_tasks, self_copy=info.self_copy, freeze=info.freeze,
            save_backbone=info.save_backbone, backbone=backbone,
        )
        for task in tasks or info.tasks
    ]  # fmt: skip


def _backbone(model, tokenizer):
    """Properties that identify a model's backbone, coarsest first, under the names used in errors."""
    config = model.config
    return {
        "model_type": config.model_type,
        "hidden size": config.hidden_size,
        "number of positions": backbone_of(config).max_length(config),
        "vocabulary size": model.info.first,
        "tokenizer (hash)": tokenizer_hash(tokenizer, model.info.first),
        "quantisation": getattr(model, "quantization", None) or "none",
        "backbone (fingerprint of its weights)": backbones.fingerprint(checkpoint.backbone_state(model)),
    }


def tokenizer_hash(tokenizer, first):
    """A hash of everything that determines a text's base ids; added markers are ignored."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] == "Unigram":
        # A score may lose its last digit when it is written and read back.
        backend["model"]["vocab"] = [(piece, round(score, 6)) for piece, score in backend["model"]["vocab"]]
    added = {t["content"]: t["id"] for t in backend["added_tokens"] if t["id"] < first}
    parts = [backend["model"], backend["normalizer"], backend["pre_tokenizer"], added]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def check_sources(sources):
    """Check that sources can be combined.

    Raises:
        UserError: two sources disagree; the error names both and the difference.
    """
    first, flags_of_tasks = sources[0], {}
    check_backbones(sources)
    for source in sources:
        if source.task in flags_of_tasks:
            raise repeated_task(source.flag, source.task, flags_of_tasks[source.task])
        flags_of_tasks[source.task] = source.flag
        if source.mask_other_tasks != first.mask_other_tasks:
            kinds = {True: "the task's own markers only", False: "all markers, as released checkpoints do"}
            raise UserError(f"the model scores {kinds[source.mask_other_tasks]}", location=source.flag,
                            expected=f"as {first.flag}, which scores {kinds[first.mask_other_tasks]}")  # fmt: skip
    _check_self_copy(sources)


def check_backbones(sources):
    """Raise a `UserError` if two sources were trained on different backbones."""
    first = sources[0]
    for source in sources:
        for what, value in first.backbone.items():
            if source.backbone[what] != value:
                raise UserError(f"{what} is {source.backbone[what]}", location=source.flag,
                                expected=f"{value}, as in {first.flag}",
                                remedy="combine tasks that were trained on the same frozen backbone")  # fmt: skip


def _check_self_copy(sources):
    pointers = [s for s in sources if s.self_copy]
    if not pointers:
        return
    one, remedy = pointers[0], "combine tasks trained without --self_copy"
    if other := next((s for s in sources if s.directory != one.directory), None):
        raise UserError("trained with --self_copy: its gate serves only its own tasks", location=one.flag,
                        expected=f"no other source; {other.flag} is one", remedy=remedy)  # fmt: skip
    if left_out := [task for task in one.held if task not in [s.task for s in sources]]:
        # The copy distribution is weighed against the scores of all markers in training.
        raise UserError(f"trained with --self_copy for {left_out[0]!r} too", location=one.flag,
                        expected="all tasks of this checkpoint, or none", remedy=f"add {left_out[0]}=…")  # fmt: skip


def build_combined_model(sources):
    """One model that holds the sources' tasks, whose order gives the task ids.

    Args:
        sources: as returned by `read_sources`, checked.

    Returns:
        (model in eval mode, tokenizer)
    """
    first, frozen = sources[0], all(s.freeze for s in sources)
    model, tokenizer = _bare(first)
    markers = {s.task: s.markers for s in sources}
    methods = {s.task: s.method for s in sources}
    attach(model, tokenizer, markers, methods, first.mask_other_tasks, freeze=frozen,
           save_backbone=first.save_backbone or not frozen)  # fmt: skip
    state = {key: tensor for s in sources for key, tensor in s.state.items()}
    state |= {key: tensor for key, tensor in first.common.items() if all(_has(s, key, tensor) for s in sources)}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.rows.spare_scores = "spare_rows" in state
    if first.self_copy:
        self_copy.add(model)
    model.info.histories = {s.task: s.history for s in sources if s.history is not None}
    model.info.definitions = {s.task: s.definition for s in sources if s.definition}
    checkpoint.set_adapter_state(model, state, "the combined model")
    return model.eval(), tokenizer


def _has(source, key, tensor):
    return key in source.common and torch.equal(source.common[key], tensor)


def _bare(source):
    """(backbone, tokenizer) of a source, as they were before anything was attached."""
    model, _ = open_source(source.directory, [source.task])
    if not model.info.save_backbone:
        name, seed, bits = model.config._name_or_path, model.random_init_seed, getattr(model, "quantization", None)
        del model
        return backbones.load_backbone(name, seed, quantization=bits)
    config = copy.deepcopy(model.config)
    config.vocab_size = len(model.get_input_embeddings().weight)
    kind = next(c for c in type(model).__mro__ if hasattr(c, "from_pretrained") and not issubclass(c, TaskConditioned))
    bare = kind(config)
    # In an encoder-decoder both sides share one input table, whether or not the head is tied to it.
    bare.set_input_embeddings(bare.get_input_embeddings())
    bare.load_state_dict(checkpoint.backbone_state(model))
    bare.random_init_seed, bare.backbone_fingerprint = None, source.backbone["backbone (fingerprint of its weights)"]
    return bare.eval(), model.bare_tokenizer


def require_same_backbone(model, source, flag):
    """Raise a `UserError` unless two attached models' backbones are equal in every value, not just in fingerprint."""
    ours, theirs = checkpoint.backbone_state(model), checkpoint.backbone_state(source)
    for name, tensor in theirs.items():
        if name not in ours or not torch.equal(ours[name], tensor):
            raise UserError(f"{name} of its backbone differs, though the fingerprints are equal", location=flag,
                            expected="the backbone of the other sources")  # fmt: skip


@torch.no_grad()
def largest_difference(ours, theirs, task, sequences):
    """Largest difference between two models' scores of a task, over all positions, the base and the task's columns.

    Args:
        ours, theirs: (model, tokenizer).
        task: its name.
        sequences: [((ids, types, prompt length) for our model, the same for theirs)], ids and types being lists;
            without a length the whole sequence is the prompt. Sequences run one by one, so there is no padding and
            every batch has only this task.

    Returns:
        (largest absolute difference, the same relative to the largest score); nan if a score is nan.
    """
    models = (ours, theirs)
    return compare_scores([_scores(*model, task, inputs) for model, inputs in zip(models, sequence)]
                          for sequence in sequences)  # fmt: skip


def compare_scores(pairs):
    """Largest difference between the scores of two models.

    Args:
        pairs: an iterable of (our scores, their scores), tensors of the same shape.

    Returns:
        (largest absolute difference, the same relative to the largest of their scores); nan if a score is nan.
    """
    gap, largest = torch.zeros(()), torch.zeros(())
    for a, b in pairs:
        # Not Python's max, which would ignore a nan.
        gap = torch.maximum(gap, (a - b).abs().max().cpu())
        largest = torch.maximum(largest, b.abs().max().cpu())
    return gap.item(), (gap / largest.clamp_min(1e-30)).item()


def _scores(model, tokenizer, task, sequence):
    """Scores [positions, base vocabulary + the task's markers] of one sequence."""
    device = next(model.parameters()).device
    ids, types = (torch.tensor([part], device=device) for part in sequence[:2])
    prompt_length = sequence[2] if len(sequence) > 2 else ids.shape[1]
    scores = model.scores_along(ids, types, prompt_length, torch.tensor([model.task_id(task)]))[0].float()
    own = tokenizer.convert_tokens_to_ids(model.info.markers[task])
    return torch.cat([scores[:, : model.info.first], scores[:, own]], dim=-1)


def count_task_parameters(model):
    """Parameters that the tasks of an attached model add to its backbone, compared with one full model per task.

    Returns:
        dict(tasks: {name: dict(bottleneck: width, adapters, rows: parameters of each)}, backbone: its parameters,
        added: parameters of all tasks, together: backbone and added, separate: one full model per task)
    """
    tasks = {t: dict(bottleneck=model.info.bottlenecks[t], adapters=0, rows=0) for t in model.info.tasks}
    backbone = sum(number_of_values(p) for name, p in model.named_parameters() if not is_added(name))
    for method, name, p in added_parameters(model):
        if (task := method.owner(name)) in tasks:
            tasks[task]["rows" if method.name == BARE else "adapters"] += p.numel()
    added = sum(t["adapters"] + t["rows"] for t in tasks.values())
    return dict(tasks=tasks, backbone=backbone, added=added, together=backbone + added, separate=len(tasks) * backbone)
