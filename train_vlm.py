#!/usr/bin/env python
r"""Train a VLM: all tasks at once in mixed batches, each with its own adapter and task embeddings.

  one CPU or one GPU (the GPU is used if there is one):
    python train_vlm.py --gradient_accumulation_steps=16 --train_batch_size=1 --valid_batch_size=1 --n_epochs 3
  selected tasks, other data, other widths, all tasks drawn equally often:
    python train_vlm.py --tasks nlg mt --data nlg=data/samples/nlg.json mt=data/samples/mt.json \
      --model_checkpoint smollm2 --adapter_bottleneck nlg=64 mt=128 --sampling uniform --train_batch_size 16
  several GPUs, or several processes on a CPU:
    torchrun --nproc_per_node 2 train_vlm.py --tasks nlg mt --model_checkpoint smollm2
  resume after an interruption:
    python train_vlm.py --resume runs/<run>

The backbone is frozen, and each task has its own additions: it keeps the weights of its own best epoch and, with
--early_stopping, stops independently. Where tasks share trained parameters (hypernetworks; the backbone with
--unfreeze_backbone, as in the original), the epoch with the best mean loss is kept. The run
directory is a VLM; evaluate_vlm.py reads it.
"""

import argparse
import sys

from versatile.adapters.methods.registry import FULL
from versatile.data.listing import list_tasks
from versatile.data.task_names import by_task, task_flag
from versatile.training import method_flags
from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.files import find_shipped
from versatile.utils.screen import format_number, module_command

# The published settings; the learning rate for an unfrozen backbone is the original's, that for adapters only the one
# that most adapters were published with.
DEFAULTS = dict(n_epochs=3, train_batch_size=1, gradient_accumulation_steps=16)
RATES = {True: 6.25e-5, False: 5e-4}
TEMPERATURES = {"proportional": 1.0, "uniform": float("inf")}


def for_each_task(number):
    """argparse type: N for all tasks, or TASK=N, where `number` is the type of N."""

    def parse(text):
        task, _, value = text.rpartition("=")
        # A list, as run.json returns it.
        return [task, number(value)]

    def written(pair):
        task, value = pair
        return f"{task}={value}" if task else str(value)

    parse.written, parse.expected = written, 'a task (or "" for all) and a number'
    return parse


def method_name(text):
    """argparse type: a method's name."""
    if text not in method_flags.method_names():
        raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(method_flags.method_names())}")
    return text


def parser():
    p = flags.build_parser(__doc__)
    g = p.group("task and data")
    task_flag(g, "--tasks", "markers", nargs="+", metavar="TASK",
              help="the tasks to train: any of --list_tasks, and NAME=DATA for your own, see data/own_tasks.py "
                   "(default: all tasks with data)")  # fmt: skip
    g.add_argument("--data", nargs="+", type=flags.of_tasks(find_shipped, "FILE"), action=flags.OfTasks, default={},
                   metavar="TASK=FILE", help="data files (default: the tasks' own locations under data/)")  # fmt: skip
    g.add_argument("--sampling", choices=["proportional", "uniform", "temperature"], default="proportional",
                   help="draw tasks in proportion to size, equally often, or in proportion to size^(1/T)")  # fmt: skip
    settings.add(p, "sampling_temperature", default=2.0, help="T of --sampling temperature")
    g.add_argument("--distillation", nargs="+", default=[], metavar="TASK",
                   help="tasks to train on a teacher's texts, from <data>_distilled.json")  # fmt: skip
    settings.add(p, "max_history")
    settings.add(p, "limit", nargs="+", type=for_each_task(flags.positive), metavar="[TASK=]N")
    list_tasks(g)
    settings.add(p, "model_checkpoint", default="gpt2",
                 help="backbone: a hub name, a directory, or smollm2, tiny-gpt2, tiny-llama, tiny-t5")  # fmt: skip
    settings.add(p, "adapter_bottleneck", nargs="+", type=for_each_task(flags.not_negative), default=[],
                 metavar="[TASK=]N",
                 help="adapter width, for all tasks or for each; 0: only task embeddings (default: published)")
    g = p.group("model")
    g.add_argument("--method", nargs="+", type=for_each_task(method_name), default=[], metavar="[TASK=]NAME",
                   help="adaptation method, one for all tasks or one for each: "
                        f"{', '.join(method_flags.method_names())}; {method_flags.ONLY_CLASSIFIERS} "
                        "(default: bottleneck)")  # fmt: skip
    method_flags.add_setting_flags(g)
    settings.add(p, "row_init", "random_init")
    g.add_argument("--unfreeze_backbone", action="store_true", help="also train the backbone, as the original does")
    settings.add_training(p, published="")
    next(a for a in p._actions if a.dest == "lr").help += f" (default: {RATES[False]:g}, unfrozen {RATES[True]:g})"
    p.set_defaults(**DEFAULTS)
    settings.refuse(p, settings.WITHOUT_EFFECT)
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    from versatile.utils.devices import parallel

    with parallel():
        train(args, flags.typed_flags(parser, argv))


