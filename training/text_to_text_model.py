"""A text-to-text model (train_t5.py), trained or in training."""

import ignite.distributed as idist
import torch
from versatile.adapters import t5
from versatile.adapters.inference import prepare_for_inference
from versatile.adapters.preallocated_cache import cache_argument
from versatile.data import text_to_text
from versatile.data.encoders.text_to_text import TextEncoder
from versatile.data.own_tasks import register_own_tasks
from versatile.data.prompt import Prompt
from versatile.data.task import Example, Span, find_task
from versatile.data.text_to_text_batches import Collator
from versatile.training import continuous_batching, text_to_text_arguments, text_to_text_evaluation
from versatile.training.decoding import Decoding, decode
from versatile.training.evaluation import Predictions
from versatile.training.objectives import cross_entropy, move_to_device
from versatile.training.runs import run_flags
from versatile.training.text_model import TextModel
from versatile.utils.devices import autocast
from versatile.utils.errors import UserError
from versatile.utils.lengths import IGNORE

LABELS = "outputs are as long as the task's longest label"


class TextToTextModel(TextModel):
    """See `TextModel`. Inputs are worded as in training: "sentence1: … sentence2: …"; each task has its own beam size.

    Args:
        model: a `TaskT5`, or a T5 without tasks, of which only the loss is computed.
        tokenizer: its tokenizer.
        dtype: precision of the matrix products.
        batch_size: rows per batch.
        share: (this process, number of processes): each takes its share of every split's rows.
        gather: concatenates a tensor from all processes along its first dimension.
        fixed_lengths, has_tasks: see `Collator`, where they are called `lengths` and `tasks`.

    Attributes:
        flags: flags of the model's run.
        longest: maximum tokens of an input.
        has_prefix: whether every input starts with its task's prefix (published: only without adapters).
    """

    script = "train_t5.py"
    without_effect = {
        **dict.fromkeys(("no_sample", "temperature", "top_k", "top_p", "seed"), "nothing is sampled"),
        **dict.fromkeys(("min_length", "max_length"), LABELS), "length_penalty": "labels have no length to weigh",
    }  # fmt: skip
    # Flags of evaluate.py and interact.py that have no effect here. (--no_sample and --seed request what is done.)
    unused_flags = {
        **dict.fromkeys(("emb_only", "outputlayer_only", "random_init", "self_copy"), "no such ablation"),
        **{flag: why for flag, why in without_effect.items() if flag not in ("no_sample", "seed")},
        "adapter_bottleneck": "the checkpoint knows its own", "max_history": "a task has no history",
    }  # fmt: skip
    text_tasks = {}
    # Relative positions are unlimited.
    positions = 1 << 20

    def __init__(self, model, tokenizer, dtype=torch.float32, batch_size=32, *, share=(0, 1), gather=idist.all_gather,
                 fixed_lengths=None, has_tasks=True):  # fmt: skip
        self.model, self.tokenizer, self.dtype, self.batch_size = model, tokenizer, dtype, batch_size
        self.share, self.gather, self.has_tasks, self.flags = share, gather, has_tasks, {}
        self.collate = Collator(tokenizer.pad_token_id, self.start, lengths=fixed_lengths, tasks=has_tasks)

    @classmethod
    def load(cls, directory, task, dtype):
        """Load the model of a run of train_t5.py or of one of its checkpoints; `task` is one it must hold, or None.

        Raises:
            UserError: there is no such model, or no run.json that says how it was trained.
        """
        flags = text_to_text_arguments.restored(*run_flags(directory))
        register_own_tasks(flags.get("task_definitions") or [])
        text_model = cls(*t5.load_t5(directory, task), dtype)
        text_model.bind_run(directory, flags)
        text_model.counts = t5.count_parameters(text_model.model)
        prepare_for_inference(text_model.model, idist.device(), dtype)
        return text_model

    def bind_run(self, directory, flags):
        """Set the run that the model comes from, and the run's flags."""
        self.directory, self.flags, self.longest = directory, flags, flags.get("max_source_length", 128)
        self.has_prefix = not flags.get("train_adapters", self.model.settings.method != "finetune")
        self.summary = t5.parameter_summary(self.model)
        self.backbone = flags.get("model_name_or_path") or flags.get("config_name")
        self.tasks = {name: find_task(name) for name in self.model.tasks}
        # Looked up once: another model may register an own task of the same name later.
        self.text_tasks = {name: text_to_text.get_task(name) for name, task in self.tasks.items() if task}

    def text_task(self, name):
        """A task in the form for texts, as the model was trained on it."""
        return self.text_tasks.get(name) or text_to_text.get_task(name)

    @property
    def start(self):
        # T5's decoder starts with the padding token.
        return self.tokenizer.pad_token_id

    @property
    def names(self):
        return list(self.model.tasks)

    # ---- typed inputs

    def session(self, name, max_history=None):
        return dict(max_history=max_history) if self.tasks[name].max_history and max_history else {}

    def prompts(self, name, examples, reserve):
        task = self.text_task(name)
        head = f"{task.prefix or task.name} " if self.has_prefix else ""
        encoder = TextEncoder(self.tokenizer, (self.longest,))
        rows = encoder.encode_all(task, (text_to_text.TextExample(head + example.source, None) for example in examples))
        prompts = [Prompt(row.ids, None, self.model.task_id(name), encoder.eos) for _, row in rows]
        return prompts, {f"over {self.longest} tokens": count for count in encoder.counts.values()}

    def decode(self, prompts, decoding):
        self.batch_size, texts = decoding.batch_size, [None] * len(prompts)
        for task_id in {prompt.task_id for prompt in prompts}:
            numbers = [number for number, prompt in enumerate(prompts) if prompt.task_id == task_id]
            rows = [dict(input_ids=prompts[i].ids, labels=[prompts[i].eos_id], task_id=task_id) for i in numbers]
            task = self.text_task(self.names[task_id])
            # num_beams of 1 is the default of `Decoding`, not a request.
            beams = decoding.num_beams if decoding.num_beams > 1 else self.flags.get("eval_beams") or task.num_beams
            lengths = [len(row["input_ids"]) for row in rows]
            outputs = self.generate(rows, lengths, task.max_new_tokens(self.tokenizer), beams or 1)
            for number, text in zip(numbers, outputs):
                texts[number] = text
        return texts

    def prompt_text(self, prompt):
        return self.tokenizer.decode(prompt.ids, clean_up_tokenization_spaces=False)

    def _example(self, name, lines, location):
        """The `Example` for a text in the task's wording, a dict of its columns, or the lines of a conversation."""
        if isinstance(lines, dict):
            task = self.text_task(name)
            try:
                lines = task.template.format(**lines)
            except (KeyError, IndexError) as error:
                raise UserError(f"has no column {error}", location=location,
                                expected=", ".join(task.fields())) from error  # fmt: skip
        if isinstance(lines, str):
            return Example([Span("", lines)], Span("", ""), lines)
        return super()._example(name, lines, location)

    # ---- evaluation

    def read_splits(self, args, typed):
        """The splits requested from evaluate.py: a list of `text_to_text_evaluation.TextSplit`."""
        return text_to_text_evaluation.read_run_splits(self, args, typed)

    def describe(self):
        """The entries about the model for every summary: its method, backbone and parameters."""
        counts = self.counts
        parameters = dict(adapters=counts["adapters"] + counts["hypernetworks"], task_rows=counts["task_embeddings"],
                          backbone=counts["backbone"] + counts["layer_norms"], total=counts["total"])  # fmt: skip
        return dict(checkpoint=str(self.directory), method=self.model.settings.method, ledger=counts,
                    backbone=self.backbone, parameters=parameters)  # fmt: skip

    def finish_evaluation(self, results, output_dir):
        text_to_text_evaluation.finish_run_evaluation(results, output_dir)

    def predict(self, splits, decoding):
        """See `TextModel.predict`; each split has its own output length and beam size."""
        self.batch_size = decoding.batch_size if decoding else self.batch_size
        predictions = {}
        for split in splits:
            loss, lengths = self.negative_log_likelihood(split.rows), split.rows.sources.lengths()
            texts = self.generate(split.rows, lengths, split.length, split.beams) if decoding else None
            predictions[split.name] = Predictions(texts, *loss)
        return predictions, {}

    def share_of(self, lengths):
        """The numbers of this process's rows, sorted by length."""
        order = sorted(range(len(lengths)), key=lambda i: (int(lengths[i]), i))
        rank, world = self.share
        return order[rank::world]

    def batches(self, rows, lengths):
        """Yield (row numbers, batch) of this process's rows."""
        mine = self.share_of(lengths)
        for first in range(0, len(mine), self.batch_size):
            numbers = mine[first : first + self.batch_size]
            yield numbers, move_to_device(self.collate([rows[i] for i in numbers]), self.device)

    @property
    def device(self):
        return next(self.model.parameters()).device

    @torch.no_grad()
    def negative_log_likelihood(self, rows):
        """(sum in nats, number of target tokens) of `data.text_to_text_batches.Rows`; the model's mode is restored."""
        training = self.model.training
        self.model.eval()
        total = torch.zeros(1, 2, dtype=torch.float64)
        for _, batch in self.batches(rows, rows.sources.lengths()):
            with autocast(self.device, self.dtype):
                nll = cross_entropy(self.model, batch, 1)
            total += torch.tensor([float(nll), float((batch["labels"] != IGNORE).sum())], dtype=torch.float64)
        self.model.train(training)
        nll, count = self.gather(total.float().to(self.device)).double().sum(0).tolist()
        return nll, round(count)

    @torch.no_grad()
    def generate(self, rows, lengths, length, beams):
        """The output texts of rows, in row order.

        Args:
            rows: a sequence of rows for `Collator`; `lengths`: their source lengths in tokens.
            length: maximum tokens of an output.
            beams: beam size.
        """
        share, training = -(-len(rows) // self.share[1]), self.model.training
        self.model.eval()
        # The same shape in all processes: [rows, row number and tokens].
        tokens = torch.full((share, 1 + length), self.tokenizer.pad_token_id)
        tokens[:, 0] = -1
        for at, (number, ids) in enumerate(self.outputs(rows, lengths, length, beams)):
            tokens[at, 0], tokens[at, 1 : 1 + len(ids)] = number, torch.tensor(ids)
        self.model.train(training)
        rows = sorted(row for row in self.gather(tokens.to(self.device)).tolist() if row[0] >= 0)
        texts = self.tokenizer.batch_decode([row[1:] for row in rows], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def outputs(self, rows, lengths, length, beams):
        """(row number, token ids) of this process's rows, in any order; arguments as for `generate`.

        Greedy search uses `decode`, beam search uses transformers. Greedy ids are the same as with transformers' greedy
        search: neither special tokens nor an immediate end are forbidden.
        """
        own, numbers = self.model.generation_config, self.share_of(lengths)
        # min_length in a model's generation config counts the start token.
        least = max(0, (own.min_length or 0) - 1)
        decoding = Decoding(max_length=length, min_length=least, num_beams=beams, batch_size=self.batch_size)
        if not self.is_continuous(decoding):
            return self._outputs_of_generate(rows, lengths, length, beams)
        prompts = [Prompt(row["input_ids"], None, row["task_id"], own.eos_token_id)
                   for row in (rows[i] for i in numbers)]  # fmt: skip
        return zip(numbers, decode(self.model, self.tokenizer, prompts, decoding, dtype=self.dtype, special=()))

    def is_continuous(self, decoding):
        """Whether continuous batching in `decode` reproduces `generate` with the model's own settings."""
        # XLA compiles for every new shape, and continuous batching has many.
        if self.collate.lengths is not None:
            return False
        # Only `generate` supports several end tokens, and start tokens per row.
        own = self.model.generation_config
        are_single = isinstance(own.eos_token_id, int) and isinstance(own.decoder_start_token_id, int)
        return are_single and continuous_batching.is_supported(self.model, decoding)

    def _outputs_of_generate(self, rows, lengths, length, beams):
        for numbers, batch in self.batches(rows, lengths):
            # Passed in each call, so that one task's settings do not affect the next.
            wanted = {k: batch[k] for k in ("input_ids", "attention_mask", "task_ids")} | cache_argument(self.model)
            with autocast(self.device, self.dtype):
                ids = self.model.generate(**wanted, max_new_tokens=length, num_beams=beams, do_sample=False,
                                          early_stopping=False, use_cache=True)  # fmt: skip
            yield from zip(numbers, ids[:, 1 : 1 + length].tolist())
