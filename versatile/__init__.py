"""Versatile: one pretrained language model learns many tasks by small additions.

The rooms `utils`, `data`, `adapters`, `training` and `lifelong` are sub-packages. In a checkout they lie beside this
folder, where the scripts are; installed, they lie in it.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "adapters").is_dir() and (_CHECKOUT / "train.py").is_file():
    __path__.append(str(_CHECKOUT))
