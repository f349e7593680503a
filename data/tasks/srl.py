"""srl: semantic roles as questions (QA-SRL; decaNLP (McCann et al. 2018))"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task

add_task(Task(name="srl", summary="semantic roles as questions",
              question_answer=LifelongTask("srl", metric="nf1")))  # fmt: skip
