"""The fifteen tasks of Super-NaturalInstructions (Wang et al. 2022) used in papers on continual learning"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task
from versatile.data.task_orders import SUPERNI

for _name in SUPERNI:
    _what = _name.partition("_")[2].replace("_", " ")
    add_task(Task(name=_name, summary=f"{_what} (Super-NaturalInstructions)",
                  question_answer=LifelongTask(_name, "rouge_l", "rougeL")))  # fmt: skip
