"""mrpc: do two sentences say the same thing? (GLUE)"""

from versatile.data.glue_task import glue_task
from versatile.data.task import Task, add_task
from versatile.data.text_task import PAIR, glue_classification

add_task(
    Task(
        name="mrpc",
        summary="do two sentences say the same?",
        text_to_text=glue_classification("mrpc", PAIR, ("not_equivalent", "equivalent"), "mrpc", "halved",
                                         metrics=("f1", "acc"), numbers=int),
        sentence_pair=glue_task("mrpc", "MRPC", ("#1 String", "#2 String"), "Quality", metrics=("accuracy", "f1")),
    )
)
