"""Meaning representations to sentences (RNNLG; Wen et al. 2016)"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task

add_task(Task(name="rnnlg.rest", summary="about restaurants",
              question_answer=LifelongTask("rnnlg.rest", "rouge", "avg_rouge", has_dev=False)))  # fmt: skip
add_task(Task(name="rnnlg.hotel", summary="about hotels",
              question_answer=LifelongTask("rnnlg.hotel", "rouge", "avg_rouge", has_dev=False)))  # fmt: skip
add_task(Task(name="rnnlg.tv", summary="about televisions",
              question_answer=LifelongTask("rnnlg.tv", "rouge", "avg_rouge", has_dev=False)))  # fmt: skip
add_task(Task(name="rnnlg.laptop", summary="about laptops",
              question_answer=LifelongTask("rnnlg.laptop", "rouge", "avg_rouge", has_dev=False)))  # fmt: skip
