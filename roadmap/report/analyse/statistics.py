"""The statistics of the report, by scipy and statsmodels: each answers one question about accuracies in percent.

Numbers in, numbers out; nothing here knows of runs. Where a question has no answer (one seed, nothing differs) the
answer is None, never a guess. `roadmap.report.analyse.gains` says what each answer means.
"""

import functools
import math
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev, variance

import numpy as np
from scipy import optimize, special, stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test
from statsmodels.stats.multitest import multipletests

LEVEL = 0.95
ALPHA, POWER = 0.05, 0.8
RESAMPLES = 9_999
MOST_SEEDS = 1_000  # more than anybody will train
MIDDLES = (np.arange(64) + 0.5) / 64  # of as many equal parts of a distribution: averages over it are taken there
EXACT_BELOW = 25  # discordant images, under which McNemar's test is taken from the binomial distribution


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, in the unit of its data."""

    low: float
    high: float


@dataclass(frozen=True)
class Effect:
    """Cohen's d of two groups of seeds, the difference of their means over the root mean square of both spreads; its
    95 % interval."""

    size: float
    low: float
    high: float
    share: float  # of the first group's variance in the sum of both


@dataclass(frozen=True)
class Difference:
    """A difference of two means over seeds: its Welch interval, two-sided p, and size; None where it is zero."""

    interval: Interval
    p: float
    effect: Effect | None


@dataclass(frozen=True)
class McNemar:
    """Two nets on the same images: how many only the one and only the other has right, and the two-sided p; None for
    nets that agree on all of them."""

    only_this: int
    only_other: int
    p: float | None


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the t interval of the mean; None for one value or equal ones: nothing is known of the spread."""
    if len(values) < 2 or stdev(values) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that hardly differ
        found = stats.ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return Interval(float(found.low), float(found.high))


def welch(values: Sequence[float], parent: Sequence[float]) -> Difference | None:
    """Compare two independent groups of seeds by Welch's t test; None where one has no spread that is known."""
    if min(len(values), len(parent)) < 2 or stdev(values) + stdev(parent) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one side may have no spread is allowed for
        found = stats.ttest_ind(values, parent, equal_var=False)
    if not math.isfinite(found.statistic):  # the variance of values that close is zero
        return None
    interval = found.confidence_interval(LEVEL)
    share = variance(values) / (variance(values) + variance(parent))
    scale = math.sqrt(2 * (share / len(values) + (1 - share) / len(parent)))
    effect = _effect(float(found.statistic), float(found.df), scale, share)
    return Difference(Interval(float(interval.low), float(interval.high)), float(found.pvalue), effect)


def _effect(t: float, df: float, scale: float, share: float) -> Effect | None:
    """Return the size of a difference, its interval by the noncentral t with Welch's degrees of freedom."""
    if t == 0:
        return None
    low, high = (_noncentrality(t, df, below) * scale for below in (0.5 + LEVEL / 2, 0.5 - LEVEL / 2))
    return Effect(t * scale, low, high, share)


def image_bootstrap(bits: np.ndarray, parent: np.ndarray) -> Interval | None:
    """Return the interval of the difference in percent over images drawn anew, the trained nets held fixed.

    `bits (n, N)` and `parent (m, N)` say which of the same N images each net has right. Images with the same difference
    are interchangeable: drawing N images with replacement is one multinomial draw over the few differences that occur.
    None where no image differs.
    """
    differences = bits.mean(axis=0) - parent.mean(axis=0)
    values, counts = np.unique(differences.round(9), return_counts=True)
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    means = 100.0 * (drawn @ values) / counts.sum()
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(float(low), float(high))


