"""Training one BERT on several GLUE tasks with the toolkit's one loop: its loss, its samplers, its best checkpoint."""

import json
import math
import re
import time
from pathlib import Path

import ignite.distributed as idist
import torch
from versatile.adapters import bert
from versatile.adapters.manifest import peek
from versatile.adapters.tensors import read_safetensors
from versatile.data import glue
from versatile.data.encoders import sentence_pair as sentence_pairs
from versatile.data.pair_batches import CandidateBatches, PairBatches, tensors
from versatile.training import camtl_flags as flags
from versatile.training import camtl_plots as plots
from versatile.training import camtl_prediction as prediction
from versatile.training.board import check_reporters
from versatile.training.callbacks import Coverage
from versatile.training.camtl_parameters import count_parameters
from versatile.training.camtl_prediction import AVERAGE
from versatile.training.experiment import resume_command, say
from versatile.training.objectives import WeightedRows
from versatile.training.optimizers import build_adamw
from versatile.training.runs import ModelFiles, Run, stored
from versatile.training.schedules import check_schedule, choose_schedule
from versatile.training.settings import Settings
from versatile.training.trainer import Trainer
from versatile.training.validation import TOGETHER, Evaluator, Report
from versatile.utils import devices, uncertainty
from versatile.utils.errors import UserError
from versatile.utils.files import could_be_made, remove_leftovers, writable_directory, write_json

METHODS = {"base": "CA-MTL-base", "large": "CA-MTL-large", "plain": "multi-task BERT"}
# A regression has no entropy; whose it borrows (see utils/uncertainty.py).
LENDER = {"sts-b": "mrpc"}
# Rows that a CPU learns at once; see `PairBatches`.
CPU_ROWS = 8
# What a training run writes; --overwrite_output_dir takes it away.
WRITTEN = ("run.json", "metrics.json", "parameters.json", "data_seen.json", "eval_results.*", "*.png", "events.*",
           "*_test_iter_*.tsv", "submission/*.tsv", "checkpoints/step_*/*", "checkpoints/step_*", bert.CONFIG,
           bert.WEIGHTS, "tokenizer*", "vocab.txt", "special_tokens_map.json")  # fmt: skip


# --- before training -------------------------------------------------------------------------------------


def build(args):
    """The model that the flags ask for and its tokenizer.

    Fills what was not given: `args.tasks`, `args.form`, `args.max_seq_length`.

    Raises:
        UserError: no such model, a trained one without the tasks, or of another form or length.
    """
    name, location = args.model_checkpoint, f"--model_name_or_path {args.model_checkpoint}"
    trained = is_trained(name)
    if trained:
        model, tokenizer = bert.load(name)
        args.tasks = args.tasks or list(model.tasks)
    else:
        _need_model(name, location)
        if not args.do_train and not _has_heads(name):
            raise UserError("its heads are not trained", location=location, expected="a run of train_camtl.py",
                            remedy="train it first: --do_train")  # fmt: skip
        args.tasks = args.tasks or list(flags.TASKS)
        heads = {task: len(glue.get(task).labels or "1") for task in args.tasks}
        form = args.form or bert.PUBLISHED.get(name, (name, "plain"))[1]
        model, tokenizer = bert.build(name, heads, form, args.max_seq_length or 128, args.seed)
    for flag, own in (("form", model.form), ("max_seq_length", model.max_seq_length)):
        if getattr(args, flag) not in (None, own):
            raise UserError(f"the model's is {own}", location=f"--{flag} {getattr(args, flag)}",
                            remedy=f"leave --{flag} out, or start from a BERT")  # fmt: skip
        setattr(args, flag, own)
    prediction.check_heads(model, args.tasks, location)
    model.aliases = {guest: host for guest, host in flags.GUESTS.items() if host in model.tasks}
    return model, tokenizer


def is_trained(name):
    """Whether a name is the directory of a model of train_camtl.py."""
    manifest = peek(name)
    return manifest is not None and manifest.encoder == "sentence_pair"


