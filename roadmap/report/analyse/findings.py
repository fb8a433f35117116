"""The findings in plain sentences, each with its numbers, none that a test does not support."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from roadmap.report.analyse.attribution import Attribution, Worth
from roadmap.report.analyse.cells import Cell, Gain, Group
from roadmap.report.analyse.formats import between, listed, p_equals, p_text, percent, share_of, signed
from roadmap.report.analyse.ranking import ranking
from roadmap.report.analyse.statistics import ALPHA
from roadmap.report.analyse.tuning import TunedRow, Tuning
from roadmap.text import clean, first_few

NAMED = 8  # rows named one by one in a sentence
Compared = Sequence[tuple[Cell, Gain]]
Number = Callable[[Worth], float | None]
# By verdict: what is said of the steps' gains that have it.
VERDICTS = {
    "survives": "Gains that survive (significant with the one recipe and, in the same direction, with own rates)",
    "lost": "Gains significant with the one recipe, and not with own rates (no proof that they are zero)",
    "turns": "Gains significant with both, in opposite directions",
    "appears": "Gains significant with own rates only",
    "open": "Gains significant with neither",
}


def findings(groups: Sequence[Group]) -> list[str]:
    """Return one text per group, a sentence per line: what its data support, and what they do not."""
    return ["\n".join(_sentences(group)) for group in groups if group.cells or group.tuning]


def _sentences(group: Group) -> Iterator[str]:
    where = f"(regime {group.regime}, {group.data})"
    count = len(group.cells)
    cells = f"{count} cell{'s' * (count > 1)}, {_seeds(group)}" if count else "no cell on the validation images yet"
    yield f"Study {clean(group.study, 80)} {where}: {cells}."
    if group.tuning:
        yield from _own_rates(group.tuning)
    for sentences in (_over_seeds, _over_images, _over_classes, _against_paper):
        yield from sentences(group.compared)
    if group.attribution:
        yield from _over_orders(group.attribution)
    if (ranks := ranking(group)) is not None:
        yield ranks.sentence
    yield from _collapses(group.cells)
    if group.caution:
        yield f"Caution: {group.caution}."


def _collapses(cells: Sequence[Cell]) -> Iterator[str]:
    """Name the runs whose accuracy once fell by more than half: a mean at the end would not show it."""
    found = [
        f"{clean(cell.cell, 80)} seed {run.seed} (epoch {epoch}: from {before:.1f} to {after:.1f} %)"
        for cell in cells for run in cell.runs for (_, before), (epoch, after) in pairwise(run.curve)
        if after < before / 2 and before >= run.top1 / 2  # not what a start is like
    ]  # fmt: skip
    if found:
        yield (
            f"Caution: top-1 fell by more than half from one evaluation to the next in {first_few(found)}. A step may "
            "have gone wrong there: see the training curves, and train such a run again."
        )


def _over_seeds(compared: Compared) -> Iterator[str]:
    tested = [(cell, gain) for cell, gain in compared if gain.p_holm is not None]
    sure = [(cell, gain) for cell, gain in tested if gain.significant]
    if tested:
        yield (
            f"Over seeds, {share_of(len(sure), len(tested), 'gain', 'is', 'are')} significant "
            f"(Welch's test, adjusted by Holm for all of the study, 5 %){': ' + _listed(sure) if sure else ''}."
        )
    if unsure := [cell for cell, gain in tested if not gain.significant]:
        yield f"Not significant: {_names(unsure)}."
    if single := [cell for cell, gain in compared if min(cell.n, gain.parent_n) < 2]:
        yield (
            f"{share_of(len(single), len(compared), 'gain', 'rests', 'rest')} on one seed of a row: whether another "
            "training would give the same is not known, nor an interval over seeds."
        )
    if equal := [cell for cell, gain in compared if gain.p_holm is None and min(cell.n, gain.parent_n) > 1]:
        yield f"No interval over seeds is known for {_names(equal)}: in each of both rows all seeds are equal."


def _over_images(compared: Compared) -> Iterator[str]:
    tested = [gain.mcnemar_p_holm for _, gain in compared if gain.mcnemar_p_holm is not None]
    if tested:
        differ = sum(p < ALPHA for p in tested)
        yield (
            f"On the same images, {share_of(differ, len(tested), 'pair of networks', 'differs', 'differ')} "
            "significantly (McNemar's test, adjusted by Holm, 5 %); this holds for these trained networks only."
        )
    if tested and (against := [cell for cell, gain in compared if gain.contradicted]):
        yield f"The pair points in the other direction than the means over seeds in {_names(against)}."


def _over_classes(compared: Compared) -> Iterator[str]:
    """Name the classes that a step helped or hurt, as far as a test says so."""
    found = [(cell, gain.changes.classes) for cell, gain in compared if gain.changes and gain.changes.classes]
    significant = [(cell, classes, i) for cell, classes in found for i in map(int, np.flatnonzero(classes.significant))]
    tests = sum(int((~np.isnan(classes.p_seeds_adjusted)).sum()) for _, classes in found)
    of_images = sum(int((~np.isnan(classes.p_images_adjusted)).sum()) for _, classes in found)
    differ = sum(int((classes.p_images_adjusted < ALPHA).sum()) for _, classes in found)
    adjusted = "adjusted by Benjamini and Hochberg for all classes and steps of the study, 5 %"
    if significant:
        significant.sort(key=lambda one: -abs(one[1].change[one[2]]))
        names = [f"{clean(c.cell, 60)} {k.names[i]} {signed(k.change[i])} points" for c, k, i in significant]
        what = f"Class by class, {share_of(len(significant), tests, 'difference', 'is', 'are')} significant over seeds"
        yield f"{what} (Welch's test, {adjusted}): {first_few(names, NAMED, '; ')}."
    if differ:
        nothing = "" if significant or not tests else "; over seeds none is significant"
        what = f"Over the images of a class, {share_of(differ, of_images, 'difference', 'is', 'are')} significant"
        yield f"{what} (sign-flip test, {adjusted}); this holds for these trained networks only{nothing}."


def _against_paper(compared: Compared) -> Iterator[str]:
    """Name where the paper's own gain lies outside our interval, and count where inside."""
    known = [(c, g.paper_gain, g.over_seeds) for c, g in compared if g.over_seeds and g.paper_gain is not None]
    outside = [cell for cell, theirs, ours in known if not ours.low <= theirs <= ours.high]
    if known:
        steps = f"{len(known) - len(outside)} of {len(known)} step{'s' * (len(known) > 1)}"
        text = f"The paper's gain lies within our interval in {steps}"
        yield f"{text}; outside it in {_names(outside)}." if outside else f"{text}."


