"""What is added to a backbone: adapters, task embeddings, and the files that hold them.

Knows tensors and modules; never reads a data set and never parses flags.
"""
