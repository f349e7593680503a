"""A prompt: the encoded input from which decoding starts."""

from dataclasses import dataclass


@dataclass
class Prompt:
    """An encoded prompt.

    Attributes:
        ids, types: token and token-type ids, two lists of equal length; types may be None, but then in all prompts.
        task_id: the integer the model knows the task by.
        eos_id: the task's end token, the only special token that may be generated.
    """

    ids: list
    types: list
    task_id: int
    eos_id: int
