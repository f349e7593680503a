"""Compare several methods on one sequence of tasks: a table and plots.

    python -m lifelong.compare results/finetune results/lamol results/ewc --output results/lifelong.md
    python -m lifelong.compare results/small-lifelong-* --output results/lifelong.md
    python -m lifelong.compare --runs "fine-tuning=results/finetune" "LAMOL=results/lamol" "LAMOL=results/lamol-seed2"

Each argument is a directory with a matrix.json written by evaluate_lifelong.py, for one seed or several. Directories
that differ only in their seeds are merged into one method, as mean ± standard deviation; with --runs, those of the same
name are. A missing directory that is named after a recipe of run.sh gets an empty row with the command that makes it.

The plots are .png files next to the table: the matrices (under the table's name); _curves, the mean score of the tasks
learned so far over time; _forgetting, bars of the average score and of forgetting; _scaling, forgetting against the
number of tasks; and _cost, the average score against seconds, memory and stored bytes.
"""

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from versatile.lifelong.charts import draw_charts
from versatile.lifelong.matrix import NUMBERS, TABLE_COSTS, Matrix, format_number, over_seeds, read_summary, summary
from versatile.lifelong.run_records import read_records
from versatile.utils import flags
from versatile.utils.errors import UserError, exit_on_user_error
from versatile.utils.files import atomic_write, writable_directory
from versatile.utils.recipes import read_recipe
from versatile.utils.screen import module_command
from versatile.utils.table import cell

# Keys of an evaluation, as evaluate_lifelong.py writes them, that must agree.
EVALUATION_KEYS = ("split", "limit", "ref1", "decoding")
# The seed at the end of a directory's name.
SEED = re.compile(r"[-_](?:seed_?)?(\d+)$")


@dataclass
class Method:
    """One method: its runs with different seeds.

    Attributes:
        directories: the runs' result directories.
        matrices: the runs' `Matrix` objects.
        seeds: the runs' seeds; None if a file does not state it.
        records: what `run_records.make_record` returns for each run, or {}.
        evaluation: {name in `EVALUATION_KEYS`: value}, or {} if a file does not state them.
    """

    directories: list
    matrices: list
    seeds: list
    records: list
    evaluation: dict

    @cached_property
    def summary(self):
        """See `matrix.summary`."""
        return summary(self.matrices, self.seeds)

    @property
    def settings(self):
        """The flags shared by all runs, apart from the seed, or None. Those that are off are left out, as a run of an
        earlier version may not have had them."""
        settings = self.records[0].get("settings")
        # Not `in`: 0 equals False.
        return settings and {flag: value for flag, value in settings.items() if not (value is None or value is False)}

    def number(self, name):
        """(mean, standard deviation) of one of `NUMBERS`."""
        return self.summary["mean"][name], self.summary["sd"][name]

    def cost(self, name):
        """(mean, standard deviation) of a cost that the records hold."""
        return over_seeds([record.get(name) for record in self.records])

    def joined(self, other):
        """A `Method` with the runs of both."""
        return Method(self.directories + other.directories, self.matrices + other.matrices, self.seeds + other.seeds,
                      self.records + other.records, self.evaluation)  # fmt: skip


def parser():
    p = flags.build_parser(__doc__)
    p.prog = module_command("lifelong.compare")
    p.add_argument(
        "directories", nargs="*", metavar="DIR", help="directories with a matrix.json, labelled by their own names"
    )
    p.add_argument("--runs", nargs="+", metavar="NAME=DIR", default=[],
                   help="the same, labelled NAME; directories with the same name are seeds of one method")  # fmt: skip
    p.add_argument("--output", default="results/lifelong.md", help="file for the table; the plots go next to it")
    return p


# --- reading ---------------------------------------------------------------------------------------------


def read_method(location):
    """The `Method` in a directory's matrix.json."""
    written = read_summary(location)
    matrices = [Matrix(written["tasks"], run["rows"], run.get("before"), written["metrics"], alone=run.get("alone"))
                for run in written["runs"]]  # fmt: skip
    evaluation = {key: written[key] for key in EVALUATION_KEYS} if {*EVALUATION_KEYS} <= written.keys() else {}
    seeds = written.get("seeds") or [None] * len(matrices)
    return Method([str(location)], matrices, list(seeds), read_records(location, written), evaluation)


