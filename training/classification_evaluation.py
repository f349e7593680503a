"""evaluate.py's work for a model of train_camtl.py: score the labelled rows of its tasks."""

from pathlib import Path

import ignite.distributed as idist
from versatile.adapters import bert
from versatile.data import glue
from versatile.data.encoders import sentence_pair
from versatile.data.own_tasks import register_own_tasks
from versatile.data.task import canonical_name
from versatile.training import classification, evaluation, runs
from versatile.training.text_to_text_evaluation import run_of
from versatile.utils import devices
from versatile.utils.errors import UserError
from versatile.utils.files import writable_directory, write_json

SPLITS = {"train": "train", "valid": "dev", "test": "test", None: "dev"}
# Flags of evaluate.py that mean nothing to a classifier: what stands behind says why.
WITHOUT_MEANING = {
    **dict.fromkeys(("adapter_bottleneck", "max_history", "emb_only", "outputlayer_only", "random_init", "self_copy"),
                    "no such ablation"),
    **dict.fromkeys(("num_beams", "temperature", "top_k", "top_p", "min_length", "max_length", "length_penalty"),
                    "nothing is decoded"),
    "data": "all tasks lie in one folder: --dataset_path DIR",
}  # fmt: skip


def evaluate_run(args, given):
    """Score a model of train_camtl.py; the data and the tasks are known from its run.

    Args:
        args: the flags of evaluate.py or evaluate_vlm.py; `task` may be "all", `dataset_path` is GLUE's folder.
        given: those that were typed.

    Raises:
        UserError: a task that the model was not trained for, or without data or labels.
    """
    for flag in given:
        if flag in WITHOUT_MEANING:
            raise UserError(f"has no effect on a model of train_camtl.py: {WITHOUT_MEANING[flag]}",
                            location=f"--{flag}", remedy="leave it out")  # fmt: skip
    devices.quiet_libraries(args.cache_dir)
    device = idist.device()
    dtype = devices.precision(args, device)
    known = runs.stored(args.model_checkpoint)
    flags = known.get("flags", {})
    register_own_tasks(flags.get("task_definitions") or ())
    model, tokenizer = bert.load(args.model_checkpoint)
    model.aliases = {guest: host for guest, host in glue.SHARED_HEADS.items() if host in model.tasks}
    splits = read_splits(args, model, tokenizer, args.dataset_path or flags.get("data_dir"))
    args.output_dir = args.output_dir or f"results/{run_of(args.model_checkpoint).name}"
    writable_directory(args.output_dir, "--output_dir")
    devices.prepare_for_device(model, device, dtype)
    predicted = {name: classification.predict(model, split, args.batch_size, tokenizer.pad_token_id, dtype)
                 for name, split in splits.items()}  # fmt: skip
    report = {name: classification.score(name, split, *predicted[name]) for name, split in splits.items()}
    print(f"\n{classification.table(report)}\n")
    summaries = classification.as_tasks(
        report, checkpoint=str(args.model_checkpoint), method=known.get("method"),
        backbone=str(model.config._name_or_path), versions=runs.versions(),
        parameters=dict(total=sum(parameter.numel() for parameter in model.parameters())),
    )  # fmt: skip
    for name, split in splits.items():
        write_json(Path(args.output_dir) / f"{name}_metrics.json", summaries[name] | dict(split=split.split))
        evaluation.write(args.output_dir, glue.get_task(name), *in_words(name, predicted[name][0], split.labels))
    print(f"results in {args.output_dir}")


def read_splits(args, model, tokenizer, data_dir):
    """{task: labelled `PairSplit`} of what is asked for; with "all" a second test of MNLI that is there, too."""
    names = list(model.tasks) if args.task == "all" else [canonical_name(args.task, "sentence_pair")]
    classification.check_heads(model, names, f"--model_checkpoint {args.model_checkpoint}")
    if data_dir is None and not all(glue.get_task(name).pairs for name in names):
        raise UserError("nothing says where the data lie", location="--dataset_path",
                        expected="GLUE in the official script's folders")  # fmt: skip
    split = SPLITS[args.split]
    if args.task == "all":
        names += [guest for guest in model.aliases if split in glue.get_task(guest).files
                  and not sentence_pair.missing(data_dir, [guest], [split])]  # fmt: skip
    loaded = {name: sentence_pair.load(data_dir, name, split, tokenizer, model.max_seq_length, limit=args.limit,
                                       cache_dir=args.token_cache_dir) for name in names}  # fmt: skip
    for name, part in loaded.items():
        if (part.labels != part.labels).any():
            raise UserError(f"the {args.split} rows of {name} have no labels", location=f"--split {args.split}",
                            expected="rows whose labels are known",
                            remedy="predict them: train_camtl.py --do_predict")  # fmt: skip
    return loaded


def in_words(name, predictions, labels):
    """(predictions, [labels]) as texts: the names of classes, or scores."""
    task = glue.get_task(name)

    def text(value):
        return f"{value:.3f}" if task.regression else task.labels[int(value)]

    return [text(value) for value in predictions], [[text(value)] for value in labels]
