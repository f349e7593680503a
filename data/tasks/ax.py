"""ax: GLUE's diagnostic set, which is not trained on but predicted with MNLI's head"""

from versatile.data.glue_task import MNLI_LABELS, glue_task
from versatile.data.glue_task import PAIR as COLUMNS
from versatile.data.task import Task, add_task

FILES = {"test": ("diagnostic/diagnostic.tsv", "MNLI/diagnostic.tsv", "AX/AX.tsv", "AX.tsv")}

add_task(
    Task(
        name="ax",
        summary="GLUE's diagnostic set",
        sentence_pair=glue_task("ax", "diagnostic", COLUMNS, labels=MNLI_LABELS, metrics=("matthews",),
                                submission="AX.tsv", files=FILES),
    )
)
