"""The five text classification tasks for lifelong learning (de Masson d'Autume et al. 2019)"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task

add_task(Task(name="ag", summary="topic of a news article",
              question_answer=LifelongTask("ag", has_dev=False)))  # fmt: skip
add_task(Task(name="dbpedia", summary="class of a Wikipedia article",
              question_answer=LifelongTask("dbpedia", has_dev=False)))  # fmt: skip
add_task(Task(name="yahoo", summary="topic of a question",
              question_answer=LifelongTask("yahoo", has_dev=False)))  # fmt: skip
add_task(Task(name="amazon", summary="stars of a product's review",
              question_answer=LifelongTask("amazon", has_dev=False)))  # fmt: skip
add_task(Task(name="yelp", summary="stars of a business's review",
              question_answer=LifelongTask("yelp", has_dev=False)))  # fmt: skip
