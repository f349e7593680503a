"""GLUE's metrics as plain numbers from 0 to 1 (correlations from −1), from scikit-learn and SciPy.

The `_with_invalid` variants take the output of a text-to-text model, where a prediction may be no label at all.
"""

import math

from versatile.utils.errors import UserError

INVALID = -1
"""Stands for an answer that is not a number."""


def accuracy(predictions, targets):
    """Share of the predictions that equal their targets; labels may be numbers or strings."""
    check_counts(predictions, targets)
    return sum(bool(one == other) for one, other in zip(predictions, targets)) / len(targets)


def f1(predictions, targets):
    """F1 of the class 1; 0 where neither side has it. Labels are 0 and 1."""
    from sklearn.metrics import f1_score

    check_counts(predictions, targets)
    return float(f1_score(_array(targets), _array(predictions), zero_division=0))


def macro_f1(predictions, targets):
    """Mean F1 of the classes that occur."""
    from sklearn.metrics import f1_score

    check_counts(predictions, targets)
    return float(f1_score(_array(targets), _array(predictions), average="macro", zero_division=0))


def f1_with_invalid(predictions, targets):
    """`f1`, where a prediction that is neither 0 nor 1 counts as the wrong one of the two (Raffel et al. 2020)."""
    check_counts(predictions, targets)
    return f1([x if x in (0, 1) else 1 - target for x, target in zip(predictions, targets)], targets)


def matthews(predictions, targets):
    """Matthews correlation coefficient, −1 to 1; 0 where one side is constant.

    An invalid prediction may stay as it is: it counts as one more class, which no target has.
    """
    from sklearn.metrics import matthews_corrcoef

    check_counts(predictions, targets)
    if len(set(predictions)) == 1 or len(set(targets)) == 1:
        return 0.0
    return float(matthews_corrcoef(_array(targets), _array(predictions)))


def pearson(predictions, targets):
    """Pearson correlation, −1 to 1; 0 where it is undefined: one side is constant, or there is a single row."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, targets)


def spearman(predictions, targets):
    """Spearman rank correlation, −1 to 1; 0 where it is undefined: one side is constant, or there is a single row."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, targets)


def pearson_with_invalid(predictions, targets):
    """`pearson`, where a prediction that is not a finite number counts as `INVALID`."""
    return pearson(_finite(predictions), targets)


def spearman_with_invalid(predictions, targets):
    """`spearman`, where a prediction that is not a finite number counts as `INVALID`."""
    return spearman(_finite(predictions), targets)


def _array(values, dtype=None):
    # Imported here because whatever scores or converts imports this module, and most of it needs no arrays.
    import numpy

    return numpy.asarray(values, dtype)


def _correlation(function, predictions, targets):
    check_counts(predictions, targets)
    predictions, targets = _array(predictions, float), _array(targets, float)
    constant = min(predictions) == max(predictions) or min(targets) == max(targets)
    if constant:  # Also the case of a single row.
        return 0.0
    value = float(function(predictions, targets).statistic)
    # The correlation of nearly constant numbers cannot be computed either.
    return value if math.isfinite(value) else 0.0


def _finite(predictions):
    return [x if math.isfinite(x) else float(INVALID) for x in map(float, predictions)]


def check_counts(predictions, targets):
    if len(predictions) != len(targets):
        raise UserError(f"{len(predictions)} predictions, but {len(targets)} targets",
                        expected="one prediction per target")  # fmt: skip
    if not len(targets):
        raise UserError("there is nothing to score: 0 predictions", remedy="check the split and the limits on rows")
