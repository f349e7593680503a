"""schema: who a pronoun refers to (Winograd schemas; decaNLP (McCann et al. 2018))"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task

add_task(Task(name="schema", summary="who a pronoun refers to",
              question_answer=LifelongTask("schema")))  # fmt: skip
