"""The findings in plain sentences, each with its numbers, none that a test does not support. A function of the groups."""

from collections.abc import Sequence

from roadmap.report.cells import Cell, Group
from roadmap.report.columns import between, p_text, signed
from roadmap.report.ranking import ranking
from roadmap.report.stats import ALPHA
from roadmap.report.text import clean

NAMED = 8  # steps named one by one in a sentence


def findings(groups: Sequence[Group]) -> list[str]:
    """Return one paragraph a group."""
    return [paragraph(group) for group in groups if group.cells]


def paragraph(group: Group) -> str:
    """Return what the data of a group support, and what they do not."""
    parts = [
        f"Study {clean(group.study, 80)} (regime {group.regime}, {group.data}): {len(group.cells)} cells, {_seeds(group)}."
    ]
    compared = [cell for cell in group.cells if cell.gain]
    tested = [cell for cell in compared if cell.gain and cell.gain.p_holm is not None]
    sure = [cell for cell in tested if cell.gain and (cell.gain.p_holm or 0) < ALPHA]
    single = [cell for cell in compared if cell.gain and min(cell.n, cell.gain.parent_n) < 2]
    if tested:
        parts.append(
            f"Over seeds, {len(sure)} of {len(tested)} differences from the step before are told from zero "
            f"(Welch's test, adjusted by Holm for all of the study, 5 %){': ' + _listed(sure) if sure else ''}."
        )
    if unsure := [cell for cell in tested if cell not in sure]:
        parts.append(f"Not told from zero: {_names(unsure)}.")
    if single:
        parts.append(
            f"One seed of a row is all there is for {len(single)} of {len(compared)} differences, so nothing is known of how "
            "another training would end, and no interval over seeds is given."
        )
    parts += _images(compared)
    parts += _against_paper(compared)
    if (found := ranking(group)) is not None:
        parts.append(found.sentence)
    if group.caution:
        parts.append(f"Caution: {group.caution}.")
    return " ".join(parts)


def _images(compared: Sequence[Cell]) -> list[str]:
    tested = [cell for cell in compared if cell.gain and cell.gain.mcnemar_p_holm is not None]
    if not tested:
        return []
    sure = [cell for cell in tested if cell.gain and (cell.gain.mcnemar_p_holm or 0) < ALPHA]
    return [
        f"On the same validation images, one net against one net, {len(sure)} of {len(tested)} pairs differ "
        "(McNemar's test, adjusted by Holm, 5 %); that holds for these trained nets only."
    ]


def _against_paper(compared: Sequence[Cell]) -> list[str]:
    """Say where the paper's own gain lies outside our interval, and where inside."""
    known = [cell for cell in compared if cell.gain and cell.gain.over_seeds and cell.gain.paper_gain is not None]
    outside = [cell for cell in known if _outside(cell)]
    if not known:
        return []
    text = f"The paper's gain lies within our interval in {len(known) - len(outside)} of {len(known)} steps"
    return [f"{text}; outside it in {_names(outside)}." if outside else f"{text}."]


def _outside(cell: Cell) -> bool:
    gain = cell.gain
    assert gain is not None and gain.over_seeds is not None and gain.paper_gain is not None
    return not gain.over_seeds.low <= gain.paper_gain <= gain.over_seeds.high


def _listed(cells: Sequence[Cell]) -> str:
    largest = sorted(cells, key=lambda cell: -abs(cell.gain.gain if cell.gain else 0))
    texts = [
        f"{clean(cell.cell, 60)} {signed(cell.gain.gain)} points ({between(cell.gain.over_seeds)}, p {_equals(cell.gain.p_holm)})"
        for cell in largest[:NAMED]
        if cell.gain
    ]
    return "; ".join(texts) + (f"; and {len(cells) - NAMED} more" if len(cells) > NAMED else "")


def _equals(p: float | None) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _names(cells: Sequence[Cell]) -> str:
    names = [clean(cell.cell, 60) for cell in cells[:NAMED]]
    return ", ".join(names) + (f" and {len(cells) - NAMED} more" if len(cells) > NAMED else "")


def _seeds(group: Group) -> str:
    counts = sorted({cell.n for cell in group.cells})
    return (
        f"{counts[0]} seed{'s' * (counts[0] > 1)} a cell"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} seeds a cell"
    )
