"""sick: entailment (Marelli et al. 2014). The hub has it only with other columns, so it must be given as files."""

from versatile.data.task import Task, add_task
from versatile.data.text_task import NLI, PREMISE, classification

add_task(
    Task(
        name="sick",
        summary="entailment",
        text_to_text=classification("sick", PREMISE, NLI, None, rule="halved"),
    )
)
