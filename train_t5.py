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

import sys

from versatile.training import t5_flags
from versatile.utils.errors import exit_on_user_error


def parser():
    return t5_flags.build_parser(__doc__)


@exit_on_user_error
def main(argv=None):
    from versatile.training import t5_arguments
    from versatile.utils import devices

    arguments = t5_arguments.parse(parser, argv)
    with devices.parallel():
        t5_arguments.begin(arguments)
        train(arguments)


def train(arguments):
    import ignite.distributed as idist
    from versatile.adapters import t5
    from versatile.training import t5_evaluation, t5_setup
    from versatile.training.experiment import prepare_push, say

    t5_setup.check_directory(arguments)
    prepare_push(arguments)
    # One process a machine makes the caches, the others find them.
    with idist.one_rank_first(local=True):
        model, tokenizer = t5_setup.build(arguments)
        parts = t5_setup.read(arguments, tokenizer, model)
    say(t5.parameter_summary(model))
    if evaluation := t5_setup.evaluation(arguments, tokenizer, parts.get("validation")):
        t5_evaluation.check_best_metric(arguments, evaluation)
    drawn = t5_setup.batches(arguments, model, tokenizer, parts) if arguments.do_train else None
    run = t5_setup.open_run(arguments, model, tokenizer)
    trained = t5_setup.train(arguments, run, model, tokenizer, parts, drawn, evaluation) if arguments.do_train else {}
    t5_setup.finish(arguments, run, model, tokenizer, parts, trained)


if __name__ == "__main__":
    sys.exit(main())
