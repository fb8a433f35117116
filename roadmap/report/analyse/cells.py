"""Seeds to cells, cells to the rows of a roadmap: number, mean, spread."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from roadmap import catalog, paper
from roadmap.report.analyse.formats import listed
from roadmap.report.analyse.image_changes import ImageChanges
from roadmap.report.analyse.statistics import ALPHA, Effect, Interval, Seeds, mean_interval
from roadmap.report.read.run import CellInfo, Run
from roadmap.runs.progress import hours_text
from roadmap.runs.schema import MEGA_MACS, QUANTITIES, Quantity

if TYPE_CHECKING:  # they are computed of groups
    from roadmap.report.analyse.attribution import Attribution
    from roadmap.report.analyse.tuning import Tuning

MOST_OF_A_STUDY = 5  # rows from which on a group is a roadmap, and a row that is not there is missing
NO_RUN = "no usable run of:"  # a row that is missing; charts show it too
MARK = "†"  # at a row that counts runs which differ from most of the study
OF_THE_NET = ("gmacs", "macts", "params_m")  # the same for every seed
SMALL_REGIMES = ("nano", "mini")
SMALL_NET = 0.1  # GMACs under which M is the unit


@dataclass(frozen=True)
class Gain:
    """What a row gains over its parent: differences of top-1 in percentage points, None where there is no answer."""

    parent: str  # the cell it is compared with; with its study where that is another one
    parent_n: int
    gain: float
    over_seeds: Interval | None = None  # Welch
    p: float | None = None
    p_holm: float | None = None
    effect: Effect | None = None
    seeds_needed: Seeds | None = None
    over_images: Interval | None = None  # the trained nets held fixed
    only_this: int | None = None  # images that only this net, or only the parent, has right
    only_parent: int | None = None
    mcnemar_p: float | None = None
    mcnemar_p_holm: float | None = None
    changes: ImageChanges | None = field(default=None, compare=False, repr=False)
    paper_gain: float | None = None
    paper_interval: Interval | None = None

    @property
    def significant(self) -> bool:
        """Return whether the adjusted test over seeds tells it from zero."""
        return self.p_holm is not None and self.p_holm < ALPHA

    @property
    def contradicted(self) -> bool:
        """Return whether the pair of nets that was tested on the images points the other way than the means."""
        only = (self.only_this or 0) - (self.only_parent or 0)
        return round(self.gain, 6) * only < 0  # equal means may differ in the last bits


@dataclass(frozen=True, kw_only=True)
class Cell(CellInfo):
    """All seeds of one cell. Accuracies in percent."""

    runs: tuple[Run, ...] = field(repr=False)  # by seed
    numbers: dict[str, float]  # means over the seeds, by the keys of QUANTITIES
    paper: paper.PaperRow | None  # only where it compares
    gain: Gain | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return its seeds, ascending."""
        return tuple(run.seed for run in self.runs)

    @property
    def n(self) -> int:
        """Return the number of seeds."""
        return len(self.runs)

    @property
    def top1(self) -> float:
        """Return the mean accuracy over the seeds."""
        return self.numbers["top1"]

    @property
    def top1s(self) -> tuple[float, ...]:
        """Return the accuracy of each seed."""
        return tuple(run.top1 for run in self.runs)

    @property
    def top1_std(self) -> float | None:
        """Return the standard deviation over seeds, with n - 1; None for one seed."""
        return stdev(self.top1s) if self.n > 1 else None

    @cached_property
    def interval(self) -> Interval | None:
        """Return the 95 % t interval of the mean over seeds."""
        return mean_interval(self.top1s)

    @property
    def marks(self) -> tuple[str, ...]:
        """Return in which ways some of its runs differ from their study and count nevertheless."""
        return tuple(sorted({mark for run in self.runs for mark in run.marks}))