def find_command(location):
    """The recipe's command that produces the results of a missing directory, or None."""
    name, more = Path(location).name, ""
    if read_recipe(name) is None and (seed := SEED.search(name)):
        name, more = name[: seed.start()], f" --seed {seed[1]}"
    return f"./run.sh {name}{more}" if read_recipe(name) else None


def read_methods(directories, named):
    """({name: `Method`}, {name: command} of what has not been run).

    Args:
        directories: directories labelled by their own names; those with the same settings are seeds of one method.
        named: [(name, directory)]; those with the same name are seeds of one method.
    """
    methods, missing, names = {}, {}, {}
    for location in directories:
        name = Path(location).name
        if not (Path(location) / "matrix.json").exists() and (command := find_command(location)):
            missing[name] = command
            continue
        method = read_method(location)
        same = next((known for known, other in methods.items() if method.settings and
                     other.settings == method.settings), None)  # fmt: skip
        names.setdefault(same or name, []).append(name)
        methods[same or name] = join_seeds(methods[same], method) if same else method
    for name, seeds in names.items():
        stem = without_seed(seeds)
        if len(seeds) > 1 and stem and stem not in methods.keys() - {name}:
            methods = {stem if known == name else known: method for known, method in methods.items()}
    for name, location in named:
        method = read_method(location)
        methods[name] = join_seeds(methods[name], method) if name in methods else method
    return methods, missing


def without_seed(names):
    """What directories' names have in common that differ in their seed alone, or None; it need not stand at the end."""
    for stems in ({SEED.sub("", name) for name in names}, {name.rstrip("0123456789") for name in names}):
        if len(stems) == 1 and (stem := stems.pop()):
            return stem
    words = [re.split(r"([-_])", name) for name in names]
    if len({len(parts) for parts in words}) > 1:
        return None
    differing = [i for i, parts in enumerate(zip(*words)) if len(set(parts)) > 1]
    if len(differing) != 1 or not all(re.fullmatch(r"(seed)?\d+", parts[differing[0]]) for parts in words):
        return None
    first, at = words[0], differing[0]
    start = at - 3 if at > 2 and first[at - 2] == "seed" else max(at - 1, 0)
    return "".join(first[:start] + first[at + 1 :])


def join_seeds(method, other):
    """Merge the runs of two directories into one method; seeds must differ and all other settings agree."""
    location, first = other.directories[0], method.directories[0]
    require_same_tasks({first: method, location: other})
    require_same_questions({first: method, location: other})
    if method.settings and other.settings and method.settings != other.settings:
        differ = next(key for key in method.settings | other.settings
                      if method.settings.get(key) != other.settings.get(key))  # fmt: skip
        raise UserError(f"it was trained with another --{differ}", location=location,
                        expected=f"a run that differs from {first} only in its seed",
                        remedy="give it a name of its own: --runs NAME=DIR")  # fmt: skip
    if twice := {seed for seed in method.seeds if seed is not None} & set(other.seeds):
        raise UserError(f"seed {min(twice)} is given twice", location=location,
                        expected=f"a seed other than in {', '.join(method.directories)}",
                        remedy="name each run once, or give it a name of its own: --runs NAME=DIR")  # fmt: skip
    return method.joined(other)


def require_same_tasks(methods):
    """Raise a `UserError` unless all methods were trained on the same tasks in the same order."""
    (first, wanted), *others = ((name, method.matrices[0]) for name, method in methods.items())
    for name, matrix in others:
        if matrix.tasks != wanted.tasks or matrix.metrics != wanted.metrics:
            raise UserError(f"{name} was trained on {', '.join(matrix.tasks)}", location=name,
                            expected=f"{', '.join(wanted.tasks)}, as {first}",
                            remedy="compare runs of one sequence")  # fmt: skip


def require_same_questions(methods):
    """Raise a `UserError` unless all were evaluated alike on the same questions; files without this are accepted."""
    known = {name: method.evaluation for name, method in methods.items() if method.evaluation}
    for name, evaluation in known.items():
        first, wanted = next(iter(known.items()))
        if differ := [key for key in EVALUATION_KEYS if evaluation[key] != wanted[key]]:
            ours, theirs = (", ".join(f"{key} {_words(values[key])}" for key in differ)
                            for values in (evaluation, wanted))  # fmt: skip
            raise UserError(f"{name} was evaluated with {ours}", location=name, expected=f"{theirs}, as {first}",
                            remedy="evaluate both with the same flags of evaluate_lifelong.py")  # fmt: skip


