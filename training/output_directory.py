"""--output_dir of a new run: refused if it holds anything else, cleared with --overwrite_output_dir."""

import shutil
from pathlib import Path

from versatile.training.runs import Run, stored_record
from versatile.utils.errors import UserError
from versatile.utils.files import check_creatable, remove_leftovers

# Files written by runs. All other files are kept.
WRITTEN = ("metrics.json", "parameters.json", "data_seen.*", "learning_curve.png", "events*", "*_results.*",
           "*.safetensors", "*config.json", "tokenizer*", "vocab.txt", "special_tokens_map.json", "*_test_iter_*.tsv",
           "submission/*.tsv", "checkpoints/step_*", "checkpoint-*", "backbone", "shape", "eval_outputs",
           "test_outputs")  # fmt: skip


def check_output_directory(directory, script, overwrite=None, needed=()):
    """Raise a `UserError` if a new run cannot be written there. Nothing is written or removed here.

    Args:
        directory: --output_dir.
        script: the training script; runs of other scripts are never removed.
        overwrite: --overwrite_output_dir; None if the script does not have the flag.
        needed: [(location, path)] of files the run starts from, which must not be removed.
    """
    folder = Path(directory)
    check_creatable(folder, "--output_dir")
    if not (folder / "run.json").exists() or not overwrite:
        Run.refuse_taken(folder, can_overwrite=overwrite is not None)
        return
    if str(stored_record(folder).get("command", "")).split()[:1] != [script]:
        raise UserError(
            f"this directory holds something other than a run of {script}, which --overwrite_output_dir would remove",
            location=f"--output_dir {directory}", remedy="name another directory, or remove it by hand",
        )  # fmt: skip
    for location, path in needed:
        if path and Path(path).exists() and Path(path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is inside the run that --overwrite_output_dir would remove", location=location,
                            remedy="name another --output_dir")  # fmt: skip


def clear_run(directory):
    """Remove a run: run.json and the files in `WRITTEN`, but nothing else."""
    folder = Path(directory)
    if not (folder / "run.json").exists():
        return
    remove_leftovers(folder)
    # run.json goes first, so that what a kill leaves behind is no longer a run.
    (folder / "run.json").unlink()
    for pattern in WRITTEN:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
