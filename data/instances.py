"""The instances of a split that are decoded and scored, with all their references, and their prompts."""

from dataclasses import replace

from versatile.data.encoders.markers import MarkerEncoder
from versatile.data.prompt import Prompt
from versatile.utils.errors import UserError


def read_instances(path, split, task, options, limit=None):
    """A split's examples in file order.

    In a task that merges references, equal inputs are one instance that several people described.

    Args:
        path: the task's json file.
        split: "train", "valid" or "test".
        task: a `data.task.Task`.
        options: `data.task.ReadOptions`.
        limit: keep only the first `limit` instances (each with all its references).
    """
    merged = {}
    for location, record in task.records(path, split):
        for example in task.examples(record, location, options):
            if not example.references:
                raise UserError("no reference to score against", location=location, expected="a target or references")
            key = example.source if task.merge_references else len(merged)
            if key in merged:
                known = merged[key].references
                known += [r for r in example.references if r not in known]
            elif not limit or len(merged) < limit:
                merged[key] = replace(example, references=list(example.references))
            elif not task.merge_references:
                return list(merged.values())
    return list(merged.values())


def scored(examples, location):
    """Indices of the examples that have something to be scored against, and a note about the others.

    A blank reference does not count as one: such targets are withheld or were lost.

    Returns:
        (indices, their references without blank ones, [note] or [])

    Raises:
        UserError: there are none.
    """
    references = [[text for text in e.references if text.strip()] for e in examples]
    numbers = [i for i, group in enumerate(references) if group]
    blank = len(examples) - len(numbers)
    if not numbers:
        raise UserError(f"the references of all examples ({blank}) are blank: there is nothing to score against",
                        location=location, expected="a target or references",
                        remedy="name the file with the true targets; they may be withheld in this one")  # fmt: skip
    note = f"{blank} of {len(examples)} examples have blank references and are not scored"
    return numbers, [references[i] for i in numbers], [note] if blank else []


def prompts(task, task_id, tokenizer, examples, positions, reserve):
    """The prompts that decoding starts from.

    Args:
        task: a `data.task.Task`; `task_id`: the integer the model knows it by.
        tokenizer: the model's.
        examples: a list of `Example`; their targets are ignored.
        positions: the model's longest sequence.
        reserve: tokens to reserve for the output.

    Returns:
        (a list of `Prompt`, {what was cut: how often}).
    """
    encoder = MarkerEncoder(tokenizer, positions, reserve)
    bare = (replace(e, target=replace(e.target, text="")) for e in examples)
    eos_id = encoder.marker_ids(task)[task.eos]
    encoded = [Prompt(*row.prompt, task_id, eos_id) for _, row in encoder.encode_all(task, bare)]
    return encoded, dict(encoder.counts)
