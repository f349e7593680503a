#!/usr/bin/env python
"""Train one BERT on the GLUE tasks, modulated by task embeddings (CA-MTL; Pilault, El hattami & Pal 2021) or plain.

  one CPU or one GPU (the GPU is used if there is one):
    python train_camtl.py --model_name_or_path CA-MTL-base --data_dir $DATA_DIR --output_dir runs/camtl \\
      --do_train --do_eval --num_train_epochs 5 --learning_rate 2e-5 --seed 12
    python train_camtl.py --model_name_or_path minilm --form base --use_mt_uncertainty --data_dir data/samples/glue \\
      --tasks cola rte sts-b mrpc --do_train --do_eval
  several processes or GPUs:
    torchrun --nproc_per_node 2 train_camtl.py --model_name_or_path CA-MTL-base …
  flags from a json or yaml file; those after it override it:
    python train_camtl.py camtl.json --seed 1
  resume after an interruption; score and predict with a trained model:
    python train_camtl.py --resume runs/camtl
    python train_camtl.py --model_name_or_path runs/camtl --data_dir $DATA_DIR --output_dir results/camtl \\
      --do_eval --do_predict

The run directory holds the model with the best average over the tasks, the last checkpoints, TensorBoard events,
run.json, metrics.json, eval_results.json and .txt (all tasks, scored with that one model), learning_curve.png,
data_seen.png and data_seen.json (the composition of the batches) and parameters.json (which parameters were frozen and
which were trained). --do_predict writes <task>_test_iter_<step>.tsv and submission/, the files for the GLUE site.
"""

import math
import sys
from pathlib import Path

from versatile.training import classification_flags
from versatile.utils import flags
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.screen import counted

METHODS = {"base": "CA-MTL-base", "large": "CA-MTL-large", "plain": "multi-task BERT"}
# Rows processed together on a CPU; see `PairBatches`.
CPU_ROWS = 16


def parser():
    return classification_flags.parser(__doc__)


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if args.download:
        from versatile.data.glue_files import where_to_get

        return print(where_to_get(args.data_dir, args.tasks))
    if not args.resume:
        classification_flags.check_flags(p, args)
    from versatile.utils.devices import parallel

    with parallel():
        run_experiment(args, flags.typed_flags(parser, argv))


def run_experiment(args, typed_flags):
    import ignite.distributed as idist
    from versatile.data.own_tasks import prepare_own_tasks
    from versatile.training import experiment, runs
    from versatile.training.freezing import freeze
    from versatile.training.method_flags import name_of
    from versatile.utils import devices
    from versatile.utils.files import write_json

    args, run = open_run(args, typed_flags)
    prepare_own_tasks(args, labelled=True)
    dtype = check_before_loading(args, run)
    experiment.prepare_push(args)
    # One process per machine builds the caches, the others read them.
    with idist.one_rank_first(local=True):
        need_files(args)
        model, tokenizer = build_model(args)
        need_files(args)
        splits = load_splits(args, tokenizer)
    if args.do_train:
        parameters = freeze(args, model)
    devices.prepare_for_device(model, idist.device(), dtype)
    if not args.do_train:
        step = runs.trained_steps(args.model_checkpoint)
        return evaluate_and_report(args, args.output_dir, model, tokenizer, splits, dtype, step)
    if run is None:
        chosen = classification_flags.choose_method(args)
        run = experiment.new_run(args, ("glue", name_of(chosen) if chosen else args.form), method_label(args))
    # A run killed at its very start may lack this file when it is resumed.
    if idist.get_rank() == 0 and not (run.directory / "parameters.json").exists():
        write_json(run.directory / "parameters.json", parameters)
    step, report = train(args, run, model, tokenizer, splits, dtype)
    with run.scoring():
        evaluate_and_report(args, run.directory, model, tokenizer, splits, dtype, step, report)
    data = ["--data_dir", args.data_dir] if args.data_dir else []
    experiment.end_run(args, run, "train_camtl.py", "--model_name_or_path", run.directory, *data,
                       "--output_dir", f"results/{run.directory.name}", "--do_eval", "--do_predict")  # fmt: skip


def open_run(args, typed_flags):
    """(flags, None), or with --resume (the flags the run was started with, the run)."""
    from versatile.training import experiment

    free = {flag: value for flag, value in typed_flags.items() if flag in classification_flags.FREE}
    kept = {flag: value for flag, value in typed_flags.items() if flag not in classification_flags.FREE}
    args, run = experiment.open_run(parser(), args, kept, "train_camtl.py")
    if run is not None:
        vars(args).update({flag: value for flag, value in free.items() if flag != "overwrite_output_dir"})
        # run.json was written by a run that had passed these checks.
        classification_flags.check_flags(parser(), args)
    return args, run


