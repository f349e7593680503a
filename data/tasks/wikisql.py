"""wikisql: a question about a table -> an SQL query (Zhong et al. 2017)"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task

add_task(Task(name="wikisql", summary="a question about a table as a query",
              question_answer=LifelongTask("wikisql", "sql", "lfem", gold="wikisql_answers.json")))  # fmt: skip
