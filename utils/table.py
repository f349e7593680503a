"""The results of many evaluations in one table: one row per task, one column per method.

    python -m utils.table                              # every metrics.json under results/
    python -m utils.table results/VLM_result other/metrics.json --output results/table.md

Reads what evaluation writes: `metrics.json` or `<task>_metrics.json` of one task, or a `metrics.json` that holds
{"tasks": {task: the same}}. Writes the table as markdown and next to it two charts (PNG) of the headline scores: as
bars, and against the parameters that each method stores.
"""

import datetime
import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from versatile.utils import flags, schema
from versatile.utils.errors import UserError, brief, exit_on_user_error, first_line
from versatile.utils.files import atomic_write, writable_directory
from versatile.utils.metrics import Score
from versatile.utils.screen import counted, module_command

# The first columns, in the order of the VLM paper's table; any other method gets a column after them.
METHODS = ("finetune", "adapter", "adapter+distillation", "adapter+word-distillation", "multi-task", "combined")
# Readable forms of the parts of a method's name.
WORDS = {"finetune": "fine-tune", "word-distillation+distillation": "word and sentence distillation",
         "word-distillation": "word distillation"}  # fmt: skip
# Appended to the method's name where outputs were decoded with beams: a separate column.
BEAMS = ", {} beams"
LOWER_IS_BETTER = {"PPL"}
# Larger numbers are no scores: their digits fill the page, and no axis can be laid out for them.
LARGEST = 1e15
PARAMETERS = ("adapters", "task_rows", "backbone")


@dataclass(frozen=True)
class Result:
    """The result of one evaluation on one task.

    Attributes:
        scores: {name: Score}; a value that is not finite is one that json could not hold.
        headline: name of the task's main score.
        parameters: trained parameters: dict(adapters, task_rows, backbone), and total, the backbone's size; or {}.
        split, instances, dataset_path, checkpoint, backbone: as in the file; None if missing.
        path, time: the file and when it was written, in seconds since 1970.
    """

    task: str
    method: str
    scores: dict
    headline: str
    parameters: dict = field(default_factory=dict)
    split: str | None = None
    instances: int | None = None
    dataset_path: str | None = None
    checkpoint: str | None = None
    backbone: str | None = None
    path: Path | None = None
    time: float = 0.0

    @property
    def trained(self):
        return sum(self.parameters.get(kind, 0) for kind in PARAMETERS)


# --- reading ---------------------------------------------------------------------------------------------


def find(locations):
    """All metrics files among the given files and, at any depth, directories, each once and in a fixed order.

    Raises:
        UserError: a location does not exist.
    """
    paths = []
    for location in map(Path, locations):
        if location.is_dir():
            paths += sorted({*location.rglob("metrics.json"), *location.rglob("*_metrics.json")})
        elif location.exists():
            paths.append(location)
        else:
            raise UserError("no such file or directory", location=location, expected="results of evaluate.py",
                            remedy="check the path, or evaluate something first")  # fmt: skip
    return list({path.resolve(): path for path in paths}.values())


def collect(locations):
    """All results found in files and directories.

    Returns:
        (list of Result, [a line for each unusable file])

    Raises:
        UserError: a location does not exist, or none of them holds anything usable.
    """
    results, notes = [], []
    paths = find(locations)
    for path in paths:
        try:
            results += read_metrics(path)
        except UserError as error:
            notes.append(f"left out {path}: {error.found}")
    if not results:
        where = ", ".join(map(str, locations))
        problem = "none of them can be used:\n  " + "\n  ".join(notes) if notes else "no metrics.json"
        raise UserError(f"{len(paths)} metrics files, {problem}" if notes else problem, location=where,
                        expected="metrics.json files written by evaluation",
                        remedy="evaluate something first, or name the directories or files")  # fmt: skip
    return results, notes


