"""What the tables show: the numbers of `table.csv`, and the columns that people read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Any

from roadmap import paper
from roadmap.report.analyse.cells import MARK, Cell, Gain, Group
from roadmap.report.analyse.formats import accuracy, between, count, p_text, percent, signed
from roadmap.report.analyse.statistics import MOST_SEEDS, Seeds
from roadmap.runs.schema import QUANTITIES
from roadmap.text import shorten

NAMED = 3  # classes of a row in its table
CSV_KEYS = {"top1": "top1_mean", "top5": "top5_mean"}  # other numbers have the keys of the summary


def at(path: str) -> Callable[[Any], Any]:
    """Return what leads to `gain.over_seeds.low` from a row, by attributes and keys; None where a part is None."""

    def value(row: Any) -> Any:
        found = row
        for name in path.split(".") if path else ():
            if found is not None:
                found = found.get(name) if isinstance(found, dict) else getattr(found, name)
        return found

    return value


@dataclass(frozen=True)
class Number:
    """One number of a row: its key in `table.csv`, and where it lies in a cell."""

    key: str
    name: str
    unit: str
    path: str
    about: str  # in one line, under the table


@dataclass(frozen=True)
class Column:
    """One column for people: its heading, the text of a row, the number to sort by, and its meaning in one line."""

    heading: str
    text: Callable[[Any], str]
    sort: Callable[[Any], float | None] | None = None  # None: by the text
    about: str = ""


def column(
    heading: str, path: str, text: Callable[[Any], str] | None = None, about: str = "", sort: str = ""
) -> Column:
    """Return a column of what a path leads to, empty where that is None: a word, or with `text` a number.

    Numbers sort by themselves, or by what `sort` leads to.
    """
    value, write = at(path), text or str
    return Column(
        heading,
        lambda row: "" if value(row) is None else write(value(row)),
        at(sort or path) if text else None,
        about,
    )


@dataclass(frozen=True)
class Table:
    """One table as texts, without the columns that are empty in every row."""

    title: str
    columns: list[Column]
    cells: list[Any]  # what its rows are made of
    texts: list[list[str]]  # one list per row

    @property
    def headings(self) -> list[str]:
        """Return the headings of its columns."""
        return [column.heading for column in self.columns]

    @property
    def right(self) -> list[int]:
        """Return the positions of the columns of numbers."""
        return [i for i, column in enumerate(self.columns) if column.sort]


def table(title: str, cells: Sequence[Any], columns: Sequence[Column]) -> Table:
    """Return the table of some cells, or other rows of the columns; a mark that no row has is not explained."""
    filled = [_explained(column, cells) for column in columns if any(map(column.text, cells))]
    return Table(title, filled, list(cells), [[column.text(cell) for column in filled] for cell in cells])


def _explained(column: Column, cells: Sequence[Any]) -> Column:
    unmarked = column.about.startswith(MARK) and not any(MARK in column.text(cell) for cell in cells)
    return replace(column, about="") if unmarked else column


def _ends(key: str, name: str, unit: str, path: str, about: str) -> list[tuple[str, ...]]:
    return [(f"{key}_{end}", f"{name} {word}", unit, f"{path}.{end}", about) for end, word in ENDS.items()]


ENDS = {"low": "from", "high": "to"}
ABOUT_TOP1 = "last epoch, mean over n seeds ± standard deviation (n - 1); one seed has no spread"
ABOUT_SEEDS = (
    "per row, for this gain to become significant (Welch's test, 5 % over all steps of the study, power 80 %) if gain "
    "and spreads are as measured; in brackets the range over the 95 % interval of their ratio"
)
ABOUT_ONLY = (
    "images that only this network or only its parent's classifies correctly, one network of each (the lowest common "
    "seed); against the gain: this pair points in the other direction than the means over seeds"
)
ABOUT_FIXED = "correct here and wrong in the parent's network of the same seed, mean over the seeds that both have"
ABOUT_BROKEN = "wrong here and correct in the parent's network of the same seed, mean over the same seeds"
ABOUT_BY_SEED = "images that one seed of a row classifies correctly and another does not, mean of both rows"
ABOUT_MCNEMAR = "one network of each row (the lowest common seed) on the same images"
ABOUT_MCNEMAR_HOLM = "McNemar's test, adjusted by Holm for all steps of the study"
ABOUT_CLASSES = (
    "change of the class's top-1 in points; in brackets p over seeds (Welch), then over its images (sign-flip test of "
    "these trained networks), both adjusted by Benjamini and Hochberg for all classes of all steps of the study"
)
ABOUT_P = "of its difference from the mean gain, adjusted by Holm over the toggles"
ABOUT_STD = "std. dev. of the gain between orders, without the part due to seeds"
ABOUT_EDGE = "the lowest or highest rate that was tried was chosen: the best may lie beyond the grid"
ABOUT_HELDOUT = "at the chosen rate, on training images that were held out; no accuracy on the validation images"
ABOUT_VERDICT = (
    "survives: significant (Welch, Holm over the steps of each roadmap) with the one recipe and, in the same "
    "direction, with own rates; lost: with the one recipe only; turns: in the other direction; appears: with own rates "
    "only; open: with neither"
)
POINTS, RATE, FACTOR = "{:.2f}".format, "{:.4g}".format, "{:.3g}".format
SPREAD = (
    ("top1_std", "std. dev.", "points", "top1_std", "over seeds, with n - 1; none for one seed or equal ones"),
    *_ends("top1", "95 %", "%", "interval", "t interval of the mean over seeds"),
)
COMPARED = (
    ("gain", "gain", "points", "gain.gain", "top-1 of the row minus that of its parent"),
    *_ends("gain", "gain", "points", "gain.over_seeds", "Welch's 95 % interval over seeds"),
    ("p", "p", "", "gain.p", "Welch's test over seeds, two-sided, of this step alone"),
    ("p_holm", "p (Holm)", "", "gain.p_holm", "Welch's test over seeds, adjusted by Holm for all steps of the study"),
    ("seeds_needed", "seeds needed", "", "gain.seeds_needed.likely", ABOUT_SEEDS),
    *_ends("seeds_needed", "seeds needed", "", "gain.seeds_needed", ABOUT_SEEDS),
    *_ends("images", "images", "points", "gain.over_images", "bootstrap over images, for these trained networks"),
    ("mcnemar_p", "McNemar p", "", "gain.mcnemar_p", ABOUT_MCNEMAR),
    ("mcnemar_p_holm", "McNemar p (Holm)", "", "gain.mcnemar_p_holm", ABOUT_MCNEMAR_HOLM),
    ("fixed", "images fixed", "", "gain.changes.fixed", ABOUT_FIXED),
    ("broken", "images broken", "", "gain.changes.broke", ABOUT_BROKEN),
    ("by_seed", "by a seed alone", "", "gain.changes.by_seed", ABOUT_BY_SEED),
    ("paper_top1", "paper top-1", "%", "paper.top1", "as printed in Tables 10 and 11"),
    ("paper_top1_std", "paper std. dev.", "points", "paper.top1_std", "as printed, over three seeds"),
    ("paper_gmacs", "paper MACs", "G", "paper.gmacs", "as printed"),
    ("paper_gain", "paper gain", "points", "gain.paper_gain", "difference of the printed means"),
    *_ends("paper_gain", "paper", "points", "gain.paper_interval", "Welch's interval of the printed spreads, n = 3"),
)


def numbers() -> dict[str, Number]:
    """Return every number of a row by its key: what the runs record, then what was computed of it."""
    top1, *others = [(CSV_KEYS.get(k, k), q.title, q.unit, f"numbers.{k}", q.about) for k, q in QUANTITIES.items()]
    return {number.key: number for number in starmap(Number, (top1, *SPREAD, *others, *COMPARED))}


def row_columns(group: Group) -> list[Column]:
    """Return the columns of a row on its own; every number that runs record has one."""

    def adopted(cell: Cell) -> str:
        return cell.adopted if cell.step in paper.order() else f"{cell.adopted}, {paper.BEYOND}"

    top1, *recorded = group.quantities.values()
    about_interval = "t interval of the mean over seeds; none for one seed or equal ones"
    about_paper = "as printed, ± its standard deviation over three seeds"
    return [
        STEP,
        Column("label", lambda cell: shorten(cell.label, 40)),
        Column("adopted", adopted, about="yes: kept by the paper; no: tried and not kept; reference: not a step"),
        column(top1.heading, "", top1_text, ABOUT_TOP1, sort="top1"),
        column("n", "n", str, "seeds"),
        column("95 % interval", "interval", lambda i: f"{i.low:.2f} to {i.high:.2f}", about_interval, "interval.low"),
        *(column(q.heading, f"numbers.{q.key}", q.text, q.about) for q in recorded),
        column("epochs", "epochs", str),
        column("paper top-1", "paper", top1_text, about_paper, sort="paper.top1"),
        column(f"paper {group.macs.heading}", "paper.gmacs", group.macs.text, "as printed"),
    ]


def gain_columns() -> list[Column]:
    """Return the columns of a row beside its parent."""
    about_seeds = "Welch's interval; seeds are not paired across rows"
    return [
        STEP,
        column("compared with", "gain.parent"),
        _number("gain", signed),
        Column("95 % over seeds", _over_seeds, at("gain.over_seeds.low"), about_seeds),
        _number("p_holm", p_text),
        _number("seeds_needed", _seeds, path="gain.seeds_needed"),
        _number("images_low", between, "95 % over images", "gain.over_images"),
        column("only right here / there", "gain", _only_right, ABOUT_ONLY, sort="gain.only_this"),
        _number("mcnemar_p_holm", p_text),
        _number("paper_gain", signed, "paper gain"),
        _number("paper_gain_low", between, "paper 95 %", "gain.paper_interval"),
    ]


def change_columns() -> list[Column]:
    """Return the columns of what a row changes image by image and class by class."""
    return [
        STEP,
        column("compared with", "gain.parent"),
        *(_number(key, count) for key in ("fixed", "broken", "by_seed")),
        Column("helped most", lambda cell: _classes(cell, 1), about=ABOUT_CLASSES),
        Column("hurt most", lambda cell: _classes(cell, -1), about=ABOUT_CLASSES),
    ]


STEP = Column(
    "step",
    lambda cell: f"{cell.cell} {MARK}" if cell.marks else cell.cell,
    about=f"{MARK} counts runs that differ from most of the study: see the notes",
)


def _number(key: str, text: Callable[[Any], str], heading: str = "", path: str = "") -> Column:
    """Return the column of a number of `table.csv`, or of what a path leads to, sorted by that number."""
    number = numbers()[key]
    heading = heading or (f"{number.name} ({number.unit})" if number.unit else number.name)
    return column(heading, path or number.path, text, number.about, sort=number.path)


def top1_text(row: Cell | paper.PaperRow) -> str:
    """Return the accuracy of a row, ours or the paper's, with its spread."""
    return accuracy(row.top1, row.top1_std)


