"""TRACE (Wang et al. 2023): eight tasks, from stance and finance to code and simplification, with its own scores
(`utils.trace_metrics`)."""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task
from versatile.data.task_orders import TRACE

_SCORES = {
    "trace.meetingbank": ("words_l", "rougeL"),
    "trace.py150": ("edit", "edit_similarity"),
    "trace.scienceqa": ("choice", "accuracy"),
    "trace.20minuten": ("sari", "sari"),
}

for _name, _folder in TRACE.items():
    add_task(Task(name=_name.replace(".", "_"), summary=f"{_folder} of TRACE",
                  question_answer=LifelongTask(_name, *_SCORES.get(_name, ("accuracy", "accuracy")))))  # fmt: skip
