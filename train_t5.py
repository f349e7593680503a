#!/usr/bin/env python
r"""Train a T5 on several tasks, text to text: the whole model, adapters, or adapters that hypernetworks generate.

  one CPU or one GPU (a GPU is used where there is one); half a minute, nothing is downloaded:
    python train_t5.py configs/test.json
  the published settings, with GLUE's official folders:
    python train_t5.py configs/hyperformer++.json --data_dir GLUE
  one task, another size, any flag overrides the file:
    python train_t5.py configs/adapters.json --data_dir GLUE --tasks rte --eval_tasks rte --model_name_or_path t5-small
  several GPUs (published: 4), or several processes on a CPU:
    torchrun --nproc_per_node 4 train_t5.py configs/hyperformer++.json --data_dir GLUE
  resume after an interruption:
    python train_t5.py --resume outputs/hyperformer++
  from scratch, without pretrained weights:
    python train_t5.py configs/finetune.json --from_scratch true --config_name t5-mini --tokenizer_name spiece.model \
      --model_name_or_path "" --data_dir GLUE --output_dir outputs/scratch

The run directory holds the best model by --metric_for_best_model, checkpoints/step_N, TensorBoard events, run.json,
arguments_results.json, val_results.json, test_results.json, metrics.json and learning_curve.png; evaluate.py reads it.
"""

import contextlib
import sys
from pathlib import Path

from versatile.training import text_to_text_flags
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.screen import shell_words


def parser():
    return text_to_text_flags.build_parser(__doc__)


@exit_on_user_error
def main(argv=None):
    from versatile.training import text_to_text_arguments
    from versatile.utils import devices

    arguments = text_to_text_arguments.parse(parser, argv)
    with devices.parallel():
        text_to_text_arguments.begin(arguments)
        work(arguments)


def work(arguments):
    import ignite.distributed as idist
    from versatile.adapters import t5
    from versatile.training import text_to_text_evaluation
    from versatile.training.experiment import prepare_push, say
    from versatile.training.text_to_text_training import check_directory

    check_directory(arguments, "train_t5.py")
    prepare_push(arguments)
    # One process a machine makes the caches, the others find them.
    with idist.one_rank_first(local=True):
        model, tokenizer = build(arguments)
        splits = read(arguments, tokenizer, model)
    say(t5.parameter_summary(model))
    if evaluation := build_evaluation(arguments, model, tokenizer, splits.get("validation")):
        text_to_text_evaluation.check_best_metric(arguments, evaluation)
    drawn = make_batches(arguments, model, tokenizer, splits) if arguments.do_train else None
    run = open_run(arguments, model, tokenizer)
    trained = train(arguments, run, model, tokenizer, splits, drawn, evaluation) if arguments.do_train else {}
    finish(arguments, run, model, tokenizer, splits, trained)


def settings_of(arguments):
    """`adapters.t5.T5Settings` of the arguments."""
    from versatile.adapters import t5
    from versatile.adapters.methods.registry import method_of
    from versatile.training.method_flags import choose_method
    from versatile.training.text_to_text_arguments import t5_method

    names = set(t5.T5Settings.__dataclass_fields__)
    values = {name: value for name, value in vars(arguments).items() if name in names}
    values |= dict(method=t5_method(arguments), adapters=arguments.adapters, task_embeddings=arguments.task_embeddings)
    if values["method"] in t5.PORT_METHODS:
        chosen = choose_method(arguments, values["method"], arguments.adapter_bottleneck)
        # Its range, before anything is loaded; what is complete is kept with the model.
        method_of(chosen, arguments.location("method"))
        values["method_settings"] = {name: value for name, value in chosen.items() if name != "method"}
    if arguments.train_adapters and values["method"] == "finetune":
        # Published for tuning the layer norms alone.
        values["freeze_model"] = True
    if values["task_embedding_dim"] is None:
        values["task_embedding_dim"] = embedding_size(arguments.task_embedding_dir) or t5.T5Settings.task_embedding_dim
    return t5.T5Settings(**values)