def _words(value):
    if isinstance(value, dict):
        return " ".join(f"{key} {setting}" for key, setting in value.items())
    return {None: "none", True: "on", False: "off"}.get(value, str(value))


# --- the table -------------------------------------------------------------------------------------------


def markdown(methods, missing=(), digits=1):
    """A row for each method: the tasks' final scores, the four summary numbers and the costs, ± sd over seeds.

    Args:
        methods: {name: `Method`}.
        missing: {name: command} of methods that have not been run.
    """
    one = next(iter(methods.values())).summary
    heads = [f"{task} ({metric})" for task, metric in zip(one["tasks"], one["metrics"] or one["tasks"])]
    costs = [cost for cost in TABLE_COSTS if any(method.cost(cost)[0] is not None for method in methods.values())]
    several = any(len(method.seeds) > 1 for method in methods.values())
    heads += [name.replace("_", " ") for name in NUMBERS] + [TABLE_COSTS[cost][0] for cost in costs]
    heads += ["seeds"] if several and costs else []
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for name, method in methods.items():
        ends = zip(method.summary["mean"]["rows"][-1], method.summary["sd"]["rows"][-1])
        cells = [format_number(*end, digits) for end in (*ends, *map(method.number, NUMBERS))]
        cells += [format_number(*_in_units(method.cost(cost), unit), digits if unit > 1 else 0)
                  for cost in costs for unit in (TABLE_COSTS[cost][1],)]  # fmt: skip
        cells += [str(len(method.seeds))] if several and costs else []
        lines.append(f"| {cell(name)} | {' | '.join(cells)} |")
    for name, command in dict(missing).items():
        lines.append(f"| {cell(name)}: `{command}` |" + " |" * len(heads))
    return "\n".join([*lines, ""])


def _in_units(pair, unit):
    return [None if value is None else value / unit for value in pair]


def check_output(p, output):
    """Reject an --output that is a directory or would collide with the plot."""
    if Path(output).is_dir():
        p.error(f"--output {output}: a directory; name the table's file, such as {Path(output) / 'lifelong.md'}")
    if Path(output).suffix.lower() == ".png":
        p.error(f"--output {output}: name the table's file, such as {Path(output).with_suffix('.md')}; "
                "the pictures go next to it")  # fmt: skip
    if (picture := Path(output).with_suffix(".png")).is_dir():
        p.error(f"--output {output}: its picture would be {picture}, which is a directory; choose another name")


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    named = [text.partition("=") for text in args.runs]
    if bad := [name for name, equals, location in named if not (name and equals and location)]:
        p.error(f"--runs {bad[0]}: expected NAME=DIR")
    if not args.directories and not named:
        p.error("name directories that evaluate_lifelong.py wrote, or --runs NAME=DIR")
    locations = [(Path(location).name, location) for location in args.directories]
    for number, (name, location) in enumerate(locations):
        if twice := [other for known, other in locations[:number] if known == name]:
            p.error(f"{twice[0]} and {location} are both called {name}: give them names of your own, --runs NAME=DIR")
    if both := {name for name, _ in locations} & {name for name, _, _ in named}:
        p.error(f"--runs {min(both)}: a directory also has this name; choose another")
    check_output(p, args.output)
    methods, missing = read_methods(args.directories, [(name, location) for name, _, location in named])
    if not methods:
        raise UserError("none of them has been run", location=", ".join(map(str, args.directories)),
                        expected="results of at least one",
                        remedy=f"run them: {'; '.join(missing.values())}")  # fmt: skip
    require_same_tasks(methods)
    require_same_questions(methods)
    table = markdown(methods, missing)
    writable_directory(Path(args.output).parent, "--output")
    with atomic_write(args.output) as file:
        file.write(table)
    pictures = draw_charts(Path(args.output).with_suffix(".png"), methods)
    print(f"{table}\n{', '.join(map(str, (args.output, *pictures)))}")


if __name__ == "__main__":
    sys.exit(main())
