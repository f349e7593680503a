"""A trained BERT of train_camtl.py that predicts the class of a sentence or of a sentence pair."""

from dataclasses import dataclass

import ignite.distributed as idist
import torch
from versatile.adapters import bert
from versatile.data import glue, glue_files
from versatile.data.encoders.sentence_pair import PairEncoder, load_split
from versatile.data.glue_task import GlueExample
from versatile.data.own_tasks import register_own_tasks
from versatile.data.padding import tensors
from versatile.data.pair_batches import pair_inputs
from versatile.data.prompt import Prompt
from versatile.data.task import Example, Span, Task, resolve
from versatile.training import classification, runs
from versatile.training.evaluation import EvalSplit, Predictions, requested_tasks, task_data
from versatile.training.objectives import move_to_device
from versatile.training.text_model import TextModel
from versatile.utils import devices
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError
from versatile.utils.metrics import Score
from versatile.utils.screen import counted

SEPARATOR = "|||"
SPLITS = {"train": "train", "valid": "dev", "test": "test", None: "dev"}


class SentenceTask(Task):
    """A sentence classification task for typed input: one sentence, or two separated by `SEPARATOR`."""

    def __init__(self, form):
        known = resolve(form.name)
        self.name, self.form = form.name, form
        self.summary = known.summary if known else f"your own: {form.pairs.source}"
        self.sample = f" {SEPARATOR} ".join(["A man is reading a book.", "Somebody reads."][: len(form.columns)])

    def typed(self, text, session):
        texts = [part.strip() for part in text.split(SEPARATOR)]
        if len(texts) != len(self.form.columns) or not all(texts):
            raise UserError(counted(len([part for part in texts if part]), "sentence"), expected=self.sample)
        return Example([Span("", part) for part in texts], Span("", ""), text), session


@dataclass
class PairSplit(EvalSplit):
    """Labelled rows of a sentence classification task.

    Attributes:
        task: `data.glue.GlueTask`.
        rows: `data.token_cache.EncodedSplit`.
    """

    task: object
    rows: object
    sources = ()

    @property
    def split(self):
        return self.rows.split

    @property
    def references(self):
        return [[text] for text in in_words(self.task, self.rows.labels)]

    def score(self, predictions):
        scores = classification.score(self.name, self.rows, predictions.values)
        return {metric: Score(value, classification.signature(self.name, metric, self.split))
                for metric, value in scores.items()}, []  # fmt: skip

    def details(self, predictions):
        return dict(loss=predictions.nll / predictions.labels)


