#!/usr/bin/env python
r"""Combine trained tasks into one VLM: their adapters and embeddings in one backbone, verified to answer as before.

  several runs of train.py, in any number and order (the order determines the task ids):
    python combine_all.py --checkpoints mt=runs/mt summarization=runs/sm nlg=runs/nlg --output runs/VLM
  one more task, later; the others' answers stay the same, to the last bit:
    python combine_all.py --into runs/VLM --checkpoints qa=runs/qa
  merge several adapters, of one task or of several, into one; the result is a single task for evaluate.py:
    python combine_all.py --merge ties --checkpoints nlg=runs/a nlg=runs/b --output runs/merged
  add a task, but write to a new directory, and name the data of the proof:
    python combine_all.py --into runs/VLM --checkpoints qa=runs/qa --output runs/VLM5 --data qa=data/samples/qa.json

  runs of train_camtl.py with adapters (--method adapters, bottleneck, lora, ia3) become one classifier, and runs of
  train_t5.py (prefix and prompt as well) one T5, with the same flags:
    python combine_all.py --checkpoints cola=runs/cola rte=runs/rte --output runs/glue

A checkpoint is a run of train.py with an adapter (or only embeddings), one of its checkpoints/step_N, a VLM of
combine_all.py or train_vlm.py (TASK= selects one of its tasks), or a released one. All must have been trained on the
same backbone. The result is a directory that evaluate_vlm.py reads (classifiers and T5s evaluate.py, too).

What is combined, not merged, is verified before it appears under its name: on real inputs from each task's scored
split, the logits of the base vocabulary and of the task's own markers, and the greedy outputs, must match those of the
task's own model in fp32. The inputs come from --data, else from the task's training data, else from the task's own
location under data/, else from data/samples.
"""

import contextlib
import os
import sys
from argparse import Namespace
from pathlib import Path

from versatile.data.task_names import by_task, name_among
from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.files import find_shipped, is_same_path
from versatile.utils.screen import align_columns, counted, format_count, shell_command, shortest_path

# The last three drop entries.
MERGES = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")


def parser():
    p = flags.build_parser(__doc__)
    settings.add_device(p, "machine")
    settings.add(p, "cache_dir", group="machine")
    g = p.add_argument_group("what to combine")
    g.add_argument("--checkpoints", nargs="+", type=flags.of_tasks(str, "RUN"), default=[], metavar="TASK=RUN",
                   help="each task's trained model")  # fmt: skip
    g.add_argument("--into", metavar="VLM", help="a VLM to add the tasks to; replaced in place without --output")
    g.add_argument("--output", metavar="VLM", help="the directory to create")
    settings.add(p, "push_to_hub", group=g.title)
    g = p.add_argument_group("merging")
    g.add_argument("--merge", choices=MERGES,
                   help="merge all adapters into one, as a weighted sum of tensors; ties: of the entries that have the "
                        "majority sign; dare: of a random subset of the entries. For adapters of train.py and "
                        "train_vlm.py, also in a T5; models of train_t5.py and train_camtl.py can only be combined")
    g.add_argument("--task", help="--merge: the task of the result (needed if --checkpoints names several)")
    g.add_argument("--weights", nargs="+", type=flags.number, metavar="W",
                   help="--merge: one weight per checkpoint (default: those of the mean; with task_arithmetic, "
                        "of the sum). A LoRA's A and B are each multiplied by the square root of the weight, as in "
                        "peft: the mean of two LoRAs has the weights 0.25 0.25, that of other adapters 0.5 0.5")
    g.add_argument("--density", type=flags.share, help="--merge ties, dare: share of the entries kept (default 0.5)")
    g.add_argument("--majority_sign_method", choices=["total", "frequency"],
                   help="--merge ties, dare_ties: use the sign of the sum, or of most entries (default total)")
    g.add_argument("--seed", type=flags.seed, default=42, help="--merge dare: random seed for dropping entries")
    g = p.add_argument_group("proof")
    g.add_argument("--data", nargs="+", type=flags.of_tasks(find_shipped, "FILE"), action=flags.OfTasks, default={},
                   metavar="TASK=FILE", help="task files whose scored split provides the inputs; for a model of "
                                             "train_camtl.py or train_t5.py, the folder of the data")  # fmt: skip
    g.add_argument("--proof_examples", type=flags.positive, default=8, metavar="N", help="inputs per task")
    g.add_argument("--proof_tokens", type=flags.positive, default=60, metavar="N",
                   help="maximum tokens of an output")  # fmt: skip
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if not args.checkpoints:
        p.error("--checkpoints is needed: TASK=RUN …")
    if not args.output and not args.into:
        p.error("--output is needed (or --into VLM, to add to it in place)")
    flags.require_one_process()
    args.checkpoints = [(held_name(task, directory), directory) for task, directory in args.checkpoints]
    if args.merge:
        check_merge(p, args)
        create_and_push(merge, args)
        return
    for name in ("task", "weights", "density", "majority_sign_method"):
        if getattr(args, name) is not None:
            p.error(f"--{name} requires --merge")
    if "seed" in p.locations:
        p.error("--seed requires --merge dare_linear or dare_ties")
    for task in (names := [task for task, _ in args.checkpoints]):
        if names.count(task) > 1:
            p.error(f"--checkpoints: task {task!r} is named twice (to make one adapter of several: --merge)")
    args.checkpoints = dict(args.checkpoints)
    create_and_push(combine, args)