def train(args, typed_flags):
    import ignite.distributed as idist
    from versatile.adapters import attach as adapting
    from versatile.adapters.backbones.family import max_length_of
    from versatile.data.own_tasks import prepare_own_tasks
    from versatile.data.task import get_task
    from versatile.training import evaluation, experiment
    from versatile.training.runs import join_names

    args, run = experiment.open_run(parser(), args, typed_flags, "train_vlm.py")
    if twice := [name for name in args.tasks or [] if args.tasks.count(name) > 1]:
        raise UserError(f"task {twice[0]!r} is named twice", location="--tasks", remedy="name it once")
    prepare_own_tasks(args)
    args.tasks = args.tasks or with_data(args)
    tasks = {name: get_task(name, "--tasks") for name in args.tasks}
    methods, limits = choose_methods(args, tasks), values_by_task("--limit", args.limit, tasks)
    args.lr = args.lr or RATES[args.unfreeze_backbone or methods is None]
    paths = data_files(args, tasks)
    temperature = check_sampling(args, typed_flags)
    dtype = experiment.check_before_loading(args, run)
    # One process per machine builds the caches, the others read them.
    with idist.one_rank_first(local=True):
        model, tokenizer = experiment.load_model(args, tasks, methods, freeze=not args.unfreeze_backbone)
        experiment.warm_start(args, run, model, tokenizer)
        positions = max_length_of(model)
        splits = experiment.load_splits(args, tasks, paths, tokenizer, positions, limits)
    experiment.print_once(adapting.parameter_summary(model))
    experiment.prepare_for_training(model, args, dtype)
    if run is None:
        run = experiment.new_run(args, ("vlm", join_names(args.tasks)), "multi-task")
    result = experiment.fit(args, run, model, tokenizer, splits, dtype, limits=limits, temperature=temperature,
                            separate=adapting.are_separate(model), script="train_vlm.py")  # fmt: skip
    for name, best in result.get("tasks", {}).items():
        perplexity = format_number(best["valid_ppl"], 3)
        experiment.print_once(f"{name:15} best validation NLL {best['valid_nll']:.4f}, PPL {perplexity}, after step "
                              f"{best['best_step']}")  # fmt: skip
    data = [f"{name}={path}" for name, path in paths.items()]
    split = evaluation.split_words({task: paths[name] for name, task in tasks.items()})
    following = ["evaluate_vlm.py", "--task", "all", "--no_sample", "--model_checkpoint", run.directory,
                 "--data", *data, *(split or ()), "--output_dir", f"results/{run.directory.name}"]  # fmt: skip
    experiment.end_run(args, run, *([] if split is None else following))