def check_before_loading(args, run):
    """Check the flags and the machine before anything is loaded; returns the precision's dtype."""
    import ignite.distributed as idist
    from versatile.training import experiment
    from versatile.training.output_directory import check_output_directory
    from versatile.utils.files import writable_directory

    if args.output_dir and run is None and args.do_train:
        start = (f"--model_name_or_path {args.model_checkpoint}", args.model_checkpoint)
        check_output_directory(args.output_dir, "train_camtl.py", args.overwrite_output_dir, [start])
    if args.logging_dir and idist.get_rank() == 0:
        writable_directory(args.logging_dir, "--logging_dir")
    return experiment.check_machine(args)


def build_model(args):
    """The model that the flags specify, and its tokenizer.

    Fills in flags not given: `args.tasks`, `args.form`, `args.max_seq_length`.

    Raises:
        UserError: there is no such model, or it is a trained one without the tasks, or of another form or length.
    """
    from versatile.adapters import bert
    from versatile.adapters.backbones.configs import weight_names
    from versatile.adapters.backbones.loading import require_config
    from versatile.data import glue
    from versatile.training.classification import check_heads

    name, location = args.model_checkpoint, f"--model_name_or_path {args.model_checkpoint}"
    trained = is_trained(name)
    if trained:
        model, tokenizer = bert.load_classifier(name)
        args.tasks = args.tasks or list(model.tasks)
        bert.check_method(model, classification_flags.choose_method(args) or args.method, location)
    else:
        if Path(name).is_dir():
            require_config(Path(name), location, "train_camtl.py",
                           "a run of train_camtl.py, one of its checkpoints/step_…, or a BERT")  # fmt: skip
        # Weights of the original code, whose config names no tasks, include heads.
        if not args.do_train and not any("decoders." in key for key in weight_names(Path(name))):
            raise UserError("its heads are not trained", location=location, expected="a run of train_camtl.py",
                            remedy="train it first: --do_train")  # fmt: skip
        args.tasks = args.tasks or list(classification_flags.TASKS)
        heads = {task: len(glue.get_task(task).labels or "1") for task in args.tasks}
        form = args.form or bert.PUBLISHED.get(name, (name, "base" if args.method == "conditional" else "plain"))[1]
        model, tokenizer = bert.build_classifier(name, heads, form, args.max_seq_length or 128, args.seed,
                                                 classification_flags.choose_method(args))  # fmt: skip
    for flag, own in (("form", model.form), ("max_seq_length", model.max_seq_length)):
        if getattr(args, flag) not in (None, own):
            raise UserError(f"the model's is {own}", location=f"--{flag} {getattr(args, flag)}",
                            remedy=f"leave --{flag} out, or start from a BERT")  # fmt: skip
        setattr(args, flag, own)
    check_heads(model, args.tasks, location)
    model.aliases = glue.tasks_sharing_heads(model.tasks)
    return model, tokenizer


def is_trained(name):
    """Whether a name is the directory of a model trained by train_camtl.py."""
    from versatile.adapters.manifest import peek

    manifest = peek(name)
    return manifest is not None and manifest.encoder == "sentence_pair"


def need_files(args):
    """Raise a `UserError` naming all missing tsv files. A trained model's tasks are known only once it is loaded."""
    from versatile.data import glue_files

    tasks = args.tasks or ([] if is_trained(args.model_checkpoint) else classification_flags.TASKS)
    glue_files.need(args.data_dir, tasks, ["train"] * args.do_train + ["dev"] * is_evaluated(args))
    if args.do_predict and tasks and not any(has_test_rows(args, task) for task in tasks):
        later = "leave --do_predict out, and predict later with the trained model; " if args.do_train else ""
        glue_files.need(args.data_dir, tasks, ["test"], later)


def has_test_rows(args, task):
    """Whether a task's test file exists; tasks without one are trained and scored all the same."""
    from versatile.data import glue_files

    return not glue_files.missing(args.data_dir, [task], ["test"])


def is_evaluated(args):
    """Whether the dev files are scored."""
    return args.do_eval or args.evaluate_during_training


