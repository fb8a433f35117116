"""The statistics of the report: published worked examples, and how often the intervals hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from roadmap.report.analyse import statistics

# Student's sleep data ("The probable error of a mean", 1908); results as in R's documentation of `sleep` and `t.test`.
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
STUDIES = 1_000


def test_the_t_interval_of_students_sleep_data():
    found = statistics.mean_interval([b - a for a, b in zip(DRUG_1, DRUG_2, strict=True)])
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)


def test_welchs_test_of_students_sleep_data():
    found = statistics.welch(DRUG_1, DRUG_2)
    assert found.p == pytest.approx(0.07939, abs=5e-6)
    assert (found.interval.low, found.interval.high) == pytest.approx((-3.3654832, 0.2054832), abs=1e-7)


def bits_of(both: int, only_this: int, only_other: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = (both, only_this, only_other, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_mcnemars_test_of_agrestis_approval_ratings():
    """Agresti, Categorical Data Analysis, Table 10.1: z squared = 17.36 without correction."""
    found = statistics.mcnemar(*bits_of(794, 150, 86, 570))
    assert (found.only_this, found.only_other) == (150, 86)
    assert found.p == pytest.approx(scipy_stats.chi2.sf(17.36, 1), rel=0.01)
    assert found.p == pytest.approx(3.1e-5, abs=1e-6)


def test_mcnemars_test_of_few_images_is_the_binomial_one():
    """6 and 16 discordant pairs: the sign test's two-sided p of 0.0525. From 25 on it is the normal one."""
    assert statistics.mcnemar(*bits_of(59, 6, 16, 80)).p == pytest.approx(0.0525, abs=5e-5)
    assert statistics.mcnemar(*bits_of(59, 8, 17, 80)).p == pytest.approx(scipy_stats.chi2.sf(81 / 25, 1))


def test_holms_method_on_its_textbook_example():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.01, None, 0.03]) == [pytest.approx(0.02), None, pytest.approx(0.03)]
    assert statistics.holm([None, None]) == [None, None]


@pytest.mark.parametrize(("effect", "size"), [
    (0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17), (1e-6, statistics.MOST_SEEDS), (30.0, 2), (1e6, 2),
])  # fmt: skip
def test_sample_sizes_are_those_of_cohens_tables_and_end_at_the_limits(effect, size):
    """Cohen (1988), Table 2.4.1, at 5 % two-sided and a power of 80 %: Welch's test needs as many there."""
    assert statistics.sample_size(effect) == size


@pytest.mark.parametrize("tests", [1, 16])
@pytest.mark.parametrize("spreads", [(1, 1), (1, 0.1), (0.3, 1)])
@pytest.mark.parametrize("effect", [0.8, 1.2, 2.0])
def test_the_size_found_has_the_power_promised_in_the_reports_own_test(effect, spreads, tests):
    """The variances are known here. Between 75 and 90 %: a whole number of seeds cannot meet 80 % exactly."""
    level = statistics.ALPHA / tests
    first, second = (spread**2 for spread in spreads)
    gain, share = effect * math.sqrt((first + second) / 2), first / (first + second)
    n = statistics.sample_size(effect, level, share)
    for seeds, low, high in ((n, 0.79, 0.9), (n - 1, 0.0, 0.81)):
        rng = np.random.default_rng(seeds)
        ours, parent = rng.normal(gain, spreads[0], (20_000, seeds)), rng.normal(0, spreads[1], (20_000, seeds))
        power = (scipy_stats.ttest_ind(ours, parent, axis=1, equal_var=False).pvalue < level).mean()
        assert low <= power <= high
        assert power == pytest.approx(statistics.welch_power(effect, seeds, level, share), abs=0.012)


