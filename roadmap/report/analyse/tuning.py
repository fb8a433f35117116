"""Every row at its own learning rate: which rate its held-out images chose, and which gains survive that.

A study is tuned where a row has held-out accuracies at two rates or more. Its rows then are the cells on the whole set
at the chosen rates. Beside each stands the row with the one recipe: of a plain study, else of the tuned one where the
recipe's own rate was chosen.
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from roadmap.config import KEYS, Affects
from roadmap.report.analyse.cells import Cell, Gain, Group
from roadmap.report.analyse.comparability import config_value
from roadmap.report.analyse.gains import roadmap_of
from roadmap.report.read.run import decimal
from roadmap.runs.rate_choice import at_edge, choose_rate, same_rate

MIN_RATES = 2
NOTE = "each row at its own learning rate, chosen on held-out training images"
RATE = "recipe.lr"
HASHED = re.compile(r".*,[0-9a-f]{12}")  # a name that does not say what was overridden
# What makes a row's training, beside its rate, on the whole set or on a part.
SETTING = [k for k, key in KEYS.items() if key.affects == Affects.result and k not in ("seed", RATE, "data.holdout")]


@dataclass(frozen=True)
class TunedRow:
    """A step: its held-out accuracy over the rates, the rate that it takes, and its cells on the whole set."""

    step: str
    label: str
    own: float | None  # the recipe's rate, where it is known
    accuracies: dict[float, float]  # in percent, by rate, ascending: the mean over the seeds that tuned it
    n: int  # of these seeds
    rate: float
    tuned: Cell | None  # at the chosen rate, as a row of that roadmap
    plain: Cell | None  # with the one recipe, as a row of that one
    lacking: tuple[float, ...] = ()  # factors at which others have a result and it has none: not finite, or not done
    at_edge: bool = False  # the lowest or the highest rate that was tried: its best may lie beyond

    @property
    def factor(self) -> float | None:
        """Return the chosen rate over the recipe's own."""
        return self.rate / self.own if self.own else None

    @property
    def heldout(self) -> float:
        """Return its held-out accuracy at the chosen rate."""
        return self.accuracies[self.rate]

    @property
    def heldout_own(self) -> float | None:
        """Return its held-out accuracy at the recipe's own rate."""
        return self.accuracies.get(self.own) if self.own else None

    @property
    def spread(self) -> float:
        """Return its best less its worst held-out accuracy, in points."""
        return max(self.accuracies.values()) - min(self.accuracies.values())

    @property
    def gains(self) -> tuple[Gain | None, Gain | None]:
        """Return what it gains over its parent with the one recipe, and with each at its own rate."""
        return self.plain.gain if self.plain else None, self.tuned.gain if self.tuned else None

    @property
    def verdict(self) -> str:
        """Return what becomes of its gain: survives, lost, turns, appears, open; nothing where neither is tested."""
        plain, tuned = self.gains
        if tuned is None or tuned.p_holm is None or plain is None or plain.p_holm is None:
            return ""
        if plain.significant and tuned.significant:
            return "survives" if plain.gain * tuned.gain > 0 else "turns"
        return "lost" if plain.significant else "appears" if tuned.significant else "open"


@dataclass(frozen=True)
class Tuning:
    """A tuned study: its rows, and the two roadmaps that they make, each with its gains."""

    rows: tuple[TunedRow, ...]
    factors: tuple[float, ...]  # that any row was tried with, ascending; none where a row's own rate is not known
    plain: Group  # with the one recipe
    tuned: Group  # each row at its own rate

    @property
    def rates(self) -> list[dict[str, Any]]:
        """Return every rate that a row was tried with, by column of `rates.csv`."""
        return [
            {
                "step": row.step,
                "rate": rate,
                "factor": rate / row.own if row.own else None,
                "heldout_top1": top1,
                "seeds": row.n,
                "chosen": rate == row.rate,
            }
            for row in self.rows
            for rate, top1 in row.accuracies.items()
        ]