def held_name(typed, directory):
    """The name that the model in a directory uses for a task, which may be given under any of its names."""
    from versatile.adapters.manifest import peek

    try:
        manifest = peek(directory)
    except UserError:
        # Reported, with its flag, when the model is read.
        return typed
    if manifest is None or manifest.encoder is None:
        return typed
    return name_among(typed, manifest.tasks, manifest.encoder)


def create_and_push(create, args):
    """Make a directory, and upload it if --push_to_hub is given."""
    from versatile.training import hub

    hub.check_repository(args.push_to_hub)
    create(args)
    hub.push(args.output, args.push_to_hub)


def combine(args):
    from versatile.training.run_combination import combination_class

    prepare_output(args)
    kind = combination_class([*args.checkpoints.values(), *filter(None, [args.into])])
    if kind:
        combine_runs(args, kind(args.into, args.checkpoints))
    else:
        combine_language_models(args)


def prepare_output(args):
    """Complete --output and check it before anything is read."""
    from versatile.utils import devices
    from versatile.utils.files import check_replaceable, writable_directory

    devices.quiet_libraries(args.cache_dir)
    args.output = replaceable_path(args.output or args.into)
    refuse_taken(args)
    check_replaceable(args.output, f"--output {args.output}")
    writable_directory(Path(args.output).absolute().parent, "--output")


@contextlib.contextmanager
def output_directory(args):
    """A temporary directory next to --output that takes its name once it is complete."""
    from versatile.utils.files import atomic_directory

    with atomic_directory(args.output) as temporary:
        yield temporary
        refuse_taken(args, temporary)


def write_record(args, directory, record):
    """Write run.json and README.md of a result."""
    from versatile.training.cards import write_model_card
    from versatile.utils.files import write_json

    write_json(directory / "run.json", record)
    write_model_card(directory, record, location=args.output)


def combine_runs(args, combination):
    """Combine models of train_camtl.py or train_t5.py; `combination` is a `training.run_combination.Combination`."""
    from versatile.training import runs

    args.data = by_task(args.data, combination.sources, "combined", kind=combination.encoder)
    folders = combination.find_data(args.data)
    model, tokenizer = combination.build()
    methods = model.methods
    described = describe_sources(args, {task: dict(checkpoint=str(path), adapter=methods[task])
                                        for task, path in combination.sources.items()})  # fmt: skip
    for task, folder in folders.items():
        if folder:
            described[task] |= dict(dataset_path=runs.absolute_paths(folder))
    own_flags = combination.result_flags(folders) | dict(model_checkpoint=model.config._name_or_path)
    with output_directory(args) as temporary:
        combination.save(model, tokenizer, temporary)
        del model
        refuse_taken(args, temporary)
        proofs = combination.verify(temporary, args, folders)
        contents = runs.record(Namespace(**vars(args) | own_flags), method="combined", sources=described, proof=proofs)
        write_record(args, temporary, contents)
    for task, proof in proofs.items():
        gap, rows = proof["max_abs_difference"], proof["examples"]
        outputs = f"; {proof['outputs_equal']} of {rows} greedy outputs equal" if "outputs_equal" in proof else ""
        print(f"{task}: {methods[task]['method']} of {combination.sources[task]}, largest difference of scores on "
              f"{rows} rows {f'{gap:.2g}' if gap else '0, equal bit for bit'}{outputs}")  # fmt: skip
    print(f"written: {args.output}")
    together = shell_command("evaluate.py", "--task", "all", "--model_checkpoint", args.output)
    if len({proof["data"] for proof in proofs.values()}) == 1:
        print(f"next: {together}")
        return
    for task, proof in proofs.items():
        print("next: " + shell_command("evaluate.py", "--task", task, "--data_dir", shortest_path(proof["data"]),
                                       "--model_checkpoint", args.output))  # fmt: skip
    print(f"all at once: {together}")


