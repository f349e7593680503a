"""stsb: how similar two sentences are, from 0 to 5 (STS-B; GLUE)"""

from versatile.data.glue_task import PAIR as COLUMNS
from versatile.data.glue_task import glue_task
from versatile.data.task import Task, add_task
from versatile.data.text_task import NO_TEST, PAIR, TENTHS, TextTask

add_task(
    Task(
        name="stsb",
        summary="how alike two sentences are, from 0 to 5",
        aliases=("sts_b",),
        text_to_text=TextTask("stsb", PAIR, answers=TENTHS, metrics=("pearson_corrcoef", "spearman_corrcoef"),
                              numbers=float, rule="halved", splits=NO_TEST, hub=("nyu-mll/glue", "stsb"),
                              glue={"train": ("sts-b", "train"), "validation": ("sts-b", "dev")}),
        sentence_pair=glue_task("sts-b", "STS-B", COLUMNS, "score", labels=None, metrics=("pearson", "spearman")),
    )
)
