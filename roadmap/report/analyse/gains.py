"""What each row gains over its parent, and how sure that is. `aggregate` is the report's whole arithmetic.

Over seeds by Welch: seeds of different nets are no pairs. Over images by McNemar and a bootstrap, since both nets saw
the same images; that says how sure these trained nets' difference is, not what another training would give.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from roadmap import paper
from roadmap.report.analyse import statistics
from roadmap.report.analyse.cells import Cell, Gain, Group, group_runs
from roadmap.report.analyse.image_changes import adjusted, image_changes
from roadmap.report.read.image_classes import ImageClasses, with_names
from roadmap.report.read.run import Run


def aggregate(runs: Iterable[Run]) -> list[Group]:
    """Return the groups of some runs, every cell with what it gains over its parent."""
    groups = group_runs(runs)
    compared = [[_compared(cell, group, groups) for cell in group.cells] for group in groups]
    for study in {group.study for group in groups}:
        _adjust([cells for group, cells in zip(groups, compared, strict=True) if group.study == study])
    return [
        replace(group, rows=tuple(cells[: len(group.rows)]), others=tuple(cells[len(group.rows) :]))
        for group, cells in zip(groups, compared, strict=True)
    ]


def parent_of(cell: Cell, group: Group, groups: Sequence[Group]) -> tuple[Cell, str] | None:
    """Return the row that a cell is compared with, and how it is named.

    A step's parent is in its own group; a variant's or an override's plain step too, or else in the only other study
    of the same regime, data and recipe that has it (leave-one-out has no row of the whole net).
    """
    wanted = cell.parent if cell.plain else cell.step
    for row in group.rows:
        if row.cell == wanted:
            return row, row.cell
    if cell.plain:
        return None
    alike = [g for g in groups if g is not group and (g.regime, g.data) == (group.regime, group.data)]
    found = [(row, g.study) for g in alike for row in g.rows if row.cell == wanted and _setting(row) == _setting(cell)]
    exact = [(row, study) for row, study in found if _machine(row) == _machine(cell)]
    if len(exact or found) != 1:
        return None
    row, study = (exact or found)[0]
    return row, f"{row.cell} of study {study}" + ("" if exact else ", of other code or hardware")


def _setting(cell: Cell) -> set[tuple[object, ...]]:
    return {(run.images, run.recipe, run.epochs, run.image_size, run.batch_size) for run in cell.runs}


def _machine(cell: Cell) -> set[tuple[object, ...]]:
    return {(run.code, run.hardware) for run in cell.runs}


def _compared(cell: Cell, group: Group, groups: Sequence[Group]) -> Cell:
    found = parent_of(cell, group, groups)
    if found is None:
        return cell
    return replace(cell, gain=gain_over(cell, *found))


def gain_over(cell: Cell, parent: Cell, name: str) -> Gain:
    """Return what a cell gains over another, of this name, by itself: not adjusted for other comparisons."""
    welch = statistics.welch(cell.top1s, parent.top1s)
    gain = Gain(
        parent=name,
        parent_n=parent.n,
        gain=cell.top1 - parent.top1,
        over_seeds=welch.interval if welch else None,
        p=welch.p if welch else None,
        bootstrap=statistics.seed_bootstrap(cell.top1s, parent.top1s),
        effect=statistics.effect(cell.top1s, parent.top1s),
    )
    return _over_images(_beside_paper(gain, cell, parent), cell, parent)


def _over_images(gain: Gain, cell: Cell, parent: Cell) -> Gain:
    """Add what the images say, where every seed of both rows has its bits on the same images."""
    every = (*cell.runs, *parent.runs)
    bits = {id(run): run.correct() for run in every}
    if len({(run.images, run.val_images) for run in every}) > 1 or any(b is None for b in bits.values()):
        return gain
    ours, theirs = (np.stack([bits[id(run)] for run in side.runs]) for side in (cell, parent))  # type: ignore[misc]
    gain = replace(gain, over_images=statistics.image_bootstrap(ours, theirs))
    common = sorted(set(cell.seeds) & set(parent.seeds))
    if not common:
        return gain
    ours, theirs = (
        bits[[side.seeds.index(seed) for seed in common]] for bits, side in ((ours, cell), (theirs, parent))
    )
    gain = replace(gain, changes=image_changes(ours, theirs, _classes(every)))
    found = statistics.mcnemar(ours[0], theirs[0])
    if found is None:
        return replace(gain, only_this=0, only_parent=0)
    return replace(gain, only_this=found.only_this, only_parent=found.only_other, mcnemar_p=found.p)


def _classes(runs: Sequence[Run]) -> ImageClasses | None:
    """Return the images' classes, where every run has the same."""
    known = [run.classes for run in runs if run.classes]
    same = len(known) == len(runs) and len({classes.label_bytes for classes in known}) == 1
    return with_names(known) if same else None


def _beside_paper(gain: Gain, cell: Cell, parent: Cell) -> Gain:
    """Add the paper's own difference where it compares, with Welch's interval where both spreads are printed."""
    if cell.paper is None or parent.paper is None:
        return gain
    found = statistics.welch(_three(cell.paper), _three(parent.paper))
    return replace(
        gain, paper_gain=cell.paper.top1 - parent.paper.top1, paper_interval=found.interval if found else None
    )


def _three(row: paper.PaperRow) -> tuple[float, ...]:
    """Return three values with the printed mean and standard deviation; the mean alone where no spread is printed."""
    return (row.top1,) if row.top1_std is None else (row.top1 - row.top1_std, row.top1, row.top1 + row.top1_std)


def _adjust(parts: Sequence[list[Cell]]) -> None:
    """Adjust the p values of a study, all its regimes and data together; changes the lists in place."""
    gains = [cell.gain for cells in parts for cell in cells]
    tests = sum(gain is not None and gain.p is not None for gain in gains)
    seeds = iter(statistics.holm([gain.p if gain else None for gain in gains]))
    images = iter(statistics.holm([gain.mcnemar_p if gain else None for gain in gains]))
    changes = iter(adjusted([gain.changes if gain else None for gain in gains]))
    for cells in parts:
        for i, cell in enumerate(cells):
            p, mcnemar, changed = next(seeds), next(images), next(changes)
            if cell.gain is not None:
                gain = replace(cell.gain, p_holm=p, mcnemar_p_holm=mcnemar, changes=changed)
                if gain.effect:
                    n = min(cell.n, gain.parent_n)
                    gain = replace(gain, seeds_needed=statistics.seeds_needed(gain.effect, tests, n, gain.told))
                cells[i] = replace(cell, gain=gain)
