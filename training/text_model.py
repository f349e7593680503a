"""A trained model that answers texts."""

import ignite.distributed as idist
from versatile.adapters import checkpoint, inference
from versatile.adapters.attach import parameter_summary
from versatile.adapters.backbones import bundled, loading
from versatile.adapters.manifest import peek
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
        backbone: what it was built on.
        positions: the model's longest sequence.
        dtype: precision of the matrix products.
        without_effect: {field of `Decoding` that changes nothing: why}.
    """

    without_effect = {}

    def __init__(self, directory, model, tokenizer, dtype):
        self.directory, self.model, self.tokenizer, self.dtype = directory, model, tokenizer, dtype
        self.summary, self.backbone = parameter_summary(model), model.config._name_or_path
        _, self.positions = inference.prepare_for_inference(model, idist.device(), dtype)
        register_own_tasks(model.info.definitions.values())
        # A task without a file of its own can be held, but not be given texts.
        self.tasks = {name: task for name in model.info.tasks if (task := find(name))}

    @classmethod
    def load(cls, directory, task, dtype):
        """A model of train.py, train_vlm.py, combine_all.py, train_t5.py or train_camtl.py, or a released VLM.

        Args:
            directory: where it lies.
            task: one that it must hold, or None.
            dtype: precision of the matrix products.

        Raises:
            UserError: no such model there.
        """
        if str(directory) not in bundled.NAMES:
            loading.need_directory(directory, f"--model_checkpoint {directory}")
        manifest = peek(directory)
        # Here, as both are made of this class.
        if manifest and manifest.encoder == "text_to_text":
            from versatile.training.t5_text_model import T5TextModel

            return T5TextModel(directory, task, dtype)
        if manifest and manifest.encoder == "sentence_pair":
            from versatile.training.classification_text_model import SentenceClassifier

            return SentenceClassifier(directory, task, dtype)
        if manifest is None or manifest.encoder == "question_answer":
            found = "this holds no trained tasks" if manifest is None else "this is a model of train_lifelong.py"
            raise UserError(found, location=f"--model_checkpoint {directory}",
                            expected="a directory that another training script or combine_all.py wrote, "
                                     "or a released VLM")  # fmt: skip
        return cls(directory, *checkpoint.load(directory, task), dtype)

    @property
    def names(self):
        """Names of all tasks that it holds."""
        return list(self.model.info.tasks)

    def session(self, name, max_history=None):
        """What `Task.typed` keeps of a conversation, at its start."""
        kept = max_history or self.model.info.histories.get(name)
        return dict(max_history=kept) if self.tasks[name].max_history and kept else {}

    def prompts(self, name, examples, reserve):
        """(prompts, {what was cut: how often}) of a task's examples; see `data.instances.prompts`."""
        return instances.prompts(self.tasks[name], self.model.task_id(name), self.tokenizer, examples, self.positions,
                                 reserve)  # fmt: skip

    def prompt_text(self, prompt):
        """A prompt as text, a line for each marker; a type that is not the marker's own stands behind it."""
        lines, start, name = [], 0, self.tokenizer.convert_ids_to_tokens
        for end in range(1, len(prompt.ids) + 1):
            if end == len(prompt.ids) or prompt.ids[end] >= self.model.info.first:
                text = self.tokenizer.decode(prompt.ids[start + 1 : end], clean_up_tokenization_spaces=False)
                marker, kind = name(prompt.ids[start]), name(prompt.types[start])
                lines.append(f"  {marker}{text}" + (f"   [type {kind}]" if kind != marker else ""))
                start = end
        return "\n".join(lines)

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
                            expected="one of " + ", ".join(self.tasks or self.names))  # fmt: skip
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
