"""GLUE's sentences and sentence pairs as token ids for a BERT: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].

What is kept of a label is its number within its task. The order of the tasks is not part of it, and task ids are not
kept: they are the model's own, and come in where batches are made. (The original keeps them, finds the file by its
length alone, and so trains the wrong heads when the order changes.)
"""

from versatile.data import glue
from versatile.data.encoders.base import EncodedExample, ExampleEncoder
from versatile.data.files import fingerprint
from versatile.data.token_cache import load_encoded
from versatile.utils.errors import UserError

UNLABELLED = float("nan")


def longest_first(first, second, room):
    """How many tokens of each text stay: one goes after the other from the longer text, at a tie from the second.

    Args:
        first, second: tokens of the two texts; `second` is None where there is one.
        room: tokens that both may have together.

    Returns:
        (tokens of the first, of the second or None)
    """
    if second is None:
        return min(first, room), None
    over = max(0, first + second - room)
    down = min(over, abs(first - second))
    first, second = (first - down, second) if first > second else (first, second - down)
    rest = over - down
    return first - rest // 2, second - (rest + 1) // 2


class PairEncoder(ExampleEncoder):
    """Turns a `data.glue.GlueExample` of a `data.glue_task.GlueTask` into ids.

    Args:
        tokenizer: a BERT's fast tokenizer.
        max_length: tokens of a row at the most; longer ones are cut, see `longest_first`.
    """

    name = "sentence_pair"
    columns = dict(types=("list", "u1"), label=("number", "f4"), index=("number", "i8"))

    def __init__(self, tokenizer, max_length):
        super().__init__(tokenizer)
        self.max_length, self.begin, self.end = max_length, tokenizer.cls_token_id, tokenizer.sep_token_id

    def settings(self, task):
        return [task.name, task.columns, task.label_column, task.labels, self.max_length]

    def texts(self, example):
        return [text for text in (example.text_a, example.text_b) if text is not None]

    def assemble(self, task, example, pieces):
        first, second = pieces if len(pieces) == 2 else (*pieces, None)
        sizes = len(first), None if second is None else len(second)
        keep = longest_first(*sizes, self.max_length - len(pieces) - 1)
        if keep != sizes:
            self.counts[f"over {self.max_length} tokens"] += 1
        ids = [self.begin, *first[: keep[0]], self.end]
        types = [0] * len(ids)
        if second is not None:
            ids += [*second[: keep[1]], self.end]
            types += [1] * (len(ids) - len(types))
        return EncodedExample(ids, types, len(ids), _label(task, example.label))


def _label(task, label):
    if label is None:
        return UNLABELLED
    return label if task.regression else task.labels.index(label)


def load_split(data_dir, name, split, tokenizer, max_length, *, limit=None, cache_dir=None, overwrite=False):
    """A task's encoded split: `data.token_cache.EncodedSplit`, with a column of the file's own row numbers, "index".

    Args:
        data_dir: the folder that holds ``CoLA/``, ``MNLI/`` and so on.
        name: a key of `data.glue.TASKS`.
        split: "train", "dev" or "test".
        tokenizer, max_length: see `PairEncoder`.
        limit: take the first so many rows only.
        cache_dir: where token caches lie.
        overwrite: encode in any case.

    Raises:
        UserError: the file cannot be used, see `data.glue.read`; rows of "train" or "dev" have no labels.
    """
    task, path = glue.get_task(name), glue.path_of(data_dir, name, split)
    if not path.is_file() and not task.pairs:
        glue.read(data_dir, name, split)
    content = task.content_key(split, data_dir) if task.pairs else fingerprint(path)
    return load_encoded(PairEncoder(tokenizer, max_length), task, split, _read_examples(data_dir, task, split), content,
                        settings=[split], limit=limit, cache_dir=cache_dir, overwrite=overwrite)  # fmt: skip


def _read_examples(data_dir, task, split):
    for example in glue.iter_examples(data_dir, task.name, split):
        if example.label is None and split != "test":
            raise UserError("has no labels", location=example.location, expected=f"a column {task.label_column!r}",
                            remedy="name a file with labels")  # fmt: skip
        yield example
