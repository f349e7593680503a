#!/usr/bin/env python
"""One BERT for the GLUE tasks, modulated by a task embedding (CA-MTL, Pilault, El hattami & Pal 2021), or plain.

  one CPU or one GPU (a GPU is used where there is one):
    python train_camtl.py --model_name_or_path CA-MTL-base --data_dir $DATA_DIR --output_dir runs/camtl \\
      --do_train --do_eval --num_train_epochs 5 --learning_rate 2e-5 --seed 12
    python train_camtl.py --model_name_or_path minilm --form base --use_mt_uncertainty --data_dir data/samples/glue \\
      --tasks cola rte sts-b mrpc --do_train --do_eval
  several processes or GPUs:
    torchrun --nproc_per_node 2 train_camtl.py --model_name_or_path CA-MTL-base …
  flags from a json or yaml file; those behind it override it:
    python train_camtl.py camtl.json --seed 1
  go on after an interruption; score and predict with a trained model:
    python train_camtl.py --resume runs/camtl
    python train_camtl.py --model_name_or_path runs/camtl --data_dir $DATA_DIR --output_dir results/camtl \\
      --do_eval --do_predict

The run directory holds the model of the best average over the tasks, the last checkpoints, TensorBoard events,
run.json, metrics.json, eval_results.json and .txt (all tasks at that one model), learning_curve.png, data_seen.png and
data_seen.json (what the batches were made of) and parameters.json (what was frozen and what was trained).
--do_predict writes <task>_test_iter_<step>.tsv and submission/, the files that the GLUE site takes.
"""

import sys

from versatile.training import camtl_flags
from versatile.utils import flags
from versatile.utils.errors import exit_on_user_error
from versatile.utils.screen import shell_command


def parser():
    return camtl_flags.parser(__doc__)


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if args.download:
        from versatile.data.encoders.sentence_pair import where_to_get

        return print(where_to_get(args.data_dir, args.tasks))
    if not args.resume:
        camtl_flags.check(p, args)
    from versatile.utils.devices import parallel

    with parallel():
        work(args, flags.typed_flags(parser, argv))


def work(args, given):
    import ignite.distributed as idist
    from versatile.data.own_tasks import prepare_own_tasks
    from versatile.training import camtl_training as camtl
    from versatile.training import experiment
    from versatile.training.camtl_parameters import freeze
    from versatile.utils import devices

    args, run = open_run(args, given)
    prepare_own_tasks(args, labelled=True)
    dtype = camtl.begin(args, run)
    experiment.prepare_push(args)
    # One process a machine makes the caches, the others find them.
    with idist.one_rank_first(local=True):
        camtl.need_files(args)
        model, tokenizer = camtl.build(args)
        camtl.need_files(args)
        splits = camtl.load_splits(args, tokenizer)
    if args.do_train:
        parameters = freeze(args, model)
    devices.prepare_for_device(model, idist.device(), dtype)
    if not args.do_train:
        step = camtl.trained_steps(args.model_checkpoint)
        return camtl.finish(args, args.output_dir, model, tokenizer, splits, dtype, step)
    if run is None:
        run = start(args)
    keep_parameters(run, parameters)
    step, report = camtl.fit(args, run, model, tokenizer, splits, dtype)
    camtl.finish(args, run.directory, model, tokenizer, splits, dtype, step, report)
    data = ["--data_dir", args.data_dir] if args.data_dir else []
    following = shell_command("train_camtl.py", "--model_name_or_path", run.directory, *data,
                              "--output_dir", f"results/{run.directory.name}", "--do_eval", "--do_predict")  # fmt: skip
    experiment.say(f"next: {following}")
    experiment.push(args, run)


def open_run(args, given):
    """(flags, None), or with --resume (the flags the run was started with, the run)."""
    from versatile.training import experiment

    free = {flag: value for flag, value in given.items() if flag in camtl_flags.FREE}
    kept = {flag: value for flag, value in given.items() if flag not in camtl_flags.FREE}
    args, run = experiment.open_run(parser(), args, kept, "train_camtl.py")
    if run is not None:
        vars(args).update({flag: value for flag, value in free.items() if flag != "overwrite_output_dir"})
        # run.json was written by a run that had passed these.
        camtl_flags.check(parser(), args)
    return args, run


def start(args):
    """A new run."""
    import ignite.distributed as idist
    from versatile.training import camtl_training as camtl
    from versatile.training import experiment

    if args.overwrite_output_dir and args.output_dir and idist.get_rank() == 0:
        camtl.clear(args.output_dir)
    return experiment.new_run(args, ("glue", args.form), camtl.method(args))


def keep_parameters(run, parameters):
    """What is frozen and what is trained, in parameters.json."""
    import ignite.distributed as idist
    from versatile.utils.files import write_json

    path = run.directory / "parameters.json"
    # A run that was killed as it began may lack it when it is resumed.
    if idist.get_rank() == 0 and not path.exists():
        write_json(path, parameters)


if __name__ == "__main__":
    sys.exit(main())