class SentenceClassifier(TextModel):
    """See `TextModel`: an answer is the most likely class and its probability, or a regression's score."""

    script = "train_camtl.py"
    without_effect = dict.fromkeys(
        ("no_sample", "temperature", "top_k", "top_p", "seed", "num_beams", "max_length", "min_length",
         "length_penalty"), "nothing is decoded: the answer is a class",
    )  # fmt: skip
    # Flags of evaluate.py and interact.py that have no effect here. (--no_sample and --seed request what is done.)
    unused_flags = {
        **dict.fromkeys(("adapter_bottleneck", "max_history", "emb_only", "outputlayer_only", "random_init",
                         "self_copy"), "no such ablation"),
        **{flag: "nothing is decoded" for flag in without_effect if flag not in ("no_sample", "seed")},
    }  # fmt: skip
    # Limits outputs, of which there are none.
    positions = 1 << 20

    def __init__(self, directory, model, tokenizer, dtype):
        self.directory, self.model, self.tokenizer, self.dtype = directory, model, tokenizer, dtype
        count = sum(parameter.numel() for parameter in model.parameters())
        self.summary, self.parameters = f"{count:,} parameters, form {model.form}", dict(total=count)
        self.backbone, self.longest = model.config._name_or_path, model.max_seq_length
        devices.prepare_for_device(model.eval(), idist.device(), dtype)
        self.tasks = {name: SentenceTask(glue.get_task(name)) for name in model.tasks}

    @classmethod
    def load(cls, directory, task, dtype):
        """The model of a run of train_camtl.py, or of one of its checkpoints; see `load_text_model`."""
        model, tokenizer = bert.load_classifier(directory, task)
        register_own_tasks(runs.stored_definitions(directory))
        if task is not None and task not in model.tasks:
            raise UserError(f"the model was not trained for {task}", location=f"--task {task}",
                            expected=f"one of {', '.join(model.tasks)}")  # fmt: skip
        model.aliases = glue.tasks_sharing_heads(model.tasks)
        return cls(directory, model, tokenizer, dtype)

    @property
    def names(self):
        return list(self.model.tasks)

    def session(self, name, max_history=None):
        return {}

    def prompts(self, name, examples, reserve):
        encoder, rows = PairEncoder(self.tokenizer, self.longest), []
        for example in examples:
            first, *second = (span.text for span in example.context)
            rows.append(GlueExample(0, first, second[0] if second else None, None, example.location))
        task_id, eos = self.model.task_id(name), self.tokenizer.sep_token_id
        encoded = [encoded for _, encoded in encoder.encode_all(self.tasks[name].form, rows)]
        return [Prompt(row.ids, row.types, task_id, eos) for row in encoded], dict(encoder.counts)

    @torch.no_grad()
    def decode(self, prompts, decoding):
        device, names = next(self.model.parameters()).device, list(self.model.tasks)
        batch = move_to_device(tensors(pair_inputs(prompts, self.tokenizer.pad_token_id, self.longest)), device)
        batch["task_ids"] = torch.tensor([prompt.task_id for prompt in prompts], device=device)
        with autocast(device, self.dtype):
            scores = self.model(**batch).scores.float().cpu()
        return [self.answer(names[prompt.task_id], row) for prompt, row in zip(prompts, scores)]

    def answer(self, name, scores):
        """The answer for one row of head scores, as text."""
        form = self.tasks[name].form
        if form.regression:
            return f"{float(scores[0]):.3f}"
        probability, label = scores.softmax(0).max(0)
        return f"{form.labels[int(label)]} {float(probability):.4f}"

    def prompt_text(self, prompt):
        return self.tokenizer.decode(prompt.ids, clean_up_tokenization_spaces=False)

    # ---- evaluation

    def read_splits(self, args, typed):
        """The splits requested from evaluate.py, a list of `PairSplit`; "all" includes MNLI's second dev set."""
        names = requested_tasks(args, self.model.tasks, "sentence_pair")
        classification.check_heads(self.model, names, f"--model_checkpoint {args.model_checkpoint}")
        split, splits = SPLITS[args.split], []
        for name in names:
            with task_data(args, typed, self.directory, name) as folder:
                if folder is None and not glue.get_task(name).pairs:
                    raise UserError("no data folder was named", location="--dataset_path",
                                    expected="GLUE in the official script's folders")  # fmt: skip
                sharing = glue_files.head_sharing_tasks_with_files([name], folder, split) if args.task == "all" else []
                splits += [PairSplit(glue.get_task(task), load_split(
                    folder, task, split, self.tokenizer, self.longest, limit=args.limit, cache_dir=args.token_cache_dir,
                )) for task in (name, *sharing)]  # fmt: skip
        for name, labels in ((part.name, part.rows.labels) for part in splits):
            if (labels != labels).any():
                raise UserError(f"the {args.split} rows of {name} have no labels", location=f"--split {args.split}",
                                expected="rows whose labels are known",
                                remedy="predict them: train_camtl.py --do_predict")  # fmt: skip
        return splits

    def describe(self):
        """The entries about the model for every summary."""
        return super().describe() | dict(method=runs.stored_record(self.directory).get("method"))

    def predict(self, splits, decoding):
        """See `TextModel.predict`: texts are class names or scores; the loss is per row, not per token."""
        predictions = {}
        for split in splits:
            values, losses = classification.predict(self.model, split.rows, decoding.batch_size,
                                                    self.tokenizer.pad_token_id, self.dtype)  # fmt: skip
            texts = in_words(split.task, values)
            predictions[split.name] = Predictions(texts, float(losses.sum()), len(losses), values)
        return predictions, {}

    def finish_evaluation(self, results, output_dir):
        reports = {name: dict(scores={metric: score.value for metric, score in result.scores.items()})
                   for name, result in results.items()}  # fmt: skip
        print(f"average: {100 * classification.average(reports):.1f}")


def in_words(task, values):
    """Predictions or labels as texts: class names or scores."""
    return [f"{value:.3f}" if task.regression else task.labels[int(value)] for value in values]
