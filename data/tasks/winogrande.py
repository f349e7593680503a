"""winogrande: what fills the gap (Sakaguchi et al. 2020)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import multiple_choice

add_task(
    Task(
        name="winogrande",
        summary="what fills the gap",
        text_to_text=multiple_choice("winogrande", "sentence: {sentence} option1: {option1} option2: {option2}", "12",
                                     ("allenai/winogrande", "winogrande_l"), ("1", "2"), label=("answer",),
                                     rule="held out"),
    )
)
