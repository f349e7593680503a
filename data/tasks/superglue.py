"""SuperGLUE's CommitmentBank, RTE and BoolQ (Wang et al. 2019)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import FOLLOWS, NO_TEST, PREMISE, classification

add_task(
    Task(
        name="superglue-cb",
        summary="entailment of clauses",
        text_to_text=classification("superglue-cb", PREMISE, ("entailment", "contradiction", "neutral"),
                                    ("aps/super_glue", "cb"), rule="halved", splits=NO_TEST),
    )
)
add_task(
    Task(
        name="superglue-rte",
        summary="entailment",
        text_to_text=classification("superglue-rte", PREMISE, FOLLOWS, ("aps/super_glue", "rte"), splits=NO_TEST),
    )
)
add_task(
    Task(
        name="superglue-boolq",
        summary="yes or no to a question about a passage",
        text_to_text=classification("superglue-boolq", "question: {question} passage: {passage}", ("false", "true"),
                                    ("aps/super_glue", "boolq"), rule="halved", splits=NO_TEST),
    )
)
