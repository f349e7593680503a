"""User text to token ids: a special token spelt out in a text (``</s>``, ``<pad>``, ``<extra_id_7>``) stays text."""

import json

from tokenizers import Tokenizer

# serialised backend -> the same tokenizer without special tokens; a process uses few backends.
_PLAIN = {}


def text_ids(backend, texts):
    """A list of ids for each text, with nothing added.

    Args:
        backend: a fast tokenizer's `backend_tokenizer`.
        texts: a list of strings.
    """
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    try:
        ids = [piece.ids for piece in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = False
    # SentencePiece vocabularies also contain the special tokens as pieces; there the flag above does not help.
    special = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    wrong = [i for i, own in enumerate(ids) if not special.isdisjoint(own)]
    if wrong:
        again = _plain(backend).encode_batch_fast([texts[i] for i in wrong], add_special_tokens=False)
        for i, piece in zip(wrong, again):
            ids[i] = piece.ids
    return ids


def stripped_ids(backend, texts, lead):
    """`text_ids` of texts, stripped and prefixed with `lead`; a blank text has no ids.

    Args:
        lead: see `leading_space`.
    """
    stripped = [text.strip() for text in texts]
    ids = text_ids(backend, [lead + text for text in stripped])
    return [own if text else [] for own, text in zip(ids, stripped)]


def leading_space(tokenizer):
    """One space, unless the tokenizer puts a word boundary before the first word by itself (SentencePiece)."""
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))
    return "" if pieces and pieces[0].startswith("▁") else " "


def _plain(backend):
    """The same tokenizer without special tokens; their pieces keep their ids but match no text."""
    content = backend.to_str()
    if content not in _PLAIN:
        stored = json.loads(content)
        special = {token["content"] for token in stored["added_tokens"] if token["special"]}
        stored["added_tokens"] = [token for token in stored["added_tokens"] if not token["special"]]
        model = stored["model"]
        if model["type"] == "Unigram":
            # U+FFFF is not a character, so no text contains it.
            model["vocab"] = [[f"\uffff{i}" if piece in special else piece, score]
                              for i, (piece, score) in enumerate(model["vocab"])]  # fmt: skip
        elif model["type"] == "BPE":
            model["merges"] = [pair for pair in model["merges"] if _merged(pair) not in special]
        _PLAIN[content] = Tokenizer.from_str(json.dumps(stored))
    return _PLAIN[content]


def _merged(pair):
    return "".join(pair.split(" ", 1) if isinstance(pair, str) else pair)
