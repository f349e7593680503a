"""A trained model that answers text inputs and is evaluated on its tasks (`training.evaluation`)."""

import time

import ignite.distributed as idist
from versatile.adapters import checkpoint
from versatile.adapters.attach import count_parameters, parameter_summary
from versatile.adapters.backbones import bundled, loading
from versatile.adapters.backbones.family import max_length_of
from versatile.adapters.inference import prepare_for_inference
from versatile.adapters.manifest import peek, refuse_question_model, require_manifest
from versatile.data import instances
from versatile.data.batching import Batches
from versatile.data.encoders.markers import load_split
from versatile.data.own_tasks import register_own_tasks
from versatile.data.task import canonical_name, find_task
from versatile.training import objectives
from versatile.training.decoding import Decoding, decode
from versatile.training.evaluation import Predictions
from versatile.utils.errors import UserError, brief
from versatile.utils.progress import Progress
from versatile.utils.screen import counted


def load_text_model(directory, task, dtype):
    """Load a model of train.py, train_vlm.py, combine_all.py, train_t5.py or train_camtl.py, or a released VLM.

    Args:
        directory: the model's directory.
        task: a task that it must hold, by any of its names, or None.
        dtype: precision of the matrix products.

    Returns:
        `TextModel`

    Raises:
        UserError: there is no such model.
    """
    if str(directory) not in bundled.NAMES:
        loading.need_directory(directory, f"--model_checkpoint {directory}")
    refuse_question_model(peek(directory), directory)
    manifest = require_manifest(directory, "a directory that another training script or combine_all.py wrote, or a "
                                           "released VLM")  # fmt: skip
    if task is not None and task not in manifest.tasks:
        # Another name of the task, or one that the model does not hold, which loading it will say.
        task = canonical_name(task, manifest.encoder)
    return text_model_class(manifest.encoder).load(directory, task, dtype)


