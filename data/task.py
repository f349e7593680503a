"""The parts of a task, and the task registry.

A task is one file in `data/tasks/`: a class with its markers, its published settings, how a raw record becomes
an example, and how outputs are scored. Everything generic (ids, types, labels, trimming, caching, batching)
is implemented once, elsewhere.
"""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from versatile.data.files import distilled_beside, fingerprint, text_field
from versatile.data.json_files import has_split, iter_records, top_level
from versatile.data.own_tasks import get_own_task
from versatile.data.task_names import unknown_task
from versatile.utils.errors import UserError
from versatile.utils.screen import module_command


@dataclass(frozen=True)
class Span:
    """A marker and the text that follows it.

    Attributes:
        marker: the special token that opens the span; also the span's type unless `type` is given.
        text: raw text; it is stripped and gets one leading space before tokenising.
        type: the special token whose embedding is added to every token of the span.
        turn: whether it is a turn of a conversation; if the input is too long, the oldest turns are dropped first.
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
        target: the span to generate; the loss covers its text and the end token.
        source: the input as a person would read it, for output files.
        references: all texts that count as correct when scoring.
        location: file, split and index of the record, for error messages.
        details: anything else that scoring or the output files need (a persona, an id), as plain json.
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
        distilled: use the teacher's targets instead of the gold ones.
        decoding: read for decoding rather than for computing a loss.
        max_history: number of past exchanges kept, in conversational tasks.
    """

    distilled: bool = False
    decoding: bool = False
    max_history: int = 0


