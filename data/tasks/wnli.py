"""wnli: who does the pronoun refer to? (GLUE)"""

from versatile.data.glue_task import PAIR as COLUMNS
from versatile.data.glue_task import glue_task
from versatile.data.task import Task, add_task
from versatile.data.text_task import PAIR, glue_classification

add_task(
    Task(
        name="wnli",
        summary="who does the pronoun refer to?",
        text_to_text=glue_classification("wnli", PAIR, ("not_entailment", "entailment"), "wnli", "halved"),
        sentence_pair=glue_task("wnli", "WNLI", COLUMNS),
    )
)
