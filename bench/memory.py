#!/usr/bin/env python
"""Memory of training on data sets of growing size, for each of the four encoders, with the real scripts.

  one CPU (minutes per million examples, some hundred MB of disk temporarily):
    python bench/memory.py
    python bench/memory.py --encoders text_to_text --sizes 1000 1000000
  one GPU: the same; what is measured is the process's memory on the CPU's side.

Writes a data file, record by record, to a temporary directory and trains a tiny model on it for a few steps, including
reading and tokenising, in a separate process for each size. Reported are that process's largest resident set
(VmHWM) and the largest part of it that is its own (RssAnon, sampled every 20 ms). The rest are pages of files,
mainly of the mapped token cache, which the kernel keeps while there is room and reclaims when there is none.
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


def parse(argv=None):
    from versatile.utils import flags

    p = common.parser(__doc__, json_only=True)
    g = p.add_argument_group("what to run")
    g.add_argument("--encoders", nargs="+", choices=list(RUNS), default=list(RUNS),
                   help="encoders to measure, each with the script that uses it (default: all)")  # fmt: skip
    g.add_argument("--sizes", nargs="+", type=flags.positive, default=[10_000, 100_000, 1_000_000],
                   help="examples per data set, smallest first (default: 10000 100000 1000000)")  # fmt: skip
    g.add_argument("--max_steps", type=flags.positive, default=5, help="optimizer steps of each run")
    g.add_argument("--temp_dir", help="folder for the data file and the token cache (default: the system's)")
    args = p.parse_args(argv)
    if args.quick:
        args.encoders, args.sizes, args.max_steps = args.encoders[:1], [200, 2000], 1
    return args


def main(argv=None):
    args = parse(argv)
    # This process does not import torch, so none of its memory can be mistaken for that of training.
    print(f"hardware: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    results = {}
    for encoder in args.encoders:
        with tempfile.TemporaryDirectory(dir=args.temp_dir) as folder:
            results[encoder] = compare(encoder, Path(folder), args)
    common.save(args, encoders=results)


def compare(encoder, folder, args):
    """Train on data sets of every size: a list of the measurements that `run` made of each."""
    script, measurements = RUNS[encoder], []
    # What the very first run prepares (the tiny model's files) is not part of any measurement.
    for number, count in enumerate([*([] if args.quick else [16]), *args.sizes]):
        path = script.data_file(folder / str(number))
        path.parent.mkdir(parents=True)
        script.write(path, count)
        measured = run(script, folder / str(number), folder / "cache", args)
        measurements.append(dict(examples=count, file_mb=round(path.stat().st_size / 1e6, 1)) | measured)
        path.unlink()
    measurements = measurements[-len(args.sizes) :]
    columns = ["examples", "file_mb", "peak_mb", "own_mb", "tokenise_s", "total_s"]
    head = [encoder, "examples", "file, MB", "peak, MB", "of it its own", "tokenise, s", "whole run, s"]
    print(common.table(head, [[script.name, *(m[c] for c in columns)] for m in measurements]))
    first, last = measurements[0], measurements[-1]
    ratio, growth = last["own_mb"] / first["own_mb"], last["own_mb"] - first["own_mb"]
    common.record(f"{encoder}: own memory", ratio, ratio, ratio, lower=True)
    reached = "reached" if growth < TARGET_MB else "NOT reached"
    print(f"ratio: own memory {ratio:.2f}x, {growth:+.0f} MB, for {last['examples'] / first['examples']:,.0f}x the "
          f"examples (target below +{TARGET_MB} MB {reached}); peak {last['peak_mb'] - first['peak_mb']:+.0f} MB",
          flush=True)  # fmt: skip
    return measurements


# ---- data files, streamed to disk: short examples, all different


def restaurants(count):
    """Yield (number, name, food, area)."""
    rng = random.Random(0)
    for number in range(count):
        yield number, rng.choice(NAMES), rng.choice(FOODS), rng.choice(AREAS)


def write_json_list(path, key, records):
    """A json file that holds one list."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'{{"{key}": [')
        for number, record in enumerate(records):
            file.write((",\n" if number else "\n") + json.dumps(record))
        file.write("\n]}\n")


