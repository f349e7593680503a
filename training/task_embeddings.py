"""Task embeddings computed from the states of a T5 encoder."""

import numpy as np
import torch
from versatile.adapters.pooling import POOLINGS
from versatile.data.encoders.text_to_text import TextEncoder
from versatile.data.text_to_text import TextExample
from versatile.utils.devices import autocast
from versatile.utils.screen import align_columns


@torch.no_grad()
def task_embedding(model, tokenizer, texts, length, batch_size=32, pooling="mean", dtype=torch.float32):
    """The mean over texts of the pooled last hidden states of a T5 encoder.

    Args:
        model: a T5, in eval mode.
        tokenizer: its tokenizer.
        texts: input texts of one task, without its name as a prefix.
        length: maximum tokens of a text, including its end token.
        batch_size: texts encoded together; they are sorted by length.
        pooling: a key of `adapters.pooling.POOLINGS`.
        dtype: precision of the matrix products.

    Returns:
        float32 array [d_model].
    """
    device = next(model.parameters()).device
    total = torch.zeros(model.config.d_model, dtype=torch.float64)
    order, encoder = sorted(texts, key=len), TextEncoder(tokenizer, (length,))
    for start in range(0, len(order), batch_size):
        examples = (TextExample(text, None) for text in order[start : start + batch_size])
        rows = [encoded.ids for _, encoded in encoder.encode_all(None, examples)]
        batch = tokenizer.pad(dict(input_ids=rows), return_tensors="pt").to(device)
        with autocast(device, dtype):
            states = model.get_encoder()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        pooled = POOLINGS[pooling](states.last_hidden_state.float(), batch.attention_mask)
        total += pooled.double().sum(0).cpu()
    return (total / len(texts)).float().numpy()


def similarity_table(vectors):
    """Cosine similarities between task vectors, as a text table."""
    names = list(vectors)
    unit = np.stack([v / max(np.linalg.norm(v), 1e-12) for v in vectors.values()])
    rows = [[name, *(f"{value:.3f}" for value in row)] for name, row in zip(names, unit @ unit.T)]
    return align_columns([["cosine", *names], *rows], right=range(1, len(names) + 1))
