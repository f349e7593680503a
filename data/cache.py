"""Tokenise once: a split becomes a few flat files, memory-mapped, found again by their content.

The key is a hash of the data file's bytes, the tokenizer, the task's settings and this format. Files are
written in a directory beside and moved into place, so two processes may build the same cache at once, and one
killed half-way leaves nothing that would be taken for whole (data/token_store.py checks what it finds). Memory does not
grow with the data: records are streamed in and arrays are mapped, not loaded.
"""

from array import array
from collections import Counter
from itertools import islice

import numpy as np
from versatile.data.encoders.markers import Encoder, tokenizer_fingerprint
from versatile.data.flat_lists import map_file
from versatile.data.task import ReadOptions
from versatile.data.token_store import entry_directory, entry_key, open_entry
from versatile.utils.errors import UserError

FORMAT = 4
CHUNK = 2000
EMPTY_TARGET = "empty target"


class EncodedSplit:
    """A tokenised split on disk.

    Attributes:
        lengths: [n] tokens of each example.
        prompt_lengths: [n] tokens before the target's text.
        report: {kept, dropped: {reason: count}, cut: {reason: count}}.
        key: the content key; a resumed run checks it.
    """

    def __init__(self, folder, meta):
        self.key, self.report = meta["key"], meta["report"]
        self.lengths = np.fromfile(folder / "lengths.bin", np.int32)
        self.prompt_lengths = np.fromfile(folder / "prompt_lengths.bin", np.int32)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self._ids = map_file(folder / "ids.bin", meta["ids"])
        self._types = map_file(folder / "types.bin", np.uint8)
        self._marker_ids = np.array(meta["marker_ids"], np.int64)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        """(ids [length], types [length], prompt_length) of one example, as int64 arrays and an int."""
        span = slice(self._starts[index], self._starts[index + 1])
        return self._ids[span].astype(np.int64), self._marker_ids[self._types[span]], int(self.prompt_lengths[index])


def load(path, split, task, tokenizer, positions, *, training, options=ReadOptions(), cache_dir=None, progress=None):
    """The encoded split of a task's json file, from the cache or built now.

    Args:
        path: the task's json file.
        split: "train", "valid" or "test".
        task: a `data.task.Task`.
        tokenizer: fast tokenizer with the task's markers.
        positions: the model's longest sequence.
        training: drop what cannot be learned from (see `Task.min_tokens`); evaluation drops nothing.
        options: `data.task.ReadOptions`.
        cache_dir: where caches lie (default: `cache_root()/tokens`).
        progress: called with the number of examples read so far.

    Raises:
        UserError: the file or a record cannot be used, or nothing is left after dropping.
    """
    encoder = Encoder(tokenizer, task, positions)
    settings = [FORMAT, split, task.name, task.markers, task.bos, task.eos, task.bos_type, task.limits,
                task.min_tokens, positions, training, vars(options), encoder.lead, type(task).__module__]  # fmt: skip
    key = entry_key(task.content_key(path, split), tokenizer_fingerprint(tokenizer.backend_tokenizer), settings)

    def build(beside):
        return dict(key=key) | _build(beside, path, split, task, encoder, training, options, progress, len(tokenizer))

    encoded = open_entry(entry_directory(key, cache_dir), EncodedSplit, build, cache_dir)
    if not len(encoded):
        dropped = ", ".join(f"{n:,} dropped ({why})" for why, n in encoded.report["dropped"].items())
        raise UserError(f"no example of split {split!r} is left: {dropped or 'there were none'}", location=path,
                        expected="at least one with an input and a target",
                        remedy="look at the records, or name another file")  # fmt: skip
    return encoded


def _build(folder, path, split, task, encoder, training, options, progress, vocabulary):
    """Write a split's files; returns what its meta.json holds beside the key."""
    id_type = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    marker_ids = [encoder.marker_ids[m] for m in task.markers]
    place_of = {token: i for i, token in enumerate(marker_ids)}
    lengths, prompt_lengths, dropped = array("i"), array("i"), Counter()
    examples = (e for location, record in task.records(path, split) for e in task.examples(record, location, options))
    with open(folder / "ids.bin", "wb") as ids, open(folder / "types.bin", "wb") as types:
        read = 0
        while chunk := list(islice(examples, CHUNK)):
            for example, encoded in zip(chunk, encoder.encode(chunk)):
                reason = _unusable(task, example, encoded)
                # A blank target is a withheld one: the loss of an end token alone says nothing of a model.
                if reason and (training or reason == EMPTY_TARGET):
                    dropped[reason] += 1
                    continue
                ids.write(array(np.dtype(id_type).char, encoded.ids).tobytes())
                types.write(bytes([place_of[t] for t in encoded.types]))
                lengths.append(len(encoded.ids))
                prompt_lengths.append(encoded.prompt_length)
            read += len(chunk)
            if progress:
                progress(read)
    for name, values in (("lengths", lengths), ("prompt_lengths", prompt_lengths)):
        (folder / f"{name}.bin").write_bytes(values.tobytes())
    report = dict(kept=len(lengths), dropped=dict(dropped), cut=dict(encoder.counts))
    return dict(source=str(path), split=split, task=task.name, ids=np.dtype(id_type).name, marker_ids=marker_ids,
                report=report)  # fmt: skip


def _unusable(task, example, encoded):
    """Why training cannot use an example, or None."""
    target = len(encoded.ids) - 1 - encoded.prompt_length
    if target < 1:
        return EMPTY_TARGET
    if not any(span.text.strip() for span in example.context):
        return "empty source"
    if task.min_tokens > 1:
        markers = sum(1 for span in example.context) + 2
        if target < task.min_tokens or encoded.prompt_length - markers < task.min_tokens:
            return f"a side under {task.min_tokens} tokens"
    return None
