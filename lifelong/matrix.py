"""The result of a sequence of tasks: the matrix of every task's score after learning every task.

With T tasks, R[i][j] is the score of task j after learning tasks 1 … i (Lopez-Paz & Ranzato 2017, GEM; Chaudhry et
al. 2018, Riemannian Walk). Each task is scored by its own metric, from 0 to 100.
"""

import math
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from versatile.utils import schema
from versatile.utils.errors import UserError, brief
from versatile.utils.plots import save_figure, start_figure

# The costs of a method, {key of a record: (column heading or axis label, size of its unit)}: in tables and in plots.
TABLE_COSTS = {
    "seconds": ("seconds", 1),
    "other_seconds": ("seconds between tasks", 1),
    "peak_memory_mb": ("peak MB", 1),
    "stored_bytes": ("stored MB", 1e6),
}
AXIS_COSTS = {
    "seconds": ("optimizer steps, minutes", 60),
    "peak_memory_mb": ("peak memory, GB", 1000),
    "stored_bytes": ("stored for later tasks, MB", 1e6),
}


@dataclass
class Matrix:
    """R of one run.

    Attributes:
        tasks: the names of the T tasks, in the order they were learned.
        rows: T lists of T scores; None where a task was not scored. NaN is read as None.
        before: T scores before any training, with None where not scored; or None.
        metrics: the names of the T tasks' metrics, or None.
        inferred: `InferredTasks`, or None.
        alone: T scores of models that learned only that task, with None where not known; or None.
    """

    tasks: list
    rows: list
    before: list | None = None
    metrics: list | None = None
    inferred: object = None
    alone: list | None = None

    def __post_init__(self):
        number = len(self.tasks)
        if not number or len(set(self.tasks)) < number:
            raise UserError(f"the tasks are {brief(self.tasks)}", expected="at least one task, each once")
        lists = [self.rows, *self.rows, *(x for x in (self.before, self.metrics, self.alone) if x is not None)]
        if any(len(items) != number for items in lists):
            raise UserError(f"the matrix of {number} tasks has lists of {sorted({len(x) for x in lists})} items",
                            expected=f"{number} rows of {number} scores")  # fmt: skip
        self.rows = [_scores(row) for row in self.rows]
        self.before, self.alone = (None if some is None else _scores(some) for some in (self.before, self.alone))


@dataclass
class InferredTasks:
    """The same run evaluated without knowing the task of each question.

    Attributes:
        by: how the task is inferred (--infer_task).
        scores: the `Matrix` of the scores.
        accuracy: the `Matrix` of the percentages of each task's questions whose task was inferred correctly.
    """

    by: str
    scores: Matrix
    accuracy: Matrix


def _scores(values):
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            raise UserError(f"a score is {brief(value)}", expected="a number, or None where a task was not scored")
    return [None if value is None or math.isnan(value) else float(value) for value in values]


# --- numbers ---------------------------------------------------------------------------------------------


def average_accuracy(matrix):
    """ACC = 1/T · Σ_j R[T][j]: the mean score of all tasks at the end. None if one was not scored."""
    return _mean(matrix.rows[-1])


def backward_transfer(matrix):
    """BWT = 1/(T−1) · Σ_{j<T} (R[T][j] − R[j][j]): the effect of later tasks on earlier ones; negative: forgetting.

    None with one task, or if a score is missing.
    """
    last = len(matrix.tasks) - 1
    return _mean([_difference(matrix.rows[last][j], matrix.rows[j][j]) for j in range(last)])


def forward_transfer(matrix):
    """FWT = 1/(T−1) · Σ_{j>1} (R[j−1][j] − b[j]): the effect of earlier tasks on later ones not yet learned.

    b, `Matrix.before`, holds the scores of the model before the first task; Lopez-Paz & Ranzato use those of random
    weights. None with one task, or if a score is missing.
    """
    before = matrix.before or [None] * len(matrix.tasks)
    return _mean([_difference(matrix.rows[j - 1][j], before[j]) for j in range(1, len(matrix.tasks))])