def _listed(compared: Compared) -> str:
    largest = sorted(compared, key=lambda pair: -abs(pair[1].gain))
    texts = [
        f"{clean(cell.cell, 60)} {signed(gain.gain)} points ({between(gain.over_seeds)}, p {p_equals(gain.p_holm)})"
        for cell, gain in largest
    ]
    return first_few(texts, NAMED, "; ")


def _names(rows: Sequence[Cell | TunedRow]) -> str:
    names = [row.cell if isinstance(row, Cell) else row.step for row in rows]
    return first_few([clean(name, 60) for name in names], NAMED)


def _seeds(group: Group) -> str:
    low, high = min(cell.n for cell in group.cells), max(cell.n for cell in group.cells)
    return f"{low} seed{'s' * (low > 1)} per cell" if low == high else f"{low} to {high} seeds per cell"


def _own_rates(tuning: Tuning) -> Iterator[str]:
    """Yield what the held-out images chose, and which gains survive it."""
    rows = tuning.rows
    least, rates = min(row.n for row in rows), max(len(row.accuracies) for row in rows)
    own = [row for row in rows if row.factor is not None and abs(row.factor - 1) < 1e-6]
    yield (
        "Each row has its own learning rate, chosen on held-out training images and never on the validation images "
        f"({rates} rates per row, {least} seed{'s' * (least > 1)} each): "
        f"{share_of(len(own), len(rows), 'row', 'takes', 'take')} the recipe's own."
    )
    if edge := [row for row in rows if row.at_edge]:
        yield f"The grid is too narrow for {_names(edge)}: its edge was chosen, so the best may lie beyond."
    if lacking := [row for row in rows if row.lacking]:
        yield f"Without a result at some rates (not finite, or not finished): {_names(lacking)}."
    if waiting := [row for row in rows if row.tuned is None]:
        yield f"Not yet trained on the whole set at their rates: {_names(waiting)}."
    tested = [row for row in rows if row.verdict]
    if not tested:
        both = any(all(row.gains) for row in rows)
        why = "no interval over seeds is known" if both else "no step has both results, and its parent too"
        yield f"Which gains survive own rates is unknown: {why}."
        return
    for verdict, what in VERDICTS.items():
        if same := [row for row in tested if row.verdict == verdict]:
            yield f"{what}, {len(same)} of {len(tested)}: {first_few(list(map(_both_gains, same)), NAMED, '; ')}."
    yield "Both by Welch's test, adjusted by Holm over the steps of each roadmap, 5 %."


def _both_gains(row: TunedRow) -> str:
    plain, tuned = row.gains
    assert plain is not None
    assert tuned is not None
    ps = f"p {p_text(plain.p_holm)} and {p_text(tuned.p_holm)}"
    return f"{clean(row.step, 60)} {signed(plain.gain)} and {signed(tuned.gain)} points ({ps})"


def _over_orders(found: Attribution) -> Iterator[str]:
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


def _flattered(found: Attribution, where: str, gain: Number, p: Number) -> Iterator[str]:
    """Yield which toggles gain more, or less, in the paper's order than over all of them, where that was tested."""
    tested = [worth for worth in found.worths if p(worth) is not None]
    if not tested:
        return
    parts = []
    for verb, flatters in (("flatters", True), ("is hard on", False)):
        sure = [worth for worth in tested if worth.is_significant(gain(worth), p(worth), flatters)]
        if sure:
            names = [f"{w.toggle} ({signed(gain(w))} there, {signed(w.value)} over the orders)" for w in sure]
            parts.append(f"{verb} {listed(names)}")
    text = " and ".join(parts) or "differs significantly from the mean over all orders for no toggle"
    yield f"The paper's order, {where}, {text} (adjusted by Holm for {len(tested)} toggles, 5 %)."


def _worth(worth: Worth) -> str:
    return f"{worth.toggle} {signed(worth.value)}" + (f" ({between(worth.interval)})" if worth.interval else "")
