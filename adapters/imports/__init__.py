"""Foreign formats and our own older format, one file each."""

import os


def foreign_format(directory):
    """Name of the file in this folder that reads a directory written by foreign code, or None; no weights are read.

    "vlm": pytorch_model.bin, and the original VLM code's tokens in added_tokens.json. Checkpoints of the published
    HyperFormer and CA-MTL code can be recognised only by the names of their weights (hyperformer.py, camtl.py).
    """
    tokens = os.path.join(directory, "added_tokens.json")
    if os.path.isfile(os.path.join(directory, "pytorch_model.bin")) and os.path.isfile(tokens):
        with open(tokens, "rb") as file:
            return "vlm" if b"<bos_dial>" in file.read() else None
    return None
