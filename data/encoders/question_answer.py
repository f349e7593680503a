"""A question's context, its text and its answer as token ids for LAMOL's two objectives (Sun et al. 2020).

    cq     context [__sep__] question __ans__                 the prompt for an answer
    cqa    cq answer                                          its next tokens `Y` are labels on the answer and eos
    gen_X  __gen__ cqa                                        its next tokens `gen_Y` are all labels: the model learns
                                                              to generate such samples itself

The originals let an overlong answer exceed the limit, with labels misaligned with their tokens, and keep more context
in cq than in cqa. Here everything fits, labels are aligned with their tokens, and cq is a prefix of cqa.
"""

from dataclasses import dataclass

import numpy as np
from versatile.data.encoders.base import EncodedExample, ExampleEncoder
from versatile.data.plain_text import leading_space
from versatile.data.row_store import Rows
from versatile.data.token_cache import load_encoded
from versatile.utils.errors import UserError

ANS, PAD, UNK, SEP, GEN = "__ans__", "__pad__", "__unk__", "__sep__", "__gen__"


def gen_token(task, add_task_tokens):
    """The start token for generating a task's samples: `__gen__`, or `__<task>__` with --add_task_tokens."""
    return f"__{task}__" if add_task_tokens else GEN


def first_token(tokenizer):
    """The id, in a tuple, of the token that begins a text: the tokenizer's bos, else its eos; () without either."""
    first_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return () if first_id is None else (first_id,)


def special_tokens(tasks, add_task_tokens=False, use_sep=False):
    """The tokens that a sequence of tasks adds to the vocabulary, in the order of their ids.

    Raises:
        UserError: a task's start token would be one of the others.
    """
    for task in tasks if add_task_tokens else ():
        if (token := gen_token(task, True)) in (ANS, PAD, UNK, SEP, GEN):
            raise UserError(f"{task!r} cannot be a task's name with --add_task_tokens: {token} is a special token",
                            location="--tasks", remedy=f"choose another name: my_{task}=DATA")  # fmt: skip
    generate = dict.fromkeys(gen_token(task, add_task_tokens) for task in tasks)
    return [ANS, PAD, UNK, *([SEP] if use_sep else []), *generate]


@dataclass(frozen=True)
class Row:
    """One sample as ids.

    Attributes:
        ids: [n] int32, cqa.
        prompt_length: how many of them belong to cq.
        last: the label after the last token: eos, or, if the answer was cut, its next token.
        gen: id of its task's start token.
        task: its task's name.
        replayed: whether it is a generated or stored sample of an earlier task.
        id: the question's id, or None.
    """

    ids: np.ndarray
    prompt_length: int
    last: int
    gen: int
    task: str = ""
    replayed: bool = False
    id: object = None

    @classmethod
    def of(cls, encoded, gen, task, replayed=False, id=None):
        """The row of an `EncodedExample`."""
        ids = np.asarray(encoded.ids, np.int32)
        return cls(ids, encoded.prompt_length, int(encoded.label), gen, task, replayed, id)

    def __len__(self):
        """Number of tokens of cqa."""
        return len(self.ids)

    @property
    def cq(self):
        """Context, question, `__ans__`."""
        return self.ids[: self.prompt_length].tolist()

    @property
    def cqa(self):
        """cq and the answer."""
        return self.ids.tolist()


class StoredRows(Rows):
    """The `Row`s of an `EncodedSplit`, without the questions' ids.

    Args:
        encoded: `data.token_cache.EncodedSplit`.
        gen, task: as in `Row`.
    """

    def __init__(self, encoded, gen, task):
        self.encoded, self._gen, self._task = encoded, gen, task

    def __len__(self):
        return len(self.encoded)

    def row(self, number):
        return Row.of(self.encoded[number], self._gen, self._task)

    def lengths(self):
        return self.encoded.lengths


