"""Decode and score one task or several: what evaluate.py and evaluate_vlm.py share."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from versatile.data import cache, instances
from versatile.data.batching import Batches
from versatile.training import objectives, runs
from versatile.training.decoding import decode
from versatile.training.trainer import QUIET_SECONDS
from versatile.utils import metrics
from versatile.utils.files import atomic_write, write_json
from versatile.utils.lines import one_line


@dataclass
class EvalSplit:
    """One task to evaluate.

    Attributes:
        task: a `data.task.Task`.
        path, split: its data.
        options: `data.task.ReadOptions` that the model was trained with.
        examples: the instances, read by `part`.
    """

    task: object
    path: str
    split: str
    options: object
    examples: list


def own_evaluation(manifest):
    """What evaluates a model of train_t5.py or of train_camtl.py, called with (flags, those typed); None: another.

    Args:
        manifest: of `adapters.manifest.peek`.
    """
    encoder = manifest and manifest.encoder
    if encoder == "text_to_text":
        from versatile.training.text_to_text_evaluation import evaluate_run
    elif encoder == "sentence_pair":
        from versatile.training.classification_evaluation import evaluate_run
    else:
        return None
    return evaluate_run


def part(task, path, split, max_history, limit):
    """Read a task's instances: `EvalSplit`."""
    decoding = task.read_options(max_history, decoding=True)
    examples = instances.read(path, split, task, decoding, limit)
    return EvalSplit(task, path, split, task.read_options(max_history), examples)


def texts(model, tokenizer, parts, decoding, positions, dtype):
    """Decode all parts together.

    Returns:
        ({task: output texts}, tokens decoded, seconds)
    """
    prompts, counts = [], []
    for p in parts:
        own, cut = instances.prompts(p.task, model.task_id(p.task.name), tokenizer, p.examples, positions,
                                     decoding.max_length)  # fmt: skip
        for why, count in cut.items():
            print(f"{p.task.name}: {count} inputs cut ({why})")
        prompts += own
        counts.append(len(own))
    started = time.monotonic()
    with Progress(len(prompts), "decoding") as done:
        ids = decode(model, tokenizer, prompts, decoding, dtype=dtype, progress=done)
    seconds = time.monotonic() - started
    outputs = iter([tokenizer.decode(i, clean_up_tokenization_spaces=False).strip() for i in ids])
    named = {p.task.name: [next(outputs) for _ in range(count)] for p, count in zip(parts, counts)}
    return named, sum(map(len, ids)), seconds


def negative_log_likelihood(model, tokenizer, part, positions, dtype, limit=None, batch_size=32, cache_dir=None):
    """(sum, number of labels) over every record's own target."""
    name = part.task.name
    split = cache.load(part.path, part.split, part.task, tokenizer, positions, training=False, options=part.options,
                       cache_dir=cache_dir)  # fmt: skip
    batches = Batches({name: split}, {name: model.task_id(name)}, tokenizer.pad_token_id, positions,
                      limits={name: limit}, batch_size=batch_size, shuffle=False)  # fmt: skip
    return objectives.negative_log_likelihood(model, batches, dtype)


def evaluate(model, tokenizer, parts, decoding, *, positions, dtype, output_dir, samples=3, limit=None, cache_dir=None,
             **more):  # fmt: skip
    """Decode and score every part, print and write what came out.

    Args:
        model: an attached model, ready for inference.
        tokenizer: its tokenizer.
        parts: a list of `EvalSplit`; their inputs are decoded in batches that mix the tasks.
        decoding: `training.decoding.Decoding`.
        positions: the model's longest sequence.
        dtype: precision of the matrix products.
        output_dir: where the files go.
        samples: how many outputs of each task are printed.
        limit: how many examples of each split count.
        cache_dir: where tokenised data lie.
        **more: what every summary shall hold beside.

    Returns:
        {task: what its <task>_metrics.json holds}
    """
    for p in parts:
        instances.scored(p.examples, f"{p.path}:{p.split}")
    # Before decoding, which takes long: a target that cannot be scored is found at once.
    losses = [
        negative_log_likelihood(model, tokenizer, p, positions, dtype, limit, decoding.batch_size, cache_dir)
        for p in parts
    ]
    outputs, tokens, seconds = texts(model, tokenizer, parts, decoding, positions, dtype)
    speed = tokens / max(seconds, 1e-9)
    more |= dict(
        decoding=vars(decoding), precision=str(dtype).removeprefix("torch."), decode_seconds=round(seconds, 1),
        decode_tokens_per_second=round(speed, 1), versions=runs.versions(), tasks_of_model=model.info.tasks,
    )  # fmt: skip
    summaries = {}
    for p, (nll, labels) in zip(parts, losses):
        name, hypotheses = p.task.name, outputs[p.task.name]
        references = [e.references for e in p.examples]
        scores, notes = score(p.task, hypotheses, p.examples, f"{p.path}:{p.split}")
        scores["PPL"] = metrics.perplexity(nll, labels)
        write(output_dir, p.task, hypotheses, references, p.examples)
        summaries[name] = dict(
            task=name, split=p.split, scores=metrics.to_json(scores), headline=p.task.headline,
            instances=len(hypotheses), nll=nll / labels, labels=labels, dataset_path=str(p.path), **more,
        )  # fmt: skip
        write_json(Path(output_dir) / f"{name}_metrics.json", summaries[name])
        show(p.task, p.split, scores, notes, hypotheses, references)
        show_samples(hypotheses, p.examples, samples)
    print(f"decoded {tokens:,} tokens in {seconds:.1f} s ({speed:.0f} tokens/s); results in {output_dir}")
    return summaries


