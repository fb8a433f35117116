"""What each toggle is worth independent of the order: its gain averaged over sampled orders, with its interval.

The average over all legal orders is the Shapley value under precedence constraints (Faigle and Kern 1992). Orders are
drawn independently, so t over orders is the interval of a toggle's mean gain, but for one thing: orders share nets, and
a net is trained once. What its seed did stands in the gain of several orders at once and does not average out; the
spread over orders cannot see that. It is added from the spread over the seeds of the nets that have two:

    Var(mean) = s2 / m - h v + q v       v: variance over seeds, pooled over nets; all else counts shared nets

s2 / m is the usual term over m orders, h v the part of it that is the seeds' doing, and q v all that seeds do to the
mean. Degrees of freedom are Satterthwaite's (1946). By simulation it covers 93 to 98 % from 3 orders on.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance

from scipy import stats

from roadmap.paper import PaperRow
from roadmap.paper.toggle_orders import FIRST, Net, Order, is_several, net_of, nets, sampled_order, toggles
from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.analyse.comparability import TRAINING, config_value
from roadmap.report.analyse.statistics import ALPHA, LEVEL, Interval, holm

MIN_ORDERS = 3  # under which the interval covers less than 90 %
MOST_ORDERS = 500
PAPER_SEEDS = 3  # behind each spread that it prints
Top1s = Mapping[Net, Sequence[float]]  # of every seed of a net, in percent
Weights = Mapping[Net, float]  # a sum over nets


@dataclass(frozen=True)
class Spread:
    """A variance in squared points, and its degrees of freedom."""

    variance: float
    df: float


@dataclass(frozen=True)
class Mean:
    """The gain of a toggle over some orders: its mean, and what it takes to say how far that may be off."""

    toggle: str
    value: float  # points
    weights: Weights  # of the nets in it
    over_orders: Spread | None  # s2 / m, with m - 1; None for one order
    seeds_in_it: float  # h: the part of it that seeds do, as a share of their variance
    num_orders: int  # m

    def spread(self, seeds: Spread | None, top1s: Top1s, less: Weights | None = None) -> Spread | None:
        """Return the spread of the mean, or of the mean less another sum over nets of the same runs."""
        if self.over_orders is None or seeds is None:
            return None
        left = defaultdict(float, self.weights)
        for net, weight in (less or {}).items():
            left[net] -= weight
        q = sum(weight**2 / len(top1s[net]) for net, weight in left.items())
        if self.of_orders(seeds) == 0:  # all the spread over orders is no more than what the seeds do
            return Spread(q * seeds.variance, seeds.df)
        return total(self.over_orders, Spread((q - self.seeds_in_it) * seeds.variance, seeds.df))

    def of_orders(self, seeds: Spread) -> float:
        """Return the part of the variance that orders are the cause of, in squared points: 1 / m of one order's."""
        return max(0.0, (self.over_orders.variance if self.over_orders else 0.0) - self.seeds_in_it * seeds.variance)


@dataclass(frozen=True)
class Worth:
    """One toggle's worth over the orders, and its gain elsewhere, in points. None where there is no answer."""

    toggle: str
    value: float
    interval: Interval | None = None
    orders_std: float | None = None  # of the gain over the orders, without what seeds do to it
    of_seeds: float | None = None  # share of the variance of `value` that seeds are the cause of
    in_order: float | None = None  # gain in the paper's order, in these runs
    in_order_p: float | None = None  # of its difference from `value`, adjusted by Holm over the toggles
    paper_gain: float | None = None  # as printed
    paper_p: float | None = None
    left_out: float | None = None  # what the whole net loses without it

    def is_significant(self, gain: float | None, p: float | None, flatters: bool) -> bool:
        """Return whether a gain is told from the worth, and above it (or below)."""
        return gain is not None and p is not None and p < ALPHA and (gain > self.value) == flatters


@dataclass(frozen=True)
class Attribution:
    """The toggles' worths over the orders whose nets are all trained."""

    worths: tuple[Worth, ...]  # in the paper's order
    orders: int
    incomplete: int  # orders with nets that lack a usable run: left out
    num_nets: int
    seed_std: float | None  # of one training, points
    lacks: str = ""  # why no interval is given


