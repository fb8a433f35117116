"""What the report shows of single classes: `classes.csv`, and the parts of a row on the page."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from roadmap.report.analyse.cells import Cell, Group
from roadmap.report.analyse.confusion import Confusion, confusion
from roadmap.report.analyse.formats import count, p_text, signed
from roadmap.report.analyse.image_changes import ClassChanges
from roadmap.report.write.escape import for_csv

MOST_LINES = 250_000  # of classes.csv
SHOWN = 10  # classes helped most, and hurt most, of a row on the page
WHOLE = 2 * SHOWN + 10  # classes up to which all are shown
MOST_ROWS = 100  # on the page with their classes
LEVELS = 9  # shades of a matrix


@dataclass(frozen=True)
class ClassRow:
    """One class of a row as texts, with the numbers to sort by."""

    name: str
    values: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class MatrixRow:
    """The images of one class: its number and name, and for each class that they were taken for a text and a shade."""

    number: int
    name: str
    entries: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ClassParts:
    """What the page shows of the classes of a row."""

    changed: str  # in a sentence
    headings: tuple[str, ...]
    classes: tuple[ClassRow, ...]
    left_out: int  # classes in between, which changed least
    confusion: Confusion | None
    matrix: tuple[MatrixRow, ...]


HEADINGS = (
    *("class", "images", "top-1 (%)", "of the parent", "change (points)", "fixed", "broken"),
    *("p over seeds (BH)", "p over images (BH)"),
)


def class_parts(cell: Cell) -> ClassParts | None:
    """Return what the page shows of a row's images and classes; None where its runs say nothing of them."""
    changes = cell.gain.changes if cell.gain else None
    found = confusion(cell.runs)
    if changes is None and found is None:
        return None
    classes = changes.classes if changes else None
    chosen = _most_changed(classes) if classes else []
    return ClassParts(
        changed=changed_text(cell),
        headings=HEADINGS,
        classes=tuple(_class_row(classes, i) for i in chosen) if classes else (),
        left_out=len(classes.images) - len(chosen) if classes else 0,
        confusion=found,
        matrix=tuple(_matrix(found)) if found else (),
    )


def changed_text(cell: Cell) -> str:
    """Return how many images a row fixed and broke, in a sentence; nothing where that is not known."""
    if cell.gain is None or cell.gain.changes is None:
        return ""
    changes = cell.gain.changes
    over = "" if changes.seeds == 1 else f" (mean over {changes.seeds} seeds)"
    text = f"Beside {cell.gain.parent}: {count(changes.fixed)} images fixed, {count(changes.broke)} broken{over}."
    if changes.by_seed is not None:
        text += f" Another seed of the same net alone changes {count(changes.by_seed)} each way."
    return text


def _most_changed(classes: ClassChanges) -> list[int]:
    """Return the positions of the classes that are shown, from the most helped to the most hurt."""
    every = len(classes.images)
    if every <= WHOLE:
        return sorted(range(every), key=lambda i: -classes.change[i])
    return [*classes.most(1, SHOWN), *reversed(classes.most(-1, SHOWN))]


def _class_row(classes: ClassChanges, i: int) -> ClassRow:
    def number(value: float, text: str) -> tuple[str, float | None]:
        return ("", None) if math.isnan(value) else (text, float(value))

    return ClassRow(
        classes.names[i],
        (
            number(classes.images[i], str(classes.images[i])),
            number(classes.top1[i], f"{classes.top1[i]:.2f}"),
            number(classes.parent_top1[i], f"{classes.parent_top1[i]:.2f}"),
            number(classes.change[i], signed(classes.change[i])),
            number(classes.fixed[i], count(classes.fixed[i])),
            number(classes.broke[i], count(classes.broke[i])),
            number(classes.p_seeds_adjusted[i], p_text(classes.p_seeds_adjusted[i])),
            number(classes.p_images_adjusted[i], p_text(classes.p_images_adjusted[i])),
        ),
    )


def _matrix(found: Confusion) -> Iterator[MatrixRow]:
    """Yield the rows of a small matrix. Shades go with the root of the share, so that rare confusions are seen."""
    if found.matrix is None:
        return
    for number, (name, row) in enumerate(zip(found.names, found.matrix, strict=True)):
        shares = row / max(row.sum(), 1)
        shades = [math.ceil(LEVELS * math.sqrt(share)) for share in shares]
        yield MatrixRow(
            number, name, tuple((count(v) if v else "", shade) for v, shade in zip(row, shades, strict=True))
        )


def to_classes_csv(groups: Sequence[Group]) -> bytes | None:
    """Return a line for each class of each row, plain steps first, at most `MOST_LINES`; None where no run has any."""
    parts: list[pd.DataFrame] = []
    lines = 0
    for cell, group in [(c, g) for g in groups for c in g.rows] + [(c, g) for g in groups for c in g.others]:
        changes = cell.gain.changes if cell.gain else None
        if changes is None or changes.classes is None or lines + len(changes.classes.images) > MOST_LINES:
            continue
        parts.append(_frame(group, cell, changes.classes, changes.seeds))
        lines += len(parts[-1])
    if not parts:
        return None
    return pd.concat(parts).to_csv(index=False, lineterminator="\n", float_format="%.8g").encode()


def _frame(group: Group, cell: Cell, classes: ClassChanges, seeds: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **{name: for_csv(getattr(group, name)) for name in ("study", "regime", "data")},
            "cell": for_csv(cell.cell),
            "compared_with": for_csv(cell.gain.parent if cell.gain else ""),
            "seeds": seeds,
            "class": classes.numbers,
            "name": [for_csv(name) for name in classes.names],
            "images": classes.images,
            "top1_mean": classes.top1,
            "parent_top1_mean": classes.parent_top1,
            "change": classes.change,
            "fixed": classes.fixed,
            "broken": classes.broke,
            "p_seeds": classes.p_seeds,
            "p_seeds_bh": classes.p_seeds_adjusted,
            "p_images": classes.p_images,
            "p_images_bh": classes.p_images_adjusted,
        }
    )
