"""Which of several learning rates a row takes: one rule, for training and for the report."""

import math
from collections.abc import Collection, Mapping

SAME = 1e-6  # relative: rates that were written with fewer digits


def choose_rate(accuracies: Mapping[float, float | None], own: float | None) -> float | None:
    """Return the rate with the highest accuracy; None as an accuracy is a training that was not finite, the worst.

    Of equal accuracies the recipe's own rate wins, then the one nearest to it by factor, then the lower. Returns None
    where no training was finite.
    """
    known = {rate: accuracy for rate, accuracy in accuracies.items() if accuracy is not None}
    if not known:
        return None
    most = max(known.values())
    best = [rate for rate, accuracy in known.items() if accuracy == most]
    return min(best, key=lambda rate: (round(abs(math.log(rate / own)), 6) if own else 0.0, rate))


def at_edge(rate: float, tried: Collection[float]) -> bool:
    """Tell whether a rate is the lowest or the highest of those that were tried: the best may lie beyond."""
    return len(tried) > 1 and any(same_rate(rate, end) for end in (min(tried), max(tried)))


def same_rate(a: float, b: float) -> bool:
    """Tell whether two rates are the same but for the digits that they were written with."""
    return math.isclose(a, b, rel_tol=SAME)
