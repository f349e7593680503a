"""snli: entailment, neutral or contradiction (Bowman et al. 2015)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import NLI, PREMISE, classification

add_task(
    Task(
        name="snli",
        summary="entailment, neutral or contradiction",
        text_to_text=classification("snli", PREMISE, NLI, ("stanfordnlp/snli", None), no_label=("-1", "-")),
    )
)
