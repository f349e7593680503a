"""Telling a model of train_t5.py from others by its files, without loading a library."""

import json
from pathlib import Path


def recognised(directory):
    """Whether a directory holds a T5 that was trained for tasks: adapters, or a whole one whose config names them."""
    path = Path(directory)
    said = _read(path / "adapter_config.json")
    if said:
        return said.get("peft_type") == "VERSATILE_T5"
    return "versatile_t5" in _read(path / "config.json")


def _read(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
