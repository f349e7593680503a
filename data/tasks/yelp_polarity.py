"""yelp_polarity: is a review of a business good or bad?"""

from versatile.data.task import Task, add_task
from versatile.data.text_task import NO_VALIDATION, classification

add_task(
    Task(
        name="yelp_polarity",
        summary="is a review good or bad",
        text_to_text=classification("yelp_polarity", "sentence: {text}", ("neg", "pos"),
                                    ("fancyzhx/yelp_polarity", None), rule="held out", splits=NO_VALIDATION,
                                    ambiguous_one=True),
    )
)
