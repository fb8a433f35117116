"""The cells of the study `attribution`: the nets on the way of sampled orders of the toggles, each trained once."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from roadmap.config.fields import Int, key
from roadmap.config.schema import Config
from roadmap.errors import ConfigError
from roadmap.paper.toggle_orders import choice, sampled_order, training_seeds, variant_words
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
                    raise ConfigError(
                        f"{word}: the study's orders choose each {name}; attribution.orders=N says how many"
                    )
            for net, seeds in training_seeds(map(sampled_order, range(self.orders))):
                step, variants = choice(net)
                for seed in range(seeds):
                    yield (f"+step={step}", *variant_words(variants), f"seed={seed}", *words)

    def outlook(self, study: "Study", rows: object = ()) -> Iterator[str]:
        """Yield how many nets the orders need, and how wide the intervals may be expected to be."""
        from roadmap.sweep.order_outlook import expected_width  # the report's arithmetic takes a second to import

        orders = [sampled_order(number) for number in range(self.orders)]
        nets = dict(training_seeds(orders))
        runs, twice = sum(nets.values()), sum(seeds > 1 for seeds in nets.values())
        yield (
            f"{len(orders)} order{'s' * (len(orders) > 1)}: {len(nets)} nets, {runs} runs, {twice} nets with two "
            "seeds; the paper's own order is among them, beside the others"
        )
        yield expected_width(orders, nets, study)
