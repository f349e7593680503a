"""rte: does the second sentence follow from the first? (GLUE)"""

from versatile.data.glue_task import ENTAILMENT, glue_task
from versatile.data.glue_task import PAIR as COLUMNS
from versatile.data.task import Task, add_task
from versatile.data.text_task import FOLLOWS, PAIR, glue_classification

add_task(
    Task(
        name="rte",
        summary="does the second sentence follow from the first?",
        text_to_text=glue_classification("rte", PAIR, FOLLOWS, "rte", "halved"),
        sentence_pair=glue_task("rte", "RTE", COLUMNS, labels=ENTAILMENT),
    )
)
