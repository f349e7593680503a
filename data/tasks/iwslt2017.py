"""Translation of talks into Dutch (IWSLT 2017); for English to German see `mt`"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import translation

add_task(
    Task(
        name="iwslt2017-ro-nl",
        summary="Romanian to Dutch",
        text_to_text=translation("iwslt2017-ro-nl", "ro", "nl", ("IWSLT/iwslt2017", "iwslt2017-ro-nl")),
    )
)
add_task(
    Task(
        name="iwslt2017-en-nl",
        summary="English to Dutch",
        text_to_text=translation("iwslt2017-en-nl", "en", "nl", ("IWSLT/iwslt2017", "iwslt2017-en-nl")),
    )
)
