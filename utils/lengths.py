"""Lengths of sequences, and the label of a position without a loss."""

# Lengths are rounded up to a multiple of this: fewer shapes, so fewer kernels to prepare.
LENGTH_MULTIPLE = 8
# The label that PyTorch's and transformers' losses leave out.
IGNORE = -100


def round_up(length):
    """A length, or an array or tensor of lengths, rounded up to a multiple of `LENGTH_MULTIPLE`."""
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
