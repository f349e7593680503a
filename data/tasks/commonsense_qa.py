"""commonsense_qa: questions about everyday knowledge (Talmor et al. 2019)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import multiple_choice

add_task(
    Task(
        name="commonsense_qa",
        summary="questions about everyday knowledge",
        text_to_text=multiple_choice(
            "commonsense_qa",
            "question: {question} A: {choices[text][0]} B: {choices[text][1]} C: {choices[text][2]} "
            "D: {choices[text][3]} E: {choices[text][4]}",
            "abcde", ("tau/commonsense_qa", None), label=("answerKey",), rule="halved",
        ),
    )
)
