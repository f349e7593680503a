#!/usr/bin/env python
r"""Let a teacher rewrite a task's training targets: it decodes every training input, and students learn its texts.

  one CPU or one GPU (the GPU is used if there is one):
    python sentence_distiller.py --task mt --no_sample --model_checkpoint runs/<run>
    python train.py --task mt --model_checkpoint gpt2 --adapter_bottleneck 300 --distillation

--model_checkpoint takes a run of train.py (fully fine-tuned, or an adapter), a VLM that holds the task, or a
checkpoint released with the original code. The output is a copy of the data file with all its splits, in which the
training records also hold the teacher's texts next to the gold ones: distillated_tgt, or in conversations
distillated_candidates. It is written next to the data as <data>_distilled.json, where train.py --distillation finds it.

If it is stopped or killed at any moment, the same command continues where it left off, also when sampling, and writes
the same file as an uninterrupted run; until then the outputs are kept in <output>.partial. Identical inputs are decoded
only once, except when sampling, where each gets its own text.
"""

import sys
from pathlib import Path

from versatile.data.listing import list_tasks
from versatile.data.task_names import task_flag
from versatile.utils import flags, settings
from versatile.utils.errors import UserError, exit_on_user_error, first_line
from versatile.utils.interrupts import stop_on_signals
from versatile.utils.screen import shell_command


def parser():
    p = flags.build_parser(__doc__)
    g = p.group("task and data")
    task_flag(g, "--task", "markers",
              help="one of --list_tasks, a task of your own that the teacher holds, or NAME=DATA")
    settings.add(p, "model_checkpoint", help="the teacher: a run directory, a VLM, or a released checkpoint")
    settings.add(p, "dataset_path")
    settings.add(p, "limit", help="use only the first N training examples; records with examples beyond these are "
                                  "left out")  # fmt: skip
    settings.add(p, "max_history", help=settings.HISTORY)
    list_tasks(g)
    settings.add_decoding(p)
    g = p.group("output")
    g.add_argument("--output", help="the file to write (default: <data>_distilled.json, next to the data)")
    g.add_argument("--overwrite", action="store_true", help="replace the output file if it exists")
    g.add_argument("--restart", action="store_true", help="start over, discarding what an interrupted run left")
    settings.add(p, "samples", group="output")
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if not args.task:
        p.error("--task is needed")
    if not args.model_checkpoint:
        p.error("--model_checkpoint is needed")
    flags.check_lengths(p, args)
    flags.require_one_process()
    from versatile.adapters import checkpoint
    from versatile.adapters.manifest import check_holds, refuse_question_model
    from versatile.data.own_tasks import named_data, prepare_own_tasks
    from versatile.data.task import find_task, get_task

    manifest = checkpoint.peek(args.model_checkpoint)
    refuse_question_model(manifest, args.model_checkpoint)
    prepare_own_tasks(args, "--task", trained=manifest.definitions.values() if manifest else ())
    if manifest and manifest.tasks and find_task(args.task) is None:
        check_holds(manifest.tasks, args.task, args.model_checkpoint)
    args.dataset_path = named_data(args.task, args.dataset_path, "--dataset_path")
    task = get_task(args.task)
    args.dataset_path = task.data_path(args.dataset_path)
    partial = check_output(args, task)
    flags.print_unused_decoding(p, args)

    def kept():
        return f"the outputs so far are in {partial}" if partial.exists() else "there are no outputs yet"

    with stop_on_signals(kept, resume_command(Path(sys.argv[0]).name, sys.argv[1:] if argv is None else argv)):
        distil(args, task, partial)


def check_output(args, task):
    """Choose and check the output file; returns the path that keeps outputs until it is written."""
    from versatile.utils.files import is_same_path, writable_directory

    output = Path(args.output or task.distilled_path(args.dataset_path))
    args.output = str(output)
    partial = Path(f"{output}.partial")
    if output.is_dir():
        raise UserError("is a directory", location=f"--output {output}", expected="the name of a file")
    if is_same_path(output, args.dataset_path):
        raise UserError(
            "is the data file itself", location=f"--output {output}", remedy="name another file with --output"
        )
    # If both exist, the last run may have been killed between writing the one and removing the other.
    if output.exists() and not args.overwrite and (args.restart or not partial.exists()):
        refuse_taken(args)
    writable_directory(output.parent, "--output")
    return partial


def refuse_taken(args):
    """Raise the `UserError` for an output file that exists already."""
    raise UserError("already exists", location=f"--output {args.output}",
                    remedy="replace it (--overwrite), or name another file")  # fmt: skip


