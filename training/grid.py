"""Compatibility of adaptation methods with backbone families and with training regimes, read from the code.

    python -m training.grid            the tables that README shows, with the reason for every gap

A method's `check` decides which families it supports; its `shared` says why a task cannot be taken out of it.
"""

import functools
import sys

from versatile.adapters.backbones.family import all_backbones
from versatile.adapters.methods.registry import BARE, FULL, all_methods
from versatile.utils.errors import UserError, exit_on_user_error

FITS = "yes"
BEGIN, END = "<!-- grid: python -m training.grid -->", "<!-- end of the grid -->"


def families():
    """[`Backbone`] of every family, decoders first, encoders with a head per task last."""
    every = {backbone.name: backbone for backbone in all_backbones().values()}
    return sorted(every.values(), key=lambda b: (b.head != "lm", b.encoder_decoder, b.name))


def refusal(method, backbone):
    """Why a method does not support a family, in words that name neither; None if it does.

    Args:
        method: a name of `all_methods`, or "full".
    """
    if method == FULL:
        return None
    description = all_methods()[method]
    try:
        description.load_class().check(method, backbone, description.complete({}), None)
    except UserError as error:
        # Without the names, families and methods with the same reason share one entry.
        words = {f"the method {method}": "the method", f"the family {backbone.name}": "the family",
                 f"; {backbone.name} generates": "; a decoder generates"}  # fmt: skip
        return functools.reduce(lambda text, pair: text.replace(*pair), words.items(), error.found)
    return None


def methods_by_families():
    """(header, rows, {reason: its number}): a row for each method, a cell for each family."""
    reasons, rows = {}, []
    for method in [FULL, *sorted(all_methods(), key=lambda name: (name != BARE, name))]:
        row = [f"`{method}`"]
        for backbone in families():
            why = refusal(method, backbone)
            row.append(FITS if why is None else f"({reasons.setdefault(why, len(reasons) + 1)})")
        rows.append(row)
    return ["method", *(backbone.name for backbone in families())], rows, reasons


def methods_by_regimes():
    """(header, rows, {reason: its number}): a row for each method that works on a language model."""
    reasons, rows = {}, []

    def cell(why):
        return FITS if why is None else f"({reasons.setdefault(why, len(reasons) + 1)})"

    whole = "all weights are the task's: there is no separate adapter to combine"
    decoder = next(backbone for backbone in families() if backbone.head == "lm" and not backbone.encoder_decoder)
    for method in [FULL, *sorted(all_methods(), key=lambda name: (name != BARE, name))]:
        if refusal(method, decoder) is not None:
            continue
        shared = whole if method == FULL else all_methods()[method].load_class().shared
        rows.append([f"`{method}`", FITS, FITS, FITS, FITS, cell(shared)])
    header = ["method", "one task", "many at once", "one after another", "from a teacher", "combined from single tasks"]
    return header, rows, reasons


def merged(rows):
    """Merge rows that differ only in their methods."""
    methods = {}
    for method, *cells in rows:
        methods.setdefault(tuple(cells), []).append(method)
    return [[", ".join(names), *cells] for cells, names in methods.items()]


def markdown():
    """Both tables and their reasons."""
    lines = []
    for title, (header, rows, reasons) in (
        ("Methods and backbones", methods_by_families()), ("Methods and regimes", methods_by_regimes())
    ):  # fmt: skip
        lines += [f"**{title}**", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        lines += [f"| {' | '.join(row)} |" for row in merged(rows)] + [""]
        lines += [f"({number}) {why[0].upper()}{why[1:]}.  " for why, number in reasons.items()] + [""]
    return "\n".join(lines).strip() + "\n"


@exit_on_user_error
def main():
    print(markdown(), end="")


if __name__ == "__main__":
    sys.exit(main())