class QuestionEncoder(ExampleEncoder):
    """Turns `QA`s and generated ids into rows.

    What does not fit is cut: first the end of the context, then the end of the answer, down to half of the room,
    then the end of the question.

    Args:
        tokenizer: a fast tokenizer that includes `special_tokens`.
        max_len: tokens of the longest gen_X. The toolkit's batches also hold the last label as input: leave one of the
            model's positions for it.
        use_sep: put `__sep__` between context and question.
        eos: the token that ends an answer (default: the tokenizer's own).
        max_positions: the model's number of positions, for messages (default: what `max_len` needs).
        before_gen: ids in front of the start token of a sample that is generated: none, or the backbone's own first
            token (`first_token`). In many decoders the first position is an attention sink, whose state says little
            about its token: a frozen backbone with adapters hardly learns there what a sample begins with.

    Attributes:
        counts: how often each part was cut ("context cut", "question cut", "answer cut"), and how many generated
            samples were unusable, by reason.
    """

    name = "question_answer"
    columns = dict(prompt_length=("number", "i4"), label=("number", "i4"))

    def __init__(self, tokenizer, max_len, use_sep=False, eos=None, max_positions=None, before_gen=()):
        super().__init__(tokenizer)
        self.before_gen = tuple(before_gen)
        self.max_len, self.max_positions, self.lead = max_len, max_positions or max_len + 1, leading_space(tokenizer)
        self.ans, self.pad, self.sep = self._id(ANS), self._id(PAD), self._id(SEP) if use_sep else None
        self.eos = tokenizer.eos_token_id if eos is None else self._id(eos)
        if max_len < 8:
            raise UserError(f"{max_len} tokens are too few for a question and its answer", location="--max_len",
                            expected="at least 8", remedy="use a backbone with more positions")  # fmt: skip

    def _id(self, token):
        if token not in self.vocabulary:
            raise UserError(f"the tokenizer has no token {token!r}", location="--model_checkpoint",
                            expected="a model trained for these tasks", remedy="name its own tasks")  # fmt: skip
        return self.vocabulary[token]

    def settings(self, task):
        return [self.max_len, self.ans, self.pad, self.sep, self.eos, self.lead]

    def texts(self, example):
        return [example.context, example.question, *example.answers]

    def assemble(self, task, example, pieces):
        context, question, *answers = pieces
        answer = self._joined(answers)
        # One position is for the start token; the labels are shifted by one.
        room = self.max_len - 1
        fixed = 1 + (self.sep is not None)
        kept = answer[: max(room // 2, room - fixed - len(question))]
        # A cut answer does not end there: the last label is its next token.
        last = self.eos
        if len(kept) < len(answer):
            self.counts["answer cut"] += 1
            last = answer[len(kept)]
        prompt = self._prompt(*self._cut(context, question, room - len(kept)))
        return EncodedExample([*prompt, *kept], None, len(prompt), last)

    def encode_rows(self, samples, gen, task="", replayed=False):
        """Training rows: a list of `Row`.

        Args:
            samples: an iterable of `QA`.
            gen: the start token of their task, as text.
            task, replayed: as in `Row`.
        """
        start = self._id(gen)
        return [Row.of(encoded, start, task, replayed, qa.id) for qa, encoded in self.encode_all(task, samples)]

    def load_rows(self, samples, gen, task="", cache_dir=None):
        """As `encode_rows` for many samples, from the cache or encoded now: `StoredRows`.

        Args:
            samples: sequence of `QA` with a `content_key`, see `data.row_store`.
            gen, task: as in `encode_rows`.
            cache_dir: directory of the token cache.
        """
        encoded = load_encoded(self, task, "train", samples, samples.content_key, cache_dir=cache_dir)
        return StoredRows(encoded, self._id(gen), task)

    def prompts(self, samples, reserve):
        """The cq of each sample, from which its answer is decoded, with room for `reserve` more tokens.

        The originals' test-time cq takes all the room there is, so answers overrun the positions.
        """
        pieces = iter(self.tokenize([text for qa in samples for text in (qa.context, qa.question)]))
        room = max(self.max_len - 1 - reserve, self.max_len // 2)
        return [self._prompt(*self._cut(next(pieces), next(pieces), room)) for _ in samples]

    def generated(self, ids, gen, task="", id=None):
        """The row of a generated sample, or None if it is unusable (counted).

        Args:
            ids: the ids generated after the start token; the sample ends before the first eos. The originals keep what
                follows it as part of the answer.
            gen, task, id: as above.
        """
        ids = [*ids]
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        if reason := self.unusable(ids):
            self.counts[reason] += 1
            return None
        # If the sample did not end in time, the last label is its next token.
        last = ids[self.max_len - 1] if len(ids) >= self.max_len else self.eos
        ids = ids[: self.max_len - 1]
        return Row(np.array(ids, np.int32), ids.index(self.ans) + 1, last, self._id(gen), task, True, id)

    def unusable(self, ids):
        """Why generated ids are not a sample, or None: they need exactly one `__ans__`, and one `__sep__` if used."""
        for name, token in ((ANS, self.ans), (SEP, self.sep)):
            if token is not None and (count := ids.count(token)) != 1:
                return f"several {name}" if count else f"no {name}"
        if self.ans in ids[self.max_len - 1 :]:
            return f"{ANS} beyond {self.max_len} tokens"
        return None

    def _joined(self, answers):
        """One target: several answers are joined by `__pad__`, as in the originals; no answers give an empty one."""
        joined = answers[0] if answers else []
        for answer in answers[1:]:
            joined = [*joined, self.pad, *answer]
        return joined

    def _cut(self, context, question, room):
        """Context and question, cut to `room` tokens including `__ans__` and `__sep__`."""
        room -= 1 + (self.sep is not None)
        if len(question) > room:
            self.counts["question cut"] += 1
        question = question[:room]
        if len(context) + len(question) > room:
            self.counts["context cut"] += 1
        return context[: room - len(question)], question

    def _prompt(self, context, question):
        return [*context, *([] if self.sep is None else [self.sep]), *question, self.ans]
