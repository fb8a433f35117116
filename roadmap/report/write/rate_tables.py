"""What the tables show of a study in which every row has its own learning rate."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from roadmap.report.analyse.cells import Gain, Group
from roadmap.report.analyse.formats import accuracy, p_text, signed
from roadmap.report.analyse.tuning import TunedRow, Tuning
from roadmap.report.write.columns import Column, Table
from roadmap.report.write.escape import for_csv
from roadmap.text import shorten

Value = str | float | int | None


def row_values(tuning: Tuning, row: TunedRow) -> dict[str, Value]:
    """Return all that is known of a row, by column of `tuning.csv`."""
    plain, tuned = tuning.gains(row)
    return {
        "step": row.step,
        "label": row.label,
        "recipe_rate": row.own,
        "rate": row.rate,
        "factor": row.factor,
        "at_edge": "yes" if tuning.at_edge(row) else "no",
        "no_result_at": " ".join(f"{factor:g}" for factor in tuning.lacking(row)),
        "tuned_with_seeds": row.n,
        "heldout_top1": row.accuracies[row.rate],
        "heldout_top1_recipe_rate": row.accuracies.get(row.own) if row.own else None,
        "top1_one_recipe": row.plain.top1 if row.plain else None,
        "top1_own_rate": row.tuned.top1 if row.tuned else None,
        **_gain_values("one_recipe", plain),
        **_gain_values("own_rates", tuned),
        "verdict": tuning.verdict(row),
    }


def _gain_values(suffix: str, gain: Gain | None) -> dict[str, Value]:
    return {
        f"gain_{suffix}": gain.gain if gain else None,
        f"gain_low_{suffix}": gain.over_seeds.low if gain and gain.over_seeds else None,
        f"gain_high_{suffix}": gain.over_seeds.high if gain and gain.over_seeds else None,
        f"p_holm_{suffix}": gain.p_holm if gain else None,
    }


def rate_values(row: TunedRow) -> list[dict[str, Value]]:
    """Return a line a rate that a row was tried with, by column of `rates.csv`."""
    return [
        {
            "step": row.step,
            "rate": rate,
            "factor": rate / row.own if row.own else None,
            "heldout_top1": top1,
            "seeds": row.n,
            "chosen": "yes" if rate == row.rate else "no",
        }
        for rate, top1 in row.accuracies.items()
    ]


def rate_csvs(groups: Sequence[Group]) -> dict[str, bytes]:
    """Return `tuning.csv`, a line a row, and `rates.csv`, a line a rate, of the studies that are tuned; none: none."""
    tuned = [(group, group.tuning) for group in groups if group.tuning]
    if not tuned:
        return {}
    lines: dict[str, list[dict[str, Value]]] = {"tuning.csv": [], "rates.csv": []}
    for group, tuning in tuned:
        where: dict[str, Value] = {"study": group.study, "regime": group.regime, "data": group.data}
        for row in tuning.rows:
            lines["tuning.csv"].append(where | row_values(tuning, row))
            lines["rates.csv"] += [where | values for values in rate_values(row)]
    return {name: _csv(rows) for name, rows in lines.items()}


def _csv(rows: Sequence[dict[str, Value]]) -> bytes:
    safe = [{key: for_csv(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    return pd.DataFrame(safe).to_csv(index=False, lineterminator="\n", float_format="%.8g").encode()


def rate_tables(group: Group) -> list[Table]:
    """Return the table for people: what each row chose, and its gain with the one recipe and with own rates.

    None where the group is not tuned.
    """
    if group.tuning is None:
        return []
    tuning = group.tuning
    columns = [
        Column("step", lambda row: row.step),
        Column("label", lambda row: shorten(row.label, 40)),
        _number("recipe's rate", lambda row: row.own, _rate),
        _number("own rate", lambda row: row.rate, _rate, "chosen on held-out training images; ties go to the recipe's"),
        _number("factor", lambda row: row.factor, lambda value: f"{value:.3g}", "own rate over the recipe's"),
        Column("edge", lambda row: "edge" if tuning.at_edge(row) else "", about=ABOUT_EDGE),
        _number("held-out top-1 (%)", lambda row: row.accuracies[row.rate], _percent, ABOUT_HELDOUT),
        _number("spread over rates (points)", _spread, _percent, "best less worst held-out accuracy of the row"),
        Column("one recipe: top-1 (%)", lambda row: _top1(row.plain), lambda row: row.plain and row.plain.top1),
        Column("own rate: top-1 (%)", lambda row: _top1(row.tuned), lambda row: row.tuned and row.tuned.top1),
        *_gains("one recipe", lambda row: tuning.gains(row)[0]),
        *_gains("own rates", lambda row: tuning.gains(row)[1]),
        Column("verdict", tuning.verdict, about=ABOUT_VERDICT),
    ]
    rows = list(tuning.rows)
    columns = [column for column in columns if any(map(column.text, rows))]
    return [Table(TITLE, columns, rows, [[column.text(row) for column in columns] for row in rows])]


TITLE = "Own learning rates"
ABOUT_EDGE = "the lowest or highest rate that was tried was chosen: the best may lie beyond the grid"
ABOUT_HELDOUT = "at the chosen rate, on training images that were held out; no accuracy on the validation images"
ABOUT_VERDICT = (
    "survives: significant (Welch, Holm over the steps of each roadmap) with the one recipe and, in the same "
    "direction, with own rates; lost: with the one recipe only; turns: in the other direction; appears: with own rates "
    "only; open: with neither"
)


def _gains(name: str, gain: Callable[[TunedRow], Gain | None]) -> tuple[Column, Column]:
    def value(row: TunedRow) -> float | None:
        found = gain(row)
        return found.gain if found else None

    def p(row: TunedRow) -> float | None:
        found = gain(row)
        return found.p_holm if found else None

    return _number(f"gain, {name}", value, signed), _number(f"p (Holm), {name}", p, p_text)


def _number(
    heading: str, value: Callable[[TunedRow], float | None], text: Callable[[Any], str], about: str = ""
) -> Column:
    return Column(heading, lambda row: "" if value(row) is None else text(value(row)), value, about)


def _rate(value: float) -> str:
    return f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{value:.2f}"


def _spread(row: TunedRow) -> float:
    return max(row.accuracies.values()) - min(row.accuracies.values())


def _top1(cell: Any) -> str:
    return accuracy(cell.top1, cell.top1_std) if cell else ""
