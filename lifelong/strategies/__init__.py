"""Strategies against forgetting, one file each: `STRATEGIES` by the name that --seq_train_type takes.

A new strategy is one file in this folder with a subclass of `base.Strategy` that has a `name`: its flags, its position
in `--help`, its checks, its files and its part in training follow from the class. Modules here are imported for
`--help`, so they import torch where they use it.
"""

import pkgutil
from importlib import import_module

from versatile.lifelong.strategies.base import Strategy


def find_strategies():
    """{name: subclass of `Strategy`} of all modules of this folder."""
    modules = [import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    by_name = {c.name: c for c in classes if issubclass(c, Strategy) and c.name}
    return dict(sorted(by_name.items(), key=lambda item: (item[1].order, item[0])))


STRATEGIES = find_strategies()
DEFAULT = "lll"


def get_strategy(settings):
    """The class that a sequence's flags name."""
    return STRATEGIES[settings.seq_train_type]


def collect_flags(kind):
    """{flag: options of `add_argument`} of all strategies, one that several share once.

    Args:
        kind: "flags" or "naming_flags".
    """
    return {flag: options for strategy in STRATEGIES.values() for flag, options in getattr(strategy, kind).items()}


def add_flags(parser):
    """A group of `--help` for each strategy: what it does, its published settings, its own flags."""
    added = set()
    for strategy in STRATEGIES.values():
        group = parser.add_argument_group(f"--seq_train_type {strategy.name}", strategy.help_text())
        for flag, options in strategy.flags.items():
            if flag not in added:
                group.add_argument(flag, **options)
        added |= strategy.flags.keys()


def naming_names():
    """Names of the strategies' flags that name a sequence."""
    return tuple(flag.lstrip("-") for flag in collect_flags("naming_flags"))
