"""Pictures of a run on several tasks: loss and scores, and how much of each task's data it has seen."""

from versatile.utils.plots import save_figure, start_figure


def _figure():
    return start_figure(1, 2, figsize=(11, 4), dpi=130, layout="constrained")


def _mark(rows):
    # A line through one point is invisible.
    return "." if len(rows) < 6 else None


def learning_curve(path, history, title):
    """Loss in training and on the dev files; beside it each task's score and the average. A PNG.

    Args:
        path: where the PNG goes.
        history: {"train": [{step, loss, lr}], "valid": [{step, nll, average, tasks: {task: {scores: {metric}}}}]}.
        title: printed above.
    """
    figure, (left, right) = _figure()
    train, valid = history["train"], history["valid"]
    left.plot([r["step"] for r in train], [r["loss"] for r in train], color="0.4", lw=1, marker=_mark(train),
              label="train, mean since the last point")  # fmt: skip
    rates = left.twinx()
    rates.plot([r["step"] for r in train], [r["lr"] for r in train], color="0.75", lw=1, ls="--")
    rates.set_ylabel("learning rate (dashed)", color="0.5")
    rates.set_ylim(bottom=0)
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
    """What the batches were made of, and how much of each task's data has been in one. A PNG.

    Args:
        path: where the PNG goes.
        seen: [{step, rows: {task: rows of batches so far}, share: {task: share of its rows that were in one}}].
        title: printed above.
    """
    figure, (left, right) = _figure()
    tasks, steps = list(seen[0]["rows"]) if seen else [], [0, *(r["step"] for r in seen)]
    made = []
    for before, now in zip([None, *seen], seen):
        fresh = {t: now["rows"][t] - (before["rows"][t] if before else 0) for t in tasks}
        made.append({t: 100 * n / max(1, sum(fresh.values())) for t, n in fresh.items()})
    if made:
        # Each share holds from the point before it.
        shares = [[row[t] for row in (made[0], *made)] for t in tasks]
        left.stackplot(steps, shares, labels=tasks, step="pre", colors=[f"C{i % 10}" for i in range(len(tasks))])
    for i, task in enumerate(tasks):
        right.plot(steps, [0, *(100 * r["share"][task] for r in seen)], lw=1.5, color=f"C{i % 10}", label=task,
                   marker=_mark(seen))  # fmt: skip
    left.set(xlabel="optimizer step", ylabel="share of the batches' rows, in percent", ylim=(0, 100))
    right.set(xlabel="optimizer step", ylabel="share of the task's rows seen, in percent", ylim=(0, 103))
    if tasks:
        right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.set_xlim(0, max(steps))
        axes.spines["top"].set_visible(False)
    figure.suptitle(title, fontsize=11)
    save_figure(path, figure)
