"""--output_dir of a new run: refused where something else lies there, cleared with --overwrite_output_dir."""

import shutil
from pathlib import Path

from versatile.training.runs import Run, stored
from versatile.utils.errors import UserError
from versatile.utils.files import could_be_made, remove_leftovers

# What runs write. Whatever else lies beside it stays.
WRITTEN = ("metrics.json", "parameters.json", "data_seen.*", "learning_curve.png", "events*", "*_results.*",
           "*.safetensors", "*config.json", "tokenizer*", "vocab.txt", "special_tokens_map.json", "*_test_iter_*.tsv",
           "submission/*.tsv", "checkpoints/step_*", "checkpoint-*", "backbone", "shape", "eval_outputs",
           "test_outputs")  # fmt: skip


def check_output_directory(directory, script, overwrite=None, needed=()):
    """A `UserError` where a new run cannot be written. Nothing is written or removed here.

    Args:
        directory: --output_dir.
        script: the one that trains; the runs of others are never removed.
        overwrite: --overwrite_output_dir, of a script that has the flag.
        needed: [(location, path)] of what the run starts from, which must not be removed.
    """
    folder = Path(directory)
    could_be_made(folder, "--output_dir")
    if not (folder / "run.json").exists():
        return
    if not overwrite:
        Run.refuse_taken(folder, can_overwrite=overwrite is not None)
    if str(stored(folder).get("command", "")).split()[:1] != [script]:
        raise UserError(
            f"this directory holds something else than a run of {script}, which --overwrite_output_dir would remove",
            location=f"--output_dir {directory}", remedy="name another directory, or remove it by hand",
        )  # fmt: skip
    for location, path in needed:
        if path and Path(path).exists() and Path(path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} lies in the run that --overwrite_output_dir would remove", location=location,
                            remedy="name another --output_dir")  # fmt: skip


def clear_run(directory):
    """Remove a run: what is `WRITTEN`, and nothing else that may lie beside it."""
    folder = Path(directory)
    if not (folder / "run.json").exists():
        return
    remove_leftovers(folder)
    # First: what a kill leaves is not a run any more.
    (folder / "run.json").unlink()
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
