"""Formats that others wrote, and ours of before: one file for each."""

import os


def foreign_format(directory):
    """The name of the file here that reads a directory of foreign code, or None; no weights are read.

    "vlm": pytorch_model.bin, and the original VLM code's tokens in added_tokens.json. What the published codes of
    HyperFormer and CA-MTL wrote is told by the names of its weights alone (hyperformer.py, camtl.py).
    """
    tokens = os.path.join(directory, "added_tokens.json")
    if os.path.isfile(os.path.join(directory, "pytorch_model.bin")) and os.path.isfile(tokens):
        with open(tokens, "rb") as file:
            return "vlm" if b"<bos_dial>" in file.read() else None
    return None