@dataclass(frozen=True)
class Group:
    """All that may stand in one chart: one study in one regime on one data set, in the roadmap's order."""

    study: str
    regime: str
    data: str
    made_with: tuple[str, ...]  # hardware and versions
    holdouts: tuple[Cell, ...]  # evaluated on held-out training images: never beside the accuracies of the others
    rows: tuple[Cell, ...] = ()  # plain steps
    others: tuple[Cell, ...] = ()  # variants and overrides
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # rows, parents and seeds without a usable run
    macs: Quantity = QUANTITIES["gmacs"]  # in the one unit of the report
    tuning: "Tuning | None" = field(default=None, repr=False, compare=False)  # where each row has its own rate
    attribution: "Attribution | None" = None  # of a study of sampled orders

    @property
    def quantities(self) -> dict[str, Quantity]:
        """Return what runs record, in the units of the report."""
        return QUANTITIES | {"gmacs": self.macs}

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Return all its cells that were evaluated on the validation images, the plain steps first."""
        return (*self.rows, *self.others)

    @property
    def compared(self) -> tuple[tuple[Cell, Gain], ...]:
        """Return the cells that have a parent to be compared with, with their gains."""
        return tuple((cell, cell.gain) for cell in self.cells if cell.gain)

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


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs by (study, regime, data) and their seeds by cell; those with a holdout are cells of another kind."""
    by_group: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        by_group[run.study, run.regime, run.data].append(run)
    regimes = list(paper.TABLES)  # tiny before base, as in the paper

    def order(key: tuple[str, str, str]) -> tuple[str, int, str, str]:
        study, regime, data = key
        return data, regimes.index(regime) if regime in regimes else len(regimes), regime, study

    groups = [_group(*key, sorted(by_group[key], key=lambda run: run.seed)) for key in sorted(by_group, key=order)]
    most = [max((cell.numbers.get("gmacs", 0.0) for cell in group.cells), default=0.0) for group in groups]
    small = any(0 < gmacs < SMALL_NET for gmacs in most)
    return [replace(group, macs=MEGA_MACS) for group in groups] if small else groups


def _group(study: str, regime: str, data: str, runs: Sequence[Run]) -> Group:
    seeds: dict[tuple[str, float], list[Run]] = defaultdict(list)
    for run in runs:
        seeds[run.cell, run.holdout].append(run)
    every = [cell_of(same) for same in seeds.values()]
    parents = {cell.step: cell.parent for cell in every}
    every.sort(key=lambda cell: (paper.position(cell.step, parents), cell.cell))
    cells = [cell for cell in every if not cell.holdout]
    plain = {cell.step for cell in cells if cell.plain}
    rows = [cell for cell in cells if cell.plain or (cell.cell == paper.SWIN_CELL and cell.step not in plain)]
    made_with = tuple(sorted({f"{run.hardware}, {run.versions}".strip(", ") for run in runs} - {""}))
    group = Group(study, regime, data, made_with, holdouts=tuple(cell for cell in every if cell.holdout))
    return with_rows(group, rows, [cell for cell in cells if cell not in rows])


def with_rows(group: Group, rows: Sequence[Cell], others: Sequence[Cell] = ()) -> Group:
    """Return a group with these rows and other cells, and what is to be said of them."""
    missing = tuple(_missing(rows, group.regime))
    runs = [run for cell in (*rows, *others, *group.holdouts) for run in cell.runs]
    notes = (*_notes(rows), *_departures([*rows, *others]), *_hours(runs))
    return replace(group, rows=tuple(rows), others=tuple(others), notes=notes, missing=missing)


def _hours(runs: Sequence[Run]) -> list[str]:
    """Return a line about finished runs' GPU-hours, and how many shared a GPU; none where they are not recorded."""
    known = [run for run in runs if "gpu_hours" in run.numbers]
    if not known:
        return []
    used, lost = (sum(run.numbers.get(key, 0.0) for run in known) for key in ("gpu_hours", "lost_gpu_hours"))
    more = f", and {hours_text(lost)} lost to restarts" if lost else ""
    if (most := max(run.group_size for run in known)) > 1:
        more += f", up to {most} side by side (training speed is of one of them)"
    return [f"{hours_text(used)} GPU-hours for {len(known)} finished run{'s' * (len(known) > 1)}{more}"]


