"""A trained model that answers texts."""

import ignite.distributed as idist
from versatile.adapters import checkpoint, inference
from versatile.adapters.attach import parameter_summary
from versatile.adapters.backbones import bundled, loading
from versatile.adapters.manifest import need_language_model
from versatile.data import instances
from versatile.data.own_tasks import register_own_tasks
from versatile.data.task import find
from versatile.training.decoding import Decoding, decode
from versatile.utils.errors import UserError, brief


class TextModel:
    """What interact.py talks to and `versatile.load` returns.

    Attributes:
        directory: what was loaded.
        model, tokenizer: ready for inference; `model` is a transformers model whose `generate` takes `task_ids`.
        tasks: {name: `data.task.Task`} of the tasks it holds that are known here.
        summary: what was trained, in words.
        positions: the model's longest sequence.
        dtype: precision of the matrix products.
    """

    def __init__(self, directory, model, tokenizer, dtype):
        self.directory, self.model, self.tokenizer, self.dtype = directory, model, tokenizer, dtype
        self.summary = parameter_summary(model)
        _, self.positions = inference.prepare_for_inference(model, idist.device(), dtype)
        register_own_tasks(model.info.definitions.values())
        # A task without a file of its own can be held, but not be given texts.
        self.tasks = {name: task for name in model.info.tasks if (task := find(name))}

    @classmethod
    def load(cls, directory, task, dtype):
        """A model of train.py, train_vlm.py or combine_all.py, or a released VLM checkpoint.

        Args:
            directory: where it lies.
            task: one that it must hold, or None.
            dtype: precision of the matrix products.

        Raises:
            UserError: no such model there.
        """
        if str(directory) not in bundled.NAMES:
            loading.need_directory(directory, f"--model_checkpoint {directory}")
        manifest = need_language_model(directory)
        if manifest is None or manifest.encoder == "question_answer":
            found = "this holds no trained tasks" if manifest is None else "this is a model of train_lifelong.py"
            raise UserError(found, location=f"--model_checkpoint {directory}",
                            expected="a directory that combine_all.py, train_vlm.py or train.py wrote, "
                                     "or a released VLM")  # fmt: skip
        return cls(directory, *checkpoint.load(directory, task), dtype)

    def session(self, name, max_history=None):
        """What `Task.typed` keeps of a conversation, at its start."""
        kept = max_history or self.model.info.histories.get(name)
        return dict(max_history=kept) if self.tasks[name].max_history and kept else {}

    def prompts(self, name, examples, reserve):
        """(prompts, {what was cut: how often}) of a task's examples; see `data.instances.prompts`."""
        return instances.prompts(self.tasks[name], self.model.task_id(name), self.tokenizer, examples, self.positions,
                                 reserve)  # fmt: skip

    def decode(self, prompts, decoding):
        """The model's texts behind some prompts."""
        ids = decode(self.model, self.tokenizer, prompts, decoding, dtype=self.dtype)
        return [self.tokenizer.decode(i, clean_up_tokenization_spaces=False).strip() for i in ids]

    def generate_text(self, task, inputs, **settings):
        """The model's answers to inputs of a task.

        Args:
            task: its name.
            inputs: a text, as interact.py takes it, or a list of them. An input of a conversation is itself a list of
                lines: what sets the document or the persona, the turns so far, and the turn to be answered.
            settings: fields of `training.decoding.Decoding`, such as max_length=60, num_beams=4 or no_sample=False.

        Returns:
            the answer, or a list of answers.

        Raises:
            UserError: a task that the model does not hold, an input that is none of the task.
        """
        if task not in self.tasks:
            raise UserError(f"the model holds no task {task!r} that takes texts", location=str(self.directory),
                            expected="one of " + ", ".join(self.tasks or self.model.info.tasks))  # fmt: skip
        decoding = Decoding(**settings).fitted(self.positions)
        several = [inputs] if isinstance(inputs, str) else list(inputs)
        examples = [self._example(task, each, f"input {number}") for number, each in enumerate(several, 1)]
        texts = self.decode(self.prompts(task, examples, decoding.max_length)[0], decoding) if several else []
        return texts[0] if isinstance(inputs, str) else texts

    def _example(self, name, lines, location):
        """The `Example` of one input, a text or the lines of a conversation."""
        example, session = None, self.session(name)
        for line in [lines] if isinstance(lines, str) else lines:
            if not isinstance(line, str):
                raise UserError(f"{brief(line)} is not a text", location=location,
                                expected=f"such as {self.tasks[name].sample}")  # fmt: skip
            try:
                example, session = self.tasks[name].typed(line, session)
            except UserError as error:
                raise UserError(error.found, location=location, expected=error.expected,
                                remedy=error.remedy) from error  # fmt: skip
        if example is None:
            raise UserError("ends before a turn that could be answered", location=location,
                            expected="a list of lines: what comes first, and then the turns")  # fmt: skip
        return example