def read_metrics(path):
    """The results in one metrics file, one per task.

    Raises:
        UserError: it cannot be read or is not the output of an evaluation.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        time = Path(path).stat().st_mtime
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or first_line(error, 80)
        raise UserError(f"cannot read it: {reason}", location=path) from error
    _need(isinstance(content, dict), f"it holds {brief(content, 30)}", path)
    if "tasks" not in content:
        return [_result(content, path, time)]
    tasks = content["tasks"]
    _need(isinstance(tasks, dict) and tasks, f"'tasks' is {brief(tasks, 30)}", path)
    for name, summary in tasks.items():
        _need(isinstance(summary, dict), f"the results of {name!r} are {brief(summary, 30)}", path)
    shared = {key: value for key, value in content.items() if key != "tasks"}
    return [_result({**shared, "task": name, **summary}, path, time) for name, summary in tasks.items()]


def _result(content, path, time):
    task, scores = content.get("task"), content.get("scores")
    _need(_TEXT.fits(task), "it has no 'task': not an evaluation", path)
    _need(isinstance(scores, dict) and scores, f"{task}: it has no 'scores'", path)
    scores = {name: _score(name, score, path) for name, score in scores.items()}
    headline = content.get("headline", next(iter(scores)))
    _need(headline in list(scores), f"{task}: the headline score {brief(headline, 30)} is not among its scores", path)
    parameters = content.get("parameters") or {}
    known = isinstance(parameters, dict) and all(_COUNT.fits(parameters.get(k, 0)) for k in (*PARAMETERS, "total"))
    _need(known, f"{task}: 'parameters' is {brief(parameters, 30)}", path)
    # Files from before methods were recorded: a trained backbone means full fine-tuning.
    derived = ("finetune" if parameters.get("backbone") else "adapter") if parameters else None
    method = content.get("method") or derived
    _need(_TEXT.fits(method), f"{task}: it says neither 'method' nor 'parameters'", path)
    decoding = content.get("decoding")
    beams = decoding.get("num_beams") if isinstance(decoding, dict) else None
    if isinstance(beams, int) and beams > 1:
        method += BEAMS.format(beams)
    names = ("split", "dataset_path", "checkpoint", "backbone")
    text = {key: None if content.get(key) is None else str(content[key]) for key in names}
    instances = content.get("instances")
    _need(instances is None or _COUNT.fits(instances), f"{task}: 'instances' is {brief(instances, 30)}", path)
    return Result(task, method, scores, headline, parameters, instances=instances, path=Path(path), time=time, **text)


def _score(name, score, path):
    fits = isinstance(score, dict) and isinstance(score.get("score"), int | float | None)
    _need(fits and not isinstance(score.get("score"), bool), f"the score {name!r} is {brief(score, 30)}", path)
    value = score.get("score")
    try:
        # json has no infinity, which only a score without a bound can be.
        value = (math.inf if name in LOWER_IS_BETTER else math.nan) if value is None else float(value)
    except OverflowError:
        # A whole number too large for a float.
        value = math.inf
    return Score(value, str(score.get("signature", "")))


_TEXT = schema.Text(longest=10_000)
_COUNT = schema.Whole(0, 10**15)


def _need(fits, problem, path):
    if not fits:
        raise UserError(problem, location=path)


# --- cells -----------------------------------------------------------------------------------------------


class Cells:
    """The results by task and method; if a cell has several, the newest counts.

    Attributes:
        of: {(task, method): Result}.
        tasks, methods: the rows and the columns: first those of `METHODS`, then the others by name.
        notes: remarks on single cells; a cell's marks are positions in this list.
        apart: the tasks whose cells were not measured under the same conditions.
    """

    def __init__(self, results):
        self.of, self.notes, self.marks, self.apart = {}, [], {}, set()
        groups = {}
        for result in results:
            groups.setdefault((result.task, result.method), []).append(result)
        self.tasks = sorted({task for task, _ in groups})
        methods = {method for _, method in groups}
        self.methods = [*(method for method in METHODS if method in methods), *sorted(methods - set(METHODS))]
        ordered = [(task, method) for task in self.tasks for method in self.methods if (task, method) in groups]
        for key in ordered:
            self._newest(key, groups[key])
        self._compare(ordered, "backbone", "backbone {}")
        for task in self.tasks:
            keys = [key for key in ordered if key[0] == task]
            self._compare(keys, "split", "{} split")
            self._compare(keys, "instances", "{} instances")
            self._compare(keys, "dataset_path", "data {}")

    def _newest(self, key, results):
        results = sorted(results, key=lambda r: (r.time, str(r.path)))
        self.of[key] = kept = results[-1]
        # A task's own file and the file of all tasks may hold the same result.
        older = [r for r in results[:-1] if (r.scores, r.checkpoint) != (kept.scores, kept.checkpoint)]
        if older:
            day = datetime.datetime.fromtimestamp(kept.time).strftime("%Y-%m-%d %H:%M")
            others = ", ".join(str(r.path) for r in reversed(older))
            self._note(key, f"the newest of {len(older) + 1} results: {kept.path} ({day}), not {others}")

    def _compare(self, keys, name, wording):
        """Add a note to each cell whose attribute differs from that of most cells."""
        values = {key: value for key in keys if (value := getattr(self.of[key], name)) is not None}
        usual = most_common(values.values())
        for key, value in values.items():
            if value != usual:
                self._note(key, f"{wording.format(value)}; the others: {usual}")
                self.apart.add(key[0])

    def _note(self, key, text):
        task, method = key
        self.notes.append(f"{task}, {label(method)}: {text}")
        self.marks.setdefault(key, []).append(len(self.notes))

    def mark(self, key):
        """The numbers of a cell's notes, as in " [1][2]"."""
        marks = "".join(f"[{number}]" for number in self.marks.get(key, []))
        return f" {marks}" if marks else ""

    def row(self, task):
        """{method: Result} of one task."""
        return {method: self.of[task, method] for method in self.methods if (task, method) in self.of}

    def headline(self, task):
        """The task's main score: the one that most of its results name."""
        return most_common([result.headline for result in self.row(task).values()])

    def values(self, task, name):
        """{method: value} of a score, for the methods that have it."""
        return {method: r.scores[name].value for method, r in self.row(task).items() if name in r.scores}


