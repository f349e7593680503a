"""Greedy decoding with continuous batching: a row that has ended makes way for the next prompt.

Rows are left-padded to one width and share transformers' cache. Once some have ended, the cache of the remaining rows
is kept, the next prompts are read as a separate batch, and their keys and values are joined to those kept. The encoder
states that a decoder attends to are handled in the same way.
"""

from collections import deque
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from versatile.adapters.backbones.family import backbone_of
from versatile.adapters.preallocated_cache import PreallocatedLayer, keeps_all, new_cache
from versatile.training.prompt_batches import OnlyOwnEnd, argmax, left_padded

# Changing the rows copies the cache, and reading new prompts takes an extra forward pass, so one row in this many must
# have ended first. In mixed batches, what methods keep for a batch's tasks must also be rebuilt.
SHARE, SHARE_OF_MIXED = 8, 2
# Settings of a model's generation config that greedy search ignores, or that `Decoding` and the prompts override.
IDLE_SETTINGS = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version",
                 "_from_model_config", "do_sample", "temperature", "top_k", "top_p", "typical_p", "max_length",
                 "max_new_tokens", "min_length", "use_cache", "output_attentions", "output_hidden_states"}  # fmt: skip


def is_supported(model, decoding):
    """Whether prompts can be decoded this way: greedily, with a cache that is not a sliding window, and without further
    settings in the model's generation config (e.g. a repetition penalty), which only `generate` applies."""
    if not decoding.no_sample or decoding.num_beams > 1:
        return False
    own = {key for key, value in model.generation_config.to_diff_dict().items() if value is not None}
    return keeps_all(model) and own <= IDLE_SETTINGS


@dataclass
class Row:
    """A prompt that is being continued.

    Attributes:
        number: the prompt's position among all prompts.
        prompt: `Prompt`.
        start: number of ids before the first new one.
        source: number of encoder states that the decoder attends to.
    """

    number: int
    prompt: object
    start: int = 0
    source: int = 0
    tokens: list = field(default_factory=list)
    has_ended: bool = False

    def __len__(self):
        return self.start + len(self.tokens)

    def add(self, token, max_length):
        """Append a decoded token; tokens after the end of the row are dropped."""
        if self.has_ended:
            return
        if token != self.prompt.eos_id:
            self.tokens.append(token)
        self.has_ended = token == self.prompt.eos_id or len(self.tokens) >= max_length


class Columns:
    """Tensors [rows, width, …] of left-padded rows, and a cache's keys and values for the same columns."""

    def __init__(self, tensors, cache):
        self.tensors, self.cache = tensors, cache

    @property
    def layers(self):
        """The cache's layers, or [] while it is empty."""
        return self.cache.layers if self.cache.get_seq_length() else []

    def keep(self, numbers, width):
        """Keep the rows with these numbers and the last `width` columns."""
        unused = next(iter(self.tensors.values())).shape[1] - width
        self.tensors = {name: t[:, unused:].index_select(0, numbers) for name, t in self.tensors.items()}
        for layer in self.layers:
            # In this order the result is contiguous.
            layer.keys = layer.keys[:, :, unused:].index_select(0, numbers)
            layer.values = layer.values[:, :, unused:].index_select(0, numbers)

    def join(self, other):
        """Append the rows of another `Columns`."""
        self.tensors = {name: _join_padded(tensor, other.tensors[name], 1) for name, tensor in self.tensors.items()}
        for mine, theirs in zip(self.layers, other.layers):
            for layer in (mine, theirs):
                if isinstance(layer, PreallocatedLayer):
                    layer.drop_free()
            mine.keys = _join_padded(mine.keys, theirs.keys, 2)
            mine.values = _join_padded(mine.values, theirs.values, 2)


