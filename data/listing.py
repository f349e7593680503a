"""`--list_tasks`, which prints every known task with its summary."""

import argparse
import textwrap


class _ListTasks(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from versatile.data.task import FORMS, find_form, load_tasks

        for name, task in sorted(load_tasks().items()):
            forms = {kind: form for kind in FORMS if (form := find_form(name, kind))}
            print(f"{name:20} {task.summary}")
            if markers := forms.get("markers"):
                print(f"{'':20} default data: {markers.dataset_path}; scored split: {markers.scored_split}; "
                      f"score: {markers.headline}")  # fmt: skip
            print(f"{'':20} as {', '.join(kind.replace('_', ' ') for kind in forms)}")
        print("\n" + textwrap.fill("as: " + "; ".join(f"{kind.replace('_', ' ')}, {where}" for kind, where
                                                     in FORMS.items()), 100))  # fmt: skip
        parser.exit()


def list_tasks(group):
    """Add --list_tasks, which prints every known task with its summary and stops."""
    group.add_argument("--list_tasks", action=_ListTasks, nargs=0, dest=argparse.SUPPRESS, default=argparse.SUPPRESS,
                       help="print the known tasks and stop")  # fmt: skip
