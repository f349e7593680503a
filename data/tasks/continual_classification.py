"""The classification tasks of the standard and long continual-learning benchmarks, each with its options"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task
from versatile.data.task_orders import CLASSIFICATION

for _name, (_, _source) in CLASSIFICATION.items():
    _what = f"{_name.partition('.')[2]} of the classification benchmarks ({_source})"
    add_task(Task(name=_name.replace(".", "_"), summary=_what, question_answer=LifelongTask(_name)))
