"""The command-line scripts: train, evaluate, combine_all, …; in a checkout they are at its root."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent.parent.parent)]
