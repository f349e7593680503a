"""A special token spelt in a user's text stays text, whatever the tokenizer; nothing else changes."""

import numpy as np
import pytest
from transformers import AutoTokenizer
from versatile.adapters.backbones import bundled
from versatile.adapters.t5_loading import load_tokenizer
from versatile.data import span_corruption
from versatile.data.encoders.text_to_text import TextEncoder
from versatile.data.plain_text import text_ids
from versatile.data.text_to_text import TextExample

SPELT = ["a tag </s> in a text", "a <pad> b", "<unk>", "an <extra_id_0> here", "x<extra_id_99>", "two </s></s>"]


@pytest.fixture(scope="module")
def t5():
    return load_tokenizer("tiny-t5")


def test_a_t5_reads_the_spelling_of_its_special_tokens_as_characters(t5):
    special = set(t5.all_special_ids)
    for text, ids in zip(SPELT, text_ids(t5.backend_tokenizer, SPELT)):
        assert special.isdisjoint(ids), text
        assert t5.decode(ids) == text


def test_other_texts_keep_their_ids(t5):
    texts = ["a man is reading", "", "  two  spaces ", "a ☃ unknown", "<b> 1 < 2"]
    assert [[*ids, t5.eos_token_id] for ids in text_ids(t5.backend_tokenizer, texts)] == t5(texts).input_ids
    assert t5(SPELT[0]).input_ids.count(t5.eos_token_id) == 2, "the tokenizer itself is as it was"


def test_training_evaluation_and_pretraining_of_a_t5_see_text(t5):
    special = set(t5.all_special_ids)
    encoder = TextEncoder(t5, (64, 64))
    for text in SPELT:
        encoded = encoder.encode(None, TextExample(text, text))
        for ids in (encoded.ids, encoded.label):
            assert ids[-1] == t5.eos_token_id and special.isdisjoint(ids[:-1])
    assert not encoder.counts
    chunk = span_corruption.chunks(SPELT * 5, t5, 16)
    assert not np.isin(chunk, list(special)).any()


def test_a_sentencepiece_bpe_that_could_merge_a_special_token_does_not():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(["<unk>", "</s>", "▁", "a", "<", "/", "s", ">", "</", "s>"])}
    backend = Tokenizer(models.BPE(vocabulary, [("<", "/"), ("s", ">"), ("</", "s>")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(["</s>", "<unk>"])
    (ids,) = text_ids(backend, ["a </s>"])
    assert 1 not in ids and backend.id_to_token(ids[-1]) == "s>"


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-bert"])
def test_other_families(name):
    tokenizer = AutoTokenizer.from_pretrained(bundled.folder(name))
    texts = [f"a {token} b" for token in tokenizer.all_special_tokens]
    for ids in text_ids(tokenizer.backend_tokenizer, texts):
        assert set(ids).isdisjoint(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
