"""The cells of the study `attribution`: the nets on the way of sampled orders of the toggles, each trained once; and
how wide its intervals may be expected to be, before it is paid for."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from roadmap import paper
from roadmap.config.fields import Int, key
from roadmap.config.schema import Config
from roadmap.errors import ConfigError
from roadmap.paper.toggle_orders import Net, Order, choice, net_of, sampled_order, training_seeds, variant_words
from roadmap.runs.run_dir import run_path
from roadmap.runs.schema import SUMMARY, Summary, read_or_empty
from roadmap.sweep.generators import Generator, Words

if TYPE_CHECKING:  # studies have generators
    from roadmap.sweep.study import Study

CHOSEN = ("step", "variant", "seed")  # by the orders


class SampledOrders(Generator):
    """The nets of sampled orders under every combination of the lists."""

    prefix = "attribution."

    orders: Int = key(12, ge=1, le=500, about="legal orders of the toggles; more of them keep the earlier")

    def cells(self, grid: Sequence[Words], compose: Callable[[Words], Config]) -> Iterator[Words]:
        """Yield the overrides of each net and seed. Raises ConfigError."""
        for words in grid:
            for word in words:
                if (name := word.partition("=")[0].lstrip("+~")) in CHOSEN:
                    raise ConfigError(f"{word}: the orders choose each {name}; attribution.orders=N says how many")
            for net, seeds in training_seeds(map(sampled_order, range(self.orders))):
                step, variants = choice(net)
                for seed in range(seeds):
                    yield (f"+step={step}", *variant_words(variants), f"seed={seed}", *words)

    def outlook(self, study: "Study", rows: object = ()) -> Iterator[str]:
        """Yield how many nets the orders need, and how wide the intervals may be expected to be."""
        orders = [sampled_order(number) for number in range(self.orders)]
        nets = dict(training_seeds(orders))
        runs, twice = sum(nets.values()), sum(seeds > 1 for seeds in nets.values())
        yield (
            f"{len(orders)} order{'s' * (len(orders) > 1)}: {len(nets)} nets, {runs} runs, {twice} nets with two "
            "seeds; the paper's own order is among them, beside the others"
        )
        yield expected_width(orders, nets, study)


def expected_width(orders: Sequence[Order], nets: Mapping[Net, int], study: "Study") -> str:
    """Return half the width of the 95 % intervals to expect of some orders, with what that is known from."""
    # The report's arithmetic takes a second to import.
    from roadmap.report.analyse.attribution import (
        MIN_ORDERS,
        Spread,
        complete_orders,
        estimate,
        half_width,
        seed_spread,
    )

    if len(orders) < MIN_ORDERS:
        return f"no interval: that takes {MIN_ORDERS} orders (attribution.orders={MIN_ORDERS})"
    planned = {net: (0.0,) * seeds for net, seeds in nets.items()}
    of_one_seed = [mean.spread(Spread(1.0, len(orders) - 1), planned) for mean in estimate(orders, planned)]
    shares = [spread.variance for spread in of_one_seed if spread]  # of a toggle's variance, in seeds' variances
    t = half_width(Spread(1.0, len(orders) - 1))
    done = finished(study)
    seeds, (complete, _) = seed_spread(done), complete_orders(done)
    if seeds and len(complete) >= MIN_ORDERS:
        by_orders = [mean.of_orders(seeds) * len(complete) / len(orders) for mean in estimate(complete, done)]
        halves = [t * math.sqrt(v + share * seeds.variance) for v, share in zip(by_orders, shares, strict=True)]
        return (
            f"half-width to expect (95 %): {median(halves):.2g} points ({min(halves):.2g} to {max(halves):.2g} by "
            f"toggle), from the {len(complete)} orders that are complete"
        )
    seed_std, source = papers_seed_std(study), "the paper's, Table 10"
    if seeds:
        seed_std, source = math.sqrt(seeds.variance), "these runs'"
    unit = t * math.sqrt(median(shares))
    least = f"{unit:.2g} times the standard deviation over seeds, which is not known here yet"
    if seed_std:
        least = f"{unit * seed_std:.2g} points, by seeds alone (std. dev. {seed_std:.2g}, {source})"
    later = f"what orders add is known from {MIN_ORDERS} complete ones on"
    return f"half-width to expect (95 %): at least {least}; {later}"


def finished(study: "Study") -> dict[Net, list[float]]:
    """Return the top-1 of each seed of the study's finished runs, by their nets."""
    found: dict[Net, list[float]] = defaultdict(list)
    for cell in study.cells:
        top1 = read_or_empty(Summary, run_path(cell.config) / SUMMARY).top1
        net = net_of(cell.config.step, cell.config.variant)
        if net is not None and top1 is not None:
            found[net].append(top1)
    return found


def papers_seed_std(study: "Study") -> float | None:
    """Return the paper's standard deviation over seeds where its numbers compare: of all its rows together."""
    config = study.cells[0].config
    stds = [row.top1_std for row in paper.rows(config.regime.name).values() if row.top1_std]
    compares = (config.data.name, config.data.image_size) == (paper.DATA, paper.IMAGE_SIZE)
    return math.sqrt(fmean(std**2 for std in stds)) if stds and compares else None
