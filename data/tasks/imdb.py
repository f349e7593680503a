"""imdb: the sentiment of a film review"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import NO_VALIDATION, classification

add_task(
    Task(
        name="imdb",
        summary="sentiment of a film review",
        text_to_text=classification("imdb", "{text}", ("neg", "pos"), ("stanfordnlp/imdb", None), rule="halved",
                                    splits=NO_VALIDATION),
    )
)
