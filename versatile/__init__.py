"""Versatile: one pretrained language model learns many tasks through small additions.

    import versatile

    run = versatile.train(dict(task="nlg", dataset_path=versatile.SAMPLES / "nlg.json", model_checkpoint="smollm2",
                               method="lora", n_epochs=1))
    model = versatile.load(run)
    model.generate_text("nlg", "name[The Punter], food[Italian]")

The rooms `utils`, `data`, `adapters`, `training` and `lifelong` are sub-packages, and so is `scripts`. In a checkout
they are next to this folder; installed, they are in it. Importing the package loads none of them.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "adapters").is_dir() and (_CHECKOUT / "train.py").is_file():
    __path__.append(str(_CHECKOUT))

_INTERFACE = {
    "load": "versatile.api",
    "train": "versatile.api",
    "evaluate": "versatile.api",
    "combine": "versatile.api",
    "attach": "versatile.adapters.attach",
    "UserError": "versatile.utils.errors",
    "SAMPLES": "versatile.data.files",
}
__all__ = [*_INTERFACE]


def __getattr__(name):
    if name not in _INTERFACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_INTERFACE[name]), name)


def __dir__():
    return sorted([*globals(), *_INTERFACE])
