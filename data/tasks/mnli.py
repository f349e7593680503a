"""mnli: entailment, neutral or contradiction (MultiNLI; GLUE, decaNLP)

GLUE scores it on two dev and two test sets; the second, mnli-mm, is predicted with the head of the first.
"""

from versatile.data.glue_task import mnli_task
from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task
from versatile.data.text_task import NLI, glue_classification

SPLITS = {"train": "train", "validation": "validation_mismatched", "test": "validation_matched"}
FILES = {"train": ("mnli", "train"), "validation_mismatched": ("mnli-mm", "dev"), "validation_matched": ("mnli", "dev")}

add_task(
    Task(
        name="mnli",
        summary="entailment, neutral or contradiction",
        # No colon after "hypothesis", as published.
        text_to_text=glue_classification("mnli", "premise: {premise} hypothesis {hypothesis}", NLI, "mnli", None,
                                         splits=SPLITS, glue=FILES),
        sentence_pair=(
            mnli_task("mnli", "matched", "MNLI-m.tsv"),
            mnli_task("mnli-mm", "mismatched", "MNLI-mm.tsv"),
        ),
        question_answer=LifelongTask("multinli.in.out", "bleu", same_test=True),
    )
)
