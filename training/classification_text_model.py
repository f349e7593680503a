"""A trained BERT of train_camtl.py that says the class of a sentence, or of two."""

from dataclasses import dataclass

import ignite.distributed as idist
import torch
from versatile.adapters import bert
from versatile.data import glue
from versatile.data.encoders.sentence_pair import encode
from versatile.data.own_tasks import register_own_tasks
from versatile.data.pair_batches import pad, tensors
from versatile.data.prompt import Prompt
from versatile.data.task import Example, Span, Task, resolve
from versatile.training import runs
from versatile.training.objectives import move
from versatile.training.text_model import TextModel
from versatile.utils import devices
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError
from versatile.utils.screen import counted

SEPARATOR = "|||"


class SentenceTask(Task):
    """A task of sentences with a class, as a person types it: one sentence, or two with `SEPARATOR` between them."""

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
class SentencePrompt(Prompt):
    """A row for a BERT; `first`: how many of its ids are [CLS] a [SEP]."""

    first: int = 0


class SentenceClassifier(TextModel):
    """See `TextModel`: an answer is the likeliest class and its probability, or a regression's score."""

    without_effect = dict.fromkeys(
        ("no_sample", "temperature", "top_k", "top_p", "seed", "num_beams", "max_length", "min_length",
         "length_penalty"), "nothing is decoded: the answer is a class",
    )  # fmt: skip

    def __init__(self, directory, task, dtype):
        self.directory, self.dtype = directory, dtype
        self.model, self.tokenizer = bert.load(directory)
        register_own_tasks(runs.stored(directory).get("flags", {}).get("task_definitions") or ())
        count = sum(parameter.numel() for parameter in self.model.parameters())
        self.summary = f"{count:,} parameters, form {self.model.form}"
        self.backbone, self.longest = self.model.config._name_or_path, self.model.max_seq_length
        # Of outputs, of which there are none.
        self.positions = 1 << 20
        devices.prepare_for_device(self.model.eval(), idist.device(), dtype)
        self.tasks = {name: SentenceTask(glue.get_task(name)) for name in self.model.tasks}
        if task is not None and task not in self.tasks:
            raise UserError(f"the model was not trained for {task}", location=f"--task {task}",
                            expected=f"one of {', '.join(self.tasks)}")  # fmt: skip

    @property
    def names(self):
        return list(self.model.tasks)

    def session(self, name, max_history=None):
        return {}

    def prompts(self, name, examples, reserve):
        rows = []
        for example in examples:
            first, *second = (span.text for span in example.context)
            rows.append(glue.GlueExample(0, first, second[0] if second else None, None, example.location))
        encoded = list(encode(self.tokenizer, rows, self.longest))
        task_id, eos = self.model.task_id(name), self.tokenizer.sep_token_id
        cut = sum(shortened for *_, shortened in encoded)
        prompts = [SentencePrompt(ids, None, task_id, eos, first) for ids, first, _ in encoded]
        return prompts, {f"over {self.longest} tokens": cut} if cut else {}

    @torch.no_grad()
    def decode(self, prompts, decoding):
        device, names = next(self.model.parameters()).device, list(self.model.tasks)
        arrays = pad([prompt.ids for prompt in prompts], [prompt.first for prompt in prompts],
                     self.tokenizer.pad_token_id, self.longest)  # fmt: skip
        batch = move(tensors(arrays), device)
        batch["task_ids"] = torch.tensor([prompt.task_id for prompt in prompts], device=device)
        with autocast(device, self.dtype):
            scores = self.model(**batch).scores.float().cpu()
        return [self.answer(names[prompt.task_id], row) for prompt, row in zip(prompts, scores)]

    def answer(self, name, scores):
        """A row of head scores in words."""
        form = self.tasks[name].form
        if form.regression:
            return f"{float(scores[0]):.3f}"
        probability, label = scores.softmax(0).max(0)
        return f"{form.labels[int(label)]} {float(probability):.4f}"

    def prompt_text(self, prompt):
        return self.tokenizer.decode(prompt.ids, clean_up_tokenization_spaces=False)