def mcnemar(bits: np.ndarray, parent: np.ndarray) -> McNemar:
    """Compare two nets on the same images, `bits (N,)` each; exact where few images differ."""
    only_this, only_other = int((bits & ~parent).sum()), int((parent & ~bits).sum())
    if only_this + only_other == 0:
        return McNemar(0, 0, None)
    both, neither = int((bits & parent).sum()), int((~bits & ~parent).sum())
    exact = only_this + only_other < EXACT_BELOW
    found = mcnemar_test([[both, only_this], [only_other, neither]], exact=exact, correction=False)
    return McNemar(only_this, only_other, float(found.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p values adjusted by Holm for all that are there together; None stays None."""
    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1] if known else [])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def false_discovery(p_values: np.ndarray) -> np.ndarray:
    """Return p values `(K,)` adjusted by Benjamini and Hochberg (1995) for all that are there; NaN stays NaN.

    Of those below 5 % one in twenty, on average, is of no difference.
    """
    adjusted = p_values.copy()
    known = ~np.isnan(p_values)
    if known.any():
        adjusted[known] = multipletests(p_values[known], method="fdr_bh")[1]
    return adjusted


def welch_of_columns(values: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """Return Welch's two-sided p of each column of `(n, C)` and `(m, C)`; NaN where no spread is known."""
    if min(len(values), len(parent)) < 2:
        return np.full(values.shape[1], np.nan)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        p = np.array(stats.ttest_ind(values, parent, equal_var=False).pvalue)
    p[np.ptp(values, axis=0) + np.ptp(parent, axis=0) == 0] = np.nan
    return p


def _noncentrality(t: float, df: float, share: float) -> float:
    """Return the noncentrality under which a t of at most `t` is seen in `share` of all cases."""
    spreads = np.sqrt(stats.chi2.ppf(MIDDLES, df) / df)
    reach = 10 + 10 * abs(t)
    return float(optimize.brentq(lambda shift: special.ndtr(t * spreads - shift).mean() - share, -reach, reach))


@dataclass(frozen=True)
class Seeds:
    """How many seeds per row a difference needs: if it is as measured, and over the interval of its size."""

    likely: int
    low: int
    high: int | None  # None: the interval holds zero, or more than `MOST_SEEDS`


def seeds_needed(found: Effect, tests: int, n: int, significant: bool) -> Seeds:
    """Return how many seeds per row the report's test needs to tell a difference from zero with power 80 %.

    The test is Welch's at 5 % divided by the `tests` of the study: Holm finds it then, whatever the others show. Where
    `n` seeds have not told it, fewer are no answer.
    """
    level = ALPHA / tests
    sizes = sorted((abs(found.low), abs(found.high)))
    least = sample_size(sizes[1], level, found.share)
    most = sample_size(sizes[0], level, found.share) if found.low * found.high > 0 else MOST_SEEDS
    likely = sample_size(abs(found.size), level, found.share)
    least = least if significant else max(least, n + 1)
    return Seeds(max(likely, least), least, most if most < MOST_SEEDS else None)


def sample_size(size: float, level: float = ALPHA, share: float = 0.5) -> int:
    """Return how large two groups Welch's test needs to find an effect with power 80 %: 2 to `MOST_SEEDS`."""
    return bisect_left(range(MOST_SEEDS), True, lo=2, key=lambda n: welch_power(size, n, level, share) >= POWER)


def welch_power(size: float, n: int, level: float = ALPHA, share: float = 0.5) -> float:
    """Return how often Welch's two-sided test finds an effect (Cohen's d), two groups of `n`; the first one's variance
    is this share of the sum of both.

    Exact up to the quadrature: of two independent chi-squares the sum and the first one's part of it are independent,
    the part is Beta distributed. Degrees of freedom and standard error are functions of the two.
    """
    parts, sums = _chi_squares(n)
    first, second = share * parts, (1 - share) * (1 - parts)
    seen = first / (first + second)
    critical = stats.t.isf(level / 2, (n - 1) / (seen**2 + (1 - seen) ** 2)) * np.sqrt(first + second)
    needed = critical[:, None] * np.sqrt(sums / (n - 1))  # difference of the means, in true standard errors
    shift = size * math.sqrt(n / 2)
    return float((special.ndtr(shift - needed) + special.ndtr(-shift - needed)).mean())


@functools.cache
def _chi_squares(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the quantiles of the first of two chi-squares' part of their sum, and of the sum; n - 1 degrees each."""
    return stats.beta.ppf(MIDDLES, (n - 1) / 2, (n - 1) / 2), stats.chi2.ppf(MIDDLES, 2 * n - 2)


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of two orders of the same rows, with 95 % intervals; None for orders that agree wholly."""

    n: int
    spearman: float
    spearman_interval: Interval | None
    kendall: float
    kendall_interval: Interval | None


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> Agreement | None:
    """Return Spearman's rho and Kendall's tau-b; None under 5 rows or where one side is all equal.

    Intervals by Fisher's z with the standard errors of Bonett and Wright (2000). What only differs after the sixth
    decimal is equal: means of the same accuracies may differ in the last bits.
    """
    ours, theirs = ([round(value, 6) for value in values] for values in (ours, theirs))
    if len(ours) < 5 or len(set(ours)) < 2 or len(set(theirs)) < 2:
        return None
    rho, tau = float(stats.spearmanr(ours, theirs).statistic), float(stats.kendalltau(ours, theirs).statistic)
    n = len(ours)
    return Agreement(
        n=n,
        spearman=rho,
        spearman_interval=_fisher(rho, math.sqrt((1 + rho**2 / 2) / (n - 3))),
        kendall=tau,
        kendall_interval=_fisher(tau, math.sqrt(0.437 / (n - 4))),
    )


def _fisher(r: float, error: float) -> Interval | None:
    if abs(r) >= 1 - 1e-12:
        return None  # a perfect order has no spread to build an interval on
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * error
    return Interval(math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))