def _need_model(name, location):
    """A `UserError` where a directory holds no model, with the newest checkpoint below it."""
    folder = Path(name)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return
    steps = sorted([*folder.glob("step_*"), *folder.glob("checkpoints/step_*")])
    raise UserError(f"no model here: no {bert.CONFIG}, no config.json", location=location,
                    expected="a run of train_camtl.py, one of its checkpoints/step_…, or a BERT",
                    remedy=f"name one step_…, the newest is {steps[-1]}" if steps else None)  # fmt: skip


def _has_heads(name):
    """Whether a directory holds a model of the original code, which names no tasks."""
    folder = Path(name)
    try:
        if (folder / bert.WEIGHTS).is_file():
            from safetensors import safe_open

            with safe_open(folder / bert.WEIGHTS, "pt") as file:
                keys = list(file.keys())
        else:
            keys = list(torch.load(folder / "pytorch_model.bin", "meta", weights_only=True))
    except Exception:
        # Whatever is wrong with it is told where it is loaded.
        return False
    return any("decoders." in key for key in keys)


def begin(args, run):
    """What is wrong with flags and machine is said before anything is loaded. Returns the precision's dtype."""
    devices.quiet_libraries(args.cache_dir)
    check_reporters(args.report_to)
    check_schedule(args)
    if args.output_dir and run is None and args.do_train:
        overwrite(args)
    if args.logging_dir and idist.get_rank() == 0:
        writable_directory(args.logging_dir, "--logging_dir")
    dtype = devices.precision(args, idist.device())
    # Written down, so that a run resumed on other hardware goes on as it was.
    args.bf16, args.fp16, args.fp32 = (dtype == d for d in (torch.bfloat16, torch.float16, torch.float32))
    return dtype


def overwrite(args):
    """Refuse an --output_dir that holds a run; with --overwrite_output_dir one of another script, or the start."""
    folder, location = Path(args.output_dir), f"--output_dir {args.output_dir}"
    could_be_made(folder, "--output_dir")
    if not args.overwrite_output_dir:
        return Run.refuse_taken(folder)
    if (folder / "run.json").exists() and not str(stored(folder).get("command", "")).startswith("train_camtl.py"):
        raise UserError("this is no run of train_camtl.py", location=location, remedy="name another directory")
    start = Path(args.model_checkpoint)
    if start.is_dir() and start.resolve().is_relative_to(folder.resolve()):
        raise UserError("the model to start from lies in it", location=location, remedy="name another directory")


def clear(folder):
    """Remove what a run of train_camtl.py wrote into a directory, and nothing else."""
    folder = Path(folder)
    if not (folder / "run.json").exists():
        return
    remove_leftovers(folder)
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            if path.is_dir():
                remove_leftovers(path)
                path.rmdir()
            else:
                path.unlink()


def need_files(args):
    """A `UserError` that names all the tsv files that are not there. A trained model's tasks are known when it is."""
    tasks = args.tasks or ([] if is_trained(args.model_checkpoint) else flags.TASKS)
    sentence_pairs.need(args.data_dir, tasks, ["train"] * args.do_train + ["dev"] * evaluates(args))
    if args.do_predict and tasks and not any(testable(args, task) for task in tasks):
        later = "leave --do_predict out, and predict later with the trained model; " if args.do_train else ""
        sentence_pairs.need(args.data_dir, tasks, ["test"], later)


def testable(args, task):
    """Whether a task's test file is there; the others are trained and scored all the same."""
    return not sentence_pairs.missing(args.data_dir, [task], ["test"])


def evaluates(args):
    """Whether the dev files are scored."""
    return args.do_eval or args.evaluate_during_training


