"""The interface of all encoders: `encode(task, example)` turns an example into token ids.

    markers          spans with a special token before each                     train.py, train_vlm.py
    question_answer  context, question, answer                                  train_lifelong.py
    sentence_pair    [CLS] a [SEP] b [SEP], and a class or a score               train_camtl.py
    text_to_text     a source for the encoder, a target for the decoder         train_t5.py

Encoded splits are stored in the token cache (`data.token_cache`).
"""

from collections import Counter
from dataclasses import dataclass
from itertools import islice

from versatile.data.plain_text import stripped_ids

CHUNK = 2000
"""Examples tokenised in one call: a tokenizer's internal records of a text take many times the memory of its ids."""


@dataclass(slots=True)
class EncodedExample:
    """One example as token ids.

    Attributes:
        ids: token ids of the model's input.
        types: token-type ids, as many, or None if the encoder has none.
        prompt_length: number of ids before the target; they are excluded from the loss.
        label: what is predicted in addition to the ids after the prompt. markers: None. question_answer: the id that
            follows the last one. sentence_pair: a class id or a score, NaN if unknown. text_to_text: the target's ids,
            or None.
    """

    ids: list
    types: list | None
    prompt_length: int
    label: object = None

    @property
    def prompt(self):
        """(ids, types) up to the target: where decoding starts."""
        return self.ids[: self.prompt_length], self.types and self.types[: self.prompt_length]


class ExampleEncoder:
    """Turns examples into token ids; the base of the four encoders.

    Args:
        tokenizer: the model's fast tokenizer.

    Attributes:
        name: the name used in checkpoints.
        columns: {name: (kind, dtype; None: `id_type`)} of what the token cache stores in addition to the ids, see
            `data.columns`: attributes of the encoded example, or of the example itself.
        lead: text put before every text.
        backend: the tokenizer's `backend_tokenizer`.
        vocabulary: {token: id}.
        counts: how often something was cut to fit, by what was cut.
    """

    name, columns, lead = "", {}, ""

    def __init__(self, tokenizer):
        self.backend, self.vocabulary, self.counts = tokenizer.backend_tokenizer, tokenizer.get_vocab(), Counter()

    def encode(self, task, example):
        """Encode one example.

        Args:
            task: the example's task, in the encoder's form (`data.task.FORMS`).
            example: an example in that form.

        Returns:
            its `EncodedExample`.
        """
        ((_, encoded),) = self.encode_all(task, [example])
        return encoded

    def encode_all(self, task, examples):
        """Yield (example, its `EncodedExample`), holding at most `CHUNK` of them in memory."""
        examples = iter(examples)
        while chunk := list(islice(examples, CHUNK)):
            texts = [self.texts(example) for example in chunk]
            pieces = iter(self.tokenize([text for own in texts for text in own]))
            for example, own in zip(chunk, texts):
                yield example, self.assemble(task, example, [next(pieces) for _ in own])

    def tokenize(self, texts):
        """A list of ids for each text, stripped and prefixed with `lead`; special tokens spelled in it stay text."""
        return stripped_ids(self.backend, texts, self.lead)

    def texts(self, example):
        """The list of texts that an example is made of."""
        raise NotImplementedError

    def assemble(self, task, example, pieces):
        """The `EncodedExample` of an example, given the ids of each of its texts."""
        raise NotImplementedError

    @property
    def id_type(self):
        """The smallest integer type that holds every id."""
        return "u2" if max(self.vocabulary.values()) < 1 << 16 else "u4"

    def settings(self, task):
        """Everything besides the examples and the tokenizer that determines the ids, serialisable as json."""
        raise NotImplementedError
