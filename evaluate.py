#!/usr/bin/env python
"""Decode a split with a trained single-task model and score it.

  one CPU or one GPU (the GPU is used if there is one):
    python evaluate.py --task nlg --no_sample --model_checkpoint runs/<run> --dataset_path data/samples/nlg.json
  beam search, a few examples only:
    python evaluate.py --task mt --no_sample --num_beams 4 --limit 100 --model_checkpoint runs/<run>
  a model of train_t5.py (decoded greedily or with beam search) or of train_camtl.py, one of its tasks or all:
    python evaluate.py --task rte --model_checkpoint outputs/hyperformer++
  score outputs of any system, without a model:
    python evaluate.py --task nlg --score_only hyps.txt --references refs.txt

--model_checkpoint takes a run of train.py, one of its checkpoints/step_N, a checkpoint released with the original
VLM code, or a bare backbone (smollm2, gpt2, …), to see what it does untrained. Files written to --output_dir:
<task>_output.txt and <task>_ref.txt (one line per example; for qa the output is json in the format of CoQA's script),
<task>_persona.txt (only for dialogue), <task>_outputs.jsonl and <task>_metrics.json.
"""

import sys
from pathlib import Path

from versatile.adapters.manifest import check_holds, peek, refuse_question_model
from versatile.adapters.methods.registry import BARE
from versatile.data.listing import list_tasks
from versatile.data.task_names import by_task, task_flag
from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.files import find_shipped
from versatile.utils.screen import shell_command


def parser():
    p = flags.build_parser(__doc__)
    g = p.group("task and data")
    task_flag(g, "--task", help="one of --list_tasks, a task of your own that the checkpoint holds, or NAME=DATA")
    settings.add(p, "model_checkpoint", help="a run directory, a released checkpoint, or a bare backbone")
    settings.add(p, "dataset_path", spellings=("data_dir",),
                 help="the task's json file (default: the task's own location under data/, else the run's); for a "
                      "model of train_t5.py, the folder of the data (default: the run's)")  # fmt: skip
    g.add_argument("--data", nargs="+", type=flags.of_tasks(find_shipped, "DIR"), action=flags.OfTasks, default={},
                   metavar="TASK=DIR", help="the same for individual tasks; folders for a model of train_t5.py or "
                                            "train_camtl.py (default: --dataset_path, else the run's)")  # fmt: skip
    settings.add(p, "split")
    settings.add(p, "limit", help="score only the first N inputs; PPL covers the first N pairs of an input and one "
                                  "of its references; for a model of train_t5.py, N of each task, drawn with the "
                                  "run's --data_seed")  # fmt: skip
    settings.add(p, "adapter_bottleneck", help="only checked, as the checkpoint stores its own value")
    settings.add(p, "max_history", help=settings.HISTORY)
    list_tasks(g)
    g = p.group("ablations (a checkpoint knows its own; given, they are checked)")
    g.add_argument("--emb_only", action="store_true", help="only the task's embeddings were trained")
    g.add_argument("--outputlayer_only", action="store_true", help="only the vocabulary table was trained")
    settings.add(p, "random_init", help="for a bare backbone: use its architecture with random weights")
    g.add_argument("--self_copy", action="store_true", help="with a pointer, which released checkpoints do not record")
    settings.add_decoding(p, notices=settings.TOKENS_MOVED)
    settings.add(p, "output_dir", help="directory for the results (default: results/adapter_result or "
                                       "results/GPT2_result; for a model of train_t5.py, results/<run>; where that "
                                       "holds another model's results, with the run's name added)")  # fmt: skip
    settings.add(p, "samples", "token_cache_dir")
    g = p.group("scoring alone")
    g.add_argument("--score_only", metavar="FILE", help="score this file, one output per line, instead of decoding")
    g.add_argument("--references", metavar="FILE",
                   help="references for --score_only, one per line: one for each output, or several, with an empty "
                        "line between outputs (default: those of the data set)")  # fmt: skip
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if not args.task:
        p.error("--task is needed")
    if not args.model_checkpoint and not args.score_only:
        p.error("--model_checkpoint is needed (or --score_only FILE)")
    if args.references and not args.score_only:
        p.error("--references requires --score_only")
    if args.score_only:
        refuse_without_effect(p, args)
    flags.check_lengths(p, args)
    flags.require_one_process()
    manifest = peek(args.model_checkpoint) if args.model_checkpoint else None
    refuse_question_model(manifest, args.model_checkpoint)
    if not args.score_only:
        from versatile.training.evaluation import RUN_ENCODERS, evaluate_run

        if manifest and manifest.encoder in RUN_ENCODERS:
            return evaluate_run(args, p.locations, manifest.encoder)
    from versatile.data.own_tasks import named_data, prepare_own_tasks
    from versatile.data.task import canonical_name, find_task, get_task

    prepare_own_tasks(args, "--task", trained=manifest.definitions.values() if manifest else ())
    args.task = canonical_name(args.task, "markers")
    if args.task == "all" and manifest and manifest.encoder == "markers":
        every = shell_command("evaluate_vlm.py", "--task", "all", "--model_checkpoint", args.model_checkpoint)
        raise UserError("this script evaluates one task of this model", location="--task all",
                        expected=f"one of {', '.join(manifest.tasks)}", remedy=f"for all of them: {every}")  # fmt: skip
    if args.model_checkpoint and not args.score_only and (args.task == "all" or not_trained(args, manifest)):
        from versatile.training.text_to_text_evaluation import explain_untrained

        raise explain_untrained(args.model_checkpoint)
    if manifest and manifest.tasks and find_task(args.task) is None:
        check_holds(manifest.tasks, args.task, args.model_checkpoint)
    task = get_task(args.task)
    if args.data:
        if args.dataset_path:
            p.error("--data and --dataset_path both name the task's data: leave one of them out")
        args.dataset_path = by_task(args.data, [args.task], "evaluated")[args.task]
    flag = "--data" if args.data else p.locations.get("dataset_path", "--dataset_path")
    args.dataset_path, task = named_data(args.task, args.dataset_path, flag), get_task(args.task)
    if not (args.score_only and args.references):
        if not args.dataset_path and args.model_checkpoint and not task.has_data():
            from versatile.training.evaluation import trained_data

            args.dataset_path = trained_data(task, args.model_checkpoint)
        args.dataset_path = task.data_path(args.dataset_path)
    args.split = args.split or task.scored_split
    if args.score_only:
        score_files(args, task)
    else:
        flags.print_unused_decoding(p, args)
        evaluate(args, task, manifest)


