"""A user's own task whose data have moved, or that is evaluated on other data: what is read, and what is refused.

    python -m pytest -n 0 -q tests/test_moved_tasks.py
"""

import shutil

from scripts import done, run
from test_own_tasks import TINY, forget, jsonl, write  # noqa: F401


def trained(folder, data, *flags, script="train"):
    """A run of the task `mine`, whose data are in a folder."""
    task = "--task" if script == "train" else "--tasks"
    done(run(script, [task, f"mine={data}", *TINY, *flags, "--output_dir", folder], folder.parent / "log"))
    return folder


def test_a_resumed_run_reads_the_folder_that_its_task_names_now(tmp_path):
    data, log = write(tmp_path / "data"), tmp_path / "log"
    folder = trained(tmp_path / "run", data, "--max_steps", "1")
    changed, moved = (shutil.copytree(data, tmp_path / name) for name in ("changed", "moved"))
    (changed / "train.jsonl").write_text(jsonl([("another film", "pos")] * 12))
    result = run("train", ["--resume", folder, "--task", f"mine={changed}"], log)
    assert result.code == 2 and "the data have changed since this run was started" in result.err
    shutil.rmtree(data)
    done(run("train", ["--resume", folder, "--task", f"mine={moved}"], log))