def load_splits(args, tokenizer):
    """{split: {task: `EncodedSplit`}} for the splits that the flags require; prints row counts and truncations."""
    from versatile.data import glue_files
    from versatile.data.encoders import sentence_pair
    from versatile.training.experiment import print_once

    wanted = dict(train=args.do_train, dev=is_evaluated(args), test=args.do_predict)
    splits = {}
    for split in [split for split, is_wanted in wanted.items() if is_wanted]:
        names = list(args.tasks)
        if split != "train":
            names += glue_files.head_sharing_tasks_with_files(args.tasks, args.data_dir, split)
        if split == "test" and (without := [name for name in names if not has_test_rows(args, name)]):
            names = [name for name in names if name not in without]
            print_once(f"no test.tsv of {', '.join(without)}: not predicted")
        splits[split] = {}
        for name in names:
            loaded = sentence_pair.load_split(
                args.data_dir, name, split, tokenizer, args.max_seq_length, limit=args.limit,
                cache_dir=args.token_cache_dir, overwrite=args.overwrite_cache,
            )  # fmt: skip
            splits[split][name] = loaded
            kept, cut = loaded.report["kept"], sum(loaded.report["cut"].values())
            print_once(f"{split} {name}: {counted(len(loaded), 'row')}"
                       + (f" of {kept:,}" if kept > len(loaded) else "")
                       + (f", {cut:,} cut to {args.max_seq_length} tokens" if cut else ""))  # fmt: skip
    return splits


def method_label(args):
    """How the model is trained, for tables of results: "CA-MTL-base+uncertainty"."""
    from versatile.training.method_flags import name_of

    chosen = classification_flags.choose_method(args)
    name = METHODS[args.form] if len(args.tasks) > 1 or args.form != "plain" else "single-task BERT"
    name = name_of(chosen) if chosen else name
    if args.use_mt_uncertainty:
        return f"{name}+uncertainty"
    return f"{name}+uniform" if args.uniform_mt_sampling else name


def make_batches(args, model, tokenizer, splits, dtype):
    """Training batches, drawn by the sampler that the flags select."""
    import ignite.distributed as idist
    from versatile.data.pair_batches import CandidateBatches, PairBatches
    from versatile.training.experiment import print_once
    from versatile.training.uncertainty_sampling import UncertaintySampler

    ids = {task: model.task_id(task) for task in splits}
    options = (splits, ids, tokenizer.pad_token_id, args.max_seq_length, args.train_batch_size)
    processes = dict(seed=args.seed, rank=idist.get_rank(), world=idist.get_world_size(),
               rows_at_once=CPU_ROWS if idist.device().type == "cpu" else None)  # fmt: skip
    percent = args.percent_of_max_data_size
    if args.use_mt_uncertainty:
        if args.uniform_mt_sampling:
            print_once("--uniform_mt_sampling: no effect with --use_mt_uncertainty, which draws a batch of each task")
        return CandidateBatches(*options, select=UncertaintySampler(model, dtype), percent=percent, **processes)
    if percent != 1 and not args.uniform_mt_sampling:
        print_once("--percent_of_max_data_size: no effect without --use_mt_uncertainty or --uniform_mt_sampling")
    return PairBatches(*options, uniform=percent if args.uniform_mt_sampling else None, **processes)