def _over_seeds(cell: Cell) -> str:
    """Return Welch's interval, or in words why there is none."""
    if cell.gain is None or cell.gain.over_seeds:
        return between(cell.gain.over_seeds) if cell.gain else ""
    return "none: one seed" if min(cell.n, cell.gain.parent_n) < 2 else "none: all seeds equal"


def _seeds(needed: Seeds) -> str:
    if needed.likely >= MOST_SEEDS:
        return f"{needed.low} or more"
    if needed.low == needed.high:
        return str(needed.likely)
    return f"{needed.likely} ({needed.low} {f'to {needed.high}' if needed.high else 'or more'})"


def _only_right(gain: Gain) -> str:
    against = ", against the gain" if gain.contradicted else ""
    return "" if gain.only_this is None else f"{gain.only_this} / {gain.only_parent}{against}"


def _classes(cell: Cell, sign: int) -> str:
    """Return the classes that a step helped or hurt most, each with its tests."""
    found = at("gain.changes.classes")(cell)
    texts = []
    for i in found.most(sign, NAMED) if found else ():
        p = "; ".join(p_text(value) or "none" for value in (found.p_seeds_adjusted[i], found.p_images_adjusted[i]))
        texts.append(f"{shorten(found.names[i], 30)} {signed(found.change[i])} ({p})")
    return ", ".join(texts)