def with_data(args):
    """The tasks that have data, in order; prints which ones are left out."""
    from versatile.data.task import all_tasks
    from versatile.training import experiment

    names = []
    for name, task in sorted(all_tasks().items()):
        try:
            task.data_path(args.data.get(name), name in args.distillation)
            names.append(name)
        except UserError:
            experiment.print_once(f"{name}: left out, there is no {task.dataset_path} (name its data: "
                                  f"--data {name}=FILE)")  # fmt: skip
    if not names:
        raise UserError("no task has data", location="--data", expected="TASK=FILE …",
                        remedy="try --data nlg=data/samples/nlg.json mt=data/samples/mt.json")  # fmt: skip
    return names


def choose_methods(args, tasks):
    """{task: its adaptation method}, as `attach` takes it, or None if the whole model is trained."""
    names = values_by_task("--method", args.method, tasks)
    widths, chosen = values_by_task("--adapter_bottleneck", args.adapter_bottleneck, tasks), {}
    for name, task in tasks.items():
        published = task.published.get("adapter", {}).get("adapter_bottleneck")
        method, width = names.get(name), widths.get(name)
        if method is None and width is None:
            width = published
            if width is None:
                raise UserError(f"no published width for task {name}", location="--adapter_bottleneck",
                                remedy=f"give one: --adapter_bottleneck {name}=N")  # fmt: skip
        chosen[name] = method_flags.choose_method(args, method, width, published)
    method_flags.check_settings(args, [m["method"] if m else FULL for m in chosen.values()])
    whole = [name for name, method in chosen.items() if method is None]
    if whole and len(whole) < len(chosen):
        raise UserError("full trains the backbone that the other tasks' methods leave frozen", location="--method",
                        expected="full for all tasks, or for none",
                        remedy="--unfreeze_backbone trains it along with them")  # fmt: skip
    if whole and args.unfreeze_backbone:
        raise UserError("trains nothing but the backbone", location="--method full",
                        remedy="leave --unfreeze_backbone out")  # fmt: skip
    return None if whole else chosen


def values_by_task(flag, pairs, tasks):
    """{task: N} from a flag's values as parsed by `for_each_task`; a `UserError` if a task has two."""
    values = {}
    for task, value in pairs or []:
        if task in values:
            whose = f"task {task!r}" if task else "all tasks"
            raise UserError(f"two values for {whose}: {values[task]} and {value}", location=flag,
                            remedy="give one for all tasks, or one for each: " +
                            " ".join(f"{name}=…" for name in tasks))  # fmt: skip
        values[task] = value
    for_all = {"": values.pop("")} if "" in values else {}
    values = by_task(values, tasks, "trained", flag) | for_all
    return {name: values.get(name, values.get("")) for name in tasks if name in values or "" in values}


def data_files(args, tasks):
    """{task: its data file}."""
    args.data = by_task(args.data, tasks, "trained")
    args.distillation = list(by_task(dict.fromkeys(args.distillation), tasks, "trained", "--distillation"))
    paths = {}
    for name, task in tasks.items():
        try:
            paths[name] = task.data_path(args.data.get(name), name in args.distillation)
        except UserError as error:
            if name in args.data:
                raise
            convert = module_command("data.convert", "--help")
            raise UserError(f"no data for task {name}: there is no {task.dataset_path}", location="--data",
                            remedy=f"name its file: --data {name}=FILE; make it: {convert}; "
                                   "or leave the task out: --tasks …") from error  # fmt: skip
    return paths


def check_sampling(args, typed_flags):
    """The sampling temperature for `Batches`; `typed_flags` are those given by the user."""
    if "sampling_temperature" in typed_flags and args.sampling != "temperature":
        raise UserError(f"has no effect with --sampling {args.sampling}", location="--sampling_temperature",
                        expected="--sampling temperature", remedy="add that, or leave this flag out")  # fmt: skip
    if args.sampling != "proportional" and args.max_tokens:
        raise UserError("requires --sampling proportional: otherwise epochs would differ in their number of batches",
                        location="--max_tokens", remedy="size batches by examples: --train_batch_size")  # fmt: skip
    return TEMPERATURES.get(args.sampling, args.sampling_temperature)


if __name__ == "__main__":
    sys.exit(main())