def embedding_size(directory):
    """Size of the task embeddings in a directory, or None."""
    import numpy as np

    for path in sorted(Path(directory).glob("*.npy")) if directory else []:
        with contextlib.suppress(ValueError, OSError):
            return int(np.load(path, allow_pickle=False).size)
    return None


def build(arguments):
    """(the model with what is added to it, its tokenizer)."""
    from transformers import set_seed
    from versatile.adapters import t5
    from versatile.adapters import t5_loading as t5_models
    from versatile.adapters.manifest import peek

    name = arguments.model_name_or_path
    trained = name and peek(name)
    if not arguments.do_train and trained and trained.encoder == "text_to_text":
        model, tokenizer = t5.load(name)
        missing = [task for task in arguments.tasks if task not in model.tasks]
        if missing:
            raise UserError(f"the model was not trained for {', '.join(missing)}", location=arguments.location("tasks"),
                            expected=f"some of {', '.join(model.tasks)}")  # fmt: skip
        return model, tokenizer
    if arguments.do_train and trained and trained.mode == "adapter":
        raise UserError("this is a trained model, not a bare T5", location=f"--model_name_or_path {name}",
                        remedy=f"to resume it: {shell_words('--resume', name)}; to start anew: "
                               "name its backbone")  # fmt: skip
    model, tokenizer = t5_models.load(arguments, arguments.seed)
    set_seed(arguments.seed)
    t5.attach(model, arguments.tasks, settings_of(arguments))
    if arguments.do_train and not any(p.requires_grad for p in model.parameters()):
        flags = [name for name in vars(arguments) if name.startswith("freeze") and getattr(arguments, name)]
        flags += ["train_adapters_blocks"] * (not arguments.train_adapters_blocks)
        raise UserError("nothing is left to train", location=", ".join(map(arguments.location, flags)) or None,
                        remedy="leave it out, or unfreeze something: --unfreeze_layer_norms")  # fmt: skip
    return model, tokenizer


def read(arguments, tokenizer, model):
    """{"train" | "validation" | "test": {task: `text_to_text_evaluation.TextSplit`}}, of those that are asked for."""
    from versatile.training import text_to_text_evaluation
    from versatile.training.experiment import say

    common = dict(seed=arguments.data_seed, held_out=arguments.split_validation_test,
                  prefix=not arguments.train_adapters, say=say)  # fmt: skip
    splits, tested = {}, arguments.eval_tasks or arguments.tasks
    ids = {name: model.task_id(name) if name in model.tasks else 0 for name in [*arguments.tasks, *tested]}
    check_test_rows(arguments, tested)
    for split, wanted, names, target, limit in (
        ("train", arguments.do_train, arguments.tasks, arguments.max_target_length, arguments.n_train),
        ("validation", arguments.do_eval, tested, arguments.val_max_target_length, arguments.n_val),
        ("test", arguments.do_test, tested, arguments.test_max_target_length, arguments.n_test),
    ):
        if wanted:
            common["lengths"] = (arguments.max_source_length, target)
            splits[split] = text_to_text_evaluation.read_splits(names, split, arguments, tokenizer, ids, limit=limit,
                                                                **common)  # fmt: skip
    return splits


def check_test_rows(arguments, tasks):
    """A `UserError` where the rows that choose the best checkpoint would be reported as the test rows of `tasks`."""
    from versatile.data import text_to_text
    from versatile.training import text_to_text_evaluation

    if not (arguments.do_train and arguments.do_eval and arguments.do_test and arguments.load_best_model_at_end):
        return
    if same := text_to_text_evaluation.tested_on_validation(tasks, arguments.data_dir, arguments.split_validation_test):
        remedies = ["leave out the test (--do_test false)", "keep the last model (--load_best_model_at_end false)"]
        if not arguments.split_validation_test and all(text_to_text.get_task(name).rule for name in same):
            remedies.insert(0, "divide them (--split_validation_test true)")
        raise UserError(
            f"the test rows of {', '.join(same)} are the validation rows, which choose the best checkpoint",
            location=arguments.location("do_test"),
            expected="test rows that have no part in choosing the model",
            remedy=", or ".join(remedies),
        )