# Of what some studies are for: a toggle's worth over sampled orders, and each row's own learning rate.
WORTH_COLUMNS = (
    column("toggle", "toggle"),
    column("mean gain (points)", "value", signed, "gain over the network before it, mean over the orders"),
    column("95 % over orders and seeds", "interval", between, "see docs/report.md", sort="interval.low"),
    column("over orders (points)", "orders_std", POINTS, ABOUT_STD),
    column("of seeds", "of_seeds", percent, "share of the variance of the mean gain that is due to seeds"),
    column("its step", "in_order", signed, "gain in the paper's order, in these runs"),
    column("step's p (Holm)", "in_order_p", p_text, ABOUT_P),
    column("paper gain", "paper_gain", signed, "difference of the printed means"),
    column("paper's p (Holm)", "paper_p", p_text, ABOUT_P),
    column("left out", "left_out", signed, "what the whole network loses without it"),
)
RATE_COLUMNS = (
    column("step", "step"),
    Column("label", lambda row: shorten(row.label, 40)),
    column("recipe's rate", "own", RATE),
    column("own rate", "rate", RATE, "chosen on held-out training images; ties go to the recipe's"),
    column("factor", "factor", FACTOR, "own rate over the recipe's"),
    Column("edge", lambda row: "edge" if row.at_edge else "", about=ABOUT_EDGE),
    column("held-out top-1 (%)", "heldout", POINTS, ABOUT_HELDOUT),
    column("spread over rates (points)", "spread", POINTS, "best minus worst held-out accuracy of the row"),
    column("one recipe: top-1 (%)", "plain", top1_text, sort="plain.top1"),
    column("own rate: top-1 (%)", "tuned", top1_text, sort="tuned.top1"),
    column("gain, one recipe", "plain.gain.gain", signed),
    column("p (Holm), one recipe", "plain.gain.p_holm", p_text),
    column("gain, own rates", "tuned.gain.gain", signed),
    column("p (Holm), own rates", "tuned.gain.p_holm", p_text),
    column("verdict", "verdict", about=ABOUT_VERDICT),
)
