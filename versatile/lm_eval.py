"""What a run lost or gained in general ability: lm-evaluation-harness on its bare backbone and on the run.

  any task of the harness, by name (its data come from the hub):
    python -m versatile.lm_eval --model_checkpoint runs/<run> --tasks hellaswag lambada_openai --limit 200
  a task of your own, or the bundled one, without a network:
    python -m versatile.lm_eval --model_checkpoint runs/<run> --tasks data/samples/lm_eval/everyday.yaml

The prompts are the harness's own, without task markers; the run answers them with the adapter of --task. Needs the
package lm_eval: pip install '.[lm-eval]' in the checkout. With --output_dir the table is also written as lm_eval.json.
"""

import contextlib
import importlib.util
import math
import sys
from pathlib import Path

from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error, first_line

CHECKOUT = Path(__file__).resolve().parent.parent
# Differences of fewer standard errors than this may be chance.
NOISE = 1.96


def parser():
    p = flags.build_parser(__doc__)
    p.prog = "python -m versatile.lm_eval"
    g = p.add_argument_group("models")
    settings.add(p, "model_checkpoint", group=g.title, required=True, help="the directory of a trained model")
    g.add_argument("--task", help="task whose adapter answers (required if the model holds several)")
    g.add_argument("--backbone", help="model to compare the run with (default: the backbone it was trained on)")
    g = p.add_argument_group("evaluation")
    g.add_argument("--tasks", nargs="+", required=True, metavar="TASK", help="tasks of the harness or their yaml files")
    g.add_argument("--num_fewshot", type=flags.not_negative, metavar="N", help="examples per prompt (default: none)")
    settings.add(p, "limit", group=g.title, help="use only the first N documents of each task")
    settings.add(p, "batch_size", group=g.title, default=16, help="requests per batch")
    settings.add(p, "output_dir", group=g.title, help="directory for lm_eval.json")
    settings.add_device(p, "machine")
    return p


@exit_on_user_error
def main(argv=None):
    args = parser().parse_args(argv)
    flags.require_one_process()
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("the package lm_eval is not installed", location="python -m versatile.lm_eval",
                        remedy="in the toolkit's checkout: pip install '.[lm-eval]'")  # fmt: skip
    compare(args)


def compare(args):
    """Evaluate both models; print and write the table."""
    import ignite.distributed as idist
    import torch

    from versatile.adapters import inference
    from versatile.utils import devices
    from versatile.utils.files import find_shipped, writable_directory, write_json

    devices.quiet_libraries()
    if args.output_dir:
        writable_directory(args.output_dir, "--output_dir")
    with without_checkout():
        tasks = [read_task(find_shipped(name)) for name in args.tasks]
        model, tokenizer, task_id = load_run(args)
        # Half precision would add rounding differences of its own.
        inference.prepare_for_inference(model, idist.device(), torch.float32)
        results = dict(run=evaluate(args, tasks, model, tokenizer, task_id))
        # Its own backbone is loaded as it was for training.
        name = backbone_name(args, model)
        seed, quantization = (model.random_init_seed, model.quantization) if args.backbone is None else (None, None)
        del model
        model, tokenizer = load_bare_backbone(name, seed, quantization)
        results["backbone"] = evaluate(args, tasks, model.to(idist.device()), tokenizer)
    rows = differences(results)
    print(table(rows, name, args.model_checkpoint))
    if args.output_dir:
        path = Path(args.output_dir) / "lm_eval.json"
        write_json(path, dict(backbone=name, checkpoint=str(args.model_checkpoint), limit=args.limit,
                              num_fewshot=args.num_fewshot, results=rows))  # fmt: skip
        print(f"written: {path}")


@contextlib.contextmanager
def without_checkout():
    """Make sure that the harness imports the library `evaluate`, not the script of that name."""
    path, script = list(sys.path), sys.modules.get("evaluate")
    ours = script is not None and Path(getattr(script, "__file__", None) or "/").parent == CHECKOUT
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != CHECKOUT]
    if ours:
        del sys.modules["evaluate"]
    try:
        yield
    finally:
        sys.path[:] = path
        if ours:
            sys.modules["evaluate"] = script


def read_task(name):
    """A task's name unchanged, or the content of its yaml file, with data files relative to the file's folder."""
    if not str(name).endswith((".yaml", ".yml")):
        return name
    from lm_eval.tasks._yaml_loader import load_yaml

    path, location = Path(name), f"--tasks {name}"
    if not path.is_file():
        raise UserError("no such file", location=location, expected="a task of the harness, or its yaml file")
    try:
        task = load_yaml(path)
    except Exception as error:
        raise UserError(f"not a task of the harness: {first_line(error)}", location=location,
                        remedy="correct the file") from error  # fmt: skip
    if not isinstance(task.get("task"), str):
        raise UserError("names no task", location=location, expected="task: NAME", remedy="correct the file")
    if (more := task.get("dataset_kwargs")) and more.get("data_files"):
        task["dataset_kwargs"] = dict(more, data_files=_beside(path.parent.resolve(), more["data_files"]))
    return task


def _beside(folder, files):
    """Data files, one, a list, or these by split, as paths from their yaml file's folder."""
    if isinstance(files, dict):
        return {split: _beside(folder, own) for split, own in files.items()}
    if isinstance(files, list):
        return [_beside(folder, file) for file in files]
    return str(folder / str(files))


