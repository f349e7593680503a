#!/usr/bin/env python
r"""Pretrain a T5 by span corruption (Raffel et al. 2020) on plain text, or on the tasks' own inputs.

  one CPU or one GPU (the GPU is used if there is one):
    python pretrain_t5.py --from_scratch --config_name t5-mini --tokenizer_name spiece.model --train_files text.txt.gz \
      --max_source_length 128 --max_steps 10000 --per_device_train_batch_size 32 --learning_rate 1e-3 \
      --warmup_steps 500 --lr_scheduler constant_w_warmup --eval_strategy steps --eval_steps 500 --save_steps 500 \
      --save_total_limit 1 --load_best_model_at_end --metric_for_best_model loss --output_dir outputs/pretrained
  task inputs as text, in addition to files or instead of them; flags can come from a json or yaml file:
    python pretrain_t5.py pretrain.json --tasks rte mrpc cola --data_dir GLUE
  several GPUs, or several processes on a CPU:
    torchrun --nproc_per_node 2 pretrain_t5.py pretrain.json
  resume after an interruption:
    python pretrain_t5.py --resume outputs/pretrained

Texts are packed into sequences without padding; 15 % of their tokens are noise, in spans of 3 on average, redrawn
every epoch from (seed, epoch, sequence). The run directory is an ordinary transformers directory: train_t5.py takes it
as --model_name_or_path.
"""

import sys

from versatile.training import text_to_text_flags
from versatile.utils.errors import exit_on_user_error


def parser():
    return text_to_text_flags.build_pretraining_parser(__doc__)


@exit_on_user_error
def main(argv=None):
    from versatile.training import text_to_text_arguments

    arguments = text_to_text_arguments.parse(parser, argv, "pretrain_t5.py")
    from versatile.training import span_corruption_pretraining
    from versatile.utils import devices

    with devices.parallel():
        text_to_text_arguments.check_before_loading(arguments)
        span_corruption_pretraining.pretrain(arguments)


if __name__ == "__main__":
    sys.exit(main())
