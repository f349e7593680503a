"""GLUE's sentences and sentence pairs, tokenised once for a BERT: [CLS] a [SEP], or [CLS] a [SEP] b [SEP].

As in data/cache.py a split becomes a few flat files that are mapped, found again by the content of the tsv file, the
tokenizer and the length. What is kept of a label is its number within its task. The order of the tasks is not part of
it, and task ids are not kept: they are the model's own, and come in where batches are made. (The original keeps them,
finds the file by its length alone, and so trains the wrong heads when the order changes.)
"""

from array import array
from itertools import islice
from pathlib import Path

import numpy as np
from versatile.data import glue
from versatile.data.cache import CHUNK
from versatile.data.encoders.markers import tokenize, tokenizer_fingerprint
from versatile.data.files import fingerprint
from versatile.data.token_store import entry_directory, entry_key, open_entry
from versatile.utils.errors import UserError

FORMAT = 2
UNLABELLED = np.float32("nan")


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


class PairSplit:
    """A tokenised split on disk.

    Attributes:
        task, split: names, as in `data.glue`.
        lengths: [n] tokens of each row, special ones counted.
        firsts: [n] how many of them are [CLS] a [SEP]; the others have token type 1.
        labels: [n] float32: class ids in the task's order, or scores; NaN where the file has none.
        indices: [n] the numbers that the file gives its rows.
        report: {kept: rows of the file, cut: how many of those taken}.
        key: the content key; a resumed run checks it.
    """

    def __init__(self, folder, meta):
        self.task, self.split, self.report = meta["task"], meta["split"], meta["report"]
        self.lengths = np.fromfile(folder / "lengths.bin", np.int32)
        self.firsts = np.fromfile(folder / "firsts.bin", np.int32)
        self.labels = np.fromfile(folder / "labels.bin", np.float32)
        self.indices = np.fromfile(folder / "indices.bin", np.int64)
        self.key = meta["key"] if len(self) == self.report["kept"] else f"{meta['key']}:{len(self)}"
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self._ids = np.memmap(folder / "ids.bin", meta["ids"], "r")

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, row):
        """Token ids of a row: int64 [length]."""
        return self._ids[self._starts[row] : self._starts[row + 1]].astype(np.int64)


def load(data_dir, name, split, tokenizer, max_length, *, limit=None, cache_dir=None, overwrite=False):
    """A task's split, from the cache or tokenised now: `PairSplit`.

    Args:
        data_dir: the folder that holds ``CoLA/``, ``MNLI/`` and so on.
        name: a key of `data.glue.TASKS`.
        split: "train", "dev" or "test".
        tokenizer: a BERT's fast tokenizer.
        max_length: tokens a row at the most; longer ones are cut, see `longest_first`.
        limit: take the first so many rows only.
        cache_dir: where caches lie (default: `cache_root()/tokens`).
        overwrite: tokenise anew in any case.

    Raises:
        UserError: the file cannot be used, see `data.glue.read`; rows of "train" or "dev" have no labels.
    """
    task, path = glue.get_task(name), glue.path_of(data_dir, name, split)
    if not path.is_file() and not task.pairs:
        glue.read(data_dir, name, split)
    settings = [FORMAT, task.name, split, task.columns, task.label_column, task.labels, max_length]
    content = task.content_key(split, data_dir) if task.pairs else fingerprint(path)
    key = entry_key(content, tokenizer_fingerprint(tokenizer.backend_tokenizer), settings)
    folder = entry_directory(key if limit is None else f"{key}_{limit}", cache_dir)

    def build(beside):
        examples = glue.iter_examples(data_dir, name, split)
        return dict(key=key) | _build(beside, examples, limit, task, split, tokenizer, max_length)

    return open_entry(folder, PairSplit, build, cache_dir, overwrite)


def _build(folder, examples, limit, task, split, tokenizer, max_length):
    """Write a split's files; returns what its meta.json holds beside the key."""
    id_type = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    number = {label: i for i, label in enumerate(task.labels or ())}
    columns = dict(lengths=array("i"), firsts=array("i"), labels=array("f"), indices=array("q"))
    cut, taken = 0, islice(examples, limit)
    with open(folder / "ids.bin", "wb") as ids:
        while chunk := list(islice(taken, CHUNK)):
            for example, (row, first, shortened) in zip(chunk, encode(tokenizer, chunk, max_length)):
                if example.label is None and split != "test":
                    raise UserError(
                        "has no labels",
                        location=example.location,
                        expected=f"a column {task.label_column!r}",
                        remedy="name a file with labels",
                    )
                ids.write(np.array(row, id_type).tobytes())
                values = (len(row), first, _label(example.label, number), example.index)
                for column, value in zip(columns.values(), values):
                    column.append(value)
                cut += shortened
    for name, column in columns.items():
        (folder / f"{name}.bin").write_bytes(column.tobytes())
    # Rows that are not taken are read, too: a mistake in the file is no less one for standing further down.
    kept = len(columns["lengths"]) + sum(1 for _ in examples)
    return dict(task=task.name, split=split, ids=id_type.name, report=dict(kept=kept, cut=cut))