def forgetting(matrix):
    """F = 1/(T−1) · Σ_{j<T} (max_{j≤i<T} R[i][j] − R[T][j]): how far tasks fell from their best since learned.

    From −100 to 100, negative if they improved. SAPT's F.Ra; Chaudhry et al. 2018 start i at the first task, which
    differs only if a task is best before it is learned. Missing scores are ignored. None with one task, or if R[j][j]
    or R[T][j] is missing.
    """
    last = len(matrix.tasks) - 1
    falls = []
    for j in range(last):
        best = [row[j] for row in matrix.rows[j:last] if row[j] is not None]
        falls.append(None if matrix.rows[j][j] is None else _difference(max(best), matrix.rows[last][j]))
    return _mean(falls)


def average_so_far(matrix):
    """A_t = 1/t · Σ_{j≤t} R[t][j], the mean score of the tasks learned so far, after each of the T tasks."""
    return [_mean(row[: t + 1]) for t, row in enumerate(matrix.rows)]


def forgetting_so_far(matrix):
    """F of the first t tasks, as if the sequence had ended there, for t = 1 … T; None for the first."""
    return [forgetting(first_tasks(matrix, t)) for t in range(1, len(matrix.tasks) + 1)]


def first_tasks(matrix, number):
    """The `Matrix` of the first `number` tasks of a sequence."""
    return Matrix(matrix.tasks[:number], [row[:number] for row in matrix.rows[:number]])


NUMBERS = {
    "average_accuracy": average_accuracy,
    "backward_transfer": backward_transfer,
    "forward_transfer": forward_transfer,
    "forgetting": forgetting,
}


def transfer_to_new_tasks(matrix):
    """SAPT's FWT = 1/T · Σ_j (R[j][j] − s[j]): the effect of earlier tasks on a task when it is learned.

    s, `Matrix.alone`, holds the scores of models that learned only that task. GEM's FWT, `forward_transfer`, looks at
    tasks before they are learned instead. None if a score is missing.
    """
    alone = matrix.alone or [None] * len(matrix.tasks)
    return _mean(_difference(matrix.rows[j][j], alone[j]) for j in range(len(matrix.tasks)))


def backward_transfer_of_all(matrix):
    """SAPT's BWT = 1/T · Σ_j (R[T][j] − R[j][j]): `backward_transfer` times (T−1)/T, as the last task's term is 0."""
    return _mean(_difference(matrix.rows[-1][j], matrix.rows[j][j]) for j in range(len(matrix.tasks)))


# Names used in papers: SAPT's AP and F.Ra (O-LoRA's and TRACE's average accuracy is AP), and SAPT's FWT and BWT, which
# differ from those above.
PUBLISHED = {
    "AP": average_accuracy,
    "F.Ra": forgetting,
    "FWT (SAPT)": transfer_to_new_tasks,
    "BWT (SAPT)": backward_transfer_of_all,
}


def _difference(a, b):
    return None if a is None or b is None else a - b


def _mean(values):
    """The mean; None if there are no values or one of them is None."""
    values = list(values)
    return None if not values or None in values else math.fsum(values) / len(values)


def over_seeds(values):
    """(mean, standard deviation) of a number over runs with different seeds; None as in `_mean`.

    It is the sample standard deviation (over n − 1), and None for one run.
    """
    mean = _mean(values)
    if mean is None or len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


# --- output ----------------------------------------------------------------------------------------------


def short_name(task):
    """A task's name without the prefix of its benchmark, as fifteen names have to fit into a plot."""
    return re.sub(r"^(task\d+_|cl\.|trace\.)", "", task)