class Task:
    """Base class of all tasks; each task's file overrides what is specific to it.

    Attributes:
        name: as given to `--task`; it becomes part of parameter names, so it must not contain a dot (a form's name
            may: "woz.en").
        summary: one line for `--list_tasks`.
        aliases: other names of the task, in lower case.
        text_to_text, question_answer, sentence_pair: its forms for the other encoders (`TextTask`, `LifelongTask`,
            `GlueTask`), a tuple of them where a system splits the task into several, or None.
        markers: all its special tokens, in the order of their embedding rows. Empty: it has no form for the encoder
            with markers.
        bos, eos: the markers that open and close every sequence.
        bos_type: the marker whose embedding is the opening marker's type (default: its own).
        dataset_path: the data file used if `--dataset_path` is not given.
        limits: {marker: tokens}: a span with that marker is truncated to this many tokens.
        min_tokens: training drops examples with fewer tokens than this in any span.
        scored_split: the split that evaluation scores.
        merge_references: examples with equal sources form one instance with all their references.
        published: {"finetune": {flag: value}, "adapter": {flag: value}}: defaults of train.py.
        max_history: published number of exchanges kept, in a conversation; None in other tasks.
        headline: the score that represents the task in a summary.
        sample: an example of typed input, for someone who does not know the task.
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

    def data_path(self, dataset_path, distilled=False):
        """The data file: `--dataset_path` if given, else the task's default path, which must exist.

        Args:
            dataset_path: the flag's value, or None.
            distilled: use the file with the teacher's targets next to it, if there is one.

        Raises:
            UserError: no path was given and the default does not exist.
        """
        path = dataset_path or self.dataset_path
        if distilled and (rewritten := self.distilled_path(path)).is_file():
            return str(rewritten)
        if dataset_path or Path(path).is_file():
            return path
        raise UserError(
            f"not given, and there is no {path} under the current directory",
            location="--dataset_path",
            remedy=f"name the file (try data/samples/{self.name}.json), or make it: "
            + module_command("data.convert", "--help"),
        )

    def distilled_path(self, path):
        """The path of a teacher's texts for a data file."""
        return distilled_beside(path)

    def can_read(self, path):
        """Whether the data that a run was trained on still exist at a path."""
        return Path(path).is_file()

    # Only user-defined tasks have one; checkpoints store it.
    definition = None

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def forms(self, kind):
        """The task's own forms of one kind of `FORMS`, as a tuple (possibly empty)."""
        if kind == "markers":
            return (self,) if self.markers else ()
        form = getattr(self, kind)
        return () if form is None else form if isinstance(form, tuple) else (form,)

    def names(self):
        """All names of the task."""
        return {self.name, *self.aliases, *(form.name for kind in FORMS for form in self.forms(kind))}

    def typed_name(self):
        """How to name the task on a command line without a checkpoint."""
        return self.name

    def has_data(self):
        """Whether there are data at `dataset_path`."""
        return Path(self.dataset_path).is_file()

    def records(self, path, split):
        """Yield (location, record) of a split of a data file."""
        return iter_records(path, split)

    def has_split(self, path, split):
        """Whether a data file has a split."""
        return has_split(path, split)

    def contents(self, path):
        """Yield (key, value) of everything in a data file; see `data.json_files.top_level`."""
        return top_level(path)

    def content_key(self, path, split):
        """A hash of everything that determines what `records` yields."""
        return fingerprint(path)

    def read_options(self, max_history=None, **options):
        """`ReadOptions` for this task; `max_history` defaults to the published one, and is 0 in tasks without one."""
        return ReadOptions(max_history=(max_history or self.max_history) if self.max_history else 0, **options)

    def examples(self, record, location, options=ReadOptions()):
        """The examples of a raw json record, in order: one, or one for each turn of a conversation.

        Args:
            record: the record as read from the file; it may be anything and is checked here.
            location: where it was read from, for error messages.
            options: `ReadOptions`.

        Raises:
            UserError: a field is missing or of the wrong type.
        """
        raise NotImplementedError

    def training_examples(self, record, location, options=ReadOptions()):
        """`examples`, whose target is the teacher's text if the options say so; arguments and errors as there."""
        taught = options.distilled and type(self).distil is Task.distil
        for example in self.examples(record, location, options):
            if taught:
                text = text_field(record, "distillated_tgt", location)
                example = replace(example, target=replace(example.target, text=text))
            yield example

    def distil(self, record, outputs):
        """The record with a teacher's outputs written into it, one for each of its examples, in order.

        Most tasks have one example per record. Others also read the outputs themselves, if `options.distilled`.
        """
        return {**record, "distillated_tgt": outputs[0]}

    def typed(self, text, session):
        """A typed line -> (Example without a target, the updated session).

        Args:
            text: the line.
            session: the state left by earlier lines; {} at the start.

        Returns:
            the Example is None if the line only set something, such as a persona.

        Raises:
            UserError: the line is not a valid input of this task.
        """
        raise UserError(f"task {self.name} takes no typed input", location="--task", remedy="give it a `typed` method")

    def answered(self, text, session):
        """The session once the model has answered with `text`."""
        return session

    def score(self, hypotheses, references, details=None):
        """Score outputs against all references.

        Args:
            hypotheses: one text per instance.
            references: a list of texts per instance.
            details: `Example.details` of each instance, or None if only the texts are available.

        Returns:
            ({name: utils.metrics.Score}, [notes for the reader])
        """
        raise NotImplementedError

    def files(self, hypotheses, details):
        """Task-specific output files, added to the usual ones or replacing them: {file name suffix: text or json}.

        Args:
            hypotheses, details: as in `score`, but `details` is never None.
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
    """Class decorator that registers a task."""
    add_task(task_class())
    return task_class


def add_task(task):
    """Register a `Task` under its name, its aliases and the names of its forms.

    Raises:
        ValueError: another task already uses one of the names or markers; the name contains a dot; bos or eos is not
            among the markers.
    """
    if "." in task.name:
        raise ValueError(f"task {task.name!r}: a name without dots is needed, as it becomes part of parameters' names")
    if task.name in _TASKS:
        own_module, other_module = type(task).__module__, type(_TASKS[task.name]).__module__
        raise ValueError(f"duplicate task {task.name!r}: in both {other_module} and {own_module}")
    owners = {m: t.name for t in _TASKS.values() for m in t.markers}
    clash = {m: owners[m] for m in task.markers if m in owners}
    if clash:
        raise ValueError(f"task {task.name!r}: markers already used by another task: {clash}")
    owners = {name: other.name for other in _TASKS.values() for name in other.names()}
    if clash := {name: owners[name] for name in task.names() if name in owners}:
        raise ValueError(f"task {task.name!r}: names already used by another task: {clash}")
    if task.markers and (task.bos not in task.markers or task.eos not in task.markers):
        raise ValueError(f"task {task.name!r}: bos and eos must be among its markers")
    _TASKS[task.name] = task


def load_tasks():
    """{name: `Task`} of all files in data/tasks/, whatever forms they have."""
    from versatile.data import tasks

    _import_files(tuple(tasks.__path__))
    return dict(_TASKS)


@functools.cache
def _import_files(folders):
    """Import all files of the package data/tasks/, once: tables of tasks are read often."""
    for module in pkgutil.iter_modules(folders):
        importlib.import_module(f"versatile.data.tasks.{module.name}")


def all_tasks():
    """{name: task} of all tasks with markers, for a decoder or an encoder-decoder."""
    return {name: task for name, task in load_tasks().items() if task.markers}


class Forms(Mapping):
    """{name: form} of all tasks that have a form of one kind.

    The tasks' files are imported when it is read, not when it is made, as they import modules that hold one.

    Args:
        kind: a key of `FORMS`.
        first: names to put first, in this order; the others follow alphabetically.
    """

    def __init__(self, kind, first=()):
        self.kind, self.first = kind, first

    def _by_name(self):
        return {form.name: form for task in load_tasks().values() for form in task.forms(self.kind)}

    def __getitem__(self, name):
        return self._by_name()[name]

    def __iter__(self):
        names = self._by_name()
        return iter([*self.first, *sorted(set(names) - set(self.first))])

    def __len__(self):
        return len(self._by_name())


def resolve(name):
    """The task with a given name or alias (case-insensitive), or None."""
    wanted = str(name).lower()
    return next((task for task in load_tasks().values() if wanted in task.names()), None)


def form(name, kind, flag="--tasks"):
    """A task's form: its own, or one built from its prompts and answers.

    Args:
        name: any name of a known task, or of a user-defined one.
        kind: a key of `FORMS`.
        flag: the flag that the name was given to.

    Raises:
        UserError: the name is unknown, or the task cannot have this form.
    """
    task = resolve(name)
    if task is None and not get_own_task(name):
        raise unknown_task(name, Forms(kind), flag)
    if task and (own_forms := task.forms(kind)):
        return next((form for form in own_forms if form.name == str(name).lower()), own_forms[0])
    return make_form(name, kind, flag)


def make_form(name, kind, flag):
    """A form that a task does not define, built from its prompts and answers; see `data.views`."""
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
        raise UserError(f"task {name!r} cannot be used as {FORMS[kind]}: it {error.found}", location=flag,
                        expected="one of " + ", ".join(Forms(kind)),
                        remedy="name its data as a task of your own: NAME=FOLDER_OR_FILE") from error  # fmt: skip


def canonical_name(name, kind):
    """The name by which a system knows a task; an unknown name is returned unchanged.

    Args:
        kind: a key of `FORMS`.
    """
    task = None if get_own_task(name) else resolve(name)
    if task is None:
        return name
    names = [form.name for form in task.forms(kind)] if kind != "markers" else []
    return str(name).lower() if str(name).lower() in names else names[0] if names else task.name


def get_task(name, flag="--task"):
    """A task for the encoder with markers.

    Args:
        flag: the flag that the name was given to.

    Raises:
        UserError: the name is unknown; the message lists the known ones.
    """
    task = resolve(name)
    if task is None and not get_own_task(name):
        raise unknown_task(name, sorted(load_tasks()), flag, more="see --list_tasks")
    return task if task and task.markers else make_form(name, "markers", flag)


def find_form(name, kind):
    """As `form` and `get_task`, but None if there is no such task or form."""
    try:
        return get_task(name) if kind == "markers" else form(name, kind)
    except UserError:
        return None


def find_task(name):
    """The task of a name for the encoder with markers (it may be user-defined), or None."""
    return find_form(name, "markers")


def known_names():
    """All names of the toolkit's tasks, in all systems, and "all"."""
    return {name for task in load_tasks().values() for name in task.names()} | {"all"}
