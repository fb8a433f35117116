"""Seeds to cells, cells to the rows of a roadmap: number, mean, spread. `roadmap.report.gains` compares them; all else shows them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev

from roadmap import catalog, paper
from roadmap.report.record import Run
from roadmap.report.stats import Interval, mean_interval

PAPER_DATA, PAPER_SIZE = "imagenet", 224
MOST_OF_A_STUDY = 5  # rows from which on a group is a roadmap, and a row that is not there is missing
NO_RUN = "no usable run of:"  # a row that is missing; charts say so too
SMALL_REGIMES = ("nano", "mini")


@dataclass(frozen=True)
class Gain:
    """What a row gains over its parent: differences of top-1 in percentage points, None where there is no answer."""

    parent: str  # the cell it is compared with; with its study where that is another one
    parent_n: int
    gain: float
    over_seeds: Interval | None = None  # Welch
    p: float | None = None
    p_holm: float | None = None
    bootstrap: Interval | None = None  # over seeds, from 8 on
    seeds_needed: int | None = None
    over_images: Interval | None = None  # the trained nets held fixed
    only_this: int | None = None  # images that only this net, or only the parent, has right
    only_parent: int | None = None
    mcnemar_p: float | None = None
    mcnemar_p_holm: float | None = None
    paper_gain: float | None = None
    paper_interval: Interval | None = None


@dataclass(frozen=True)
class Cell:
    """The seeds of one cell together. Accuracies in percent; a spread is None where there is only one seed."""

    cell: str
    step: str
    variant: str | None
    parent: str | None
    label: str
    adopted: str  # yes | no | reference
    recipe: str
    epochs: int | None
    image_size: int | None
    images: str  # fingerprint of the data
    seeds: tuple[int, ...]
    top1: float  # mean over the seeds
    top1_std: float | None  # with n - 1
    top5: float | None
    gmacs: float | None
    params_m: float | None
    train_images_per_s: float | None  # mean over the seeds
    gpu_hours: float | None  # of one run, mean over the seeds
    peak_memory_gb: float | None
    paper: paper.PaperRow | None  # only where it compares
    runs: tuple[Run, ...] = field(repr=False)  # in the order of `seeds`
    gain: Gain | None = None

    @property
    def n(self) -> int:
        """Return the number of seeds."""
        return len(self.seeds)

    @property
    def tops(self) -> tuple[float, ...]:
        """Return the accuracy of each seed."""
        return tuple(run.top1 for run in self.runs)

    @cached_property
    def interval(self) -> Interval | None:
        """Return the 95 % t interval of the mean over seeds."""
        return mean_interval(self.tops)

    @property
    def marks(self) -> tuple[str, ...]:
        """Return why some of its runs count only because the user allowed it."""
        return tuple(sorted({mark for run in self.runs for mark in run.marks}))


@dataclass(frozen=True)
class Group:
    """All that may stand in one chart: one study in one regime on one data set, in the roadmap's order."""

    study: str
    regime: str
    data: str
    rows: tuple[Cell, ...]  # plain steps
    others: tuple[Cell, ...]  # variants and overrides
    notes: tuple[str, ...]
    missing: tuple[str, ...]  # rows, parents and seeds without a usable run
    made_with: tuple[str, ...]  # hardware and versions

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Return all its cells, the plain steps first."""
        return (*self.rows, *self.others)

    @property
    def paper_reference(self) -> paper.PaperRow | None:
        """Return the paper's Swin where its numbers may stand beside ours."""
        return paper.rows(self.regime).get("swin") if any(row.paper for row in self.rows) else None

    @property
    def caution(self) -> str:
        """Return why the accuracies must not be read as the roadmap's, or nothing."""
        known = catalog.DATA_SETS.get(self.data)
        if known and known.caution:
            return known.caution
        if self.regime in SMALL_REGIMES or (known and known.is_small):
            return "small scale: the order of the rows means nothing at this size"
        return ""


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Group runs by (study, regime, data) and their seeds by cell."""
    grouped: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        grouped[run.study, run.regime, run.data].append(run)
    regimes = list(paper.TABLES)  # tiny before base, as in the paper
    order = sorted(
        grouped, key=lambda key: (key[2], regimes.index(key[1]) if key[1] in regimes else len(regimes), key[1], key[0])
    )
    return [_group(*key, grouped[key]) for key in order]


def _group(study: str, regime: str, data: str, runs: Sequence[Run]) -> Group:
    seeds: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        seeds[run.cell].append(run)
    parents = {run.step: run.parent for run in runs}
    cells = sorted(
        (_cell(same) for same in seeds.values()), key=lambda cell: (paper.position(cell.step, parents), cell.cell)
    )
    rows = tuple(cell for cell in cells if _is_row(cell))
    return Group(
        study=study,
        regime=regime,
        data=data,
        rows=rows,
        others=tuple(cell for cell in cells if not _is_row(cell)),
        notes=tuple(_notes(rows)),
        missing=tuple(_missing(rows, parents, regime)),
        made_with=tuple(sorted({f"{run.hardware}, {run.versions}".strip(", ") for run in runs} - {""})),
    )


def _is_row(cell: Cell) -> bool:
    return cell.cell == cell.step and cell.variant is None


def _cell(same: Sequence[Run]) -> Cell:
    """Put the seeds of one cell together; `runs.collect` saw to it that their settings are the same."""
    first = same[0]
    tops = [run.top1 for run in same]
    compares = first.data == PAPER_DATA and first.image_size == PAPER_SIZE and first.cell == first.step
    return Cell(
        cell=first.cell,
        step=first.step,
        variant=first.variant,
        parent=first.parent,
        label=first.label,
        adopted=first.adopted,
        recipe=first.recipe,
        epochs=first.epochs,
        image_size=first.image_size,
        images=first.images,
        seeds=tuple(run.seed for run in same),
        top1=fmean(tops),
        top1_std=stdev(tops) if len(tops) > 1 else None,
        top5=_mean([run.top5 for run in same]),
        gmacs=first.gmacs,
        params_m=first.params_m,
        train_images_per_s=_mean([run.train_images_per_s for run in same]),
        gpu_hours=_mean([run.gpu_hours for run in same]),
        peak_memory_gb=_mean([run.peak_memory_gb for run in same]),
        runs=tuple(same),
        paper=paper.rows(first.regime).get(first.step) if compares else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _notes(rows: Sequence[Cell]) -> list[str]:
    """Return what keeps rows from comparing although every run is sound: a step of one's own, or what the user allowed."""
    notes = []
    for recipe in sorted({row.recipe for row in rows}):
        lengths = sorted({row.epochs for row in rows if row.recipe == recipe and row.epochs is not None})
        if len(lengths) > 1:
            notes.append(f"recipe {recipe}: rows were trained for {_listed(lengths)} epochs, so they do not compare")
    largest = max((_of_net(row, "kernel_size", 0) for row in rows), default=0)
    notes += sorted({note for row in rows if (note := _short_reach(row, largest))})
    marked = [row for row in rows if row.marks]
    notes += [
        f"† {row.cell}: counts runs that are suspect, because it was allowed ({', '.join(row.marks)})" for row in marked
    ]
    return notes


