"""trec: what a question asks for (Li and Roth 2002)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import NO_VALIDATION, classification

add_task(
    Task(
        name="trec",
        summary="what a question asks for",
        text_to_text=classification("trec", "sentence: {text}", ("abbr", "enty", "desc", "hum", "loc", "num"),
                                    ("CogComp/trec", None), label=("coarse_label", "label-coarse"), rule="halved",
                                    splits=NO_VALIDATION),
    )
)
