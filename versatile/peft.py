"""Export adapters to, and import them from, the library peft.

  export a LoRA or (IA)3 task of a run to a directory that gives the same logits with `peft.PeftModel.from_pretrained`
  (needs peft, to write and verify it):
    python -m versatile.peft export RUN OUTPUT [--task nlg]
  import a LoRA or (IA)3 made by peft as a task that can be evaluated, combined and trained further like any other:
    python -m versatile.peft import PEFT_DIR OUTPUT --task mine=DATA
    python -m versatile.peft import PEFT_DIR OUTPUT --task nlg --like RUN
    python -m versatile.peft import PEFT_DIR OUTPUT --task nlg --markers '<bos_nlg>' '<eos_nlg>' …

What is exported and imported: adapters/imports/peft_export.py and peft.py.
"""

from versatile.adapters import checkpoint
from versatile.adapters.imports.peft import import_adapter
from versatile.adapters.imports.peft_export import export_task
from versatile.utils import devices, flags
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.screen import counted


@exit_on_user_error
def main(argv=None):
    """`python -m versatile.peft`."""
    p = flags.build_parser(__doc__)
    p.prog, p.usage = "python -m versatile.peft", "%(prog)s export | import [flags]"
    commands = p.add_subparsers(dest="command", required=True, metavar="export | import")
    export = commands.add_parser("export", help="export a task to peft's format", prog=f"{p.prog} export")
    export.add_argument("run", help="a trained model")
    export.add_argument("output", help="the directory to create")
    export.add_argument("--task", help="the task to export (needed if the model holds several)")
    reading = commands.add_parser("import", help="import a peft adapter as a task", prog=f"{p.prog} import")
    reading.add_argument("source", help="a directory saved by peft")
    reading.add_argument("output", help="the directory to create")
    reading.add_argument("--task", required=True, help="the task's name, or NAME=DATA for your own task")
    reading.add_argument("--markers", nargs="+", metavar="TOKEN", help="the task's special tokens")
    reading.add_argument("--like", metavar="RUN", help="a trained model whose tokens for the task are used")
    reading.add_argument("--model_checkpoint", metavar="NAME", help="the backbone (default: the directory's)")
    args = p.parse_args(argv)
    if args.command == "import":
        check_markers(args, reading)
    devices.quiet_libraries()
    if args.command == "export":
        adapter, share = export_task(args.run, args.output, args.task)
        tokens = f"{len(adapter.tokens)} trained tokens" if adapter.tokens else "no task embeddings: the task has none"
        print(f"{args.output}: {adapter.method} of {adapter.task}, {tokens}; peft's logits equal ours (to {share:.1g})")
        return
    task, markers, definition, history = read_task(args)
    model = import_adapter(args.source, args.output, task, markers, args.model_checkpoint, definition, history)
    settings = dict(model.info.methods[task])
    method = f"{settings.pop('method')} ({', '.join(f'{key} {value}' for key, value in settings.items())})"
    embeddings = counted(len(model.info.markers[task]), "task embedding")
    print(f"{args.output}: {task}, {method.removesuffix(' ()')}, {embeddings}")


def check_markers(args, parser):
    """Reject two sources of a task's special tokens."""
    if args.markers and args.like:
        parser.error("--markers and --like both name the task's tokens: leave one of them out")
    for flag in ("markers", "like"):
        if "=" in args.task and getattr(args, flag):
            parser.error(f"--{flag} has no effect with --task NAME=DATA, whose tokens follow from its name")


def read_task(args):
    """(name, markers or None, definition, history) of the task named by the flags of import."""
    from versatile.data import own_tasks

    name, _, data = args.task.partition("=")
    if data:
        task = own_tasks.define(name, data, "--task")
        own_tasks.register_own_tasks([task])
        return name, [f"<{part}_{name}>" for part in ("bos", "eos", "prompt", "answer")], task.to_json(), None
    if not args.like:
        return name, args.markers, None, None
    manifest = checkpoint.peek(args.like)
    known = {task["name"]: task for task in manifest.config.get("tasks", [])} if manifest else {}
    if name not in known:
        raise UserError(f"it holds {', '.join(known) or 'no tasks'}", location=f"--like {args.like}",
                        expected=f"a model that holds {name!r}")  # fmt: skip
    return name, known[name].get("markers"), known[name].get("definition"), known[name].get("max_history")


if __name__ == "__main__":
    main()