def encodable(value):
    """An input with lone halves of surrogate pairs, which no tokenizer takes, replaced by ``?``, as in data files."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {key: encodable(item) for key, item in value.items()}
    return [encodable(item) for item in value] if isinstance(value, (list, tuple)) else value


def text_model_class(encoder):
    """The `TextModel` class for models whose manifest names this encoder."""
    # Imported here, because both are subclasses of `TextModel`.
    if encoder == "text_to_text":
        from versatile.training.text_to_text_model import TextToTextModel

        return TextToTextModel
    if encoder == "sentence_pair":
        from versatile.training.classification_text_model import SentenceClassifier

        return SentenceClassifier
    return TextModel


class TextModel:
    """A trained model as used by interact.py, returned by `versatile.load` and evaluated by `training.evaluation`.

    Attributes:
        directory: where it was loaded from.
        model, tokenizer: ready for inference; `model` is a transformers model whose `generate` takes `task_ids`.
        tasks: {name: `data.task.Task`} of those of its tasks that the toolkit knows.
        summary: what was trained, in words.
        backbone: the backbone's name.
        parameters: parameter counts, in the form that result summaries use.
        positions: the model's maximum sequence length.
        dtype: precision of the matrix products.
        cache_dir: directory of token caches (default: the toolkit's own).
        without_effect: {field of `Decoding` without effect: why}.
        unused_flags: {setting of a command line without effect: why}.
    """

    without_effect, unused_flags = {}, {}

    def __init__(self, directory, model, tokenizer, dtype, cache_dir=None):
        self.directory, self.model, self.tokenizer, self.dtype = directory, model, tokenizer, dtype
        self.summary, self.backbone, self.cache_dir = parameter_summary(model), model.config._name_or_path, cache_dir
        self.parameters, self.positions = count_parameters(model), max_length_of(model)
        prepare_for_inference(model, idist.device(), dtype)
        register_own_tasks(model.info.definitions.values())
        # A model may hold a task that the toolkit does not define, but such a task cannot be given texts.
        self.tasks = {name: task for name in model.info.tasks if (task := find_task(name))}

    @classmethod
    def load(cls, directory, task, dtype):
        """Load a model of this kind; see `load_text_model`."""
        return cls(directory, *checkpoint.load_checkpoint(directory, task), dtype)

    @classmethod
    def refuse_unused(cls, typed):
        """Raise a `UserError` for a setting in `typed`, {setting: its flag}, without effect on such a model."""
        for setting, flag in typed.items():
            if why := cls.unused_flags.get(setting):
                raise UserError(f"has no effect on a model of {cls.script}: {why}", location=flag,
                                remedy="leave it out")  # fmt: skip

    @property
    def names(self):
        """Names of all tasks that the model holds."""
        return list(self.model.info.tasks)

    def session(self, name, max_history=None):
        """The initial conversation state for `Task.typed`."""
        kept = max_history or self.model.info.histories.get(name)
        return dict(max_history=kept) if self.tasks[name].max_history and kept else {}

    def prompts(self, name, examples, reserve):
        """(prompts, {what was cut: how often}) of a task's examples; see `data.instances.prompts`."""
        return instances.prompts(self.tasks[name], self.model.task_id(name), self.tokenizer, examples, self.positions,
                                 reserve)  # fmt: skip

    def prompt_text(self, prompt):
        """A prompt as text, one line per marker, followed by the type if it is not the marker itself."""
        lines, start, name = [], 0, self.tokenizer.convert_ids_to_tokens
        for end in range(1, len(prompt.ids) + 1):
            if end == len(prompt.ids) or prompt.ids[end] >= self.model.info.first:
                text = self.tokenizer.decode(prompt.ids[start + 1 : end], clean_up_tokenization_spaces=False)
                marker, kind = name(prompt.ids[start]), name(prompt.types[start])
                lines.append(f"  {marker}{text}" + (f"   [type {kind}]" if kind != marker else ""))
                start = end
        return "\n".join(lines)

    def decode(self, prompts, decoding):
        """The model's output texts for some prompts."""
        return self._texts(decode(self.model, self.tokenizer, prompts, decoding, dtype=self.dtype))

    def _texts(self, outputs):
        return [self.tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() for ids in outputs]

    # ---- evaluation

    def describe(self):
        """The entries about the model for every summary."""
        return dict(checkpoint=str(self.directory), parameters=self.parameters, backbone=self.backbone)

    def predict(self, splits, decoding):
        """Answer all rows of splits, in batches that mix the tasks.

        Args:
            splits: a list of `training.evaluation.EvalSplit`.
            decoding: `Decoding`; None: only the losses are computed.

        Returns:
            ({task: `training.evaluation.Predictions`}, the entries about decoding for every summary)
        """
        # Before decoding, which takes long, so that a target that cannot be scored is found at once.
        losses = [self.negative_log_likelihood(split, decoding.batch_size) for split in splits]
        prompts, counts = [], []
        for split in splits:
            own, cut = self.prompts(split.name, split.examples, decoding.max_length)
            for why, count in cut.items():
                print(f"{split.name}: {counted(count, 'input')} cut ({why})")
            prompts += own
            counts.append(len(own))
        started = time.monotonic()
        with Progress(len(prompts), "decoding") as done:
            ids = decode(self.model, self.tokenizer, prompts, decoding, dtype=self.dtype, progress=done)
        seconds, tokens = time.monotonic() - started, sum(map(len, ids))
        texts = iter(self._texts(ids))
        predictions = {split.name: Predictions([next(texts) for _ in range(count)], *loss)
                       for split, count, loss in zip(splits, counts, losses)}  # fmt: skip
        return predictions, dict(
            decoding=vars(decoding), decode_seconds=round(seconds, 1), decode_tokens=tokens,
            decode_tokens_per_second=round(tokens / max(seconds, 1e-9), 1), tasks_of_model=self.names,
        )  # fmt: skip

    def negative_log_likelihood(self, split, batch_size):
        """(sum, number of labels) over the targets of a `training.evaluation.MarkerSplit`."""
        name = split.name
        encoded = load_split(split.path, split.split, split.task, self.tokenizer, self.positions, training=False,
                             options=split.options, cache_dir=self.cache_dir)  # fmt: skip
        batches = Batches({name: encoded}, {name: self.model.task_id(name)}, self.tokenizer.pad_token_id,
                          self.positions, limits={name: split.limit}, batch_size=batch_size, shuffle=False)  # fmt: skip
        return objectives.negative_log_likelihood(self.model, batches, self.dtype)

    def finish_evaluation(self, results, output_dir):
        """Print and write results over all tasks.

        Args:
            results: {task: `training.evaluation.TaskResult`}.
        """

    def generate_text(self, task, inputs, **settings):
        """The model's answers to inputs of a task.

        Args:
            task: its name.
            inputs: a text as typed into interact.py, or a list of texts. An input of a conversation is itself a list of
                lines: those that set the document or the persona, the turns so far, and the turn to be answered.
            settings: fields of `training.decoding.Decoding`, such as max_length=60, num_beams=4 or no_sample=False.

        Returns:
            the answer, or a list of answers.

        Raises:
            UserError: the model does not hold the task, a setting has no effect on it, or an input does not fit it.
        """
        self.refuse_unused({name: name for name in settings})
        if settings.get("no_sample") is False and (why := self.without_effect.get("no_sample")):
            raise UserError(f"has no effect on this model: {why}", location="no_sample", remedy="leave it out")
        if task not in self.tasks:
            raise UserError(f"the model holds no task {task!r} that takes texts", location=str(self.directory),
                            expected="one of " + ", ".join(self.tasks or self.names))  # fmt: skip
        decoding = Decoding.checked(settings).fitted(self.positions)
        single = isinstance(inputs, (str, dict))
        if not single and not isinstance(inputs, (list, tuple)):
            raise UserError(f"{brief(inputs)} is not a text", location="inputs", expected="a text or a list of texts")
        several = encodable([inputs] if single else list(inputs))
        examples = [self._example(task, lines, f"input {number}") for number, lines in enumerate(several, 1)]
        texts = self.decode(self.prompts(task, examples, decoding.max_length)[0], decoding) if several else []
        return texts[0] if single else texts

    def _example(self, name, lines, location):
        """The `Example` for one input, a text or the lines of a conversation."""
        example, session = None, self.session(name)
        for line in lines if isinstance(lines, (list, tuple)) else [lines]:
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
