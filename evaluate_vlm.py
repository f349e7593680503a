#!/usr/bin/env python
"""Decode and score any task of a VLM, or all of them in mixed batches.

  one CPU or one GPU (the GPU is used if there is one):
    python evaluate_vlm.py --task mt --no_sample --model_checkpoint runs/VLM
    python evaluate_vlm.py --task all --no_sample --model_checkpoint runs/VLM --data nlg=data/samples/nlg.json

--model_checkpoint takes the output of combine_all.py or any training script, or a VLM released with the original code.
Data not given by flags are read from the tasks' own locations (see --list_tasks), or else from the training data named
in the model's run.json; --task all leaves out tasks without either, with a message. Files written to --output_dir for
each task: <task>_output.txt and <task>_ref.txt (one line per example), <task>_persona.txt (only for dialogue),
<task>_outputs.jsonl and <task>_metrics.json.
"""

import sys
from pathlib import Path

from versatile.adapters.manifest import peek, refuse_question_model, require_manifest
from versatile.data.listing import list_tasks
from versatile.data.task_names import task_flag
from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.files import find_shipped
from versatile.utils.screen import module_command


def parser():
    p = flags.build_parser(__doc__)
    g = p.group("task and data")
    task_flag(g, "--task", default="all",
              help="a task, or all for every task that the checkpoint holds, or NAME=DATA for one of your own")
    settings.add(p, "model_checkpoint", help="the VLM's directory")
    settings.add(p, "dataset_path", help="the data file, for a single --task")
    g.add_argument("--data", nargs="+", type=flags.of_tasks(find_shipped, "FILE"), action=flags.OfTasks, default={},
                   metavar="TASK=FILE", help="data files (default: the tasks' own locations under data/); for a model "
                                             "of train_t5.py or train_camtl.py, data folders")  # fmt: skip
    settings.add(p, "split")
    settings.add(p, "limit", help="as in evaluate.py: score only the first N inputs of each task")
    settings.add(p, "max_history", help=settings.HISTORY)
    list_tasks(g)
    settings.add_decoding(p, notices=settings.TOKENS_MOVED)
    settings.add(p, "output_dir", help="directory for the results (default: results/VLM_result; for a model of "
                                       "train_t5.py or train_camtl.py, results/<run>; where that holds another "
                                       "model's results, with the run's name added)")  # fmt: skip
    settings.add(p, "samples", default=1, help="how many outputs of each task to print")
    settings.add(p, "token_cache_dir")
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if not args.model_checkpoint:
        p.error("--model_checkpoint is needed")
    from versatile.training.evaluation import RUN_ENCODERS, evaluate_run

    manifest = peek(args.model_checkpoint)
    refuse_question_model(manifest, args.model_checkpoint)
    if manifest and manifest.encoder in RUN_ENCODERS:
        flags.require_one_process()
        return evaluate_run(args, p.locations, manifest.encoder)
    if args.dataset_path and args.task == "all":
        p.error("--dataset_path requires a single --task; for several: --data TASK=FILE …")
    flags.check_lengths(p, args)
    flags.require_one_process()
    flags.print_unused_decoding(p, args)
    evaluate(args)


