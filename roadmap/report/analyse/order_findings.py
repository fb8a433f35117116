"""What sampled orders say of the toggles, in plain sentences."""

from collections.abc import Callable, Iterator

from roadmap.report.analyse.attribution import Attribution, Worth
from roadmap.report.analyse.formats import between, listed, percent, signed

Gain = Callable[[Worth], float | None]


def over_orders(found: Attribution) -> Iterator[str]:
    """Yield sentences: the worths with their intervals, then which of them the paper's order flatters."""
    if found.incomplete:
        yield f"Sampled orders left out because one of their nets has no usable run: {found.incomplete}."
    largest = sorted(found.worths, key=lambda worth: -worth.value)
    yield (
        f"Over {found.orders} sampled order{'s' * (found.orders > 1)} of the toggles ({found.num_nets} nets), their "
        f"mean gains in points are: {'; '.join(map(_worth, largest))}."
    )
    if found.lacks:
        yield f"No interval is given for them: {found.lacks}."
        return
    yield from _flattered(found, "in these runs", lambda w: w.in_order, lambda w: w.in_order_p)
    yield from _flattered(found, "as the paper printed it", lambda w: w.paper_gain, lambda w: w.paper_p)
    shares = [worth.of_seeds for worth in found.worths if worth.of_seeds is not None]
    if shares:
        share = sum(shares) / len(shares)
        yield f"Seeds cause {percent(share)} of the variance of these means, and orders the rest."


def _flattered(found: Attribution, where: str, gain: Gain, p: Gain) -> Iterator[str]:
    """Yield which toggles gain more, or less, in the paper's order than over all of them, where that was tested."""
    tested = [worth for worth in found.worths if p(worth) is not None]
    if not tested:
        return
    parts = []
    for verb, flatters in (("flatters", True), ("is hard on", False)):
        told = [worth for worth in tested if worth.is_told(gain(worth), p(worth), flatters)]
        if told:
            names = [f"{w.toggle} ({signed(gain(w))} there, {signed(w.value)} over the orders)" for w in told]
            parts.append(f"{verb} {listed(names)}")
    text = " and ".join(parts) or "differs significantly from the mean over all orders for no toggle"
    yield f"The paper's order, {where}, {text} (adjusted by Holm for {len(tested)} toggles, 5 %)."


def _worth(worth: Worth) -> str:
    return f"{worth.toggle} {signed(worth.value)}" + (f" ({between(worth.interval)})" if worth.interval else "")