def distil(args, task, path):
    """Decode the training inputs, write the data file with the outputs, and print a report."""
    import ignite.distributed as idist
    from versatile.adapters import checkpoint
    from versatile.adapters.backbones.family import max_length_of
    from versatile.adapters.inference import prepare_for_inference
    from versatile.data import instances
    from versatile.training import sentence_distillation as sentences
    from versatile.training.decoding import Decoding
    from versatile.utils import devices

    devices.quiet_libraries(args.cache_dir)
    device = idist.device()
    dtype = devices.precision(args, device)
    content = task.content_key(args.dataset_path, "train")
    manifest = checkpoint.peek(args.model_checkpoint)
    history = args.max_history or (manifest and manifest.histories.get(task.name))
    options = task.read_options(history, decoding=True)
    model, tokenizer = checkpoint.load_checkpoint(args.model_checkpoint, task.name)
    prepare_for_inference(model, device, dtype)
    positions = max_length_of(model)
    decoding = Decoding.from_flags(args, positions)

    def encode(examples):
        return instances.prompts(task, model.task_id(task.name), tokenizer, examples, positions, decoding.max_length)

    def render(statistics):
        return sentences.render_data_file(
            args.dataset_path, task, options, inputs, partial.texts, statistics, args.samples)  # fmt: skip

    inputs = sentences.read_inputs(args.dataset_path, task, options, encode, args.limit, merge=decoding.no_sample)
    report_inputs(args, inputs)
    identity = dict(
        teacher=sentences.checkpoint_fingerprint(args.model_checkpoint), data=content, task=task.name, limit=args.limit,
        max_history=options.max_history, **decisive_settings(decoding), precision=str(dtype).removeprefix("torch."),
        device=device.type,
    )  # fmt: skip
    partial = sentences.PartialOutputs(path, identity, sentences.plan_batches(inputs.prompts, decoding.batch_size))
    with partial.opened(args.restart):
        if Path(args.output).exists() and not args.overwrite:
            accept_finished(args, partial, render(sentences.OutputStatistics()))
        else:
            decode(args, (model, tokenizer), inputs, decoding, partial, dtype)
        if task.content_key(args.dataset_path, "train") != content:
            raise UserError("has changed while the teacher was decoding", location=args.dataset_path,
                            remedy="start over with --restart")  # fmt: skip
        statistics = sentences.OutputStatistics()
        sentences.write_pieces(args.output, render(statistics))
        partial.remove()
    print_statistics(args, statistics, partial, decoding)
    print(f"\nwritten: {args.output}")
    if statistics.empty == statistics.outputs:
        print("warning: every output is empty: no student can learn from this file. Is the teacher trained for the "
              f"task, and on data like these? Inspect it: "
              f"{shell_command('interact.py', '--model_checkpoint', args.model_checkpoint)}"
              f" --task {task.name}; start over with --overwrite")  # fmt: skip
    else:
        print(f"next: {next_command(args, task, options, model)}")


def accept_finished(args, partial, pieces):
    """Raise the `UserError` for an output file that exists, unless it is the one that would be written now."""
    from versatile.training.sentence_distillation import file_equals

    if partial.done < len(partial.batches) or not file_equals(args.output, pieces):
        refuse_taken(args)
    print(f"{args.output} was finished before")


def decode(args, teacher, inputs, decoding, partial, dtype):
    """Decode what `partial` does not hold yet, with a progress bar."""
    import time

    from versatile.training import sentence_distillation as sentences
    from versatile.utils.devices import out_of_memory
    from versatile.utils.progress import Progress

    if partial.done:
        print(f"continuing: {partial.outputs():,} outputs are in {partial.path}", flush=True)
    started = time.monotonic()
    with Progress(len(inputs.prompts), "decoding", partial.outputs()) as done:
        try:
            tokens = sentences.decode_rest(*teacher, inputs, decoding, partial, dtype, done)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UserError(f"out of memory: {first_line(error)}", location=f"--batch_size {args.batch_size}",
                            remedy="lower it, and add --restart if outputs are kept") from error  # fmt: skip
    seconds = max(time.monotonic() - started, 1e-9)
    print(f"decoded {tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:.0f} tokens/s)")


def decisive_settings(decoding):
    """The decoding settings that determine the outputs; those of sampling matter only when sampling."""
    left_out = {*((*flags.SAMPLING, "seed") if decoding.no_sample else ()),
                *(flags.BEAM_SEARCH if decoding.num_beams == 1 else ())}  # fmt: skip
    return {name: value for name, value in vars(decoding).items() if name not in left_out}


def report_inputs(args, inputs):
    examples, prompts = len(inputs.prompt_numbers), len(inputs.prompts)
    distinct = f", {prompts:,} of them different" if prompts < examples else ""
    print(f"{args.dataset_path}: {inputs.records:,} training records, {examples:,} examples{distinct}")
    for why, count in inputs.cut.items():
        print(f"{count:,} inputs cut ({why})")
    sys.stdout.flush()


def print_statistics(args, statistics, partial, decoding):
    """Print the statistics of the outputs."""
    n = statistics.outputs
    print(f"{n:,} outputs, {statistics.equal:,} ({statistics.equal / n:.1%}) equal to the gold text; "
          f"{statistics.words / n:.1f} words each, the gold ones {statistics.gold_words / n:.1f}")  # fmt: skip
    if statistics.empty:
        print(f"{statistics.empty:,} outputs are empty or only white space: empty in the file, training will drop them")
    if partial.cut:
        print(f"{partial.cut:,} decoded texts reached --max_length {decoding.max_length} and may end in the middle")
    for source, gold, text in statistics.samples:
        print(f"\ninput    {source}\ngold     {gold}\nteacher  {text}")


def next_command(args, task, options, teacher):
    """The command that trains a student on the output, in the teacher's own backbone if that has a name."""
    from versatile.training.runs import origin

    is_default_output = Path(args.output) == task.distilled_path(args.dataset_path)
    named = teacher.info.mode == "adapter" and not teacher.info.save_backbone
    backbone = origin(args.model_checkpoint).get("backbone", teacher.config._name_or_path if named else "gpt2")
    width = task.published.get("adapter", {}).get("adapter_bottleneck", 64)
    data = args.dataset_path if is_default_output else args.output
    words = ["--task", task.typed_name(), "--dataset_path", data, "--distillation", "--model_checkpoint",
             backbone, "--adapter_bottleneck", str(width)]  # fmt: skip
    # Only train.py's own default may be left out.
    words += ["--max_history", str(options.max_history)] if options.max_history not in (0, task.max_history) else []
    return shell_command("train.py", *words)


def resume_command(script, argv):
    """The command that continues where this one stopped."""
    return shell_command(script, *(a for a in argv if a != "--restart"))


if __name__ == "__main__":
    sys.exit(main())
