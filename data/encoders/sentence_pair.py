"""GLUE's sentences and sentence pairs as token ids for a BERT: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].

A label is stored as its index within its task. Neither the order of the tasks nor task ids are stored: ids belong to
the model and are added when batches are made. (The original stores them and looks up its cache file by the sequence
length alone, and so trains the wrong heads when the order changes.)
"""

from versatile.data import glue
from versatile.data.encoders.base import EncodedExample, ExampleEncoder
from versatile.data.files import fingerprint
from versatile.data.token_cache import load_encoded
from versatile.utils.errors import UserError

UNLABELLED = float("nan")


def longest_first(first, second, room):
    """How many tokens of each text to keep: tokens are removed one by one from the longer text, the second if equal.

    Args:
        first, second: lengths of the two texts; `second` is None for a single text.
        room: tokens available for both together.

    Returns:
        (tokens of the first, tokens of the second or None)
    """
    if second is None:
        return min(first, room), None
    over = max(0, first + second - room)
    down = min(over, abs(first - second))
    first, second = (first - down, second) if first > second else (first, second - down)
    rest = over - down
    return first - rest // 2, second - (rest + 1) // 2


class PairEncoder(ExampleEncoder):
    """Turns a `data.glue_task.GlueExample` of a `data.glue_task.GlueTask` into ids.

    Args:
        tokenizer: a BERT's fast tokenizer.
        max_length: maximum number of tokens in a row; longer ones are cut, see `longest_first`.
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
    """A task's encoded split: `data.token_cache.EncodedSplit`, with the file's own row numbers as the column "index".

    Args:
        data_dir: the folder that holds ``CoLA/``, ``MNLI/`` and so on.
        name: a key of `data.glue.TASKS`.
        split: "train", "dev" or "test".
        tokenizer, max_length: see `PairEncoder`.
        limit: use only the first `limit` rows.
        cache_dir: directory of the token cache.
        overwrite: encode even if the cache has an entry.

    Raises:
        UserError: the file is unusable, see `data.glue.read_examples`; rows of "train" or "dev" have no labels.
    """
    task, path = glue.get_task(name), glue.path_of(data_dir, name, split)
    if not path.is_file() and not task.pairs:
        glue.read_examples(data_dir, name, split)
    content = task.content_key(split, data_dir) if task.pairs else fingerprint(path)
    return load_encoded(PairEncoder(tokenizer, max_length), task, split, _read_examples(data_dir, task, split), content,
                        settings=[split], limit=limit, cache_dir=cache_dir, overwrite=overwrite)  # fmt: skip


def _read_examples(data_dir, task, split):
    for example in glue.iter_examples(data_dir, task.name, split):
        if example.label is None and split != "test":
            raise UserError("has no labels", location=example.location, expected=f"a column {task.label_column!r}",
                            remedy="name a file with labels")  # fmt: skip
        yield example