def evaluate(args):
    import ignite.distributed as idist
    from versatile.adapters import checkpoint
    from versatile.adapters.backbones import bundled
    from versatile.adapters.backbones import loading as backbones
    from versatile.data.task import canonical_name
    from versatile.training import evaluation, runs
    from versatile.training.decoding import Decoding
    from versatile.training.text_model import TextModel
    from versatile.utils import devices
    from versatile.utils.files import writable_directory

    devices.quiet_libraries(args.cache_dir)
    dtype = devices.precision(args, idist.device())
    if args.model_checkpoint not in bundled.NAMES:
        backbones.need_directory(args.model_checkpoint, f"--model_checkpoint {args.model_checkpoint}")
    manifest = require_manifest(args.model_checkpoint, "a model of combine_all.py, train_vlm.py or train.py, or a "
                                                       "released VLM")  # fmt: skip
    args.task = canonical_name(args.task, "markers")
    model, tokenizer = checkpoint.load_checkpoint(args.model_checkpoint, None if args.task == "all" else args.task)
    splits = read_splits(args, model.info)
    names = [split.name for split in splits]
    args.output_dir = args.output_dir or evaluation.default_results("VLM_result", args.model_checkpoint, names)
    writable_directory(args.output_dir, "--output_dir")
    text_model = TextModel(args.model_checkpoint, model, tokenizer, dtype, args.token_cache_dir)
    method = "released" if manifest.released else "combined"
    more = text_model.describe() | dict(method=method) | runs.origin(args.model_checkpoint)
    decoding = Decoding.from_flags(args, text_model.positions)
    summaries = evaluation.evaluate_into(args.output_dir, text_model, splits, decoding, args.samples, **more)
    for name, summary in summaries.items():
        scores = {which: summary["scores"][which]["score"] for which in (summary["headline"], "PPL")}
        print(f"{name:15}", ", ".join(f"{which} {'inf' if v is None else f'{v:.4g}'}" for which, v in scores.items()))


def read_splits(args, info):
    """The splits to evaluate: the requested tasks that the model holds, with their data."""
    from versatile.data.files import SAMPLES
    from versatile.data.own_tasks import get_own_task, named_data, register_own_tasks, relocate
    from versatile.data.task import get_task
    from versatile.training.evaluation import requested_tasks

    register_own_tasks(info.definitions.values())
    names = requested_tasks(args, info.tasks)
    for name, source in (args.own_tasks or {}).items():
        relocate(name, source, "--task")
    args.data = {name: named_data(name, path, "--data") for name, path in args.data.items()}
    args.dataset_path = named_data(args.task, args.dataset_path, "--dataset_path")
    splits = [read_task_split(args, get_task(name), args.max_history or info.histories.get(name)) for name in names]
    if not any(splits):
        remedy = f'name data for one, or convert it: {module_command("data.convert", "--help")}'
        if own := next((name for name in names if get_own_task(name)), None):
            remedy = f"name its new location: --data {own}=DIR"
        elif sample := next((name for name in names if (SAMPLES / f"{name}.json").is_file()), None):
            remedy += f"; to try it: --data {sample}=data/samples/{sample}.json"
        raise UserError("none of the tasks has data", location="--data", remedy=remedy,
                        expected="TASK=FILE for at least one of " + ", ".join(names))  # fmt: skip
    return [split for split in splits if split]


def read_task_split(args, task, max_history):
    """A task with its data: those given, else those at its own location, else its training data; None: left out."""
    from versatile.training import evaluation

    split, named_file = args.split or task.scored_split, args.data.get(task.name) or args.dataset_path
    own = Path(task.dataset_path)
    pairs = getattr(task, "pairs", None)
    if args.task == "all" and not named_file and pairs and pairs.own and task.has_data() and not pairs.has(split):
        print(f"{task.name}: left out, {own} has no {split} split")
        return None
    if named_file or task.has_data():
        return evaluation.read_split(task, named_file or str(own), split, max_history, args.limit)
    why = f"there is no {own}"
    if trained_on := evaluation.trained_data(task, args.model_checkpoint):
        try:
            return evaluation.read_split(task, trained_on, split, max_history, args.limit)
        except UserError as error:
            # The user did not name this file, and it may lack the split: the other tasks are still evaluated.
            if args.task != "all":
                raise
            why = f"{error.location}: {error.found}"
    if args.task != "all":
        # This raises the task's own error.
        task.data_path(named_file)
    kind = "DIR" if pairs and pairs.own else "FILE"
    print(f"{task.name}: left out, {why} (name its data: --data {task.name}={kind})")


if __name__ == "__main__":
    sys.exit(main())
