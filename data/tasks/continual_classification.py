"""The classification tasks of the standard and the long benchmark of continual learning, each with its options."""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task
from versatile.data.task_orders import CLASSIFICATION

for _name, (_, _source) in CLASSIFICATION.items():
    add_task(Task(name=_name, summary=f"{_name.partition('.')[2]} of the classification benchmarks ({_source})",
                  question_answer=LifelongTask(_name)))  # fmt: skip