def refuse_without_effect(p, args):
    """Exit with an error for a flag that scoring a file alone does not use."""
    used = {"task", "dataset_path", "score_only", "references", "output_dir", "config"}
    mode = "--score_only with --references" if args.references else "--score_only"
    if not args.references:
        used |= {"data", "split", "limit", "max_history"}
    for setting, location in p.locations.items():
        if setting not in used:
            p.error(f"{location}: has no effect with {mode}: leave it out")


def not_trained(args, manifest):
    """Whether a text-to-text task is requested for a directory without a trained model, which may be a T5's."""
    from versatile.data import text_to_text

    path = Path(args.model_checkpoint)
    return manifest is None and args.task in text_to_text.TASKS and (path.is_dir() or path.is_absolute())


def score_files(args, task):
    """Score an output file against a reference file or the data set's references."""
    from versatile.data import instances
    from versatile.training import evaluation
    from versatile.utils import metrics
    from versatile.utils.files import writable_directory, write_json
    from versatile.utils.lines import from_one_line

    if args.output_dir:
        writable_directory(args.output_dir, "--output_dir")
    hypotheses, examples = metrics.read_hypotheses(args.score_only), None
    if args.references:
        references = [list(map(from_one_line, group)) for group in metrics.read_references(args.references)]
    else:
        options = task.read_options(args.max_history, decoding=True)
        examples = instances.read_instances(args.dataset_path, args.split, task, options, args.limit)
        references = [e.references for e in examples]
    source = args.references or f"{args.dataset_path}:{args.split}"
    metrics.check_counts(hypotheses, references, f"--score_only {args.score_only}, with the references of {source}")
    if examples is None:
        scores, notes = task.score(hypotheses, references)
    else:
        scores, notes = evaluation.score_texts(task, hypotheses, examples, f"{args.dataset_path}:{args.split}")
    if args.output_dir:
        evaluation.write_outputs(args.output_dir, task.name, hypotheses, references)
        summary = dict(task=task.name, scores=metrics.to_json(scores), instances=len(hypotheses),
                       score_only=args.score_only)  # fmt: skip
        write_json(f"{args.output_dir}/{task.name}_metrics.json", summary)
    evaluation.show_scores(f"{task.name}, {args.score_only}", references, scores, notes)


