"""scitail: entailment in science questions (Khot et al. 2018)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import PAIR, classification

add_task(
    Task(
        name="scitail",
        summary="entailment in science questions",
        text_to_text=classification("scitail", PAIR, ("entailment", "neutral"), ("allenai/scitail", "snli_format"),
                                    label=("gold_label",)),
    )
)