def load_splits(args, tokenizer):
    """{split: {task: PairSplit}} of what the flags ask for, with rows and cuts on the screen."""
    wanted = dict(train=args.do_train, dev=evaluates(args), test=args.do_predict)
    found = {}
    for split in [split for split, asked in wanted.items() if asked]:
        names = list(args.tasks)
        if split != "train":
            guests = [guest for guest, host in flags.GUESTS.items() if host in names]
            names += [g for g in guests if split in glue.TASKS[g].files
                      and not sentence_pairs.missing(args.data_dir, [g], [split])]  # fmt: skip
        if split == "test" and (without := [name for name in names if not testable(args, name)]):
            names = [name for name in names if name not in without]
            say(f"no test.tsv of {', '.join(without)}: not predicted")
        found[split] = {}
        for name in names:
            loaded = sentence_pairs.load(args.data_dir, name, split, tokenizer, args.max_seq_length, limit=args.limit,
                                         cache_dir=args.token_cache_dir, overwrite=args.overwrite_cache)  # fmt: skip
            found[split][name] = loaded
            cut = loaded.report["cut"]
            kept = loaded.report["kept"]
            say(f"{split} {name}: {len(loaded):,} row{'s' * (len(loaded) > 1)}"
                + (f" of {kept:,}" if kept > len(loaded) else "")
                + (f", {cut:,} cut to {args.max_seq_length} tokens" if cut else ""))  # fmt: skip
    return found


def method(args):
    """How the model is trained, for tables of results: "CA-MTL-base+uncertainty"."""
    name = METHODS[args.form] if len(args.tasks) > 1 or args.form != "plain" else "single-task BERT"
    if args.use_mt_uncertainty:
        return f"{name}+uncertainty"
    return f"{name}+uniform" if args.uniform_mt_sampling else name


# --- what is learnt --------------------------------------------------------------------------------------


