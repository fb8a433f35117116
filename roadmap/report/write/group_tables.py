"""Which tables there are of a group, and the columns of a toggle's worth."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from roadmap.report.analyse.attribution import Worth
from roadmap.report.analyse.cells import MARK, Group
from roadmap.report.analyse.formats import between, p_text, signed
from roadmap.report.write.columns import Column, Table, at, change_columns, gain_columns, row_columns
from roadmap.report.write.rate_tables import rate_tables

HOLDOUTS = "Evaluated on held-out training images: not accuracies on the validation images"


def tables_of(group: Group) -> list[Table]:
    """Return the tables of a group that have a row."""
    compared = [cell for cell, _ in group.compared]
    parts: tuple[tuple[str, Sequence[Any], list[Column]], ...] = (
        ("Rows", group.rows, row_columns(group)),
        ("Other cells", group.others, row_columns(group)),
        ("Gains over the step before", compared, gain_columns()),
        (HOLDOUTS, () if group.tuning else group.holdouts, row_columns(group)),
        ("Mean gains over the sampled orders", group.attribution.worths if group.attribution else (), worth_columns()),
        ("Images and classes", [cell for cell in compared if cell.gain and cell.gain.changes], change_columns()),
    )
    found = []
    for title, cells, columns in parts:
        filled = [_explained(column, cells) for column in columns if any(map(column.text, cells))]
        if cells:
            found.append(Table(title, filled, list(cells), [[c.text(cell) for c in filled] for cell in cells]))
    return [*found, *rate_tables(group)]


def _explained(column: Column, cells: Sequence[Any]) -> Column:
    """Return a column without a word about a mark that no row has."""
    unmarked = column.about.startswith(MARK) and not any(MARK in column.text(cell) for cell in cells)
    return replace(column, about="") if unmarked else column


def worth_columns() -> list[Column]:
    """Return the columns of a toggle's worth over the sampled orders."""
    told = "of its difference from the mean gain, adjusted by Holm over the toggles"
    return [
        Column("toggle", at("toggle")),
        Column(
            "mean gain (points)", _points("value"), at("value"), "gain over the net before it, mean over the orders"
        ),
        Column("95 % over orders and seeds", lambda w: between(w.interval), at("interval.low"), "see docs/report.md"),
        Column(
            "over orders (points)",
            _plain("orders_std"),
            at("orders_std"),
            "std. dev. of the gain between orders, without the part due to seeds",
        ),
        Column("of seeds", _share, at("of_seeds"), "share of the variance of the mean gain that is due to seeds"),
        Column("its step", _points("in_order"), at("in_order"), "gain in the paper's order, in these runs"),
        Column("step's p (Holm)", lambda w: p_text(w.in_order_p), at("in_order_p"), told),
        Column("paper gain", _points("paper_gain"), at("paper_gain"), "difference of the printed means"),
        Column("paper's p (Holm)", lambda w: p_text(w.paper_p), at("paper_p"), told),
        Column("left out", _points("left_out"), at("left_out"), "what the whole net loses without it"),
    ]


def _points(name: str) -> Callable[[Any], str]:
    return lambda worth: signed(getattr(worth, name))


def _plain(name: str) -> Callable[[Any], str]:
    return lambda worth: "" if getattr(worth, name) is None else f"{getattr(worth, name):.2f}"


def _share(worth: Worth) -> str:
    return "" if worth.of_seeds is None else f"{worth.of_seeds:.0%}"
