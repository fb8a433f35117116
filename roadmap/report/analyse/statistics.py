"""The statistics of the report, by scipy and statsmodels: each answers one question about accuracies in percent.

Numbers in, numbers out; nothing here knows of runs. Where a question has no answer (one seed, nothing differs) the
answer is None, never a guess. `roadmap.report.analyse.gains` says what each answer means.
"""

import math
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_test
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower

LEVEL = 0.95
ALPHA, POWER = 0.05, 0.8
MIN_BOOTSTRAP = 8  # seeds: over 3 a bootstrap interval covers 75 %, where Welch's covers 96 %
RESAMPLES = 9_999
MOST_SEEDS = 1_000  # more than anybody will train
EXACT_BELOW = 25  # discordant images, under which McNemar's test is taken from the binomial distribution


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, in the unit of its data."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A difference of two means over seeds: its Welch interval and two-sided p."""

    interval: Interval
    p: float


@dataclass(frozen=True)
class McNemar:
    """Two nets on the same images: how many only the one and only the other has right, and the two-sided p."""

    only_this: int
    only_other: int
    p: float


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the t interval of the mean; None for one value or equal ones: nothing is known of the spread."""
    if len(values) < 2 or stdev(values) == 0:
        return None
    found = stats.ttest_1samp(values, 0.0).confidence_interval(LEVEL)
    return Interval(float(found.low), float(found.high))


def welch(values: Sequence[float], parent: Sequence[float]) -> Difference | None:
    """Compare two independent groups of seeds by Welch's t test; None where one has no spread that is known."""
    if min(len(values), len(parent)) < 2 or stdev(values) + stdev(parent) == 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one side may have no spread is allowed for
        found = stats.ttest_ind(values, parent, equal_var=False)
    interval = found.confidence_interval(LEVEL)
    return Difference(Interval(float(interval.low), float(interval.high)), float(found.pvalue))


def seed_bootstrap(values: Sequence[float], parent: Sequence[float], seed: int = 0) -> Interval | None:
    """Return the bootstrap interval of a difference of means over seeds; None under 8 seeds a side.

    The expanded percentile interval (Hesterberg 2015, Sec. 4.2): as wide as few values need; the plain is too narrow.
    """
    n = min(len(values), len(parent))
    if n < MIN_BOOTSTRAP or stdev(values) + stdev(parent) == 0:
        return None
    half = stats.t.ppf(0.5 + LEVEL / 2, len(values) + len(parent) - 2)
    expanded = 2 * stats.norm.cdf(math.sqrt(n / (n - 1)) * half) - 1
    found = stats.bootstrap(
        (np.asarray(values), np.asarray(parent)),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        n_resamples=RESAMPLES,
        confidence_level=float(expanded),
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def image_bootstrap(bits: np.ndarray, parent: np.ndarray, seed: int = 0) -> Interval | None:
    """Return the interval of the difference in percent over images drawn anew, the trained nets held fixed.

    `bits (n, N)` and `parent (m, N)` say which of the same N images each net has right. Images with the same difference
    are interchangeable: drawing N images with replacement is one multinomial draw over the few differences that occur.
    None where no image differs.
    """
    differences = bits.mean(axis=0) - parent.mean(axis=0)
    values, counts = np.unique(differences.round(9), return_counts=True)
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    means = 100.0 * (drawn @ values) / counts.sum()
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(float(low), float(high))


def mcnemar(bits: np.ndarray, parent: np.ndarray) -> McNemar | None:
    """Compare two nets on the same images, `bits (N,)` each; exact where few images differ. None where none does."""
    only_this, only_other = int((bits & ~parent).sum()), int((parent & ~bits).sum())
    if only_this + only_other == 0:
        return None
    both, neither = int((bits & parent).sum()), int((~bits & ~parent).sum())
    found = mcnemar_test(
        [[both, only_this], [only_other, neither]], exact=only_this + only_other < EXACT_BELOW, correction=False
    )
    return McNemar(only_this, only_other, float(found.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p values adjusted by Holm for all that are there together; None stays None."""
    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1] if known else [])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def seeds_needed(values: Sequence[float], parent: Sequence[float]) -> int | None:
    """Return how many seeds a row would tell this difference from zero (two-sided 5 %, power 80 %), were it true.

    None where the spread is not known or the difference is zero; `MOST_SEEDS` stands for that many or more.
    """
    if min(len(values), len(parent)) < 2:
        return None
    spread = math.sqrt((stdev(values) ** 2 + stdev(parent) ** 2) / 2)
    gain = abs(fmean(values) - fmean(parent))
    if spread == 0 or gain == 0:
        return None
    return sample_size(gain / spread)


def sample_size(effect: float) -> int:
    """Return the size of two groups in which a t test finds `effect` (Cohen's d) with power 80 %: 2 to `MOST_SEEDS`."""
    test = TTestIndPower()

    def enough(n: int) -> bool:
        return not test.power(effect, n, ALPHA) < POWER  # of a huge effect scipy gives no power: NaN, and 2 are enough

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bisect_left(range(MOST_SEEDS), True, lo=2, key=enough)


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of two orders of the same rows, with 95 % intervals where there are enough rows."""

    n: int
    spearman: float
    spearman_interval: Interval | None
    kendall: float
    kendall_interval: Interval | None


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> Agreement | None:
    """Return Spearman's rho and Kendall's tau-b; None under 3 rows or where one side is all equal.

    Intervals by Fisher's z with the standard errors of Bonett and Wright (2000), from 5 rows on.
    """
    if len(ours) < 3 or len(set(ours)) < 2 or len(set(theirs)) < 2:
        return None
    rho, tau = float(stats.spearmanr(ours, theirs).statistic), float(stats.kendalltau(ours, theirs).statistic)
    n = len(ours)
    return Agreement(
        n=n,
        spearman=rho,
        spearman_interval=_fisher(rho, math.sqrt((1 + rho**2 / 2) / (n - 3))) if n >= 5 else None,
        kendall=tau,
        kendall_interval=_fisher(tau, math.sqrt(0.437 / (n - 4))) if n >= 5 else None,
    )


def _fisher(r: float, error: float) -> Interval | None:
    if abs(r) >= 1 - 1e-12:
        return None  # a perfect order has no spread to build an interval on
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * error
    return Interval(math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))