class Selector:
    """Chooses the rows of a batch by the uncertainty of the model as it stands.

    Every process scores its share of the candidates, all choose the same.

    Args:
        model: `TaskBert`.
        dtype: precision of the matrix products.
    """

    def __init__(self, model, dtype):
        self.model, self.dtype = model, dtype
        ids = {task: i for i, task in enumerate(model.tasks)}
        self.regression = {i: ids.get(LENDER.get(task)) for task, i in ids.items() if model.tasks[task] == 1}

    def __call__(self, batches, candidates, keep):
        """Places of the rows to keep among the candidates, which are numbers of rows in `batches`."""
        mine = candidates[batches.rank :: batches.world]
        batch = tensors(batches.inputs(mine if len(mine) else candidates[:1]))
        entropies = uncertainty.candidate_entropies(self.model, batch, dtype=self.dtype).cpu()[: len(mine)]
        even = torch.nn.functional.pad(entropies, (0, -(-len(candidates) // batches.world) - len(mine)))
        entropies = prediction.together(even)[: len(candidates)]
        task_ids = torch.from_numpy(batches.task_ids[batches.owners(candidates)])
        return uncertainty.choose(entropies, task_ids, keep, self.regression).numpy()


def make_batches(args, model, tokenizer, splits, dtype):
    """Training batches by the sampler that the flags name."""
    ids = {task: model.task_id(task) for task in splits}
    given = (splits, ids, tokenizer.pad_token_id, args.max_seq_length, args.train_batch_size)
    how = dict(seed=args.seed, rank=idist.get_rank(), world=idist.get_world_size(),
               rows_at_once=CPU_ROWS if idist.device().type == "cpu" else None)  # fmt: skip
    percent = min(max(args.percent_of_max_data_size, 0.0), 1.0)
    if args.use_mt_uncertainty:
        if args.uniform_mt_sampling:
            say("--uniform_mt_sampling: no effect beside --use_mt_uncertainty, whose candidates hold each task alike")
        return CandidateBatches(*given, select=Selector(model, dtype), percent=percent, **how)
    if percent != 1 and not args.uniform_mt_sampling:
        say("--percent_of_max_data_size: no effect without --use_mt_uncertainty or --uniform_mt_sampling")
    return PairBatches(*given, uniform=percent if args.uniform_mt_sampling else None, **how)


def settings_of(args, batches, dtype):
    """(`Settings`, steps of the warm-up); a fraction of an epoch, and --max_steps beyond the epochs, included."""
    epoch_steps = math.ceil(len(batches.plan(0)) / args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else max(1, int(epoch_steps * args.n_epochs))
    warmup = int(total * args.warmup_ratio) if args.warmup_steps is None else args.warmup_steps
    log_every = args.logging_steps or 10
    every = (args.logging_steps or 500) if args.evaluate_during_training else None
    return Settings(n_epochs=math.ceil(total / epoch_steps), max_steps=total, seed=args.seed, dtype=dtype,
                    gradient_accumulation_steps=args.gradient_accumulation_steps, max_norm=args.max_norm,
                    save_steps=args.save_steps, select=args.select, log_every=log_every,
                    mean_loss=True, log_first=args.logging_first_step, eval_steps=every,
                    report_to=args.report_to), warmup  # fmt: skip


# --- the loop --------------------------------------------------------------------------------------------


class DevScores(Evaluator):
    """All tasks' scores on their dev files; the best model is that of the best average.

    Args:
        model: `TaskBert`.
        splits: {task: `PairSplit`}.
        options: batch size, padding id and precision of `prediction.evaluate`.
        select: "best" or "last": which model is kept.
    """

    def __init__(self, model, splits, options, select):
        self.model, self.splits, self.options, self.select = model, splits, options, select

    def __call__(self):
        started = time.monotonic()
        report = prediction.evaluate(self.model, self.splits, *self.options)
        loss, mean = sum(result["loss"] for result in report.values()) / len(report), prediction.average(report)
        tasks = ", ".join(f"{name} {100 * prediction.one_number(r['scores']):.1f}" for name, r in report.items())
        line = f"average {100 * mean:.1f} of {tasks}; loss {loss:.4f}%s, {time.monotonic() - started:.0f} s"
        scalars = {"dev": {"loss": loss, AVERAGE: mean},
                   **{f"dev/{name}": {"loss": r["loss"]} | r["scores"] for name, r in report.items()}}  # fmt: skip
        return Report({TOGETHER: -mean}, {"nll": loss, AVERAGE: mean, "tasks": report}, line, scalars, loss)

    def summary(self, trainer):
        """See `Evaluator`; of the kept model the loss alone, which mixes kinds."""
        kept = self.kept(trainer)
        return dict(best_step=kept.get("step", 0), valid_nll=kept.get("nll"))

    def kept(self, trainer):
        """The history's row of the model that is kept; {} where none was evaluated."""
        valid = trainer.history["valid"]
        last = valid and self.select == "last"
        step = valid[-1]["step"] if last else trainer.best_step.get(TOGETHER, 0)
        return next((row for row in reversed(valid) if row["step"] == step), {})


def load_weights(model, folder):
    """Load the weights that `adapters.bert.save` wrote into a model of the same shape."""
    model.load_state_dict(read_safetensors(Path(folder) / bert.WEIGHTS))


def fit(args, run, model, tokenizer, splits, dtype):
    """Train; write metrics.json, learning_curve.png, data_seen.json and data_seen.png.

    Args:
        args: flags of train_camtl.py.
        run: `Run`.
        model, tokenizer: of `build`, on its device.
        splits: of `load_splits`.
        dtype: precision of the matrix products.

    Returns:
        (step of the kept model, its report or None); the model is left with its weights.
    """
    batches = make_batches(args, model, tokenizer, splits["train"], dtype)
    settings, warmup = settings_of(args, batches, dtype)
    dev = splits.get("dev")
    evaluate = dev and DevScores(model, dev, (args.valid_batch_size, batches.pad_id, dtype), args.select)
    keys = {"train" if split == "train" else "valid": "-".join(part.key for part in splits[split].values())
            for split in ("train", "dev") if splits.get(split)}  # fmt: skip
    files = ModelFiles(lambda folder: bert.save(model, tokenizer, folder), lambda folder: load_weights(model, folder))
    run.bind(files, keys, resume_command("train_camtl.py", run.directory), args.logging_dir)
    trainer = Trainer(
        model, batches, WeightedRows(), build_adamw(model, args.lr, args.adam_eps, args.weight_decay),
        choose_schedule(args, args.lr, settings.max_steps, warmup), run, evaluate=evaluate,
        callbacks=[Coverage(batches.tracker)], settings=settings,
    )  # fmt: skip
    say(f"run: {run.directory}  ({trainer.total_steps} steps, {dtype}, {trainer.device})", flush=True)
    result = trainer.fit()
    report = evaluate.kept(trainer).get("tasks") if evaluate else None
    step = result["best_step"]
    if trainer.rank0:
        _report(args, run, model, result, report)
    load_weights(model, run.directory)
    say(f"done: {result['steps']} steps, {result['tokens_per_second']:.0f} tokens/s, {result['seconds']:.0f} s, "
        f"peak memory {result['peak_memory_mb']} MB; model, learning_curve.png and data_seen.png in {run.directory}"
        )  # fmt: skip
    return step, report


def _report(args, run, model, result, report):
    tasks = dict(tasks=prediction.as_tasks(report, method=method(args))) if report else {}
    more = dict(task="+".join(args.tasks), form=args.form, backbone=str(model.config._name_or_path),
                checkpoint=str(run.directory), **count_parameters(model))  # fmt: skip
    run.write_metrics(result | more | tasks)
    seen = result["history"]["seen"]
    write_json(run.directory / "data_seen.json", seen)
    title = f"{method(args)}: {run.directory.name}"
    plots.learning_curve(run.directory / "learning_curve.png", result["history"], title)
    plots.data_seen(run.directory / "data_seen.png", seen, title)


# --- with the kept model ---------------------------------------------------------------------------------


def trained_metrics(directory):
    """What metrics.json of a run says of a model saved in it, {} where there is none; see `training.runs.stored`."""
    path = Path(directory)
    path = path.resolve().parents[1] if path.name.startswith("step_") else path
    try:
        found = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def trained_steps(directory):
    """How many optimizer steps a saved model has learnt, 0 where nothing says so."""
    found = re.fullmatch(r"step_(\d+)", Path(directory).name)
    return int(found[1]) if found else int(trained_metrics(directory).get("best_step") or 0)


def finish(args, folder, model, tokenizer, splits, dtype, step, report=None):
    """Score the dev files and predict the test files with one model, and write what came out.

    Args:
        args: flags of train_camtl.py.
        folder: where to.
        model, tokenizer, splits, dtype: as in `fit`.
        step: optimizer steps that the model has learnt.
        report: its scores, where training knows them already.
    """
    first, how = idist.get_rank() == 0, (args.valid_batch_size, tokenizer.pad_token_id, dtype)
    if first:
        writable_directory(folder, "--output_dir")
    if "dev" in splits:
        report = report or prediction.evaluate(model, splits["dev"], *how)
        if first:
            _write_results(args, Path(folder), model, report, step)
    for name, split in splits.get("test", {}).items():
        predictions, _ = prediction.predict(model, split, *how)
        if first:
            prediction.write_predictions(folder, name, split, predictions, step)
    if "test" in splits:
        say(f"predictions of {', '.join(splits['test'])} in {folder}; for the GLUE site: {folder}/submission/")
        if args.limit:
            say(f"--limit: they are cut to the first {args.limit:,} rows, and the GLUE site would refuse them")
        absent = [glue.TASKS[n].submission for n in (*flags.TASKS, *flags.GUESTS) if n not in splits["test"]]
        if absent and set(flags.TASKS) & set(splits["test"]):
            say(f"the GLUE site wants all of its files; not among them: {', '.join(absent)}")


def _write_results(args, folder, model, report, step):
    print(f"\n{prediction.table(report, step)}\n", flush=True)
    source = str(folder if args.do_train else args.model_checkpoint)
    prediction.write_results(folder, report, step, checkpoint=source)
    print(f"scores in {folder}: eval_results.txt, eval_results.json", flush=True)
    if not (folder / "run.json").exists():
        # Beside a run its own metrics.json stays.
        total = dict(total=sum(p.numel() for p in model.parameters()))
        tasks = prediction.as_tasks(
            report, checkpoint=source, backbone=str(model.config._name_or_path),
            method=stored(source).get("method") or METHODS[model.form],
            parameters=trained_metrics(source).get("parameters") or total,
        )  # fmt: skip
        write_json(folder / "metrics.json", dict(tasks=tasks, step=step, average=prediction.average(report)))
