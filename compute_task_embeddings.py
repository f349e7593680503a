#!/usr/bin/env python
r"""Compute a vector for every task: the mean over its examples of a T5 encoder's mean hidden state.

  one CPU or one GPU (the GPU is used if there is one):
    python compute_task_embeddings.py --tasks rte mrpc cola --data_dir GLUE --model_name_or_path t5-base \
      --n_train 1000 --output_dir outputs/task_embeddings
  then train with them; they stay fixed without --parametric_task_embedding:
    python train_t5.py configs/hyperformer++.json --data_dir GLUE --tasks rte mrpc cola \
      --task_embedding_dir outputs/task_embeddings
  a quick try of both without downloads:
    python compute_task_embeddings.py --tasks rte mrpc --data_dir data/samples/glue --model_name_or_path tiny-t5 \
      --output_dir outputs/tiny_embeddings
    python train_t5.py configs/hyperformer++.json --data_dir data/samples/glue --tasks rte mrpc \
      --model_name_or_path tiny-t5 --max_steps 4 --task_embedding_dir outputs/tiny_embeddings

The encoder's last hidden states are averaged over the tokens of each example (without padding), and these means over
--n_train training examples of each task, without the task's name as a prefix and without dropout. The output is
<task>.npy, float32 [d_model], and task_embeddings.json, which records what they were computed from.
"""

import sys
from pathlib import Path

from versatile.data.task_names import task_flag
from versatile.utils import flags, settings
from versatile.utils.errors import exit_on_user_error


def parser():
    p = flags.build_parser(__doc__)
    g = p.group("task and data")
    task_flag(g, "--tasks", "text_to_text", nargs="+", required=True, help="tasks; see train_t5.py")
    settings.add(p, "data_dir", help="GLUE's official folders, or a folder of local files (default: the hub)")
    g.add_argument("--n_train", type=flags.positive, help="training examples per task, drawn with --seed "
                                                          "(default: all)")  # fmt: skip
    settings.add(p, "max_source_length", default=128)
    settings.add(p, "seed", group="task and data", help="random seed for drawing examples")
    g.add_argument("--split_validation_test", action="store_true",
                   help="leave out the examples that train_t5.py holds out for validation with this flag")  # fmt: skip
    settings.add(p, "model_checkpoint", dest="model_name_or_path", default="t5-base",
                 help="a T5: hub name, directory, or tiny-t5")  # fmt: skip
    settings.add(p, "tokenizer_name", "cache_dir")
    g = p.group("model")
    g.add_argument("--pooling", choices=["mean", "max"], default="mean", help="pooling over an example's tokens")
    settings.add(p, "batch_size", group="model", help="examples encoded together")
    settings.add_precision(p)
    settings.add(p, "output_dir", required=True, help="directory for the <task>.npy files")
    return p


@exit_on_user_error
def main(argv=None):
    args = parser().parse_args(argv)
    flags.require_one_process()
    from versatile.utils import devices
    from versatile.utils.files import check_creatable

    devices.quiet_libraries(args.cache_dir)
    check_creatable(args.output_dir, "--output_dir")
    compute(args)


def compute(args):
    import ignite.distributed as idist
    import numpy as np
    from versatile.adapters import t5_loading
    from versatile.data import text_to_text
    from versatile.data.own_tasks import prepare_own_tasks
    from versatile.training import task_embeddings
    from versatile.training.runs import versions
    from versatile.utils import devices
    from versatile.utils.files import atomic_write, write_json

    prepare_own_tasks(args)
    device = idist.device()
    dtype = devices.precision(args, device)
    sources = {
        name: list(text_to_text.load_rows(name, "train", data_dir=args.data_dir, seed=args.seed, n_obs=args.n_train,
                                          split_validation_test=args.split_validation_test)["source"])
        for name in dict.fromkeys(args.tasks)
    }  # fmt: skip
    model, tokenizer = t5_loading.load_bare_t5(args.model_name_or_path, args.seed, args.tokenizer_name)
    model.to(device).eval()
    embeddings = {}
    for name, texts in sources.items():
        embeddings[name] = task_embeddings.task_embedding(model, tokenizer, texts, args.max_source_length,
                                                          args.batch_size, args.pooling, dtype)  # fmt: skip
        with atomic_write(Path(args.output_dir) / f"{name}.npy", "wb") as file:
            np.save(file, embeddings[name])
        print(f"{name}: {len(texts):,} examples -> {args.output_dir}/{name}.npy  [{len(embeddings[name])}]")
    about = dict(tasks={name: len(texts) for name, texts in sources.items()}, versions=versions(),
                 **{k: v for k, v in sorted(vars(args).items()) if k != "tasks"})  # fmt: skip
    write_json(Path(args.output_dir) / "task_embeddings.json", about)
    print(task_embeddings.similarity_table(embeddings))


if __name__ == "__main__":
    sys.exit(main())
