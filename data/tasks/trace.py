"""TRACE (Wang et al. 2023): eight tasks, from stance and finance to code and simplification.

Its own scores are accuracy (em here), ROUGE-L of MeetingBank, edit similarity of Py150 and SARI of 20Minuten; for the
last stands ROUGE-L here.
"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task
from versatile.data.task_orders import TRACE

_SCORES = {
    "trace.meetingbank": ("rouge_l", "rougeL"),
    "trace.20minuten": ("rouge_l", "rougeL"),
    "trace.py150": ("edit", "edit_similarity"),
}

for _name, _folder in TRACE.items():
    add_task(Task(name=_name, summary=f"{_folder} of TRACE",
                  question_answer=LifelongTask(_name, *_SCORES.get(_name, ("text", "em")))))  # fmt: skip
