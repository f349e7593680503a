"""A trained T5 of train_t5.py that answers texts."""

import ignite.distributed as idist
import torch
from versatile.adapters import t5
from versatile.data import text_to_text
from versatile.data.encoders.text_to_text import encode
from versatile.data.own_tasks import register_own_tasks
from versatile.data.prompt import Prompt
from versatile.data.task import find
from versatile.training import t5_directory, text_to_text_arguments
from versatile.training.text_model import TextModel
from versatile.utils import devices
from versatile.utils.devices import autocast


class T5TextModel(TextModel):
    """See `TextModel`. Inputs are worded as in training: "sentence1: … sentence2: …"; outputs are decoded by beams.

    Attributes:
        longest: tokens of an input at the most.
        prefixed: whether a task's name stands before every input.
    """

    without_effect = {
        **dict.fromkeys(("no_sample", "temperature", "top_k", "top_p", "seed"), "nothing is sampled"),
        "min_length": "outputs are as long as the task's answers", "length_penalty": "answers have no length to weigh",
    }  # fmt: skip

    def __init__(self, directory, task, dtype):
        known = text_to_text_arguments.restored(*t5_directory.run_flags(directory))
        register_own_tasks(known.get("task_definitions") or [])
        self.directory, self.dtype = directory, dtype
        self.model, self.tokenizer = t5.load(directory, task)
        self.summary, self.backbone = t5.parameter_summary(self.model), known.get("model_name_or_path")
        devices.prepare_for_device(self.model.eval(), idist.device(), dtype)
        # Relative positions have no end.
        self.longest, self.positions = known.get("max_source_length", 128), 1 << 20
        self.prefixed = not known.get("train_adapters", self.model.settings.method != "finetune")
        self.tasks = {name: found for name in self.model.tasks if (found := find(name))}

    @property
    def names(self):
        return list(self.model.tasks)

    def session(self, name, max_history=None):
        return dict(max_history=max_history) if self.tasks[name].max_history and max_history else {}

    def prompts(self, name, examples, reserve):
        task = text_to_text.get_task(name)
        head = f"{task.prefix or task.name} " if self.prefixed else ""
        encoded = list(encode(self.tokenizer, [head + example.source for example in examples], self.longest))
        prompts = [Prompt(ids, None, self.model.task_id(name), self.tokenizer.eos_token_id) for ids, _ in encoded]
        cut = sum(shortened for _, shortened in encoded)
        return prompts, {f"over {self.longest} tokens": cut} if cut else {}

    @torch.no_grad()
    def decode(self, prompts, decoding):
        device, texts = next(self.model.parameters()).device, []
        names = list(self.model.tasks)
        for prompt in prompts:
            task = text_to_text.get_task(names[prompt.task_id])
            ids = torch.tensor([prompt.ids], device=device)
            length = min(task.max_new_tokens(self.tokenizer), decoding.max_length)
            beams = max(decoding.num_beams, task.num_beams or 1)
            with autocast(device, self.dtype):
                output = self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), task_ids=torch.tensor([prompt.task_id]),
                    max_new_tokens=length, num_beams=beams, do_sample=False, early_stopping=False, use_cache=True,
                )  # fmt: skip
            texts.append(self.tokenizer.decode(output[0], skip_special_tokens=True).strip())
        return texts

    def prompt_text(self, prompt):
        return self.tokenizer.decode(prompt.ids, clean_up_tokenization_spaces=False)
