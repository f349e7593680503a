#!/usr/bin/env python
"""Decode a split with a trained single-task model and score it.

  one CPU or one GPU (a GPU is used where there is one):
    python evaluate.py --task nlg --no_sample --model_checkpoint runs/<run> --dataset_path data/samples/nlg.json
  beams, a few examples only:
    python evaluate.py --task mt --no_sample --num_beams 4 --limit 100 --model_checkpoint runs/<run>
  score outputs of any system, without a model:
    python evaluate.py --task nlg --score_only hyps.txt --references refs.txt

--model_checkpoint takes a run of train.py, one of its checkpoints/step_N, a checkpoint released with the original
VLM code, or a bare backbone (smollm2, gpt2, …) to see what it does untrained. Written to --output_dir:
<task>_output.txt and <task>_ref.txt (one line an example), <task>_outputs.jsonl, metrics.json.
"""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from utils import flags
from utils.devices import add_precision_flags
from utils.errors import UserError, exit_on_user_error


def parser():
    p = flags.parser(__doc__)
    g = p.add_argument_group("what to evaluate")
    g.add_argument("--task", help="the task; see --list_tasks")
    g.add_argument("--model_checkpoint", help="a run directory, a released checkpoint, or a bare backbone")
    g.add_argument("--dataset_path", help="the task's json file (default: the task's own place under data/)")
    g.add_argument("--split", choices=["train", "valid", "test"], help="which split (default: the task's scored split)")
    g.add_argument("--limit", type=flags.positive, help="only the first so many instances")
    g.add_argument("--adapter_bottleneck", type=flags.bottleneck, metavar="N", help="if given, the checkpoint's own")
    g.add_argument("--max_history", type=flags.positive, default=2, help="turns of history, in dialogue-like tasks")
    g.add_argument("--list_tasks", action="store_true", help="print the known tasks and stop")
    g = p.add_argument_group("decoding")
    g.add_argument("--no_sample", action="store_true", help="greedy (or beam) search instead of sampling")
    g.add_argument("--num_beams", type=flags.positive, default=1, help="width of the beam")
    g.add_argument("--length_penalty", type=float, default=1.0, help="of beam search; above 0 favours longer outputs")
    g.add_argument("--temperature", type=flags.rate, default=0.7, help="of sampling")
    g.add_argument("--top_k", type=flags.not_negative, default=0, help="sample from the k likeliest; 0: all")
    g.add_argument("--top_p", type=flags.share, default=0.9, help="sample from the likeliest of this joint probability")
    g.add_argument("--max_length", type=flags.positive, default=150, help="tokens an output at the most")
    g.add_argument("--min_length", type=flags.not_negative, default=1, help="tokens an output at the least")
    g.add_argument("--batch_size", type=flags.positive, default=32, help="examples decoded together")
    g.add_argument("--seed", type=flags.not_negative, default=42, help="of sampling")
    add_precision_flags(p)
    g = p.add_argument_group("output")
    g.add_argument("--output_dir", help="where results go (default: results/adapter_result or results/GPT2_result)")
    g.add_argument("--samples", type=flags.not_negative, default=3, help="how many outputs to print")
    g.add_argument("--cache_dir", help="where tokenised data lie (default: $VERSATILE_CACHE or ~/.cache/versatile)")
    g = p.add_argument_group("scoring alone")
    g.add_argument("--score_only", metavar="FILE", help="score this file, one output a line, instead of decoding")
    g.add_argument("--references", metavar="FILE",
                   help="its references: those of one output one a line, outputs separated by empty lines; "
                        "or one a line (default: those of the data set)")  # fmt: skip
    return p


@exit_on_user_error
def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if args.list_tasks:
        flags.list_tasks()
    if not args.task:
        p.error("--task is needed")
    if not args.model_checkpoint and not args.score_only:
        p.error("--model_checkpoint is needed (or --score_only FILE)")
    if args.references and not args.score_only:
        p.error("--references goes with --score_only")
    if args.min_length > args.max_length:
        p.error(f"--min_length {args.min_length} is more than --max_length {args.max_length}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes would write the same files", place="torchrun",
                        remedy="evaluate in one process: python evaluate.py …")  # fmt: skip
    from data.task import get

    task = get(args.task)
    if not (args.score_only and args.references):
        args.dataset_path = task.data_path(args.dataset_path)
    args.split = args.split or task.scored_split
    if args.score_only:
        score_files(args, task)
    else:
        evaluate(args, task)