class RowBatch:
    """Rows that are decoded together; the model has not read their last tokens yet.

    Args:
        model: an attached model in eval mode, on its device.
        rows: a list of `Row` without tokens.
        decoding: `Decoding`.
        special: see `OnlyOwnEnd`.
        pad_id: the padding token's id.
    """

    def __init__(self, model, rows, decoding, special, pad_id):
        self.model, self.decoding, self.special = model, decoding, special
        self.device = next(model.parameters()).device
        inputs = left_padded([(row.prompt.ids, row.prompt.types) for row in rows], pad_id)
        for row in rows:
            row.start = len(row.prompt.ids)
        self._take_rows(rows)
        self._read({name: tensor.to(self.device) for name, tensor in inputs.items()})

    def _read(self, inputs):
        """Start from left-padded prompts, a dict of tensors [rows, width]."""
        # In the form that `generate` keeps them.
        self.decoded = Columns(inputs, new_cache(self.model))

    def _model_inputs(self):
        """The model's inputs for the next token."""
        inputs = dict(self.decoded.tensors)
        return self.model.prepare_inputs_for_generation(
            inputs.pop("input_ids"), next_sequence_length=1 if self.has_cache else None,
            past_key_values=self.decoded.cache, use_cache=True, task_ids=self.task_ids, logits_to_keep=1, **inputs,
        )  # fmt: skip

    @property
    def columns(self):
        """[(`Columns`, the number of columns each row needs)]"""
        return [(self.decoded, [len(row) for row in self.rows])]

    def _take_rows(self, rows):
        self.rows = rows
        ends = [row.prompt.eos_id for row in rows]
        # Read on the host in every forward pass.
        self.task_ids = torch.tensor([row.prompt.task_id for row in rows])
        self.only_own_end = OnlyOwnEnd(self.special, ends, 1, self.device)
        self.ends = torch.tensor(ends, device=self.device)[:, None]
        # A row that has ended but is still in the batch must not exceed the model's positions.
        last = [len(row.prompt.ids) + self.decoding.max_length - 1 for row in rows]
        self.last_positions = torch.tensor(last, device=self.device)[:, None]

    @property
    def has_cache(self):
        """False before the first step, and in families without a cache, where every token needs the whole rows."""
        return self.decoded.cache.get_seq_length() > 0

    def step(self):
        """Decode the next token of every row. The host waits for the device once."""
        scores = self.model(**self._model_inputs(), return_dict=True).logits[:, -1].float()
        tokens = argmax(self._mask_scores(scores))
        self._append(tokens[:, None])
        for row, token in zip(self.rows, tokens.tolist()):
            row.add(token, self.decoding.max_length)

    def _mask_scores(self, scores):
        scores = self.only_own_end(None, scores)
        too_short = [len(row.tokens) < self.decoding.min_length for row in self.rows]
        if not any(too_short):
            return scores
        too_short = torch.tensor(too_short, device=self.device)[:, None]
        return scores.scatter(1, self.ends, scores.gather(1, self.ends).masked_fill(too_short, float("-inf")))

    def _append(self, tokens):
        tensors = self.decoded.tensors
        columns = dict(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        if "position_ids" in tensors:
            columns["position_ids"] = torch.minimum(tensors["position_ids"][:, -1:] + 1, self.last_positions)
        if "token_type_ids" in tensors:
            columns["token_type_ids"] = tensors["token_type_ids"][:, -1:]
        self.decoded.tensors = {name: torch.cat([tensor, columns[name]], dim=1) for name, tensor in tensors.items()}

    def is_due(self, share):
        """Whether one row in `share` has ended."""
        ended = sum(row.has_ended for row in self.rows)
        # Without a cache, an ended row costs as much as any other, and replacing it copies nothing.
        return ended >= max(1, len(self.rows) // share if self.has_cache else 1)

    def drop_ended(self):
        """Drop the rows that have ended and the columns that no remaining row needs; returns the dropped rows."""
        ended = [row for row in self.rows if row.has_ended]
        kept = [number for number, row in enumerate(self.rows) if not row.has_ended]
        self.rows = [self.rows[number] for number in kept]
        if kept:
            numbers = torch.tensor(kept, device=self.device)
            for columns, widths in self.columns:
                columns.keep(numbers, max(widths))
            self._take_rows(self.rows)
        return ended

    def join(self, other):
        """Append the rows of another batch."""
        for (mine, _), (theirs, _) in zip(self.columns, other.columns):
            mine.join(theirs)
        self._take_rows(self.rows + other.rows)


class EncodedRowBatch(RowBatch):
    """`RowBatch` of an encoder-decoder: the encoder reads the prompts, and new tokens follow a start token."""

    def _read(self, inputs):
        source, start = self.model.read_prompts(inputs, self.task_ids)
        self.cache = new_cache(self.model)
        self.source = Columns(source, self.cache.cross_attention_cache)
        self.decoded = Columns(start, self.cache.self_attention_cache)
        for row, states in zip(self.rows, source["attention_mask"].sum(1).tolist()):
            row.start, row.source = start["input_ids"].shape[1], states

    def _model_inputs(self):
        unread = slice(-1 if self.has_cache else 0, None)
        inputs = {f"decoder_{name}": tensor[:, unread] for name, tensor in self.decoded.tensors.items()}
        inputs["decoder_attention_mask"] = self.decoded.tensors["attention_mask"]
        return inputs | dict(encoder_outputs=(self.source.tensors["states"],), past_key_values=self.cache,
                             attention_mask=self.source.tensors["attention_mask"], use_cache=True,
                             task_ids=self.task_ids)  # fmt: skip

    @property
    def columns(self):
        return [*super().columns, (self.source, [row.source for row in self.rows])]


def _join_padded(first, second, dim):
    """Concatenate rows; those shorter in dimension `dim` are left-padded with zeros."""
    longest = max(first.shape[dim], second.shape[dim])
    behind = [0] * 2 * (first.dim() - dim - 1)
    return torch.cat([F.pad(tensor, (*behind, longest - tensor.shape[dim], 0)) for tensor in (first, second)])


def decode_greedily(model, prompts, order, decoding, special, pad_id, progress=None):
    """Greedy continuations of prompts, at most `decoding.batch_size` at a time.

    Args:
        model, decoding, special, pad_id: as for `RowBatch`.
        prompts: a list of `Prompt`.
        order: their numbers, in decoding order.
        progress: called with the number of prompts done so far.

    Returns:
        a list of token id lists, one for each prompt, without the end token.
    """
    share = SHARE if len({prompt.task_id for prompt in prompts}) == 1 else SHARE_OF_MIXED
    batch_class = EncodedRowBatch if backbone_of(model.config).encoder_decoder else RowBatch
    waiting, outputs, done, batch = deque(order), [None] * len(prompts), 0, None
    while waiting or batch is not None:
        if batch is not None and not batch.is_due(share):
            batch.step()
            continue
        if batch is not None:
            ended = batch.drop_ended()
            for row in ended:
                outputs[row.number] = row.tokens
            done += len(ended)
            if progress:
                progress(done)
            batch = batch if batch.rows else None
        free = decoding.batch_size - (len(batch.rows) if batch is not None else 0)
        admitted = [waiting.popleft() for _ in range(min(free, len(waiting)))]
        if admitted:
            # Rows of a task are adjacent, so that its adapter need not reorder them.
            admitted.sort(key=lambda number: prompts[number].task_id)
            new = batch_class(model, [Row(n, prompts[n]) for n in admitted], decoding, special, pad_id)
            new.step()
            if batch is None:
                batch = new
            else:
                batch.join(new)
    return outputs
