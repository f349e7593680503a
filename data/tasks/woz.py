"""woz.en: what a turn of a dialogue changes (WOZ; decaNLP (McCann et al. 2018)).

Its score is the mean of joint goals and turn requests.
"""

from versatile.data.question_task import LifelongTask
from versatile.data.task import Task, add_task

add_task(Task(name="woz_en", summary="what a turn of a dialogue changes",
              question_answer=LifelongTask("woz.en", "dialogue", "avg_dialogue", gold="woz.en_answers.json")))
