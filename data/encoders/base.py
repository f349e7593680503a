"""The interface of all encoders: `encode(task, example)` turns an example into token ids.

    markers          spans with a special token before each                     train.py, train_vlm.py
    question_answer  context, question, answer                                  train_lifelong.py
    sentence_pair    [CLS] a [SEP] b [SEP], and a class or a score               train_camtl.py
    text_to_text     a source for the encoder, a target for the decoder         train_t5.py

What an encoder makes of a whole split lies in the token cache (`data.token_cache`).
"""

from collections import Counter
from dataclasses import dataclass
from itertools import islice

from versatile.data.plain_text import stripped_ids

CHUNK = 2000
"""Examples tokenised in one call: a tokenizer's own records of a text take many times the room of its ids."""


@dataclass(slots=True)
class EncodedExample:
    """One example as token ids.

    Attributes:
        ids: token ids of what the model reads.
        types: token-type ids, as many, or None where the encoder has none.
        prompt_length: how many of the ids stand before the target; they carry no loss.
        label: what is to be predicted beside the ids behind the prompt. markers: None. question_answer: the id behind
            the last one. sentence_pair: a class id or a score, NaN where it is not known. text_to_text: the target's
            ids, or None.
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
        name: as checkpoints call it.
        columns: {name: (kind, type of its numbers; None: `id_type`)} of what the token cache keeps beside the ids, see
            `data.columns`: attributes of the encoded example, or of the example itself.
        lead: what stands before every text.
        backend: the tokenizer's `backend_tokenizer`.
        vocabulary: {token: id}.
        counts: how often something was cut to fit, by what was cut.
    """

    name, columns, lead = "", {}, ""

    def __init__(self, tokenizer):
        self.backend, self.vocabulary, self.counts = tokenizer.backend_tokenizer, tokenizer.get_vocab(), Counter()

    def encode(self, task, example):
        """The `EncodedExample` of an example.

        Args:
            task: the example's task, in the encoder's form (`data.task.FORMS`).
            example: one of that form.
        """
        ((_, encoded),) = self.encode_all(task, [example])
        return encoded

    def encode_all(self, task, examples):
        """Yield (example, its `EncodedExample`); memory holds `CHUNK` of them."""
        examples = iter(examples)
        while chunk := list(islice(examples, CHUNK)):
            texts = [self.texts(example) for example in chunk]
            pieces = iter(self.tokenize([text for own in texts for text in own]))
            for example, own in zip(chunk, texts):
                yield example, self.assemble(task, example, [next(pieces) for _ in own])

    def tokenize(self, texts):
        """A list of ids for each text, which is stripped and gets `lead`; a special token spelled in it stays text."""
        return stripped_ids(self.backend, texts, self.lead)

    def texts(self, example):
        """The texts that an example is made of, a list."""
        raise NotImplementedError

    def assemble(self, task, example, pieces):
        """The `EncodedExample` of an example and the ids of each of its texts."""
        raise NotImplementedError

    @property
    def id_type(self):
        """The smallest type of numbers that holds every id."""
        return "u2" if max(self.vocabulary.values()) < 1 << 16 else "u4"

    def settings(self, task):
        """Whatever decides the ids beside the examples and the tokenizer, as json can tell it."""
        raise NotImplementedError
