"""Sentence-level distillation: a teacher's texts for a task's training inputs (Kim & Rush 2016, section 3.2).

The inputs to decode, the outputs saved on the way (`PartialOutputs`), and the resulting data file.
"""

import contextlib
import gzip
import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from versatile.data.files import fingerprint, open_bytes
from versatile.training.decoding import decode
from versatile.utils.errors import UserError
from versatile.utils.files import atomic_write, disk_errors, try_lock

CHUNK = 2000
# Files of a checkpoint directory that determine the model's outputs; run.json and metrics.json do not.
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_CONFIGS = ("config.json", "adapter_config.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer*.json",
            "tokenizer.model", "special_tokens_map.json")  # fmt: skip


def checkpoint_fingerprint(checkpoint):
    """A hash of a checkpoint's weights, configs and tokenizer; for a name that is not a directory, the name itself."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return str(checkpoint)
    digest = hashlib.sha256()
    for location in (folder, folder / "backbone"):
        for path in sorted({p for pattern in (*_WEIGHTS, *_CONFIGS) for p in location.glob(pattern) if p.is_file()}):
            digest.update(f"{path.relative_to(folder)} {fingerprint(path)}\n".encode())
    return digest.hexdigest()[:16]


@dataclass
class Inputs:
    """A teacher's inputs.

    Attributes:
        prompts: a list of `training.decoding.Prompt`; if merged, without duplicates.
        prompt_numbers: [examples] the number of each example's prompt, in file order.
        records: number of records of the training split that these cover, from the first.
        cut: {what was cut to fit the model: how often}.
    """

    prompts: list = field(default_factory=list)
    prompt_numbers: array = field(default_factory=lambda: array("q"))
    records: int = 0
    cut: Counter = field(default_factory=Counter)


def read_inputs(path, task, options, encode, limit=None, merge=True):
    """The training inputs of a data file.

    Args:
        path: the task's json file; it is read to the end, so that no error in it comes up hours later.
        task: a `data.task.Task`.
        options: `data.task.ReadOptions` for decoding.
        encode: maps a list of `Example` to (a list of `Prompt`, {what was cut: how often}).
        limit: use only this many examples at most; a record that does not fit completely is left out.
        merge: decode equal inputs once; not for sampling, where each draws its own text.

    Raises:
        UserError: a record cannot be used, or none fits under `limit`.
    """
    inputs, seen, waiting, full = Inputs(), {}, [], False
    for location, record in task.records(path, "train"):
        if full:
            continue
        examples = list(task.examples(record, location, options))
        if limit and len(inputs.prompt_numbers) + len(waiting) + len(examples) > limit:
            full = True
            if not inputs.records:
                raise UserError(f"the first record alone has {len(examples)} examples", location=f"--limit {limit}",
                                expected="room for a whole record")  # fmt: skip
            continue
        inputs.records += 1
        waiting += examples
        if len(waiting) >= CHUNK:
            _add_prompts(inputs, seen, encode(waiting), merge)
            waiting = []
    if waiting:
        _add_prompts(inputs, seen, encode(waiting), merge)
    return inputs


def _add_prompts(inputs, seen, encoded, merge):
    prompts, cut = encoded
    inputs.cut.update(cut)
    for prompt in prompts:
        # A list of ints would need eight times the memory.
        prompt = replace(prompt, ids=np.array(prompt.ids, np.int32), types=np.array(prompt.types, np.int32))
        key = len(inputs.prompt_numbers)
        if merge:
            key = hashlib.sha256(prompt.ids.tobytes() + prompt.types.tobytes()).digest()
        number = seen.setdefault(key, len(inputs.prompts))
        if number == len(inputs.prompts):
            inputs.prompts.append(prompt)
        inputs.prompt_numbers.append(number)


def plan_batches(prompts, batch_size):
    """Batches of prompt numbers, longest prompts first; determined by the prompts and the batch size."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batch_seed(seed, number):
    """The random seed for sampling batch `number`: a resumed run draws what an uninterrupted one would have drawn."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]) >> 1


class PartialOutputs:
    """A teacher's outputs so far, in a file that survives a kill at any moment.

    The file has one json object per line: first the identity of the work, then each batch with its prompts' numbers,
    texts, number of tokens and number of outputs cut at the maximum length. An unterminated last line, which a kill
    leaves, is dropped.

    Args:
        path: the file.
        identity: {setting: value}; a file with another identity is not continued.
        batches: from `plan_batches`.

    Attributes:
        texts: [prompts] the teacher's text for each, or None.
        done: number of batches decoded so far.
        tokens, cut: totals over all outputs so far.
    """

    def __init__(self, path, identity, batches):
        self.path, self.batches = Path(path), batches
        self.identity = json.loads(json.dumps(identity))
        self.texts = [None] * sum(map(len, batches))
        self.done = self.tokens = self.cut = 0

    @contextlib.contextmanager
    def opened(self, restart=False):
        """Load the existing outputs; `add` may then be called. A file without outputs is removed at the end.

        Raises:
            UserError: the file belongs to other work, is damaged, or is being written by another process.
        """
        with disk_errors(self.path):
            # Unbuffered: a write that failed on a full disk must not be repeated on closing.
            file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        with file:
            self.file = file
            self._lock()
            end = 0 if restart else self._read_existing()
            with disk_errors(self.path):
                file.truncate(end)
                if not end:
                    self._append(self.identity)
            try:
                yield self
            finally:
                if not self.done:
                    self.remove()

    def add(self, texts, tokens, cut):
        """Append the outputs of the next batch."""
        inputs = self.batches[self.done]
        with disk_errors(self.path):
            self._append(dict(batch=self.done, inputs=inputs, texts=texts, tokens=tokens, cut=cut))
        self._record_batch(inputs, texts, tokens, cut)

    def remove(self):
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def outputs(self):
        """Number of outputs so far."""
        return sum(map(len, self.batches[: self.done]))

    def _record_batch(self, inputs, texts, tokens, cut):
        for number, text in zip(inputs, texts, strict=True):
            self.texts[number] = text
        self.done, self.tokens, self.cut = self.done + 1, self.tokens + tokens, self.cut + cut

    def _append(self, value):
        rest = memoryview(_json(value).encode() + b"\n")
        while rest:
            rest = rest[self.file.write(rest) :]

    def _lock(self):
        if not try_lock(self.file):
            raise UserError("another process is writing it", location=self.path,
                            remedy="wait for that one, or name another --output")  # fmt: skip

    def _read_existing(self):
        """Read the existing outputs; returns the end of the last complete line, or 0 if there are no outputs."""
        end, location = 0, self.path
        with open(self.path, "rb") as file:
            try:
                for number, line in enumerate(file):
                    if not line.endswith(b"\n"):
                        break
                    location, value = f"{self.path}:{number + 1}", json.loads(line.decode("utf-8"))
                    if number == 0:
                        identity = dict(value)
                    else:
                        # Checked only from the first output on: a run killed before it has nothing to lose.
                        self._compare(identity)
                        if (value["batch"], value["inputs"]) != (self.done, self.batches[self.done]):
                            raise ValueError("not the batch that comes next")
                        self._record_batch(value["inputs"], *_outputs(value))
                    end += len(line)
            except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                raise UserError(f"is damaged: {error}", location=location, remedy="begin anew: --restart") from error
        return end if self.done else 0

    def _compare(self, other):
        names = [n for n in {**self.identity, **other} if self.identity.get(n) != other.get(n)]
        if names:
            differences = ", ".join(f"{n} was {other.get(n)!r}, now it is {self.identity.get(n)!r}" for n in names)
            raise UserError(f"was begun with other settings: {differences}", location=self.path,
                            expected="the same command, which continues where it was",
                            remedy="begin anew, without what is in this file: --restart")  # fmt: skip


def _outputs(value):
    """(texts, tokens, cut) of a batch in a partial file; ValueError if they are not what `PartialOutputs` writes."""
    texts, counts = value["texts"], (value["tokens"], value["cut"])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("its texts are not a list of strings")
    # A lone surrogate would make writing the output fail, after all the work.
    "".join(texts).encode()
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("its tokens or cut is not a count")
    return texts, *counts


def decode_rest(model, tokenizer, inputs, decoding, partial, dtype, progress):
    """Decode the batches that `partial` does not have yet; returns the number of tokens decoded."""
    before = partial.tokens
    for number in range(partial.done, len(partial.batches)):
        prompts = [inputs.prompts[i] for i in partial.batches[number]]
        # One call per batch: neither the batches nor their seeds depend on where decoding started.
        seeded = replace(decoding, seed=batch_seed(decoding.seed, number))
        ids = decode(model, tokenizer, prompts, seeded, dtype=dtype)
        texts = [tokenizer.decode(i, clean_up_tokenization_spaces=False).strip() for i in ids]
        partial.add(texts, sum(map(len, ids)), sum(len(i) >= decoding.max_length for i in ids))
        progress(partial.outputs())
    return partial.tokens - before


@dataclass
class OutputStatistics:
    """Statistics of the outputs. Words are separated by spaces.

    Attributes:
        outputs, equal, empty: number of outputs; of those equal to the gold text; of those without a word.
        words, gold_words: number of words in all outputs, in all gold texts.
        samples: the first few (input, gold, output).
    """

    outputs: int = 0
    equal: int = 0
    empty: int = 0
    words: int = 0
    gold_words: int = 0
    samples: list = field(default_factory=list)

    def add(self, example, text, samples):
        """Count one output; the first `samples` are kept."""
        gold = example.target.text.strip()
        self.outputs += 1
        self.equal += text == gold
        self.empty += not text
        self.words += len(text.split())
        self.gold_words += len(gold.split())
        if len(self.samples) < samples:
            self.samples.append((example.source, gold, text))


def render_data_file(path, task, options, inputs, texts, statistics, samples=0):
    """The distilled data file as pieces of text: the original with the teacher's texts in its training records.

    Args:
        path, task, options, inputs: as for `read_inputs`.
        texts: the text of each prompt.
        statistics: an `OutputStatistics`, filled along the way.
        samples: number of examples that the statistics keep.
    """
    records_done, numbers = 0, iter(inputs.prompt_numbers)
    for position, (key, value) in enumerate(task.contents(path)):
        yield ("," if position else "{") + f"\n{_json(key)}: "
        if not isinstance(value, Iterator):
            yield _json(value)
            continue
        yield "["
        written = 0
        for location, record in value:
            if key == "train":
                if records_done == inputs.records:
                    continue
                records_done += 1
                examples = list(task.examples(record, location, options))
                outputs = [texts[next(numbers)] for _ in examples]
                for example, text in zip(examples, outputs):
                    statistics.add(example, text, samples)
                record = task.distil(record, outputs)
            yield (",\n" if written else "\n") + _json(record)
            written += 1
        yield "\n]" if written else "]"
    yield "\n}\n"


def _json(value):
    return json.dumps(value, ensure_ascii=False)


def write_pieces(output, content):
    """Write pieces of text atomically, compressed if the name ends in .gz."""
    with atomic_write(output, "wb") as raw, contextlib.ExitStack() as stack:
        file = raw
        if os.fspath(output).endswith(".gz"):
            # Without a timestamp, the same content gives the same bytes.
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        for piece in content:
            file.write(piece.encode())


def file_equals(output, content):
    """Whether a file holds exactly these pieces of text."""
    with open_bytes(output) as file:
        return all(file.read(len(piece.encode())) == piece.encode() for piece in content) and not file.read(1)