def trainer_settings(args, batches, dtype):
    """(`Settings`, warm-up steps), also for a fraction of an epoch and for --max_steps beyond the epochs."""
    from versatile.training.settings import Settings

    epoch_steps = math.ceil(len(batches.plan(0)) / args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else max(1, int(epoch_steps * args.n_epochs))
    warmup = int(total * args.warmup_ratio) if args.warmup_steps is None else args.warmup_steps
    log_every = args.logging_steps or 10
    every = (args.logging_steps or 500) if args.evaluate_during_training else None
    return Settings(n_epochs=math.ceil(total / epoch_steps), max_steps=total, seed=args.seed, dtype=dtype,
                    gradient_accumulation_steps=args.gradient_accumulation_steps, max_norm=args.max_norm,
                    save_steps=args.save_steps, select=args.select, log_every=log_every,
                    mean_loss=True, log_first=args.logging_first_step, eval_steps=every,
                    eval_first=args.logging_first_step, report_to=args.report_to), warmup  # fmt: skip


def train(args, run, model, tokenizer, splits, dtype):
    """Train; write metrics.json, learning_curve.png, data_seen.json and data_seen.png.

    Returns:
        (step of the kept model, its report or None); the model is left with its weights.
    """
    import ignite.distributed as idist
    from versatile.adapters import bert
    from versatile.adapters.methods.base import parameters_of_tasks
    from versatile.adapters.trained import count_parameters
    from versatile.training import classification, experiment
    from versatile.training.callbacks import Coverage, MaskAbsentTasks
    from versatile.training.coverage import warn_of_undrawn
    from versatile.training.objectives import WeightedRows
    from versatile.training.optimizers import build_adamw
    from versatile.training.runs import ModelFiles
    from versatile.training.schedules import choose_schedule
    from versatile.training.trainer import Trainer
    from versatile.utils import plots
    from versatile.utils.files import write_json

    batches = make_batches(args, model, tokenizer, splits["train"], dtype)
    settings, warmup = trainer_settings(args, batches, dtype)
    dev = splits.get("dev")
    evaluate = dev and classification.DevScores(model, dev, (args.valid_batch_size, batches.pad_id, dtype), args.select)
    files = ModelFiles(lambda folder: bert.save_classifier(model, tokenizer, folder),
                       lambda folder: bert.load_weights(model, folder))  # fmt: skip
    run.bind(files, experiment.data_key(train=splits["train"], valid=dev),
             experiment.resume_command("train_camtl.py", run.directory), args.logging_dir,
             backbone=getattr(model, "backbone_fingerprint", None))  # fmt: skip
    optimizer = build_adamw(model, args.lr, args.adam_eps, args.weight_decay)
    schedule = choose_schedule(args, args.lr, settings.max_steps, warmup)
    callbacks = [Coverage(batches.tracker)]
    if model.mode == "adapter":
        callbacks.append(MaskAbsentTasks(parameters_of_tasks(model)))
    trainer = Trainer(model, batches, WeightedRows(), optimizer, schedule, run, evaluate, callbacks,
                      settings=settings)  # fmt: skip
    result = dict(task="+".join(args.tasks), form=args.form, backbone=str(model.config._name_or_path),
                  checkpoint=str(run.directory), parameters=count_parameters(model))  # fmt: skip
    result |= experiment.run_training(trainer)
    warn_of_undrawn([task for task, drawn in batches.tracker.counts.items() if not drawn])
    report = evaluate.kept(trainer).get("tasks") if evaluate else None
    if report:
        result["tasks"] = classification.as_tasks(report, method=method_label(args))
    experiment.write_results(run, result, method_label(args), plots.task_scores_curve)
    if idist.get_rank() == 0:
        write_json(run.directory / "data_seen.json", result["history"]["seen"])
        title = f"{method_label(args)}: {run.directory.name}"
        plots.data_seen(run.directory / "data_seen.png", result["history"]["seen"], title)
    files.load(run.directory)
    return result["best_step"], report


def evaluate_and_report(args, folder, model, tokenizer, splits, dtype, step, report=None):
    """Score the dev files and predict the test files with one model, and write the results.

    Args:
        args: flags of train_camtl.py.
        folder: the output directory.
        model, tokenizer, splits, dtype: as in `train`.
        step: number of optimizer steps that the model was trained for.
        report: its scores, if training has computed them already.
    """
    import ignite.distributed as idist
    from versatile.data import glue
    from versatile.training import classification
    from versatile.training.experiment import print_once
    from versatile.utils.files import writable_directory

    first, options = idist.get_rank() == 0, (args.valid_batch_size, tokenizer.pad_token_id, dtype)
    if first:
        writable_directory(folder, "--output_dir")
    if "dev" in splits:
        report = report or classification.evaluate(model, splits["dev"], *options)
        if first:
            _write_results(args, Path(folder), model, report, step)
    for name, split in splits.get("test", {}).items():
        predictions, _ = classification.predict(model, split, *options)
        if first:
            classification.write_predictions(folder, name, split, predictions, step)
    if "test" in splits:
        print_once(f"predictions of {', '.join(splits['test'])} in {folder}; for the GLUE site: {folder}/submission/")
        if args.limit:
            print_once(f"--limit: they are cut to the first {args.limit:,} rows, and the GLUE site would reject them")
        every = (*classification_flags.TASKS, *glue.SHARED_HEADS)
        absent = [glue.TASKS[name].submission for name in every if name not in splits["test"]]
        if absent and set(classification_flags.TASKS) & set(splits["test"]):
            print_once(f"the GLUE site requires all of its files; missing: {', '.join(absent)}")


def _write_results(args, folder, model, report, step):
    from versatile.training import classification, runs
    from versatile.utils.files import write_json

    print(f"\n{classification.format_report(report, step)}\n", flush=True)
    source = str(folder if args.do_train else args.model_checkpoint)
    classification.write_results(folder, report, step, checkpoint=source)
    print(f"scores in {folder}: eval_results.txt, eval_results.json", flush=True)
    if not (folder / "run.json").exists():
        # A run keeps its own metrics.json.
        total = dict(total=sum(p.numel() for p in model.parameters()))
        tasks = classification.as_tasks(
            report, checkpoint=source, backbone=str(model.config._name_or_path),
            method=runs.stored_record(source).get("method") or METHODS[model.form],
            parameters=runs.stored_metrics(source).get("parameters") or total,
        )  # fmt: skip
        write_json(folder / "metrics.json", dict(tasks=tasks, step=step, average=classification.average(report)))


if __name__ == "__main__":
    sys.exit(main())