def _of_net(row: Cell, key: str, default: int) -> int:
    text = row.runs[0].config.get(f"model.{key}", "")
    return (
        int(text) if re.fullmatch(r"[1-9][0-9]{0,3}", text) else default
    )  # a config is text that anybody may have written


def _short_reach(row: Cell, kernel: int) -> str:
    """Say where kernels have weights that no pixel meets: those of more than 2 x side - 1 pixels, on maps of small images."""
    stride = _of_net(row, "stem_stride", 4)
    if not row.image_size:
        return ""
    sides = [max(1, row.image_size // (stride * 2**stage)) for stage in range(4)]
    most = [2 * side - 1 for side in sides]
    if kernel <= most[-1]:
        return ""
    return f"maps of {_listed(sides)} pixels: kernels above {_listed(most)} have idle weights there"


def _missing(rows: Sequence[Cell], parents: Mapping[str, str | None], regime: str) -> list[str]:
    """Return the rows, parents and seeds that a reader would look for in vain."""
    there = {row.step for row in rows}
    missing = []
    absent = [s for s in paper.order() if s not in there and (s != "swin" or regime in paper.TABLES)]
    if absent and len(there.intersection(paper.order())) >= MOST_OF_A_STUDY:
        missing.append(f"{NO_RUN} {', '.join(absent)}")
    all_seeds = {seed for row in rows for seed in row.seeds}
    for row in rows:
        if row.parent and row.parent not in there:
            missing.append(f"{row.cell}: its parent {row.parent} has no usable run, so its gain is not known")
        if lacking := sorted(all_seeds.difference(row.seeds)):
            missing.append(f"{row.cell}: no usable run of seed {_listed(lacking)}, which other rows have")
    return missing


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
