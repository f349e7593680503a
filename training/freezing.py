"""Choose by the flags which parameters are frozen and which are trained, and print them."""

import re

from versatile.adapters import bert
from versatile.adapters.classifier import keyed_parameters
from versatile.adapters.methods.base import keyed_added_parameters
from versatile.adapters.trained import parameter_summary
from versatile.training.experiment import print_once


def freeze(args, model):
    """Apply --freeze_encoder_layers; returns {"frozen": names, "trained": names} and prints both. With a frozen BERT,
    the adapters and heads are trained."""
    if model.mode == "adapter":
        print_once(parameter_summary(model))
        trained = list(keyed_added_parameters(model))
        return dict(frozen=[name for name in keyed_parameters(model) if name not in trained], trained=trained)
    if args.freeze_encoder_layers:
        frozen, trained = bert.freeze(model, args.freeze_encoder_layers)
    else:
        frozen, trained = [], list(keyed_parameters(model))
    sizes = {name: p.numel() for name, p in keyed_parameters(model).items()}
    for what, names in [("frozen", frozen)] * bool(frozen) + [("trained", trained)]:
        count = sum(sizes[name] for name in names)
        print_once(f"{what}: {count:,} parameters in {len(names)} tensors" + (":" if frozen else ""))
        if frozen:
            print_once("".join(f"  {line}\n" for line in folded(names)), end="")
    return dict(frozen=frozen, trained=trained)


def folded(names):
    """Parameter names with numbers and endings merged: "encoder.layer.{0-5}.output.dense.{weight,bias}"."""
    groups = {}
    for name in names:
        stem, _, ending = name.rpartition(".")
        groups.setdefault(stem, []).append(ending)
    layers = {}
    for stem, endings in groups.items():
        whole = f"{stem}.{endings[0]}" if len(endings) == 1 else f"{stem}.{{{','.join(endings)}}}"
        match = re.fullmatch(r"(.*?\.)(\d+)(\..*)", whole)
        layers.setdefault((match[1], match[3]) if match else whole, []).append(int(match[2]) if match else None)
    return [key if isinstance(key, str) else f"{key[0]}{_ranges(sorted(n))}{key[1]}" for key, n in layers.items()]


def _ranges(numbers):
    runs = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    text = ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