def most_common(values):
    """The most frequent value, the first one on a tie; None if there are none."""
    return max(counts, key=counts.get) if (counts := Counter(values)) else None


def label(method):
    for name, words in WORDS.items():
        method = method.replace(name, words)
    # Not the "++" of hyperformer++.
    return re.sub(r"(?<!\+)\+(?!\+)", " + ", method)


def in_words(values):
    """{key: number as text}: three decimals if no number is above 1, else two; none from 1,000."""
    digits = 3 if max((abs(v) for v in values.values() if math.isfinite(v)), default=0) <= 1 else 2

    def in_digits(value):
        size = abs(value)
        return f"{value:.{digits}f}" if size < 1000 else f"{value:,.0f}" if size < LARGEST else f"{value:g}"

    return {key: in_digits(value) for key, value in values.items()}


# --- markdown --------------------------------------------------------------------------------------------


def markdown(cells, pictures=None):
    """The results as a markdown text.

    Args:
        cells: `Cells`.
        pictures: {description: file name} of the charts next to it, or None.
    """
    backbone = most_common([r.backbone for r in cells.of.values() if r.backbone])
    parts = ["# Results", f"Backbone: {plain(backbone)}." if backbone else "", headline_table(cells)]
    if cells.notes:
        parts.append("\n".join(f"[{number}] {plain(note)}  " for number, note in enumerate(cells.notes, 1)))
    parts += [f"![{description}]({name})" for description, name in (pictures or {}).items()]
    parts += ["## Trained parameters", parameter_table(cells)]
    parts += ["Share: of the backbone's parameters. One model for several tasks is counted once.",
              "## All scores", all_scores(cells), "## How the scores were computed", legend(cells)]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def headline_table(cells):
    """One row per task with its headline score; the best of a row is bold if all were measured alike."""
    rows = []
    for task in cells.tasks:
        name, row = cells.headline(task), cells.row(task)
        split = most_common([r.split for r in row.values() if r.split])
        instances = most_common([r.instances for r in row.values() if r.instances is not None])
        measured = ", ".join(filter(None, [split, f"{instances:,} instances" if instances is not None else None]))
        rows.append([f"{task} ({measured})" if measured else task, *score_row(cells, task, name, cells.mark)])
    return as_table(["task", "score", *map(label, cells.methods)], rows, left=2)


def all_scores(cells):
    """One row per score of every task."""
    rows = []
    for task in cells.tasks:
        names = list(dict.fromkeys(name for result in cells.row(task).values() for name in result.scores))
        rows += [[task, *score_row(cells, task, name)] for name in names]
    return as_table(["task", "score", *map(label, cells.methods)], rows, left=2)


def score_row(cells, task, name, mark=lambda key: ""):
    """[the score's name, a text for each method]."""
    values = cells.values(task, name)
    texts, lower = in_words(values), name in LOWER_IS_BETTER
    finite = [value for value in values.values() if math.isfinite(value)]
    best = (min if lower else max)(finite) if finite and len(values) > 1 and task not in cells.apart else None
    shown = []
    for method in cells.methods:
        text = texts.get(method, "–")
        bold = f"**{text}**" if best is not None and values.get(method) == best else text
        shown.append(bold + (mark((task, method)) if method in texts else ""))
    return [name + (" (lower is better)" if lower else ""), *shown]


