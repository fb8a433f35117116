"""What each row gains over its parent, and how sure that is.

Over seeds by Welch: seeds are not paired across nets. Over images by McNemar and a bootstrap, since both nets saw
the same images; that says how sure these trained nets' difference is, not what another training would give.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from roadmap import paper
from roadmap.paper.toggle_orders import is_several
from roadmap.report.analyse import statistics
from roadmap.report.analyse.cells import Cell, Gain, Group, with_rows
from roadmap.report.analyse.comparability import TRAINING, config_value
from roadmap.report.analyse.image_changes import adjusted, image_changes
from roadmap.report.read.image_classes import ImageClasses, with_names
from roadmap.report.read.run import Run


def with_gains(groups: Sequence[Group]) -> list[Group]:
    """Return the groups, every cell with what it gains over its parent, adjusted for its study."""
    compared: dict[str, list[Cell]] = defaultdict(list)
    for group in groups:
        for cell in group.cells:
            parent = parent_of(cell, group, groups)
            compared[group.study].append(replace(cell, gain=gain_over(cell, *parent)) if parent else cell)
    of_study = {study: iter(_adjusted(cells)) for study, cells in compared.items()}
    found = []
    for group in groups:
        cells = tuple(next(of_study[group.study]) for _ in group.cells)
        found.append(replace(group, rows=cells[: len(group.rows)], others=cells[len(group.rows) :]))
    return found


def roadmap_of(group: Group, cells: Sequence[Cell]) -> Group:
    """Return a group whose rows are these cells, one a step, each compared with its parent's among them; adjusted."""
    by_step = {cell.step: cell for cell in cells}
    parents = [by_step.get(cell.parent or "") for cell in cells]
    rows = [
        replace(cell, gain=gain_over(cell, up, up.cell) if up else None)
        for cell, up in zip(cells, parents, strict=True)
    ]
    return with_rows(group, _adjusted(rows))


def parent_of(cell: Cell, group: Group, groups: Sequence[Group]) -> tuple[Cell, str] | None:
    """Return the row that a cell is compared with, and how it is named.

    A step's parent is in its own group; a variant's or an override's plain step too, or else in the only other study
    of the same regime, data and recipe that has it (leave-one-out has no row of the whole net).
    """
    if is_several(cell.variant):  # several changes at once are no step
        return None
    wanted = cell.parent if cell.plain else cell.step
    for row in group.rows:
        if row.cell == wanted:
            return row, row.cell
    if cell.plain:
        return None
    alike = [g for g in groups if g is not group and (g.regime, g.data) == (group.regime, group.data)]
    rows = [(row, g.study) for g in alike for row in g.rows if row.cell == wanted]
    found = [(row, study) for row, study in rows if _setting(row) == _setting(cell) and _trained_alike(row, group)]
    exact = [(row, study) for row, study in found if _machine(row) == _machine(cell)]
    if len(exact or found) != 1:
        return None
    row, study = (exact or found)[0]
    return row, f"{row.cell} of study {study}" + ("" if exact else ", of other code or hardware")


def _setting(cell: Cell) -> set[tuple[object, ...]]:
    return {(run.images, run.recipe, run.epochs, run.image_size, run.batch_size) for run in cell.runs}


def _trained_alike(row: Cell, group: Group) -> bool:
    """Tell whether a row of another study was trained with what this study sets for all of its cells.

    What the cells differ in among themselves is their own change. Where all have the same one, it cannot be told apart.
    """
    if len({cell.cell.removeprefix(cell.step) for cell in group.cells}) < 2:
        return True
    runs = [run for cell in group.cells for run in cell.runs]
    for key in TRAINING:
        of_all = {config_value(run, key) for run in runs}
        if len(of_all) == 1 and of_all != {config_value(run, key) for run in row.runs}:
            return False
    return True


def _machine(cell: Cell) -> set[tuple[object, ...]]:
    return {(run.code, run.hardware) for run in cell.runs}


def gain_over(cell: Cell, parent: Cell, name: str) -> Gain:
    """Return what a cell gains over another, of this name, by itself: not adjusted for other comparisons."""
    welch = statistics.welch(cell.top1s, parent.top1s)
    gain = Gain(
        parent=name,
        parent_n=parent.n,
        gain=cell.top1 - parent.top1,
        over_seeds=welch.interval if welch else None,
        p=welch.p if welch else None,
        effect=welch.effect if welch else None,
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
    ours = ours[[cell.seeds.index(seed) for seed in common]]
    theirs = theirs[[parent.seeds.index(seed) for seed in common]]
    gain = replace(gain, changes=image_changes(ours, theirs, _classes(every)))
    found = statistics.mcnemar(ours[0], theirs[0])
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
    interval = found.interval if found else None
    return replace(gain, paper_gain=cell.paper.top1 - parent.paper.top1, paper_interval=interval)


def _three(row: paper.PaperRow) -> tuple[float, ...]:
    """Return three values with the printed mean and standard deviation; the mean alone where no spread is printed."""
    return (row.top1,) if row.top1_std is None else (row.top1 - row.top1_std, row.top1, row.top1 + row.top1_std)


def _adjusted(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of a study, all its regimes and data together, with their p values adjusted for one another."""
    gains = [cell.gain for cell in cells]
    tests = sum(gain is not None and gain.p is not None for gain in gains)
    seeds = statistics.holm([gain.p if gain else None for gain in gains])
    images = statistics.holm([gain.mcnemar_p if gain else None for gain in gains])
    changes = adjusted([gain.changes if gain else None for gain in gains])
    found = []
    for cell, gain, p, mcnemar_p, changed in zip(cells, gains, seeds, images, changes, strict=True):
        if gain is not None:
            gain = replace(gain, p_holm=p, mcnemar_p_holm=mcnemar_p, changes=changed)
            n = min(cell.n, gain.parent_n)
            needed = statistics.seeds_needed(gain.effect, tests, n, gain.significant) if gain.effect else None
            cell = replace(cell, gain=replace(gain, seeds_needed=needed))
        found.append(cell)
    return found
