"""Seeds to cells, cells to the rows of a roadmap: number, mean and standard deviation. Used by the tables and the figure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from roadmap import paper
from roadmap.report.record import Run

PAPER_DATA, PAPER_SIZE = "imagenet", 224
SMALL_REGIMES = ("nano", "mini")
SMALL_DATA = ("digits", "fashion_mnist", "cifar10", "cifar100", "imagenette")


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
    paper: paper.PaperRow | None  # only where it compares

    @property
    def n(self) -> int:
        """Return the number of seeds."""
        return len(self.seeds)


@dataclass(frozen=True)
class Group:
    """All that may stand in one chart: one study in one regime on one data set, in the roadmap's order."""

    study: str
    regime: str
    data: str
    rows: tuple[Cell, ...]  # plain steps
    others: tuple[Cell, ...]  # variants and overrides
    notes: tuple[str, ...]
    made_with: tuple[str, ...]  # hardware and versions

    @property
    def paper_reference(self) -> paper.PaperRow | None:
        """Return the paper's Swin where its numbers may stand beside ours."""
        return paper.rows(self.regime).get("swin") if any(row.paper for row in self.rows) else None

    @property
    def caution(self) -> str:
        """Return why the accuracies must not be read as the roadmap's, or nothing."""
        if self.data == "synthetic":
            return "synthetic images: the accuracy means nothing"
        if self.regime in SMALL_REGIMES or self.data in SMALL_DATA:
            return "small scale: the order of the rows means nothing at this size"
        return ""


def aggregate(runs: Iterable[Run]) -> list[Group]:
    """Group runs by (study, regime, data) and their seeds by cell."""
    grouped: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        grouped[run.study, run.regime, run.data].append(run)
    regimes = list(paper.TABLES)  # tiny before base, as in the paper
    order = sorted(grouped, key=lambda key: (key[2], regimes.index(key[1]) if key[1] in regimes else len(regimes), key[1], key[0]))
    return [_group(*key, grouped[key]) for key in order]


def _group(study: str, regime: str, data: str, runs: Sequence[Run]) -> Group:
    seeds: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.seed):
        seeds[run.cell].append(run)
    parents = {run.step: run.parent for run in runs}
    cells = sorted((_cell(same) for same in seeds.values()), key=lambda cell: (paper.place(cell.step, parents), cell.cell))
    rows = tuple(cell for cell in cells if _is_row(cell))
    return Group(
        study=study,
        regime=regime,
        data=data,
        rows=rows,
        others=tuple(cell for cell in cells if not _is_row(cell)),
        notes=(*_code_notes(seeds), *_row_notes(rows)),
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
        paper=paper.rows(first.regime).get(first.step) if compares else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _code_notes(seeds: dict[str, list[Run]]) -> list[str]:
    notes = []
    for cell, same in seeds.items():
        codes = sorted({run.code[:10] for run in same} - {""})
        if len(codes) > 1:
            notes.append(f"{cell}: its seeds were run with different code ({', '.join(codes)})")
        notes += [f"{cell}, seed {run.seed}: went on although this had changed: {run.drift}" for run in same if run.drift]
    return sorted(notes)


def _row_notes(rows: Sequence[Cell]) -> list[str]:
    notes = []
    for recipe in sorted({row.recipe for row in rows}):
        lengths = sorted({row.epochs for row in rows if row.recipe == recipe and row.epochs is not None})
        if len(lengths) > 1:
            notes.append(f"recipe {recipe}: rows were trained for {_listed(lengths)} epochs, so they do not compare")
    sizes = sorted({row.image_size for row in rows if row.image_size is not None})
    if len(sizes) > 1:
        notes.append(f"rows were trained at {_listed(sizes)} pixels, so they do not compare")
    if len({row.images for row in rows} - {""}) > 1:
        notes.append("rows were trained on different images, so they do not compare")
    return notes


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
