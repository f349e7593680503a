"""Pictures of a run."""

import io
import warnings
from pathlib import Path

from versatile.utils.files import atomic_write


def start_figure(*grid, **options):
    """(figure, axes) of `matplotlib.pyplot.subplots`, for a file and never for a screen.

    Names of tasks and runs are shown literally: nothing in them is taken for a formula.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["text.parse_math"] = False
    return plt.subplots(*grid, **options)


def save_figure(path, figure):
    """Write a figure as a PNG under a temporary name, move it into place, and close the figure.

    A character that the font lacks is drawn as a box, without a warning.
    """
    import matplotlib.pyplot as plt

    image = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        figure.savefig(image, format="png")
    plt.close(figure)
    with atomic_write(Path(path), "wb") as file:
        file.write(image.getvalue())


def line_marker(rows):
    """A marker if there are few points, as a line through a single one is invisible."""
    return "." if len(rows) < 6 else None


def draw_losses(axes, train, **options):
    """The training loss over optimizer steps: [{step, loss}]."""
    steps, losses = [r["step"] for r in train], [r["loss"] for r in train]
    axes.plot(steps, losses, lw=1, marker=line_marker(train), **options)


def draw_rates(axes, train):
    """The learning rate over optimizer steps, on an axis of its own: [{step, lr}]."""
    rates = axes.twinx()
    rates.plot([r["step"] for r in train], [r["lr"] for r in train], color="0.75", lw=1, ls="--")
    rates.set_ylabel("learning rate (dashed)", color="0.5")
    rates.set_ylim(bottom=0)
    rates.spines["top"].set_visible(False)


def learning_curve(path, history, title):
    """Training and validation loss over optimizer steps, as a PNG.

    Args:
        path: where the PNG goes.
        history: {"train": [{step, loss, lr}], "valid": [{step, nll, tasks: {task: {nll}}}]}; `tasks` if there are
            several.
        title: printed above.
    """
    figure, left = start_figure(figsize=(7, 4), dpi=130, layout="constrained")
    train, valid = history["train"], history["valid"]
    several = bool(valid) and "tasks" in valid[0]
    if train:
        color = "0.4" if several else "tab:blue"
        draw_losses(left, train, color=color, label="train")
        draw_rates(left, train)
    if several:
        for task in valid[0]["tasks"]:
            steps, values = [r["step"] for r in valid], [r["tasks"][task]["nll"] for r in valid]
            (line,) = left.plot(steps, values, "o-", lw=1, ms=4, label=f"{task} (validation)")
            low = min(range(len(values)), key=values.__getitem__)
            left.annotate(f"{values[low]:.3f}", (steps[low], values[low]), textcoords="offset points", xytext=(0, 6),
                          ha="center", color=line.get_color(), fontsize=8)  # fmt: skip
    elif valid:
        left.plot([r["step"] for r in valid], [r["nll"] for r in valid], "o-", color="tab:orange", label="validation")
        best = min(valid, key=lambda r: r["nll"])
        left.annotate(f"{best['nll']:.3f}", (best["step"], best["nll"]), textcoords="offset points", xytext=(0, 7),
                      ha="center", color="tab:orange")  # fmt: skip
    left.set(xlabel="optimizer step", ylabel="negative log-likelihood per token", title=title)
    left.spines["top"].set_visible(False)
    left.xaxis.get_major_locator().set_params(integer=True)
    if several:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    elif train or valid:
        left.legend(frameon=False)
    save_figure(path, figure)


def score_curve(path, history, title):
    """Scores of several tasks, their mean, and the training loss over optimizer steps, as a PNG.

    Args:
        path: where the PNG goes.
        history: {"train": [{step, loss, lr}], "valid": [{step, <task>_eval_<metric>, eval_average_metrics, …}]}.
        title: printed above.
    """
    from matplotlib import colormaps

    figure, left = start_figure(figsize=(7, 4.4), dpi=130, layout="constrained")
    train, valid = history["train"], history["valid"]
    names = [k for k in (valid[0] if valid else {}) if "_eval_" in k and not k.endswith(("_loss", "_invalid"))]
    steps = [r["step"] for r in valid]
    for number, name in enumerate(names):
        label, color = name.replace("_eval_", " "), colormaps["tab20"](number % 20)
        left.plot(steps, [r[name] for r in valid], lw=1, marker=".", ms=4, label=label, color=color)
    if names:
        mean = [r["eval_average_metrics"] for r in valid]
        if len(names) > 1:
            # With a single score it would coincide with it.
            left.plot(steps, mean, color="black", lw=2, marker="o", ms=4, label="average")
        # A correlation may be below 0.
        left.set_ylim(min(0, *(r[name] for r in valid for name in names)) - 3, 105)
        best = max(range(len(mean)), key=mean.__getitem__)
        left.annotate(f"{mean[best]:.1f}", (steps[best], mean[best]), textcoords="offset points", xytext=(0, 7),
                      ha="center", fontsize=8)  # fmt: skip
    left.set(xlabel="optimizer step", ylabel="score (×100)", title=title)
    if train:
        right = left.twinx() if names else left
        draw_losses(right, train, color="0.6", ls="--")
        right.set_ylabel("training loss (dashed)", color="0.4")
        right.spines["top"].set_visible(False)
    left.spines["top"].set_visible(False)
    left.xaxis.get_major_locator().set_params(integer=True)
    if names:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save_figure(path, figure)


def task_scores_curve(path, history, title):
    """Loss in training and on the dev files; next to it each task's score and the average. A PNG.

    Args:
        path: where the PNG goes.
        history: {"train": [{step, loss, lr}], "valid": [{step, nll, average, tasks: {task: {scores: {metric}}}}]}.
        title: printed above.
    """
    figure, (left, right) = start_figure(1, 2, figsize=(11, 4), dpi=130, layout="constrained")
    train, valid = history["train"], history["valid"]
    draw_losses(left, train, color="0.4", label="train, mean since the last point")
    draw_rates(left, train)
    steps = [r["step"] for r in valid]
    if valid:
        left.plot(steps, [r["nll"] for r in valid], "o-", ms=4, color="tab:orange", label="dev")
        for i, task in enumerate(valid[0]["tasks"]):
            scores = [list(r["tasks"][task]["scores"].values()) for r in valid]
            right.plot(steps, [100 * sum(s) / len(s) for s in scores], marker="o", ms=3, lw=1, color=f"C{i % 10}",
                       ls=("-", "--")[i // 10 % 2], label=task)  # fmt: skip
        means = [100 * r["average"] for r in valid]
        right.plot(steps, means, "o-", ms=4, lw=2, color="black", label="average")
        best = max(range(len(means)), key=means.__getitem__)
        right.annotate(f"{means[best]:.1f}", (steps[best], means[best]), textcoords="offset points", xytext=(0, 7),
                       ha="center", fontweight="bold")  # fmt: skip
        right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        right.text(0.5, 0.5, "no dev files were scored", ha="center", color="0.5", transform=right.transAxes)
    left.set(xlabel="optimizer step", ylabel="loss, mean over tasks")
    right.set(xlabel="optimizer step", ylabel="score on dev, in percent")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines["top"].set_visible(False)
    figure.suptitle(title, fontsize=11)
    save_figure(path, figure)


def data_seen(path, seen, title):
    """Each task's share of the batches, and how much of its data has been in one. A PNG.

    Args:
        path: where the PNG goes.
        seen: [{step, rows: {task: rows of batches so far}, share: {task: share of its rows seen in a batch}}].
        title: printed above.
    """
    figure, (left, right) = start_figure(1, 2, figsize=(11, 4), dpi=130, layout="constrained")
    tasks, steps = list(seen[0]["rows"]) if seen else [], [0, *(r["step"] for r in seen)]
    fresh_shares = []
    for before, now in zip([None, *seen], seen):
        fresh = {t: now["rows"][t] - (before["rows"][t] if before else 0) for t in tasks}
        fresh_shares.append({t: 100 * n / max(1, sum(fresh.values())) for t, n in fresh.items()})
    if fresh_shares:
        # Each share applies from the point before it.
        shares = [[row[t] for row in (fresh_shares[0], *fresh_shares)] for t in tasks]
        left.stackplot(steps, shares, labels=tasks, step="pre", colors=[f"C{i % 10}" for i in range(len(tasks))])
    for i, task in enumerate(tasks):
        right.plot(steps, [0, *(100 * r["share"][task] for r in seen)], lw=1.5, color=f"C{i % 10}", label=task,
                   marker=line_marker(seen))  # fmt: skip
    left.set(xlabel="optimizer step", ylabel="share of the batches' rows, in percent", ylim=(0, 100))
    right.set(xlabel="optimizer step", ylabel="share of the task's rows seen, in percent", ylim=(0, 103))
    if tasks:
        right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.set_xlim(0, max(steps))
        axes.spines["top"].set_visible(False)
    figure.suptitle(title, fontsize=11)
    save_figure(path, figure)
