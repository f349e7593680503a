"""cola: is a sentence grammatical? (GLUE)"""

from versatile.data.glue_task import glue_task
from versatile.data.task import Task, add_task
from versatile.data.text_task import glue_classification

add_task(
    Task(
        name="cola",
        summary="is a sentence grammatical?",
        text_to_text=glue_classification("cola", "sentence: {sentence}", ("unacceptable", "acceptable"), "cola",
                                         "halved", metrics=("mcc",), numbers=int),
        sentence_pair=glue_task("cola", "CoLA", ("sentence",), metrics=("matthews",),
                                headerless=("source", "label", "mark", "sentence")),
    )
)
