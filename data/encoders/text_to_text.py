"""Sources and targets of text-to-text tasks as token ids for a T5, each followed by an end token.

The texts are stored as well, as outputs are scored against them.
"""

import json

from versatile.data import text_to_text
from versatile.data import text_to_text_rows as rows_of
from versatile.data.encoders.base import EncodedExample, ExampleEncoder
from versatile.data.plain_text import text_ids
from versatile.data.token_cache import load_encoded


class References:
    """Each row's list of correct texts: its target and any further ones."""

    def __init__(self, targets, further):
        self.targets, self.further = targets, further

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, number):
        return [self.targets[number], *json.loads(self.further[number])]


def references(split):
    """What outputs of an `EncodedSplit` are scored against: the target texts, or each row's list of correct texts."""
    targets, further = split.columns["target"], split.columns["further"]
    return targets if json.loads(further[0]) is None else References(targets, further)


class TextEncoder(ExampleEncoder):
    """Turns a `data.text_to_text.TextExample` of a `data.text_task.TextTask` into ids.

    Args:
        tokenizer: a T5's fast tokenizer.
        lengths: (source, target) maximum number of tokens; a longer text loses its end but keeps the end token.
    """

    name = "text_to_text"
    columns = dict(label=("list", None), source=("text", None), target=("text", None), further=("text", None))
    # Not the smallest type: a run is resumed only on the same ids, which are compared by a hash of their bytes.
    id_type = "i4"

    def __init__(self, tokenizer, lengths):
        super().__init__(tokenizer)
        self.lengths, self.eos = lengths, tokenizer.eos_token_id

    def settings(self, task):
        return [repr(task), self.lengths, self.eos]

    def texts(self, example):
        return [text for text in (example.source, example.target) if text is not None]

    def tokenize(self, texts):
        return text_ids(self.backend, texts)

    def assemble(self, task, example, pieces):
        source, *target = (self._ended(*piece) for piece in zip(("source", "target"), pieces, self.lengths))
        return EncodedExample(source, None, len(source), *target)

    def _ended(self, column, ids, limit):
        if len(ids) < limit:
            return [*ids, self.eos]
        self.counts[column] += 1
        return [*ids[: limit - 1], self.eos]


def load_split(task, split, tokenizer, lengths, *, data_dir=None, cache_dir=None, **choice):
    """A task's encoded split: `data.token_cache.EncodedSplit`, with columns of its texts.

    Args:
        task: a `data.text_task.TextTask`.
        split: "train", "validation" or "test".
        tokenizer, lengths: see `TextEncoder`.
        data_dir: see `data.text_to_text.load_rows`.
        cache_dir: directory of the token cache.
        choice: seed, split_validation_test, n_obs, prefix, as in `data.text_to_text.load_rows`.

    Raises:
        UserError: as in `data.text_to_text.load_rows`.
    """
    rows = text_to_text.SplitRows(task, split, data_dir=data_dir, **choice)
    return load_encoded(TextEncoder(tokenizer, lengths), task, split, rows,
                        rows_of.content_key(task, rows.names, data_dir), settings=[split, sorted(choice.items())],
                        cache_dir=cache_dir)  # fmt: skip
