"""cosmos_qa: questions about what a story leaves unsaid (Huang et al. 2019)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import multiple_choice

add_task(
    Task(
        name="cosmos_qa",
        summary="what a story leaves unsaid",
        text_to_text=multiple_choice(
            "cosmos_qa",
            "question: {question} context: {context} answer0: {answer0} answer1: {answer1} answer2: {answer2} "
            "answer3: {answer3}",
            "0123", ("allenai/cosmos_qa", None), rule="held out",
        ),
    )
)