@pytest.mark.parametrize(("gain", "spreads", "tests", "likely"), [
    (2.0, (0.5, 0.05), 16, 5), (2.0, (0.05, 0.5), 16, 5), (0.5, (0.5, 0.01), 16, 19), (1.0, (0.4, 0.02), 1, 4),
])  # fmt: skip
def test_seeds_needed_are_for_the_two_spreads_as_measured(gain, spreads, tests, likely):
    """By simulations of 200,000 studies with so many seeds, power 0.89, 0.89, 0.81 and 0.90; 0.54 to 0.77 with one
    less. The rows may have different numbers of seeds."""
    three, nine = np.array([-1.0, 0, 1]), np.sqrt(4 / 3) * np.array([-1.0, -1, -1, 0, 0, 0, 1, 1, 1])  # spread 1
    for parent in (three, nine):
        found = statistics.welch(gain + spreads[0] * three, spreads[1] * parent).effect
        assert found.size == pytest.approx(gain / math.sqrt((spreads[0] ** 2 + spreads[1] ** 2) / 2))
        assert statistics.seeds_needed(found, tests, 2, True).likely == likely


def test_the_interval_of_an_effect_holds_it_in_95_of_100_studies():
    rng = np.random.default_rng(5)
    found = [statistics.welch(rng.normal(1, 1, 3), rng.normal(0, 1, 3)).effect for _ in range(STUDIES)]
    assert 0.93 <= share([effect.low <= 1 <= effect.high for effect in found]) <= 0.98


def test_seeds_needed_never_contradict_the_verdict_beside_them():
    """16 tests a study: where three seeds have not told a difference from zero, three are never said to be enough."""
    large = statistics.Effect(30.0, -1.0, 60.0, 0.5)  # two seeds would tell it, and three have not
    assert statistics.seeds_needed(large, 16, 3, False) == statistics.Seeds(4, 4, None)
    rng = np.random.default_rng(2)
    for _ in range(8):
        gains = rng.exponential(0.4, 16)
        values = [(rng.normal(80 + gain, 0.1, 3), rng.normal(80, 0.1, 3)) for gain in gains]
        found = [statistics.welch(*pair) for pair in values]
        for one, p in zip(found, statistics.holm([one.p for one in found]), strict=True):
            needed = statistics.seeds_needed(one.effect, 16, 3, p < statistics.ALPHA)
            assert needed.low <= needed.likely <= (needed.high or statistics.MOST_SEEDS)
            assert p < statistics.ALPHA or needed.low > 3


def test_the_range_of_seeds_needed_holds_the_true_number():
    """From three seeds a true need of 17 is not known: the range says so, and is rarely wrong."""
    truth = statistics.sample_size(1.0)
    rng = np.random.default_rng(8)
    hits, likely = [], []
    for _ in range(200):
        found = statistics.welch(rng.normal(1, 1, 3), rng.normal(0, 1, 3))
        needed = statistics.seeds_needed(found.effect, 1, 3, found.p < 0.05)
        likely.append(needed.likely)
        hits.append(needed.low <= truth <= (needed.high or statistics.MOST_SEEDS))
    assert sum(hits) / len(hits) >= 0.93
    assert min(likely) < 6 and max(likely) == statistics.MOST_SEEDS


def test_rank_correlation_of_a_published_example():
    """Ten children's ranks for IQ and hours of television (Spearman's rho on Wikipedia): rho = -29/165."""
    iq = [86, 97, 99, 100, 101, 103, 106, 110, 112, 113]
    hours = [2, 20, 28, 27, 50, 29, 7, 17, 6, 12]
    found = statistics.agreement(iq, hours)
    assert found.spearman == pytest.approx(-29 / 165)
    assert found.kendall == pytest.approx(-1 / 9)
    # Bonett and Wright (2000): standard errors of Fisher's z of ten pairs.
    for interval, value, error in (
        (found.spearman_interval, found.spearman, math.sqrt((1 + found.spearman**2 / 2) / 7)),
        (found.kendall_interval, found.kendall, math.sqrt(0.437 / 6)),
    ):
        ends = [math.tanh(math.atanh(value) + sign * 1.959964 * error) for sign in (-1, 1)]
        assert (interval.low, interval.high) == pytest.approx(ends)


