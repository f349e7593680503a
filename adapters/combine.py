"""Several trained models of the same backbone become one that holds a task of each.

What belongs to a task is its adapters and its own rows (output rows too beside an untied head); each is taken as it
is, so the result answers a task as the task's own model did, to the last bit. Models of a released checkpoint score
foreign markers too: there a combination is what the original's was, every task's embeddings from its own checkpoint,
and its perplexity, which counts foreign markers, is not that of the task's own model; its outputs are.
Two things are not taken as the original takes them. It gives `<pad>` a fresh random row: here the sources' row is kept
where they all have the same, else `<pad>` is never scored. And it drops the `p_gen_linear` that every task trained
for itself: here self-copy is for tasks of one source only.
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
from versatile.adapters.methods import pointer as self_copy
from versatile.adapters.methods.base import added_parameters
from versatile.adapters.methods.registry import BARE, FULL, get_method
from versatile.utils.errors import UserError

# What scores of a combined model may differ by, as a share of the largest (`compare_scores`): rounding, which is of the
# size of the scores. On a CPU the difference is 0; other kernels may round otherwise.
LARGEST_SHARE = 1e-4


@dataclass
class Source:
    """A task's share of a trained model, and what is to be known of its model when that is gone.

    Attributes:
        task: its name.
        flag: what the user typed to name it, for errors.
        directory: the checkpoint.
        markers, method, history: the task's; history is None where it is not known.
        held: all tasks of the checkpoint.
        state: {key of `checkpoint.adapter_state`: tensor} of the task.
        common: the same of what belongs to no task: `<pad>`'s row, a pointer's gate.
        mask_other_tasks, self_copy, freeze, save_backbone: as in `TaskModelInfo`.
        backbone: {what is compared: value}, in the order it is compared in.
        definition: what defines a task of the user's own, or None.
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
        tasks: names of the tasks asked for; None: all it holds.

    Raises:
        UserError: nothing usable there, a model without adapters, a task it does not hold.
    """
    # What transformers caught while loading keeps frames alive: a model loaded before would stay beside this one.
    gc.collect()
    path, flag = Path(directory), source_flag(directory, tasks and tasks[0])
    backbones.need_directory(path, flag, "a run directory, a VLM or a released checkpoint")
    source = manifest.peek(path)
    refuse_shared(source, tasks, directory)
    manifest.need_language_model(path, flag)
    if source is None or source.mode == "full":
        # Its own errors first: a run that has not saved yet, a damaged config.
        backbones.read_config(path, flag)
        raise _not_adapters(flag, "fully fine-tuned model" if source else "bare backbone")
    try:
        model, tokenizer = checkpoint.load(path, tasks and tasks[0], flag=flag)
    except UserError as error:
        if not str(error.location).startswith("--") or error.location == flag:
            raise
        # Loading knows other flags.
        what, _, name = str(error.location).partition(" ")
        raise UserError(f"{name or what}: {error.found}", location=flag, expected=error.expected,
                        remedy=error.remedy) from error  # fmt: skip
    if model.info.mode == "full":
        raise _not_adapters(flag, "fully fine-tuned model")
    if missing := [task for task in tasks or [] if task not in model.info.markers]:
        raise missing_task(source_flag(directory, missing[0]), model.info.tasks, missing[0])
    return model, tokenizer


def refuse_shared(source, tasks, directory):
    """A `UserError` where a task asked for was trained with what tasks share; `source` is a `Manifest` or None."""
    for task in (tasks or source.tasks) if source else ():
        name = source.methods.get(task, {}).get("method")
        if name in (None, FULL):
            continue
        reason = get_method(name).load_class().shared
        remedy = "train the tasks together, or each with --method bottleneck"
        if not reason and (trained := source.config.get("trained_backbone")):
            reason = f"{trained[0]} of its backbone was trained too, which all tasks go through"
            remedy = "train it beside a frozen T5: --unfreeze_layer_norms false"
        if reason:
            raise UserError(
                f"task {task!r} was trained with {name}: {reason}",
                location=source_flag(directory, tasks and task),
                expected="a method whose parameters belong to one task each",
                remedy=remedy,
            )


def source_flag(directory, task=None):
    """What the user typed to name a source."""
    return f"--checkpoints {task}={directory}" if task else f"--into {directory}"


def missing_task(flag, tasks, task):
    """The `UserError` for a task that a source, which holds `tasks`, was not trained for."""
    return UserError(f"holds the task(s) {', '.join(tasks)}, not {task!r}", location=flag, remedy="name another",
                     expected=f"a checkpoint that was trained for {task!r}")  # fmt: skip


def repeated_task(flag, task, earlier):
    """The `UserError` for a task that an earlier source has, too."""
    return UserError(f"task {task!r} is there twice", location=flag, expected=f"it once: {earlier} has it",
                     remedy="leave one out")  # fmt: skip


def _not_adapters(flag, what):
    return UserError(f"this is a {what}: a task cannot be taken out of it", location=flag,
                     expected="a model with adapters or task embeddings beside a backbone",
                     remedy="train one: train.py --adapter_bottleneck N")  # fmt: skip


def read(directory, tasks=None):
    """The `Source` of each task; arguments and errors as of `open_source`. Nothing of the model stays loaded."""
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
    """What tells a model's backbone from others, coarsest first, as an error names it."""
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
    """A hash of what decides the base ids of a text; the markers that were added do not count."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] == "Unigram":
        # A score may lose its last digit whenever it is written and read.
        backend["model"]["vocab"] = [(piece, round(score, 6)) for piece, score in backend["model"]["vocab"]]
    added = {t["content"]: t["id"] for t in backend["added_tokens"] if t["id"] < first}
    parts = [backend["model"], backend["normalizer"], backend["pre_tokenizer"], added]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def check(sources):
    """Whether these can be combined.

    Raises:
        UserError: naming two sources and what they do not agree on.
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
    """A `UserError` where two sources were trained beside other backbones."""
    first = sources[0]
    for source in sources:
        for what, value in first.backbone.items():
            if source.backbone[what] != value:
                raise UserError(f"{what} is {source.backbone[what]}", location=source.flag,
                                expected=f"{value}, as in {first.flag}",
                                remedy="combine tasks that were trained beside the same frozen backbone")  # fmt: skip