def with_attribution(group: Group, groups: Sequence[Group]) -> Group:
    """Add the toggles' worths to a study of sampled orders; what it lacks are orders, and no rows of a roadmap."""
    if not any(is_several(cell.variant) for cell in group.cells):
        return group
    cells = nets_of(group)
    orders, incomplete = complete_orders(cells)
    if not orders:
        return group
    top1s = {net: cell.top1s for net, cell in cells.items()}
    seeds = seed_spread(top1s)
    lacks = "" if seeds else "no net has a second seed"
    lacks = lacks if len(orders) >= MIN_ORDERS else f"that takes {MIN_ORDERS} orders"
    printed = {row.step: row.paper for row in group.rows if row.paper}
    worths = [_worth(mean, None if lacks else seeds, cells, printed) for mean in estimate(orders, top1s)]
    in_order_p, paper_p = (holm([getattr(worth, name) for worth in worths]) for name in ("in_order_p", "paper_p"))
    found = Attribution(
        worths=tuple(
            replace(worth, in_order_p=ours, paper_p=theirs, left_out=_left_out(worth.toggle, cells, group, groups))
            for worth, ours, theirs in zip(worths, in_order_p, paper_p, strict=True)
        ),
        orders=len(orders),
        incomplete=incomplete,
        num_nets=len({net for order in orders for net in nets(order)}),
        seed_std=math.sqrt(seeds.variance) if seeds else None,
        lacks=lacks,
    )
    return replace(group, attribution=found, missing=())


def nets_of(group: Group) -> dict[Net, Cell]:
    """Return the cells of a group by their nets: those trained alike, with the setting that has the most nets."""
    alike: dict[tuple[object, ...], dict[Net, Cell]] = defaultdict(dict)
    for cell in sorted(group.cells, key=lambda cell: (len(cell.cell), cell.cell)):
        if (net := net_of(cell.step, cell.variant)) is not None:
            alike[_setting(cell)].setdefault(net, cell)
    return max(alike.values(), key=len, default={})


def _setting(cell: Cell) -> tuple[object, ...]:
    run = cell.runs[0]
    return (run.images, run.recipe, run.batch_size, *(config_value(run, key) for key in TRAINING))


def complete_orders(there: Mapping[Net, object]) -> tuple[list[Order], int]:
    """Return the sampled orders whose nets are all there, and how many were begun and are not.

    An order was asked for if a later one was, or if a net is there that no earlier order has. One beyond these that
    happens to be complete does not count: its nets were trained for other orders.
    """
    ends = {net for net in there if min(len(net), len(toggles()) - len(net)) < 2}  # other studies train these, too
    seen, orders, asked = {*ends, *nets(toggles())}, list[Order](), 0
    for number in range(MOST_ORDERS):
        order = sampled_order(number)
        orders.append(order)
        if any(net in there and net not in seen for net in nets(order)):
            asked = number + 1
        seen.update(nets(order))
    complete = [order for order in orders[:asked] if all(net in there for net in nets(order))]
    return complete, asked - len(complete)


def estimate(orders: Sequence[Order], top1s: Top1s) -> list[Mean]:
    """Return the mean gain of each toggle over the orders, in the paper's order of the toggles."""
    return [_mean(toggle, orders, top1s) for toggle in toggles() if orders]


def _mean(toggle: str, orders: Sequence[Order], top1s: Top1s) -> Mean:
    m = len(orders)
    steps = [step(toggle, order) for order in orders]
    gains = [fmean(top1s[after]) - fmean(top1s[before]) for before, after in steps]
    weights: dict[Net, float] = defaultdict(float)
    for before, after in steps:
        weights[after] += 1 / m
        weights[before] -= 1 / m
    over_orders = Spread(variance(gains) / m, m - 1) if m > 1 else None
    alone = sum(1 / len(top1s[net]) for pair in steps for net in pair) / m  # of one gain
    shared = sum(weight**2 / len(top1s[net]) for net, weight in weights.items())  # of their mean
    return Mean(toggle, fmean(gains), weights, over_orders, (alone - shared) / (m - 1) if m > 1 else 0.0, m)


