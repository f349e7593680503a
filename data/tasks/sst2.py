"""sst2: the sentiment of a sentence of a film review (SST-2; GLUE, decaNLP)"""

from versatile.data.glue_task import glue_task
from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task
from versatile.data.text_task import glue_classification

add_task(
    Task(
        name="sst2",
        summary="the sentiment of a sentence of a film review",
        aliases=("sst_2",),
        text_to_text=glue_classification("sst2", "sentence: {sentence}", ("negative", "positive"), "sst-2", "held out"),
        sentence_pair=glue_task("sst-2", "SST-2", ("sentence",)),
        question_answer=LifelongTask("sst"),
    )
)
