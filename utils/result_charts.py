"""Charts of the results of many evaluations: what each method scores, and what it has to store for that."""

import math

from versatile.utils.plots import save_figure, start_figure
from versatile.utils.table import LARGEST, LOWER_IS_BETTER, in_words, label

# Distinguishable by colour-blind readers, too (seaborn's palette "colorblind", its yellow last).
COLOURS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#56b4e9", "#949494", "#fbafe4", "#ece133")


def can_be_drawn(value):
    """Whether a score has a place on an axis; others are shown as text alone."""
    return abs(value) <= LARGEST  # Not so for NaN.


def bar_chart(path, cells):
    """Bars of every task's headline score, one panel per task and one bar per method, as a PNG."""
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(cells.methods)}
    shown = [m for m in cells.methods if any(method == m for _, method in cells.of)]
    columns = min(3, len(cells.tasks))
    rows = math.ceil(len(cells.tasks) / columns)
    size = (max(4.6 * columns, 6), (1.1 + 0.34 * len(shown)) * rows + 0.2)
    figure, grid = start_figure(rows, columns, figsize=size, dpi=140, layout="constrained", squeeze=False)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axes in grid.flat[len(cells.tasks) :]:
        axes.set_visible(False)
    for i, (axes, task) in enumerate(zip(grid.flat, cells.tasks)):
        name = cells.headline(task)
        values = cells.values(task, name)
        draw_bars(axes, values, in_words(values), {method: colours[method] for method in shown})
        better = " (lower is better)" if name in LOWER_IS_BETTER else ""
        axes.set_title(f"{task}: {name}{better}", fontsize=11, fontweight="bold", loc="left")
        names = [label(m) for m in shown] if i % columns == 0 else [""] * len(shown)
        axes.set_yticks(range(len(shown)), names, fontsize=10)
    save_figure(path, figure)


def draw_bars(axes, values, texts, colours, deviations=None):
    """One panel: a horizontal bar and its number for each method, or words if it has no result.

    Args:
        values: {method: number}; methods whose number cannot be drawn have no bar.
        texts: {method: the number as text}.
        colours: {method: colour} of all methods, from the top down.
        deviations: {method: half the length of its error bar}.
    """
    finite = {method: value for method, value in values.items() if can_be_drawn(value)}
    deviations = deviations or {}
    ends = {method: max(value, 0) + deviations.get(method, 0) for method, value in finite.items()}
    starts = [min(value, 0) - deviations.get(method, 0) for method, value in finite.items()]
    longest = max((*ends.values(), *(-start for start in starts)), default=0) or 1
    for y, method in enumerate(colours):
        axes.barh(y, finite.get(method, 0), height=0.72, color=colours[method])
        if method in deviations:
            axes.errorbar(finite[method], y, xerr=deviations[method], color="0.25", lw=1.2, capsize=3)
        grey = {} if method in values else {"color": "0.6"}
        axes.annotate(texts.get(method, "no result"), (ends.get(method, 0), y), xytext=(4, 0),
                      textcoords="offset points", va="center", fontsize=10, **grey)  # fmt: skip
    axes.set_xlim(min((0, *starts)) * 1.05, 1.22 * longest)
    axes.set_ylim(len(colours) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    quiet_axes(axes, "x")
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color("0.6")


def quiet_axes(axes, grid="both"):
    """The style of all charts: a pale grid behind the data, small grey numbers, no frame above and on the right."""
    axes.grid(axis=grid, color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis=grid, labelsize=8, colors="0.4")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def tradeoff_chart(path, cells):
    """Every task's headline score against the parameters that a method stores for the task, as a PNG.

    A task is shown only if it has two methods of different sizes.

    Returns:
        whether there was a task to show; otherwise nothing is written.
    """
    points = {task: _stored_and_scored(cells, task) for task in cells.tasks}
    points = {task: methods for task, methods in points.items() if len({stored for stored, _ in methods.values()}) > 1}
    if not points:
        return False
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(cells.methods)}
    columns = min(3, len(points))
    rows = math.ceil(len(points) / columns)
    size = (max(5.4 * columns, 6.5), 3.4 * rows)
    figure, grid = start_figure(rows, columns, figsize=size, dpi=140, layout="constrained", squeeze=False)
    for axes in grid.flat[len(points) :]:
        axes.set_visible(False)
    for axes, (task, methods) in zip(grid.flat, points.items()):
        _points(axes, methods, colours)
        name = cells.headline(task)
        better = " (lower is better)" if name in LOWER_IS_BETTER else ""
        axes.set_title(f"{task}: {name}{better} against stored parameters", fontsize=11, fontweight="bold", loc="left")
    save_figure(path, figure)
    return True


def _stored_and_scored(cells, task):
    """{method: (parameters that it trains and stores for a task, headline score)}."""
    scores = cells.values(task, cells.headline(task))
    stored = {method: cells.of[task, method].trained for method in scores}
    return {m: (stored[m], score) for m, score in scores.items() if stored[m] and can_be_drawn(score)}


def _points(axes, points, colours):
    """One panel: a point and its name for each method, methods of one size and score by one name."""
    from matplotlib.ticker import EngFormatter

    named = {}
    for method, point in points.items():
        axes.plot(*point, "o", ms=9, color=colours[method], alpha=0.9)
        named.setdefault(point, []).append(label(method))
    largest = max(stored for stored, _ in points.values())
    for (stored, score), names in named.items():
        left = stored == largest
        axes.annotate(" = ".join(names), (stored, score), xytext=(-9 if left else 9, 0), textcoords="offset points",
                      ha="right" if left else "left", va="center", fontsize=10)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    smallest = min(stored for stored, _ in points.values())
    axes.set_xlim(smallest / 2.5, largest * 2.5)
    scores = [score for _, score in points.values()]
    room = 0.18 * (max(scores) - min(scores) or 1)
    axes.set_ylim(min(scores) - room, max(scores) + room)
    axes.set_xlabel("parameters stored for the task", fontsize=9)
    quiet_axes(axes)