def parameter_table(cells):
    """One row per method: what was trained for each task, and for all of its tasks together."""
    rows = []
    for method in cells.methods:
        results = {task: cells.of[task, method] for task in cells.tasks if (task, method) in cells.of}
        results = {task: result for task, result in results.items() if result.parameters}
        # Several tasks of one checkpoint share one model; unnamed checkpoints are distinguished by task only.
        # A single task evaluated out of a model for several has its own number.
        model = {task: (r.checkpoint or task, r.trained) for task, r in results.items()}
        users = Counter(model.values())
        if results:
            row = ["–" if task not in results else "shared" if users[model[task]] > 1 else share([results[task]])
                   for task in cells.tasks]  # fmt: skip
            rows.append([label(method), *row, share(list({model[task]: r for task, r in results.items()}.values()))])
    return as_table(["method", *cells.tasks, "together"], rows, left=1) if rows else "Not recorded."


def share(results):
    """Trained parameters of some models and, if their backbones' sizes are known, the share of one backbone."""
    count = sum(result.trained for result in results)
    if not all(result.parameters.get("total") for result in results):
        return f"{count:,}"
    return f"{count:,} ({100 * sum(r.trained / r.parameters['total'] for r in results):.2f} %)"


def legend(cells):
    """Every score's signature; where a task's cells differ in it, each with its methods."""
    groups = {}
    for (task, method), result in cells.of.items():
        for name, score in result.scores.items():
            groups.setdefault(name, {}).setdefault(score.signature, {}).setdefault(task, []).append(method)
    lines = []
    for name, signatures in groups.items():
        for signature, uses in signatures.items():
            code = f"`{plain(signature)}`" if signature else "no signature"
            uses = [task_use(cells, task, name, methods) for task, methods in uses.items()]
            lines.append(f"- {plain(name)} – {plain(', '.join(uses))}: {code}")
    return "\n".join(lines)


def task_use(cells, task, name, methods):
    everywhere = len(methods) == len(cells.values(task, name))
    return task if everywhere else f"{task} ({', '.join(map(label, methods))})"


def as_table(head, rows, left):
    """Markdown table: the first `left` columns are left-aligned; the others, numbers, are right-aligned."""
    lines = [[cell(text) for text in row] for row in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines)]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [[text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths))]
              for line in lines]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def cell(text):
    return plain(text).replace("|", "\\|")


def plain(text):
    """One line, without characters that would end a code span."""
    return " ".join(str(text).split()).replace("`", "'")


# --- script ----------------------------------------------------------------------------------------------


@exit_on_user_error
def main(argv=None):
    p = flags.build_parser("The results of many evaluations in one table.")
    p.prog, p.usage = module_command("utils.table"), "%(prog)s [RESULT_DIR_OR_FILE ...] [flags]"
    p.add_argument("locations", nargs="*", default=["results"], metavar="RESULT_DIR_OR_FILE",
                   help="metrics files, or directories to search for them at any depth (default: results)")  # fmt: skip
    p.add_argument("--output", default="results/table.md", metavar="FILE.md",
                   help="the table; FILE.png and FILE_parameters.png go next to it (default: %(default)s)")  # fmt: skip
    args = p.parse_args(argv)
    output = Path(args.output)
    if output.suffix != ".md":
        raise UserError(f"the name ends in {output.suffix!r}" if output.suffix else "the name has no ending",
                        location=f"--output {output}", expected="a name that ends in .md")  # fmt: skip
    results, notes = collect(args.locations)
    writable_directory(output.parent, "--output")
    for note in notes:
        print(note, file=sys.stderr)
    from versatile.utils import result_charts

    cells, picture = Cells(results), output.with_suffix(".png")
    tradeoff = output.with_name(f"{output.stem}_parameters.png")
    result_charts.bar_chart(picture, cells)
    pictures = {"headline scores of each task and method": picture.name}
    if result_charts.tradeoff_chart(tradeoff, cells):
        pictures["headline scores against stored parameters"] = tradeoff.name
    drawn = [output.with_name(name) for name in pictures.values()]
    text = markdown(cells, pictures)
    with atomic_write(output) as file:
        file.write(text)
    # The rest is long; it can be read in the file.
    print(text.split("## All scores")[0])
    print(f"{counted(len(cells.of), 'result')}, all scores and how they were computed: {output}; "
          f"as pictures: {', '.join(map(str, drawn))}")


if __name__ == "__main__":
    sys.exit(main())
