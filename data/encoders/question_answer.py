"""A question's context, its text and its answer as the token ids of LAMOL's two objectives (Sun et al. 2020).

    cq     context [__sep__] question __ans__                 what an answer is asked with
    cqa    cq answer                                          its next tokens `Y` are labels on the answer and eos
    gen_X  __gen__ cqa                                        its next tokens `gen_Y` are all labels: the model learns
                                                              to make such samples by itself

The originals let an answer that is too long run over the limit, with labels beside their tokens, and keep more
context in cq than in cqa. Here everything fits, labels stand on their tokens, and cq is the beginning of cqa.
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
    """The token that a task's samples are generated from: `__gen__`, or `__<task>__` with --add_task_tokens."""
    return f"__{task}__" if add_task_tokens else GEN


def special_tokens(tasks, add_task_tokens=False, use_sep=False):
    """The tokens that a sequence of tasks adds to a vocabulary, in the order of their ids."""
    generate = dict.fromkeys(gen_token(task, add_task_tokens) for task in tasks)
    return [ANS, PAD, UNK, *([SEP] if use_sep else []), *generate]


@dataclass(frozen=True)
class Row:
    """One sample as ids.

    Attributes:
        ids: [n] int32, cqa.
        prompt_length: how many of them are cq.
        last: the label behind the last token: eos, or where the answer had to be cut the token it goes on with.
        gen: id of the start token of its task.
        task: its task's name.
        replayed: it was generated, or kept, from an earlier task.
        id: of the question, or None.
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
        """Of an `EncodedExample`."""
        ids = np.asarray(encoded.ids, np.int32)
        return cls(ids, encoded.prompt_length, int(encoded.label), gen, task, replayed, id)

    def __len__(self):
        """Tokens of cqa."""
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
    """The `Row`s of an `EncodedSplit`; without the questions' ids.

    Args:
        encoded: `data.token_cache.EncodedSplit`.
        gen, task: as `Row` has them.
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

    What does not fit is cut: the end of the context first, then the end of the answer, down to half of the room;
    then the end of the question.

    Args:
        tokenizer: fast, with `special_tokens` in it.
        max_len: tokens of the longest gen_X. A batch of the toolkit holds the last label, too, as input: leave one
            of the model's positions for it.
        use_sep: `__sep__` between context and question.
        eos: the token that ends an answer (default: the tokenizer's own).
        most: positions that the model has, for messages (default: those that `max_len` needs).

    Attributes:
        counts: how often what was cut: "context cut", "question cut", "answer cut"; and the generated samples that
            cannot be used, by reason.
    """

    name = "question_answer"
    columns = dict(prompt_length=("number", "i4"), label=("number", "i4"))

    def __init__(self, tokenizer, max_len, use_sep=False, eos=None, most=None):
        super().__init__(tokenizer)
        self.max_len, self.most, self.lead = max_len, most or max_len + 1, leading_space(tokenizer)
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
        # One place is the start token's; the labels stand one further.
        room = self.max_len - 1
        fixed = 1 + (self.sep is not None)
        kept = answer[: max(room // 2, room - fixed - len(question))]
        # Half an answer does not end there: the last label is the token it goes on with.
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
            gen: the start token of their task, by name.
            task, replayed: as `Row` has them.
        """
        start = self._id(gen)
        return [Row.of(encoded, start, task, replayed, qa.id) for qa, encoded in self.encode_all(task, samples)]

    def load_rows(self, samples, gen, task="", cache_dir=None):
        """`encode_rows` of many samples, from the cache or encoded now: `StoredRows`.

        Args:
            samples: sequence of `QA` with a `content_key`, see `data.row_store`.
            gen, task: as `encode_rows` takes them.
            cache_dir: where token caches lie.
        """
        encoded = load_encoded(self, task, "train", samples, samples.content_key, cache_dir=cache_dir)
        return StoredRows(encoded, self._id(gen), task)

    def prompts(self, samples, reserve):
        """cq of each of `samples` with room for `reserve` more tokens: where an answer is decoded from.

        The originals' cq at test takes what room there is, and answers overrun the positions.
        """
        pieces = iter(self.tokenize([text for qa in samples for text in (qa.context, qa.question)]))
        room = max(self.max_len - 1 - reserve, self.max_len // 2)
        return [self._prompt(*self._cut(next(pieces), next(pieces), room)) for _ in samples]

    def generated(self, ids, gen, task="", id=None):
        """The row of a generated sample, or None where it is none (counted).

        Args:
            ids: what was generated behind the start token; it ends before the first eos. The originals keep what
                stands behind it as part of the answer.
            gen, task, id: as above.
        """
        ids = [*ids]
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        if reason := self.unusable(ids):
            self.counts[reason] += 1
            return None
        # Of one that did not end in time the last label is the token it went on with.
        last = ids[self.max_len - 1] if len(ids) >= self.max_len else self.eos
        ids = ids[: self.max_len - 1]
        return Row(np.array(ids, np.int32), ids.index(self.ans) + 1, last, self._id(gen), task, True, id)

    def unusable(self, ids):
        """Why generated ids are not a sample, or None: they need one `__ans__`, and one `__sep__` where used."""
        for name, token in ((ANS, self.ans), (SEP, self.sep)):
            if token is not None and (count := ids.count(token)) != 1:
                return f"several {name}" if count else f"no {name}"
        if self.ans in ids[self.max_len - 1 :]:
            return f"{ANS} beyond {self.max_len} tokens"
        return None

    def _joined(self, answers):
        """Several answers are one target, `__pad__` between them, as in the originals; none is an empty one."""
        joined = answers[0] if answers else []
        for answer in answers[1:]:
            joined = [*joined, self.pad, *answer]
        return joined

    def _cut(self, context, question, room):
        """Context and question in `room` tokens, `__ans__` and `__sep__` included."""
        room -= 1 + (self.sep is not None)
        if len(question) > room:
            self.counts["question cut"] += 1
        question = question[:room]
        if len(context) + len(question) > room:
            self.counts["context cut"] += 1
        return context[: room - len(question)], question

    def _prompt(self, context, question):
        return [*context, *([] if self.sep is None else [self.sep]), *question, self.ans]
