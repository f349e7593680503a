"""superni: a task of Super-NaturalInstructions as input-output pairs."""

from dataclasses import dataclass

from versatile.data.converters.base import (
    data_format,
    given_splits,
    held_out_flag,
    held_out_sizes,
    json_records,
    parsed,
    skip_bad_flag,
    split_flags,
    split_records,
    usable,
)
from versatile.data.json_files import top_level_value
from versatile.utils.errors import UserError, brief


@dataclass
class Instance:
    """A row: the task's definition, an input, its non-empty outputs, and its id or None."""

    definition: str
    input: str
    outputs: list
    id: str | int | None


def superni_instances(path):
    """Yield (location, `Instance`) of a task's file, with a `UserError` in place of a faulty instance."""
    definition = _definition(path)
    for location, record in json_records(path, "Instances", 'a task: {"Definition": …, "Instances": […]}'):
        try:
            item = _instance(definition, record, location)
        except UserError as error:
            item = error
        yield location, item


def _definition(path):
    """A task's definition; files have it as a text or as a list of one text."""
    definition = top_level_value(path, "Definition")
    return usable(definition[0] if isinstance(definition, list) and definition else definition, "'Definition'", path)


def _instance(definition, record, location):
    text, outputs = usable(record.get("input"), "'input'", location), record.get("output")
    outputs = [outputs] if isinstance(outputs, str) else outputs
    if not isinstance(outputs, list) or not outputs:
        raise UserError(f"'output' is {brief(outputs)}", location=location, expected="a list of texts",
                        remedy="correct the record")  # fmt: skip
    if wrong := [output for output in outputs if not isinstance(output, str)]:
        raise UserError(f"an output is {brief(wrong[0])}", location=location, expected="texts",
                        remedy="correct the record")  # fmt: skip
    outputs, name = [output.strip() for output in outputs if output.strip()], record.get("id")
    if name is not None and type(name) not in (str, int):
        raise UserError(f"'id' is {brief(name)}", location=location, expected="a text, a whole number or null",
                        remedy="correct the record")  # fmt: skip
    return Instance(definition, text, outputs, name)


def _flags(parser):
    split_flags(parser, 1, "a task's json file, with its Definition and its Instances")
    held_out_flag(parser, "valid", "the last N training instances (before those for the test)")
    held_out_flag(parser, "test", "the last N training instances")
    skip_bad_flag(parser, "instances without an output")


@data_format("superni", _flags)
def superni(args, report):
    """A task of Super-NaturalInstructions, e.g. XSum's summaries: an instance's input and its first output.

    White space in both, including line breaks, becomes single spaces. The definition is left out, as it is the same
    for all.
    """

    def parse(instance, location, drops):
        if not instance.outputs:
            raise UserError("has no output", location=location, expected="a text")
        return {"src": " ".join(instance.input.split()), "tgt": " ".join(instance.outputs[0].split())}

    def read(path):
        return parsed(superni_instances(path), parse, args.skip_bad)

    split_sources = given_splits(args)
    sizes = held_out_sizes(args, split_sources)
    return split_records(split_sources, sizes, read, report, key=lambda record: record["src"])
