"""What the page shows of the images and classes of a row: in a sentence, in tables, in a confusion matrix."""

import math
from collections.abc import Callable

import numpy as np

from roadmap.report.analyse.cells import Cell
from roadmap.report.analyse.confusion import Confusion
from roadmap.report.analyse.formats import count, p_text, signed
from roadmap.report.analyse.image_changes import ClassChanges
from roadmap.report.write.columns import Column, Table, column, table

SHOWN = 10  # classes helped most, and hurt most, of a row
WHOLE = 2 * SHOWN + 10  # classes up to which all are shown
LEVELS = 9  # shades of a matrix


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


def class_table(classes: ClassChanges) -> Table:
    """Return the table of the classes, from the most helped to the most hurt; of many the ends alone."""

    def numbers(heading: str, values: np.ndarray, text: Callable[[float], str]) -> Column:
        def number(i: int) -> float | None:
            return None if math.isnan(values[i]) else float(values[i])

        return Column(heading, lambda i: "" if number(i) is None else text(values[i]), number)

    columns = [
        Column("class", lambda i: classes.names[i]),
        numbers("images", classes.images, str),
        numbers("top-1 (%)", classes.top1, "{:.2f}".format),
        numbers("of the parent", classes.parent_top1, "{:.2f}".format),
        numbers("change (points)", classes.change, signed),
        numbers("fixed", classes.fixed, count),
        numbers("broken", classes.broke, count),
        numbers("p over seeds (BH)", classes.p_seeds_adjusted, p_text),
        numbers("p over images (BH)", classes.p_images_adjusted, p_text),
    ]
    every = len(classes.images)
    chosen = sorted(range(every), key=lambda i: -classes.change[i])
    if every > WHOLE:
        chosen = [*classes.most(1, SHOWN), *reversed(classes.most(-1, SHOWN))]
    return table("what it changes in each class", chosen, columns)


def pair_table(found: Confusion) -> Table:
    """Return the table of the classes that are taken for one another most."""
    over = f", mean over {found.seeds} seeds" if found.seeds > 1 else ""
    columns = [
        column("class", "true"),
        column("taken for", "taken_for"),
        column(f"images{over}", "images", count),
        column("of the class (%)", "share", "{:.1f}".format),
    ]
    return table("the classes that it confuses most", found.pairs, columns)


def matrix(found: Confusion) -> list[tuple[int, str, list[tuple[str, int]]]]:
    """Return the number and name of each class, and for each that its images were taken for a text and a shade.

    Shades go with the root of the share, so that rare confusions are seen.
    """
    rows = []
    for number, (name, row) in enumerate(zip(found.names, [] if found.matrix is None else found.matrix, strict=True)):
        shades = [math.ceil(LEVELS * math.sqrt(share)) for share in row / max(row.sum(), 1)]
        rows.append((number, name, [(count(v) if v else "", shade) for v, shade in zip(row, shades, strict=True)]))
    return rows
