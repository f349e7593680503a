"""Additions to a backbone: adapters, task embeddings, and the files that store them.

This package handles tensors and modules; it never reads a data set or parses flags.
"""