def summary(matrices, seeds=None):
    """Everything about one or more runs of the same sequence, for `utils.files.write_json`.

    Returns:
        ``{"tasks", "metrics", "seeds", "runs": [{"rows", "before", "alone", "average_accuracy", …, "AP", …}], "mean":
        {"rows", "average_accuracy", …, "AP", …}, "sd": the same}``; unknown values are None.
    """
    _same(matrices)
    every = NUMBERS | PUBLISHED
    runs = [{"rows": m.rows, "before": m.before, "alone": m.alone} | {name: f(m) for name, f in every.items()}
            for m in matrices]  # fmt: skip
    size = range(len(matrices[0].tasks))
    cells = [[over_seeds([m.rows[i][j] for m in matrices]) for j in size] for i in size]
    numbers = {name: over_seeds([run[name] for run in runs]) for name in every}
    result = {"tasks": matrices[0].tasks, "metrics": matrices[0].metrics, "seeds": seeds, "runs": runs}
    if inferred := [m.inferred for m in matrices if m.inferred]:
        result["inferred"] = dict(by=inferred[0].by, accuracy=summary([i.accuracy for i in inferred]),
                                  **summary([i.scores for i in inferred]))  # fmt: skip
    for at, name in enumerate(("mean", "sd")):
        rows = [[cell[at] for cell in row] for row in cells]
        result[name] = {"rows": rows} | {key: value[at] for key, value in numbers.items()}
    return result


_SCORES = schema.ListOf(schema.Number(null=True), null=True)
_ROWS = schema.ListOf(schema.ListOf(schema.Number(null=True)), required=True)
_COSTS = {name: schema.Number(null=True) for name in TABLE_COSTS}
_SUMMARY = schema.Record(fields=dict(
    tasks=schema.ListOf(schema.Text(), 1, required=True), metrics=schema.ListOf(schema.Text(), required=True),
    seeds=schema.ListOf(schema.Whole(null=True), null=True),
    runs=schema.ListOf(schema.Record(fields=dict(rows=_ROWS, before=_SCORES, alone=_SCORES)), 1, required=True),
    records=schema.ListOf(schema.Record(fields=dict(settings=schema.MapOf(null=True), **_COSTS))),
    mean=schema.Record(fields=dict(rows=_ROWS), required=True),
    sd=schema.Record(fields=dict(rows=_ROWS), required=True),
))  # fmt: skip


def read_summary(folder):
    """The contents of a directory's matrix.json, as made by `summary`."""
    path = Path(folder) / "matrix.json"
    if not path.is_file():
        raise UserError("no matrix.json here", location=folder, expected="a directory that evaluate_lifelong.py wrote",
                        remedy="run evaluate_lifelong.py --output_dir first")  # fmt: skip
    matrix = schema.validate(schema.read_json_object(path, "evaluate again"), _SUMMARY, path, "evaluate again")
    number, runs = len(matrix["tasks"]), len(matrix["runs"])
    squares = [part["rows"] for part in (*matrix["runs"], matrix["mean"], matrix["sd"])]
    is_complete = all(len(rows) == number and all(len(row) == number for row in rows) for rows in squares)
    lists = [matrix["metrics"], *(run[key] for run in matrix["runs"] for key in ("before", "alone") if run.get(key))]
    is_complete &= all(len(one) == number for one in lists)
    is_complete &= all(len(matrix[key]) == runs for key in ("seeds", "records") if matrix.get(key) is not None)
    if not is_complete or any(name not in matrix["mean"] for name in NUMBERS):
        raise UserError("it lacks some of its parts", location=path, expected="a file of evaluate_lifelong.py",
                        remedy="evaluate again")  # fmt: skip
    return matrix


