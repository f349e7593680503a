#!/usr/bin/env python
"""Memory of training on a large data set: a million examples against a thousand, through the real train.py.

  one CPU (a few minutes, some hundred MB of disk for a while):
    OMP_WAIT_POLICY=PASSIVE python bench/memory.py
  one GPU: the same; what is measured is the process's memory on the CPU's side.

Writes an nlg json file, record by record, into a temporary directory and runs `train.py` on it for a few
steps with tiny-gpt2, tokenising included. Reported is the largest resident set of that process (VmHWM).
"""

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
NAMES = ["Alimentum", "Aromi", "Bibimbap House", "Blue Spice", "Clowns", "Cocum", "Cotto", "The Eagle", "Fitzbillies"]
FOODS = ["Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"]
AREAS = ["city centre", "riverside"]
SOURCE = '"src": {{"name": "{name}", "eatType": "restaurant", "food": "{food}", "area": "{area}"}}'
TARGET = '"tgt": "{name} is a restaurant number {number} that serves {food} food in the {area}."'


def parse(argv=None):
    from versatile.utils import flags

    p = common.parser(__doc__, json_only=True)
    g = p.add_argument_group("what to run")
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
    measured = {}
    with tempfile.TemporaryDirectory(dir=args.temp_dir) as folder:
        # What the very first run has to prepare (tiny-gpt2's files) is no part of either measurement.
        for name, count in (*([] if args.quick else [("warm", 16)]), ("few", args.few), ("many", args.examples)):
            path = Path(folder) / f"{name}.json"
            write_examples(path, count)
            measured[name] = run(path, Path(folder) / name, args) | dict(
                examples=count, file_mb=round(path.stat().st_size / 1e6, 1)
            )
    few, many = measured["few"], measured["many"]
    columns = ["examples", "file_mb", "peak_mb", "anonymous_mb", "tokenise_s", "total_s"]
    head = ["", "examples", "file, MB", "peak, MB", "of it not files", "tokenise, s", "whole run, s"]
    print(common.table(head, [[name, *(measured[name][c] for c in columns)] for name in ("few", "many")]))
    above = many["peak_mb"] - few["peak_mb"]
    if many["tokenise_s"]:
        print(f"tokenised {many['examples'] / many['tokenise_s']:,.0f} examples/s, reading the json included")
    reached = "reached" if above < TARGET_MB else "NOT reached"
    print(f"ratio: peak memory {many['peak_mb'] / few['peak_mb']:.2f}x, {above:.0f} MB above the small run's, "
          f"for {args.examples / args.few:,.0f}x the examples (target below {TARGET_MB} MB {reached})")  # fmt: skip
    common.save(args, above_mb=above, **measured)


def write_examples(path, count):
    """A task file of short examples, all different, streamed to disk."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"train": [')
        for i in range(count):
            words = dict(name=rng.choice(NAMES), food=rng.choice(FOODS), area=rng.choice(AREAS), number=i)
            record = "{" + SOURCE.format(**words) + ", " + TARGET.format(**words) + "}"
            file.write((",\n" if i else "\n") + record)
        file.write("\n]}\n")


def run(path, folder, args):
    """train.py on one file; {peak_mb, anonymous_mb, tokenise_s, total_s}.

    Raises:
        SystemExit: train.py failed; its output is printed.
    """
    command = [
        sys.executable, "train.py", "--task", "nlg", "--dataset_path", str(path), "--model_checkpoint", "tiny-gpt2",
        "--adapter_bottleneck", "8", "--max_steps", str(args.max_steps), "--n_epochs", "1", "--no_validation",
        "--cache_dir", str(folder / "tokens"), "--output_dir", str(folder / "run"),
    ]  # fmt: skip
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=common.ROOT, stdout=output, stderr=subprocess.STDOUT)
        peak = {}
        watcher = threading.Thread(target=watch, args=(process.pid, folder / "tokens", peak))
        watcher.start()
        code = process.wait()
        watcher.join()
        if code:
            output.seek(0)
            sys.exit(f"train.py ended with {code}:\n{output.read()}")
    tokenise = peak.get("cached", 0.0) - peak.get("caching", peak.get("cached", 0.0))
    return dict(peak_mb=peak["VmHWM"] / 1024, anonymous_mb=peak["RssAnon"] / 1024, tokenise_s=tokenise,
                total_s=time.perf_counter() - began)  # fmt: skip


def watch(pid, cache, peak):
    """Follow a process until it ends: its largest resident set in kB, and when its token cache was made."""
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
        entries = list(cache.iterdir()) if cache.is_dir() else []
        if entries:
            peak.setdefault("caching", time.perf_counter())
        if any(not entry.name.startswith(".") for entry in entries):
            peak.setdefault("cached", time.perf_counter())
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
