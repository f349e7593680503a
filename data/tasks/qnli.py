"""qnli: does the sentence answer the question? (GLUE)"""

from versatile.data.glue_task import ENTAILMENT, glue_task
from versatile.data.task import Task, add_task
from versatile.data.text_task import FOLLOWS, glue_classification

add_task(
    Task(
        name="qnli",
        summary="does the sentence answer the question?",
        text_to_text=glue_classification("qnli", "question: {question} sentence: {sentence}", FOLLOWS, "qnli",
                                         "held out"),
        sentence_pair=glue_task("qnli", "QNLI", ("question", "sentence"), labels=ENTAILMENT),
    )
)
