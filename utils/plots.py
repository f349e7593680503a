"""Pictures of a run, where people would rather look than read."""

import io
import warnings
from pathlib import Path

from versatile.utils.files import atomic_write


def start_figure(*grid, **options):
    """(figure, axes) of `matplotlib.pyplot.subplots`, for a file and never for a screen.

    Names of tasks and runs stand in it as they are: nothing in them is taken for a formula.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["text.parse_math"] = False
    return plt.subplots(*grid, **options)


def save_figure(path, figure):
    """Write a figure as a PNG beside its name, move it into place, and let go of it.

    A character that the font lacks is drawn as a box, without a word about each.
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


def learning_curve(path, history, title):
    """Training and validation loss over optimizer steps, as a PNG.

    Args:
        path: where the PNG goes.
        history: {"train": [{step, loss, lr}], "valid": [{step, nll, tasks: {task: {nll}}}]}; `tasks` where there are
            several.
        title: printed above.
    """
    figure, left = start_figure(figsize=(7, 4), dpi=130, layout="constrained")
    train, valid = history["train"], history["valid"]
    several = bool(valid) and "tasks" in valid[0]
    if train:
        color = "0.4" if several else "tab:blue"
        # A line through one point is invisible.
        mark = "." if len(train) < 6 else None
        left.plot([r["step"] for r in train], [r["loss"] for r in train], color=color, lw=1, marker=mark, label="train")
        right = left.twinx()
        right.plot([r["step"] for r in train], [r["lr"] for r in train], color="0.75", lw=1, ls="--")
        right.set_ylabel("learning rate (dashed)", color="0.5")
        right.set_ylim(bottom=0)
        right.spines["top"].set_visible(False)
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
            # Of one score it would lie on the score itself.
            left.plot(steps, mean, color="black", lw=2, marker="o", ms=4, label="average")
        # A correlation may lie below 0.
        left.set_ylim(min(0, *(r[name] for r in valid for name in names)) - 3, 105)
        best = max(range(len(mean)), key=mean.__getitem__)
        left.annotate(f"{mean[best]:.1f}", (steps[best], mean[best]), textcoords="offset points", xytext=(0, 7),
                      ha="center", fontsize=8)  # fmt: skip
    left.set(xlabel="optimizer step", ylabel="score (×100)", title=title)
    if train:
        right = left.twinx() if names else left
        mark = "." if len(train) < 6 else None
        right.plot([r["step"] for r in train], [r["loss"] for r in train], color="0.6", lw=1, ls="--", marker=mark)
        right.set_ylabel("training loss (dashed)", color="0.4")
        right.spines["top"].set_visible(False)
    left.spines["top"].set_visible(False)
    left.xaxis.get_major_locator().set_params(integer=True)
    if names:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save_figure(path, figure)