def score_files(args, task):
    """Score an output file against a reference file or the data set's references."""
    from utils import metrics
    from utils.files import writable_directory

    if args.output_dir:
        writable_directory(args.output_dir, "--output_dir")
    hypotheses = metrics.read_lines(args.score_only)
    if args.references:
        references = metrics.read_references(args.references)
    else:
        references = [e.references for e in read_examples(args, task)]
    metrics.check_counts(hypotheses, references)
    report(args, task, hypotheses, references, dict(score_only=args.score_only), write=bool(args.output_dir))


def evaluate(args, task):
    import ignite.distributed as idist
    import torch

    from adapters import attach as adapting
    from adapters.backbones import family_of
    from utils import devices, runs
    from utils.decoding import Decoding, decode
    from utils.files import writable_directory

    devices.quiet_libraries()
    device = idist.device()
    dtype = devices.precision(args, device)
    examples = read_examples(args, task)
    model, tokenizer = load_model(args, task)
    mode = "GPT2_result" if model.info.mode == "full" else "adapter_result"
    args.output_dir = args.output_dir or f"results/{mode}"
    writable_directory(args.output_dir, "--output_dir")
    parameters = adapting.ledger(model)
    model.requires_grad_(False).to(device)
    if dtype != torch.float32:
        adapting.halve_frozen(model, dtype)
    devices.settle(model, device, dtype)

    positions = family_of(model.config).positions(model.config)
    decoding = Decoding(**{f: getattr(args, f) for f in Decoding.__dataclass_fields__})
    if decoding.max_length > positions // 2:
        decoding.max_length = positions // 2
        print(f"--max_length: cut to {positions // 2}, half of the model's {positions} positions")
        decoding.min_length = min(decoding.min_length, decoding.max_length)
    prompts, eos_id = encode_prompts(task, tokenizer, examples, positions, decoding.max_length)
    # Before decoding, which takes long: a target that cannot be scored is found at once.
    nll, labels = likelihood(args, task, model, tokenizer, positions, dtype)
    started = time.time()
    with progress(len(prompts), "decoding") as done:
        ids = decode(model, tokenizer, prompts, model.task_id(task.name), eos_id, decoding, dtype=dtype, progress=done)
    seconds = time.time() - started
    tokens = sum(map(len, ids))
    speed = tokens / max(seconds, 1e-9)
    texts = [tokenizer.decode(i, clean_up_tokenization_spaces=False).strip() for i in ids]
    more = dict(
        checkpoint=str(args.model_checkpoint), split=args.split, decoding=vars(decoding),
        precision=str(dtype).removeprefix("torch."), decode_seconds=round(seconds, 1),
        decode_tokens_per_second=round(speed, 1), parameters=parameters,
        versions=runs.versions(), nll=nll / labels, labels=labels,
    )  # fmt: skip
    if empty := sum(not t for t in texts):
        print(f"{empty} of {len(texts)} outputs are empty")
    report(args, task, texts, [e.references for e in examples], more, examples, (nll, labels))
    print(f"decoded {tokens:,} tokens in {seconds:.1f} s ({speed:.0f} tokens/s); results in {args.output_dir}")


def read_examples(args, task):
    """The split's instances with all their references, in file order."""
    from data.files import iter_records

    merged = {}
    for place, record in iter_records(args.dataset_path, args.split):
        example = task.example(record, place)
        if not example.references:
            raise UserError("no reference to score against", place=place, expected="a target or a list of references")
        # Equal inputs are one instance: a meaning representation is described by several people.
        key = example.source if task.merge_references else len(merged)
        if key in merged:
            known = merged[key].references
            known += [r for r in example.references if r not in known]
        elif not args.limit or len(merged) < args.limit:
            merged[key] = replace(example, references=list(example.references))
        elif not task.merge_references:
            break
    return list(merged.values())


