"""The findings in plain sentences, each with its numbers, none that a test does not support."""

from collections.abc import Sequence

import numpy as np

from roadmap.report.analyse.cells import Cell, Gain, Group
from roadmap.report.analyse.formats import between, first_few, p_equals, signed
from roadmap.report.analyse.order_findings import over_orders
from roadmap.report.analyse.ranking import ranking
from roadmap.report.analyse.statistics import ALPHA
from roadmap.report.analyse.tuning_sentences import tuning_sentences
from roadmap.text import clean

NAMED = 8  # steps named one by one in a sentence
Compared = Sequence[tuple[Cell, Gain]]


def findings(groups: Sequence[Group]) -> list[str]:
    """Return one text per group, a sentence per line: what its data support, and what they do not."""
    return [_sentences(group) for group in groups if group.cells or group.tuning]


def _sentences(group: Group) -> str:
    where = f"(regime {group.regime}, {group.data})"
    cells = f"{len(group.cells)} cells, {_seeds(group)}" if group.cells else "no cell on the validation images yet"
    parts = [f"Study {clean(group.study, 80)} {where}: {cells}."]
    parts += tuning_sentences(group.tuning) if group.tuning else []
    parts += _over_seeds(group.compared)
    parts += _over_images(group.compared)
    parts += _over_classes(group.compared)
    parts += _against_paper(group.compared)
    parts += over_orders(group.attribution) if group.attribution else []
    if (ranks := ranking(group)) is not None:
        parts.append(ranks.sentence)
    if group.caution:
        parts.append(f"Caution: {group.caution}.")
    return "\n".join(parts)


def _over_seeds(compared: Compared) -> list[str]:
    tested = [(cell, gain) for cell, gain in compared if gain.p_holm is not None]
    sure = [(cell, gain) for cell, gain in tested if gain.told]
    unsure = [cell for cell, gain in tested if not gain.told]
    single = [cell for cell, gain in compared if min(cell.n, gain.parent_n) < 2]
    parts = []
    if tested:
        parts.append(
            f"Over seeds, {len(sure)} of {len(tested)} gains over the step before are significant "
            f"(Welch's test, adjusted by Holm for all of the study, 5 %){': ' + _listed(sure) if sure else ''}."
        )
    if unsure:
        parts.append(f"Not significant: {_names(unsure)}.")
    if single:
        parts.append(
            f"{len(single)} of {len(compared)} gains rest on one seed of a row: whether another training would give "
            "the same is not known, and they have no interval over seeds."
        )
    return parts


def _over_images(compared: Compared) -> list[str]:
    tested = [gain.mcnemar_p_holm for _, gain in compared if gain.mcnemar_p_holm is not None]
    if not tested:
        return []
    parts = [
        f"On the same validation images, {sum(p < ALPHA for p in tested)} of {len(tested)} pairs of nets differ "
        "(McNemar's test, adjusted by Holm, 5 %); this holds for these trained nets only."
    ]
    if against := [cell for cell, gain in compared if gain.contradicted]:
        parts.append(f"The pair contradicts the means over seeds in {_names(against)}.")
    return parts


def _over_classes(compared: Compared) -> list[str]:
    """Name the classes that a step helped or hurt, as far as a test says so."""
    found = [(cell, gain.changes.classes) for cell, gain in compared if gain.changes and gain.changes.classes]
    told = [(cell, classes, i) for cell, classes in found for i in map(int, np.flatnonzero(classes.told))]
    tests = sum(int((~np.isnan(classes.p_seeds_adjusted)).sum()) for _, classes in found)
    of_images = sum(int((~np.isnan(classes.p_images_adjusted)).sum()) for _, classes in found)
    differ = sum(int((classes.p_images_adjusted < ALPHA).sum()) for _, classes in found)
    adjusted = "adjusted by Benjamini and Hochberg for all classes and steps of the study, 5 %"
    parts = []
    if told:
        told.sort(key=lambda one: -abs(one[1].change[one[2]]))
        names = [f"{clean(c.cell, 60)} {k.names[i]} {signed(k.change[i])} points" for c, k, i in told]
        what = f"Class by class, {len(told)} of {tests} differences are significant over seeds"
        parts.append(f"{what} (Welch's test, {adjusted}): {first_few(names, NAMED, '; ')}.")
    if differ:
        nothing = "" if told or not tests else "; over seeds none is significant"
        what = f"Over the images of a class, {differ} of {of_images} differ (sign-flip test, {adjusted})"
        parts.append(f"{what}; this holds for these trained nets only{nothing}.")
    return parts


def _against_paper(compared: Compared) -> list[str]:
    """Name where the paper's own gain lies outside our interval, and count where inside."""
    known = [(c, g.paper_gain, g.over_seeds) for c, g in compared if g.over_seeds and g.paper_gain is not None]
    if not known:
        return []
    outside = [cell for cell, theirs, ours in known if not ours.low <= theirs <= ours.high]
    text = f"The paper's gain lies within our interval in {len(known) - len(outside)} of {len(known)} steps"
    return [f"{text}; outside it in {_names(outside)}." if outside else f"{text}."]


def _listed(compared: Compared) -> str:
    largest = sorted(compared, key=lambda pair: -abs(pair[1].gain))
    texts = [
        f"{clean(cell.cell, 60)} {signed(gain.gain)} points ({between(gain.over_seeds)}, p {p_equals(gain.p_holm)})"
        for cell, gain in largest
    ]
    return first_few(texts, NAMED, "; ")


def _names(cells: Sequence[Cell]) -> str:
    return first_few([clean(cell.cell, 60) for cell in cells], NAMED)


def _seeds(group: Group) -> str:
    low, high = min(cell.n for cell in group.cells), max(cell.n for cell in group.cells)
    return f"{low} seed{'s' * (low > 1)} a cell" if low == high else f"{low} to {high} seeds a cell"
