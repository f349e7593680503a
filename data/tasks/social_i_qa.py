"""social_i_qa: questions about social situations (Sap et al. 2019)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import multiple_choice

add_task(
    Task(
        name="social_i_qa",
        summary="questions about social situations",
        text_to_text=multiple_choice(
            "social_i_qa",
            "question: {question} context: {context} answerA: {answerA} answerB: {answerB} answerC: {answerC}",
            "123", ("allenai/social_i_qa", None), rule="held out",
        ),
    )
)
