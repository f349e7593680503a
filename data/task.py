"""The parts of a task and the registry.

A task is one file in `data/tasks/`: a class with its markers, its published settings, how a raw record becomes
an example, and how outputs are scored. Everything generic (ids, types, labels, trimming, caching, batching)
happens elsewhere, once.
"""

import importlib
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path

from versatile.data.files import distilled_beside, fingerprint
from versatile.data.json_files import iter_records, top_level
from versatile.data.own_tasks import get_own_task
from versatile.data.task_names import unknown_task
from versatile.utils.errors import UserError


@dataclass(frozen=True)
class Span:
    """A marker and the text behind it.

    Attributes:
        marker: the special token that opens the span; its type, too, unless `type` says otherwise.
        text: raw text; it is stripped and gets one leading space before tokenising.
        type: the special token whose embedding is added to every token of the span.
        turn: a turn of a conversation: where the input is too long, the oldest turns go first.
    """

    marker: str
    text: str
    type: str | None = None
    turn: bool = False


@dataclass(frozen=True)
class Example:
    """One input and its target.

    Attributes:
        context: the input's spans in order.
        target: the span to be produced; loss falls on its text and the end token.
        source: the input as a person would read it, for output files.
        references: all texts that count as right when scoring.
        location: file, split and index of the record, for errors.
        details: what scoring or the output files need beside (a persona, an id), as plain json.
    """

    context: list[Span]
    target: Span
    source: str
    references: list[str] = field(default_factory=list)
    location: str = ""
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class ReadOptions:
    """How records are read.

    Attributes:
        distilled: take the teacher's targets instead of the gold ones.
        decoding: read for decoding, not for a loss.
        max_history: exchanges of a conversation that are kept, in tasks that have one.
    """

    distilled: bool = False
    decoding: bool = False
    max_history: int = 0