def step(toggle: str, order: Order) -> tuple[Net, Net]:
    """Return the nets before and after a toggle in an order."""
    at = order.index(toggle)
    return frozenset(order[:at]), frozenset(order[: at + 1])


def seed_spread(top1s: Top1s) -> Spread | None:
    """Return the variance over seeds, pooled over the nets; None where no net has two."""
    several = [values for values in top1s.values() if len(values) > 1]
    df = sum(len(values) - 1 for values in several)
    return Spread(sum((len(values) - 1) * variance(values) for values in several) / df, df) if df else None


def total(*parts: Spread) -> Spread:
    """Return the sum of independent variances, with Satterthwaite's degrees of freedom."""
    whole = sum(part.variance for part in parts)
    inverse = sum(part.variance**2 / part.df for part in parts)
    return Spread(whole, whole**2 / inverse if inverse else math.inf)


def half_width(spread: Spread) -> float:
    """Return half the width of a 95 % interval."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, spread.df)) * math.sqrt(spread.variance)


def _worth(mean: Mean, seeds: Spread | None, cells: Mapping[Net, Cell], printed: Mapping[str, PaperRow]) -> Worth:
    """Return a toggle's worth beside its gains in the paper's order, in these runs and as printed where that compares.

    Each has the p of what tells it from the worth, not adjusted yet. Without `seeds` there is no interval and no p.
    """
    top1s = {net: cell.top1s for net, cell in cells.items()}
    before, after = step(mean.toggle, toggles())
    in_order = in_order_p = paper_gain = paper_p = None
    if before in cells and after in cells:
        in_order = cells[after].top1 - cells[before].top1
        in_order_p = _p(in_order - mean.value, mean.spread(seeds, top1s, {after: 1.0, before: -1.0}))
    spread = mean.spread(seeds, top1s)
    first, then = (printed.get((FIRST, *toggles())[len(net)]) for net in (before, after))
    if first and then:
        paper_gain = then.top1 - first.top1
        if spread and first.top1_std and then.top1_std:
            of_paper = [Spread(row**2 / PAPER_SEEDS, PAPER_SEEDS - 1) for row in (first.top1_std, then.top1_std)]
            paper_p = _p(paper_gain - mean.value, total(spread, *of_paper))
    half, of_orders = half_width(spread) if spread else 0.0, mean.of_orders(seeds) if seeds else 0.0
    return Worth(
        toggle=mean.toggle,
        value=mean.value,
        interval=Interval(mean.value - half, mean.value + half) if half else None,
        orders_std=math.sqrt(of_orders * mean.num_orders) if spread else None,
        of_seeds=1 - of_orders / spread.variance if spread and spread.variance else None,
        in_order=in_order,
        in_order_p=in_order_p,
        paper_gain=paper_gain,
        paper_p=paper_p,
    )


def _p(difference: float, spread: Spread | None) -> float | None:
    if spread is None or spread.variance == 0:
        return None
    return float(2 * stats.t.sf(abs(difference) / math.sqrt(spread.variance), spread.df))


def _left_out(toggle: str, cells: Mapping[Net, Cell], group: Group, groups: Sequence[Group]) -> float | None:
    """Return what the whole net loses without a toggle: of these runs, or of the other study that was trained alike."""
    whole = frozenset(toggles())
    if whole in cells and whole - {toggle} in cells:
        return cells[whole].top1 - cells[whole - {toggle}].top1
    if whole not in cells:
        return None
    others = [g for g in groups if g is not group and (g.regime, g.data) == (group.regime, group.data)]
    alike = [c for g in others for c in g.cells if net_of(c.step, c.variant) == whole - {toggle}]
    same = [c for c in alike if _setting(c) == _setting(cells[whole])]
    return cells[whole].top1 - same[0].top1 if len(same) == 1 else None
