"""Examples to token ids, the same way for every task.

    <bos> | <marker> text … | <target marker> target … <eos>

Every token's type is its span's marker, or the one the span names; loss falls on the target's text and on eos.
Text is stripped and gets one leading space before tokenising (released checkpoints were trained so), and a
marker's spelling inside user text stays text.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

from versatile.data.plain_text import text_ids
from versatile.utils.errors import UserError


@dataclass
class Encoded:
    """One example as ids.

    Attributes:
        ids: token ids, prompt then target then eos.
        types: token-type ids, as many.
        prompt_length: how many ids stand before the target's text; they carry no loss.
    """

    ids: list
    types: list
    prompt_length: int

    @property
    def prompt(self):
        """(ids, types) up to and with the target's marker: where decoding starts."""
        return self.ids[: self.prompt_length], self.types[: self.prompt_length]


class Encoder:
    """Turns examples of one task into ids.

    What does not fit is cut: first each span to its task's limit; then, for the model's positions, the oldest
    turns of a conversation, then the end of what stands before them, and the last turn's end only when nothing
    else is left. The target is never cut for the positions.

    Args:
        tokenizer: the model's fast tokenizer, with the task's markers added.
        task: a `data.task.Task`.
        positions: no sequence may be longer than this.
        reserve: leave at least this much room behind the prompt (for decoding).

    Attributes:
        counts: how often something was cut, by what: "over its limit", "over the positions".
    """

    def __init__(self, tokenizer, task, positions, reserve=0):
        self.task, self.positions, self.reserve = task, positions, reserve
        self.tokenizer = tokenizer.backend_tokenizer
        vocabulary = tokenizer.get_vocab()
        missing = [m for m in task.markers if m not in vocabulary]
        if missing:
            raise UserError(
                f"the tokenizer has no token {missing[0]!r}",
                location=f"--task {task.name}",
                expected="a checkpoint trained for this task",
                remedy="name the checkpoint's own task, or another checkpoint",
            )
        self.marker_ids = {m: vocabulary[m] for m in task.markers}
        self.lead = leading_space(tokenizer)
        self.counts = Counter()

    def encode(self, examples):
        """A list of `Example` -> a list of `Encoded`, tokenised in one call.

        Raises:
            UserError: a target that does not fit the model's positions even without any context.
        """
        texts = [span.text for e in examples for span in (*e.context, e.target)]
        pieces = iter(self._tokenize(texts))
        out = []
        for example in examples:
            context = [(span, next(pieces)) for span in example.context]
            out.append(self._assemble(example, context, next(pieces)))
        return out

    def _tokenize(self, texts):
        return tokenize(self.tokenizer, texts, self.lead)

    def _assemble(self, example, context, target):
        context = [(span, self._limit(span, ids)) for span, ids in context]
        target = self._limit(example.target, target)
        # bos, a marker for every span that cannot be dropped, eos.
        turns = sum(span.turn for span, _ in context)
        fixed = len(context) - max(turns - 1, 0) + 3
        if fixed + len(target) > self.positions:
            raise UserError(
                f"the target has {len(target)} tokens, with markers {fixed + len(target)}",
                location=example.location,
                expected=f"at most {self.positions}, the model's positions",
                remedy="shorten the target, drop the example, or use a backbone with more positions",
            )
        room = min(self.positions - fixed - len(target), self.positions - fixed - self.reserve)
        context = self._trim(context, room)
        ids, types = [self.marker_ids[self.task.bos]], [self.marker_ids[self.task.bos_type or self.task.bos]]
        for span, tokens in [*context, (example.target, target)]:
            marker = self.marker_ids[span.marker]
            ids += [marker, *tokens]
            types += [self.marker_ids[span.type or span.marker]] * (1 + len(tokens))
        ids.append(self.marker_ids[self.task.eos])
        types.append(types[-1])
        return Encoded(ids, types, len(ids) - 1 - len(target))

    def _limit(self, span, ids):
        limit = self.task.limits.get(span.marker)
        if limit is None or len(ids) <= limit:
            return ids
        self.counts["over its limit"] += 1
        return ids[:limit]

    def _trim(self, context, room):
        """Cut the context until it fits `room` tokens, the markers of droppable turns included."""
        turns = [i for i, (span, _) in enumerate(context) if span.turn]
        surplus = sum(len(ids) for _, ids in context) + len(turns[:-1]) - max(room, 0)
        if surplus <= 0:
            return context
        self.counts["over the positions"] += 1
        dropped = set()
        for i in turns[:-1]:
            if surplus <= 0:
                break
            surplus -= len(context[i][1]) + 1
            dropped.add(i)
        kept = dict(enumerate(context))
        # Turns are cut last: of a conversation the last one, the question, says what is wanted.
        for i in sorted(kept, key=lambda i: (context[i][0].turn, -i)):
            span, ids = context[i]
            cut = min(max(surplus, 0), len(ids))
            surplus -= cut
            kept[i] = (span, ids[: len(ids) - cut])
        return [kept[i] for i in kept if i not in dropped]


def tokenize(backend, texts, lead):
    """Lists of ids of texts, stripped, each behind `lead`; a special token spelt in a text stays text.

    Args:
        backend: a fast tokenizer's `backend_tokenizer`.
        texts: a list of strings.
        lead: see `leading_space`.
    """
    stripped = [text.strip() for text in texts]
    # Without this a user's "<eos_mt>" would become the end token.
    ids = text_ids(backend, [lead + t for t in stripped])
    return [own if text else [] for own, text in zip(ids, stripped)]


def leading_space(tokenizer):
    """One space, unless the tokenizer puts a word boundary before the first word by itself (SentencePiece)."""
    ids = tokenizer.encode("a", add_special_tokens=False)
    return "" if tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁") else " "


def tokenizer_fingerprint(backend):
    """A hash of everything that decides which ids a text gets.

    Args:
        backend: a fast tokenizer's `backend_tokenizer`. A length of its own, with which some come, is taken off.
    """
    backend.no_truncation()
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()
