"""The settings and the cost of a sequence's training: the part of matrix.json by which runs are compared."""

import json
from pathlib import Path

from versatile.lifelong import sequence
from versatile.utils.errors import UserError

METRICS = "training_metrics.json"
# Flags that say where and how a run was trained, but do not define the experiment.
_INCIDENTAL = {*sequence.FREE, *sequence.PRECISION, "seed", "data_dir", "own_tasks", "teacher_dir", "train_teachers",
               "memory_mib"}  # fmt: skip


def decisive_flags(known):
    """{flag: value} of the flags that make two runs different experiments; the seed does not.

    Args:
        known: `Namespace` of a run's flags.
    """
    return decisive_settings(vars(known))


def decisive_settings(flags):
    """The entries of {flag: value} that `decisive_flags` keeps, of a file of any version as well."""
    decisive = {flag: value for flag, value in flags.items() if flag not in _INCIDENTAL}
    if definitions := decisive.get("task_definitions"):
        # Where the rows lie decides nothing.
        decisive["task_definitions"] = [{k: v for k, v in task.items() if k != "source"} for task in definitions]
    return decisive


def make_record(folder, known):
    """A run's record in matrix.json, apart from its scores.

    Args:
        folder: the sequence's directory.
        known: `Namespace` of its flags.

    Returns:
        dict(seed, settings, seconds, other_seconds, peak_memory_mb, stored_bytes): the decisive flags; the time of all
        optimizer steps, including the teachers'; the time that the strategy spent between the stages' steps, on drawing
        samples or on what it keeps of a task; the peak memory of any stage; the most bytes that had to be kept after a
        stage: trained weights, the strategy's state and samples. None where an older run did not record a value.
    """
    reports = [read_report(sequence.stage_directory(folder, stage)) for stage in sequence.stages(known)]
    teachers = [read_report(teacher) for report in reports for teacher in report.get("teachers", ())]
    seconds = [report.get("seconds") for report in (*reports, *teachers)]
    other = [report.get("after_task_seconds") for report in reports]
    # Only strategies that draw samples record the time of it.
    other += [report.get("generation_seconds", 0) for report in reports]
    memory = [report.get("peak_memory_mb") for report in (*reports, *teachers)]
    stored = [report.get("stored_bytes") for report in reports]
    return dict(seed=known.seed, settings=decisive_flags(known),
                seconds=None if None in seconds else sum(seconds),
                other_seconds=None if None in other else round(sum(other), 1),
                peak_memory_mb=None if None in memory else max(memory),
                stored_bytes=None if None in stored else max(stored))  # fmt: skip


def read_report(folder):
    """The training_metrics.json of a stage or a teacher, or {} if it is missing or unusable."""
    try:
        report = json.loads((Path(folder) / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def tasks_learned(folder):
    """Names of the tasks that a stage's model has been trained on, or None if its files do not say."""
    stage = read_report(folder).get("task")
    try:
        known = sequence.read_flags(Path(folder) / "run.json")
    except UserError:
        return None
    tasks_of = sequence.stages(known)
    order = list(tasks_of)
    if known.unbound or stage not in order:
        return None
    return [name for other in order[: order.index(stage) + 1] for name in tasks_of[other]]


def read_records(folder, summary):
    """The records of the runs in a matrix.json; an older file's are made from the run in the same directory, if any.

    Args:
        folder: the directory of the matrix.json.
        summary: its contents.

    Returns:
        a list, one record per run; {} where nothing is known.
    """
    if "records" in summary:
        return [record | dict(settings=decisive_settings(record["settings"])) if record.get("settings") else record
                for record in summary["records"]]  # fmt: skip
    path = Path(folder) / "run.json"
    if len(summary["runs"]) > 1 or not path.is_file():
        return [{} for _ in summary["runs"]]
    try:
        return [make_record(folder, sequence.read_flags(path))]
    except UserError:
        return [{}]


def measure_stored_bytes(folder, strategy):
    """Bytes that a stage leaves for the next one: its trained weights, the strategy's state and the kept samples."""
    files = [sequence.find_weights(folder), strategy.state_file and Path(folder) / strategy.state_file]
    return sum(path.stat().st_size for path in files if path and path.is_file()) + strategy.kept_bytes()
