"""qqp: do two questions ask the same thing? (GLUE)"""

from versatile.data.glue_task import glue_task
from versatile.data.task import Task, add_task
from versatile.data.text_task import glue_classification

add_task(
    Task(
        name="qqp",
        summary="do two questions ask the same?",
        text_to_text=glue_classification("qqp", "question1: {question1} question2: {question2}",
                                         ("not_duplicate", "duplicate"), "qqp", "held out", metrics=("f1", "acc"),
                                         numbers=int),
        sentence_pair=glue_task("qqp", "QQP", ("question1", "question2"), "is_duplicate",
                                metrics=("accuracy", "f1"), broken_rows=True),
    )
)
