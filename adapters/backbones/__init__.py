"""Backbones: one file per family, and loading a model and its tokenizer by name."""