def _check_self_copy(sources):
    pointers = [s for s in sources if s.self_copy]
    if not pointers:
        return
    one, remedy = pointers[0], "combine tasks trained without --self_copy"
    if other := next((s for s in sources if s.directory != one.directory), None):
        raise UserError("trained with --self_copy: its gate is for its own tasks alone", location=one.flag,
                        expected=f"no other source, but there is {other.flag}", remedy=remedy)  # fmt: skip
    if left_out := [task for task in one.held if task not in [s.task for s in sources]]:
        # What is copied is weighed against the scores of all markers it was trained with.
        raise UserError(f"trained with --self_copy for {left_out[0]!r} too", location=one.flag,
                        expected="all tasks of such a checkpoint, or none", remedy=f"add {left_out[0]}=…")  # fmt: skip


def build(sources):
    """One model that holds the sources' tasks; their order gives the ids.

    Args:
        sources: those of `read`, checked.

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
        return backbones.load(name, seed, quantization=bits)
    config = copy.deepcopy(model.config)
    config.vocab_size = len(model.get_input_embeddings().weight)
    kind = next(c for c in type(model).__mro__ if hasattr(c, "from_pretrained") and not issubclass(c, TaskConditioned))
    bare = kind(config)
    # In an encoder-decoder both sides look up one table, whether or not the head is tied to it.
    bare.set_input_embeddings(bare.get_input_embeddings())
    bare.load_state_dict(checkpoint.backbone_state(model))
    bare.random_init_seed, bare.backbone_fingerprint = None, source.backbone["backbone (fingerprint of its weights)"]
    return bare.eval(), model.bare_tokenizer


def same_backbone(model, source, flag):
    """A `UserError` unless two attached models have the same backbone: every number of it, not its fingerprint."""
    ours, theirs = checkpoint.backbone_state(model), checkpoint.backbone_state(source)
    for name, tensor in theirs.items():
        if name not in ours or not torch.equal(ours[name], tensor):
            raise UserError(f"{name} of its backbone differs, though the fingerprints are equal", location=flag,
                            expected="the backbone of the other sources")  # fmt: skip


@torch.no_grad()
def largest_difference(ours, theirs, task, sequences):
    """How far a task's scores of two models are apart, at every position, on the base and the task's own columns.

    Args:
        ours, theirs: (model, tokenizer).
        task: its name.
        sequences: [(ids, types and the prompt's length for our model, the same for theirs)], the first two lists;
            without a length all is prompt. They go through one by one: no padding, and batches of the one task only.

    Returns:
        (largest absolute difference, the same as a share of the largest score); nan if a score is none.
    """
    models = (ours, theirs)
    return compare_scores([_scores(*model, task, inputs) for model, inputs in zip(models, sequence)]
                          for sequence in sequences)  # fmt: skip


def compare_scores(pairs):
    """How far scores of two models are apart.

    Args:
        pairs: an iterable of (scores of ours, of theirs), tensors of one shape.

    Returns:
        (largest absolute difference, the same as a share of the largest of their scores); nan if a score is none.
    """
    gap, largest = torch.zeros(()), torch.zeros(())
    for a, b in pairs:
        # Not the maximum of Python, for which a nan is no larger than anything.
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
    """What the tasks of an attached model add to its backbone, against one full model a task.

    Returns:
        dict(tasks: {name: dict(bottleneck, adapters, rows: parameters of each)}, backbone: its parameters,
        added: by all tasks, together: backbone and added, separate: of one full model a task)
    """
    tasks = {t: dict(bottleneck=model.info.bottlenecks[t], adapters=0, rows=0) for t in model.info.tasks}
    backbone = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("added."))
    for method, name, p in added_parameters(model):
        if (task := method.owner(name)) in tasks:
            tasks[task]["rows" if method.name == BARE else "adapters"] += p.numel()
    added = sum(t["adapters"] + t["rows"] for t in tasks.values())
    return dict(tasks=tasks, backbone=backbone, added=added, together=backbone + added, separate=len(tasks) * backbone)