def test_equal_means_are_ties_whatever_their_last_bits():
    pairs = (98.7962962962963, 98.98148148148148), (98.88888888888889,) * 2
    means = [np.mean([98.88888888888889, *pair]) for pair in pairs]
    assert means[0] != means[1]
    found = statistics.agreement([*means, 99.0, 99.1, 99.2], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert found == statistics.agreement([1.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0])


@pytest.mark.parametrize("least", [1e-170, 1e-300])
def test_values_whose_variance_is_too_small_for_a_number_have_no_interval(least):
    assert statistics.welch([least, 0.0], [0.0, 0.0]) is None


@pytest.mark.parametrize("values", [[70.0], [70.0, 70.0], [70.0] * 9, [42.7] * 3])  # the last's mean is not 42.7
def test_without_a_spread_there_is_no_interval(values):
    assert statistics.mean_interval(values) is None
    assert statistics.welch(values, values) is None
    if len(values) == 1:
        assert statistics.welch(values, [60.0, 61.0]) is statistics.welch([60.0, 61.0], values) is None


def test_the_image_bootstrap_is_that_of_drawing_images_one_by_one():
    rng = np.random.default_rng(1)
    ours, parent = rng.random((2, 400)) < 0.7, rng.random((3, 400)) < 0.6
    found = statistics.image_bootstrap(ours, parent)
    one_by_one = scipy_stats.bootstrap(
        (100 * (ours.mean(axis=0) - parent.mean(axis=0)),), np.mean, method="percentile", n_resamples=9_999, rng=rng
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((one_by_one.low, one_by_one.high), abs=0.15)
    assert statistics.image_bootstrap(ours, ours) is None


def share(hits: list[bool]) -> float:
    assert len(hits) == STUDIES
    return sum(hits) / STUDIES


def inside(interval: statistics.Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_t_interval_holds_the_mean_in_95_of_100_studies(seeds):
    rng = np.random.default_rng(seeds)
    hits = [inside(statistics.mean_interval(rng.normal(80, 0.1, seeds)), 80) for _ in range(STUDIES)]
    assert 0.93 <= share(hits) <= 0.97


@pytest.mark.parametrize(("seeds", "spreads"), [(3, (0.1, 0.1)), (3, (0.06, 0.14)), (5, (0.02, 0.18))])
def test_welchs_interval_holds_the_gain_in_95_of_100_studies(seeds, spreads):
    rng = np.random.default_rng(7)
    hits = []
    for _ in range(STUDIES):
        values, parent = rng.normal(80.3, spreads[0], seeds), rng.normal(80, spreads[1], seeds)
        hits.append(inside(statistics.welch(values, parent).interval, 0.3))
    assert 0.93 <= share(hits) <= 0.97


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_image_bootstrap_holds_the_gain_of_fixed_nets_in_95_of_100_studies(seeds, monkeypatch):
    """The truth is the difference of the same nets over all images there could be."""
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng = np.random.default_rng(4)
    hits = []
    for _ in range(STUDIES):
        easy = rng.random((1, 1_000))  # how hard an image is, shared by all nets: they are wrong together
        right = easy + 0.2 * rng.normal(size=(2 * seeds, 1_000)) < np.repeat([0.8, 0.78], seeds)[:, None]
        hits.append(inside(statistics.image_bootstrap(right[:seeds], right[seeds:]), TRUE_GAIN))
    assert 0.93 <= share(hits) <= 0.97


def _true_gain() -> float:
    """Return the expected difference in percent of the nets above, by integrating over how hard an image is."""
    easy = np.linspace(0, 1, 200_001)
    chances = [scipy_stats.norm.cdf((level - easy) / 0.2).mean() for level in (0.8, 0.78)]
    return 100 * (chances[0] - chances[1])


TRUE_GAIN = _true_gain()


def test_the_interval_of_rank_agreement_holds_it_in_95_of_100_studies():
    rng = np.random.default_rng(6)
    r = 0.6
    rho, tau = 6 / math.pi * math.asin(r / 2), 2 / math.pi * math.asin(r)  # of the bivariate normal distribution
    hits: dict[str, list[bool]] = {"spearman": [], "kendall": []}
    for _ in range(STUDIES):
        x, y = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], 17).T
        found = statistics.agreement(x, y)
        hits["spearman"].append(inside(found.spearman_interval, rho))
        hits["kendall"].append(inside(found.kendall_interval, tau))
    assert 0.93 <= share(hits["spearman"]) <= 0.97
    assert 0.93 <= share(hits["kendall"]) <= 0.97