class Task:
    """Base of all tasks; a task's file overrides what is particular to it.

    Attributes:
        name: what `--task` calls it; it becomes part of parameters' names, so there is no dot in it (a form's name may
            have one: "woz.en").
        summary: one line for `--list_tasks`.
        aliases: other names of the task, in small letters.
        text_to_text, question_answer, sentence_pair: its forms for the other encoders (`TextTask`, `LifelongTask`,
            `GlueTask`), a tuple of them where systems divide it in several, or None.
        markers: all its special tokens; the order is the order of their embedding rows. None: it has no form for the
            encoder with markers.
        bos, eos: the markers that open and close every sequence.
        bos_type: the marker whose embedding is the opening marker's type (default: its own).
        dataset_path: where the data lie if `--dataset_path` is not given.
        limits: {marker: tokens}: of a span with that marker only the first so many tokens are kept.
        min_tokens: training drops examples with fewer tokens than this in any span.
        scored_split: the split that evaluation scores.
        merge_references: examples with equal sources are one instance with all their references.
        published: {"finetune": {flag: value}, "adapter": {flag: value}}: defaults of train.py.
        max_history: published number of exchanges kept, in a conversation; None in other tasks.
        headline: the score that stands for the task in a summary.
        sample: an input as `typed` takes it, for a person who does not know the task.
    """

    name: str
    summary: str = ""
    aliases: tuple[str, ...] = ()
    text_to_text = question_answer = sentence_pair = None
    markers: tuple[str, ...] = ()
    bos: str
    eos: str
    bos_type: str | None = None
    dataset_path: str
    limits: dict = {}
    min_tokens: int = 1
    scored_split: str = "test"
    merge_references: bool = False
    published: dict = {}
    max_history: int | None = None
    headline: str = "BLEU"
    sample: str = ""

    def data_path(self, given, distilled=False):
        """The data file: what `--dataset_path` gives, else the task's own place, which must be there.

        Args:
            given: the flag's value, or None.
            distilled: take the file with the teacher's targets that lies beside it, if there is one.

        Raises:
            UserError: nothing was given and there is nothing in the task's own place.
        """
        path = given or self.dataset_path
        if distilled and (rewritten := self.distilled_path(path)).is_file():
            return str(rewritten)
        if given or Path(path).is_file():
            return path
        raise UserError(
            f"not given, and there is no {path} under the current directory",
            location="--dataset_path",
            remedy=f"name the file (try data/samples/{self.name}.json), or make it: python -m data.convert --help",
        )

    def distilled_path(self, path):
        """Where a teacher's texts for a data file lie."""
        return distilled_beside(path)

    def can_read(self, path):
        """Whether there are data at a path that a run was trained on."""
        return Path(path).is_file()

    # A task of the user's own has one; a checkpoint keeps it.
    definition = None

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def forms(self, kind):
        """Those of its forms of one kind of `FORMS` that it brings itself: a tuple, empty where it has none."""
        if kind == "markers":
            return (self,) if self.markers else ()
        form = getattr(self, kind)
        return () if form is None else form if isinstance(form, tuple) else (form,)

    def names(self):
        """All names that stand for the task."""
        return {self.name, *self.aliases, *(form.name for kind in FORMS for form in self.forms(kind))}

    def typed_name(self):
        """What names the task on a command line that has no checkpoint."""
        return self.name

    def has_data(self):
        """Whether there are data where `dataset_path` says."""
        return Path(self.dataset_path).is_file()

    def records(self, path, split):
        """Yield (location, record) of a split of a data file."""
        return iter_records(path, split)

    def contents(self, path):
        """Yield (key, value) of all of a data file; see `data.json_files.top_level`."""
        return top_level(path)

    def content_key(self, path, split):
        """A hash of everything that decides what `records` yields."""
        return fingerprint(path)

    def read_options(self, max_history=None, **options):
        """`ReadOptions` for this task: `max_history` is the published one unless given, and nothing to other tasks."""
        return ReadOptions(max_history=(max_history or self.max_history) if self.max_history else 0, **options)

    def examples(self, record, location, options=ReadOptions()):
        """The examples of a raw json record, in order: one, or one for each turn of a conversation.

        Args:
            record: what stood in the file; anything, it is checked here.
            location: where it stood, for errors.
            options: `ReadOptions`.

        Raises:
            UserError: a field is missing or of the wrong type.
        """
        raise NotImplementedError

    def distil(self, record, outputs):
        """The record with a teacher's outputs written into it, as many as it has examples, in their order.

        Most tasks have one example a record, with its target in `tgt`.
        """
        return {**record, "distillated_tgt": outputs[0]}

    def typed(self, text, session):
        """What a person typed -> (Example without a target, the session after it).

        Args:
            text: the line.
            session: what earlier lines left: {} at the start.

        Returns:
            the Example is None where the line only set something, such as a persona.

        Raises:
            UserError: the line cannot be an input of this task.
        """
        raise UserError(f"task {self.name} takes no typed input", location="--task", remedy="give it a `typed` method")

    def answered(self, text, session):
        """The session after the model has answered `text`."""
        return session

    def score(self, hypotheses, references, details=None):
        """Score outputs against all references.

        Args:
            hypotheses: one text an instance.
            references: a list of texts an instance.
            details: `Example.details` of each instance, or None where only texts are at hand.

        Returns:
            ({name: utils.metrics.Score}, [notes for the reader])
        """
        raise NotImplementedError

    def files(self, hypotheses, details):
        """Output files of the task's own, or in place of the usual: {name ending: text or json}.

        Args:
            hypotheses, details: as `score` takes them; `details` is never None here.
        """
        return {}


# --- the registry ----------------------------------------------------------------------------------------

FORMS = {
    "markers": "texts with markers (train.py, train_vlm.py)",
    "text_to_text": "text to text (train_t5.py)",
    "question_answer": "a question and its answer (train_lifelong.py)",
    "sentence_pair": "sentences with a class (train_camtl.py)",
}
_TASKS: dict[str, Task] = {}


def register(task_class):
    """Class decorator: make a task known under its name."""
    add_task(task_class())
    return task_class


