"""Meaning representations to sentences (RNNLG; Wen et al. 2016)"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task

for _domain, _what in (("rest", "restaurants"), ("hotel", "hotels"), ("tv", "televisions"), ("laptop", "laptops")):
    add_task(Task(name=f"rnnlg_{_domain}", summary=f"about {_what}",
                  question_answer=LifelongTask(f"rnnlg.{_domain}", "rouge", "avg_rouge", has_dev=False)))  # fmt: skip
