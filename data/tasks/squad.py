"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018)"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task

add_task(Task(name="squad1", summary="questions about a paragraph",
              question_answer=LifelongTask("squad1", metric="nf1", same_test=True)))  # fmt: skip
add_task(Task(name="squad2", summary="questions about a paragraph, some without an answer",
              question_answer=LifelongTask("squad2", metric="nf1", same_test=True)))  # fmt: skip