def cell_of(runs: Sequence[Run]) -> Cell:
    """Collect the seeds of one cell, whose settings are the same."""
    first = runs[0]
    with_its_recipe = first.cell == paper.SWIN_CELL if first.step == "swin" else first.plain
    compares = with_its_recipe and _is_papers_data(first)
    values = {key: [run.numbers[key] for run in runs if key in run.numbers] for key in QUANTITIES}
    means = {key: fmean(known) for key, known in values.items() if len(known) == len(runs)}
    return Cell(
        **{item.name: getattr(first, item.name) for item in fields(CellInfo)},
        runs=tuple(runs),
        numbers=means | {key: values[key][0] for key in OF_THE_NET if values[key]},
        paper=paper.rows(first.regime).get(first.step) if compares else None,
    )


def _is_papers_data(cell: CellInfo) -> bool:
    return (cell.data, cell.image_size) == (paper.DATA, paper.IMAGE_SIZE)


def _departures(cells: Sequence[Cell]) -> list[str]:
    """Return how cells on the paper's data were trained differently from the ones whose numbers it prints."""
    there = [cell for cell in cells if _is_papers_data(cell)]
    notes = [note for cell in there if cell.plain and (note := paper.RECIPES.get((cell.regime, cell.step)))]
    for cell in there:
        printed = paper.rows(cell.regime).get(cell.step)
        if cell.cell == "swin" and printed:
            own = f"{printed.label}'s printed {printed.top1:.2f} comes from Swin's own recipe"
            notes.append(f"{own}: shown beside {paper.SWIN_CELL}, not beside {cell.cell} with recipe {cell.recipe}")
    precisions = sorted({run.precision for cell in there if cell.paper for run in cell.runs} & {"bf16", "fp16"})
    if precisions:
        notes.append(f"trained in {listed(precisions)}; the authors' commands for ImageNet-1K ran in fp32")
    return notes


def _notes(rows: Sequence[Cell]) -> list[str]:
    """Return what limits a comparison of rows although every run is sound."""
    notes = []
    for recipe in sorted({row.recipe for row in rows}):
        lengths = sorted({row.epochs for row in rows if row.recipe == recipe and row.epochs is not None})
        if len(lengths) > 1:
            notes.append(f"recipe {recipe}: rows were trained for {listed(lengths)} epochs, so they are not comparable")
    largest = max((_net_number(row, "kernel_size", 0) for row in rows), default=0)
    notes += sorted({note for row in rows if (note := _idle_weights(row, largest))})
    by_marks: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row in rows:
        if row.marks:
            by_marks[row.marks].append(row.cell)
    differ = "counts runs that differ from most of the study"
    notes += [f"{MARK} {listed(cells)}: {differ} ({', '.join(kinds)})" for kinds, cells in by_marks.items()]
    return notes


def _net_number(row: Cell, key: str, default: int) -> int:
    text = row.runs[0].config.get(f"model.{key}", "")  # anybody's text
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,3}", text) else default


def _idle_weights(row: Cell, kernel: int) -> str:
    """Say where kernels have weights that see only padding: beyond 2 x side - 1 pixels, on maps of small images."""
    stride = _net_number(row, "stem_stride", 4)
    if not row.image_size:
        return ""
    sides = [max(1, row.image_size // (stride * 2**stage)) for stage in range(4)]
    most = [2 * side - 1 for side in sides]
    if kernel <= most[-1]:
        return ""
    return f"maps of {listed(sides)} pixels: kernels above {listed(most)} have weights that see only padding"


def _missing(rows: Sequence[Cell], regime: str) -> list[str]:
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
            missing.append(f"{row.cell}: no usable run of seed {listed(lacking)}, which other rows have")
    return missing
