"""hellaswag: how a text continues (Zellers et al. 2019)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import multiple_choice

add_task(
    Task(
        name="hellaswag",
        summary="how a text continues",
        text_to_text=multiple_choice(
            "hellaswag",
            "ctx: {ctx} ending0: {endings[0]} ending1: {endings[1]} ending2: {endings[2]} ending3: {endings[3]}",
            "0123", ("Rowan/hellaswag", None), rule="held out",
        ),
    )
)