def read_single_tasks(folders, names, metric, evaluation=None):
    """Scores of models that learned one task each: a list in the order of the tasks, with None where there is none.

    Args:
        folders: directories with a matrix.json that evaluate_lifelong.py wrote for a sequence of one task.
        names, metric: the tasks of the sequence and the names of their metrics.
        evaluation: dict(split, limit, ref1, decoding) with which the sequence is evaluated; None: not compared.

    Raises:
        UserError: a sequence has several tasks, a task that is not among these, another metric, or was evaluated with
            other flags.
    """
    scores = {name: [] for name in names}
    for folder in folders:
        results, location = read_summary(folder), f"--single_task {folder}"
        (task, *others), kinds = results["tasks"], results["metrics"] or [None]
        if others or task not in scores or kinds[0] != metric[names.index(task)]:
            raise UserError(f"it is of {', '.join(results['tasks'])} by {kinds[0]}", location=location,
                            expected=f"a sequence of a single task, one of {', '.join(names)}, by the same score",
                            remedy="train the task by itself, and evaluate it: --tasks TASK")  # fmt: skip
        # Files of older versions do not say it.
        if differ := [key for key, value in (evaluation or {}).items() if key in results and results[key] != value]:
            raise UserError(f"it was evaluated with {differ[0]} {results[differ[0]]}", location=location,
                            expected=f"{differ[0]} {evaluation[differ[0]]}, as here",
                            remedy="evaluate both with the same flags of evaluate_lifelong.py")  # fmt: skip
        scores[task].append(results["mean"]["rows"][0][0])
    # Several of one task are its seeds.
    return [_mean(values) if values else None for values in scores.values()] if folders else None


def _same(matrices):
    if not matrices:
        raise UserError("no runs to summarise", expected="the matrix of at least one")
    for matrix in matrices[1:]:
        if matrix.tasks != matrices[0].tasks or matrix.metrics != matrices[0].metrics:
            raise UserError(f"runs of {matrices[0].tasks} and of {matrix.tasks}",
                            expected="runs of one sequence of tasks, with the same scores",
                            remedy="summarise each order of the tasks by itself")  # fmt: skip


