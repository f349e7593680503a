#!/usr/bin/env python
"""Memory of training on a large data set: a million examples against a thousand, through the real scripts.

  one CPU (a few minutes a script, some hundred MB of disk for a while):
    OMP_WAIT_POLICY=PASSIVE python bench/memory.py
    OMP_WAIT_POLICY=PASSIVE python bench/memory.py --scripts train_t5 train_camtl train_lifelong
  one GPU: the same; what is measured is the process's memory on the CPU's side.

Writes a data file, record by record, into a temporary directory and trains a tiny model on it for a few steps,
tokenising included. Reported is the largest resident set of that process (VmHWM).
"""

import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import common

TARGET_MB = 300
SOME_STEPS = 5
NAMES = ["Alimentum", "Aromi", "Bibimbap House", "Blue Spice", "Clowns", "Cocum", "Cotto", "The Eagle", "Fitzbillies"]
FOODS = ["Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"]
AREAS = ["city centre", "riverside"]
SOURCE = '"src": {{"name": "{name}", "eatType": "restaurant", "food": "{food}", "area": "{area}"}}'
TARGET = '"tgt": "{name} is a restaurant number {number} that serves {food} food in the {area}."'


def parse(argv=None):
    from versatile.utils import flags

    p = common.parser(__doc__, json_only=True)
    g = p.add_argument_group("what to run")
    g.add_argument("--scripts", nargs="+", choices=list(RUNS), default=["train"], help="what trains (default: train)")
    g.add_argument("--examples", type=flags.positive, default=1_000_000, help="examples of the large data set")
    g.add_argument("--few", type=flags.positive, default=1000, help="examples of the small data set")
    g.add_argument("--max_steps", type=flags.positive, default=5, help="optimizer steps of each run")
    g.add_argument("--temp_dir", help="where the file and the token cache lie meanwhile (default: the system's)")
    args = p.parse_args(argv)
    if args.quick:
        args.examples, args.few, args.max_steps = 2000, 200, 1
    return args


