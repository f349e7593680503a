"""zre: relations as questions (QA-ZRE; decaNLP (McCann et al. 2018))"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task

add_task(Task(name="zre", summary="relations as questions",
              question_answer=LifelongTask("zre", "corpus_f1", "corpus_f1")))  # fmt: skip