def describe_sources(args, entries):
    """{task: where its model came from} for run.json.

    Args:
        entries: {task: its entry if its model was read from the directory given here}; a task that --into had combined
            before keeps its original source.
    """
    from versatile.training import runs

    known = runs.stored_record(args.into).get("sources", {}) if args.into else {}
    return {task: (task not in args.checkpoints and known.get(task)) or entry for task, entry in entries.items()}


def combine_language_models(args):
    """Combine models of train.py and train_vlm.py, and released ones."""
    from versatile.adapters import checkpoint
    from versatile.adapters import combine as combining
    from versatile.training.verification import verify

    sources = read_requested_sources(args)
    inputs = {s.task: read_inputs(args, s) for s in sources}
    model, tokenizer = combining.build_combined_model(sources)
    counts, args.model_checkpoint = combining.count_task_parameters(model), backbone_name(sources[0], model)
    with output_directory(args) as temporary:
        checkpoint.save_checkpoint(model, tokenizer, temporary)
        # What the files hold is verified; freeing the model also makes room for a source's backbone.
        del model
        refuse_taken(args, temporary)
        proofs = verify(temporary, sources, inputs, args.proof_tokens)
        write_record(args, temporary, run_record(args, sources, proofs))
    print_summary(args, sources, counts, proofs)


def check_merge(p, args):
    """Reject flags that are incompatible with --merge or its method, and complete the defaults."""
    tasks = list(dict.fromkeys(task for task, _ in args.checkpoints))
    if args.into or not args.output:
        p.error("--merge makes a new directory: --output DIR, without --into")
    if len(args.checkpoints) < 2:
        p.error("--merge takes two checkpoints or more")
    if args.task is None and len(tasks) > 1:
        p.error(f"--merge of {', '.join(tasks)}: name the result's task: --task TASK")
    args.task = name_among(args.task or tasks[0], tasks, "markers")
    if args.task not in tasks:
        p.error(f"--task {args.task}: expected one of {', '.join(tasks)}")
    for name, methods in (("density", MERGES[2:]), ("majority_sign_method", ("ties", "dare_ties"))):
        if getattr(args, name) is not None and args.merge not in methods:
            p.error(f"--{name} has no effect with --merge {args.merge}; it applies to {', '.join(methods)}")
    for name in ("data", "proof_examples", "proof_tokens"):
        if name in p.locations:
            p.error(f"--{name} has no effect with --merge, whose result is a task of its own: it has no proof")
    if "seed" in p.locations and not args.merge.startswith("dare"):
        p.error(f"--seed has no effect with --merge {args.merge}; it applies to those that drop entries at random")
    args.density, args.majority_sign_method = args.density or 0.5, args.majority_sign_method or "total"