def load_run(args):
    """(model, tokenizer, id of the task that answers)."""
    from versatile.adapters import checkpoint
    from versatile.adapters.backbones import loading
    from versatile.adapters.backbones.family import backbone_of
    from versatile.adapters.manifest import need_language_model, require_manifest

    location = f"--model_checkpoint {args.model_checkpoint}"
    loading.need_directory(args.model_checkpoint, location)
    need_language_model(args.model_checkpoint)
    require_manifest(args.model_checkpoint, "a run directory, to be compared with its backbone")
    model, tokenizer = checkpoint.load_checkpoint(args.model_checkpoint, args.task)
    if backbone_of(model.config).encoder_decoder:
        raise UserError("is an encoder-decoder, whose loss is not that of a continuation", location=location,
                        expected="a decoder, such as GPT-2 or Llama")  # fmt: skip
    if args.task is None and len(model.info.tasks) > 1:
        names = ", ".join(model.info.tasks)
        raise UserError("not given, and the model holds several tasks", location="--task", expected=f"one of {names}",
                        remedy="name the task whose adapter answers")  # fmt: skip
    return model, tokenizer, model.task_id(args.task or model.info.tasks[0])


def backbone_name(args, model):
    """Name of the model that the run is compared with."""
    from versatile.training import runs

    if args.backbone:
        return args.backbone
    location, name = f"--model_checkpoint {args.model_checkpoint}", runs.origin(args.model_checkpoint).get("backbone")
    if name is None and model.info.mode != "full" and not model.info.save_backbone:
        name = model.config._name_or_path
    if name is None:
        raise UserError("it does not say what it was trained on", location=location,
                        remedy="name it: --backbone MODEL")  # fmt: skip
    return name


def load_bare_backbone(name, seed, quantization=None):
    """(model, tokenizer) of a bare backbone."""
    from versatile.adapters.backbones import loading
    from versatile.adapters.manifest import peek

    location = f"--backbone {name}"
    if peek(name):
        raise UserError("this is a trained model, not a bare backbone", location=location)
    return loading.load_backbone(name, random_init=seed, location=location, quantization=quantization)


def evaluate(args, tasks, model, tokenizer, task_id=None):
    """The harness's results of a model: {task: {metric: (value, standard error or None)}}."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    # The harness's own tasks are thousands of files, which are searched only if one of them is asked for.
    manager = TaskManager(include_defaults=any(isinstance(task, str) for task in tasks))
    harness = harness_model(model, tokenizer, task_id, args.batch_size)
    try:
        results = simple_evaluate(harness, tasks=tasks, num_fewshot=args.num_fewshot, limit=args.limit,
                                  bootstrap_iters=1000, log_samples=False, task_manager=manager)  # fmt: skip
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"the harness cannot evaluate it: {first_line(error)}", location="--tasks",
                        expected="tasks of lm-evaluation-harness whose data are available",
                        remedy="see lm_eval ls tasks; without a network only yaml files of local data can be evaluated"
                        ) from error  # fmt: skip
    return {task: metrics_of(values) for task, values in results["results"].items()}


def metrics_of(values):
    """{metric: (value, standard error or None)} of a task's results, whose keys are "metric,filter"."""
    metrics = {}
    for key, value in values.items():
        metric, _, answer = key.partition(",")
        if not answer or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{answer}")
        name = metric if answer == "none" else f"{metric} ({answer})"
        metrics[name] = (value, error if isinstance(error, int | float) else None)
    return metrics


def harness_model(model, tokenizer, task_id, batch_size):
    """The harness's wrapper for one of our models; `task_id` None: for a bare backbone."""
    import torch
    from lm_eval.models.huggingface import HFLM

    from versatile.adapters.backbones.family import max_length_of

    class TaskLM(HFLM):
        """Every row of a batch is answered by one task's adapter."""

        def _ids(self, inputs):
            return {} if task_id is None else dict(task_ids=torch.full((len(inputs),), task_id))

        def _model_call(self, inps, attn_mask=None, labels=None):
            with torch.no_grad():
                return self.model(inps, **self._ids(inps)).logits

        def _model_generate(self, context, max_length, stop, **settings):
            return super()._model_generate(context, max_length, stop, **self._ids(context), **settings)

    return TaskLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size,
                  max_length=max_length_of(model))  # fmt: skip


def differences(results):
    """A list of dict(task, metric, backbone, run, difference, error: of the difference, or None)."""
    rows = []
    for task, metrics in results["backbone"].items():
        for metric, (before, error) in metrics.items():
            after, own = results["run"][task][metric]
            known = error is not None and own is not None
            rows.append(dict(task=task, metric=metric, backbone=before, run=after, difference=after - before,
                             error=math.hypot(error, own) if known else None))  # fmt: skip
    return rows


def table(rows, backbone, run):
    """The losses and gains as a table in text."""
    lines = [f"{'task':20} {'metric':24} {'backbone':>10} {'run':>10} {'difference':>10}"]
    for row in rows:
        error, difference = row["error"], row["difference"]
        line = f"{row['task']:20} {row['metric']:24} {row['backbone']:10.4f} {row['run']:10.4f} {difference:+10.4f}"
        if error is not None:
            line += f" ± {error:.4f}" + (" (may be chance)" if 0 < abs(difference) < NOISE * error else "")
        lines.append(line)
    return "\n".join([f"backbone {backbone}, run {run}", *lines])


if __name__ == "__main__":
    sys.exit(main())
