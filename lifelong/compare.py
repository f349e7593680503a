"""Several methods on one sequence of tasks, side by side: a table and a picture of their matrices.

    python -m lifelong.compare results/finetune results/lamol results/ewc --output results/lifelong.md
    python -m lifelong.compare --runs "fine-tuning=results/finetune" "LAMOL=results/lamol" --output results/lifelong.md

Each argument is a directory with the matrix.json that evaluate_lifelong.py wrote, of one seed or several. The picture
lies beside the table, as .png.
"""

import math
import sys
from pathlib import Path

from versatile.lifelong.matrix import NUMBERS, _number, draw, read_summary
from versatile.utils import flags
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.files import atomic_write, writable_directory
from versatile.utils.plots import save_figure, start_figure

# What of an evaluation must be the same, as evaluate_lifelong.py writes it.
ASKED = ("split", "limit", "ref1", "decoding")


def parser():
    p = flags.build_parser(__doc__)
    p.prog = "python -m lifelong.compare"
    p.add_argument(
        "directories", nargs="*", metavar="DIR", help="directories with a matrix.json, called as they are named"
    )
    p.add_argument("--runs", nargs="+", metavar="NAME=DIR", default=[], help="the same with names of your own")
    p.add_argument("--output", default="results/lifelong.md", help="the table; the picture lies beside it")
    return p


def same_tasks(results):
    """Only the same tasks in the same order can be compared."""
    (first, wanted), *others = results.items()
    for name, one in others:
        if one["tasks"] != wanted["tasks"] or one["metrics"] != wanted["metrics"]:
            raise UserError(f"{name} was trained on {', '.join(one['tasks'])}", location=name,
                            expected=f"{', '.join(wanted['tasks'])}, as {first}",
                            remedy="compare runs of one sequence")  # fmt: skip


def same_questions(results):
    """Only answers to the same questions, found alike, can be compared; a file that does not tell is taken as it is."""
    told = {name: {key: one[key] for key in ASKED} for name, one in results.items() if all(key in one for key in ASKED)}
    for name, one in told.items():
        first, wanted = next(iter(told.items()))
        if differ := [key for key in ASKED if one[key] != wanted[key]]:
            ours, theirs = (", ".join(f"{key} {_words(each[key])}" for key in differ) for each in (one, wanted))
            raise UserError(f"{name} was evaluated with {ours}", location=name, expected=f"{theirs}, as {first}",
                            remedy="evaluate both with the same flags of evaluate_lifelong.py")  # fmt: skip


def _words(value):
    if isinstance(value, dict):
        return " ".join(f"{key} {one}" for key, one in value.items())
    return {None: "none", True: "on", False: "off"}.get(value, str(value))


def markdown(results, digits=1):
    """A row for each method: the tasks' scores at the end and the four numbers, ± the deviation over seeds.

    Args:
        results: {name: what `read_summary` returns}.
    """
    one = next(iter(results.values()))
    heads = [f"{task} ({metric})" for task, metric in zip(one["tasks"], one["metrics"] or one["tasks"])]
    names = [name.replace("_", " ") for name in NUMBERS]
    lines = ["| | " + " | ".join([*heads, *names]) + " |", "|---|" + "---:|" * (len(heads) + len(names))]
    for name, own in results.items():
        cells = [_number(mean, sd, digits) for mean, sd in zip(own["mean"]["rows"][-1], own["sd"]["rows"][-1])]
        cells += [_number(own["mean"][number], own["sd"][number], digits) for number in NUMBERS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def picture(path, results, across=4):
    """The matrices as one PNG: a heat map for each method, `across` in a row."""
    across = min(across, len(results))
    down, tasks = math.ceil(len(results) / across), len(next(iter(results.values()))["tasks"])
    size = (across * max(2.4, 0.75 * tasks + 0.8), down * max(1.9, 0.5 * tasks + 1.1))
    figure, grid = start_figure(down, across, figsize=size, dpi=150, layout="constrained", squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(results):
            axes.axis("off")
            continue
        name, own = list(results.items())[i]
        draw(axes, own, named=i % across == 0)
        average = _number(own["mean"]["average_accuracy"], own["sd"]["average_accuracy"], 1)
        axes.set_title(f"{name}\naverage {average}", fontsize=9, pad=6)
    figure.supylabel("after learning", fontsize=9)
    save_figure(path, figure)


def check_output(p, output):
    """The table is a file that is not called like its picture."""
    if Path(output).is_dir():
        p.error(f"--output {output}: a directory; name the table's file, such as {Path(output) / 'lifelong.md'}")
    if Path(output).suffix.lower() == ".png":
        p.error(f"--output {output}: name the table's file, such as {Path(output).with_suffix('.md')}; "
                "the picture lies beside it")  # fmt: skip
    if (picture := Path(output).with_suffix(".png")).is_dir():
        p.error(f"--output {output}: its picture would be {picture}, which is a directory; choose another name")


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    named = [text.partition("=") for text in args.runs]
    if bad := [name for name, equals, location in named if not (name and equals and location)]:
        p.error(f"--runs {bad[0]}: expected NAME=DIR")
    directories = [(Path(location).name, location) for location in args.directories] + [
        (name, location) for name, _, location in named
    ]
    if not directories:
        p.error("name directories that evaluate_lifelong.py wrote, or --runs NAME=DIR")
    for number, (name, location) in enumerate(directories):
        if twice := [other for known, other in directories[:number] if known == name]:
            p.error(f"{twice[0]} and {location} are both called {name}: give them names of your own, --runs NAME=DIR")
    check_output(p, args.output)
    results = {name: read_summary(location) for name, location in directories}
    same_tasks(results)
    same_questions(results)
    table = markdown(results)
    writable_directory(Path(args.output).parent, "--output")
    with atomic_write(args.output) as file:
        file.write(table)
    chart = Path(args.output).with_suffix(".png")
    picture(chart, results)
    print(f"{table}\n{args.output} and {chart}")


if __name__ == "__main__":
    sys.exit(main())