def evaluate(args, task, manifest):
    import ignite.distributed as idist
    from versatile.training import evaluation, runs
    from versatile.training.decoding import Decoding
    from versatile.training.text_model import TextModel
    from versatile.utils import devices
    from versatile.utils.files import writable_directory

    devices.quiet_libraries(args.cache_dir)
    dtype = devices.precision(args, idist.device())
    # Read before the model, which takes longer.
    history = args.max_history or (manifest.histories.get(task.name) if manifest else None)
    split = evaluation.read_split(task, args.dataset_path, args.split, history, args.limit)
    model, tokenizer, method = load_model(args, task, manifest)
    mode = "GPT2_result" if model.info.mode == "full" else "adapter_result"
    args.output_dir = args.output_dir or evaluation.default_results(mode, args.model_checkpoint, [task.name])
    writable_directory(args.output_dir, "--output_dir")
    text_model = TextModel(args.model_checkpoint, model, tokenizer, dtype, args.token_cache_dir)
    more = text_model.describe() | dict(method=method) | runs.origin(args.model_checkpoint)
    decoding = Decoding.from_flags(args, text_model.positions)
    evaluation.evaluate_into(args.output_dir, text_model, [split], decoding, args.samples, **more)


def load_model(args, task, manifest):
    """(model, tokenizer, training method) of the checkpoint, or of a bare backbone with untrained task embeddings."""
    import torch
    from versatile.adapters import checkpoint
    from versatile.adapters.attach import attach
    from versatile.adapters.backbones import loading as backbones

    if manifest:
        model, tokenizer = checkpoint.load_checkpoint(args.model_checkpoint, task.name, pointer=args.self_copy)
        method = "finetune" if model.info.mode == "full" else "adapter"
        method = "released" if manifest.released else method
        check_ablations(args, model.info.methods.get(task.name, {}).get("method"))
    else:
        for flag in ("emb_only", "outputlayer_only", "self_copy"):
            if getattr(args, flag):
                raise UserError(f"{args.model_checkpoint} is a bare backbone", location=f"--{flag}",
                                expected="a model trained with it", remedy="leave the flag out")  # fmt: skip
        seed = args.seed if args.random_init else False
        model, tokenizer = backbones.load_backbone(args.model_checkpoint, random_init=seed)
        torch.manual_seed(args.seed)
        attach(model, tokenizer, {task.name: task.markers}, {task.name: 0})
        print(f"{args.model_checkpoint} is a bare backbone: evaluating it with untrained task embeddings")
        method = "untrained"
    stored_adapter = model.info.bottlenecks.get(task.name, -1)
    adapted = model.info.methods.get(task.name, {}).get("method", BARE)
    if adapted not in (BARE, "bottleneck"):
        stored_adapter = adapted
    if args.adapter_bottleneck not in (None, stored_adapter):
        kind = {-1: "is fully fine-tuned, without an adapter", 0: "has no adapter",
                adapted: f"was trained with the method {adapted}"}  # fmt: skip
        state = kind.get(stored_adapter, f"has an adapter of bottleneck {stored_adapter}")
        raise UserError(f"{args.model_checkpoint} {state}", location=f"--adapter_bottleneck {args.adapter_bottleneck}",
                        remedy="leave the flag out")  # fmt: skip
    return model, tokenizer, method


def check_ablations(args, method):
    """Reject flags that contradict how the checkpoint was trained."""
    from versatile.training import runs

    trained = runs.stored_record(args.model_checkpoint).get("flags")
    if trained is None:
        return
    trained = {**trained, "emb_only": method == BARE}
    for flag in ("emb_only", "outputlayer_only", "random_init"):
        if getattr(args, flag) and not trained.get(flag):
            raise UserError(f"{args.model_checkpoint} was trained without it", location=f"--{flag}",
                            remedy="leave the flag out")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
