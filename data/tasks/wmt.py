"""News translated between English and another language (WMT 2014, 2016)"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import translation

add_task(
    Task(
        name="wmt16-en-ro",
        summary="English to Romanian",
        text_to_text=translation("wmt16-en-ro", "en", "ro", ("wmt/wmt16", "ro-en")),
    )
)
add_task(
    Task(
        name="wmt16-ro-en",
        summary="Romanian to English",
        text_to_text=translation("wmt16-ro-en", "ro", "en", ("wmt/wmt16", "ro-en")),
    )
)
add_task(
    Task(
        name="wmt16-en-cs",
        summary="English to Czech",
        text_to_text=translation("wmt16-en-cs", "en", "cs", ("wmt/wmt16", "cs-en")),
    )
)
add_task(
    Task(
        name="wmt16-en-fi",
        summary="English to Finnish",
        text_to_text=translation("wmt16-en-fi", "en", "fi", ("wmt/wmt16", "fi-en")),
    )
)
add_task(
    Task(
        name="wmt14-hi-en",
        summary="English to Hindi, whatever its name says",
        text_to_text=translation("wmt14-hi-en", "en", "hi", ("wmt/wmt14", "hi-en")),
    )
)
