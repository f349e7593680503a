"""Which cases of a test are run by default. The others are marked slow: `./run.sh test -m slow` runs them."""

import itertools

import pytest


def only(quick, cases):
    """The cases, of which those not in `quick` are slow. One of `quick` that is no case is an error."""
    cases = list(cases)
    assert all(case in cases for case in quick), f"{quick} of {cases}"
    return [case if case in quick else pytest.param(*_values(case), marks=pytest.mark.slow) for case in cases]


def every(n, *axes, together=False):
    """All combinations of the axes' values; those whose positions add up to a multiple of n are quick.

    So each value is in a quick one if another axis has n values. `together`: a combination is one value, a tuple, as
    the parameters of a fixture have to be.
    """
    for numbered in itertools.product(*map(list, map(enumerate, axes))):
        case = tuple(value for _, value in numbered)
        marks = [] if sum(number for number, _ in numbered) % n == 0 else [pytest.mark.slow]
        yield pytest.param(*([case] if together else case), marks=marks)


def _values(case):
    return case if isinstance(case, tuple) else [case]
