#!/usr/bin/env python
"""Run every benchmark, save its ratios in one file, and report what became slower since an earlier file.

  one CPU:
    python bench/run.py --device cpu --json new.json
    python bench/run.py --device cpu --json new.json --compare old.json
  one GPU:
    python bench/run.py --device cuda --json new.json --compare old.json

A ratio of two sides measured in alternating turns can be compared with an earlier one even if the machine was
busier then; speeds cannot. It counts as a regression if its median is worse than 0.97 of the earlier one and than
every turn of that; the exit code is then 1. peers.py downloads two packages once: it runs only with --only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common  # noqa: F401  (it finds the toolkit)

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("common", "run"))
# A ratio below this share of an earlier median is slower.
TOLERANCE = 0.97


def parse(argv=None):
    from versatile.utils import flags

    p = flags.build_parser(__doc__)
    g = p.add_argument_group("what to run")
    g.add_argument("--only", nargs="+", choices=NAMES, help="benchmarks to run (default: all but peers)",
                   default=[name for name in NAMES if name != "peers"])
    g.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    g.add_argument("--quick", action="store_true", help="smoke tests of a few seconds; their numbers mean nothing")
    g = p.add_argument_group("output")
    g.add_argument("--json", metavar="FILE", help="save the ratios of all benchmarks here")
    g.add_argument("--compare", metavar="OLD.json", help="report ratios that are lower than in this earlier --json")
    args, more = p.parse_known_args(argv)
    return argparse.Namespace(**vars(args), more=more)


def main(argv=None):
    args = parse(argv)
    old = read_ratios(args.compare) if args.compare else {}
    ratios, failed = {}, []
    for name in args.only:
        print(f"\n== {name}", flush=True)
        device = [] if name == "memory" else ["--device", args.device]
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder) / "numbers.json"
            command = [sys.executable, FOLDER / f"{name}.py", *device, *["--quick"] * args.quick, *args.more]
            if subprocess.run([*command, "--json", saved]).returncode or not saved.is_file():
                failed.append(name)
                continue
            ratios[name] = json.loads(saved.read_text(encoding="utf-8"))["ratios"]
    if args.json:
        Path(args.json).write_text(json.dumps(dict(ratios=ratios), indent=2) + "\n", encoding="utf-8")
    slower = regressions(old, ratios)
    if args.compare:
        print("\n" + ("\n".join(slower) if slower else f"no ratio is lower than in {args.compare}"))
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if slower or failed else 0


def read_ratios(path):
    """{benchmark: {what: its ratio}} of an earlier --json."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))["ratios"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: --compare {path}: it cannot be read: {error}\n  expected: what bench/run.py --json wrote")


def regressions(old, new):
    """Lines that name what is slower.

    Args:
        old, new: {benchmark: {what: dict(median, low, high, lower)}}; `lower`: lower is better.
    """
    lines = []
    for name, ratios in new.items():
        for what, ratio in ratios.items():
            before = old.get(name, {}).get(what)
            if before and ratio["lower"]:
                worse = ratio["median"] > max(before["median"] / TOLERANCE, before["high"])
            else:
                worse = before and ratio["median"] < min(TOLERANCE * before["median"], before["low"])
            if worse:
                lines.append(f"regression: {name}: {what} {ratio['median']:.2f}x, was {before['median']:.2f}x "
                             f"({before['low']:.2f} to {before['high']:.2f})")  # fmt: skip
    return lines


if __name__ == "__main__":
    sys.exit(main())