def at_own_rates(group: Group, groups: Sequence[Group]) -> Group:
    """Return a group with each row at its own rate, if its held-out images chose any; else as it is."""
    by_step: dict[str, list[Cell]] = defaultdict(list)
    for cell in group.holdouts:
        if cell.variant is None and rate_of(cell):
            by_step[cell.step].append(cell)
    tried = {step: cells for step, cells in by_step.items() if len({*map(rate_of, cells)}) >= MIN_RATES}
    if not tried:
        return group
    other = _plain_study(group, groups, tried)
    rows = [_row(cells, group, other) for cells in tried.values()]
    plain = roadmap_of(other or group, [row.plain for row in rows if row.plain])
    tuned = roadmap_of(group, [row.tuned for row in rows if row.tuned])
    tuned = replace(tuned, notes=(NOTE, *tuned.notes))
    factors = _factors(rows)
    by_plain, by_tuned = ({cell.step: cell for cell in roadmap.rows} for roadmap in (plain, tuned))
    rows = [
        replace(
            row,
            plain=by_plain.get(row.step),
            tuned=by_tuned.get(row.step),
            lacking=_lacking(row, factors),
            at_edge=at_edge(row.factor or 0.0, factors) if factors else at_edge(row.rate, tuple(row.accuracies)),
        )
        for row in rows
    ]
    taken = {cell.cell for cell in tuned.rows}
    others = tuple(cell for cell in group.cells if cell.cell not in taken)
    return replace(tuned, others=others, tuning=Tuning(tuple(rows), factors, plain, tuned))


def _factors(rows: Sequence[TunedRow]) -> tuple[float, ...]:
    if any(row.own is None for row in rows):
        return ()
    found: list[float] = []
    for factor in sorted(rate / row.own for row in rows for rate in row.accuracies if row.own):
        if not found or not same_rate(found[-1], factor):
            found.append(factor)
    return tuple(found)


def _lacking(row: TunedRow, factors: Sequence[float]) -> tuple[float, ...]:
    there = [rate / row.own for rate in row.accuracies] if row.own else []
    return tuple(factor for factor in factors if not any(same_rate(factor, known) for known in there))


def _row(cells: Sequence[Cell], group: Group, other: Group | None) -> TunedRow:
    found: dict[float, list[float]] = defaultdict(list)
    for cell in cells:
        found[rate_of(cell)] += cell.top1s
    accuracies = {rate: fmean(found[rate]) for rate in sorted(found)}
    whole = [cell for cell in (*group.rows, *group.others) if _setting(cell) == _setting(cells[0])]
    plain = [cell for cell in (*(other.rows if other else ()), *whole) if cell.plain and cell.step == cells[0].step]
    named = [cell for cell in cells if f"{RATE}=" not in cell.cell and not HASHED.fullmatch(cell.cell)]
    own = next(map(rate_of, [*named, *plain]), None)
    rate = choose_rate(accuracies, own)
    assert rate is not None
    tuned = next((cell for cell in whole if same_rate(rate_of(cell), rate)), None)
    like = (cell for cell in plain if _setting(cell) == _setting(cells[0]) and cell.images == (tuned or cell).images)
    return TunedRow(
        step=cells[0].step,
        label=cells[0].label,
        own=own,
        accuracies=accuracies,
        n=min(map(len, found.values())),
        rate=rate,
        tuned=tuned,
        plain=next(like, None),
    )


def _plain_study(group: Group, groups: Sequence[Group], steps: dict[str, list[Cell]]) -> Group | None:
    """Return the group of the same regime and data, and of a study without a holdout, with the most of these steps."""
    others = [g for g in groups if (g.regime, g.data) == (group.regime, group.data) and g.rows and not g.holdouts]
    return max(others, key=lambda g: (sum(row.step in steps for row in g.rows), g.study), default=None)


def _setting(cell: Cell) -> Hashable:
    run = cell.runs[0]
    values = (config_value(run, key) for key in SETTING)
    return cell.step, cell.recipe, cell.epochs, cell.image_size, run.batch_size, *values


def rate_of(cell: Cell) -> float:
    """Return the base learning rate of a cell; 0 where its config does not say it."""
    return decimal(cell.runs[0].config.get(RATE, "")) or 0.0
