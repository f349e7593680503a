"""A model of train_t5.py that answers texts."""

import ignite.distributed as idist
from versatile.adapters import t5
from versatile.data import text_to_text
from versatile.data.flat_lists import FlatLists
from versatile.data.own_tasks import register_own_tasks
from versatile.data.text_to_text_batches import Rows
from versatile.training import t5_directory, text_to_text_arguments
from versatile.training.text_to_text_evaluation import EvalSplit, Evaluation, prefixed
from versatile.utils import devices
from versatile.utils.errors import UserError, brief


class TextToTextModel:
    """What `versatile.load` returns of a model of train_t5.py.

    Attributes:
        directory: what was loaded.
        model, tokenizer: ready for inference; `model` is a T5 whose `generate` takes `task_ids`.
        tasks: {name: `data.text_task.TextTask`} of the tasks it was trained for.
        prefixed: whether a task's prefix stands before its sources.
        max_length: tokens of a source at the most.
        beams: width of the beam, or None: each task's own.
        dtype: precision of the matrix products.
    """

    def __init__(self, directory, model, tokenizer, flags, dtype):
        self.directory, self.model, self.tokenizer, self.dtype = directory, model, tokenizer, dtype
        self.tasks = {name: text_to_text.get_task(name) for name in model.tasks}
        self.prefixed = prefixed(model, flags)
        self.max_length, self.beams = flags.get("max_source_length", 128), flags.get("eval_beams")

    @classmethod
    def load(cls, directory, task, dtype):
        """The model of a run of train_t5.py, or of one of its checkpoints; `task` is one that it must hold, or None.

        Raises:
            UserError: no such model there, or no run.json, which says how it was trained.
        """
        flags = text_to_text_arguments.restored(*t5_directory.run_flags(directory))
        register_own_tasks(flags.get("task_definitions") or [])
        model, tokenizer = t5.load(directory, task)
        devices.prepare_for_device(model, idist.device(), dtype)
        return cls(directory, model.eval(), tokenizer, flags, dtype)

    def generate_text(self, task, inputs, *, num_beams=None, batch_size=32):
        """The model's answers to inputs of a task.

        Args:
            task: its name.
            inputs: a source as the task words it ("sentence1: … sentence2: …"), or a dict of the columns that it is
                made of; or a list of these.
            num_beams: width of the beam (default: as in the run's evaluation).
            batch_size: inputs at once.

        Returns:
            the answer, or a list of answers.

        Raises:
            UserError: a task that the model does not hold, an input without a column that the task needs.
        """
        if task not in self.tasks:
            raise UserError(f"the model holds no task {task!r}", location=str(self.directory),
                            expected="one of " + ", ".join(self.tasks))  # fmt: skip
        form, single = self.tasks[task], isinstance(inputs, (str, dict))
        sources = [self._source(form, each, number) for number, each in enumerate([inputs] if single else inputs, 1)]
        if not sources:
            return []
        ids = self.tokenizer(sources, max_length=self.max_length, truncation=True).input_ids
        targets = FlatLists.from_lists([[self.tokenizer.eos_token_id]] * len(ids))
        rows = Rows(self.model.task_id(task), FlatLists.from_lists(ids), targets, [""] * len(ids))
        beams = num_beams or self.beams or form.num_beams or 1
        part = EvalSplit(form, rows, sources, form.max_new_tokens(self.tokenizer), beams)
        texts = Evaluation({}, self.tokenizer, batch_size, self.dtype).texts(self.model, part)
        return texts[0] if single else texts

    def _source(self, form, given, number):
        """The text that the model reads of an input."""
        if isinstance(given, dict):
            try:
                given = form.template.format(**given)
            except (KeyError, IndexError) as error:
                raise UserError(f"has no column {error}", location=f"input {number}",
                                expected=", ".join(form.fields())) from error  # fmt: skip
        if not isinstance(given, str):
            raise UserError(f"{brief(given)} is not a text", location=f"input {number}",
                            expected=f"such as {form.template}")  # fmt: skip
        return f"{form.prefix or form.name} {given}" if self.prefixed else given