def write_records(path, count):
    """A task file of train.py."""
    write_json_list(path, "train", (
        dict(src=dict(name=name, eatType="restaurant", food=food, area=area),
             tgt=f"{name} is a restaurant number {number} that serves {food} food in the {area}.")
        for number, name, food, area in restaurants(count)
    ))  # fmt: skip


def write_questions(path, count):
    """SQuAD-style json."""
    write_json_list(path, "data", (
        dict(paragraphs=[dict(context=f"name[{name}], food[{food}], area[{area}]", qas=[dict(
            question="What is it like?", id=number,
            answers=[dict(text=f"{name} number {number} serves {food} food in the {area}.")])])])
        for number, name, food, area in restaurants(count)
    ))  # fmt: skip


def write_sentences(path, count):
    """RTE's tsv file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("index\tsentence1\tsentence2\tlabel\n")
        for number, name, food, area in restaurants(count):
            label = ("entailment", "not_entailment")[number % 2]
            file.write(f"{number}\t{name} number {number} serves {food} food.\t{name} is in the {area}.\t{label}\n")


# ---- scripts


@dataclasses.dataclass(frozen=True)
class Script:
    """How to run a script.

    Attributes:
        name: the script's file name.
        file: the data file's path below the run's folder.
        write: called with (path, number of examples).
        flags: the script's flags; {data}, {folder} and {steps} are filled in.
        last_line: for a script without --max_steps: the beginning of the line after which it is soon stopped.
    """

    name: str
    file: str
    write: object
    flags: str
    last_line: str | None = None

    def data_file(self, folder):
        return folder / "data" / self.file


RUNS = {
    "markers": Script("train.py", "nlg.json", write_records,
                      "--task nlg --dataset_path {data}/nlg.json --model_checkpoint tiny-gpt2 --adapter_bottleneck 8 "
                      "--max_steps {steps} --n_epochs 1 --no_validation --output_dir {folder}/run"),
    "text_to_text": Script("train_t5.py", "RTE/train.tsv", write_sentences,
                           "--model_name_or_path tiny-t5 --tasks rte --data_dir {data} --do_train true --do_eval false "
                           "--do_test false --max_steps {steps} --train_adapters true --adapter_config_name adapter "
                           "--load_best_model_at_end false --output_dir {folder}/run"),
    "sentence_pair": Script("train_camtl.py", "RTE/train.tsv", write_sentences,
                            "--model_name_or_path tiny-bert --tasks rte --data_dir {data} --do_train "
                            "--max_steps {steps} --output_dir {folder}/run"),
    "question_answer": Script("train_lifelong.py", "ag_to_squad-train-v2.0.json", write_questions,
                              "--model_name tiny-gpt2 --tasks ag --data_dir {data} --adapter_bottleneck 8 "
                              "--seq_train_type finetune --train_batch_size 8 --model_dir_root {folder}/run", "run: "),
}  # fmt: skip


def run(script, folder, cache, args):
    """Run a script on one file; returns {peak_mb, own_mb, tokenise_s, total_s}.

    Raises:
        SystemExit: the script failed; its output is printed.
    """
    values = dict(data=folder / "data", folder=folder, steps=args.max_steps)
    command = [sys.executable, script.name, *(word.format(**values) for word in script.flags.split())]
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=common.ROOT, stdout=output, stderr=subprocess.STDOUT,
                                   env=os.environ | {"VERSATILE_CACHE": str(cache)})  # fmt: skip
        peak = {}
        watcher = threading.Thread(target=watch, args=(process.pid, cache / "tokens", peak))
        watcher.start()
        stopped = script.last_line and stop_after(script.last_line, process, output)
        code = process.wait()
        watcher.join()
        if code and not stopped:
            output.seek(0)
            sys.exit(f"{script.name} ended with {code}:\n{output.read()}")
    tokenise = peak.get("cached", 0.0) - peak.get("caching", peak.get("cached", 0.0))
    return dict(peak_mb=peak["VmHWM"] / 1024, own_mb=peak["RssAnon"] / 1024, tokenise_s=tokenise,
                total_s=time.perf_counter() - began)  # fmt: skip


def stop_after(beginning, process, output):
    """Stop a process soon after it has written a line with this beginning; returns whether it was stopped."""
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
