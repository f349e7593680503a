"""combine_all.py's work for models of train_camtl.py: adapters and heads of single tasks beside one frozen BERT."""

import torch
from versatile.adapters import bert
from versatile.adapters.classifier import TaskClassifier, keyed_added
from versatile.adapters.combine import missing_task, refuse_shared, repeated_task, source_flag
from versatile.adapters.manifest import peek
from versatile.adapters.methods.base import added_parameters
from versatile.adapters.tensors import copy_tensors
from versatile.data import glue
from versatile.data.encoders import sentence_pair
from versatile.data.files import SAMPLES
from versatile.data.own_tasks import register_own_tasks
from versatile.data.padding import tensors
from versatile.data.pair_batches import pair_inputs
from versatile.training import runs
from versatile.utils.errors import UserError

# On a CPU the difference is 0. Other kernels may round otherwise.
LARGEST_DIFFERENCE = 1e-4


def are_classifiers(directories):
    """Whether a model of train_camtl.py is among these directories."""
    return any((manifest := peek(directory)) and manifest.encoder == "sentence_pair" for directory in directories)


def read_sources(into, checkpoints):
    """{task: its model's directory}, those of `into` first, each checked by its manifest.

    Raises:
        UserError: a directory of another kind, a task it does not hold, a method whose parameters tasks share, a task
            that is there twice.
    """
    pairs = [(task, into) for task in peek(into).tasks] if into and peek(into) else []
    sources = {}
    for task, directory in [*pairs, *checkpoints.items()]:
        manifest, flag = peek(directory), source_flag(directory, task)
        if manifest is None or manifest.encoder != "sentence_pair":
            raise UserError("this is not a model of train_camtl.py, as another source is", location=flag,
                            expected="models of one kind")  # fmt: skip
        if task not in manifest.tasks:
            raise missing_task(flag, manifest.tasks, task)
        refuse_shared(manifest, [task], directory)
        if manifest.mode == "full":
            raise UserError("this is a fully fine-tuned model: a task cannot be taken out of it", location=flag,
                            expected="adapters beside a frozen BERT",
                            remedy="train it with --method bottleneck")  # fmt: skip
        if task in sources:
            raise repeated_task(flag, task, sources[task])
        sources[task] = directory
        register_own_tasks(runs.stored(directory).get("flags", {}).get("task_definitions") or ())
    return sources


def build(sources):
    """(a model that holds the sources' tasks, their order gives the ids; its tokenizer).

    Raises:
        UserError: two sources beside different BERTs, or of different lengths.
    """
    first = first_tokenizer = None
    tasks, methods, state = {}, {}, {}
    for number, (task, directory) in enumerate(sources.items()):
        model, tokenizer = bert.load(directory)
        first, first_tokenizer = first or model, first_tokenizer or tokenizer
        for what, name in (("backbone's fingerprint", "backbone_fingerprint"), ("longest row", "max_seq_length")):
            if getattr(model, name) != getattr(first, name):
                raise UserError(f"its {what} is {getattr(model, name)}", location=source_flag(directory, task),
                                expected=f"{getattr(first, name)}, as of the first source",
                                remedy="combine tasks that were trained beside the same frozen BERT")  # fmt: skip
        tasks[task], methods[task] = model.tasks[task], model.methods[task]
        heads = f"decoders.{model.task_id(task)}.", f"decoders.{number}."
        state |= {method.key(name).replace(*heads): p for method, name, p in added_parameters(model)
                  if method.owner(name) == task}  # fmt: skip
    combined = TaskClassifier(first.bert, tasks, "plain", first.max_seq_length, methods)
    for name in ("backbone_fingerprint", "random_init_seed"):
        setattr(combined, name, getattr(first, name))
    copy_tensors(state, keyed_added(combined), "the combined model")
    return combined.eval(), first_tokenizer


def data_of(sources):
    """The folder of GLUE that the sources were trained on, where they name one."""
    known = [runs.stored(directory).get("flags", {}).get("data_dir") for directory in sources.values()]
    return next(filter(None, known), None)


@torch.no_grad()
def prove(directory, sources, count):
    """Compare the scores of the model in `directory` with those of every source, which is loaded alone.

    Args:
        count: rows of each task's dev file.

    Returns:
        {task: dict(examples, max_abs_difference)}

    Raises:
        UserError: a score that is not the source's.
    """
    combined, tokenizer = bert.load(directory)
    folder, proofs = data_of(sources) or SAMPLES / "glue", {}
    for task, source in sources.items():
        split = sentence_pair.load_split(folder, task, "dev", tokenizer, combined.max_seq_length, limit=count)
        arrays = pair_inputs([split[i] for i in range(len(split))], tokenizer.pad_token_id, combined.max_seq_length)
        labels = glue.get_task(task).labels
        ours, theirs = (model(**tensors(arrays), task_ids=torch.full((len(split),), model.task_id(task)))
                        .scores[:, : len(labels or "1")] for model in (combined, bert.load(source)[0]))  # fmt: skip
        difference = (ours - theirs).abs().max().item()
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(f"the combined model answers otherwise: scores of {task} differ by up to {difference:.3g}",
                            location=source_flag(source, task), expected=f"the scores of {source}",
                            remedy="nothing was written; report this")  # fmt: skip
        proofs[task] = dict(examples=len(split), max_abs_difference=difference)
    return proofs