def markdown(matrices, digits=1):
    """The mean matrix as a markdown table, ± sd over seeds, and below it the four summary numbers and those that
    papers report."""
    statistics = summary(matrices)
    tasks, names = statistics["tasks"], statistics["metrics"]
    heads = [f"{task} ({name})" if names else task for task, name in zip(tasks, names or tasks)]
    lines = [f"| after | {' | '.join(heads)} |", f"|---|{'---:|' * len(tasks)}"]
    for task, means, deviations in zip(tasks, statistics["mean"]["rows"], statistics["sd"]["rows"]):
        cells = (format_number(mean, sd, digits) for mean, sd in zip(means, deviations))
        lines.append(f"| {task} | {' | '.join(cells)} |")
    for names in (NUMBERS, PUBLISHED):
        lines += ["", f"| {' | '.join(name.replace('_', ' ') for name in names)} |", "|" + "---:|" * len(names)]
        cells = (format_number(statistics["mean"][n], statistics["sd"][n], digits) for n in names)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def side_by_side(matrices, digits=1):
    """A markdown table of the final scores with the task of a question known and inferred, or ""."""
    statistics = summary(matrices)
    if not (inferred := statistics.get("inferred")):
        return ""
    evaluations = {"known": statistics, "inferred": inferred, "inferred rightly, %": inferred["accuracy"]}
    heads = [*statistics["tasks"], "average"]
    lines = [f"| task | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for name, part in evaluations.items():
        ends = [(part[kind]["rows"][-1] + [part[kind]["average_accuracy"]]) for kind in ("mean", "sd")]
        lines.append(f"| {name} | {' | '.join(format_number(*cell, digits) for cell in zip(*ends))} |")
    return "\n".join([*lines, ""])


def format_number(mean, sd, digits):
    """A number, with ± its standard deviation if there is one; a dash for None."""
    if mean is None:
        return "–"
    text = f"{mean:.{digits}f}".replace("-", "−")
    return text if sd is None else f"{text} ± {sd:.{digits}f}"


def heat_map(path, matrices, title):
    """The mean matrix as a PNG: a row for each task learned, a column for each task scored; 0 is pale, 100 dark.

    Scores of tasks not learned yet are printed in grey, missing scores as a dash. The four summary numbers are printed
    below the matrix.

    Args:
        path: file of the PNG.
        matrices: one or more runs of the same sequence; with several, each cell also shows its deviation.
        title: printed above.
    """
    statistics = summary(matrices)
    number = len(statistics["tasks"])
    cell = 0.5 if number > COMPACT else 1.05
    width = max(4.8, cell * number + (3.4 if number > COMPACT else 2.2))
    figure, axes = start_figure(figsize=(width, min(cell, 0.62) * number + 2.3), dpi=150, layout="constrained")
    image = draw(axes, statistics)
    axes.set_ylabel("after learning", fontsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=0)
    # The numbers of letters that fit into a line of the title and of the caption.
    axes.set_title(textwrap.fill(title, int(7.5 * width)), fontsize=11, pad=10)
    axes.set_xlabel(_caption(statistics, int(13 * width)), fontsize=8, color="0.3", labelpad=8)
    save_figure(path, figure)


# With more than COMPACT tasks the cells are small: whole numbers, names cut off, deviations only in the table.
COMPACT, LONGEST = 8, 24


def draw(axes, statistics, named=True, headed=True):
    """Draw the mean matrix in the result of `summary` as a heat map on matplotlib's `axes`; returns the image.

    Args:
        named, headed: whether the rows and the columns have names.
    """
    number = len(statistics["tasks"])
    compact = number > COMPACT
    values = [[math.nan if mean is None else mean for mean in row] for row in statistics["mean"]["rows"]]
    image = axes.imshow(values, cmap="GnBu", vmin=0, vmax=100, aspect="auto")
    for i in range(number):
        for j in range(number):
            _cell(axes, i, j, statistics["mean"]["rows"][i][j], statistics["sd"]["rows"][i][j], compact)
    tasks = [textwrap.shorten(short_name(task).replace("_", " "), LONGEST, placeholder="…") if compact else task
             for task in statistics["tasks"]]  # fmt: skip
    scored = statistics["metrics"] and not compact
    columns = [f"{task}\n{name}" for task, name in zip(tasks, statistics["metrics"])] if scored else tasks
    slanted = {"rotation": 60 if compact else 30, "ha": "left", "rotation_mode": "anchor"} if number > 4 else {}
    size = 6.5 if compact else 8
    axes.set_xticks(range(number), columns if headed else [""] * number, fontsize=size, **slanted)
    axes.set_yticks(range(number), tasks if named else [""] * number, fontsize=size)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xticks([at - 0.5 for at in range(1, number)], minor=True)
    axes.set_yticks([at - 0.5 for at in range(1, number)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1 if compact else 2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    return image


def _cell(axes, i, j, mean, sd, compact):
    """Print a score into its cell, in grey if its task has not been learned yet."""
    size = 6.5 if compact else 9
    if mean is None:
        return axes.text(j, i, "–", ha="center", va="center", color="0.7", fontsize=size)
    learned = j <= i
    color = ("white" if mean > 68 else "black") if learned else ("0.85" if mean > 68 else "0.5")
    weight = "bold" if i == j else "normal"
    shown_sd = sd is not None and not compact
    axes.text(j, i, f"{mean:.{0 if compact else 1}f}".replace("-", "−"), ha="center",
              va="bottom" if shown_sd else "center", color=color, weight=weight, fontsize=size)  # fmt: skip
    if shown_sd:
        axes.text(j, i + 0.08, f"± {sd:.1f}", ha="center", va="top", color=color, fontsize=6.5)


def _caption(statistics, most):
    """The four summary numbers, in lines of at most `most` letters."""
    short = {"average_accuracy": "average", "backward_transfer": "backward transfer",
             "forward_transfer": "forward transfer", "forgetting": "forgetting"}  # fmt: skip
    parts = [f"{short[name]} {format_number(statistics['mean'][name], statistics['sd'][name], 1)}" for name in NUMBERS
             if statistics["mean"][name] is not None]  # fmt: skip
    runs = f"{len(statistics['runs'])} seeds" if len(statistics["runs"]) > 1 else ""
    lines, between = [""], "   ·   "
    for part in [*parts, *([runs] if runs else [])]:
        longer = between.join([*filter(None, lines[-1:]), part])
        lines[-1:] = [longer] if len(longer) <= most or not lines[-1] else [lines[-1], part]
    return "\n".join(lines)