def build_evaluation(arguments, model, tokenizer, splits):
    """`text_to_text_evaluation.Evaluation` of a split's tasks, shared out among the processes; None without any."""
    from transformers.utils import is_torch_xla_available
    from versatile.training.text_to_text_evaluation import Evaluation
    from versatile.training.text_to_text_training import of_training

    lengths = (arguments.max_source_length, arguments.val_max_target_length) if is_torch_xla_available() else None
    text_model = of_training(arguments, model, tokenizer, lengths)
    return Evaluation(text_model, splits, arguments.predict_with_generate) if splits else None


def open_run(arguments, model, tokenizer):
    """The run directory, with the shape of a backbone whose weights the seed draws."""
    import ignite.distributed as idist
    from versatile.training import text_to_text_training

    run = text_to_text_training.open_run(arguments, model.settings.method)
    # Where the backbone is trained too it is part of what is saved.
    if arguments.from_scratch and model.settings.method != "finetune" and not model.settings.unfreeze_model:
        shape = run.directory / "shape"
        if idist.get_rank() == 0 and not arguments.resume:
            tokenizer.save_pretrained(shape)
            model.config.save_pretrained(shape)
        # Adapters name their backbone: `t5.load_backbone` draws the same random weights from the shape.
        model.config._name_or_path = str(shape.resolve())
    return run


