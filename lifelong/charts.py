"""Plots of several methods on one sequence of tasks: matrices, scores and forgetting over time, bars, costs."""

import math
from itertools import takewhile

from versatile.lifelong.matrix import (
    AXIS_COSTS,
    COMPACT,
    average_so_far,
    draw,
    forgetting_so_far,
    format_number,
    over_seeds,
)
from versatile.utils.plots import save_figure, start_figure
from versatile.utils.result_charts import COLOURS, draw_bars, quiet_axes

MARKERS = "osD^vPX<>*hp"


def draw_charts(path, methods):
    """Write all plots of a comparison.

    Args:
        path: file of the matrices, after which the others are named.
        methods: {name: `compare.Method`}, in the order of display.

    Returns:
        paths of the files written.
    """
    methods = dict(zip(_without_common_start(list(methods)), methods.values()))
    styles = {name: _style(i) for i, name in enumerate(methods)}
    charts = {"": draw_matrices, "curves": draw_curves, "forgetting": draw_bar_panels, "scaling": draw_scaling,
              "cost": draw_costs}  # fmt: skip
    paths = [path.with_name(f"{path.stem}_{name}{path.suffix}") if name else path for name in charts]
    return [path for path, draw_chart in zip(paths, charts.values()) if draw_chart(path, methods, styles)]


def _without_common_start(names):
    """The names without their common prefix up to a hyphen, such as small-lifelong-."""
    start = "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*names)))
    start = start[: start.rfind("-") + 1]
    return [name.removeprefix(start) for name in names] if len(names) > 1 and start not in names else names


