"""The CSV files of the report: where the rows of each lie in a group, and where its columns lie in a row."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from roadmap.escape import for_csv
from roadmap.report.analyse.cells import Group
from roadmap.report.write.columns import at, numbers

Paths = Mapping[str, str]  # by column; `group.` leads to something of the row's group
MOST_CLASS_LINES = 250_000
WHOLE = ("n", "epochs", "image_size", "seeds_needed", "seeds_needed_low", "seeds_needed_high")
OF_GROUP = {name: f"group.{name}" for name in ("study", "regime", "data")}
NAMES = ("cell", "step", "variant", "label", "parent", "adopted", "n", "seeds", "recipe", "epochs", "image_size")
WORTHS = {
    "toggle": "toggle", "value": "value", "low": "interval.low", "high": "interval.high",
    "orders": "group.attribution.orders", "orders_std": "orders_std", "of_seeds": "of_seeds", "in_order": "in_order",
    "in_order_p": "in_order_p", "paper_gain": "paper_gain", "paper_p": "paper_p", "left_out": "left_out",
}  # fmt: skip
TUNING = {
    "step": "step", "label": "label", "recipe_rate": "own", "rate": "rate", "factor": "factor", "at_edge": "at_edge",
    "no_result_at": "lacking", "tuned_with_seeds": "n", "heldout_top1": "heldout",
    "heldout_top1_recipe_rate": "heldout_own", "top1_one_recipe": "plain.top1", "top1_own_rate": "tuned.top1",
    "gain_one_recipe": "plain.gain.gain", "gain_low_one_recipe": "plain.gain.over_seeds.low",
    "gain_high_one_recipe": "plain.gain.over_seeds.high", "p_holm_one_recipe": "plain.gain.p_holm",
    "gain_own_rates": "tuned.gain.gain", "gain_low_own_rates": "tuned.gain.over_seeds.low",
    "gain_high_own_rates": "tuned.gain.over_seeds.high", "p_holm_own_rates": "tuned.gain.p_holm", "verdict": "verdict",
}  # fmt: skip
CLASSES = {  # of a class: a column, and the array in ClassChanges
    "class": "numbers", "name": "names", "images": "images", "top1_mean": "top1", "parent_top1_mean": "parent_top1",
    "change": "change", "fixed": "fixed", "broken": "broke", "p_seeds": "p_seeds", "p_seeds_bh": "p_seeds_adjusted",
    "p_images": "p_images", "p_images_bh": "p_images_adjusted",
}  # fmt: skip
RATES = {name: name for name in ("step", "rate", "factor", "heldout_top1", "seeds", "chosen")}


def cell_paths() -> dict[str, str]:
    """Return the columns of `table.csv` and where they lie in a cell."""
    others = {"compared_with": "gain.parent", "allowed": "marks", "caution": "group.caution"}
    return {name: name for name in NAMES} | others | {key: number.path for key, number in numbers().items()}


def line(group: Group, row: object, paths: Paths) -> dict[str, Any]:
    """Return a row's value by column: text, number or None."""
    of_row, of_group = {}, "group."
    for key, path in paths.items():
        value = at(path.removeprefix(of_group))(group if path.startswith(of_group) else row)
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, tuple):
            value = " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
        of_row[key] = value
    return of_row


def frame(groups: Sequence[Group], kind: str = "rows") -> pd.DataFrame:
    """Return one line per cell in the roadmap's order: the plain steps, `others` or `holdouts`."""
    table = _frame(groups, kind, cell_paths())
    floats = [key for key in numbers() if key not in WHOLE]
    return table.astype(dict.fromkeys(floats, float) | dict.fromkeys(WHOLE, "Int64"))


def _frame(groups: Sequence[Group], rows: str, paths: Paths) -> pd.DataFrame:
    columns = OF_GROUP | dict(paths)
    lines = [line(group, row, columns) for group in groups for row in at(rows)(group) or ()]
    return pd.DataFrame(lines, columns=list(columns))


def class_frame(groups: Sequence[Group]) -> pd.DataFrame:
    """Return a line for each class of each row, plain steps first, at most `MOST_CLASS_LINES`."""
    of_row = OF_GROUP | {"cell": "cell", "compared_with": "gain.parent", "seeds": "gain.changes.seeds"}
    parts: list[pd.DataFrame] = []
    for kind, group in itertools.product(("rows", "others"), groups):
        for cell in at(kind)(group):
            classes = at("gain.changes.classes")(cell)
            if classes and sum(map(len, parts)) + len(classes.images) <= MOST_CLASS_LINES:
                of_classes = {name: getattr(classes, attribute) for name, attribute in CLASSES.items()}
                parts.append(pd.DataFrame(line(group, cell, of_row) | of_classes))
    return pd.concat(parts) if parts else pd.DataFrame(columns=[*of_row, *CLASSES])


def csv_files(groups: Sequence[Group], there: Collection[str] = ()) -> dict[str, bytes]:
    """Return `table.csv`, and the others that have a line; without one those `there`: they are no longer true."""
    tables = {
        "table.csv": frame(groups),
        "other_cells.csv": frame(groups, "others"),
        "holdout.csv": frame(groups, "holdouts"),
        "attribution.csv": _frame(groups, "attribution.worths", WORTHS),
        "tuning.csv": _frame(groups, "tuning.rows", TUNING),
        "rates.csv": _frame(groups, "tuning.rates", RATES),
        "classes.csv": class_frame(groups),
    }
    wanted = {"table.csv", *there}
    return {name: to_csv(table) for name, table in tables.items() if len(table) or name in wanted}


def to_csv(table: pd.DataFrame) -> bytes:
    """Return a table as CSV in UTF-8; empty where a value is not known, no text that a spreadsheet would compute."""
    for name in table.select_dtypes(exclude="number").columns:
        table[name] = [for_csv(value) if isinstance(value, str) else "" for value in table[name]]
    return table.to_csv(index=False, lineterminator="\n", float_format="%.8g").encode()