def make_batches(arguments, model, tokenizer, splits):
    """The training batches, with what they draw on the screen."""
    import ignite.distributed as idist
    import numpy as np
    import torch
    from transformers.utils import is_torch_xla_available
    from versatile.data.task_sampler import MultiTaskBatchSampler
    from versatile.data.text_to_text_batches import Collator, SampledBatches
    from versatile.training.experiment import say

    rows = {name: part.rows for name, part in splits["train"].items()}
    sizes = {name: len(own) for name, own in rows.items()}
    sampler = MultiTaskBatchSampler(
        list(sizes.values()), arguments.train_batch_size, arguments.sampling_temperature,
        replicas=idist.get_world_size(), seed=arguments.data_seed,
    )  # fmt: skip
    shares = zip(sizes, sampler.probabilities().tolist())
    say("tasks are drawn: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in shares))
    fixed = (arguments.max_source_length, arguments.max_target_length) if is_torch_xla_available() else None
    collate = Collator(tokenizer.pad_token_id, model.config.decoder_start_token_id,
                       ignore_pad=arguments.ignore_pad_token_for_loss, lengths=fixed)  # fmt: skip
    lengths = np.concatenate([own.targets.lengths() for own in rows.values()])
    unused = arguments.ddp_find_unused_parameters
    if unused is None:
        # A batch of one task leaves the other tasks' parameters without a gradient.
        unused = model.settings.method != "finetune"
    return SampledBatches(torch.utils.data.ConcatDataset(rows.values()), sampler, collate, lengths,
                          arguments.gradient_accumulation_steps, idist.get_rank(),
                          splits=model.tasks if unused else ())  # fmt: skip


def train(arguments, run, model, tokenizer, splits, drawn, evaluation):
    """Train; the model ends as the one that is kept.

    Args:
        drawn: of `make_batches`.
        evaluation: of `build_evaluation`.

    Returns:
        what metrics.json says of it.
    """
    import ignite.distributed as idist
    import torch
    from versatile.adapters import t5
    from versatile.adapters.trained import halve_frozen
    from versatile.training import experiment
    from versatile.training.runs import ModelFiles
    from versatile.training.text_to_text_training import build_trainer
    from versatile.utils.devices import precision

    files = ModelFiles(lambda at: t5.save(model, tokenizer, at), lambda at: t5.load_weights(model, at))
    key = experiment.data_key(train=splits["train"], valid=splits.get("validation"))
    run.bind(files, key, experiment.resume_command("train_t5.py", run.directory))
    dtype = precision(arguments, idist.device())
    if dtype != torch.float32:
        halve_frozen(model, dtype)
    result = experiment.run_training(build_trainer(arguments, run, model, drawn, evaluation))
    # The run directory holds the kept model; a run that was resumed at its end has another in memory.
    files.load(run.directory)
    return result | dict(coverage=report_coverage(arguments, drawn.sampler, result["steps"], list(splits["train"])))


def report_coverage(args, sampler, steps, names):
    """How much of every task was seen, also on the screen."""
    from versatile.training.experiment import say

    per_epoch = len(sampler)
    epoch_steps = -(-per_epoch // args.gradient_accumulation_steps)
    epochs, rest = divmod(steps, epoch_steps)
    drawn = epochs * per_epoch + min(rest * args.gradient_accumulation_steps, per_epoch)
    coverage = sampler.coverage(drawn, names)
    for row in coverage:
        say(f"seen of {row['task']}: {row['distinct']:,} of {row['size']:,} examples, {row['drawn']:,} drawn, "
            f"in {100 * row['batch_share']:.0f} % of the batches")  # fmt: skip
    return coverage


def finish(arguments, run, model, tokenizer, splits, trained):
    """Evaluate the best model and write everything that a finished run holds.

    Args:
        trained: what `train` returned; {} where nothing was trained.
    """
    import ignite.distributed as idist
    from versatile.adapters import t5
    from versatile.adapters.inference import freeze_for_inference
    from versatile.training import experiment
    from versatile.training.text_to_text_evaluation import FILES, PREFIXES, metric_values, print_average, write_results
    from versatile.utils import plots
    from versatile.utils.devices import precision
    from versatile.utils.files import write_json

    first = idist.get_rank() == 0
    folder, step = Path(arguments.eval_output_dir or arguments.output_dir), trained.get("best_step")
    results, tasks, counts = {}, {}, t5.count_parameters(model)
    if not trained:
        freeze_for_inference(model, idist.device(), precision(arguments, idist.device()))
    for split in ("validation", "test"):
        evaluation, prefix = build_evaluation(arguments, model, tokenizer, splits.get(split)), PREFIXES[split]
        if evaluation is None:
            continue
        results[prefix] = evaluation(prefix)
        if first:
            print(f"\n---- {split} ----")
            write_results(folder / FILES[split], results[prefix], step=step or trained.get("steps"))
            for result in evaluation.results.values():
                result.show(samples=1 if split == "test" else 0)
                result.write(folder / f"{prefix}_outputs")
            print_average(results[prefix], prefix)
            tasks[split] = {name: metric_values(result) for name, result in evaluation.results.items()}
    named = ", ".join(arguments.tasks) if len(arguments.tasks) < 4 else f"{len(arguments.tasks)} tasks"
    metrics = dict(method=model.settings.method, tasks_of_model=model.tasks, ledger=counts, coverage=None)
    metrics |= trained | dict(scores=tasks) | results
    if trained:
        experiment.write_results(run, metrics, f"{model.settings.method} on {named}", plots.score_curve)
    elif first:
        run.write_metrics(metrics)
    if first:
        write_json(folder / "arguments_results.json", arguments.flags())
    if idist.get_world_size() > 1:
        idist.barrier()
    experiment.say(f"model and results in {run.directory}")
    following = ("evaluate.py", "--task", "all", "--no_sample", "--model_checkpoint", run.directory)
    experiment.end_run(arguments, run, *(following if trained else ()))


if __name__ == "__main__":
    sys.exit(main())