def score(task, hypotheses, examples, location):
    """A task's scores of those outputs whose examples have references, and notes: see `data.instances.scored`."""
    numbers, references, blank = instances.scored(examples, location)
    details = [examples[i].details for i in numbers]
    scores, notes = task.score([hypotheses[i] for i in numbers], references, details)
    return scores, [*notes, *blank]


def show(task, what, scores, notes, hypotheses, references):
    """Print a task's scores as a table."""
    print(f"\n{task.name}, {what}: {len(hypotheses)} instances, {sum(map(len, references))} references\n"
          f"{metrics.table(scores)}\n")  # fmt: skip
    for note in notes:
        print(f"{note}\n")
    if empty := sum(not t for t in hypotheses):
        print(f"{empty} of {len(hypotheses)} outputs are empty\n")


def show_samples(hypotheses, examples, count):
    """Print the first outputs beside their inputs and references."""
    for example, text in list(zip(examples, hypotheses))[:count]:
        print(f"input      {example.source}\noutput     {text}\nreference  {example.references[0]}\n")


def write(folder, task, hypotheses, references, examples=None):
    """`write_texts`; with examples their inputs and the task's own files as well."""
    examples = examples or []
    write_texts(folder, task.name, hypotheses, references, [e.source for e in examples])
    for ending, content in (task.files(hypotheses, [e.details for e in examples]) if examples else {}).items():
        path = Path(folder) / f"{task.name}_{ending}"
        if isinstance(content, str):
            with atomic_write(path) as file:
                file.write(content)
        else:
            write_json(path, content)


def write_texts(folder, name, hypotheses, references, sources=()):
    """<task>_output.txt and <task>_ref.txt, one line for each example; with sources <task>_outputs.jsonl as well.

    Args:
        references: a list for each hypothesis; the first is written as text.
    """
    files = {"output.txt": lines(hypotheses), "ref.txt": lines(r[0] for r in references)}
    if sources:
        rows = (dict(source=s, references=r, hypothesis=t) for s, r, t in zip(sources, references, hypotheses))
        files["outputs.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for ending, content in files.items():
        with atomic_write(Path(folder) / f"{name}_{ending}") as file:
            file.write(content)


def lines(texts):
    """Texts, one a line."""
    return "".join(one_line(t) + "\n" for t in texts)


class Progress:
    """A progress bar, with the time left, as a callback that takes the number done so far.

    Without a terminal there is no bar; a line is printed now and then instead.
    """

    def __init__(self, total, what, initial=0):
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc=what, initial=initial, disable=None)
        self.total, self.what, self.initial = total, what, initial
        self.started = self.told = time.monotonic()

    def __enter__(self):
        return self.update

    def update(self, done):
        """So many are done."""
        now = time.monotonic()
        if not self.bar.disable:
            self.bar.update(done - self.bar.n)
        elif now - self.told > QUIET_SECONDS:
            self.told = now
            left = (self.total - done) * (now - self.started) / max(done - self.initial, 1)
            print(f"{self.what}: {done:,} of {self.total:,}, about {left / 60:.1f} min left", flush=True)

    def __exit__(self, *error):
        self.bar.close()
