"""Sources and targets of text-to-text tasks, tokenised once for a T5: each text's ids with the end token behind them.

As in data/cache.py a split becomes a few flat files that are mapped, found again by the content of the file that the
rows come from, the tokenizer, the task and what chooses the rows. The texts lie there, too: outputs are scored
against them.
"""

import json
from itertools import islice

from versatile.data import text_to_text
from versatile.data import text_to_text_rows as rows_of
from versatile.data.cache import CHUNK
from versatile.data.encoders.markers import tokenizer_fingerprint
from versatile.data.flat_lists import FlatLists, FlatTexts, FlatWriter
from versatile.data.plain_text import ended_ids
from versatile.data.token_store import entry_directory, entry_key, open_entry

FORMAT = 2


class TextSplit:
    """A tokenised split on disk.

    Attributes:
        sources, targets: `FlatLists` of int32 ids.
        source_texts, target_texts: the texts.
        references: what outputs are scored against: the target texts, or of each row a list of all that are right.
        cut: {"source": sources cut to fit, "target": targets cut}.
        key: the content key.
    """

    def __init__(self, folder, meta):
        self.cut, self.key = meta["cut"], meta["key"]
        self.sources, self.targets = FlatLists.open(folder, "source"), FlatLists.open(folder, "target")
        self.source_texts, self.target_texts = FlatTexts(folder, "source_text"), FlatTexts(folder, "target_text")
        further = FlatTexts(folder, "further_texts")
        self.references = References(self.target_texts, further) if len(further) else self.target_texts

    def __len__(self):
        return len(self.sources)


class References:
    """Of each row the list of texts that are right: its target and the further ones."""

    def __init__(self, targets, further):
        self.targets, self.further = targets, further

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, number):
        return [self.targets[number], *json.loads(self.further[number])]


def load(task, split, tokenizer, lengths, *, data_dir=None, cache_dir=None, **choice):
    """A task's split, from the cache or tokenised now: `TextSplit`.

    Args:
        task: a `data.text_task.TextTask`.
        split: "train", "validation" or "test".
        tokenizer: a T5's fast tokenizer.
        lengths: (source, target): tokens at the most; a text that is too long loses its end, its end token stays.
        data_dir: see `data.text_to_text.load`.
        cache_dir: where caches lie (default: `cache_root()/tokens`).
        choice: seed, split_validation_test, n_obs, prefix, as `data.text_to_text.load` takes them.

    Raises:
        UserError: as `data.text_to_text.load`.
    """
    rows = text_to_text.SplitRows(task, split, data_dir=data_dir, **choice)
    settings = [FORMAT, repr(task), split, lengths, sorted(choice.items()), tokenizer.eos_token_id]
    content = rows_of.content_key(task, rows.names, data_dir)
    key = entry_key(content, tokenizer_fingerprint(tokenizer.backend_tokenizer), settings)

    def build(beside):
        return dict(key=key, cut=_build(beside, rows, tokenizer, dict(zip(("source", "target"), lengths))))

    return open_entry(entry_directory(key, cache_dir), TextSplit, build, cache_dir)


def _build(folder, rows, tokenizer, lengths):
    """Write a split's files; returns how many texts of each column were cut."""
    cut, pairs = dict.fromkeys(lengths, 0), iter(rows)
    with (
        FlatWriter(folder, "source") as source, FlatWriter(folder, "target") as target,
        FlatWriter(folder, "source_text", "u1") as source_text, FlatWriter(folder, "target_text", "u1") as target_text,
        FlatWriter(folder, "further_texts", "u1") as further,
    ):  # fmt: skip
        while chunk := list(islice(pairs, CHUNK)):
            for *_, texts in chunk if rows.task.pairs else ():
                further.write_text(json.dumps(texts))
            for column, ids, text, texts in zip(cut, (source, target), (source_text, target_text), zip(*chunk)):
                for row, shortened in encode(tokenizer, texts, lengths[column]):
                    ids.write(row)
                    cut[column] += shortened
                for one in texts:
                    text.write_text(one)
    return cut


def encode(tokenizer, texts, limit):
    """Yield (ids, whether they were cut) of each text: at most `limit` ids, the last of them the end token."""
    for ids in ended_ids(tokenizer, texts):
        yield (ids, False) if len(ids) <= limit else ([*ids[: limit - 1], ids[-1]], True)
