"""Where decoding starts: what an encoder leaves for a model to continue."""

from dataclasses import dataclass


@dataclass
class Prompt:
    """Where decoding starts.

    Attributes:
        ids, types: token and token-type ids, two lists of one length; types may be None, in all prompts.
        task_id: the integer the model knows the task by.
        eos_id: the task's end token, the only special token that may be produced.
    """

    ids: list
    types: list
    task_id: int
    eos_id: int