def _style(number):
    """How a method is drawn in every plot: colours repeat after ten, with another line style and marker."""
    return dict(color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)],
                ls=("-", "--")[number // len(COLOURS) % 2])  # fmt: skip


def draw_matrices(path, methods, styles, across=4):
    """A heat map for each method, `across` in a row."""
    tasks = len(next(iter(methods.values())).summary["tasks"])
    compact, across = tasks > COMPACT, min(across, len(methods))
    down = math.ceil(len(methods) / across)
    if compact:
        size = across * (0.27 * tasks + 0.3) + 1.8, down * (0.2 * tasks + 0.5) + 1.3
    else:
        size = across * max(2.4, 0.75 * tasks + 0.8), down * max(1.9, 0.5 * tasks + 1.1)
    figure, grid = start_figure(down, across, figsize=size, dpi=150, layout="constrained", squeeze=False)
    for axes in grid.flat[len(methods) :]:
        axes.axis("off")
    for i, (axes, (name, method)) in enumerate(zip(grid.flat, methods.items())):
        draw(axes, method.summary, named=i % across == 0, headed=i < across or not compact)
        average = format_number(*method.number("average_accuracy"), 1)
        axes.set_title(f"{name}\naverage {average}", fontsize=9, pad=6)
    figure.supylabel("after learning", fontsize=9)
    save_figure(path, figure)
    return True


def draw_curves(path, methods, styles):
    """The mean score of the tasks learned so far after each task; joint training is a line at its final score."""
    return _draw_lines(path, methods, styles, average_so_far, "mean score of the tasks learned so far",
                       level=lambda method: method.number("average_accuracy")[0])  # fmt: skip


def draw_scaling(path, methods, styles):
    """Forgetting against the number of tasks learned so far."""
    return _draw_lines(path, methods, styles, forgetting_so_far, "forgetting of the tasks learned so far")


def _draw_lines(path, methods, styles, compute, label, level=None):
    """A line with a band over seeds (mean ± sd) for each method; False if no method has two points."""
    number = len(next(iter(methods.values())).summary["tasks"])
    lines = {name: _over_time(method, compute) for name, method in methods.items()}
    shown = {name: points for name, points in lines.items() if len(points) > 1}
    if not shown:
        return False
    figure, axes = start_figure(figsize=(7.6, 4.2), dpi=140, layout="constrained")
    ends = {}
    for name, points in shown.items():
        times, means, deviations = zip(*points)
        style = styles[name]
        axes.plot(times, means, label=name, lw=1.8, ms=5, **style)
        ends[name] = means[-1]
        if None not in deviations:
            low, high = ([mean + sign * sd for mean, sd in zip(means, deviations)] for sign in (-1, 1))
            axes.fill_between(times, low, high, color=style["color"], alpha=0.16, lw=0)
    for name in methods.keys() - shown.keys() if level else ():
        if (value := level(methods[name])) is not None:
            axes.axhline(value, color=styles[name]["color"], lw=1.4, ls=":", label=f"{name} (at once)")
            ends[f"{name} (at once)"] = value
    axes.set_xlabel("tasks learned", fontsize=10)
    axes.set_ylabel(label, fontsize=10)
    axes.set_xlim(min(points[0][0] for points in shown.values()) - 0.3, number + 0.3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    quiet_axes(axes)
    _add_legend(figure, axes, sorted(ends, key=ends.get, reverse=True), any(
        sd is not None for points in shown.values() for *_, sd in points))  # fmt: skip
    save_figure(path, figure)
    return True


def _over_time(method, compute):
    """[(number of tasks, mean, deviation)] of a method, for the points at which every seed has a value."""
    values = list(zip(*map(compute, method.matrices)))
    points = [(t + 1, *over_seeds(list(seeds))) for t, seeds in enumerate(values)]
    return [point for point in points if point[1] is not None]


def lines_by_label(axes):
    """{label: line} of the lines drawn; matplotlib's own list leaves out labels that begin with an underscore."""
    return {line.get_label(): line for line in axes.get_lines()}


def _add_legend(figure, axes, order, has_bands=False):
    """Add a legend next to the panel, ordered by the final values of the lines, highest first."""
    known = lines_by_label(axes)
    figure.legend([known[name] for name in order], order, loc="outside right center", frameon=False, fontsize=9,
                  title="band: ± sd over seeds" if has_bands else None, title_fontsize=8, alignment="left")  # fmt: skip


def draw_bar_panels(path, methods, styles):
    """Bars of the final average and of forgetting, with error bars over seeds."""
    panels = {"average_accuracy": "average at the end", "forgetting": "forgetting (lower is better)"}
    colours = {name: style["color"] for name, style in styles.items()}
    figure, grid = start_figure(1, 2, figsize=(10, 1.1 + 0.34 * len(methods)), dpi=140, layout="constrained",
                                squeeze=False)  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axes, (number, title) in zip(grid.flat, panels.items()):
        pairs = {name: method.number(number) for name, method in methods.items()}
        values = {name: mean for name, (mean, _) in pairs.items() if mean is not None}
        texts = {name: format_number(*pair, 1) for name, pair in pairs.items()}
        deviations = {name: sd for name, (mean, sd) in pairs.items() if mean is not None and sd is not None}
        draw_bars(axes, values, texts, colours, deviations)
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
        names = list(colours) if axes is grid.flat[0] else [""] * len(colours)
        axes.set_yticks(range(len(colours)), names, fontsize=10)
    save_figure(path, figure)
    return True


def draw_costs(path, methods, styles):
    """The final average against seconds, memory and stored bytes; False if no method's cost is known."""
    points = {cost: {name: (value / unit, method.number("average_accuracy")[0])
                     for name, method in methods.items()
                     if (value := method.cost(cost)[0]) and method.number("average_accuracy")[0] is not None}
              for cost, (_, unit) in AXIS_COSTS.items()}  # fmt: skip
    points = {cost: own for cost, own in points.items() if own}
    if not points:
        return False
    figure, grid = start_figure(1, len(points), figsize=(3.3 * len(points) + 1.8, 3.4), dpi=140, layout="constrained",
                                sharey=True, squeeze=False)  # fmt: skip
    for axes, (cost, own) in zip(grid.flat, points.items()):
        for name, point in own.items():
            axes.plot(*point, ls="", marker=styles[name]["marker"], color=styles[name]["color"], ms=8, label=name)
        _spread_axis(axes, [x for x, _ in own.values()])
        axes.set_xlabel(AXIS_COSTS[cost][0], fontsize=10)
        axes.margins(0.1)
        quiet_axes(axes)
    grid.flat[0].set_ylabel("average at the end", fontsize=10)
    ends = {name: y for own in points.values() for name, (_, y) in own.items()}
    handles = {label: line for axes in grid.flat for label, line in lines_by_label(axes).items()}
    order = sorted(ends, key=ends.get, reverse=True)
    figure.legend([handles[name] for name in order], order, loc="outside right center", frameon=False, fontsize=9)
    save_figure(path, figure)
    return True


def _spread_axis(axes, values):
    """A logarithmic axis if values differ by more than a factor of ten, otherwise a linear one from 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if max(values) > 10 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.12 * max(values))
