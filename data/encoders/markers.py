"""Encoding of examples as token ids with markers, the same for every task.

    <bos> | <marker> text … | <target marker> target … <eos>

Every token's type is its span's marker, or the span's `type` if it has one; the loss covers the target's text and eos.
Text is stripped and gets one leading space before tokenising (as in training the released checkpoints), and a
marker spelled out in user text stays text.
"""

from functools import partial

from versatile.data.encoders.base import EncodedExample, ExampleEncoder
from versatile.data.plain_text import leading_space
from versatile.data.task import ReadOptions
from versatile.data.token_cache import load_encoded
from versatile.utils.errors import UserError

EMPTY_TARGET = "empty target"


class MarkerEncoder(ExampleEncoder):
    """Turns a `data.task.Example` of a `data.task.Task` into ids.

    What does not fit is cut. First, each span is truncated to its task's limit. Then, to fit the model's positions,
    the oldest turns of a conversation are dropped, then the end of the text before the turns is cut, and the end of the
    last turn only when nothing else is left. The target is never cut to fit the positions.

    Args:
        tokenizer: the model's fast tokenizer, with the tasks' markers added.
        positions: maximum length of a sequence.
        reserve: leave at least this much room after the prompt (for decoding).
    """

    name = "markers"
    columns = dict(types=("list", None), prompt_length=("number", "i4"))

    def __init__(self, tokenizer, positions, reserve=0):
        super().__init__(tokenizer)
        self.positions, self.reserve, self.lead = positions, reserve, leading_space(tokenizer)
        self._marker_ids = {}

    def marker_ids(self, task):
        """{marker: id} of a task; raises `UserError` if the tokenizer lacks one."""
        if task.name not in self._marker_ids:
            if missing := [marker for marker in task.markers if marker not in self.vocabulary]:
                raise UserError(f"the tokenizer has no token {missing[0]!r}", location=f"--task {task.name}",
                                expected="a checkpoint trained for this task",
                                remedy="name the checkpoint's own task, or another checkpoint")  # fmt: skip
            self._marker_ids[task.name] = {marker: self.vocabulary[marker] for marker in task.markers}
        return self._marker_ids[task.name]

    def settings(self, task):
        return [task.name, task.markers, task.bos, task.eos, task.bos_type, task.limits, self.positions, self.lead]

    def texts(self, example):
        return [span.text for span in (*example.context, example.target)]

    def assemble(self, task, example, pieces):
        """See `ExampleEncoder`.

        Raises:
            UserError: the target does not fit the model's positions even without any context.
        """
        marker_ids = self.marker_ids(task)
        spans = (*example.context, example.target)
        limited = [ids[: task.limits.get(span.marker)] for span, ids in zip(spans, pieces)]
        if any(len(ids) < len(whole) for ids, whole in zip(limited, pieces)):
            # Once for each example, however many of its spans are cut.
            self.counts["over its limit"] += 1
        context, target = list(zip(example.context, limited)), limited[-1]
        # bos, a marker for every span that cannot be dropped (the target's included), eos.
        turns = sum(span.turn for span, _ in context)
        fixed = len(context) - max(turns - 1, 0) + 3
        if fixed + len(target) > self.positions:
            raise UserError(f"the target has {len(target)} tokens, with markers {fixed + len(target)}",
                            location=example.location, expected=f"at most {self.positions}, the model's positions",
                            remedy="shorten the target, drop the example, or use a backbone with more positions",
                            )  # fmt: skip
        room = min(self.positions - fixed - len(target), self.positions - fixed - self.reserve)
        context = self._trim(context, room)
        ids, types = [marker_ids[task.bos]], [marker_ids[task.bos_type or task.bos]]
        for span, tokens in [*context, (example.target, target)]:
            marker = marker_ids[span.marker]
            ids += [marker, *tokens]
            types += [marker_ids[span.type or span.marker]] * (1 + len(tokens))
        ids.append(marker_ids[task.eos])
        types.append(types[-1])
        return EncodedExample(ids, types, len(ids) - 1 - len(target))

    def _trim(self, context, room):
        """Cut the context until it fits `room` tokens, including the markers of droppable turns."""
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
        # Turns are cut last: the last turn of a conversation, the question, says what is wanted.
        for i in sorted(kept, key=lambda i: (context[i][0].turn, -i)):
            span, ids = context[i]
            cut = min(max(surplus, 0), len(ids))
            surplus -= cut
            kept[i] = (span, ids[: len(ids) - cut])
        return [kept[i] for i in kept if i not in dropped]


def load_split(path, split, task, tokenizer, positions, *, training, options=ReadOptions(), cache_dir=None):
    """The encoded split of a task's data file: `data.token_cache.EncodedSplit`.

    Args:
        path: the task's json file.
        split: "train", "valid" or "test".
        task: a `data.task.Task`.
        tokenizer: fast tokenizer with the task's markers.
        positions: the model's longest sequence.
        training: drop examples that cannot be learned from (see `Task.min_tokens`); evaluation drops only those with
            an empty target.
        options: `data.task.ReadOptions`.
        cache_dir: directory of the token cache.

    Raises:
        UserError: the file or a record is unusable, or nothing is left after dropping.
    """
    settings = [split, task.min_tokens, training, vars(options), type(task).__module__]
    encoded = load_encoded(
        MarkerEncoder(tokenizer, positions), task, split, _read_examples(path, split, task, options),
        task.content_key(path, split), settings=settings, drop=partial(reason_to_drop, task, training=training),
        cache_dir=cache_dir,
    )  # fmt: skip
    if not len(encoded):
        dropped = ", ".join(f"{count:,} dropped ({reason})" for reason, count in encoded.report["dropped"].items())
        raise UserError(f"no example of split {split!r} is left: {dropped or 'there were none'}", location=path,
                        expected="at least one with an input and a target",
                        remedy="look at the records, or name another file")  # fmt: skip
    return encoded


def _read_examples(path, split, task, options):
    for location, record in task.records(path, split):
        yield from task.training_examples(record, location, options)


def reason_to_drop(task, example, encoded, training=True):
    """Why an example cannot be used, or None. Some examples can be scored but not trained on."""
    target = len(encoded.ids) - 1 - encoded.prompt_length
    # A blank target is a withheld one: the loss of an end token alone says nothing about a model.
    if target < 1:
        return EMPTY_TARGET
    if not training:
        return None
    if not any(span.text.strip() for span in example.context):
        return "empty source"
    if task.min_tokens > 1:
        markers = len(example.context) + 2
        if target < task.min_tokens or encoded.prompt_length - markers < task.min_tokens:
            return f"a side under {task.min_tokens} tokens"
    return None