def _label(label, number):
    return UNLABELLED if label is None else number.get(label, label)


def encode(tokenizer, examples, max_length):
    """Rows of token ids.

    Args:
        tokenizer: a BERT's fast tokenizer.
        examples: `data.glue.GlueExample`s.
        max_length: tokens a row at the most.

    Yields:
        (ids, how many of them are [CLS] a [SEP], whether something was cut)
    """
    backend, begin, end = tokenizer.backend_tokenizer, tokenizer.cls_token_id, tokenizer.sep_token_id
    first = tokenize(backend, [e.text_a for e in examples], "")
    second = tokenize(backend, [e.text_b or "" for e in examples], "")
    for example, a, b in zip(examples, first, second):
        pair = example.text_b is not None
        keep_a, keep_b = longest_first(len(a), len(b) if pair else None, max_length - (3 if pair else 2))
        row = [begin, *a[:keep_a], end]
        whole = keep_a == len(a) and (not pair or keep_b == len(b))
        yield (row + [*b[:keep_b], end] if pair else row), keep_a + 2, not whole


# --- what is there, and where to get what is not -------------------------------------------------------------


def missing(data_dir, names, splits):
    """[path] of the files that are not there, for tasks and splits."""
    wanted = [(glue.get_task(name), split) for name in names for split in splits]
    return [
        path
        for task, split in wanted
        if not (task.pairs and task.has(split, data_dir))
        and not (path := glue.path_of(data_dir, task.name, split)).is_file()
    ]


def need(data_dir, names, splits, otherwise=""):
    """A `UserError` that names all files that are not there, and the tasks whose files are.

    Args:
        otherwise: more advice, before the rest.
    """
    gone = missing(data_dir, names, splits)
    if not gone:
        return
    whole = [name for name in names if not missing(data_dir, [name], splits)]
    if not Path(data_dir).is_dir():
        raise UserError(
            "no such directory",
            location=f"--data_dir {data_dir}",
            expected="the folder of CoLA/, MNLI/, …",
            remedy="train_camtl.py --download says where GLUE's files are to be had",
        )
    listed = ", ".join(str(path.relative_to(data_dir)) for path in gone[:6]) + (", …" if len(gone) > 6 else "")
    leave = f"--tasks {' '.join(whole)} leaves them out; " if whole else ""
    raise UserError(f"no {listed}", location=f"--data_dir {data_dir}", expected="GLUE in the official script's folders",
                    remedy=f"{otherwise}{leave}--download says where to get them")  # fmt: skip


_SOURCE = "https://dl.fbaipublicfiles.com/glue/data/"
_SCRIPT = "https://github.com/nyu-mll/jiant/blob/master/scripts/download_glue_data.py"
_ARCHIVES = {"qqp": "QQP-clean.zip", "qnli": "QNLIv2.zip", "ax": "AX.tsv"}


def where_to_get(data_dir, names=None):
    """A text: which of GLUE's files are in a directory, and where those that are not are to be had.

    Args:
        data_dir: may be None: nothing is there.
        names: tasks (default: all).
    """
    lines, gone = [], []
    for name in names or glue.TASKS:
        task = glue.TASKS[name]
        paths = {split: glue.path_of(data_dir or "", name, split) for split in task.files}
        absent = [path for path in paths.values() if not (data_dir and path.is_file())]
        gone += [name] if absent else []
        shown = "all there" if not absent else "missing: " + ", ".join(f"{p.parent.name}/{p.name}" for p in absent)
        lines.append(f"{name:8} {shown}")
    if not gone:
        return "\n".join([*lines, f"{data_dir} holds everything"])
    lines += ["", "The official script fetches all of them into a folder and writes these very files:",
              f"  {_SCRIPT}", "  python download_glue_data.py --data_dir DIR --tasks all",
              "or single tasks, to be unpacked in that folder:"]  # fmt: skip
    folders = {}
    for name in gone:
        folders.setdefault(glue.TASKS[name].folder, name)
    for folder, name in folders.items():
        if name == "mrpc":
            lines.append("  MRPC         only by the official script, which makes it of the original files")
        else:
            lines.append(f"  {folder:12} {_SOURCE}{_ARCHIVES.get(name, f'{folder}.zip')}")
    return "\n".join(lines)