def merge(args):
    """Merge several trained adapters into one task."""
    from versatile.adapters import checkpoint
    from versatile.adapters import combine as combining
    from versatile.adapters.merging import merge_sources
    from versatile.training import runs

    prepare_output(args)
    refuse_unmerged(args.checkpoints)
    sources = [combining.read_sources(directory, [task])[0] for task, directory in args.checkpoints]
    combining.check_backbones(sources)
    refuse_unknown(sources)
    merged = merge_sources(sources, args.task, args.merge, args.weights, args.density, args.majority_sign_method,
                           args.seed)  # fmt: skip
    model, tokenizer = combining.build_combined_model([merged])
    args.model_checkpoint = backbone_name(merged, model)
    data = runs.trained_on(merged.directory, args.task)
    described = {args.task: dict(checkpoint=str(merged.directory), adapter=merged.method, dataset_path=data)}

    with output_directory(args) as temporary:
        checkpoint.save_checkpoint(model, tokenizer, temporary)
        try:
            # Finds a result that would not load, or that changes nothing.
            checkpoint.load_checkpoint(temporary)
        except UserError as error:
            raise UserError(f"the merged adapter cannot be used: {error.found}", location=f"--merge {args.merge}",
                            remedy="choose other --weights, a higher --density, or another --merge") from error
        write_record(args, temporary, runs.record(args, method=f"merged ({args.merge})", sources=described))
    print(f"written: {args.output}, {args.task} of {', '.join(s.flag.split()[-1] for s in sources)}")
    following = shell_command("evaluate.py", "--task", args.task, "--no_sample", "--model_checkpoint", args.output,
                              *(["--dataset_path", shortest_path(data)] if data else []),
                              "--output_dir", f"results/{Path(args.output).name}")  # fmt: skip
    print(f"next: {following}")


def refuse_unmerged(checkpoints):
    """Raise a `UserError` if --merge names models that can only be combined; `checkpoints`: [(task, directory)]."""
    from versatile.adapters.combine import source_flag
    from versatile.training.run_combination import combination_class

    for task, directory in checkpoints:
        if kind := combination_class([directory]):
            evaluation = shell_command("evaluate.py", "--task", "all", "--model_checkpoint", directory)
            raise UserError(f"this is a model of {kind.script}, whose adapters are not merged",
                            location=source_flag(directory, task),
                            expected="adapters of train.py or train_vlm.py, on any backbone including a T5",
                            remedy="leave --merge out: tasks of different names are combined, each with its own "
                            f"adapter; or evaluate it as it is: {evaluation}")  # fmt: skip


def replaceable_path(path):
    """A path that another directory can replace: neither a link nor "."."""
    return os.path.realpath(path) if os.path.islink(path) or Path(path).name in ("", "..") else path


def refuse_taken(args, temporary=None):
    """Raise a `UserError` if any of the user's files would be lost.

    Args:
        temporary: the directory that will take the output's name, if it exists already.
    """
    from versatile.training import runs
    from versatile.training.cards import CARD, is_model_card

    output = Path(args.output)
    if is_same_path(args.into, output):
        new = {"run.json", *(p.name for p in temporary.iterdir())} - {CARD} if temporary else None
        old = [p for p in output.iterdir() if p.suffix not in (".part", ".old")] if new else []
        if lost := sorted({p.name for p in old if p.name != CARD or not is_model_card(p)} - (new or set())):
            raise UserError(f"it also holds {', '.join(lost[:4])}, which would be lost", location=f"--into {args.into}",
                            expected="a directory that combine_all.py wrote, or another one for the result",
                            remedy=f"leave it as it is, and name another: --into {args.into} --output VLM")  # fmt: skip
    elif output.is_file() or (output.is_dir() and any(output.iterdir())):
        # A run's own files would be lost if its model were replaced.
        add = f"--into {output}" + ("" if runs.stored_record(output).get("sources") else " --output VLM")
        can_add = (output / "adapter_config.json").is_file() and not args.into
        raise UserError("this path already exists", location=f"--output {output}",
                        remedy="name another directory, "
                        + (f"remove it, or add to it: {add}" if can_add else "or remove it"))  # fmt: skip


def read_requested_sources(args):
    """The `adapters.combine.Source` of every task, in the order of their ids: those of --into, then those given.

    Raises:
        UserError: a source is unusable, two are incompatible, or this version does not know a task.
    """
    from versatile.adapters import combine as combining

    sources, groups = combining.read_sources(args.into) if args.into else [], {}
    for task, directory in args.checkpoints.items():
        groups.setdefault(os.path.normpath(directory), []).append(task)
    chosen = {s.task: s for directory, tasks in groups.items() for s in combining.read_sources(directory, tasks)}
    sources += [chosen[task] for task in args.checkpoints]
    combining.check_sources(sources)
    names = [s.task for s in sources]
    refuse_unknown(sources)
    args.data = by_task(args.data, names, "combined")
    return sources


