"""`--list_tasks`: every registered task with its summary."""

import argparse


class _ListTasks(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        from versatile.data.task import all_tasks

        if self.const:
            print("of models of train.py and its kin:")
        for name, task in sorted(all_tasks().items()):
            print(f"{name:15} {task.summary}")
            print(f"{'':15} default data: {task.dataset_path}; scored split: {task.scored_split}")
        if self.const:
            from versatile.data import text_to_text

            print("of models of train_t5.py (all: those that the model was trained for):")
            for name, task in text_to_text.TASKS.items():
                print(f"{name:15} scored by {', '.join(task.metrics)}")
        parser.exit()


def list_tasks(group, text_to_text=False):
    """--list_tasks: print every registered task with its summary and stop; the text-to-text tasks, too."""
    group.add_argument("--list_tasks", action=_ListTasks, nargs=0, dest=argparse.SUPPRESS, default=argparse.SUPPRESS,
                       const=text_to_text, help="print the known tasks and stop")  # fmt: skip