def main(argv=None):
    args = parse(argv)
    # This process imports no torch: none of its memory can be taken for the training's.
    print(f"hardware: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    results = {}
    for script in args.scripts:
        with tempfile.TemporaryDirectory(dir=args.temp_dir) as folder:
            results[script] = compare(script, Path(folder), args)
    common.save(args, **(results if len(results) > 1 else results[args.scripts[0]]))


def compare(script, folder, args):
    """Run a script on few and on many examples: {above_mb, few, many}."""
    measured = {}
    # What the very first run has to prepare (the tiny model's files) is not part of either measurement.
    for name, count in (*([] if args.quick else [("warm", 16)]), ("few", args.few), ("many", args.examples)):
        path = RUNS[script].data_file(folder / name)
        path.parent.mkdir(parents=True)
        RUNS[script].write(path, count)
        measured[name] = run(script, path, folder / name, folder / "cache", args) | dict(
            examples=count, file_mb=round(path.stat().st_size / 1e6, 1)
        )
    few, many = measured["few"], measured["many"]
    columns = ["examples", "file_mb", "peak_mb", "anonymous_mb", "tokenise_s", "total_s"]
    head = [script, "examples", "file, MB", "peak, MB", "of it not files", "tokenise, s", "whole run, s"]
    print(common.table(head, [[name, *(measured[name][c] for c in columns)] for name in ("few", "many")]))
    above = many["peak_mb"] - few["peak_mb"]
    if many["tokenise_s"]:
        print(f"tokenised {many['examples'] / many['tokenise_s']:,.0f} examples/s, reading the file included")
    ratio = many["peak_mb"] / few["peak_mb"]
    common.record(f"{script}: peak memory", ratio, ratio, ratio, lower=True)
    reached = "reached" if above < TARGET_MB else "NOT reached"
    print(f"ratio: peak memory {ratio:.2f}x, {above:.0f} MB above the small run's, "
          f"for {args.examples / args.few:,.0f}x the examples (target below {TARGET_MB} MB {reached})",
          flush=True)  # fmt: skip
    return dict(above_mb=above, **measured)


# ---- data files, streamed to disk: short examples, all different


def write_generation(path, count):
    """A task file of `train.py`."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"train": [')
        for i in range(count):
            words = dict(name=rng.choice(NAMES), food=rng.choice(FOODS), area=rng.choice(AREAS), number=i)
            record = "{" + SOURCE.format(**words) + ", " + TARGET.format(**words) + "}"
            file.write((",\n" if i else "\n") + record)
        file.write("\n]}\n")


def write_entailment(path, count):
    """RTE's tsv file."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write("index\tsentence1\tsentence2\tlabel\n")
        for i in range(count):
            name, food, area = rng.choice(NAMES), rng.choice(FOODS), rng.choice(AREAS)
            label = ("entailment", "not_entailment")[i % 2]
            file.write(f"{i}\t{name} number {i} serves {food} food.\t{name} is in the {area}.\t{label}\n")


def write_questions(path, count):
    """SQuAD-style json."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"data": [')
        for i in range(count):
            name, food, area = rng.choice(NAMES), rng.choice(FOODS), rng.choice(AREAS)
            answer = f"{name} number {i} serves {food} food in the {area}."
            question = dict(question="What is it like?", answers=[dict(text=answer)], id=i)
            article = dict(paragraphs=[dict(context=f"name[{name}], food[{food}], area[{area}]", qas=[question])])
            file.write((",\n" if i else "\n") + json.dumps(article))
        file.write("\n]}\n")


# ---- scripts


@dataclasses.dataclass(frozen=True)
class Script:
    """How a script is run.

    Attributes:
        file: the data file's path below the run's folder.
        write: called with (path, number of examples).
        flags: of the script; {data}, {folder} and {steps} are filled in.
        last_line: for a script that knows no --max_steps: how the line begins after which it is soon stopped.
    """

    file: str
    write: object
    flags: str
    last_line: str | None = None

    def data_file(self, folder):
        return folder / "data" / self.file


RUNS = {
    "train": Script("nlg.json", write_generation,
                    "--task nlg --dataset_path {data}/nlg.json --model_checkpoint tiny-gpt2 --adapter_bottleneck 8 "
                    "--max_steps {steps} --n_epochs 1 --no_validation --output_dir {folder}/run"),
    "train_t5": Script("RTE/train.tsv", write_entailment,
                       "--model_name_or_path tiny-t5 --tasks rte --data_dir {data} --do_train true --do_eval false "
                       "--do_test false --max_steps {steps} --train_adapters true --adapter_config_name adapter "
                       "--load_best_model_at_end false --output_dir {folder}/run"),
    "train_camtl": Script("RTE/train.tsv", write_entailment,
                          "--model_name_or_path tiny-bert --tasks rte --data_dir {data} --do_train "
                          "--max_steps {steps} --output_dir {folder}/run"),
    "train_lifelong": Script("ag_to_squad-train-v2.0.json", write_questions,
                             "--model_name tiny-gpt2 --tasks ag --data_dir {data} --adapter_bottleneck 8 "
                             "--seq_train_type finetune --train_batch_size 8 --model_dir_root {folder}/run", "run: "),
}  # fmt: skip


def run(script, path, folder, cache, args):
    """A script on one file; {peak_mb, anonymous_mb, tokenise_s, total_s}.

    Raises:
        SystemExit: it failed; its output is printed.
    """
    values = dict(data=folder / "data", folder=folder, steps=args.max_steps)
    command = [sys.executable, f"{script}.py", *(word.format(**values) for word in RUNS[script].flags.split())]
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=common.ROOT, stdout=output, stderr=subprocess.STDOUT,
                                   env=os.environ | {"VERSATILE_CACHE": str(cache)})  # fmt: skip
        peak = {}
        watcher = threading.Thread(target=watch, args=(process.pid, cache / "tokens", peak))
        watcher.start()
        stopped = RUNS[script].last_line and stop_after(RUNS[script].last_line, process, output)
        code = process.wait()
        watcher.join()
        if code and not stopped:
            output.seek(0)
            sys.exit(f"{script}.py ended with {code}:\n{output.read()}")
    tokenise = peak.get("cached", 0.0) - peak.get("caching", peak.get("cached", 0.0))
    return dict(peak_mb=peak["VmHWM"] / 1024, anonymous_mb=peak["RssAnon"] / 1024, tokenise_s=tokenise,
                total_s=time.perf_counter() - began)  # fmt: skip


def stop_after(beginning, process, output):
    """Stop a process some steps after it has written a line that begins so; returns whether it was stopped."""
    while process.poll() is None:
        written = os.pread(output.fileno(), 1 << 20, 0).decode("utf-8", "replace")
        if any(line.startswith(beginning) for line in written.splitlines()):
            time.sleep(SOME_STEPS)
            process.terminate()
            return True
        time.sleep(0.1)
    return False


def watch(pid, cache, peak):
    """Follow a process until it ends: its largest resident set in kB, and when its token cache was made."""
    before = set(cache.iterdir()) if cache.is_dir() else set()
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "VmHWM" not in fields:
            return
        for name in ("VmHWM", "RssAnon"):
            peak[name] = max(peak.get(name, 0), int(fields[name].split()[0]))
        entries = set(cache.iterdir()) - before if cache.is_dir() else []
        if entries:
            peak.setdefault("caching", time.perf_counter())
        if any(not entry.name.startswith(".") for entry in entries):
            peak.setdefault("cached", time.perf_counter())
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