def refuse_unknown(sources):
    """Raise a `UserError` if this version does not know a source's task, or defines it differently."""
    from versatile.data.own_tasks import register_own_tasks
    from versatile.data.task import find_task

    register_own_tasks(s.definition for s in sources if s.definition)
    for s in sources:
        known = find_task(s.task)
        if known is None or list(known.markers) != s.markers:
            mismatch = "has other markers here" if known else "is not known here"
            raise UserError(f"task {s.task!r} {mismatch}", location=s.flag, expected="a task of --list_tasks, as it "
                            "was when the checkpoint was trained",
                            remedy="restore its file in data/tasks/")  # fmt: skip


def read_inputs(args, source):
    """A task's first inputs for the proof, with their origin: a `training.evaluation.MarkerSplit`."""
    from versatile.data.files import SAMPLES
    from versatile.data.own_tasks import named_data
    from versatile.data.task import get_task
    from versatile.training import evaluation, runs

    named_file = named_data(source.task, args.data.get(source.task), "--data")
    task = get_task(source.task)
    trained_on = runs.trained_on(source.directory, task.name)
    paths = [named_file] if named_file else [trained_on, task.dataset_path, SAMPLES / f"{task.name}.json"]
    errors = []
    for path in paths:
        if path and (named_file or Path(path).is_file() or (path == task.dataset_path and task.has_data())):
            try:
                return evaluation.read_split(task, str(path), task.scored_split, source.history, args.proof_examples)
            except UserError as error:
                errors.append(error)
    if named_file:
        raise errors[0]
    raise UserError(
        errors[0].found if errors else f"no data of {task.name} to verify the result on",
        location=errors[0].location if errors else "--data",
        expected=f"a file with a {task.scored_split} split",
        remedy=f"name one: --data {task.name}=FILE",
    )


def backbone_name(source, model):
    """The name of the backbone in tables of results."""
    from versatile.training import runs

    return runs.origin(source.directory).get("backbone", model.config._name_or_path)


def run_record(args, sources, proofs):
    """The contents of run.json."""
    from versatile.training import runs

    entries = {
        s.task: dict(checkpoint=str(s.directory), bottleneck=s.method.get("adapter_bottleneck", 0), adapter=s.method,
                     dataset_path=runs.trained_on(s.directory, s.task), method=runs.origin(s.directory).get("method"))
        for s in sources
    }  # fmt: skip
    return runs.record(args, method="combined", sources=describe_sources(args, entries), proof=proofs)


def print_summary(args, sources, counts, proofs):
    """Print what was combined: a row for each task, the totals and the next command."""
    from versatile.adapters.methods.registry import BARE
    from versatile.training.method_flags import name_of

    rows = [("task", "from", "bottleneck", "adapters", "rows", "share", "largest logit gap", "greedy outputs")]
    for s in sources:
        own, proof = counts["tasks"][s.task], proofs[s.task]
        share = (own["adapters"] + own["rows"]) / counts["backbone"]
        gap, outputs = proof["max_abs_difference"], f"{proof['outputs_equal']} of {proof['examples']} equal"
        width = own["bottleneck"] if s.method["method"] in ("bottleneck", BARE) else name_of(s.method)
        rows.append((s.task, shortest_path(s.directory), str(width), f"{own['adapters']:,}", f"{own['rows']:,}",
                     f"{100 * share:.2f} %", f"{gap:.2g}" if gap else "0, equal bit for bit", outputs))  # fmt: skip
    print()
    print(align_columns(rows, right=(2, 3, 4, 5), rule=True))
    sizes = (format_count(counts[k]) for k in ("added", "backbone", "together", "separate"))
    added, backbone, together, separate = sizes
    print(f"\n{counted(len(sources), 'task')}: {added} on {backbone}, "
          f"{together} together, instead of {separate} in full models: "
          f"{100 * counts['together'] / counts['separate']:.1f} %")  # fmt: skip
    print(f"written: {args.output}")
    data = [f"{task}={shortest_path(proof['data'])}" for task, proof in proofs.items()]
    following = shell_command("evaluate_vlm.py", "--task", "all", "--no_sample", "--model_checkpoint", args.output,
                              "--data", *data, "--output_dir", f"results/{Path(args.output).name}")  # fmt: skip
    print(f"next: {following}")


if __name__ == "__main__":
    sys.exit(main())
