"""paws: paraphrases with the same words (Zhang et al. 2019)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import NO_YES, PAIR, classification

add_task(
    Task(
        name="paws",
        summary="paraphrases with the same words",
        text_to_text=classification("paws", PAIR, NO_YES, ("google-research-datasets/paws", "labeled_final")),
    )
)