def add_task(task):
    """Make a `Task` known under its name, its aliases, and the names that its forms have.

    Raises:
        ValueError: one of them, or a marker, is another task's; a dot in the name.
    """
    if "." in task.name:
        raise ValueError(f"task {task.name!r}: a name without dots is needed, as it becomes part of parameters' names")
    if task.name in _TASKS:
        here, there = type(task).__module__, type(_TASKS[task.name]).__module__
        raise ValueError(f"duplicate task {task.name!r}: in both {there} and {here}")
    taken = {m: t.name for t in _TASKS.values() for m in t.markers}
    clash = {m: taken[m] for m in task.markers if m in taken}
    if clash:
        raise ValueError(f"task {task.name!r}: markers already used by another task: {clash}")
    taken = {name: other.name for other in _TASKS.values() for name in other.names()}
    if clash := {name: taken[name] for name in task.names() if name in taken}:
        raise ValueError(f"task {task.name!r}: names already used by another task: {clash}")
    if task.markers and (task.bos not in task.markers or task.eos not in task.markers):
        raise ValueError(f"task {task.name!r}: bos and eos must be among its markers")
    _TASKS[task.name] = task


def load_tasks():
    """{name: `Task`} of every file in data/tasks/, whatever forms it has."""
    from versatile.data import tasks

    for module in pkgutil.iter_modules(tasks.__path__):
        importlib.import_module(f"versatile.data.tasks.{module.name}")
    return dict(_TASKS)


def all_tasks():
    """{name: task} of those that have markers, for a decoder or an encoder-decoder."""
    return {name: task for name, task in load_tasks().items() if task.markers}


def forms(kind, first=()):
    """{name: form} of all tasks that have one of `FORMS`.

    Args:
        kind: a key of `FORMS`.
        first: names that come first, in this order; the others follow by name.
    """
    by_name = {form.name: form for task in load_tasks().values() for form in task.forms(kind)}
    return {name: by_name[name] for name in [*first, *sorted(set(by_name) - set(first))]}


def resolve(name):
    """The task that has a name or an alias, in small or capital letters, or None."""
    wanted = str(name).lower()
    return next((task for task in load_tasks().values() if wanted in task.names()), None)


def form(name, kind, flag="--tasks"):
    """A task's form: its own, or one made of its prompts and answers.

    Args:
        name: any name of the task, or of one of the user's own.
        kind: a key of `FORMS`.
        flag: where the name was typed.

    Raises:
        UserError: an unknown name, or a task that cannot have such a form.
    """
    task = resolve(name)
    if task is None and not get_own_task(name):
        raise unknown_task(name, forms(kind), flag)
    if task and (own_forms := task.forms(kind)):
        return next((form for form in own_forms if form.name == str(name).lower()), own_forms[0])
    return make_form(name, kind, flag)


def make_form(name, kind, flag):
    """A form that a task does not bring, of its prompts and answers; see `data.views`."""
    from versatile.data import views
    from versatile.data.known_pairs import pairs_of

    own = get_own_task(name)
    pairs = own or pairs_of(resolve(name))
    try:
        if pairs is None:
            raise UserError("has no training rows of its own")
        return views.FORMS[kind](pairs)
    except UserError as error:
        if own:
            raise
        raise UserError(f"task {name!r} does not go as {FORMS[kind]}: it {error.found}", location=flag,
                        expected="one of " + ", ".join(forms(kind)),
                        remedy="name its data as a task of your own: NAME=FOLDER_OR_FILE") from error  # fmt: skip


def canonical_name(name, kind):
    """What a system calls the task that has a name; a name that nobody knows comes back as it is.

    Args:
        kind: a key of `FORMS`.
    """
    task = None if get_own_task(name) else resolve(name)
    if task is None:
        return name
    names = [form.name for form in task.forms(kind)] if kind != "markers" else []
    return str(name).lower() if str(name).lower() in names else names[0] if names else task.name


def get_task(name, flag="--task"):
    """A task for the encoder with markers; an unknown name is a `UserError` that lists those known.

    Args:
        flag: where the name was typed.
    """
    task = resolve(name)
    if task is None and not get_own_task(name):
        raise unknown_task(name, sorted(load_tasks()), flag, more="see --list_tasks")
    return task if task and task.markers else make_form(name, "markers", flag)


def find_form(name, kind):
    """As `form` and `get`, but None where there is no such task or form."""
    try:
        return get_task(name) if kind == "markers" else form(name, kind)
    except UserError:
        return None


def find(name):
    """The task of a name for the encoder with markers, one of the user's own among them, or None."""
    return find_form(name, "markers")


def known_names():
    """All names of the toolkit's tasks, in all systems."""
    return {name for task in load_tasks().values() for name in task.names()} | {"all"}
