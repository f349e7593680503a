"""Backbones: one file per family, and how a name becomes a model and its tokenizer."""
