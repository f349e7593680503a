"""Strategies against forgetting, one file each; `STRATEGIES` maps the names that --seq_train_type takes to classes.

To add a strategy, put a file with a named subclass of `base.Strategy` into this folder: its flags, its position in
`--help`, its checks, its files and its role in training follow from the class. `--help` imports the modules in this
folder, so they import torch only where they use it.
"""

import pkgutil
from importlib import import_module

from versatile.lifelong.strategies.base import Strategy


def find_strategies():
    """{name: subclass of `Strategy`} for all modules in this folder."""
    modules = [import_module(f"{__name__}.{entry.name}") for entry in pkgutil.iter_modules(__path__)]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    by_name = {c.name: c for c in classes if issubclass(c, Strategy) and c.name}
    return dict(sorted(by_name.items(), key=lambda item: (item[1].order, item[0])))


STRATEGIES = find_strategies()
DEFAULT = "lll"


def get_strategy(settings):
    """The strategy class that a sequence's flags name."""
    return STRATEGIES[settings.seq_train_type]


def collect_flags(kind):
    """{flag: options of `add_argument`} of all strategies; a shared flag appears once.

    Args:
        kind: "flags" or "naming_flags".
    """
    return {flag: options for strategy in STRATEGIES.values() for flag, options in getattr(strategy, kind).items()}


def add_flags(parser):
    """Add a `--help` group for each strategy, with its description, published settings and flags."""
    added = set()
    for strategy in STRATEGIES.values():
        group = parser.add_argument_group(f"--seq_train_type {strategy.name}", strategy.help_text())
        for flag, options in strategy.flags.items():
            if flag not in added:
                group.add_argument(flag, **options)
        added |= strategy.flags.keys()


def naming_flags():
    """Names of the strategy flags that are part of a sequence's name."""
    return tuple(flag.lstrip("-") for flag in collect_flags("naming_flags"))