def load_model(args, task):
    """The checkpoint's model, or a bare backbone with untrained task rows."""
    import torch

    from adapters import backbones, checkpoint
    from adapters.attach import attach

    if checkpoint.is_checkpoint(args.model_checkpoint):
        model, tokenizer = checkpoint.load(args.model_checkpoint, task.name)
    else:
        model, tokenizer = backbones.load(args.model_checkpoint)
        torch.manual_seed(args.seed)
        attach(model, tokenizer, {task.name: task.markers}, {task.name: 0})
        print(f"{args.model_checkpoint} is a bare backbone: evaluating it with untrained task embeddings")
    held = model.info.bottlenecks.get(task.name, -1)
    if args.adapter_bottleneck not in (None, held):
        kind = {-1: "is fully fine-tuned, without an adapter", 0: "has no adapter"}
        found = f"{args.model_checkpoint} {kind.get(held, f'has an adapter of bottleneck {held}')}"
        raise UserError(found, place=f"--adapter_bottleneck {args.adapter_bottleneck}", remedy="leave the flag out")
    return model, tokenizer


def encode_prompts(task, tokenizer, examples, positions, reserve):
    """([(ids, types)], id of the end token); what had to be cut is reported."""
    from data.encoding import Encoder

    encoder = Encoder(tokenizer, task, positions, reserve)
    bare = [replace(e, target=replace(e.target, text="")) for e in examples]
    prompts = [e.prompt for e in encoder.encode(bare)]
    for why, count in encoder.counts.items():
        print(f"{count} inputs cut: {why}")
    return prompts, encoder.marker_ids[task.eos]


def likelihood(args, task, model, tokenizer, positions, dtype):
    """(summed negative log-likelihood, number of labels) over every record's own target."""
    from data import cache
    from data.batching import Batches
    from utils.training import likelihood as measure

    split = cache.load(args.dataset_path, args.split, task, tokenizer, positions, training=False,
                       cache_dir=args.cache_dir)  # fmt: skip
    batches = Batches({task.name: split}, {task.name: model.task_id(task.name)}, tokenizer.pad_token_id, positions,
                      limit=args.limit, batch_size=args.batch_size, shuffle=False)  # fmt: skip
    return measure(model, batches, dtype)


def report(args, task, hypotheses, references, more, examples=None, likelihood=None, write=True):
    """Score, print the table and samples, write the files."""
    from utils import metrics
    from utils.files import atomic_write, write_json

    scores, notes = task.score(hypotheses, references)
    if likelihood:
        scores["PPL"] = metrics.perplexity(*likelihood)
    print(f"\n{task.name}, {args.split if examples else args.score_only}: {len(hypotheses)} instances, "
          f"{sum(map(len, references))} references\n{metrics.table(scores)}\n")  # fmt: skip
    for note in notes:
        print(f"{note}\n")
    for example, text in list(zip(examples or [], hypotheses))[: args.samples]:
        print(f"input      {example.source}\noutput     {text}\nreference  {example.references[0]}\n")
    if not write:
        return
    folder = Path(args.output_dir)
    with atomic_write(folder / f"{task.name}_output.txt") as file:
        file.writelines(one_line(t) + "\n" for t in hypotheses)
    with atomic_write(folder / f"{task.name}_ref.txt") as file:
        file.writelines(one_line(r[0]) + "\n" for r in references)
    if examples:
        import json

        with atomic_write(folder / f"{task.name}_outputs.jsonl") as file:
            for e, text in zip(examples, hypotheses):
                row = dict(source=e.source, references=e.references, hypothesis=text)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    summary = dict(task=task.name, scores=metrics.to_json(scores), instances=len(hypotheses), **more)
    write_json(folder / "metrics.json", summary)


def one_line(text):
    """Line breaks written as \\n and \\r: a file of outputs has one line an example."""
    if "\n" not in text and "\r" not in text:
        return text
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


class progress:
    """A progress bar as a callback that takes the number done so far."""

    def __init__(self, total, what):
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc=what, disable=None)

    def __enter__(self):
        return lambda done: self.bar.update(done - self.bar.n)

    def __exit__(self, *error):
        self.bar.close()


if __name__ == "__main__":
    sys.exit(main())
