"""Which tables there are of a group: a title, rows and columns each."""

from collections.abc import Iterable, Sequence
from typing import Any

from roadmap.report.analyse.cells import Group
from roadmap.report.write.analysis_columns import RATE_COLUMNS, WORTH_COLUMNS
from roadmap.report.write.columns import Column, Table, change_columns, gain_columns, row_columns, table

HOLDOUTS = "Evaluated on held-out training images: not accuracies on the validation images"
# Columns that a terminal has room for.
ON_TERMINAL = (
    *("step", "top-1 (%)", "n", "MACs (G)", "MACs (M)", "parameters (M)", "epochs", "paper top-1"),
    *("toggle", "mean gain (points)", "95 % over orders and seeds", "its step", "step's p (Holm)", "left out"),
    *("gain (points)", "95 % over seeds", "p (Holm)", "95 % over images", "McNemar p (Holm)", "paper gain"),
    *("images fixed", "images broken", "by a seed alone"),
    *("own rate", "factor", "edge", "gain, one recipe", "gain, own rates", "verdict"),
)


def tables_of(group: Group) -> list[Table]:
    """Return the tables of a group that have a row."""
    compared = [cell for cell, _ in group.compared]
    changed = [cell for cell, gain in group.compared if gain.changes]
    parts: tuple[tuple[str, Sequence[Any], Iterable[Column]], ...] = (
        ("Rows", group.rows, row_columns(group)),
        ("Mean gains over the sampled orders", group.attribution.worths if group.attribution else (), WORTH_COLUMNS),
        ("Own learning rates", group.tuning.rows if group.tuning else (), RATE_COLUMNS),
        ("Other cells", group.others, row_columns(group)),
        ("Gains over the step before", compared, gain_columns()),
        (HOLDOUTS, () if group.tuning else group.holdouts, row_columns(group)),
        ("Images and classes", changed, change_columns()),
    )
    return [table(title, cells, list(columns)) for title, cells, columns in parts if cells]
